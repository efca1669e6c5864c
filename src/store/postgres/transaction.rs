//! Transactions, each in a task of its own: if the waiter is dropped, the write is finished nevertheless.
//!
//! Session settings are set within each transaction, in one round trip with its BEGIN, so that a pooler may give every
//! transaction another session. That round trip also locks the ownership, and reads the transaction's number: if the answer to a
//! COMMIT is lost, the server can tell its outcome, unless it has crashed since. Concurrent writes share flushes in the server
//! (group commit).

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgConnection, Postgres, Row as _};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::super::driver::damaged;
use super::super::health::Health;
use super::super::row::Row;
use super::super::rows::gate_state;
use super::super::usage::POOL;
use super::super::{Result, StoreError};
use super::PostgresSettings;
use super::sql::{PREPARED, Sql, code, explain, is_outside};
use crate::failpoint;
use crate::policy::decision::GateState;
use crate::provider::secret::Secret;
use crate::sync::lock;

/// The time that a write waits for the outcome of its COMMIT.
const SETTLE_WITHIN: Duration = Duration::from_secs(3);
/// The pause between two such queries.
const COMMIT_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The most retries of a transaction after deadlocks and serialisation failures.
const RETRIES_MAX: u32 = 5;
/// The schema. The app may have tables of the same names in its own.
pub(super) const SCHEMA: &str = "ringfence";

/// The advisory lock that queues transitions with those who share the lock of the pool's row. Two numbers: locks of ids use one.
pub(super) const ADVISORY_LOCK_KEY: &str = "1919904103, 1";

/// What becomes of a session between two transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sessions {
    /// It is kept: statements are prepared once in it.
    Kept,
    /// A pooler may change it: nothing is prepared.
    Pooled,
}

pub(super) struct Db {
    pub(super) pool: PgPool,
    /// The URL, without a password.
    pub(super) shown: String,
    pub(super) health: Health,
    pub(super) closed: CancellationToken,
    statement_timeout: Duration,
    prepare: bool,
    /// The generation of this process's ownership.
    pub(super) generation: AtomicI64,
    /// Another process has taken ownership.
    pub(super) lost: AtomicBool,
    /// The server run that was last seen.
    run: SeenRun,
}

/// Identifies a run of the server: it begins with a start, a promotion, or a recovery from a crash.
type ServerRun = Arc<str>;
type SeenRun = Arc<Mutex<ServerRun>>;

/// A recovery after a crash of one session leaves the start time as it is, and resets the statistics.
const SERVER_RUN: &str =
    "SELECT concat(pg_postmaster_start_time(), ' ', (SELECT stats_reset FROM pg_stat_bgwriter)) AS run";

/// A transaction. A server that recovers from a crash gives the numbers of transactions that left no trace in its log to later
/// ones: what it says of a number holds within one run only.
#[derive(Debug, Clone)]
pub(super) struct TransactionId {
    xid: i64,
    run: ServerRun,
}

/// The lock by which a write blocks transitions of the limiter, from its BEGIN on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TransitionLock {
    /// Not at all.
    None,
    /// Together with others.
    Shared,
    /// Exclusively, as the limiter.
    Exclusive,
}

/// The outcome of a COMMIT.
pub(super) enum CommitOutcome {
    Committed,
    Aborted,
    /// Committed or aborted; the server has restarted, and can no longer tell which.
    Indeterminate,
    /// Possibly still in progress.
    Unknown,
}

impl TransitionLock {
    /// The statements after BEGIN, in the same round trip. The row is locked before any other.
    fn statements(self) -> String {
        let (queue, lock) = match self {
            Self::None => return String::new(),
            // Shared lockers of a row overtake waiting exclusive ones: a transition would starve.
            Self::Shared => (format!("; SELECT pg_advisory_xact_lock_shared({ADVISORY_LOCK_KEY})"), "SHARE"),
            Self::Exclusive => (String::new(), "UPDATE"),
        };
        format!("{queue}; SELECT epoch, mode FROM gate_state WHERE pool = '{POOL}' FOR {lock}")
    }
}

/// A connection that returns to the pool only explicitly: one within a transaction is closed.
struct Session(Option<PoolConnection<Postgres>>);

impl Session {
    fn connection(&mut self) -> Sql<&mut PgConnection> {
        self.0.as_deref_mut().ok_or(sqlx::Error::WorkerCrashed)
    }

    fn return_to_pool(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(mut connection) = self.0.take() {
            connection.close_on_drop();
        }
    }
}

/// The end of an attempt without a result.
enum TxError {
    /// Nothing was written, and the session was stale: others may work.
    Stale(sqlx::Error),
    /// Nothing was written; the server aborted this transaction to end a deadlock, or as not serialisable: it is retried.
    Retry(sqlx::Error),
    /// Nothing was written.
    Failed(sqlx::Error),
    /// Nothing was written: another process has ownership.
    Lost,
    /// The COMMIT got no answer.
    Unknown(TransactionId, sqlx::Error),
}

fn options(settings: &PostgresSettings, prepare: bool) -> std::result::Result<PgConnectOptions, sqlx::Error> {
    let options = settings.options()?;
    Ok(if prepare { options } else { options.statement_cache_capacity(0) })
}

impl Db {
    pub(super) fn new(settings: &PostgresSettings, sessions: Sessions) -> std::result::Result<Self, sqlx::Error> {
        let prepare = sessions == Sessions::Kept;
        let options = options(settings, prepare)?;
        let run = SeenRun::new(Mutex::new("".into()));
        let seen = run.clone();
        let pool = PgPoolOptions::new()
            .after_connect(move |c, _| {
                let seen = seen.clone();
                Box::pin(async move {
                    let now = server_run(c).await?;
                    *lock(&seen) = now;
                    Ok(())
                })
            })
            .max_connections(settings.pool_max)
            .acquire_timeout(settings.acquire_timeout)
            // It would cost a round trip per use; a stale session is noticed at BEGIN.
            .test_before_acquire(false)
            .connect_lazy_with(options);
        Ok(Self {
            pool,
            shown: settings.shown(),
            health: Health::default(),
            closed: CancellationToken::new(),
            statement_timeout: settings.statement_timeout,
            prepare,
            generation: AtomicI64::new(0),
            lost: AtomicBool::new(false),
            run,
        })
    }

    /// Uses the user and the password of this URL for new connections.
    pub(super) fn reconnect_with(&self, url: &Secret) {
        let options =
            PostgresSettings::new(url.clone()).ok().and_then(|settings| options(&settings, self.prepare).ok());
        if let Some(options) = options {
            self.pool.set_connect_options(options);
        }
    }

    /// Whether session state survives to the next transaction: there is no pooler.
    pub(super) fn keeps_sessions(&self) -> bool {
        self.prepare
    }

    fn settings_of_transaction(&self) -> String {
        let ms = self.statement_timeout.as_millis();
        // A client that vanishes must not hold its locks for long.
        format!(
            "SET LOCAL search_path TO {SCHEMA}, pg_temp; SET LOCAL statement_timeout = {ms}; \
             SET LOCAL idle_in_transaction_session_timeout = {}",
            ms * 2
        )
    }

    /// The wait for an answer. Longer than the server's statement time-out: it ends the wait for a dead server.
    fn answer_timeout(&self) -> Duration {
        self.statement_timeout + Duration::from_secs(1)
    }

    /// Waits for an answer of the server, within [`Self::answer_timeout`].
    async fn with_timeout<T>(&self, work: impl Future<Output = Sql<T>>) -> Sql<T> {
        match tokio::time::timeout(self.answer_timeout(), work).await {
            Ok(done) => done,
            Err(_) => Err(sqlx::Error::Io(std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                format!("the server does not answer within {} s", self.answer_timeout().as_secs()),
            ))),
        }
    }

    /// Begins a transaction that is not bound to an owner: the one that makes an owner.
    pub(super) async fn begin_unbound(&self) -> Sql<sqlx::Transaction<'static, Postgres>> {
        let begin = format!("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; {}", self.settings_of_transaction());
        self.pool.begin_with(AssertSqlSafe(begin)).await
    }

    // === reads ===

    /// Runs a read in one snapshot.
    pub(super) async fn read<T, F>(&self, work: F) -> Result<T>
    where
        F: for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, Sql<T>>,
    {
        let begin = format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {}", self.settings_of_transaction());
        let mut tries = 0;
        loop {
            let read = self.try_read(&begin, &work).await;
            match read {
                Ok(value) => return Ok(value),
                // Sessions that the server has closed stay in the pool until they are used.
                Err(error) if is_gone(&error) && tries <= self.pool.options().get_max_connections() => tries += 1,
                Err(error) => return Err(self.error(&error)),
            }
        }
    }

    async fn try_read<T, F>(&self, begin: &str, work: &F) -> Sql<T>
    where
        F: for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, Sql<T>>,
    {
        let mut session = Session(Some(self.pool.acquire().await?));
        let c = session.connection()?;
        self.with_timeout(async { sqlx::raw_sql(AssertSqlSafe(begin.to_owned())).execute(&mut *c).await }).await?;
        let value = self.with_timeout(PREPARED.scope(self.prepare, work(&mut *c))).await?;
        self.with_timeout(async { sqlx::raw_sql("COMMIT").execute(&mut *c).await }).await?;
        session.return_to_pool();
        Ok(value)
    }

    // === writes ===

    /// Runs a write and returns when it is durable, or certainly not made. Only if the server is unavailable for longer than
    /// [`SETTLE_WITHIN`] after a lost COMMIT the outcome is unknown.
    pub(super) async fn write<T, F>(self: &Arc<Self>, work: F) -> Result<T>
    where
        F: for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, Sql<T>> + Send + Sync + 'static,
        T: Send + 'static,
    {
        self.write_or_doubt(work).await.map_err(|(error, _)| error)
    }

    /// Runs a write; an unknown outcome comes with the number of its transaction.
    pub(super) async fn write_or_doubt<T, F>(
        self: &Arc<Self>,
        work: F,
    ) -> std::result::Result<T, (StoreError, Option<TransactionId>)>
    where
        F: for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, Sql<T>> + Send + Sync + 'static,
        T: Send + 'static,
    {
        self.write_at(TransitionLock::None, move |c, _| work(c)).await
    }

    /// Runs a write while transitions are blocked; the work gets the pool's state, unless they are not.
    pub(super) async fn write_at<T, F>(
        self: &Arc<Self>,
        transition_lock: TransitionLock,
        work: F,
    ) -> std::result::Result<T, (StoreError, Option<TransactionId>)>
    where
        F: for<'c> Fn(&'c mut PgConnection, Option<GateState>) -> BoxFuture<'c, Sql<T>> + Send + Sync + 'static,
        T: Send + 'static,
    {
        let this = self.clone();
        let written = tokio::spawn(async move { this.write_now(transition_lock, &work).await });
        written.await.unwrap_or_else(|_| {
            self.health.count(1);
            // Its session was closed before a COMMIT was sent: it was rolled back.
            Err((StoreError::Failed("the write panicked".to_owned()), None))
        })
    }

    async fn write_now<T, F>(
        &self,
        transition_lock: TransitionLock,
        work: &F,
    ) -> std::result::Result<T, (StoreError, Option<TransactionId>)>
    where
        F: for<'c> Fn(&'c mut PgConnection, Option<GateState>) -> BoxFuture<'c, Sql<T>>,
        T: Send,
    {
        let (mut stale, mut retries) = (0, 0);
        let failed = loop {
            let mut value = None;
            match self.try_write(transition_lock, work, &mut value).await {
                Ok(()) => match value {
                    Some(value) => {
                        self.health.note(None);
                        return Ok(value);
                    }
                    None => break StoreError::Failed("the write was not run".to_owned()),
                },
                Err(TxError::Stale(_)) if stale <= self.pool.options().get_max_connections() => stale += 1,
                Err(TxError::Retry(_)) if retries < RETRIES_MAX => {
                    retries += 1;
                    tokio::time::sleep(Duration::from_millis(u64::from(retries) * 5)).await;
                }
                Err(TxError::Stale(error) | TxError::Retry(error) | TxError::Failed(error)) => {
                    let failed = self.error(&error);
                    if is_outside(&error) {
                        self.health.note(Some(&failed));
                    }
                    break failed;
                }
                Err(TxError::Lost) => {
                    let lost = self.lost_error();
                    self.health.note(Some(&lost));
                    break lost;
                }
                Err(TxError::Unknown(transaction, error)) => match (self.commit_outcome(&transaction).await, value) {
                    (CommitOutcome::Committed, Some(value)) => {
                        self.health.note(None);
                        return Ok(value);
                    }
                    (CommitOutcome::Aborted, _) | (CommitOutcome::Committed, None) => break self.error(&error),
                    (CommitOutcome::Indeterminate | CommitOutcome::Unknown, _) => {
                        let unknown = StoreError::Unknown(explain(&error, &self.shown));
                        self.health.note(Some(&unknown));
                        self.health.count(1);
                        return Err((unknown, Some(transaction)));
                    }
                },
            }
        };
        self.health.count(1);
        Err((failed, None))
    }

    async fn try_write<T, F>(
        &self,
        transition_lock: TransitionLock,
        work: &F,
        value: &mut Option<T>,
    ) -> std::result::Result<(), TxError>
    where
        F: for<'c> Fn(&'c mut PgConnection, Option<GateState>) -> BoxFuture<'c, Sql<T>>,
    {
        if self.lost.load(Ordering::Relaxed) {
            return Err(TxError::Lost);
        }
        let mut session = Session(Some(self.pool.acquire().await.map_err(TxError::Failed)?));
        // Before BEGIN: of an earlier run than the transaction at worst, never of a later one.
        let run = lock(&self.run).clone();
        let c = session.connection().map_err(TxError::Failed)?;
        let begin = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; {}; \
             SELECT txid_current() AS xid FROM holders WHERE gate = 'memory' AND generation = {} FOR KEY SHARE{}",
            self.settings_of_transaction(),
            self.generation.load(Ordering::Relaxed),
            transition_lock.statements()
        );
        let begun = self.with_timeout(async { sqlx::raw_sql(AssertSqlSafe(begin)).fetch_all(&mut *c).await }).await;
        let mut rows =
            begun.map_err(|error| if is_gone(&error) { TxError::Stale(error) } else { TxError::Failed(error) })?;
        let Some(row) = rows.first().filter(|row| row.try_get::<i64, _>("xid").is_ok()) else {
            if !self.lost.swap(true, Ordering::Relaxed) {
                error!(store = %self.shown, "another ringfence process took over the database; this one admits no calls");
            }
            return Err(TxError::Lost);
        };
        let xid: i64 = row.try_get("xid").map_err(TxError::Failed)?;
        let state = match (transition_lock, rows.pop()) {
            (TransitionLock::None, _) => None,
            (_, Some(row)) => Some(gate_state(&Row::Postgres(row)).map_err(|fault| TxError::Failed(fault.into()))?),
            (_, None) => return Err(TxError::Failed(damaged(format!("gate_state has no pool {POOL}")).into())),
        };
        failpoint::hit("store.writing").await;
        match self.with_timeout(PREPARED.scope(self.prepare, work(&mut *c, state))).await {
            Ok(done) => *value = Some(done),
            Err(error) => {
                if self.with_timeout(async { sqlx::raw_sql("ROLLBACK").execute(&mut *c).await }).await.is_ok() {
                    session.return_to_pool();
                }
                // A deadlock, or a serialisation failure.
                return Err(if matches!(&*code(&error), "40P01" | "40001") {
                    TxError::Retry(error)
                } else {
                    TxError::Failed(error)
                });
            }
        }
        failpoint::hit("store.committing").await;
        match self.with_timeout(async { sqlx::raw_sql("COMMIT").execute(&mut *c).await }).await {
            Ok(_) => {
                failpoint::hit("store.committed").await;
                session.return_to_pool();
                Ok(())
            }
            Err(error) => Err(TxError::Unknown(TransactionId { xid, run }, error)),
        }
    }

    /// The outcome of a transaction whose COMMIT got no answer.
    pub(super) async fn commit_outcome(&self, transaction: &TransactionId) -> CommitOutcome {
        let until = Instant::now() + SETTLE_WITHIN;
        loop {
            let xid = transaction.xid;
            // One session, so one run.
            let asked = self.read(move |c| {
                Box::pin(async move {
                    let run = server_run(c).await?;
                    Ok((run, status(c, xid).await?))
                })
            });
            if let Ok((run, status)) = asked.await {
                let is_same_run = run == transaction.run;
                *lock(&self.run) = run;
                match status.as_deref() {
                    Some("aborted") => return CommitOutcome::Aborted,
                    Some("committed") if is_same_run => return CommitOutcome::Committed,
                    _ if !is_same_run => return CommitOutcome::Indeterminate,
                    // Still in progress.
                    _ => {}
                }
            }
            if Instant::now() >= until || self.closed.is_cancelled() {
                return CommitOutcome::Unknown;
            }
            tokio::time::sleep(COMMIT_POLL_INTERVAL).await;
        }
    }

    pub(super) fn error(&self, error: &sqlx::Error) -> StoreError {
        match error {
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => StoreError::Damaged(error.to_string()),
            other => StoreError::Failed(explain(other, &self.shown)),
        }
    }

    pub(super) fn lost_error(&self) -> StoreError {
        StoreError::Failed(format!(
            "another ringfence has taken {} over; stop one of the two, and start this one again",
            self.shown
        ))
    }

    pub(super) async fn close(&self) {
        self.closed.cancel();
        if tokio::time::timeout(self.answer_timeout(), self.pool.close()).await.is_err() {
            warn!(store = %self.shown, "database connections still in use at exit");
        }
    }
}

async fn server_run(c: &mut PgConnection) -> Sql<ServerRun> {
    let row = sqlx::query(SERVER_RUN).persistent(false).fetch_one(c).await?;
    row.try_get::<String, _>("run").map(Into::into)
}

/// The server's status of a transaction. `None`: it is too old.
async fn status(c: &mut PgConnection, xid: i64) -> Sql<Option<String>> {
    let asked = sqlx::query("SELECT txid_status($1) AS status").persistent(false).bind(xid);
    match asked.fetch_one(c).await {
        Ok(row) => row.try_get("status"),
        // A server that never received it: promoted, or recovered from a crash.
        Err(error) if is_from_future(&error) => Ok(Some("aborted".to_owned())),
        Err(error) => Err(error),
    }
}

/// Whether the server has not come to a transaction's number yet.
pub(super) fn is_from_future(error: &sqlx::Error) -> bool {
    code(error) == "22023"
}

/// Whether an error means that the session is closed. Its transaction is rolled back.
fn is_gone(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(cause) => cause.kind() != std::io::ErrorKind::TimedOut,
        // Closed by an operator, a crash, a time-out; by a pooler, which reports 08….
        _ => matches!(&*code(error), "57P01" | "57P02" | "57P05" | "25P03" | "08P01" | "08006" | "08003"),
    }
}
