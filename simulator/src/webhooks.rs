//! The events that the providers send, and whether they arrive.

use crate::call::Outcome;
use crate::elevenlabs::conversation;
use crate::sign::without_fragment;
use crate::twilio::leg_form;
use crate::world::{Effect, World};
use base64::Engine as _;
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::time::Duration;

/// Most that Twilio waits for a webhook's answer.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);

/// The conditions under which an attempt is repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Retry {
    /// Waits before the repetitions, in milliseconds.
    pub waits: Vec<u64>,
    pub connect: bool,
    pub read: bool,
    /// 408 and 429.
    pub busy: bool,
    pub client_errors: bool,
    pub server_errors: bool,
}

/// The result of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    Answered(u16),
    NotConnected,
    NotAnswered,
}

impl Retry {
    /// Twilio's connection overrides in a URL's fragment: one repetition after a failed
    /// connection unless they say otherwise.
    pub(crate) fn of_fragment(url: &str) -> Retry {
        let fragment = url.split_once('#').map_or("", |(_, after)| after);
        let (mut count, mut when) = (1u32, "ct".to_owned());
        for (name, value) in form_urlencoded::parse(fragment.as_bytes()) {
            match name.as_ref() {
                "rc" => count = value.parse::<u32>().unwrap_or(count).min(5),
                "rp" => when = value.into_owned(),
                _ => {}
            }
        }
        let has = |word: &str| when.split(',').any(|part| part.trim() == word || part.trim() == "all");
        Retry {
            waits: (0..count).map(|turn| 100u64 << turn).collect(),
            connect: has("ct"),
            read: has("rt"),
            busy: false,
            client_errors: has("4xx"),
            server_errors: has("5xx"),
        }
    }

    /// ElevenLabs' own repetitions, of post-call webhooks only.
    fn of_elevenlabs(waits: &[u64]) -> Retry {
        Retry {
            waits: waits.to_vec(),
            connect: true,
            read: true,
            busy: true,
            client_errors: false,
            server_errors: true,
        }
    }

    pub(crate) fn applies(&self, attempt: Attempt) -> bool {
        match attempt {
            Attempt::NotConnected => self.connect,
            Attempt::NotAnswered => self.read,
            Attempt::Answered(408 | 429) if self.busy => true,
            Attempt::Answered(status) if status >= 500 => self.server_errors,
            Attempt::Answered(status) if status >= 400 => self.client_errors,
            Attempt::Answered(_) => false,
        }
    }
}

/// An event webhook to deliver.
#[derive(Clone, Debug)]
pub(crate) struct Hook {
    /// The call, whose events keep their order.
    pub n: u64,
    pub get: bool,
    pub url: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: Bytes,
    /// Key of the ElevenLabs signature, which is made anew for each attempt.
    pub secret: Option<String>,
    pub retry: Retry,
    pub timeout: Duration,
    /// Held back this long, out of the call's order.
    pub held_ms: Option<u64>,
}

impl World {
    /// Hands an event over, or loses it, or doubles it, or holds it back.
    pub(crate) fn emit(&mut self, mut hook: Hook) {
        if self.rng.hits(self.settings.webhook_loss) {
            self.counts.webhooks_lost += 1;
            return;
        }
        if self.rng.hits(self.settings.webhook_reorder) {
            hook.held_ms = Some(50 + self.rng.next() % 450);
        }
        if self.rng.hits(self.settings.webhook_double) {
            self.outbox.push(Effect::Hook(hook.clone()));
        }
        self.outbox.push(Effect::Hook(hook));
    }

    /// A Twilio status callback, if it was asked for.
    pub(crate) fn status_event(&mut self, n: u64, event: &str) {
        let token = self.ids.uuid();
        let Some(call) = self.calls.get_mut(&n) else {
            return;
        };
        let outcome = call.outcome.unwrap_or(Outcome::Failed);
        let secs = call.talked_secs();
        let Some(leg) = &mut call.leg else { return };
        let Some(callback) = leg.callback.clone() else {
            return;
        };
        if !callback.events.iter().any(|wanted| wanted == event) {
            return;
        }
        let sequence = leg.sequence;
        leg.sequence += 1;
        let status = match event {
            "answered" => "in-progress",
            "completed" => outcome.twilio(),
            other => other,
        };
        let mut form = leg_form(call, &self.settings.account_sid, status);
        if event == "completed" {
            form.push(("CallDuration".to_owned(), secs.to_string()));
            form.push(("Duration".to_owned(), (secs.saturating_add(59) / 60).to_string()));
            form.push(("SipResponseCode".to_owned(), outcome.sip_code().to_owned()));
        }
        form.push(("Timestamp".to_owned(), crate::twilio::rfc2822(Timestamp::now())));
        form.push(("CallbackSource".to_owned(), "call-progress-events".to_owned()));
        form.push(("SequenceNumber".to_owned(), sequence.to_string()));
        let mut hook = signed_form(n, &self.settings.auth_token, &callback.url, callback.get, &form);
        hook.headers.push(("i-twilio-idempotency-token", token));
        self.emit(hook);
    }

    /// An event of the systems before ringfence.
    pub(crate) fn seed_event(&mut self, n: u64, kind: &str) {
        if !self.settings.el_seed_events {
            return;
        }
        let Some((call, talk)) = self.calls.get(&n).and_then(|call| call.talk.as_ref().map(|talk| (call, talk))) else {
            return;
        };
        let direction = if talk.inbound { "inbound" } else { "outbound" };
        let (agent_number, external) = if talk.inbound { (&call.to, &call.from) } else { (&call.from, &call.to) };
        let body = json!({
            "type": kind,
            "event_timestamp": Timestamp::now().as_second(),
            "conversation_id": talk.id,
            "agent_id": talk.agent,
            "metadata": {"phone_call": {
                "direction": direction,
                "call_type": direction,
                "agent_number": agent_number,
                "external_number": external,
                "call_sid": call.leg.as_ref().map(|leg| leg.sid.clone()),
            }},
        });
        self.elevenlabs_event(n, &body, Vec::new());
    }

    /// `post_call_transcription`, and `post_call_audio` if asked for. A deleted record has nothing to tell.
    pub(crate) fn post_call(&mut self, n: u64) {
        let Some(call) = self.calls.get(&n) else {
            return;
        };
        let Some(talk) = call.talk.as_ref().filter(|talk| !talk.deleted) else {
            return;
        };
        let event_timestamp = Timestamp::now().as_second();
        let audio = self.settings.el_audio.then(|| {
            let sound = base64::engine::general_purpose::STANDARD.encode([0u8; 1024]);
            json!({"type": "post_call_audio", "event_timestamp": event_timestamp,
                "data": {"agent_id": talk.agent, "conversation_id": talk.id, "full_audio": sound}})
        });
        let body = json!({
            "type": "post_call_transcription",
            "event_timestamp": event_timestamp,
            "data": conversation(call),
        });
        let waits = self.settings.el_retry_ms.clone();
        self.elevenlabs_event(n, &body, waits);
        if let Some(audio) = audio {
            self.elevenlabs_event(n, &audio, Vec::new());
        }
    }

    /// `call_initiation_failure`.
    pub(crate) fn initiation_failure(&mut self, n: u64) {
        let Some(call) = self.calls.get(&n) else {
            return;
        };
        let Some(talk) = call.talk.as_ref() else {
            return;
        };
        let outcome = call.outcome.unwrap_or(Outcome::Failed);
        let reason = match outcome {
            Outcome::Busy => "busy",
            Outcome::NoAnswer => "no-answer",
            _ => "unknown",
        };
        let metadata = if call.leg.is_some() {
            let mut body: serde_json::Map<String, Value> = leg_form(call, &self.settings.account_sid, outcome.twilio())
                .into_iter()
                .map(|(name, value)| (name, Value::String(value)))
                .collect();
            body.insert("SipResponseCode".to_owned(), json!(outcome.sip_code()));
            body.insert("SequenceNumber".to_owned(), json!("0"));
            json!({"type": "twilio", "body": body})
        } else {
            json!({"type": "sip", "body": {
                "from_number": call.from,
                "to_number": call.to,
                "sip_status_code": outcome.sip_code().parse::<u16>().unwrap_or(0),
                "error_reason": reason,
                "call_sid": talk.carrier_id,
            }})
        };
        let body = json!({
            "type": "call_initiation_failure",
            "event_timestamp": Timestamp::now().as_second(),
            "data": {
                "agent_id": talk.agent,
                "conversation_id": talk.id,
                "failure_reason": reason,
                "metadata": metadata,
            },
        });
        self.elevenlabs_event(n, &body, Vec::new());
    }

    fn elevenlabs_event(&mut self, n: u64, body: &Value, waits: Vec<u64>) {
        let Some(url) = self.settings.el_events_url.clone() else {
            return;
        };
        let secret = Some(self.settings.el_webhook_secret.clone());
        self.emit(Hook {
            n,
            get: false,
            url,
            headers: vec![("content-type", "application/json".to_owned())],
            body: Bytes::from(body.to_string()),
            secret,
            retry: Retry::of_elevenlabs(&waits),
            timeout: ATTEMPT_TIMEOUT,
            held_ms: None,
        });
    }
}

/// A form as Twilio sends it, signed for the URL without its fragment.
pub(crate) fn signed_form(n: u64, token: &str, url: &str, get: bool, form: &[(String, String)]) -> Hook {
    let retry = Retry::of_fragment(url);
    let mut target = without_fragment(url).to_owned();
    let encoded = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
    let (signature, body) = if get {
        target.push(if target.contains('?') { '&' } else { '?' });
        target.push_str(&encoded);
        (crate::sign::twilio(token, &target, &[]), String::new())
    } else {
        (crate::sign::twilio(token, &target, form), encoded)
    };
    let mut headers = vec![("x-twilio-signature", signature)];
    if !get {
        headers.push(("content-type", "application/x-www-form-urlencoded; charset=utf-8".to_owned()));
    }
    Hook {
        n,
        get,
        url: target,
        headers,
        body: Bytes::from(body),
        secret: None,
        retry,
        timeout: ATTEMPT_TIMEOUT,
        held_ms: None,
    }
}
