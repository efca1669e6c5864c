//! The create as it is sent to the provider: with the call's id, our callback in place of the app's, and a batch reduced to the
//! free slots.

use bytes::Bytes;
use http::header::ACCEPT_ENCODING;
use http::{HeaderValue, Request};
use tracing::warn;

use super::callback::{callback_rule, check_callbacks};
use super::request::CreateRequest;
use crate::calls::context::Context;
use crate::ids::CallId;
use crate::provider::account::join_url;
use crate::provider::json::put;
use crate::provider::render::{Target, render};
use crate::provider::select::Document;
use crate::reply::{Rejection, RejectionCode};
use crate::store::AppCallback;

/// A create as it is sent to the provider.
pub(super) struct Prepared {
    pub(super) request: Request<Bytes>,
    /// The app's own status callback, where ours replaces it.
    pub(super) callback: Option<AppCallback>,
    /// The provider will send events of the call; else the call is polled from the start.
    pub(super) events_will_come: bool,
}

/// The slots granted to a request, of those that it wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SlotGrant {
    pub(super) granted: u32,
    pub(super) wanted: u32,
}

impl SlotGrant {
    /// All wanted slots are granted.
    pub(super) fn all(n: u32) -> Self {
        Self { granted: n, wanted: n }
    }

    /// Fewer are granted than wanted.
    pub(super) fn is_cut(self) -> bool {
        self.granted < self.wanted
    }
}

/// Builds the provider's request for a call.
///
/// # Errors
/// It cannot be built, and is rejected.
pub(super) fn prepare(
    context: &Context,
    request: &CreateRequest,
    call: &CallId,
    slots: SlotGrant,
) -> Result<Prepared, Rejection> {
    let rejected = |message: String| Rejection::new(RejectionCode::InvalidRequest, message);
    let mut prepared = Prepared { request: request.to_send(), callback: None, events_will_come: false };
    prepared.request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    match &request.body {
        Document::Json(_) if !request.operation.inject.is_empty() || slots.is_cut() => {
            // The app's bytes stay unchanged, whatever a parser makes of them.
            let mut body = request.upstream.body().clone();
            let cut = request.operation.slots.as_ref().and_then(|rule| rule.cut.as_deref());
            if let Some(at) = cut.filter(|_| slots.is_cut()) {
                let free = slots.granted;
                let unfit = || rejected(format!("Not dialled: {at} cannot be reduced to the {free} free slots."));
                body = put(&body, at, &free.into()).ok_or_else(unfit)?.into();
            }
            for one in &request.operation.inject {
                let value = render(&one.value, Target::Plain, |n| (n == "call_id").then(|| call.as_str().into()));
                match put(&body, &one.at, &value.map_err(|error| rejected(error.to_string()))?.into()) {
                    Some(with) => body = with.into(),
                    // The app has another value there, which wins; the call is found by other means.
                    None => warn!(%call, at = one.at, "failed to put the call's id into the create"),
                }
            }
            *prepared.request.body_mut() = body;
        }
        Document::Form(pairs) => {
            if let Some((body, callback)) = take_over_callback(context, request, call, pairs) {
                *prepared.request.body_mut() = body.into();
                prepared.callback = callback;
                prepared.events_will_come = true;
            }
        }
        _ => {}
    }
    Ok(prepared)
}

/// The form body with our callback in place of the app's.
fn take_over_callback(
    context: &Context,
    request: &CreateRequest,
    call: &CallId,
    pairs: &[(String, String)],
) -> Option<(String, Option<AppCallback>)> {
    let rule = callback_rule(context, request)?;
    if check_callbacks(context, request).is_err() {
        return None;
    }
    let public_url = context.settings.app.public_url.as_ref()?;
    let template = request.account.provider.webhooks.iter().find_map(|w| w.callback.as_ref())?;
    let path = render(template, Target::Url, |n| (n == "call_id").then(|| call.as_str().into())).ok()?;
    let field = |name: &str| pairs.iter().filter(|(k, _)| k == name).map(|(_, v)| v.clone()).collect::<Vec<_>>();
    let app = field(&rule.field).pop().filter(|url| !url.is_empty()).map(|url| AppCallback {
        url,
        method: field(&rule.method_field).pop().unwrap_or_else(|| "POST".to_owned()),
        events: field(&rule.events_field),
    });
    let ours = [&rule.field, &rule.method_field, &rule.events_field];
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.extend_pairs(pairs.iter().filter(|(k, _)| !ours.contains(&k)));
    form.append_pair(&rule.field, &join_url(public_url, &path));
    form.append_pair(&rule.method_field, "POST");
    form.extend_pairs(rule.events.iter().map(|event| (&rule.events_field, event)));
    Some((form.finish(), app))
}
