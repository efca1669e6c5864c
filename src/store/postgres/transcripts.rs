//! What was said in calls.

use std::sync::atomic::Ordering;

use async_trait::async_trait;
use sqlx::postgres::PgListener;
use sqlx::{PgConnection, Row as _};
use tracing::warn;

use super::super::rows::{business_and_id, standing, utterance};
use super::super::{NewUtterance, Result, Ring, Said, Speech, Standing, Took, Transcripts, Utterance};
use super::{PostgresStore, Sql, query};
use crate::clock::UnixMs;
use crate::ids::CallId;

/// Where processes over one record tell each other of calls.
const BELLS: &str = "ringfence_calls";

/// Keeps others from giving out numbers of a call until the transaction ends.
async fn lock(c: &mut PgConnection, call: &CallId) -> Sql<()> {
    let lock = "SELECT 1 FROM transcripts WHERE call_id = $1 FOR UPDATE";
    if query(lock).bind(call.as_str()).fetch_optional(&mut *c).await?.is_none() {
        let first = "INSERT INTO transcripts (call_id, last_sequence) VALUES ($1, 0) ON CONFLICT DO NOTHING";
        query(first).bind(call.as_str()).execute(&mut *c).await?;
        query(lock).bind(call.as_str()).execute(c).await?;
    }
    Ok(())
}

async fn say(c: &mut PgConnection, call: CallId, said: NewUtterance, tell: bool) -> Sql<Option<Said>> {
    // It is not deleted meanwhile.
    let there = query("SELECT 1 FROM calls WHERE id = $1 FOR KEY SHARE").bind(call.as_str());
    if there.fetch_optional(&mut *c).await?.is_none() {
        return Ok(None);
    }
    lock(c, &call).await?;
    // A statement of its own, so that it sees what the one before it waited for.
    let row = query(
        "WITH before AS (SELECT id, sequence FROM utterances WHERE event_id = $2),
         next AS (UPDATE transcripts SET last_sequence = last_sequence + 1
             WHERE call_id = $1 AND NOT EXISTS (SELECT 1 FROM before) RETURNING last_sequence),
         new AS (INSERT INTO utterances (call_id, sequence, event_id, speaker, message, said_at, source_sequence, source, heard_at)
             SELECT $1, last_sequence, $2, $3, $4, $5, $6, $7, $8 FROM next RETURNING id, sequence)
         SELECT id, sequence FROM before UNION ALL SELECT id, sequence FROM new",
    )
    .bind(call.as_str())
    .bind(&said.event_id)
    .bind(said.speaker.as_str())
    .bind(&said.text)
    .bind(&said.said_at)
    .bind(said.source_sequence)
    .bind(&said.source)
    .bind(said.at_ms)
    .fetch_one(&mut *c)
    .await?;
    if tell {
        ring_others(c, vec![call.as_str()]).await?;
    }
    Ok(Some(Said { id: row.try_get("id")?, sequence: row.try_get("sequence")? }))
}

pub(super) async fn ring_others(c: &mut PgConnection, calls: Vec<&str>) -> Sql<()> {
    query("SELECT pg_notify($1, call) FROM unnest($2::text[]) AS call")
        .bind(BELLS)
        .bind(calls)
        .execute(c)
        .await
        .map(drop)
}

async fn utterances(c: &mut PgConnection, call: CallId, after: i64, limit: u32) -> Sql<Vec<Utterance>> {
    let rows = query("SELECT * FROM utterances WHERE call_id = $1 AND sequence > $2 ORDER BY sequence LIMIT $3")
        .bind(call.as_str())
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(c)
        .await?;
    rows.iter().map(utterance).collect()
}

async fn last_sequence(c: &mut PgConnection, call: CallId) -> Sql<i64> {
    let row = query("SELECT last_sequence FROM transcripts WHERE call_id = $1").bind(call.as_str());
    row.fetch_optional(c).await?.map_or(Ok(0), |row| row.try_get("last_sequence"))
}

async fn calls_of(
    c: &mut PgConnection,
    businesses: Vec<String>,
    ended_since_ms: UnixMs,
    latest: u32,
) -> Sql<Vec<(String, CallId)>> {
    let rows = query(
        "SELECT business, id FROM calls WHERE phase <> 'ended' AND business = ANY($1)
         UNION ALL SELECT business, id FROM
             (SELECT business, id, phase, ended_at FROM calls ORDER BY admitted_at DESC, id DESC LIMIT $3) AS latest
         WHERE phase = 'ended' AND ended_at >= $2 AND business = ANY($1)",
    );
    let rows = rows.bind(businesses).bind(ended_since_ms).bind(i64::from(latest)).fetch_all(c).await?;
    rows.iter().map(business_and_id).collect()
}

async fn standings(c: &mut PgConnection, ids: Vec<String>) -> Sql<Vec<Standing>> {
    let rows = query(
        "SELECT c.id, c.phase, c.seen_at, r.recorded_at, coalesce(t.last_sequence, 0) AS last_sequence
         FROM calls c LEFT JOIN transcripts t ON t.call_id = c.id LEFT JOIN call_records r ON r.call_id = c.id
             WHERE c.id = ANY($1)",
    )
    .bind(ids)
    .fetch_all(c)
    .await?;
    rows.iter().map(standing).collect()
}

#[async_trait]
impl Transcripts for PostgresStore {
    async fn say(&self, call: &CallId, said: NewUtterance) -> Result<Option<Said>> {
        let call = call.clone();
        let tell = self.listens.load(Ordering::Relaxed);
        self.db.write(move |c| Box::pin(say(c, call.clone(), said.clone(), tell))).await
    }

    async fn hear(&self, speech: Speech) -> Result<Took> {
        self.speeches.run(speech).await
    }

    async fn utterances(&self, call: &CallId, after: i64, limit: u32) -> Result<Vec<Utterance>> {
        let call = call.clone();
        self.db.read(move |c| Box::pin(utterances(c, call.clone(), after, limit))).await
    }

    async fn last_sequence(&self, call: &CallId) -> Result<i64> {
        let call = call.clone();
        self.db.read(move |c| Box::pin(last_sequence(c, call.clone()))).await
    }

    async fn listen(&self, ring: Ring) {
        // Behind a pooler no session is ours to listen in.
        if !self.db.keeps_sessions() {
            return;
        }
        self.listens.store(true, Ordering::Relaxed);
        let heard = async {
            let mut listener = PgListener::connect_with(&self.db.pool).await?;
            listener.listen(BELLS).await?;
            loop {
                if let Some(call) = CallId::parse(listener.recv().await?.payload()) {
                    ring(&call);
                }
            }
        };
        let stopped: Sql<()> = tokio::select! {
            () = self.db.closed.cancelled() => return,
            stopped = heard => stopped,
        };
        if let Err(error) = stopped {
            warn!(store = %self.db.shown, %error, "other replicas are not heard; what they write is looked for");
        }
    }

    async fn calls_of(
        &self,
        businesses: &[String],
        ended_since_ms: UnixMs,
        latest: u32,
    ) -> Result<Vec<(String, CallId)>> {
        let businesses = businesses.to_vec();
        self.db.read(move |c| Box::pin(calls_of(c, businesses.clone(), ended_since_ms, latest))).await
    }

    async fn standings(&self, calls: &[CallId]) -> Result<Vec<Standing>> {
        let ids: Vec<String> = calls.iter().map(ToString::to_string).collect();
        self.db.read(move |c| Box::pin(standings(c, ids.clone()))).await
    }
}
