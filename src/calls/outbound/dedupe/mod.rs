//! Deduplication: an SDK repeats what it got no answer to, and must not place a second call by it.
//!
//! A request is an earlier one sent again if it shows the same idempotency key, or if it is equal to it in business, operation,
//! destination and body, and the app cannot know what became of the earlier one: its outcome is unknown, or its answer was never
//! delivered (the client had gone). It then waits for the earlier request's settlement, and gets its answer; it places a call only if
//! the earlier one was proven not to have made one. Equal requests in parallel, or after a delivered answer, are distinct calls.
//!
//! What is known of a request's client is known to this process alone ([`in_flight`]); what others have to know of it stands in the
//! store, where several share that (`cluster`). After a restart, requests whose outcome is unknown and those answered within a
//! minute before it count as not delivered.

mod cluster;
pub(in crate::calls) mod fingerprint;
pub mod in_flight;
pub(super) mod replay;
mod state;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::Response;
use tokio::time::Instant;
use tracing::warn;

use super::not_sent::NotSent;
use super::request::CreateRequest;
use crate::call::Outcome;
use crate::calls::context::Context;
use crate::calls::rejection::{Rejections, hung_up};
use crate::ids::Alias;
use crate::reply::{Rejection, RejectionCode};
use crate::store::StoreError;
use cluster::{Cluster, ClusterLookup};
use in_flight::{Claim, ClientState, InFlightRequests, Look, Lookup, NOTICED_WITHIN};
use replay::{Duplicate, Replay, Replayed};

/// How a request is recognised.
pub(super) struct Identity {
    /// Its idempotency key, unless it belongs to another request and nothing is rejected.
    pub(super) key: Option<Alias>,
    look: Look,
}

impl Identity {
    /// By its key, if it has one.
    pub(super) fn new(key: Option<Alias>) -> Self {
        Self { key, look: Look::First }
    }
}

/// What a request is to those before it.
pub(super) enum Claimed {
    /// A new one: whoever has the claim settles it.
    New(Claim),
    /// One sent again, with the answer of the first.
    Duplicate(Response<Bytes>),
}

/// See the module.
pub(super) struct Deduplication {
    context: Arc<Context>,
    in_flight: InFlightRequests,
    cluster: Cluster,
    replay: Replay,
}

impl Deduplication {
    /// `in_flight` outlives a reload.
    pub(super) fn new(context: Arc<Context>, rejections: Arc<Rejections>, in_flight: InFlightRequests) -> Self {
        Self {
            cluster: Cluster::new(context.clone()),
            replay: Replay::new(context.clone(), rejections),
            context,
            in_flight,
        }
    }

    /// Claims a request as a new one, or answers it as the earlier one that it is, at most until `until`.
    ///
    /// # Errors
    /// It is neither, or nobody can say which; see [`NotSent`].
    pub(super) async fn claim(
        &self,
        request: &CreateRequest,
        client: &Arc<ClientState>,
        identity: &mut Identity,
        until: Instant,
    ) -> Result<Claimed, NotSent> {
        loop {
            let duplicate = self.by_key(request, client, identity).boxed().await?;
            if client.has_left() {
                return Err(NotSent::Rejected(hung_up()));
            }
            let duplicate = match duplicate {
                Some(duplicate) => duplicate,
                None => match self.in_flight.find(request.fingerprint(), client, identity.look) {
                    Lookup::Concurrent => {
                        tokio::time::sleep(NOTICED_WITHIN).await;
                        identity.look = Look::Second;
                        continue;
                    }
                    Lookup::Duplicate(earlier) => {
                        if !self.cluster.still_owned(request.fingerprint(), &earlier).boxed().await {
                            earlier.not_created();
                            continue;
                        }
                        self.cluster.record_if_undelivered(client, &earlier);
                        Duplicate { call: None, request: Some(earlier) }
                    }
                    Lookup::New(claim) => match self.claim_in_cluster(request, client, claim).boxed().await? {
                        ClusterLookup::New(claim) => return Ok(Claimed::New(claim)),
                        ClusterLookup::Duplicate(earlier) => Duplicate { call: None, request: Some(earlier) },
                    },
                },
            };
            match self.replay.answer(request, &duplicate, client, until).boxed().await? {
                Replayed::Answer(answer) => return Ok(Claimed::Duplicate(answer)),
                // The earlier one is over: what this one is now, a new look tells.
                Replayed::NoCall => {}
            }
        }
    }

    /// Looks for an equal request of another replica.
    async fn claim_in_cluster(
        &self,
        request: &CreateRequest,
        client: &Arc<ClientState>,
        claim: Claim,
    ) -> Result<ClusterLookup, NotSent> {
        self.cluster.record_if_undelivered(client, claim.request());
        let found = self.cluster.find(request.fingerprint(), client, claim).await.map_err(|error| {
            warn!(%error, "failed to look for a request among those of other replicas");
            store_unavailable()
        })?;
        match found {
            ClusterLookup::New(_) if client.has_left() => Err(NotSent::Rejected(hung_up())),
            found => Ok(found),
        }
    }

    /// The request that has this key already.
    async fn by_key(
        &self,
        request: &CreateRequest,
        client: &Arc<ClientState>,
        identity: &mut Identity,
    ) -> Result<Option<Duplicate>, NotSent> {
        let Some(shown) = identity.key.as_ref() else { return Ok(None) };
        let unavailable = |error: StoreError| {
            warn!(%error, "failed to look up an idempotency key");
            store_unavailable()
        };
        let store = &self.context.lifecycle.store;
        let Some(call) = store.resolve(std::slice::from_ref(shown)).await.map_err(unavailable)? else {
            return Ok(None);
        };
        let Some(record) = store.call(&call).await.map_err(unavailable)? else { return Ok(None) };
        if record.outcome == Some(Outcome::NotCreated) {
            return Ok(None);
        }
        if record.fingerprint.as_deref() != Some(request.fingerprint().as_str()) {
            let message =
                "Not dialled: this Idempotency-Key was used for another request. Use a new key for a new call.";
            let rejection = Rejection::new(RejectionCode::KeyReused, message);
            if self.context.observes() {
                // As if it had none: a request of its own.
                let _ = request.would_reject.set(rejection);
                identity.key = None;
                return Ok(None);
            }
            return Err(NotSent::Rejected(rejection));
        }
        let earlier = self.in_flight.of_call(request.fingerprint(), client, &call);
        Ok(Some(Duplicate { call: Some(call), request: earlier }))
    }
}

fn store_unavailable() -> NotSent {
    let message = "The database could not be read, so nothing was dialled.";
    NotSent::Undecided(Rejection::new(RejectionCode::StoreUnavailable, message))
}
