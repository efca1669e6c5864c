//! ringfence's own requests to providers, with an account's credentials: [`ask`] sends a request, [`lookup`] queries the state of
//! calls, `look_soon` does so within seconds, [`terminate`] ends a call and checks that it has ended, `subaccount` fetches a
//! subaccount's signing token.

pub mod ask;
mod hang_ups;
mod look_soon;
pub mod lookup;
mod subaccount;
pub mod terminate;

pub(super) use ask::of_record;
pub use ask::{AskError, ProviderClient, Unreadable};
pub(super) use hang_ups::HangUps;
