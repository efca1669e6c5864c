//! Whom the app may call: numbers that are none, prefixes and kinds of numbers, quiet hours, the few numbers of a trial, do-not-call lists.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use ringfence::net::fetch_local;
use serde_json::{Value, json};
use tokio::task::block_in_place;

use crate::chaos::DATABASE;
use crate::cli::{Folder, LISTEN, run};
use crate::outbound::{elevenlabs, order, talk, twilio};
use crate::outbound_limits::{EL, stage};
use crate::support::fleet::{self, Fleet, Store};
use crate::support::postgres::{self, Server};
use crate::support::rng::Rng;
use crate::support::stage::{Answer, PATIENCE, Setup, Stage};

const TURKISH: &str = "+905321234567";
const BATCH: &str = "/elevenlabs/v1/convai/batch-calling/submit";

/// A refusal by a destination: the contract's status and code, the rule, and what every refusal has.
fn assert_refused(answer: &Answer, error: &str, rule: &str) {
    let body = answer.json();
    assert_eq!((answer.status, &body["error"], &body["blockedBy"]), (503, &json!(error), &json!(rule)), "{answer:?}");
    assert_eq!((&body["called"], answer.header("retry-after")), (&json!(false), None));
    assert_eq!(body["refusalId"].as_str(), answer.header("x-ringfence-refusal"));
}

fn assert_blocked(answer: &Answer, rule: &str) {
    assert_refused(answer, "DO_NOT_CALL_BLOCKED", rule);
}

fn assert_invalid(answer: &Answer) {
    assert_refused(answer, "INVALID_DESTINATION_PHONE", "invalid");
}

async fn put(stage: &Stage, path: &str, body: &Value) -> Answer {
    stage.send("PUT", &stage.admin(path), &[], body.to_string()).await
}

async fn delete(stage: &Stage, path: &str) -> Answer {
    stage.send("DELETE", &stage.admin(path), &[], Bytes::new()).await
}

async fn metric(stage: &Stage, line: &str) -> bool {
    stage.ask("/metrics").await.as_str().unwrap().lines().any(|one| one == line)
}

// === what is no number ===

#[tokio::test(flavor = "multi_thread")]
async fn without_the_section_nothing_is_asked() {
    let stage = stage("concurrent = 50", "").await;
    for to in [TURKISH, "+15550002001", "100", "0532 123 45 67", "sip:alice@example.com", "+1900"] {
        assert_eq!(stage.dial(None, to).await.status, 200, "{to}");
    }
    assert_eq!(talk(&stage, "client:alice", &[]).await.status, 201);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_number_is_refused_in_the_providers_shape_and_on_record() {
    let stage = stage("concurrent = 50", "[destinations]\n").await;
    for to in ["100", "0532 123 45 67", "+9053212345", "+99912345678", "alice", ""] {
        let answer = stage.dial(Some("acme"), to).await;
        assert_invalid(&answer);
        assert_eq!(answer.json()["detail"]["type"], "validation_error");
    }
    let answer = talk(&stage, "12", &[]).await;
    assert_invalid(&answer);
    assert_eq!(
        (&answer.json()["code"], &answer.json()["details"]["error"]),
        (&json!(20001), &json!("INVALID_DESTINATION_PHONE"))
    );
    let conference = "Conferences/CF0123456789abcdef0123456789abcdef/Participants.json";
    assert_invalid(&twilio(&stage, conference, None, "12", &[]).await);
    assert_eq!((stage.control.counts().dials, stage.held().await), (0, 0));
    let refusals = stage.ask("/api/concurrent-metrics").await["rejectionsByReason"].clone();
    assert_eq!(refusals, json!({"INVALID_DESTINATION_PHONE": 8}));
    assert!(metric(&stage, "ringfence_destinations_refused_total{rule=\"invalid\"} 8").await);
    stage
        .wait("every refusal is on record", async || {
            stage.ask("/api/refusals").await["refusals"].as_array().unwrap().len() == 8
        })
        .await;

    // A number however it is spelt, and addresses that are none.
    for to in [TURKISH, "+90 (532) 123-45-67", "905321234567", "tel:+905321234567", "sip:100@pbx.example"] {
        assert_eq!(stage.dial(None, to).await.status, 200, "{to}");
    }
    for to in ["client:alice", "sip:alice@example.com", "whatsapp:+905321234567"] {
        assert_eq!(talk(&stage, to, &[]).await.status, 201, "{to}");
    }
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_without_its_country_is_one_of_the_default_country() {
    let tables = "[destinations]\nvalidate = \"valid\"\ndefault_country = \"TR\"\ndenied_prefixes = [\"+90555\"]\n";
    let stage = stage("concurrent = 50", tables).await;
    assert_eq!(stage.dial(None, "0532 123 45 67").await.status, 200);
    assert_blocked(&stage.dial(None, "0555 123 45 67").await, "prefix");
    assert_invalid(&stage.dial(None, "+15550001111").await);
    stage.finish().await;
}

// === prefixes, kinds ===

#[tokio::test(flavor = "multi_thread")]
async fn prefixes_and_types_of_all_of_a_plan_and_of_a_business_hold() {
    let tables = "
[destinations]
allowed_prefixes = [\"+90\", \"+1\"]
denied_types = [\"premium_rate\"]
[plans.LOCAL]
concurrent = 50
[plans.LOCAL.destinations]
allowed_prefixes = [\"+90\"]
[businesses.acme]
plan = \"LOCAL\"
[businesses.acme.destinations]
denied_prefixes = [\"+90532\"]
[businesses.other]
plan = \"LOCAL\"
";
    let stage = stage("concurrent = 50", tables).await;
    assert_eq!(stage.dial(None, "+12125550100").await.status, 200);
    assert_blocked(&stage.dial(None, "+442079460018").await, "prefix");
    let dear = stage.dial(None, "+19002345678").await;
    assert_blocked(&dear, "type");
    assert!(dear.json()["message"].as_str().unwrap().contains("premium_rate"), "{dear:?}");
    assert_blocked(&stage.dial(Some("other"), "+12125550100").await, "prefix");
    assert_eq!(stage.dial(Some("other"), TURKISH).await.status, 200);
    assert_blocked(&stage.dial(Some("acme"), TURKISH).await, "prefix");
    // The same rules put at run time.
    let rules = json!({"plan": "LOCAL", "destinations": {"denied_prefixes": ["+90212"]}});
    assert_eq!(put(&stage, "/api/businesses/acme", &rules).await.status, 201);
    assert_eq!(stage.dial(Some("acme"), TURKISH).await.status, 200);
    assert_blocked(&stage.dial(Some("acme"), "+902121234567").await, "prefix");
    let shown = stage.ask("/api/businesses/acme").await;
    assert_eq!(shown["destinations"], rules["destinations"]);
    let bad = put(&stage, "/api/businesses/acme", &json!({"destinations": {"quiet_hours": ["at night"]}})).await;
    assert_eq!(bad.status, 400, "{bad:?}");
    stage.finish().await;
}

// === quiet hours ===

/// The hour in Istanbul, which is at +03:00 all year, and so many hours later.
fn istanbul(stage: &Stage, later: i64) -> i64 {
    (stage.clock.now_ms() / 3_600_000 + 3 + later).rem_euclid(24)
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_called_in_the_quiet_hours_of_the_destination() {
    let probe = ringfence::clock::Clock::system().now_ms() / 3_600_000 + 3;
    let hour = |later: i64| (probe + later).rem_euclid(24);
    let tables = format!(
        "[destinations]\nquiet_hours = [\"daily {:02}:00-{:02}:00\"]\n[businesses.night.destinations]\nquiet_hours = [\"daily 00:00-24:00\"]\n",
        hour(3),
        hour(6)
    );
    let stage = stage("concurrent = 50", &tables).await;
    assert_eq!(stage.dial(None, TURKISH).await.status, 200);
    assert_blocked(&stage.dial(Some("night"), TURKISH).await, "quiet_hours");
    stage.clock.advance_ms(4 * 3_600_000);
    let quiet = stage.dial(None, TURKISH).await;
    assert_blocked(&quiet, "quiet_hours");
    let until = format!("T{:02}:00:00Z", (istanbul(&stage, 0) + 24 - 3 + 2) % 24);
    let told = quiet.json()["message"].as_str().unwrap().to_owned();
    assert!(told.contains("+905") && !told.contains(TURKISH), "{told}");
    assert!(
        told.contains("quiet hours until") && (told.contains(&until) || told.contains(":00:00Z")),
        "{told} {until}"
    );
    // Another clock runs elsewhere; an address has none.
    assert_eq!(stage.dial(None, "sip:100@pbx.example").await.status, 200);
    assert_eq!(stage.dial(None, "+819012345678").await.status, 200);
    stage.clock.advance_ms(3 * 3_600_000);
    assert_eq!(stage.dial(None, TURKISH).await.status, 200);
    stage.finish().await;
}

// === a trial ===

#[tokio::test(flavor = "multi_thread")]
async fn in_a_trial_nobody_is_called_but_those_who_are_named() {
    let tables = "[destinations]\nonly_numbers = [\"+90 532 123 45 67\", \"client:alice\"]\n";
    let stage = stage("concurrent = 50", tables).await;
    assert_eq!(stage.dial(None, "905321234567").await.status, 200);
    assert_eq!(talk(&stage, "client:alice", &[]).await.status, 201);
    for to in ["+905321234568", "sip:+905321234567@elsewhere.example"] {
        assert_blocked(&stage.dial(None, to).await, "only_numbers");
        assert_blocked(&talk(&stage, to, &[]).await, "only_numbers");
    }
    assert_blocked(&talk(&stage, "client:bob", &[]).await, "only_numbers");
    stage.finish().await;
}

#[test]
fn check_warns_of_a_trial_that_is_public() {
    let folder = Folder::new();
    folder.write("list.txt", "+905321234567\n");
    let account = "[accounts.twilio]\naccount_sid = \"AC1\"\nauth_token = \"0123456789abcdef0123456789abcdef\"\n";
    let check = |root: &str, section: &str| {
        let file = folder.write("ringfence.toml", &format!("{root}{LISTEN}{account}[destinations]\n{section}\n"));
        run(&["check", "--config", &file])
    };
    let (only, public) = ("only_numbers = [\"+905321234567\"]", "public_url = \"https://hooks.example.com\"\n");
    let (code, _, err) = check("", only);
    assert!(code == Some(0) && !err.contains("W024"), "{err}");
    let (_, _, err) = check(public, only);
    assert!(err.contains("W024") && err.contains("only these numbers are called"), "{err}");
    let (code, _, err) = check("", "do_not_call_file = \"list.txt\"");
    assert_eq!(code, Some(0), "{err}");
    let (code, _, err) = check("", "do_not_call_file = \"nothing.txt\"");
    assert!(code == Some(2) && err.contains("E011"), "{err}");
    folder.write("list.txt", "+905321234567\nalice\n");
    let (code, _, err) = check("", "do_not_call_file = \"list.txt\"");
    assert!(code == Some(2) && err.contains("line 2"), "{err}");
}

// === do-not-call lists ===

#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_is_put_on_a_list_is_not_called_from_then_on() {
    let stage =
        stage("concurrent = 50", "[businesses.acme]\nmax_calls = 50\n[businesses.other]\nmax_calls = 50\n").await;
    assert_eq!(stage.dial(Some("acme"), TURKISH).await.status, 200);
    let answer = put(&stage, "/api/do-not-call/+905321234567", &json!({"reason": "asked on 2026-11-28"})).await;
    assert_eq!((answer.status, &answer.json()["new"]), (201, &json!(true)), "{answer:?}");
    assert_eq!(put(&stage, "/api/do-not-call/+90%20532%20123%2045%2067", &json!({})).await.status, 200, "it is there");
    for to in [TURKISH, "+90 532 123 45 67", "905321234567", "sip:+905321234567@carrier.example"] {
        assert_blocked(&stage.dial(Some("acme"), to).await, "do_not_call");
        assert_blocked(&talk(&stage, to, &[]).await, "do_not_call");
    }
    let register =
        json!({"agent_id": "a", "from_number": "+15550001111", "to_number": TURKISH, "direction": "outbound"});
    assert_blocked(
        &elevenlabs(&stage, "/elevenlabs/v1/convai/twilio/register-call", &[], &register).await,
        "do_not_call",
    );
    // Who calls us is not called: a call that comes in is no matter of these lists.
    let inbound = json!({"agent_id": "a", "from_number": TURKISH, "to_number": "+15550001111", "direction": "inbound"});
    assert_eq!(elevenlabs(&stage, "/elevenlabs/v1/convai/twilio/register-call", &[], &inbound).await.status, 200);
    assert!(metric(&stage, "ringfence_do_not_call_numbers{source=\"table\"} 1").await);

    let shown = stage.ask("/api/do-not-call/+905321234567").await;
    assert_eq!((&shown["listed"], &shown["lists"]), (&json!(true), &json!(["all"])));
    assert_eq!((&shown["number"], &shown["reason"]), (&json!("+905•••••••67"), &json!("asked on 2026-11-28")));
    assert_eq!(delete(&stage, "/api/do-not-call/+905321234567").await.status, 204);
    assert_eq!(delete(&stage, "/api/do-not-call/+905321234567").await.status, 404);
    assert_eq!(stage.dial(Some("acme"), TURKISH).await.status, 200);

    // A business's own list is its own.
    assert_eq!(put(&stage, "/api/do-not-call/+905321234567?business=acme", &json!({})).await.status, 201);
    assert_blocked(&stage.dial(Some("acme"), TURKISH).await, "do_not_call");
    assert_eq!(stage.dial(Some("other"), TURKISH).await.status, 200);
    assert_eq!(stage.ask("/api/do-not-call/+905321234567").await["listed"], false);
    assert_eq!(stage.ask("/api/do-not-call/+905321234567?business=acme").await["lists"], json!(["business"]));

    let audit = stage.ask("/api/audit").await["audit"].clone();
    let acts: Vec<&str> = audit.as_array().unwrap().iter().map(|one| one["what"].as_str().unwrap()).collect();
    assert_eq!(acts.iter().filter(|what| **what == "put do-not-call").count(), 3, "{audit}");
    assert!(acts.contains(&"delete do-not-call") && !audit.to_string().contains(TURKISH), "{audit}");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_numbers_are_put_at_once_and_read_page_by_page() {
    let mut stage = stage("concurrent = 5", "").await;
    let numbers: Vec<String> = (0..2_500).map(|n| format!("+9053200{n:05}")).collect();
    let answer = put(&stage, "/api/do-not-call", &json!({"numbers": numbers, "reason": "bought list"})).await;
    assert_eq!((answer.status, answer.json()), (200, json!({"put": 2_500, "new": 2_500})));
    let again = put(&stage, "/api/do-not-call", &json!({"numbers": [numbers[0], numbers[0], "+905329999999"]})).await;
    assert_eq!(again.json(), json!({"put": 2, "new": 1}));
    let bad = put(&stage, "/api/do-not-call", &json!({"numbers": ["+905329999998", "alice", 7]})).await;
    assert_eq!((bad.status, &bad.json()["rows"][0]["row"], &bad.json()["rows"][1]["row"]), (422, &json!(2), &json!(3)));
    assert_eq!(put(&stage, "/api/do-not-call", &json!(["+905329999998"])).await.status, 400);
    assert_eq!(put(&stage, "/api/do-not-call/alice", &json!({})).await.status, 422);

    let (mut seen, mut after) = (0, json!(0));
    while !after.is_null() {
        let page = stage.ask(&format!("/api/do-not-call?limit=1000&after={after}")).await;
        seen += page["numbers"].as_array().unwrap().len();
        after = page["next"].clone();
    }
    assert_eq!(seen, 2_501);
    // They are there after a restart.
    stage.stop_app().await;
    stage.start_app().await;
    assert_blocked(&stage.dial(None, &numbers[2_499]).await, "do_not_call");
    let gone =
        stage.send("DELETE", &stage.admin("/api/do-not-call"), &[], json!({"numbers": numbers}).to_string()).await;
    assert_eq!(gone.json(), json!({"deleted": 2_500}));
    assert_eq!(stage.dial(None, &numbers[2_499]).await.status, 200);
    assert_blocked(&stage.dial(None, "+905329999999").await, "do_not_call");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_in_a_file_is_read_again_when_it_changes() {
    let folder = Folder::new();
    let file = folder.write("list.txt", "# ours\n+90 532 123 45 67 # asked\n");
    let stage = stage("concurrent = 50", &format!("[destinations]\ndo_not_call_file = \"{file}\"\n")).await;
    assert_blocked(&stage.dial(None, TURKISH).await, "do_not_call");
    assert_eq!(stage.dial(None, "+12125550100").await.status, 200);
    assert!(metric(&stage, "ringfence_do_not_call_numbers{source=\"file\"} 1").await);
    folder.write("list.txt", "+12125550100\n+12125550101\n");
    stage.wait("the changed file is in force", async || stage.dial(None, TURKISH).await.status == 200).await;
    assert_blocked(&stage.dial(None, "+12125550100").await, "do_not_call");
    // A list that cannot be read whole is not taken up: the one in force stays.
    folder.write("list.txt", "+905321234567\nalice\n");
    let kept = stage.reload().await;
    assert!(kept.status == 422 && kept.json()["message"].as_str().unwrap().contains("line 2"), "{kept:?}");
    assert_blocked(&stage.dial(None, "+12125550100").await, "do_not_call");
    std::fs::remove_file(&file).unwrap();
    assert_eq!(stage.reload().await.status, 422);
    assert_blocked(&stage.dial(None, "+12125550100").await, "do_not_call");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_lists_cannot_be_read_nobody_is_called_whom_they_may_name() {
    let stage = stage("concurrent = 50", "").await;
    if stage.postgres().is_some() {
        return stage.finish().await;
    }
    let file = stage.ask("/status").await["store"]["path"].as_str().unwrap().to_owned();
    let execute = |sql: &str| {
        let record = rusqlite::Connection::open(&file).unwrap();
        record.busy_timeout(Duration::from_secs(5)).unwrap();
        record.execute_batch(sql).unwrap();
    };
    // What no version of ringfence writes.
    execute(
        "UPDATE do_not_call_changes SET last = last + 1;
         INSERT INTO do_not_call (list, number, change, listed, changed_at) SELECT '', -1, last, 1, 0 FROM do_not_call_changes",
    );
    assert_eq!(put(&stage, "/api/do-not-call/+12125550100", &json!({})).await.status, 503);
    assert_blocked(&stage.dial(None, TURKISH).await, "list_unreadable");
    assert_eq!(stage.dial(None, "sip:alice@example.com").await.status, 200, "it is no number");
    assert!(metric(&stage, "ringfence_do_not_call_readable 0").await);
    execute("DELETE FROM do_not_call WHERE number < 0");
    stage.wait("it is read again", async || stage.dial(None, TURKISH).await.status == 200).await;
    assert_blocked(&stage.dial(None, "+12125550100").await, "do_not_call");
    assert!(metric(&stage, "ringfence_do_not_call_readable 1").await);
    stage.finish().await;
}

/// As a client of its own: what a replica is told, the other does.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_at_one_replica_holds_at_the_other() {
    if postgres::is_missing() {
        return;
    }
    let server = block_in_place(Server::start);
    let setup = fleet::Setup {
        replicas: 2,
        sim: Setup::default().sim,
        postgres: (server.port, server.database_over_tcp().rsplit('/').next().unwrap().to_owned()),
        redis: Store::None,
        tables: DATABASE.to_owned(),
        limits: (50, 50, vec![("alpha".to_owned(), 50)]),
        reconcile: "sweep_ms = 150\nlist_lag_ms = 300",
    };
    let fleet = Fleet::set(setup, &mut Rng::new("do not call")).await;
    fleet.start().await;
    let ask = async |n: usize, method: &str| {
        let mut request = Request::new(Bytes::new());
        *request.method_mut() = method.parse().unwrap();
        *request.uri_mut() = "http://admin/api/do-not-call/+905321234567".parse().unwrap();
        let socket = fleet.replicas[n].folder.join("ringfence-admin.sock");
        fetch_local(&socket, request, 1 << 20, PATIENCE).await.unwrap().status().as_u16()
    };
    let until = async |n: usize, status: u16| {
        let started = Instant::now();
        loop {
            let answer = fleet.dial(n, "alpha", TURKISH, None, PATIENCE).await.unwrap();
            if answer.status == status {
                return answer;
            }
            assert!(started.elapsed() < PATIENCE, "{answer:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    assert_eq!(fleet.dial(1, "alpha", TURKISH, None, PATIENCE).await.unwrap().status, 200);
    assert_eq!(ask(0, "PUT").await, 201);
    // Until the first create's answer is known to have arrived, the same one again gets that.
    assert_blocked(&until(0, 503).await, "do_not_call");
    assert_blocked(&until(1, 503).await, "do_not_call");
    assert_eq!(ask(1, "DELETE").await, 204);
    until(0, 200).await;
    fleet.end_all();
    fleet.done().await;
}

// === batches, observe ===

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_with_one_who_must_not_be_called_calls_nobody() {
    let stage = stage("concurrent = 50", "[destinations]\nallowed_prefixes = [\"+90\"]\n").await;
    let batch = |numbers: &[&str]| {
        let recipients: Vec<Value> = numbers.iter().map(|number| json!({"phone_number": number})).collect();
        json!({"call_name": "b", "agent_id": "agent_acme", "agent_phone_number_id": "phnum_1", "recipients": recipients})
    };
    let answer = elevenlabs(&stage, BATCH, &[], &batch(&[TURKISH, "+905321234568", "+12125550100"])).await;
    assert_blocked(&answer, "prefix");
    let told = answer.json()["message"].as_str().unwrap().to_owned();
    assert!(told.contains("recipient 3 of 3 (+121") && told.contains("no recipient"), "{told}");
    assert_invalid(&elevenlabs(&stage, BATCH, &[], &batch(&[TURKISH, "alice"])).await);
    put(&stage, "/api/do-not-call/+905321234568", &json!({})).await;
    assert_blocked(&elevenlabs(&stage, BATCH, &[], &batch(&[TURKISH, "+905321234568"])).await, "do_not_call");
    assert_eq!((stage.control.counts().creates_el, stage.held().await), (0, 0));
    assert_eq!(elevenlabs(&stage, BATCH, &[], &batch(&[TURKISH])).await.status, 200);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn observing_marks_whom_it_would_not_call() {
    let stage = stage("mode = \"observe\"\nconcurrent = 50", "[destinations]\n").await;
    put(&stage, "/api/do-not-call/+905321234567", &json!({})).await;
    let answer = stage.dial(None, TURKISH).await;
    assert_eq!((answer.status, answer.header("x-ringfence-would-refuse")), (200, Some("DO_NOT_CALL_BLOCKED")));
    let answer = stage.dial(None, "100").await;
    assert_eq!((answer.status, answer.header("x-ringfence-would-refuse")), (200, Some("INVALID_DESTINATION_PHONE")));
    assert_eq!(stage.ask("/api/concurrent-metrics").await["rejectionsByReason"], json!({}));
    assert!(metric(&stage, "ringfence_shadow_refusals_total{limit=\"DO_NOT_CALL_BLOCKED\"} 1").await);
    stage
        .wait("both are on record as observed", async || {
            let all = stage.ask("/api/refusals").await["refusals"].as_array().unwrap().clone();
            all.len() == 2 && all.iter().all(|one| one["observed"] == true)
        })
        .await;
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_sdks_tries_of_one_destination_are_one_refusal() {
    let stage = stage("concurrent = 50", "[destinations]\n").await;
    let sdk = [("x-fern-sdk-name", "elevenlabs")];
    let first = elevenlabs(&stage, EL, &sdk, &order("100")).await;
    // As long as one sleeps at least.
    tokio::time::sleep(Duration::from_millis(400)).await;
    let second = elevenlabs(&stage, EL, &sdk, &order("100")).await;
    assert_invalid(&first);
    assert_eq!(first.json()["refusalId"], second.json()["refusalId"]);
    assert_eq!(
        stage.ask("/api/concurrent-metrics").await["rejectionsByReason"],
        json!({"INVALID_DESTINATION_PHONE": 1})
    );
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_change_the_lists_of_their_own_businesses() {
    const SECRET: &str = "a secret of thirty-two bytes or more";
    let tables = format!("[admin]\ntoken_secret = \"{SECRET}\"\n[businesses.acme]\nmax_calls = 5\n");
    let stage = stage("", &tables).await;
    let token = |scope: &str, businesses: Value| {
        let claims =
            json!({"sub": "ops", "exp": stage.clock.now_ms() / 1000 + 600, "scope": scope, "businesses": businesses});
        ringfence::jws::sign(SECRET.as_bytes(), &claims).unwrap()
    };
    let send = async |method: &str, path: &str, token: &str| {
        let mut request = Request::new(Bytes::new());
        *request.method_mut() = method.parse().unwrap();
        *request.uri_mut() = stage.admin(path).parse().unwrap();
        request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        stage.over_tcp(request).await
    };
    let (all, own) = (token("operate numbers", json!("*")), token("operate", json!(["acme"])));
    let number = "/api/do-not-call/+905321234567";
    assert_eq!(send("PUT", number, &own).await.status, 403, "everybody's list");
    assert_eq!(send("GET", number, &own).await.status, 403);
    assert_eq!(send("PUT", &format!("{number}?business=other"), &own).await.status, 403);
    assert_eq!(send("PUT", &format!("{number}?business=acme"), &own).await.status, 201);
    assert_eq!(send("PUT", number, &token("read", json!("*"))).await.status, 403, "it may read alone");
    assert_eq!(send("PUT", number, &all).await.status, 201);
    assert_eq!(send("POST", number, &all).await.status, 405);
    let page = send("GET", "/api/do-not-call", &all).await.json();
    assert_eq!(page["numbers"][0]["number"], TURKISH, "it may see whole numbers");
    let own = send("GET", "/api/do-not-call?business=acme", &own).await.json();
    assert_eq!(own["numbers"][0]["number"], "+905•••••••67");
    stage.finish().await;
}
