//! A create request as an app sent it, parsed.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use http::Request;

use super::dedupe::fingerprint::{self, Fingerprint};
use crate::calls::rejection::{RejectedRequest, RequestKind};
use crate::ids::Alias;
use crate::policy::{CallAttributes, Ignored};
use crate::provider::account::Account;
use crate::provider::description::Operation;
use crate::provider::select::{Document, Message};
use crate::reply::Rejection;

/// A request that would create a call.
#[derive(Debug)]
pub struct CreateRequest {
    /// The account whose capacity it uses.
    pub account: Arc<Account>,
    /// The provider's operation.
    pub operation: Arc<Operation>,
    /// The attributes that policy selects by.
    pub attributes: CallAttributes,
    /// The request to be sent: upstream URI, the app's headers and body.
    pub upstream: Request<Bytes>,
    /// The body, decoded.
    pub body: Document,
    /// The batch that the path names, if it is to be retried.
    pub batch: Option<Alias>,
    /// The subaccount that its path names.
    pub subaccount: Option<String>,
    /// The client is an SDK that sleeps for `Retry-After` within the app's request.
    pub sdk_sleeps: bool,
    /// The part of it that named a business and was not read.
    pub ignored: Option<Ignored>,
    /// Whether an app waits for its response, or a bulk run's dialler.
    pub kind: RequestKind,
    /// In observe mode, what other than a limit would have rejected it.
    pub would_reject: OnceLock<Rejection>,
    /// The time at which it had been read whole.
    pub read_at: Instant,
    fingerprint: Fingerprint,
}

impl CreateRequest {
    /// A request with no optional fields.
    pub fn new(
        account: Arc<Account>,
        operation: Arc<Operation>,
        attributes: CallAttributes,
        upstream: Request<Bytes>,
        body: Document,
    ) -> Self {
        Self {
            fingerprint: Fingerprint::new(&attributes, &upstream),
            account,
            operation,
            attributes,
            upstream,
            body,
            batch: None,
            subaccount: None,
            sdk_sleeps: false,
            ignored: None,
            kind: RequestKind::Create,
            would_reject: OnceLock::new(),
            read_at: Instant::now(),
        }
    }

    /// Returns the request's fingerprint: equal requests have equal ones.
    pub(in crate::calls) fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// The app's idempotency key, as an alias.
    ///
    /// # Errors
    /// A sentence, if the header is there and cannot be a key.
    pub fn idempotency_key(&self) -> Result<Option<Alias>, String> {
        fingerprint::key(&self.attributes, self.upstream.headers())
    }

    /// Returns the request's body and headers as selectors see them.
    pub fn message(&self) -> Message<'_> {
        Message::new(&self.body, self.upstream.headers())
    }

    /// The attributes that its rejection is logged, counted and recorded with.
    pub fn rejected(&self) -> RejectedRequest<'_> {
        RejectedRequest {
            kind: self.kind,
            account: &self.account,
            business: self.attributes.business.as_str(),
            plan: &self.attributes.plan,
            direction: self.attributes.direction,
            to: self.attributes.other_number.as_deref(),
            sdk_sleeps: self.sdk_sleeps,
            retry_key: Some(self.fingerprint.as_str()),
        }
    }

    /// The app's request, ready to be sent.
    pub(super) fn to_send(&self) -> Request<Bytes> {
        let mut request = Request::new(self.upstream.body().clone());
        *request.method_mut() = self.upstream.method().clone();
        *request.uri_mut() = self.upstream.uri().clone();
        *request.headers_mut() = self.upstream.headers().clone();
        // The body is complete: `Expect: 100-continue` does not apply, and the client library sets the length.
        for removed in [http::header::CONTENT_LENGTH, http::header::EXPECT] {
            request.headers_mut().remove(removed);
        }
        request
    }
}
