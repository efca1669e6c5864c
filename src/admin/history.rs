//! Held slots over the last minutes: counted every half minute, and kept in memory. A line begins where its process did.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::Admin;
use crate::clock::{UnixMs, rfc3339};
use crate::ids::BusinessId;
use crate::policy::Policy;
use crate::store::CallRecord;
use crate::sync::lock;

/// The distance of two points.
const STEP: Duration = Duration::from_secs(30);
const STEP_MS: i64 = 30_000;
/// Points per line.
const POINTS: usize = 31;
/// Businesses per point, and limits: those with the most slots.
const KEPT_MAX: usize = 1_000;
/// Lines that are shown of each kind: a line is about 100 bytes, and is sent every half minute.
const LINES_MAX: usize = 500;

type Slots = BTreeMap<Arc<str>, u32>;

/// Slots held at a time.
#[derive(Debug, Default)]
struct Point {
    at_ms: UnixMs,
    all: u32,
    accounts: Slots,
    businesses: Slots,
    limits: Slots,
}

/// The latest points, the oldest first. Cloning is cheap.
#[derive(Debug, Clone, Default)]
pub(super) struct History(Arc<Mutex<VecDeque<Arc<Point>>>>);

/// Counts held slots every half minute, until the process stops.
pub async fn history_loop(newest: impl Fn() -> Admin, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let admin = newest();
        let lifecycle = &admin.calls.lifecycle;
        // Where something does not answer, the line has a gap.
        if let (Ok(open), Ok(counts)) = (lifecycle.store.open_calls().await, lifecycle.admission.counts().await) {
            let limits = held_by_limit(&lifecycle.policy.load(), &counts.by_key);
            let accounts = admin.calls.accounts.keys().map(|name| (name.as_str().into(), 0)).collect();
            let point = Point { at_ms: lifecycle.clock.now_ms(), accounts, limits, ..Point::default() };
            admin.board.history.push(point.with(&open));
        }
        drop(admin);
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(STEP) => {}
        }
    }
}

/// The slots held of each concurrency limit; of one that is counted per something, those of whoever holds most.
fn held_by_limit(policy: &Policy, by_key: &BTreeMap<String, u32>) -> Slots {
    let in_force = policy.in_force();
    let bounds = in_force.iter().filter(|limit| limit.allows.ends_with("at once"));
    let mut held: Slots = bounds.map(|limit| (limit.name.as_str().into(), 0)).collect();
    for (key, slots) in by_key {
        let (name, whose) = key.split_once('|').unwrap_or((key, ""));
        let name = match BusinessId::parse(whose) {
            // Its own limit, or that of its plan: the key is the same.
            Ok(id) if name == "business" => match policy.business(&id).and_then(|own| own.max_calls) {
                Some(_) => format!("business.{id}").into(),
                None => format!("plan.{}", policy.plan_of(&id)).into(),
            },
            _ => Arc::from(name),
        };
        let most = held.entry(name).or_default();
        *most = (*most).max(*slots);
    }
    held
}

/// Returns the entries with the most slots.
fn most(slots: Slots) -> Slots {
    if slots.len() <= KEPT_MAX {
        return slots;
    }
    let mut all: Vec<(Arc<str>, u32)> = slots.into_iter().collect();
    all.sort_by_key(|(_, n)| Reverse(*n));
    all.into_iter().take(KEPT_MAX).collect()
}

impl Point {
    /// Adds what these calls hold.
    fn with(mut self, open: &[CallRecord]) -> Self {
        for call in open.iter().filter(|call| call.counts()) {
            let attributes = &call.attributes;
            self.all += call.slots;
            *self.businesses.entry(attributes.business.as_str().into()).or_default() += call.slots;
            for account in std::iter::once(&attributes.account).chain(&attributes.carrier) {
                *self.accounts.entry(account.as_str().into()).or_default() += call.slots;
            }
        }
        Self { businesses: most(self.businesses), limits: most(self.limits), ..self }
    }
}

impl History {
    fn push(&self, point: Point) {
        let mut points = lock(&self.0);
        if points.len() == POINTS {
            points.pop_front();
        }
        points.push_back(Arc::new(point));
    }

    /// The points at this moment.
    pub(super) fn points(&self) -> Points {
        Points(lock(&self.0).iter().cloned().collect())
    }
}

/// The points of one reading.
#[derive(Debug, Default)]
pub(super) struct Points(Vec<Arc<Point>>);

impl Points {
    /// The lines for a viewer of these businesses, with those of accounts and limits for who sees all. Where nothing was counted, a
    /// line is null.
    pub(super) fn shown(&self, is_of_all: bool, sees: impl Fn(&str) -> bool) -> Value {
        let until = self.0.last().map_or(0, |point| point.at_ms);
        let mut steps: [Option<&Point>; POINTS] = [None; POINTS];
        for point in &self.0 {
            // A point may be late by a part of a step.
            let ago = usize::try_from((until - point.at_ms + STEP_MS / 2) / STEP_MS).unwrap_or(POINTS);
            if let Some(step) = (POINTS - 1).checked_sub(ago).and_then(|n| steps.get_mut(n)) {
                *step = Some(point);
            }
        }
        let all = steps.iter().map(|step| {
            step.map(|point| match is_of_all {
                true => point.all,
                false => point.businesses.iter().filter(|(id, _)| sees(id)).map(|(_, n)| n).sum(),
            })
        });
        let lines = |of: fn(&Point) -> &Slots, sees: &dyn Fn(&str) -> bool| -> Value {
            let mut highest = BTreeMap::<&str, u32>::new();
            for (name, slots) in self.0.iter().flat_map(|point| of(point)).filter(|(name, _)| sees(name)) {
                let most = highest.entry(name).or_default();
                *most = (*most).max(*slots);
            }
            let mut names: Vec<(&str, u32)> = highest.into_iter().collect();
            names.sort_by_key(|(_, most)| Reverse(*most));
            let line = |name: &str| -> Value {
                let at = |point: &Point| of(point).get(name).copied().unwrap_or(0);
                steps.iter().map(|step| json!(step.map(at))).collect()
            };
            names.into_iter().take(LINES_MAX).map(|(name, _)| (name.to_owned(), line(name))).collect()
        };
        json!({
            "stepSecs": STEP_MS / 1000, "until": rfc3339(until), "all": all.collect::<Vec<_>>(),
            "accounts": lines(|point| &point.accounts, &|_| is_of_all), "limits": lines(|point| &point.limits, &|_| is_of_all),
            "businesses": lines(|point| &point.businesses, &sees),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(of: &[(&str, u32)]) -> Slots {
        of.iter().map(|(name, n)| (Arc::from(*name), *n)).collect()
    }

    #[test]
    fn what_was_counted_is_a_line_and_where_nothing_was_there_is_a_gap() {
        let history = History::default();
        let until = 10_000_000;
        for (ago_ms, acme, birch) in [(2_000_000, 9, 9), (95_000, 1, 3), (31_000, 2, 0), (0, 5, 1)] {
            history.push(Point {
                at_ms: until - ago_ms,
                all: acme + birch,
                accounts: slots(&[("el", acme + birch)]),
                businesses: slots(&[("acme", acme), ("birch", birch)]),
                limits: slots(&[("global", acme + birch), ("night", acme)]),
            });
        }
        let shown = history.points().shown(true, |_| true);
        let all = shown["all"].as_array().unwrap();
        assert_eq!((all.len(), &all[27..]), (31, &[json!(4), Value::Null, json!(2), json!(6)][..]));
        assert!(all[..27].iter().all(Value::is_null), "{all:?}");
        assert_eq!((&shown["accounts"]["el"][29], &shown["limits"]["night"][30]), (&json!(2), &json!(5)));
        let own = history.points().shown(false, |business| business == "birch");
        assert_eq!((&own["all"][27], &own["all"][30]), (&json!(3), &json!(1)));
        assert_eq!((&own["accounts"], &own["limits"]), (&json!({}), &json!({})));
        assert!(own["businesses"].get("acme").is_none());
    }

    #[test]
    fn it_keeps_no_more_than_it_shows() {
        let history = History::default();
        let many: Slots = (0..3_000_u32).map(|n| (Arc::from(format!("b{n}")), n)).collect();
        for n in 0..100 {
            history.push(Point { at_ms: n * STEP_MS, businesses: most(many.clone()), ..Point::default() });
        }
        let points = history.points();
        assert_eq!((points.0.len(), points.0[0].at_ms, points.0[0].businesses.len()), (31, 69 * STEP_MS, KEPT_MAX));
        assert!(points.0[0].businesses.contains_key("b2999"));
        let shown = points.shown(true, |_| true);
        assert_eq!(shown["businesses"].as_object().map(serde_json::Map::len), Some(LINES_MAX));
    }
}
