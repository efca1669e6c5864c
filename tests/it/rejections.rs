//! Every rejection of a create is answered in its provider's shape, logged, counted and recorded: whatever it is rejected for.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::outbound::{account_at, elevenlabs, order};
use crate::support::stage::{Setup, Stage};

const CREATE: &str = "/elevenlabs/v1/convai/twilio/outbound-call";

/// The rejections of creates so far: by code and plan.
async fn counted(stage: &Stage) -> BTreeMap<(String, String), u64> {
    let metrics = stage.ask("/metrics").await;
    let lines = metrics.as_str().unwrap().lines().filter_map(|line| line.strip_prefix("concurrent_rejected_total{"));
    let label = |line: &str, name: &str| {
        let value = line.split(&format!("{name}=\"")).nth(1).unwrap();
        value.split('"').next().unwrap().to_owned()
    };
    lines.map(|l| ((label(l, "reason"), label(l, "plan")), l.rsplit(' ').next().unwrap().parse().unwrap())).collect()
}

/// Path, headers, body; status, code, what it is counted as.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Value, u16, &'a str, &'a str);

#[tokio::test(flavor = "multi_thread")]
async fn every_rejection_of_a_create_is_counted_and_recorded() {
    let closed = std::net::SocketAddr::from(([127, 0, 0, 1], ringfence::net::spare_port()));
    let tables = account_at("dead", "elevenlabs", &format!("http://{closed}"));
    let stage = Stage::start(Setup { tables, ..Setup::default() }).await;
    let long = json!({"to_number": "x".repeat(2 * 1024 * 1024)});
    let key = "k".repeat(256);
    let rejected: [Case<'_>; 4] = [
        (CREATE, &[], long, 413, "BODY_TOO_LARGE", "unknown"),
        (
            CREATE,
            &[("content-encoding", "gzip")],
            order("+15550002001"),
            415,
            "UNSUPPORTED_CONTENT_ENCODING",
            "unknown",
        ),
        (CREATE, &[("idempotency-key", &key)], order("+15550002001"), 400, "INVALID_REQUEST", "default"),
        ("/dead/v1/convai/twilio/outbound-call", &[], order("+15550002001"), 503, "CALL_INITIATION_FAILED", "default"),
    ];
    let mut ids = BTreeMap::new();
    for (path, headers, body, status, code, plan) in &rejected {
        let answer = elevenlabs(&stage, path, headers, body).await;
        let told = answer.json();
        assert_eq!((answer.status, &told["error"], &told["called"]), (*status, &json!(code), &json!(false)));
        assert_eq!(counted(&stage).await.get(&((*code).to_owned(), (*plan).to_owned())), Some(&1), "{code}");
        ids.insert(told["refusalId"].as_str().unwrap().to_owned(), *code);
    }
    let rows = async || stage.ask("/api/refusals").await["refusals"].as_array().unwrap().clone();
    stage.wait("all are recorded", async || rows().await.len() == rejected.len()).await;
    for row in rows().await {
        assert_eq!(Some(&row["code"].as_str().unwrap()), ids.get(row["id"].as_str().unwrap()), "{row}");
    }
    // What creates nothing is no rejection of a create.
    let passed = stage.send("GET", &stage.api("/dead/v1/models"), &[], "").await;
    assert_eq!((passed.status, &passed.json()["error"]), (502, &json!("UPSTREAM_UNREACHABLE")));
    assert_eq!(stage.ask("/api/concurrent-metrics").await["totalRejections"], rejected.len());
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_cannot_be_recorded_is_counted() {
    let stage = Stage::start(Setup::default()).await;
    stage.app().calls().lifecycle.store.close().await;
    let answer = elevenlabs(&stage, CREATE, &[], &order("+15550002001")).await;
    assert_eq!((answer.status, &answer.json()["error"]), (503, &json!("CALL_STORE_UNAVAILABLE")));
    let counted = counted(&stage).await;
    assert_eq!(counted.get(&("CALL_STORE_UNAVAILABLE".to_owned(), "default".to_owned())), Some(&1), "{counted:?}");
}
