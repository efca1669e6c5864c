//! ringfence: a sidecar that fences calls.
#![forbid(unsafe_code)]
pub mod admin;
pub mod app;
pub mod call;
pub mod calls;
pub mod cli;
pub mod clock;
pub mod config;
pub mod gate;
pub mod ids;
pub mod lifecycle;
pub mod metrics;
pub mod net;
pub mod policy;
pub mod provider;
pub mod proxy;
pub mod reconcile;
pub mod reply;
pub mod simulate;
pub mod store;
pub mod webhook;
