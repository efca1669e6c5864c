//! The bypass: for a limited time limits reject nothing, at every replica. It ends automatically.

use serde::{Deserialize, Serialize};

use crate::clock::UnixMs;

/// An active bypass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bypass {
    /// The bypass's start, in milliseconds since 1970.
    pub since_ms: UnixMs,
    /// The bypass's end, in milliseconds since 1970.
    pub until_ms: UnixMs,
    /// The operator.
    pub who: String,
    /// The reason.
    pub reason: String,
}
