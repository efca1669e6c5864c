//! Forwarding to the app: replies that a provider waits for, and notifications.

use std::borrow::Cow;

use bytes::Bytes;
use http::{Response, StatusCode};
use tracing::{Instrument as _, warn};

use super::answers::fixed_answer;
use super::app_view::REPLACED;
use super::context::Webhooks;
use super::deliver;
use super::parsed::ParsedWebhook;
use super::raw::RawWebhook;
use super::settings::InboundMode;
use crate::call::{EndProof, Outcome, Source};
use crate::ids::{BusinessId, CallId};
use crate::net::{Exchange, HostRule, RelayError, RelayTarget, UpstreamError, ask_with_body};
use crate::provider::account::join_url;
use crate::provider::description::OWN_ID_KIND;
use crate::reply::{problem, twiml, when_full_twiml};
use crate::store::{Delivery, DeliveryRoute, Result};
use crate::telemetry::traces;

/// The largest response of the app to a webhook, in bytes.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

impl Webhooks {
    // === replies ===

    /// The reply that the provider acts on: front mode's TwiML, or the app's.
    pub(super) async fn reply(
        &self,
        exchange: &mut Exchange,
        parsed: &ParsedWebhook<'_>,
        call: Option<&CallId>,
    ) -> Result<Response<Bytes>> {
        let webhook = parsed.from.webhook();
        let incoming = parsed.announces_inbound();
        let front = incoming && webhook.wants_twiml() && self.settings.inbound_mode == InboundMode::Front;
        if let (true, Some(call)) = (front, call) {
            return Ok(self.front(call, parsed).await);
        }
        if self.settings.forward_url.is_none() {
            if webhook.answer.is_some() {
                return Ok(fixed_answer(webhook, None));
            }
            warn!(
                path = exchange.path(),
                "failed to answer a voice webhook: neither app.forward_url nor front mode is set"
            );
            if let Some(call) = call.filter(|_| incoming) {
                self.calls.lifecycle.end(call, Outcome::Failed, EndProof::Webhook, Source::Webhook).await?;
            }
            let message = "No app answers this webhook: set app.forward_url, or [inbound] mode = \"front\".";
            return Ok(problem(StatusCode::BAD_GATEWAY, "NO_APP", message));
        }
        let (mut target, body) = (self.app_target(parsed), parsed.raw.body.clone());
        let within = self.settings.app_timeout;
        let span = traces::request("ask the app");
        let context = traces::trace_headers(&span);
        if !context.is_empty() {
            target.remove_headers.to_mut().extend(traces::TRACE_HEADERS);
        }
        target.set_headers.extend(context);
        let asking = ask_with_body(exchange, &self.calls.upstream, target, body, ANSWER_BYTES_MAX, within);
        let asked = asking.instrument(span.clone()).await;
        match &asked {
            Ok(answer) => traces::record_status(&span, answer.status().as_u16()),
            Err(_) => traces::record_failure(&span, "no_answer"),
        }
        let failed = match &asked {
            Ok(answer) if answer.status().is_server_error() => Some(format!("status {}", answer.status().as_u16())),
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        };
        if let Some(why) = failed {
            warn!(webhook = webhook.name, why, "failed to get the app's answer to a voice webhook");
            if incoming
                && webhook.wants_twiml()
                && let Some(instead) = &self.settings.when_down
            {
                return Ok(twiml(when_full_twiml(instead)));
            }
        }
        if let Ok(answer) = &asked
            && answer.status().is_client_error()
            && webhook.wants_twiml()
        {
            self.note_app_rejection(parsed, call.filter(|_| incoming), answer.status());
        }
        // Without a configured fallback the provider gets the error: its own fallback takes the call, and the carrier reports its
        // end.
        Ok(match asked {
            Ok(answer) => answer,
            Err(_) if webhook.answer.is_some() => fixed_answer(webhook, None),
            Err(RelayError::Broken(UpstreamError::Timeout(_))) => {
                let message = format!("The app did not answer within {} s.", within.as_secs());
                problem(StatusCode::GATEWAY_TIMEOUT, "APP_TIMEOUT", &message)
            }
            Err(_) => problem(StatusCode::BAD_GATEWAY, "APP_UNREACHABLE", "The app cannot be reached."),
        })
    }

    async fn front(&self, call: &CallId, parsed: &ParsedWebhook<'_>) -> Response<Bytes> {
        let number = parsed.from.webhook().attributes.read(&parsed.message, parsed.direction).own_number;
        let connected = match self.agent_of(number.as_deref()) {
            Some(agent) => self.calls.inbound.front(call, &agent).await,
            None => {
                let _ = self.calls.lifecycle.end(call, Outcome::Failed, EndProof::Webhook, Source::Webhook).await;
                Err("no agent answers this number: set [inbound] agents, or the business's agent_ids".to_owned())
            }
        };
        match connected {
            Ok(xml) => twiml(xml),
            Err(why) => {
                warn!(%call, why, "failed to connect an admitted inbound call; when_full applies");
                let policy = self.calls.lifecycle.policy.load();
                let business = match self.calls.lifecycle.store.call(call).await {
                    Ok(Some(record)) => record.attributes.business,
                    _ => BusinessId::default_business(),
                };
                twiml(when_full_twiml(policy.when_full(&business)))
            }
        }
    }

    // === to the app ===

    /// The request to the app: same path, same bytes; a URL-bound signature is made anew for the app's URL.
    fn app_target<'p>(&self, parsed: &'p ParsedWebhook<'_>) -> RelayTarget<'p> {
        let base = self.settings.forward_url.clone().unwrap_or_default();
        let raw = parsed.raw;
        let path_and_query = &raw.path_and_query;
        let url = self.settings.app_url(&raw.headers, path_and_query);
        let received_url = self.signed(raw).url();
        let mut set_headers = self.settings.front_headers(&url);
        set_headers.extend(parsed.resign(&received_url).headers(&raw.method, &url, &raw.body, raw.form()));
        RelayTarget {
            base,
            path_and_query,
            remove_headers: Cow::Borrowed(&REPLACED),
            set_headers,
            host: HostRule::Upstream,
            mount: None,
        }
    }

    /// The delivery of a notification to the app, if any.
    pub(super) async fn delivery(
        &self,
        parsed: &ParsedWebhook<'_>,
        call: Option<&CallId>,
        event_id: &str,
    ) -> Result<Option<Delivery>> {
        let (from, raw) = (parsed.from, parsed.raw);
        let taken_over = from.webhook().callback.is_some() && from.captures.contains_key(OWN_ID_KIND);
        let (url, signed_url, method, route) = if taken_over {
            let record = match call {
                Some(call) => self.calls.lifecycle.store.call(call).await?,
                None => None,
            };
            let Some(callback) = record.and_then(|r| r.callback) else { return Ok(None) };
            let event = from.webhook().callback_event.as_ref().and_then(|event| event.read(&parsed.message));
            if !asked_for(&callback.events, event.unwrap_or(END_EVENT)) {
                return Ok(None);
            }
            // A URL of the app, or our own, leads to the address that the operator configured; any other is the tenant's.
            match self.calls.settings.app.path_of(&callback.url).and_then(|path| self.app_urls(raw, path)) {
                Some((_, signed_url)) => (callback.url, signed_url, callback.method, DeliveryRoute::Forwarded),
                None => (callback.url.clone(), callback.url, callback.method, DeliveryRoute::Callback),
            }
        } else {
            let Some((url, signed_url)) = self.app_urls(raw, &raw.path_and_query) else { return Ok(None) };
            (url, signed_url, raw.method.clone(), DeliveryRoute::App)
        };
        let received_url = self.signed(raw).url();
        let spool = self.is_for_spool(parsed).then(|| self.spool.name());
        let to = deliver::To {
            route,
            url: &url,
            signed_url: &signed_url,
            method: &method,
            front: self.settings.front_headers(&signed_url),
        };
        Ok(Some(deliver::compose(event_id, to, &parsed.resign(&received_url), spool)))
    }

    /// The app's internal URL of a path, and the URL that the app knows it by; `None` without an app.
    fn app_urls(&self, raw: &RawWebhook, path_and_query: &str) -> Option<(String, String)> {
        let base = self.settings.forward_url.as_ref()?;
        Some((join_url(base, path_and_query), self.settings.app_url(&raw.headers, path_and_query)))
    }
}

/// The event of a call's end, as apps ask for it.
const END_EVENT: &str = "completed";

/// Whether the app asked for this event of a call; by default it gets the end alone.
fn asked_for(events: &[String], event: &str) -> bool {
    // Some clients write one value with spaces.
    let mut asked = events.iter().flat_map(|e| e.split_whitespace()).peekable();
    if asked.peek().is_none() { event == END_EVENT } else { asked.any(|e| e == event) }
}
