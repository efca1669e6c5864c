//! Cache of front mode's recent answers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::OnceCell;

use crate::ids::CallId;
use crate::sync::lock;

/// The time after its first delivery within which a voice webhook may be retried: Twilio retries 5 times, 15 s apart.
const REPEATED_WITHIN: Duration = Duration::from_secs(120);

struct Front {
    begun: Instant,
    twiml: Arc<OnceCell<String>>,
}

/// Front mode's recent answers, by call: a retried voice webhook gets the same conversation. Cloning is cheap.
#[derive(Clone, Default)]
pub(super) struct FrontCache(Arc<Mutex<HashMap<CallId, Front>>>);

impl FrontCache {
    /// The answer to a call's webhook; the first caller fills it in.
    pub(super) fn of(&self, call: &CallId) -> Arc<OnceCell<String>> {
        let mut fronts = lock(&self.0);
        fronts.retain(|_, one| one.begun.elapsed() < REPEATED_WITHIN);
        let fresh = || Front { begun: Instant::now(), twiml: Arc::default() };
        fronts.entry(call.clone()).or_insert_with(fresh).twiml.clone()
    }
}
