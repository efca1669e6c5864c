//! What is forgotten in time, and what becomes of what was said.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};

use super::super::retention::{Old, SaidParts, Whose, page, text_kept};
use super::super::rows::Sql;
use super::super::told::EVENT;
use super::super::{Ages, EndedCall, Place, Purged, Result, Retention};
use super::{PostgresStore, query};
use crate::clock::UnixMs;
use crate::policy::Privacy;

/// Rows that one write forgets or changes: others get their turn in between.
pub(super) const ROWS: u32 = 500;

/// Forgets calls that are over, with all that they left behind; `wholly`, or but for what the app still waits for and what nobody
/// settled.
pub(super) async fn forget_calls(c: &mut PgConnection, ids: &[String], wholly: bool) -> Sql<Purged> {
    // Who says something in one of them just now holds it: what he says goes with it, or comes too late.
    query("SELECT 1 FROM calls WHERE id = ANY($1) ORDER BY id FOR UPDATE").bind(ids).execute(&mut *c).await?;
    let [mut deliveries, mut spooled, mut events, mut calls] = [0; 4];
    for (gone, sql) in [
        (
            &mut deliveries,
            "DELETE FROM deliveries WHERE ($2 OR due_at IS NULL) AND (call_id = ANY($1) OR event_id IN
                 (SELECT id FROM webhook_events WHERE call_id = ANY($1)))",
        ),
        // Of a body in a spool a row stays that tells so.
        (
            &mut spooled,
            "UPDATE webhook_events SET spool = NULL, call_id = NULL, dedupe_key = NULL, path = '', headers = '[]',
                 waits_kind = NULL, waits_id = NULL, outcome = coalesce(outcome, 'purged')
             WHERE spool IS NOT NULL AND ($2 OR ((outcome IS NOT NULL OR parked_at IS NOT NULL)
                 AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.event_id = webhook_events.id)))
             AND (call_id = ANY($1)
                 OR (waits_kind, waits_id) IN (SELECT kind, id FROM call_aliases WHERE call_id = ANY($1)))",
        ),
        (
            &mut events,
            "DELETE FROM webhook_events WHERE ($2 OR ((outcome IS NOT NULL OR parked_at IS NOT NULL) AND spool IS NULL))
             AND (call_id = ANY($1)
                 OR (waits_kind, waits_id) IN (SELECT kind, id FROM call_aliases WHERE call_id = ANY($1)))",
        ),
    ] {
        *gone = query(sql).bind(ids).bind(wholly).execute(&mut *c).await?.rows_affected();
    }
    for sql in [
        "DELETE FROM call_records WHERE call_id = ANY($1)",
        "DELETE FROM create_answers WHERE call_id = ANY($1)",
        "DELETE FROM utterances WHERE call_id = ANY($1)",
        "DELETE FROM transcripts WHERE call_id = ANY($1)",
        "DELETE FROM call_aliases WHERE call_id = ANY($1)",
        "DELETE FROM calls WHERE id = ANY($1)",
    ] {
        calls = query(sql).bind(ids).execute(&mut *c).await?.rows_affected();
    }
    Ok(Purged { calls, events: events + spooled, deliveries, ..Purged::default() })
}

/// Rows that may be past their age, read page by page, so that what is kept longer is passed over in small steps.
#[derive(Clone, Copy)]
enum List {
    Calls,
    Refusals,
    /// Those of calls on record go with them: they have no business but that of their call. A row that names a file is needed until
    /// the app has that.
    Events,
    /// The same by their ids alone: they have no time that an index knows. What the app was told of a refusal goes with that; $6 is
    /// what the ids of our own events begin with.
    Deliveries,
}

impl List {
    /// What is before a time, from a place on.
    async fn old(self, c: &mut PgConnection, whose: Arc<Whose>, before: UnixMs, after: Place) -> Sql<Vec<Old>> {
        let sql = match (self, &*whose) {
            (Self::Calls, Whose::Of(_)) => {
                "SELECT id, ended_at AS at, false AS kept FROM calls WHERE phase = 'ended' AND ended_at < $1
                 AND ended_at >= $2 AND (ended_at, id) > ($2, $3) AND business = ANY($4) ORDER BY ended_at, id LIMIT $5"
            }
            (Self::Calls, Whose::NotOf(_)) => {
                "SELECT id, ended_at AS at, business = ANY($4) AS kept FROM calls WHERE phase = 'ended' AND ended_at < $1
                 AND ended_at >= $2 AND (ended_at, id) > ($2, $3) ORDER BY ended_at, id LIMIT $5"
            }
            (Self::Refusals, Whose::Of(_)) => {
                "SELECT id, at, false AS kept FROM refusals WHERE at < $1 AND at >= $2 AND (at, id) > ($2, $3)
                 AND business = ANY($4) ORDER BY at, id LIMIT $5"
            }
            (Self::Refusals, Whose::NotOf(_)) => {
                "SELECT id, at, business = ANY($4) AS kept FROM refusals WHERE at < $1 AND at >= $2
                 AND (at, id) > ($2, $3) ORDER BY at, id LIMIT $5"
            }
            (Self::Events, _) => {
                "SELECT id, received_at AS at, (outcome IS NULL AND parked_at IS NULL)
                     OR EXISTS (SELECT 1 FROM calls WHERE calls.id = webhook_events.call_id)
                     OR (spool IS NOT NULL AND EXISTS (SELECT 1 FROM deliveries d
                         WHERE d.event_id = webhook_events.id AND d.due_at IS NOT NULL)) AS kept
                 FROM webhook_events WHERE received_at < $1 AND received_at >= $2
                 AND (received_at, id) > ($2, $3) AND $4::text[] IS NOT NULL ORDER BY received_at, id LIMIT $5"
            }
            (Self::Deliveries, _) => {
                "SELECT d.id, 0::bigint AS at, d.due_at IS NOT NULL OR coalesce(e.received_at, d.noted_at, 0) >= $1
                     OR EXISTS (SELECT 1 FROM calls WHERE calls.id = coalesce(d.call_id, e.call_id))
             OR (d.own AND EXISTS (SELECT 1 FROM refusals r WHERE r.id = substr(d.event_id, length($6) + 1))) AS kept
                 FROM deliveries d LEFT JOIN webhook_events e ON e.id = d.event_id
                 WHERE d.id > $3 AND $2 = 0::bigint AND $4::text[] IS NOT NULL ORDER BY d.id LIMIT $5"
            }
        };
        let named = match &*whose {
            Whose::Of(business) => std::slice::from_ref(business),
            Whose::NotOf(businesses) => businesses,
        };
        let rows = query(sql).bind(before).bind(after.0).bind(after.1).bind(named).bind(i64::from(ROWS));
        let rows = if let Self::Deliveries = self { rows.bind(EVENT) } else { rows };
        let old = |row: &PgRow| Ok(Old { place: (row.try_get("at")?, row.try_get("id")?), kept: row.try_get("kept")? });
        rows.fetch_all(c).await?.iter().map(old).collect()
    }

    async fn forget(self, c: &mut PgConnection, ids: Arc<[String]>) -> Sql<u64> {
        let sql = match self {
            Self::Calls => {
                let gone = forget_calls(c, &ids, false).await?;
                return Ok(gone.calls + gone.events + gone.deliveries);
            }
            Self::Refusals => {
                // What the app was told of them.
                let told = "DELETE FROM deliveries WHERE due_at IS NULL AND event_id IN (SELECT $2 || id FROM unnest($1) AS id)";
                query(told).bind(&*ids).bind(EVENT).execute(&mut *c).await?;
                "DELETE FROM refusals WHERE id = ANY($1)"
            }
            Self::Events => {
                "DELETE FROM webhook_events WHERE id = ANY($1) AND (outcome IS NOT NULL OR parked_at IS NOT NULL)"
            }
            Self::Deliveries => "DELETE FROM deliveries WHERE id = ANY($1) AND due_at IS NULL",
        };
        Ok(query(sql).bind(&*ids).execute(c).await?.rows_affected())
    }
}

async fn delete_some(c: &mut PgConnection, sql: &'static str, before: UnixMs) -> Sql<u64> {
    Ok(query(sql).bind(before).bind(i64::from(ROWS)).execute(c).await?.rows_affected())
}

async fn ended_calls(c: &mut PgConnection, after: Place, until_ms: UnixMs, limit: u32) -> Sql<Vec<EndedCall>> {
    let rows = query(
        "SELECT id, business, ended_at FROM calls WHERE phase = 'ended' AND ended_at <= $1
         AND ended_at >= $2 AND (ended_at, id) > ($2, $3) ORDER BY ended_at, id LIMIT $4",
    );
    let rows = rows.bind(until_ms).bind(after.0).bind(after.1).bind(i64::from(limit)).fetch_all(c).await?;
    let ended = |row: &PgRow| {
        Ok(EndedCall { id: row.try_get("id")?, business: row.try_get("business")?, ended_at: row.try_get("ended_at")? })
    };
    rows.iter().map(ended).collect()
}

/// Redacts some utterances; returns how many there were.
async fn redact_utterances(c: &mut PgConnection, calls: Arc<[String]>, keep: Privacy) -> Sql<u64> {
    let find = match keep {
        Privacy::Keep => return Ok(0),
        Privacy::Hash => {
            "SELECT id, message FROM utterances WHERE call_id = ANY($1) AND NOT redacted LIMIT $2 FOR UPDATE"
        }
        Privacy::None => {
            "SELECT id, message FROM utterances WHERE call_id = ANY($1) AND message <> '' LIMIT $2 FOR UPDATE"
        }
    };
    let rows = query(find).bind(&*calls).bind(i64::from(ROWS)).fetch_all(&mut *c).await?;
    let ids = rows.iter().map(|row| row.try_get("id")).collect::<Sql<Vec<i64>>>()?;
    let texts = rows.iter().map(|row| Ok(text_kept(keep, row.try_get("message")?))).collect::<Sql<Vec<String>>>()?;
    let done = query(
        "UPDATE utterances SET message = one.text, redacted = true
         FROM unnest($1::bigint[], $2::text[]) AS one(id, text) WHERE utterances.id = one.id",
    );
    Ok(done.bind(ids).bind(texts).execute(c).await?.rows_affected())
}

async fn redact_records(c: &mut PgConnection, calls: Arc<[String]>, keep: Privacy) -> Sql<u64> {
    let rows = query(
        "SELECT call_id, transcript_summary, analysis_data, transcript_json FROM call_records WHERE call_id = ANY($1)
         AND (transcript_summary IS NOT NULL OR analysis_data IS NOT NULL OR transcript_json IS NOT NULL) FOR UPDATE",
    );
    let parts = |row: &PgRow| {
        Ok(SaidParts {
            call: row.try_get("call_id")?,
            summary: row.try_get("transcript_summary")?,
            analysis: row.try_get("analysis_data")?,
            transcript: row.try_get("transcript_json")?,
        })
    };
    let found = rows.bind(&*calls).fetch_all(&mut *c).await?.iter().map(parts).collect::<Sql<Vec<_>>>()?;
    let mut changed = 0;
    for kept in found.iter().filter_map(|parts| parts.kept(keep)) {
        let update = query(
            "UPDATE call_records SET transcript_summary = $2, analysis_data = $3, transcript_json = $4 WHERE call_id = $1",
        );
        let update = update.bind(kept.call).bind(kept.summary).bind(kept.analysis).bind(kept.transcript);
        changed += update.execute(&mut *c).await?.rows_affected();
    }
    for sql in [
        "UPDATE webhook_events SET body = NULL WHERE call_id = ANY($1) AND body IS NOT NULL
         AND outcome IS NOT NULL AND waits_id IS NULL",
        "UPDATE deliveries SET body = NULL WHERE call_id = ANY($1) AND body IS NOT NULL AND done_at IS NOT NULL",
        "DELETE FROM create_answers WHERE call_id = ANY($1)",
    ] {
        query(sql).bind(&*calls).execute(&mut *c).await?;
    }
    Ok(changed)
}

impl PostgresStore {
    /// Forgets what of a list is past its age.
    async fn purge_list(&self, list: List, before: UnixMs, whose: Whose) -> Result<u64> {
        let (mut gone, mut after, whose) = (0, Some(Place::default()), Arc::new(whose));
        while let Some(from) = after {
            let of = whose.clone();
            let rows = self.db.read(move |c| Box::pin(list.old(c, of.clone(), before, from.clone()))).await?;
            let (ids, next) = page(rows, ROWS);
            if !ids.is_empty() {
                let ids: Arc<[String]> = ids.into();
                gone += self.db.write(move |c| Box::pin(list.forget(c, ids.clone()))).await?;
            }
            after = next;
        }
        Ok(gone)
    }

    /// Deletes what a statement finds before a time, some at a time.
    async fn purge_some(&self, sql: &'static str, before: UnixMs) -> Result<u64> {
        let mut gone = 0;
        loop {
            let rows = self.db.write(move |c| Box::pin(delete_some(c, sql, before))).await?;
            gone += rows;
            if rows < ROWS.into() {
                return Ok(gone);
            }
        }
    }
}

#[async_trait]
impl Retention for PostgresStore {
    async fn purge(&self, ages: &Ages) -> Result<u64> {
        let early = "DELETE FROM call_aliases WHERE (kind, id) IN
             (SELECT kind, id FROM call_aliases WHERE call_id IS NULL AND seen_at < $1 LIMIT $2)";
        let answers = "DELETE FROM create_answers WHERE (call_id, fingerprint) IN
             (SELECT call_id, fingerprint FROM create_answers WHERE at < $1 LIMIT $2)";
        let audit = "DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE at < $1 LIMIT $2)";
        let mut gone = self.purge_some(early, ages.early_before_ms).await?;
        gone += self.purge_some(answers, ages.answers_before_ms).await?;
        for list in [List::Calls, List::Refusals] {
            for (before, whose) in ages.each() {
                gone += self.purge_list(list, before, whose).await?;
            }
        }
        gone += self.purge_some(audit, ages.before_ms).await?;
        for list in [List::Events, List::Deliveries] {
            gone += self.purge_list(list, ages.before_ms, Whose::NotOf(vec![])).await?;
        }
        Ok(gone)
    }

    async fn ended_calls(&self, after: &Place, until_ms: UnixMs, limit: u32) -> Result<Vec<EndedCall>> {
        let after = after.clone();
        self.db.read(move |c| Box::pin(ended_calls(c, after.clone(), until_ms, limit))).await
    }

    async fn redact(&self, calls: &[String], keep: Privacy) -> Result<u64> {
        if keep == Privacy::Keep {
            return Ok(0);
        }
        let ids: Arc<[String]> = calls.into();
        let records = ids.clone();
        let mut changed = self.db.write(move |c| Box::pin(redact_records(c, records.clone(), keep))).await?;
        loop {
            let calls = ids.clone();
            let some = self.db.write(move |c| Box::pin(redact_utterances(c, calls.clone(), keep))).await?;
            changed += some;
            if some < ROWS.into() {
                return Ok(changed);
            }
        }
    }
}
