use std::collections::BTreeMap;

use super::*;
use crate::call::Direction;
use crate::ids::BusinessId;
use crate::provider::Registry;

fn name(account: &str) -> AccountName {
    AccountName::parse(account).unwrap()
}

/// An account of ElevenLabs.
fn account() -> Account {
    let provider = Registry::new(&[]).unwrap().get("elevenlabs").unwrap().clone();
    Account {
        name: name("main"),
        upstream: provider.upstream.parse().unwrap(),
        upstreams: vec![],
        provider,
        secrets: BTreeMap::new(),
        webhook_secrets: vec![],
        shared_keys: BTreeMap::new(),
        webhook_tokens: vec![],
        hang_up_methods: vec![],
        carrier: None,
    }
}

fn call_of(business: &str) -> CallAttributes {
    CallAttributes {
        business: BusinessId::parse(business).unwrap(),
        plan: "PAYG".to_owned(),
        account: name("main"),
        provider: "elevenlabs".to_owned(),
        carrier: None,
        direction: Direction::Outbound,
        operation: String::new(),
        agent: None,
        own_number: None,
        other_number: None,
    }
}

fn rejected_of(business: &str) -> RejectedCall<'_> {
    RejectedCall { reason: "BUSINESS_LIMIT", plan: "PAYG", business }
}

#[test]
fn the_names_of_the_contract_are_there_exactly() {
    let metrics = Metrics::new().unwrap();
    metrics.rejected(rejected_of("acme"));
    metrics.provider_limit(&account(), LimitClass::Concurrency);
    let gauges = Gauges { active: 3, sessions: Some(4), of_businesses: Some(3), ..Gauges::default() };
    let text = metrics.render(&gauges, Format::Text);
    for line in [
        "platform_global_active_calls 3",
        "concurrent_rejected_total{plan=\"PAYG\",reason=\"BUSINESS_LIMIT\"} 1",
        "elevenlabs_429_total 1",
        "active_call_sessions_count 4",
        "subscription_active_calls_sum 3",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\nnot in\n{text}");
    }
    assert_eq!(metrics.rejections(), [("BUSINESS_LIMIT".to_owned(), "PAYG".to_owned(), 1)]);
}
#[test]
fn every_counter_is_there_before_its_first_event() {
    let metrics = Metrics::new().unwrap();
    metrics.create_series(&ExpectedLabels {
        accounts: vec![&name("eleven"), &name("twilio")],
        polled: vec![&name("eleven")],
        plans: vec!["PAYG"],
        reasons: vec!["BUSINESS_LIMIT"],
        business_labels: 2,
    });
    let text = metrics.render(&Gauges::default(), Format::Text);
    for line in [
        "concurrent_rejected_total{plan=\"PAYG\",reason=\"BUSINESS_LIMIT\"} 0",
        "concurrent_rejected_total{plan=\"inbound\",reason=\"BUSINESS_LIMIT\"} 0",
        "ringfence_provider_limit_total{account=\"twilio\",class=\"rate\"} 0",
        "ringfence_deliveries_total{result=\"given_up\"} 0",
        "ringfence_sweeps_total{account=\"eleven\",result=\"failed\"} 0",
        "ringfence_business_rejected_total{business=\"other\"} 0",
        "ringfence_create_added_duration_seconds_count{outcome=\"sent\"} 0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\nnot in\n{text}");
    }
    assert!(!text.contains("ringfence_sweeps_total{account=\"twilio\""), "nobody asks it, so nobody waits for that");
    assert_eq!(metrics.rejections(), [], "none was given");
    metrics.account_gone(&name("eleven"));
    assert!(!metrics.render(&Gauges::default(), Format::Text).contains("ringfence_sweeps_total{"));
}

#[test]
fn businesses_have_a_bound_and_no_whole_number() {
    let metrics = Metrics::new().unwrap();
    metrics.create_series(&ExpectedLabels { business_labels: 2, ..ExpectedLabels::default() });
    for business in ["acme", "+15550001101", "globex", "initech"] {
        metrics.admitted(&call_of(business));
        metrics.rejected(rejected_of(business));
    }
    let in_use = [("acme", 1), ("+15550001101", 5), ("globex", 3), ("initech", 1)];
    let businesses = Some(in_use.map(|(id, slots)| (id.to_owned(), slots)).to_vec());
    let text = metrics.render(&Gauges { businesses, ..Gauges::default() }, Format::Text);
    for line in [
        "ringfence_business_admitted_total{business=\"acme\"} 1",
        "ringfence_business_admitted_total{business=\"+155••••••01\"} 1",
        "ringfence_business_admitted_total{business=\"other\"} 2",
        "ringfence_business_rejected_total{business=\"other\"} 2",
        "ringfence_business_in_use{business=\"+155••••••01\"} 5",
        "ringfence_business_in_use{business=\"globex\"} 3",
        "ringfence_business_in_use{business=\"other\"} 2",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\nnot in\n{text}");
    }
    assert!(!text.contains("15550001101"), "{text}");
    metrics.create_series(&ExpectedLabels { business_labels: 0, ..ExpectedLabels::default() });
    metrics.admitted(&call_of("acme"));
    let text = metrics.render(&Gauges::default(), Format::Text);
    assert!(!text.contains("business=\"acme\""), "{text}");
}

#[test]
fn a_follower_leaves_global_gauges_to_the_leader() {
    let metrics = Metrics::new().unwrap();
    metrics.provider_limit(&account(), LimitClass::Concurrency);
    let gauges = Gauges { active: 3, limits: vec![("global".to_owned(), 3)], ..Gauges::default() };
    let known: Vec<&str> = metrics.descriptions().iter().map(|metric| metric.name.as_str()).collect();
    for global in GLOBAL_GAUGES {
        assert!(known.contains(&global), "{global} is no metric");
    }
    assert!(metrics.render(&gauges, Format::Text).contains("\nplatform_global_active_calls 3\n"));
    let followers = metrics.render(&Gauges { follows: true, ..gauges }, Format::Text);
    assert!(!followers.contains("platform_global_active_calls") && !followers.contains("ringfence_limit_in_use"));
    assert!(followers.contains("elevenlabs_429_total 1"), "counters are each replica's own");
}

#[test]
fn exemplars_lead_from_a_bucket_to_the_last_trace_in_it() {
    let metrics = Metrics::new().unwrap();
    let traced = |trace_id: &str, at_ms| Some(Exemplar { trace_id: trace_id.repeat(16), at_ms });
    metrics.upstream_seconds(&name("main"), Duration::from_millis(120), traced("0a", 1_000));
    metrics.upstream_seconds(&name("main"), Duration::from_millis(130), traced("0b", 1_700_000_000_045));
    metrics.upstream_seconds(&name("main"), Duration::from_secs(90), traced("0c", 1_700_000_000_000));
    metrics.upstream_seconds(&name("other"), Duration::from_millis(130), None);
    metrics.rejected(RejectedCall { plan: "a\"b", ..rejected_of("acme") });
    let text = metrics.render(&Gauges::default(), Format::OpenMetrics);
    for line in [
        "# TYPE ringfence_upstream_create_duration_seconds histogram",
        "ringfence_upstream_create_duration_seconds_bucket{account=\"main\",le=\"0.1\"} 0",
        &format!(
            "ringfence_upstream_create_duration_seconds_bucket{{account=\"main\",le=\"0.15\"}} 2 # {{trace_id=\"{}\"}} 0.13 1700000000.045",
            "0b".repeat(16)
        ),
        "ringfence_upstream_create_duration_seconds_bucket{account=\"main\",le=\"1.0\"} 2",
        &format!(
            "ringfence_upstream_create_duration_seconds_bucket{{account=\"main\",le=\"+Inf\"}} 3 # {{trace_id=\"{}\"}} 90 1700000000.000",
            "0c".repeat(16)
        ),
        "ringfence_upstream_create_duration_seconds_bucket{account=\"other\",le=\"0.15\"} 1",
        "# TYPE concurrent_rejected counter",
        "concurrent_rejected_total{plan=\"a\\\"b\",reason=\"BUSINESS_LIMIT\"} 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\nnot in\n{text}");
    }
    assert!(text.ends_with("\n# EOF\n"));
    let plain = metrics.render(&Gauges::default(), Format::Text);
    assert!(!plain.contains("trace_id") && plain.contains("# TYPE concurrent_rejected_total counter"));
}

#[test]
fn the_format_is_the_one_that_is_asked_for() {
    let prometheus =
        "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;q=0.5";
    assert_eq!(Format::accepted(prometheus), Format::OpenMetrics);
    assert_eq!(Format::accepted("Application/OpenMetrics-Text"), Format::OpenMetrics);
    let prefers_text = "text/plain;version=0.0.4;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.2";
    let declines = "application/openmetrics-text;q=0,text/plain;q=0.1";
    for accept in ["", "*/*", "text/plain", "text/html,application/xhtml+xml", prefers_text, declines] {
        assert_eq!(Format::accepted(accept), Format::Text, "{accept}");
    }
}
