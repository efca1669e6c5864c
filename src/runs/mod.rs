//! Bulk runs: lists of leads that ringfence dials inside the limits of all calls.
//!
//! [`spec`]: the specification of a run. [`leads`]: reads lists row by row. [`load`]: stores a list, all or nothing. [`fair`]: shares free slots
//! among runs. [`dialler`]: claims jobs. `placement`: places their calls. [`decide`]: settles them. [`recurring`]: creates runs by a schedule.
//! `batches`: creates runs from a provider's batches.
//!
//! Invariants:
//!
//! 1. A try of a job is dialled at most once, whatever crashes: its call is recorded with the alias of the try
//!    ([`crate::store::runs::JOB_KIND`]), which belongs to one call, before it is sent.
//! 2. A job whose call has an unknown outcome keeps that call until it is reconciled.
//! 3. Calls of runs pass the limiter of all calls. A full limit costs no attempt, and leaves no rejection.

mod acts;
mod batches;
mod claims;
pub mod decide;
pub mod dialler;
pub mod fair;
mod feedback;
pub mod leads;
pub mod load;
mod placement;
pub mod plan;
mod postpone;
pub mod recurring;
pub mod spec;
mod template;
mod wakeups;

use std::sync::Arc;

use serde_json::{Map, Value};
use tokio::sync::Notify;

use crate::calls::Destinations;
use crate::calls::batches::BatchCalling;
use crate::clock::UnixMs;
use crate::destinations::Blocked;
use crate::destinations::Zone;
use recurring::source::Sources;
use spec::Spec;

/// The default maximum number of leads of a run.
pub const LEADS_MAX: u32 = 100_000;

/// The settings of bulk runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunSettings {
    /// The lead sources of recurring runs.
    pub sources: Sources,
    /// Whether this replica dials.
    pub dials: bool,
    /// Slots that each limit of concurrent calls keeps free of bulk calls, unless a business or a run says otherwise. `None`: one,
    /// where the limit has just turned a direct or inbound call away.
    pub reserve_for_direct: Option<u32>,
    /// The maximum number of leads of a run.
    pub leads_max: u32,
    /// Whether ElevenLabs' batches become runs.
    pub elevenlabs_batches: bool,
}

impl Default for RunSettings {
    fn default() -> Self {
        Self {
            sources: Sources::new(),
            dials: true,
            reserve_for_direct: None,
            leads_max: LEADS_MAX,
            elevenlabs_batches: false,
        }
    }
}

/// Whether a number may be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MayDial {
    /// At once.
    Now,
    /// Not before.
    NotBefore(UnixMs),
    /// Never.
    Never {
        /// The contract's code, as in `DO_NOT_CALL_BLOCKED`.
        code: &'static str,
        /// A sentence for people.
        why: String,
        /// A rule of the operator forbids it, which may hold for every lead: it counts as a failure for the run's breaker.
        is_rule: bool,
    },
}

/// The pause before an unreadable do-not-call list is read again, in milliseconds.
const LIST_RETRY_MS: i64 = 5_000;

/// The time zone of a lead: its field `timezone`, an IANA name, which overrides the zone of its number. Empty counts as absent.
///
/// # Errors
/// The name is not a time zone.
pub(crate) fn zone_of(lead: &Map<String, Value>) -> Result<Option<Zone>, String> {
    match lead.get("timezone") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(name)) if name.trim().is_empty() => Ok(None),
        Some(Value::String(name)) => Zone::parse(name).map(Some),
        Some(other) => {
            Err(format!("{other} is no time zone; write one of the IANA database, as in \"Europe/Istanbul\""))
        }
    }
}

/// Whether a lead may be dialled now: inside the windows of its run, outside of quiet hours, and on no do-not-call list.
pub fn may_dial(
    destinations: &Destinations,
    spec: &Spec,
    number: &str,
    lead: &Map<String, Value>,
    now_ms: UnixMs,
) -> MayDial {
    let zone = match zone_of(lead) {
        Ok(zone) => zone,
        Err(why) => return MayDial::Never { code: "INVALID_TIMEZONE", why, is_rule: false },
    };
    let never = |code, blocked: Blocked| MayDial::Never {
        code,
        why: format!("it {blocked}"),
        is_rule: matches!(blocked, Blocked::NotInTrial | Blocked::Prefix | Blocked::Kind(_) | Blocked::Never),
    };
    match destinations.may_call(&spec.business, number, spec.windows.as_ref(), zone.as_ref()) {
        Ok(()) => MayDial::Now,
        Err(Blocked::Quiet(until)) => MayDial::NotBefore(until),
        Err(Blocked::Unreadable) => MayDial::NotBefore(now_ms + LIST_RETRY_MS),
        Err(blocked @ Blocked::Invalid) => never("INVALID_DESTINATION_PHONE", blocked),
        Err(blocked) => never("DO_NOT_CALL_BLOCKED", blocked),
    }
}

/// The mistake of a lead without a number.
pub(crate) fn not_a_number() -> String {
    "not a telephone number in E.164 form that can be called, as in +15550001101".to_owned()
}

/// The state shared by the parts of this module. Cloning is cheap.
#[derive(Clone)]
pub struct Runs {
    /// Wakes the dialler of this replica.
    pub wake: Arc<Notify>,
    /// Has the diallers of other replicas woken.
    pub wake_others: Arc<Notify>,
    /// The settings of bulk runs.
    pub settings: RunSettings,
}

impl Runs {
    /// Creates it.
    pub fn new(settings: RunSettings) -> Self {
        Self { wake: Arc::default(), wake_others: Arc::default(), settings }
    }

    /// Wakes the diallers, here and at other replicas: a run has due jobs, or its state has changed.
    pub fn changed(&self) {
        self.wake.notify_one();
        self.wake_others.notify_one();
    }

    /// The handler of the provider's batch calling, if batches become runs.
    pub fn batch_calling(&self) -> Option<Arc<dyn BatchCalling>> {
        self.settings.elevenlabs_batches.then(|| Arc::new(self.clone()) as Arc<dyn BatchCalling>)
    }
}
