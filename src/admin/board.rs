//! Data of the operator's page. It is read once for all viewers, at most once a second, and only while there are viewers; each
//! reading is serialised once for all viewers of the same rights. A viewer costs only the bytes that are sent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::history::{History, Points};
use super::reload::Running;
pub(super) use super::run_board::Rights;
use super::run_board::{Lists, RunBoard, lean};
use super::{Admin, call_json};
use crate::clock::{UnixMs, rfc3339};
use crate::ids::BusinessId;
use crate::policy::Policy;
use crate::store::{CallRecord, EventFilter, Inbox, ListFilter, Outbox, RejectionRecord};
use crate::sync::lock;

/// The shortest pause between two readings.
const PAUSE: Duration = Duration::from_secs(1);
/// A reading takes at most this fraction of the time: a slow store is read less often.
const PART: u32 = 10;
/// Concurrent viewers.
const VIEWERS_MAX: usize = 200;
/// Calls that are shown; of further ones, their number.
const CALLS_MAX: usize = 10_000;
/// Refusals, webhooks and deliveries that are shown.
const LATEST_MAX: u32 = 100;
/// Businesses that are shown with what they hold; those with the most slots come first.
const BUSINESSES_MAX: usize = 2_000;
/// Businesses of the policy that are shown, whether or not they have calls; of further ones, their number.
const KNOWN_MAX: usize = 5_000;
/// Maximum businesses in the status.
const FULLEST_MAX: usize = 20;

/// The data of the page, shared by its viewers. Cloning is cheap.
#[derive(Clone, Default)]
pub struct Board {
    watched: Arc<Mutex<Watched>>,
    /// Held slots over the last minutes.
    pub(super) history: History,
}

#[derive(Default)]
struct Watched {
    views: BTreeMap<Rights, watch::Sender<Arc<Frame>>>,
    /// A task is reading.
    is_reading: bool,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Watched> {
        // No code panics while it is held.
        lock(&self.watched)
    }

    /// Adds a viewer. `None`: too many.
    pub(super) fn join(&self, admin: &Admin, rights: Rights) -> Option<watch::Receiver<Arc<Frame>>> {
        let mut watched = self.lock();
        let viewers: usize = watched.views.values().map(watch::Sender::receiver_count).sum();
        if viewers >= VIEWERS_MAX {
            return None;
        }
        let view = watched.views.entry(rights).or_insert_with(|| watch::Sender::new(Arc::default())).subscribe();
        if !std::mem::replace(&mut watched.is_reading, true) {
            let reading = self.clone().read_while_viewed(admin.program.clone(), admin.draining.clone());
            admin.calls.tasks.spawn(reading);
        }
        Some(view)
    }

    /// Drops the views without viewers. Returns the current frame of each other; `None`: no viewers are left, and reading stops.
    fn prune_views(&self) -> Option<Vec<(Rights, Arc<Frame>)>> {
        let mut watched = self.lock();
        watched.views.retain(|_, view| view.receiver_count() > 0);
        watched.is_reading = !watched.views.is_empty();
        let views = watched.views.iter().map(|(rights, view)| (rights.clone(), view.borrow().clone()));
        watched.is_reading.then(|| views.collect())
    }

    fn show(&self, frames: Vec<(Rights, Arc<Frame>)>) {
        let watched = self.lock();
        for (rights, frame) in frames {
            if let Some(view) = watched.views.get(&rights) {
                view.send_replace(frame);
            }
        }
    }

    /// Reads until no viewers are left, or the process stops.
    async fn read_while_viewed(self, program: Weak<dyn Running>, draining: CancellationToken) {
        let mut runs = RunBoard::default();
        while let Some(views) = self.prune_views() {
            let Some(program) = program.upgrade() else { break };
            let admin = program.admin();
            drop(program);
            let began = Instant::now();
            let reading = Box::pin(admin.read_board(&mut runs, &views)).await;
            drop(admin);
            // With thousands of calls this takes a while.
            let written = tokio::task::spawn_blocking(move || reading.frames(views)).await;
            self.show(written.unwrap_or_default());
            tokio::select! {
                biased;
                () = draining.cancelled() => break,
                () = tokio::time::sleep(PAUSE.max(began.elapsed() * (PART - 1))) => {}
            }
        }
    }
}

/// The data for viewers of the same rights.
#[derive(Default)]
pub(super) struct Frame {
    /// Counts from 1; 0: no data yet.
    pub(super) version: u64,
    at: String,
    parts: BTreeMap<&'static str, String>,
    calls: BTreeMap<String, Arc<str>>,
    /// The difference to the previous version.
    change: Bytes,
    /// The whole data, serialised when a viewer joins.
    whole: OnceLock<Bytes>,
}

impl Frame {
    /// The next frame; `None`: nothing changed.
    fn next(
        &self,
        at: String,
        parts: BTreeMap<&'static str, String>,
        calls: BTreeMap<String, Arc<str>>,
    ) -> Option<Self> {
        let new_parts: Vec<_> = parts.iter().filter(|(name, part)| self.parts.get(*name) != Some(part)).collect();
        let put: Vec<&Arc<str>> =
            calls.iter().filter(|(id, call)| self.calls.get(*id) != Some(call)).map(|(_, call)| call).collect();
        let gone: Vec<&String> = self.calls.keys().filter(|id| !calls.contains_key(*id)).collect();
        if self.version > 0 && new_parts.is_empty() && put.is_empty() && gone.is_empty() {
            return None;
        }
        let change = event("change", &body(&at, &new_parts, &put, Some(&gone)));
        Some(Self { version: self.version + 1, at, parts, calls, change, whole: OnceLock::new() })
    }

    /// The event for a viewer that has this version.
    pub(super) fn since(&self, version: u64) -> Option<Bytes> {
        match self.version.checked_sub(version) {
            Some(0) => None,
            Some(1) if version > 0 => Some(self.change.clone()),
            _ => {
                let whole = || {
                    let parts: Vec<_> = self.parts.iter().collect();
                    event("whole", &body(&self.at, &parts, &self.calls.values().collect::<Vec<_>>(), None))
                };
                Some(self.whole.get_or_init(whole).clone())
            }
        }
    }
}

/// The bytes of an event. JSON has no raw line breaks.
pub(super) fn event(name: &str, data: &str) -> Bytes {
    format!("event: {name}\ndata: {data}\n\n").into()
}

fn body(at: &str, parts: &[(&&'static str, &String)], put: &[&Arc<str>], gone: Option<&[&String]>) -> String {
    let mut text = format!("{{\"at\":{},\"parts\":{{", json!(at));
    for (n, (name, part)) in parts.iter().enumerate() {
        let comma = if n > 0 { "," } else { "" };
        text.extend([comma, "\"", name, "\":", part]);
    }
    text.push_str("},\"put\":[");
    for (n, call) in put.iter().enumerate() {
        text.extend([if n > 0 { "," } else { "" }, call]);
    }
    text.push(']');
    if let Some(gone) = gone {
        text.extend([",\"gone\":", &json!(gone).to_string()]);
    }
    text.push('}');
    text
}

/// One reading.
struct Reading {
    at_ms: UnixMs,
    /// `None`: the database is unavailable.
    open: Option<Vec<CallRecord>>,
    refusals: BTreeMap<Rights, Option<Vec<RejectionRecord>>>,
    runs: Lists,
    policy: Arc<Policy>,
    history: Points,
    /// For viewers of all businesses.
    status: Value,
    webhooks: Value,
}

impl Admin {
    async fn read_board(&self, runs: &mut RunBoard, views: &[(Rights, Arc<Frame>)]) -> Reading {
        let (lifecycle, store) = (&self.calls.lifecycle, &self.calls.lifecycle.store);
        let at_ms = lifecycle.clock.now_ms();
        let open = store.open_calls().await.ok();
        let status = self.status_of(open.as_deref()).await.unwrap_or_default();
        let mut refusals = BTreeMap::new();
        for (rights, _) in views {
            let businesses = rights.as_ref().map(|own| own.iter().cloned().collect());
            let filter = ListFilter { businesses, ..ListFilter::default() };
            refusals.insert(rights.clone(), store.list_rejections(&filter, LATEST_MAX).await.ok());
        }
        let rights: Vec<Rights> = views.iter().map(|(rights, _)| rights.clone()).collect();
        let runs = runs.read(self, &rights).await;
        let webhooks = json!({
            "parked": self.latest_events(Inbox::Parked).await, "unsettled": self.latest_events(Inbox::Unsettled).await,
            "pending": self.latest_deliveries(Outbox::Pending).await, "givenUp": self.latest_deliveries(Outbox::GivenUp).await,
        });
        let (policy, history) = (lifecycle.policy.load_full(), self.board.history.points());
        Reading { at_ms, open, refusals, runs, policy, history, status, webhooks }
    }

    async fn latest_events(&self, which: Inbox) -> Option<Vec<Value>> {
        let found = self.calls.lifecycle.store.inbox(which, &EventFilter::default(), LATEST_MAX).await.ok()?;
        Some(found.iter().map(super::operator::event).collect())
    }

    async fn latest_deliveries(&self, which: Outbox) -> Option<Vec<Value>> {
        let found = self.calls.lifecycle.store.outbox(which, &EventFilter::default(), LATEST_MAX).await.ok()?;
        Some(found.iter().map(super::operator::delivery).collect())
    }
}

impl Reading {
    /// The next frame of each view that changed.
    fn frames(self, views: Vec<(Rights, Arc<Frame>)>) -> Vec<(Rights, Arc<Frame>)> {
        let at = rfc3339(self.at_ms);
        let rows: Option<Vec<(&CallRecord, Arc<str>)>> =
            self.open.as_ref().map(|open| open.iter().map(|call| (call, row(call))).collect());
        let next = |(rights, before): (Rights, Arc<Frame>)| {
            let sees = |business: &str| rights.as_ref().is_none_or(|own| own.contains(business));
            let mine = rows.iter().flatten().filter(|(call, _)| sees(call.attributes.business.as_str()));
            let calls: BTreeMap<String, Arc<str>> = match &rows {
                Some(_) => mine.take(CALLS_MAX).map(|(call, row)| (call.id.to_string(), row.clone())).collect(),
                // The old data stays, marked as outdated.
                None => before.calls.clone(),
            };
            let frame = before.next(at.clone(), self.parts(&rights, sees), calls)?;
            Some((rights, Arc::new(frame)))
        };
        views.into_iter().filter_map(next).collect()
    }

    fn parts(&self, rights: &Rights, sees: impl Fn(&str) -> bool) -> BTreeMap<&'static str, String> {
        let mut held = BTreeMap::<&str, u32>::new();
        let mut open = 0_usize;
        for call in self.open.iter().flatten().filter(|call| sees(call.attributes.business.as_str())) {
            open += 1;
            if call.counts() && !call.over_limit {
                *held.entry(call.attributes.business.as_str()).or_default() += call.slots;
            }
        }
        for own in rights.iter().flatten() {
            held.entry(own).or_default();
        }
        let mut held: Vec<(&str, u32)> = held.into_iter().collect();
        held.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
        let businesses = held.iter().take(BUSINESSES_MAX).map(|(id, n)| business_in_use(&self.policy, id, *n));
        let businesses = self.open.as_ref().map(|_| businesses.collect::<Vec<Value>>());
        let known = known(&self.policy, &sees);
        let refusals = self.refusals.get(rights).and_then(Option::as_ref);
        let refusals: Option<Vec<Value>> =
            refusals.map(|all| all.iter().map(|one| lean(super::listing::refusal(one))).collect());
        let (runs, schedules) = self.runs.get(rights).cloned().unwrap_or_default();
        let open = json!({
            "open": open, "shown": open.min(CALLS_MAX), "known": self.open.is_some(), "mode": self.policy.mode().as_str(),
            "holding": held.iter().filter(|(_, n)| *n > 0).count(),
        });
        let mut parts = BTreeMap::from([
            ("calls", open.to_string()),
            ("businesses", json!(businesses).to_string()),
            ("known", known.to_string()),
            ("refusals", json!(refusals).to_string()),
            ("runs", runs.to_string()),
            ("schedules", schedules.to_string()),
            ("history", self.history.shown(rights.is_none(), sees).to_string()),
        ]);
        if rights.is_none() {
            parts.insert("status", self.status.to_string());
            parts.insert("webhooks", self.webhooks.to_string());
        }
        parts
    }
}

/// A call, as short as possible: there may be thousands.
fn row(call: &CallRecord) -> Arc<str> {
    lean(call_json(call)).to_string().into()
}

/// The businesses with the most slots, each with the limit that binds it: its own, or its plan's.
pub(super) fn fullest(policy: &Policy, by_key: &BTreeMap<String, u32>) -> Vec<Value> {
    let mut held: Vec<(&str, u32)> =
        by_key.iter().filter_map(|(key, n)| Some((key.strip_prefix("business|")?, *n))).collect();
    held.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    held.iter().take(FULLEST_MAX).map(|(id, n)| business_in_use(policy, id, *n)).collect()
}

/// A business with its slots in use, its plan, its own limit, and the limit that binds it.
fn business_in_use(policy: &Policy, id: &str, held: u32) -> Value {
    let id = BusinessId::parse(id).map_err(|_| id);
    let mut shown = match &id {
        Ok(known) => business_of(policy, known),
        Err(id) => json!({"id": id}),
    };
    shown["inUse"] = held.into();
    shown
}

/// A business with its plan, its own limit (`own`), and the limit that binds it: its own, or its plan's.
fn business_of(policy: &Policy, id: &BusinessId) -> Value {
    let plan = policy.plan_of(id);
    let own = policy.business(id).and_then(|one| one.max_calls);
    let of_plan = policy.settings().plans.get(&plan).and_then(|plan| plan.concurrent);
    lean(json!({"id": id, "plan": plan, "own": own, "limit": own.or(of_plan)}))
}

/// The businesses of the policy, by id, with their number. They change with the policy alone, so they are sent apart from what each
/// holds.
fn known(policy: &Policy, sees: impl Fn(&str) -> bool) -> Value {
    let mut ids: Vec<&BusinessId> = policy.businesses().map(|one| &one.id).filter(|id| sees(id.as_str())).collect();
    ids.sort();
    let shown: Vec<Value> = ids.iter().take(KNOWN_MAX).map(|id| business_of(policy, id)).collect();
    json!({"all": ids.len(), "businesses": shown})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(before: &Frame, status: &str, calls: &[(&str, &str)]) -> Option<Frame> {
        let calls = calls.iter().map(|(id, call)| ((*id).to_owned(), Arc::from(*call))).collect();
        before.next("now".to_owned(), BTreeMap::from([("status", status.to_owned())]), calls)
    }

    fn read(bytes: &Bytes) -> (String, Value) {
        let text = std::str::from_utf8(bytes).unwrap();
        let (name, data) = text.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
        (name.to_owned(), serde_json::from_str(data.strip_suffix("\n\n").unwrap()).unwrap())
    }

    #[test]
    fn who_comes_sees_all_who_stays_what_is_new_and_who_is_slow_all_again() {
        let first = frame(&Frame::default(), "1", &[("a", "{\"n\":1}"), ("b", "{}")]).unwrap();
        let (name, seen) = read(&first.since(0).unwrap());
        assert_eq!(
            (name.as_str(), &seen["put"], &seen["parts"]),
            ("whole", &json!([{"n": 1}, {}]), &json!({"status": 1}))
        );
        assert!(first.since(1).is_none());
        assert!(frame(&first, "1", &[("a", "{\"n\":1}"), ("b", "{}")]).is_none(), "nothing new is nothing sent");
        let second = frame(&first, "1", &[("a", "{\"n\":2}"), ("c", "{}")]).unwrap();
        let (name, seen) = read(&second.since(1).unwrap());
        assert_eq!(name, "change");
        assert_eq!(seen, json!({"at": "now", "parts": {}, "put": [{"n": 2}, {}], "gone": ["b"]}));
        let third = frame(&second, "2", &[]).unwrap();
        assert_eq!(
            read(&third.since(2).unwrap()).1,
            json!({"at": "now", "parts": {"status": 2}, "put": [], "gone": ["a", "c"]})
        );
        assert_eq!(read(&third.since(1).unwrap()).0, "whole");
    }
}
