//! Live transcripts, as docs/live-transcripts.md describes them and clients of the replaced systems expect them (docs/compatibility.md).

use futures_util::future::join_all;
use serde_json::{Value, json};

use super::support::hooks::{elevenlabs, now_secs, seed_event};
use super::support::socket::{SOCKET, Socket, a_while, metric, open_sockets, said, say, setup, token, token_of};
use super::support::stage::Stage;

/// The post-call webhook of a conversation.
fn post_call(conversation: &str) -> Value {
    json!({"type": "post_call_transcription", "event_timestamp": now_secs(), "data": {
        "agent_id": "agent_acme", "conversation_id": conversation, "status": "done", "transcript": [],
        "metadata": {"start_time_unix_secs": now_secs() - 60, "call_duration_secs": 60, "cost": 296,
            "phone_call": {"direction": "inbound", "call_sid": format!("CA_{conversation}"), "call_result": "answered"}},
        "analysis": {"call_successful": "success", "transcript_summary": "A question about an order."},
        "conversation_initiation_client_data": {}}})
}

/// Both ids of a call are known.
async fn live_call(stage: &Stage, conversation: &str) -> String {
    let call_sid = format!("CA_{conversation}");
    let mut event = seed_event("conversation.started", conversation, "inbound");
    event["metadata"]["phone_call"]["call_sid"] = call_sid.as_str().into();
    assert_eq!(elevenlabs(stage, &event).await.status, 200);
    call_sid
}

async fn ready() -> Stage {
    Stage::start(setup("", "completion_wait_secs = 0", "")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_a_valid_token_connects_and_is_counted() {
    let stage = ready().await;
    let mut socket = Socket::open(&stage, &token()).await;
    assert_eq!(open_sockets(&stage).await, 1);
    socket.hears_nothing().await;
    socket.close().await;
    stage.wait("the socket is gone", async || open_sockets(&stage).await == 0).await;
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_subscribed_by_either_of_its_ids() {
    let stage = ready().await;
    let sid = live_call(&stage, "conv_1").await;
    let mut socket = Socket::open(&stage, &token()).await;
    for id in [sid.as_str(), "conv_1"] {
        let wanted = json!({
            "type": "subscription_confirmed", "identifier": id, "call_sid": sid, "conversation_id": "conv_1",
            "status": "in_progress", "message": format!("Subscribed to call {id}"),
        });
        assert_eq!(socket.follow(id).await, wanted);
    }
    // By both ids it is one subscription: each message comes once.
    say(&stage, "conv_1", "agent", "Hello.").await;
    socket.hear_a("transcription").await;
    socket.say(&json!({"unsubscribe": sid})).await;
    let ended = socket.hear_a("unsubscribe_confirmed").await;
    assert_eq!(ended["identifier"], sid.as_str());
    say(&stage, "conv_1", "agent", "Are you there?").await;
    a_while().await;
    socket.hears_nothing().await;
    for (message, code) in [
        (json!({"subscribe": "CA_nobody_knows"}), "CALL_NOT_FOUND"),
        (json!({"subscribe": ""}), "INVALID_IDENTIFIER"),
        (json!({"subscribe": 7}), "INVALID_IDENTIFIER"),
        (json!({"hello": "CA1"}), "INVALID_MESSAGE_FORMAT"),
        (json!(["subscribe"]), "INVALID_MESSAGE_FORMAT"),
    ] {
        socket.say(&message).await;
        let error = socket.hear_a("error").await;
        assert_eq!(error["code"], code, "{message}");
        assert!(error["message"].is_string() && error.as_object().unwrap().len() == 3, "{error}");
    }
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_reaches_the_subscriber() {
    let stage = Stage::start(setup("", "user_label = \"driver\"\ncompletion_wait_secs = 0", "")).await;
    let sid = live_call(&stage, "conv_1").await;
    let mut socket = Socket::open(&stage, &token()).await;
    socket.follow("conv_1").await;
    for (n, speaker, shown) in [(1, "agent", "agent"), (2, "user", "driver")] {
        let answer = say(&stage, "conv_1", speaker, "How are \"you\"? \u{1F600}").await;
        let id = answer["transcription_id"].as_i64().unwrap();
        let stored = json!({"status": "success", "message": "Transcription stored", "transcription_id": id, "sequence_number": n});
        assert_eq!(answer, stored);
        let wanted = json!({
            "type": "transcription", "conversation_id": "conv_1", "call_sid": sid, "transcription_id": id,
            "sequence_number": n, "speaker_type": shown, "message_text": "How are \"you\"? \u{1F600}",
            "timestamp": "2026-01-02T03:04:05.678Z",
        });
        assert_eq!(socket.hear().await, wanted);
    }
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completed_call_is_told_status_first_and_once() {
    // The record comes with the end, so nobody waits for it.
    let stage = Stage::start(setup("", "completion_wait_secs = 3600", "")).await;
    let sid = live_call(&stage, "conv_1").await;
    let mut socket = Socket::open(&stage, &token()).await;
    socket.follow(&sid).await;
    say(&stage, "conv_1", "agent", "Goodbye.").await;
    assert_eq!(elevenlabs(&stage, &post_call("conv_1")).await.status, 200);
    socket.hear_a("transcription").await;
    let status = socket.hear_a("call_status").await;
    assert_eq!((&status["status"], &status["call_sid"]), (&json!("completed"), &json!(sid)));
    assert!(status["call_end_time"].is_string());
    let completed = socket.hear_a("call_completed").await;
    let data = &completed["call_data"];
    assert_eq!((&data["status"], &data["conversation_id"]), (&json!("completed"), &json!("conv_1")));
    assert_eq!(data["call_end_time"], status["call_end_time"]);
    assert_eq!(data["transcript_summary"], "A question about an order.");
    assert_eq!((&data["call_successful"], &data["duration_seconds"]), (&json!(true), &json!(60)));
    for field in ["call_sid", "call_start_time", "duration_seconds", "transcript_summary", "cost", "call_successful"] {
        assert!(data.get(field).is_some(), "{field} is missing");
    }
    // It is unsubscribed: what comes late is for those who poll.
    say(&stage, "conv_1", "agent", "Too late.").await;
    a_while().await;
    socket.hears_nothing().await;
    // Who comes after the end is told of it as well.
    assert_eq!(socket.follow("conv_1").await["status"], "completed");
    socket.hear_a("call_status").await;
    socket.hear_a("call_completed").await;
    // What was not answered is failed.
    live_call(&stage, "conv_2").await;
    socket.follow("conv_2").await;
    let failure = json!({"type": "call_initiation_failure", "event_timestamp": now_secs(),
        "data": {"agent_id": "agent_acme", "conversation_id": "conv_2", "failure_reason": "busy"}});
    assert_eq!(elevenlabs(&stage, &failure).await.status, 200);
    assert_eq!(socket.hear_a("call_status").await["status"], "failed");
    assert_eq!(socket.hear_a("call_completed").await["call_data"]["status"], "failed");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_subscriber_gets_each_message_once() {
    let stage = ready().await;
    live_call(&stage, "conv_1").await;
    let token = token();
    let mut sockets = vec![];
    for _ in 0..3 {
        let mut socket = Socket::open(&stage, &token).await;
        socket.follow("conv_1").await;
        sockets.push(socket);
    }
    for n in 1..=20 {
        say(&stage, "conv_1", "user", &format!("line {n}")).await;
    }
    // A delivery that is repeated is the same utterance.
    let repeated = json!({"conversation_id": "conv_1", "speaker": "user", "message": "line 20",
        "timestamp": "2026-01-02T03:04:05.678Z"});
    assert_eq!(said(&stage, &repeated).await.json()["sequence_number"], 20);
    for socket in &mut sockets {
        for n in 1..=20 {
            let message = socket.hear_a("transcription").await;
            assert_eq!(
                (&message["sequence_number"], &message["message_text"]),
                (&json!(n), &json!(format!("line {n}")))
            );
        }
        socket.hears_nothing().await;
    }
    assert_eq!(metric(&stage, "ringfence_client_messages_total{type=\"transcription\"}").await, 60);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_an_expired_one_and_an_invalid_one_are_refused() {
    let stage = ready().await;
    let expired = token_of(&json!({"exp": now_secs() - 60, "businesses": ["*"]}));
    let foreign = ringfence::jws::sign(b"another secret", &json!({"exp": now_secs() + 60, "businesses": ["*"]}));
    for path in [
        SOCKET.to_owned(),
        format!("{SOCKET}?token="),
        format!("{SOCKET}?token={expired}"),
        format!("{SOCKET}?token={}", foreign.unwrap()),
        format!("{SOCKET}?token=nonsense"),
    ] {
        assert_eq!(Socket::connect(&stage, &path, &[]).await.err(), Some(403), "{path}");
    }
    for bad in ["", "?token=nonsense"] {
        let answer = stage.send("GET", &stage.client(&format!("/calls/CA1/transcript{bad}")), &[], "").await;
        assert_eq!((answer.status, &answer.json()["error"]), (403, &json!("AUTHENTICATION_FAILED")));
    }
    assert_eq!(open_sockets(&stage).await, 0);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_disconnects_leaves_nothing() {
    let stage = ready().await;
    live_call(&stage, "conv_1").await;
    let token = token();
    // More, one after the other, than a token may have at once.
    for n in 0..30 {
        let mut socket = Socket::open(&stage, &token).await;
        socket.follow("conv_1").await;
        match n % 2 {
            0 => socket.close().await,
            _ => drop(socket.ignore()),
        }
        stage.wait("the socket is gone", async || open_sockets(&stage).await == 0).await;
    }
    assert_eq!(say(&stage, "conv_1", "user", "Nobody listens.").await["sequence_number"], 1);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_from_its_dialling_to_its_record() {
    let stage = Stage::start(setup("", "completion_wait_secs = 3600", "")).await;
    let placed = stage.dial(None, "+15550002201").await.json();
    let (sid, conversation) = (placed["callSid"].as_str().unwrap(), placed["conversation_id"].as_str().unwrap());
    let token = token();
    let mut socket = Socket::open(&stage, &token).await;
    let confirmed = socket.follow(sid).await;
    assert_eq!((&confirmed["conversation_id"], &confirmed["status"]), (&json!(conversation), &json!("in_progress")));
    for (speaker, text) in [("agent", "Hello."), ("user", "Who is there?"), ("agent", "Your order has come.")] {
        say(&stage, conversation, speaker, text).await;
        assert_eq!(socket.hear_a("transcription").await["message_text"], text);
    }
    assert_eq!(elevenlabs(&stage, &post_call(conversation)).await.status, 200);
    let status = socket.hear_a("call_status").await;
    let completed = socket.hear_a("call_completed").await;
    // Who polls gets the same.
    let url = stage.client(&format!("/calls/{sid}/transcript?token={token}"));
    let polled = stage.send("GET", &url, &[], "").await.json();
    let messages = polled["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 5, "{polled}");
    assert_eq!(messages[1]["message_text"], "Who is there?");
    assert_eq!((&messages[3], &messages[4]), (&status, &completed));
    assert_eq!((&polled["status"], &polled["sequence_number"]), (&json!("completed"), &json!(3)));
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_succeed_with_nobody_connected() {
    let stage = ready().await;
    // The first dialogue of an unknown conversation makes its record. An app's word proves no call: it takes no place.
    let first = say(&stage, "conv_unknown", "agent", "Hello?").await;
    assert_eq!(first["sequence_number"], 1);
    let record = stage.record("conv_unknown").await.unwrap();
    assert_eq!((record.phase.as_str(), record.counts(), stage.held().await), ("live", false, 0));
    assert_eq!(say(&stage, "conv_unknown", "user", "Yes.").await["sequence_number"], 2);
    // By a call sid alone as well.
    let by_sid =
        json!({"call_sid": "CA_alone", "speaker": "user", "message": "Hi.", "timestamp": "2026-01-02T03:04:05"});
    let answer = said(&stage, &by_sid).await;
    assert_eq!((answer.status, answer.json()["sequence_number"].as_i64()), (201, Some(1)));
    assert!(stage.record("CA_alone").await.is_some() && stage.held().await == 0);
    for (field, value) in [
        ("conversation_id", Value::Null),
        ("speaker", json!("robot")),
        ("speaker", Value::Null),
        ("message", json!("")),
        ("message", Value::Null),
        ("timestamp", json!("soon")),
    ] {
        let mut body = json!({"conversation_id": "conv_unknown", "speaker": "user", "message": "x",
            "timestamp": "2026-01-02T03:04:05Z"});
        body[field] = value;
        let answer = said(&stage, &body).await;
        assert_eq!((answer.status, &answer.json()["error"]), (422, &json!("INVALID_PAYLOAD")), "{body}");
    }
    assert_eq!(elevenlabs(&stage, &post_call("conv_unknown")).await.status, 200);
    assert_eq!(stage.record("conv_unknown").await.unwrap().outcome.unwrap().as_str(), "completed");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_calls_on_one_socket_do_not_mix() {
    const CALLS: usize = 8;
    const LINES: usize = 10;
    let stage = ready().await;
    let conversations: Vec<String> = (0..CALLS).map(|n| format!("conv_{n}")).collect();
    let mut socket = Socket::open(&stage, &token()).await;
    let mut others = Socket::open(&stage, &token()).await;
    for conversation in &conversations {
        live_call(&stage, conversation).await;
        socket.follow(conversation).await;
    }
    others.follow("conv_0").await;
    join_all(conversations.iter().map(async |conversation| {
        for n in 1..=LINES {
            say(&stage, conversation, "agent", &format!("{conversation} {n}")).await;
        }
    }))
    .await;
    let mut heard = std::collections::BTreeMap::<String, usize>::new();
    for _ in 0..CALLS * LINES {
        let message = socket.hear_a("transcription").await;
        let conversation = message["conversation_id"].as_str().unwrap().to_owned();
        assert_eq!(message["call_sid"], format!("CA_{conversation}"));
        let n = heard.entry(conversation.clone()).or_default();
        *n += 1;
        assert_eq!(message["sequence_number"], *n);
        assert_eq!(message["message_text"], format!("{conversation} {n}"));
    }
    assert!(heard.len() == CALLS && heard.values().all(|n| *n == LINES), "{heard:?}");
    for n in 1..=LINES {
        assert_eq!(others.hear_a("transcription").await["message_text"], format!("conv_0 {n}"));
    }
    others.hears_nothing().await;
    socket.hears_nothing().await;
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_told_live_is_told_by_the_record_and_a_lost_record_is_fetched() {
    let stage = Stage::start(setup("", "completion_wait_secs = 3600", "")).await;
    live_call(&stage, "conv_1").await;
    live_call(&stage, "conv_2").await;
    say(&stage, "conv_2", "agent", "Told live.").await;
    let mut socket = Socket::open(&stage, &token()).await;
    let turns = json!([
        {"role": "agent", "message": "Hello.", "time_in_call_secs": 0},
        {"role": "agent", "message": null, "tool_calls": [{"tool_name": "look"}], "time_in_call_secs": 1},
        {"role": "user", "message": "Goodbye.", "time_in_call_secs": 59},
    ]);
    for (conversation, wanted) in [("conv_1", vec!["Hello.", "Goodbye."]), ("conv_2", vec!["Told live."])] {
        let mut record = post_call(conversation);
        record["data"]["transcript"] = turns.clone();
        for _ in 0..2 {
            assert_eq!(elevenlabs(&stage, &record).await.status, 200, "and again changes nothing");
        }
        socket.say(&json!({"subscribe": conversation, "after": 0})).await;
        socket.hear_a("subscription_confirmed").await;
        for text in wanted {
            assert_eq!(socket.hear_a("transcription").await["message_text"], text);
        }
        socket.hear_a("call_status").await;
        let completed = socket.hear_a("call_completed").await;
        assert_eq!(completed["call_data"]["transcript_summary"], "A question about an order.");
    }
    // A business's client may ask for what a lost webhook would have brought; of its own calls alone.
    let placed = stage.dial(None, "+15550002231").await.json();
    let conversation = placed["conversation_id"].as_str().unwrap();
    stage.control.end_call(conversation);
    let fetch = async |token: &str| {
        let bearer = format!("Bearer {token}");
        let url = stage.client(&format!("/conversations/{conversation}/fetch"));
        stage.send("POST", &url, &[("authorization", &bearer)], "").await
    };
    let other = token_of(&json!({"sub": "x", "exp": now_secs() + 60, "businesses": ["somebody-else"]}));
    assert_eq!(fetch(&other).await.status, 404);
    assert_eq!(fetch("no-token").await.status, 403);
    stage
        .wait("it is fetched", async || {
            let answer = fetch(&token()).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            answer.json()["record"]["complete"] == true
        })
        .await;
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_live_is_kept_no_longer_than_its_call_where_that_is_configured() {
    for (mode, kept) in [("none", ""), ("hash", "sha256:")] {
        let tables = format!("[privacy]\ntranscripts = \"{mode}\"\n[records]\nwait_secs = 1");
        let stage = Stage::start(setup("", "completion_wait_secs = 0", &tables)).await;
        live_call(&stage, "conv_1").await;
        let mut socket = Socket::open(&stage, &token()).await;
        socket.follow("conv_1").await;
        say(&stage, "conv_1", "user", "My number is 7.").await;
        assert_eq!(socket.hear_a("transcription").await["message_text"], "My number is 7.", "who follows it hears it");
        assert_eq!(elevenlabs(&stage, &post_call("conv_1")).await.status, 200);
        let url = stage.client(&format!("/calls/conv_1/transcript?token={}", token()));
        let text = async || {
            let polled = stage.send("GET", &url, &[], "").await.json();
            polled["messages"][0]["message_text"].as_str().unwrap().to_owned()
        };
        stage.wait("it is redacted", async || text().await != "My number is 7.").await;
        let text = text().await;
        assert!(text.starts_with(kept) && !text.contains('7') || mode == "hash" && text.len() == 71, "{mode}: {text}");
        stage.finish().await;
    }
}
