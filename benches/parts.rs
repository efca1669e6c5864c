//! The pure parts that a request or a webhook goes through: read, sign, translate, identify, bind.
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on has nothing to measure")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::path::Path;

use criterion::Criterion;
use http::{HeaderMap, HeaderName, HeaderValue};
use ringfence::call::{Direction, EndProof};
use ringfence::config::{self, Config};
use ringfence::ids::{AccountName, BusinessId};
use ringfence::policy::{CallAttributes, Policy, RequestAttributes};
use ringfence::provider::secret::Secret;
use ringfence::provider::select::{Document, Message};
use ringfence::provider::sign::{Keys, Request, Signature};
use ringfence::webhooks::route::candidates;
use ringfence_simulator::sign;

const NOW_SECS: i64 = 1_760_000_000;
const JSON: Option<&str> = Some("application/json");
const FORM: Option<&str> = Some("application/x-www-form-urlencoded");

const CREATE: &[u8] = br#"{"agent_id":"agent_123","agent_phone_number_id":"phnum_1","to_number":"+15550001111","conversation_initiation_client_data":{"dynamic_variables":{"name":"Ada"}}}"#;
const CREATE_FORM: &[u8] =
    b"To=%2B15550002222&From=%2B15550001111&Url=https%3A%2F%2Fapp.example.com%2Ftwiml&StatusCallback=https%3A%2F%2Fapp.example.com%2Fstatus";
const TWIML: &[u8] = br#"<?xml version="1.0" encoding="UTF-8"?><Response><Connect><Stream url="wss://api.elevenlabs.io/v1/convai/conversation/stream"><Parameter name="conversation_id" value="conv_0123456789abcdef"/></Stream></Connect></Response>"#;
const STATUS: &[u8] =
    b"CallSid=CA00000000000000000000000000000001&CallStatus=completed&CallDuration=42&From=%2B15550001111&To=%2B15550002222&Direction=outbound-api&SequenceNumber=3";
const STATUS_PATH: &str = "/ringfence/twilio/status/c_01m7yw6de2mqrsq14010xgma52";
const EVENTS_PATH: &str = "/webhooks/elevenlabs/post-call";

/// 300 businesses with an agent and a number each.
fn config() -> Config {
    let mut text = String::from(
        "concurrent = 30\n[accounts.elevenlabs]\nconcurrent = 30\nrate = \"5/s\"\n\
         [accounts.twilio]\naccount_sid = \"AC00000000000000000000000000000000\"\nrate = \"1/s\"\n\
         [[limits]]\nname = \"night-calls\"\nper = \"business\"\nconcurrent = 2\nmatch = { destination_prefix = [\"+90\"] }\n",
    );
    for n in 0..300 {
        let _ = writeln!(
            text,
            "[businesses.business_{n}]\nplan = \"PRO\"\nagent_ids = [\"agent_{n}\"]\nphone_numbers = [\"+1555000{n:04}\"]"
        );
    }
    config::load(&text, Path::new("."), &|_| None).config.unwrap()
}

/// A post-call transcription of forty turns.
fn transcription() -> Vec<u8> {
    let turn = |n: usize| {
        serde_json::json!({
            "role": if n.is_multiple_of(2) { "agent" } else { "user" },
            "message": "We have a table for four at eight, shall I book it under the same name as last time?",
            "time_in_call_secs": n,
        })
    };
    let body = serde_json::json!({
        "type": "post_call_transcription", "event_timestamp": NOW_SECS,
        "data": {
            "agent_id": "agent_123", "conversation_id": "conv_0123456789abcdef", "status": "done",
            "transcript": (0..40).map(turn).collect::<Vec<_>>(),
            "metadata": { "phone_call": {
                "direction": "outbound", "call_sid": "CA00000000000000000000000000000001",
                "agent_number": "+15550000123", "external_number": "+15550002222",
            } },
            "conversation_initiation_client_data": { "dynamic_variables": { "ringfence_call": "c_01m7yw6de2mqrsq14010xgma52" } },
        },
    });
    serde_json::to_vec(&body).unwrap()
}

fn selectors(criterion: &mut Criterion, config: &Config) {
    let (nothing, headers) = (BTreeMap::new(), HeaderMap::new());
    let operation = |account: &str, name: &str| {
        let account = &config.accounts[&AccountName::parse(account).unwrap()];
        account.provider.operations.iter().find(|o| o.name == name).unwrap().clone()
    };
    let (create, calls, register) = (
        operation("elevenlabs", "twilio_outbound_call"),
        operation("twilio", "calls"),
        operation("elevenlabs", "register_call"),
    );
    let mut group = criterion.benchmark_group("select");
    group.bench_function("attributes of JSON", |b| {
        b.iter(|| {
            let body = Document::decode(JSON, black_box(CREATE));
            let attributes = create
                .attributes
                .read(&Message { body: &body, query: &[], path: &nothing, headers: &headers }, Direction::Outbound);
            assert!(attributes.agent.is_some());
            attributes
        });
    });
    group.bench_function("attributes of a form", |b| {
        b.iter(|| {
            let body = Document::decode(FORM, black_box(CREATE_FORM));
            let attributes = calls
                .attributes
                .read(&Message { body: &body, query: &[], path: &nothing, headers: &headers }, Direction::Outbound);
            assert!(attributes.other_number.is_some());
            attributes
        });
    });
    group.bench_function("an id in XML", |b| {
        b.iter(|| {
            let body = Document::decode(Some("application/xml"), black_box(TWIML));
            let ids = register.ids.read(&Message { body: &body, query: &[], path: &nothing, headers: &headers });
            assert_eq!(ids.len(), 1);
            ids
        });
    });
    group.finish();
}

fn signatures(criterion: &mut Criterion) {
    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    let keys = Keys { secrets: vec![Secret::new(SECRET)], ..Keys::default() };
    let headers = |name: &'static str, value: String| {
        HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::try_from(value).unwrap())])
    };
    let mut group = criterion.benchmark_group("verify");
    let (elevenlabs, body) = (Signature::preset("elevenlabs").unwrap(), transcription());
    let shown = headers("elevenlabs-signature", sign::elevenlabs(SECRET, NOW_SECS, &body));
    group.bench_function(format!("ElevenLabs, {} bytes", body.len()), |b| {
        let request = Request { method: "POST", url: "", headers: &shown, body: &body, form: None };
        b.iter(|| elevenlabs.verify(&keys, black_box(&request), NOW_SECS).unwrap());
    });
    let (twilio, url) = (Signature::preset("twilio").unwrap(), format!("https://hooks.example.com{STATUS_PATH}"));
    let form: Vec<(String, String)> = form_urlencoded::parse(STATUS).into_owned().collect();
    let shown = headers("x-twilio-signature", sign::twilio(SECRET, &url, &form));
    group.bench_function("Twilio, a status callback", |b| {
        let request = Request { method: "POST", url: &url, headers: &shown, body: STATUS, form: Some(&form) };
        b.iter(|| twilio.verify(&keys, black_box(&request), NOW_SECS).unwrap());
    });
    group.finish();
}

/// From the bytes to what happened: which webhook, which event, whose call, what news.
fn translation(criterion: &mut Criterion, config: &Config) {
    let headers = HeaderMap::new();
    let translate = |path: &str, content_type, body: &[u8]| {
        let found = candidates(&config.accounts, &BTreeMap::new(), path);
        let webhook = found[0].webhook();
        let body = Document::decode(content_type, body);
        let message = Message { body: &body, query: &[], path: &found[0].captures, headers: &headers };
        let event = webhook.events.iter().find(|e| e.when.is_empty() || e.when.holds(&message)).unwrap();
        let news = event.state.as_ref().and_then(|s| s.read(&message, EndProof::Webhook));
        (webhook.ids.read(&message), webhook.attributes.read(&message, Direction::Outbound), news.unwrap())
    };
    let body = transcription();
    let mut group = criterion.benchmark_group("translate");
    group.bench_function(format!("ElevenLabs, {} bytes", body.len()), |b| {
        b.iter(|| translate(EVENTS_PATH, JSON, black_box(&body)));
    });
    group.bench_function("Twilio, a status callback", |b| b.iter(|| translate(STATUS_PATH, FORM, black_box(STATUS))));
    group.finish();
}

fn policy(criterion: &mut Criterion, config: &Config) {
    let policy = Policy::new(config.policy.clone(), &[]);
    let marks = RequestAttributes { agent: Some("agent_123"), number: Some("phnum_1"), ..RequestAttributes::default() };
    let attributes = CallAttributes {
        business: BusinessId::parse("business_123").unwrap(),
        plan: "PRO".to_owned(),
        account: AccountName::parse("elevenlabs").unwrap(),
        provider: "elevenlabs".to_owned(),
        carrier: AccountName::parse("twilio").ok(),
        direction: Direction::Outbound,
        operation: "twilio_outbound_call".to_owned(),
        agent: Some("agent_123".to_owned()),
        own_number: Some("phnum_1".to_owned()),
        other_number: Some("+905550001111".to_owned()),
    };
    let mut group = criterion.benchmark_group("policy, 300 businesses");
    group.bench_function("identify", |b| b.iter(|| policy.identify(black_box(&marks))));
    group.bench_function("bindings", |b| b.iter(|| policy.bindings(black_box(&attributes))));
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let config = config();
    selectors(&mut criterion, &config);
    signatures(&mut criterion);
    translation(&mut criterion, &config);
    policy(&mut criterion, &config);
    criterion.final_summary();
}
