//! Bulk runs of a business of their own, one after the other, beside everything else.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request};
use ringfence::net::fetch_local;
use serde_json::{Value, json};
use sqlx::Row as _;

use super::{Chaos, REST};
use crate::support::rng::Rng;

/// Whose runs they are.
pub(super) const RUNNER: &str = "runner";
/// Its numbers begin with this digit.
const DIGIT: char = '4';
/// Leads of a run.
const LEADS: usize = 25;

/// A run, and whom it calls.
pub(super) struct BulkRun {
    pub(super) id: String,
    pub(super) leads: Vec<String>,
}

impl Chaos {
    /// Makes a run, waits until it is done, and makes the next.
    pub(super) async fn bulk(&self, mut rng: Rng) {
        for n in 1.. {
            if !self.going_on() {
                return;
            }
            let leads: Vec<String> = (0..LEADS).map(|_| self.lead()).collect();
            let run = match rng.below(2) {
                0 => json!({
                    "account": "twilio", "operation": "calls", "request": {"Twiml": crate::outbound::TALK},
                    "own_numbers": ["+15550001111"],
                }),
                _ => json!({
                    "account": "elevenlabs", "operation": "twilio_outbound_call",
                    "request": {"agent_id": "agent_runner", "agent_phone_number_id": "phnum_1"},
                }),
            };
            let mut run = run;
            run["business"] = RUNNER.into();
            run["idempotency_key"] = format!("run-{n}").into();
            // What goes wrong on the way to a provider is no fault of the run.
            run["breaker"] = json!({"failures": 0});
            run["leads"] = leads.iter().map(|number| json!({"number": number})).collect();
            let id = self.make(&run, &mut rng).await;
            self.runs.lock().unwrap().push(BulkRun { id: id.clone(), leads });
            while self.going_on() && !self.is_done(&id, &mut rng).await {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }

    /// A number that a run takes: of as many digits as numbers there have.
    fn lead(&self) -> String {
        format!("+1555{DIGIT}{:05}7", self.numbers.fetch_add(1, Ordering::Relaxed))
    }

    /// Sends it until somebody says that it has all leads.
    async fn make(&self, run: &Value, rng: &mut Rng) -> String {
        let started = Instant::now();
        loop {
            let made = self.ask(rng, "POST", "/api/runs", run.to_string()).await;
            match made.as_ref().map(|made| (made["runId"].as_str(), made["state"].as_str())) {
                Some((Some(id), Some("running" | "done"))) => return id.to_owned(),
                _ => assert!(started.elapsed() < REST, "a run is not made: {made:?}"),
            }
            tokio::time::sleep(Duration::from_millis(100 + rng.below(300))).await;
        }
    }

    async fn is_done(&self, id: &str, rng: &mut Rng) -> bool {
        let run = self.ask(rng, "GET", &format!("/api/runs/{id}"), String::new()).await;
        run.is_some_and(|run| run["state"] == "done")
    }

    /// Asks any replica.
    async fn ask(&self, rng: &mut Rng, method: &str, path: &str, body: String) -> Option<Value> {
        let n = rng.below(self.fleet.replicas.len() as u64) as usize;
        let mut request = Request::new(Bytes::from(body));
        *request.method_mut() = method.parse::<Method>().unwrap();
        *request.uri_mut() = path.parse().unwrap();
        request.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
        let socket = self.fleet.replicas[n].folder.join("ringfence-admin.sock");
        let answer = fetch_local(&socket, request, 8 << 20, Duration::from_secs(3)).await.ok()?;
        serde_json::from_slice(answer.body()).ok()
    }

    /// Runs that are not over yet, as far as can be asked.
    pub(super) async fn runs_left(&self) -> i64 {
        let sql = "SELECT count(*) FROM runs WHERE state <> 'done'";
        sqlx::query(sql).fetch_one(&self.fleet.record).await.map_or(-1, |row| row.get(0))
    }
}
