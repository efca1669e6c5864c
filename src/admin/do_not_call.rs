//! Do-not-call lists: the global one, and with `?business=` a business's own.

use std::collections::BTreeSet;

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode};
use serde_json::{Value, json};
use tracing::info;

use super::auth::{AccessError, Requester};
use super::bulk::{BAD_ROWS_MAX, LIST_BYTES_MAX};
use super::operator::{Act, stored_reason};
use super::{Admin, Answer, BODY_BYTES_MAX, Problem, bad, limit_of, not_found, ok};
use crate::clock::rfc3339;
use crate::destinations::{ListHit, key_of};
use crate::ids::{BusinessId, mask_number};
use crate::net::Exchange;
use crate::reply::{json_answer, respond};
use crate::store::{EVERYBODY, ListedNumber, NUMBERS_AT_ONCE};

/// Numbers to add or remove, with the reason.
struct Numbers {
    keys: Vec<u64>,
    reason: Option<String>,
}

fn number_for(number: u64, who: &Requester) -> String {
    let e164 = format!("+{number}");
    if who.whole_numbers { e164 } else { mask_number(&e164) }
}

fn entry(one: &ListedNumber, who: &Requester) -> Value {
    json!({"number": number_for(one.number, who), "reason": one.reason, "addedAt": rfc3339(one.at)})
}

/// The list of a request.
fn list_of(query: &str, who: &Requester) -> Result<String, Problem> {
    let named = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "business").map(|(_, id)| id);
    match named {
        None if who.businesses.is_some() => Err(AccessError::SomeBusinesses.into()),
        None => Ok(EVERYBODY.to_owned()),
        Some(id) => {
            let id = BusinessId::parse(&id).map_err(|e| bad(e.to_string()))?;
            if who.sees(id.as_str()) { Ok(id.to_string()) } else { Err(AccessError::SomeBusinesses.into()) }
        }
    }
}

fn key(number: &str) -> Result<u64, Problem> {
    let why = "not a telephone number with its country code, as in +905321234567";
    key_of(number).ok_or_else(|| Problem::Is(StatusCode::UNPROCESSABLE_ENTITY, "INVALID_NUMBERS", why.to_owned()))
}

/// A change of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ListEdit {
    Put,
    Delete,
}

impl ListEdit {
    /// The edit's name in the audit log.
    const fn action(self) -> &'static str {
        match self {
            ListEdit::Put => "put do-not-call",
            ListEdit::Delete => "delete do-not-call",
        }
    }
}

/// The numbers that a change names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EditOf {
    /// One number, in the path.
    One,
    /// The numbers in the body.
    Many,
}

impl Admin {
    /// `/api/do-not-call` and, with a number, `/api/do-not-call/{number}`.
    pub(super) async fn do_not_call(
        &self,
        exchange: &mut Exchange,
        method: &Method,
        number: Option<&str>,
        who: &Requester,
    ) -> Answer {
        let query = exchange.query().unwrap_or_default().to_owned();
        let list = list_of(&query, who)?;
        match (method, number) {
            (&Method::GET, None) => self.do_not_call_page(&list, &query, who).await,
            (&Method::GET, Some(number)) => self.do_not_call_one(&list, key(number)?, who).await,
            (&Method::PUT | &Method::DELETE, number) => {
                let numbers = match number {
                    Some(number) => {
                        let key = key(number)?;
                        let body = exchange.read_body(BODY_BYTES_MAX).await.map_err(|e| bad(e.to_string()))?;
                        let body = if body.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&body) };
                        let body = body.map_err(|e| bad(format!("body must be an object with a reason: {e}")))?;
                        Numbers { keys: vec![key], reason: reason(&body) }
                    }
                    None => {
                        let body = exchange.read_body(LIST_BYTES_MAX).await.map_err(|e| bad(e.to_string()))?;
                        let (numbers, wrong) = read_numbers(&body)?;
                        if !wrong.is_empty() {
                            return Ok(bad_rows(wrong));
                        }
                        numbers
                    }
                };
                let edit = if method == Method::PUT { ListEdit::Put } else { ListEdit::Delete };
                let of = if number.is_some() { EditOf::One } else { EditOf::Many };
                self.change_do_not_call(&list, numbers, (edit, of), who).await
            }
            _ => Err(Problem::Is(
                StatusCode::METHOD_NOT_ALLOWED,
                "METHOD_NOT_ALLOWED",
                "use GET, PUT or DELETE".to_owned(),
            )),
        }
    }

    async fn do_not_call_page(&self, list: &str, query: &str, who: &Requester) -> Answer {
        let limit = limit_of(query);
        let after = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "after").map(|(_, value)| value);
        let after = after
            .map_or(Ok(0), |text| text.parse::<i64>().map_err(|_| bad("after must be an earlier page's `next`")))?;
        let page = self.calls.lifecycle.store.do_not_call(list, after, limit).await?;
        let is_full = page.len() >= usize::try_from(limit).unwrap_or(usize::MAX);
        let next = page.last().filter(|_| is_full).map(|last| last.change);
        let numbers: Vec<Value> = page.iter().map(|one| entry(one, who)).collect();
        ok(&json!({"numbers": numbers, "next": next}))
    }

    /// The lists that contain a number: the file, the global list, the business's.
    async fn do_not_call_one(&self, list: &str, number: u64, who: &Requester) -> Answer {
        let store = &self.calls.lifecycle.store;
        let mut lists = Vec::new();
        if self.calls.lifecycle.policy.load().settings().destinations.file.contains(number) {
            lists.push(ListHit::File);
        }
        let all = store.do_not_call_number(EVERYBODY, number).await?;
        lists.extend(all.as_ref().map(|_| ListHit::All));
        let own = if list == EVERYBODY { None } else { store.do_not_call_number(list, number).await? };
        lists.extend(own.as_ref().map(|_| ListHit::Business));
        let names: Vec<&str> = lists.iter().map(|list| list.as_str()).collect();
        let mut body =
            own.or(all).as_ref().map_or_else(|| json!({"number": number_for(number, who)}), |one| entry(one, who));
        body["listed"] = (!names.is_empty()).into();
        body["lists"] = names.into();
        ok(&body)
    }

    /// Adds or removes all numbers, in batches; idempotent. This process refreshes its copy before it answers, others with their
    /// next heartbeat.
    async fn change_do_not_call(
        &self,
        list: &str,
        numbers: Numbers,
        (edit, of): (ListEdit, EditOf),
        who: &Requester,
    ) -> Answer {
        let Numbers { keys, reason } = numbers;
        let (what, whose) = (edit.action(), if list == EVERYBODY { "*" } else { list });
        let masked: Vec<String> = keys.iter().take(10).map(|key| mask_number(&format!("+{key}"))).collect();
        let after = json!({"numbers": keys.len(), "first": masked});
        self.audit(who, Act::new(what, whose).because(reason.as_deref()).changes(Value::Null, after)).await?;
        let (store, at_ms) = (&self.calls.lifecycle.store, self.calls.lifecycle.clock.now_ms());
        let (mut changed, mut written) = (0, Ok(()));
        for some in keys.chunks(NUMBERS_AT_ONCE) {
            let done = match edit {
                ListEdit::Put => store.put_do_not_call(list, some.to_vec(), reason.clone(), at_ms).await,
                ListEdit::Delete => store.delete_do_not_call(list, some.to_vec(), at_ms).await,
            };
            match done {
                Ok(n) => changed += n,
                Err(error) => {
                    written = Err(error);
                    break;
                }
            }
        }
        // Written batches stand, even if a later one fails.
        self.calls.destinations.refresh_do_not_call().await?;
        written?;
        info!(by = who.name, list = whose, numbers = keys.len(), changed, what, "do-not-call list changed");
        match (edit, of) {
            (ListEdit::Put, EditOf::One) => {
                let status = if changed > 0 { StatusCode::CREATED } else { StatusCode::OK };
                let number = keys.first().map(|key| number_for(*key, who));
                Ok(json_answer(status, &json!({"number": number, "listed": true, "new": changed > 0})))
            }
            (ListEdit::Put, EditOf::Many) => ok(&json!({"put": keys.len(), "new": changed})),
            (ListEdit::Delete, EditOf::One) if changed == 0 => Err(not_found("the number is not in this list")),
            (ListEdit::Delete, EditOf::One) => Ok(respond(StatusCode::NO_CONTENT, HeaderMap::new(), Bytes::new())),
            (ListEdit::Delete, EditOf::Many) => ok(&json!({"deleted": changed})),
        }
    }
}

fn reason(body: &Value) -> Option<String> {
    body["reason"].as_str().map(str::trim).filter(|text| !text.is_empty()).map(stored_reason)
}

/// Parses `{"numbers": ["+90…", …], "reason": "…"}`; returns invalid rows apart.
fn read_numbers(body: &[u8]) -> Result<(Numbers, Vec<Value>), Problem> {
    let body: Value = serde_json::from_slice(body).map_err(|e| bad(format!("body must be a list of numbers: {e}")))?;
    let Some(rows) = body["numbers"].as_array() else {
        return Err(bad("send {\"numbers\": [\"+905321234567\", …], \"reason\": \"…\"}"));
    };
    let (mut keys, mut wrong) = (BTreeSet::new(), Vec::new());
    for (at, row) in rows.iter().enumerate() {
        match row.as_str().and_then(key_of) {
            Some(key) => drop(keys.insert(key)),
            None => wrong.push(json!({"row": at + 1, "message": "not a telephone number with its country code"})),
        }
    }
    Ok((Numbers { keys: keys.into_iter().collect(), reason: reason(&body) }, wrong))
}

/// The response for invalid rows: nothing was changed.
fn bad_rows(mut wrong: Vec<Value>) -> Response<Bytes> {
    let message = format!("{} invalid rows; nothing stored", wrong.len());
    wrong.truncate(BAD_ROWS_MAX);
    let body = json!({"error": "INVALID_NUMBERS", "message": message, "rows": wrong});
    json_answer(StatusCode::UNPROCESSABLE_ENTITY, &body)
}
