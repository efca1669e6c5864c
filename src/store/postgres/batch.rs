//! Decisions that meet (group commit). They have to go one after the other, so one task owns them: what came while the last
//! transaction was under way goes into the next one, with one count, one write and one commit. No timer. Dropping the waiter drops
//! only the notification.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};

use super::super::{Decided, Result, StoreError};
use super::gate::{self, Ask};
use super::transact::{Db, Gate};
use crate::ids::CallId;

/// Decisions that may wait. Beyond it, callers wait to hand theirs over.
const WAITING_MAX: usize = 4096;
/// Decisions in one transaction.
const BATCH_MAX: usize = 256;

/// Calls of which nobody knows yet whether they are on record, and the transaction that knows.
#[derive(Debug, Clone, Default)]
pub(super) struct Doubts(Arc<Mutex<HashMap<CallId, i64>>>);

impl Doubts {
    /// Remembers the calls of a write that failed, if it may have been made.
    pub(super) fn note<'c>(
        &self,
        calls: impl Iterator<Item = &'c CallId>,
        (error, doubt): (StoreError, Option<i64>),
    ) -> StoreError {
        if let Some(xid) = doubt {
            let mut doubts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            doubts.extend(calls.map(|call| (call.clone(), xid)));
        }
        error
    }

    pub(super) fn of(&self, call: &CallId) -> Option<i64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(call).copied()
    }

    pub(super) fn settle(&self, call: &CallId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(call);
    }
}

struct Waiting {
    ask: Ask,
    reply: oneshot::Sender<Result<Decided>>,
}

/// Where decisions are handed over.
pub(super) struct Decisions(mpsc::Sender<Waiting>);

impl Decisions {
    /// Starts the task, which ends with this.
    pub(super) fn start(db: Arc<Db>, doubts: Doubts, callers_clock: bool) -> Self {
        let (handed, waiting) = mpsc::channel(WAITING_MAX);
        tokio::spawn(decide_all(Decider { db, doubts, callers_clock }, waiting));
        Self(handed)
    }

    /// Decides, and returns when that is durable.
    pub(super) async fn decide(&self, ask: Ask) -> Result<Decided> {
        let (reply, told) = oneshot::channel();
        let gone = || StoreError::Failed("the store is closed".to_owned());
        self.0.send(Waiting { ask, reply }).await.map_err(|_| gone())?;
        told.await.map_err(|_| StoreError::Unknown("the task that decides ended before it answered".to_owned()))?
    }
}

struct Decider {
    db: Arc<Db>,
    doubts: Doubts,
    callers_clock: bool,
}

async fn decide_all(decider: Decider, mut waiting: mpsc::Receiver<Waiting>) {
    let mut taken = Vec::new();
    while waiting.recv_many(&mut taken, BATCH_MAX).await > 0 {
        let (asks, replies): (Vec<_>, Vec<_>) = taken.drain(..).map(|w| (Arc::new(w.ask), w.reply)).unzip();
        match decider.transact(&asks).await {
            Ok(decided) => {
                for (reply, decided) in replies.into_iter().zip(decided) {
                    // The waiter may have gone; what was decided stands all the same.
                    let _ = reply.send(Ok(decided));
                }
            }
            // One that cannot be written must not take its neighbours along.
            Err(StoreError::Failed(_) | StoreError::Damaged(_))
                if asks.len() > 1 && !decider.db.health.is_failing() =>
            {
                for (ask, reply) in asks.into_iter().zip(replies) {
                    let decided = decider.transact(&[ask]).await.and_then(|mut one| {
                        one.pop().ok_or_else(|| StoreError::Failed("nothing was decided".to_owned()))
                    });
                    let _ = reply.send(decided);
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

impl Decider {
    async fn transact(&self, asks: &[Arc<Ask>]) -> Result<Vec<Decided>> {
        let (batch, callers_clock): (Arc<[Arc<Ask>]>, _) = (asks.into(), self.callers_clock);
        let decided = self.db.write_at(Gate::Alone, move |c, state| {
            let batch = batch.clone();
            Box::pin(async move { gate::admit(c, state, &batch, callers_clock).await })
        });
        decided.await.map_err(|failed| self.doubts.note(asks.iter().map(|ask| &ask.call.id), failed))
    }
}
