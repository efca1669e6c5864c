//! The bypass: for a limited time limits reject nothing, at every replica.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::auth::Requester;
use super::operator::{Act, stored_reason};
use super::{Admin, Answer, BODY_BYTES_MAX, Problem, bad, ok};
use crate::clock::rfc3339;
use crate::net::Exchange;
use crate::store::Bypass;

/// The longest bypass, in seconds: a day.
const SECS_MAX: u64 = 86_400;

impl Admin {
    /// The bypass in force, or null.
    pub(super) fn bypass_json(&self) -> Value {
        let admission = &self.calls.lifecycle.admission;
        let Some(bypass) = admission.bypass() else { return Value::Null };
        let left_ms = (bypass.until_ms - self.calls.lifecycle.clock.now_ms()).max(0);
        json!({
            "since": rfc3339(bypass.since_ms), "until": rfc3339(bypass.until_ms), "leftSecs": (left_ms + 999) / 1000,
            "by": bypass.who, "reason": bypass.reason, "everywhere": admission.bypass_is_shared(),
        })
    }

    /// Shows it, starts it (`{"for_secs": 900, "reason": "…"}`), or ends it. It works even if the store rejects writes, which may be why
    /// it is needed. Then it applies in this process only, and the answer says so.
    pub(super) async fn bypass(&self, exchange: &mut Exchange, method: &Method, who: &Requester) -> Answer {
        let admission = &self.calls.lifecycle.admission;
        let (act, after, new) = match *method {
            Method::GET => return ok(&json!({"bypass": self.bypass_json()})),
            Method::DELETE => ("bypass off", Value::Null, None),
            Method::PUT => {
                let body = exchange.read_body(BODY_BYTES_MAX).await.map_err(|e| bad(e.to_string()))?;
                let body: Value =
                    serde_json::from_slice(&body).map_err(|e| bad(format!("body must be a bypass: {e}")))?;
                let secs = body["for_secs"].as_u64().filter(|secs| (1..=SECS_MAX).contains(secs));
                let secs = secs.ok_or_else(|| bad(format!("for_secs must be a number from 1 to {SECS_MAX}")))?;
                let reason = body["reason"].as_str().map(str::trim).filter(|reason| !reason.is_empty());
                let reason = reason.ok_or_else(|| bad("reason is required (audit log)"))?;
                let now_ms = self.calls.lifecycle.clock.now_ms();
                let bypass = Bypass {
                    since_ms: now_ms,
                    until_ms: now_ms.saturating_add(i64::try_from(secs).unwrap_or(0) * 1000),
                    who: who.name.replace('\0', "\u{FFFD}"),
                    reason: stored_reason(reason),
                };
                ("bypass on", json!({"until": rfc3339(bypass.until_ms)}), Some(bypass))
            }
            _ => {
                let message = "use GET, PUT or DELETE".to_owned();
                return Err(Problem::Is(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", message));
            }
        };
        let before = self.bypass_json();
        let before = json!({"until": before["until"]});
        let reason = new.as_ref().map(|bypass| bypass.reason.clone());
        let changes = Act::new(act, "*").because(reason.as_deref()).changes(before, after);
        self.audit_or_log(who, changes).await;
        let told = admission.set_bypass(new).await;
        let note = told.err().map(|error| format!("this process only: {error}"));
        ok(&json!({"bypass": self.bypass_json(), "note": note}))
    }
}
