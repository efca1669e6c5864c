//! Both providers as one state machine: calls, their timers, and what is counted.
//!
//! Nothing here waits or talks. Every entry takes the present as an argument, changes the
//! state, and leaves what has to be sent in the outbox; whoever holds the lock sends it after
//! letting go.

use crate::batch::Batch;
use crate::call::{Call, Carrier, Destiny, Leg, Outcome, Phase, Talk};
use crate::counts::{Counts, shift};
use crate::fault::Faults;
use crate::inbound::Question;
use crate::rng::Rng;
use crate::settings::SimSettings;
use crate::webhooks::Hook;
use jiff::Timestamp;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;
use tokio::time::Instant;

/// Ended calls beyond this are forgotten, oldest first.
const CALLS_MAX: usize = 100_000;

/// The step that a timer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Dial,
    Ring,
    Answer,
    HangUp,
    Analysed,
    Expire,
    Utter(usize),
}

/// The request that has to be sent once the lock is free.
#[derive(Debug)]
pub(crate) enum Effect {
    Hook(Hook),
    Ask(Question),
}

/// The state of both providers.
#[derive(Debug)]
pub(crate) struct World {
    pub settings: SimSettings,
    pub rng: Rng,
    /// Ids have a source of their own: two runs with one seed must not share ids.
    pub ids: Rng,
    pub calls: BTreeMap<u64, Call>,
    pub counts: Counts,
    pub faults: Faults,
    pub batches: BTreeMap<String, Batch>,
    pub outbox: Vec<Effect>,
    /// Twilio API requests being answered now.
    pub api_now: u32,
    by_sid: HashMap<String, u64>,
    by_talk: HashMap<String, u64>,
    timers: BTreeMap<(Instant, u64), (u64, u64, Step)>,
    last_call: u64,
    last_timer: u64,
    next_dial: Option<Instant>,
}

impl World {
    pub(crate) fn new(settings: SimSettings) -> World {
        let boot = Timestamp::now().as_nanosecond() as u64;
        World {
            rng: Rng::new(settings.seed),
            ids: Rng::new(settings.seed ^ boot.rotate_left(17)),
            settings,
            calls: BTreeMap::new(),
            counts: Counts::default(),
            faults: Faults::default(),
            batches: BTreeMap::new(),
            outbox: Vec::new(),
            api_now: 0,
            by_sid: HashMap::new(),
            by_talk: HashMap::new(),
            timers: BTreeMap::new(),
            last_call: 0,
            last_timer: 0,
            next_dial: None,
        }
    }

    /// Forgets every call, count and fault, silently; settings stay.
    pub(crate) fn reset(&mut self) {
        let last_call = self.last_call;
        let api_now = self.api_now;
        *self = World::new(self.settings.clone());
        self.last_call = last_call;
        self.api_now = api_now;
    }

    // === looking up ===

    pub(crate) fn by_sid(&self, sid: &str) -> Option<u64> {
        self.by_sid.get(sid).copied()
    }

    pub(crate) fn by_talk(&self, id: &str) -> Option<u64> {
        self.by_talk.get(id).copied()
    }

    // === new calls ===

    /// Takes a new call in. It counts from here on if its phase says so.
    pub(crate) fn admit(&mut self, from: &str, to: &str, phase: Phase, leg: Option<Leg>, talk: Option<Talk>) -> u64 {
        self.admit_as(false, from, to, phase, leg, talk)
    }

    /// Takes a new call in, perhaps one that Twilio's call concurrency will refuse.
    pub(crate) fn admit_as(
        &mut self,
        over_limit: bool,
        from: &str,
        to: &str,
        phase: Phase,
        leg: Option<Leg>,
        talk: Option<Talk>,
    ) -> u64 {
        if self.calls.len() >= CALLS_MAX {
            let oldest = self.calls.iter().find(|(_, call)| call.phase == Phase::Over).map(|(n, _)| *n);
            if let Some(gone) = oldest.and_then(|n| self.calls.remove(&n)) {
                if let Some(leg) = gone.leg {
                    self.by_sid.remove(&leg.sid);
                }
                if let Some(talk) = gone.talk {
                    self.by_talk.remove(&talk.id);
                }
            }
        }
        self.last_call += 1;
        let n = self.last_call;
        let mut call = Call::new(n, from, to, phase);
        if let Some(leg) = &leg {
            self.by_sid.insert(leg.sid.clone(), n);
        }
        if let Some(talk) = &talk {
            self.by_talk.insert(talk.id.clone(), n);
        }
        call.over_limit = over_limit;
        call.leg = leg;
        call.talk = talk;
        self.calls.insert(n, call);
        self.recount(n);
        n
    }

    /// A conversation that `admit` can take.
    pub(crate) fn new_talk(&mut self, agent: &str, carrier: Carrier, inbound: bool, data: Value) -> Talk {
        Talk {
            id: self.ids.id("conv"),
            agent: agent.to_owned(),
            phone_number: None,
            carrier,
            carrier_id: None,
            inbound,
            data,
            analysed: false,
            deleted: false,
            batch: None,
        }
    }

    /// Whether one conversation more exceeds ElevenLabs' plan.
    pub(crate) fn el_full(&self) -> bool {
        self.settings.el_concurrent.is_some_and(|limit| self.counts.el_live_now >= limit)
    }

    /// Whether one call more exceeds Twilio's call concurrency.
    pub(crate) fn tw_full(&self) -> bool {
        self.settings.tw_concurrent.is_some_and(|limit| self.counts.tw_live_now >= limit)
    }

    /// Takes the next turn at Twilio's calls per second; returns the time until then.
    pub(crate) fn dial_turn(&mut self, now: Instant) -> Duration {
        let Some(cps) = self.settings.tw_cps.filter(|cps| *cps > 0.001) else {
            return Duration::ZERO;
        };
        let turn = self.next_dial.filter(|at| *at > now).unwrap_or(now);
        self.next_dial = Some(turn + Duration::from_secs_f64(1.0 / cps));
        turn - now
    }

    // === timers ===

    pub(crate) fn plan(&mut self, n: u64, at: Instant, step: Step) {
        let Some(call) = self.calls.get(&n) else {
            return;
        };
        self.last_timer += 1;
        self.timers.insert((at, self.last_timer), (n, call.epoch, step));
    }

    /// Plans to hang up after the talk, drawn or asked for.
    pub(crate) fn plan_talk(&mut self, n: u64, now: Instant) {
        let drawn = self.rng.ms(self.settings.talk_ms);
        let limit = self.calls.get(&n).and_then(|call| call.talk_limit_ms).unwrap_or(u64::MAX);
        self.plan(n, now + Duration::from_millis(drawn.min(limit)), Step::HangUp);
    }

    /// Does what is due and says when something is due next.
    pub(crate) fn advance(&mut self, now: Instant) -> Option<Instant> {
        loop {
            let (&key, &(n, epoch, step)) = self.timers.first_key_value()?;
            if key.0 > now {
                return Some(key.0);
            }
            self.timers.remove(&key);
            if self.calls.get(&n).is_some_and(|call| call.epoch == epoch) {
                self.fire(n, step, now);
            }
        }
    }

    /// The counts say what the calls say.
    fn consistent(&self) -> bool {
        let count =
            |pick: fn(&Call) -> bool| self.calls.values().filter(|call| call.live() && pick(call)).count() as u32;
        self.counts.el_live_now == count(|call| call.talk.is_some())
            && self.counts.tw_live_now == count(|call| call.leg.is_some())
            && self.counts.both_live_now == count(|call| call.phase != Phase::Registered)
    }

    /// Nothing is live, nothing is waited for.
    pub(crate) fn idle(&self) -> bool {
        debug_assert!(self.consistent(), "the counts have drifted from the calls");
        let waiting = self.timers.values().any(|(n, epoch, _)| self.calls.get(n).is_some_and(|c| c.epoch == *epoch));
        !waiting && self.outbox.is_empty() && self.calls.values().all(|call| call.phase == Phase::Over)
    }

    fn fire(&mut self, n: u64, step: Step, now: Instant) {
        match step {
            Step::Dial => self.dial(n, now),
            Step::Ring => self.ring(n, now),
            Step::Answer => self.answer(n, now),
            Step::HangUp => {
                let outcome = self.planned_outcome(n);
                let cause = if outcome == Outcome::Completed { "time" } else { "destination" };
                self.finish(n, outcome, cause, now);
            }
            Step::Utter(turn) => self.utter(n, turn, now),
            Step::Expire => {
                self.finish(n, Outcome::Failed, "expired", now);
            }
            Step::Analysed => {
                if let Some(talk) = self.calls.get_mut(&n).and_then(|call| call.talk.as_mut()) {
                    talk.analysed = true;
                }
                self.post_call(n);
            }
        }
    }

    fn planned_outcome(&self, n: u64) -> Outcome {
        let Some(call) = self.calls.get(&n) else {
            return Outcome::Failed;
        };
        match Destiny::of(&call.to) {
            _ if call.answered.is_some() => Outcome::Completed,
            Destiny::Busy => Outcome::Busy,
            Destiny::Fails => Outcome::Failed,
            Destiny::NoAnswer | Destiny::Answers => Outcome::NoAnswer,
        }
    }

    // === the life of a call ===

    fn dial(&mut self, n: u64, now: Instant) {
        let Some(call) = self.calls.get_mut(&n) else {
            return;
        };
        if call.over_limit {
            self.finish(n, Outcome::Failed, "limit", now);
            return;
        }
        call.phase = Phase::Dialing;
        let next = match Destiny::of(&call.to) {
            Destiny::Fails => Step::HangUp,
            _ => Step::Ring,
        };
        self.counts.dials += 1;
        self.status_event(n, "initiated");
        let wait = self.rng.span(self.settings.dial_ms);
        self.plan(n, now + wait, next);
    }

    fn ring(&mut self, n: u64, now: Instant) {
        let drawn = self.rng.ms(self.settings.ring_ms);
        let Some(call) = self.calls.get_mut(&n) else {
            return;
        };
        call.phase = Phase::Ringing;
        let limit = call.ring_limit_ms.unwrap_or(u64::MAX);
        let (wait, next) = match Destiny::of(&call.to) {
            Destiny::Answers if drawn <= limit => (drawn, Step::Answer),
            _ => (drawn.min(limit), Step::HangUp),
        };
        self.status_event(n, "ringing");
        self.plan(n, now + Duration::from_millis(wait), next);
    }

    /// The destination answers, or an inbound call is taken.
    pub(crate) fn answer(&mut self, n: u64, now: Instant) {
        let Some(call) = self.calls.get_mut(&n) else {
            return;
        };
        call.epoch += 1;
        call.phase = Phase::Live;
        call.answered = Some(Timestamp::now());
        let (url, twiml) = call.leg.as_mut().map_or((None, None), |leg| (leg.url.take(), leg.twiml.take()));
        self.recount(n);
        self.status_event(n, "answered");
        self.seed_event(n, "conversation.started");
        self.plan_talk(n, now);
        if let Some((url, get)) = url {
            self.ask_voice(n, &url, get, false);
        } else if let Some(twiml) = twiml {
            self.follow_twiml(n, &twiml, now);
        }
    }

    /// Puts the line down. False if it was down already.
    pub(crate) fn finish(&mut self, n: u64, outcome: Outcome, cause: &'static str, now: Instant) -> bool {
        let Some(call) = self.calls.get_mut(&n) else {
            return false;
        };
        if call.phase == Phase::Over {
            return false;
        }
        call.epoch += 1;
        call.phase = Phase::Over;
        call.outcome = Some(outcome);
        call.cause = cause;
        call.ended = Some(Timestamp::now());
        let answered = call.answered.is_some();
        let outbound_talk = call.talk.as_ref().is_some_and(|talk| !talk.inbound);
        let has_talk = call.talk.is_some();
        self.recount(n);
        self.transcription_stopped(n);
        self.status_event(n, "completed");
        if has_talk && answered {
            self.seed_event(n, "conversation.ended");
            let wait = self.rng.span(self.settings.analysis_ms);
            self.plan(n, now + wait, Step::Analysed);
        } else if outbound_talk && cause != "expired" {
            self.initiation_failure(n);
        }
        self.pump_batches(now);
        true
    }

    /// Ends a call by request; before an answer that is a cancellation.
    pub(crate) fn hang_up(&mut self, n: u64, cause: &'static str, now: Instant) -> bool {
        let outcome = match self.calls.get(&n) {
            Some(call) if call.answered.is_some() => Outcome::Completed,
            _ => Outcome::Canceled,
        };
        self.finish(n, outcome, cause, now)
    }

    /// Gives a waiting conversation of register-call to the telephone call that brought its id.
    pub(crate) fn join(&mut self, n: u64, conversation: &str, now: Instant) -> bool {
        let Some(waiting) = self.by_talk(conversation) else {
            return false;
        };
        let joinable = self.calls.get(&n).is_some_and(|call| call.talk.is_none() && call.phase != Phase::Over);
        if !joinable || self.calls.get(&waiting).is_none_or(|call| call.phase != Phase::Registered) {
            return false;
        }
        let Some(talk) = self.calls.get_mut(&waiting).and_then(|call| call.talk.take()) else {
            return false;
        };
        // Out of the counts before it is in again: the conversation is one throughout.
        self.recount(waiting);
        self.calls.remove(&waiting);
        self.by_talk.insert(talk.id.clone(), n);
        let stream = self.ids.sid("MZ");
        let Some(call) = self.calls.get_mut(&n) else {
            return false;
        };
        call.talk = Some(talk);
        if let Some(leg) = &mut call.leg {
            leg.stream_sid = Some(stream);
        }
        let answered = call.answered.is_some();
        self.recount(n);
        if answered {
            self.seed_event(n, "conversation.started");
        } else {
            self.answer(n, now);
        }
        true
    }

    /// Brings the counts into line with one call.
    pub(crate) fn recount(&mut self, n: u64) {
        let Some(call) = self.calls.get_mut(&n) else {
            return;
        };
        let live = call.live();
        let is = (live && call.talk.is_some(), live && call.leg.is_some(), live && call.phase != Phase::Registered);
        let was = std::mem::replace(&mut call.counted, is);
        let counts = &mut self.counts;
        shift(&mut counts.el_live_now, &mut counts.el_live_max, was.0, is.0);
        shift(&mut counts.tw_live_now, &mut counts.tw_live_max, was.1, is.1);
        shift(&mut counts.both_live_now, &mut counts.both_live_max, was.2, is.2);
    }
}
