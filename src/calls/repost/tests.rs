//! Which orders are taken for which.

use super::*;

fn fingerprint(text: &str) -> Fingerprint {
    Fingerprint(text.to_owned())
}

fn new(arrived: Arrived) -> OrderRef {
    match arrived {
        Arrived::New(order) => order,
        Arrived::Again(_) | Arrived::Beside => panic!("taken for an earlier order"),
    }
}

fn again(arrived: Arrived) -> OrderRef {
    match arrived {
        Arrived::Again(order) => order,
        Arrived::New(_) | Arrived::Beside => panic!("not recognised"),
    }
}

/// As an order arrives that looks twice.
fn arrive(all: &Reposts, asker: &Asker) -> Arrived {
    match all.arrive(&asker.client(), false) {
        Arrived::Beside => all.arrive(&asker.client(), true),
        arrived => arrived,
    }
}

fn answer() -> Response<Bytes> {
    Response::new(Bytes::from_static(b"{}"))
}

#[test]
fn equal_orders_in_parallel_and_after_a_delivered_answer_are_distinct() {
    let all = Reposts::default();
    let (a, b) = (all.asker(fingerprint("x")), all.asker(fingerprint("x")));
    let (first, second) = (new(arrive(&all, &a)), new(arrive(&all, &b)));
    first.created(&answer());
    drop(a.delivered());
    second.created(&answer());
    drop(b.delivered());
    assert_eq!(all.len(), 0);
    let c = all.asker(fingerprint("x"));
    new(arrive(&all, &c));
}

#[test]
fn a_client_that_left_can_come_again_and_each_order_is_taken_once() {
    let all = Reposts::default();
    let (a, b) = (all.asker(fingerprint("x")), all.asker(fingerprint("x")));
    let (first, second) = (new(arrive(&all, &a)), new(arrive(&all, &b)));
    drop((a, b));
    let (c, d, e) = (all.asker(fingerprint("x")), all.asker(fingerprint("x")), all.asker(fingerprint("x")));
    assert_eq!(again(arrive(&all, &c)).id, first.id);
    assert_eq!(again(arrive(&all, &d)).id, second.id);
    new(arrive(&all, &e));
    first.created(&answer());
    drop(c.delivered());
    assert!(first.look().is_none());
    assert!(second.look().is_some());
}

#[test]
fn an_unknown_outcome_stays_until_it_is_told() {
    let all = Reposts::default();
    let a = all.asker(fingerprint("x"));
    let order = new(arrive(&all, &a));
    order.unknown();
    order.mark_reported_unknown();
    drop(a.delivered());
    let (b, c) = (all.asker(fingerprint("x")), all.asker(fingerprint("x")));
    assert_eq!(again(arrive(&all, &b)).id, order.id);
    assert_eq!(again(arrive(&all, &c)).id, order.id, "an unknown order answers all who ask");
    order.created(&answer());
    drop(b.delivered());
    assert_eq!(all.len(), 0);
}

#[test]
fn an_answer_that_comes_after_unknown_was_told_is_not_delivered_by_that() {
    let all = Reposts::default();
    let a = all.asker(fingerprint("x"));
    let order = new(arrive(&all, &a));
    order.mark_reported_unknown();
    order.created(&answer());
    drop(a.delivered());
    let b = all.asker(fingerprint("x"));
    assert!(matches!(again(arrive(&all, &b)).look(), Some((None, Known::Created(Some(_))))));
}

#[test]
fn an_order_beside_one_that_is_told_unknown_is_distinct() {
    let all = Reposts::default();
    let (a, b, c) = (all.asker(fingerprint("x")), all.asker(fingerprint("x")), all.asker(fingerprint("x")));
    let first = new(arrive(&all, &a));
    assert!(matches!(all.arrive(&b.client(), false), Arrived::Beside));
    first.unknown();
    first.mark_reported_unknown();
    drop(a.delivered());
    new(all.arrive(&b.client(), true));
    assert_eq!(again(arrive(&all, &c)).id, first.id, "one that comes after is its repeat");
}

#[test]
fn an_answer_that_was_never_read_was_not_delivered() {
    let all = Reposts::default();
    let (a, b) = (all.asker(fingerprint("x")), all.asker(fingerprint("x")));
    let order = new(arrive(&all, &a));
    order.created(&answer());
    let unheard = a.delivered();
    assert!(matches!(all.arrive(&b.client(), false), Arrived::Beside), "it may still turn out so");
    unheard.lost();
    assert_eq!(again(all.arrive(&b.client(), true)).id, order.id);
    drop(b.delivered());
    assert_eq!(all.len(), 0, "this one was read");
}

#[test]
fn what_made_no_call_is_forgotten() {
    let all = Reposts::default();
    let a = all.asker(fingerprint("x"));
    new(arrive(&all, &a)).not_created();
    drop(a);
    assert_eq!(all.len(), 0);
}

#[test]
fn kept_answers_have_a_bound_together() {
    let all = Reposts::default();
    let large = || Response::new(Bytes::from(vec![b'x'; ANSWER_BYTES_MAX]));
    let ask = |n: usize| {
        let asker = all.asker(fingerprint(&n.to_string()));
        let order = new(arrive(&all, &asker));
        order.created(&large());
        order
    };
    let is_kept = |order: &OrderRef| matches!(order.look(), Some((None, Known::Created(Some(_)))));
    let fit = ANSWERS_BYTES_MAX / ANSWER_BYTES_MAX;
    let orders: Vec<OrderRef> = (0..=fit).map(ask).collect();
    assert_eq!((orders.iter().filter(|o| is_kept(o)).count(), all.len()), (fit, fit + 1));
    orders[0].not_created();
    assert!(is_kept(&ask(fit + 1)), "its room is free again");
}

#[test]
fn too_many_orders_lose_the_oldest_and_not_all() {
    let all = Reposts::default();
    for n in 0..=ORDERS_MAX {
        let asker = all.asker(fingerprint(&n.to_string()));
        new(arrive(&all, &asker)).unknown();
    }
    assert_eq!(all.len(), ORDERS_MAX / 2 + 1);
    let asker = all.asker(fingerprint(&ORDERS_MAX.to_string()));
    again(arrive(&all, &asker));
}

#[test]
fn an_order_that_nobody_settles_any_more_is_unknown_if_it_may_have_been_sent() {
    let all = Reposts::default();
    for (recorded, left) in [(true, 1), (false, 0)] {
        let asker = all.asker(fingerprint("x"));
        let order = new(arrive(&all, &asker));
        let call = CallId::new();
        if recorded {
            order.opened(&call);
        }
        drop(order.in_hand());
        drop(asker.delivered());
        assert_eq!(all.len(), left);
        assert!(!recorded || matches!(order.look(), Some((Some(known), Known::Unknown)) if known == call));
        order.not_created();
    }
    let asker = all.asker(fingerprint("y"));
    let order = new(arrive(&all, &asker));
    order.in_hand().done();
    assert!(matches!(order.look(), Some((None, Known::UnderWay))));
}

#[test]
fn tries_of_an_sdk_are_one_refusal_and_parallel_ones_are_not() {
    let all = Reposts::default();
    let x = fingerprint("x");
    let id = RefusalId::new();
    let told = Duration::from_secs(1);
    all.refused(&x, &id);
    assert_eq!(all.refused_before(&x, told), None, "it was sent beside the first");
    let back = |all: &Reposts, ms: u64| {
        let mut orders = all.orders();
        let refused = orders.refused.get_mut(&x).unwrap();
        refused.at = refused.at.checked_sub(Duration::from_millis(ms)).unwrap();
    };
    back(&all, 1_000);
    assert_eq!(all.refused_before(&x, told), Some(id.clone()));
    back(&all, 3_000);
    assert_eq!(all.refused_before(&x, told), Some(id));
    back(&all, 1_000);
    assert_eq!(all.refused_before(&x, told), None, "an SDK tries three times");
}

#[test]
fn equal_orders_further_apart_than_an_sdk_waits_are_two_refusals() {
    let x = fingerprint("x");
    // How long the refused are told to wait, how much later an equal order comes, and whether it is the same one.
    for (told_secs, later_ms, same) in [
        (1, 3_100, true),
        (1, 3_300, false),
        (1, 8_000, false),
        (1, 16_000, false),
        (10, 13_900, true),
        (10, 14_200, false),
    ]
    .into_iter()
    .chain([(600, 89_000, true), (600, 91_000, false), (0, 1_900, true), (0, 2_100, false)])
    {
        let all = Reposts::default();
        all.refused(&x, &RefusalId::new());
        let at = Instant::now().checked_sub(Duration::from_millis(later_ms)).unwrap();
        all.orders().refused.get_mut(&x).unwrap().at = at;
        let before = all.refused_before(&x, Duration::from_secs(told_secs));
        assert_eq!(before.is_some(), same, "told {told_secs} s, {later_ms} ms later");
    }
}

#[test]
fn parts_do_not_run_together() {
    assert_ne!(hash(&[b"ab", b"c"]), hash(&[b"a", b"bc"]));
}
