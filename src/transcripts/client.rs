//! The handler's state: its settings, its feed, and the open sockets.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::feed::Feed;
use crate::calls::Calls;
use crate::calls::lifecycle::Lifecycle;
use crate::provider::sign::sha256_hex;
use crate::sync::lock;
use crate::token::Keys;

/// Maximum calls that a connection follows.
pub(super) const FOLLOWED_MAX: usize = 1000;

/// The settings of the listener.
#[derive(Debug, Clone)]
pub struct ClientSettings {
    /// The keys that verify tokens.
    pub keys: Keys,
    /// The businesses visible to a token without a `businesses` claim.
    pub default_businesses: Vec<String>,
    /// Allowed origins, as in `https://app.example.com`; `*` is all. Empty: no CORS headers, and sockets from any origin.
    pub allowed_origins: Vec<String>,
    /// Maximum open sockets per token.
    pub sockets_per_token: u32,
    /// The time without a message after which a client counts as gone.
    pub idle: Duration,
    /// The time for which a client may read nothing.
    pub slow: Duration,
    /// The name of human speakers in messages.
    pub user_label: String,
    /// Whether `/calls/{id}/transcript` is a bare list, as in the replaced systems, unless `after` is given.
    pub transcript_list: bool,
    /// The time that `call_completed` waits for the post-call record.
    pub completion_wait: Duration,
}

/// The handler of `listen.client`. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    /// Fetches conversations from providers.
    pub calls: Calls,
    /// Reads calls.
    pub lifecycle: Lifecycle,
    /// The settings in force.
    pub settings: Arc<ClientSettings>,
    /// The feed; shared by all generations of the config.
    pub feed: Feed,
    /// The open sockets; shared by all generations of the config.
    pub sockets: Sockets,
    /// Cancelled when the process drains.
    pub draining: CancellationToken,
}

/// Open sockets by the hash of their token. Cheap to clone.
#[derive(Clone, Default)]
pub struct Sockets {
    by_token: Arc<Mutex<HashMap<String, u32>>>,
    pub(super) number: Arc<AtomicU64>,
    /// The newest settings, so that sockets close when their key is removed from the config.
    pub(super) newest: Newest,
}

/// Settings in force after a reload; `None` at first.
pub(super) type Newest = Arc<watch::Sender<Option<Arc<ClientSettings>>>>;

/// One counted socket of a token.
pub(super) struct CountedSocket {
    sockets: Sockets,
    token: String,
}

impl Sockets {
    /// Counts a socket of a token; `None` if it has `max` already.
    pub(super) fn count(&self, token: &str, max: u32) -> Option<CountedSocket> {
        let token = sha256_hex(token.as_bytes());
        let mut by_token = lock(&self.by_token);
        let count = by_token.entry(token.clone()).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(CountedSocket { sockets: self.clone(), token })
    }
}

impl Drop for CountedSocket {
    fn drop(&mut self) {
        let mut by_token = lock(&self.sockets.by_token);
        match by_token.get_mut(&self.token) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(by_token.remove(&self.token)),
        }
    }
}
