//! The observed steps of a test call. Pure.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;

use crate::cli::text::{field, list};

/// Polling may find an end before its webhook is applied: how much earlier the webhook may have arrived, in milliseconds.
const OVERTAKEN_MS: i64 = 1_000;

/// An observed step of the call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Step {
    pub step: &'static str,
    /// The step's time, in milliseconds since the request.
    pub after_ms: i64,
    pub detail: String,
}

/// The end of the call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    pub outcome: String,
    pub proof: String,
    at_ms: Option<i64>,
}

impl End {
    /// Whether it was answered.
    pub(super) fn is_completed(&self) -> bool {
        self.outcome == "completed"
    }
}

/// The observed call.
#[derive(Debug, Default)]
pub(super) struct Track {
    pub steps: Vec<Step>,
    pub call: Option<String>,
    pub end: Option<End>,
    pub is_slot_free: bool,
    /// Polls in a row that showed its slot as free: a single one may be between two changes.
    free_looks: u32,
    /// There are more open calls than one answer lists, so its slot cannot be identified.
    pub is_slot_hidden: bool,
    pub has_record: bool,
    /// Whether the account's webhook of the end arrived, whatever proved the end.
    pub has_end_webhook: bool,
    admitted_at_ms: Option<i64>,
    answered_at_ms: Option<i64>,
    webhooks: BTreeSet<String>,
    /// Steps that were returned already.
    taken: usize,
}

/// A time of an answer, in milliseconds since 1970.
fn millis(value: &Value) -> Option<i64> {
    value.as_str()?.parse::<jiff::Timestamp>().ok().map(|at| at.as_millisecond())
}

impl Track {
    /// Notes a step.
    pub(super) fn note(&mut self, step: &'static str, after_ms: i64, detail: impl Into<String>) {
        self.steps.push(Step { step, after_ms, detail: detail.into() });
    }

    /// The steps since the last call.
    pub(super) fn news(&mut self) -> &[Step] {
        let from = std::mem::replace(&mut self.taken, self.steps.len());
        self.steps.get(from..).unwrap_or_default()
    }

    fn has(&self, step: &str) -> bool {
        self.steps.iter().any(|one| one.step == step)
    }

    /// A time of the sidecar's clock, relative to the request; differences are independent of its offset.
    fn after(&self, at_ms: Option<i64>, now_ms: i64) -> i64 {
        at_ms.zip(self.admitted_at_ms).map_or(now_ms, |(at, from)| (at - from).max(0))
    }

    /// Reads the call's admission from its record.
    pub(super) fn see_admission(&mut self, call: &Value) {
        self.call = call["callId"].as_str().map(str::to_owned);
        self.admitted_at_ms = millis(&call["startedAt"]);
        let whose = format!("business {}, plan {}", field(call, "businessId"), field(call, "plan"));
        self.note("admitted", 0, format!("{} of {whose}", field(call, "callId")));
    }

    /// Reads changes of the call's record; `now_ms` is the time since the request.
    pub(super) fn see_call(&mut self, call: &Value, now_ms: i64) {
        let phase = field(call, "phase");
        if phase == "ringing" && !self.has("ringing") {
            self.note("ringing", now_ms, "");
        }
        self.answered_at_ms = millis(&call["answeredAt"]);
        if (phase == "live" || self.answered_at_ms.is_some()) && !self.has("answered") {
            self.note("answered", self.after(self.answered_at_ms, now_ms), "");
        }
        if phase == "ended" && self.end.is_none() {
            let end = End {
                outcome: field(call, "outcome").to_owned(),
                proof: field(call, "proof").to_owned(),
                at_ms: millis(&call["endedAt"]),
            };
            let by = match end.proof.as_str() {
                "webhook" => "a webhook",
                "provider" => "polling the provider",
                other => other,
            };
            self.note("ended", self.after(end.at_ms, now_ms), format!("{}, proved by {by}", end.outcome));
            self.end = Some(end);
        }
        let record = &call["record"];
        if record.is_object() && !self.has_record {
            self.has_record = true;
            let extent = if record["complete"] == true { "complete" } else { "in parts" };
            self.note(
                "record",
                self.after(millis(&record["recorded_at"]), now_ms),
                format!("post-call record, {extent}"),
            );
        }
    }

    /// Reads new webhooks, the oldest first; `account` is the one that places the call.
    pub(super) fn see_webhooks(&mut self, events: &Value, account: &str, now_ms: i64) {
        for event in list(events, "events").iter().rev() {
            let (Some(id), Some(outcome)) = (event["id"].as_str(), event["outcome"].as_str()) else { continue };
            if self.call.is_none() || event["callId"].as_str() != self.call.as_deref() {
                continue;
            }
            let at_ms = millis(&event["receivedAt"]);
            if self.webhooks.insert(id.to_owned()) {
                let detail = format!("{} of {}: {outcome}", field(event, "event"), field(event, "account"));
                self.note("webhook", self.after(at_ms, now_ms), detail);
            }
            let ended_at_ms = self.end.as_ref().and_then(|end| end.at_ms);
            let is_of_end = at_ms.zip(ended_at_ms).is_some_and(|(at, ended_at)| {
                at >= ended_at - OVERTAKEN_MS && self.answered_at_ms.is_none_or(|answered_at| at > answered_at)
            });
            self.has_end_webhook |= is_of_end && event["account"] == account;
        }
    }

    /// Reads whether the call's slot is free: it is not among the open calls, and the limiter holds no more slots than these have.
    /// The limiter's count is the older of the two.
    pub(super) fn see_slots(&mut self, status: &Value, open: &Value, now_ms: i64) {
        let calls = list(open, "calls");
        let is_open = calls.iter().any(|one| one["callId"].as_str() == self.call.as_deref());
        let counted = calls.iter().filter(|one| one["origin"] != "unconfirmed");
        let slots: u64 = counted.map(|one| one["slots"].as_u64().unwrap_or(1)).sum();
        self.is_slot_hidden = open["open"].as_u64() != u64::try_from(calls.len()).ok();
        let gate = &status["gate"];
        let held = gate["calls"].as_u64().filter(|_| gate["counted"] == true).unwrap_or(u64::MAX);
        let looks_free = !self.is_slot_hidden && !is_open && held <= slots;
        self.free_looks = if looks_free { self.free_looks + 1 } else { 0 };
        if !self.is_slot_free && self.free_looks >= 2 {
            self.is_slot_free = true;
            self.note("slot free", now_ms, format!("{held} slots are held now"));
        }
    }

    /// Whether the provider's webhook reported the end, first or later.
    pub(super) fn has_webhook_of_end(&self) -> bool {
        self.has_end_webhook || self.end.as_ref().is_some_and(|end| end.proof == "webhook")
    }

    /// Whether everything was observed.
    pub(super) fn is_whole(&self, expects_webhooks: bool) -> bool {
        let has_webhook = !expects_webhooks || self.has_webhook_of_end();
        let has_record = self.has_record || self.end.as_ref().is_some_and(|end| !end.is_completed());
        self.end.is_some() && (self.is_slot_free || self.is_slot_hidden) && has_record && has_webhook
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    fn call(phase: &str, proof: Option<&str>) -> Value {
        let ended = (phase == "ended").then_some("2026-01-01T00:00:09Z");
        json!({
            "callId": "c_1", "businessId": "acme", "plan": "PRO", "phase": phase, "startedAt": "2026-01-01T00:00:00Z",
            "answeredAt": (phase != "ringing").then_some("2026-01-01T00:00:03.5Z"), "endedAt": ended,
            "outcome": ended.map(|_| "completed"), "proof": proof, "record": null,
        })
    }

    fn event(id: &str, at: &str) -> Value {
        json!({"id": id, "event": "call_status", "account": "twilio", "callId": "c_1", "outcome": "applied", "receivedAt": at})
    }

    /// A call that was admitted.
    pub(crate) fn admitted() -> Track {
        let mut track = Track::default();
        track.see_admission(&call("dialing", None));
        track
    }

    /// A call that was answered, and ended by this proof.
    pub(crate) fn ended_by(proof: &str) -> Track {
        let mut track = admitted();
        for (phase, after_ms) in [("ringing", 900), ("live", 4000)] {
            track.see_call(&call(phase, None), after_ms);
        }
        track.see_call(&call("ended", Some(proof)), 9100);
        track
    }

    #[test]
    fn steps_are_noted_once_with_their_times() {
        let mut track = ended_by("webhook");
        track.see_call(&call("ended", Some("webhook")), 12_000);
        let steps: Vec<_> = track.news().iter().map(|one| (one.step, one.after_ms)).collect();
        assert_eq!(steps, [("admitted", 0), ("ringing", 900), ("answered", 3500), ("ended", 9000)]);
        assert!(track.news().is_empty() && track.has_webhook_of_end());
        assert!(!track.is_whole(true), "its slot and its record were not seen");
    }

    #[test]
    fn a_webhook_with_the_end_or_after_it_is_one_of_the_end() {
        let see = |track: &mut Track, events: &[Value]| track.see_webhooks(&json!({"events": events}), "twilio", 9500);
        let mut overtaken = ended_by("provider");
        see(&mut overtaken, &[event("ev_3", "2026-01-01T00:00:08.99Z")]);
        assert!(overtaken.has_webhook_of_end(), "found by polling first");
        let mut track = ended_by("provider");
        see(&mut track, &[event("ev_0", "2026-01-01T00:00:03.5Z"), event("ev_1", "2026-01-01T00:00:01Z")]);
        assert!(!track.has_webhook_of_end());
        let mut short = ended_by("provider");
        short.answered_at_ms = short.end.as_ref().and_then(|end| end.at_ms);
        see(&mut short, &[event("ev_4", "2026-01-01T00:00:08.99Z")]);
        assert!(!short.has_webhook_of_end(), "it is the webhook of the answer");
        see(&mut track, &[event("ev_2", "2026-01-01T00:00:09.25Z"), event("ev_1", "2026-01-01T00:00:01Z")]);
        assert!(track.has_webhook_of_end());
        let webhooks: Vec<_> = track.steps.iter().filter(|one| one.step == "webhook").map(|one| one.after_ms).collect();
        assert_eq!(webhooks, [1000, 3500, 9250]);
    }

    #[test]
    fn a_slot_is_free_once_no_more_are_held_than_open_calls_have() {
        let mut track = ended_by("webhook");
        let open = |calls: Value| json!({"open": calls.as_array().unwrap().len(), "calls": calls});
        let held = |n: u32| json!({"gate": {"calls": n, "counted": true}});
        let other = json!({"callId": "c_2", "slots": 2, "origin": "order"});
        track.see_slots(&held(1), &open(json!([{"callId": "c_1", "slots": 1}])), 1);
        track.see_slots(&held(3), &open(json!([other])), 2);
        assert!(!track.is_slot_free);
        track.see_slots(&json!({"gate": {"calls": 0, "counted": false}}), &open(json!([])), 3);
        track.see_slots(&held(2), &open(json!([other])), 4);
        assert!(!track.is_slot_free, "seen once");
        track.see_slots(&held(2), &open(json!([other])), 5);
        assert!(track.is_slot_free);
        let mut track = ended_by("webhook");
        (0..3).for_each(|_| track.see_slots(&held(9), &json!({"open": 2000, "calls": [other]}), 6));
        assert!(!track.is_slot_free && track.is_slot_hidden);
    }
}
