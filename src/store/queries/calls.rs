//! Calls.

use super::super::AppNotice;
use super::super::app_events;
use super::super::apply_change::apply_change;
use super::super::driver::{Driver, Sql, binds};
use super::super::rows::record;
use super::super::{ApplyOutcome, CallRecord, Change, ConfirmOutcome, CreateAnswer, InsertOutcome, NewCall};
use super::bindings::{IdOwner, bind_all, bind_new_call, owner_of};
use super::messages::add_app_events;
use super::to_json;
use crate::call::{Event, Phase};
use crate::clock::UnixMs;
use crate::ids::{AccountName, CallId};

/// Calls with their ids, in one statement and so in one snapshot.
macro_rules! calls {
    ($rest:literal) => {
        concat!(
            "SELECT c.*, (SELECT json_agg(json_build_array(kind, id))::text FROM call_aliases WHERE call_id = c.id) AS aliases
             FROM calls c ",
            $rest
        )
    };
}
pub(in crate::store) use calls;

pub(in crate::store) async fn find(c: &mut dyn Driver, id: &CallId) -> Sql<Option<CallRecord>> {
    c.fetch(calls!("WHERE c.id = $1"), &binds![id.as_str()]).await?.first().map(record).transpose()
}

pub(in crate::store) async fn insert(c: &mut dyn Driver, call: &NewCall) -> Sql<InsertOutcome> {
    c.lock_ids(&call.aliases).await?;
    match owner_of(c, &call.aliases).await? {
        IdOwner::Known(known) => Ok(InsertOutcome::Known(known)),
        IdOwner::Free(freed) => {
            let news = write(c, call, &freed, call.at_ms).await?;
            Ok(InsertOutcome::New(news))
        }
    }
}

/// The columns of a new row of `calls`.
macro_rules! call_columns {
    () => {
        "id, business, plan, account, provider, carrier, direction, operation, agent, own_number, other_number, origin, phase,
             over_limit, polled, slots, admitted_at, phase_at, deadline_at, answered_at, seen_at, seen_by, callback, fingerprint,
             keys, replica"
    };
}
pub(in crate::store) use call_columns;

/// Writes a new call and binds its ids. Returns the news that waited under them.
pub(in crate::store) async fn write(
    c: &mut dyn Driver,
    call: &NewCall,
    freed: &[crate::ids::Alias],
    admitted_at: UnixMs,
) -> Sql<Option<Event>> {
    let f = &call.attributes;
    c.execute(
        concat!(
            "INSERT INTO calls (",
            call_columns!(),
            ")
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $18, $12, $21, $22,
             $23, $24)"
        ),
        &binds![
            call.id.as_str(),
            f.business.as_str(),
            &f.plan,
            f.account.as_str(),
            &f.provider,
            f.carrier.as_ref().map(AccountName::as_str),
            f.direction.as_str(),
            &f.operation,
            &f.agent,
            &f.own_number,
            &f.other_number,
            call.origin.as_str(),
            call.phase.as_str(),
            call.over_limit,
            call.polled,
            call.slots,
            admitted_at,
            call.at_ms,
            call.deadline_at,
            (call.phase == Phase::Live).then_some(call.at_ms),
            call.callback.as_ref().map(to_json).transpose()?,
            &call.fingerprint,
            &call.keys,
            &call.replica,
        ],
    )
    .await?;
    let news = bind_new_call(c, call, freed).await?;
    add_app_events(c, &app_events::opened(call, call.slots, admitted_at)).await?;
    Ok(news)
}

pub(super) async fn apply(c: &mut dyn Driver, change: &Change) -> Sql<Option<ApplyOutcome>> {
    c.lock_ids(&change.bind).await?;
    c.lock_calls(&[change.call.as_str()]).await?;
    let Some(mut record) = find(c, &change.call).await? else { return Ok(None) };
    if let Some(what) = change.contradiction(&record) {
        return Ok(Some(ApplyOutcome::contradicted(record, what)));
    }
    let of = (&record.attributes, &record.aliases[..]);
    let (news, conflicts) = bind_all(c, &change.bind, &change.call, change.at_ms, of).await?;
    let (step, ended_leg_only) = apply_change(&mut record, change, news);
    update(c, &record).await?;
    if let Some(answer) = &change.answer {
        keep_answer(c, &change.call, answer, change.at_ms).await?;
    }
    if let Some(me) = &change.reported_unknown_by {
        mark_undelivered(c, &change.call, me).await?;
    }
    record.aliases.extend(change.bind.iter().filter(|a| !conflicts.iter().any(|(other, _)| other == *a)).cloned());
    record.aliases.sort();
    record.aliases.dedup();
    if change.notice == AppNotice::Send
        && let Some(told) = app_events::stepped(&record, step, change.at_ms)
    {
        add_app_events(c, &[told]).await?;
    }
    Ok(Some(ApplyOutcome { step, record, conflicts, contradiction: None, ended_leg_only }))
}

async fn update(c: &mut dyn Driver, record: &CallRecord) -> Sql<()> {
    c.execute(
        "UPDATE calls SET phase = $2, outcome = $3, proof = $4, over_limit = $5, unsettled = $6, phase_at = $7,
             deadline_at = $8, answered_at = $9, ended_at = $10, seen_at = $11, seen_by = $12, absent_at = $13,
             exchange_over = $14
         WHERE id = $1",
        &binds![
            record.id.as_str(),
            record.phase.as_str(),
            record.outcome.map(|o| o.as_str()),
            record.proof.map(|p| p.as_str()),
            record.over_limit,
            record.unsettled,
            record.phase_at,
            record.deadline_at,
            record.answered_at,
            record.ended_at,
            record.seen_at,
            record.seen_by.as_str(),
            record.absent_at,
            record.exchange_over,
        ],
    )
    .await
    .map(drop)
}

/// Stores the latest response to a create request.
async fn keep_answer(c: &mut dyn Driver, call: &CallId, answer: &CreateAnswer, at_ms: UnixMs) -> Sql<()> {
    let sql =
        "INSERT INTO create_answers (call_id, fingerprint, status, headers, body, at) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (call_id, fingerprint) DO UPDATE SET
             status = excluded.status, headers = excluded.headers, body = excluded.body, at = excluded.at";
    let headers = to_json(&answer.headers)?;
    let status = u32::from(answer.status);
    let binds = binds![call.as_str(), &answer.fingerprint, status, headers, &answer.body[..], at_ms];
    c.execute(sql, &binds).await.map(drop)
}

/// Counts a call from now on.
pub(super) async fn confirm(c: &mut dyn Driver, call: &CallId, keys: &[String]) -> Sql<ConfirmOutcome> {
    let sql = "UPDATE calls SET origin = 'foreign', keys = $2
         WHERE id = $1 AND origin = 'unconfirmed' AND phase <> 'ended'";
    let rows = c.execute(sql, &binds![call.as_str(), keys]).await?;
    Ok(if rows == 0 { ConfirmOutcome::Before } else { ConfirmOutcome::Now })
}

pub(super) async fn mark_undelivered(c: &mut dyn Driver, call: &CallId, me: &str) -> Sql<()> {
    let sql = "UPDATE calls SET undelivered = true WHERE id = $1 AND replica = $2";
    c.execute(sql, &binds![call.as_str(), me]).await.map(drop)
}
