//! Readers: threads with a read-only connection each, so that a long read does not delay decisions.

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::sync::{mpsc, oneshot};

use super::super::driver::Sql;
use super::super::{Result, StoreError};
use super::driver::{Sqlite, failed, is_outside};
use crate::sync::lock;

/// The number of readers. With WAL they read while the writer writes.
const READERS: usize = 4;
/// Queued reads. Beyond that, callers wait to enqueue.
const WAITING_MAX: usize = 4096;

/// A read, called with its connection.
type Read = Box<dyn FnOnce(&mut Reader) + Send>;
/// `None` ends the thread.
type ReadQueue = mpsc::Receiver<Option<Read>>;

pub(super) struct Readers {
    reads: mpsc::Sender<Option<Read>>,
    /// Closed when no thread is left.
    ended: tokio::sync::Mutex<mpsc::Receiver<()>>,
}

struct Reader {
    path: PathBuf,
    /// `None` before the first read, and after a failure: a missing file is reported, not recreated.
    connection: Option<Sqlite>,
}

impl Reader {
    fn read<T>(&mut self, work: impl FnOnce(&mut Sqlite) -> Sql<T>) -> Result<T> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(Sqlite::open_to_read(&self.path).map_err(|error| failed(&error))?),
        };
        let done = connection.between("BEGIN", work);
        if done.as_ref().is_err_and(is_outside) {
            self.connection = None;
        }
        done.map_err(|error| failed(&error))
    }
}

impl Readers {
    /// Starts the threads; the file must exist when they read.
    pub(super) fn start(path: &Path) -> std::result::Result<Self, String> {
        let (reads, waiting) = mpsc::channel(WAITING_MAX);
        let waiting = Arc::new(Mutex::new(waiting));
        let (end, ended) = mpsc::channel(1);
        for _ in 0..READERS {
            let (reader, waiting, end) =
                (Reader { path: path.to_owned(), connection: None }, waiting.clone(), end.clone());
            let thread = std::thread::Builder::new().name("ringfence-read".to_owned());
            let reads = move || {
                read_all(reader, &waiting);
                drop(end);
            };
            thread.spawn(reads).map_err(|e| format!("no thread can be started for it: {e}"))?;
        }
        Ok(Self { reads, ended: tokio::sync::Mutex::new(ended) })
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Sqlite) -> Sql<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, told) = oneshot::channel();
        let read = move |reader: &mut Reader| {
            // Its waiter is gone.
            if reply.is_closed() {
                return;
            }
            let read = std::panic::catch_unwind(AssertUnwindSafe(|| reader.read(work)));
            let read = read.unwrap_or_else(|_| {
                reader.connection = None;
                Err(StoreError::Failed("the read panicked".to_owned()))
            });
            let _ = reply.send(read);
        };
        let closed = || StoreError::Failed("the store is closed".to_owned());
        self.reads.send(Some(Box::new(read))).await.map_err(|_| closed())?;
        told.await.map_err(|_| closed())?
    }

    /// Finishes queued reads, then closes.
    pub(super) async fn close(&self) {
        let _ = self.reads.send(None).await;
        let _ = self.ended.lock().await.recv().await;
    }
}

fn read_all(mut reader: Reader, waiting: &Mutex<ReadQueue>) {
    loop {
        let mut next = lock(waiting);
        match next.blocking_recv() {
            Some(Some(read)) => {
                drop(next);
                read(&mut reader);
            }
            // Reads enqueued before are still received.
            Some(None) => next.close(),
            None => return,
        }
    }
}
