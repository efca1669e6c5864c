//! Calls and their ids.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Postgres, QueryBuilder, Row as _};

use super::super::decide::decide;
use super::super::rows::{Sql, alias, call_id, facts, json, readable, record};
use super::super::told;
use super::super::voucher::{Early, heed, remember};
use super::super::{Applied, CallRecord, Change, KEY_KIND, NewCall, Opened, Voucher};
use super::{answers, lock_call, lock_ids, prepared, query, records, replicas};
use crate::call::{Event, Outcome, Phase, stronger};
use crate::clock::UnixMs;
use crate::ids::{AccountName, Alias, CallId};
use crate::policy::Facts;
use crate::provider::description::OWN_ID_KIND;

pub(super) fn to_json(value: &impl serde::Serialize) -> Sql<String> {
    serde_json::to_string(value).map_err(|e| sqlx::Error::Encode(e.into()))
}

pub(super) async fn one(c: &mut PgConnection, id: &CallId) -> Sql<Option<CallRecord>> {
    // One statement, and so one trip to the server: a row an id, or one row without.
    let rows = query(
        "SELECT c.*, a.kind AS alias_kind, a.id AS alias_id FROM calls c LEFT JOIN call_aliases a ON a.call_id = c.id
         WHERE c.id = $1 ORDER BY a.kind, a.id",
    )
    .bind(id.as_str())
    .fetch_all(&mut *c)
    .await?;
    let Some(first) = rows.first() else { return Ok(None) };
    let mut aliases = Vec::with_capacity(rows.len());
    for row in &rows {
        if let Some(kind) = row.try_get("alias_kind")? {
            aliases.push(Alias { kind, id: row.try_get("alias_id")? });
        }
    }
    record(first, aliases).map(Some)
}

/// Who has an alias: a call, or news that waits.
enum Holder {
    Nobody,
    Call(CallId),
    News(Vec<Early>),
}

async fn holder(c: &mut PgConnection, alias: &Alias) -> Sql<Holder> {
    let row = query("SELECT call_id, early FROM call_aliases WHERE kind = $1 AND id = $2")
        .bind(&alias.kind)
        .bind(&alias.id)
        .fetch_optional(c)
        .await?;
    let Some(row) = row else { return Ok(Holder::Nobody) };
    if let Some(id) = row.try_get::<Option<String>, _>("call_id")? {
        return call_id(&id).map(Holder::Call);
    }
    Ok(json(row.try_get("early")?)?.map_or(Holder::Nobody, Holder::News))
}

async fn bind_alias(c: &mut PgConnection, alias: &Alias, call: &CallId, at_ms: UnixMs) -> Sql<()> {
    query(
        "INSERT INTO call_aliases (kind, id, call_id, early, seen_at) VALUES ($1, $2, $3, NULL, $4)
         ON CONFLICT (kind, id) DO UPDATE SET call_id = excluded.call_id, early = NULL",
    )
    .bind(&alias.kind)
    .bind(&alias.id)
    .bind(call.as_str())
    .bind(at_ms)
    .execute(c)
    .await?;
    Ok(())
}

/// Binds ids to a call. Returns the news that waited under them, and ids that another call has.
async fn bind_all(
    c: &mut PgConnection,
    aliases: &[Alias],
    call: &CallId,
    at_ms: UnixMs,
    (facts, known): (&Facts, &[Alias]),
) -> Sql<(Option<Event>, Vec<(Alias, CallId)>)> {
    let (mut news, mut conflicts) = (None, Vec::new());
    if aliases.is_empty() {
        return Ok((news, conflicts));
    }
    let mut insert = QueryBuilder::<Postgres>::new("INSERT INTO call_aliases (kind, id, call_id, seen_at) ");
    insert.push_values(aliases, |mut row, alias| {
        row.push_bind(&alias.kind).push_bind(&alias.id).push_bind(call.as_str()).push_bind(at_ms);
    });
    let inserted =
        insert.push(" ON CONFLICT DO NOTHING").build().persistent(prepared()).execute(&mut *c).await?.rows_affected();
    if inserted == aliases.len() as u64 {
        // As nearly always, nobody had any of them.
        return Ok((news, conflicts));
    }
    for alias in aliases {
        match holder(c, alias).await? {
            Holder::Call(other) if other == *call => continue,
            Holder::Call(other) => {
                conflicts.push((alias.clone(), other));
                continue;
            }
            Holder::News(waiting) => news = news.into_iter().chain(heed(&waiting, facts, known)).reduce(stronger),
            Holder::Nobody => {}
        }
        bind_alias(c, alias, call, at_ms).await?;
    }
    Ok((news, conflicts))
}

/// Whether a call's order was proven to have made none.
async fn never_called(c: &mut PgConnection, call: &CallId) -> Sql<bool> {
    let row = query("SELECT outcome FROM calls WHERE id = $1").bind(call.as_str()).fetch_optional(c).await?;
    // A call whose record is past its retention is as good as none.
    let Some(row) = row else { return Ok(true) };
    Ok(row.try_get::<Option<String>, _>("outcome")?.as_deref() == Some(Outcome::NotCreated.as_str()))
}

/// An id of our own kind: that of the first record of the same call.
pub(super) fn is_own(alias: &Alias) -> bool {
    alias.kind == OWN_ID_KIND
}

/// Whose the ids of a new call are.
pub(super) enum Claim {
    /// They are this call's.
    Known(CallId),
    /// They may be the new one's. These keys are still bound to orders that made no call.
    Free(Vec<Alias>),
}

/// With the ids locked.
pub(super) async fn claim(c: &mut PgConnection, aliases: &[Alias]) -> Sql<Claim> {
    let mut freed = Vec::new();
    for alias in aliases {
        if let Holder::Call(known) = holder(c, alias).await? {
            // The key of an order that made no call is free again.
            if alias.kind != KEY_KIND || !never_called(c, &known).await? {
                return Ok(Claim::Known(known));
            }
            freed.push(alias.clone());
        }
    }
    Ok(Claim::Free(freed))
}

pub(super) async fn open(c: &mut PgConnection, call: NewCall) -> Sql<Opened> {
    lock_ids(c, &call.aliases).await?;
    let freed = match claim(c, &call.aliases).await? {
        Claim::Known(known) => return Ok(Opened::Known(known)),
        Claim::Free(freed) => freed,
    };
    let f = &call.facts;
    query(
        "INSERT INTO calls (id, business, plan, account, provider, direction, operation, agent, own_number, other_number,
             origin, phase, overrun, admitted_at, phase_at, deadline_at, answered_at, seen_at, seen_by, callback, carrier, polled,
             places, fingerprint, keys, replica)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $14, $15, $16, $14, $18, $17, $19, $20, $21, $22,
             $23, $24)",
    )
    .bind(call.id.as_str())
    .bind(f.business.as_str())
    .bind(&f.plan)
    .bind(f.account.as_str())
    .bind(&f.provider)
    .bind(f.direction.as_str())
    .bind(&f.operation)
    .bind(&f.agent)
    .bind(&f.own_number)
    .bind(&f.other_number)
    .bind(call.origin.as_str())
    .bind(call.phase.as_str())
    .bind(call.overrun)
    .bind(call.at_ms)
    .bind(call.deadline_at)
    .bind((call.phase == Phase::Live).then_some(call.at_ms))
    .bind(call.callback.as_ref().map(to_json).transpose()?)
    .bind(call.origin.as_str())
    .bind(f.carrier.as_ref().map(AccountName::as_str))
    .bind(call.polled)
    .bind(i64::from(call.places))
    .bind(&call.fingerprint)
    .bind(&call.keys)
    .bind(&call.replica)
    .execute(&mut *c)
    .await?;
    let news = claimed(c, &call, &freed).await?;
    records::tell(c, &told::opened(&call, call.places, call.at_ms)).await?;
    Ok(Opened::New(news))
}

/// Binds the ids of a call that was just written. Returns the news that waited under them.
pub(super) async fn claimed(c: &mut PgConnection, call: &NewCall, freed: &[Alias]) -> Sql<Option<Event>> {
    for alias in freed {
        query("DELETE FROM call_aliases WHERE kind = $1 AND id = $2")
            .bind(&alias.kind)
            .bind(&alias.id)
            .execute(&mut *c)
            .await?;
    }
    // The second record of a call: from now on the outside ids lead to it.
    for first in call.aliases.iter().filter(|a| is_own(a)) {
        query("UPDATE call_aliases SET call_id = $1 WHERE call_id = $2")
            .bind(call.id.as_str())
            .bind(&first.id)
            .execute(&mut *c)
            .await?;
    }
    let of = (&call.facts, &call.aliases[..]);
    bind_all(c, &call.aliases, &call.id, call.at_ms, of).await.map(|(news, _)| news)
}

pub(super) async fn apply(c: &mut PgConnection, change: Change) -> Sql<Option<Applied>> {
    lock_ids(c, &change.bind).await?;
    lock_call(c, &change.call).await?;
    let Some(mut record) = one(c, &change.call).await? else { return Ok(None) };
    if let Some(what) = change.contradiction(&record) {
        return Ok(Some(Applied::contradicted(record, what)));
    }
    let of = (&record.facts, &record.aliases[..]);
    let (news, conflicts) = bind_all(c, &change.bind, &change.call, change.at_ms, of).await?;
    let (step, ended_a_part) = decide(&mut record, &change, news);
    update(c, &record).await?;
    if let Some(answer) = &change.answer {
        answers::keep(c, &change.call, answer, change.at_ms).await?;
    }
    if let Some(me) = change.untold_by {
        replicas::undelivered(c, change.call, me).await?;
    }
    record
        .aliases
        .extend(change.bind.into_iter().filter(|a| !conflicts.iter().any(|(other, _)| other == a)).collect::<Vec<_>>());
    record.aliases.sort();
    record.aliases.dedup();
    if change.tell
        && let Some(told) = told::stepped(&record, step, change.at_ms)
    {
        records::tell(c, &[told]).await?;
    }
    Ok(Some(Applied { step, record, conflicts, contradiction: None, ended_a_part }))
}

async fn update(c: &mut PgConnection, record: &CallRecord) -> Sql<()> {
    query(
        "UPDATE calls SET phase = $2, outcome = $3, proof = $4, overrun = $5, unsettled = $6, phase_at = $7,
             deadline_at = $8, answered_at = $9, ended_at = $10, seen_at = $11, seen_by = $12, absent_at = $13
         WHERE id = $1",
    )
    .bind(record.id.as_str())
    .bind(record.phase.as_str())
    .bind(record.outcome.map(|o| o.as_str()))
    .bind(record.proof.map(|p| p.as_str()))
    .bind(record.overrun)
    .bind(record.unsettled)
    .bind(record.phase_at)
    .bind(record.deadline_at)
    .bind(record.answered_at)
    .bind(record.ended_at)
    .bind(record.seen_at)
    .bind(&record.seen_by)
    .bind(record.absent_at)
    .execute(c)
    .await?;
    Ok(())
}

pub(super) async fn keep_early(
    c: &mut PgConnection,
    aliases: Vec<Alias>,
    event: Event,
    by: Option<Voucher>,
    at_ms: UnixMs,
) -> Sql<Option<CallId>> {
    lock_ids(c, &aliases).await?;
    if let Some(known) = resolve(c, &aliases).await? {
        return Ok(Some(known));
    }
    for alias in &aliases {
        let before = match holder(c, alias).await? {
            Holder::News(before) => before,
            _ => vec![],
        };
        let waiting = remember(before, event, by.as_ref());
        query(
            "INSERT INTO call_aliases (kind, id, call_id, early, seen_at) VALUES ($1, $2, NULL, $3, $4)
             ON CONFLICT (kind, id) DO UPDATE SET early = excluded.early, seen_at = excluded.seen_at",
        )
        .bind(&alias.kind)
        .bind(&alias.id)
        .bind(to_json(&waiting)?)
        .bind(at_ms)
        .execute(&mut *c)
        .await?;
    }
    Ok(None)
}

pub(super) async fn resolve(c: &mut PgConnection, aliases: &[Alias]) -> Sql<Option<CallId>> {
    for alias in aliases {
        if let Holder::Call(id) = holder(c, alias).await? {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

/// In a transaction that sees one state.
pub(super) async fn open_calls(c: &mut PgConnection) -> Sql<Vec<CallRecord>> {
    let calls = query("SELECT * FROM calls WHERE phase <> 'ended' ORDER BY admitted_at, id").fetch_all(&mut *c).await?;
    let aliases = query(
        "SELECT a.call_id, a.kind, a.id FROM call_aliases a JOIN calls c ON c.id = a.call_id WHERE c.phase <> 'ended'
         ORDER BY a.kind, a.id",
    );
    together(&calls, &aliases.fetch_all(&mut *c).await?)?.into_iter().collect()
}

/// In a transaction that sees one state.
pub(super) async fn unanswered_orders(c: &mut PgConnection, account: &str, kind: &str) -> Sql<Vec<CallRecord>> {
    let rows = query(
        "SELECT c.id FROM calls c
         WHERE c.phase <> 'ended' AND c.account = $1 AND c.origin = 'order' AND c.direction = 'outbound'
         AND NOT EXISTS (SELECT 1 FROM call_aliases a WHERE a.call_id = c.id AND a.kind = $2)",
    );
    let mut orders = Vec::new();
    for row in rows.bind(account).bind(kind).fetch_all(&mut *c).await? {
        orders.extend(one(c, &call_id(row.try_get("id")?)?).await?);
    }
    Ok(orders)
}

/// In a transaction that sees one state.
pub(super) async fn latest(c: &mut PgConnection, limit: u32) -> Sql<Vec<CallRecord>> {
    let limit = i64::from(limit);
    let calls = query("SELECT * FROM calls ORDER BY admitted_at DESC, id DESC LIMIT $1").bind(limit);
    let calls = calls.fetch_all(&mut *c).await?;
    let aliases = query(
        "SELECT call_id, kind, id FROM call_aliases
         WHERE call_id IN (SELECT id FROM calls ORDER BY admitted_at DESC, id DESC LIMIT $1) ORDER BY kind, id",
    )
    .bind(limit);
    together(&calls, &aliases.fetch_all(&mut *c).await?).map(readable)
}

/// Records and their ids.
fn together(calls: &[PgRow], aliases: &[PgRow]) -> Sql<Vec<Sql<CallRecord>>> {
    let mut of_call = std::collections::HashMap::<String, Vec<Alias>>::new();
    for row in aliases {
        of_call.entry(row.try_get("call_id")?).or_default().push(alias(row)?);
    }
    let records = calls.iter().map(|row| {
        let id: String = row.try_get("id")?;
        record(row, of_call.remove(&id).unwrap_or_default())
    });
    Ok(records.collect())
}

pub(super) async fn admitted_since(c: &mut PgConnection, since_ms: UnixMs) -> Sql<Vec<(UnixMs, Facts)>> {
    let rows = query(
        "SELECT * FROM calls WHERE admitted_at >= $1 AND origin NOT IN ('foreign', 'unconfirmed') AND NOT overrun ORDER BY admitted_at",
    )
    .bind(since_ms)
    .fetch_all(c)
    .await?;
    Ok(readable(rows.iter().map(|row| Sql::Ok((row.try_get("admitted_at")?, facts(row)?)))))
}
