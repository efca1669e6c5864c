//! The ids by which calls are known outside: whose they are, and news that waits under them.

use super::super::driver::{Driver, Sql, binds};
use super::super::rows::call_id;
use super::super::voucher::{Early, heed, remember};
use super::super::{KEY_KIND, NewCall, Voucher};
use super::to_json;
use crate::call::{Event, Outcome, stronger};
use crate::clock::UnixMs;
use crate::ids::{Alias, CallId};
use crate::policy::Facts;
use crate::provider::description::OWN_ID_KIND;

/// Who has an alias: a call, or news that waits.
enum Holder {
    Nobody,
    Call(CallId),
    News(Vec<Early>),
}

async fn holder(c: &mut dyn Driver, alias: &Alias) -> Sql<Holder> {
    let sql = "SELECT call_id, early FROM call_aliases WHERE kind = $1 AND id = $2";
    let rows = c.fetch(sql, &binds![&alias.kind, &alias.id]).await?;
    let Some(row) = rows.first() else { return Ok(Holder::Nobody) };
    if let Some(id) = row.optional_str("call_id")? {
        return call_id(id).map(Holder::Call);
    }
    Ok(row.json("early")?.map_or(Holder::Nobody, Holder::News))
}

/// Ids that belong to another call.
pub(super) type Conflicts = Vec<(Alias, CallId)>;

/// Binds ids to a call. Returns the news that waited under them, as far as it is about a call with these facts and ids; and ids that
/// another call has.
pub(super) async fn bind_all(
    c: &mut dyn Driver,
    aliases: &[Alias],
    call: &CallId,
    at_ms: UnixMs,
    (facts, known): (&Facts, &[Alias]),
) -> Sql<(Option<Event>, Conflicts)> {
    let (mut news, mut conflicts) = (None, Conflicts::new());
    let sql = "INSERT INTO call_aliases (kind, id, call_id, seen_at) VALUES {rows} ON CONFLICT DO NOTHING";
    let rows = aliases.iter().map(|alias| Vec::from(binds![&alias.kind, &alias.id, call.as_str(), at_ms]));
    if c.execute_all(sql, rows.collect()).await? == aliases.len() as u64 {
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
        let sql = "INSERT INTO call_aliases (kind, id, call_id, early, seen_at) VALUES ($1, $2, $3, NULL, $4)
             ON CONFLICT (kind, id) DO UPDATE SET call_id = excluded.call_id, early = NULL";
        c.execute(sql, &binds![&alias.kind, &alias.id, call.as_str(), at_ms]).await?;
    }
    Ok((news, conflicts))
}

/// Whether a call's order was proven to have made none.
async fn never_called(c: &mut dyn Driver, call: &CallId) -> Sql<bool> {
    let rows = c.fetch("SELECT outcome FROM calls WHERE id = $1", &binds![call.as_str()]).await?;
    // A call whose record is past its retention is as good as none.
    let Some(row) = rows.first() else { return Ok(true) };
    Ok(row.optional_str("outcome")? == Some(Outcome::NotCreated.as_str()))
}

/// An id of our own kind: that of the first record of the same call.
pub(in crate::store) fn is_own(alias: &Alias) -> bool {
    alias.kind == OWN_ID_KIND
}

/// RetentionScope the ids of a new call are.
pub(in crate::store) enum Claim {
    /// They are this call's.
    Known(CallId),
    /// They may be the new one's. These keys are still bound to orders that made no call.
    Free(Vec<Alias>),
}

/// With the ids locked.
pub(in crate::store) async fn claim(c: &mut dyn Driver, aliases: &[Alias]) -> Sql<Claim> {
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

/// Binds the ids of a call that was just written. Returns the news that waited under them.
pub(in crate::store) async fn claimed(c: &mut dyn Driver, call: &NewCall, freed: &[Alias]) -> Sql<Option<Event>> {
    for alias in freed {
        let sql = "DELETE FROM call_aliases WHERE kind = $1 AND id = $2";
        c.execute(sql, &binds![&alias.kind, &alias.id]).await?;
    }
    // The second record of a call: from now on the outside ids lead to it.
    for first in call.aliases.iter().filter(|a| is_own(a)) {
        let sql = "UPDATE call_aliases SET call_id = $1 WHERE call_id = $2";
        c.execute(sql, &binds![call.id.as_str(), &first.id]).await?;
    }
    let of = (&call.facts, &call.aliases[..]);
    bind_all(c, &call.aliases, &call.id, call.at_ms, of).await.map(|(news, _)| news)
}

/// The call that has one of these ids.
pub(in crate::store) async fn resolve(c: &mut dyn Driver, aliases: &[Alias]) -> Sql<Option<CallId>> {
    for alias in aliases {
        if let Holder::Call(id) = holder(c, alias).await? {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

pub(super) async fn keep_early(
    c: &mut dyn Driver,
    aliases: &[Alias],
    event: Event,
    by: Option<&Voucher>,
    at_ms: UnixMs,
) -> Sql<Option<CallId>> {
    c.lock_ids(aliases).await?;
    if let Some(known) = resolve(c, aliases).await? {
        return Ok(Some(known));
    }
    for alias in aliases {
        let before = match holder(c, alias).await? {
            Holder::News(before) => before,
            _ => vec![],
        };
        let waiting = remember(before, event, by);
        let sql = "INSERT INTO call_aliases (kind, id, call_id, early, seen_at) VALUES ($1, $2, NULL, $3, $4)
             ON CONFLICT (kind, id) DO UPDATE SET early = excluded.early, seen_at = excluded.seen_at";
        c.execute(sql, &binds![&alias.kind, &alias.id, to_json(&waiting)?, at_ms]).await?;
    }
    Ok(None)
}
