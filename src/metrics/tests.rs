use super::*;

#[test]
fn the_names_of_the_contract_are_there_exactly() {
    let metrics = Metrics::new().unwrap();
    metrics.refused("BUSINESS_LIMIT", "PAYG", "acme");
    metrics.provider_limit("elevenlabs", "main", "concurrency");
    let gauges = Gauges { active: 3, sessions: Some(4), of_businesses: Some(3), ..Gauges::default() };
    let text = metrics.render(&gauges);
    for line in [
        "platform_global_active_calls 3",
        "concurrent_rejected_total{plan=\"PAYG\",reason=\"BUSINESS_LIMIT\"} 1",
        "elevenlabs_429_total 1",
        "active_call_sessions_count 4",
        "subscription_active_calls_sum 3",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\nnot in\n{text}");
    }
    assert_eq!(metrics.refusals(), [("BUSINESS_LIMIT".to_owned(), "PAYG".to_owned(), 1)]);
}
#[test]
fn every_counter_is_there_before_its_first_event() {
    let metrics = Metrics::new().unwrap();
    metrics.expect(&Counted {
        accounts: vec!["eleven", "twilio"],
        asked: vec!["eleven"],
        plans: vec!["PAYG"],
        reasons: vec!["BUSINESS_LIMIT"],
        business_labels: 2,
    });
    let text = metrics.render(&Gauges::default());
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
    assert_eq!(metrics.refusals(), [], "none was given");
    metrics.provider_gone("eleven");
    assert!(!metrics.render(&Gauges::default()).contains("ringfence_sweeps_total{"));
}

#[test]
fn businesses_have_a_bound_and_no_whole_number() {
    let metrics = Metrics::new().unwrap();
    metrics.expect(&Counted { business_labels: 2, ..Counted::default() });
    for business in ["acme", "+15550001101", "globex", "initech"] {
        metrics.admitted("eleven", "outbound", "PAYG", business);
        metrics.refused("BUSINESS_LIMIT", "PAYG", business);
    }
    let in_use = [("acme", 1), ("+15550001101", 5), ("globex", 3), ("initech", 1)];
    let businesses = Some(in_use.map(|(id, slots)| (id.to_owned(), slots)).to_vec());
    let text = metrics.render(&Gauges { businesses, ..Gauges::default() });
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
    metrics.expect(&Counted { business_labels: 0, ..Counted::default() });
    metrics.admitted("eleven", "outbound", "PAYG", "acme");
    let text = metrics.render(&Gauges::default());
    assert!(!text.contains("business=\"acme\""), "{text}");
}
