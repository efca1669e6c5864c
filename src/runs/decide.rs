//! The settlement of jobs whose calls have ended. Pure.

use super::spec::Spec;
use crate::call::{AnsweredBy, EndProof, Outcome};
use crate::clock::UnixMs;
use crate::store::runs::{EndedJob, JobSettlement, JobState, RunState};

/// The number of calls of unknown outcome, without a made call between them, after which a job fails whose call was not made either: its
/// lead may be the cause, and would be dialled forever.
const UNKNOWN_TRIES_MAX: u32 = 50;
/// The longest pause between two of these, in seconds. All of them take over three hours, so that no failure of the provider that is
/// shorter uses up a lead.
const UNKNOWN_PAUSE_SECS_MAX: i64 = 300;

/// The pause, in milliseconds, before a lead is dialled again after so many calls of unknown outcome that were not made: none at first, and
/// each twice as long as the last.
fn unknown_pause_ms(unknown_tries: u32) -> i64 {
    match unknown_tries {
        0 | 1 => 0,
        n => (1_i64 << (n - 1).min(16)).min(UNKNOWN_PAUSE_SECS_MAX) * 1000,
    }
}

/// The time after which a job asks again whether the record of its call was asked for, in milliseconds.
pub(super) const FETCH_MS: i64 = 30_000;
/// The longest further wait of a job while the record of its call stands in line to be fetched, in milliseconds: records are fetched at a
/// bounded rate, and where more calls end than that, and webhooks do not come, the line is long.
const FETCH_QUEUE_MS_MAX: i64 = 600_000;

/// The settlement of a job whose call has ended. `answered_by_wait_ms`: how long after its end the provider may still report who answered,
/// in milliseconds; `None`: it does not.
pub fn settlement(
    ended: &EndedJob,
    spec: &Spec,
    run: RunState,
    answered_by_wait_ms: Option<i64>,
    now_ms: UnixMs,
) -> JobSettlement {
    let job = &ended.job;
    let attempts = job.attempts + 1;
    if let Some(until) = answered_by_wait_ms.and_then(|wait_ms| waits_until(ended, wait_ms, now_ms))
        && ended.outcome == Outcome::Completed
        && ended.answered_by.is_none()
        && !ended.is_recorded
        && run != RunState::Canceled
        && spec.retry.get(&Outcome::Voicemail).is_some_and(|rule| attempts < rule.attempts)
    {
        return JobSettlement { waits_until: Some(until), ..JobSettlement::of(job) };
    }
    let next = JobSettlement { tries: job.tries + 1, ..JobSettlement::of(job) };
    let again = |due_at: UnixMs, settlement: JobSettlement| match run {
        RunState::Canceled => JobSettlement { state: JobState::Done, outcome: Some(Outcome::Canceled), ..settlement },
        _ => JobSettlement { state: JobState::Queued, new_call: None, due_at, ..settlement },
    };
    let done = |outcome, error: Option<&str>, settlement: JobSettlement| JobSettlement {
        state: JobState::Done,
        outcome: Some(outcome),
        error: error.map(str::to_owned),
        ..settlement
    };
    match (ended.outcome, ended.proof) {
        // Proven not created: no attempt.
        (Outcome::NotCreated, EndProof::Provider | EndProof::Deadline) if job.unknown_tries < UNKNOWN_TRIES_MAX => {
            again(now_ms + unknown_pause_ms(job.unknown_tries), next)
        }
        (Outcome::NotCreated, _) => done(Outcome::Failed, Some("no call could be made"), next),
        (outcome, proof) => {
            let is_machine = outcome == Outcome::Completed && ended.answered_by == Some(AnsweredBy::Machine);
            let outcome = if is_machine { Outcome::Voicemail } else { outcome };
            let next = JobSettlement { attempts, unknown_tries: 0, outcome: Some(outcome), ..next };
            // The outcome of the call is unknown: not retried.
            let is_lost = matches!(proof, EndProof::Deadline | EndProof::Operator) && outcome == Outcome::Failed;
            match spec.retry.get(&outcome) {
                Some(rule) if !is_lost && attempts < rule.attempts => {
                    again(ended.ended_at + i64::from(rule.after_secs) * 1000, next)
                }
                _ if is_lost => done(outcome, Some("the outcome of its call is no longer known"), next),
                _ => done(outcome, None, next),
            }
        }
    }
}

/// The time until which a job waits to learn who answered its call; `None`: no longer.
fn waits_until(ended: &EndedJob, answered_by_wait_ms: i64, now_ms: UnixMs) -> Option<UnixMs> {
    let until = ended.ended_at.saturating_add(answered_by_wait_ms);
    let last = until.saturating_add(FETCH_QUEUE_MS_MAX);
    match now_ms {
        now_ms if now_ms < until => Some(until),
        now_ms if ended.awaits_fetch && now_ms < last => Some(last.min(now_ms + FETCH_MS)),
        _ => None,
    }
}

/// Whether a call counts as failed for the breaker. Busy and no answer do not. `None`: it says nothing about the provider, since it was
/// not made because its process died, or was too slow to send it.
pub fn is_failure(ended: &EndedJob) -> Option<bool> {
    match ended.outcome {
        Outcome::NotCreated => ended.exchange_over.then_some(true),
        outcome => Some(outcome == Outcome::Failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::CallId;
    use crate::store::runs::Job;

    fn ended(outcome: Outcome, proof: EndProof, attempts: u32) -> EndedJob {
        let job = Job {
            run: "run_1".to_owned(),
            seq: 1,
            number: "+15550001101".to_owned(),
            lead: "{}".to_owned(),
            state: JobState::Calling,
            outcome: None,
            attempts,
            tries: 4,
            unknown_tries: 0,
            due_at: 0,
            token: Some("t".to_owned()),
            call: Some(CallId::new()),
            error: None,
            settled_at: None,
        };
        EndedJob {
            job,
            run_state: RunState::Running,
            outcome,
            proof,
            ended_at: 1_000,
            exchange_over: false,
            answered_by: None,
            is_recorded: false,
            awaits_fetch: false,
        }
    }

    fn spec() -> Spec {
        let spec = serde_json::json!({
            "business": "acme", "account": "twilio", "operation": "calls", "request": {},
            "retry": {"busy": {"attempts": 3, "after_secs": 60}, "failed": {"attempts": 2, "after_secs": 5},
                "voicemail": {"attempts": 3, "after_secs": 7}},
        });
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn retries_are_capped_and_spaced() {
        let run = RunState::Running;
        let busy = settlement(&ended(Outcome::Busy, EndProof::Webhook, 0), &spec(), run, None, 1_500);
        assert_eq!((busy.state, busy.due_at, busy.attempts, busy.tries), (JobState::Queued, 61_000, 1, 5));
        assert_eq!(busy.new_call, None);
        let last = settlement(&ended(Outcome::Busy, EndProof::Webhook, 2), &spec(), run, None, 1_500);
        assert_eq!((last.state, last.outcome, last.attempts), (JobState::Done, Some(Outcome::Busy), 3));
        assert!(last.new_call.is_some(), "its last call stays known");
        let none = settlement(&ended(Outcome::NoAnswer, EndProof::Webhook, 0), &spec(), run, None, 1_500);
        assert_eq!((none.state, none.outcome), (JobState::Done, Some(Outcome::NoAnswer)));
        let canceled =
            settlement(&ended(Outcome::Busy, EndProof::Webhook, 0), &spec(), RunState::Canceled, None, 1_500);
        assert_eq!((canceled.state, canceled.outcome), (JobState::Done, Some(Outcome::Canceled)));
    }

    #[test]
    fn what_was_never_made_costs_no_attempt_and_what_is_lost_is_never_dialled_again() {
        for proof in [EndProof::Provider, EndProof::Deadline] {
            let never = settlement(&ended(Outcome::NotCreated, proof, 1), &spec(), RunState::Running, None, 1_500);
            assert_eq!((never.state, never.due_at, never.attempts, never.tries), (JobState::Queued, 1_500, 1, 5));
        }
        // However often the provider was full or away; only what may be this lead's own fault is counted.
        let unmade = |tries, unknown_tries| {
            let mut never = ended(Outcome::NotCreated, EndProof::Provider, 0);
            (never.job.tries, never.job.unknown_tries) = (tries, unknown_tries);
            let settlement = settlement(&never, &spec(), RunState::Running, None, 1_500);
            (settlement.state, settlement.due_at - 1_500)
        };
        assert_eq!(unmade(5_000, 0), (JobState::Queued, 0));
        assert_eq!([1, 2, 3, 9, 49].map(|n| unmade(60, n).1), [0, 2_000, 4_000, 256_000, 300_000]);
        assert_eq!(unmade(60, 50).0, JobState::Done);
        assert!(
            (0..50).map(|n| unmade(n, n).1).sum::<i64>() > 3 * 3_600_000,
            "a failure of three hours uses up nobody"
        );
        let mut made = ended(Outcome::Busy, EndProof::Webhook, 0);
        made.job.unknown_tries = 7;
        assert_eq!(settlement(&made, &spec(), RunState::Running, None, 1_500).unknown_tries, 0);
        let released =
            settlement(&ended(Outcome::NotCreated, EndProof::Operator, 0), &spec(), RunState::Running, None, 1_500);
        assert_eq!((released.state, released.outcome), (JobState::Done, Some(Outcome::Failed)));
        for proof in [EndProof::Deadline, EndProof::Operator] {
            let lost = settlement(&ended(Outcome::Failed, proof, 0), &spec(), RunState::Running, None, 1_500);
            assert_eq!((lost.state, lost.outcome), (JobState::Done, Some(Outcome::Failed)));
        }
        let failed = settlement(&ended(Outcome::Failed, EndProof::Webhook, 0), &spec(), RunState::Running, None, 1_500);
        assert_eq!((failed.state, failed.due_at), (JobState::Queued, 6_000));
    }

    #[test]
    fn what_was_never_answered_does_not_count_against_the_provider() {
        let not_created = ended(Outcome::NotCreated, EndProof::Deadline, 0);
        assert_eq!(is_failure(&not_created), None);
        assert_eq!(is_failure(&EndedJob { exchange_over: true, ..not_created }), Some(true));
        assert_eq!(is_failure(&ended(Outcome::Failed, EndProof::Webhook, 0)), Some(true));
        assert_eq!(is_failure(&ended(Outcome::Busy, EndProof::Webhook, 0)), Some(false));
    }

    #[test]
    fn a_voicemail_is_retried_once_it_is_known_and_waited_for_in_bounds() {
        let call = |attempts, answered_by, is_recorded| EndedJob {
            answered_by,
            is_recorded,
            ..ended(Outcome::Completed, EndProof::Webhook, attempts)
        };
        let settled = |one: &EndedJob, wait, now_ms| {
            let settlement = settlement(one, &spec(), RunState::Running, wait, now_ms);
            (settlement.state, settlement.outcome, settlement.waits_until, settlement.due_at)
        };
        let done = |outcome| (JobState::Done, Some(outcome), None, 0);
        let machine = Some(AnsweredBy::Machine);
        for wait in [None, Some(500)] {
            let again = (JobState::Queued, Some(Outcome::Voicemail), None, 8_000);
            assert_eq!(settled(&call(0, machine, false), wait, 1_100), again);
            assert_eq!(settled(&call(2, machine, true), wait, 1_100), done(Outcome::Voicemail), "it was the last call");
            for known in [Some(AnsweredBy::Human), Some(AnsweredBy::Unknown)] {
                assert_eq!(settled(&call(0, known, false), wait, 1_100), done(Outcome::Completed), "{known:?}");
            }
            assert_eq!(settled(&call(0, None, true), wait, 1_100), done(Outcome::Completed), "nothing more comes");
        }
        let waits = (JobState::Calling, None, Some(1_500), 0);
        assert_eq!(settled(&call(0, None, false), Some(500), 1_499), waits);
        assert_eq!(
            settled(&call(0, None, false), Some(500), 1_500),
            done(Outcome::Completed),
            "in doubt nobody is called"
        );
        // While its record stands in line to be fetched there may still be a word, in bounds.
        let in_line = EndedJob { awaits_fetch: true, ..call(0, None, false) };
        let waits = |until| (JobState::Calling, None, Some(until), 0);
        assert_eq!(settled(&in_line, Some(500), 1_499), waits(1_500));
        assert_eq!(settled(&in_line, Some(500), 1_500), waits(31_500));
        assert_eq!(settled(&in_line, Some(500), 601_499), waits(601_500));
        assert_eq!(settled(&in_line, Some(500), 601_500), done(Outcome::Completed));
        assert_eq!(settled(&call(0, None, false), None, 1_100), done(Outcome::Completed), "it will not be told");
        assert_eq!(settled(&call(2, None, false), Some(500), 1_100), done(Outcome::Completed), "nothing depends on it");
        let canceled = settlement(&call(0, None, false), &spec(), RunState::Canceled, Some(500), 1_100);
        assert_eq!((canceled.state, canceled.outcome), (JobState::Done, Some(Outcome::Completed)));
    }
}
