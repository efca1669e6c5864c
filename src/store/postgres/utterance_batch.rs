//! Utterances: stored in the inbox, numbered and settled in one transaction of a few statements, however many are batched.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use sqlx::postgres::{PgListener, PgPool};
use sqlx::{PgConnection, Row as _};

use super::super::driver::damaged;
use super::super::queries::calls::calls;
use super::super::queries::messages::{delivery_columns, settled_as};
use super::super::queries::transcripts::utterance_columns;
use super::super::row::Row;
use super::super::rows::{call_id, record};
use super::super::{
    CallRecord, Delivery, EventOutcome, IngestOutcome, NewUtterance, OnSignal, ReceiveOutcome, ReplicaSignal,
    UtteranceIngest, UtteranceRef, tells_more,
};
use super::sql::{Sql, query, to_json};
use crate::ids::{Alias, CallId};

/// Ingests a batch. With `notifies`, other processes are notified.
pub(super) async fn ingest(
    c: &mut PgConnection,
    batch: &[Arc<UtteranceIngest>],
    notifies: bool,
) -> Sql<Vec<IngestOutcome>> {
    let new = receive(c, batch).await?;
    let fresh: Vec<&UtteranceIngest> =
        batch.iter().map(|one| &**one).filter(|one| new.contains(&one.event.id)).collect();
    let records = records(c, &fresh).await?;
    let added = fresh.iter().filter_map(|one| {
        let record = one.aliases.iter().find_map(|alias| records.get(alias))?;
        let is_about = one.by.contradicts(&record.attributes, &record.aliases, &one.aliases).is_none();
        (is_about && !tells_more(record, &one.aliases)).then_some((*one, &record.id))
    });
    let added: Vec<(&UtteranceIngest, &CallId)> = added.collect();
    let said = add_all(c, &added).await?;
    settle(c, &added).await?;
    if notifies {
        let calls = added.iter().map(|(_, call)| call.as_str()).collect::<HashSet<_>>();
        notify_replicas(c, calls.into_iter().collect()).await?;
    }
    let mut added: HashMap<&str, IngestOutcome> = added
        .iter()
        .zip(said)
        .map(|((one, call), said)| (one.event.id.as_str(), IngestOutcome::Whole((*call).clone(), said)))
        .collect();
    let before = before(c, batch, &new).await?;
    let took = |one: &Arc<UtteranceIngest>| match added.remove(one.event.id.as_str()) {
        Some(took) => Ok(took),
        None if new.contains(&one.event.id) => Ok(IngestOutcome::Inbox(ReceiveOutcome::New)),
        None => {
            let took = one.event.dedupe_key.as_ref().and_then(|key| before.get(key)).cloned();
            took.ok_or_else(|| damaged("the row of an earlier webhook is missing").into())
        }
    };
    batch.iter().map(took).collect()
}

/// Stores webhooks in the inbox. Returns the ids of new ones.
async fn receive(c: &mut PgConnection, batch: &[Arc<UtteranceIngest>]) -> Sql<HashSet<String>> {
    let mut events: Vec<_> = batch.iter().map(|one| &one.event).collect();
    // In a fixed order, to prevent deadlocks.
    events.sort_by(|a, b| a.dedupe_key.cmp(&b.dedupe_key));
    let headers = events.iter().map(|e| to_json(&e.headers)).collect::<Sql<Vec<_>>>()?;
    let rows = query(
        "INSERT INTO webhook_events (id, account, webhook, event, dedupe_key, received_at, method, path, headers, body, spool)
         SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[], $8::text[],
             $9::text[], $10::bytea[], $11::text[])
         ON CONFLICT (dedupe_key) DO NOTHING RETURNING id",
    )
    .bind(events.iter().map(|e| e.id.as_str()).collect::<Vec<_>>())
    .bind(events.iter().map(|e| e.account.as_str()).collect::<Vec<_>>())
    .bind(events.iter().map(|e| e.webhook.as_str()).collect::<Vec<_>>())
    .bind(events.iter().map(|e| e.event.as_str()).collect::<Vec<_>>())
    .bind(events.iter().map(|e| e.dedupe_key.as_deref()).collect::<Vec<_>>())
    .bind(events.iter().map(|e| e.received_at).collect::<Vec<_>>())
    .bind(events.iter().map(|e| e.method.as_str()).collect::<Vec<_>>())
    .bind(events.iter().map(|e| e.path.as_str()).collect::<Vec<_>>())
    .bind(headers)
    .bind(events.iter().map(|e| e.body.as_deref()).collect::<Vec<_>>())
    .bind(events.iter().map(|e| e.spool.as_deref()).collect::<Vec<_>>())
    .fetch_all(c)
    .await?;
    rows.iter().map(|row| row.try_get("id")).collect()
}

/// The records of the calls that have these ids, by id. They cannot be deleted until the transaction ends.
async fn records(c: &mut PgConnection, batch: &[&UtteranceIngest]) -> Sql<HashMap<Alias, Arc<CallRecord>>> {
    let ids: HashSet<&Alias> = batch.iter().flat_map(|one| &one.aliases).collect();
    let mut found = HashMap::new();
    if ids.is_empty() {
        return Ok(found);
    }
    let rows = query(calls!(
        "WHERE c.id IN (SELECT call_id FROM call_aliases WHERE (kind, id) IN (SELECT * FROM unnest($1::text[], $2::text[])))
         ORDER BY c.id FOR KEY SHARE OF c"
    ))
    .bind(ids.iter().map(|alias| alias.kind.as_str()).collect::<Vec<_>>())
    .bind(ids.iter().map(|alias| alias.id.as_str()).collect::<Vec<_>>())
    .fetch_all(c)
    .await?;
    for row in rows {
        let record = Arc::new(record(&Row::Postgres(row))?);
        found.extend(record.aliases.iter().map(|alias| (alias.clone(), record.clone())));
    }
    Ok(found)
}

/// Stores the utterances of new webhooks, under the next numbers of their calls, in this order.
async fn add_all(c: &mut PgConnection, added: &[(&UtteranceIngest, &CallId)]) -> Sql<Vec<UtteranceRef>> {
    if added.is_empty() {
        return Ok(vec![]);
    }
    let mut counts = BTreeMap::<&str, i64>::new();
    for (_, call) in added {
        *counts.entry(call.as_str()).or_default() += 1;
    }
    let (calls, more): (Vec<&str>, Vec<i64>) = counts.iter().unzip();
    // In the order of the calls, as others do.
    let rows = query(
        "INSERT INTO transcripts AS t (call_id, last_sequence)
             SELECT * FROM unnest($1::text[], $2::bigint[])
         ON CONFLICT (call_id) DO UPDATE SET last_sequence = t.last_sequence + excluded.last_sequence
         RETURNING call_id, last_sequence",
    );
    let mut last = HashMap::<String, i64>::new();
    for row in rows.bind(calls).bind(more).fetch_all(&mut *c).await? {
        let (call, reached): (String, i64) = (row.try_get("call_id")?, row.try_get("last_sequence")?);
        let before = reached - counts.get(call.as_str()).copied().unwrap_or_default();
        last.insert(call, before);
    }
    let number = |(_, call): &(&UtteranceIngest, &CallId)| {
        let last = last.get_mut(call.as_str()).ok_or_else(|| damaged("a call has no last number"))?;
        *last += 1;
        Ok(*last)
    };
    let numbers = added.iter().map(number).collect::<Sql<Vec<i64>>>()?;
    let rows = query(concat!(
        "INSERT INTO utterances (",
        utterance_columns!(),
        ") SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::text[],
             $9::bigint[])
         RETURNING event_id, id"
    ))
    .bind(added.iter().map(|(_, call)| call.as_str()).collect::<Vec<_>>())
    .bind(&numbers)
    .bind(added.iter().map(|(one, _)| one.said.event_id.as_str()).collect::<Vec<_>>())
    .bind(added.iter().map(|(one, _)| one.said.speaker.as_str()).collect::<Vec<_>>())
    .bind(added.iter().map(|(one, _)| one.said.text.as_str()).collect::<Vec<_>>())
    .bind(added.iter().map(|(one, _)| one.said.said_at.as_str()).collect::<Vec<_>>())
    .bind(added.iter().map(|(one, _)| one.said.source_sequence).collect::<Vec<_>>())
    .bind(added.iter().map(|(one, _)| one.said.source.as_deref()).collect::<Vec<_>>())
    .bind(added.iter().map(|(one, _)| one.said.at_ms).collect::<Vec<_>>())
    .fetch_all(c)
    .await?;
    let ids = rows.iter().map(|row| Ok((row.try_get("event_id")?, row.try_get("id")?)));
    let ids = ids.collect::<Sql<HashMap<String, i64>>>()?;
    let said = added.iter().zip(numbers).map(|((one, _), sequence)| {
        let id = ids.get(&one.said.event_id).copied().ok_or_else(|| damaged("an utterance has no id"))?;
        Ok(UtteranceRef { id, sequence })
    });
    said.collect()
}

/// Records the outcome of new webhooks, and their deliveries.
async fn settle(c: &mut PgConnection, added: &[(&UtteranceIngest, &CallId)]) -> Sql<()> {
    if added.is_empty() {
        return Ok(());
    }
    query(
        "UPDATE webhook_events SET outcome = $3, call_id = t.call_id
         FROM unnest($1::text[], $2::text[]) AS t(id, call_id) WHERE webhook_events.id = t.id",
    )
    .bind(added.iter().map(|(one, _)| one.event.id.as_str()).collect::<Vec<_>>())
    .bind(added.iter().map(|(_, call)| call.as_str()).collect::<Vec<_>>())
    .bind(EventOutcome::Recorded.as_str())
    .execute(&mut *c)
    .await?;
    let told: Vec<(&Delivery, &UtteranceIngest, &CallId)> =
        added.iter().filter_map(|(one, call)| Some((one.delivery.as_ref()?, *one, *call))).collect();
    if told.is_empty() {
        return Ok(());
    }
    let headers = told.iter().map(|(one, ..)| to_json(&one.headers)).collect::<Sql<Vec<_>>>()?;
    query(concat!(
        "INSERT INTO deliveries (",
        delivery_columns!(),
        ") SELECT id, event_id, url, method, headers, body, attempts, at, call_id, at, spool, route
         FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bytea[], $7::bigint[], $8::text[],
             $9::bigint[], $10::text[], $11::text[])
             WITH ORDINALITY AS t(id, event_id, url, method, headers, body, at, call_id, attempts, spool, route, n) ORDER BY n"
    ))
    .bind(told.iter().map(|(one, ..)| one.id.as_str()).collect::<Vec<_>>())
    .bind(told.iter().map(|(one, ..)| one.event_id.as_str()).collect::<Vec<_>>())
    .bind(told.iter().map(|(one, ..)| one.url.as_str()).collect::<Vec<_>>())
    .bind(told.iter().map(|(one, ..)| one.method.as_str()).collect::<Vec<_>>())
    .bind(headers)
    .bind(told.iter().map(|(one, ..)| one.spool.is_none().then_some(&one.body[..])).collect::<Vec<_>>())
    .bind(told.iter().map(|(_, one, _)| one.said.at_ms).collect::<Vec<_>>())
    .bind(told.iter().map(|(.., call)| call.as_str()).collect::<Vec<_>>())
    .bind(told.iter().map(|(one, ..)| i64::from(one.attempts)).collect::<Vec<_>>())
    .bind(told.iter().map(|(one, ..)| one.spool.as_deref()).collect::<Vec<_>>())
    .bind(told.iter().map(|(one, ..)| one.route.as_str()).collect::<Vec<_>>())
    .execute(c)
    .await
    .map(drop)
}

/// The outcome of webhooks that were stored before, by their deduplication key; also in this transaction.
async fn before(
    c: &mut PgConnection,
    batch: &[Arc<UtteranceIngest>],
    new: &HashSet<String>,
) -> Sql<HashMap<String, IngestOutcome>> {
    let events = batch.iter().map(|one| &one.event).filter(|event| !new.contains(&event.id));
    let keys: Vec<&str> = events.filter_map(|event| event.dedupe_key.as_deref()).collect();
    if keys.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = query(
        "SELECT e.dedupe_key, e.id, e.outcome, u.call_id, u.id AS said, u.sequence
         FROM webhook_events e LEFT JOIN utterances u ON u.event_id = e.id WHERE e.dedupe_key = ANY($1)",
    );
    let mut before = HashMap::new();
    for row in rows.bind(keys).fetch_all(c).await? {
        let outcome: Option<&str> = row.try_get("outcome")?;
        let outcome = outcome.map(settled_as);
        let call: Option<String> = row.try_get("call_id")?;
        let took = match call.filter(|_| outcome.is_some()) {
            Some(call) => IngestOutcome::Before(
                call_id(&call)?,
                UtteranceRef { id: row.try_get("said")?, sequence: row.try_get("sequence")? },
            ),
            None => IngestOutcome::Inbox(ReceiveOutcome::Before { id: row.try_get("id")?, outcome }),
        };
        before.insert(row.try_get("dedupe_key")?, took);
    }
    Ok(before)
}

/// The channel on which processes notify each other of calls.
const CALLS_CHANNEL: &str = "ringfence_calls";

/// The channel on which processes notify each other that something may be dialled, with a word that names the sender.
const DIAL_CHANNEL: &str = "ringfence_dial";

/// Locks the numbering of a call until the transaction ends.
async fn lock(c: &mut PgConnection, call: &CallId) -> Sql<()> {
    let lock = "SELECT 1 FROM transcripts WHERE call_id = $1 FOR UPDATE";
    if query(lock).bind(call.as_str()).fetch_optional(&mut *c).await?.is_none() {
        let first = "INSERT INTO transcripts (call_id, last_sequence) VALUES ($1, 0) ON CONFLICT DO NOTHING";
        query(first).bind(call.as_str()).execute(&mut *c).await?;
        query(lock).bind(call.as_str()).execute(c).await?;
    }
    Ok(())
}

/// Stores an utterance.
pub(super) async fn add(
    c: &mut PgConnection,
    call: &CallId,
    said: &NewUtterance,
    notifies: bool,
) -> Sql<Option<UtteranceRef>> {
    // The lock prevents its deletion meanwhile.
    let there = query("SELECT 1 FROM calls WHERE id = $1 FOR KEY SHARE").bind(call.as_str());
    if there.fetch_optional(&mut *c).await?.is_none() {
        return Ok(None);
    }
    lock(c, call).await?;
    // A separate statement, so that it sees what the previous one waited for.
    let row = query(concat!(
        "WITH before AS (SELECT id, sequence FROM utterances WHERE event_id = $2),
         next AS (UPDATE transcripts SET last_sequence = last_sequence + 1
             WHERE call_id = $1 AND NOT EXISTS (SELECT 1 FROM before) RETURNING last_sequence),
         new AS (INSERT INTO utterances (",
        utterance_columns!(),
        ") SELECT $1, last_sequence, $2, $3, $4, $5, $6, $7, $8 FROM next RETURNING id, sequence)
         SELECT id, sequence FROM before UNION ALL SELECT id, sequence FROM new"
    ))
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
    if notifies {
        notify_replicas(c, vec![call.as_str()]).await?;
    }
    Ok(Some(UtteranceRef { id: row.try_get("id")?, sequence: row.try_get("sequence")? }))
}

async fn notify_replicas(c: &mut PgConnection, calls: Vec<&str>) -> Sql<()> {
    query("SELECT pg_notify($1, call) FROM unnest($2::text[]) AS call")
        .bind(CALLS_CHANNEL)
        .bind(calls)
        .execute(c)
        .await
        .map(drop)
}

/// Notifies the diallers of other processes.
pub(super) async fn wake_remote_diallers(c: &mut PgConnection, me: &str) -> Sql<()> {
    query("SELECT pg_notify($1, $2)").bind(DIAL_CHANNEL).bind(me).execute(c).await.map(drop)
}

/// Calls `on_signal` for what other processes notify of, until that fails. `me`: this process's word on [`DIAL_CHANNEL`].
pub(super) async fn listen(pool: &PgPool, me: &str, on_signal: OnSignal) -> Sql<()> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen_all([CALLS_CHANNEL, DIAL_CHANNEL]).await?;
    loop {
        let signal = listener.recv().await?;
        match signal.channel() {
            DIAL_CHANNEL if signal.payload() != me => on_signal(ReplicaSignal::Dial),
            DIAL_CHANNEL => {}
            _ => {
                if let Some(call) = CallId::parse(signal.payload()) {
                    on_signal(ReplicaSignal::Call(&call));
                }
            }
        }
    }
}
