//! Lists of calls and refusals. Filters apply before the limit: rows that a requester may not see, or did not ask for, do not count
//! towards it.

use serde_json::{Value, json};

use super::auth::Requester;
use super::{Admin, Answer, LIST_MAX, Problem, bad, call_json, limit_of, not_found, ok};
use crate::call::Phase;
use crate::clock::{UnixMs, rfc3339};
use crate::ids::RejectionId;
use crate::store::{CallRecord, Cursor, ListFilter, RejectionRecord};

/// The last value of a name in a query.
pub(super) fn query_value(query: &str, name: &str) -> Option<String> {
    let all = form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == name);
    all.last().map(|(_, value)| value.into_owned()).filter(|value| !value.is_empty())
}

/// A parameter of seconds, in milliseconds.
pub(super) fn secs_as_ms(query: &str, name: &str) -> Result<Option<i64>, Problem> {
    let Some(text) = query_value(query, name) else { return Ok(None) };
    let secs = text.parse::<u32>().map_err(|_| bad(format!("{name} is a number of seconds, not {text:?}")))?;
    Ok(Some(i64::from(secs) * 1000))
}

/// The position of a page: `after` is `next` of the previous page.
pub(super) fn cursor_of(query: &str) -> Result<Option<Cursor>, Problem> {
    let Some(text) = query_value(query, "after") else { return Ok(None) };
    let place = text.split_once('-').and_then(|(at, id)| Some((at.parse().ok()?, id.to_owned())));
    place.map(Some).ok_or_else(|| bad("after must be `next` of the previous page"))
}

/// A page of a list that was read with one element more, and the position [`after`](cursor_of) it, if there is more.
pub(super) fn page<T>(
    mut list: Vec<T>,
    limit: usize,
    place: impl Fn(&T) -> (UnixMs, &str),
) -> (Vec<T>, Option<String>) {
    let is_more = list.len() > limit;
    list.truncate(limit);
    let next = list.last().filter(|_| is_more).map(|last| {
        let (at, id) = place(last);
        format!("{at}-{id}")
    });
    (list, next)
}

/// The businesses of a query that its requester may see; `None`: all. For one that the requester may not see the list is empty, as for one
/// that does not exist.
pub(super) fn visible_businesses(query: &str, who: &Requester) -> Option<Vec<String>> {
    match query_value(query, "business") {
        Some(business) => Some(who.sees(&business).then_some(business).into_iter().collect()),
        None => who.businesses.clone(),
    }
}

/// The filter of a query, restricted to businesses that its requester may see.
fn filter_of(query: &str, who: &Requester, now_ms: UnixMs) -> Result<ListFilter, Problem> {
    let phases = match query_value(query, "phase") {
        Some(words) => {
            let known = || Phase::ALL.iter().map(|phase| phase.as_str()).collect::<Vec<_>>().join(", ");
            let phases = words.split(',').map(|word| word.trim().parse::<Phase>()).collect::<Result<Vec<_>, _>>();
            Some(phases.map_err(|_| bad(format!("phase is one or more of {}, with commas between", known())))?)
        }
        None => None,
    };
    Ok(ListFilter {
        businesses: visible_businesses(query, who),
        account: query_value(query, "account"),
        phases,
        code: query_value(query, "code"),
        after: cursor_of(query)?,
        from_ms: secs_as_ms(query, "since_secs")?.map(|ms| now_ms - ms),
        before_ms: secs_as_ms(query, "older_secs")?.map(|ms| now_ms - ms),
    })
}

fn fits(filter: &ListFilter, call: &CallRecord) -> bool {
    let has = |list: &Option<Vec<String>>, one: &str| list.as_ref().is_none_or(|all| all.iter().any(|own| own == one));
    let is_of = |account: &String| {
        call.attributes.account.as_str() == account
            || call.attributes.carrier.as_ref().is_some_and(|carrier| carrier.as_str() == account)
    };
    has(&filter.businesses, call.attributes.business.as_str())
        && filter.account.as_ref().is_none_or(is_of)
        && filter.phases.as_ref().is_none_or(|phases| phases.contains(&call.phase))
        && filter.from_ms.is_none_or(|from_ms| call.admitted_at >= from_ms)
        && filter.before_ms.is_none_or(|before_ms| call.admitted_at < before_ms)
}

/// A refusal as JSON.
pub(super) fn refusal(refusal: &RejectionRecord) -> Value {
    let mut shown = serde_json::to_value(refusal).unwrap_or_default();
    shown["at"] = rfc3339(refusal.at).into();
    shown
}

impl Admin {
    /// Live calls, the oldest first; with `all` also ended ones, the latest first.
    pub(super) async fn list(&self, query: &str, who: &Requester) -> Answer {
        let now_ms = self.calls.lifecycle.clock.now_ms();
        let filter = filter_of(query, who, now_ms)?;
        let store = &self.calls.lifecycle.store;
        let at = |call: &CallRecord| (call.admitted_at, call.id.to_string());
        let (records, open, total, limit) = if query_value(query, "all").is_some_and(|v| v == "true" || v == "1") {
            let limit = limit_of(query);
            let records = store.list_calls(&filter, limit + 1).await?;
            let open = records.iter().take(limit as usize).filter(|call| call.phase != Phase::Ended).count();
            (records, open, None, limit)
        } else {
            let mut records = store.open_calls().await?;
            records.retain(|call| who.sees(call.attributes.business.as_str()));
            let open = records.len();
            records.retain(|call| fits(&filter, call));
            let total = records.len();
            records.retain(|call| filter.after.as_ref().is_none_or(|after| at(call) > *after));
            (records, open, Some(total), query_value(query, "limit").map_or(LIST_MAX, |_| limit_of(query)))
        };
        let (records, next) = page(records, limit as usize, |call| (call.admitted_at, call.id.as_str()));
        let calls: Vec<Value> = records.iter().map(call_json).collect();
        ok(&json!({"calls": calls, "open": open, "total": total, "next": next, "now": rfc3339(now_ms)}))
    }

    /// The latest refusals.
    pub(super) async fn list_rejections(&self, query: &str, who: &Requester) -> Answer {
        let now_ms = self.calls.lifecycle.clock.now_ms();
        let (filter, limit) = (filter_of(query, who, now_ms)?, limit_of(query));
        let found = self.calls.lifecycle.store.list_rejections(&filter, limit + 1).await?;
        let (found, next) = page(found, limit as usize, |one| (one.at, one.id.as_str()));
        let refusals: Vec<Value> = found.iter().map(refusal).collect();
        ok(&json!({"refusals": refusals, "next": next, "now": rfc3339(now_ms)}))
    }

    /// A refusal by its id. One that its requester may not see is not found.
    pub(super) async fn find_refusal(&self, id: &str, who: &Requester) -> Result<RejectionRecord, Problem> {
        let found = match RejectionId::parse(id) {
            Some(id) => self.calls.lifecycle.store.rejection(&id).await?,
            None => None,
        };
        let found = found.filter(|refusal| who.sees(&refusal.business));
        found.ok_or_else(|| not_found("no refusal of this id is on record"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_where_the_next_one_begins() {
        let list = |n: i64| (1..=n).map(|at| (at, format!("c-{at}"))).collect::<Vec<_>>();
        let cut = |n| page(list(n), 3, |(at, id)| (*at, id));
        assert_eq!(cut(3), (list(3), None));
        let (kept, next) = cut(4);
        assert_eq!((kept, next.as_deref()), (list(3), Some("3-c-3")));
        assert!(matches!(cursor_of("after=3-c-3"), Ok(Some((3, id))) if id == "c-3"));
        assert!(matches!(cursor_of("x=1"), Ok(None)));
        assert!(cursor_of("after=c3").is_err());
    }
}
