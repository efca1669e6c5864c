//! Twilio's real-time transcription of a running call: started, utterances in turn, stopped.

use crate::call::Phase;
use crate::twilio::error;
use crate::webhooks::signed_form;
use crate::wire::{Ask, Reply};
use crate::world::{Step, World};
use jiff::Timestamp;
use serde_json::json;
use tokio::time::Instant;

/// The conversation, by turns: the agent's side is Twilio's outbound track.
const SAID: [(&str, &str); 4] = [
    ("outbound_track", "Hello, how can I help you?"),
    ("inbound_track", "I have a question about my order."),
    ("outbound_track", "Let me look that up for you."),
    ("inbound_track", "Thank you very much."),
];

/// A transcription of one call.
#[derive(Clone, Debug)]
pub(crate) struct Transcription {
    pub sid: String,
    url: String,
    get: bool,
    track: String,
    language: String,
    partial: bool,
    sequence: u32,
}

/// `POST …/Calls/{sid}/Transcriptions.json` and `…/Transcriptions/{sid}.json`.
pub(crate) fn respond(world: &mut World, ask: &Ask<'_>, n: u64, sid: Option<&str>, now: Instant) -> Reply {
    if world.calls.get(&n).is_none_or(|call| call.phase != Phase::Live) {
        return error(400, 21220, "Call is not in-progress. Cannot transcribe.");
    }
    let form = ask.form();
    if let Some(sid) = sid {
        let sid = sid.trim_end_matches(".json");
        let leg = world.calls.get(&n).and_then(|call| call.leg.as_ref());
        if leg.and_then(|leg| leg.transcription.as_ref()).is_none_or(|running| running.sid != sid) {
            return error(404, 20404, &format!("The requested resource {} was not found", ask.path));
        }
        if form.get("Status") == Some("stopped") {
            world.transcription_stopped(n);
        }
        return shown(world, n, sid, "stopped");
    }
    let running = Transcription {
        sid: world.ids.sid("GT"),
        url: form.get("StatusCallbackUrl").unwrap_or_default().to_owned(),
        get: form.get("StatusCallbackMethod").is_some_and(|method| method.eq_ignore_ascii_case("GET")),
        track: form.get("Track").unwrap_or("both_tracks").to_owned(),
        language: form.get("LanguageCode").unwrap_or("en-US").to_owned(),
        partial: form.get("PartialResults") == Some("true"),
        sequence: 0,
    };
    let sid = running.sid.clone();
    if let Some(leg) = world.calls.get_mut(&n).and_then(|call| call.leg.as_mut()) {
        leg.transcription = Some(running);
    }
    world.transcription_event(n, "transcription-started", &[]);
    let wait = world.rng.span(world.settings.utterance_ms);
    world.plan(n, now + wait, Step::Utter(0));
    shown(world, n, &sid, "in-progress")
}

fn shown(world: &World, n: u64, sid: &str, status: &str) -> Reply {
    let account = &world.settings.account_sid;
    let call = world.calls.get(&n).and_then(|call| call.leg.as_ref()).map_or("", |leg| leg.sid.as_str());
    Reply::json(
        200,
        &json!({
            "sid": sid,
            "account_sid": account,
            "call_sid": call,
            "status": status,
            "uri": format!("/2010-04-01/Accounts/{account}/Calls/{call}/Transcriptions/{sid}.json"),
        }),
    )
}

impl World {
    /// Somebody says the next thing.
    pub(crate) fn utter(&mut self, n: u64, turn: usize, now: Instant) {
        let Some((track, text)) = SAID.get(turn % SAID.len()).copied() else { return };
        let running = self.calls.get(&n).and_then(|call| call.leg.as_ref()?.transcription.as_ref());
        let Some(wanted) = running.map(|running| running.track == "both_tracks" || running.track == track) else {
            return;
        };
        if wanted {
            let data = json!({"transcript": text, "confidence": 0.97}).to_string();
            let fields = [("TranscriptionData", data.as_str()), ("Final", "true"), ("Track", track)];
            self.transcription_event(n, "transcription-content", &fields);
        }
        let wait = self.rng.span(self.settings.utterance_ms);
        self.plan(n, now + wait, Step::Utter(turn.wrapping_add(1)));
    }

    /// Ends a call's transcription, if there is one.
    pub(crate) fn transcription_stopped(&mut self, n: u64) {
        self.transcription_event(n, "transcription-stopped", &[]);
        if let Some(leg) = self.calls.get_mut(&n).and_then(|call| call.leg.as_mut()) {
            leg.transcription = None;
        }
    }

    fn transcription_event(&mut self, n: u64, event: &str, more: &[(&str, &str)]) {
        let token = self.ids.uuid();
        let Some(leg) = self.calls.get_mut(&n).and_then(|call| call.leg.as_mut()) else { return };
        let Some(running) = leg.transcription.as_mut() else { return };
        running.sequence += 1;
        let sequence = running.sequence.to_string();
        let now = Timestamp::now().to_string();
        let mut fields = vec![
            ("TranscriptionEvent", event),
            ("TranscriptionSid", running.sid.as_str()),
            ("CallSid", leg.sid.as_str()),
            ("AccountSid", self.settings.account_sid.as_str()),
            ("LanguageCode", running.language.as_str()),
            ("SequenceId", sequence.as_str()),
            ("Timestamp", now.as_str()),
        ];
        if event == "transcription-started" {
            fields.push(("TranscriptionEngine", "google"));
            fields.push(("ProviderConfiguration", "{}"));
            fields.push(("PartialResults", if running.partial { "true" } else { "false" }));
            fields.push(("Track", running.track.as_str()));
        }
        fields.extend_from_slice(more);
        if running.url.is_empty() {
            return;
        }
        let form: Vec<(String, String)> =
            fields.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let mut hook = signed_form(n, &self.settings.auth_token, &running.url, running.get, &form);
        hook.headers.push(("i-twilio-idempotency-token", token));
        self.emit(hook);
    }
}
