//! ringfence's own requests to a provider, with the account's credentials.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, USER_AGENT};
use http::{HeaderValue, Method, Request, Response};

use super::recent_hang_ups::RecentHangUps;
use crate::calls::context::{ANSWER_BYTES_MAX, Context};
use crate::ids::AccountName;
use crate::net::UpstreamError;
use crate::provider::account::Account;
use crate::provider::description::SUBACCOUNT_KIND;
use crate::provider::render::{MissingValue, Target, render};
use crate::store::CallRecord;

/// ringfence's own requests to providers: looking up, ending and fetching calls. All go through [`ask`](Self::ask).
pub struct ProviderClient {
    pub(super) context: Arc<Context>,
    /// Outlives a reload.
    pub(super) hang_ups: RecentHangUps,
}

/// A request to a provider failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AskError {
    /// The account has no credentials, or the provider has no such operation.
    #[error("cannot query {0}: {1}")]
    CannotQuery(AccountName, &'static str),
    /// A template names a missing value.
    #[error(transparent)]
    Missing(#[from] MissingValue),
    /// The provider did not answer.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The provider answered 429: too many requests.
    #[error("the provider answered 429: rate limited")]
    Limited {
        /// Seconds until it accepts another request, if it says so.
        retry_after_secs: Option<u32>,
    },
    /// The provider answered with a status that does not tell the call's state.
    #[error("the provider answered {0}")]
    Status(u16),
    /// The provider's answer cannot be parsed.
    #[error("the provider's answer cannot be read: {0}")]
    Unreadable(Unreadable),
}

/// The reason why an answer cannot be parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// The answer is neither JSON nor XML: a proxy's HTML page, or truncated.
    #[error("no {0} in it")]
    NoDocument(&'static str),
    /// The answer has a state that the provider's description does not list.
    #[error("unknown state {0:?}: the provider's description does not list it")]
    UnknownState(String),
    /// The answer has no state of the call.
    #[error("no call state in it")]
    NoState,
}

impl ProviderClient {
    /// A client of this generation. `hang_ups` outlives it.
    pub(in crate::calls) fn new(context: Arc<Context>, hang_ups: RecentHangUps) -> Self {
        Self { context, hang_ups }
    }

    /// Fills a path template: `account.*` (of the subaccount that has the call, if any), the call's aliases and attributes,
    /// `call_id`. Values are percent-encoded.
    pub(super) fn path(
        &self,
        account: &Account,
        record: Option<&CallRecord>,
        template: &str,
    ) -> Result<String, MissingValue> {
        render(template, Target::Url, |name| {
            let own = subaccount_id(account, record, name);
            own.or_else(|| account.value(name)).or_else(|| of_record(record?, name))
        })
    }

    /// Sends one of ringfence's own requests, with the account's credentials.
    pub async fn ask(
        &self,
        account: &Account,
        method: Method,
        path_and_query: &str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<Response<Bytes>, AskError> {
        if !account.can_ask() {
            return Err(AskError::CannotQuery(account.name.clone(), "it has no credentials in the config"));
        }
        let (name, value) = account.credentials()?;
        let uri =
            account.url(path_and_query).map_err(|_| AskError::CannotQuery(account.name.clone(), "its URL is bad"))?;
        let mut request = Request::new(body.as_ref().map(|(_, bytes)| bytes.clone()).unwrap_or_default());
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert(name, value);
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("ringfence/", env!("CARGO_PKG_VERSION"))));
        if let Some((content_type, _)) = body {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        Ok(self.context.upstream.fetch(request, ANSWER_BYTES_MAX, self.context.settings.provider_query_timeout).await?)
    }
}

/// The value of a call's attribute in a template.
pub(in crate::calls) fn of_record<'a>(record: &'a CallRecord, name: &str) -> Option<Cow<'a, str>> {
    let attributes = &record.attributes;
    let value = match name {
        "call_id" => Some(record.id.as_str()),
        "agent" => attributes.agent.as_deref(),
        "own_number" => attributes.own_number.as_deref(),
        "other_number" => attributes.other_number.as_deref(),
        kind => record.alias(kind),
    };
    value.map(Cow::Borrowed)
}

/// The value of `account.id` in a path about a subaccount's call: the subaccount's id.
fn subaccount_id<'r>(account: &Account, record: Option<&'r CallRecord>, name: &str) -> Option<Cow<'r, str>> {
    let rule = account.provider.subaccounts.as_ref()?;
    let (id, _) =
        record?.alias(SUBACCOUNT_KIND).filter(|_| name.strip_prefix("account.") == Some(&rule.own))?.split_once('/')?;
    Some(Cow::Borrowed(id))
}
