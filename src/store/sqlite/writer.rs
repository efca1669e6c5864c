//! The one writer. It owns the only connection that writes and puts what waits into one commit (group commit): no timer, it
//! flushes when the previous commit has returned. Dropping the waiter drops only the notification, never the write.
//!
//! A write that fails tells its waiter, and nothing is held back: the next one is tried. After a panic, a full or failing disk or
//! the like the connection is made anew, so that writing goes on by itself when the cause is gone.

use std::os::unix::fs::MetadataExt as _;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection as _, SqliteConnection};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::super::health::Health;
use super::super::{Result, StoreError};
use crate::failpoint;

/// Writes that may wait. Beyond it, callers wait to hand theirs over.
const WAITING_MAX: usize = 4096;
/// Writes in one commit.
const BATCH_MAX: usize = 256;

pub(super) struct Writer {
    jobs: mpsc::Sender<Box<dyn Job>>,
    task: tokio::sync::Mutex<Option<JoinHandle<()>>>,
    closed: tokio_util::sync::CancellationToken,
    health: Arc<Health>,
    doubted: Arc<AtomicBool>,
}

/// A write, and whom to tell.
trait Job: Send {
    fn run<'c>(
        &'c mut self,
        connection: &'c mut SqliteConnection,
    ) -> BoxFuture<'c, std::result::Result<(), sqlx::Error>>;
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
    F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, std::result::Result<T, sqlx::Error>> + Send,
    T: Send,
{
    fn run<'c>(
        &'c mut self,
        connection: &'c mut SqliteConnection,
    ) -> BoxFuture<'c, std::result::Result<(), sqlx::Error>> {
        Box::pin(async move {
            let Some(work) = self.work.take() else { return Ok(()) };
            failpoint::hit("store.writing").await;
            match work(connection).await {
                Ok(value) => {
                    self.outcome = Some(Ok(value));
                    Ok(())
                }
                Err(error) => {
                    self.outcome = Some(Err(StoreError::Failed(super::explain(&error))));
                    Err(error)
                }
            }
        })
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
    pub(super) async fn start(path: &Path, options: SqliteConnectOptions) -> std::result::Result<Self, sqlx::Error> {
        let connection = Some(SqliteConnection::connect_with(&options).await?);
        let (file, health, doubted) = (FileId::of(path), Arc::<Health>::default(), Arc::<AtomicBool>::default());
        let (jobs, waiting) = mpsc::channel(WAITING_MAX);
        let closed = tokio_util::sync::CancellationToken::new();
        let (path, health_of_file, doubts) = (path.to_owned(), health.clone(), doubted.clone());
        let file = OpenFile { connection, options, path, file, health: health_of_file, doubted: doubts };
        let task = tokio::spawn(write_all(file, waiting, closed.clone()));
        Ok(Self { jobs, task: tokio::sync::Mutex::new(Some(task)), closed, health, doubted })
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
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, std::result::Result<T, sqlx::Error>>
            + Send
            + 'static,
        T: Send + 'static,
    {
        let (reply, told) = oneshot::channel();
        let job = Box::new(Write { work: Some(work), outcome: None, reply });
        let gone = || StoreError::Failed("the store is closed".to_owned());
        self.jobs.send(job).await.map_err(|_| gone())?;
        told.await.map_err(|_| gone())?
    }

    /// Writes what waits, then lets go.
    pub(super) async fn close(&self) {
        self.closed.cancel();
        if let Some(task) = self.task.lock().await.take() {
            let _ = task.await;
        }
    }
}

async fn write_all(
    mut file: OpenFile,
    mut waiting: mpsc::Receiver<Box<dyn Job>>,
    closed: tokio_util::sync::CancellationToken,
) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    loop {
        tokio::select! {
            taken = waiting.recv_many(&mut batch, BATCH_MAX) => if taken == 0 { break },
            () = closed.cancelled() => {
                waiting.close();
                if waiting.recv_many(&mut batch, BATCH_MAX).await == 0 { break }
            }
        }
        let commit = file.write(&mut batch).await;
        for job in batch.drain(..) {
            job.finish(commit.clone());
        }
    }
    file.disconnect().await;
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
    connection: Option<SqliteConnection>,
    options: SqliteConnectOptions,
    path: PathBuf,
    /// The file that was opened at the start.
    file: FileId,
    health: Arc<Health>,
    /// A reader failed: what the connection has in its cache may be all that is left.
    doubted: Arc<AtomicBool>,
}

/// Why a batch is not written.
enum Failure {
    /// The file, the disk or the connection: others would fail as well.
    Outside(StoreError),
    /// The write itself.
    Own(StoreError),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        let failed = StoreError::Failed(super::explain(&error));
        if is_outside(&error) { Self::Outside(failed) } else { Self::Own(failed) }
    }
}

/// Whether an error says something of the file, not of the write: busy, read-only, I/O, corrupt, full, cannot open, no database;
/// or a connection that is gone.
fn is_outside(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => {
            let code = error.code().and_then(|code| code.parse::<u32>().ok()).unwrap_or_default();
            [5, 8, 10, 11, 13, 14, 26].contains(&(code & 0xff))
        }
        sqlx::Error::Io(_) | sqlx::Error::WorkerCrashed => true,
        _ => false,
    }
}

impl OpenFile {
    async fn write(&mut self, batch: &mut [Box<dyn Job>]) -> Result<()> {
        let (written, panics) = self.try_write(batch).await;
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
        if outside.is_some() || panics > 0 {
            self.disconnect().await;
        }
        written.map_err(|failure| match failure {
            Failure::Outside(error) | Failure::Own(error) => error,
        })
    }

    /// Writes a batch, and counts the writes in it that panicked.
    async fn try_write(&mut self, batch: &mut [Box<dyn Job>]) -> (std::result::Result<(), Failure>, u64) {
        if let Err(failure) = self.is_there() {
            return (Err(failure), 0);
        }
        if self.doubted.swap(false, Ordering::Relaxed) {
            self.disconnect().await;
        }
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => match SqliteConnection::connect_with(&self.options).await {
                Ok(connection) => none.insert(connection),
                Err(error) => return (Err(Failure::Outside(StoreError::Failed(super::explain(&error)))), 0),
            },
        };
        let (written, panics) = write_batch(connection, batch).await;
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

    async fn disconnect(&mut self) {
        if let Some(connection) = self.connection.take() {
            let _ = connection.close().await;
        }
    }
}

async fn write_batch(
    connection: &mut SqliteConnection,
    batch: &mut [Box<dyn Job>],
) -> (std::result::Result<(), Failure>, u64) {
    let mut panics = 0;
    let written = write_jobs(connection, batch, &mut panics).await;
    if written.is_err() {
        // Whatever failed, no transaction may stay open: the next BEGIN would fail, and every one after it. Errors such as a
        // full disk roll back by themselves; SQLite's COMMIT either happened or can be rolled back, it has no third state
        // while the file is ours.
        let _ = sqlx::query("ROLLBACK").execute(&mut *connection).await;
    }
    (written, panics)
}

/// What stands between two jobs goes to SQLite in one piece: a statement is a trip to sqlx's thread and back, which costs more
/// than most of them take there.
async fn write_jobs(
    connection: &mut SqliteConnection,
    batch: &mut [Box<dyn Job>],
    panics: &mut u64,
) -> std::result::Result<(), Failure> {
    let alone = batch.len() == 1;
    let mut before = if alone { "BEGIN IMMEDIATE" } else { "BEGIN IMMEDIATE; SAVEPOINT job" };
    for job in batch.iter_mut() {
        sqlx::query(before).execute(&mut *connection).await?;
        before = "RELEASE job; SAVEPOINT job";
        // One that fails must not take its neighbours along.
        match AssertUnwindSafe(job.run(connection)).catch_unwind().await {
            Ok(Ok(())) => continue,
            Ok(Err(error)) if alone || is_outside(&error) => return Err(error.into()),
            Ok(Err(_)) => {}
            Err(_) => {
                *panics += 1;
                job.panicked();
                if alone {
                    return Err(Failure::Own(StoreError::Failed("the write panicked".to_owned())));
                }
            }
        }
        sqlx::query("ROLLBACK TO job").execute(&mut *connection).await?;
    }
    failpoint::hit("store.committing").await;
    // Ends the last savepoint, too.
    sqlx::query("COMMIT").execute(&mut *connection).await.map_err(|error| match error {
        // sqlx's thread is gone, and nobody knows how far it came.
        sqlx::Error::WorkerCrashed => Failure::Outside(StoreError::Unknown(error.to_string())),
        error => error.into(),
    })?;
    failpoint::hit("store.committed").await;
    Ok(())
}
