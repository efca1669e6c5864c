//! The handler of a provider's batch calling API, if batches are dialled call by call.

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Method, Response};

use super::Calls;
use super::outbound::CreateRequest;
use crate::provider::account::Account;

/// Answers requests about batches in the provider's shape. Other requests are proxied to the provider.
#[async_trait]
pub trait BatchCalling: Send + Sync {
    /// Answers a request that would create calls: a new batch, or a retry of one.
    async fn create(&self, calls: &Calls, request: &CreateRequest) -> Option<Response<Bytes>>;

    /// Answers any other request.
    async fn other(&self, calls: &Calls, account: &Account, request: OtherRequest<'_>) -> Option<Response<Bytes>>;
}

/// A request that creates no calls.
#[derive(Debug, Clone, Copy)]
pub struct OtherRequest<'r> {
    /// The request's method.
    pub method: &'r Method,
    /// The path at the provider.
    pub path: &'r str,
    /// The request's query, without the question mark.
    pub query: &'r str,
    /// The request's headers.
    pub headers: &'r HeaderMap,
}
