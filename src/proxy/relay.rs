//! Passes through requests that create no call.

use std::borrow::Cow;

use futures_util::FutureExt as _;
use http::HeaderName;
use tracing::debug;

use super::route::{BUSINESS_HEADER, OwnedRoute, sdk_sleeps};
use crate::calls::Calls;
use crate::calls::external::shows_no_call;
use crate::calls::rejection::RejectedRequest;
use crate::net::{Exchange, HostRule, Mount, RelayError, RelayTarget, Tap, relay_tapped};
use crate::provider::account::Account;
use crate::reply::{Rejection, RejectionCode};

/// Header fields that providers do not get.
static REMOVED: [HeaderName; 1] = [BUSINESS_HEADER];

/// Passes a request through; returns the status of its answer.
pub(super) async fn relay(calls: &Calls, exchange: &mut Exchange, to: &OwnedRoute) -> u16 {
    let tap = tap(calls, exchange, to);
    match relay_tapped(exchange, &calls.upstream, target(to), tap).await {
        Ok(relayed) => relayed.status.as_u16(),
        Err(error) => failed(calls, exchange, &to.account, &error).await,
    }
}

fn target(to: &OwnedRoute) -> RelayTarget<'_> {
    let base = to.account.upstream_of(to.path());
    RelayTarget {
        base: base.clone(),
        path_and_query: to.path_and_query(),
        set_headers: vec![],
        remove_headers: Cow::Borrowed(&REMOVED),
        host: HostRule::Upstream,
        mount: Some(Mount { base, at: to.mount() }),
    }
}

/// Inspects the answer of a request that may create something, to count calls that no operation describes.
fn tap(calls: &Calls, exchange: &Exchange, to: &OwnedRoute) -> Option<Tap> {
    let method = exchange.method().as_str();
    let may_make = ["POST", "PUT", "PATCH"].iter().any(|one| method.eq_ignore_ascii_case(one));
    if !may_make || to.account.provider.unfenced.is_none() {
        return None;
    }
    let (inbound, tasks, to) = (calls.inbound.clone(), calls.tasks.clone(), to.clone());
    Some(Tap::new(move |answer| {
        if shows_no_call(&to.account, to.path(), &answer) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        // The target would keep the connection's buffer.
        let (account, path) = (to.account.clone(), to.path().to_owned());
        let passed = async move { inbound.passed_by(&account, &path, &answer).await };
        let mut look = Box::pin(tasks.track_future(passed));
        // Usually the look-up is ready at once.
        if look.as_mut().now_or_never().is_none() {
            runtime.spawn(look);
        }
    }))
}

async fn failed(calls: &Calls, exchange: &mut Exchange, account: &Account, error: &RelayError) -> u16 {
    let name = &account.provider.name;
    let (code, message) = match error {
        error if error.is_clients() => (RejectionCode::InvalidRequest, format!("Not forwarded completely: {error}.")),
        RelayError::LeadsPast(host) => (
            RejectionCode::UpstreamRedirects,
            format!("{name} redirects to {host}, where no call would be counted; set the account's `upstream` to it."),
        ),
        // A retry cannot help in these cases.
        RelayError::Broken(_) if !exchange.method().is_safe() => (
            RejectionCode::UpstreamSilent,
            format!("{name} got the request and did not answer it: {error}. It may have been carried out."),
        ),
        _ => (RejectionCode::UpstreamUnreachable, format!("{name} cannot be reached: {error}")),
    };
    debug!(account = %account.name, %error, "failed to forward a request");
    relay_rejected(calls, exchange, account, Rejection::new(code, message)).await
}

/// Rejects a request that, as far as is known, creates nothing, in the provider's error format.
pub(super) async fn relay_rejected(
    calls: &Calls,
    exchange: &mut Exchange,
    account: &Account,
    rejection: Rejection,
) -> u16 {
    let of = RejectedRequest { sdk_sleeps: sdk_sleeps(exchange.headers(), account), ..RejectedRequest::other(account) };
    let response = calls.rejections.respond(rejection, &of);
    let status = response.status().as_u16();
    exchange.respond(response).await;
    status
}
