//! What tests share.

pub mod net;
pub mod stage;
