//! The database as limiter: one request after the other. The single writer runs nothing in between.

use super::super::driver::{Driver, Sql, binds};
use super::super::queries::bindings::{IdOwner, owner_of};
use super::super::queries::{calls, gate};
use super::super::usage::CountedUsage;
use super::super::{AdmitOutcome, NewCall};
use crate::call::Phase;
use crate::policy::Bound;
use crate::policy::decision::{AdmissionRequest, Decision, GateMode, GateState, OLDEST_MAX, Shortfall, decide, keys};

pub(super) async fn admit(
    c: &mut dyn Driver,
    call: &NewCall,
    request: &AdmissionRequest,
    epoch: i64,
) -> Sql<AdmitOutcome> {
    let now = gate::state(c).await?;
    if now != (GateState { epoch, mode: GateMode::Database }) {
        return Ok(AdmitOutcome::Outdated(now));
    }
    let before = c.fetch("SELECT phase, slots FROM calls WHERE id = $1", &binds![call.id.as_str()]).await?;
    if let Some(row) = before.first() {
        return Ok(match row.word("phase")? {
            Phase::Ended => AdmitOutcome::Known(call.id.clone()),
            _ => AdmitOutcome::New { slots: row.count("slots")?, would_reject: None, early: None },
        });
    }
    let freed = match owner_of(c, &call.aliases).await? {
        IdOwner::Known(known) => return Ok(AdmitOutcome::Known(known)),
        IdOwner::Free(freed) => freed,
    };
    let (decision, taken) = decide(request, &count(c, request).await?, request.at_ms);
    let (slots, would_reject) = match decision {
        Decision::Rejected(short) => return oldest(c, request, short).await.map(AdmitOutcome::Rejected),
        Decision::Admitted { slots, would_reject } => (slots, would_reject),
    };
    let would_reject = match would_reject {
        Some(short) => Some(oldest(c, request, short).await?),
        None => None,
    };
    let call = NewCall { slots, keys: keys(&request.bindings), ..call.clone() };
    let early = calls::write(c, &call, &freed, request.at_ms).await?;
    gate::write_rates(c, &taken).await?;
    Ok(AdmitOutcome::New { slots, would_reject, early })
}

/// Reads the usage of a request's limits.
async fn count(c: &mut dyn Driver, request: &AdmissionRequest) -> Sql<CountedUsage> {
    let mut counted = CountedUsage { now_ms: request.at_ms, ..CountedUsage::default() };
    let sql = "SELECT k.value AS key, min(sum(c.slots), 4294967295) AS slots FROM calls c INDEXED BY calls_open, json_each(c.keys) k
         WHERE c.phase <> 'ended' AND k.value = ANY($1) GROUP BY k.value";
    for row in c.fetch(sql, &binds![keys(&request.bindings)]).await? {
        counted.held.insert(row.text("key")?, row.count("slots")?);
    }
    for rate in request.bindings.iter().filter(|b| matches!(b.bound, Bound::Rate(_))) {
        let rows = c.fetch("SELECT log FROM gate_rates WHERE key = $1", &binds![&rate.key]).await?;
        if let Some(row) = rows.first() {
            counted.rates.insert(rate.key.clone(), row.word("log")?);
        }
    }
    Ok(counted)
}

/// Adds a short limit's oldest holders.
async fn oldest(c: &mut dyn Driver, request: &AdmissionRequest, mut short: Shortfall) -> Sql<Shortfall> {
    let Some(binding) = request.bindings.get(short.binding).filter(|b| matches!(b.bound, Bound::Concurrent(_))) else {
        return Ok(short);
    };
    let sql = "SELECT c.admitted_at FROM calls c INDEXED BY calls_open WHERE c.phase <> 'ended' AND c.slots = 1
             AND EXISTS (SELECT 1 FROM json_each(c.keys) k WHERE k.value = $1)
         ORDER BY c.admitted_at LIMIT $2";
    let rows = c.fetch(sql, &binds![&binding.key, OLDEST_MAX as i64]).await?;
    short.oldest = rows.iter().map(|row| row.number("admitted_at")).collect::<Sql<_>>()?;
    Ok(short)
}
