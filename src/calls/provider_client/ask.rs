//! One of ringfence's own requests to a provider, with the account's credentials.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, USER_AGENT};
use http::{HeaderValue, Method, Request, Response};

use super::hang_ups::HangUps;
use crate::calls::context::{ANSWER_BYTES_MAX, Context};
use crate::ids::AccountName;
use crate::net::UpstreamError;
use crate::provider::account::Account;
use crate::provider::description::SUBACCOUNT_KIND;
use crate::provider::render::{MissingValue, Target, render};
use crate::store::CallRecord;

/// What ringfence asks of providers by itself: where calls stand, that they end, what was said in them. [`ask`](Self::ask) is the
/// one way in which it does.
pub struct ProviderClient {
    pub(super) context: Arc<Context>,
    /// Outlives a reload.
    pub(super) hang_ups: HangUps,
}

/// A provider could not be asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AskError {
    /// The account has no credentials for it, or the provider no way.
    #[error("{0} cannot be asked: {1}")]
    NoWay(AccountName, &'static str),
    /// A template names what is not there.
    #[error(transparent)]
    Missing(#[from] MissingValue),
    /// It did not answer.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// It was asked too often: 429.
    #[error("the provider answered 429: it was asked too often")]
    Limited {
        /// When it may be asked again, as it says.
        retry_after_secs: Option<u32>,
    },
    /// It answered with a status that says nothing of the call.
    #[error("the provider answered {0}")]
    Status(u16),
    /// It answered, and what it said cannot be understood.
    #[error("the provider's answer cannot be read: {0}")]
    Unreadable(Unreadable),
}

/// Why an answer cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is neither JSON nor XML: an HTML page of a proxy, or cut off in the middle.
    #[error("no {0} in it")]
    NoDocument(&'static str),
    /// It says where the call stands in a word that the provider's description does not know.
    #[error("its state is {0:?}, which the provider's description does not know")]
    UnknownState(String),
    /// It does not say where the call stands.
    #[error("it does not say where the call stands")]
    NoState,
}

impl ProviderClient {
    /// A client of this generation. `hang_ups` outlives it.
    pub(in crate::calls) fn new(context: Arc<Context>, hang_ups: HangUps) -> Self {
        Self { context, hang_ups }
    }

    /// Fills a path: `account.*` (of the subaccount that has the call, where one has), the call's aliases and facts, `call_id`.
    /// Values are percent-encoded.
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

    /// One of ringfence's own requests, with the account's credentials.
    pub async fn ask(
        &self,
        account: &Account,
        method: Method,
        path_and_query: &str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<Response<Bytes>, AskError> {
        if !account.can_ask() {
            return Err(AskError::NoWay(account.name.clone(), "it has no credentials in the config"));
        }
        let (name, value) = account.credentials()?;
        let uri = account.url(path_and_query).map_err(|_| AskError::NoWay(account.name.clone(), "its URL is bad"))?;
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
        Ok(self.context.upstream.fetch(request, ANSWER_BYTES_MAX, self.context.settings.ask_timeout).await?)
    }
}

/// A value of a call in a template.
pub(in crate::calls) fn of_record<'a>(record: &'a CallRecord, name: &str) -> Option<Cow<'a, str>> {
    let facts = &record.facts;
    let value = match name {
        "call_id" => Some(record.id.as_str()),
        "agent" => facts.agent.as_deref(),
        "own_number" => facts.own_number.as_deref(),
        "other_number" => facts.other_number.as_deref(),
        kind => record.alias(kind),
    };
    value.map(Cow::Borrowed)
}

/// The value of `account.…` in a path about a call that a subaccount has: its own id instead of the account's.
fn subaccount_id<'r>(account: &Account, record: Option<&'r CallRecord>, name: &str) -> Option<Cow<'r, str>> {
    let rule = account.provider.subaccounts.as_ref()?;
    let (id, _) =
        record?.alias(SUBACCOUNT_KIND).filter(|_| name.strip_prefix("account.") == Some(&rule.own))?.split_once('/')?;
    Some(Cow::Borrowed(id))
}
