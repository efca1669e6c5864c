//! What was said in calls.

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::super::rows::{Sql, business_and_id, standing, utterance};
use super::super::{
    CallRecord, NewUtterance, RECORDED, Received, Result, Said, Speech, Standing, Took, Transcripts, Utterance,
    tells_more,
};
use super::SqliteStore;
use super::calls_write::{self, call_id, to_json};
use super::messages_write::{receive, settle};
use super::writer::Written;
use crate::clock::UnixMs;
use crate::ids::CallId;

fn said_before(c: &Connection, event_id: &str) -> Written<Option<(CallId, Said)>> {
    c.prepare_cached("SELECT call_id, id, sequence FROM utterances WHERE event_id = ?1")?
        .query_row([event_id], |row| {
            Ok((call_id(row.get_ref(0)?.as_str()?)?, Said { id: row.get(1)?, sequence: row.get(2)? }))
        })
        .optional()
}

/// The writer is one: nothing comes between these statements.
fn say(c: &Connection, call: &CallId, said: &NewUtterance) -> Written<Option<Said>> {
    if let Some((_, before)) = said_before(c, &said.event_id)? {
        return Ok(Some(before));
    }
    if !c.prepare_cached("SELECT 1 FROM calls WHERE id = ?1")?.exists([call.as_str()])? {
        return Ok(None);
    }
    say_next(c, call, said).map(Some)
}

fn hear(c: &Connection, speech: &Speech) -> Written<Took> {
    let Speech { event, aliases, said, delivery, by } = speech;
    let received = receive(c, event)?;
    if let Received::Before { id, outcome } = &received {
        let before = if outcome.is_some() { said_before(c, id)? } else { None };
        return Ok(before.map_or(Took::Inbox(received), |(call, said)| Took::Before(call, said)));
    }
    let record = match calls_write::resolve(c, aliases)? {
        Some(call) => calls_write::one(c, &call)?,
        None => None,
    };
    let is_about = |record: &CallRecord| by.contradicts(&record.facts, &record.aliases, aliases).is_none();
    let Some(record) = record.filter(|record| !tells_more(record, aliases) && is_about(record)) else {
        return Ok(Took::Inbox(received));
    };
    let stands = say_next(c, &record.id, said)?;
    settle(c, &event.id, Some(&record.id), RECORDED, delivery.as_ref(), said.at_ms)?;
    Ok(Took::Whole(record.id, stands))
}

fn say_next(c: &Connection, call: &CallId, said: &NewUtterance) -> Written<Said> {
    let sequence = c
        .prepare_cached(
            "INSERT INTO transcripts (call_id, last_sequence) VALUES (?1, 1)
             ON CONFLICT (call_id) DO UPDATE SET last_sequence = last_sequence + 1 RETURNING last_sequence",
        )?
        .query_row([call.as_str()], |row| row.get(0))?;
    let id = c
        .prepare_cached(
            "INSERT INTO utterances (call_id, sequence, event_id, speaker, message, said_at, source_sequence, source, heard_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) RETURNING id",
        )?
        .query_row(
            params![
                call.as_str(),
                sequence,
                said.event_id,
                said.speaker.as_str(),
                said.text,
                said.said_at,
                said.source_sequence,
                said.source,
                said.at_ms,
            ],
            |row| row.get(0),
        )?;
    Ok(Said { id, sequence })
}

#[async_trait]
impl Transcripts for SqliteStore {
    async fn say(&self, call: &CallId, said: NewUtterance) -> Result<Option<Said>> {
        let call = call.clone();
        self.writer.run(move |c| say(c, &call, &said)).await
    }

    async fn hear(&self, speech: Speech) -> Result<Took> {
        self.writer.run(move |c| hear(c, &speech)).await
    }

    async fn utterances(&self, call: &CallId, after: i64, limit: u32) -> Result<Vec<Utterance>> {
        let rows =
            sqlx::query("SELECT * FROM utterances WHERE call_id = $1 AND sequence > $2 ORDER BY sequence LIMIT $3")
                .bind(call.as_str())
                .bind(after)
                .bind(limit)
                .fetch_all(&self.readers)
                .await?;
        rows.iter().map(utterance).collect::<Sql<_>>().map_err(Into::into)
    }

    async fn last_sequence(&self, call: &CallId) -> Result<i64> {
        let last: Option<i64> = sqlx::query_scalar("SELECT last_sequence FROM transcripts WHERE call_id = $1")
            .bind(call.as_str())
            .fetch_optional(&self.readers)
            .await?;
        Ok(last.unwrap_or(0))
    }

    async fn calls_of(
        &self,
        businesses: &[String],
        ended_since_ms: UnixMs,
        latest: u32,
    ) -> Result<Vec<(String, CallId)>> {
        let rows = sqlx::query(
            "SELECT business, id FROM calls INDEXED BY calls_open
             WHERE phase <> 'ended' AND business IN (SELECT value FROM json_each($1))
             UNION ALL SELECT business, id FROM
                 (SELECT business, id, phase, ended_at FROM calls ORDER BY admitted_at DESC, id DESC LIMIT $3)
             WHERE phase = 'ended' AND ended_at >= $2 AND business IN (SELECT value FROM json_each($1))",
        )
        .bind(to_json(businesses).map_err(|e| super::StoreError::Failed(e.to_string()))?)
        .bind(ended_since_ms)
        .bind(latest)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(business_and_id).collect::<Sql<_>>().map_err(Into::into)
    }

    async fn standings(&self, calls: &[CallId]) -> Result<Vec<Standing>> {
        let ids: Vec<&str> = calls.iter().map(CallId::as_str).collect();
        let rows = sqlx::query(
            "SELECT c.id, c.phase, c.seen_at, r.recorded_at, coalesce(t.last_sequence, 0) AS last_sequence
             FROM calls c LEFT JOIN transcripts t ON t.call_id = c.id LEFT JOIN call_records r ON r.call_id = c.id
             WHERE c.id IN (SELECT value FROM json_each($1))",
        )
        .bind(to_json(&ids).map_err(|e| super::StoreError::Failed(e.to_string()))?)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(standing).collect::<Sql<_>>().map_err(Into::into)
    }
}
