//! The code that tests share.

pub mod browser;
pub mod child;
pub mod faults;
pub mod fleet;
pub mod hooks;
pub mod net;
pub mod panics;
#[allow(dead_code, reason = "the store's own tests use the rest")]
pub mod postgres;
pub mod redis;
pub mod rng;
pub mod socket;
pub mod source;
pub mod stage;

pub use ringfence::net::spare_port;

/// The bodies in a spool's folder, by name; what else is there is none.
pub fn spooled(folder: &std::path::Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return vec![] };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("ev_")).collect()
}
