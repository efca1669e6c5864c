use super::*;

fn settings() -> PolicySettings {
    PolicySettings {
        mode: Mode::Enforce,
        concurrent: Some(5),
        rate: None,
        accounts: vec![AccountLimits {
            name: AccountName::parse("elevenlabs").unwrap(),
            concurrent: Some(4),
            rate: Some(Rate { count: 1, window_ms: 1000 }),
            business: None,
        }],
        plans: default_plans(),
        limits: vec![],
        on_outage: OnOutage::default(),
        transcripts: Default::default(),
        destinations: Default::default(),
        businesses: vec![],
        rules: None,
        unknown: OnUnknownBusiness::default(),
        contradictions: Contradictions::Refuse,
        demo: false,
        when_full: WhenFull::Busy,
    }
}

fn business(id: &str, plan: &str) -> Business {
    Business { plan: Some(plan.to_owned()), ..Business::named(BusinessId::parse(id).unwrap()) }
}

fn attributes(policy: &Policy, id: &str) -> CallAttributes {
    let business = BusinessId::parse(id).unwrap();
    CallAttributes {
        plan: policy.plan_of(&business),
        business,
        account: AccountName::parse("elevenlabs").unwrap(),
        provider: "elevenlabs".to_owned(),
        carrier: None,
        direction: Direction::Outbound,
        operation: "twilio_outbound_call".to_owned(),
        agent: Some("agent_1".to_owned()),
        own_number: None,
        other_number: Some("+905551112233".to_owned()),
    }
}

fn names(policy: &Policy, id: &str) -> Vec<(String, Bound)> {
    policy.bindings(&attributes(policy, id)).into_iter().map(|b| (b.limit.to_string(), b.bound)).collect()
}

#[test]
fn the_longest_window_is_that_of_any_rate() {
    assert_eq!(Policy::new(settings(), &[]).longest_rate_ms(), 1_051);
    let hourly = Some(Rate::parse("100/h").unwrap());
    assert_eq!(Policy::new(PolicySettings { rate: hourly, ..settings() }, &[]).longest_rate_ms(), 3_600_101);
    let mut plans = default_plans();
    plans.insert("NIGHT".to_owned(), Plan { rate: hourly, ..Plan::default() });
    let second = Some(Rate::parse("1/s").unwrap());
    assert_eq!(Policy::new(PolicySettings { plans, rate: second, ..settings() }, &[]).longest_rate_ms(), 3_600_101);
}

#[test]
fn plans_accounts_and_the_platform_bind_the_most_particular_first() {
    let policy = Policy::new(PolicySettings { businesses: vec![business("acme", "PRO")], ..settings() }, &[]);
    let rate = Bound::Rate(Rate { count: 1, window_ms: 1000 });
    assert_eq!(
        names(&policy, "acme"),
        [
            ("plan.PRO".to_owned(), Bound::Concurrent(3)),
            ("account.elevenlabs".to_owned(), Bound::Concurrent(4)),
            ("account.elevenlabs".to_owned(), rate),
            ("global".to_owned(), Bound::Concurrent(5)),
        ]
    );
}

#[test]
fn an_override_keeps_the_count_of_the_business() {
    let before = Policy::new(PolicySettings { businesses: vec![business("acme", "PRO")], ..settings() }, &[]);
    let put = Business { max_calls: Some(8), ..business("acme", "ENTERPRISE") };
    let after = Policy::new(PolicySettings { businesses: vec![business("acme", "PRO")], ..settings() }, &[put]);
    let (was, is) =
        (&before.bindings(&attributes(&before, "acme"))[0], &after.bindings(&attributes(&after, "acme"))[0]);
    assert_eq!((is.limit.as_ref(), is.bound), ("business.acme", Bound::Concurrent(8)));
    assert_eq!(was.key, is.key, "calls that are up still count");
}

#[test]
fn the_demo_business_is_there_where_it_is_switched_on_and_counts_globally() {
    assert!(Policy::new(settings(), &[]).business(&BusinessId::parse(DEMO_BUSINESS).unwrap()).is_none());
    let policy = Policy::new(PolicySettings { demo: true, ..settings() }, &[]);
    assert_eq!(names(&policy, DEMO_BUSINESS)[0], ("business.999999".to_owned(), Bound::Concurrent(999)));
    assert!(names(&policy, DEMO_BUSINESS).iter().any(|(n, _)| n == "global"));
}

#[test]
fn who_is_named_must_be_who_it_belongs_to() {
    let acme = Business {
        agent_ids: vec!["agent_1".to_owned()],
        phone_numbers: vec!["+1".to_owned()],
        ..business("acme", "PRO")
    };
    let of = |businesses: Vec<Business>, attributes: RequestAttributes<'_>| {
        Policy::new(PolicySettings { businesses, ..settings() }, &[]).contradiction(&attributes)
    };
    let both = || vec![acme.clone(), business("birch", "PRO")];
    let named = |header, path| RequestAttributes { header, path, ..RequestAttributes::default() };
    for fits in [
        named(Some("acme"), None),
        named(Some("acme"), Some("acme")),
        RequestAttributes { agent: Some("agent_1"), number: Some("+1"), ..named(Some("acme"), Some("acme")) },
        RequestAttributes { agent: Some("agent_2"), number: Some("+2"), ..named(Some("birch"), None) },
        RequestAttributes { agent: Some("agent_1"), ..RequestAttributes::default() },
    ] {
        assert_eq!(of(both(), fits.clone()), None, "{fits:?}");
    }
    for (attributes, told) in [
        (named(Some("acme"), Some("birch")), "the path"),
        (RequestAttributes { agent: Some("agent_1"), ..named(Some("birch"), None) }, "agent agent_1"),
        (RequestAttributes { agent: Some("agent_1"), ..named(None, Some("birch")) }, "agent agent_1"),
        (RequestAttributes { number: Some("+1"), ..named(Some("birch"), None) }, "its number"),
        (RequestAttributes { agent: Some("agent_1"), ..named(Some("stranger"), None) }, "agent agent_1"),
        (named(Some("*"), None), "X-Business-Id"),
        (named(Some("acme|"), None), "X-Business-Id"),
        (named(Some(""), None), "X-Business-Id"),
        (named(None, Some("*")), "the path"),
    ] {
        let why = of(both(), attributes.clone());
        assert!(why.as_ref().is_some_and(|why| why.contains(told)), "{attributes:?}: {why:?}");
    }
    // An id that is none becomes no label, also while no business is known.
    assert!(of(vec![], named(Some("*"), Some("x"))).is_some_and(|why| why.contains("X-Business-Id")));
    assert_eq!(of(vec![], named(Some("x"), None)), None);
}

#[test]
fn a_header_always_names_a_business_and_without_one_it_is_the_default_one() {
    let policy = Policy::new(settings(), &[]);
    let acme = policy.identify(&RequestAttributes { header: Some("acme"), ..RequestAttributes::default() });
    assert_eq!((acme.business.as_str(), acme.unknown_business, acme.ignored), ("acme", None, None));
    assert_eq!(policy.plan_of(&acme.business), DEFAULT_PLAN);
    assert_eq!(policy.identify(&RequestAttributes::default()).business, BusinessId::default_business());
}

#[test]
fn what_is_ignored_is_said() {
    let by = |rules: Option<Vec<Rule>>, header, path| {
        let policy = Policy::new(PolicySettings { rules, ..settings() }, &[]);
        policy.identify(&RequestAttributes { header, path, ..RequestAttributes::default() }).ignored
    };
    assert_eq!(by(None, Some("acme"), Some("birch")), None);
    assert_eq!(by(None, Some("two words"), None), Some(Ignored::BadHeader));
    assert_eq!(by(None, None, Some("two words")), Some(Ignored::BadPath));
    let agents = || Some(vec![Rule::Agent]);
    assert_eq!(by(agents(), Some("acme"), None), Some(Ignored::Header));
    assert_eq!(by(agents(), None, Some("acme")), Some(Ignored::Path));
    assert_eq!(by(Some(vec![]), Some("acme"), None), Some(Ignored::Header));
}

#[test]
fn rules_are_tried_in_order_and_strangers_are_refused_where_that_is_written() {
    let acme = Business { agent_ids: vec!["agent_1".to_owned()], ..business("acme", "PRO") };
    let businesses = vec![acme, business("birch", "PAYG")];
    let policy = Policy::new(PolicySettings { businesses, unknown: OnUnknownBusiness::Reject, ..settings() }, &[]);
    let by = |attributes: RequestAttributes<'_>| {
        let found = policy.identify(&attributes);
        (found.business.to_string(), found.unknown_business.map(|e| e.to_string()))
    };
    let header = RequestAttributes { header: Some("birch"), agent: Some("agent_1"), ..RequestAttributes::default() };
    assert_eq!(by(header), ("birch".to_owned(), None));
    assert_eq!(
        by(RequestAttributes { agent: Some("agent_1"), ..RequestAttributes::default() }),
        ("acme".to_owned(), None)
    );
    let (shown, why) = by(RequestAttributes { header: Some("cedar"), ..RequestAttributes::default() });
    assert_eq!(shown, "cedar", "whoever observes counts it under the id that it shows");
    assert!(why.unwrap().contains("cedar is not configured"));
    let (shown, why) = by(RequestAttributes::default());
    assert!(shown == "default" && why.unwrap().contains("header, path, agent, number"));
}

#[test]
fn strangers_may_have_a_plan_instead() {
    let policy = Policy::new(
        PolicySettings {
            businesses: vec![business("acme", "PRO")],
            unknown: OnUnknownBusiness::Plan("PAYG".to_owned()),
            ..settings()
        },
        &[],
    );
    let id = policy.identify(&RequestAttributes { path: Some("cedar"), ..RequestAttributes::default() }).business;
    assert_eq!((id.as_str(), policy.plan_of(&id).as_str()), ("cedar", "PAYG"));
}

#[test]
fn a_business_is_known_by_its_number_however_that_is_spelt() {
    let acme = Business {
        phone_numbers: vec!["+1 (555) 000-1111".to_owned(), "phnum_1".to_owned()],
        ..business("acme", "PRO")
    };
    let policy = Policy::new(PolicySettings { businesses: vec![acme], ..settings() }, &[]);
    for number in ["+15550001111", "15550001111", " 15550001111", "+1-555-000-1111", "0015550001111", "phnum_1"] {
        let found = policy.identify(&RequestAttributes { number: Some(number), ..RequestAttributes::default() });
        assert_eq!(found.business.as_str(), "acme", "{number:?}");
    }
}

#[test]
fn named_limits_select_by_any_fact_and_count_per_any_fact() {
    let limit = Limit {
        name: "turkey".into(),
        scope: Scope::Named,
        selects: LimitMatch { destination_prefix: vec!["+90".to_owned()], ..LimitMatch::default() },
        per: Per::Destination,
        bound: Bound::Concurrent(1),
        on_outage: None,
    };
    let policy = Policy::new(PolicySettings { limits: vec![limit], ..settings() }, &[]);
    let mut to_turkey = attributes(&policy, "default");
    let key = |f: &CallAttributes| policy.bindings(f).into_iter().find(|b| b.limit.as_ref() == "turkey").map(|b| b.key);
    assert_eq!(key(&to_turkey), Some("turkey|+905551112233".to_owned()));
    to_turkey.other_number = Some("+15550001111".to_owned());
    assert_eq!(key(&to_turkey), None);
}

#[test]
fn a_call_carried_by_a_second_account_is_bound_by_both() {
    let mut two = settings();
    let twilio = AccountName::parse("twilio").unwrap();
    two.accounts.push(AccountLimits { name: twilio.clone(), concurrent: Some(2), rate: None, business: None });
    let policy = Policy::new(two, &[]);
    let mut carried = attributes(&policy, "default");
    let bound = |f: &CallAttributes| policy.bindings(f).iter().any(|b| b.limit.as_ref() == "account.twilio");
    assert!(!bound(&carried));
    carried.carrier = Some(twilio);
    assert!(bound(&carried));
}

#[test]
fn rates_are_read_and_bad_ones_explained() {
    let rate = |count, window_ms| Ok(Rate { count, window_ms });
    assert_eq!(Rate::parse("5/s"), rate(5, 1_000));
    assert_eq!(Rate::parse("150/5s"), rate(150, 5_000));
    assert_eq!(Rate::parse("60/min"), rate(60, 60_000));
    for bad in ["5", "5/", "/s", "0/s", "5/0s", "5/day", "-1/s", "5/99999999999999999999s"] {
        assert!(Rate::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_platform_has_a_limit_even_if_nobody_wrote_one() {
    let mut bare = settings();
    bare.concurrent = None;
    assert_eq!(Policy::new(bare.clone(), &[]).global_limit(), 4, "what was bought");
    bare.accounts[0].concurrent = None;
    let policy = Policy::new(bare, &[]);
    assert_eq!(policy.global_limit(), GLOBAL_CALLS_DEFAULT);
    assert!(names(&policy, "default").contains(&("global".to_owned(), Bound::Concurrent(5))));
}

#[test]
fn the_strictest_limit_says_who_decides_in_an_outage() {
    let limit = |name: &str, prefix: &str, on_outage| Limit {
        name: name.into(),
        scope: Scope::Named,
        selects: LimitMatch { destination_prefix: vec![prefix.to_owned()], ..LimitMatch::default() },
        per: Per::All,
        bound: Bound::Concurrent(1),
        on_outage,
    };
    let limits = vec![
        limit("dear", "+88", Some(OnOutage::Closed)),
        limit("any", "+", Some(OnOutage::Open)),
        limit("silent", "+", None),
    ];
    let policy = |on_outage| Policy::new(PolicySettings { limits: limits.clone(), on_outage, ..settings() }, &[]);
    let to = |policy: &Policy, number: &str| CallAttributes {
        other_number: Some(number.to_owned()),
        ..attributes(policy, "default")
    };
    for (default, cheap, dear) in [
        (OnOutage::Open, OnOutage::Open, OnOutage::Closed),
        (OnOutage::Database, OnOutage::Database, OnOutage::Closed),
        (OnOutage::Closed, OnOutage::Closed, OnOutage::Closed),
    ] {
        let policy = policy(default);
        assert_eq!(policy.on_outage(&to(&policy, "+15550001111")), cheap);
        assert_eq!(policy.on_outage(&to(&policy, "+8816")), dear);
    }
}

#[test]
fn what_an_agent_may_do_in_any_case_is_known() {
    let limit =
        |per, bound, selects| Limit { name: "x".into(), scope: Scope::Named, selects, per, bound, on_outage: None };
    let agent = |id: &str| LimitMatch { agent: vec![id.to_owned()], ..LimitMatch::default() };
    let rate = Bound::Rate(Rate { count: 10, window_ms: 3_600_000 });
    let limits = vec![
        limit(Per::Agent, Bound::Concurrent(7), LimitMatch::default()),
        limit(Per::All, Bound::Concurrent(3), agent("one")),
        limit(Per::All, rate, agent("one")),
        // These bind some of its calls.
        limit(Per::Business, Bound::Concurrent(1), LimitMatch::default()),
        limit(Per::All, Bound::Concurrent(1), LimitMatch { direction: Some(Direction::Inbound), ..agent("one") }),
    ];
    let policy = Policy::new(PolicySettings { limits, concurrent: Some(50), accounts: vec![], ..settings() }, &[]);
    let account = AccountName::parse("a").unwrap();
    let of = |agent: &str, within| policy.agent_bound(&account, agent, within);
    assert_eq!((of("one", None), of("two", None)), (Some(3), Some(7)));
    assert_eq!((of("one", Some(86_400)), of("two", Some(86_400))), (Some(240), None));
}
