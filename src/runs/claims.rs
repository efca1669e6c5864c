//! The claims that this replica works on. A claim whose transaction was committed, and whose answer was lost, is not among them: its
//! jobs are queued again like those of a dead replica.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::sync::lock;
use ulid::Ulid;

/// The claims of jobs that this replica works on.
#[derive(Debug, Default)]
pub(super) struct Claims(Mutex<HashSet<String>>);

/// A claim that is worked on until this is dropped.
#[derive(Debug)]
pub(super) struct HeldClaim {
    claims: Arc<Claims>,
    token: String,
}

impl Claims {
    fn tokens(&self) -> MutexGuard<'_, HashSet<String>> {
        lock(&self.0)
    }

    /// Begins a claim, with a fresh token.
    pub(super) fn begin(self: &Arc<Self>) -> Arc<HeldClaim> {
        let token = Ulid::new().to_string().to_lowercase();
        self.tokens().insert(token.clone());
        Arc::new(HeldClaim { claims: self.clone(), token })
    }

    /// The tokens of all claims that are worked on.
    pub(super) fn held(&self) -> Vec<String> {
        self.tokens().iter().cloned().collect()
    }
}

impl HeldClaim {
    /// Returns the claim's token.
    pub(super) fn token(&self) -> &str {
        &self.token
    }
}

impl Drop for HeldClaim {
    fn drop(&mut self) {
        self.claims.tokens().remove(&self.token);
    }
}
