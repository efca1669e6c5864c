//! Requests that are recognised as duplicates.

use super::*;

fn fingerprint(text: &str) -> Fingerprint {
    Fingerprint(text.to_owned())
}

fn claim(found: Lookup) -> Claim {
    match found {
        Lookup::New(claim) => claim,
        Lookup::Duplicate(_) | Lookup::Concurrent => panic!("taken for an earlier request"),
    }
}

/// A new request, settled by the test.
fn new(found: Lookup) -> InFlightRef {
    let mut claim = claim(found);
    claim.is_settled = true;
    claim.request.clone()
}

fn again(found: Lookup) -> InFlightRef {
    match found {
        Lookup::Duplicate(request) => request,
        Lookup::New(_) | Lookup::Concurrent => panic!("not recognised"),
    }
}

fn look(all: &InFlightRequests, client: &ClientHandle, look: Look) -> Lookup {
    all.find(&client.fingerprint, &client.client(), look)
}

/// Looks twice, as an arriving request does.
fn arrive(all: &InFlightRequests, client: &ClientHandle) -> Lookup {
    match look(all, client, Look::First) {
        Lookup::Concurrent => look(all, client, Look::Second),
        found => found,
    }
}

fn answer() -> Response<Bytes> {
    Response::new(Bytes::from_static(b"{}"))
}

#[test]
fn equal_requests_in_parallel_and_after_a_delivered_answer_are_distinct() {
    let all = InFlightRequests::default();
    let (a, b) = (all.client(&fingerprint("x")), all.client(&fingerprint("x")));
    let (first, second) = (new(arrive(&all, &a)), new(arrive(&all, &b)));
    first.created(&answer());
    drop(a.delivered());
    second.created(&answer());
    drop(b.delivered());
    assert_eq!(all.len(), 0);
    let c = all.client(&fingerprint("x"));
    new(arrive(&all, &c));
}

#[test]
fn a_client_that_left_can_come_again_and_each_request_is_taken_once() {
    let all = InFlightRequests::default();
    let (a, b) = (all.client(&fingerprint("x")), all.client(&fingerprint("x")));
    let (first, second) = (new(arrive(&all, &a)), new(arrive(&all, &b)));
    drop((a, b));
    let (c, d, e) = (all.client(&fingerprint("x")), all.client(&fingerprint("x")), all.client(&fingerprint("x")));
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
    let all = InFlightRequests::default();
    let a = all.client(&fingerprint("x"));
    let request = new(arrive(&all, &a));
    request.unknown();
    request.mark_reported_unknown();
    drop(a.delivered());
    let (b, c) = (all.client(&fingerprint("x")), all.client(&fingerprint("x")));
    assert_eq!(again(arrive(&all, &b)).id, request.id);
    assert_eq!(again(arrive(&all, &c)).id, request.id, "an unknown request answers all who ask");
    request.created(&answer());
    drop(b.delivered());
    assert_eq!(all.len(), 0);
}

#[test]
fn an_answer_that_comes_after_unknown_was_told_is_not_delivered_by_that() {
    let all = InFlightRequests::default();
    let a = all.client(&fingerprint("x"));
    let request = new(arrive(&all, &a));
    request.mark_reported_unknown();
    request.created(&answer());
    drop(a.delivered());
    let b = all.client(&fingerprint("x"));
    assert!(matches!(again(arrive(&all, &b)).look(), Some((None, Progress::Created(Some(_))))));
}

#[test]
fn a_client_that_was_told_unknown_may_come_again_at_once() {
    let all = InFlightRequests::default();
    let (a, b) = (all.client(&fingerprint("x")), all.client(&fingerprint("x")));
    let request = new(arrive(&all, &a));
    request.mark_reported_unknown();
    // It is not known yet whether its response was read.
    let delivery = a.delivered();
    assert_eq!(again(look(&all, &b, Look::First)).id, request.id);
    drop(delivery);
}

#[test]
fn a_request_beside_one_that_is_told_unknown_is_distinct() {
    let all = InFlightRequests::default();
    let (a, b, c) = (all.client(&fingerprint("x")), all.client(&fingerprint("x")), all.client(&fingerprint("x")));
    let first = new(arrive(&all, &a));
    assert!(matches!(look(&all, &b, Look::First), Lookup::Concurrent));
    first.unknown();
    first.mark_reported_unknown();
    drop(a.delivered());
    new(look(&all, &b, Look::Second));
    assert_eq!(again(arrive(&all, &c)).id, first.id, "one that comes after is its repeat");
}

#[test]
fn an_answer_that_was_never_read_was_not_delivered() {
    let all = InFlightRequests::default();
    let (a, b) = (all.client(&fingerprint("x")), all.client(&fingerprint("x")));
    let request = new(arrive(&all, &a));
    request.created(&answer());
    let delivery = a.delivered();
    assert!(matches!(look(&all, &b, Look::First), Lookup::Concurrent), "it may still turn out so");
    delivery.lost();
    assert_eq!(again(look(&all, &b, Look::Second)).id, request.id);
    drop(b.delivered());
    assert_eq!(all.len(), 0, "this one was read");
}

#[test]
fn what_made_no_call_is_forgotten() {
    let all = InFlightRequests::default();
    let a = all.client(&fingerprint("x"));
    new(arrive(&all, &a)).not_created();
    drop(a);
    assert_eq!(all.len(), 0);
}

#[test]
fn kept_answers_have_a_bound_together() {
    let all = InFlightRequests::default();
    let large = || Response::new(Bytes::from(vec![b'x'; ANSWER_BYTES_MAX]));
    let ask = |n: usize| {
        let client = all.client(&fingerprint(&n.to_string()));
        let request = new(arrive(&all, &client));
        request.created(&large());
        request
    };
    let is_kept = |request: &InFlightRef| matches!(request.look(), Some((None, Progress::Created(Some(_)))));
    let fit = ANSWERS_BYTES_MAX / ANSWER_BYTES_MAX;
    let requests: Vec<InFlightRef> = (0..=fit).map(ask).collect();
    assert_eq!((requests.iter().filter(|o| is_kept(o)).count(), all.len()), (fit, fit + 1));
    requests[0].not_created();
    assert!(is_kept(&ask(fit + 1)), "its room is free again");
}

#[test]
fn too_many_requests_lose_the_oldest_and_not_all() {
    let all = InFlightRequests::default();
    for n in 0..=REQUESTS_MAX {
        let client = all.client(&fingerprint(&n.to_string()));
        new(arrive(&all, &client)).unknown();
    }
    assert_eq!(all.len(), REQUESTS_MAX / 2 + 1);
    let client = all.client(&fingerprint(&REQUESTS_MAX.to_string()));
    again(arrive(&all, &client));
}

#[test]
fn a_request_that_nobody_settles_any_more_is_unknown_if_it_may_have_been_sent() {
    let all = InFlightRequests::default();
    for (recorded, left) in [(true, 1), (false, 0)] {
        let client = all.client(&fingerprint("x"));
        let claim = claim(arrive(&all, &client));
        let (request, call) = (claim.request().clone(), CallId::new());
        if recorded {
            claim.recorded(&call);
        }
        drop(claim);
        drop(client.delivered());
        assert_eq!(all.len(), left);
        assert!(!recorded || matches!(request.look(), Some((Some(known), Progress::Unknown)) if known == call));
        request.not_created();
    }
    for (outcome, left) in [(SendOutcome::Created, 0), (SendOutcome::NotCreated, 0), (SendOutcome::Unknown, 1)] {
        let client = all.client(&fingerprint("y"));
        claim(arrive(&all, &client)).settle(outcome, &answer());
        drop(client.delivered());
        assert_eq!(all.len(), left, "{outcome:?}");
    }
}
