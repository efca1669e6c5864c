//! The one writer: a thread that owns the only connection that writes and puts what waits into one commit (group commit): no
//! timer, it flushes when the previous commit has returned. Dropping the waiter drops only the notification, never the write.
//!
//! It uses rusqlite, because there a statement is a function call. One of sqlx's is a trip to another thread and back, which costs
//! more than most statements; a call takes about ten.
//!
//! A write that fails tells its waiter, and nothing is held back: the next one is tried. After a panic, a full or failing disk or
//! the like the connection is made anew, so that writing goes on by itself when the cause is gone.

use std::os::unix::fs::MetadataExt as _;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::{Connection, OpenFlags};
use tokio::sync::{mpsc, oneshot};

use super::super::health::Health;
use super::super::{Result, StoreError};
use super::BUSY_TIMEOUT;
use crate::failpoint;

/// Writes that may wait. Beyond it, callers wait to hand theirs over.
const WAITING_MAX: usize = 4096;
/// Writes in one commit.
const BATCH_MAX: usize = 256;

/// Statements kept compiled: more than there are.
const STATEMENTS_MAX: usize = 64;

/// What a write comes to.
pub(super) type Written<T> = std::result::Result<T, rusqlite::Error>;

pub(super) struct Writer {
    /// `None` is the last.
    jobs: mpsc::Sender<Option<Box<dyn Job>>>,
    ended: tokio::sync::Mutex<Option<oneshot::Receiver<()>>>,
    health: Arc<Health>,
    /// A reader failed: what the writer's connection has in its cache may be all that is left.
    doubted: Arc<AtomicBool>,
}

/// A write, and whom to tell.
trait Job: Send {
    fn run(&mut self, connection: &Connection) -> Written<()>;
    /// It panicked.
    fn panicked(&mut self);
    fn finish(self: Box<Self>, commit: Result<()>);
}

struct Write<F, T> {
    work: Option<F>,
    outcome: Option<Result<T>>,
    reply: oneshot::Sender<Result<T>>,
}

impl<F, T> Job for Write<F, T>
where
    F: FnOnce(&Connection) -> Written<T> + Send,
    T: Send,
{
    fn run(&mut self, connection: &Connection) -> Written<()> {
        let Some(work) = self.work.take() else { return Ok(()) };
        failpoint::hit_in_thread("store.writing");
        match work(connection) {
            Ok(value) => {
                self.outcome = Some(Ok(value));
                Ok(())
            }
            Err(error) => {
                self.outcome = Some(Err(failed(&error)));
                Err(error)
            }
        }
    }

    fn panicked(&mut self) {
        self.outcome = Some(Err(StoreError::Failed("the write panicked".to_owned())));
    }

    fn finish(self: Box<Self>, commit: Result<()>) {
        let outcome = match (self.outcome, commit) {
            (Some(Err(error)), _) => Err(error),
            (_, Err(error)) => Err(error),
            (Some(Ok(value)), Ok(())) => Ok(value),
            (None, Ok(())) => Err(StoreError::Failed("the write was not run".to_owned())),
        };
        // The waiter may have gone; the write stands all the same.
        let _ = self.reply.send(outcome);
    }
}

impl Writer {
    /// Opens the file, which must be there.
    pub(super) fn start(path: &Path) -> std::result::Result<Self, String> {
        let connection = Some(connect(path).map_err(|e| explain(&e))?);
        let (file, health, doubted) = (FileId::of(path), Arc::<Health>::default(), Arc::<AtomicBool>::default());
        let (jobs, waiting) = mpsc::channel(WAITING_MAX);
        let (end, ended) = oneshot::channel();
        let path = path.to_owned();
        let file = OpenFile { connection, path, file, health: health.clone(), doubted: doubted.clone() };
        let thread = std::thread::Builder::new().name("ringfence-store".to_owned());
        thread
            .spawn(move || {
                write_all(file, waiting);
                let _ = end.send(());
            })
            .map_err(|e| format!("no thread can be started for it: {e}"))?;
        Ok(Self { jobs, ended: tokio::sync::Mutex::new(Some(ended)), health, doubted })
    }

    /// The last write failed for a cause outside of it.
    pub(super) fn is_failing(&self) -> bool {
        self.health.is_failing()
    }

    /// A reader failed. The next write looks at the file with new eyes.
    pub(super) fn doubt(&self) {
        self.doubted.store(true, Ordering::Relaxed);
    }

    /// Writes that failed for such a cause, or panicked, since the start.
    pub(super) fn failed(&self) -> u64 {
        self.health.failed()
    }

    /// Runs a write and returns when it is durable.
    pub(super) async fn run<F, T>(&self, work: F) -> Result<T>
    where
        F: FnOnce(&Connection) -> Written<T> + Send + 'static,
        T: Send + 'static,
    {
        let (reply, told) = oneshot::channel();
        let job = Box::new(Write { work: Some(work), outcome: None, reply });
        let gone = || StoreError::Failed("the store is closed".to_owned());
        self.jobs.send(Some(job)).await.map_err(|_| gone())?;
        told.await.map_err(|_| StoreError::Unknown("the store's thread ended before it answered".to_owned()))?
    }

    /// Writes what waits, then lets go.
    pub(super) async fn close(&self) {
        let _ = self.jobs.send(None).await;
        if let Some(ended) = self.ended.lock().await.take() {
            let _ = ended.await;
        }
    }
}

fn write_all(mut file: OpenFile, mut waiting: mpsc::Receiver<Option<Box<dyn Job>>>) {
    let (mut taken, mut batch) = (Vec::with_capacity(BATCH_MAX), Vec::with_capacity(BATCH_MAX));
    while waiting.blocking_recv_many(&mut taken, BATCH_MAX) > 0 {
        for job in taken.drain(..) {
            match job {
                Some(job) => batch.push(job),
                // What was handed over before is still there to be taken.
                None => waiting.close(),
            }
        }
        if batch.is_empty() {
            continue;
        }
        let commit = file.write(&mut batch);
        for job in batch.drain(..) {
            job.finish(commit.clone());
        }
    }
    file.disconnect();
}

fn connect(path: &Path) -> Written<Connection> {
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON")?;
    Ok(connection)
}

fn code(error: &rusqlite::Error) -> u32 {
    error.sqlite_error().map_or(0, |error| error.extended_code.unsigned_abs())
}

fn explain(error: &rusqlite::Error) -> String {
    super::explain_code(code(error), error)
}

fn failed(error: &rusqlite::Error) -> StoreError {
    match error {
        rusqlite::Error::FromSqlConversionFailure(..) | rusqlite::Error::InvalidColumnType(..) => {
            StoreError::Damaged(error.to_string())
        }
        other => StoreError::Failed(explain(other)),
    }
}

/// Which file a path leads to.
#[derive(Debug, PartialEq, Eq)]
struct FileId(Option<(u64, u64)>);

impl FileId {
    fn of(path: &Path) -> Self {
        Self(std::fs::metadata(path).ok().map(|about| (about.dev(), about.ino())))
    }
}

/// The database, as the writer has it.
struct OpenFile {
    /// `None` after a failure: the next write connects again.
    connection: Option<Connection>,
    path: PathBuf,
    /// The file that was opened at the start.
    file: FileId,
    health: Arc<Health>,
    /// A reader failed: what the writer's connection has in its cache may be all that is left.
    doubted: Arc<AtomicBool>,
}

/// Why a batch is not written.
enum Failure {
    /// The file, the disk or the connection: others would fail as well.
    Outside(StoreError),
    /// The write itself.
    Own(StoreError),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        if is_outside(&error) { Self::Outside(failed(&error)) } else { Self::Own(failed(&error)) }
    }
}

/// Whether an error says something of the file, not of the write: busy, read-only, I/O, corrupt, full, cannot open, no database.
fn is_outside(error: &rusqlite::Error) -> bool {
    [5, 8, 10, 11, 13, 14, 26].contains(&(code(error) & 0xff))
}

impl OpenFile {
    fn write(&mut self, batch: &mut [Box<dyn Job>]) -> Result<()> {
        let (written, panics) = self.try_write(batch);
        let failed = match &written {
            Ok(()) => panics,
            Err(_) => batch.len() as u64,
        };
        self.health.count(failed);
        let outside = match &written {
            Err(Failure::Outside(error)) => Some(error),
            _ => None,
        };
        self.health.note(outside);
        let outside = outside.is_some();
        if outside || panics > 0 {
            self.disconnect();
        }
        written.map_err(|failure| match failure {
            Failure::Outside(error) | Failure::Own(error) => error,
        })
    }

    /// Writes a batch, and counts the writes in it that panicked.
    fn try_write(&mut self, batch: &mut [Box<dyn Job>]) -> (std::result::Result<(), Failure>, u64) {
        if let Err(failure) = self.is_there() {
            return (Err(failure), 0);
        }
        if self.doubted.swap(false, Ordering::Relaxed) {
            self.disconnect();
        }
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => match connect(&self.path) {
                Ok(connection) => none.insert(connection),
                Err(error) => return (Err(Failure::Outside(failed(&error))), 0),
            },
        };
        let (written, panics) = write_batch(connection, batch);
        // What was written to a file that nobody finds again is not written; but the file may come back.
        let found = || {
            self.is_there().map_err(|failure| match failure {
                Failure::Outside(StoreError::Failed(why)) => Failure::Outside(StoreError::Unknown(why)),
                other => other,
            })
        };
        (written.and_then(|()| found()), panics)
    }

    /// The path still leads to the file that was opened. SQLite itself goes on writing to one that was deleted.
    fn is_there(&self) -> std::result::Result<(), Failure> {
        if FileId::of(&self.path) == self.file {
            return Ok(());
        }
        let gone =
            "its file was deleted or replaced; put it back, or start ringfence again: it asks the providers what is up";
        Err(Failure::Outside(StoreError::Failed(gone.to_owned())))
    }

    fn disconnect(&mut self) {
        if let Some(connection) = self.connection.take() {
            let _ = connection.close();
        }
    }
}

fn write_batch(connection: &Connection, batch: &mut [Box<dyn Job>]) -> (std::result::Result<(), Failure>, u64) {
    let mut panics = 0;
    let written = write_jobs(connection, batch, &mut panics);
    if written.is_err() && !connection.is_autocommit() {
        // Whatever failed, no transaction may stay open: the next BEGIN would fail, and every one after it. Errors such as a
        // full disk roll back by themselves; SQLite's COMMIT either happened or can be rolled back, it has no third state
        // while the file is ours.
        let _ = execute(connection, "ROLLBACK");
    }
    (written, panics)
}

fn write_jobs(
    connection: &Connection,
    batch: &mut [Box<dyn Job>],
    panics: &mut u64,
) -> std::result::Result<(), Failure> {
    let alone = batch.len() == 1;
    execute(connection, "BEGIN IMMEDIATE")?;
    for job in batch.iter_mut() {
        if !alone {
            execute(connection, "SAVEPOINT job")?;
        }
        // One that fails must not take its neighbours along.
        match std::panic::catch_unwind(AssertUnwindSafe(|| job.run(connection))) {
            Ok(Ok(())) => {}
            Ok(Err(error)) if alone || is_outside(&error) => return Err(error.into()),
            Ok(Err(_)) => execute(connection, "ROLLBACK TO job")?,
            Err(_) => {
                *panics += 1;
                job.panicked();
                if alone {
                    return Err(Failure::Own(StoreError::Failed("the write panicked".to_owned())));
                }
                execute(connection, "ROLLBACK TO job")?;
            }
        }
        if !alone {
            execute(connection, "RELEASE job")?;
        }
    }
    failpoint::hit_in_thread("store.committing");
    execute(connection, "COMMIT")?;
    failpoint::hit_in_thread("store.committed");
    Ok(())
}

fn execute(connection: &Connection, sql: &str) -> Written<()> {
    connection.prepare_cached(sql)?.execute([]).map(drop)
}
