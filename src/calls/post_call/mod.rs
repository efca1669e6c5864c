//! Post-call records: [`records`] takes them from webhooks, or asks for them where none came, and takes off what is not to be kept;
//! `fetch` asks on demand; [`webhook_health`] sees whether the webhooks that bring them still come.

mod fetch;
mod fetches;
pub mod records;
pub mod shown;
pub mod webhook_health;

pub(super) use fetches::Fetches;
pub use records::PostCallRecords;
