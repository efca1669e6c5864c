//! The database as arbiter. What a decision and a move rest on is that the one writer runs nothing in between.

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use sqlx::sqlite::SqlitePool;

use super::super::standing::{Counted, OpenRow, POOL, recount, replay_since};
use super::super::{Advanced, Confirmed, Decided, NewCall, Opened, rows};
use super::calls_write::{self, Claim, call_id, damaged, facts, json, to_json, word};
use super::writer::Written;
use crate::admission::{
    Decision, GateMode, GateState, Held, OLDEST_MAX, Order, RateLog, Short, decide, keys, rate_logs,
};
use crate::call::Phase;
use crate::clock::UnixMs;
use crate::ids::CallId;
use crate::policy::{Bound, Policy};

// === reads ===

pub(super) async fn read_state(pool: &SqlitePool) -> super::Result<GateState> {
    let row = sqlx::query("SELECT epoch, mode FROM gate_state WHERE pool = $1").bind(POOL).fetch_one(pool).await?;
    rows::gate_state(&row).map_err(Into::into)
}

pub(super) async fn read_identity(pool: &SqlitePool) -> super::Result<String> {
    let read = sqlx::query_scalar("SELECT database FROM gate_state WHERE pool = $1").bind(POOL).fetch_one(pool).await;
    read.map_err(Into::into)
}

pub(super) async fn leases(pool: &SqlitePool) -> super::Result<Vec<Held>> {
    let open = sqlx::query(
        "SELECT id, keys, places, admitted_at, overrun FROM calls INDEXED BY calls_open WHERE phase <> 'ended'
         AND origin <> 'unconfirmed' ORDER BY admitted_at, id",
    );
    let rows = open.fetch_all(pool).await?;
    rows.iter().map(rows::held).collect::<rows::Sql<_>>().map_err(Into::into)
}

// === writes ===

fn state(c: &Connection) -> Written<GateState> {
    c.prepare_cached("SELECT epoch, mode FROM gate_state WHERE pool = ?1")?
        .query_row([POOL], |row| Ok(GateState { epoch: row.get(0)?, mode: word(row, 1)? }))
}

pub(super) fn open(c: &Connection, call: &NewCall, epoch: Option<i64>) -> Written<Opened> {
    if let Some(epoch) = epoch {
        let now = state(c)?;
        if now.epoch != epoch {
            return Ok(Opened::Outdated(now));
        }
    }
    calls_write::open(c, call)
}

pub(super) fn confirm(c: &Connection, call: &CallId, keys: &[String], epoch: Option<i64>) -> Written<Confirmed> {
    if let Some(epoch) = epoch {
        let now = state(c)?;
        if now.epoch != epoch {
            return Ok(Confirmed::Outdated(now));
        }
    }
    let confirmed = c
        .prepare_cached(
            "UPDATE calls SET origin = 'foreign', keys = ?2
             WHERE id = ?1 AND origin = 'unconfirmed' AND phase <> 'ended'",
        )?
        .execute(params![call.as_str(), to_json(keys)?])?;
    Ok(if confirmed == 0 { Confirmed::Before } else { Confirmed::Now })
}

pub(super) fn admit(c: &Connection, mut call: NewCall, order: &Order, epoch: i64) -> Written<Decided> {
    let now = state(c)?;
    if now != (GateState { epoch, mode: GateMode::Database }) {
        return Ok(Decided::Outdated(now));
    }
    let before = c
        .prepare_cached("SELECT phase, places FROM calls WHERE id = ?1")?
        .query_row([call.id.as_str()], |row| Ok((word::<Phase>(row, 0)?, row.get(1)?)))
        .optional()?;
    match before {
        Some((Phase::Ended, _)) => return Ok(Decided::Known(call.id)),
        Some((_, places)) => return Ok(Decided::New { places, would: None, news: None }),
        None => {}
    }
    let freed = match calls_write::claim(c, &call.aliases)? {
        Claim::Known(known) => return Ok(Decided::Known(known)),
        Claim::Free(freed) => freed,
    };
    let (decision, taken) = decide(order, &count(c, order)?, order.at_ms);
    let (places, would) = match decision {
        Decision::Refused(short) => return oldest(c, order, short).map(Decided::Refused),
        Decision::Admitted { places, would } => (places, would),
    };
    let would = would.map(|short| oldest(c, order, short)).transpose()?;
    (call.places, call.keys) = (places, keys(&order.bindings));
    let news = calls_write::write(c, &call, &freed, order.at_ms)?;
    write_rates(c, &taken)?;
    Ok(Decided::New { places, would, news })
}

/// What the limits of an order have.
fn count(c: &Connection, order: &Order) -> Written<Counted> {
    let mut counted = Counted { now_ms: order.at_ms, ..Counted::default() };
    let mut held = c.prepare_cached(
        "SELECT k.value, min(sum(c.places), 4294967295) FROM calls c INDEXED BY calls_open, json_each(c.keys) k
         WHERE c.phase <> 'ended' AND k.value IN (SELECT value FROM json_each(?1)) GROUP BY k.value",
    )?;
    for row in held.query_map([to_json(&keys(&order.bindings))?], |row| Ok((row.get(0)?, row.get(1)?)))? {
        let (key, places) = row?;
        counted.held.insert(key, places);
    }
    for rate in order.bindings.iter().filter(|b| matches!(b.bound, Bound::Rate(_))) {
        let log = c
            .prepare_cached("SELECT log FROM gate_rates WHERE key = ?1")?
            .query_row([&rate.key], |row| word::<RateLog>(row, 0))
            .optional()?;
        if let Some(log) = log {
            counted.rates.insert(rate.key.clone(), log);
        }
    }
    Ok(counted)
}

/// A limit that is short, with its oldest holders.
fn oldest(c: &Connection, order: &Order, mut short: Short) -> Written<Short> {
    let Some(binding) = order.bindings.get(short.binding).filter(|b| matches!(b.bound, Bound::Concurrent(_))) else {
        return Ok(short);
    };
    let mut oldest = c.prepare_cached(
        "SELECT c.admitted_at FROM calls c INDEXED BY calls_open WHERE c.phase <> 'ended' AND c.places = 1
             AND EXISTS (SELECT 1 FROM json_each(c.keys) k WHERE k.value = ?1)
         ORDER BY c.admitted_at LIMIT ?2",
    )?;
    short.oldest =
        oldest.query_map(params![binding.key, OLDEST_MAX as i64], |row| row.get(0))?.collect::<Written<_>>()?;
    Ok(short)
}

fn write_rates(c: &Connection, rates: &[(String, RateLog)]) -> Written<()> {
    let mut write = c.prepare_cached(
        "INSERT INTO gate_rates (key, log) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET log = excluded.log",
    )?;
    rates.iter().try_for_each(|(key, log)| write.execute(params![key, log.to_string()]).map(drop))
}

pub(super) fn advance(
    c: &Connection,
    from: i64,
    to: GateMode,
    policy: &Policy,
    now_ms: UnixMs,
) -> Written<Option<Advanced>> {
    let moved = c
        .prepare_cached(
            "UPDATE gate_state SET epoch = epoch + 1, mode = ?3, moved_at = ?4 WHERE pool = ?1 AND epoch = ?2",
        )?
        .execute(params![POOL, from, to.as_str(), now_ms])?;
    if moved == 0 {
        return Ok(None);
    }
    let open = open_rows(c)?;
    crate::failpoint::hit_in_thread("store.advancing");
    let mut held = Vec::with_capacity(open.len());
    let mut write = c.prepare_cached("UPDATE calls SET keys = ?2 WHERE id = ?1")?;
    for (lease, changed) in recount(policy, open) {
        if changed {
            write.execute(params![lease.call.as_str(), to_json(&lease.keys)?])?;
        }
        held.push(lease);
    }
    let rates = match replay_since(policy, now_ms) {
        Some(since_ms) => rate_logs(policy, &admitted_since(c, since_ms)?),
        None => vec![],
    };
    if to == GateMode::Database {
        c.execute("DELETE FROM gate_rates", [])?;
        write_rates(c, &rates)?;
    }
    Ok(Some(Advanced { state: GateState { epoch: from + 1, mode: to }, held, rates }))
}

fn open_rows(c: &Connection) -> Written<Vec<OpenRow>> {
    let read = |row: &Row<'_>| {
        Ok(OpenRow {
            call: id(row)?,
            facts: facts(row, 1)?,
            places: row.get(11)?,
            since_ms: row.get(12)?,
            overrun: row.get(13)?,
            keys: json(row.get(14)?)?,
        })
    };
    let mut open = c.prepare(
        "SELECT id, business, plan, account, provider, carrier, direction, operation, agent, own_number, other_number,
             places, admitted_at, overrun, keys
         FROM calls INDEXED BY calls_open WHERE phase <> 'ended' AND origin <> 'unconfirmed' ORDER BY admitted_at, id",
    )?;
    open.query_map([], read)?.collect()
}

fn id(row: &Row<'_>) -> Written<CallId> {
    call_id(row.get_ref(0)?.as_str().map_err(damaged)?)
}

fn admitted_since(c: &Connection, since_ms: UnixMs) -> Written<Vec<(UnixMs, crate::policy::Facts)>> {
    let mut sent = c.prepare(
        "SELECT admitted_at, business, plan, account, provider, carrier, direction, operation, agent, own_number, other_number
         FROM calls WHERE admitted_at >= ?1 AND origin NOT IN ('foreign', 'unconfirmed') AND overrun = 0 ORDER BY admitted_at",
    )?;
    let sent = sent.query_map([since_ms], |row| Ok((row.get(0)?, facts(row, 1))))?.collect::<Written<Vec<_>>>()?;
    Ok(rows::readable(sent.into_iter().map(|(at, facts)| Written::Ok((at, facts?)))))
}
