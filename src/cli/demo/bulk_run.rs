//! The step of the demo that dials a bulk run.

use std::collections::BTreeSet;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request};
use ringfence_simulator::{CallView, Fault, FaultKind, Millis, Provider};
use serde_json::{Value, json};

use super::{PATIENCE, Seen, Stage};
use crate::net::fetch_local;

/// The number of leads.
const LEADS: usize = 20;

impl Stage {
    /// Each lead is called once, including the one whose answer is lost.
    pub(super) async fn bulk_run(&self) -> Seen {
        self.wait("every slot to be free", async || self.in_use().await == 0).await?;
        let before = self.control.calls().len();
        let talked = self.control.settings().talk_ms;
        self.control.configure(|s| s.talk_ms = Millis::between(200, 400));
        self.control.fault(Fault::next(Provider::ElevenLabs, FaultKind::AcceptThenDrop, 1));
        let lead = |n| json!({"number": format!("+1555007{n:04}"), "name": format!("Lead {n}")});
        let run = json!({
            "business": "cedar", "account": "elevenlabs", "operation": "twilio_outbound_call",
            "request": {
                "agent_id": "agent_cedar", "agent_phone_number_id": "phnum_demo",
                "conversation_initiation_client_data": {"dynamic_variables": {"name": "{{lead.name}}"}},
            },
            "leads": (10..10 + LEADS).map(lead).collect::<Vec<_>>(),
        });
        let made = self.operate(Method::POST, "/api/runs", run.to_string()).await?;
        let id = made["runId"].as_str().ok_or_else(|| format!("expected a run; saw {made}"))?;
        let path = format!("/api/runs/{id}");
        let done =
            async || self.operate(Method::GET, &path, String::new()).await.is_ok_and(|run| run["state"] == "done");
        self.wait_for("the run to be done", 4 * PATIENCE, done).await?;
        self.control.configure(|s| s.talk_ms = talked);
        let results = self.operate(Method::GET, &format!("{path}/results"), String::new()).await?;
        let reached =
            results["results"].as_array().into_iter().flatten().filter(|one| one["outcome"] == "completed").count();
        let calls: Vec<_> = self.control.calls().into_iter().skip(before).filter(|call| !call.inbound).collect();
        let (twice, most) = (calls_again(&calls), most_at_once(&calls));
        if (reached, calls.len(), twice, most) != (LEADS, LEADS, 0, 3) {
            let seen = format!("{reached} reached by {} calls, {twice} called again, {most} at once", calls.len());
            return Err(format!("expected {LEADS} leads, each called once, 3 at once; saw {seen}"));
        }
        Ok(vec![
            format!("cedar   {}  {reached} of {LEADS} reached", "●".repeat(LEADS)),
            "an answer was lost on the way: the call was looked up, not dialled again".to_owned(),
            format!(
                "the provider was asked for {} calls; {twice} leads called twice, at most {most} at once",
                calls.len()
            ),
        ])
    }

    /// A request to `listen.admin` over its socket.
    async fn operate(&self, method: Method, path: &str, body: String) -> Result<Value, String> {
        let mut request = Request::new(Bytes::from(body));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().map_err(|e| format!("{e}"))?;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let socket = self.app.admin_socket().ok_or("listen.admin has no socket")?;
        let answer = fetch_local(socket, request, 1 << 20, PATIENCE).await.map_err(|e| e.to_string())?;
        serde_json::from_slice(answer.body()).map_err(|e| e.to_string())
    }
}

/// The calls to numbers that were called before.
fn calls_again(calls: &[CallView]) -> usize {
    let called: BTreeSet<&str> = calls.iter().map(|call| call.to.as_str()).collect();
    calls.len() - called.len()
}

/// The maximum concurrent calls.
fn most_at_once(calls: &[CallView]) -> usize {
    let up_at = |at| calls.iter().filter(|c| c.created_ms <= at && c.ended_ms.is_none_or(|end| end > at)).count();
    calls.iter().map(|call| up_at(call.created_ms)).max().unwrap_or(0)
}
