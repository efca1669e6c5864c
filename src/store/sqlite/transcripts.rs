//! What was said in calls.

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::super::rows::{Sql, standing, utterance};
use super::super::{NewUtterance, Result, Said, Standing, Transcripts, Utterance};
use super::SqliteStore;
use super::calls_write::to_json;
use super::writer::Written;
use crate::ids::CallId;

/// The writer is one: nothing comes between these statements.
fn say(c: &Connection, call: &CallId, said: &NewUtterance) -> Written<Option<Said>> {
    let before = c
        .prepare_cached("SELECT id, sequence FROM utterances WHERE event_id = ?1")?
        .query_row([&said.event_id], |row| Ok(Said { id: row.get(0)?, sequence: row.get(1)? }))
        .optional()?;
    if before.is_some() {
        return Ok(before);
    }
    if !c.prepare_cached("SELECT 1 FROM calls WHERE id = ?1")?.exists([call.as_str()])? {
        return Ok(None);
    }
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
    Ok(Some(Said { id, sequence }))
}

#[async_trait]
impl Transcripts for SqliteStore {
    async fn say(&self, call: &CallId, said: NewUtterance) -> Result<Option<Said>> {
        let call = call.clone();
        self.writer.run(move |c| say(c, &call, &said)).await
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
