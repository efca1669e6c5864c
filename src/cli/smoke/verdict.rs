//! The results of a test call, with fixes. Pure.

use serde::Serialize;

use super::track::Track;

/// A checked property.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    pub ok: bool,
    pub what: String,
    pub fix: String,
}

impl Check {
    fn passed(what: impl Into<String>) -> Self {
        Self { ok: true, what: what.into(), fix: String::new() }
    }

    fn failed(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { ok: false, what: what.into(), fix: fix.into() }
    }
}

/// Facts about the environment of the call.
#[derive(Debug, Clone, Default)]
pub(super) struct About {
    pub provider: String,
    /// `public_url` is set, so the provider can report the end.
    pub expects_webhooks: bool,
    pub within_secs: u32,
    /// The limit or code that would have rejected it, in observe mode.
    pub would_refuse: Option<String>,
    /// The reason why the sidecar did not answer the last time.
    pub silence: Option<String>,
}

/// The checks of a call that its provider accepted.
pub(super) fn check_call(track: &Track, about: &About) -> Vec<Check> {
    let provider = &about.provider;
    let mut checks = vec![Check::passed(format!("{provider} accepted the call"))];
    if let Some(reason) = &about.would_refuse {
        let fix = "see ringfence refusals list; fix it before mode = \"enforce\"";
        checks.push(Check::failed(format!("mode enforce would have rejected it: {reason}"), fix));
    }
    let Some(call) = &track.call else {
        let fix = "ringfence calls list --all shows recorded calls; see its log";
        checks.push(Check::failed("the sidecar has no record of the call", fix));
        return checks;
    };
    if let Some(error) = &about.silence {
        let fix = "ringfence health --ready; see its log";
        checks.push(Check::failed(format!("the sidecar stopped answering: {error}"), fix));
    }
    let Some(end) = &track.end else {
        let what = format!("the call has not ended after {} s", about.within_secs);
        let fix = format!("hang up, or: ringfence calls hangup {call}; --within-secs lets it take longer");
        checks.push(Check::failed(what, fix));
        return checks;
    };
    checks.push(answered(&end.outcome, call));
    checks.push(ended(&end.proof, track, about));
    checks.push(match track.is_slot_free {
        true => Check::passed("its slot is free"),
        false if track.is_slot_hidden => {
            let fix = format!("ringfence explain {call} shows what it holds; or test while fewer calls are open");
            Check::failed("too many calls are open to tell whether its slot is free", fix)
        }
        false => Check::failed("its slot is still held", "ringfence reconcile compares leases, records and providers"),
    });
    match track.has_record {
        true => checks.push(Check::passed("its post-call record was received")),
        // Calls that were not answered may have no record.
        false if !end.is_completed() => {}
        false => {
            let fix = format!(
                "it is fetched records.wait_secs after the end: ringfence calls show {call}; if still missing, ringfence doctor"
            );
            checks.push(Check::failed("no post-call record was received", fix));
        }
    }
    checks
}

fn answered(outcome: &str, call: &str) -> Check {
    match outcome {
        "completed" => Check::passed("it was answered"),
        "busy" | "no_answer" | "canceled" => {
            Check::failed(format!("not answered: {outcome}"), "call a number that is answered")
        }
        "capacity" => Check::failed("ringfence ended it because a limit was full", format!("ringfence explain {call}")),
        other => {
            let fix = "see the provider's log of the call; ringfence doctor checks agents and numbers";
            Check::failed(format!("the call failed at the provider: {other}"), fix)
        }
    }
}

fn ended(proof: &str, track: &Track, about: &About) -> Check {
    let provider = &about.provider;
    match proof {
        "webhook" => Check::passed("a webhook reported its end"),
        "provider" if !about.expects_webhooks => {
            Check::passed("polling found its end; without public_url there are no webhooks")
        }
        "provider" if track.has_webhook_of_end() => Check::passed("polling found its end, its webhook followed"),
        "provider" => {
            let what = format!("its end was found by polling only: no webhook of {provider} reported it");
            let fix = "ringfence doctor shows where its webhooks go, and whether public_url leads here";
            Check::failed(what, fix)
        }
        "operator" => Check::failed("an operator released its slot", "hang up on the phone"),
        other => {
            let fix = "ringfence doctor: neither webhooks nor look-ups work for this account";
            Check::failed(format!("its end was not reported: ended by {other}"), fix)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::track::tests::{admitted, ended_by};
    use super::*;

    fn about() -> About {
        About { provider: "twilio".to_owned(), expects_webhooks: true, within_secs: 300, ..About::default() }
    }

    fn failures(track: &Track, about: &About) -> Vec<String> {
        check_call(track, about)
            .into_iter()
            .filter(|one| !one.ok)
            .map(|one| format!("{} | {}", one.what, one.fix))
            .collect()
    }

    #[test]
    fn a_whole_call_has_no_failure() {
        let mut track = ended_by("webhook");
        (track.is_slot_free, track.has_record) = (true, true);
        assert!(failures(&track, &about()).is_empty());
        let mut polled = ended_by("provider");
        (polled.is_slot_free, polled.has_record) = (true, true);
        let [failure] = &failures(&polled, &about())[..] else { panic!("one failure") };
        assert!(failure.contains("by polling only") && failure.contains("ringfence doctor"), "{failure}");
        assert!(failures(&polled, &About { expects_webhooks: false, ..about() }).is_empty());
        polled.has_end_webhook = true;
        assert!(failures(&polled, &about()).is_empty());
    }

    #[test]
    fn each_failure_has_a_fix() {
        let track = admitted();
        let observed = About { would_refuse: Some("plan.PRO".to_owned()), silence: Some("gone".to_owned()), ..about() };
        let told = failures(&track, &observed).join("\n");
        for part in ["rejected it: plan.PRO", "stopped answering: gone", "not ended after 300 s", "calls hangup c_1"] {
            assert!(told.contains(part), "{part} is not in {told}");
        }
        let told = failures(&ended_by("deadline"), &about()).join("\n");
        for part in ["its end was not reported", "slot is still held", "calls show c_1"] {
            assert!(told.contains(part), "{part} is not in {told}");
        }
        for outcome in ["busy", "no_answer", "failed", "capacity"] {
            assert!(!answered(outcome, "c_1").ok, "{outcome}");
        }
    }
}
