//! ElevenLabs' batch calling with `[batch] elevenlabs = "run"`: batches are dialled call by call, and shown in the provider's shape.

use ringfence_simulator::{Fault, FaultKind, Millis, Operation, Provider, SimSettings};
use serde_json::{Value, json};

use crate::outbound::elevenlabs;
use crate::runs::check_once;
use crate::support::stage::{Answer, Setup, Stage};

const SUBMIT: &str = "/elevenlabs/v1/convai/batch-calling/submit";

async fn stage(concurrent: u32, talk_ms: u64) -> Stage {
    Stage::start(Setup {
        sim: SimSettings { talk_ms: Millis::exactly(talk_ms), ..Setup::default().sim },
        root: format!("concurrent = {concurrent}\n"),
        tables: "[batch]\nelevenlabs = \"run\"\n".to_owned(),
        ..Setup::default()
    })
    .await
}

fn batch(size: u32) -> Value {
    let number = |n: u32| format!("+1555100{:04}", n + 10);
    let recipients: Vec<Value> = (0..size).map(|n| json!({"id": format!("r{n}"), "phone_number": number(n)})).collect();
    json!({"call_name": "a batch", "agent_id": "agent_acme", "agent_phone_number_id": "phnum_1", "recipients": recipients})
}

async fn submit(stage: &Stage, body: &Value) -> Value {
    let answer = elevenlabs(stage, SUBMIT, &[], body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

async fn post(stage: &Stage, path: &str) -> Answer {
    elevenlabs(stage, &format!("/elevenlabs/v1/convai/batch-calling/{path}"), &[], &Value::Null).await
}

async fn get_as(stage: &Stage, key: &str, path: &str) -> Answer {
    let url = stage.api(&format!("/elevenlabs/v1/convai/batch-calling/{path}"));
    stage.send("GET", &url, &[("xi-api-key", key)], "").await
}

async fn get(stage: &Stage, path: &str) -> Value {
    let answer = get_as(stage, &stage.control.settings().el_api_key, path).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

fn statuses(batch: &Value) -> Vec<&str> {
    batch["recipients"].as_array().unwrap().iter().map(|one| one["status"].as_str().unwrap()).collect()
}

fn id(batch: &Value) -> String {
    batch["id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_dialled_call_by_call_within_the_limits() {
    let stage = stage(2, 150).await;
    let mut body = batch(8);
    body["recipients"][3]["conversation_initiation_client_data"] = json!({"dynamic_variables": {"name": "Anna"}});
    body["telephony_call_config"] = json!({"ringing_timeout_secs": 30});
    let made = submit(&stage, &body).await;
    let id = id(&made);
    assert!(id.starts_with("run_"), "{made}");
    for (field, value) in [
        ("name", json!("a batch")),
        ("agent_id", json!("agent_acme")),
        ("phone_number_id", json!("phnum_1")),
        ("phone_provider", json!("twilio")),
        ("total_calls_scheduled", json!(8)),
        ("retry_count", json!(0)),
        ("telephony_call_config", json!({"ringing_timeout_secs": 30})),
        ("target_concurrency_limit", json!(null)),
    ] {
        assert_eq!(made[field], value, "{field}: {made}");
    }
    // An SDK that got no answer sends it again.
    assert_eq!(self::id(&submit(&stage, &body).await), id);
    stage.wait("it is completed", async || get(&stage, &id).await["status"] == "completed").await;
    let done = get(&stage, &id).await;
    assert_eq!((&done["total_calls_finished"], &done["total_calls_dispatched"]), (&json!(8), &json!(8)), "{done}");
    assert_eq!(statuses(&done), ["completed"; 8]);
    let calls = stage.control.calls();
    check_once(&calls, 8);
    for (n, recipient) in done["recipients"].as_array().unwrap().iter().enumerate() {
        assert_eq!(recipient["id"], format!("r{n}"));
        let conversation = recipient["conversation_id"].as_str();
        let call = calls.iter().find(|call| call.conversation_id.as_deref() == conversation).unwrap();
        assert_eq!(recipient["phone_number"], call.to.as_str(), "its own call");
    }
    let of = &done["recipients"][3]["conversation_initiation_client_data"];
    assert_eq!(of, &json!({"dynamic_variables": {"name": "Anna"}}));
    let counts = stage.control.counts();
    assert!(counts.both_live_max <= 2, "{counts:?}");
    assert_eq!(counts.creates_el, 8);
    // It is a run as any other.
    assert_eq!(stage.ask(&format!("/api/runs/{id}")).await["state"], "done");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_cancelled_and_retried() {
    let stage = stage(1, 600_000).await;
    let id = id(&submit(&stage, &batch(3)).await);
    let live = || stage.control.calls().into_iter().filter(|call| call.live && call.answered).collect::<Vec<_>>();
    stage.wait("one is called", async || live().len() == 1).await;
    stage.wait("it is shown", async || statuses(&get(&stage, &id).await).contains(&"in_progress")).await;
    let cancelled = post(&stage, &format!("{id}/cancel")).await;
    assert_eq!((cancelled.status, &cancelled.json()["status"]), (200, &json!("cancelled")));
    assert_eq!(statuses(&get(&stage, &id).await), ["in_progress", "cancelled", "cancelled"]);
    assert_eq!(post(&stage, &format!("{id}/cancel")).await.json()["status"], "cancelled", "twice is once");
    stage.control.end_call(live()[0].conversation_id.as_ref().unwrap());
    stage.wait("nobody is called", async || stage.held().await == 0).await;
    let retried = post(&stage, &format!("{id}/retry")).await;
    assert_eq!((retried.status, &retried.json()["retry_count"]), (200, &json!(1)), "{retried:?}");
    stage
        .wait("the others are called", async || {
            for call in live() {
                stage.control.end_call(call.conversation_id.as_ref().unwrap());
            }
            get(&stage, &id).await["status"] == "completed"
        })
        .await;
    assert_eq!(statuses(&get(&stage, &id).await), ["completed"; 3]);
    check_once(&stage.control.calls(), 3);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_comes_again_is_one_unless_a_person_means_another() {
    let stage = stage(1, 600_000).await;
    let first = id(&submit(&stage, &batch(3)).await);
    // The provider's word about the number is not needed for what is known, and nobody is called without it.
    let get_fails =
        Fault { n: None, on: Operation::Get, ..Fault::next(Provider::ElevenLabs, FaultKind::ServerError, 1) };
    stage.control.fault(get_fails);
    assert_eq!(id(&submit(&stage, &batch(3)).await), first);
    let answer = elevenlabs(&stage, SUBMIT, &[], &batch(4)).await;
    assert_eq!((answer.status, &answer.json()["error"]), (502, &json!("UPSTREAM_UNREACHABLE")), "{answer:?}");
    stage.control.clear_faults(None);
    let runs = async || stage.ask("/api/runs").await["runs"].as_array().unwrap().len();
    assert_eq!(runs().await, 1);
    // Canceled, and submitted once more: somebody wants them called.
    assert_eq!(post(&stage, &format!("{first}/cancel")).await.status, 200);
    let second = id(&submit(&stage, &batch(3)).await);
    assert_ne!(second, first);
    assert_eq!(id(&submit(&stage, &batch(3)).await), second);
    // Under a key of the app's own it is the same, whatever became of it, and has the same body.
    let keyed = async |size: u32| {
        let headers = [("idempotency-key", "campaign-7")];
        elevenlabs(&stage, SUBMIT, &headers, &batch(size)).await
    };
    let third = id(&keyed(3).await.json());
    assert!(third != first && third != second);
    assert_eq!(post(&stage, &format!("{third}/cancel")).await.status, 200);
    assert_eq!(id(&keyed(3).await.json()), third);
    let other = keyed(2).await;
    assert_eq!((other.status, &other.json()["error"]), (422, &json!("IDEMPOTENCY_KEY_REUSED")), "{other:?}");
    // Several at once are one, also while its recipients are read.
    let large = batch(2_000);
    let at_once = futures_util::future::join_all((0..6).map(|_| submit(&stage, &large))).await;
    let ids: std::collections::BTreeSet<_> = at_once.iter().map(id).collect();
    assert_eq!((ids.len(), runs().await), (1, 4), "{ids:?}");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_are_listed_before_those_of_the_provider() {
    let stage = stage(5, 10).await;
    let key = stage.control.settings().el_api_key;
    let headers = [("content-type", "application/json"), ("xi-api-key", key.as_str())];
    let directly = stage.provider("/v1/convai/batch-calling/submit");
    let mut dashboard = batch(1);
    dashboard["agent_id"] = json!("agent_other");
    let theirs = id(&stage.send("POST", &directly, &headers, dashboard.to_string()).await.json());
    assert_eq!(get(&stage, "workspace").await["batch_calls"][0]["id"], theirs, "as there is nothing else");
    let mut ours = vec![];
    for n in 1..=3 {
        ours.insert(0, id(&submit(&stage, &batch(n)).await));
    }
    let ids = |page: &Value| page["batch_calls"].as_array().unwrap().iter().map(id).collect::<Vec<_>>();
    let all = get(&stage, "workspace").await;
    assert_eq!((ids(&all), &all["has_more"]), ([&ours[..], std::slice::from_ref(&theirs)].concat(), &json!(false)));
    assert_eq!(ids(&get(&stage, "workspace?agent_id=agent_acme").await), ours);
    assert_eq!(ids(&get(&stage, "workspace?agent_id=agent_other").await), std::slice::from_ref(&theirs));
    // Page by page.
    let (mut seen, mut path) = (vec![], "workspace?limit=2".to_owned());
    loop {
        let page = get(&stage, &path).await;
        seen.extend(ids(&page));
        if page["has_more"] == false {
            break;
        }
        path = format!("workspace?limit=2&last_doc={}", page["next_doc"].as_str().unwrap());
    }
    assert_eq!(seen, [&ours[..], &[theirs]].concat());
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_batch_of_ours_goes_to_the_provider() {
    let stage = stage(5, 10).await;
    let ours = id(&submit(&stage, &batch(1)).await);
    // Who has not the account's key has none of its batches.
    let wrong = [("content-type", "application/json"), ("xi-api-key", "sk_wrong")];
    assert_eq!(stage.send("POST", &stage.api(SUBMIT), &wrong, batch(2).to_string()).await.status, 401);
    for path in [ours.as_str(), "workspace"] {
        assert_eq!(get_as(&stage, "sk_wrong", path).await.status, 401, "{path}");
    }
    for act in ["cancel", "retry"] {
        let url = stage.api(&format!("/elevenlabs/v1/convai/batch-calling/{ours}/{act}"));
        let answer = stage.send("POST", &url, &wrong, "null").await;
        assert!(answer.status >= 400, "{act}: {answer:?}");
    }
    assert_eq!(stage.ask("/api/runs").await["runs"].as_array().unwrap().len(), 1);
    // A SIP trunk's number is dialled by its own operation; what runs have none for is the provider's.
    let with_number = |number: &str| {
        let mut body = batch(1);
        body["agent_phone_number_id"] = json!(number);
        body
    };
    let sip = submit(&stage, &with_number("phnum_sip_1")).await;
    assert_eq!((&sip["phone_provider"], id(&sip).starts_with("run_")), (&json!("sip_trunk"), true));
    let mut odd = batch(1);
    odd["something_new"] = json!(true);
    for body in [with_number("phnum_exotel_1"), odd] {
        let theirs = id(&submit(&stage, &body).await);
        assert!(theirs.starts_with("btcal_"), "{theirs}");
        assert_eq!(get(&stage, &theirs).await["id"], theirs);
    }
    // A run that was not submitted as a batch is none.
    let run = json!({"business": "default", "account": "elevenlabs", "operation": "twilio_outbound_call",
        "request": {"agent_id": "a", "agent_phone_number_id": "p"}});
    let headers = [("content-type", "application/json")];
    let made = stage.send("POST", &stage.admin("/api/runs"), &headers, run.to_string()).await.json();
    let key = stage.control.settings().el_api_key;
    assert_eq!(get_as(&stage, &key, made["runId"].as_str().unwrap()).await.status, 404);
    let mut forged = run;
    forged["batch"] = json!({"agent_id": "a"});
    assert_eq!(stage.send("POST", &stage.admin("/api/runs"), &headers, forged.to_string()).await.status, 400);
    // Every recipient can be called, or nobody is.
    let creates = stage.control.counts().creates_el;
    let mut bad = batch(3);
    bad["recipients"][1]["phone_number"] = json!("not a number");
    let answer = elevenlabs(&stage, SUBMIT, &[], &bad).await;
    let detail = &answer.json()["detail"];
    assert_eq!(
        (answer.status, &detail[0]["loc"]),
        (422, &json!(["body", "recipients", 1, "phone_number"])),
        "{detail}"
    );
    assert_eq!(detail.as_array().unwrap().len(), 1);
    assert_eq!(stage.control.counts().creates_el, creates);
    stage.finish().await;
}
