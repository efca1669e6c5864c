//! Queue of rejections to be stored. They are written in the background, all queued ones in one write: a burst of rejections must
//! not take the store's capacity from admitted calls.

use std::sync::{Arc, Mutex, MutexGuard};

use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::store::{RejectionRecord, Store};
use crate::sync::lock;

/// Rejections that may be queued. Further ones are not recorded.
const WAITING_MAX: usize = 1024;

/// A bounded queue of rejections that wait to be stored. Cloning is cheap.
#[derive(Debug, Clone, Default)]
pub(super) struct RejectionLog(Arc<Mutex<Queue>>);

#[derive(Debug, Default)]
struct Queue {
    records: Vec<RejectionRecord>,
    /// A task is writing, and checks the queue again when it is done.
    is_writing: bool,
}

impl RejectionLog {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        lock(&self.0)
    }

    /// Queues a rejection. At most one task writes; `tasks` tracks it.
    pub(super) fn record(&self, record: RejectionRecord, store: &Arc<dyn Store>, tasks: &TaskTracker) {
        let mut waiting = self.lock();
        if waiting.records.len() >= WAITING_MAX {
            drop(waiting);
            return warn!(refusal = %record.id, "failed to record a rejection: queue full");
        }
        waiting.records.push(record);
        if !std::mem::replace(&mut waiting.is_writing, true) {
            let writing = Writing(self.clone());
            let store = store.clone();
            tasks.spawn(async move { writing.write_all(&*store).await });
        }
    }
}

/// The writing task.
struct Writing(RejectionLog);

impl Writing {
    async fn write_all(self, store: &dyn Store) {
        while let Some(records) = self.next() {
            let count = records.len();
            if let Err(error) = store.record_rejections(records).await {
                warn!(%error, count, "failed to record rejections");
            }
        }
    }

    /// The queued rejections. If there are none, the next rejection starts a new task.
    fn next(&self) -> Option<Vec<RejectionRecord>> {
        let mut waiting = self.0.lock();
        let records = std::mem::take(&mut waiting.records);
        waiting.is_writing = !records.is_empty();
        (!records.is_empty()).then_some(records)
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().is_writing = false;
        }
    }
}
