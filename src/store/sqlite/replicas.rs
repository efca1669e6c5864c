//! Which processes are over the record. Writes: they run on the writer's thread.

use rusqlite::{Connection, Row, params};

use super::super::fleet::{FORGOTTEN_MS, LIVE_MS};
use super::super::{Fleet, Living, Replica};
use super::writer::Written;
use crate::clock::UnixMs;

/// The store's time: what processes over one file have in common.
pub(super) fn now_ms(c: &Connection) -> Written<UnixMs> {
    c.prepare_cached("SELECT CAST(unixepoch('subsec') * 1000 AS INTEGER)")?.query_row([], |row| row.get(0))
}

/// Says that this one lives, forgets who is long gone, and tells who lives.
pub(super) fn beat(c: &Connection, me: &Replica) -> Written<Fleet> {
    let now = now_ms(c)?;
    c.prepare_cached("DELETE FROM replicas WHERE id <> ?1 AND beat_at < ?2")?
        .execute(params![me.id, now - FORGOTTEN_MS])?;
    c.prepare_cached(
        "INSERT INTO replicas (id, host, process, version, started_at, beat_at) VALUES (?1, ?2, ?3, ?4, ?5, ?5)
         ON CONFLICT (id) DO UPDATE SET beat_at = excluded.beat_at",
    )?
    .execute(params![me.id, me.host, me.process, me.version, now])?;
    let living = |row: &Row<'_>| {
        Ok(Living {
            replica: Replica { id: row.get(0)?, host: row.get(1)?, process: row.get(2)?, version: row.get(3)? },
            started_at: row.get(4)?,
            beat_at: row.get(5)?,
        })
    };
    let mut live =
        c.prepare_cached("SELECT id, host, process, version, started_at, beat_at FROM replicas WHERE beat_at > ?1")?;
    let live = live.query_map([now - LIVE_MS], living)?.collect::<Written<_>>()?;
    let businesses = c
        .prepare_cached("SELECT count(*) || '.' || coalesce(sum(updated_at), 0) FROM businesses")?
        .query_row([], |row| row.get(0))?;
    Ok(Fleet::new(me, live, businesses))
}

pub(super) fn leave(c: &Connection, id: &str) -> Written<()> {
    c.prepare_cached("DELETE FROM replicas WHERE id = ?1")?.execute([id]).map(drop)
}
