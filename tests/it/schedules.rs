//! Recurring runs: one firing is one run, whatever fails and however many replicas there are.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use ringfence::net::fetch_local;
use ringfence::provider::secret::Secret;
use ringfence::provider::sign::{sign_standard, standard_key};
use ringfence::token::{Claims, mint};
use ringfence_simulator::{CallView, Millis, SimSettings};
use serde_json::{Value, json};
use tokio::task::block_in_place;

use crate::chaos::DATABASE;
use crate::support::child::Scene;
use crate::support::fleet::{self, Fleet, Store};
use crate::support::postgres::{self, Server};
use crate::support::rng::Rng;
use crate::support::stage::{Answer, Behind, PATIENCE, Setup, Stage};

const DAY: i64 = 24 * 3_600_000;

fn sim() -> SimSettings {
    SimSettings { talk_ms: Millis::exactly(50), ..Setup::default().sim }
}

fn leads(n: usize) -> Vec<Value> {
    (0..n).map(|i| json!({"number": format!("+1555100{:04}", i + 10), "name": format!("Lead {i}")})).collect()
}

/// An app whose list of leads is what stands here: status, content type, body.
type List = Arc<Mutex<(u16, &'static str, String)>>;

async fn app(list: &List) -> Behind {
    let list = list.clone();
    Behind::replying(Box::new(move |_| {
        let (status, kind, body) = list.lock().unwrap().clone();
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        response.headers_mut().insert("content-type", HeaderValue::from_static(kind));
        response
    }))
    .await
}

fn list(leads: &[Value]) -> List {
    Arc::new(Mutex::new((200, "application/json", Value::from(leads.to_vec()).to_string())))
}

fn say(list: &List, status: u16, kind: &'static str, body: impl Into<String>) {
    *list.lock().unwrap() = (status, kind, body.into());
}

const SOURCE: &str = "[[lead_sources]]\nname = \"reminders\"\nurl = \"/api/reminders?x=1\"\nbearer = \"a token\"\n";

async fn stage(app: &Behind, tables: &str) -> Stage {
    let tables = format!("[businesses.1]\nmax_calls = 3\n{tables}");
    Stage::start(Setup { sim: sim(), app: Some(app.url()), tables, ..Setup::default() }).await
}

fn daily(name: &str) -> Value {
    json!({
        "name": name, "schedule": "0 9 * * *", "timezone": "Europe/Istanbul", "source": "reminders",
        "run": {
            "business": "1", "account": "twilio", "operation": "calls", "own_numbers": ["+15550001111"],
            "request": {"Twiml": "<Response><Say>Hello {{lead.name}}</Say></Response>"},
        },
    })
}

fn with(mut one: Value, more: Value) -> Value {
    for (key, value) in more.as_object().unwrap() {
        one[key] = value.clone();
    }
    one
}

async fn post(stage: &Stage, path: &str, body: Value) -> Answer {
    stage.send("POST", &stage.admin(path), &[("content-type", "application/json")], body.to_string()).await
}

async fn made(stage: &Stage, schedule: Value) -> String {
    let made = post(stage, "/api/schedules", schedule).await;
    assert_eq!(made.status, 201, "{made:?}");
    made.json()["scheduleId"].as_str().unwrap().to_owned()
}

async fn show(stage: &Stage, id: &str) -> Value {
    stage.ask(&format!("/api/schedules/{id}")).await
}

fn ms(text: &Value) -> i64 {
    text.as_str().unwrap_or_else(|| panic!("{text}")).parse::<jiff::Timestamp>().unwrap().as_millisecond()
}

/// Moves the clock to the moment when a schedule has something to do.
async fn come(stage: &Stage, id: &str) -> i64 {
    let next = ms(&show(stage, id).await["nextAt"]);
    stage.clock.advance_ms(next - stage.clock.now_ms() + 10);
    next
}

async fn runs(stage: &Stage) -> Vec<Value> {
    stage.ask("/api/runs").await["runs"].as_array().unwrap().clone()
}

async fn metric(stage: &Stage, line: &str) -> bool {
    stage.ask("/metrics").await.as_str().unwrap().contains(line)
}

fn numbers(calls: &[CallView]) -> Vec<String> {
    let mut all: Vec<String> = calls.iter().map(|call| call.to.clone()).collect();
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_makes_a_run_at_each_of_its_times() {
    let list = list(&leads(4));
    let app = app(&list).await;
    let stage = stage(&app, SOURCE).await;
    let id = made(&stage, daily("daily")).await;
    let first = show(&stage, &id).await;
    assert_eq!((&first["state"], &first["lastRunId"]), (&"active".into(), &Value::Null), "{first}");
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(runs(&stage).await.is_empty() && app.got().is_empty(), "it is not its time");

    let at = come(&stage, &id).await;
    stage.wait("it fires", async || !show(&stage, &id).await["lastRunId"].is_null()).await;
    let fired = show(&stage, &id).await;
    assert_eq!((ms(&fired["lastFiringAt"]), ms(&fired["nextAt"])), (at, at + DAY), "{fired}");
    let run = fired["lastRunId"].as_str().unwrap().to_owned();
    let done = async |run: &str| stage.ask(&format!("/api/runs/{run}")).await["state"] == "done";
    stage.wait("its run is done", async || done(&run).await).await;
    assert_eq!(numbers(&stage.control.calls()).len(), 4);
    let shown = stage.ask(&format!("/api/runs/{run}")).await;
    assert_eq!((&shown["idempotencyKey"], &shown["name"]), (&json!(format!("schedule:{id}:{at}")), &"daily".into()));
    let asked = app.at("/api/reminders");
    assert_eq!(asked.len(), 1, "the app is asked once");
    let query = asked[0].path_and_query.split_once('?').unwrap().1.to_owned();
    let query: Vec<(String, String)> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let date = jiff::Timestamp::from_millisecond(at).unwrap().strftime("%F").to_string();
    let firing = jiff::Timestamp::from_millisecond(at).unwrap().to_string();
    let wanted = [("x", "1"), ("business", "1"), ("schedule", "daily"), ("firing", &firing), ("date", &date)];
    assert_eq!(query, wanted.map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert_eq!(asked[0].headers["authorization"], "Bearer a token");

    // The next day it asks again, whoever has come since.
    say(&list, 200, "text/csv", "number,name\n+15552000010,Zoe\n");
    let next = come(&stage, &id).await;
    assert_eq!(next, at + DAY);
    stage.wait("it fires again", async || show(&stage, &id).await["lastRunId"] != run.as_str()).await;
    stage.wait("the second run is done", async || stage.control.calls().len() == 5).await;
    assert_eq!(runs(&stage).await.len(), 2);
    // A day without appointments.
    say(&list, 204, "text/plain", "");
    come(&stage, &id).await;
    stage.wait("it fires for nobody", async || metric(&stage, "firings_total{result=\"no_leads\"} 1").await).await;
    stage.wait("that is shown", async || show(&stage, &id).await["lastRunId"].is_null()).await;
    assert_eq!(runs(&stage).await.len(), 2);

    // By hand, at once, as often as it is wanted.
    say(&list, 200, "application/x-ndjson; charset=utf-8", "{\"number\":\"+15552000011\",\"name\":\"Yan\"}\n");
    let by_hand = post(&stage, &format!("/api/schedules/{id}/fire"), json!({})).await;
    assert_eq!((by_hand.status, &by_hand.json()["run"]["leads"]), (201, &1.into()), "{by_hand:?}");
    assert_eq!(ms(&show(&stage, &id).await["nextAt"]), at + 3 * DAY, "its times stay as they are");
    let deleted = stage.send("DELETE", &stage.admin(&format!("/api/schedules/{id}")), &[], "").await;
    assert_eq!(deleted.status, 200);
    assert_eq!(stage.ask("/api/schedules").await["schedules"], json!([]));
    assert_eq!(runs(&stage).await.len(), 3, "its runs stay");
    let audit = stage.ask("/api/audit").await.to_string();
    assert!(["create schedule", "fire schedule", "delete schedule"].iter().all(|act| audit.contains(act)), "{audit}");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_firing_whose_leads_cannot_be_had_is_tried_again_until_the_next() {
    let list = list(&[]);
    let app = app(&list).await;
    let stage = stage(&app, SOURCE).await;
    let id = made(&stage, daily("daily")).await;
    say(&list, 500, "text/plain", "no");
    let at = come(&stage, &id).await;
    for (tries, status, kind, body, part) in [
        (1, 500, "text/plain", "no", "the app answered 500"),
        (2, 200, "text/html", "<p>", "text/html"),
        (3, 200, "application/json", "[{\"number\":\"+1555", "cannot be called"),
        (4, 302, "application/json", "[]", "the app answered 302"),
    ] {
        say(&list, status, kind, body);
        if tries > 1 {
            come(&stage, &id).await;
        }
        stage.wait("it fails", async || show(&stage, &id).await["tries"] == tries).await;
        let failing = show(&stage, &id).await;
        assert!(failing["error"].as_str().unwrap().contains(part), "{failing}");
        assert_eq!(ms(&failing["failingFiringAt"]), at);
        assert!(ms(&failing["nextAt"]) > stage.clock.now_ms(), "{failing}");
    }
    assert!(runs(&stage).await.is_empty(), "nothing is left of them");
    stage.wait("the metric says so", async || metric(&stage, "ringfence_schedules_failing 1").await).await;
    assert!(metric(&stage, "ringfence_schedule_firings_total{result=\"failed\"} 4").await);
    say(&list, 200, "application/json", Value::from(leads(2)).to_string());
    come(&stage, &id).await;
    stage.wait("it fires", async || !show(&stage, &id).await["lastRunId"].is_null()).await;
    let fired = show(&stage, &id).await;
    assert_eq!(
        (ms(&fired["lastFiringAt"]), &fired["error"], &fired["tries"]),
        (at, &Value::Null, &0.into()),
        "{fired}"
    );
    stage.wait("nothing fails any more", async || metric(&stage, "ringfence_schedules_failing 0").await).await;
    stage.wait("both are called", async || stage.control.calls().len() == 2).await;

    // A firing that still fails when the next one comes is given up.
    say(&list, 503, "text/plain", "no");
    come(&stage, &id).await;
    stage.wait("it fails", async || show(&stage, &id).await["tries"] == 1).await;
    say(&list, 200, "application/json", Value::from(leads(1)).to_string());
    stage.clock.advance_ms(at + 2 * DAY - stage.clock.now_ms() + 10);
    stage
        .wait("the next one is made", async || {
            let shown = show(&stage, &id).await;
            !shown["lastFiringAt"].is_null() && ms(&shown["lastFiringAt"]) == at + 2 * DAY
        })
        .await;
    assert!(metric(&stage, "firings_total{result=\"given_up\"} 1").await);
    assert_eq!(runs(&stage).await.len(), 2);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leads_that_cannot_be_called_are_left_out_or_nobody_is_called() {
    let mut some = leads(2);
    some.extend([json!({"number": "12", "name": "x"}), json!({"number": "+15551000099"}), some[0].clone()]);
    let list = list(&some);
    let app = app(&list).await;
    let stage = stage(&app, SOURCE).await;
    let lenient = made(&stage, daily("lenient")).await;
    let strict = made(&stage, with(daily("strict"), json!({"bad_leads": "reject"}))).await;
    let refused = post(&stage, &format!("/api/schedules/{strict}/fire"), json!({})).await;
    assert_eq!((refused.status, &refused.json()["error"]), (502, &"LEADS_UNAVAILABLE".into()), "{refused:?}");
    assert!(runs(&stage).await.is_empty());
    let fired = post(&stage, &format!("/api/schedules/{lenient}/fire"), json!({})).await.json();
    assert_eq!(fired["run"]["leads"], 2, "{fired}");
    let note = show(&stage, &lenient).await["note"].as_str().unwrap().to_owned();
    for part in ["3 leads left out", "E.164", "missing: name", "the same number"] {
        assert!(note.contains(part), "{part}: {note}");
    }
    stage.wait("two are called", async || stage.control.calls().len() == 2).await;
    // A list that is longer than a run may be is not cut.
    stage.rewrite("[[lead_sources]]", "[runs]\nleads_max = 2\n[[lead_sources]]");
    assert_eq!(stage.reload().await.status, 200);
    say(&list, 200, "application/json", Value::from(leads(3)).to_string());
    let long = post(&stage, &format!("/api/schedules/{lenient}/fire"), json!({})).await;
    assert!(long.status == 502 && long.json()["message"].as_str().unwrap().contains("at most 2"), "{long:?}");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missed_firings_are_left_out_or_made_up_for_once_and_paused_ones_are_not() {
    let list = list(&leads(1));
    let app = app(&list).await;
    let mut stage = stage(&app, SOURCE).await;
    let skips = made(&stage, daily("skips")).await;
    let once = made(&stage, with(daily("once"), json!({"missed": "run_once"}))).await;
    let paused = made(&stage, with(daily("paused"), json!({"missed": "run_once"}))).await;
    let answer = post(&stage, &format!("/api/schedules/{paused}/pause"), json!({})).await;
    assert_eq!((answer.status, &answer.json()["state"]), (200, &"paused".into()));
    let next = ms(&show(&stage, &skips).await["nextAt"]);
    stage.stop_app().await;
    stage.clock.advance_ms(next + 2 * DAY + 3_600_000 - stage.clock.now_ms());
    stage.start_app().await;
    stage.wait("one is made up for", async || !show(&stage, &once).await["lastRunId"].is_null()).await;
    stage.wait("others are left out", async || metric(&stage, "firings_total{result=\"missed\"} 1").await).await;
    stage.wait("that is shown", async || show(&stage, &skips).await["note"].is_string()).await;
    let (left, made) = (show(&stage, &skips).await, show(&stage, &once).await);
    assert_eq!((&left["lastRunId"], ms(&left["nextAt"])), (&Value::Null, next + 3 * DAY), "{left}");
    assert_eq!((ms(&made["lastFiringAt"]), ms(&made["nextAt"])), (next + 2 * DAY, next + 3 * DAY), "{made}");
    let resumed = post(&stage, &format!("/api/schedules/{paused}/resume"), json!({})).await.json();
    assert_eq!((&resumed["state"], ms(&resumed["nextAt"])), (&"active".into(), next + 3 * DAY), "{resumed}");
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(runs(&stage).await.len(), 1);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_that_cannot_be_is_told_why() {
    let list = list(&[]);
    let app = app(&list).await;
    let stage = stage(&app, SOURCE).await;
    let run = |more: Value| json!({"run": with(daily("x")["run"].clone(), more)});
    for (more, part) in [
        (json!({"schedule": "every day"}), "schedule:"),
        (json!({"schedule": "0 0 31 2 *"}), "never fires"),
        (json!({"timezone": "Mars/Olympus"}), "timezone:"),
        (json!({"source": "nobody"}), "no source nobody"),
        (json!({"missed": "maybe"}), "expected `skip` or `run_once`"),
        (json!({"name": ""}), "name"),
        (json!({"colour": "red"}), "colour"),
        (run(json!({"account": "nobody"})), "run: there is no account"),
        (run(json!({"start_at": "2026-11-30T09:00:00Z"})), "start_at"),
        (run(json!({"idempotency_key": "k"})), "idempotency_key"),
        (run(json!({"leads": []})), "leads"),
    ] {
        let answer = post(&stage, "/api/schedules", with(daily("x"), more.clone())).await;
        let message = answer.json()["message"].as_str().unwrap_or_default().to_owned();
        assert!(answer.status == 400 && message.contains(part), "{more}: {answer:?}");
    }
    let id = made(&stage, daily("one")).await;
    let again = post(&stage, "/api/schedules", daily("one")).await;
    assert_eq!((again.status, &again.json()["scheduleId"]), (200, &id.into()), "the same is the same");
    let other = with(daily("one"), json!({"schedule": "0 10 * * *"}));
    assert_eq!(post(&stage, "/api/schedules", other).await.status, 409);
    assert_eq!(stage.send("GET", &stage.admin("/api/schedules/sched_x"), &[], "").await.status, 404);
    stage.finish().await;
    let mute =
        Stage::start(Setup { public: false, app: Some(app.url()), tables: SOURCE.to_owned(), ..Setup::default() });
    let mute = mute.await;
    let answer = post(&mute, "/api/schedules", daily("x")).await;
    assert!(
        answer.status == 400 && answer.json()["message"].as_str().unwrap().contains("No public host"),
        "{answer:?}"
    );
    mute.finish().await;
}

/// Who has a token of one business makes and sees its schedules alone, and asks sources for its own leads alone.
#[tokio::test(flavor = "multi_thread")]
async fn schedules_are_of_their_business() {
    let secret = "a secret of thirty-two bytes, or more";
    let list = list(&leads(1));
    let app = app(&list).await;
    let tables = format!(
        "{SOURCE}[[lead_sources]]\nname = \"all\"\ndatabase_url = \"postgres://x@127.0.0.1:1/x\"\nquery = \"SELECT 1\"\n\
         [[lead_sources]]\nname = \"of-two\"\nurl = \"/x\"\nbusinesses = [\"2\"]\n[admin]\ntoken_secret = \"{secret}\""
    );
    let stage = stage(&app, &tables).await;
    let id = made(&stage, daily("one")).await;
    let token = |scope: &str, business: &str| {
        let (sub, exp) = ("t".to_owned(), jiff::Timestamp::now().as_second() + 60);
        let claims = Claims { sub, exp, businesses: vec![business.to_owned()], scope: scope.to_owned() };
        format!("Bearer {}", mint(&Secret::new(secret), &claims).unwrap())
    };
    for (business, status) in [("1", 200), ("2", 404)] {
        let bearer = token("read", business);
        let headers = [("authorization", bearer.as_str())];
        let one = stage.admin(&format!("/api/schedules/{id}"));
        assert_eq!(stage.send("GET", &one, &headers, "").await.status, status);
        let listed = stage.send("GET", &stage.admin("/api/schedules"), &headers, "").await.json();
        assert_eq!(listed["schedules"].as_array().unwrap().len(), usize::from(status == 200));
        for act in ["fire", "pause"] {
            let url = stage.admin(&format!("/api/schedules/{id}/{act}"));
            assert_eq!(stage.send("POST", &url, &headers, "{}").await.status, 403, "reading is not operating");
        }
    }
    let bearer = token("operate", "2");
    let headers = [("authorization", bearer.as_str())];
    let url = stage.admin("/api/schedules");
    assert_eq!(stage.send("POST", &url, &headers, daily("two").to_string()).await.status, 404, "another's business");
    let gone = stage.send("DELETE", &stage.admin(&format!("/api/schedules/{id}")), &headers, "").await;
    assert_eq!(gone.status, 404);
    let mut twos = daily("two");
    twos["run"]["business"] = "2".into();
    for (source, status) in [("all", 400), ("of-two", 201)] {
        let body = with(twos.clone(), json!({"source": source})).to_string();
        assert_eq!(stage.send("POST", &url, &headers, body).await.status, status, "{source}");
    }
    let ones = with(daily("other"), json!({"source": "of-two"}));
    assert_eq!(post(&stage, "/api/schedules", ones).await.status, 400, "it is business 2's");
    assert_eq!(post(&stage, "/api/schedules", with(daily("third"), json!({"source": "all"}))).await.status, 201);
    let purged = post(&stage, "/api/businesses/1/purge", json!({})).await.json();
    assert_eq!(purged["schedules"], 2, "{purged}");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_leads_is_signed_over_its_path_and_query() {
    let list = list(&leads(1));
    let app = app(&list).await;
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let source =
        format!("[[lead_sources]]\nname = \"reminders\"\nurl = \"{}/due\"\nsecret = \"{secret}\"\n", app.url());
    let stage = stage(&app, &source).await;
    let id = made(&stage, daily("signed")).await;
    assert_eq!(post(&stage, &format!("/api/schedules/{id}/fire"), json!({})).await.status, 201);
    let asked = app.at("/due").remove(0);
    let header = |name: &str| asked.headers[name].to_str().unwrap().to_owned();
    let at_secs: i64 = header("webhook-timestamp").parse().unwrap();
    let key = standard_key(&Secret::new(secret)).unwrap();
    let wanted = sign_standard(&key, &header("webhook-id"), at_secs, asked.path_and_query.as_bytes());
    assert_eq!(header("webhook-signature"), wanted);
    assert_eq!((asked.method.as_str(), asked.body.len()), ("GET", 0));
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_is_a_source_and_can_only_read() {
    if postgres::is_missing() {
        return;
    }
    let server = block_in_place(Server::start);
    let url = server.database_over_tcp();
    let database = url.rsplit('/').next().unwrap().to_owned();
    let sql = "CREATE TABLE appointments (business text, phone text, first_name text, age int, day date);
         INSERT INTO appointments SELECT '1', '+1555100' || lpad((10 + n)::text, 4, '0'), 'Lead ' || n, n, now()::date + 1
             FROM generate_series(0, 1199) n;
         INSERT INTO appointments VALUES ('2', '+15552000010', 'other', 1, now()::date + 1),
             ('1', '+15552000011', 'later', 1, now()::date + 2);
         CREATE TABLE taken (n int);
         CREATE FUNCTION take() RETURNS text LANGUAGE sql AS 'INSERT INTO taken VALUES (1) RETURNING ''+15551000010''';";
    block_in_place(|| server.psql(&database, sql));
    let source = |name: &str, query: &str| {
        format!(
            "[[lead_sources]]\nname = \"{name}\"\ndatabase_url = \"{url}\"\ntimeout_secs = 2\nquery = \"{query}\"\n"
        )
    };
    let due = "SELECT phone AS number, first_name AS name, age FROM appointments
        WHERE business = {{business}} AND day = {{date}}::date + 1 ORDER BY age;";
    let list = list(&[]);
    let app = app(&list).await;
    let tables = [
        source("reminders", &due.replace('\n', " ")),
        source("takes", "SELECT take() AS number, 'x' AS name"),
        source("deletes", "DELETE FROM appointments RETURNING phone AS number"),
        source("two", "SELECT 1 AS number; SELECT 2"),
        source("slow", "SELECT pg_sleep(60)::text AS number"),
        source("wrong", "SELECT phone AS number FROM nothing"),
        "[[lead_sources]]\nname = \"away\"\ndatabase_url = \"postgres://u:hunter2@127.0.0.1:1/x\"\nquery = \"SELECT 1\"\n".to_owned(),
    ];
    let stage = stage(&app, &tables.concat()).await;
    let utc = || with(daily("x"), json!({"timezone": "UTC"}));
    let id = made(&stage, utc()).await;
    let fired = post(&stage, &format!("/api/schedules/{id}/fire"), json!({})).await.json();
    assert_eq!(fired["run"]["leads"], 1_200, "{fired}");
    post(&stage, &format!("/api/runs/{}/cancel", fired["run"]["runId"].as_str().unwrap()), json!({})).await;
    for (name, part) in [
        ("takes", "only reads"),
        ("deletes", "reports:"),
        ("two", "reports:"),
        ("slow", "within 2 s"),
        ("wrong", "nothing"),
        ("away", "cannot be reached"),
    ] {
        let id = made(&stage, with(utc(), json!({"name": name, "source": name}))).await;
        let failed = post(&stage, &format!("/api/schedules/{id}/fire"), json!({})).await;
        let message = failed.json()["message"].as_str().unwrap_or_default().to_owned();
        assert!(failed.status == 502 && message.contains(part), "{name}: {failed:?}");
        assert!(!message.contains("hunter2"), "{message}");
    }
    assert_eq!(block_in_place(|| server.psql(&database, "SELECT count(*) FROM taken")).trim(), "0");
    assert_eq!(block_in_place(|| server.psql(&database, "SELECT count(*) FROM appointments")).trim(), "1202");
    stage.finish().await;
}

// === deaths ===

fn yearly(url: &str, name: &str) -> (String, Value) {
    let source = format!("[[lead_sources]]\nname = \"reminders\"\nurl=\"{url}/due\"\n");
    let more = json!({"schedule": "0 0 1 1 *", "timezone": "UTC", "missed": "run_once"});
    (source, with(daily(name), more))
}

/// As if the schedule were two years old: its last firing is missed, and to be made up for.
const OLD: &str = "UPDATE schedules SET done_at = 1700000000000, next_at = 1700000000000, version = version + 1";

/// The process dies when the run of a firing has begun, and when it is whole and the schedule does not know it yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_death_at_the_moment_of_firing_makes_no_second_run() {
    let list = list(&leads(6));
    let app = app(&list).await;
    let (source, schedule) = yearly(&app.url(), "yearly");
    for point in ["schedule.begun", "schedule.fired"] {
        let tables = format!("{source}[businesses.1]\nmax_calls = 2");
        let mut scene = Scene::set(sim(), "front", "", &tables).await;
        scene.start_well().await;
        let made = scene.ask("admin", "POST", "/api/schedules", &[], schedule.to_string()).await.unwrap();
        let id = made.json()["scheduleId"].as_str().unwrap_or_else(|| panic!("{made:?}")).to_owned();
        scene.kill();
        let file = scene.folder().join("ringfence.db");
        assert_eq!(rusqlite::Connection::open(file).unwrap().execute(OLD, []).unwrap(), 1);
        scene.start(&format!("{point}=abort:1")).await;
        assert!(scene.died(PATIENCE).await.is_some(), "nobody came to {point}\n{}", scene.log());
        scene.start_well().await;
        let ask = async |path: &str| scene.ask("admin", "GET", path, &[], "").await.unwrap().json();
        let show = async || ask(&format!("/api/schedules/{id}")).await;
        scene.wait("it has fired", async || !show().await["lastRunId"].is_null()).await;
        scene.wait("all are called", async || scene.control.calls().len() == 6).await;
        let runs = ask("/api/runs").await["runs"].clone();
        assert_eq!(runs.as_array().unwrap().len(), 1, "{point}: {runs}");
        assert_eq!((&runs[0]["runId"], &runs[0]["leads"]), (&show().await["lastRunId"], &6.into()));
        scene.wait("the run is done", async || ask("/api/runs").await["runs"][0]["state"] == "done").await;
        assert_eq!(numbers(&scene.control.calls()).len(), 6);
        scene.finish().await;
    }
}

async fn ask_at(fleet: &Fleet, n: usize, method: &str, path: &str, body: impl Into<Bytes>) -> Option<Value> {
    let mut request = Request::new(body.into());
    *request.method_mut() = method.parse::<Method>().unwrap();
    *request.uri_mut() = path.parse().unwrap();
    let socket = fleet.replicas[n].folder.join("ringfence-admin.sock");
    let answer = fetch_local(&socket, request, 1 << 20, Duration::from_secs(10)).await.ok()?;
    serde_json::from_slice(answer.body()).ok()
}

async fn anybody(fleet: &Fleet, path: &str) -> Value {
    for n in (0..3).cycle().take(90) {
        if let Some(answer) = ask_at(fleet, n, "GET", path, "").await.filter(|answer| answer["error"].is_null()) {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("nobody answers {path}")
}

/// Three replicas, whose leader and others are killed around each firing: one run each time, and nobody is called twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn several_replicas_that_are_killed_fire_once() {
    if postgres::is_missing() {
        return;
    }
    const SCHEDULES: usize = 4;
    let server = block_in_place(Server::start);
    // Each asks for leads of its own.
    let app = Behind::replying(Box::new(|got| {
        let n = got.path_and_query.split("schedule=y").nth(1).and_then(|rest| rest.chars().next()).unwrap_or('9');
        let leads: Vec<Value> =
            (0..8).map(|i| json!({"number": format!("+1555{n}00{:04}", i + 10), "name": "x"})).collect();
        let mut response = Response::new(Bytes::from(Value::from(leads).to_string()));
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
        response
    }))
    .await;
    let (source, _) = yearly(&app.url(), "");
    let setup = fleet::Setup {
        replicas: 3,
        sim: sim(),
        postgres: (server.port, server.database_over_tcp().rsplit('/').next().unwrap().to_owned()),
        redis: Store::None,
        tables: format!("{DATABASE}\n{source}"),
        limits: (10, 10, vec![("1".to_owned(), 5)]),
        reconcile: "sweep_ms = 150\nlist_lag_ms = 300\nnot_found_confirm_secs = 2",
    };
    let fleet = Fleet::set(setup, &mut Rng::new("schedules")).await;
    fleet.start().await;
    let mut rng = Rng::new("firings");
    let mut ids = vec![];
    for n in 0..SCHEDULES {
        let (_, schedule) = yearly(&app.url(), &format!("y{n}"));
        let made = ask_at(&fleet, n % 3, "POST", "/api/schedules", schedule.to_string()).await.unwrap();
        ids.push(made["scheduleId"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned());
    }
    for (n, id) in ids.iter().enumerate() {
        let old = format!("{OLD} WHERE id = $1 AND fired_at IS NULL");
        sqlx::query(sqlx::AssertSqlSafe(old)).bind(id).execute(&fleet.record).await.unwrap();
        // Around the look of whoever leads.
        tokio::time::sleep(Duration::from_millis(rng.below(1_300))).await;
        let victims = if n % 2 == 0 { vec![0, 1, 2] } else { vec![rng.below(3) as usize] };
        for victim in victims {
            fleet.replicas[victim].kill();
        }
        tokio::time::sleep(Duration::from_millis(rng.below(500))).await;
        fleet.start().await;
    }
    for id in &ids {
        let started = std::time::Instant::now();
        while anybody(&fleet, &format!("/api/schedules/{id}")).await["lastRunId"].is_null() {
            assert!(started.elapsed() < 3 * PATIENCE, "{}", fleet.replicas[0].last_lines());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    let started = std::time::Instant::now();
    loop {
        let runs = anybody(&fleet, "/api/runs").await["runs"].as_array().unwrap().clone();
        assert_eq!(runs.len(), SCHEDULES, "{runs:?}");
        if runs.iter().all(|run| run["state"] == "done") {
            break;
        }
        assert!(started.elapsed() < 3 * PATIENCE, "{runs:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let called = numbers(&fleet.control.calls());
    let once: std::collections::BTreeSet<_> = called.iter().collect();
    assert_eq!((called.len(), once.len()), (8 * SCHEDULES, 8 * SCHEDULES), "{called:?}");
    fleet.end_all();
    fleet.stop().await;
    fleet.done().await;
}
