//! What tests share.

pub mod chance;
pub mod child;
pub mod hooks;
pub mod net;
pub mod panics;
pub mod stage;
