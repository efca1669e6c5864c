//! Lists of calls and refusals. Filters apply before the limit: rows that a caller may not see, or did not ask for, do not count
//! towards it.

use serde_json::{Value, json};

use super::auth::Caller;
use super::{Admin, Answer, LIST_MAX, Problem, bad, limit_of, not_found, ok, shown};
use crate::call::Phase;
use crate::clock::{UnixMs, rfc3339};
use crate::ids::RefusalId;
use crate::store::{CallRecord, ListFilter, RefusalRecord};

/// The last value of a name in a query.
pub(super) fn asked(query: &str, name: &str) -> Option<String> {
    let all = form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == name);
    all.last().map(|(_, value)| value.into_owned()).filter(|value| !value.is_empty())
}

fn seconds(query: &str, name: &str) -> Result<Option<i64>, Problem> {
    let Some(text) = asked(query, name) else { return Ok(None) };
    let secs = text.parse::<u32>().map_err(|_| bad(format!("{name} is a number of seconds, not {text:?}")))?;
    Ok(Some(i64::from(secs) * 1000))
}

/// The businesses of a query that its caller may see; `None`: all. For one that the caller may not see the list is empty, as for one
/// that does not exist.
pub(super) fn visible_businesses(query: &str, who: &Caller) -> Option<Vec<String>> {
    match asked(query, "business") {
        Some(business) => Some(who.sees(&business).then_some(business).into_iter().collect()),
        None => who.businesses.clone(),
    }
}

/// The filter of a query, restricted to businesses that its caller may see.
fn filter_of(query: &str, who: &Caller, now_ms: UnixMs) -> Result<ListFilter, Problem> {
    let phases = match asked(query, "phase") {
        Some(words) => {
            let known = || Phase::ALL.iter().map(|phase| phase.as_str()).collect::<Vec<_>>().join(", ");
            let phases = words.split(',').map(|word| word.trim().parse::<Phase>()).collect::<Result<Vec<_>, _>>();
            Some(phases.map_err(|_| bad(format!("phase is one or more of {}, with commas between", known())))?)
        }
        None => None,
    };
    Ok(ListFilter {
        businesses: visible_businesses(query, who),
        account: asked(query, "account"),
        phases,
        from_ms: seconds(query, "since_secs")?.map(|ms| now_ms - ms),
        before_ms: seconds(query, "older_secs")?.map(|ms| now_ms - ms),
    })
}

fn fits(filter: &ListFilter, call: &CallRecord) -> bool {
    let has = |list: &Option<Vec<String>>, one: &str| list.as_ref().is_none_or(|all| all.iter().any(|own| own == one));
    let is_of = |account: &String| {
        call.facts.account.as_str() == account
            || call.facts.carrier.as_ref().is_some_and(|carrier| carrier.as_str() == account)
    };
    has(&filter.businesses, call.facts.business.as_str())
        && filter.account.as_ref().is_none_or(is_of)
        && filter.phases.as_ref().is_none_or(|phases| phases.contains(&call.phase))
        && filter.from_ms.is_none_or(|from_ms| call.admitted_at >= from_ms)
        && filter.before_ms.is_none_or(|before_ms| call.admitted_at < before_ms)
}

/// A refusal as JSON.
pub(super) fn refusal(refusal: &RefusalRecord) -> Value {
    let mut shown = serde_json::to_value(refusal).unwrap_or_default();
    shown["at"] = rfc3339(refusal.at).into();
    shown
}

impl Admin {
    /// Live calls; with `all` also ended ones, the latest first.
    pub(super) async fn list(&self, query: &str, who: &Caller) -> Answer {
        let now_ms = self.calls.lifecycle.clock.now_ms();
        let filter = filter_of(query, who, now_ms)?;
        let store = &self.calls.lifecycle.store;
        let (records, open) = if asked(query, "all").is_some_and(|v| v == "true" || v == "1") {
            let records = store.list_calls(&filter, limit_of(query)).await?;
            let open = records.iter().filter(|call| call.phase != Phase::Ended).count();
            (records, open)
        } else {
            let mut records = store.open_calls().await?;
            records.retain(|call| who.sees(call.facts.business.as_str()));
            let open = records.len();
            records.retain(|call| fits(&filter, call));
            (records, open)
        };
        let calls: Vec<Value> = records.iter().take(LIST_MAX as usize).map(shown).collect();
        ok(&json!({"calls": calls, "open": open, "now": rfc3339(now_ms)}))
    }

    /// The latest refusals.
    pub(super) async fn list_refusals(&self, query: &str, who: &Caller) -> Answer {
        let now_ms = self.calls.lifecycle.clock.now_ms();
        let filter = filter_of(query, who, now_ms)?;
        let refusals = self.calls.lifecycle.store.list_refusals(&filter, limit_of(query)).await?;
        ok(&json!({"refusals": refusals.iter().map(refusal).collect::<Vec<_>>(), "now": rfc3339(now_ms)}))
    }

    /// A refusal by its id. One that its caller may not see is not found.
    pub(super) async fn find_refusal(&self, id: &str, who: &Caller) -> Result<RefusalRecord, Problem> {
        let found = match RefusalId::parse(id) {
            Some(id) => self.calls.lifecycle.store.refusal(&id).await?,
            None => None,
        };
        let found = found.filter(|refusal| who.sees(&refusal.business));
        found.ok_or_else(|| not_found("no refusal of this id is on record"))
    }
}
