//! Group commit of decisions and of utterances. They have to be serial, so one task owns each kind: those that arrive during a
//! transaction go into the next one, with a few statements and one commit. No timer. Dropping the waiter drops only the
//! notification.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use super::super::{AdmitOutcome, IngestOutcome, Result, StoreError, UtteranceIngest};
use super::TimeOf;
use super::gate::{self, PendingAdmission};
use super::transaction::{Db, TransactionId, TransitionLock};
use super::utterance_batch;
use crate::ids::CallId;
use crate::sync::lock;

/// Queued writes. Beyond that, callers wait to enqueue.
const WAITING_MAX: usize = 4096;
/// Writes in one transaction.
const BATCH_MAX: usize = 256;

/// Calls whose commit has an unknown outcome, and their transaction.
#[derive(Debug, Clone, Default)]
pub(super) struct InDoubt(Arc<Mutex<HashMap<CallId, TransactionId>>>);

impl InDoubt {
    /// Remembers the calls of a failed write, if it may have been committed.
    pub(super) fn note<'c>(
        &self,
        calls: impl Iterator<Item = &'c CallId>,
        (error, doubt): (StoreError, Option<TransactionId>),
    ) -> StoreError {
        if let Some(transaction) = doubt {
            let mut doubts = lock(&self.0);
            doubts.extend(calls.map(|call| (call.clone(), transaction.clone())));
        }
        error
    }

    pub(super) fn of(&self, call: &CallId) -> Option<TransactionId> {
        lock(&self.0).get(call).cloned()
    }

    pub(super) fn settle(&self, call: &CallId) {
        lock(&self.0).remove(call);
    }
}

/// Runs a batch in one transaction; an answer to each.
type Transact<A, R> = Box<dyn Fn(Arc<[Arc<A>]>) -> BoxFuture<'static, Result<Vec<R>>> + Send + Sync>;

struct Queued<A, R> {
    ask: A,
    reply: oneshot::Sender<Result<R>>,
}

/// The queue.
pub(super) struct Batches<A, R>(mpsc::Sender<Queued<A, R>>);

impl<A: Send + Sync + 'static, R: Send + 'static> Batches<A, R> {
    /// Starts the task, which ends with this.
    pub(super) fn start(db: Arc<Db>, transact: Transact<A, R>) -> Self {
        let (handed, waiting) = mpsc::channel(WAITING_MAX);
        tokio::spawn(run_all(db, transact, waiting));
        Self(handed)
    }

    /// Enqueues one, and returns when it is durable.
    pub(super) async fn run(&self, ask: A) -> Result<R> {
        let (reply, told) = oneshot::channel();
        let gone = || StoreError::Failed("the store is closed".to_owned());
        self.0.send(Queued { ask, reply }).await.map_err(|_| gone())?;
        told.await.map_err(|_| StoreError::Unknown("the task that writes ended before it answered".to_owned()))?
    }
}

async fn run_all<A, R>(db: Arc<Db>, transact: Transact<A, R>, mut waiting: mpsc::Receiver<Queued<A, R>>) {
    let mut taken = Vec::new();
    while waiting.recv_many(&mut taken, BATCH_MAX).await > 0 {
        let (asks, replies): (Vec<_>, Vec<_>) = taken.drain(..).map(|w| (Arc::new(w.ask), w.reply)).unzip();
        match transact(asks.clone().into()).await {
            Ok(answers) => {
                for (reply, answer) in replies.into_iter().zip(answers) {
                    // The waiter may be gone; the write is committed nevertheless.
                    let _ = reply.send(Ok(answer));
                }
            }
            // One that fails must not make the others fail.
            Err(StoreError::Failed(_) | StoreError::Damaged(_)) if asks.len() > 1 && !db.health.is_failing() => {
                for (ask, reply) in asks.into_iter().zip(replies) {
                    let answer = transact([ask].into())
                        .await
                        .and_then(|mut one| one.pop().ok_or_else(|| StoreError::Failed("missing result".to_owned())));
                    let _ = reply.send(answer);
                }
            }
            Err(error) => {
                for reply in replies {
                    let _ = reply.send(Err(error.clone()));
                }
            }
        }
    }
}

/// The task of decisions.
pub(super) fn decisions(db: Arc<Db>, doubts: InDoubt, time_of: TimeOf) -> Batches<PendingAdmission, AdmitOutcome> {
    let at = db.clone();
    let transact = move |asks: Arc<[Arc<PendingAdmission>]>| {
        let (db, doubts, batch) = (db.clone(), doubts.clone(), asks.clone());
        let work = async move {
            let decided = db.write_at(TransitionLock::Exclusive, move |c, state| {
                let batch = batch.clone();
                Box::pin(async move { gate::admit(c, state, &batch, time_of).await })
            });
            decided.await.map_err(|failed| doubts.note(asks.iter().map(|ask| &ask.call.id), failed))
        };
        work.boxed()
    };
    Batches::start(at, Box::new(transact))
}

/// The task of utterances. While processes `listen`, they are notified.
pub(super) fn ingests(db: Arc<Db>, listens: Arc<AtomicBool>) -> Batches<UtteranceIngest, IngestOutcome> {
    let at = db.clone();
    let transact = move |batch: Arc<[Arc<UtteranceIngest>]>| {
        let (db, notifies) = (db.clone(), listens.load(Ordering::Relaxed));
        let work = async move {
            let written = db.write(move |c| {
                let batch = batch.clone();
                Box::pin(async move { utterance_batch::ingest(c, &batch, notifies).await })
            });
            written.await
        };
        work.boxed()
    };
    Batches::start(at, Box::new(transact))
}
