//! Parsing of rows.

use super::driver::{Fault, Sql, damaged};
use super::row::Row;
use super::usage::OpenRow;
use super::{
    AppNotice, AuditRecord, Bypass, CallRecord, CreateAnswer, Delivery, DeliveryRoute, EndedCall, InFlightRow,
    InboxEvent, LiveReplica, NewEvent, OutboxDelivery, RejectionRecord, Replica, StoredPostCall, UnsettledEvents,
    Utterance, UtterancePosition,
};
use crate::call::Phase;
use crate::clock::UnixMs;
use crate::ids::{AccountName, Alias, BusinessId, CallId, RejectionId};
use crate::policy::decision::{GateState, LeaseRow};
use crate::policy::{Business, CallAttributes};
use crate::provider::description::PostCall;

pub(super) fn call_id(text: &str) -> Sql<CallId> {
    CallId::parse(text).ok_or_else(|| damaged(format!("{text:?} is not a call id")))
}

pub(super) fn business_and_id(row: &Row) -> Sql<(String, CallId)> {
    Ok((row.text("business")?, call_id(row.str("id")?)?))
}

pub(super) fn attributes(row: &Row) -> Sql<CallAttributes> {
    Ok(CallAttributes {
        business: BusinessId::parse(row.str("business")?).map_err(damaged)?,
        plan: row.text("plan")?,
        account: AccountName::parse(row.str("account")?).map_err(damaged)?,
        provider: row.text("provider")?,
        carrier: row.optional_str("carrier")?.map(|name| AccountName::parse(name).map_err(damaged)).transpose()?,
        direction: row.word("direction")?,
        operation: row.text("operation")?,
        agent: row.optional_text("agent")?,
        own_number: row.optional_text("own_number")?,
        other_number: row.optional_text("other_number")?,
    })
}

/// Parses a row of [`call!`](super::queries::calls).
pub(super) fn record(row: &Row) -> Sql<CallRecord> {
    let mut record = CallRecord {
        id: call_id(row.str("id")?)?,
        attributes: attributes(row)?,
        origin: row.word("origin")?,
        phase: row.word("phase")?,
        outcome: row.optional_word("outcome")?,
        proof: row.optional_word("proof")?,
        over_limit: row.flag("over_limit")?,
        unsettled: row.flag("unsettled")?,
        exchange_over: row.flag("exchange_over")?,
        polled: row.flag("polled")?,
        slots: row.count("slots")?,
        admitted_at: row.number("admitted_at")?,
        phase_at: row.number("phase_at")?,
        deadline_at: row.optional_number("deadline_at")?,
        answered_at: row.optional_number("answered_at")?,
        ended_at: row.optional_number("ended_at")?,
        seen_at: row.number("seen_at")?,
        seen_by: row.word("seen_by")?,
        absent_at: row.optional_number("absent_at")?,
        callback: row.json("callback")?,
        fingerprint: row.optional_text("fingerprint")?,
        replica: row.optional_text("replica")?,
        aliases: row.json::<Vec<(String, String)>>("aliases")?.unwrap_or_default().into_iter().map(alias).collect(),
    };
    record.aliases.sort();
    Ok(record)
}

fn alias((kind, id): (String, String)) -> Alias {
    Alias { kind, id }
}

pub(super) fn headers(row: &Row) -> Sql<Vec<(String, String)>> {
    serde_json::from_str(row.str("headers")?).map_err(damaged)
}

/// A webhook of the inbox.
pub(super) fn event(row: &Row) -> Sql<NewEvent> {
    Ok(NewEvent {
        id: row.text("id")?,
        account: row.text("account")?,
        webhook: row.text("webhook")?,
        event: row.text("event")?,
        dedupe_key: row.optional_text("dedupe_key")?,
        received_at: row.number("received_at")?,
        method: row.text("method")?,
        path: row.text("path")?,
        headers: headers(row)?,
        body: row.optional_bytes("body")?,
        spool: row.optional_text("spool")?,
    })
}

/// Webhooks, with unreadable ones apart: one must not block the others.
pub(super) fn waiting(rows: &[Row]) -> Sql<UnsettledEvents> {
    let mut waiting = UnsettledEvents::default();
    for row in rows {
        match event(row) {
            Ok(event) => waiting.events.push(event),
            Err(error) => waiting.damaged.push((row.text("id")?, error.to_string())),
        }
    }
    waiting.last = rows.last().map(|row| Ok::<_, Fault>((row.number("received_at")?, row.text("id")?))).transpose()?;
    Ok(waiting)
}

/// Readable rows of ended calls: an unreadable one is left out, so that it does not prevent a start.
pub(super) fn readable<T, E: std::fmt::Display>(rows: impl IntoIterator<Item = Result<T, E>>) -> Vec<T> {
    let readable = rows.into_iter().filter_map(|row| {
        row.inspect_err(|error| tracing::warn!(%error, "failed to read a call record; skipped")).ok()
    });
    readable.collect()
}

/// A URL that is safe to show: without its query and credentials.
fn without_query(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            format!("{scheme}://{}{path}", host.rsplit('@').next().unwrap_or_default())
        }
        None => url.to_owned(),
    }
}

/// A webhook of the inbox.
pub(super) fn inbox_event(row: &Row) -> Sql<InboxEvent> {
    Ok(InboxEvent {
        id: row.text("id")?,
        account: row.text("account")?,
        webhook: row.text("webhook")?,
        event: row.text("event")?,
        received_at: row.number("received_at")?,
        path: without_query(row.str("path")?),
        has_body: row.flag("has_body")?,
        spool: row.optional_text("spool")?,
        call: row.optional_text("call_id")?,
        outcome: row.optional_text("outcome")?,
        tries: row.count("tries")?,
        due_at: row.optional_number("due_at")?,
        parked_at: row.optional_number("parked_at")?,
        park_reason: row.optional_word("park_reason")?,
        error: row.optional_text("error")?,
    })
}

/// A delivery of the outbox.
pub(super) fn outbox_delivery(row: &Row) -> Sql<OutboxDelivery> {
    Ok(OutboxDelivery {
        id: row.text("id")?,
        event_id: row.text("event_id")?,
        account: row.optional_text("account")?,
        received_at: row.optional_number("received_at")?,
        call: row.optional_text("call_id")?,
        url: without_query(row.str("url")?),
        own: row.flag("own")?,
        route: row.word("route")?,
        attempts: row.count("attempts")?,
        due_at: row.optional_number("due_at")?,
        done_at: row.optional_number("done_at")?,
        last_error: row.optional_text("last_error")?,
        park_reason: row.optional_word("park_reason")?,
    })
}

/// A provider's response to a create.
pub(super) fn create_answer(row: &Row) -> Sql<CreateAnswer> {
    Ok(CreateAnswer {
        fingerprint: row.text("fingerprint")?,
        status: row.number("status")?.try_into().map_err(damaged)?,
        headers: headers(row)?,
        body: row.optional_bytes("body")?.unwrap_or_default(),
    })
}

/// An entry of the audit log.
pub(super) fn audit_record(row: &Row) -> Sql<AuditRecord> {
    Ok(AuditRecord {
        id: row.text("id")?,
        at: row.number("at")?,
        who: row.text("who")?,
        from: row.text("came_from")?,
        what: row.text("what")?,
        target: row.text("target")?,
        reason: row.optional_text("reason")?,
        before: row.optional_text("before_json")?,
        after: row.optional_text("after_json")?,
    })
}

/// A post-call record.
pub(super) fn post_call(row: &Row) -> Sql<StoredPostCall> {
    Ok(StoredPostCall {
        found: PostCall {
            transcript_summary: row.optional_text("transcript_summary")?,
            call_duration_seconds: row.optional_number("call_duration_seconds")?,
            cost: row.optional_float("cost")?,
            cost_unit: row.optional_text("cost_unit")?,
            cost_fiat: row.optional_float("cost_fiat")?,
            call_successful: row.optional_flag("call_successful")?,
            answered_by: row.optional_word("answered_by")?,
            analysis_data: row.json("analysis_data")?,
            metadata_json: row.json("metadata_json")?,
            call_end_time: row.optional_number("call_end_time")?,
            transcript_json: row.json("transcript_json")?,
        },
        recorded_at: row.optional_number("recorded_at")?,
        recorded_by: row.optional_text("recorded_by")?,
        tries: row.count("tries")?,
        due_at: row.optional_number("due_at")?,
        last_error: row.optional_text("last_error")?,
    })
}

/// A delivery.
pub(super) fn delivery(row: &Row) -> Sql<Delivery> {
    Ok(Delivery {
        id: row.text("id")?,
        event_id: row.text("event_id")?,
        url: row.text("url")?,
        method: row.text("method")?,
        headers: headers(row)?,
        body: row.optional_bytes("body")?.unwrap_or_default(),
        attempts: row.count("attempts")?,
        call: row.optional_text("call_id")?,
        spool: row.optional_text("spool")?,
        route: if row.flag("own")? { DeliveryRoute::OwnEvent } else { row.word("route")? },
    })
}

pub(super) fn rejection(row: &Row) -> Sql<RejectionRecord> {
    let id = row.str("id")?;
    Ok(RejectionRecord {
        id: RejectionId::parse(id).ok_or_else(|| damaged(format!("{id:?} is not a refusal id")))?,
        at: row.number("at")?,
        business: row.text("business")?,
        account: row.text("account")?,
        direction: row.word("direction")?,
        code: row.text("code")?,
        limit_name: row.optional_text("limit_name")?,
        current: row.optional_count("current_calls")?,
        limit: row.optional_count("limit_calls")?,
        observed: row.flag("observed")?,
        attempts: row.count("attempts")?,
        notice: AppNotice::Omit,
    })
}

pub(super) fn bypass(row: &Row) -> Sql<Bypass> {
    Ok(Bypass {
        since_ms: row.number("since_ms")?,
        until_ms: row.number("until_ms")?,
        who: row.text("who")?,
        reason: row.text("reason")?,
    })
}

pub(super) fn business(row: &Row) -> Sql<Business> {
    serde_json::from_str(row.str("body")?).map_err(damaged)
}

pub(super) fn live_replica(row: &Row) -> Sql<LiveReplica> {
    Ok(LiveReplica {
        replica: Replica {
            id: row.text("id")?,
            host: row.text("host")?,
            process: row.count("process")?,
            version: row.text("version")?,
            state: row.optional_text("state")?,
        },
        started_at: row.number("started_at")?,
        beat_at: row.number("beat_at")?,
    })
}

pub(super) fn ended_call(row: &Row) -> Sql<EndedCall> {
    Ok(EndedCall { id: row.text("id")?, business: row.text("business")?, ended_at: row.number("ended_at")? })
}

/// The time and attributes of an admitted call.
pub(super) fn admitted(row: &Row) -> Sql<(UnixMs, CallAttributes)> {
    Ok((row.number("admitted_at")?, attributes(row)?))
}

pub(super) fn gate_state(row: &Row) -> Sql<GateState> {
    Ok(GateState { epoch: row.number("epoch")?, mode: row.word("mode")? })
}

/// A lease, from a row with its keys as JSON.
pub(super) fn held(row: &Row) -> Sql<LeaseRow> {
    Ok(LeaseRow {
        call: call_id(row.str("id")?)?,
        keys: row.json("keys")?.unwrap_or_default(),
        slots: row.count("slots")?,
        since_ms: row.number("admitted_at")?,
        over_limit: row.flag("over_limit")?,
    })
}

/// An open call of a row, with the call's attributes.
pub(super) fn open_row(row: &Row) -> Sql<OpenRow> {
    Ok(OpenRow {
        call: call_id(row.str("id")?)?,
        attributes: attributes(row)?,
        slots: row.count("slots")?,
        since_ms: row.number("admitted_at")?,
        over_limit: row.flag("over_limit")?,
        keys: row.json("keys")?,
    })
}

pub(super) fn in_flight_row(row: &Row) -> Sql<InFlightRow> {
    Ok(InFlightRow {
        id: call_id(row.str("id")?)?,
        phase: row.word("phase")?,
        outcome: row.optional_word("outcome")?,
        unsettled: row.flag("unsettled")?,
        undelivered: row.flag("undelivered")?,
        replica: row.optional_text("replica")?,
        waited_for_since: row.number("waited_for_since")?,
        ended_at: row.optional_number("ended_at")?,
        silent_ms: row.optional_number("silent_ms")?,
    })
}

pub(super) fn utterance(row: &Row) -> Sql<Utterance> {
    Ok(Utterance {
        id: row.number("id")?,
        sequence: row.number("sequence")?,
        speaker: row.word("speaker")?,
        text: row.text("message")?,
        said_at: row.text("said_at")?,
        source_sequence: row.optional_number("source_sequence")?,
        source: row.optional_text("source")?,
        event_id: row.text("event_id")?,
    })
}

pub(super) fn position(row: &Row) -> Sql<UtterancePosition> {
    Ok(UtterancePosition {
        call: call_id(row.str("id")?)?,
        last_sequence: row.number("last_sequence")?,
        seen_at: row.number("seen_at")?,
        ended: row.word::<Phase>("phase")? == Phase::Ended,
        recorded_at: row.optional_number("recorded_at")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_who_signs_in_and_without_its_query() {
        for (url, shown) in [
            ("https://ops:hunter2@app.example.com/x?token=1#y", "https://app.example.com/x"),
            ("https://ops:hun@ter2@app.example.com/a@b", "https://app.example.com/a@b"),
            ("https://app.example.com", "https://app.example.com"),
            ("/webhooks/x?y", "/webhooks/x"),
            ("", ""),
        ] {
            assert_eq!(without_query(url), shown);
        }
    }
}
