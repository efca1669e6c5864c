//! A create request as an app sent it, parsed.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use http::Request;

use super::dedupe::fingerprint::Fingerprint;
use crate::calls::rejection::{RejectedRequest, RequestKind};
use crate::ids::Alias;
use crate::policy::{Facts, Ignored};
use crate::provider::account::Account;
use crate::provider::description::Operation;
use crate::provider::select::Document;
use crate::reply::Rejection;

/// A request that would create a call.
#[derive(Debug)]
pub struct CreateRequest {
    /// Whose capacity it uses.
    pub account: Arc<Account>,
    /// Which operation of the provider it is.
    pub operation: Operation,
    /// What policy selects by.
    pub facts: Facts,
    /// The request as it will be sent: upstream URI, the app's headers. The body is the app's.
    pub upstream: Request<Bytes>,
    /// The body, decoded.
    pub body: Document,
    /// The batch that the path names, where it is to be retried.
    pub batch: Option<Alias>,
    /// The subaccount that it is made in, by its path.
    pub subaccount: Option<String>,
    /// The client sleeps on `Retry-After` inside the app's request.
    pub sdk_sleeps: bool,
    /// What of it named a business and was not read.
    pub ignored: Option<Ignored>,
    /// It is a job of a bulk run: no app waits for its answer.
    pub is_job: bool,
    /// What would have rejected it, beside its limits, where nothing is rejected.
    pub would_reject: OnceLock<Rejection>,
    /// When it had been read whole.
    pub read_at: Instant,
    fingerprint: Fingerprint,
}

impl CreateRequest {
    /// A request without anything optional.
    pub fn new(
        account: Arc<Account>,
        operation: Operation,
        facts: Facts,
        upstream: Request<Bytes>,
        body: Document,
    ) -> Self {
        Self {
            fingerprint: Fingerprint::new(&facts, &upstream),
            account,
            operation,
            facts,
            upstream,
            body,
            batch: None,
            subaccount: None,
            sdk_sleeps: false,
            ignored: None,
            is_job: false,
            would_reject: OnceLock::new(),
            read_at: Instant::now(),
        }
    }

    /// What makes it equal to another.
    pub(in crate::calls) fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// What a rejection of it says, and what of it is logged, counted and recorded.
    pub fn rejected(&self) -> RejectedRequest<'_> {
        RejectedRequest {
            kind: if self.is_job { RequestKind::Job } else { RequestKind::Create },
            account: &self.account,
            business: self.facts.business.as_str(),
            plan: &self.facts.plan,
            direction: self.facts.direction,
            to: self.facts.other_number.as_deref(),
            sdk_sleeps: self.sdk_sleeps,
            retry_key: Some(self.fingerprint.as_str()),
        }
    }

    /// The request as the app sent it, to be sent on.
    pub(super) fn to_send(&self) -> Request<Bytes> {
        let mut request = Request::new(self.upstream.body().clone());
        *request.method_mut() = self.upstream.method().clone();
        *request.uri_mut() = self.upstream.uri().clone();
        *request.headers_mut() = self.upstream.headers().clone();
        // The body is here, whole: nobody has to be asked to go on, and its length is our own.
        for removed in [http::header::CONTENT_LENGTH, http::header::EXPECT] {
            request.headers_mut().remove(removed);
        }
        request
    }
}
