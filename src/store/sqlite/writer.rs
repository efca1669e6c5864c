//! The one writer: a thread that owns the only connection that writes and puts what waits into one commit (group commit): no
//! timer, it flushes when the previous commit has returned. Dropping the waiter drops only the notification, never the write.
//!
//! A write that fails tells its waiter, and nothing is held back: the next one is tried. After a panic, a full or failing disk or
//! the like the connection is made anew, so that writing goes on by itself when the cause is gone.

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

/// Writes that may wait. Beyond it, callers wait to hand theirs over.
const WAITING_MAX: usize = 4096;
/// Writes in one commit.
const BATCH_MAX: usize = 256;

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
    fn run(&mut self, connection: &mut Sqlite) -> Sql<()>;
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
        // The waiter may have gone; the write stands all the same.
        let _ = self.reply.send(outcome);
    }
}

impl Writer {
    /// Opens the file, which must be there.
    pub(super) fn start(path: &Path) -> std::result::Result<Self, String> {
        let connection = Some(Sqlite::open(path, false).map_err(|e| explain(&e))?);
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
        F: FnOnce(&mut Sqlite) -> Sql<T> + Send + 'static,
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
    connection: Option<Sqlite>,
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
            none => match Sqlite::open(&self.path, false) {
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
        // One that fails must not take its neighbours along.
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
