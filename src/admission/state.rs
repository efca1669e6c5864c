//! State of a replica beside the limiter: what other replicas share, the bypass, and operations that wait for the limiter.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use serde::{Deserialize, Serialize};

use crate::clock::UnixMs;
use crate::ids::CallId;
use crate::policy::PublishedLimits;
use crate::policy::decision::{GateMode, LeaseRow};
use crate::store::{Bypass, Replica};
use crate::sync::lock;

/// The result of an account's sweep.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveCountReport {
    /// The provider's number of live calls. `None`: never known.
    pub provider_live: Option<u32>,
    /// The time at which the provider said so, in milliseconds since 1970.
    pub as_of_ms: Option<UnixMs>,
    /// The time at which it was last queried, in milliseconds since 1970.
    pub tried_at_ms: UnixMs,
    /// The reason why that query failed.
    pub error: Option<String>,
}

/// A replica, as all replicas see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The replica's identity.
    pub replica: Replica,
    /// Time of the replica's first heartbeat, in milliseconds since 1970. `None`: this replica, without others.
    pub started_at: Option<UnixMs>,
    /// Time of the replica's last heartbeat.
    pub heard_at: Option<UnixMs>,
    /// The hash of its policy, and since when that is in force. `None`: a version that does not share it.
    pub policy: Option<(String, UnixMs)>,
    /// Whether the replica is the leader.
    pub leads: bool,
}

/// The known replicas.
#[derive(Debug, Default)]
pub(super) struct Peers {
    /// This replica's latest reports, by account.
    pub(super) seen: BTreeMap<String, LiveCountReport>,
    /// The hash of this one's policy, and since when.
    pub(super) policy: (String, UnixMs),
    pub(super) members: Vec<Member>,
    /// Other replicas' policies that differ from this one's.
    pub(super) others: Vec<PublishedLimits>,
    pub(super) seen_elsewhere: BTreeMap<String, LiveCountReport>,
}

/// The bypass as this process knows it.
#[derive(Debug, Default)]
pub(super) struct BypassState {
    pub(super) latest: ArcSwapOption<Bypass>,
    /// Held while `latest` changes.
    pub(super) versions: Mutex<Versions>,
    /// Held while the bypass is being stored.
    pub(super) storing: tokio::sync::Mutex<()>,
    /// Whether the bypass was in force when the supervisor last looked.
    pub(super) was_on: AtomicBool,
}

/// Version numbers of the bypass: it is switched here, and stored.
#[derive(Debug, Default)]
pub(super) struct Versions {
    pub(super) latest: u64,
    /// The version stored last. Until that is the latest, the other replicas do not know it.
    pub(super) stored: u64,
}

impl BypassState {
    /// The latest version, if the store has it. What is read from the store after that is as new, or newer.
    pub(super) fn stored_version(&self) -> Option<u64> {
        let versions = lock(&self.versions);
        (versions.stored == versions.latest).then_some(versions.latest)
    }
}

/// Operations that are queued. The comparison with the call records finds those that were dropped.
const PENDING_OPS_MAX: usize = 10_000;

/// The time for which a replica may not have noticed a new epoch. While the database decides releases need not be sent, unless Redis was
/// filled a moment ago with calls that were open before.
const EPOCH_PROPAGATION: Duration = Duration::from_secs(10);

/// An operation on the limiter. Idempotent.
#[derive(Debug, Clone)]
pub(super) enum GateOp {
    /// The call has ended, or was never recorded.
    Release(CallId),
    /// The call's admission under this epoch got no answer.
    Forbid(i64, CallId),
    /// The call was recorded under this epoch and has to be counted.
    Adopt(i64, LeaseRow),
}

impl GateOp {
    /// Whether a transition has made it unnecessary: an admission under an epoch that is over has no effect, and recorded calls
    /// were recounted, perhaps under other limits.
    pub(super) fn is_over(&self, epoch: i64) -> bool {
        match self {
            GateOp::Release(_) => false,
            GateOp::Forbid(under, _) | GateOp::Adopt(under, _) => *under < epoch,
        }
    }
}

/// Operations that wait for the limiter.
#[derive(Debug, Default)]
pub(super) struct PendingOps {
    pub(super) waiting: VecDeque<GateOp>,
    /// Calls that ended while the database decided.
    lately: VecDeque<(Instant, CallId)>,
}

impl PendingOps {
    /// The number that wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Queues an operation.
    pub(super) fn push(&mut self, what: GateOp) {
        if self.waiting.len() >= PENDING_OPS_MAX {
            self.waiting.pop_front();
        }
        self.waiting.push_back(what);
    }

    /// Notes the end of a call while the database decides.
    pub(super) fn ended(&mut self, call: CallId) {
        while self.lately.len() >= PENDING_OPS_MAX
            || self.lately.front().is_some_and(|(at, _)| at.elapsed() > EPOCH_PROPAGATION)
        {
            self.lately.pop_front();
        }
        self.lately.push_back((Instant::now(), call));
    }

    /// Handles a transition. The database needs no operations: it reads the call records.
    pub(super) fn moved(&mut self, to: GateMode) {
        if to == GateMode::Database {
            self.waiting.clear();
            return;
        }
        for (_, call) in std::mem::take(&mut self.lately) {
            self.push(GateOp::Release(call));
        }
    }
}
