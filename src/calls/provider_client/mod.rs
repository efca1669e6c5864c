//! ringfence's own requests to providers, with an account's credentials: [`ask`] sends a request, [`lookup`] queries the state of
//! calls, `look_soon` does so within seconds, [`hang_up`] ends a call and checks that it has ended, `subaccount` fetches a
//! subaccount's signing token.

pub mod ask;
pub mod hang_up;
mod look_soon;
pub mod lookup;
mod recent_hang_ups;
mod subaccount;

pub(super) use ask::of_record;
pub use ask::{AskError, ProviderClient, Unreadable};
pub(super) use recent_hang_ups::RecentHangUps;
