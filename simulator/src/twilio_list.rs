//! Twilio's list of calls, with its filters and pages.

use crate::call::{Call, Outcome};
use crate::twilio::{error, resource};
use crate::wire::{Ask, Form, Reply};
use crate::world::World;
use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use serde_json::{Value, json};

/// `GET /2010-04-01/Accounts/{sid}/Calls.json`.
pub(crate) fn list(world: &mut World, ask: &Ask<'_>) -> Reply {
    world.counts.list_requests += 1;
    let params = Form(ask.params());
    if let Some(status) = params.get("Status")
        && !known_status(status)
    {
        return error(400, 20001, "Invalid 'Status' parameter");
    }
    let number = |name: &str| params.get(name).and_then(|value| value.parse::<usize>().ok());
    let size = number("PageSize").unwrap_or(50).clamp(1, 1000);
    let page = number("Page").unwrap_or(0);
    // A page begins below the last call of the one before, so calls that come in between do not shift it.
    let token = params.get("PageToken").and_then(|token| token.strip_prefix("PACA")?.parse::<u64>().ok());
    let lag = world.settings.tw_list_lag_ms;
    let visible = Timestamp::now().as_millisecond().saturating_sub(i64::try_from(lag).unwrap_or(i64::MAX));
    let mut fitting = world
        .calls
        .range(..token.unwrap_or(u64::MAX))
        .rev()
        .map(|(_, call)| call)
        .filter(|call| call.created.as_millisecond() <= visible && fits(call, &params));
    let skipped = if token.is_none() { page.saturating_mul(size) } else { 0 };
    let shown: Vec<&Call> = fitting.by_ref().skip(skipped).take(size).collect();
    let more = fitting.next().is_some();
    let account = &world.settings.account_sid;
    let calls: Vec<Value> = shown.iter().map(|call| resource(call, account)).collect();
    let base = format!("/2010-04-01/Accounts/{account}/Calls.json");
    let address = |page: usize, last: Option<u64>| {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(
            params.0.iter().filter(|(name, _)| !matches!(name.as_str(), "Page" | "PageSize" | "PageToken")),
        );
        query.append_pair("PageSize", &size.to_string()).append_pair("Page", &page.to_string());
        if let Some(last) = last {
            query.append_pair("PageToken", &format!("PACA{last}"));
        }
        format!("{base}?{}", query.finish())
    };
    let next = shown.last().filter(|_| more).map(|last| address(page.saturating_add(1), Some(last.n)));
    let start = page.saturating_mul(size);
    Reply::json(
        200,
        &json!({
            "calls": calls,
            "first_page_uri": address(0, None),
            "next_page_uri": next,
            "previous_page_uri": page.checked_sub(1).map(|before| address(before, None)),
            "page": page,
            "page_size": size,
            "start": start,
            "end": start.saturating_add(shown.len().saturating_sub(1)),
            "uri": address(page, token),
        }),
    )
}

fn known_status(status: &str) -> bool {
    let ends = [Outcome::Completed, Outcome::Busy, Outcome::NoAnswer, Outcome::Failed, Outcome::Canceled];
    matches!(status, "queued" | "ringing" | "in-progress") || ends.iter().any(|end| end.twilio() == status)
}

fn fits(call: &Call, params: &Form) -> bool {
    if call.leg.as_ref().is_none_or(|leg| leg.deleted) {
        return false;
    }
    let is = |name: &str, value: &str| params.get(name).is_none_or(|wanted| wanted == value);
    // No simulated call has a parent.
    is("Status", call.twilio_status())
        && is("To", &call.to)
        && is("From", &call.from)
        && params.get("ParentCallSid").is_none()
        && within(params, "StartTime", Some(call.answered.unwrap_or(call.created)))
        && within(params, "EndTime", call.ended)
}

/// `Name`, `Name>` and `Name<`: the operator is part of the name, the value a day or a time.
fn within(params: &Form, name: &str, at: Option<Timestamp>) -> bool {
    let bound = |suffix: &str| params.get(&format!("{name}{suffix}"));
    let compare = |text: Option<&str>, test: fn(i64, (i64, i64)) -> bool| match text.and_then(span) {
        None => true,
        Some(span) => at.is_some_and(|at| test(at.as_second(), span)),
    };
    compare(bound(""), |at, (from, to)| (from..=to).contains(&at))
        && compare(bound(">"), |at, (from, _)| at >= from)
        && compare(bound("<"), |at, (_, to)| at <= to)
}

/// First and last second of a day, or of the second that a time names.
fn span(text: &str) -> Option<(i64, i64)> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Some((at.as_second(), at.as_second()));
    }
    let at = |time: DateTime| time.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp().as_second());
    if text.len() > 10 {
        let second = at(text.parse::<DateTime>().ok()?)?;
        return Some((second, second));
    }
    let first = at(text.parse::<Date>().ok()?.at(0, 0, 0, 0))?;
    Some((first, first.saturating_add(86_399)))
}
