//! Calls from outside, and the answers that decide what becomes of them.

use crate::call::{Callback, Carrier, Leg, Outcome, Phase};
use crate::twilio::leg_form;
use crate::webhooks::{Hook, Retry, signed_form};
use crate::world::{Effect, Step, World};
use bytes::Bytes;
use roxmltree::{Document, Node};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

/// Speaking a redirected call's last words.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// The way an inbound call takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// The Twilio number's voice URL is asked.
    #[default]
    Twilio,
    /// ElevenLabs owns the number.
    Native,
}

/// Somebody calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inbound {
    /// The number called.
    pub to: String,
    /// The caller.
    pub from: String,
    /// The way.
    #[serde(default)]
    pub via: Via,
    /// The agent of a native call.
    #[serde(default)]
    pub agent_id: Option<String>,
}

/// A request whose answer decides.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub hook: Hook,
    pub about: About,
}

/// The subject of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum About {
    /// TwiML for a call; redirected ones are live already.
    Voice { redirected: bool },
    /// Dynamic variables for a native call.
    Initiation,
}

/// The decision in TwiML.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Reject(Outcome),
    /// Connect to an agent, perhaps with the id of its conversation.
    Stream(Option<String>),
    /// Speak, dial, gather: the call is answered; whether the words are the last ones.
    Talk {
        last: bool,
    },
    HangUp,
    Broken,
}

impl World {
    /// Takes an inbound call in; the number of the call.
    pub(crate) fn arrive(&mut self, inbound: &Inbound, now: Instant) -> u64 {
        self.counts.inbound += 1;
        let leg = Leg::new(self.ids.sid("CA"), "inbound");
        match inbound.via {
            Via::Twilio => self.arrive_twilio(inbound, leg, now),
            Via::Native => self.arrive_native(inbound, leg, now),
        }
    }

    fn arrive_twilio(&mut self, inbound: &Inbound, mut leg: Leg, now: Instant) -> u64 {
        leg.callback = self.settings.number_status_url.clone().map(|url| Callback {
            url,
            get: false,
            events: vec!["completed".to_owned()],
        });
        let full = self.tw_full();
        let n = self.admit(&inbound.from, &inbound.to, Phase::Arriving, Some(leg), None);
        match self.settings.number_voice_url.clone() {
            _ if full => _ = self.finish(n, Outcome::Busy, "limit", now),
            Some(url) => self.ask_voice(n, &url, false, false),
            None => _ = self.finish(n, Outcome::Failed, "voice_url", now),
        }
        n
    }

    fn arrive_native(&mut self, inbound: &Inbound, leg: Leg, now: Instant) -> u64 {
        if self.el_full() {
            let n = self.admit(&inbound.from, &inbound.to, Phase::Arriving, Some(leg), None);
            self.finish(n, Outcome::Busy, "limit", now);
            return n;
        }
        let agent = inbound.agent_id.as_deref().unwrap_or("agent_simulated");
        let talk = self.new_talk(agent, Carrier::Twilio, true, json!({"dynamic_variables": {}}));
        let sid = leg.sid.clone();
        let n = self.admit(&inbound.from, &inbound.to, Phase::Ringing, Some(leg), Some(talk));
        let Some(url) = self.settings.el_initiation_url.clone() else {
            let wait = self.rng.span(self.settings.ring_ms);
            self.plan(n, now + wait, Step::Answer);
            return n;
        };
        let body = json!({
            "caller_id": inbound.from,
            "agent_id": agent,
            "called_number": inbound.to,
            "call_sid": sid,
        });
        let hook = Hook {
            n,
            get: false,
            url,
            headers: vec![("content-type", "application/json".to_owned())],
            body: Bytes::from(body.to_string()),
            secret: None,
            retry: Retry::of_fragment("#rc=0"),
            timeout: Duration::from_secs(15),
            held_ms: None,
        };
        self.ask(Question { hook, about: About::Initiation });
        n
    }

    fn ask(&mut self, question: Question) {
        self.counts.voice_requests += 1;
        self.outbox.push(Effect::Ask(question));
    }

    /// Fetches TwiML for a call.
    pub(crate) fn ask_voice(&mut self, n: u64, url: &str, get: bool, redirected: bool) {
        let Some(call) = self.calls.get(&n) else {
            return;
        };
        let form = leg_form(call, &self.settings.account_sid, call.twilio_status());
        let hook = signed_form(n, &self.settings.auth_token, url, get, &form);
        self.ask(Question { hook, about: About::Voice { redirected } });
    }

    /// The answer to a question: status and body, or none.
    pub(crate) fn answered(&mut self, n: u64, about: About, answer: Option<(u16, Bytes)>, now: Instant) {
        let Some(call) = self.calls.get_mut(&n) else {
            return;
        };
        let phase = call.phase;
        let good = answer.filter(|(status, _)| (200..300).contains(status)).map(|(_, body)| body);
        match (about, good) {
            _ if phase == Phase::Over => {}
            (About::Initiation, answer) => {
                // What a failing webhook does is not documented: here the call goes on without variables.
                let value: Value = answer.and_then(|body| serde_json::from_slice(&body).ok()).unwrap_or_default();
                if let (Some(talk), Some(variables)) = (call.talk.as_mut(), value.get("dynamic_variables")) {
                    talk.data["dynamic_variables"] = variables.clone();
                }
                let wait = self.rng.span(self.settings.ring_ms);
                self.plan(n, now + wait, Step::Answer);
            }
            (About::Voice { redirected: false }, Some(twiml)) => {
                self.follow_twiml(n, &String::from_utf8_lossy(&twiml), now);
            }
            (About::Voice { redirected: true }, Some(twiml)) => {
                self.redirect(n, &String::from_utf8_lossy(&twiml), now);
            }
            (About::Voice { .. }, None) if phase == Phase::Arriving => {
                self.finish(n, Outcome::Failed, "voice_url", now);
            }
            // An outbound call whose TwiML cannot be had talks on, so that tests need no TwiML server.
            (About::Voice { .. }, None) => {}
        }
    }

    /// The first TwiML of a call.
    pub(crate) fn follow_twiml(&mut self, n: u64, twiml: &str, now: Instant) {
        let Some(arriving) = self.calls.get(&n).map(|call| call.phase == Phase::Arriving) else {
            return;
        };
        match verdict(twiml) {
            Verdict::Reject(outcome) if arriving => _ = self.finish(n, outcome, "reject", now),
            Verdict::Stream(conversation) => {
                let joined = conversation.is_some_and(|id| self.join(n, &id, now));
                if !joined && arriving {
                    self.answer(n, now);
                }
            }
            Verdict::Talk { .. } if arriving => self.answer(n, now),
            Verdict::Talk { .. } => {}
            Verdict::Broken if arriving => _ = self.finish(n, Outcome::Failed, "twiml", now),
            Verdict::HangUp | Verdict::Reject(_) | Verdict::Broken => {
                if arriving {
                    self.answer(n, now);
                }
                self.finish(n, Outcome::Completed, "twiml", now);
            }
        }
    }

    /// New TwiML for a call that talks.
    pub(crate) fn redirect(&mut self, n: u64, twiml: &str, now: Instant) {
        match verdict(twiml) {
            Verdict::Stream(Some(id)) if self.join(n, &id, now) => {}
            Verdict::Stream(_) | Verdict::Talk { last: false } => {}
            Verdict::Talk { last: true } => {
                let at = now + LAST_WORDS;
                self.plan(n, at, Step::HangUp);
            }
            Verdict::HangUp | Verdict::Reject(_) | Verdict::Broken => {
                self.finish(n, Outcome::Completed, "twiml", now);
            }
        }
    }
}

fn verdict(twiml: &str) -> Verdict {
    let Ok(document) = Document::parse(twiml) else {
        return Verdict::Broken;
    };
    let root = document.root_element();
    if root.tag_name().name() != "Response" {
        return Verdict::Broken;
    }
    let verbs: Vec<Node<'_, '_>> = root.children().filter(Node::is_element).collect();
    let Some(first) = verbs.first() else {
        return Verdict::HangUp;
    };
    match first.tag_name().name() {
        "Reject" if first.attribute("reason") == Some("busy") => {
            return Verdict::Reject(Outcome::Busy);
        }
        "Reject" => return Verdict::Reject(Outcome::NoAnswer),
        "Hangup" => return Verdict::HangUp,
        _ => {}
    }
    for verb in &verbs {
        if verb.tag_name().name() != "Connect" {
            continue;
        }
        if let Some(stream) = verb.children().find(|node| node.has_tag_name("Stream")) {
            return Verdict::Stream(conversation_of(stream));
        }
    }
    Verdict::Talk { last: verbs.last().is_some_and(|verb| matches!(verb.tag_name().name(), "Hangup" | "Say" | "Play")) }
}

/// The conversation id of a stream: its parameter, or in its address as older code has it.
fn conversation_of(stream: Node<'_, '_>) -> Option<String> {
    let parameter = stream
        .children()
        .filter(|node| node.has_tag_name("Parameter"))
        .find(|node| node.attribute("name") == Some("conversation_id"))
        .and_then(|node| node.attribute("value"))
        .map(str::to_owned);
    parameter.or_else(|| {
        let (_, query) = stream.attribute("url")?.split_once('?')?;
        form_urlencoded::parse(query.as_bytes())
            .find(|(name, _)| name == "conversation_id")
            .map(|(_, value)| value.into_owned())
    })
}
