//! The bypass: for a while limits refuse nothing, at every replica. It ends by itself.

use serde::{Deserialize, Serialize};

use crate::clock::UnixMs;

/// A bypass that somebody has switched on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bypass {
    /// Since when, in milliseconds since 1970.
    pub since_ms: UnixMs,
    /// When it is over, in milliseconds since 1970.
    pub until_ms: UnixMs,
    /// Who switched it on.
    pub who: String,
    /// Why.
    pub reason: String,
}
