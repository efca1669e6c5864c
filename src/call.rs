//! The state machine of a call: its phases, events, and proofs of its end. Pure.
//!
//! A call only moves forward. [`next`] is total: every pair of phase and event has a result, so events may arrive late, twice or
//! out of order, and an ended call stays ended.

use serde::{Deserialize, Serialize};

use crate::words::words;

words!(
    /// The side that placed the call.
    Direction {
        /// The other side called.
        Inbound = "inbound",
        /// Our side called.
        Outbound = "outbound",
    }
);

words!(
    /// The speaker of an utterance.
    Speaker {
        /// The product's side.
        Agent = "agent",
        /// The person's side, whichever side called.
        User = "user",
    }
);

words!(
    /// The way in which ringfence learnt of the call.
    Origin {
        /// A create request that was admitted here.
        Create = "order",
        /// A provider's webhook announced it.
        Webhook = "webhook",
        /// Found at the provider: placed outside ringfence.
        Foreign = "foreign",
        /// Known only from an app's transcript. It counts once its provider, or a webhook of it, confirms it.
        Unconfirmed = "unconfirmed",
    }
);

words!(
    /// Source of the last news of a call: how ringfence learnt of it ([`Origin`]), or of a change.
    Source {
        /// The create request.
        Create = "order",
        /// The provider's response to a request of ours or of the app's.
        Answer = "answer",
        /// A webhook.
        Webhook = "webhook",
        /// A look-up or list of the provider.
        Poll = "poll",
        /// A transcript, which proves nothing.
        Transcript = "transcript",
        /// An operator.
        Operator = "operator",
        /// The provider's list, for an external call.
        Foreign = "foreign",
        /// A transcript from an app.
        Unconfirmed = "unconfirmed",
    }
);

words!(
    /// The phase of a call. Each but the last has a deadline, after which the call is looked up.
    Phase {
        /// Holds a slot; the provider may not have it yet.
        Reserved = "reserved",
        /// Queued at the provider.
        Queued = "queued",
        /// The provider is dialling.
        Dialing = "dialing",
        /// The other side rings.
        Ringing = "ringing",
        /// Answered.
        Live = "live",
        /// Ended. Final.
        Ended = "ended",
    }
);

words!(
    /// The outcome of an ended call.
    Outcome {
        /// Answered, and ended.
        Completed = "completed",
        /// The other side was busy, or we rejected an inbound call as busy.
        Busy = "busy",
        /// Not answered.
        NoAnswer = "no_answer",
        /// Cancelled before it was answered.
        Canceled = "canceled",
        /// The provider could not place or carry it.
        Failed = "failed",
        /// Ended or rejected by ringfence because a limit was full.
        Capacity = "capacity",
        /// The provider rejected the create: there was no call.
        NotCreated = "not_created",
        /// A voicemail, a fax or another machine answered. Of a job of a bulk run alone: its call is completed.
        Voicemail = "voicemail",
    }
);

words!(
    /// The party that answered a call, as far as its provider can tell.
    AnsweredBy {
        /// A person.
        Human = "human",
        /// A voicemail, a fax or another machine.
        Machine = "machine",
        /// The provider listened, and cannot tell.
        Unknown = "unknown",
    }
);

words!(
    /// The reason why a call counts as over.
    EndProof {
        /// A verified terminal event.
        Webhook = "webhook",
        /// The provider's own record or response.
        Provider = "provider",
        /// Look-ups after the deadline found nothing.
        Deadline = "deadline",
        /// An operator's decision.
        Operator = "operator",
    }
);

/// An event of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The call reached this phase, or a later one. Never [`Phase::Ended`].
    Reached(Phase),
    /// The call has ended.
    Ended(Outcome, EndProof),
}

/// The effect of an event on a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The call moves to this later phase.
    Move(Phase),
    /// The call ends.
    End(Outcome, EndProof),
    /// The call stays in its phase: its deadline is renewed.
    Renew,
    /// None: the event is late, or the call has ended.
    Ignore,
}

/// The whole state machine.
pub fn next(phase: Phase, event: Event) -> Step {
    match (phase, event) {
        (Phase::Ended, _) => Step::Ignore,
        (_, Event::Ended(outcome, proof)) => Step::End(outcome, proof),
        (_, Event::Reached(Phase::Ended)) => Step::Ignore,
        (at, Event::Reached(to)) if to > at => Step::Move(to),
        (at, Event::Reached(to)) if to == at => Step::Renew,
        (_, Event::Reached(_)) => Step::Ignore,
    }
}

/// The stronger of two events of an unknown call.
pub fn stronger(a: Event, b: Event) -> Event {
    match (a, b) {
        (Event::Ended(..), _) => a,
        (_, Event::Ended(..)) => b,
        (Event::Reached(x), Event::Reached(y)) => Event::Reached(x.max(y)),
    }
}

/// The session status in the answers of `/sessions`.
pub fn session_status(phase: Phase, outcome: Option<Outcome>) -> &'static str {
    match (phase, outcome) {
        (Phase::Ended, Some(Outcome::Completed | Outcome::Voicemail)) => "ended",
        (Phase::Ended, Some(Outcome::Capacity)) => "terminated_capacity",
        (Phase::Ended, _) => "failed",
        _ => "active",
    }
}

/// The call status in live transcripts.
pub fn stream_status(phase: Phase, outcome: Option<Outcome>) -> &'static str {
    match (phase, outcome) {
        (Phase::Ended, Some(Outcome::Completed | Outcome::Voicemail)) => "completed",
        (Phase::Ended, _) => "failed",
        _ => "in_progress",
    }
}

/// The time for which a call may stay in a phase without news before it is looked up, in seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deadlines {
    /// From admission to the provider's response.
    pub reserved_secs: u32,
    /// ElevenLabs queues calls for up to 1,800 s.
    pub queued_secs: u32,
    /// From the provider's response to the first ring.
    pub dialing_secs: u32,
    /// Twilio's ringing time-out is at most 600 s, by default 60 s.
    pub ringing_secs: u32,
    /// ElevenLabs ends a conversation after 600 s by default.
    pub live_secs: u32,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { reserved_secs: 90, queued_secs: 1800, dialing_secs: 120, ringing_secs: 120, live_secs: 600 }
    }
}

impl Deadlines {
    /// The deadline of a phase in milliseconds; `None` for [`Phase::Ended`].
    pub fn of_ms(&self, phase: Phase) -> Option<i64> {
        let secs = match phase {
            Phase::Reserved => self.reserved_secs,
            Phase::Queued => self.queued_secs,
            Phase::Dialing => self.dialing_secs,
            Phase::Ringing => self.ringing_secs,
            Phase::Live => self.live_secs,
            Phase::Ended => return None,
        };
        Some(i64::from(secs) * 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events() -> Vec<Event> {
        let mut all: Vec<Event> = Phase::ALL.iter().map(|p| Event::Reached(*p)).collect();
        for outcome in Outcome::ALL {
            all.extend(EndProof::ALL.iter().map(|proof| Event::Ended(*outcome, *proof)));
        }
        all
    }

    /// Every pair of phase and event, checked against the sentences that define the machine.
    #[test]
    fn every_pair_has_an_answer() {
        for &phase in Phase::ALL {
            for event in events() {
                let step = next(phase, event);
                match (phase, event) {
                    (Phase::Ended, _) => assert_eq!(step, Step::Ignore, "an ended call stays ended: {event:?}"),
                    (_, Event::Ended(o, p)) => assert_eq!(step, Step::End(o, p), "an end ends whatever is open"),
                    (_, Event::Reached(Phase::Ended)) => assert_eq!(step, Step::Ignore, "no end without an outcome"),
                    (at, Event::Reached(to)) => match step {
                        Step::Move(p) => assert!(p == to && to > at),
                        Step::Renew => assert_eq!(to, at),
                        Step::Ignore => assert!(to < at, "only late news is ignored"),
                        Step::End(..) => panic!("reaching a phase never ends a call"),
                    },
                }
            }
        }
    }

    /// The final state is independent of the order and repetition of events.
    #[test]
    fn order_and_repetition_do_not_matter() {
        let end = Event::Ended(Outcome::Completed, EndProof::Webhook);
        let story = [Event::Reached(Phase::Dialing), Event::Reached(Phase::Ringing), Event::Reached(Phase::Live), end];
        let mut orders = vec![vec![]];
        for event in story {
            orders = orders
                .into_iter()
                .flat_map(|o: Vec<Event>| {
                    (0..=o.len()).map(move |i| {
                        let mut longer = o.clone();
                        longer.insert(i, event);
                        longer
                    })
                })
                .collect();
        }
        assert_eq!(orders.len(), 24);
        for order in orders {
            let mut phase = Phase::Reserved;
            let mut ends = 0;
            for event in order.iter().chain(order.iter()) {
                match next(phase, *event) {
                    Step::Move(to) => phase = to,
                    Step::End(..) => {
                        phase = Phase::Ended;
                        ends += 1;
                    }
                    Step::Renew | Step::Ignore => {}
                }
            }
            assert_eq!((phase, ends), (Phase::Ended, 1), "{order:?}");
        }
    }

    #[test]
    fn the_stronger_of_two_early_events_is_kept() {
        let end = Event::Ended(Outcome::Busy, EndProof::Webhook);
        assert_eq!(stronger(Event::Reached(Phase::Live), end), end);
        assert_eq!(stronger(end, Event::Reached(Phase::Live)), end);
        assert_eq!(
            stronger(Event::Reached(Phase::Ringing), Event::Reached(Phase::Dialing)),
            Event::Reached(Phase::Ringing)
        );
    }

    #[test]
    fn words_are_those_of_the_seeds() {
        assert_eq!(session_status(Phase::Live, None), "active");
        assert_eq!(session_status(Phase::Ended, Some(Outcome::Completed)), "ended");
        assert_eq!(session_status(Phase::Ended, Some(Outcome::Capacity)), "terminated_capacity");
        assert_eq!(session_status(Phase::Ended, Some(Outcome::Busy)), "failed");
        for phase in Phase::ALL {
            assert_eq!(phase.as_str().parse(), Ok(*phase));
        }
    }
}
