//! The embedded store: one SQLite file, WAL, `synchronous=FULL`, one writer (`writer`), a few readers (`readers`).

mod blocking;
mod dialect;
mod driver;
mod errors;
mod gate;
pub mod inspect;
mod lock;
pub mod migrate;
mod readers;
mod utterances;
mod writer;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::FutureExt as _;

use super::driver::{Backend, Db, Driver as _, Work, binds};
use super::queries::{gate as shared, messages};
use super::{
    AdmitOutcome, IngestOutcome, Migrate, NewCall, NewUtterance, OwnershipMode, Result, UtteranceIngest, UtteranceRef,
};
use crate::clock::UnixMs;
use crate::ids::CallId;
use crate::policy::decision::{AdmissionRequest, GateState};
use crate::sync::lock;
use blocking::on_thread;
use driver::{Sqlite, at_once, explain};
pub use errors::OpenError;
use errors::{BUSY_TIMEOUT, explain_io};
pub use lock::FileLock;
use readers::Readers;
use writer::Writer;

/// A write without an effect. BEGIN alone would not do: in a read-only file SQLite makes it a read.
const PROBE: &str = "BEGIN IMMEDIATE; CREATE TABLE ringfence_probe (x); ROLLBACK";

/// The store in one SQLite file.
pub struct SqliteStore {
    writer: Writer,
    readers: Readers,
    path: PathBuf,
    /// Released last, after all writes.
    held: std::sync::Mutex<Option<FileLock>>,
}

async fn up(mut first: Sqlite) -> std::result::Result<(), String> {
    on_thread(move || migrate::up_in(&mut first, &migrate::MIGRATIONS)).await
}

/// Opens or creates a file. The first process sets a new file's mode; SQLite does not make others wait for that.
async fn connect(path: &Path) -> std::result::Result<Sqlite, String> {
    let since = Instant::now();
    loop {
        let file = path.to_owned();
        match on_thread(move || Sqlite::open_or_create(&file)).await {
            Err(error) if driver::code(&error) & 0xff == 5 && since.elapsed() < BUSY_TIMEOUT => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            opened => return opened.map_err(|error| explain(&error)),
        }
    }
}

impl SqliteStore {
    /// Opens the file, exclusively or shared. `migrate`: what becomes of a missing or older schema.
    ///
    /// # Errors
    /// Another process has it open and does not share it; or it cannot be used.
    pub async fn open(path: &Path, migrate: Migrate, sharing: OwnershipMode) -> std::result::Result<Self, OpenError> {
        let shown = path.display().to_string();
        let file = |why: String| OpenError::File { path: shown.clone(), why };
        if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(|e| file(format!("cannot make its folder: {}", explain_io(&e))))?;
        }
        let schema = |why: String| OpenError::Schema { path: shown.clone(), why };
        let since = Instant::now();
        let (held, mut first) = loop {
            let held = FileLock::hold(path, sharing).await?;
            let mut first = connect(path).await.map_err(file)?;
            let missing = migrate::missing(&mut first).map_err(schema)?;
            match sharing {
                _ if missing.is_empty() => break (held, first),
                _ if migrate == Migrate::Reject => migrate::check(&mut first).map_err(schema)?,
                OwnershipMode::Exclusive => up(first).await.map_err(schema)?,
                OwnershipMode::Shared => {
                    // Not while other processes run: their compiled statements would not match any more.
                    drop(held);
                    match FileLock::take(path, OwnershipMode::Exclusive).await {
                        Ok(_alone) => up(first).await.map_err(schema)?,
                        Err(lock::Refused::File(why)) => return Err(file(why)),
                        // Other processes that are starting do the same, and one of them succeeded.
                        Err(lock::Refused::Held(_)) if since.elapsed() < BUSY_TIMEOUT => {}
                        Err(lock::Refused::Held(holder)) => {
                            return Err(schema(format!("has an older schema, and {holder} uses it: stop all first")));
                        }
                    }
                }
            }
        };
        // SQLite opens a read-only file without an error; every write would then fail.
        at_once(first.script(PROBE)).map_err(|e| file(explain(&e)))?;
        let writer = Writer::start(path).map_err(file)?;
        let readers = Readers::start(path).map_err(file)?;
        if sharing == OwnershipMode::Exclusive {
            // The process that claimed deliveries is gone.
            let take_back = writer.run(|c| at_once(c.execute(messages::TAKE_BACK, &[])));
            take_back.await.map_err(|e| file(e.to_string()))?;
        }
        Ok(Self { writer, readers, path: path.to_owned(), held: std::sync::Mutex::new(Some(held)) })
    }

    /// Returns the path of the database file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[async_trait]
impl Backend for SqliteStore {
    async fn read<A, T, F>(&self, args: A, work: F) -> Result<T>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
        F: for<'c> Fn(Db<'c>, &'c A) -> Work<'c, T> + Send + Sync + 'static,
    {
        let read = self.readers.run(move |c| at_once(work(c, &args))).await;
        if read.is_err() {
            // Readers notice a damaged file: the writer's cache hides it.
            self.writer.doubt();
        }
        read
    }

    async fn write<A, T, F>(&self, args: A, work: F) -> Result<T>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
        F: for<'c> Fn(Db<'c>, &'c A) -> Work<'c, T> + Send + Sync + 'static,
    {
        self.writer.run(move |c| at_once(work(c, &args))).await
    }

    async fn write_under<A, T, F>(
        &self,
        epoch: Option<i64>,
        _call: &CallId,
        args: A,
        work: F,
    ) -> Result<std::result::Result<T, GateState>>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
        F: for<'c> Fn(Db<'c>, &'c A) -> Work<'c, T> + Send + Sync + 'static,
    {
        let write = move |c: &mut Sqlite| {
            if let Some(epoch) = epoch {
                let now = at_once(shared::state(c))?;
                if now.epoch != epoch {
                    return Ok(Err(now));
                }
            }
            at_once(work(c, &args)).map(Ok)
        };
        self.writer.run(write).await
    }

    fn transition_time(&self, now_ms: UnixMs) -> Option<UnixMs> {
        Some(now_ms)
    }

    async fn any_due(&self, at_ms: UnixMs, spool: &str) -> Result<bool> {
        let sql = "SELECT 1 AS due FROM deliveries WHERE done_at IS NULL AND due_at IS NOT NULL AND due_at <= $1
             AND (spool IS NULL OR spool = $2) LIMIT 1";
        let any = self.select(sql, binds![at_ms, spool.to_owned()].into(), |row| row.number("due")).await?;
        Ok(!any.is_empty())
    }

    async fn decide(&self, call: NewCall, request: AdmissionRequest, epoch: i64) -> Result<AdmitOutcome> {
        self.write((call, request), move |c, (call, request)| gate::admit(c, call, request, epoch).boxed()).await
    }

    async fn put_utterance(&self, call: &CallId, said: NewUtterance) -> Result<Option<UtteranceRef>> {
        self.write((call.clone(), said), |c, (call, said)| utterances::add(c, call, said).boxed()).await
    }

    async fn ingest_utterance(&self, ingested: UtteranceIngest) -> Result<IngestOutcome> {
        self.write(ingested, |c, ingested| utterances::ingest(c, ingested).boxed()).await
    }

    async fn probe(&self) -> Result<()> {
        // While writes fail, only a write can show that they work again: this one changes nothing.
        let sql = if self.writer.is_failing() { "PRAGMA user_version = 0" } else { "SELECT 1" };
        self.writer.run(move |c| at_once(c.script(sql))).await
    }

    fn failures(&self) -> u64 {
        self.writer.failed()
    }

    async fn shut(&self) {
        // The writer is closed last: it merges its log into the file.
        self.readers.close().await;
        self.writer.close().await;
        drop(lock(&self.held).take());
    }
}

#[cfg(test)]
mod tests;
