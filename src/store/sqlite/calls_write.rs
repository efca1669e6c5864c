//! Writes of calls and their ids. They run on the writer's thread, where a statement is a function call.

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension as _, Row, named_params, params};
use serde::de::DeserializeOwned;

use super::super::decide::decide;
use super::super::told;
use super::super::voucher::{Early, heed, remember};
use super::super::{AppCallback, Applied, CallRecord, Change, KEY_KIND, NewCall, Opened, Voucher};
use super::writer::Written;
use super::{answers, records, replicas};
use crate::call::{Event, Outcome, Phase, stronger};
use crate::clock::UnixMs;
use crate::ids::{AccountName, Alias, BusinessId, CallId};
use crate::policy::Facts;
use crate::provider::description::OWN_ID_KIND;

pub(super) fn damaged(what: impl std::fmt::Display) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, Type::Text, what.to_string().into())
}

pub(super) fn to_json(value: &(impl serde::Serialize + ?Sized)) -> Written<String> {
    serde_json::to_string(value).map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))
}

pub(super) fn json<T: DeserializeOwned>(text: Option<String>) -> Written<Option<T>> {
    text.map(|t| serde_json::from_str(&t).map_err(damaged)).transpose()
}

pub(super) fn word<T: std::str::FromStr<Err: std::fmt::Display>>(row: &Row<'_>, column: usize) -> Written<T> {
    row.get_ref(column)?.as_str()?.parse().map_err(damaged)
}

fn optional_word<T: std::str::FromStr<Err: std::fmt::Display>>(row: &Row<'_>, column: usize) -> Written<Option<T>> {
    row.get_ref(column)?.as_str_or_null()?.map(|w| w.parse().map_err(damaged)).transpose()
}

pub(super) fn call_id(text: &str) -> Written<CallId> {
    CallId::parse(text).ok_or_else(|| damaged(format!("{text:?} is no call id")))
}

/// Columns by place: to find them by name takes longer than to read them.
const CALL: &str =
    "SELECT id, business, plan, account, provider, carrier, direction, operation, agent, own_number, other_number, origin,
         phase, outcome, proof, overrun, unsettled, polled, places, admitted_at, phase_at, deadline_at, answered_at, ended_at,
         seen_at, seen_by, absent_at, callback, fingerprint, replica
     FROM calls WHERE id = ?1";

/// From a column on: business, plan, account, provider, carrier, direction, operation, agent, own_number, other_number.
pub(super) fn facts(row: &Row<'_>, from: usize) -> Written<Facts> {
    Ok(Facts {
        business: BusinessId::parse(row.get_ref(from)?.as_str()?).map_err(damaged)?,
        plan: row.get(from + 1)?,
        account: AccountName::parse(row.get_ref(from + 2)?.as_str()?).map_err(damaged)?,
        provider: row.get(from + 3)?,
        carrier: row
            .get_ref(from + 4)?
            .as_str_or_null()?
            .map(|name| AccountName::parse(name).map_err(damaged))
            .transpose()?,
        direction: word(row, from + 5)?,
        operation: row.get(from + 6)?,
        agent: row.get(from + 7)?,
        own_number: row.get(from + 8)?,
        other_number: row.get(from + 9)?,
    })
}

fn record(row: &Row<'_>) -> Written<CallRecord> {
    Ok(CallRecord {
        id: call_id(row.get_ref(0)?.as_str()?)?,
        facts: facts(row, 1)?,
        origin: word(row, 11)?,
        phase: word(row, 12)?,
        outcome: optional_word(row, 13)?,
        proof: optional_word(row, 14)?,
        overrun: row.get(15)?,
        unsettled: row.get(16)?,
        polled: row.get(17)?,
        places: row.get(18)?,
        admitted_at: row.get(19)?,
        phase_at: row.get(20)?,
        deadline_at: row.get(21)?,
        answered_at: row.get(22)?,
        ended_at: row.get(23)?,
        seen_at: row.get(24)?,
        seen_by: row.get(25)?,
        absent_at: row.get(26)?,
        callback: json::<AppCallback>(row.get(27)?)?,
        fingerprint: row.get(28)?,
        replica: row.get(29)?,
        aliases: vec![],
    })
}

pub(super) fn one(c: &Connection, id: &CallId) -> Written<Option<CallRecord>> {
    let found = c.prepare_cached(CALL)?.query_row([id.as_str()], record).optional()?;
    let Some(mut call) = found else { return Ok(None) };
    let mut aliases = c.prepare_cached("SELECT kind, id FROM call_aliases WHERE call_id = ?1 ORDER BY kind, id")?;
    let alias = |row: &Row<'_>| Ok(Alias { kind: row.get(0)?, id: row.get(1)? });
    call.aliases = aliases.query_map([id.as_str()], alias)?.collect::<Written<_>>()?;
    Ok(Some(call))
}

/// Who has an alias: a call, or news that waits.
enum Holder {
    Nobody,
    Call(CallId),
    News(Vec<Early>),
}

fn holder(c: &Connection, alias: &Alias) -> Written<Holder> {
    let row = c
        .prepare_cached("SELECT call_id, early FROM call_aliases WHERE kind = ?1 AND id = ?2")?
        .query_row(params![alias.kind, alias.id], |row| {
            Ok((row.get::<_, Option<String>>(0)?, row.get::<_, Option<String>>(1)?))
        })
        .optional()?;
    match row {
        Some((Some(id), _)) => call_id(&id).map(Holder::Call),
        Some((None, early)) => Ok(json(early)?.map_or(Holder::Nobody, Holder::News)),
        None => Ok(Holder::Nobody),
    }
}

/// Ids that belong to another call.
type Conflicts = Vec<(Alias, CallId)>;

/// Binds ids to a call. Returns the news that waited under them, and ids that another call has.
fn bind_all(
    c: &Connection,
    aliases: &[Alias],
    call: &CallId,
    at_ms: UnixMs,
    heeded: impl Fn(&[Early]) -> Option<Event>,
) -> Written<(Option<Event>, Conflicts)> {
    let (mut news, mut conflicts) = (None, Conflicts::new());
    for alias in aliases {
        let inserted = c
            .prepare_cached(
                "INSERT INTO call_aliases (kind, id, call_id, seen_at) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
            )?
            .execute(params![alias.kind, alias.id, call.as_str(), at_ms])?;
        if inserted == 1 {
            // As nearly always, nobody had it.
            continue;
        }
        match holder(c, alias)? {
            Holder::Call(other) if other == *call => continue,
            Holder::Call(other) => {
                conflicts.push((alias.clone(), other));
                continue;
            }
            Holder::News(waiting) => news = news.into_iter().chain(heeded(&waiting)).reduce(stronger),
            Holder::Nobody => {}
        }
        c.prepare_cached("UPDATE call_aliases SET call_id = ?3, early = NULL WHERE kind = ?1 AND id = ?2")?
            .execute(params![alias.kind, alias.id, call.as_str()])?;
    }
    Ok((news, conflicts))
}

/// Whether a call's order was proven to have made none.
fn never_called(c: &Connection, call: &CallId) -> Written<bool> {
    let outcome = c
        .prepare_cached("SELECT outcome FROM calls WHERE id = ?1")?
        .query_row([call.as_str()], |row| row.get::<_, Option<String>>(0))
        .optional()?;
    // A call whose record is past its retention is as good as none.
    Ok(outcome.is_none_or(|outcome| outcome.as_deref() == Some(Outcome::NotCreated.as_str())))
}

/// Whose the ids of a new call are.
pub(super) enum Claim {
    /// They are this call's.
    Known(CallId),
    /// They may be the new one's. These keys are still bound to orders that made no call.
    Free(Vec<Alias>),
}

pub(super) fn claim(c: &Connection, aliases: &[Alias]) -> Written<Claim> {
    let mut freed = Vec::new();
    for alias in aliases {
        if let Holder::Call(known) = holder(c, alias)? {
            // The key of an order that made no call is free again.
            if alias.kind != KEY_KIND || !never_called(c, &known)? {
                return Ok(Claim::Known(known));
            }
            freed.push(alias.clone());
        }
    }
    Ok(Claim::Free(freed))
}

pub(super) fn open(c: &Connection, call: &NewCall) -> Written<Opened> {
    match claim(c, &call.aliases)? {
        Claim::Known(known) => Ok(Opened::Known(known)),
        Claim::Free(freed) => write(c, call, &freed, call.at_ms).map(Opened::New),
    }
}

/// Writes a new call and binds its ids. Returns the news that waited under them.
pub(super) fn write(c: &Connection, call: &NewCall, freed: &[Alias], admitted_at: UnixMs) -> Written<Option<Event>> {
    for alias in freed {
        c.prepare_cached("DELETE FROM call_aliases WHERE kind = ?1 AND id = ?2")?
            .execute(params![alias.kind, alias.id])?;
    }
    // The second record of a call: from now on the outside ids lead to it.
    for first in call.aliases.iter().filter(|a| a.kind == OWN_ID_KIND) {
        c.prepare_cached("UPDATE call_aliases SET call_id = ?1 WHERE call_id = ?2")?
            .execute(params![call.id.as_str(), first.id])?;
    }
    let f = &call.facts;
    c.prepare_cached(
        "INSERT INTO calls (id, business, plan, account, provider, carrier, direction, operation, agent, own_number,
             other_number, origin, phase, overrun, polled, places, admitted_at, phase_at, deadline_at, answered_at, seen_at,
             seen_by, callback, fingerprint, keys, replica)
         VALUES (:id, :business, :plan, :account, :provider, :carrier, :direction, :operation, :agent, :own_number,
             :other_number, :origin, :phase, :overrun, :polled, :places, :admitted_at, :at, :deadline_at, :answered_at, :at,
             :origin, :callback, :fingerprint, :keys, :replica)",
    )?
    .execute(named_params! {
        ":id": call.id.as_str(),
        ":business": f.business.as_str(),
        ":plan": f.plan,
        ":account": f.account.as_str(),
        ":provider": f.provider,
        ":carrier": f.carrier.as_ref().map(AccountName::as_str),
        ":direction": f.direction.as_str(),
        ":operation": f.operation,
        ":agent": f.agent,
        ":own_number": f.own_number,
        ":other_number": f.other_number,
        ":origin": call.origin.as_str(),
        ":phase": call.phase.as_str(),
        ":overrun": call.overrun,
        ":polled": call.polled,
        ":places": call.places,
        ":admitted_at": admitted_at,
        ":at": call.at_ms,
        ":deadline_at": call.deadline_at,
        ":answered_at": (call.phase == Phase::Live).then_some(call.at_ms),
        ":callback": call.callback.as_ref().map(to_json).transpose()?,
        ":fingerprint": call.fingerprint,
        ":keys": to_json(&call.keys)?,
        ":replica": call.replica,
    })?;
    let (news, _) = bind_all(c, &call.aliases, &call.id, call.at_ms, |waiting| heed(waiting, f, &call.aliases))?;
    records::tell(c, told::opened(call, call.places, admitted_at))?;
    Ok(news)
}

pub(super) fn apply(c: &Connection, change: Change) -> Written<Option<Applied>> {
    let Some(mut record) = one(c, &change.call)? else { return Ok(None) };
    if let Some(what) = change.contradiction(&record) {
        return Ok(Some(Applied::contradicted(record, what)));
    }
    let heeded = |waiting: &[Early]| heed(waiting, &record.facts, &record.aliases);
    let (news, conflicts) = bind_all(c, &change.bind, &change.call, change.at_ms, heeded)?;
    let (step, ended_a_part) = decide(&mut record, &change, news);
    update(c, &record)?;
    if let Some(answer) = &change.answer {
        answers::keep(c, &change.call, answer, change.at_ms)?;
    }
    if let Some(me) = &change.untold_by {
        replicas::undelivered(c, &change.call, me)?;
    }
    record
        .aliases
        .extend(change.bind.into_iter().filter(|a| !conflicts.iter().any(|(other, _)| other == a)).collect::<Vec<_>>());
    record.aliases.sort();
    record.aliases.dedup();
    if change.tell {
        records::tell(c, told::stepped(&record, step, change.at_ms))?;
    }
    Ok(Some(Applied { step, record, conflicts, contradiction: None, ended_a_part }))
}

fn update(c: &Connection, record: &CallRecord) -> Written<()> {
    c.prepare_cached(
        "UPDATE calls SET phase = ?2, outcome = ?3, proof = ?4, overrun = ?5, unsettled = ?6, phase_at = ?7,
             deadline_at = ?8, answered_at = ?9, ended_at = ?10, seen_at = ?11, seen_by = ?12, absent_at = ?13
         WHERE id = ?1",
    )?
    .execute(params![
        record.id.as_str(),
        record.phase.as_str(),
        record.outcome.map(|o| o.as_str()),
        record.proof.map(|p| p.as_str()),
        record.overrun,
        record.unsettled,
        record.phase_at,
        record.deadline_at,
        record.answered_at,
        record.ended_at,
        record.seen_at,
        record.seen_by,
        record.absent_at,
    ])?;
    Ok(())
}

/// The call that has one of these ids.
pub(super) fn resolve(c: &Connection, aliases: &[Alias]) -> Written<Option<CallId>> {
    for alias in aliases {
        if let Holder::Call(known) = holder(c, alias)? {
            return Ok(Some(known));
        }
    }
    Ok(None)
}

pub(super) fn keep_early(
    c: &Connection,
    aliases: &[Alias],
    event: Event,
    by: Option<&Voucher>,
    at_ms: UnixMs,
) -> Written<Option<CallId>> {
    if let Some(known) = resolve(c, aliases)? {
        return Ok(Some(known));
    }
    for alias in aliases {
        let before = match holder(c, alias)? {
            Holder::News(before) => before,
            _ => vec![],
        };
        let waiting = remember(before, event, by);
        c.prepare_cached(
            "INSERT INTO call_aliases (kind, id, call_id, early, seen_at) VALUES (?1, ?2, NULL, ?3, ?4)
             ON CONFLICT (kind, id) DO UPDATE SET early = excluded.early, seen_at = excluded.seen_at",
        )?
        .execute(params![alias.kind, alias.id, to_json(&waiting)?, at_ms])?;
    }
    Ok(None)
}
