//! Rows of calls as sqlx reads them, the same on every back end.

use serde::de::DeserializeOwned;
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;

use super::standing::OpenRow;
use super::{
    AuditRecord, CallRecord, CreateAnswer, InboxEvent, NewEvent, OrderRecord, OutboxDelivery, Standing, StoredPostCall,
    Utterance, Waiting,
};
use crate::admission::{GateState, Held};
use crate::call::Phase;
use crate::ids::{AccountName, Alias, BusinessId, CallId};
use crate::policy::Facts;
use crate::provider::description::PostCall;

/// What reading a row comes to.
pub(super) type Sql<T> = Result<T, sqlx::Error>;

/// The kinds of column that the tables have.
pub(super) trait Columns {
    fn text(&self, column: &str) -> Sql<String>;
    fn optional_text(&self, column: &str) -> Sql<Option<String>>;
    fn optional_bytes(&self, column: &str) -> Sql<Option<Vec<u8>>>;
    fn number(&self, column: &str) -> Sql<i64>;
    fn optional_number(&self, column: &str) -> Sql<Option<i64>>;
    fn flag(&self, column: &str) -> Sql<bool>;
    fn optional_flag(&self, column: &str) -> Sql<Option<bool>>;
    fn optional_float(&self, column: &str) -> Sql<Option<f64>>;
}

macro_rules! columns {
    ($($row:ty),+) => {$(
        impl Columns for $row {
            fn text(&self, column: &str) -> Sql<String> {
                self.try_get(column)
            }
            fn optional_text(&self, column: &str) -> Sql<Option<String>> {
                self.try_get(column)
            }
            fn optional_bytes(&self, column: &str) -> Sql<Option<Vec<u8>>> {
                self.try_get(column)
            }
            fn number(&self, column: &str) -> Sql<i64> {
                self.try_get(column)
            }
            fn optional_number(&self, column: &str) -> Sql<Option<i64>> {
                self.try_get(column)
            }
            fn flag(&self, column: &str) -> Sql<bool> {
                self.try_get(column)
            }
            fn optional_flag(&self, column: &str) -> Sql<Option<bool>> {
                self.try_get(column)
            }
            fn optional_float(&self, column: &str) -> Sql<Option<f64>> {
                self.try_get(column)
            }
        }
    )+};
}
columns!(PgRow, SqliteRow);

pub(super) fn damaged(what: impl std::fmt::Display) -> sqlx::Error {
    sqlx::Error::Decode(what.to_string().into())
}

fn word<T: std::str::FromStr<Err: std::fmt::Display>>(row: &impl Columns, column: &str) -> Sql<T> {
    row.text(column)?.parse().map_err(damaged)
}

fn optional_word<T: std::str::FromStr<Err: std::fmt::Display>>(row: &impl Columns, column: &str) -> Sql<Option<T>> {
    row.optional_text(column)?.map(|w| w.parse().map_err(damaged)).transpose()
}

pub(super) fn json<T: DeserializeOwned>(text: Option<String>) -> Sql<Option<T>> {
    text.map(|t| serde_json::from_str(&t).map_err(damaged)).transpose()
}

pub(super) fn call_id(text: &str) -> Sql<CallId> {
    CallId::parse(text).ok_or_else(|| damaged(format!("{text:?} is no call id")))
}

pub(super) fn business_and_id(row: &impl Columns) -> Sql<(String, CallId)> {
    Ok((row.text("business")?, call_id(&row.text("id")?)?))
}

pub(super) fn facts(row: &impl Columns) -> Sql<Facts> {
    Ok(Facts {
        business: BusinessId::parse(&row.text("business")?).map_err(damaged)?,
        plan: row.text("plan")?,
        account: AccountName::parse(&row.text("account")?).map_err(damaged)?,
        provider: row.text("provider")?,
        carrier: row.optional_text("carrier")?.map(|name| AccountName::parse(&name).map_err(damaged)).transpose()?,
        direction: word(row, "direction")?,
        operation: row.text("operation")?,
        agent: row.optional_text("agent")?,
        own_number: row.optional_text("own_number")?,
        other_number: row.optional_text("other_number")?,
    })
}

pub(super) fn record(row: &impl Columns, aliases: Vec<Alias>) -> Sql<CallRecord> {
    Ok(CallRecord {
        id: call_id(&row.text("id")?)?,
        facts: facts(row)?,
        origin: word(row, "origin")?,
        phase: word(row, "phase")?,
        outcome: optional_word(row, "outcome")?,
        proof: optional_word(row, "proof")?,
        overrun: row.flag("overrun")?,
        unsettled: row.flag("unsettled")?,
        polled: row.flag("polled")?,
        places: row.number("places")?.try_into().map_err(damaged)?,
        admitted_at: row.number("admitted_at")?,
        phase_at: row.number("phase_at")?,
        deadline_at: row.optional_number("deadline_at")?,
        answered_at: row.optional_number("answered_at")?,
        ended_at: row.optional_number("ended_at")?,
        seen_at: row.number("seen_at")?,
        seen_by: row.text("seen_by")?,
        absent_at: row.optional_number("absent_at")?,
        callback: json(row.optional_text("callback")?)?,
        fingerprint: row.optional_text("fingerprint")?,
        replica: row.optional_text("replica")?,
        aliases,
    })
}

pub(super) fn headers(row: &impl Columns) -> Sql<Vec<(String, String)>> {
    serde_json::from_str(&row.text("headers")?).map_err(damaged)
}

/// A webhook of the inbox.
pub(super) fn event(row: &impl Columns) -> Sql<NewEvent> {
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

/// Webhooks, and apart from them those that cannot be read: one must not keep the others from their turn.
pub(super) fn waiting(rows: &[impl Columns]) -> Sql<Waiting> {
    let mut waiting = Waiting::default();
    for row in rows {
        match event(row) {
            Ok(event) => waiting.events.push(event),
            Err(error) => waiting.damaged.push((row.text("id")?, error.to_string())),
        }
    }
    waiting.last =
        rows.last().map(|row| Ok::<_, sqlx::Error>((row.number("received_at")?, row.text("id")?))).transpose()?;
    Ok(waiting)
}

/// Calls that are over, or their facts: one that cannot be read is left out, so that it keeps nobody from starting.
pub(super) fn readable<T, E: std::fmt::Display>(rows: impl IntoIterator<Item = Result<T, E>>) -> Vec<T> {
    let readable = rows.into_iter().filter_map(|row| {
        row.inspect_err(|error| tracing::warn!(%error, "a call on record cannot be read; it is left out")).ok()
    });
    readable.collect()
}

/// A URL as it may be shown: its query may hold anything, and who signs in with it stands before its host.
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
pub(super) fn inbox_event(row: &impl Columns) -> Sql<InboxEvent> {
    Ok(InboxEvent {
        id: row.text("id")?,
        account: row.text("account")?,
        webhook: row.text("webhook")?,
        event: row.text("event")?,
        received_at: row.number("received_at")?,
        path: without_query(&row.text("path")?),
        has_body: row.flag("has_body")?,
        spool: row.optional_text("spool")?,
        call: row.optional_text("call_id")?,
        outcome: row.optional_text("outcome")?,
        tries: row.number("tries")?.try_into().map_err(damaged)?,
        due_at: row.optional_number("due_at")?,
        parked_at: row.optional_number("parked_at")?,
        error: row.optional_text("error")?,
    })
}

/// A delivery of the outbox.
pub(super) fn outbox_delivery(row: &impl Columns) -> Sql<OutboxDelivery> {
    Ok(OutboxDelivery {
        id: row.text("id")?,
        event_id: row.text("event_id")?,
        call: row.optional_text("call_id")?,
        url: without_query(&row.text("url")?),
        own: row.flag("own")?,
        route: word(row, "route")?,
        attempts: row.number("attempts")?.try_into().map_err(damaged)?,
        due_at: row.optional_number("due_at")?,
        done_at: row.optional_number("done_at")?,
        last_error: row.optional_text("last_error")?,
    })
}

/// A provider's answer to a create.
pub(super) fn create_answer(row: &impl Columns) -> Sql<CreateAnswer> {
    Ok(CreateAnswer {
        fingerprint: row.text("fingerprint")?,
        status: row.number("status")?.try_into().map_err(damaged)?,
        headers: json(row.optional_text("headers")?)?.unwrap_or_default(),
        body: row.optional_bytes("body")?.unwrap_or_default(),
    })
}

/// Something that an operator did.
pub(super) fn audit_record(row: &impl Columns) -> Sql<AuditRecord> {
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
pub(super) fn post_call(row: &impl Columns) -> Sql<StoredPostCall> {
    Ok(StoredPostCall {
        found: PostCall {
            transcript_summary: row.optional_text("transcript_summary")?,
            call_duration_seconds: row.optional_number("call_duration_seconds")?,
            cost: row.optional_float("cost")?,
            cost_unit: row.optional_text("cost_unit")?,
            cost_fiat: row.optional_float("cost_fiat")?,
            call_successful: row.optional_flag("call_successful")?,
            analysis_data: json(row.optional_text("analysis_data")?)?,
            metadata_json: json(row.optional_text("metadata_json")?)?,
            call_end_time: row.optional_number("call_end_time")?,
            transcript_json: json(row.optional_text("transcript_json")?)?,
        },
        recorded_at: row.optional_number("recorded_at")?,
        recorded_by: row.optional_text("recorded_by")?,
        tries: row.number("tries")?.try_into().map_err(damaged)?,
        due_at: row.optional_number("due_at")?,
        last_error: row.optional_text("last_error")?,
    })
}

pub(super) fn alias(row: &impl Columns) -> Sql<Alias> {
    Ok(Alias { kind: row.text("kind")?, id: row.text("id")? })
}

pub(super) fn gate_state(row: &impl Columns) -> Sql<GateState> {
    Ok(GateState { epoch: row.number("epoch")?, mode: word(row, "mode")? })
}

/// A lease, of a row that gives its keys as JSON.
pub(super) fn held(row: &impl Columns) -> Sql<Held> {
    Ok(Held {
        call: call_id(&row.text("id")?)?,
        keys: json(row.optional_text("keys")?)?.unwrap_or_default(),
        places: row.number("places")?.try_into().map_err(damaged)?,
        since_ms: row.number("admitted_at")?,
        overrun: row.flag("overrun")?,
    })
}

/// The same with its facts.
pub(super) fn open_row(row: &impl Columns) -> Sql<OpenRow> {
    Ok(OpenRow {
        call: call_id(&row.text("id")?)?,
        facts: facts(row)?,
        places: row.number("places")?.try_into().map_err(damaged)?,
        since_ms: row.number("admitted_at")?,
        overrun: row.flag("overrun")?,
        keys: json(row.optional_text("keys")?)?,
    })
}

pub(super) fn order(row: &impl Columns) -> Sql<OrderRecord> {
    Ok(OrderRecord {
        id: call_id(&row.text("id")?)?,
        phase: word(row, "phase")?,
        outcome: optional_word(row, "outcome")?,
        unsettled: row.flag("unsettled")?,
        undelivered: row.flag("undelivered")?,
        replica: row.optional_text("replica")?,
        admitted_at: row.number("admitted_at")?,
        phase_at: row.number("phase_at")?,
        ended_at: row.optional_number("ended_at")?,
        silent_ms: row.optional_number("silent_ms")?,
    })
}

pub(super) fn utterance(row: &impl Columns) -> Sql<Utterance> {
    Ok(Utterance {
        id: row.number("id")?,
        sequence: row.number("sequence")?,
        speaker: word(row, "speaker")?,
        text: row.text("message")?,
        said_at: row.text("said_at")?,
        source_sequence: row.optional_number("source_sequence")?,
        source: row.optional_text("source")?,
        event_id: row.text("event_id")?,
    })
}

pub(super) fn standing(row: &impl Columns) -> Sql<Standing> {
    Ok(Standing {
        call: call_id(&row.text("id")?)?,
        last_sequence: row.number("last_sequence")?,
        seen_at: row.number("seen_at")?,
        ended: word::<Phase>(row, "phase")? == Phase::Ended,
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
