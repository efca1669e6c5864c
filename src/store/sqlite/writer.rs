//! The writer: a thread that owns the only writing connection and batches queued writes into one commit (group commit). No timer:
//! it commits when the previous commit has returned. Dropping the waiter drops only the notification, never the write.
//!
//! A failed write is reported to its waiter, and the next one is attempted. After a panic, a full or failing disk or the like the
//! connection is reopened, so that writes resume when the cause is gone.

use std::os::unix::fs::MetadataExt as _;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{mpsc, oneshot};

use super::super::driver::{Fault, Sql};
use super::super::health::Health;
use super::super::{Result, StoreError};
use super::driver::{Sqlite, explain, failed, is_outside};
use crate::failpoint;

/// Queued writes. Beyond that, callers wait to enqueue.
const WAITING_MAX: usize = 4096;
/// Writes in one commit.
const BATCH_MAX: usize = 256;

pub(super) struct Writer {
    /// `None` ends the thread.
    jobs: mpsc::Sender<Option<Box<dyn Job>>>,
    ended: tokio::sync::Mutex<Option<oneshot::Receiver<()>>>,
    health: Arc<Health>,
    /// A reader failed: the writer's cache may hold data that the file has lost.
    doubted: Arc<AtomicBool>,
}

/// A write with its waiter.
trait Job: Send {
    fn run(&mut self, connection: &mut Sqlite) -> Sql<()>;
    /// Records that it panicked.
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
    F: FnOnce(&mut Sqlite) -> Sql<T> + Send,
    T: Send,
{
    fn run(&mut self, connection: &mut Sqlite) -> Sql<()> {
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
        // The waiter may be gone; the write is committed nevertheless.
        let _ = self.reply.send(outcome);
    }
}

impl Writer {
    /// Opens the file, which must exist.
    pub(super) fn start(path: &Path) -> std::result::Result<Self, String> {
        let connection = Some(Sqlite::open_existing(path).map_err(|e| explain(&e))?);
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

    /// Whether the last write failed for an external cause.
    pub(super) fn is_failing(&self) -> bool {
        self.health.is_failing()
    }

    /// Reports a reader's failure. The next write reopens the file.
    pub(super) fn doubt(&self) {
        self.doubted.store(true, Ordering::Relaxed);
    }

    /// Writes that failed for an external cause, or panicked, since the start.
    pub(super) fn failed(&self) -> u64 {
        self.health.failed()
    }

    /// Runs a write and returns when it is durable.
    pub(super) async fn run<F, T>(&self, work: F) -> Result<T>
    where
        F: FnOnce(&mut Sqlite) -> Sql<T> + Send + 'static,
        T: Send + 'static,
    {
        let (reply, told) = oneshot::channel();
        let job = Box::new(Write { work: Some(work), outcome: None, reply });
        let gone = || StoreError::Failed("the store is closed".to_owned());
        self.jobs.send(Some(job)).await.map_err(|_| gone())?;
        told.await.map_err(|_| StoreError::Unknown("the store's thread ended before it answered".to_owned()))?
    }

    /// Finishes queued writes, then closes.
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
                // Writes enqueued before are still received.
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

/// The identity of the file at a path.
#[derive(Debug, PartialEq, Eq)]
struct FileId(Option<(u64, u64)>);

impl FileId {
    fn of(path: &Path) -> Self {
        Self(std::fs::metadata(path).ok().map(|about| (about.dev(), about.ino())))
    }
}

/// The writer's database.
struct OpenFile {
    /// `None` after a failure: the next write connects again.
    connection: Option<Sqlite>,
    path: PathBuf,
    /// The identity of the file that was opened at the start.
    file: FileId,
    health: Arc<Health>,
    /// A reader failed: the writer's cache may hold data that the file has lost.
    doubted: Arc<AtomicBool>,
}

/// The reason why a batch was not written.
enum Failure {
    /// The file, the disk or the connection: other writes would fail too.
    Outside(StoreError),
    /// The write itself.
    Own(StoreError),
}

impl From<Fault> for Failure {
    fn from(error: Fault) -> Self {
        if is_outside(&error) { Self::Outside(failed(&error)) } else { Self::Own(failed(&error)) }
    }
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

    /// Writes a batch, and returns the number of writes that panicked.
    fn try_write(&mut self, batch: &mut [Box<dyn Job>]) -> (std::result::Result<(), Failure>, u64) {
        if let Err(failure) = self.check_file() {
            return (Err(failure), 0);
        }
        if self.doubted.swap(false, Ordering::Relaxed) {
            self.disconnect();
        }
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => match Sqlite::open_existing(&self.path) {
                Ok(connection) => none.insert(connection),
                Err(error) => return (Err(Failure::Outside(failed(&error))), 0),
            },
        };
        let (written, panics) = write_batch(connection, batch);
        // A write to a deleted file is not durable; but the file may come back.
        let found = || {
            self.check_file().map_err(|failure| match failure {
                Failure::Outside(StoreError::Failed(why)) => Failure::Outside(StoreError::Unknown(why)),
                other => other,
            })
        };
        (written.and_then(|()| found()), panics)
    }

    /// Checks that the path still leads to the opened file. SQLite itself keeps writing to a deleted one.
    fn check_file(&self) -> std::result::Result<(), Failure> {
        if FileId::of(&self.path) == self.file {
            return Ok(());
        }
        let gone =
            "its file was deleted or replaced; put it back, or start ringfence again: it reconciles with the providers";
        Err(Failure::Outside(StoreError::Failed(gone.to_owned())))
    }

    fn disconnect(&mut self) {
        self.connection = None;
    }
}

fn write_batch(connection: &mut Sqlite, batch: &mut [Box<dyn Job>]) -> (std::result::Result<(), Failure>, u64) {
    let mut panics = 0;
    let written = write_jobs(connection, batch, &mut panics);
    if written.is_err() {
        connection.roll_back();
    }
    (written, panics)
}

fn write_jobs(
    connection: &mut Sqlite,
    batch: &mut [Box<dyn Job>],
    panics: &mut u64,
) -> std::result::Result<(), Failure> {
    let alone = batch.len() == 1;
    connection.simply("BEGIN IMMEDIATE")?;
    for job in batch.iter_mut() {
        if !alone {
            connection.simply("SAVEPOINT job")?;
        }
        // One that fails must not make the others fail.
        match std::panic::catch_unwind(AssertUnwindSafe(|| job.run(connection))) {
            Ok(Ok(())) => {}
            Ok(Err(error)) if alone || is_outside(&error) => return Err(error.into()),
            Ok(Err(_)) => connection.simply("ROLLBACK TO job")?,
            Err(_) => {
                *panics += 1;
                job.panicked();
                if alone {
                    return Err(Failure::Own(StoreError::Failed("the write panicked".to_owned())));
                }
                connection.simply("ROLLBACK TO job")?;
            }
        }
        if !alone {
            connection.simply("RELEASE job")?;
        }
    }
    failpoint::hit_in_thread("store.committing");
    connection.simply("COMMIT")?;
    failpoint::hit_in_thread("store.committed");
    Ok(())
}
