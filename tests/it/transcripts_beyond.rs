//! Live transcripts beyond what the replaced systems had: resuming, businesses, slow clients, tokens, partials, many at once.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use serde_json::{Value, json};

use super::support::hooks::{FORM, encoded, now_secs, twilio};
use super::support::postgres as server;
use super::support::redis;
use super::support::rng::Rng;
use super::support::socket::{SECRET, SOCKET, Socket, metric, open_sockets, said, say, setup, token, token_of};
use super::support::stage::{Behind, Setup, Stage};

async fn ready() -> Stage {
    Stage::start(setup("", "completion_wait_secs = 0", "")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_again_resumes_without_gap_or_duplicate() {
    let mut stage = ready().await;
    for n in 1..=300 {
        say(&stage, "conv_1", "user", &format!("line {n}")).await;
    }
    let mut socket = Socket::open(&stage, &token()).await;
    socket.say(&json!({"subscribe": "conv_1", "after": 0})).await;
    let confirmed = socket.hear_a("subscription_confirmed").await;
    let epoch = confirmed["epoch"].as_str().unwrap().to_owned();
    assert_eq!(confirmed["sequence_number"], 300);
    for n in 1..=300 {
        assert_eq!(socket.hear_a("transcription").await["sequence_number"], n);
    }
    socket.hears_nothing().await;
    // The process goes and comes again; what was said is there, and the rest is said meanwhile.
    stage.stop_app().await;
    assert_eq!(socket.closed().await, Some(1012));
    stage.start_app().await;
    say(&stage, "conv_1", "user", "line 301").await;
    let mut socket = Socket::open(&stage, &token()).await;
    socket.say(&json!({"subscribe": "conv_1", "after": 298, "epoch": epoch})).await;
    socket.hear_a("subscription_confirmed").await;
    for n in 299..=301 {
        let message = socket.hear_a("transcription").await;
        assert_eq!((&message["sequence_number"], &message["message_text"]), (&json!(n), &json!(format!("line {n}"))));
    }
    socket.hears_nothing().await;
    // What it has is of no transcript that is there: all of it follows.
    for other in
        [json!({"subscribe": "conv_1", "after": 302}), json!({"subscribe": "conv_1", "after": 3, "epoch": "c_other"})]
    {
        let mut socket = Socket::open(&stage, &token()).await;
        socket.say(&other).await;
        socket.hear_a("subscription_confirmed").await;
        let cannot = socket.hear_a("cannot_resume").await;
        assert_eq!((&cannot["epoch"], &cannot["sequence_number"]), (&json!(epoch), &json!(301)));
        assert_eq!(socket.hear_a("transcription").await["sequence_number"], 1);
    }
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_another_business_is_visible() {
    let businesses = "[businesses]\nidentify_by = [\"agent\"]\n\
                      [businesses.acme]\nplan = \"ENTERPRISE\"\nmax_calls = 9\nagent_ids = [\"agent_acme\"]\n\
                      [businesses.umbrella]\nplan = \"ENTERPRISE\"\nmax_calls = 9\nagent_ids = [\"agent_umbrella\"]\n";
    let stage =
        Stage::start(setup("default_businesses = [\"umbrella\"]", "completion_wait_secs = 0", businesses)).await;
    let first = async |conversation: &str, agent: &str| {
        let body = json!({"conversation_id": conversation, "agent_id": agent, "speaker": "agent", "message": "Hello.",
            "timestamp": "2026-01-02T03:04:05Z"});
        assert_eq!(said(&stage, &body).await.status, 201);
    };
    first("conv_acme", "agent_acme").await;
    first("conv_umbrella", "agent_umbrella").await;
    let of = |businesses: Value| token_of(&json!({"exp": now_secs() + 600, "businesses": businesses}));
    let acme = of(json!(["acme"]));
    let mut socket = Socket::open(&stage, &acme).await;
    assert_eq!(socket.follow("conv_acme").await["conversation_id"], "conv_acme");
    // What may not be seen and what is not there look the same.
    let mut answers = vec![];
    for id in ["conv_umbrella", "conv_nowhere_0"] {
        socket.say(&json!({"subscribe": id})).await;
        answers.push(socket.hear_a("error").await.to_string().replace(id, "ID"));
        socket.say(&json!({"unsubscribe": id})).await;
        answers.push(socket.hear_a("error").await.to_string().replace(id, "ID"));
        let url = stage.client(&format!("/calls/{id}/transcript?token={acme}"));
        let polled = stage.send("GET", &url, &[], "").await;
        assert_eq!((polled.status, &polled.json()["error"]), (404, &json!("CALL_NOT_FOUND")));
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    socket.say(&json!({"subscribe_business": "umbrella"})).await;
    assert_eq!(socket.hear_a("error").await["code"], "CALL_NOT_FOUND");
    // A whole business: its open call, then one that begins.
    socket.say(&json!({"unsubscribe": "conv_acme"})).await;
    socket.hear_a("unsubscribe_confirmed").await;
    let mut all = Socket::open(&stage, &acme).await;
    all.say(&json!({"subscribe_business": "acme"})).await;
    all.hear_a("business_subscribed").await;
    assert_eq!(all.hear_a("subscription_confirmed").await["identifier"], "conv_acme");
    assert_eq!(all.hear_a("transcription").await["conversation_id"], "conv_acme");
    first("conv_umbrella_2", "agent_umbrella").await;
    first("conv_acme_2", "agent_acme").await;
    assert_eq!(all.hear_a("subscription_confirmed").await["identifier"], "conv_acme_2");
    assert_eq!(all.hear_a("transcription").await["conversation_id"], "conv_acme_2");
    // A token that names no business sees what the config says.
    let mut unstated = Socket::open(&stage, &token_of(&json!({"exp": now_secs() + 600}))).await;
    unstated.follow("conv_umbrella").await;
    unstated.say(&json!({"subscribe": "conv_acme"})).await;
    assert_eq!(unstated.hear_a("error").await["code"], "CALL_NOT_FOUND");
    // A renewed token that sees less follows less.
    let mut both = Socket::open(&stage, &of(json!(["acme", "umbrella"]))).await;
    both.follow("conv_acme").await;
    both.follow("conv_umbrella").await;
    both.say(&json!({"token": acme})).await;
    both.hear_a("token_renewed").await;
    say(&stage, "conv_umbrella", "agent", "A secret.").await;
    say(&stage, "conv_acme", "agent", "No secret.").await;
    assert_eq!(both.hear_a("transcription").await["message_text"], "No secret.");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expires_closes_its_socket_unless_it_is_renewed() {
    let stage = ready().await;
    let short = || token_of(&json!({"exp": now_secs() + 2, "businesses": ["*"]}));
    let (mut renewed, mut forgotten) = (Socket::open(&stage, &short()).await, Socket::open(&stage, &short()).await);
    renewed.say(&json!({"token": "nonsense"})).await;
    assert_eq!(renewed.hear_a("error").await["code"], "AUTHENTICATION_FAILED");
    renewed.say(&json!({"token": token()})).await;
    assert!(renewed.hear_a("token_renewed").await["expires_at"].is_string());
    assert_eq!(forgotten.closed().await, Some(4401));
    renewed.hears_nothing().await;
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_shown_in_a_header_or_as_a_subprotocol_too_and_has_so_many_sockets() {
    let client = "sockets_per_token = 2\nallowed_origins = [\"https://app.example.com\"]";
    let stage = Stage::start(setup(client, "", "")).await;
    let token = token();
    let bearer = format!("Bearer {token}");
    let header = Socket::connect(&stage, SOCKET, &[("authorization", &bearer)]).await.ok().unwrap();
    let offered = format!("ringfence, bearer.{token}");
    let mut subprotocol =
        Socket::connect(&stage, SOCKET, &[("sec-websocket-protocol", &offered), ("origin", "https://app.example.com")])
            .await
            .ok()
            .unwrap();
    subprotocol.hears_nothing().await;
    let query = format!("{SOCKET}?token={token}");
    assert_eq!(Socket::connect(&stage, &query, &[]).await.err(), Some(429));
    drop(header.ignore());
    stage.wait("one is gone", async || open_sockets(&stage).await == 1).await;
    assert_eq!(Socket::connect(&stage, &query, &[("origin", "https://evil.example.com")]).await.err(), Some(403));
    assert!(Socket::connect(&stage, &query, &[]).await.is_ok());
    // Pages that may ask are told so, others are not.
    let url = stage.client(&format!("/calls/CA1/transcript?token={token}"));
    for (origin, allowed) in [("https://app.example.com", true), ("https://evil.example.com", false)] {
        let answer = stage.send("OPTIONS", &url, &[("origin", origin)], "").await;
        assert_eq!((answer.status, answer.header("access-control-allow-origin").is_some()), (204, allowed), "{origin}");
    }
    assert_eq!(stage.send("GET", &stage.client(&query), &[], "").await.status, 426);
    stage.finish().await;
}

/// What OpenSSL makes of this, given on its standard input.
fn openssl(words: &[&str], input: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut command = std::process::Command::new("openssl");
    let command = command.args(words).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{words:?}");
    out.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_by_an_rsa_key_of_the_jwks_file_is_believed() {
    let folder = std::env::temp_dir().join(format!("ringfence-jwks-{}", ringfence::ids::CallId::new()));
    std::fs::create_dir_all(&folder).unwrap();
    let url_safe = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    // Keys of the file's, and one that is not in it.
    let keys: Vec<(String, String)> = ["one", "two", "other"]
        .iter()
        .map(|name| {
            let path = folder.join(format!("{name}.pem")).display().to_string();
            openssl(&["genrsa", "-out", &path, "2048"], b"");
            let modulus = openssl(&["rsa", "-in", &path, "-noout", "-modulus"], b"");
            let modulus = String::from_utf8(modulus).unwrap();
            let modulus = hex::decode(modulus.trim().strip_prefix("Modulus=").unwrap()).unwrap();
            (path, url_safe(&modulus))
        })
        .collect();
    let jwk = |kid: &str, n: &str| json!({"kty": "RSA", "alg": "RS256", "use": "sig", "kid": kid, "e": "AQAB", "n": n});
    let file = folder.join("jwks.json");
    std::fs::write(&file, json!({"keys": [jwk("one", &keys[0].1), jwk("two", &keys[1].1)]}).to_string()).unwrap();
    let stage = Stage::start(setup(&format!("jwks_file = \"{}\"", file.display()), "", "")).await;
    let claims = json!({"sub": "user 7", "exp": now_secs() + 600, "businesses": ["*"]});
    let by = |(path, _): &(String, String), header: Value| {
        let signed = format!("{}.{}", url_safe(header.to_string().as_bytes()), url_safe(claims.to_string().as_bytes()));
        let signature = openssl(&["dgst", "-sha256", "-sign", path], signed.as_bytes());
        format!("{SOCKET}?token={signed}.{}", url_safe(&signature))
    };
    for (key, header, is_believed) in [
        (&keys[0], json!({"alg": "RS256", "typ": "JWT", "kid": "one"}), true),
        (&keys[1], json!({"alg": "RS256", "typ": "JWT", "kid": "two"}), true),
        (&keys[1], json!({"alg": "RS256", "typ": "JWT"}), true),
        (&keys[1], json!({"alg": "RS256", "typ": "JWT", "kid": "one"}), false),
        (&keys[2], json!({"alg": "RS256", "typ": "JWT", "kid": "one"}), false),
        (&keys[2], json!({"alg": "RS256", "typ": "JWT"}), false),
        (&keys[0], json!({"alg": "HS256", "typ": "JWT", "kid": "one"}), false),
    ] {
        let refused = Socket::connect(&stage, &by(key, header.clone()), &[]).await.err();
        assert_eq!(refused, (!is_believed).then_some(403), "{header}");
    }
    // The app's secret goes on counting beside the file.
    Socket::open(&stage, &token()).await.hears_nothing().await;
    stage.finish().await;
    let _ = std::fs::remove_dir_all(folder);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_is_told_to_come_back_and_holds_nobody_up() {
    let stage = Stage::start(setup("slow_secs = 1", "", "")).await;
    say(&stage, "conv_1", "user", "Hello.").await;
    let (mut slow, mut quick) = (Socket::open(&stage, &token()).await, Socket::open(&stage, &token()).await);
    slow.follow("conv_1").await;
    quick.follow("conv_1").await;
    let slow_one = slow.ignore();
    // More than the buffers of two systems between the two.
    let text = "x".repeat(60_000);
    let mut n = 1;
    while metric(&stage, "ringfence_slow_client_disconnects_total").await == 0 {
        n += 1;
        assert!(n < 2_000, "120 MB are nowhere");
        say(&stage, "conv_1", "user", &format!("{n} {text}")).await;
        assert_eq!(quick.hear_a("transcription").await["sequence_number"], n);
    }
    stage.wait("the slow one is gone", async || open_sockets(&stage).await == 1).await;
    say(&stage, "conv_1", "user", "Still there?").await;
    assert_eq!(quick.hear_a("transcription").await["message_text"], "Still there?");
    drop(slow_one);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_is_pinged_and_then_gone() {
    let stage = Stage::start(setup("idle_secs = 2", "", "")).await;
    let mut listening = Socket::open(&stage, &token()).await;
    let silent = Socket::open(&stage, &token()).await.ignore();
    // A client that reads answers pings by itself; one that does not read is gone.
    let read = tokio::spawn(async move {
        let code = listening.closed().await;
        (listening, code)
    });
    stage.wait("one of two is gone", async || open_sockets(&stage).await == 1).await;
    assert!(!read.is_finished());
    read.abort();
    drop(silent);
    stage.finish().await;
}

const TRANSCRIPTION: &str = "/webhooks/twilio/transcription";

fn content<'a>(track: &'a str, data: &'a str, is_final: &'a str, sequence: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        ("TranscriptionEvent", "transcription-content"),
        ("TranscriptionSid", "GT1"),
        ("CallSid", "CA1"),
        ("Track", track),
        ("TranscriptionData", data),
        ("Final", is_final),
        ("SequenceId", sequence),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn twilios_transcription_is_shown_while_it_is_said_and_kept_when_it_is() {
    let stage = ready().await;
    let started = [
        ("TranscriptionEvent", "transcription-started"),
        ("TranscriptionSid", "GT1"),
        ("CallSid", "CA1"),
        ("SequenceId", "1"),
    ];
    assert_eq!(twilio(&stage, TRANSCRIPTION, &started).await.status, 204);
    assert!(stage.record("CA1").await.is_none(), "nothing was said yet");
    let hello = content("outbound_track", r#"{"transcript":"Hello.","confidence":0.9}"#, "true", "2");
    assert_eq!(twilio(&stage, TRANSCRIPTION, &hello).await.status, 204);
    let mut socket = Socket::open(&stage, &token()).await;
    socket.follow("CA1").await;
    let half = content("inbound_track", r#"{"transcript":"Good mor"}"#, "false", "4");
    assert_eq!(twilio(&stage, TRANSCRIPTION, &half).await.status, 204);
    let wanted = json!({"type": "partial", "conversation_id": null, "call_sid": "CA1", "speaker_type": "user",
        "message_text": "Good mor", "source_sequence": 4});
    assert_eq!(socket.hear().await, wanted);
    // It comes late, and says less.
    let less = content("inbound_track", r#"{"transcript":"Good"}"#, "false", "3");
    assert_eq!(twilio(&stage, TRANSCRIPTION, &less).await.status, 204);
    let full = content("inbound_track", r#"{"transcript":"Good morning.","confidence":0.9}"#, "true", "5");
    for _ in 0..2 {
        assert_eq!(twilio(&stage, TRANSCRIPTION, &full).await.status, 204);
    }
    let message = socket.hear_a("transcription").await;
    assert_eq!((&message["sequence_number"], &message["source_sequence"]), (&json!(2), &json!(5)));
    assert_eq!((&message["speaker_type"], &message["message_text"]), (&json!("user"), &json!("Good morning.")));
    socket.hears_nothing().await;
    let url = stage.client(&format!("/calls/CA1/transcript?token={}", token()));
    let polled = stage.send("GET", &url, &[], "").await.json();
    let said: Vec<&Value> = polled["messages"].as_array().unwrap().iter().map(|m| &m["message_text"]).collect();
    assert_eq!(said, [&json!("Hello."), &json!("Good morning.")]);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_polls_reads_what_arrived_out_of_order_in_the_order_that_it_was_said_in() {
    let stage = ready().await;
    let mut socket: Option<Socket> = None;
    let said = [
        ("GT1", "3", "inbound_track", "c"),
        ("GT1", "2", "outbound_track", "b"),
        ("GT1", "5", "outbound_track", "e"),
        // Started anew: its numbers begin again.
        ("GT2", "4", "inbound_track", "g"),
        ("GT1", "4", "inbound_track", "d"),
        ("GT2", "2", "inbound_track", "f"),
    ];
    for (n, (transcription, sequence, track, text)) in (1..).zip(said) {
        let data = json!({"transcript": text, "confidence": 0.9}).to_string();
        let mut form = content(track, &data, "true", sequence);
        form[1].1 = transcription;
        assert_eq!(twilio(&stage, "/webhooks/twilio/transcription", &form).await.status, 204);
        match &mut socket {
            None => {
                socket = Some(Socket::open(&stage, &token()).await);
                socket.as_mut().unwrap().follow("CA1").await;
            }
            // Live, its number says when it came.
            Some(socket) => assert_eq!(socket.hear_a("transcription").await["sequence_number"], n),
        }
    }
    let polled = async |query: &str| {
        let url = stage.client(&format!("/calls/CA1/transcript?token={}{query}", token()));
        let polled = stage.send("GET", &url, &[], "").await.json();
        let messages = polled["messages"].as_array().unwrap();
        let texts: String = messages.iter().map(|m| m["message_text"].as_str().unwrap()).collect();
        let mut numbers: Vec<i64> = messages.iter().map(|m| m["sequence_number"].as_i64().unwrap()).collect();
        numbers.sort_unstable();
        (texts, numbers, polled["next_after"].as_i64().unwrap())
    };
    assert_eq!(polled("").await, ("bcdfeg".to_owned(), vec![1, 2, 3, 4, 5, 6], 6));
    assert_eq!(polled("&limit=2").await, ("bc".to_owned(), vec![1, 2], 2));
    assert_eq!(polled("&after=2").await, ("dfeg".to_owned(), vec![3, 4, 5, 6], 6), "none is missing, none comes twice");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_closes_the_sockets_whose_token_counts_no_longer() {
    const OTHER: &str = "another secret that the app signs its tokens with";
    let one = format!("token_secret = \"{SECRET}\"\ndefault_businesses = [\"default\"]");
    let both = one.replace(&format!("\"{SECRET}\""), &format!("[\"{SECRET}\", \"{OTHER}\"]"));
    let stage = Stage::start(setup("default_businesses = [\"default\"]", "", "")).await;
    stage.rewrite(&one, &both);
    assert_eq!(stage.reload().await.json()["result"], "loaded");
    let claims = json!({"exp": now_secs() + 600, "businesses": ["*"]});
    let by_other = ringfence::jws::sign(OTHER.as_bytes(), &claims).unwrap();
    let (mut stays, mut goes) = (Socket::open(&stage, &token()).await, Socket::open(&stage, &by_other).await);
    let mut renewed = Socket::open(&stage, &by_other).await;
    renewed.say(&json!({"token": token()})).await;
    renewed.hear_a("token_renewed").await;
    let mut unstated = Socket::open(&stage, &token_of(&json!({"exp": now_secs() + 600}))).await;
    say(&stage, "conv_1", "user", "Hello.").await;
    for socket in [&mut stays, &mut goes, &mut renewed, &mut unstated] {
        socket.follow("conv_1").await;
    }
    stage.rewrite(&both, &one.replace("[\"default\"]", "[\"other\"]"));
    assert_eq!(stage.reload().await.json()["result"], "loaded");
    assert_eq!(goes.closed().await, Some(4401));
    say(&stage, "conv_1", "user", "Still there?").await;
    for socket in [&mut stays, &mut renewed] {
        assert_eq!(socket.hear_a("transcription").await["sequence_number"], 2);
    }
    unstated.say(&json!({"subscribe": "conv_1"})).await;
    assert_eq!(unstated.hear_a("error").await["code"], "CALL_NOT_FOUND", "it sees another business now");
    stage.finish().await;
}

/// Senders × utterances; every fourth is sent twice at once, and each sender's go in no order.
async fn many_at_once(store: &str) {
    const SENDERS: usize = 200;
    const EACH: usize = 50;
    const CALLS: usize = 10;
    let stage = std::sync::Arc::new(Stage::start(setup("", "", store)).await);
    let (mut tasks, mut rng) = (tokio::task::JoinSet::new(), Rng::new("many at once"));
    for sender in 0..SENDERS {
        let (stage, mut rng) = (stage.clone(), rng.fork());
        tasks.spawn(async move {
            let mut order: Vec<usize> = (0..EACH).collect();
            for n in (1..EACH).rev() {
                order.swap(n, rng.below(n as u64 + 1) as usize);
            }
            let mut got = vec![];
            for n in order {
                let conversation = format!("conv_{}", sender % CALLS);
                let text = format!("{sender} says {n}");
                let (first, again) = if n % 4 == 0 {
                    let both = tokio::join!(
                        say(&stage, &conversation, "user", &text),
                        say(&stage, &conversation, "user", &text)
                    );
                    (both.0, Some(both.1))
                } else {
                    (say(&stage, &conversation, "user", &text).await, None)
                };
                assert!(again.is_none_or(|again| again == first));
                got.push((conversation, first["sequence_number"].as_u64().unwrap()));
            }
            got
        });
    }
    let mut got: Vec<(String, u64)> = tasks.join_all().await.into_iter().flatten().collect();
    got.sort();
    let per_call = (SENDERS / CALLS * EACH) as u64;
    let mut wanted: Vec<(String, u64)> =
        (0..CALLS).flat_map(|call| (1..=per_call).map(move |n| (format!("conv_{call}"), n))).collect();
    wanted.sort();
    assert!(got == wanted, "numbers are missing or were given out twice");
    let open = stage.app().calls().lifecycle.store.open_calls().await.unwrap();
    assert_eq!((open.len(), stage.held().await), (CALLS, 0), "a record each, and no place for an app's word");
    std::sync::Arc::into_inner(stage).unwrap().finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_200_say_at_once_has_no_gaps_over_sqlite() {
    many_at_once("[store]\npath = \"ringfence.db\"\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_200_say_at_once_has_no_gaps_over_postgres() {
    if server::is_missing() {
        return;
    }
    let url = tokio::task::spawn_blocking(|| server::shared().database()).await.unwrap();
    many_at_once(&format!("[store]\nurl = \"{url}\"\n")).await;
}

/// Two processes over one record: what one hears, the other's subscribers get; over a channel also what is half said.
async fn reaches_another(gate: &str, has_channel: bool) {
    let folder = std::env::temp_dir().join(format!("ringfence-it-{}", ringfence::ids::CallId::new()));
    std::fs::create_dir_all(&folder).unwrap();
    let shared = format!("[store]\npath = \"{}\"\n[gate]\n{gate}\n", folder.join("shared.db").display());
    let one = || Setup { public: false, ..setup("", "completion_wait_secs = 0", &shared) };
    let (hears, shows) = (Stage::start(one()).await, Stage::start(one()).await);
    say(&hears, "conv_1", "agent", "Hello.").await;
    let mut socket = Socket::open(&shows, &token()).await;
    socket.follow("conv_1").await;
    for n in 2..=5 {
        say(&hears, "conv_1", "agent", &format!("line {n}")).await;
        assert_eq!(socket.hear_a("transcription").await["sequence_number"], n);
    }
    if has_channel {
        let by_twilio = content("outbound_track", r#"{"transcript":"Hello."}"#, "true", "2");
        assert_eq!(twilio(&hears, TRANSCRIPTION, &by_twilio).await.status, 204);
        socket.follow("CA1").await;
        // Who does not listen yet misses it; another comes a moment later.
        let speaks = async {
            for n in 3.. {
                let n = format!("{n}");
                let half = content("inbound_track", r#"{"transcript":"Good mor"}"#, "false", &n);
                assert_eq!(twilio(&hears, TRANSCRIPTION, &half).await.status, 204);
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let partial = tokio::select! {
            partial = socket.hear_a("partial") => partial,
            () = speaks => panic!("it is not heard"),
        };
        assert_eq!((&partial["message_text"], &partial["speaker_type"]), (&json!("Good mor"), &json!("user")));
    }
    let record = hears.record("conv_1").await.unwrap();
    let lifecycle = &hears.app().calls().lifecycle;
    let (outcome, proof) = (ringfence::call::Outcome::Completed, ringfence::call::EndProof::Operator);
    lifecycle.end(&record.id, outcome, proof, ringfence::call::Source::Operator).await.unwrap();
    socket.hear_a("call_status").await;
    socket.hear_a("call_completed").await;
    hears.finish().await;
    shows.finish().await;
    let _ = std::fs::remove_dir_all(folder);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_at_one_replica_reaches_the_subscriber_at_another() {
    Box::pin(reaches_another("backend = \"database\"", false)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_at_one_replica_reaches_the_subscriber_at_another_over_redis() {
    if redis::is_missing() {
        return;
    }
    let redis = tokio::task::block_in_place(redis::Redis::plain);
    let gate = format!("backend = \"redis\"\nredis_url = \"{}\"\ntimeout_ms = 1000", redis.url());
    Box::pin(reaches_another(&gate, true)).await;
}

/// A call that Twilio carries and transcribes, as its simulation has it, from the first word to the last.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_twilio_transcribes_is_followed_to_its_end() {
    let mut setup = setup("", "completion_wait_secs = 0", "");
    setup.sim.utterance_ms = ringfence_simulator::Millis::exactly(20);
    let stage = Stage::start(setup).await;
    let placed = stage.dial(None, "+15550002201").await.json();
    let sid = placed["callSid"].as_str().unwrap();
    let mut socket = Socket::open(&stage, &token()).await;
    socket.follow(sid).await;
    let s = stage.control.settings();
    let callback = stage.webhooks("/webhooks/twilio/transcription");
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", s.account_sid, s.auth_token));
    let headers = [FORM, ("authorization", &format!("Basic {pair}"))];
    let url = stage.api(&format!("/twilio/2010-04-01/Accounts/{}/Calls/{sid}/Transcriptions.json", s.account_sid));
    // Only a call that was answered can be transcribed.
    let form = encoded(&[("StatusCallbackUrl", &callback)]);
    stage
        .wait("it is transcribed", async || stage.send("POST", &url, &headers, form.clone()).await.status == 200)
        .await;
    let mut speakers = vec![];
    for n in 1..=4 {
        let message = socket.hear_a("transcription").await;
        assert_eq!((&message["sequence_number"], &message["call_sid"]), (&json!(n), &json!(sid)));
        speakers.push(message["speaker_type"].as_str().unwrap().to_owned());
    }
    assert_eq!(speakers, ["agent", "user", "agent", "user"]);
    stage.control.end_call(sid);
    let mut last = json!({"type": "transcription"});
    while last["type"] == "transcription" {
        last = socket.hear().await;
    }
    assert_eq!((&last["type"], &last["status"]), (&json!("call_status"), &json!("completed")));
    socket.hear_a("call_completed").await;
    stage.finish().await;
}

/// The browser. Without one a test is skipped, except in CI.
fn chromium() -> Option<&'static str> {
    let places = ["/usr/bin/chromium", "/usr/bin/chromium-browser"];
    let found = places.into_iter().find(|path| Path::new(path).exists());
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "there is no Chromium here: apt-get install chromium");
        eprintln!("skipped: there is no Chromium here (Debian: chromium)");
    }
    found
}

/// The page of docs/live-transcripts.md in a real browser.
#[tokio::test(flavor = "multi_thread")]
async fn the_documented_page_follows_a_call_in_a_real_browser() {
    let Some(chromium) = chromium() else { return };
    let stage = ready().await;
    for n in 1..=3 {
        say(&stage, "conv_1", "agent", &format!("line {n}")).await;
    }
    let page = include_str!("../../docs/live-transcripts.md");
    let (_, rest) = page.split_once("<script>\n").expect("a page");
    let script = rest.split_once("</script>").expect("its end").0;
    let socket = stage.client(SOCKET).replace("http://", "ws://");
    let script = script.replace("`wss://calls.example.com/ws/calls/transcriptions`", &format!("{socket:?}"));
    assert!(script.contains(&socket), "{script}");
    let page = format!(
        "<!DOCTYPE html><meta charset=utf-8><body><script>{script}\nfollow(\"conv_1\", {:?});\n\
         new MutationObserver(() => fetch(\"/seen\", {{method: \"POST\", body: document.body.innerText}}))\
         .observe(document.body, {{childList: true, subtree: true}});</script>",
        token()
    );
    let behind = Behind::replying(Box::new(move |got| {
        let mut answer = http::Response::new(if got.method == "GET" { page.clone().into() } else { Bytes::new() });
        answer.headers_mut().insert("content-type", "text/html; charset=utf-8".parse().unwrap());
        answer
    }))
    .await;
    let profile = std::env::temp_dir().join(format!("ringfence-chromium-{}", ringfence::ids::CallId::new()));
    let mut browser = tokio::process::Command::new(chromium)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
        .arg(format!("--user-data-dir={}", profile.display()))
        // Without it a page is only shown once and left.
        .arg("--remote-debugging-port=0")
        .arg(behind.url())
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let sees = async |text: &str| {
        stage
            .wait(text, async || {
                let got = behind.got();
                got.iter().any(|got| got.method == "POST" && String::from_utf8_lossy(&got.body).contains(text))
            })
            .await;
    };
    sees("agent: line 3").await;
    say(&stage, "conv_1", "user", "What is said now \u{1F600}").await;
    sees("user: What is said now \u{1F600}").await;
    let seen = behind.got().iter().map(|got| String::from_utf8_lossy(&got.body).into_owned()).last().unwrap();
    assert_eq!(seen.matches("line 1").count(), 1, "{seen}");
    browser.kill().await.unwrap();
    let _ = std::fs::remove_dir_all(profile);
    stage.finish().await;
}

/// Clients of before ringfence: the app's own id, bare lists, calls, and messages that do not say when.
#[tokio::test(flavor = "multi_thread")]
async fn clients_of_before_find_their_calls_by_the_apps_own_id() {
    let stage = Stage::start(setup("", "user_label = \"driver\"", "")).await;
    let body = json!({
        "agent_id": "agent_acme", "agent_phone_number_id": "phnum_1", "to_number": "+15550002222",
        "conversation_initiation_client_data": {"dynamic_variables": {"call_sid": "EL_7_1760000000"}},
    });
    let key = stage.control.settings().el_api_key;
    let headers = [("content-type", "application/json"), ("xi-api-key", key.as_str())];
    let url = stage.api("/elevenlabs/v1/convai/twilio/outbound-call");
    assert_eq!(stage.send("POST", &url, &headers, body.to_string()).await.status, 200);
    assert_eq!(stage.held().await, 1);
    let spoken = json!({"call_sid": "EL_7_1760000000", "speaker": "user", "message": "I am at the gate."});
    let answer = said(&stage, &spoken).await;
    assert_eq!((answer.status, &answer.json()["sequence_number"]), (201, &json!(1)), "{answer:?}");
    assert_eq!(stage.held().await, 1, "it is the call that was placed");
    let get = async |path: &str| {
        let mark = if path.contains('?') { '&' } else { '?' };
        let answer = stage.send("GET", &stage.client(&format!("{path}{mark}token={}", token())), &[], "").await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.json()
    };
    let list = get("/calls/EL_7_1760000000/transcript").await;
    assert_eq!(list.as_array().map(Vec::len), Some(1), "{list}");
    assert_eq!((&list[0]["role"], &list[0]["text"]), (&json!("driver"), &json!("I am at the gate.")));
    assert_eq!(list[0]["sequence_number"], 1);
    assert!(list[0]["timestamp"].is_string());
    assert_eq!(get("/calls/EL_7_1760000000/transcript?after=0").await["messages"][0]["call_sid"], "EL_7_1760000000");
    let full = get("/calls/EL_7_1760000000/full").await;
    assert_eq!((&full["call_sid"], &full["status"]), (&json!("EL_7_1760000000"), &json!("in_progress")));
    assert_eq!((&full["transcript_count"], &full["transcript"]), (&json!(1), &list));
    assert_eq!(get("/calls/active").await.as_array().map(Vec::len), Some(1));
    assert_eq!(get("/calls?status=completed").await, json!([]));
    assert_eq!(get("/calls?limit=5").await[0]["call_sid"], "EL_7_1760000000");
    let mine = get("/calls?driver_id=7").await;
    assert_eq!((mine.as_array().map(Vec::len), &mine[0]["driver_id"]), (Some(1), &json!("7")));
    assert_eq!((&mine[0]["trip_id"], &mine[0]["driver_name"]), (&Value::Null, &Value::Null));
    for other in ["/calls?driver_id=17", "/calls?driver_id=", "/calls?driver_id=7_1760000000"] {
        assert_eq!(get(other).await, json!([]), "{other}");
    }
    let denied = stage.send("GET", &stage.client("/calls"), &[], "").await;
    assert_eq!(denied.status, 403, "{denied:?}");
    stage.finish().await;
}
