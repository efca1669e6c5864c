//! Bulk runs: an app hands over a list of leads, and ringfence dials it inside the same limits as every other call.
//!
//! [`spec`] is what a run asks for, [`leads`] reads the list row by row, [`load`] takes it into the store, all or nothing,
//! [`fair`] shares free slots among runs, [`decide`] says what follows from the end of a call, [`dialler`] claims and dials,
//! [`recurring`] makes runs by a schedule, `batches` of a provider's batches.
//!
//! What is always true:
//!
//! 1. A try of a job is dialled at most once, whatever crashes: its call is put on record under the name of the try, which no
//!    second call can have ([`crate::store::runs::JOB_KIND`]), before anything is sent.
//! 2. A job whose call's outcome is unknown is parked with that call, until look-ups have settled it.
//! 3. Calls of runs are admitted by the limiter that admits all calls. One that finds a limit full costs no attempt, and leaves no
//!    rejection.

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
pub mod recurring;
mod sift;
pub mod spec;
mod wakeups;

use std::sync::Arc;

use serde_json::{Map, Value};
use tokio::sync::Notify;

use crate::calls::Destinations;
use crate::calls::batches::BatchCalling;
use crate::clock::UnixMs;
use crate::destinations::Blocked;
use crate::schedule::Zone;
use recurring::source::Sources;
use spec::Spec;

/// Leads of a run at most, unless configured.
pub const LEADS_MAX: u32 = 100_000;

/// How runs are dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where recurring runs have their leads from.
    pub sources: Sources,
    /// This replica dials.
    pub dials: bool,
    /// Slots that each limit of concurrent calls keeps free of bulk calls, unless a business or a run says otherwise. `None`: one,
    /// where the limit has just turned a direct or inbound call away.
    pub reserve_for_direct: Option<u32>,
    /// Leads of a run at most.
    pub leads_max: u32,
    /// ElevenLabs' batches are dialled as runs.
    pub elevenlabs_batches: bool,
}

impl Default for Settings {
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

/// Pause before a list that cannot be read is asked again, in milliseconds.
const LIST_AGAIN_MS: i64 = 5_000;

/// The time zone of a lead: its field `timezone`, an IANA name, which wins over what its number says. One that is empty is none.
///
/// # Errors
/// A sentence: there is no such zone.
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
        is_rule: matches!(blocked, Blocked::Only | Blocked::Prefix | Blocked::Kind(_) | Blocked::Never),
    };
    match destinations.may_call(&spec.business, number, spec.windows.as_ref(), zone.as_ref()) {
        Ok(()) => MayDial::Now,
        Err(Blocked::Quiet(until)) => MayDial::NotBefore(until),
        Err(Blocked::Unreadable) => MayDial::NotBefore(now_ms + LIST_AGAIN_MS),
        Err(blocked @ Blocked::Invalid) => never("INVALID_DESTINATION_PHONE", blocked),
        Err(blocked) => never("DO_NOT_CALL_BLOCKED", blocked),
    }
}

/// What is said of a lead that holds no number.
pub(crate) fn not_a_number() -> String {
    "not a telephone number in E.164 form that can be called, as in +15550001101".to_owned()
}

/// What the parts of this module share. Cloning is cheap.
#[derive(Clone)]
pub struct Runs {
    /// Wakes the dialler of this replica.
    pub wake: Arc<Notify>,
    /// How runs are dialled.
    pub settings: Settings,
}

impl Runs {
    /// Runs with these settings.
    pub fn new(settings: Settings) -> Self {
        Self { wake: Arc::default(), settings }
    }

    /// Who answers batch calling instead of the provider, if anybody does.
    pub fn batch_calling(&self) -> Option<Arc<dyn BatchCalling>> {
        self.settings.elevenlabs_batches.then(|| Arc::new(self.clone()) as Arc<dyn BatchCalling>)
    }
}
