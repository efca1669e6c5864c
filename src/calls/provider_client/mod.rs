//! What ringfence asks of providers by itself, with an account's credentials: [`ask`] is the request, [`lookup`] asks where calls
//! stand, `look_soon` does so within seconds, [`terminate`] ends one and checks that it is over, `subaccount` asks for what a
//! subaccount signs with.

pub mod ask;
mod hang_ups;
mod look_soon;
pub mod lookup;
mod subaccount;
pub mod terminate;

pub(super) use ask::of_record;
pub use ask::{AskError, ProviderClient, Unreadable};
pub(super) use hang_ups::HangUps;
