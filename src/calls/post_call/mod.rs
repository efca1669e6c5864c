//! Post-call records: [`records`] stores them from webhooks, fetches missing ones, and redacts what must not be kept; `fetch`
//! fetches on demand; [`webhook_health`] checks that the webhooks that bring them still arrive.

mod fetch;
mod fetches;
pub mod records;
pub mod shown;
pub mod webhook_health;

pub(super) use fetches::Fetches;
pub use records::PostCallRecords;
