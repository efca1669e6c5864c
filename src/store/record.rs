//! Call records.

use serde::{Deserialize, Serialize};

use super::AppNotice;
use crate::call::{EndProof, Event, Origin, Outcome, Phase, Source};
use crate::clock::UnixMs;
use crate::ids::{Alias, CallId};
use crate::policy::CallAttributes;
use crate::policy::decision::{GateState, LeaseRow, RateLog, Shortfall};

/// The replica that a request is taken over from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// The replica lives, and knows the outcome.
    Live,
    /// The replica is dead.
    Dead,
}

/// The app's own status callback, which ringfence's own replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppCallback {
    /// The callback's URL, including the fragment.
    pub url: String,
    /// GET or POST.
    pub method: String,
    /// The requested events; empty: the provider's default, the end alone.
    pub events: Vec<String>,
}

/// A call record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CallRecord {
    /// The call's id, also that of its lease.
    pub id: CallId,
    /// The attributes that policy selects by.
    #[serde(flatten)]
    pub attributes: CallAttributes,
    /// The way in which ringfence learnt of it.
    pub origin: Origin,
    /// The call's phase.
    pub phase: Phase,
    /// The outcome of the call.
    pub outcome: Option<Outcome>,
    /// The reason why it counts as over.
    pub proof: Option<EndProof>,
    /// Whether the call exists although it was rejected or had ended for us.
    pub over_limit: bool,
    /// The outcome of its create is unknown.
    pub unsettled: bool,
    /// The exchange of its create with the provider is over, and left the outcome unknown. Until then the provider may still carry
    /// the create out.
    #[serde(skip)]
    pub exchange_over: bool,
    /// No events will arrive for it: it is polled from its start.
    pub polled: bool,
    /// The slots that it holds: 1, or a batch's concurrent calls.
    pub slots: u32,
    /// The time at which it was admitted.
    pub admitted_at: UnixMs,
    /// The time at which it entered its phase.
    pub phase_at: UnixMs,
    /// The time at which it is due for a look-up.
    pub deadline_at: Option<UnixMs>,
    /// The time at which it was answered.
    pub answered_at: Option<UnixMs>,
    /// The time at which it ended.
    pub ended_at: Option<UnixMs>,
    /// The last news of it.
    pub seen_at: UnixMs,
    /// The source of the last news.
    pub seen_by: Source,
    /// The time at which a look-up first did not find it.
    pub absent_at: Option<UnixMs>,
    /// The app's own status callback.
    pub callback: Option<AppCallback>,
    /// The fingerprint of its create request.
    #[serde(skip)]
    pub fingerprint: Option<String>,
    /// The replica that recorded it; or the one that owns its request since a duplicate arrived there.
    pub replica: Option<String>,
    /// The call's external ids.
    pub aliases: Vec<Alias>,
}

impl CallRecord {
    /// Whether it counts against its limits: all calls that are known to exist do.
    pub fn counts(&self) -> bool {
        self.origin != Origin::Unconfirmed
    }

    /// Returns the call's id of a kind.
    pub fn alias(&self, kind: &str) -> Option<&str> {
        self.aliases.iter().find(|a| a.kind == kind).map(|a| a.id.as_str())
    }

    /// All its ids of a kind: a call may be connected to several conversations in turn.
    pub fn ids_of<'r>(&'r self, kind: &'r str) -> impl Iterator<Item = &'r str> {
        self.aliases.iter().filter(move |a| a.kind == kind).map(|a| a.id.as_str())
    }
}

/// A call to be recorded.
#[derive(Debug, Clone)]
pub struct NewCall {
    /// The call's id.
    pub id: CallId,
    /// The attributes that policy selects by.
    pub attributes: CallAttributes,
    /// The way in which ringfence learnt of it.
    pub origin: Origin,
    /// The call's phase.
    pub phase: Phase,
    /// Whether the call exists although a limit is full.
    pub over_limit: bool,
    /// No events will arrive for it: it is polled from its start.
    pub polled: bool,
    /// The slots that it holds.
    pub slots: u32,
    /// Now.
    pub at_ms: UnixMs,
    /// The time at which it is due for a look-up.
    pub deadline_at: UnixMs,
    /// The app's own status callback.
    pub callback: Option<AppCallback>,
    /// The fingerprint of its create request.
    pub fingerprint: Option<String>,
    /// The limit keys that it is counted under (see [`crate::policy::decision::keys`]): they make its open row a lease.
    pub keys: Vec<String>,
    /// The replica that records it.
    pub replica: Option<String>,
    /// Sends the app an event.
    pub notice: AppNotice,
    /// Ids that are known already. If one of them belongs to another call, nothing is written. An id of ringfence's own kind
    /// names the first record of the same call, which was given up: its ids move to this one.
    pub aliases: Vec<Alias>,
}

/// The outcome of recording a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InsertOutcome {
    /// The call is recorded. News that arrived before it is returned, to be applied.
    New(Option<Event>),
    /// One of its ids belongs to this call: it is the same call.
    Known(CallId),
    /// The pool's epoch is not the one of its admission; nothing was written.
    Outdated(GateState),
}

/// The outcome of an admission by the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdmitOutcome {
    /// The call is recorded.
    New {
        /// Slots that were granted.
        slots: u32,
        /// In observe mode: what would have rejected it.
        would_reject: Option<Shortfall>,
        /// News that waited under its ids, to be applied.
        early: Option<Event>,
    },
    /// One of its ids belongs to this call: it is the same call.
    Known(CallId),
    /// A limit was short. Nothing was written.
    Rejected(Shortfall),
    /// The store does not decide, or not under that epoch any more. Nothing was written.
    Outdated(GateState),
}

/// The outcome of counting an unconfirmed call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfirmOutcome {
    /// The call counts now.
    Now,
    /// The call counted before, has ended, or is not recorded.
    Before,
    /// The pool's epoch is not the given one; nothing was written.
    Outdated(GateState),
}

/// The result of incrementing the epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochBump {
    /// The new state.
    pub state: GateState,
    /// Every open call, counted by the given policy.
    pub held: Vec<LeaseRow>,
    /// The logs of rates, by key.
    pub rates: Vec<(String, RateLog)>,
}

/// A recorded create request, as deduplication at another replica sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlightRow {
    /// The request's call.
    pub id: CallId,
    /// The phase of the request's call.
    pub phase: Phase,
    /// The outcome of the call.
    pub outcome: Option<Outcome>,
    /// Whether the request's outcome is unknown.
    pub unsettled: bool,
    /// Whether the request's client disconnected before the response.
    pub undelivered: bool,
    /// The replica that owns it.
    pub replica: Option<String>,
    /// The time since which a client has waited for its response: since its admission, or since a
    /// duplicate last took the place of its client.
    pub waited_for_since: UnixMs,
    /// The time at which it ended.
    pub ended_at: Option<UnixMs>,
    /// Milliseconds since its replica's last heartbeat, by the store's clock. `None`: the replica deregistered, or is long gone.
    pub silent_ms: Option<i64>,
}

/// A provider's response to a create, kept for duplicates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateAnswer {
    /// The fingerprint of its create request.
    pub fingerprint: String,
    /// The response's status.
    pub status: u16,
    /// The response's headers, each byte of a value as a Latin-1 character.
    pub headers: Vec<(String, String)>,
    /// The response's body.
    pub body: Vec<u8>,
}
