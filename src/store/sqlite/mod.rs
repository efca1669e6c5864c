//! The embedded store: one SQLite file, WAL, `synchronous=FULL`, one writer, a few readers.
//!
//! Reads go through sqlx, writes through rusqlite, on a thread of its own: see `writer`. Placeholders of writes are written `?1`:
//! `$1` would be a name to SQLite, numbered in the order of appearance.

mod answers;
mod calls;
mod calls_write;
mod desk;
mod gate;
pub mod inspect;
mod lock;
mod messages;
mod messages_write;
pub mod migrate;
mod records;
mod replicas;
mod retention;
mod transcripts;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};

use super::{
    Advanced, Applied, CallRecord, Change, Confirmed, CreateAnswer, Decided, Delivery, Fleet, NewCall, NewEvent,
    Opened, OrderRecord, Place, Reach, Received, RefusalRecord, Replica, Result, Sharing, Store, StoreError, Voucher,
    Waiting,
};
use crate::admission::{GateMode, GateState, Order};
use crate::call::Event;
use crate::clock::UnixMs;
use crate::ids::{AccountName, Alias, CallId};
use crate::policy::{Business, Facts, Policy};
pub use lock::Held;
use writer::Writer;

/// Readers beside the writer. WAL lets them read while it writes.
const READERS: u32 = 4;
/// How long a connection waits for another's lock: a backup's, or that of a person's shell.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// A write that leaves nothing. A write that only begins would not do: of a file that may only be read SQLite makes it a read.
const PROBE: &str = "BEGIN IMMEDIATE; CREATE TABLE ringfence_probe (x); ROLLBACK";

/// The store could not be opened. Sentences for an operator.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("{path} is in use by {holder}. {advice}, or give this one another [store] path")]
    Held {
        /// The database.
        path: String,
        /// Who has it.
        holder: String,
        /// What mends it.
        advice: &'static str,
    },
    /// The file cannot be opened.
    #[error("cannot open {path}: {why}")]
    File {
        /// The database.
        path: String,
        /// Why.
        why: String,
    },
    /// The schema does not fit.
    #[error("{path} {why}")]
    Schema {
        /// The database.
        path: String,
        /// What does not fit, and the command that mends it.
        why: String,
    },
}

/// See the module.
pub struct SqliteStore {
    writer: Writer,
    readers: SqlitePool,
    path: PathBuf,
    /// Given up last, when nothing writes any more.
    held: std::sync::Mutex<Option<Held>>,
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
}

/// A new file is put into its mode by whoever comes first; SQLite does not make the others wait for that.
async fn connect_readers(path: &Path) -> std::result::Result<SqlitePool, sqlx::Error> {
    let since = Instant::now();
    loop {
        let pool = SqlitePoolOptions::new().max_connections(READERS).connect_with(options(path)).await;
        match pool {
            Err(error) if is_busy(&error) && since.elapsed() < BUSY_TIMEOUT => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            done => return done,
        }
    }
}

fn is_busy(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|e| e.code()?.parse::<u32>().ok()).is_some_and(|code| code & 0xff == 5)
}

impl SqliteStore {
    /// Opens the file, for this process alone or beside others that share it. With `migrate`, a missing or older schema is
    /// brought up to date; without, it is refused.
    ///
    /// # Errors
    /// Another process has it and does not share it; or it cannot be used.
    pub async fn open(path: &Path, migrate: bool, sharing: Sharing) -> std::result::Result<Self, OpenError> {
        let shown = path.display().to_string();
        let file = |why: String| OpenError::File { path: shown.clone(), why };
        if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(|e| file(format!("cannot make its folder: {}", explain_io(&e))))?;
        }
        let schema = |why: String| OpenError::Schema { path: shown.clone(), why };
        let since = Instant::now();
        let (held, readers) = loop {
            let held = Self::lock(path, sharing).await?;
            let readers = connect_readers(path).await.map_err(|e| file(explain(&e)))?;
            let missing = migrate::missing(&readers).await.map_err(schema)?;
            match sharing {
                _ if missing.is_empty() => break (held, readers),
                _ if !migrate => migrate::check(&readers).await.map_err(schema)?,
                Sharing::Alone => migrate::up(&readers).await.map_err(schema)?,
                Sharing::Shared => {
                    // Not under processes that run: the statements that they keep would not fit any more.
                    drop(held);
                    match Held::take(path, Sharing::Alone).await {
                        Ok(_alone) => migrate::up(&readers).await.map_err(schema)?,
                        Err(lock::Refused::File(why)) => return Err(file(why)),
                        // Others that start just now do the same, and one of them did it.
                        Err(lock::Refused::Held(_)) if since.elapsed() < BUSY_TIMEOUT => {}
                        Err(lock::Refused::Held(holder)) => {
                            return Err(schema(format!("has an older schema, and {holder} uses it: stop all first")));
                        }
                    }
                }
            }
            readers.close().await;
        };
        // SQLite opens a file that it may only read without a word; every call would then meet the error.
        sqlx::raw_sql(PROBE).execute(&readers).await.map_err(|e| file(explain(&e)))?;
        // From here on a file that is gone must be missed, not made anew by a reader.
        readers.set_connect_options(options(path).create_if_missing(false));
        let writer = Writer::start(path).map_err(file)?;
        if sharing == Sharing::Alone {
            // Whoever took deliveries is gone.
            writer.run(messages_write::take_back).await.map_err(|e| file(e.to_string()))?;
        }
        Ok(Self { writer, readers, path: path.to_owned(), held: std::sync::Mutex::new(Some(held)) })
    }

    /// Takes the file for this process, alone or shared, for as long as the lock is held. `migrate down`, which drops tables,
    /// needs it alone.
    ///
    /// # Errors
    /// Another process has it and does not share it; or the lock cannot be made.
    pub async fn lock(path: &Path, sharing: Sharing) -> std::result::Result<Held, OpenError> {
        let shown = path.display().to_string();
        Held::take(path, sharing).await.map_err(|e| match e {
            lock::Refused::Held(holder) => OpenError::Held { path: shown, holder, advice: sharing.advice() },
            lock::Refused::File(why) => OpenError::File { path: shown, why },
        })
    }

    /// A pool for `migrate`, which may run while a server has the file.
    pub async fn connect(path: &Path) -> std::result::Result<SqlitePool, OpenError> {
        let shown = path.display().to_string();
        SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(options(path))
            .await
            .map_err(|e| OpenError::File { path: shown, why: explain(&e) })
    }

    /// Reads that are made all the time notice a damaged file, which the writer's cache hides from it.
    fn doubting<T>(&self, read: Result<T>) -> Result<T> {
        if read.is_err() {
            self.writer.doubt();
        }
        read
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What an operator can do about an error of SQLite.
fn explain(error: &sqlx::Error) -> String {
    let code = error.as_database_error().and_then(|e| e.code()).unwrap_or_default().into_owned();
    explain_code(code.parse().unwrap_or_default(), error)
}

/// The same by its code, extended or not.
fn explain_code(code: u32, error: &dyn std::fmt::Display) -> String {
    match code & 0xff {
        5 => "another program holds its lock".to_owned(),
        13 => "the disk is full; make room on it, or give ringfence another [store] path".to_owned(),
        8 => "it is read-only; ringfence must be able to write it, or needs another [store] path".to_owned(),
        10 => format!("the disk cannot be read or written ({error}); look at the disk, its quota and its limits"),
        11 | 26 => {
            format!(
                "it is damaged or no SQLite file ({error}); put a backup in its place, or move it away to start anew"
            )
        }
        14 => format!("the file or its folder cannot be opened ({error})"),
        _ => error.to_string(),
    }
}

/// What an operator can do about an error of a file or folder.
fn explain_io(error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    let hint = match error.kind() {
        ErrorKind::PermissionDenied => "ringfence must be able to write there, or needs another [store] path",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "make room on the disk, or give ringfence another [store] path"
        }
        ErrorKind::AlreadyExists | ErrorKind::NotADirectory => {
            "a part of the path is a file: give ringfence another [store] path"
        }
        _ => "give ringfence another [store] path",
    };
    format!("{error}; {hint}")
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => Self::Damaged(error.to_string()),
            other => Self::Failed(explain(&other)),
        }
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn open(&self, call: NewCall, epoch: Option<i64>) -> Result<Opened> {
        self.writer.run(move |c| gate::open(c, &call, epoch)).await
    }

    async fn admit(&self, call: NewCall, order: Order, epoch: i64) -> Result<Decided> {
        self.writer.run(move |c| gate::admit(c, call, &order, epoch)).await
    }

    async fn confirm(&self, call: &CallId, keys: Vec<String>, epoch: Option<i64>) -> Result<Confirmed> {
        let call = call.clone();
        self.writer.run(move |c| gate::confirm(c, &call, &keys, epoch)).await
    }

    async fn gate_state(&self) -> Result<GateState> {
        self.doubting(gate::read_state(&self.readers).await)
    }

    async fn identity(&self) -> Result<String> {
        self.doubting(gate::read_identity(&self.readers).await)
    }

    async fn advance(&self, from: i64, to: GateMode, policy: Arc<Policy>, now_ms: UnixMs) -> Result<Option<Advanced>> {
        self.writer.run(move |c| gate::advance(c, from, to, &policy, now_ms)).await
    }

    async fn leases(&self) -> Result<Vec<crate::admission::Held>> {
        self.doubting(gate::leases(&self.readers).await)
    }

    async fn find_orders(&self, fingerprint: &str, since_ms: UnixMs) -> Result<Vec<OrderRecord>> {
        replicas::find_orders(&self.readers, fingerprint, since_ms).await
    }

    async fn take_order(&self, order: &OrderRecord, me: &str, is_dead: bool) -> Result<bool> {
        let (order, me) = (order.clone(), me.to_owned());
        self.writer.run(move |c| replicas::take_order(c, &order, &me, is_dead)).await
    }

    async fn undelivered(&self, call: &CallId, me: &str) -> Result<()> {
        let (call, me) = (call.clone(), me.to_owned());
        self.writer.run(move |c| replicas::undelivered(c, &call, &me)).await
    }

    async fn apply(&self, change: Change) -> Result<Option<Applied>> {
        self.writer.run(move |c| calls_write::apply(c, change)).await
    }

    async fn keep_early(
        &self,
        aliases: Vec<Alias>,
        event: Event,
        by: Option<Voucher>,
        at_ms: UnixMs,
    ) -> Result<Option<CallId>> {
        self.writer.run(move |c| calls_write::keep_early(c, &aliases, event, by.as_ref(), at_ms)).await
    }

    async fn resolve(&self, aliases: &[Alias]) -> Result<Option<CallId>> {
        calls::resolve(&self.readers, aliases).await
    }

    async fn create_answer(&self, call: &CallId, fingerprint: &str) -> Result<Option<CreateAnswer>> {
        answers::read(&self.readers, call, fingerprint).await
    }

    async fn call(&self, id: &CallId) -> Result<Option<CallRecord>> {
        calls::one(&mut *self.readers.acquire().await?, id).await.map_err(Into::into)
    }

    async fn open_calls(&self) -> Result<Vec<CallRecord>> {
        self.doubting(calls::open_calls(&self.readers).await)
    }

    async fn unanswered_orders(&self, account: &AccountName, kind: &str) -> Result<Vec<CallRecord>> {
        calls::unanswered_orders(&self.readers, account, kind).await
    }

    async fn latest_calls(&self, limit: u32) -> Result<Vec<CallRecord>> {
        calls::latest(&self.readers, limit).await
    }

    async fn admitted_since(&self, since_ms: UnixMs) -> Result<Vec<(UnixMs, Facts)>> {
        calls::admitted_since(&self.readers, since_ms).await
    }

    async fn receive(&self, event: NewEvent) -> Result<Received> {
        self.writer.run(move |c| messages_write::receive(c, &event)).await
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
        self.writer
            .run(move |c| messages_write::settle(c, &event_id, call.as_ref(), &outcome, delivery.as_ref(), at_ms))
            .await
    }

    async fn unsettled_events(&self, before_ms: UnixMs, reach: &Reach, after: &Place, limit: u32) -> Result<Waiting> {
        messages::unsettled(&self.readers, before_ms, reach, after, limit).await
    }

    async fn take_deliveries(&self, at_ms: UnixMs, limit: u32, spool: &str, strict: bool) -> Result<Vec<Delivery>> {
        if !self.doubting(messages::any_due(&self.readers, at_ms, spool).await)? {
            return Ok(vec![]);
        }
        let spool = spool.to_owned();
        self.writer.run(move |c| messages_write::take(c, at_ms, limit, &spool, strict)).await
    }

    async fn delivered(
        &self,
        id: &str,
        at_ms: UnixMs,
        result: std::result::Result<(), (String, Option<UnixMs>)>,
    ) -> Result<()> {
        let id = id.to_owned();
        self.writer.run(move |c| messages_write::delivered(c, &id, at_ms, result)).await
    }

    async fn refused(&self, refusals: Vec<RefusalRecord>) -> Result<()> {
        self.writer.run(move |c| refusals.iter().try_for_each(|refusal| messages_write::refused(c, refusal))).await
    }

    async fn latest_refusals(&self, limit: u32) -> Result<Vec<RefusalRecord>> {
        messages::latest_refusals(&self.readers, limit).await
    }

    async fn businesses(&self) -> Result<Vec<Business>> {
        messages::businesses(&self.readers).await
    }

    async fn put_business(&self, business: &Business, at_ms: UnixMs) -> Result<bool> {
        let business = business.clone();
        self.writer.run(move |c| messages_write::put_business(c, &business, at_ms)).await
    }

    async fn put_businesses(&self, businesses: Vec<Business>, at_ms: UnixMs) -> Result<usize> {
        self.writer.run(move |c| messages_write::put_businesses(c, &businesses, at_ms)).await
    }

    async fn delete_business(&self, id: &str) -> Result<bool> {
        let id = id.to_owned();
        self.writer.run(move |c| messages_write::delete_business(c, &id)).await
    }

    async fn beat(&self, me: &Replica) -> Result<Fleet> {
        let me = me.clone();
        self.writer.run(move |c| replicas::beat(c, &me)).await
    }

    async fn leave(&self, id: &str) -> Result<()> {
        let id = id.to_owned();
        self.writer.run(move |c| replicas::leave(c, &id)).await
    }

    async fn ping(&self) -> Result<()> {
        // While writes fail, nothing less than a write says that they do no longer: this one changes nothing.
        let sql = if self.writer.is_failing() { "PRAGMA user_version = 0" } else { "SELECT 1" };
        self.writer.run(move |c| c.execute_batch(sql)).await
    }

    fn failed_writes(&self) -> u64 {
        self.writer.failed()
    }

    async fn close(&self) {
        self.writer.close().await;
        self.readers.close().await;
        drop(self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take());
    }
}

#[cfg(test)]
mod tests;
