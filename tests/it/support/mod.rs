//! What tests share.

pub mod net;
