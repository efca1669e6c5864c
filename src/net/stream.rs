//! Both directions of a relay at once: body up, answer down, and a watch on the client.

use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::sync::oneshot;

use super::body::{Left, Never, Outgoing};
use super::exchange::Exchange;
use super::progress::Progress;
use super::redirect::{Mount, RedirectPast};
use super::relayed::{RelayError, Relayed};
use super::reply::{ReplyBody, interim, response_head};
use super::tap::Tap;
use super::upstream::{Upstream, UpstreamBody, UpstreamError};
use super::wire::Wire;

/// A client's body while it is forwarded, and afterwards.
pub(super) enum Rest {
    Sending {
        left: oneshot::Receiver<Left>,
        _go_on: oneshot::Sender<Never>,
    },
    /// The upstream no longer reads it. It is read and dropped; otherwise a client that writes all before it reads would never get
    /// to the answer.
    Dropping(Incoming),
    Over,
}

/// A client's body, streamed.
pub(super) fn passing(exchange: &mut Exchange) -> Result<(Outgoing, Rest), RelayError> {
    let progress = exchange.progress().clone();
    progress.body_begun.set();
    let incoming = exchange.take_incoming().ok_or(RelayError::BodyBroken)?;
    let (outgoing, left, go_on) = Outgoing::from_client(incoming, progress);
    Ok((outgoing, Rest::Sending { left, _go_on: go_on }))
}

/// The timer of an HTTP/1 connection.
fn timer(wire: Option<&Wire>) -> Option<impl Fn(u64)> {
    wire.map(|wire| move |at_ms| wire.poll_handler_at(at_ms))
}

/// Sends a request, and streams in both directions until the answer is written.
pub(super) async fn stream(
    exchange: &mut Exchange,
    upstream: &Upstream,
    request: &mut Option<Request<Outgoing>>,
    mut rest: Rest,
    mount: Option<&Mount<'_>>,
    tap: Option<Tap>,
) -> Result<Relayed, RelayError> {
    let (pause, patience) = (exchange.settings().body_timeout, upstream.answer_timeout());
    let (progress, wire) = (exchange.progress().clone(), exchange.wire().cloned());
    request.as_mut().into_iter().for_each(|request| pass_interim_answers(exchange, request));
    progress.moved();
    let mut response = {
        let client = async {
            match drained(&mut rest, &progress).await {
                Ok(()) => {
                    exchange.gone().await;
                    RelayError::ClientGone
                }
                Err(Broken) => RelayError::BodyBroken,
            }
        };
        let limit = || if progress.waits_for_client.is_set() { pause } else { patience };
        tokio::select! {
            biased;
            response = upstream.relay(request) => match response {
                // The first side that broke is reported.
                Err(_) if progress.body_lost.is_set() => return Err(RelayError::BodyBroken),
                response => response?,
            },
            error = client => return Err(error),
            () = progress.stalled(timer(wire.as_deref()), pause.min(patience), || Some(limit())) => {
                return Err(if progress.waits_for_client.is_set() {
                    RelayError::BodyTooSlow
                } else {
                    RelayError::Broken(UpstreamError::Timeout(patience))
                });
            }
        }
    };
    rewrite_location(mount, exchange.method(), &mut response)?;
    Ok(answer(exchange, response, rest, tap).await)
}

/// Interim answers (RFC 9110 §15.2) go to HTTP/1.1 clients as they come; except 100, because the client was sent that when its body
/// was read.
fn pass_interim_answers(exchange: &Exchange, request: &mut Request<Outgoing>) {
    let Some(wire) = exchange.wire().filter(|_| exchange.version() == Version::HTTP_11).cloned() else { return };
    hyper::ext::on_informational(request, move |answer| {
        if answer.status().as_u16() > 101 {
            wire.interim(&interim(answer.status(), answer.headers()));
        }
    });
}

/// Keeps a redirect from leading the client past the mount.
fn rewrite_location<B>(
    mount: Option<&Mount<'_>>,
    method: &Method,
    response: &mut Response<B>,
) -> Result<(), RelayError> {
    let Some(mount) = mount else { return Ok(()) };
    let status = response.status();
    mount
        .rewrite_location(method, status, response.headers_mut())
        .map_err(|RedirectPast(host)| RelayError::LeadsPast(host))
}

/// Passes on the answer to a request without a body, while watching the client.
pub(super) async fn stream_answer(
    exchange: &mut Exchange,
    mut response: Response<UpstreamBody>,
    mount: Option<&Mount<'_>>,
) -> Result<Relayed, RelayError> {
    rewrite_location(mount, exchange.method(), &mut response)?;
    Ok(answer(exchange, response, Rest::Over, None).await)
}

/// The client's body is truncated or malformed.
struct Broken;

/// Returns when the client's body is finished. Cancel-safe.
async fn drained(rest: &mut Rest, progress: &Arc<Progress>) -> Result<(), Broken> {
    loop {
        let next = match rest {
            Rest::Sending { left, .. } => match left.await {
                Ok(Left::Rest(incoming)) => Rest::Dropping(incoming),
                Ok(Left::Broken) => {
                    *rest = Rest::Over;
                    return Err(Broken);
                }
                Ok(Left::Nothing) | Err(_) => Rest::Over,
            },
            Rest::Dropping(incoming) => {
                progress.waits_for_client.set();
                let frame = incoming.frame().await;
                progress.moved();
                match frame {
                    Some(Ok(_)) => continue,
                    Some(Err(_)) => progress.body_lost.set(),
                    None => progress.body_done.set(),
                }
                progress.waits_for_client.clear();
                Rest::Over
            }
            Rest::Over => return Ok(()),
        };
        *rest = next;
    }
}

/// Passes the answer on and waits until it, or the client, is finished.
async fn answer(
    exchange: &mut Exchange,
    response: Response<UpstreamBody>,
    mut rest: Rest,
    mut tap: Option<Tap>,
) -> Relayed {
    let (mut parts, body) = response.into_parts();
    let status = parts.status;
    if let Some(tap) = &mut tap {
        tap.head(&parts);
    }
    let bodiless = exchange.method() == Method::HEAD || matches!(status.as_u16(), 204 | 304);
    // The length in answers to HEAD, and in 304, describes a body that is not sent; it is passed on.
    let length = if bodiless { None } else { body.size_hint().exact() };
    response_head(&mut parts, length);
    if length.is_none() && !bodiless {
        // A length beside chunks is invalid (RFC 9112 §6.3).
        parts.headers.remove(CONTENT_LENGTH);
    }
    let ended = bodiless || body.is_end_stream();
    let delivered = exchange.send_response(parts, |delivery, progress| {
        if status == StatusCode::NOT_MODIFIED && delivery.wire.is_some() {
            ReplyBody::none(progress, Some(delivery))
        } else if ended {
            ReplyBody::complete(Bytes::new(), progress, Some(delivery))
        } else {
            ReplyBody::streamed(body, tap, progress, delivery)
        }
    });
    let (wire, progress, pause) =
        (exchange.wire().cloned(), exchange.progress().clone(), exchange.settings().body_timeout);
    let client_gone = async {
        // The upstream answered before the end of the body. A body that does not come is not waited for.
        let limit = || progress.waits_for_client.is_set().then_some(pause);
        tokio::select! {
            biased;
            _ = drained(&mut rest, &progress) => {}
            () = progress.stalled(timer(wire.as_deref()), pause, limit) => rest = Rest::Over,
        }
        match &wire {
            Some(wire) => wire.gone().await,
            // HTTP/2: the dropped answer reports it.
            None => std::future::pending().await,
        }
    };
    let complete = tokio::select! {
        biased;
        complete = exchange.wait_delivered(delivered) => complete,
        () = client_gone => {
            exchange.cut();
            false
        }
    };
    if complete {
        progress.torn.clear();
    } else {
        tracing::debug!(%status, "relayed response cut off");
    }
    Relayed { status, response_bytes: progress.response_bytes(), complete }
}
