//! What tests share.

pub mod hooks;
pub mod net;
pub mod stage;
