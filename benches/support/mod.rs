//! The servers of the integration tests, for benches.

#![allow(
    dead_code,
    clippy::expect_used,
    clippy::panic,
    reason = "the tests use the rest, and say what they expect by panicking"
)]

use ringfence::net::spare_port;

#[path = "../../tests/it/support/postgres.rs"]
pub mod postgres;
#[path = "../../tests/it/support/redis.rs"]
pub mod redis;
/// As much of the tests' as the servers need.
pub mod child {
    pub fn signal(pid: u32, name: &str) {
        let kill = std::process::Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status();
        assert!(kill.unwrap().success());
    }
}
