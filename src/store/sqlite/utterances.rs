//! Utterances. The single writer runs nothing between these statements.

use super::super::driver::{Driver, Sql, binds, damaged};
use super::super::queries::transcripts::utterance_columns;
use super::super::queries::{bindings, calls, messages};
use super::super::rows::call_id;
use super::super::{
    CallRecord, EventOutcome, IngestOutcome, NewUtterance, ReceiveOutcome, UtteranceIngest, UtteranceRef, tells_more,
};
use crate::ids::CallId;

async fn stored_before(c: &mut dyn Driver, event_id: &str) -> Sql<Option<(CallId, UtteranceRef)>> {
    let rows = c.fetch("SELECT call_id, id, sequence FROM utterances WHERE event_id = $1", &binds![event_id]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    Ok(Some((call_id(row.str("call_id")?)?, UtteranceRef { id: row.number("id")?, sequence: row.number("sequence")? })))
}

pub(super) async fn add(c: &mut dyn Driver, call: &CallId, said: &NewUtterance) -> Sql<Option<UtteranceRef>> {
    if let Some((_, before)) = stored_before(c, &said.event_id).await? {
        return Ok(Some(before));
    }
    if c.fetch("SELECT 1 FROM calls WHERE id = $1", &binds![call.as_str()]).await?.is_empty() {
        return Ok(None);
    }
    add_next(c, call, said).await.map(Some)
}

pub(super) async fn ingest(c: &mut dyn Driver, ingested: &UtteranceIngest) -> Sql<IngestOutcome> {
    let UtteranceIngest { event, aliases, said, delivery, by } = ingested;
    let received = messages::receive(c, event).await?;
    if let ReceiveOutcome::Before { id, outcome } = &received {
        let before = if outcome.is_some() { stored_before(c, id).await? } else { None };
        return Ok(before.map_or(IngestOutcome::Inbox(received), |(call, said)| IngestOutcome::Before(call, said)));
    }
    let record = match bindings::resolve(c, aliases).await? {
        Some(call) => calls::find(c, &call).await?,
        None => None,
    };
    let is_about = |record: &CallRecord| by.contradicts(&record.attributes, &record.aliases, aliases).is_none();
    let Some(record) = record.filter(|record| !tells_more(record, aliases) && is_about(record)) else {
        return Ok(IngestOutcome::Inbox(received));
    };
    let stands = add_next(c, &record.id, said).await?;
    messages::settle(c, &event.id, Some(record.id.as_str()), EventOutcome::Recorded, delivery.as_ref(), said.at_ms)
        .await?;
    Ok(IngestOutcome::Whole(record.id, stands))
}

async fn add_next(c: &mut dyn Driver, call: &CallId, said: &NewUtterance) -> Sql<UtteranceRef> {
    let next = "INSERT INTO transcripts (call_id, last_sequence) VALUES ($1, 1)
         ON CONFLICT (call_id) DO UPDATE SET last_sequence = last_sequence + 1 RETURNING last_sequence";
    let rows = c.fetch(next, &binds![call.as_str()]).await?;
    let sequence = rows.first().ok_or_else(|| damaged("a call has no last number"))?.number("last_sequence")?;
    let put = concat!(
        "INSERT INTO utterances (",
        utterance_columns!(),
        ") VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) RETURNING id"
    );
    let binds = binds![
        call.as_str(),
        sequence,
        &said.event_id,
        said.speaker.as_str(),
        &said.text,
        &said.said_at,
        said.source_sequence,
        &said.source,
        said.at_ms,
    ];
    let rows = c.fetch(put, &binds).await?;
    let id = rows.first().ok_or_else(|| damaged("an utterance has no id"))?.number("id")?;
    Ok(UtteranceRef { id, sequence })
}
