//! The limiter's state and transitions. A transition changes the pool's row, and reads the open calls in a later statement, which
//! sees every record that was in progress before.

use std::sync::Arc;

use super::super::driver::{Backend, Driver, Sql, binds, compute, failpoint};
use super::super::rows::{admitted, gate_state, held, open_row, readable};
use super::super::usage::{POOL, recount, replay_since};
use super::super::{EpochBump, Result};
use super::first;
use crate::clock::UnixMs;
use crate::policy::Policy;
use crate::policy::decision::{GateMode, GateState, LeaseRow, RateLog, rate_logs};

/// Times and attributes of calls admitted since a time.
pub(super) const ADMITTED_SINCE: &str =
    "SELECT admitted_at, business, plan, account, provider, carrier, direction, operation, agent, own_number, other_number
     FROM calls WHERE admitted_at >= $1 AND origin NOT IN ('foreign', 'unconfirmed') AND NOT over_limit ORDER BY admitted_at";

pub(in crate::store) async fn state(c: &mut dyn Driver) -> Sql<GateState> {
    gate_state(&first(c.fetch("SELECT epoch, mode FROM gate_state WHERE pool = $1", &binds![POOL]).await?)?)
}

pub(super) async fn identity(c: &mut dyn Driver) -> Sql<String> {
    first(c.fetch("SELECT database FROM gate_state WHERE pool = $1", &binds![POOL]).await?)?.text("database")
}

pub(super) async fn leases(store: &impl Backend) -> Result<Vec<LeaseRow>> {
    let sql = "SELECT id, to_json(keys)::text AS keys, slots, admitted_at, over_limit
         FROM calls /*+ INDEXED BY calls_open */ WHERE phase <> 'ended' AND origin <> 'unconfirmed' ORDER BY admitted_at, id";
    store.select(sql, vec![], held).await
}

/// `now_ms`: the caller's time instead of the server's.
pub(in crate::store) async fn bump_epoch(
    c: &mut dyn Driver,
    from: i64,
    min_epoch: i64,
    to: GateMode,
    policy: &Arc<Policy>,
    now_ms: Option<UnixMs>,
) -> Sql<Option<EpochBump>> {
    c.queue_transition().await?;
    let sql = "UPDATE gate_state SET epoch = CASE WHEN epoch + 1 < $5 THEN $5 ELSE epoch + 1 END, mode = $3,
             moved_at = coalesce($4, (extract(epoch FROM clock_timestamp()) * 1000)::bigint)
         WHERE pool = $1 AND epoch = $2 RETURNING epoch, mode, moved_at";
    let moved = c.fetch(sql, &binds![POOL, from, to.as_str(), now_ms, min_epoch]).await?;
    let Some(moved) = moved.first() else { return Ok(None) };
    let sql = "SELECT id, business, plan, account, provider, carrier, direction, operation, agent, own_number, other_number, slots,
             admitted_at, over_limit, to_json(keys)::text AS keys
         FROM calls /*+ INDEXED BY calls_open */ WHERE phase <> 'ended' AND origin <> 'unconfirmed' ORDER BY admitted_at, id";
    let open = c.fetch(sql, &[]).await?.iter().map(open_row).collect::<Sql<Vec<_>>>()?;
    failpoint(c, "store.advancing").await;
    let sent = match replay_since(policy, moved.number("moved_at")?) {
        Some(since_ms) => readable(c.fetch(ADMITTED_SINCE, &binds![since_ms]).await?.iter().map(admitted)),
        None => vec![],
    };
    // Tens of thousands of calls take a while.
    let policy = policy.clone();
    let counted = compute(c, move || (recount(&policy, open), rate_logs(&policy, &sent)));
    let (counted, rates) = counted.await?;
    let changed = counted.iter().filter(|(_, changed)| *changed);
    let rows: Vec<_> = changed.map(|(lease, _)| Vec::from(binds![lease.call.as_str(), &lease.keys])).collect();
    for some in rows.chunks(CHANGED_MAX) {
        let sql = "UPDATE calls SET keys = changed.column2 FROM (VALUES {rows}) AS changed
             WHERE calls.id = changed.column1 AND calls.phase <> 'ended'";
        c.execute_all(sql, some.to_vec()).await?;
    }
    if to == GateMode::Database {
        c.execute("DELETE FROM gate_rates", &[]).await?;
        write_rates(c, &rates).await?;
    }
    let held = counted.into_iter().map(|(lease, _)| lease).collect();
    Ok(Some(EpochBump { state: gate_state(moved)?, held, rates }))
}

/// Calls per statement that changes keys.
const CHANGED_MAX: usize = 1_000;

/// Writes the logs of rates.
pub(in crate::store) async fn write_rates(c: &mut dyn Driver, rates: &[(String, RateLog)]) -> Sql<()> {
    let sql = "INSERT INTO gate_rates (key, log) VALUES {rows} ON CONFLICT (key) DO UPDATE SET log = excluded.log";
    let rows = rates.iter().map(|(key, log)| Vec::from(binds![key, log.to_string()]));
    c.execute_all(sql, rows.collect()).await.map(drop)
}
