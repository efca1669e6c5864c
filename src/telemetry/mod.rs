//! Data that leaves for a collector or an error tracker, beside the metrics of [`crate::metrics`]: spans and log lines
//! ([`traces`]), panics and logged errors ([`reports`]).

pub mod reports;
pub mod traces;
