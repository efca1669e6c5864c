//! The call of a job of a bulk run: admitted, recorded, sent and settled as every other, by the same phases. Nobody waits for its answer,
//! each try has an alias of its own, and what rejects it is told to the dialler alone: no rejection record, no metric of the app's.

use std::sync::Arc;

use futures_util::FutureExt as _;
use tokio::sync::oneshot;

use super::callback::check_callbacks;
use super::request::CreateRequest;
use super::{Outbound, SendOutcome};
use crate::admission::LimitExceeded;
use crate::failpoint;
use crate::ids::{Alias, CallId};
use crate::policy::{Binding, Bound};
use crate::reply::{Rejection, RejectionCode};

/// On what terms a job is placed.
pub struct JobTerms {
    /// The name of this try.
    pub alias: Alias,
    /// Slots that each limit of concurrent calls keeps free of bulk calls.
    pub reserve: u32,
    /// Limits of the run's own.
    pub bindings: Vec<Binding>,
    /// Told of the call as soon as it is admitted and on record.
    pub admitted: oneshot::Sender<CallId>,
}

/// What became of a job.
#[derive(Debug)]
pub enum JobPlaced {
    /// Its provider has it, or nobody knows whether it has: its call's end settles it.
    Called(CallId),
    /// This try was made before, by whomever: its call's end settles it.
    Known(CallId),
    /// A limit is full. Without a trace.
    LimitExceeded(LimitExceeded),
    /// Its provider takes no more calls just now.
    ProviderLimit {
        /// Seconds to wait.
        wait_secs: u32,
    },
    /// It was not sent.
    NotSent(String),
    /// Its provider rejected it.
    Rejected(String),
    /// Nobody can admit just now.
    Away(String),
}

impl Outbound {
    /// Places a job. It must be awaited to its end.
    pub async fn place_job(&self, request: Arc<CreateRequest>, terms: JobTerms) -> JobPlaced {
        if let Err(bad) = check_callbacks(&self.context, &request) {
            return JobPlaced::Rejected(format!("the callback URL is not one that is called: {bad}"));
        }
        let admitted = match self.admitter.admit_job(&request, terms).boxed().await {
            Ok(admitted) => admitted,
            Err(placed) => return placed,
        };
        let call = admitted.call().clone();
        failpoint::hit("run.sending").await;
        let sent = admitted.send(&self.context, request.account.name.as_str()).boxed().await;
        failpoint::hit("run.answered").await;
        let (outcome, response) = self.settlement.settle_with_outcome(sent, &request).boxed().await;
        match (outcome, response.extensions().get::<Rejection>()) {
            (SendOutcome::Created | SendOutcome::Unknown, _) => JobPlaced::Called(call),
            (SendOutcome::NotCreated, Some(rejection)) if rejection.code == RejectionCode::ProviderLimit => {
                JobPlaced::ProviderLimit { wait_secs: rejection.wait_secs().unwrap_or(1) }
            }
            (SendOutcome::NotCreated, Some(rejection)) => JobPlaced::NotSent(rejection.message.clone()),
            (SendOutcome::NotCreated, None) => {
                JobPlaced::Rejected(format!("the provider answered {}", response.status().as_u16()))
            }
        }
    }
}

/// Keeps slots free of bulk calls.
pub fn reserve(bindings: &mut [Binding], slots: u32) {
    for binding in bindings {
        if let Bound::Concurrent(n) = &mut binding.bound {
            *n = n.saturating_sub(slots);
        }
    }
}
