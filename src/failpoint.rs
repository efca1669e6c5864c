//! Points at which a debug build fails on request, so that tests can check the state after a crash.
//!
//! `RINGFENCE_FAIL="create.recorded=abort"` kills the process, as `kill -9` does, when a create has just been recorded. Several
//! are separated by commas. Actions:
//!
//! | action | effect |
//! |---|---|
//! | `abort`, `abort:N` | the process dies, at its first pass or its Nth |
//! | `panic`, `panic:N` | the task panics |
//! | `sleep:MS` | every pass waits |
//!
//! A release build reads no such variable, and [`hit`] is empty there.

/// Every point, by place. `tests/it/crash.rs` kills the process at each of them.
pub const ALL: &[&str] = &[
    // A request to a provider, or a delivery to the app: the head of the response has arrived.
    "fetch.head",
    // A create: admitted, recorded, sent, answered, settled.
    "gate.admitted",
    "gate.advanced",
    "gate.rebuilt",
    "gate.comparing",
    "create.recorded",
    "create.stale",
    "create.stale.ended",
    "create.joined",
    "create.sending",
    "create.head",
    "create.answered",
    "create.unbound",
    "create.bound",
    "create.not_sent",
    "create.not_sent.ended",
    "create.limit",
    "create.limit.ended",
    "create.rejected",
    "create.rejected.ended",
    "create.unknown",
    "create.unknown.recorded",
    // A job of a bulk run: claimed, its call recorded, sent, answered.
    "run.claimed",
    "run.recorded",
    "run.sending",
    "run.answered",
    // A firing of a schedule: its run is created, its leads are stored and the run is started.
    "schedule.begun",
    "schedule.fired",
    // A call that a provider reports.
    "inbound.opened",
    "inbound.full",
    "inbound.adopted",
    "inbound.refused",
    "inbound.fronted",
    // A webhook.
    "webhook.read",
    "webhook.received",
    "webhook.applied",
    "webhook.settled",
    "webhook.answered",
    "journal.kept",
    "journal.received",
    "replay.applied",
    "replay.settled",
    "delivery.sent",
    "delivery.noted",
    // The state of a call.
    "call.opened",
    "call.kept_early",
    "call.applied",
    "call.ended",
    "call.released",
    "call.adopted",
    // A hang-up.
    "hangup.sending",
    "hangup.sent",
    "hangup.over",
    // A sweep.
    "sweep.listed",
    "sweep.asked",
    "sweep.found",
    "sweep.bound",
    "sweep.absent",
    "sweep.meeting",
    // The store's writer.
    "store.writing",
    "store.committing",
    "store.committed",
    // A transition of the limiter: the open calls are read, and not recounted yet.
    "store.advancing",
    // Start and stop.
    "start.read",
    "start.marked",
    "start.rebuilt",
    "start.sighted",
    "drain.begun",
    "drain.answered",
    "drain.settled",
];

#[cfg(debug_assertions)]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    enum Action {
        Abort,
        Panic,
        Sleep(Duration),
    }

    struct Armed {
        point: &'static str,
        action: Action,
        /// The pass at which it acts; 0: every pass.
        at: u32,
        passes: AtomicU32,
    }

    static ARMED: OnceLock<Vec<Armed>> = OnceLock::new();

    /// Executes the requested action at this point.
    pub async fn hit(point: &'static str) {
        for time in act(point) {
            tokio::time::sleep(time).await;
        }
    }

    /// Passes a point on a thread that may block.
    #[expect(clippy::disallowed_methods, reason = "no runtime's thread")]
    pub fn hit_in_thread(point: &'static str) {
        act(point).for_each(std::thread::sleep);
    }

    /// The requested wait, if any.
    fn act(point: &'static str) -> impl Iterator<Item = Duration> {
        let armed = ARMED.get_or_init(read).iter().filter(move |armed| armed.point == point);
        armed.filter_map(move |armed| {
            let pass = armed.passes.fetch_add(1, Ordering::Relaxed) + 1;
            if armed.at != 0 && armed.at != pass {
                return None;
            }
            match armed.action {
                Action::Sleep(time) => Some(time),
                Action::Abort => {
                    eprintln!("failpoint {point}: abort");
                    std::process::abort();
                }
                #[expect(clippy::panic, reason = "that is what was asked for")]
                Action::Panic => std::panic::panic_any(format!("failpoint {point}: panic")),
            }
        })
    }

    fn read() -> Vec<Armed> {
        let text = std::env::var("RINGFENCE_FAIL").unwrap_or_default();
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts
            .map(|part| {
                parse(part).unwrap_or_else(|| {
                    // A test that misspells a point must not pass.
                    eprintln!("RINGFENCE_FAIL: {part:?} names no failpoint, or nothing that one does");
                    std::process::exit(2)
                })
            })
            .collect()
    }

    fn parse(part: &str) -> Option<Armed> {
        let (name, action) = part.split_once('=')?;
        let point = super::ALL.iter().copied().find(|point| *point == name)?;
        let (word, number) = match action.split_once(':') {
            Some((word, number)) => (word, Some(number.parse().ok()?)),
            None => (action, None),
        };
        let (action, at) = match word {
            "abort" => (Action::Abort, number.unwrap_or(1)),
            "panic" => (Action::Panic, number.unwrap_or(1)),
            "sleep" => (Action::Sleep(Duration::from_millis(number?.into())), 0),
            _ => return None,
        };
        Some(Armed { point, action, at, passes: AtomicU32::new(0) })
    }
}

#[cfg(debug_assertions)]
pub use armed::{hit, hit_in_thread};

/// Nothing: this is a release build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub async fn hit(_point: &'static str) {}

/// Nothing: this is a release build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn hit_in_thread(_point: &'static str) {}
