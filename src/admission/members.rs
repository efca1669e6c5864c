//! State that replicas share in their heartbeats: their policy, and what they last saw at providers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::AdmissionController;
use super::state::{LiveCountReport, Member};
use crate::clock::UnixMs;
use crate::policy::{Binding, PublishedLimits};
use crate::store::{LiveReplica, Replica};
use crate::sync::lock;

/// The longest error that is shared, in characters.
const ERROR_CHARS_MAX: usize = 300;

/// The state in a heartbeat.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct SharedState {
    policy: PublishedLimits,
    /// Since when its policy is in force, in milliseconds since 1970.
    policy_since_ms: UnixMs,
    seen: BTreeMap<String, LiveCountReport>,
}

impl AdmissionController {
    /// This process, with its shared state.
    pub(super) fn myself(&self) -> Replica {
        let policy = PublishedLimits::from_policy(&self.0.policy.load());
        let (seen, (_, policy_since_ms)) = {
            let mut peers = lock(&self.0.peers);
            if peers.policy.0 != policy.hash {
                peers.policy = (policy.hash.clone(), self.0.clock.now_ms());
            }
            (peers.seen.clone(), peers.policy.clone())
        };
        let state = serde_json::to_string(&SharedState { policy, policy_since_ms, seen }).ok();
        Replica { state, ..self.0.replica.clone() }
    }

    /// Adopts the state of other replicas from their heartbeats.
    pub(super) fn update_members(&self, live: &[LiveReplica]) {
        let mine = self.0.policy.load().hash().to_owned();
        let (mut members, mut others, mut elsewhere) = (vec![], vec![], BTreeMap::<String, LiveCountReport>::new());
        for (n, one) in live.iter().enumerate() {
            // Another version may share other state.
            let says = one.replica.state.as_deref().and_then(|state| serde_json::from_str::<SharedState>(state).ok());
            members.push(Member {
                replica: Replica { state: None, ..one.replica.clone() },
                started_at: Some(one.started_at),
                heard_at: Some(one.beat_at),
                policy: says.as_ref().map(|says| (says.policy.hash.clone(), says.policy_since_ms)),
                leads: n == 0,
            });
            let Some(says) = says.filter(|_| one.replica.id != self.0.replica.id) else { continue };
            for (account, report) in says.seen {
                let newest = elsewhere.entry(account).or_default();
                if report.tried_at_ms > newest.tried_at_ms {
                    *newest = report;
                }
            }
            if says.policy.hash != mine {
                others.push(says.policy);
            }
        }
        let (differed, differs) = {
            let mut peers = lock(&self.0.peers);
            let differed = !peers.others.is_empty();
            let differs = !others.is_empty();
            (peers.members, peers.others, peers.seen_elsewhere) = (members, others, elsewhere);
            (differed, differs)
        };
        self.0.metrics.policies_differ(differs);
        match (differed, differs) {
            (false, true) => {
                warn!(
                    policy = mine,
                    "replicas have different policies; the lower value of each limit applies: see /status"
                );
            }
            (true, false) => info!(policy = mine, "replicas have the same policy again"),
            _ => {}
        }
    }

    /// While replicas have different policies, applies the lower value of each limit.
    pub(super) fn apply_lower_limits(&self, bindings: &mut [Binding]) {
        let peers = lock(&self.0.peers);
        peers.others.iter().for_each(|other| other.lower(bindings));
    }

    /// Records the result of a sweep of this process.
    pub fn record_sweep(&self, account: &str, mut last_sweep: LiveCountReport) {
        if let Some((at, _)) = last_sweep.error.as_ref().and_then(|error| error.char_indices().nth(ERROR_CHARS_MAX)) {
            last_sweep.error.iter_mut().for_each(|error| error.truncate(at));
        }
        lock(&self.0.peers).seen.insert(account.to_owned(), last_sweep);
    }

    /// The latest report on an account by any replica. `None`: there is none.
    pub fn last_sweep(&self, account: &str) -> Option<LiveCountReport> {
        let peers = lock(&self.0.peers);
        let both = [peers.seen.get(account), peers.seen_elsewhere.get(account)];
        both.into_iter().flatten().max_by_key(|last_sweep| last_sweep.tried_at_ms).cloned()
    }

    /// The live replicas, including this one; the leader first.
    pub fn members(&self) -> Vec<Member> {
        let me = self.myself();
        let peers = lock(&self.0.peers);
        if !peers.members.is_empty() {
            return peers.members.clone();
        }
        let policy = Some(peers.policy.clone());
        vec![Member { replica: Replica { state: None, ..me }, started_at: None, heard_at: None, policy, leads: true }]
    }

    /// Whether replicas have different policies.
    pub fn policies_differ(&self) -> bool {
        !lock(&self.0.peers).others.is_empty()
    }
}
