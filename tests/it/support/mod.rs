//! What tests share.

pub mod child;
pub mod hooks;
pub mod net;
pub mod stage;
