//! What must hold, whatever went wrong: by the providers' counts, and by the record.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ringfence_simulator::CallView;
use sqlx::Row as _;

use super::{ALL_MAX, BUSINESSES, Chaos, EL_MAX, REST};
use crate::support::fleet::{Acknowledged, FOREIGN};

/// Whether a limit binds a call.
type Fits = Box<dyn Fn(&CallView) -> bool>;

impl Chaos {
    /// Webhooks that are on record, and nothing more has been done about them.
    pub(super) const UNSETTLED: &str = "SELECT count(*) FROM webhook_events WHERE outcome IS NULL";

    /// Waits until every process says that nothing is held.
    pub(super) async fn rest(&self) -> Vec<String> {
        let fleet = &self.fleet;
        fleet.control.clear_faults(None);
        fleet.control.configure(|s| (s.webhook_loss, s.webhook_double, s.webhook_reorder) = (0.0, 0.0, 0.0));
        let started = Instant::now();
        let mut said = vec![];
        for (n, replica) in fleet.replicas.iter().enumerate() {
            if let Some(how) = replica.dead() {
                return vec![format!("replica {n} died by itself: {how}\n{}", replica.last_lines())];
            }
        }
        while started.elapsed() < REST {
            fleet.end_all();
            said.clear();
            for n in 0..fleet.replicas.len() {
                match fleet.status(n).await {
                    None => said.push(format!("replica {n} says nothing")),
                    Some(status) => {
                        let open: u64 =
                            status["accounts"].as_array().unwrap().iter().filter_map(|a| a["inUse"].as_u64()).sum();
                        let held = status["gate"]["calls"].as_u64();
                        let is_recorded = status["store"]["ok"] == true && status["store"]["journaled"] == 0;
                        if held != Some(0) || open > 0 || !is_recorded {
                            said.push(format!(
                                "replica {n}: gate {}, {open} open, store {}",
                                status["gate"], status["store"]
                            ));
                        }
                    }
                }
            }
            let left = self.runs_left().await;
            if left != 0 {
                said.push(format!("{left} runs are not done"));
            }
            if said.is_empty() && fleet.control.calls().iter().all(|c| !c.live && !c.arriving) {
                return vec![];
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        vec![format!("it does not come to rest: {}", said.join("; "))]
    }

    pub(super) async fn number_of(&self, sql: &'static str) -> i64 {
        sqlx::query(sql).fetch_one(&self.fleet.record).await.unwrap().get(0)
    }

    /// How ids outside are called inside.
    async fn leases_of(&self, ids: &[String]) -> Vec<String> {
        let sql = "SELECT DISTINCT call_id FROM call_aliases WHERE call_id IS NOT NULL AND id = ANY($1)";
        let rows = sqlx::query(sql).bind(ids).fetch_all(&self.fleet.record).await.unwrap_or_default();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Everything that is known of calls.
    async fn story(&self, calls: &[&CallView]) -> String {
        let mut said = String::new();
        for call in calls {
            let mut ids: Vec<String> = call.call_sid.iter().chain(&call.conversation_id).cloned().collect();
            let leases = self.leases_of(&ids).await;
            let _ = writeln!(
                said,
                "call {} to {} from {}: {ids:?}, ours {leases:?}, {} to {:?} ({:?})",
                call.n, call.to, call.from, call.created_ms, call.ended_ms, call.ended_by
            );
            for lease in &leases {
                let sql = "SELECT row_to_json(c)::text FROM calls c WHERE id = $1";
                if let Ok(row) = sqlx::query(sql).bind(lease).fetch_one(&self.fleet.record).await {
                    let _ = writeln!(said, "  on record: {}", row.get::<String, _>(0));
                }
            }
            for order in self.orders.lock().unwrap().iter().filter(|o| o.to == call.to) {
                let _ = writeln!(said, "  ordered: {order:?}");
            }
            ids.extend(leases);
            said += &self.fleet.traces(&ids);
        }
        if let (Some(from), Some(to)) =
            (calls.iter().map(|c| c.created_ms).min(), calls.iter().map(|c| c.ended_ms.unwrap_or(c.created_ms)).max())
        {
            let diary = self.diary.lock().unwrap();
            let near = diary.iter().filter(|(at, _)| *at > from - 8_000 && *at < to + 1_000);
            for (at, what) in near {
                let _ = writeln!(said, "  {at}: {what}");
            }
        }
        said
    }

    pub(super) async fn check(&self, figures: &mut String) -> Vec<String> {
        let mut wrong = vec![];
        let calls = self.fleet.control.calls();
        // === limits ===
        let admitted = |c: &&CallView| !c.to.starts_with(FOREIGN);
        let outbound =
            |digit: usize| move |c: &CallView| !c.inbound && c.to.starts_with(&format!("+1555{}", digit + 1));
        let mut scopes: Vec<(String, u32, Fits)> = vec![
            ("all".to_owned(), ALL_MAX, Box::new(|_| true)),
            ("elevenlabs".to_owned(), EL_MAX, Box::new(|c| c.conversation_id.is_some())),
        ];
        for (digit, (name, max)) in BUSINESSES.into_iter().enumerate() {
            let is_callers = name == "callers";
            let mine = outbound(digit);
            scopes.push((name.to_owned(), max, Box::new(move |c| if is_callers { c.inbound } else { mine(c) })));
        }
        let mut over = 0;
        for (name, max, fits) in scopes {
            let mine: Vec<&CallView> = calls.iter().filter(admitted).filter(|c| fits(c)).collect();
            let most = most_at_once(&mine);
            let _ = write!(figures, "{name} {} of {max}, ", most.len());
            if most.len() as u32 > max {
                over += most.len() as u32 - max;
                let story = self.story(&most).await;
                wrong.push(format!("{name}: {} calls at once, {max} are allowed\n{story}", most.len()));
            }
        }
        let mut ends = BTreeMap::<(bool, &str), u32>::new();
        for call in &calls {
            *ends.entry((call.inbound, call.ended_by.unwrap_or("nothing"))).or_default() += 1;
        }
        let _ = writeln!(figures, "ends of calls, inbound or not: {ends:?}");
        let foreign: Vec<&CallView> = calls.iter().filter(|c| !admitted(c)).collect();
        let _ = writeln!(figures, "over-admitted {over}; {} foreign calls", foreign.len());
        // === orders ===
        let mut dialled = HashMap::<&str, Vec<&CallView>>::new();
        for call in calls.iter().filter(|c| !c.inbound) {
            dialled.entry(&call.to).or_default().push(call);
        }
        let (mut twice, mut lost, mut refused) = (0, 0, 0);
        let doubtful: Vec<(String, String)> = {
            let orders = self.orders.lock().unwrap();
            let mut doubtful = vec![];
            for order in orders.iter() {
                let made = dialled.get(&*order.to).map_or(0, Vec::len);
                let said = |status: u16| order.tries.iter().any(|(_, _, s)| *s == Some(status));
                let yes = said(200) || said(201);
                let no = !order.tries.is_empty() && order.tries.iter().all(|(_, _, s)| *s == Some(503));
                twice += u32::from(made > 1);
                lost += u32::from(yes && made == 0);
                refused += u32::from(no && made > 0);
                if made > 1 || (yes && made == 0) || (no && made > 0) {
                    doubtful.push((order.to.clone(), format!("{made} calls came of {order:?}")));
                }
            }
            doubtful
        };
        for (to, what) in doubtful {
            let story = self.story(dialled.get(&*to).map_or(&[][..], |calls| &calls[..])).await;
            wrong.push(format!("{what}\n{story}"));
        }
        let _ = writeln!(
            figures,
            "dialled twice {twice}, acknowledged without a call {lost}, refused with a call {refused}"
        );
        // === runs ===
        let (mut leads, mut again, mut forgotten, mut doubtful) = (0, 0, 0, vec![]);
        for run in self.runs.lock().unwrap().iter() {
            for to in &run.leads {
                let made = dialled.get(&**to).map_or(0, Vec::len);
                leads += 1;
                again += u32::from(made > 1);
                forgotten += u32::from(made == 0);
                if made != 1 {
                    doubtful.push((to.clone(), format!("{made} calls came of a lead of {}", run.id)));
                }
            }
        }
        for (to, what) in doubtful {
            let sql = "SELECT row_to_json(j)::text FROM run_jobs j WHERE number = $1";
            let jobs = sqlx::query(sql).bind(&to).fetch_all(&self.fleet.record).await.unwrap_or_default();
            let jobs: Vec<String> = jobs.iter().map(|row| row.get(0)).collect();
            let story = self.story(dialled.get(&*to).map_or(&[][..], |calls| &calls[..])).await;
            wrong.push(format!("{what}: {jobs:?}\n{story}"));
        }
        let _ = writeln!(
            figures,
            "{} runs of {leads} leads in all: dialled again {again}, forgotten {forgotten}",
            self.runs.lock().unwrap().len()
        );
        // === the record ===
        for (what, sql) in [
            ("calls that are not over", "SELECT count(*) FROM calls WHERE phase <> 'ended'"),
            ("runs that are not done", "SELECT count(*) FROM runs WHERE state <> 'done'"),
            (
                // Some are hung up while it rings, once all is to come to rest.
                "jobs that are not done, or had no call",
                "SELECT count(*) FROM run_jobs WHERE state <> 'done' OR call_id IS NULL",
            ),
            (
                "ends without a proof",
                "SELECT count(*) FROM calls WHERE outcome IS NULL OR proof IS NULL OR ended_at IS NULL",
            ),
            ("webhooks that were not applied, also at a start", Self::UNSETTLED),
            (
                "webhooks of which the app is told twice",
                "SELECT count(*) FROM (SELECT 1 FROM deliveries GROUP BY event_id HAVING count(*) > 1) AS twice",
            ),
        ] {
            let n = self.number_of(sql).await;
            if n > 0 {
                wrong.push(format!("{n} {what}"));
            }
        }
        wrong.extend(self.webhooks(figures).await);
        for (n, replica) in self.fleet.replicas.iter().enumerate() {
            let log = replica.log();
            wrong.extend(log.lines().filter(|l| l.contains("panicked at")).map(|l| format!("replica {n}: {l}")));
        }
        wrong
    }

    /// Every acknowledged webhook is on record once, and settled.
    pub(super) async fn webhooks(&self, figures: &mut String) -> Vec<String> {
        let sql = "SELECT body, count(*), count(outcome) FROM webhook_events GROUP BY body";
        let rows = sqlx::query(sql).fetch_all(&self.fleet.record).await.unwrap();
        let known: HashMap<Vec<u8>, (i64, i64)> =
            rows.iter().filter_map(|row| Some((row.get::<Option<Vec<u8>>, _>(0)?, (row.get(1), row.get(2))))).collect();
        let mut acknowledged = HashMap::<_, (Vec<usize>, String)>::new();
        for Acknowledged { by, path, body } in self.fleet.acknowledged.lock().unwrap().iter() {
            acknowledged.entry(body.clone()).or_insert_with(|| (vec![], path.clone())).0.push(*by);
        }
        let (mut lost, mut wrong) = (0, vec![]);
        for (body, (by, path)) in &acknowledged {
            let rows = known.get(&body[..]).copied().unwrap_or_default();
            if rows != (1, 1) {
                lost += 1;
                let body = String::from_utf8_lossy(body);
                wrong.push(format!("{path}, acknowledged by {by:?}: {} rows, {} settled: {body:.400}", rows.0, rows.1));
            }
        }
        let sent: Vec<u64> = self.fleet.sent.iter().map(|n| n.load(Ordering::Relaxed)).collect();
        let _ = writeln!(
            figures,
            "{} webhooks acknowledged, sent to each {sent:?}, lost or doubled {lost}",
            acknowledged.len()
        );
        wrong
    }
}

/// Calls that were live at once, at the moment when they were most.
fn most_at_once<'c>(calls: &[&'c CallView]) -> Vec<&'c CallView> {
    let since = |c: &CallView| if c.inbound { c.answered_ms } else { Some(c.created_ms) };
    let until = |c: &CallView| c.ended_ms.unwrap_or(i64::MAX);
    // Where one ends in the millisecond in which another begins, the end came first.
    let mut turns: Vec<(i64, i32)> = vec![];
    for call in calls {
        if let Some(since) = since(call) {
            turns.extend([(since, 1), (until(call), -1)]);
        }
    }
    turns.sort_unstable();
    let (mut now, mut most, mut at) = (0, 0, 0);
    for (when, step) in turns {
        now += step;
        if now > most {
            (most, at) = (now, when);
        }
    }
    calls.iter().copied().filter(|c| since(c).is_some_and(|s| s <= at) && until(c) > at).collect()
}

#[test]
fn the_judge_counts_what_is_live_at_once() {
    let sim = ringfence_simulator::SimSettings::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        ringfence::net::install_crypto_provider();
        let simulator = ringfence_simulator::Simulator::start(sim).await.unwrap();
        let inbound = ringfence_simulator::Inbound {
            to: "+15550001101".to_owned(),
            from: "+15550003301".to_owned(),
            via: ringfence_simulator::Via::Twilio,
            agent_id: None,
        };
        let view = simulator.control().inbound(&inbound).unwrap();
        let call = |inbound, created_ms, answered_ms, ended_ms| CallView {
            inbound,
            created_ms,
            answered_ms,
            ended_ms,
            ..view.clone()
        };
        let calls = [
            call(false, 10, None, Some(20)),
            call(false, 15, None, Some(30)),
            // Begins in the millisecond in which the first ends.
            call(false, 20, None, Some(25)),
            // Not live before it is answered, or never.
            call(true, 10, Some(22), None),
            call(true, 10, None, Some(40)),
        ];
        let most = most_at_once(&calls.iter().collect::<Vec<_>>());
        assert_eq!(most.iter().map(|c| c.created_ms).collect::<Vec<_>>(), [15, 20, 10]);
        assert!(most.iter().all(|c| !c.inbound || c.answered_ms.is_some()));
        simulator.stop().await;
    });
}
