//! The database as limiter. A decision locks the pool's row in the round trip of its BEGIN, and so is alone; a record that
//! another limiter admitted locks it shared. A transition changes the row, and reads the open calls in a later statement, which
//! sees every record that was in progress before. The row is locked before ids, and ids before calls.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde::Serialize;
use sqlx::{PgConnection, Row as _};

use super::super::app_events;
use super::super::driver::damaged;
use super::super::queries::bindings::{IdOwner, bind_new_call, is_own, owner_of};
use super::super::queries::calls::call_columns;
use super::super::queries::messages::add_app_events;
use super::super::rows::call_id;
use super::super::usage::CountedUsage;
use super::super::{AdmitOutcome, NewCall};
use super::TimeOf;
use super::driver::{Pg, lock_ids};
use super::sql::{Sql, query, to_json};
use crate::call::{Event, Phase};
use crate::clock::UnixMs;
use crate::ids::{AccountName, Alias, CallId};
use crate::policy::decision::{
    AdmissionRequest, Decision, GateMode, GateState, OLDEST_MAX, RateLog, Shortfall, decide, keys,
};
use crate::policy::{Binding, Bound};

/// A call to be decided about.
#[derive(Debug)]
pub(super) struct PendingAdmission {
    pub(super) call: NewCall,
    pub(super) request: AdmissionRequest,
    pub(super) epoch: i64,
}

/// The decisions of one transaction, in order.
#[derive(Default)]
struct Round {
    counted: CountedUsage,
    /// Recorded calls: their slots; `None` if ended.
    recorded: HashMap<CallId, Option<u32>>,
    /// Ids that belong to a call, or under which news waits.
    taken: BTreeSet<Alias>,
    /// Ids of calls admitted earlier in this transaction.
    claimed: HashMap<Alias, CallId>,
    rates: HashMap<String, RateLog>,
}

/// An admitted request.
struct Granted {
    slots: u32,
    would_reject: Option<Shortfall>,
    at_ms: UnixMs,
    /// The request's ids that are recorded already: each is handled separately.
    intricate: Option<Vec<Alias>>,
}

enum Answer {
    Outdated(GateState),
    Known(CallId),
    /// The request is recorded already.
    Again(u32),
    Rejected(Shortfall),
    Granted(Granted),
}

/// Decides about requests, one after the other, with the pool's row locked exclusively.
pub(super) async fn admit(
    c: &mut PgConnection,
    state: Option<GateState>,
    asks: &[Arc<PendingAdmission>],
    time_of: TimeOf,
) -> Sql<Vec<AdmitOutcome>> {
    let state = state.ok_or_else(|| damaged("the gate was not locked"))?;
    let is_due = |ask: &PendingAdmission| state == GateState { epoch: ask.epoch, mode: GateMode::Database };
    let due: Vec<&PendingAdmission> = asks.iter().map(|ask| &**ask).filter(|ask| is_due(ask)).collect();
    let mut round = if due.is_empty() { Round::default() } else { read(c, &due).await? };
    let mut answers = Vec::with_capacity(asks.len());
    for ask in asks {
        answers.push(match is_due(ask) {
            true => round.answer(c, ask, time_of).await?,
            false => Answer::Outdated(state),
        });
    }
    name_oldest(c, asks, &mut answers).await?;
    write(c, asks, &answers, &round.rates).await?;
    let granted = asks.iter().zip(&answers).filter_map(|(ask, answer)| match answer {
        Answer::Granted(granted) => Some(app_events::opened(&ask.call, granted.slots, granted.at_ms)),
        _ => None,
    });
    let told: Vec<_> = granted.flatten().collect();
    add_app_events(&mut Pg(c), &told).await?;
    let mut decided = Vec::with_capacity(asks.len());
    for (ask, answer) in asks.iter().zip(answers) {
        decided.push(match answer {
            Answer::Outdated(state) => AdmitOutcome::Outdated(state),
            Answer::Known(call) => AdmitOutcome::Known(call),
            Answer::Again(slots) => AdmitOutcome::New { slots, would_reject: None, early: None },
            Answer::Rejected(short) => AdmitOutcome::Rejected(short),
            Answer::Granted(granted) => {
                let early: Option<Event> = match granted.intricate {
                    Some(freed) => bind_new_call(&mut Pg(c), &ask.call, &freed).await?,
                    None => None,
                };
                AdmitOutcome::New { slots: granted.slots, would_reject: granted.would_reject, early }
            }
        });
    }
    Ok(decided)
}

/// Locks the ids of these requests, and reads their limits' usage and their ids' owners, in one statement.
async fn read(c: &mut PgConnection, asks: &[&PendingAdmission]) -> Sql<Round> {
    let aliases: Vec<Alias> = asks.iter().flat_map(|ask| ask.call.aliases.iter().cloned()).collect();
    lock_ids(c, &aliases).await?;
    let bindings = || asks.iter().flat_map(|ask| &ask.request.bindings);
    let of_rates = bindings().filter(|b| matches!(b.bound, Bound::Rate(_)));
    let rates: BTreeSet<&str> = of_rates.map(|b| b.key.as_str()).collect();
    let counts: BTreeSet<String> = asks.iter().flat_map(|ask| keys(&ask.request.bindings)).collect();
    let rows = query(
        "SELECT 'now' AS what, NULL AS name, NULL AS id, (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS number
         UNION ALL SELECT 'held', k, NULL, least(sum(slots), 4294967295)::bigint FROM calls, unnest(keys) AS k
             WHERE phase <> 'ended' AND k = ANY($1) GROUP BY k
         UNION ALL SELECT 'rate', key, log, NULL FROM gate_rates WHERE key = ANY($2)
         UNION ALL SELECT 'call', phase, id, slots FROM calls WHERE id = ANY($3)
         UNION ALL SELECT 'alias', kind, id, NULL FROM call_aliases
             WHERE (kind, id) IN (SELECT * FROM unnest($4::text[], $5::text[]))",
    )
    .bind(counts.into_iter().collect::<Vec<_>>())
    .bind(rates.into_iter().collect::<Vec<_>>())
    .bind(asks.iter().map(|ask| ask.call.id.as_str()).collect::<Vec<_>>())
    .bind(aliases.iter().map(|alias| alias.kind.as_str()).collect::<Vec<_>>())
    .bind(aliases.iter().map(|alias| alias.id.as_str()).collect::<Vec<_>>())
    .fetch_all(c)
    .await?;
    let mut round = Round::default();
    for row in &rows {
        let number = || row.try_get::<i64, _>("number");
        match row.try_get("what")? {
            "held" => {
                let slots = number()?.try_into().map_err(damaged)?;
                round.counted.held.insert(row.try_get("name")?, slots);
            }
            "rate" => {
                let log = row.try_get::<&str, _>("id")?.parse().map_err(damaged)?;
                round.counted.rates.insert(row.try_get("name")?, log);
            }
            "call" => {
                let is_over = row.try_get::<&str, _>("name")? == Phase::Ended.as_str();
                let slots = number()?.try_into().map_err(damaged)?;
                round.recorded.insert(call_id(row.try_get("id")?)?, (!is_over).then_some(slots));
            }
            "alias" => drop(round.taken.insert(Alias { kind: row.try_get("name")?, id: row.try_get("id")? })),
            _ => round.counted.now_ms = number()?,
        }
    }
    Ok(round)
}

impl Round {
    async fn answer(&mut self, c: &mut PgConnection, ask: &PendingAdmission, time_of: TimeOf) -> Sql<Answer> {
        let (call, request) = (&ask.call, &ask.request);
        match self.recorded.get(&call.id) {
            Some(Some(slots)) => return Ok(Answer::Again(*slots)),
            Some(None) => return Ok(Answer::Known(call.id.clone())),
            None => {}
        }
        if let Some(known) = call.aliases.iter().find_map(|alias| self.claimed.get(alias)) {
            return Ok(Answer::Known(known.clone()));
        }
        let is_intricate = call.aliases.iter().any(|alias| self.taken.contains(alias) || is_own(alias));
        let intricate = match is_intricate {
            false => None,
            true => match owner_of(&mut Pg(c), &call.aliases).await? {
                IdOwner::Known(known) => return Ok(Answer::Known(known)),
                IdOwner::Free(freed) => Some(freed),
            },
        };
        if time_of == TimeOf::Caller {
            self.counted.now_ms = request.at_ms;
        }
        let at_ms = self.counted.now_ms;
        let (decision, taken) = decide(request, &self.counted, at_ms);
        let (slots, would_reject) = match decision {
            Decision::Rejected(short) => return Ok(Answer::Rejected(short)),
            Decision::Admitted { slots, would_reject } => (slots, would_reject),
        };
        self.counted.grant(&keys(&request.bindings), slots, &taken);
        self.rates.extend(taken);
        self.recorded.insert(call.id.clone(), Some(slots));
        self.claimed.extend(call.aliases.iter().map(|alias| (alias.clone(), call.id.clone())));
        Ok(Answer::Granted(Granted { slots, would_reject, at_ms, intricate }))
    }
}

/// Reads the oldest holders of short limits. Before anything is written: holders admitted in this transaction are included
/// already, and are younger.
async fn name_oldest(c: &mut PgConnection, asks: &[Arc<PendingAdmission>], answers: &mut [Answer]) -> Sql<()> {
    fn short<'a>(ask: &'a PendingAdmission, answer: &'a mut Answer) -> Option<(&'a Binding, &'a mut Shortfall)> {
        let short = match answer {
            Answer::Rejected(short) => short,
            Answer::Granted(Granted { would_reject: Some(short), .. }) => short,
            _ => return None,
        };
        let binding = ask.request.bindings.get(short.binding)?;
        matches!(binding.bound, Bound::Concurrent(_)).then_some((binding, short))
    }
    let mut shorts: Vec<_> =
        asks.iter().zip(answers.iter_mut()).filter_map(|(ask, answer)| short(ask, answer)).collect();
    if shorts.is_empty() {
        return Ok(());
    }
    let full: BTreeSet<&str> = shorts.iter().map(|(binding, _)| binding.key.as_str()).collect();
    let rows = query(
        "SELECT k.key, oldest.admitted_at FROM unnest($1::text[]) AS k(key), LATERAL (
             SELECT admitted_at FROM calls WHERE phase <> 'ended' AND slots = 1 AND k.key = ANY(keys)
             ORDER BY admitted_at LIMIT $2) AS oldest
         ORDER BY oldest.admitted_at",
    )
    .bind(full.into_iter().collect::<Vec<_>>())
    .bind(OLDEST_MAX as i64)
    .fetch_all(c)
    .await?;
    let mut oldest = HashMap::<&str, Vec<UnixMs>>::new();
    for row in &rows {
        oldest.entry(row.try_get("key")?).or_default().push(row.try_get("admitted_at")?);
    }
    for (binding, short) in &mut shorts {
        let before = oldest.get(binding.key.as_str()).map_or(&[][..], Vec::as_slice);
        short.oldest = before.iter().chain(&short.oldest).take(OLDEST_MAX).copied().collect();
    }
    Ok(())
}

/// A row of `calls`, as JSON, with the columns of [`call_columns`]: one statement writes any number of them.
#[derive(Serialize)]
struct NewRow<'a> {
    id: &'a str,
    business: &'a str,
    plan: &'a str,
    account: &'a str,
    provider: &'a str,
    carrier: Option<&'a str>,
    direction: &'a str,
    operation: &'a str,
    agent: Option<&'a str>,
    own_number: Option<&'a str>,
    other_number: Option<&'a str>,
    origin: &'a str,
    phase: &'a str,
    over_limit: bool,
    polled: bool,
    slots: u32,
    admitted_at: UnixMs,
    phase_at: UnixMs,
    deadline_at: UnixMs,
    answered_at: Option<UnixMs>,
    seen_at: UnixMs,
    seen_by: &'a str,
    callback: Option<String>,
    fingerprint: Option<&'a str>,
    keys: Vec<String>,
    replica: Option<&'a str>,
}

impl<'a> NewRow<'a> {
    fn of(ask: &'a PendingAdmission, granted: &Granted) -> Sql<Self> {
        let (call, f) = (&ask.call, &ask.call.attributes);
        Ok(Self {
            id: call.id.as_str(),
            business: f.business.as_str(),
            plan: &f.plan,
            account: f.account.as_str(),
            provider: &f.provider,
            carrier: f.carrier.as_ref().map(AccountName::as_str),
            direction: f.direction.as_str(),
            operation: &f.operation,
            agent: f.agent.as_deref(),
            own_number: f.own_number.as_deref(),
            other_number: f.other_number.as_deref(),
            origin: call.origin.as_str(),
            phase: call.phase.as_str(),
            over_limit: call.over_limit,
            polled: call.polled,
            slots: granted.slots,
            admitted_at: granted.at_ms,
            phase_at: call.at_ms,
            deadline_at: call.deadline_at,
            answered_at: (call.phase == Phase::Live).then_some(call.at_ms),
            seen_at: call.at_ms,
            seen_by: call.origin.as_str(),
            callback: call.callback.as_ref().map(to_json).transpose()?,
            fingerprint: call.fingerprint.as_deref(),
            keys: keys(&ask.request.bindings),
            replica: call.replica.as_deref(),
        })
    }
}

#[derive(Serialize)]
struct NewAlias<'a> {
    kind: &'a str,
    id: &'a str,
    call_id: &'a str,
    seen_at: UnixMs,
}

#[derive(Serialize)]
struct NewRate<'a> {
    key: &'a str,
    log: String,
}

/// Writes the granted calls, their new ids, and the logs of their rates.
async fn write(
    c: &mut PgConnection,
    asks: &[Arc<PendingAdmission>],
    answers: &[Answer],
    rates: &HashMap<String, RateLog>,
) -> Sql<()> {
    let (mut rows, mut aliases) = (Vec::new(), Vec::new());
    for (ask, answer) in asks.iter().zip(answers) {
        let Answer::Granted(granted) = answer else { continue };
        rows.push(NewRow::of(ask, granted)?);
        if granted.intricate.is_none() {
            let (call_id, seen_at) = (ask.call.id.as_str(), ask.call.at_ms);
            let of_call = ask.call.aliases.iter().collect::<BTreeSet<_>>();
            aliases.extend(of_call.into_iter().map(|a| NewAlias { kind: &a.kind, id: &a.id, call_id, seen_at }));
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    let rates: Vec<_> = rates.iter().map(|(key, log)| NewRate { key, log: log.to_string() }).collect();
    query(concat!(
        "WITH rates AS (
             INSERT INTO gate_rates (key, log)
             SELECT key, log FROM json_to_recordset($3::json) AS r(key text, log text)
             ON CONFLICT (key) DO UPDATE SET log = excluded.log
         ), aliases AS (
             INSERT INTO call_aliases (kind, id, call_id, seen_at)
             SELECT kind, id, call_id, seen_at
             FROM json_to_recordset($2::json) AS a(kind text, id text, call_id text, seen_at bigint)
         )
         INSERT INTO calls (",
        call_columns!(),
        ") SELECT ",
        call_columns!(),
        " FROM json_populate_recordset(NULL::calls, $1::json)"
    ))
    .bind(to_json(&rows)?)
    .bind(to_json(&aliases)?)
    .bind(to_json(&rates)?)
    .execute(c)
    .await
    .map(drop)
}
