//! Orders that are sent again: recognised where the app cannot know what became of the first, distinct where it can.

use std::sync::Arc;
use std::time::Duration;

use ringfence::call::{Outcome, Phase};
use ringfence_simulator::{Fault, FaultKind, Millis, Provider, SimSettings};
use serde_json::json;

use crate::outbound::{EXCHANGE_MS, account_at, all_free, basic, blind, elevenlabs, id, once, order, talk};
use crate::support::child::Scene;
use crate::support::net::Wire;
use crate::support::stage::{Answer, Behind, PATIENCE, Setup, Stage, grown};

const DUPLICATE: &str = "x-ringfence-duplicate-of";
const OUTBOUND: &str = "/elevenlabs/v1/convai/twilio/outbound-call";

fn slow(stage: &Stage, provider: Provider, ms: u64) {
    stage.control.fault(Fault { ms, ..Fault::next(provider, FaultKind::Slow, 1) });
}

/// Sends what [`elevenlabs`] or [`talk`] send, on a connection of its own.
async fn ask(stage: &Stage, provider: Provider, to: &str) -> Wire {
    let (path, headers, body) = match provider {
        Provider::ElevenLabs => {
            let key = stage.control.settings().el_api_key;
            let headers = format!("xi-api-key: {key}\r\nContent-Type: application/json");
            (OUTBOUND.to_owned(), headers, order(to).to_string())
        }
        Provider::Twilio => {
            let headers =
                format!("Authorization: {}\r\nContent-Type: application/x-www-form-urlencoded", basic(&stage.control));
            let pairs = [("To", to), ("From", "+15550001111"), ("Twiml", crate::outbound::TALK)];
            let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
            let sid = stage.control.settings().account_sid;
            (format!("/twilio/2010-04-01/Accounts/{sid}/Calls.json"), headers, form)
        }
    };
    let mut app = Wire::connect(stage.app().api()).await;
    let length = body.len();
    app.send(format!("POST {path} HTTP/1.1\r\nHost: a\r\n{headers}\r\nContent-Length: {length}\r\n\r\n{body}")).await;
    app
}

/// Dials, waits until the provider has it, and hangs up.
async fn dial_and_hang_up(stage: &Stage, provider: Provider, to: &str) {
    let before = dialled(stage);
    let app = ask(stage, provider, to).await;
    stage.wait("the provider has it", async || dialled(stage) > before).await;
    drop(app);
}

/// Dials, and hangs up if nothing has come within this time. `None`: it hung up, or was not answered 200.
async fn dial_for(stage: &Stage, patience: Duration, to: &str) -> Option<String> {
    read_id(ask(stage, Provider::ElevenLabs, to).await, patience).await
}

async fn read_id(mut app: Wire, patience: Duration) -> Option<String> {
    tokio::time::timeout(patience, app.readable()).await.ok()?;
    let head = app.head().await?;
    let length = head.lines().find_map(|l| l.to_lowercase().strip_prefix("content-length: ")?.parse().ok())?;
    let body = app.exactly(length).await?;
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    head.starts_with("HTTP/1.1 200").then(|| body["conversation_id"].as_str().unwrap().to_owned())
}

async fn dial_either(stage: &Stage, provider: Provider, to: &str) -> Answer {
    match provider {
        Provider::ElevenLabs => elevenlabs(stage, OUTBOUND, &[], &order(to)).await,
        Provider::Twilio => talk(stage, to, &[]).await,
    }
}

fn dialled(stage: &Stage) -> u64 {
    let counts = stage.control.counts();
    counts.creates_el + counts.creates_tw
}

const BOTH: [Provider; 2] = [Provider::ElevenLabs, Provider::Twilio];

/// The client's time-out passed, its next try comes while the first is still under way: one call, the provider's own answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hung_up_and_comes_again_gets_the_first_orders_answer() {
    for provider in BOTH {
        // A single slot: the earlier order holds it, and must not refuse its own repeat.
        let stage = Stage::start(Setup { root: "concurrent = 1".to_owned(), ..Setup::default() }).await;
        slow(&stage, provider, 700);
        dial_and_hang_up(&stage, provider, "+15550002001").await;
        // Twice: the second try is given up, too.
        let again = dial_either(&stage, provider, "+15550002001").await;
        assert!(matches!(again.status, 200 | 201), "{again:?}");
        let record = stage.app().calls().lifecycle.store.open_calls().await.unwrap().remove(0);
        assert_eq!(again.header(DUPLICATE), Some(record.id.as_str()));
        let sid = if provider == Provider::Twilio { id(&again, "sid") } else { id(&again, "conversation_id") };
        assert!(record.aliases.iter().any(|a| a.id == sid), "the answer is the call's");
        assert_eq!((dialled(&stage), stage.held().await), (1, 1));
        let metrics = stage.ask("/metrics").await;
        assert!(grown(&metrics, "ringfence_deduplicated_requests_total").is_some(), "it is counted");
        // Its answer has been delivered: the next equal order is a call of its own, for which there is no slot.
        let next = dial_either(&stage, provider, "+15550002001").await;
        assert_eq!((next.status, next.header(DUPLICATE)), (503, None));
        stage.control.end_call(&sid);
        all_free(&stage).await;
        stage.finish().await;
    }
}

/// The connection breaks after the call was dialled: the next try waits for the look-up and gets the ids.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_whose_answer_was_lost_is_found_for_who_sends_it_again() {
    for provider in BOTH {
        for kind in [FaultKind::AcceptThenDrop, FaultKind::ServerErrorAfterCreate] {
            let stage = Stage::start(Setup::default()).await;
            stage.control.set_webhook_loss(1.0);
            stage.control.fault(Fault::next(provider, kind, 1));
            let first = dial_either(&stage, provider, "+15550002001").await;
            assert!(matches!(first.status, 424 | 504), "{first:?}");
            let again = dial_either(&stage, provider, "+15550002001").await;
            assert!(matches!(again.status, 200 | 201), "{provider:?} {kind:?}: {again:?}");
            let sim = stage.control.calls().remove(0);
            let (name, sid) = match provider {
                Provider::ElevenLabs => ("conversation_id", sim.conversation_id),
                Provider::Twilio => ("sid", sim.call_sid),
            };
            assert_eq!(Some(id(&again, name)), sid, "an answer in the provider's shape, with the call's id");
            assert!(again.header(DUPLICATE).is_some());
            assert_eq!((dialled(&stage), stage.held().await), (1, 1));
            stage.control.end_call(&sid.unwrap());
            all_free(&stage).await;
            stage.finish().await;
        }
    }
}

/// Several wait for the outcome of one order; the first that is told must not make the others start anew.
#[tokio::test(flavor = "multi_thread")]
async fn all_who_wait_for_an_unknown_order_get_its_answer() {
    let stage = Stage::start(Setup { root: "concurrent = 20".to_owned(), ..Setup::default() }).await;
    blind(&stage.control);
    stage.control.set_webhook_loss(1.0);
    stage.control.fault(Fault::next(Provider::ElevenLabs, FaultKind::AcceptThenDrop, 1));
    assert_eq!(stage.dial(None, "+15550002001").await.status, 424);
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let app = ask(&stage, Provider::ElevenLabs, "+15550002001").await;
        // Each hangs up as soon as it has its answer.
        waiting.spawn(read_id(app, PATIENCE));
        // They look at different moments.
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    stage.control.clear_faults(None);
    let ids: std::collections::BTreeSet<_> = waiting.join_all().await.into_iter().collect();
    assert_eq!((ids.len(), dialled(&stage)), (1, 1), "{ids:?}");
    assert!(ids.iter().all(Option::is_some));
    stage.finish().await;
}

/// Nobody waits for a client that has gone: not with its body in memory until the time-out.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_whose_client_hangs_up_stops_waiting() {
    // No create is given up before the test is.
    let setup = Setup { timeouts: "create_secs = 60".to_owned(), ..Setup::default() };
    let stage = Stage::start(setup).await;
    blind(&stage.control);
    stage.control.set_webhook_loss(1.0);
    stage.control.fault(Fault::next(Provider::ElevenLabs, FaultKind::AcceptThenDrop, 1));
    assert_eq!(stage.dial(None, "+15550002001").await.status, 424);
    let tasks = &stage.app().calls().tasks;
    stage.wait("the first is settled", async || tasks.is_empty()).await;
    let apps = [
        ask(&stage, Provider::ElevenLabs, "+15550002001").await,
        ask(&stage, Provider::ElevenLabs, "+15550002001").await,
    ];
    stage.wait("both wait", async || tasks.len() == 2).await;
    drop(apps);
    stage.wait("neither does any more", async || tasks.is_empty()).await;
    assert_eq!((dialled(&stage), stage.held().await), (1, 1));
    // Whoever comes next is told all the same.
    stage.control.clear_faults(None);
    let again = stage.dial(None, "+15550002001").await;
    assert_eq!((again.status, dialled(&stage)), (200, 1));
    assert!(again.header(DUPLICATE).is_some());
    stage.finish().await;
}

/// It was given up, as look-ups found nothing, and then its answer came: its repeat is the call that lives.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_was_given_up_and_lives_is_not_dialled_again() {
    for key in [vec![], vec![("idempotency-key", "k")]] {
        let sim = SimSettings { tw_list_lag_ms: 600_000, ..Setup::default().sim };
        let stage = Stage::start(Setup { sim, timeouts: "create_secs = 1".to_owned(), ..Setup::default() }).await;
        stage.control.set_webhook_loss(1.0);
        slow(&stage, Provider::Twilio, 5_000);
        let basic = basic(&stage.control);
        let form = [("authorization", basic.as_str()), ("content-type", "application/x-www-form-urlencoded")];
        let headers: Vec<_> = form.into_iter().chain(key).collect();
        let path = format!("/twilio/2010-04-01/Accounts/{}/Calls.json", stage.control.settings().account_sid);
        let body = "To=%2B15550002001&From=%2B15550001111&Twiml=%3CResponse%2F%3E";
        let send = async || stage.send("POST", &stage.api(&path), &headers, body).await;
        assert_eq!(send().await.status, 504);
        stage.clock.advance_ms(EXCHANGE_MS);
        stage.wait("it is given up", async || stage.held().await == 0).await;
        stage.wait("the late answer makes it count again", async || stage.held().await == 1).await;
        let sid = stage.control.calls().remove(0).call_sid.unwrap();
        let again = send().await;
        assert_eq!((again.status, id(&again, "sid")), (201, sid), "{again:?}");
        assert!(again.header(DUPLICATE).is_some());
        assert_eq!((dialled(&stage), stage.held().await), (1, 1));
        stage.finish().await;
    }
}

/// Nothing was dialled: proven so, the repeat is dialled, once.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_was_proven_not_created_is_dialled_by_its_repeat() {
    for provider in BOTH {
        let stage = Stage::start(Setup::default()).await;
        stage.control.fault(Fault::next(provider, FaultKind::ServerError, 1));
        let first = dial_either(&stage, provider, "+15550002001").await;
        assert!(matches!(first.status, 424 | 504), "{first:?}");
        assert!(stage.control.calls().is_empty());
        let again = dial_either(&stage, provider, "+15550002001").await;
        assert!(matches!(again.status, 200 | 201), "{again:?}");
        assert_eq!(again.header(DUPLICATE), None, "this one was dialled");
        assert_eq!((stage.control.calls().len(), stage.held().await), (1, 1));
        stage.finish().await;
    }
}

/// Refusals leave nothing to come again to, and neither do answers that say no.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_is_tried_anew() {
    let stage = Stage::start(Setup::default()).await;
    for kind in [FaultKind::TooManyConcurrent, FaultKind::PaymentRequired, FaultKind::SuccessFalse] {
        stage.control.fault(Fault::next(Provider::ElevenLabs, kind, 1));
        let first = stage.dial(None, "+15550002001").await;
        let again = stage.dial(None, "+15550002001").await;
        assert_eq!((again.status, again.header(DUPLICATE)), (200, None), "{kind:?} after {first:?}");
        stage.control.end_call(&id(&again, "conversation_id"));
        all_free(&stage).await;
    }
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_orders_in_parallel_or_after_a_delivered_answer_are_distinct_calls() {
    let stage = Arc::new(Stage::start(Setup { root: "concurrent = 20".to_owned(), ..Setup::default() }).await);
    for i in 0..2 {
        slow(&stage, Provider::ElevenLabs, 300 + i);
    }
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let stage = stage.clone();
        tasks.spawn(async move { stage.dial(None, "+15550002001").await });
    }
    let mut answers = tasks.join_all().await;
    answers.push(stage.dial(None, "+15550002001").await);
    let mut ids: Vec<String> = answers.iter().map(|a| id(a, "conversation_id")).collect();
    ids.sort();
    ids.dedup();
    assert_eq!((ids.len(), dialled(&stage)), (5, 5));
    assert!(answers.iter().all(|a| a.header(DUPLICATE).is_none()));
    Arc::into_inner(stage).expect("every task is done").finish().await;
}

/// A call that is over for a while is not what the app means when it dials the number again.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_sent_again_long_after_its_calls_end_is_a_new_call() {
    let stage = Stage::start(Setup::default()).await;
    slow(&stage, Provider::ElevenLabs, 300);
    dial_and_hang_up(&stage, Provider::ElevenLabs, "+15550002001").await;
    let record = stage.app().calls().lifecycle.store.latest_calls(1).await.unwrap().remove(0);
    let bound = once(&stage, record.id.as_str(), "its ids are learnt", |r| r.alias("conversation_id").is_some()).await;
    stage.control.end_call(bound.alias("conversation_id").unwrap());
    once(&stage, record.id.as_str(), "it is over", |r| r.phase == Phase::Ended).await;
    stage.clock.advance_ms(11_000);
    let next = stage.dial(None, "+15550002001").await;
    assert_eq!((next.status, next.header(DUPLICATE)), (200, None));
    assert_eq!(dialled(&stage), 2);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_knows_the_orders_that_may_come_again() {
    let mut stage = Stage::start(Setup::default()).await;
    blind(&stage.control);
    stage.control.set_webhook_loss(1.0);
    stage.control.fault(Fault::next(Provider::ElevenLabs, FaultKind::AcceptThenDrop, 1));
    assert_eq!(stage.dial(None, "+15550002001").await.status, 424);
    let delivered = stage.dial(None, "+15550002002").await;
    assert_eq!(delivered.status, 200);
    stage.stop_app().await;
    stage.control.clear_faults(None);
    stage.start_app().await;
    let again = stage.dial(None, "+15550002001").await;
    assert_eq!(again.status, 200, "{again:?}");
    assert!(again.header(DUPLICATE).is_some());
    // Nobody knows whether the other's answer got there: within a minute its repeat is not dialled either.
    let unsure = stage.dial(None, "+15550002002").await;
    assert_eq!(id(&unsure, "conversation_id"), id(&delivered, "conversation_id"));
    assert_eq!(
        unsure.json(),
        json!({"success": true, "message": "Success", "conversation_id": id(&delivered, "conversation_id"), "callSid": id(&delivered, "callSid")})
    );
    assert_eq!((dialled(&stage), stage.held().await), (2, 2));
    stage.finish().await;
}

/// The process died between the record and the request. Nobody knows whether it was sent, so its repeat waits for proof: it is
/// neither told of a call that is none, nor dialled beside one that may be there.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_died_with_its_process_is_dialled_once_by_its_repeat() {
    let mut scene = Scene::usual().await;
    scene.start("create.sending=abort").await;
    let to = scene.number();
    assert!(scene.dial_to(&to).await.is_none(), "it died");
    assert!(scene.died(PATIENCE).await.is_some());
    scene.start_well().await;
    let again = scene.dial_to(&to).await.unwrap();
    assert_eq!(again.status, 200, "{again:?}");
    assert_eq!(again.header(DUPLICATE), None, "this one was dialled");
    assert!(again.json()["conversation_id"].is_string(), "{again:?}");
    assert_eq!((scene.control.counts().creates_el, scene.held().await), (1, 1));
    scene.finish().await;
}

// === idempotency keys ===

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_names_one_call_however_often_it_comes() {
    let stage = Arc::new(Stage::start(Setup { root: "concurrent = 20".to_owned(), ..Setup::default() }).await);
    slow(&stage, Provider::ElevenLabs, 300);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let stage = stage.clone();
        tasks.spawn(async move {
            elevenlabs(&stage, OUTBOUND, &[("idempotency-key", "order-17")], &order("+15550002001")).await
        });
    }
    let answers = tasks.join_all().await;
    let ids: std::collections::BTreeSet<String> = answers.iter().map(|a| id(a, "conversation_id")).collect();
    assert_eq!((ids.len(), dialled(&stage)), (1, 1), "{ids:?}");
    assert_eq!(answers.iter().filter(|a| a.header(DUPLICATE).is_none()).count(), 1);
    // Another body under the same key is a mistake of the app's.
    let other = elevenlabs(&stage, OUTBOUND, &[("idempotency-key", "order-17")], &order("+15550002002")).await;
    assert_eq!((other.status, &other.json()["error"]), (422, &json!("IDEMPOTENCY_KEY_REUSED")));
    // Long over, the key still names its call; another key is another call.
    let conversation = ids.into_iter().next().unwrap();
    stage.control.end_call(&conversation);
    all_free(&stage).await;
    stage.clock.advance_ms(60_000);
    let late = elevenlabs(&stage, OUTBOUND, &[("idempotency-key", "order-17")], &order("+15550002001")).await;
    assert_eq!(id(&late, "conversation_id"), conversation);
    let next = elevenlabs(&stage, OUTBOUND, &[("idempotency-key", "order-18")], &order("+15550002001")).await;
    assert_ne!(id(&next, "conversation_id"), conversation);
    assert_eq!(dialled(&stage), 2);
    Arc::into_inner(stage).expect("every task is done").finish().await;
}

/// A provider whose answers hold what nobody could make up.
async fn with_answers_of_its_own() -> Behind {
    let n = std::sync::atomic::AtomicU32::new(0);
    Behind::replying(Box::new(move |got| {
        let n = n.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        // Of what registers a call the conversation stands in its TwiML.
        let body = match got.path_and_query.contains("register-call") {
            true => format!("<Response><Connect><Stream url=\"wss://x\"><Parameter name=\"conversation_id\" value=\"conv_own_{n}\"/></Stream></Connect><!-- {n} --></Response>"),
            false => format!("{{\"success\":  true, \"conversation_id\":\"conv_own_{n}\",\"id\":\"batch_{n}\",\"name\":\"n\\u00e9\",\"more\":[{n}, null]}}\n"),
        };
        let answer = http::Response::builder().status(200).header("content-type", "application/json; charset=x");
        let value = http::HeaderValue::from_bytes(b"caf\xe9").unwrap();
        answer.header("x-of-provider", value).header("x-many", "1").header("x-many", "2").body(body.into()).unwrap()
    }))
    .await
}

const OF_OWN: [&str; 3] = ["content-type", "x-of-provider", "x-many"];

fn headers_of(answer: &Answer) -> Vec<Vec<&[u8]>> {
    OF_OWN.map(|name| answer.headers.get_all(name).iter().map(http::HeaderValue::as_bytes).collect()).to_vec()
}

/// Whoever sends an order again gets the bytes of the first answer, from this process and from the next.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_gets_the_bytes_of_the_first_answer() {
    let provider = with_answers_of_its_own().await;
    let tables = account_at("own", "elevenlabs", &provider.url());
    let root = "concurrent = 20".to_owned();
    let mut stage = Stage::start(Setup { root, tables, ..Setup::default() }).await;
    let whatsapp = json!({"agent_id": "agent_acme", "whatsapp_phone_number_id": "w1", "whatsapp_user_id": "u1",
        "whatsapp_call_permission_request_template_name": "t",
        "whatsapp_call_permission_request_template_language_code": "en"});
    let batch = json!({"call_name": "n", "agent_id": "agent_acme", "agent_phone_number_id": "phnum_1",
        "recipients": [{"phone_number": "+15550002001"}]});
    let register = json!({"agent_id": "agent_acme", "from_number": "+15550001111", "to_number": "+15550002001"});
    let creates = [
        ("twilio/outbound-call", order("+15550002001")),
        ("sip-trunk/outbound-call", order("+15550002001")),
        ("exotel/outbound-call", order("+15550002001")),
        ("whatsapp/outbound-call", whatsapp),
        ("batch-calling/submit", batch),
        ("twilio/register-call", register),
    ];
    let mut first = Vec::new();
    for round in 0..3 {
        if round == 2 {
            stage.stop_app().await;
            stage.start_app().await;
        }
        for (n, (path, body)) in creates.iter().enumerate() {
            let key = format!("order-{n}");
            let path = format!("/own/v1/convai/{path}");
            let answer = elevenlabs(&stage, &path, &[("idempotency-key", &key)], body).await;
            assert_eq!(answer.status, 200, "{path}: {answer:?}");
            assert_eq!(answer.header(DUPLICATE).is_some(), round > 0, "{path}: {answer:?}");
            match first.get(n) {
                None => first.push(answer),
                Some(first) => {
                    assert_eq!(
                        (&answer.body, headers_of(&answer)),
                        (&first.body, headers_of(first)),
                        "{path}, {round}"
                    );
                }
            }
        }
    }
    let posts = provider.got().into_iter().filter(|got| got.method == "POST").count();
    assert_eq!(posts, creates.len(), "each was sent once");
    stage.finish().await;
}

/// Where less is kept of a business's calls, its answers stay off the record: a repeat gets what the record knows.
#[tokio::test(flavor = "multi_thread")]
async fn answers_stay_off_the_record_where_less_is_kept() {
    let tables = "[privacy]\ntranscripts = \"hash\"".to_owned();
    let stage = Stage::start(Setup { tables, ..Setup::default() }).await;
    let key = [("idempotency-key", "order-1")];
    let first = elevenlabs(&stage, OUTBOUND, &key, &order("+15550002001")).await;
    let again = elevenlabs(&stage, OUTBOUND, &key, &order("+15550002001")).await;
    assert_eq!((again.status, again.header(DUPLICATE).is_some()), (200, true), "{again:?}");
    assert_eq!(id(&again, "conversation_id"), id(&first, "conversation_id"));
    let call = stage.record(&id(&first, "conversation_id")).await.unwrap();
    let store = &stage.app().calls().lifecycle.store;
    assert_eq!(store.create_answer(&call.id, call.fingerprint.as_deref().unwrap()).await.unwrap(), None);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_order_made_no_call_is_free_again() {
    let stage = Stage::start(Setup::default()).await;
    stage.control.fault(Fault::next(Provider::ElevenLabs, FaultKind::PaymentRequired, 1));
    let send = async || elevenlabs(&stage, OUTBOUND, &[("idempotency-key", "k")], &order("+15550002001")).await;
    assert_eq!(send().await.status, 402);
    let (first, second) = (send().await, send().await);
    assert_eq!((first.status, first.header(DUPLICATE)), (200, None));
    assert_eq!(id(&first, "conversation_id"), id(&second, "conversation_id"));
    assert_eq!(stage.control.calls().len(), 1);
    let bad = elevenlabs(&stage, OUTBOUND, &[("idempotency-key", "")], &order("+15550002001")).await;
    assert_eq!((bad.status, &bad.json()["error"]), (400, &json!("INVALID_REQUEST")));
    stage.finish().await;
}

// === refusals ===

/// An SDK that sleeps on `Retry-After` inside the app's request tries three times: one refusal, three attempts.
#[tokio::test(flavor = "multi_thread")]
async fn the_tries_of_an_sdk_are_one_refusal() {
    let stage = Stage::start(Setup { root: "concurrent = 0".to_owned(), ..Setup::default() }).await;
    let sdk = [("x-fern-sdk-name", "elevenlabs")];
    let mut ids = Vec::new();
    for _ in 0..3 {
        let refused = elevenlabs(&stage, OUTBOUND, &sdk, &order("+15550002001")).await;
        assert!(refused.json()["message"].as_str().unwrap().contains(refused.header("x-ringfence-refusal").unwrap()));
        ids.push(refused.header("x-ringfence-refusal").unwrap().to_owned());
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    stage
        .wait("three attempts are on record", async || {
            let refusals = stage.app().calls().lifecycle.store.latest_rejections(10).await.unwrap();
            refusals.len() == 1 && refusals[0].attempts == 3
        })
        .await;
    assert_eq!(stage.ask("/api/concurrent-metrics").await["totalRejections"], 1);
    // Any other client's are as many as they are, and so are an SDK's parallel ones.
    for _ in 0..2 {
        assert_eq!(stage.dial(None, "+15550002001").await.status, 503);
    }
    assert_eq!(stage.ask("/api/concurrent-metrics").await["totalRejections"], 3);
    // Later than an SDK sleeps, an equal order is another one.
    let refused = async || {
        let refused = elevenlabs(&stage, OUTBOUND, &sdk, &order("+15550002009")).await;
        refused.header("x-ringfence-refusal").unwrap().to_owned()
    };
    let first = refused().await;
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    assert_ne!(refused().await, first);
    stage.finish().await;
}

// === the oracle ===

/// Clients that hang up, answers that are lost, SDKs that send again until they have an answer: each order is one call.
#[tokio::test(flavor = "multi_thread")]
async fn orders_that_are_sent_until_they_are_answered_dial_once_each() {
    let sim = SimSettings { talk_ms: Millis::exactly(600_000), ..Setup::default().sim };
    let setup =
        Setup { sim, root: "concurrent = 200".to_owned(), timeouts: "create_secs = 2".to_owned(), ..Setup::default() };
    let stage = Arc::new(Stage::start(setup).await);
    for n in 0..10 {
        for kind in [FaultKind::AcceptThenDrop, FaultKind::ServerErrorAfterCreate, FaultKind::ServerError] {
            stage.control.fault(Fault::next(Provider::ElevenLabs, kind, 1));
        }
        slow(&stage, Provider::ElevenLabs, 100 + 40 * n);
    }
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..60 {
        let stage = stage.clone();
        tasks.spawn(async move {
            let to = format!("+15550002{n:03}");
            for attempt in 0..20_u64 {
                // Every other try is given up by the client before its answer can have come.
                let patience =
                    if attempt % 2 == 0 { Duration::from_millis(30 + n * 7) } else { Duration::from_secs(9) };
                if let Some(id) = dial_for(&stage, patience, &to).await {
                    return id;
                }
            }
            panic!("{to} was never answered");
        });
    }
    let mut ids = tasks.join_all().await;
    ids.sort();
    ids.dedup();
    let made: Vec<_> = stage.control.calls().into_iter().filter_map(|c| c.conversation_id).collect();
    assert_eq!((ids.len(), made.len()), (60, 60), "one call an order, and each was told");
    assert_eq!(stage.held().await, 60);
    let calls = stage.app().calls().lifecycle.store.latest_calls(1_000).await.unwrap();
    assert!(calls.iter().all(|c| c.phase != Phase::Ended || c.outcome == Some(Outcome::NotCreated)));
    for id in made {
        stage.control.end_call(&id);
    }
    all_free(&stage).await;
    Arc::into_inner(stage).expect("every task is done").finish().await;
}
