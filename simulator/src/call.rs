//! One physical telephone call: its Twilio leg, its ElevenLabs conversation, or both.

use crate::transcription::Transcription;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

/// The phase of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// A conversation of register-call that no telephone call has joined yet.
    Registered,
    /// Inbound, and nobody has decided yet what to do with it.
    Arriving,
    Queued,
    Dialing,
    Ringing,
    Live,
    Over,
}

/// The outcome of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Answered, then hung up by whomever.
    Completed,
    /// The line was busy, or the call was rejected as busy.
    Busy,
    /// Nobody answered, or the call was rejected.
    NoAnswer,
    /// It could not be placed or handled.
    Failed,
    /// Ended by request before an answer.
    Canceled,
}

impl Outcome {
    /// Twilio's word.
    pub fn twilio(self) -> &'static str {
        match self {
            Outcome::Completed => "completed",
            Outcome::Busy => "busy",
            Outcome::NoAnswer => "no-answer",
            Outcome::Failed => "failed",
            Outcome::Canceled => "canceled",
        }
    }

    pub(crate) fn sip_code(self) -> &'static str {
        match self {
            Outcome::Completed => "200",
            Outcome::Busy => "486",
            Outcome::NoAnswer | Outcome::Canceled => "487",
            Outcome::Failed => "404",
        }
    }
}

/// The behaviour of the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destiny {
    Answers,
    Busy,
    NoAnswer,
    Fails,
}

impl Destiny {
    /// Numbers that end in 0001, 0002 and 0003 are busy, silent and unreachable. Those that end in 0004 answer by a voicemail.
    pub(crate) fn of(number: &str) -> Destiny {
        match number.get(number.len().saturating_sub(4)..) {
            Some("0001") => Destiny::Busy,
            Some("0002") => Destiny::NoAnswer,
            Some("0003") => Destiny::Fails,
            _ => Destiny::Answers,
        }
    }
}

/// Whether a number is answered by a voicemail.
pub(crate) fn is_voicemail(number: &str) -> bool {
    number.ends_with("0004")
}

/// The URL of status callbacks, and the events that were asked for.
#[derive(Clone, Debug)]
pub(crate) struct Callback {
    pub url: String,
    pub get: bool,
    pub events: Vec<String>,
}

/// The call as Twilio knows it.
#[derive(Clone, Debug)]
pub(crate) struct Leg {
    pub sid: String,
    pub direction: &'static str,
    /// Conference SID and the name it was asked for by.
    pub conference: Option<(String, String)>,
    pub callback: Option<Callback>,
    /// Number of the next status callback.
    pub sequence: u32,
    pub queue_ms: u64,
    /// TwiML address and whether it is fetched by GET.
    pub url: Option<(String, bool)>,
    pub twiml: Option<String>,
    pub stream_sid: Option<String>,
    pub transcription: Option<Transcription>,
    /// Its record was deleted.
    pub deleted: bool,
    /// Twilio listens whether a machine answers.
    pub detects_machine: bool,
}

impl Leg {
    pub(crate) fn new(sid: String, direction: &'static str) -> Leg {
        Leg {
            sid,
            direction,
            conference: None,
            callback: None,
            sequence: 0,
            queue_ms: 0,
            url: None,
            twiml: None,
            stream_sid: None,
            transcription: None,
            deleted: false,
            detects_machine: false,
        }
    }
}

impl Call {
    /// Twilio's `AnsweredBy`, where it was asked to listen.
    pub(crate) fn answered_by(&self) -> Option<&'static str> {
        self.leg.as_ref().filter(|leg| leg.detects_machine)?;
        self.answered.map(|_| if is_voicemail(&self.to) { "machine_start" } else { "human" })
    }
}

/// The carrier of the sound of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    Twilio,
    Sip,
    Exotel,
    Whatsapp,
}

impl Carrier {
    /// `conversation_initiation_source`.
    pub(crate) fn source(self) -> &'static str {
        match self {
            Carrier::Twilio => "twilio",
            Carrier::Sip => "sip_trunk",
            Carrier::Exotel => "exotel",
            Carrier::Whatsapp => "whatsapp",
        }
    }

    /// `metadata.phone_call.type`.
    pub(crate) fn phone_type(self) -> Option<&'static str> {
        match self {
            Carrier::Twilio => Some("twilio"),
            Carrier::Sip => Some("sip_trunking"),
            Carrier::Exotel => Some("exotel"),
            Carrier::Whatsapp => None,
        }
    }
}

/// The call as ElevenLabs knows it.
#[derive(Clone, Debug)]
pub(crate) struct Talk {
    pub id: String,
    pub agent: String,
    pub phone_number: Option<String>,
    pub carrier: Carrier,
    /// `callSid` of Exotel, `sip_call_id` of a trunk.
    pub carrier_id: Option<String>,
    pub inbound: bool,
    /// `conversation_initiation_client_data`.
    pub data: Value,
    pub analysed: bool,
    pub deleted: bool,
    /// Batch and recipient.
    pub batch: Option<(String, String)>,
}

/// One physical call.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub n: u64,
    /// Timers set before the last unplanned turn carry an older number and do nothing.
    pub epoch: u64,
    pub from: String,
    pub to: String,
    pub phase: Phase,
    pub outcome: Option<Outcome>,
    pub cause: &'static str,
    pub created: Timestamp,
    pub answered: Option<Timestamp>,
    pub ended: Option<Timestamp>,
    pub leg: Option<Leg>,
    pub talk: Option<Talk>,
    /// Refused by Twilio's call concurrency: exists, but never holds a line.
    pub over_limit: bool,
    /// Ring time-out asked for by the creator.
    pub ring_limit_ms: Option<u64>,
    /// Lid on the talk asked for by the creator.
    pub talk_limit_ms: Option<u64>,
    /// Which counts it is in: ElevenLabs, Twilio, physical.
    pub counted: (bool, bool, bool),
}

impl Call {
    pub(crate) fn new(n: u64, from: &str, to: &str, phase: Phase) -> Call {
        Call {
            n,
            epoch: 0,
            from: from.to_owned(),
            to: to.to_owned(),
            phase,
            outcome: None,
            cause: "",
            created: Timestamp::now(),
            answered: None,
            ended: None,
            leg: None,
            talk: None,
            over_limit: false,
            ring_limit_ms: None,
            talk_limit_ms: None,
            counted: (false, false, false),
        }
    }

    /// Holds capacity: from the accepted create, or the admitted arrival, until the line is down.
    pub(crate) fn live(&self) -> bool {
        !self.over_limit && !matches!(self.phase, Phase::Arriving | Phase::Over)
    }

    /// Seconds talked, begun ones counted whole.
    pub(crate) fn talked_secs(&self) -> i64 {
        let Some(answered) = self.answered else {
            return 0;
        };
        let end = self.ended.unwrap_or_else(Timestamp::now);
        let ms = end.as_millisecond().saturating_sub(answered.as_millisecond());
        ms.max(1).saturating_add(999) / 1000
    }

    /// `status` of Twilio's REST resource.
    pub(crate) fn twilio_status(&self) -> &'static str {
        match self.phase {
            Phase::Registered | Phase::Queued | Phase::Dialing => "queued",
            Phase::Arriving | Phase::Ringing => "ringing",
            Phase::Live => "in-progress",
            Phase::Over => self.outcome.unwrap_or(Outcome::Failed).twilio(),
        }
    }

    /// `status` of ElevenLabs' conversation.
    pub(crate) fn talk_status(&self) -> &'static str {
        match self.phase {
            Phase::Live => "in-progress",
            Phase::Over if self.outcome != Some(Outcome::Completed) => "failed",
            Phase::Over if self.talk.as_ref().is_some_and(|talk| !talk.analysed) => "processing",
            Phase::Over => "done",
            _ => "initiated",
        }
    }

    /// The call as tests and people see it.
    pub(crate) fn view(&self) -> CallView {
        let leg = self.leg.as_ref();
        let talk = self.talk.as_ref();
        CallView {
            n: self.n,
            call_sid: leg.map(|leg| leg.sid.clone()),
            carrier_id: talk.and_then(|talk| talk.carrier_id.clone()),
            conversation_id: talk.map(|talk| talk.id.clone()),
            agent_id: talk.map(|talk| talk.agent.clone()),
            inbound: leg.map_or_else(|| talk.is_some_and(|talk| talk.inbound), |leg| leg.direction == "inbound"),
            from: self.from.clone(),
            to: self.to.clone(),
            twilio_status: leg.map(|_| self.twilio_status()),
            conversation_status: talk.map(|_| self.talk_status()),
            live: self.live(),
            arriving: self.phase == Phase::Arriving,
            answered: self.answered.is_some(),
            billed: self.answered.is_some(),
            outcome: self.outcome,
            ended_by: self.ended.map(|_| self.cause),
            deleted: talk.is_some_and(|talk| talk.deleted) || leg.is_some_and(|leg| leg.deleted),
            created_ms: self.created.as_millisecond(),
            answered_ms: self.answered.map(|at| at.as_millisecond()),
            ended_ms: self.ended.map(|at| at.as_millisecond()),
        }
    }
}

/// One call as `/_sim/state` and [`crate::Control::calls`] show it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CallView {
    /// Number of the call, from 1.
    pub n: u64,
    /// Twilio's SID, if Twilio carries the call.
    pub call_sid: Option<String>,
    /// Exotel's `callSid` or a SIP trunk's `sip_call_id`.
    pub carrier_id: Option<String>,
    /// ElevenLabs' conversation, if an agent talks.
    pub conversation_id: Option<String>,
    /// The agent.
    pub agent_id: Option<String>,
    /// Somebody called in.
    pub inbound: bool,
    /// Caller.
    pub from: String,
    /// Destination.
    pub to: String,
    /// `status` of Twilio's resource.
    pub twilio_status: Option<&'static str>,
    /// `status` of ElevenLabs' conversation.
    pub conversation_status: Option<&'static str>,
    /// Holds capacity now.
    pub live: bool,
    /// Inbound, ringing, not decided.
    pub arriving: bool,
    /// Was answered.
    pub answered: bool,
    /// Costs money: answered calls do.
    pub billed: bool,
    /// Its outcome, once it has ended.
    pub outcome: Option<Outcome>,
    /// The party that ended it: `time`, `destination`, `twilio`, `delete`, `monitor`, `control`, `twiml`, `reject`, `voice_url`, `limit`, `expired`.
    pub ended_by: Option<&'static str>,
    /// Its record was deleted at a provider.
    pub deleted: bool,
    /// Unix milliseconds of its beginning.
    pub created_ms: i64,
    /// Unix milliseconds of its answer.
    pub answered_ms: Option<i64>,
    /// Unix milliseconds of its end.
    pub ended_ms: Option<i64>,
}
