//! The OpenAPI document of `listen.admin`: every route that it describes answers as it says.

use ringfence::admin::api::{ROUTES, Shape};
use serde_json::{Map, Value, json};

use crate::outbound::id;
use crate::outbound_limits::{BUSINESSES, stage};
use crate::support::stage::Stage;

/// What a value has that its schema does not allow.
fn misfit(schema: &Value, value: &Value, document: &Value) -> Option<String> {
    if let Some(reference) = schema["$ref"].as_str() {
        return misfit(document.pointer(reference.strip_prefix('#').unwrap()).unwrap(), value, document);
    }
    if let Some(any) = schema["anyOf"].as_array() {
        return any
            .iter()
            .all(|one| misfit(one, value, document).is_some())
            .then(|| format!("{value} is none of {}", schema["anyOf"]));
    }
    let is_kind = match schema["type"].as_str() {
        None => true,
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        Some(other) => panic!("{other} is no type"),
    };
    if !is_kind {
        return Some(format!("{value} is no {}", schema["type"]));
    }
    if schema["format"] == "date-time" && !value.as_str().unwrap().ends_with('Z') {
        return Some(format!("{value} is no time"));
    }
    let required = schema["required"].as_array().into_iter().flatten();
    if let Some(missing) = required.map(|key| key.as_str().unwrap()).find(|key| value.get(*key).is_none()) {
        return Some(format!("{missing} is missing in {value}"));
    }
    let properties = schema["properties"].as_object();
    for (key, field) in value.as_object().into_iter().flatten() {
        let found = match properties.and_then(|all| all.get(key)) {
            Some(schema) => misfit(schema, field, document),
            None if schema["additionalProperties"].is_object() => {
                misfit(&schema["additionalProperties"], field, document)
            }
            // What is answered and not described would be no part of the contract.
            None => properties.is_some().then(|| "it is not described".to_owned()),
        };
        if let Some(why) = found {
            return Some(format!("{key}: {why}"));
        }
    }
    let items = value.as_array().into_iter().flatten();
    items.filter_map(|item| misfit(&schema["items"], item, document)).next()
}

/// A call that was refused, one that is up, a run, a webhook: something behind every list. The ids by the first part of their path.
async fn furnish(stage: &Stage) -> Map<String, Value> {
    let call = id(&stage.dial(Some("pro"), "+15550002001").await, "conversation_id");
    for to in ["+15550002002", "+15550002003", "+15550002004", "+15550002005"] {
        stage.dial(Some("pro"), to).await;
    }
    let run = json!({
        "business": "starter", "account": "twilio", "operation": "calls", "request": {"Twiml": "<Response/>"},
        "own_numbers": ["+15550001111"], "start_at": "2099-01-01T00:00:00Z", "leads": [{"number": "+15551000010"}],
    });
    let kind = [("content-type", "application/json")];
    let made = stage.send("POST", &stage.admin("/api/runs"), &kind, run.to_string()).await;
    assert_eq!(made.status, 201, "{made:?}");
    stage.control.end_call(&id(&stage.dial(Some("enterprise"), "+15550002006").await, "conversation_id"));
    stage.wait("a webhook is on record", async || stage.ask("/api/events").await["events"][0]["id"].is_string()).await;
    let event = stage.ask("/api/events").await["events"][0]["id"].clone();
    stage.wait("a refusal is on record", async || stage.ask("/api/refusals").await["refusals"][0].is_object()).await;
    let refusal = stage.ask("/api/refusals").await["refusals"][0]["id"].clone();
    let schedule = json!({
        "name": "daily", "schedule": "0 9 * * *", "timezone": "UTC", "source": "reminders",
        "run": {"business": "starter", "account": "twilio", "operation": "calls", "request": {"Twiml": "<Response/>"}, "own_numbers": ["+15550001111"]},
    });
    let scheduled = stage.send("POST", &stage.admin("/api/schedules"), &kind, schedule.to_string()).await;
    assert_eq!(scheduled.status, 201, "{scheduled:?}");
    let all = json!({"calls": call, "schedules": scheduled.json()["scheduleId"], "businesses": "pro", "events": event, "runs": made.json()["runId"], "conversations": call, "do-not-call": "+905321234567", "refusals": refusal, "explain": refusal});
    all.as_object().unwrap().clone()
}

/// Bodies by operation; every other operation gets none, or that of a reason.
fn body_of(method: &str, path: &str) -> Value {
    match (method, path) {
        ("put", "/api/businesses/{id}") => json!({"plan": "PRO"}),
        ("put", "/api/businesses") => json!({"businesses": [{"id": "pro", "plan": "PRO"}]}),
        ("put" | "delete", "/api/do-not-call") => json!({"numbers": ["+905321234567"], "reason": "asked"}),
        ("put", "/api/bypass") => json!({"for_secs": 60, "reason": "test"}),
        ("post", "/api/calls/{id}/release") => json!({"force": true, "reason": "test"}),
        ("post", "/api/runs") => json!({
            "business": "starter", "account": "twilio", "operation": "calls", "request": {"Twiml": "<Response/>"},
            "own_numbers": ["+15550001111"], "start_at": "2099-01-01T00:00:00Z",
        }),
        ("post", "/api/runs/{id}/leads") => json!([{"number": "+15551000010"}]),
        ("post", "/api/schedules") => json!({
            "name": "weekly", "schedule": "0 9 * * 1", "timezone": "UTC", "source": "reminders",
            "run": {"business": "starter", "account": "twilio", "operation": "calls", "request": {"Twiml": "<Response/>"}, "own_numbers": ["+15550001111"]},
        }),
        _ => json!({"reason": "test"}),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_answers_as_it_is_described() {
    // The leads of a schedule come from a server that is not there: it says so when it is fired.
    let source = "[[lead_sources]]\nname = \"reminders\"\nurl = \"http://127.0.0.1:9/leads\"\nbearer = \"a token\"\n";
    let stage = stage("", &format!("{BUSINESSES}{source}")).await;
    let ids = furnish(&stage).await;
    let document = stage.ask("/openapi.json").await;
    assert_eq!(document["openapi"], "3.1.0");
    let mut tried = 0;
    // Those that only look first: a purge leaves nothing to look at.
    let mut all: Vec<(&String, &String, &Value)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| methods.as_object().unwrap().iter().map(move |(m, o)| (m, path, o)))
        .collect();
    let turn = |(method, path, _): &(&String, &String, &Value)| match method.as_str() {
        "get" => 0,
        "put" => 1,
        "post" if path.ends_with("/purge") => 3,
        "post" => 2,
        // A list is emptied last.
        _ if path.contains('{') => 4,
        _ => 5,
    };
    all.sort_by_key(turn);
    for (method, path, operation) in all.into_iter().filter(|(_, path, _)| !path.ends_with("/stream")) {
        let first = path.trim_start_matches("/api/").trim_start_matches('/').split('/').next().unwrap();
        let named = ids.get(first).and_then(Value::as_str).unwrap_or_default().to_owned();
        for missing in [false, true] {
            if missing && !path.contains('{') {
                continue;
            }
            let target = if missing { "nobody" } else { named.as_str() };
            let mut url = path.replace("{id}", target).replace("{number}", target);
            if path == "/api/explain" {
                url = format!("{url}?id={target}");
            }
            let body =
                if operation["requestBody"].is_null() { String::new() } else { body_of(method, path).to_string() };
            let kind = [("content-type", "application/json")];
            let answer = stage.send(&method.to_uppercase(), &stage.admin(&url), &kind, body).await;
            let what = format!("{method} {url}: {} {}", answer.status, String::from_utf8_lossy(&answer.body));
            let described = &operation["responses"][answer.status.to_string()];
            assert!(!described.is_null(), "the status is not described: {what}");
            let fails = path.ends_with("/fire");
            assert!(missing || fails || answer.status < 300, "{what}");
            let content = described["content"].as_object().cloned().unwrap_or_default();
            match answer.header("content-type").map(|kind| kind.split(';').next().unwrap().to_owned()) {
                None => assert!(content.is_empty() && answer.body.is_empty(), "{what}"),
                Some(kind) => {
                    let schema = content.get(&kind).unwrap_or_else(|| panic!("{kind} is not described: {what}"));
                    if kind == "application/json" {
                        assert_eq!(misfit(&schema["schema"], &answer.json(), &document), None, "{what}");
                    }
                }
            }
            tried += 1;
        }
    }
    assert!(tried > 50, "{tried}");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_described_is_not_served() {
    let stage = stage("", "").await;
    for (method, path, status, allow) in [
        ("GET", "/api/nothing", 404, None),
        ("POST", "/status", 405, Some("GET")),
        ("PATCH", "/api/businesses/acme", 405, Some("GET, PUT, DELETE")),
        ("DELETE", "/api/calls/x/hangup", 405, Some("POST")),
        ("GET", "/openapi.json", 200, None),
        ("GET", "/page/api.html", 200, None),
    ] {
        let answer = stage.send(method, &stage.admin(path), &[], "").await;
        assert_eq!((answer.status, answer.header("allow")), (status, allow), "{method} {path}: {answer:?}");
    }
    // The page asks nobody but its own listener, and writes no HTML.
    let script = stage.send("GET", &stage.admin("/page/api.js"), &[], "").await;
    let script = String::from_utf8(script.body.to_vec()).unwrap();
    assert!(!script.contains("http:") && !script.contains("https:") && !script.contains("innerHTML"), "{script}");
    stage.finish().await;
}

/// Whatever a handler matches is described: by the first two parts of its path.
#[test]
fn what_is_served_is_described() {
    let source = std::fs::read_to_string(crate::reference::root("src/admin/mod.rs")).unwrap();
    let arms = source.lines().filter(|line| line.trim_start().starts_with('(') && line.contains("[\""));
    let mut count = 0;
    for arm in arms {
        let (_, list) = arm.split_once("[\"").unwrap();
        let list = list.split(']').next().unwrap();
        let words: Vec<&str> = list.split('"').step_by(2).take(if list.starts_with("api") { 2 } else { 1 }).collect();
        let path = format!("/{}", words.join("/"));
        let is_described = ROUTES.iter().any(|route| route.path == path || route.path.starts_with(&format!("{path}/")));
        assert!(is_described, "{path} is served, and src/admin/api.rs has no route of it: {arm}");
        count += 1;
    }
    assert!(count > 15, "{count}");
}

#[test]
fn an_answer_that_is_not_as_described_is_found() {
    let document = json!({"components": {"schemas": {"One": {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}}}});
    let schema = json!({"type": "array", "items": {"$ref": "#/components/schemas/One"}});
    assert_eq!(misfit(&schema, &json!([{"a": "x"}]), &document), None);
    for wrong in [json!({}), json!([{}]), json!([{"a": 1}]), json!([{"a": "x", "b": 1}]), json!(["x"])] {
        assert!(misfit(&schema, &wrong, &document).is_some(), "{wrong}");
    }
    assert!(ROUTES.iter().any(|route| route.answers.iter().any(|(_, shape)| *shape == Shape::Empty)));
}
