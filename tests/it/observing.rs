//! Metrics of the whole program: what each limit allows, what ringfence adds to a create, businesses within a bound, counters that are
//! there before their first event.

use std::collections::BTreeMap;

use crate::outbound_limits::stage;
use crate::support::stage::Stage;

async fn metrics(stage: &Stage) -> BTreeMap<String, f64> {
    let text = stage.ask("/metrics").await;
    let samples = text.as_str().unwrap().lines().filter(|line| !line.starts_with('#'));
    samples
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_are_there_before_their_first_event() {
    let stage = stage("", "[businesses.acme]\nplan = \"PRO\"").await;
    let first = metrics(&stage).await;
    for name in [
        "concurrent_rejected_total{plan=\"PRO\",reason=\"BUSINESS_LIMIT\"}",
        "concurrent_rejected_total{plan=\"inbound\",reason=\"capacity_inbound\"}",
        "concurrent_rejected_total{plan=\"unknown\",reason=\"CALL_STORE_UNAVAILABLE\"}",
        "ringfence_calls_admitted_total{account=\"elevenlabs\",direction=\"outbound\",plan=\"PRO\"}",
        "ringfence_provider_limit_total{account=\"twilio\",class=\"rate\"}",
        "ringfence_create_outcome_unknown_total{account=\"twilio\"}",
        "ringfence_deliveries_total{result=\"given_up\"}",
        "ringfence_gate_degraded_total{decided=\"open\"}",
        "ringfence_webhooks_total{account=\"elevenlabs\",event=\"unverified\",outcome=\"refused\"}",
        "ringfence_requests_total{kind=\"webhook\",listener=\"webhooks\",status=\"5xx\"}",
        "ringfence_upstream_create_duration_seconds_count{account=\"elevenlabs\"}",
        "ringfence_create_added_duration_seconds_count{outcome=\"rejected\"}",
        "ringfence_business_rejected_total{business=\"other\"}",
        "ringfence_webhooks_parked",
        "ringfence_gate_fallback_active",
    ] {
        assert_eq!(first.get(name), Some(&0.0), "{name}");
    }
    // What a first event is counted in was there before it.
    assert_eq!(stage.dial(Some("acme"), "+15550002001").await.status, 200);
    let then = metrics(&stage).await;
    let admitted = "ringfence_calls_admitted_total{account=\"elevenlabs\",direction=\"outbound\",plan=\"PRO\"}";
    assert_eq!(then[admitted], 1.0);
    let figures = stage.ask("/api/concurrent-metrics").await;
    assert_eq!(figures["rejectionsByReason"], serde_json::json!({}), "what is 0 is no rejection");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_say_what_they_allow_and_creates_what_they_take() {
    let limit = "[[limits]]\nname = \"night\"\nconcurrent = 7\n[limits.match]\nagent = [\"nobody\"]";
    let stage = stage("concurrent = 20", &format!("{limit}\n[businesses.acme]\nmax_calls = 1")).await;
    assert_eq!(stage.dial(Some("acme"), "+15550002001").await.status, 200);
    assert_eq!(stage.dial(Some("acme"), "+15550002002").await.status, 503);
    let now = metrics(&stage).await;
    for (limit, in_use, max) in [("global", 1.0, 20.0), ("night", 0.0, 7.0)] {
        assert_eq!(now.get(&format!("ringfence_limit_in_use{{limit=\"{limit}\"}}")), Some(&in_use), "{limit}");
        assert_eq!(now.get(&format!("ringfence_limit_max{{limit=\"{limit}\"}}")), Some(&max), "{limit}");
    }
    // The exchange is settled a moment after its answer.
    let sent = "ringfence_create_added_duration_seconds_count{outcome=\"sent\"}";
    stage.wait("the create is measured", async || metrics(&stage).await[sent] == 1.0).await;
    let now = metrics(&stage).await;
    assert_eq!(now["ringfence_create_added_duration_seconds_count{outcome=\"rejected\"}"], 1.0);
    assert!(now.contains_key("ringfence_create_added_duration_seconds_bucket{outcome=\"sent\",le=\"0.0005\"}"));
    for bound in ["0.05", "60", "+Inf"] {
        let bucket =
            format!("ringfence_upstream_create_duration_seconds_bucket{{account=\"elevenlabs\",le=\"{bound}\"}}");
        assert!(now.contains_key(&bucket), "{bucket}");
    }
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn businesses_have_labels_within_a_bound() {
    let stage = stage("concurrent = 50", "[admin]\nmetrics_businesses = 2").await;
    for (n, business) in ["acme", "globex", "initech", "umbrella"].into_iter().enumerate() {
        for to in 0..=n {
            let number = format!("+155500{n}2{to:03}");
            assert_eq!(stage.dial(Some(business), &number).await.status, 200, "{business}");
        }
    }
    let now = metrics(&stage).await;
    let of = |name: &str, business: &str| now.get(&format!("{name}{{business=\"{business}\"}}")).copied();
    let admitted = |business| of("ringfence_business_admitted_total", business);
    // The first two have the labels; who is busiest is looked at once a minute.
    assert_eq!((admitted("acme"), admitted("globex"), admitted("umbrella")), (Some(1.0), Some(2.0), None));
    assert_eq!(admitted("other"), Some(7.0));
    // What is in use is ranked at once.
    let in_use = |business| of("ringfence_business_in_use", business);
    assert_eq!((in_use("umbrella"), in_use("initech"), in_use("other")), (Some(4.0), Some(3.0), Some(3.0)));
    assert_eq!(in_use("acme"), None);
    // A reload takes the labels away.
    stage.rewrite("metrics_businesses = 2", "metrics_businesses = 0");
    let reloaded = stage.reload().await;
    assert_eq!(reloaded.status, 200, "{reloaded:?}");
    let now = metrics(&stage).await;
    let named = |name: &&String| name.contains("business=\"") && !name.contains("business=\"other\"");
    assert_eq!(now.keys().filter(named).collect::<Vec<_>>(), Vec::<&String>::new());
    stage.finish().await;
}
