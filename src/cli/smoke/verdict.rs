//! What worked in a test call and what did not, with the fix. Pure.

use serde::Serialize;

use super::track::Track;

/// Something that had to work.
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

/// What is known apart from the call itself.
#[derive(Debug, Clone, Default)]
pub(super) struct About {
    pub provider: String,
    /// `public_url` is set, so the provider can report the end.
    pub expects_webhooks: bool,
    pub within_secs: u32,
    /// The limit, or the code, that would have refused it, in observe mode.
    pub would_refuse: Option<String>,
    /// Why the sidecar did not answer at last.
    pub silence: Option<String>,
}

/// Judges a call that its provider took.
pub(super) fn judge(track: &Track, about: &About) -> Vec<Check> {
    let provider = &about.provider;
    let mut checks = vec![Check::passed(format!("{provider} took the call"))];
    if let Some(reason) = &about.would_refuse {
        let fix = "ringfence refusals list says why; mend it before mode = \"enforce\"";
        checks.push(Check::failed(format!("mode enforce would have refused it: {reason}"), fix));
    }
    let Some(call) = &track.call else {
        let fix = "ringfence calls list --all shows what is on record; its log says what it made of the answer";
        checks.push(Check::failed("the sidecar has no record of the call", fix));
        return checks;
    };
    if let Some(error) = &about.silence {
        let fix = "ringfence health --ready, and its log";
        checks.push(Check::failed(format!("the sidecar stopped answering: {error}"), fix));
    }
    let Some(end) = &track.end else {
        let what = format!("the call is not over after {} s", about.within_secs);
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
        true => checks.push(Check::passed("its post-call record is there")),
        // Of what was not answered there is little to report.
        false if !end.is_completed() => {}
        false => {
            let fix = format!(
                "it is fetched records.wait_secs after the end: ringfence calls show {call}; if it stays away, ringfence doctor"
            );
            checks.push(Check::failed("no post-call record came", fix));
        }
    }
    checks
}

fn answered(outcome: &str, call: &str) -> Check {
    match outcome {
        "completed" => Check::passed("it was answered"),
        "busy" | "no_answer" | "canceled" => {
            Check::failed(format!("nobody answered: {outcome}"), "call a number that somebody answers")
        }
        "capacity" => Check::failed("ringfence ended it because a limit was full", format!("ringfence explain {call}")),
        other => {
            let fix = "the provider's own log of the call says why; ringfence doctor looks at agents and numbers";
            Check::failed(format!("the provider could not carry it: {other}"), fix)
        }
    }
}

fn ended(proof: &str, track: &Track, about: &About) -> Check {
    let provider = &about.provider;
    match proof {
        "webhook" => Check::passed("a webhook reported its end"),
        "provider" if !about.expects_webhooks => {
            Check::passed("polling found its end; without public_url no webhook can come")
        }
        "provider" if track.has_webhook_of_end() => {
            Check::passed("polling found its end, and the webhook of it came too")
        }
        "provider" => {
            let what = format!("its end was found by polling alone: no webhook of {provider} reported it");
            let fix = "ringfence doctor shows where its webhooks go, and whether public_url leads here";
            Check::failed(what, fix)
        }
        "operator" => Check::failed("an operator released its slot", "let the call end by itself"),
        other => {
            let fix = "ringfence doctor: neither webhooks nor look-ups work for this account";
            Check::failed(format!("nobody reported its end: it counts as over by {other}"), fix)
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
        judge(track, about).into_iter().filter(|one| !one.ok).map(|one| format!("{} | {}", one.what, one.fix)).collect()
    }

    #[test]
    fn a_whole_call_has_no_failure() {
        let mut track = ended_by("webhook");
        (track.is_slot_free, track.has_record) = (true, true);
        assert!(failures(&track, &about()).is_empty());
        let mut polled = ended_by("provider");
        (polled.is_slot_free, polled.has_record) = (true, true);
        let [failure] = &failures(&polled, &about())[..] else { panic!("one failure") };
        assert!(failure.contains("by polling alone") && failure.contains("ringfence doctor"), "{failure}");
        assert!(failures(&polled, &About { expects_webhooks: false, ..about() }).is_empty());
        polled.has_end_webhook = true;
        assert!(failures(&polled, &about()).is_empty());
    }

    #[test]
    fn each_failure_has_a_fix() {
        let track = admitted();
        let observed = About { would_refuse: Some("plan.PRO".to_owned()), silence: Some("gone".to_owned()), ..about() };
        let told = failures(&track, &observed).join("\n");
        for part in ["refused it: plan.PRO", "stopped answering: gone", "not over after 300 s", "calls hangup c_1"] {
            assert!(told.contains(part), "{part} is not in {told}");
        }
        let told = failures(&ended_by("deadline"), &about()).join("\n");
        for part in ["nobody reported its end", "slot is still held", "calls show c_1"] {
            assert!(told.contains(part), "{part} is not in {told}");
        }
        for outcome in ["busy", "no_answer", "failed", "capacity"] {
            assert!(!answered(outcome, "c_1").ok, "{outcome}");
        }
    }
}
