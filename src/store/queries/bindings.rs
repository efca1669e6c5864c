//! External ids of calls: their owner, and news that waits under them.

use super::super::driver::{Driver, Sql, binds};
use super::super::rows::call_id;
use super::super::voucher::{Early, applicable_news, remember};
use super::super::{KEY_KIND, NewCall, Voucher};
use super::to_json;
use crate::call::{Event, Outcome, stronger};
use crate::clock::UnixMs;
use crate::ids::{Alias, CallId};
use crate::policy::CallAttributes;
use crate::provider::description::OWN_ID_KIND;

/// The owner of an alias: a call, or waiting news.
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

/// Binds ids to a call. Returns the news that waited under them, as far as it may be applied to a call with these attributes and
/// ids; and ids that another call has.
pub(super) async fn bind_all(
    c: &mut dyn Driver,
    aliases: &[Alias],
    call: &CallId,
    at_ms: UnixMs,
    (attributes, known): (&CallAttributes, &[Alias]),
) -> Sql<(Option<Event>, Conflicts)> {
    let (mut news, mut conflicts) = (None, Conflicts::new());
    let sql = "INSERT INTO call_aliases (kind, id, call_id, seen_at) VALUES {rows} ON CONFLICT DO NOTHING";
    let rows = aliases.iter().map(|alias| Vec::from(binds![&alias.kind, &alias.id, call.as_str(), at_ms]));
    if c.execute_all(sql, rows.collect()).await? == aliases.len() as u64 {
        // Nearly always none of them was bound.
        return Ok((news, conflicts));
    }
    for alias in aliases {
        match holder(c, alias).await? {
            Holder::Call(other) if other == *call => continue,
            Holder::Call(other) => {
                conflicts.push((alias.clone(), other));
                continue;
            }
            Holder::News(waiting) => {
                news = news.into_iter().chain(applicable_news(&waiting, attributes, known)).reduce(stronger)
            }
            Holder::Nobody => {}
        }
        let sql = "INSERT INTO call_aliases (kind, id, call_id, early, seen_at) VALUES ($1, $2, $3, NULL, $4)
             ON CONFLICT (kind, id) DO UPDATE SET call_id = excluded.call_id, early = NULL";
        c.execute(sql, &binds![&alias.kind, &alias.id, call.as_str(), at_ms]).await?;
    }
    Ok((news, conflicts))
}

/// Whether a call's create request provably made no call.
async fn never_called(c: &mut dyn Driver, call: &CallId) -> Sql<bool> {
    let rows = c.fetch("SELECT outcome FROM calls WHERE id = $1", &binds![call.as_str()]).await?;
    // A call whose record was purged counts the same.
    let Some(row) = rows.first() else { return Ok(true) };
    Ok(row.optional_str("outcome")? == Some(Outcome::NotCreated.as_str()))
}

/// Whether an id is of ringfence's own kind: that of the first record of the same call.
pub(in crate::store) fn is_own(alias: &Alias) -> bool {
    alias.kind == OWN_ID_KIND
}

/// The owner of a new call's ids.
pub(in crate::store) enum IdOwner {
    /// The ids belong to this call.
    Known(CallId),
    /// The ids are free. These keys are still bound to requests that made no call.
    Free(Vec<Alias>),
}

/// Determines the owner, with the ids locked.
pub(in crate::store) async fn owner_of(c: &mut dyn Driver, aliases: &[Alias]) -> Sql<IdOwner> {
    let mut freed = Vec::new();
    for alias in aliases {
        if let Holder::Call(known) = holder(c, alias).await? {
            // The key of a request that made no call is free again.
            if alias.kind != KEY_KIND || !never_called(c, &known).await? {
                return Ok(IdOwner::Known(known));
            }
            freed.push(alias.clone());
        }
    }
    Ok(IdOwner::Free(freed))
}

/// Binds the ids of a call that was just written. Returns the news that waited under them.
pub(in crate::store) async fn bind_new_call(c: &mut dyn Driver, call: &NewCall, freed: &[Alias]) -> Sql<Option<Event>> {
    for alias in freed {
        let sql = "DELETE FROM call_aliases WHERE kind = $1 AND id = $2";
        c.execute(sql, &binds![&alias.kind, &alias.id]).await?;
    }
    // The second record of a call: the external ids move to it, and so does what its client does not know.
    for first in call.aliases.iter().filter(|a| is_own(a)) {
        let sql =
            "UPDATE calls SET undelivered = coalesce((SELECT one.undelivered FROM calls one WHERE one.id = $2), false)
             WHERE id = $1";
        c.execute(sql, &binds![call.id.as_str(), &first.id]).await?;
        let sql = "UPDATE call_aliases SET call_id = $1 WHERE call_id = $2";
        c.execute(sql, &binds![call.id.as_str(), &first.id]).await?;
    }
    let of = (&call.attributes, &call.aliases[..]);
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
