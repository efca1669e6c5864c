//! Deduplication: an SDK retries a request without a response, and the retry must not place a second call.
//!
//! A request is a duplicate if it has the same idempotency key as an earlier one, or if it is equal in business, operation,
//! destination and body and the app cannot know the outcome of the earlier one: the outcome is unknown, or the response was not
//! delivered (the client disconnected). A duplicate waits for the earlier request's outcome and gets its response; it places a
//! call only if the earlier one provably made none. Equal requests in parallel, or after a delivered response, are distinct
//! calls.
//!
//! Knowledge about a request's client is local to the process ([`in_flight`]); what other replicas need of it is in the store,
//! where they share one (`cluster`). After a restart, requests with an unknown outcome and those answered within the last minute
//! count as not delivered.

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
use crate::calls::rejection::{Rejections, client_disconnected};
use crate::ids::Alias;
use crate::reply::{Rejection, RejectionCode};
use crate::store::StoreError;
use cluster::{Cluster, ClusterLookup};
use in_flight::{Claim, ClientState, InFlightRequests, Look, Lookup, NOTICED_WITHIN};
use replay::{Duplicate, Replay, Replayed};

/// The identity by which duplicates of a request are recognised.
pub(super) struct Identity {
    /// The request's idempotency key, unless another request has the key and observe mode is on.
    pub(super) key: Option<Alias>,
    look: Look,
}

impl Identity {
    /// An identity with this key, if the request has one.
    pub(super) fn new(key: Option<Alias>) -> Self {
        Self { key, look: Look::First }
    }
}

/// The relation of a request to earlier ones.
pub(super) enum Claimed {
    /// A new one: the holder of the claim settles it.
    New(Claim),
    /// A duplicate, with the response to the first.
    Duplicate(Response<Bytes>),
}

/// Recognises duplicate requests, in this process and, by [`Cluster`], in others.
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

    /// Claims a request as new, or answers it as the duplicate that it is, waiting until `until` at most.
    ///
    /// # Errors
    /// It is neither, or that cannot be decided; see [`NotSent`].
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
                return Err(NotSent::Rejected(client_disconnected()));
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
                        let recording = self.context.lifecycle.admission.recording();
                        if !self.cluster.still_owned(request.fingerprint(), &earlier).boxed().await {
                            earlier.not_created();
                            continue;
                        }
                        self.cluster.record_if_undelivered(client, &earlier, Some(recording));
                        Duplicate { call: None, request: Some(earlier) }
                    }
                    Lookup::New(claim) => match self.claim_in_cluster(request, client, claim).boxed().await? {
                        ClusterLookup::New(claim) => return Ok(Claimed::New(claim)),
                        ClusterLookup::Duplicate(earlier, recording) => {
                            self.cluster.record_if_undelivered(client, &earlier, Some(recording));
                            Duplicate { call: None, request: Some(earlier) }
                        }
                    },
                },
            };
            match self.replay.answer(request, &duplicate, client, until).boxed().await? {
                Replayed::Answer(answer) => return Ok(Claimed::Duplicate(answer)),
                // The earlier one is finished: look again.
                Replayed::NoCall => {}
            }
        }
    }

    /// Looks for an equal request at other replicas.
    async fn claim_in_cluster(
        &self,
        request: &CreateRequest,
        client: &Arc<ClientState>,
        claim: Claim,
    ) -> Result<ClusterLookup, NotSent> {
        self.cluster.record_if_undelivered(client, claim.request(), None);
        let found = self.cluster.find(request.fingerprint(), client, claim).await.map_err(|error| {
            warn!(%error, "failed to look for a request among those of other replicas");
            NotSent::store_unreadable()
        })?;
        match found {
            ClusterLookup::New(_) if client.has_left() => Err(NotSent::Rejected(client_disconnected())),
            found => Ok(found),
        }
    }

    /// Looks up the request that has this key.
    async fn by_key(
        &self,
        request: &CreateRequest,
        client: &Arc<ClientState>,
        identity: &mut Identity,
    ) -> Result<Option<Duplicate>, NotSent> {
        let Some(shown) = identity.key.as_ref() else { return Ok(None) };
        let unavailable = |error: StoreError| {
            warn!(%error, "failed to look up an idempotency key");
            NotSent::store_unreadable()
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
                // Treated as if it had no key.
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
