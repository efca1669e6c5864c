//! Transcripts.

use async_trait::async_trait;

use super::super::driver::{Backend, binds};
use super::super::rows::{business_and_id, position, utterance};
use super::super::{
    IngestOutcome, NewUtterance, OnSignal, Result, Transcripts, Utterance, UtteranceIngest, UtterancePosition,
    UtteranceRef,
};
use crate::clock::UnixMs;
use crate::ids::CallId;

/// The columns of a new row of `utterances`. Each database writes it itself: Postgres by what it has locked, and many at once.
macro_rules! utterance_columns {
    () => {
        "call_id, sequence, event_id, speaker, message, said_at, source_sequence, source, heard_at"
    };
}
pub(in crate::store) use utterance_columns;

#[async_trait]
impl<B: Backend> Transcripts for B {
    async fn add_utterance(&self, call: &CallId, said: NewUtterance) -> Result<Option<UtteranceRef>> {
        self.put_utterance(call, said).await
    }

    async fn ingest(&self, ingested: UtteranceIngest) -> Result<IngestOutcome> {
        self.ingest_utterance(ingested).await
    }

    async fn utterances(&self, call: &CallId, after: i64, limit: u32) -> Result<Vec<Utterance>> {
        let sql = "SELECT * FROM utterances WHERE call_id = $1 AND sequence > $2 ORDER BY sequence LIMIT $3";
        self.select(sql, binds![call.to_string(), after, limit].into(), utterance).await
    }

    async fn last_sequence(&self, call: &CallId) -> Result<i64> {
        let sql = "SELECT last_sequence FROM transcripts WHERE call_id = $1";
        let last = self.select(sql, binds![call.to_string()].into(), |row| row.number("last_sequence")).await?;
        Ok(last.first().copied().unwrap_or(0))
    }

    async fn listen(&self, on_signal: OnSignal) {
        self.listen_for_signals(on_signal).await;
    }

    async fn wake_remote_diallers(&self) -> Result<()> {
        Backend::wake_remote_diallers(self).await
    }

    async fn calls_of(
        &self,
        businesses: &[String],
        ended_since_ms: UnixMs,
        latest: u32,
    ) -> Result<Vec<(String, CallId)>> {
        let sql =
            "SELECT business, id FROM calls /*+ INDEXED BY calls_open */ WHERE phase <> 'ended' AND business = ANY($1)
             UNION ALL SELECT business, id FROM
                 (SELECT business, id, phase, ended_at FROM calls ORDER BY admitted_at DESC, id DESC LIMIT $3) AS latest
             WHERE phase = 'ended' AND ended_at >= $2 AND business = ANY($1)";
        self.select(sql, binds![businesses.to_vec(), ended_since_ms, latest].into(), business_and_id).await
    }

    async fn positions(&self, calls: &[CallId]) -> Result<Vec<UtterancePosition>> {
        let sql = "SELECT c.id, coalesce(t.last_sequence, 0) AS last_sequence, c.seen_at, c.phase, r.recorded_at
             FROM calls c LEFT JOIN transcripts t ON t.call_id = c.id LEFT JOIN call_records r ON r.call_id = c.id
             WHERE c.id = ANY($1)";
        let ids: Vec<String> = calls.iter().map(ToString::to_string).collect();
        self.select(sql, binds![ids].into(), position).await
    }
}
