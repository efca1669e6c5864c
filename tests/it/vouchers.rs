//! An event speaks only of calls of the account that vouches for it, and ends only the call that it is of.

use bytes::Bytes;
use ringfence::call::{Outcome, Phase};
use ringfence_simulator::{Inbound, SimSettings, Subaccount, Via, sign};
use serde_json::{Value, json};

use crate::outbound::{id, talk};
use crate::support::hooks::{
    EVENTS, FORM, STATUS, VOICE, VoiceApp, call_form, elevenlabs, encoded, inbox, now_secs, pairs, seed_event,
};
use crate::support::stage::{Answer, Behind, PATIENCE, Setup, Stage};

const JSON: (&str, &str) = ("content-type", "application/json");
const SUB: &str = "AC0000000000000000000000000000000a";
const SUB_TOKEN: &str = "the token of the subaccount";
const REAL: &str = "CA00000000000000000000000000000007";

/// Calls of the subaccount that are none to be announced: a leg of another, one that runs the other way, one that is over.
const CHILD: &str = "CA00000000000000000000000000000008";
const OUTWARD: &str = "CA00000000000000000000000000000009";
const OVER: &str = "CA0000000000000000000000000000000a";

/// Two accounts of each provider, and a subaccount; nobody is asked by sweeps.
fn crowd(app: &Behind, url: &str) -> Setup {
    let accounts = format!(
        r#"
[accounts.el2]
provider = "elevenlabs"
upstream = "{url}"
api_key = "the key of el2"
carrier = "tw2"
webhook_secrets = ["the secret of el2"]
webhook_tokens = ["the token of el2"]
[accounts.tw2]
provider = "twilio"
upstream = "{url}"
account_sid = "AC000000000000000000000000000000ee"
auth_token = "the token of tw2"
[businesses.victim]
max_calls = 3
phone_numbers = ["+15550001101"]
[businesses.other]
max_calls = 5
phone_numbers = ["+15550001111"]
"#
    );
    let live = [REAL, CHILD, OUTWARD].map(|sid| (sid.to_owned(), "in-progress".to_owned()));
    let calls = live.into_iter().chain([(OVER.to_owned(), "completed".to_owned())]).collect();
    let said = |sid: &str, field: &str, value: &str| {
        (sid.to_owned(), serde_json::Map::from_iter([(field.to_owned(), json!(value))]))
    };
    let details = [said(CHILD, "parent_call_sid", REAL), said(OUTWARD, "direction", "outbound-api")].into();
    let subaccount = Subaccount { auth_token: SUB_TOKEN.to_owned(), calls, details, ..Subaccount::default() };
    Setup {
        sim: SimSettings { subaccounts: [(SUB.to_owned(), subaccount)].into(), ..Setup::default().sim },
        app: Some(app.url()),
        elevenlabs: "carrier = \"twilio\"".to_owned(),
        tables: accounts,
        replace: vec![("sweep_ms = 100".to_owned(), "sweep_ms = 60000".to_owned())],
        ..Setup::default()
    }
}

async fn started() -> (Behind, Behind, Stage) {
    let (app, nobody) = (Behind::start().await, Behind::start().await);
    let stage = Stage::start(crowd(&app, &nobody.url())).await;
    (app, nobody, stage)
}

async fn event_of(stage: &Stage, secret: &str, body: &Value) -> u16 {
    let body = body.to_string();
    let signature = sign::elevenlabs(secret, now_secs(), body.as_bytes());
    let headers = [JSON, ("elevenlabs-signature", signature.as_str())];
    stage.send("POST", &stage.webhooks(EVENTS), &headers, body).await.status
}

async fn form_of(stage: &Stage, path: &str, token: &str, form: &[(&str, &str)]) -> Answer {
    let url = stage.webhooks(path);
    let signature = sign::twilio(token, &url, &pairs(form));
    stage.send("POST", &url, &[FORM, ("x-twilio-signature", &signature)], encoded(form)).await
}

fn post_call(conversation: &str, sid: Option<&str>) -> Value {
    json!({"type": "post_call_transcription", "event_timestamp": now_secs(), "data": {
        "agent_id": "agent_acme", "conversation_id": conversation, "status": "done", "transcript": [],
        "metadata": {"call_duration_secs": 0, "phone_call": {"type": "twilio", "call_sid": sid}},
    }})
}

async fn contradicted(stage: &Stage, event: &str) -> bool {
    let metrics = stage.ask("/metrics").await;
    let line = |one: &str| one.contains(&format!("event=\"{event}\",outcome=\"contradicted\""));
    let counted = metrics.as_str().unwrap().lines().any(line);
    counted
        && inbox(stage)
            .await
            .iter()
            .any(|(name, outcome, call)| name == event && outcome.as_deref() == Some("contradicted") && !call)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accounts_secret_ends_no_call_of_another() {
    let (app, _nobody, stage) = started().await;
    let made = stage.dial(Some("other"), "+15550002001").await;
    let (conversation, sid) = (id(&made, "conversation_id"), id(&made, "callSid"));
    for body in
        [post_call(&conversation, Some(&sid)), post_call("conv_of_el2", Some(&sid)), post_call(&conversation, None)]
    {
        assert_eq!(event_of(&stage, "the secret of el2", &body).await, 200);
        assert_eq!(stage.held().await, 1, "{body}");
    }
    assert!(contradicted(&stage, "post_call_transcription").await);
    // A carrier's account that has no part in it, either; the one that carries it has.
    let end = call_form(&sid, "outbound-api", "completed");
    assert_eq!(form_of(&stage, STATUS, "the token of tw2", &end).await.status, 204);
    assert_eq!(stage.held().await, 1);
    assert!(contradicted(&stage, "call_status").await);
    assert!(app.got().is_empty(), "the app is told nothing of it: {:?}", app.got());
    let token = stage.control.settings().auth_token;
    let end = [end, vec![("SequenceNumber", "3")]].concat();
    assert_eq!(form_of(&stage, STATUS, &token, &end).await.status, 204);
    assert_eq!(stage.held().await, 0);
    stage.finish().await;
}

/// News of a call that nobody knows yet waits under its ids; it is not applied to a call of another account that has them later.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_account_said_before_is_not_said_of_anothers_call() {
    let (_app, _nobody, stage) = started().await;
    let secret = stage.control.settings().el_webhook_secret;
    assert_eq!(event_of(&stage, "the secret of el2", &post_call("conv_early", None)).await, 200);
    assert_eq!(event_of(&stage, &secret, &seed_event("conversation.started", "conv_early", "inbound")).await, 200);
    assert_eq!(stage.held().await, 1, "it is live, whatever el2 said of it");
    assert_eq!(event_of(&stage, &secret, &post_call("conv_own", None)).await, 200);
    assert_eq!(event_of(&stage, &secret, &seed_event("conversation.started", "conv_own", "inbound")).await, 200);
    assert_eq!(stage.held().await, 1, "what its own account said before is");
    assert_eq!(event_of(&stage, &secret, &post_call("conv_early", None)).await, 200);
    assert_eq!(stage.held().await, 0);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subaccounts_token_speaks_only_of_its_own_calls() {
    let (_app, _nobody, stage) = started().await;
    let sid = id(&talk(&stage, "+15550002001", &[]).await, "sid");
    let end = [call_form(&sid, "outbound-api", "completed"), vec![("AccountSid", SUB)]].concat();
    assert_eq!(form_of(&stage, STATUS, SUB_TOKEN, &end).await.status, 204);
    let call = stage.record(&sid).await.unwrap().id;
    let own = format!("/ringfence/twilio/status/{call}");
    assert_eq!(form_of(&stage, &own, SUB_TOKEN, &end).await.status, 204);
    assert_eq!(stage.held().await, 1);
    assert!(contradicted(&stage, "call_status").await);
    // A voice webhook that names the main account's call changes nothing, and is told so.
    let rings = [call_form(&sid, "inbound", "ringing"), vec![("AccountSid", SUB)]].concat();
    assert_eq!(form_of(&stage, VOICE, SUB_TOKEN, &rings).await.status, 403);
    assert_eq!(stage.record(&sid).await.unwrap().alias("subaccount_call"), None);
    // Of a call that was made in the subaccount it speaks, by our id in the path, before the sid is known.
    stage.control.end_call(&sid);
    let token = stage.control.settings().auth_token;
    let end = [call_form(&sid, "outbound-api", "completed"), vec![("SequenceNumber", "3")]].concat();
    assert_eq!(form_of(&stage, STATUS, &token, &end).await.status, 204);
    assert_eq!(stage.held().await, 0);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subaccount_cannot_fill_a_limit_with_calls_that_are_not_there() {
    let (app, _nobody, stage) = started().await;
    let rings = |sid| [call_form(sid, "inbound", "ringing"), vec![("AccountSid", SUB)]].concat();
    for sid in ["CAinvented0", "CAinvented1", "CAinvented2"] {
        let answer = form_of(&stage, VOICE, SUB_TOKEN, &rings(sid)).await;
        assert_eq!((answer.status, &answer.json()["error"]), (403, &"CALL_NOT_YOURS".into()));
    }
    for sid in [CHILD, OUTWARD, OVER] {
        let answer = form_of(&stage, VOICE, SUB_TOKEN, &rings(sid)).await;
        assert_eq!((answer.status, stage.held().await), (403, 0), "{sid}: {answer:?}");
    }
    // One that is there, but is of another number than it says.
    let other: Vec<_> = rings(REAL).into_iter().map(|(k, v)| (k, if k == "To" { "+15550001199" } else { v })).collect();
    assert_eq!(form_of(&stage, VOICE, SUB_TOKEN, &other).await.status, 403);
    assert_eq!((stage.held().await, app.got().len()), (0, 0));
    assert!(contradicted(&stage, "incoming_call").await);
    assert_eq!(form_of(&stage, VOICE, SUB_TOKEN, &rings(REAL)).await.status, 200);
    assert_eq!((stage.held().await, stage.record(REAL).await.unwrap().attributes.business.as_str()), (1, "victim"));
    let end = [call_form(REAL, "inbound", "completed"), vec![("AccountSid", SUB)]].concat();
    assert_eq!(form_of(&stage, STATUS, SUB_TOKEN, &end).await.status, 204);
    assert_eq!(stage.held().await, 0);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_another_account_says_nothing_in_a_call() {
    let (_app, _nobody, stage) = started().await;
    let conversation = id(&stage.dial(Some("other"), "+15550002001").await, "conversation_id");
    let say = async |token: &str, text: &str| {
        let body = json!({"conversation_id": conversation, "speaker": "user", "message": text, "timestamp": "2026-01-01T00:00:00Z"});
        let headers = [JSON, ("x-ringfence-token", token)];
        stage
            .send("POST", &stage.webhooks("/webhooks/elevenlabs/transcription"), &headers, body.to_string())
            .await
            .status
    };
    assert_eq!(say("the token of el2", "forged").await, 403);
    assert_eq!(say("token-of-the-initiation-webhook", "first").await, 201);
    assert_eq!(say("the token of el2", "forged again").await, 403);
    assert_eq!(say("token-of-the-initiation-webhook", "second").await, 201);
    let call = stage.record(&conversation).await.unwrap().id;
    let said = stage.app().calls().lifecycle.store.utterances(&call, 0, 9).await.unwrap();
    assert_eq!(said.iter().map(|u| u.text.as_str()).collect::<Vec<_>>(), ["first", "second"]);
    stage.control.end_call(&conversation);
    stage.finish().await;
}

/// What stands in the address is whoever wrote it; what stands twice says nothing.
#[tokio::test(flavor = "multi_thread")]
async fn ids_are_read_where_the_provider_puts_them() {
    let (_app, _nobody, stage) = started().await;
    let (victim, token) = (id(&talk(&stage, "+15550002001", &[]).await, "sid"), stage.control.settings().auth_token);
    let evil = format!("{STATUS}?CallSid={victim}&CallStatus=completed&Direction=outbound-api");
    // Posted: the form counts, also an empty one and one that lacks it.
    for form in [vec![], vec![("RecordingSid", "RE1")], call_form("CAother", "outbound-api", "completed")] {
        form_of(&stage, &evil, &token, &form).await;
        assert_eq!(stage.held().await, 1, "{form:?}");
    }
    // Got: the provider's own parameters follow those of the address.
    for query in [
        format!("{evil}&CallSid=CAother&CallStatus=completed"),
        format!("{STATUS}?CallStatus=completed&CallSid={victim}&CallSid=CAother"),
    ] {
        let url = stage.webhooks(&query);
        let signature = sign::twilio(&token, &url, &[]);
        let answer = stage.send("GET", &url, &[("x-twilio-signature", &signature)], Bytes::new()).await;
        assert_eq!((answer.status, &answer.json()["error"]), (400, &"INVALID_PAYLOAD".into()), "{query}");
        assert_eq!(stage.held().await, 1);
    }
    let doubled = [call_form(&victim, "outbound-api", "completed"), vec![("CallSid", "CAother")]].concat();
    assert_eq!(form_of(&stage, STATUS, &token, &doubled).await.status, 400);
    assert_eq!(stage.held().await, 1);
    let metrics = stage.ask("/metrics").await;
    assert!(metrics.as_str().unwrap().contains("outcome=\"doubled\""));
    // A GET as Twilio sends it counts.
    let url =
        stage.webhooks(&format!("{STATUS}?tag=a&tag=b&CallSid={victim}&CallStatus=completed&Direction=outbound-api"));
    let signature = sign::twilio(&token, &url, &[]);
    assert_eq!(stage.send("GET", &url, &[("x-twilio-signature", &signature)], Bytes::new()).await.status, 204);
    assert_eq!(stage.held().await, 0);
    stage.finish().await;
}

/// A call that was placed at its carrier is over when the carrier says so, whatever was connected to it.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_conversation_is_no_end_of_a_call_that_was_placed_at_its_carrier() {
    let (_app, _nobody, stage) = started().await;
    let sid = id(&talk(&stage, "+15550002001", &[]).await, "sid");
    let secret = stage.control.settings().el_webhook_secret;
    for conversation in ["conv_1", "conv_2"] {
        assert_eq!(event_of(&stage, &secret, &post_call(conversation, Some(&sid))).await, 200);
        assert_eq!(stage.held().await, 1, "{conversation}: its carrier still has it");
    }
    stage.control.end_call(&sid);
    stage.wait("its carrier is asked, or tells", async || stage.held().await == 0).await;
    stage.finish().await;
}

// === what ends a call ===

/// The table of the docs, for a call that is known by conversation, sid and our own id.
#[tokio::test(flavor = "multi_thread")]
async fn another_conversation_or_leg_ends_nothing() {
    let (app, _nobody, stage) = started().await;
    let made = stage.dial(Some("other"), "+15550002001").await;
    let (conversation, sid) = (id(&made, "conversation_id"), id(&made, "callSid"));
    let call = stage.record(&conversation).await.unwrap().id.to_string();
    let secret = stage.control.settings().el_webhook_secret;
    let with_own = |mut body: Value, call: &str| {
        body["data"]["conversation_initiation_client_data"] = json!({"dynamic_variables": {"ringfence_call": call}});
        body
    };
    for body in [
        post_call("conv_blank_1", Some(&sid)),
        with_own(post_call("conv_blank_2", None), &call),
        with_own(post_call("conv_blank_3", Some(&sid)), &call),
    ] {
        assert_eq!(event_of(&stage, &secret, &body).await, 200);
        assert_eq!(stage.held().await, 1, "{body}");
    }
    assert!(inbox(&stage).await.iter().all(|(_, outcome, _)| outcome.as_deref() == Some("other_call")));
    stage.wait("the app has them: they are its provider's", async || app.at(EVENTS).len() == 3).await;
    // A child leg by our own path.
    let token = stage.control.settings().auth_token;
    let child = call_form("CAchild", "outbound-dial", "completed");
    let twilios = id(&talk(&stage, "+15550002002", &[]).await, "sid");
    let ours = stage.record(&twilios).await.unwrap().id;
    assert_eq!(form_of(&stage, &format!("/ringfence/twilio/status/{ours}"), &token, &child).await.status, 204);
    assert_eq!(stage.held().await, 2);
    // Its own end is its end: by conversation, and by the leg.
    assert_eq!(event_of(&stage, &secret, &post_call(&conversation, Some(&sid))).await, 200);
    assert_eq!(stage.held().await, 1);
    assert_eq!(form_of(&stage, STATUS, &token, &call_form(&twilios, "outbound-api", "completed")).await.status, 204);
    assert_eq!(stage.held().await, 0);
    stage.finish().await;
}

/// A caller is connected to one agent after another. The carrier's call is what holds the slot.
#[tokio::test(flavor = "multi_thread")]
async fn two_conversations_on_one_inbound_call_leave_no_slot_between_them() {
    let app = VoiceApp::start().await;
    let stage =
        Stage::start(Setup { root: "concurrent = 1".to_owned(), app: Some(app.url()), ..Setup::default() }).await;
    app.connect(&stage);
    let voice = stage.webhooks("/api/v1/webhooks/inbound-call");
    stage.control.configure(|s| s.number_voice_url = Some(voice));
    let inbound =
        Inbound { to: "+15550001101".to_owned(), from: "+15550003301".to_owned(), via: Via::Twilio, agent_id: None };
    let sid = stage.control.inbound(&inbound).unwrap().call_sid.unwrap();
    assert!(stage.control.wait_call(PATIENCE, &sid, |c| c.answered && c.conversation_id.is_some()).await);
    let first = stage.control.call(&sid).unwrap().conversation_id.unwrap();
    let is_live = async || stage.record(&first).await.is_some_and(|record| record.phase == Phase::Live);
    stage.wait("it is bound, and live", is_live).await;
    let call = stage.record(&first).await.unwrap().id;
    assert_eq!(elevenlabs(&stage, &post_call(&first, Some(&sid))).await.status, 200);
    assert_eq!(stage.record(&sid).await.unwrap().phase, Phase::Live, "the carrier still has it");
    assert_eq!(stage.held().await, 1);
    assert_eq!(stage.dial(None, "+15550002001").await.status, 503, "no slot between them");
    // The app connects the caller to the next agent.
    let body = json!({"agent_id": "agent_acme", "from_number": inbound.from, "to_number": inbound.to});
    let key = stage.control.settings().el_api_key;
    let headers = [JSON, ("xi-api-key", key.as_str())];
    let url = stage.api("/elevenlabs/v1/convai/twilio/register-call");
    let answer = stage.send("POST", &url, &headers, body.to_string()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let record = stage.record(&sid).await.unwrap();
    assert_eq!((record.id, stage.held().await), (call, 1), "the same call");
    assert_eq!(record.aliases.iter().filter(|a| a.kind == "conversation_id").count(), 2);
    // The first one's end may be told late, or again.
    let again = json!({"type": "post_call_audio", "event_timestamp": 7, "data": {"conversation_id": first}});
    assert_eq!(elevenlabs(&stage, &again).await.status, 200);
    assert_eq!(stage.held().await, 1);
    stage.control.end_call(&sid);
    stage.wait("the carrier says that it is over", async || stage.held().await == 0).await;
    assert_eq!(stage.record(&sid).await.unwrap().outcome, Some(Outcome::Completed));
    stage.finish().await;
}
