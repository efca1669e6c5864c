//! What tests share.

pub mod chance;
pub mod child;
pub mod faults;
pub mod fleet;
pub mod hooks;
pub mod net;
pub mod panics;
#[allow(dead_code, reason = "the store's own tests use the rest")]
pub mod postgres;
pub mod redis;
pub mod socket;
pub mod stage;
