//! Providers' answers to creates, for whoever sends an order again.

use sqlx::PgConnection;

use super::super::{CreateAnswer, rows};
use super::calls::to_json;
use super::{Sql, query};
use crate::clock::UnixMs;
use crate::ids::CallId;

/// Keeps the latest answer to an order.
pub(super) async fn keep(c: &mut PgConnection, call: &CallId, answer: &CreateAnswer, at_ms: UnixMs) -> Sql<()> {
    query(
        "INSERT INTO create_answers (call_id, fingerprint, status, headers, body, at) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (call_id, fingerprint) DO UPDATE SET
             status = excluded.status, headers = excluded.headers, body = excluded.body, at = excluded.at",
    )
    .bind(call.as_str())
    .bind(&answer.fingerprint)
    .bind(i64::from(answer.status))
    .bind(to_json(&answer.headers)?)
    .bind(&answer.body)
    .bind(at_ms)
    .execute(c)
    .await
    .map(drop)
}

pub(super) async fn read(c: &mut PgConnection, call: CallId, fingerprint: String) -> Sql<Option<CreateAnswer>> {
    let row = query("SELECT * FROM create_answers WHERE call_id = $1 AND fingerprint = $2");
    let row = row.bind(call.as_str()).bind(&fingerprint).fetch_optional(c).await?;
    row.as_ref().map(rows::create_answer).transpose()
}
