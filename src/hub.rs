//! A doorbell: it says that there is something new about a call, not what. Whoever listens reads the record from where it was, so
//! nothing is lost by a bell that was not heard, rung twice or rung at another replica.

use tokio::sync::broadcast;

use crate::ids::CallId;

/// Bells that a slow listener may be behind. Beyond it, it is told that it missed some, and looks at everything it follows.
const BEHIND_MAX: usize = 4096;

/// See the module. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Hub(broadcast::Sender<CallId>);

impl Default for Hub {
    fn default() -> Self {
        Self(broadcast::Sender::new(BEHIND_MAX))
    }
}

impl Hub {
    /// There is something new about a call on record: an utterance, an end, a post-call record.
    pub fn ring(&self, call: &CallId) {
        // Nobody has to listen.
        let _ = self.0.send(call.clone());
    }

    /// Every bell from now on.
    pub fn listen(&self) -> broadcast::Receiver<CallId> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_bell_is_heard_by_whoever_listens_and_needs_nobody() {
        let (hub, call) = (Hub::default(), CallId::new());
        hub.ring(&call);
        let mut listening = hub.listen();
        hub.ring(&call);
        assert_eq!(listening.recv().await, Ok(call));
        assert!(listening.try_recv().is_err());
    }
}
