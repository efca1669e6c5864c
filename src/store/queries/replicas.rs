//! Replicas, and what they share about create requests.

use super::super::driver::{Backend, Driver, Sql, binds, damaged};
use super::super::membership::{FORGOTTEN_MS, LIVE_MS};
use super::super::rows::{in_flight_row, live_replica};
use super::super::{IN_FLIGHT_MAX, InFlightRow, Membership, Owner, Replica, Result, StoreError};
use crate::clock::UnixMs;

pub(super) async fn now_ms(store: &impl Backend) -> Result<UnixMs> {
    let sql = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now_ms";
    let found = store.select(sql, binds![].into(), |row| row.number("now_ms")).await?;
    found.first().copied().ok_or_else(|| StoreError::Failed("the store does not tell the time".to_owned()))
}

/// Records a heartbeat, deletes replicas that are long gone, and returns the live ones, by the store's time.
pub(super) async fn heartbeat(c: &mut dyn Driver, me: &Replica, as_of: Option<UnixMs>) -> Sql<Membership> {
    let gone = "DELETE FROM replicas WHERE id <> $1
         AND beat_at < (extract(epoch FROM clock_timestamp()) * 1000)::bigint - $2";
    c.execute(gone, &binds![&me.id, FORGOTTEN_MS]).await?;
    let mine = "INSERT INTO replicas (id, host, process, version, started_at, beat_at, state)
         SELECT $1, $2, $3, $4, at, at, $5
         FROM (SELECT coalesce($6, (extract(epoch FROM clock_timestamp()) * 1000)::bigint) AS at) AS now WHERE true
         ON CONFLICT (id) DO UPDATE SET beat_at = greatest(excluded.beat_at, replicas.beat_at), state = excluded.state";
    c.execute(mine, &binds![&me.id, &me.host, me.process, &me.version, &me.state, as_of]).await?;
    let live = "SELECT *, (SELECT count(*) || '.' || coalesce(sum(updated_at), 0) FROM businesses) AS businesses,
             (SELECT last FROM do_not_call_changes WHERE pool = 'default') AS do_not_call,
             (SELECT json_build_array(since_ms, until_ms, who, reason)::text FROM bypass WHERE pool = 'default') AS bypass
         FROM replicas
         WHERE id = $1 OR beat_at > (extract(epoch FROM clock_timestamp()) * 1000)::bigint - $2";
    let rows = c.fetch(live, &binds![&me.id, LIVE_MS]).await?;
    let businesses = rows.first().map(|row| row.text("businesses")).transpose()?.unwrap_or_default();
    let do_not_call = rows.first().map(|row| row.number("do_not_call")).transpose()?.unwrap_or_default();
    let bypass = rows.first().map(|row| row.optional_text("bypass")).transpose()?.flatten();
    let bypass = bypass.map(|body| serde_json::from_str(&body).map_err(damaged)).transpose()?;
    let live = rows.iter().map(live_replica).collect::<Sql<_>>()?;
    Ok(Membership {
        businesses_version: businesses,
        do_not_call_change: do_not_call,
        bypass,
        ..Membership::new(me, live)
    })
}

pub(super) async fn find_in_flight(
    store: &impl Backend,
    fingerprint: &str,
    since_ms: UnixMs,
) -> Result<Vec<InFlightRow>> {
    let sql = "SELECT c.id, c.phase, c.outcome, c.unsettled, c.undelivered, c.replica, greatest(c.admitted_at, coalesce(c.taken_at, 0)) AS waited_for_since, c.ended_at,
             (extract(epoch FROM clock_timestamp()) * 1000)::bigint - r.beat_at AS silent_ms
         FROM calls c LEFT JOIN replicas r ON r.id = c.replica
         WHERE c.fingerprint = $1 AND c.admitted_at >= $2 ORDER BY c.admitted_at DESC, c.id DESC LIMIT $3";
    let mut found =
        store.select(sql, binds![fingerprint.to_owned(), since_ms, IN_FLIGHT_MAX].into(), in_flight_row).await?;
    found.reverse();
    Ok(found)
}

pub(super) async fn take_in_flight(store: &impl Backend, row: &InFlightRow, me: &str, owner: Owner) -> Result<bool> {
    let sql =
        "UPDATE calls SET replica = $2, undelivered = false, unsettled = unsettled OR ($5 AND phase = 'reserved'),
             taken_at = (extract(epoch FROM clock_timestamp()) * 1000)::bigint
         WHERE id = $1 AND replica IS NOT DISTINCT FROM $3 AND undelivered = $4";
    let taken = binds![row.id.to_string(), me.to_owned(), row.replica.clone(), row.undelivered, owner == Owner::Dead];
    Ok(store.run(sql, taken.into()).await? == 1)
}
