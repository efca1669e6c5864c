//! The store for production: Postgres, in a schema of its own.
//!
//! What SQLite has from its one writer, transactions have here from locks: one for the ids that a change touches, one for its
//! call. One process has the record at a time (`holder.rs`), and every write is bound
//! to that (`transact.rs`).

mod answers;
mod batch;
mod calls;
mod desk;
mod gate;
mod holder;
pub mod inspect;
mod messages;
pub mod migrate;
mod records;
mod replicas;
mod retention;
mod settings;
mod speech;
mod transact;
mod transcripts;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use sqlx::{Connection as _, PgConnection, Row as _};
use tracing::{info, warn};

use super::{
    Advanced, Applied, CallRecord, Change, Confirmed, CreateAnswer, Decided, Delivery, Fleet, NewCall, NewEvent,
    Opened, OrderRecord, Place, Reach, Received, RefusalRecord, Replica, Result, Sharing, Speech, Store, StoreError,
    Took, Voucher, Waiting,
};
use crate::admission::{GateMode, GateState, Held, Order};
use crate::call::Event;
use crate::clock::UnixMs;
use crate::ids::{AccountName, Alias, CallId};
use crate::policy::{Business, Facts, Policy};
use batch::{Batches, Doubts};
use gate::Ask;
use holder::{BEAT_EVERY, Me, SILENCE};
pub use settings::{Pooler, Settings};
use transact::{Db, Fate, Gate, prepared};

type Sql<T> = std::result::Result<T, sqlx::Error>;

/// A statement, which is kept in the session only where that stays ours.
fn query<'q>(sql: &'static str) -> sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments> {
    sqlx::query(sql).persistent(prepared())
}

/// Keeps others from these ids until the transaction ends, all of them in one order. Before any row is locked.
async fn lock_ids(c: &mut PgConnection, aliases: &[Alias]) -> Sql<()> {
    if aliases.is_empty() {
        return Ok(());
    }
    let mut keys: Vec<String> = aliases.iter().map(|alias| format!("{}:{}", alias.kind, alias.id)).collect();
    keys.sort();
    query("SELECT count(pg_advisory_xact_lock(k)) FROM (SELECT DISTINCT hashtextextended(id, 0) AS k FROM unnest($1::text[]) AS id ORDER BY k) AS keys")
        .bind(keys)
        .execute(c)
        .await
        .map(drop)
}

/// Keeps others from a call until the transaction ends.
async fn lock_call(c: &mut PgConnection, call: &CallId) -> Sql<()> {
    query("SELECT 1 FROM calls WHERE id = $1 FOR UPDATE").bind(call.as_str()).execute(c).await.map(drop)
}

/// The shortest and longest pause between two tries to reach the server at the start.
const AGAIN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// The migration that makes the table of holders.
const FIRST_MIGRATION: i64 = 1;
/// How often a holder is looked at whose record is wanted.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// The store cannot be used. Sentences for an operator.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("{store} is in use by {holder}. {advice}, or give this one another [store] url")]
    Held {
        /// The database.
        store: String,
        /// Who has it.
        holder: String,
        /// What mends it.
        advice: &'static str,
    },
    /// Waiting does not mend it.
    #[error("{store} {why}")]
    Unusable {
        /// The database.
        store: String,
        /// What does not fit, and what mends it.
        why: String,
    },
}

/// Why it is not open yet.
enum NotYet {
    /// It may come by itself.
    Away(String),
    Never(OpenError),
}

/// See the module.
pub struct PostgresStore {
    db: Arc<Db>,
    me: Me,
    beating: tokio::sync::Mutex<Option<tokio::task::JoinHandle<()>>>,
    doubts: Doubts,
    decisions: Batches<Ask, Decided>,
    speeches: Batches<Speech, Took>,
    /// Somebody here listens to other processes, so they do as well: commits that notify queue up in the server, so none does in vain.
    listens: Arc<AtomicBool>,
    callers_clock: bool,
}

/// The SQLSTATE of an error; empty if it is not the server's.
fn code(error: &sqlx::Error) -> String {
    error.as_database_error().and_then(|e| e.code()).unwrap_or_default().into_owned()
}

/// What an operator can do about an error. Values of callers stand in no message of the server, only in its details.
fn explain(error: &sqlx::Error, shown: &str) -> String {
    match error {
        sqlx::Error::PoolTimedOut => {
            format!("no connection to {shown}: it does not answer, or store.pool_max connections are all in use")
        }
        sqlx::Error::Io(cause) => format!("{shown} cannot be reached: {cause}"),
        sqlx::Error::PoolClosed => "the store is closed".to_owned(),
        sqlx::Error::Database(cause) => match &*code(error) {
            "53100" => format!("the disk of {shown} is full"),
            "25006" => format!("{shown} takes no writes: it is a standby, or set to read only"),
            "57014" => format!("{shown} did not finish a statement within store.statement_timeout_ms"),
            _ => format!("{shown} says: {}", cause.message()),
        },
        other => format!("{shown}: {other}"),
    }
}

/// Whether an error says something of the server or the way to it, not of the write: others would fail as well.
fn is_outside(error: &sqlx::Error) -> bool {
    let code = code(error);
    match error {
        // Connections, resources, intervention, system, authorization, internal; and a server that takes no writes.
        sqlx::Error::Database(_) => {
            ["08", "28", "3D", "53", "57", "58", "XX"].iter().any(|class| code.starts_with(class))
                || ["25006", "42501", "42P01", "3F000"].contains(&code.as_str())
        }
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        _ => false,
    }
}

impl PostgresStore {
    /// Opens the record, for this process alone or beside others that share it, however long its server is away: `waits` is told
    /// why, whenever that changes.
    /// With `migrate`, a missing or older schema is brought up to date; without, it is refused.
    ///
    /// # Errors
    /// Another process has it, does not share it and lives; or waiting does not mend what is wrong.
    pub async fn open(
        settings: &Settings,
        migrate: bool,
        sharing: Sharing,
        waits: impl Fn(&str) + Send,
    ) -> std::result::Result<Self, OpenError> {
        let (mut pause, mut told) = (AGAIN.0, String::new());
        loop {
            match Self::try_open(settings, migrate, sharing, &waits).await {
                Ok(store) => return Ok(store),
                Err(NotYet::Never(error)) => return Err(error),
                Err(NotYet::Away(why)) => {
                    if why != told {
                        warn!(why, "waiting for the store");
                        waits(&why);
                        told = why;
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(AGAIN.1);
        }
    }

    async fn try_open(
        settings: &Settings,
        migrate: bool,
        sharing: Sharing,
        waits: &impl Fn(&str),
    ) -> std::result::Result<Self, NotYet> {
        let me = Me::new(sharing);
        let shown = settings.shown();
        let unusable = |why: String| NotYet::Never(OpenError::Unusable { store: shown.clone(), why });
        let server = inspect::server(settings).await.map_err(|error| match error {
            inspect::Unfit::Away(why) => NotYet::Away(why),
            inspect::Unfit::Unusable(why) => unusable(why),
        })?;
        if let Some(why) = server.unsafe_because() {
            return Err(unusable(why));
        }
        let db = Arc::new(Db::new(settings, !server.pooled).map_err(|e| unusable(explain(&e, &shown)))?);
        let missing = migrate::missing(&db).await;
        // A schema that somebody uses is left alone: it is migrated by whoever has it. The first one makes what is taken.
        let is_made = matches!(&missing, Ok(missing) if !missing.contains(&FIRST_MIGRATION));
        let taken = if is_made { Some(take(&db, &me, waits).await?) } else { None };
        let fits = match (missing, migrate) {
            (Ok(missing), _) if missing.is_empty() => Ok(()),
            (Ok(_), true) => migrate::up_all(&db).await,
            (Ok(_), false) => migrate::check(&db).await,
            (Err(why), _) => Err(why),
        };
        // The server may have gone away meanwhile; then it is asked again.
        if let Err(why) = fits {
            return match inspect::server(settings).await {
                Err(inspect::Unfit::Away(away)) => Err(NotYet::Away(away)),
                _ => Err(unusable(why)),
            };
        }
        let generation = match taken {
            Some(generation) => generation,
            None => take(&db, &me, waits).await?,
        };
        db.generation.store(generation, Ordering::Relaxed);
        if sharing == Sharing::Alone {
            // Whoever took deliveries is gone.
            db.write(|c| Box::pin(messages::take_back(c))).await.map_err(|e| NotYet::Away(e.to_string()))?;
        }
        info!(store = %shown, version = %server.version, pooler = server.pooled, generation, ?sharing, "the record is open");
        let beating = tokio::spawn(beat(db.clone(), me.clone()));
        let (doubts, callers_clock) = (Doubts::default(), settings.callers_clock);
        let decisions = batch::decisions(db.clone(), doubts.clone(), callers_clock);
        let listens = Arc::<AtomicBool>::default();
        let speeches = batch::speeches(db.clone(), listens.clone());
        Ok(Self {
            db,
            me,
            beating: tokio::sync::Mutex::new(Some(beating)),
            doubts,
            decisions,
            speeches,
            listens,
            callers_clock,
        })
    }

    /// Settles a record whose COMMIT got no answer: only then is it certain that it is there, or never will be.
    async fn settle_doubt(&self, call: &CallId) -> Result<()> {
        let Some(xid) = self.doubts.of(call) else { return Ok(()) };
        match self.db.fate(xid).await {
            Fate::Committed | Fate::Aborted => self.doubts.settle(call),
            Fate::Unknown => return Err(StoreError::Unknown(format!("{} has not said it yet", self.db.shown))),
        }
        Ok(())
    }
}

/// Takes the record, waiting for a holder that is no longer heard; or joins those who share it.
async fn take(db: &Db, me: &Me, waits: &impl Fn(&str)) -> std::result::Result<i64, NotYet> {
    let away = |error: sqlx::Error| NotYet::Away(explain(&error, &db.shown));
    let (mut watched, mut since) = (None, Instant::now());
    loop {
        let seen = db.read(|c| Box::pin(holder::look(c))).await.map_err(|e| NotYet::Away(e.to_string()))?;
        let free = match &seen {
            None => true,
            Some(now) if now.is_over(me) || now.is_joined_by(me) => true,
            Some(now) => match watched.replace(now.clone()) {
                None => {
                    since = Instant::now();
                    waits(&format!(
                        "{} is in use by {}; it is taken over if that is not heard for {} s",
                        db.shown,
                        now.who(),
                        SILENCE.as_secs()
                    ));
                    false
                }
                Some(before) if before == *now => since.elapsed() >= SILENCE,
                Some(_) => {
                    return Err(NotYet::Never(OpenError::Held {
                        store: db.shown.clone(),
                        holder: now.who(),
                        advice: me.sharing().advice(),
                    }));
                }
            },
        };
        if free {
            let mut transaction = db.begin_unbound().await.map_err(away)?;
            let taken = holder::take(&mut transaction, me, seen.as_ref()).await.map_err(away)?;
            transaction.commit().await.map_err(away)?;
            if let Some(generation) = taken {
                return Ok(generation);
            }
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

/// Says that this process lives, for as long as it has the record.
async fn beat(db: Arc<Db>, me: Me) {
    while !db.lost.load(Ordering::Relaxed) {
        tokio::select! {
            () = db.closed.cancelled() => return,
            () = tokio::time::sleep(BEAT_EVERY) => {}
        }
        // What keeps it from being written is logged where writes are.
        let me = me.clone();
        let _ = db.write(move |c| Box::pin(holder::beat(c, me.clone()))).await;
    }
}

/// Refuses while a process has the record and is heard.
async fn refuse_while_held(db: &Db) -> std::result::Result<(), String> {
    let me = Me::new(Sharing::Alone);
    let Some(first) = inspect::living_holder(db, &me).await.map_err(|e| e.to_string())? else { return Ok(()) };
    let watching = Instant::now();
    while watching.elapsed() < SILENCE {
        tokio::time::sleep(WATCH_EVERY).await;
        match inspect::living_holder(db, &me).await.map_err(|e| e.to_string())? {
            None => return Ok(()),
            Some(now) if now != first => return Err(format!("is in use by {}: stop it first", now.who())),
            Some(_) => {}
        }
    }
    Ok(())
}

#[async_trait]
impl Store for PostgresStore {
    async fn open(&self, call: NewCall, epoch: Option<i64>) -> Result<Opened> {
        let id = call.id.clone();
        let lock = if epoch.is_some() { Gate::Shared } else { Gate::Open };
        let opened = self.db.write_at(lock, move |c, state| Box::pin(gate::open(c, call.clone(), epoch, state))).await;
        opened.map_err(|failed| self.doubts.note([&id].into_iter(), failed))
    }

    async fn admit(&self, call: NewCall, order: Order, epoch: i64) -> Result<Decided> {
        self.decisions.run(Ask { call, order, epoch }).await
    }

    async fn confirm(&self, call: &CallId, keys: Vec<String>, epoch: Option<i64>) -> Result<Confirmed> {
        let call = call.clone();
        let lock = if epoch.is_some() { Gate::Shared } else { Gate::Open };
        let confirmed = self
            .db
            .write_at(lock, move |c, state| Box::pin(gate::confirm(c, call.clone(), keys.clone(), epoch, state)));
        confirmed.await.map_err(|(error, _)| error)
    }

    async fn gate_state(&self) -> Result<GateState> {
        self.db.read(|c| Box::pin(gate::read_state(c))).await
    }

    async fn identity(&self) -> Result<String> {
        self.db.read(|c| Box::pin(gate::read_identity(c))).await
    }

    async fn advance(&self, from: i64, to: GateMode, policy: Arc<Policy>, now_ms: UnixMs) -> Result<Option<Advanced>> {
        let at_ms = self.callers_clock.then_some(now_ms);
        self.db.write(move |c| Box::pin(gate::advance(c, from, to, policy.clone(), at_ms))).await
    }

    async fn leases(&self) -> Result<Vec<Held>> {
        self.db.read(|c| Box::pin(gate::leases(c))).await
    }

    async fn find_orders(&self, fingerprint: &str, since_ms: UnixMs) -> Result<Vec<OrderRecord>> {
        let fingerprint = fingerprint.to_owned();
        self.db.read(move |c| Box::pin(replicas::find_orders(c, fingerprint.clone(), since_ms))).await
    }

    async fn take_order(&self, order: &OrderRecord, me: &str, is_dead: bool) -> Result<bool> {
        let (order, me) = (order.clone(), me.to_owned());
        self.db.write(move |c| Box::pin(replicas::take_order(c, order.clone(), me.clone(), is_dead))).await
    }

    async fn undelivered(&self, call: &CallId, me: &str) -> Result<()> {
        let (call, me) = (call.clone(), me.to_owned());
        self.db.write(move |c| Box::pin(replicas::undelivered(c, call.clone(), me.clone()))).await
    }

    async fn apply(&self, change: Change) -> Result<Option<Applied>> {
        self.settle_doubt(&change.call).await?;
        self.db.write(move |c| Box::pin(calls::apply(c, change.clone()))).await
    }

    async fn keep_early(
        &self,
        aliases: Vec<Alias>,
        event: Event,
        by: Option<Voucher>,
        at_ms: UnixMs,
    ) -> Result<Option<CallId>> {
        self.db.write(move |c| Box::pin(calls::keep_early(c, aliases.clone(), event, by.clone(), at_ms))).await
    }

    async fn resolve(&self, aliases: &[Alias]) -> Result<Option<CallId>> {
        let aliases = aliases.to_vec();
        self.db
            .read(move |c| {
                let aliases = aliases.clone();
                Box::pin(async move { calls::resolve(c, &aliases).await })
            })
            .await
    }

    async fn create_answer(&self, call: &CallId, fingerprint: &str) -> Result<Option<CreateAnswer>> {
        let (call, fingerprint) = (call.clone(), fingerprint.to_owned());
        self.db.read(move |c| Box::pin(answers::read(c, call.clone(), fingerprint.clone()))).await
    }

    async fn call(&self, id: &CallId) -> Result<Option<CallRecord>> {
        let id = id.clone();
        self.db
            .read(move |c| {
                let id = id.clone();
                Box::pin(async move { calls::one(c, &id).await })
            })
            .await
    }

    async fn open_calls(&self) -> Result<Vec<CallRecord>> {
        self.db.read(|c| Box::pin(calls::open_calls(c))).await
    }

    async fn unanswered_orders(&self, account: &AccountName, kind: &str) -> Result<Vec<CallRecord>> {
        let (account, kind) = (account.clone(), kind.to_owned());
        self.db
            .read(move |c| {
                let (account, kind) = (account.clone(), kind.clone());
                Box::pin(async move { calls::unanswered_orders(c, account.as_str(), &kind).await })
            })
            .await
    }

    async fn latest_calls(&self, limit: u32) -> Result<Vec<CallRecord>> {
        self.db.read(|c| Box::pin(calls::latest(c, limit))).await
    }

    async fn admitted_since(&self, since_ms: UnixMs) -> Result<Vec<(UnixMs, Facts)>> {
        self.db.read(|c| Box::pin(calls::admitted_since(c, since_ms))).await
    }

    async fn receive(&self, event: NewEvent) -> Result<Received> {
        self.db.write(move |c| Box::pin(messages::receive(c, event.clone()))).await
    }

    async fn settle(
        &self,
        event_id: &str,
        call: Option<&CallId>,
        outcome: &str,
        delivery: Option<Delivery>,
        at_ms: UnixMs,
    ) -> Result<bool> {
        let (event_id, call, outcome) = (event_id.to_owned(), call.cloned(), outcome.to_owned());
        self.db
            .write(move |c| {
                let (event_id, call, outcome) = (event_id.clone(), call.clone(), outcome.clone());
                Box::pin(messages::settle(c, event_id, call, outcome, delivery.clone(), at_ms))
            })
            .await
    }

    async fn unsettled_events(&self, before_ms: UnixMs, reach: &Reach, after: &Place, limit: u32) -> Result<Waiting> {
        self.db.read(|c| Box::pin(messages::unsettled(c, before_ms, reach.clone(), after.clone(), limit))).await
    }

    async fn take_deliveries(&self, at_ms: UnixMs, limit: u32, spool: &str, strict: bool) -> Result<Vec<Delivery>> {
        let spool = spool.to_owned();
        self.db.write(move |c| Box::pin(messages::take(c, at_ms, limit, spool.clone(), strict))).await
    }

    async fn delivered(
        &self,
        id: &str,
        at_ms: UnixMs,
        result: std::result::Result<(), (String, Option<UnixMs>)>,
    ) -> Result<()> {
        let id = id.to_owned();
        self.db.write(move |c| Box::pin(messages::delivered(c, id.clone(), at_ms, result.clone()))).await
    }

    async fn refused(&self, refusals: Vec<RefusalRecord>) -> Result<()> {
        if refusals.is_empty() {
            return Ok(());
        }
        let refusals: Arc<[RefusalRecord]> = refusals.into();
        self.db
            .write(move |c| {
                let refusals = refusals.clone();
                Box::pin(async move { messages::refused(c, &refusals).await })
            })
            .await
    }

    async fn latest_refusals(&self, limit: u32) -> Result<Vec<RefusalRecord>> {
        self.db.read(|c| Box::pin(messages::latest_refusals(c, limit))).await
    }

    async fn businesses(&self) -> Result<Vec<Business>> {
        self.db.read(|c| Box::pin(messages::businesses(c))).await
    }

    async fn put_business(&self, business: &Business, at_ms: UnixMs) -> Result<bool> {
        let business = business.clone();
        self.db.write(move |c| Box::pin(messages::put_business(c, business.clone(), at_ms))).await
    }

    async fn put_businesses(&self, businesses: Vec<Business>, at_ms: UnixMs) -> Result<usize> {
        let businesses = Arc::new(businesses);
        self.db.write(move |c| Box::pin(messages::put_businesses(c, businesses.clone(), at_ms))).await
    }

    async fn delete_business(&self, id: &str) -> Result<bool> {
        let id = id.to_owned();
        self.db.write(move |c| Box::pin(messages::delete_business(c, id.clone()))).await
    }

    async fn beat(&self, me: &Replica) -> Result<Fleet> {
        let me = me.clone();
        self.db.write(move |c| Box::pin(replicas::beat(c, me.clone()))).await
    }

    async fn leave(&self, id: &str) -> Result<()> {
        let id = id.to_owned();
        self.db.write(move |c| Box::pin(replicas::leave(c, id.clone()))).await
    }

    async fn ping(&self) -> Result<()> {
        if self.db.lost.load(Ordering::Relaxed) {
            return Err(self.db.lost_error());
        }
        // While writes fail, nothing less than a write says that they do no longer.
        if self.db.health.is_failing() {
            let me = self.me.clone();
            return self.db.write(move |c| Box::pin(holder::beat(c, me.clone()))).await;
        }
        self.db.read(|c| Box::pin(async move { query("SELECT 1").execute(c).await.map(drop) })).await
    }

    fn failed_writes(&self) -> u64 {
        self.db.health.failed()
    }

    async fn close(&self) {
        // The next process need not wait to see whether this one still lives.
        let me = self.me.clone();
        if let Err(error) = self.db.write(move |c| Box::pin(holder::give_up(c, me.clone()))).await {
            warn!(%error, "the record could not be given up; the next process waits {} s for it", SILENCE.as_secs());
        }
        self.db.close().await;
        if let Some(beating) = self.beating.lock().await.take() {
            let _ = beating.await;
        }
    }
}

async fn session(c: &mut PgConnection) -> Sql<i32> {
    sqlx::raw_sql("SELECT pg_backend_pid() AS pid").fetch_one(c).await?.try_get("pid")
}

/// Whether two transactions of two connections ran in one session, or two of one connection in two: only a pooler does that.
async fn is_pooled(settings: &Settings) -> Sql<bool> {
    use sqlx::ConnectOptions as _;
    let options = settings.options()?.statement_cache_capacity(0);
    let (mut one, mut other) = (options.connect().await?, options.connect().await?);
    let mut pooled = false;
    for _ in 0..3 {
        let first = session(&mut one).await?;
        sqlx::raw_sql("BEGIN").execute(&mut other).await?;
        let second = session(&mut other).await?;
        let third = session(&mut one).await?;
        sqlx::raw_sql("ROLLBACK").execute(&mut other).await?;
        pooled |= first == second || first != third;
    }
    let _ = tokio::join!(one.close(), other.close());
    Ok(pooled)
}

#[cfg(test)]
pub(crate) mod tests;
