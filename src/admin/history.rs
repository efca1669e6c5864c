//! History of held slots over the last minutes, from the store: it is the same after a restart, and at every replica.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Value, json};

use crate::clock::{UnixMs, rfc3339};
use crate::store::CallRecord;

/// The distance of two points, in milliseconds.
const STEP_MS: i64 = 30_000;
/// The covered period, in milliseconds.
const SPAN_MS: i64 = 30 * STEP_MS;
/// Points per line.
const POINTS: usize = 31;
/// Accounts and businesses that are shown: those with the most slots.
const LINES_MAX: usize = 50;

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    spans: Vec<Span>,
    until: UnixMs,
    /// Before this time not all calls are known.
    known_since: UnixMs,
}

/// The period in which a call held slots.
#[derive(Debug, Clone)]
struct Span {
    accounts: Vec<String>,
    business: String,
    slots: u32,
    from: UnixMs,
    until: Option<UnixMs>,
}

impl History {
    /// Whether it has to be renewed.
    pub(super) fn is_due(&self, now_ms: UnixMs) -> bool {
        now_ms - self.until >= STEP_MS || now_ms < self.until
    }

    /// Builds it from the open calls and the latest ones, of which `asked` were requested.
    pub(super) fn of(open: &[CallRecord], latest: &[CallRecord], now_ms: UnixMs, asked: usize) -> Self {
        let since = now_ms - SPAN_MS;
        let oldest = latest.iter().map(|call| call.admitted_at).min();
        let known_since = oldest.filter(|_| latest.len() >= asked).map_or(since, |oldest| oldest.max(since));
        let mut seen = HashSet::new();
        let spans = open
            .iter()
            .chain(latest)
            .filter(|call| call.counts() && call.ended_at.is_none_or(|at| at >= since) && seen.insert(&call.id))
            .map(|call| Span {
                accounts: std::iter::once(call.facts.account.to_string())
                    .chain(call.facts.carrier.as_ref().map(ToString::to_string))
                    .collect(),
                business: call.facts.business.to_string(),
                slots: call.slots,
                from: call.admitted_at,
                until: call.ended_at,
            })
            .collect();
        Self { spans, until: now_ms, known_since }
    }

    /// The lines for a viewer of these businesses. A point at which not all calls are known is null.
    pub(super) fn shown(&self, with_accounts: bool, sees: impl Fn(&str) -> bool) -> Value {
        let times: Vec<UnixMs> =
            std::iter::successors(Some(self.until - SPAN_MS), |at| Some(at + STEP_MS)).take(POINTS).collect();
        let mut all = vec![0_u32; POINTS];
        let (mut accounts, mut businesses) = (BTreeMap::new(), BTreeMap::new());
        for span in self.spans.iter().filter(|span| sees(&span.business)) {
            for (point, (at, total)) in times.iter().zip(all.iter_mut()).enumerate() {
                if span.from > *at || span.until.is_some_and(|until| until <= *at) {
                    continue;
                }
                *total += span.slots;
                add(&mut businesses, &span.business, point, span.slots);
                for account in span.accounts.iter().filter(|_| with_accounts) {
                    add(&mut accounts, account, point, span.slots);
                }
            }
        }
        let line = |line: &[u32]| -> Value {
            let told = times.iter().zip(line);
            told.map(|(at, n)| if *at < self.known_since { Value::Null } else { (*n).into() }).collect()
        };
        let lines = |of: BTreeMap<&str, Vec<u32>>| -> Value {
            let mut most: Vec<(&str, Vec<u32>)> = of.into_iter().collect();
            most.sort_by_key(|(_, line)| std::cmp::Reverse(line.iter().max().copied()));
            most.iter().take(LINES_MAX).map(|(name, values)| ((*name).to_owned(), line(values))).collect()
        };
        json!({
            "stepSecs": STEP_MS / 1000, "until": rfc3339(self.until), "all": line(&all), "accounts": lines(accounts),
            "businesses": lines(businesses),
        })
    }
}

fn add<'a>(lines: &mut BTreeMap<&'a str, Vec<u32>>, name: &'a str, point: usize, slots: u32) {
    let line = lines.entry(name).or_insert_with(|| vec![0; POINTS]);
    if let Some(n) = line.get_mut(point) {
        *n += slots;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_from_admission_to_end_and_where_not_all_is_known_nothing_is_said() {
        let span = |business: &str, from, until, slots| Span {
            accounts: vec!["el".to_owned()],
            business: business.to_owned(),
            slots,
            from,
            until,
        };
        let until = 10_000_000;
        let spans = vec![
            span("acme", until - 60_000, None, 1),
            span("acme", until - 95_000, Some(until - 30_000), 3),
            span("birch", 0, Some(until - 1), 1),
        ];
        let history = History { spans, until, known_since: until - 100_000 };
        let shown = history.shown(true, |_| true);
        let all = shown["all"].as_array().unwrap();
        assert_eq!((all.len(), &all[27..]), (31, &[json!(4), json!(5), json!(2), json!(1)][..]));
        assert!(all[..27].iter().all(Value::is_null), "{all:?}");
        assert_eq!(shown["accounts"]["el"][28], 5);
        let own = history.shown(false, |business| business == "birch");
        assert_eq!(
            (own["all"][29].clone(), own["all"][30].clone(), own["accounts"].clone()),
            (json!(1), json!(0), json!({}))
        );
        assert!(own["businesses"].get("acme").is_none());
    }
}
