//! Both directions of a relay at once: the body up, the answer down, and an eye on whether the client is still there.

use std::pin::{Pin, pin};
use std::time::Duration;

use http::{Method, Request, Response, Version, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use pingora::http::ResponseHeader;
use tokio::sync::mpsc;

use super::body::{Feed, Outgoing};
use super::downstream::Downstream;
use super::exchange::{Exchange, Progress, response_head};
use super::redirect::{Mount, Past};
use super::relay::{RelayError, Relayed};
use super::tap::Tap;
use super::upstream::{Upstream, UpstreamError};

/// Interim answers that may wait to be written.
const INTERIM_MAX: usize = 4;

/// How the client's side of a relay ended.
enum ClientSide {
    TooSlow,
    Broken,
    Gone,
    UpstreamStalled,
    NoAnswer,
}

/// Sends a request, and streams both ways until the answer is written.
pub(super) async fn stream(
    exchange: &mut Exchange,
    upstream: &Upstream,
    mut request: Request<Outgoing>,
    feed: Option<Feed>,
    mount: Option<&Mount>,
    tap: Option<Tap>,
) -> Result<Relayed, RelayError> {
    let limits = Limits { pause: exchange.settings().body_timeout, answer: upstream.answer_timeout() };
    let (stall, version, method) = (exchange.settings().write_timeout, exchange.version(), exchange.method().clone());
    let progress = exchange.progress();
    if feed.is_some() {
        progress.body_begun.set();
    }
    let downstream = Downstream::new(exchange.session().ok_or(RelayError::AlreadyAnswered)?, stall);
    // Completes only with the reason why the client's side is over.
    let mut client = pin!(client_side(&downstream, feed, limits, &progress));
    let mut interim = interim_answers(&mut request, version);
    let mut answered = pin!(upstream.relay(request));
    let mut response = loop {
        tokio::select! {
            biased;
            Some(head) = interim.recv() => {
                if let Err(error) = downstream.interim(head).await {
                    tracing::debug!(%error, "the client did not take an interim answer");
                }
            }
            response = &mut answered => break response?,
            side = &mut client => return Err(match side {
                ClientSide::TooSlow => RelayError::BodyTooSlow,
                ClientSide::Broken => RelayError::BodyBroken,
                ClientSide::Gone => RelayError::ClientGone,
                ClientSide::UpstreamStalled | ClientSide::NoAnswer => {
                    RelayError::Broken(UpstreamError::Timeout(limits.answer))
                }
            }),
        }
    };
    keep_behind(mount, &method, &mut response)?;
    Ok(answer(&downstream, response, version, &method, client, &progress, tap).await)
}

/// The interim answers to a request, as they come (RFC 9110 §15.2): for HTTP/1.1 clients. 100 is not among them, since the client was
/// answered as soon as its body was read. Of a flood only the first are kept.
fn interim_answers(request: &mut Request<Outgoing>, version: Version) -> mpsc::Receiver<ResponseHeader> {
    let (sender, receiver) = mpsc::channel(INTERIM_MAX);
    if version == Version::HTTP_11 {
        hyper::ext::on_informational(request, move |interim| {
            let mut head = Response::new(());
            *head.status_mut() = interim.status();
            *head.headers_mut() = interim.headers().clone();
            if interim.status().as_u16() > 101
                && let Ok(head) = response_head(head.into_parts().0, None)
            {
                let _ = sender.try_send(head);
            }
        });
    }
    receiver
}

/// An answer does not lead its client past the mount.
fn keep_behind<B>(mount: Option<&Mount>, method: &Method, response: &mut Response<B>) -> Result<(), RelayError> {
    let Some(mount) = mount else { return Ok(()) };
    let status = response.status();
    mount.keep(method, status, response.headers_mut()).map_err(|Past(host)| RelayError::LeadsPast(host))
}

/// Passes on an answer whose request had no body, while watching the client.
pub(super) async fn stream_answer(
    exchange: &mut Exchange,
    mut response: Response<Incoming>,
    mount: Option<&Mount>,
) -> Result<Relayed, RelayError> {
    keep_behind(mount, exchange.method(), &mut response)?;
    let (stall, version, method) = (exchange.settings().write_timeout, exchange.version(), exchange.method().clone());
    let progress = exchange.progress();
    let downstream = Downstream::new(exchange.session().ok_or(RelayError::AlreadyAnswered)?, stall);
    let client = pin!(async {
        downstream.gone().await;
        ClientSide::Gone
    });
    Ok(answer(&downstream, response, version, &method, client, &progress, None).await)
}

/// Writes the answer until it, or the client, is at its end.
async fn answer(
    downstream: &Downstream<'_>,
    response: Response<Incoming>,
    version: Version,
    method: &Method,
    mut client: Pin<&mut impl Future<Output = ClientSide>>,
    progress: &Progress,
    tap: Option<Tap>,
) -> Relayed {
    let status = response.status();
    let mut response_bytes = 0;
    // Until it is whole it is torn: this future may be dropped anywhere.
    progress.answered.set();
    progress.torn.set();
    let cut = {
        let mut answer = pin!(answer_side(downstream, response, version, method, &mut response_bytes, tap));
        let mut client_over = false;
        loop {
            tokio::select! {
                biased;
                done = &mut answer => break done.err(),
                side = &mut client, if !client_over => match side {
                    ClientSide::Gone => break Some("the client went away".to_owned()),
                    // The upstream answered without waiting for the body's end, so a body that stays away harms nobody.
                    _ => client_over = true,
                }
            }
        }
    };
    match &cut {
        None => progress.torn.clear(),
        Some(why) => tracing::debug!(why, %status, "a relayed answer was cut"),
    }
    Relayed { status, response_bytes, complete: cut.is_none() }
}

#[derive(Clone, Copy)]
struct Limits {
    /// The longest pause within a client's body.
    pause: Duration,
    /// The longest wait for an upstream: to take a piece of the body, or to begin its answer.
    answer: Duration,
}

/// Passes the body on, then watches the client. When the upstream stops reading, the rest is read and dropped, or a client
/// that writes all before it reads would never come to the answer.
async fn client_side(
    downstream: &Downstream<'_>,
    mut feed: Option<Feed>,
    limits: Limits,
    progress: &Progress,
) -> ClientSide {
    let mut discarding = false;
    while feed.is_some() || discarding {
        let chunk = match tokio::time::timeout(limits.pause, downstream.read()).await {
            Err(_) => return ClientSide::TooSlow,
            Ok(Err(_)) => {
                progress.body_lost.set();
                return ClientSide::Broken;
            }
            Ok(Ok(chunk)) => chunk,
        };
        match (chunk, feed.take()) {
            (None, None) => discarding = false,
            (None, Some(feed)) => match tokio::time::timeout(limits.answer, feed.end()).await {
                Ok(()) => discarding = false,
                Err(_) => return ClientSide::UpstreamStalled,
            },
            (Some(_), None) => {}
            (Some(chunk), Some(open)) => match tokio::time::timeout(limits.answer, open.chunk(chunk)).await {
                Ok(true) => feed = Some(open),
                Ok(false) => discarding = true,
                Err(_) => return ClientSide::UpstreamStalled,
            },
        }
    }
    if tokio::time::timeout(limits.answer, downstream.gone()).await.is_err() {
        if !progress.answered.is_set() {
            return ClientSide::NoAnswer;
        }
        downstream.gone().await;
    }
    ClientSide::Gone
}

/// Writes the upstream's answer. The error says who broke it off.
async fn answer_side(
    downstream: &Downstream<'_>,
    response: Response<Incoming>,
    version: Version,
    method: &Method,
    sent: &mut u64,
    mut tap: Option<Tap>,
) -> Result<(), String> {
    let (parts, mut body) = response.into_parts();
    if let Some(tap) = &mut tap {
        tap.head(&parts);
    }
    let bodiless = method == Method::HEAD || matches!(parts.status.as_u16(), 204 | 304);
    let ended = bodiless || body.is_end_stream();
    // What HEAD and 304 say about a body they do not have is the upstream's to say.
    let length = if bodiless { None } else { body.size_hint().exact() };
    let mut head = response_head(parts, length).map_err(|error| error.to_string())?;
    if length.is_none() && !bodiless && version == Version::HTTP_11 {
        // Of unknown length: chunked for HTTP/1.1, until the connection's end for HTTP/1.0, by itself on HTTP/2.
        head.insert_header(header::TRANSFER_ENCODING, "chunked").map_err(|error| error.to_string())?;
    }
    let client = |error: Box<pingora::Error>| format!("the client: {error}");
    downstream.head(head, ended).await.map_err(client)?;
    if ended {
        return Ok(());
    }
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        match frame.map_err(|error| format!("the upstream: {error}"))?.into_data() {
            Ok(chunk) => {
                if let Some(tap) = &mut tap {
                    tap.chunk(&chunk);
                }
                let length = chunk.len() as u64;
                downstream.chunk(chunk).await.map_err(client)?;
                *sent += length;
            }
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    downstream.end(trailers).await.map_err(client)
}
