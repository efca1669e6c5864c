//! `ringfence webhooks`: sends test webhooks to a running sidecar, signed as by the provider.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use clap::{Args, Subcommand, ValueEnum};
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, StatusCode, Uri};
use ringfence_simulator::sign;
use serde_json::{Value, json};

use super::admin_client::{AdminClient, OnListener, on_listener, path_of};
use super::file;
use super::outcome::{Failure, Outcome};
use crate::config::{Config, ListenerName};
use crate::provider::account::Account;

/// The maximum answer, in bytes, and its timeout.
const ANSWER_BYTES_MAX: usize = 1 << 20;
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub(super) struct Webhooks {
    #[command(flatten)]
    admin: AdminClient,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Event {
    /// ElevenLabs: a conversation has ended, with its transcript
    #[value(name = "elevenlabs.post_call_transcription")]
    PostCallTranscription,
    /// ElevenLabs: a call was not answered
    #[value(name = "elevenlabs.call_initiation_failure")]
    CallInitiationFailure,
    /// Twilio: the status of a call; see --status
    #[value(name = "twilio.call_status")]
    CallStatus,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Status {
    Initiated,
    Ringing,
    InProgress,
    Completed,
    Busy,
    NoAnswer,
    Canceled,
    Failed,
}

impl Status {
    /// The name at Twilio.
    fn as_str(self) -> &'static str {
        match self {
            Status::Initiated => "initiated",
            Status::Ringing => "ringing",
            Status::InProgress => "in-progress",
            Status::Completed => "completed",
            Status::Busy => "busy",
            Status::NoAnswer => "no-answer",
            Status::Canceled => "canceled",
            Status::Failed => "failed",
        }
    }
}

#[derive(Debug, Subcommand)]
enum Act {
    /// Send a signed test webhook to the sidecar of the config, and show the answer
    Trigger {
        /// The kind of webhook
        #[arg(value_enum)]
        event: Event,
        /// The call that it is about; ringfence believes it, so an end frees the call's slot [default: an unknown call]
        #[arg(long, value_name = "ID")]
        call: Option<String>,
        /// The account that it comes from [default: the only one of its provider]
        #[arg(long)]
        account: Option<String>,
        /// The status in twilio.call_status
        #[arg(long, value_enum, default_value_t = Status::Completed)]
        status: Status,
        /// The URL to send it to, as in https://hooks.example.com, which also tests the way from outside [default: listen.webhooks]
        #[arg(long, value_name = "URL")]
        to: Option<String>,
    },
}

/// A signed webhook.
struct Signed {
    path: &'static str,
    content_type: &'static str,
    header: &'static str,
    signature: String,
    body: String,
}

impl Webhooks {
    pub(super) async fn run(self) -> Outcome {
        let Act::Trigger { event, call, account, status, to } = &self.act;
        let read = file::read(self.admin.config(), &[])?;
        let Some(config) = read.loaded.config.as_ref() else {
            read.print("cannot be used, so nothing is sent");
            return Err(Failure::Config);
        };
        let account = account_of(config, *event, account.as_deref())?;
        let ids = match call {
            Some(call) => {
                let found = self.admin.ask(Method::GET, &path_of("/api/calls", call), None).await?;
                let ids = found["ids"].as_object().cloned().unwrap_or_default();
                ids.into_iter().filter_map(|(kind, id)| Some((kind, id.as_str()?.to_owned()))).collect()
            }
            None => BTreeMap::new(),
        };
        let at = match to {
            // Like a provider, which trusts no certificate because this config has it.
            Some(to) => OnListener { base: to.trim_end_matches('/').to_owned(), cert: None },
            None => on_listener(config, ListenerName::Webhooks, "--to").map_err(anyhow::Error::msg)?,
        };
        let public = config.webhooks.public_url.as_ref().map(|url| url.to_string().trim_end_matches('/').to_owned());
        let id_of = |kind: &str| match (ids.get(kind), call) {
            (Some(id), _) => Ok(id.clone()),
            (None, None) => Ok(unknown(kind)),
            (None, Some(call)) => Err(anyhow!("the call {call} has no {kind}, so this webhook cannot speak of it")),
        };
        let signed = match event {
            Event::CallStatus => {
                call_status(account, *status, &id_of("call_sid")?, public.as_deref().unwrap_or(&at.base))?
            }
            _ => elevenlabs(account, *event, &id_of("conversation_id")?)?,
        };
        self.send(config, &at, signed).await
    }

    async fn send(&self, config: &Config, at: &OnListener, signed: Signed) -> Outcome {
        let mut request = Request::new(Bytes::from(signed.body));
        *request.method_mut() = Method::POST;
        let url = format!("{}{}", at.base, signed.path);
        *request.uri_mut() = url.parse::<Uri>().with_context(|| url.clone())?;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(signed.content_type));
        request.headers_mut().insert(signed.header, HeaderValue::try_from(signed.signature)?);
        let client = self.admin.client(at.cert.clone(), config.extra_ca.clone())?;
        let answer = client.fetch(request, ANSWER_BYTES_MAX, ANSWER_WITHIN).await;
        let answer = answer.map_err(|error| anyhow!("{url} does not answer: {error}"))?;
        let (status, body) = (answer.status(), String::from_utf8_lossy(answer.body()).into_owned());
        let verdict = Verdict::of(status, answer.body());
        if self.json {
            let body = serde_json::from_str(&body).unwrap_or(Value::from(body));
            println!("{}", json!({"url": url, "status": status.as_u16(), "body": body}));
        } else {
            println!("POST {url}\n{status}\n{body}\n{}", verdict.sentence());
        }
        Ok(if verdict.is_taken() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Meaning of the answer to a webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// A 2xx.
    Accepted,
    /// ringfence says that it knows no such call.
    UnknownCall,
    /// ringfence says that the signature is invalid.
    NotGenuine,
    /// ringfence refuses it for another reason.
    Refused,
    /// Another program than ringfence has answered.
    NotOurs,
}

impl Verdict {
    /// Errors of ringfence's own have a code in `error` and a sentence in `message`; a code alone says nothing.
    fn of(status: StatusCode, body: &[u8]) -> Self {
        if status.is_success() {
            return Self::Accepted;
        }
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        match (body["error"].as_str(), body["message"].is_string()) {
            (Some("CALL_NOT_FOUND"), true) => Self::UnknownCall,
            (Some("INVALID_SIGNATURE"), true) => Self::NotGenuine,
            (Some(_), true) => Self::Refused,
            _ => Self::NotOurs,
        }
    }

    fn is_taken(self) -> bool {
        matches!(self, Self::Accepted | Self::UnknownCall)
    }

    fn sentence(self) -> &'static str {
        match self {
            Self::Accepted => "It was accepted: ringfence events list",
            Self::UnknownCall => "It is genuine, and about a call that ringfence does not know: as expected of a test.",
            Self::NotGenuine => {
                "Its signature is invalid there: that sidecar has another secret, or another public_url."
            }
            Self::Refused => "It was refused, for the reason that its answer says.",
            Self::NotOurs => {
                "This is not an answer of ringfence: the URL leads to something else, such as a proxy in front or another host."
            }
        }
    }
}

fn account_of<'c>(config: &'c Config, event: Event, name: Option<&str>) -> anyhow::Result<&'c Account> {
    let provider = if event == Event::CallStatus { "twilio" } else { "elevenlabs" };
    let all: Vec<&Account> =
        config.accounts.values().map(|one| &**one).filter(|one| one.provider.name == provider).collect();
    match (name, all.as_slice()) {
        (Some(name), all) => all
            .iter()
            .find(|account| account.name.as_str() == name)
            .copied()
            .ok_or_else(|| anyhow!("no account {name:?} of {provider} is in the config")),
        (None, [one]) => Ok(one),
        (None, []) => Err(anyhow!("no account of {provider} is in the config")),
        (None, many) => {
            let names: Vec<&str> = many.iter().map(|account| account.name.as_str()).collect();
            Err(anyhow!("say which account: --account {}", names.join(" or ")))
        }
    }
}

/// An id of a kind that no call has.
fn unknown(kind: &str) -> String {
    let id = ulid::Ulid::new().to_string().to_lowercase();
    match kind {
        "call_sid" => format!("CA{:0>32}", id),
        _ => format!("conv_{id}"),
    }
}

fn elevenlabs(account: &Account, event: Event, conversation: &str) -> anyhow::Result<Signed> {
    let secret = account.webhook_secrets.first().ok_or_else(|| {
        anyhow!("account {} has no webhook_secrets: nothing can be signed as ElevenLabs does", account.name)
    })?;
    let now_secs = jiff::Timestamp::now().as_second();
    let data = match event {
        Event::CallInitiationFailure => json!({
            "agent_id": "agent_test", "conversation_id": conversation, "failure_reason": "busy",
            "metadata": {"type": "sip", "body": {}},
        }),
        _ => json!({
            "agent_id": "agent_test", "conversation_id": conversation, "status": "done",
            "transcript": [{"role": "agent", "message": "This is a test.", "time_in_call_secs": 0}],
            "metadata": {"start_time_unix_secs": now_secs - 10, "call_duration_secs": 10},
        }),
    };
    let kind = match event {
        Event::CallInitiationFailure => "call_initiation_failure",
        _ => "post_call_transcription",
    };
    let body = json!({"type": kind, "event_timestamp": now_secs, "data": data}).to_string();
    Ok(Signed {
        path: "/webhooks/elevenlabs/post-call",
        content_type: "application/json",
        header: "elevenlabs-signature",
        signature: sign::elevenlabs(secret.expose(), now_secs, body.as_bytes()),
        body,
    })
}

fn call_status(account: &Account, status: Status, sid: &str, base: &str) -> anyhow::Result<Signed> {
    let token = account.webhook_secrets.first().or(account.secrets.get("auth_token"));
    let token = token
        .ok_or_else(|| anyhow!("account {} has no auth_token: nothing can be signed as Twilio does", account.name))?;
    let own = account.secrets.get("account_sid").map(|sid| sid.expose().to_owned()).unwrap_or_default();
    let form: Vec<(String, String)> = [
        ("CallSid", sid),
        ("AccountSid", &own),
        ("CallStatus", status.as_str()),
        ("Direction", "outbound-api"),
        ("From", "+15550001111"),
        ("To", "+15550002222"),
        ("CallbackSource", "call-progress-events"),
        ("SequenceNumber", "9"),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect();
    let path = "/webhooks/twilio/status";
    Ok(Signed {
        path,
        content_type: "application/x-www-form-urlencoded; charset=utf-8",
        header: "x-twilio-signature",
        signature: sign::twilio(token.expose(), &format!("{base}{path}"), &form),
        body: form_urlencoded::Serializer::new(String::new()).extend_pairs(&form).finish(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_of_ringfence_says_that_a_webhook_was_genuine() {
        let of = |status: u16, body: &str| Verdict::of(StatusCode::from_u16(status).unwrap(), body.as_bytes());
        let ours = |code: &str| json!({"error": code, "message": "A sentence."}).to_string();
        assert_eq!(of(200, ""), Verdict::Accepted);
        // `records.unknown_status` may be any.
        for status in [404, 409] {
            assert_eq!(of(status, &ours("CALL_NOT_FOUND")), Verdict::UnknownCall);
        }
        assert_eq!(of(401, &ours("INVALID_SIGNATURE")), Verdict::NotGenuine);
        assert_eq!(of(503, &ours("STORE_UNAVAILABLE")), Verdict::Refused);
        assert_eq!(of(404, &ours("UNKNOWN_ROUTE")), Verdict::Refused);
        for foreign in ["", "<html><h1>404 Not Found</h1>nginx</html>", r#"{"error":"not found"}"#, "[]"] {
            assert_eq!(of(404, foreign), Verdict::NotOurs, "{foreign}");
        }
        for verdict in [Verdict::NotGenuine, Verdict::Refused, Verdict::NotOurs] {
            assert!(!verdict.is_taken(), "{verdict:?}");
        }
    }
}
