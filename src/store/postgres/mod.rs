//! The store for production: Postgres, in a schema of its own.
//!
//! Where SQLite has a single writer, transactions here use locks: one for the ids that a change touches, one for its call. One
//! process owns the database at a time, or several share it (`ownership.rs`), and every write is bound to that ownership
//! (`transaction.rs`).

mod batch;
mod driver;
mod gate;
pub mod inspect;
pub mod leads;
pub mod migrate;
mod ownership;
mod settings;
mod sql;
mod transaction;
mod utterance_batch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tracing::{info, warn};

use super::driver::{Backend, Db as Connection, Work};
use super::queries::messages;
use super::{
    AdmitOutcome, IngestOutcome, Migrate, NewCall, NewUtterance, OnSignal, OwnershipMode, Result, StoreError,
    UtteranceIngest, UtteranceRef,
};
use crate::clock::UnixMs;
use crate::ids::CallId;
use crate::policy::decision::{AdmissionRequest, GateState};
use crate::provider::secret::Secret;
use batch::{Batches, InDoubt};
use driver::Pg;
use gate::PendingAdmission;
use ownership::{OWNER_HEARTBEAT_INTERVAL, OWNER_TIMEOUT, ProcessId, WATCH_EVERY};
pub use settings::{Pooler, PostgresSettings, TimeOf};
use sql::{explain, query};
use transaction::{CommitOutcome, Db, Sessions, TransitionLock};

/// The shortest and longest pause between two connection attempts at the start.
const RETRY_DELAY_MIN: Duration = Duration::from_millis(250);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(5);
/// The migration that creates the table of owners.
const FIRST_MIGRATION: i64 = 1;

/// The store cannot be used. Sentences for an operator.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process owns it.
    #[error("{store} is in use by {holder}. {advice}, or give this one another [store] url")]
    Held {
        /// The database.
        store: String,
        /// The owner.
        holder: String,
        /// Advice to the operator.
        advice: &'static str,
    },
    /// Waiting does not help.
    #[error("{store} {why}")]
    Unusable {
        /// The database.
        store: String,
        /// The fault, and what to do about it.
        why: String,
    },
}

/// The reason why it is not open yet.
enum NotYet {
    /// Waiting may help.
    Away(String),
    Never(OpenError),
}

/// The store in Postgres.
pub struct PostgresStore {
    db: Arc<Db>,
    me: ProcessId,
    beating: tokio::sync::Mutex<Option<tokio::task::JoinHandle<()>>>,
    doubts: InDoubt,
    decisions: Batches<PendingAdmission, AdmitOutcome>,
    ingests: Batches<UtteranceIngest, IngestOutcome>,
    /// A task here listens to other processes, and so they do: commits that notify are serialised in the server, so they notify
    /// only if needed.
    listens: Arc<AtomicBool>,
    /// Names this store among the senders of notifications.
    sender_id: String,
    time_of: TimeOf,
}

impl PostgresStore {
    /// Opens the database, exclusively or shared, however long its server is unavailable: `waits` gets the reason whenever it
    /// changes. `migrate`: what becomes of a missing or older schema.
    ///
    /// # Errors
    /// A live process owns it and does not share it; or waiting does not help.
    pub async fn open(
        settings: &PostgresSettings,
        migrate: Migrate,
        sharing: OwnershipMode,
        waits: impl Fn(&str) + Send,
    ) -> std::result::Result<Self, OpenError> {
        let (mut pause, mut told) = (RETRY_DELAY_MIN, String::new());
        loop {
            match Self::try_open(settings, migrate, sharing, &waits).await {
                Ok(store) => return Ok(store),
                Err(NotYet::Never(error)) => return Err(error),
                Err(NotYet::Away(why)) => {
                    if why != told {
                        warn!(why, "failed to open the store; retrying");
                        waits(&why);
                        told = why;
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_DELAY_MAX);
        }
    }

    async fn try_open(
        settings: &PostgresSettings,
        migrate: Migrate,
        sharing: OwnershipMode,
        waits: &impl Fn(&str),
    ) -> std::result::Result<Self, NotYet> {
        let me = ProcessId::new(sharing);
        let shown = settings.shown();
        let unusable = |why: String| NotYet::Never(OpenError::Unusable { store: shown.clone(), why });
        let server = inspect::server(settings).await.map_err(|error| match error {
            inspect::Unfit::Away(why) => NotYet::Away(why),
            inspect::Unfit::Unusable(why) => unusable(why),
        })?;
        if let Some(why) = server.unsafe_because() {
            return Err(unusable(why));
        }
        let sessions = if server.pooled { Sessions::Pooled } else { Sessions::Kept };
        let db = Arc::new(Db::new(settings, sessions).map_err(|e| unusable(explain(&e, &shown)))?);
        let missing = migrate::missing(&db).await;
        // A schema in use is not migrated: its user does that. The first migration creates the table of owners.
        let is_made = matches!(&missing, Ok(missing) if !missing.contains(&FIRST_MIGRATION));
        let taken = if is_made { Some(take(&db, &me, waits).await?) } else { None };
        let fits = match (missing, migrate) {
            (Ok(missing), _) if missing.is_empty() => Ok(()),
            (Ok(_), Migrate::Run) => migrate::up_all(&db).await,
            (Ok(_), Migrate::Reject) => migrate::check(&db).await,
            (Err(why), _) => Err(why),
        };
        // The server may have become unavailable meanwhile; then it is retried.
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
        if sharing == OwnershipMode::Exclusive {
            // The process that claimed deliveries is gone.
            let take_back =
                db.write(|c| Box::pin(async move { query(messages::TAKE_BACK).execute(c).await.map(drop) }));
            take_back.await.map_err(|e| NotYet::Away(e.to_string()))?;
        }
        info!(store = %shown, version = %server.version, pooler = server.pooled, generation, ?sharing, "database opened");
        let beating = tokio::spawn(heartbeat(db.clone(), me.clone()));
        let (doubts, time_of) = (InDoubt::default(), settings.time_of);
        let decisions = batch::decisions(db.clone(), doubts.clone(), time_of);
        let listens = Arc::<AtomicBool>::default();
        let ingests = batch::ingests(db.clone(), listens.clone());
        Ok(Self {
            db,
            me,
            beating: tokio::sync::Mutex::new(Some(beating)),
            doubts,
            decisions,
            ingests,
            listens,
            sender_id: ulid::Ulid::new().to_string(),
            time_of,
        })
    }
}

/// Takes ownership, waiting for an owner without heartbeats; or joins those who share it.
async fn take(db: &Db, me: &ProcessId, waits: &impl Fn(&str)) -> std::result::Result<i64, NotYet> {
    let away = |error: sqlx::Error| NotYet::Away(explain(&error, &db.shown));
    let (mut watched, mut since) = (None, Instant::now());
    loop {
        let seen = db.read(|c| Box::pin(ownership::read_owner(c))).await.map_err(|e| NotYet::Away(e.to_string()))?;
        let free = match &seen {
            None => true,
            Some(now) if now.is_over(me) || now.is_joined_by(me) => true,
            Some(now) => match watched.replace(now.clone()) {
                None => {
                    since = Instant::now();
                    waits(&format!(
                        "{} is in use by {}; it is taken over after {} s without a heartbeat",
                        db.shown,
                        now.who(),
                        OWNER_TIMEOUT.as_secs()
                    ));
                    false
                }
                Some(before) if before == *now => since.elapsed() >= OWNER_TIMEOUT,
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
            let taken = ownership::take(&mut transaction, me, seen.as_ref()).await.map_err(away)?;
            transaction.commit().await.map_err(away)?;
            if let Some(generation) = taken {
                return Ok(generation);
            }
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

/// Sends heartbeats, as long as this process has ownership.
async fn heartbeat(db: Arc<Db>, me: ProcessId) {
    while !db.lost.load(Ordering::Relaxed) {
        tokio::select! {
            () = db.closed.cancelled() => return,
            () = tokio::time::sleep(OWNER_HEARTBEAT_INTERVAL) => {}
        }
        // Failed writes are logged where writes are.
        let me = me.clone();
        let _ = db.write(move |c| Box::pin(ownership::heartbeat(c, me.clone()))).await;
    }
}

#[async_trait]
impl Backend for PostgresStore {
    fn reconnect_with(&self, url: &Secret) {
        self.db.reconnect_with(url);
    }

    async fn read<A, T, F>(&self, args: A, work: F) -> Result<T>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
        F: for<'c> Fn(Connection<'c>, &'c A) -> Work<'c, T> + Send + Sync + 'static,
    {
        let work = Arc::new((args, work));
        let read = self.db.read(move |c| {
            let work = work.clone();
            Box::pin(async move { Ok((work.1)(&mut Pg(c), &work.0).await?) })
        });
        read.await
    }

    async fn write<A, T, F>(&self, args: A, work: F) -> Result<T>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
        F: for<'c> Fn(Connection<'c>, &'c A) -> Work<'c, T> + Send + Sync + 'static,
    {
        let work = Arc::new((args, work));
        let write = self.db.write(move |c| {
            let work = work.clone();
            Box::pin(async move { Ok((work.1)(&mut Pg(c), &work.0).await?) })
        });
        write.await
    }

    /// With an epoch, the pool's row is locked from the beginning.
    async fn write_under<A, T, F>(
        &self,
        epoch: Option<i64>,
        call: &CallId,
        args: A,
        work: F,
    ) -> Result<std::result::Result<T, GateState>>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
        F: for<'c> Fn(Connection<'c>, &'c A) -> Work<'c, T> + Send + Sync + 'static,
    {
        let lock = if epoch.is_some() { TransitionLock::Shared } else { TransitionLock::None };
        let work = Arc::new((args, work));
        let written = self.db.write_at(lock, move |c, state| {
            let work = work.clone();
            Box::pin(async move {
                match state.filter(|state| epoch.is_some_and(|epoch| epoch != state.epoch)) {
                    Some(now) => Ok(Err(now)),
                    None => Ok(Ok((work.1)(&mut Pg(c), &work.0).await?)),
                }
            })
        });
        written.await.map_err(|failed| self.doubts.note([call].into_iter(), failed))
    }

    /// Settles a COMMIT without an answer: until then it is unknown whether the record exists.
    async fn settle_doubt(&self, call: &CallId) -> Result<()> {
        let Some(transaction) = self.doubts.of(call) else { return Ok(()) };
        match self.db.commit_outcome(&transaction).await {
            // Whether it made the record is read from the record.
            CommitOutcome::Committed | CommitOutcome::Aborted | CommitOutcome::Indeterminate => {
                self.doubts.settle(call)
            }
            CommitOutcome::Unknown => {
                return Err(StoreError::Unknown(format!("commit outcome still unknown at {}", self.db.shown)));
            }
        }
        Ok(())
    }

    fn transition_time(&self, now_ms: UnixMs) -> Option<UnixMs> {
        (self.time_of == TimeOf::Caller).then_some(now_ms)
    }

    async fn decide(&self, call: NewCall, request: AdmissionRequest, epoch: i64) -> Result<AdmitOutcome> {
        self.decisions.run(PendingAdmission { call, request, epoch }).await
    }

    async fn put_utterance(&self, call: &CallId, said: NewUtterance) -> Result<Option<UtteranceRef>> {
        let (said, notifies) = (Arc::new((call.clone(), said)), self.listens.load(Ordering::Relaxed));
        let put = self.db.write(move |c| {
            let said = said.clone();
            Box::pin(async move { utterance_batch::add(c, &said.0, &said.1, notifies).await })
        });
        put.await
    }

    async fn ingest_utterance(&self, ingested: UtteranceIngest) -> Result<IngestOutcome> {
        self.ingests.run(ingested).await
    }

    async fn listen_for_signals(&self, on_signal: OnSignal) {
        // Behind a pooler there is no session to listen in.
        if !self.db.keeps_sessions() {
            return;
        }
        self.listens.store(true, Ordering::Relaxed);
        let stopped = tokio::select! {
            () = self.db.closed.cancelled() => return,
            stopped = utterance_batch::listen(&self.db.pool, &self.sender_id, on_signal) => stopped,
        };
        self.listens.store(false, Ordering::Relaxed);
        if let Err(error) = stopped {
            warn!(store = %self.db.shown, %error, "failed to subscribe to other replicas, or the subscription is lost; polling instead");
        }
    }

    async fn wake_remote_diallers(&self) -> Result<()> {
        if !self.listens.load(Ordering::Relaxed) {
            return Ok(());
        }
        let me = self.sender_id.clone();
        self.db
            .write(move |c| {
                let me = me.clone();
                Box::pin(async move { utterance_batch::wake_remote_diallers(c, &me).await })
            })
            .await
    }

    async fn probe(&self) -> Result<()> {
        if self.db.lost.load(Ordering::Relaxed) {
            return Err(self.db.lost_error());
        }
        // While writes fail, only a write can show that they work again.
        if self.db.health.is_failing() {
            let me = self.me.clone();
            return self.db.write(move |c| Box::pin(ownership::heartbeat(c, me.clone()))).await;
        }
        self.db.read(|c| Box::pin(async move { query("SELECT 1").execute(c).await.map(drop) })).await
    }

    fn failures(&self) -> u64 {
        self.db.health.failed()
    }

    async fn shut(&self) {
        // Spares the next process the wait for this one's heartbeats.
        let me = self.me.clone();
        if let Err(error) = self.db.write(move |c| Box::pin(ownership::give_up(c, me.clone()))).await {
            warn!(%error, "failed to release database ownership; the next process waits {} s for it", OWNER_TIMEOUT.as_secs());
        }
        self.db.close().await;
        if let Some(beating) = self.beating.lock().await.take() {
            let _ = beating.await;
        }
    }
}

#[cfg(test)]
mod commit_tests;
#[cfg(test)]
pub(crate) mod tests;
