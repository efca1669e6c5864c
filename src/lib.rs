//! ringfence: a sidecar that fences calls.
pub mod net;
pub mod simulate;
