//! Providers' answers to creates, for whoever sends an order again.

use rusqlite::{Connection, params};
use sqlx::sqlite::SqlitePool;

use super::super::{CreateAnswer, Result, rows};
use super::calls_write::to_json;
use super::writer::Written;
use crate::clock::UnixMs;
use crate::ids::CallId;

/// Keeps the latest answer to an order.
pub(super) fn keep(c: &Connection, call: &CallId, answer: &CreateAnswer, at_ms: UnixMs) -> Written<()> {
    c.prepare_cached(
        "INSERT INTO create_answers (call_id, fingerprint, status, headers, body, at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (call_id, fingerprint) DO UPDATE SET
             status = excluded.status, headers = excluded.headers, body = excluded.body, at = excluded.at",
    )?
    .execute(params![call.as_str(), answer.fingerprint, answer.status, to_json(&answer.headers)?, answer.body, at_ms])
    .map(drop)
}

pub(super) async fn read(pool: &SqlitePool, call: &CallId, fingerprint: &str) -> Result<Option<CreateAnswer>> {
    let row = sqlx::query("SELECT * FROM create_answers WHERE call_id = $1 AND fingerprint = $2");
    let row = row.bind(call.as_str()).bind(fingerprint).fetch_optional(pool).await?;
    row.as_ref().map(rows::create_answer).transpose().map_err(Into::into)
}
