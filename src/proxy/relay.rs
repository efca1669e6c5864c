//! Requests that create nothing, passed through.

use std::sync::Arc;

use futures_util::FutureExt as _;
use tracing::debug;

use super::route::sdk_sleeps;
use crate::call::Direction;
use crate::calls::Calls;
use crate::calls::rejection::{RejectedRequest, RequestKind};
use crate::net::{Exchange, RelayError, RelayTarget, Tap, relay_tapped};
use crate::provider::account::Account;
use crate::reply::{Rejection, RejectionCode};

/// Passes a request through, and says with which status it was answered.
pub(super) async fn relay(calls: &Calls, exchange: &mut Exchange, account: &Arc<Account>, target: RelayTarget) -> u16 {
    let tap = tap(calls, exchange, account, &target);
    match relay_tapped(exchange, &calls.upstream, target, tap).await {
        Ok(relayed) => relayed.status.as_u16(),
        Err(error) => failed(calls, exchange, account, &error).await,
    }
}

/// A look at the answer, where the request may make something: calls that no operation knows are counted.
fn tap(calls: &Calls, exchange: &Exchange, account: &Arc<Account>, target: &RelayTarget) -> Option<Tap> {
    let method = exchange.method().as_str();
    let may_make = ["POST", "PUT", "PATCH"].iter().any(|one| method.eq_ignore_ascii_case(one));
    if !may_make || account.provider.unfenced.is_none() {
        return None;
    }
    let (inbound, tasks, account) = (calls.inbound.clone(), calls.tasks.clone(), account.clone());
    let path = target.path_and_query.split('?').next().unwrap_or_default().to_owned();
    Some(Tap::new(move |answer| {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let mut look = Box::pin(tasks.track_future(async move { inbound.passed_by(&account, &path, &answer).await }));
        // Mostly there is nothing to be waited for.
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
        // To ask again changes nothing there.
        RelayError::Broken(_) if !exchange.method().is_safe() => (
            RejectionCode::UpstreamSilent,
            format!("{name} got the request and did not answer it: {error}. It may have been carried out."),
        ),
        _ => (RejectionCode::UpstreamUnreachable, format!("{name} cannot be reached: {error}")),
    };
    debug!(account = %account.name, %error, "failed to forward a request");
    relay_rejected(calls, exchange, account, Rejection::new(code, message)).await
}

/// Answers a request that creates nothing, as far as is known, in its provider's own shape.
pub(super) async fn relay_rejected(
    calls: &Calls,
    exchange: &mut Exchange,
    account: &Account,
    rejection: Rejection,
) -> u16 {
    let of = RejectedRequest {
        kind: RequestKind::Other,
        account,
        business: "unknown",
        plan: "unknown",
        direction: Direction::Outbound,
        to: None,
        sdk_sleeps: sdk_sleeps(exchange.headers(), account),
        retry_key: None,
    };
    let response = calls.rejections.respond(rejection, &of);
    let status = response.status().as_u16();
    exchange.respond(response).await;
    status
}
