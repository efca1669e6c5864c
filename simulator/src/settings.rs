//! The settings of a simulation; everything can be changed while it runs.

use crate::subaccounts::Subaccount;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

/// A duration in milliseconds, drawn evenly between two bounds (JSON: `[min, max]`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u64)", into = "(u64, u64)")]
pub struct Millis {
    /// Shortest.
    pub min: u64,
    /// Longest, inclusive.
    pub max: u64,
}

impl Millis {
    /// Always the same duration.
    pub const fn exactly(ms: u64) -> Millis {
        Millis { min: ms, max: ms }
    }

    /// Between two durations.
    pub const fn between(min: u64, max: u64) -> Millis {
        Millis { min, max }
    }
}

impl From<(u64, u64)> for Millis {
    fn from((min, max): (u64, u64)) -> Millis {
        Millis { min, max: max.max(min) }
    }
}

impl From<Millis> for (u64, u64) {
    fn from(span: Millis) -> (u64, u64) {
        (span.min, span.max)
    }
}

/// The behaviour of the two simulated providers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SimSettings {
    /// Address to listen on; port 0 takes a free one. Fixed after the start.
    pub listen: SocketAddr,
    /// Twilio account, the user name of its basic authentication.
    pub account_sid: String,
    /// Twilio auth token: password, and key of Twilio's signatures.
    pub auth_token: String,
    /// The accepted `xi-api-key`.
    pub el_api_key: String,
    /// Key of ElevenLabs' webhook signatures.
    pub el_webhook_secret: String,
    /// ElevenLabs' plan limit: one conversation more is answered 429. None is no limit.
    pub el_concurrent: Option<u32>,
    /// Twilio's call concurrency: one call more is created and then fails (error 10004).
    pub tw_concurrent: Option<u32>,
    /// Twilio's REST requests at once; one more is answered 429, code 20429.
    pub tw_api_concurrency: Option<u32>,
    /// Twilio's calls per second; what is faster waits in state `queued`.
    pub tw_cps: Option<f64>,
    /// From accepted to ringing.
    pub dial_ms: Millis,
    /// Ringing before an answer, busy or no answer.
    pub ring_ms: Millis,
    /// From answer to hang-up.
    pub talk_ms: Millis,
    /// Between two utterances of a Twilio real-time transcription.
    pub utterance_ms: Millis,
    /// From hang-up (`processing`) to `done` and the post-call webhook.
    pub analysis_ms: Millis,
    /// The time for which a conversation of register-call waits for its telephone call.
    pub register_ms: u64,
    /// Time that each provider API request takes before its answer.
    pub api_ms: Millis,
    /// The time by which Twilio's list of calls lags behind creation.
    pub tw_list_lag_ms: u64,
    /// Part of the webhooks that are never sent, 0 to 1.
    pub webhook_loss: f64,
    /// Part of the webhooks that are sent twice.
    pub webhook_double: f64,
    /// Part of the webhooks that are held back, so that later ones overtake them.
    pub webhook_reorder: f64,
    /// The URL of ElevenLabs' signed webhooks.
    pub el_events_url: Option<String>,
    /// Also send `conversation.started` and `conversation.ended`, which the real
    /// ElevenLabs does not have but the systems before ringfence were built for.
    pub el_seed_events: bool,
    /// Also send `post_call_audio`.
    pub el_audio: bool,
    /// Waits before repeated post-call webhooks. Empty: not repeated, as by default.
    pub el_retry_ms: Vec<u64>,
    /// ElevenLabs' conversation-initiation webhook for native inbound calls (unsigned).
    pub el_initiation_url: Option<String>,
    /// Whether `DELETE /v1/convai/conversations/{id}` also hangs up.
    pub delete_hangs_up: bool,
    /// The Twilio number's voice webhook, for simulated inbound calls.
    pub number_voice_url: Option<String>,
    /// The Twilio number's status callback, which reports only the end.
    pub number_status_url: Option<String>,
    /// The URL that Twilio would call where the number's voice webhook cannot be reached: shown, and set, and never asked.
    pub number_fallback_url: Option<String>,
    /// The Twilio account's number, as it lists it.
    pub number: String,
    /// ElevenLabs has switched its webhook off after failures.
    pub el_hook_disabled: bool,
    /// The status that the latest failed delivery of ElevenLabs' webhook was answered with.
    pub el_hook_failure: Option<u16>,
    /// The webhook that ElevenLabs' agents use, as the workspace's settings say; the simulated one is `webhook_simulated`.
    pub el_webhook_in_use: Option<String>,
    /// The events that the workspace's settings say that webhook is sent.
    pub el_webhook_events: Vec<String>,
    /// The webhook that every agent uses instead of the workspace's.
    pub el_agent_webhook: Option<String>,
    /// The number of agents that ElevenLabs lists.
    pub el_agents: usize,
    /// The Twilio account's state: `active`, `suspended`, `closed`.
    pub tw_state: String,
    /// Subaccounts of the Twilio account, by sid.
    pub subaccounts: BTreeMap<String, Subaccount>,
    /// Whether an execution of a Studio flow makes a call.
    pub studio_calls: bool,
    /// The seed of drawn timings, losses and sequences.
    pub seed: u64,
}

impl Default for SimSettings {
    fn default() -> SimSettings {
        SimSettings {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            account_sid: "AC00000000000000000000000000000001".to_owned(),
            auth_token: "0123456789abcdef0123456789abcdef".to_owned(),
            el_api_key: "sk_simulated".to_owned(),
            el_webhook_secret: "wsec_simulated".to_owned(),
            el_concurrent: None,
            tw_concurrent: None,
            tw_api_concurrency: None,
            tw_cps: None,
            dial_ms: Millis::between(20, 60),
            ring_ms: Millis::between(50, 150),
            talk_ms: Millis::between(500, 1500),
            utterance_ms: Millis::between(150, 400),
            analysis_ms: Millis::between(100, 300),
            register_ms: 10_000,
            api_ms: Millis::exactly(0),
            tw_list_lag_ms: 0,
            webhook_loss: 0.0,
            webhook_double: 0.0,
            webhook_reorder: 0.0,
            el_events_url: None,
            el_seed_events: false,
            el_audio: false,
            el_retry_ms: Vec::new(),
            el_initiation_url: None,
            delete_hangs_up: false,
            number_voice_url: None,
            number_status_url: None,
            number_fallback_url: None,
            number: "+15550001101".to_owned(),
            el_hook_disabled: false,
            el_hook_failure: None,
            el_webhook_in_use: Some("webhook_simulated".to_owned()),
            el_webhook_events: vec!["transcript".to_owned(), "call_initiation_failure".to_owned()],
            el_agent_webhook: None,
            el_agents: 1,
            tw_state: "active".to_owned(),
            subaccounts: BTreeMap::new(),
            studio_calls: true,
            seed: 1,
        }
    }
}

impl SimSettings {
    /// These settings with some members replaced by those of a JSON object.
    pub(crate) fn patched(&self, patch: &serde_json::Value) -> Result<SimSettings, String> {
        let Some(patch) = patch.as_object() else {
            return Err("a JSON object is expected".to_owned());
        };
        let mut whole = serde_json::to_value(self).map_err(|error| error.to_string())?;
        for (name, value) in patch {
            whole[name.as_str()] = value.clone();
        }
        serde_json::from_value(whole).map_err(|error| error.to_string())
    }
}
