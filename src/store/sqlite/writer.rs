//! The one writer. It owns the only connection that writes and puts what waits into one commit (group commit): no timer, it
//! flushes when the previous commit has returned. Dropping the waiter drops only the notification, never the write.

use futures_util::future::BoxFuture;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection as _, SqliteConnection};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

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
}

/// A write, and whom to tell.
trait Job: Send {
    fn run<'c>(
        &'c mut self,
        connection: &'c mut SqliteConnection,
    ) -> BoxFuture<'c, std::result::Result<(), sqlx::Error>>;
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
    pub(super) async fn start(options: SqliteConnectOptions) -> std::result::Result<Self, sqlx::Error> {
        let connection = SqliteConnection::connect_with(&options).await?;
        let (jobs, waiting) = mpsc::channel(WAITING_MAX);
        let closed = tokio_util::sync::CancellationToken::new();
        let task = tokio::spawn(write_all(connection, waiting, closed.clone()));
        Ok(Self { jobs, task: tokio::sync::Mutex::new(Some(task)), closed })
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
    mut connection: SqliteConnection,
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
        let commit = write_batch(&mut connection, &mut batch).await;
        for job in batch.drain(..) {
            job.finish(commit.clone());
        }
    }
    let _ = connection.close().await;
}

async fn write_batch(connection: &mut SqliteConnection, batch: &mut [Box<dyn Job>]) -> Result<()> {
    let failed = |e: sqlx::Error| StoreError::Failed(super::explain(&e));
    let written = write_jobs(connection, batch).await;
    if written.is_err() {
        // Whatever failed, no transaction may stay open: the next BEGIN would fail, and every one after it. Errors such as a
        // full disk roll back by themselves; SQLite's COMMIT either happened or can be rolled back, it has no third state
        // while the file is ours.
        let _ = sqlx::query("ROLLBACK").execute(&mut *connection).await;
    }
    written.map_err(failed)
}

/// What stands between two jobs goes to SQLite in one piece: a statement is a trip to sqlx's thread and back, which costs more
/// than most of them take there.
async fn write_jobs(
    connection: &mut SqliteConnection,
    batch: &mut [Box<dyn Job>],
) -> std::result::Result<(), sqlx::Error> {
    let alone = batch.len() == 1;
    let mut before = if alone { "BEGIN IMMEDIATE" } else { "BEGIN IMMEDIATE; SAVEPOINT job" };
    for job in batch.iter_mut() {
        sqlx::query(before).execute(&mut *connection).await?;
        before = "RELEASE job; SAVEPOINT job";
        if let Err(error) = job.run(connection).await {
            if alone {
                return Err(error);
            }
            // One that fails must not take its neighbours along.
            sqlx::query("ROLLBACK TO job").execute(&mut *connection).await?;
        }
    }
    failpoint::hit("store.committing").await;
    // Ends the last savepoint, too.
    sqlx::query("COMMIT").execute(&mut *connection).await?;
    failpoint::hit("store.committed").await;
    Ok(())
}
