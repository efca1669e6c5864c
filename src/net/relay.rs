//! Relays: streams a request to an upstream and its answer back, at the same time.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Request, Response, Uri, Version, header};

use super::body::Outgoing;
use super::exchange::Exchange;
use super::headers::{HopByHop, forwarded, has, join_cookies, strip_hop_by_hop, without};
use super::redirect::Mount;
use super::relayed::{RelayError, Relayed};
use super::stream::{Rest, passing, stream};
use super::tap::Tap;
use super::tunnel;
use super::upstream::Upstream;

/// Maximum bytes of a body that is sent at once instead of streamed, if it has arrived with its head.
const AT_ONCE_BYTES_MAX: usize = 64 * 1024;

/// The destination of a relayed request, and its changes.
#[derive(Debug, Clone)]
pub struct RelayTarget<'a> {
    /// The base URL, `scheme://authority[/base/path]`; its path precedes `path_and_query`.
    pub base: Uri,
    /// Path and query as sent; begins with `/`.
    pub path_and_query: &'a str,
    /// Fields to set; applied last.
    pub set_headers: Vec<(HeaderName, HeaderValue)>,
    /// Fields to remove.
    pub remove_headers: Cow<'static, [HeaderName]>,
    /// The `Host` that the upstream sees.
    pub host: HostRule,
    /// Set towards a provider: nothing of the client's network is disclosed, and no redirect leads past this mount. `None` towards
    /// an app: `X-Forwarded-*` describe the client.
    pub mount: Option<Mount<'a>>,
}

/// The `Host` that the upstream sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostRule {
    /// The authority of the base address: what a provider's API expects.
    Upstream,
    /// The client's, for an application that builds links or checks signatures with it.
    Preserve,
}

/// Streams a request, changed only in its hop-by-hop fields and by `target`: any size both
/// ways, events without delay, both directions concurrently, WebSocket upgrades spliced (the call then lasts as long as the
/// tunnel). A client that goes away takes the upstream request with it.
///
/// A body that was read with [`Exchange::read_body`] before is sent from memory.
///
/// # Errors
/// [`RelayError`], only while nothing was answered.
pub async fn relay(
    exchange: &mut Exchange,
    upstream: &Upstream,
    target: RelayTarget<'_>,
) -> Result<Relayed, RelayError> {
    relay_tapped(exchange, upstream, target, None).await
}

/// As [`relay`], with a tap on the answer.
///
/// # Errors
/// As [`relay`].
pub async fn relay_tapped(
    exchange: &mut Exchange,
    upstream: &Upstream,
    target: RelayTarget<'_>,
    tap: Option<Tap>,
) -> Result<Relayed, RelayError> {
    if exchange.is_answered() {
        return Err(RelayError::AlreadyAnswered);
    }
    let mut head = outgoing_head(exchange, &target)?;
    if exchange.is_upgrade() {
        return Box::pin(tunnel::relay_upgrade(exchange, upstream, head, target.mount.as_ref())).await;
    }
    let (body, rest) = match exchange.whole_body() {
        Some(body) => (Outgoing::complete(body), Rest::Over),
        // A part was read and is lost: the rest must not look like the whole body.
        None if exchange.progress().body_begun.is_set() => return Err(RelayError::BodyBroken),
        None if exchange.body_is_done() => (Outgoing::complete(Bytes::new()), Rest::Over),
        // A body that has arrived already is sent at once.
        None if exchange.has_arrived(AT_ONCE_BYTES_MAX) => {
            let body = exchange.take_arrived().await.ok_or(RelayError::BodyBroken)?;
            (Outgoing::complete(body), Rest::Over)
        }
        None => passing(exchange)?,
    };
    *head.extensions_mut() = exchange.take_extensions();
    let mut request = Some(head.map(|()| body));
    stream(exchange, upstream, &mut request, rest, target.mount.as_ref(), tap).await
}

/// As [`relay`], with a body that was read (and possibly changed) before. Never upgrades.
///
/// # Errors
/// As [`relay`].
pub async fn relay_with_body(
    exchange: &mut Exchange,
    upstream: &Upstream,
    target: RelayTarget<'_>,
    body: Bytes,
) -> Result<Relayed, RelayError> {
    if exchange.is_answered() {
        return Err(RelayError::AlreadyAnswered);
    }
    let mut head = outgoing_head(exchange, &target)?;
    *head.extensions_mut() = exchange.take_extensions();
    let mut request = Some(head.map(|()| Outgoing::complete(body)));
    stream(exchange, upstream, &mut request, Rest::Over, target.mount.as_ref(), None).await
}

/// As [`relay_with_body`], but reads the answer within `within` instead of passing it on. Any status is an answer.
///
/// # Errors
/// As [`relay`]; [`UpstreamError::Timeout`](super::upstream::UpstreamError::Timeout) if it was not complete in time.
pub async fn ask_with_body(
    exchange: &Exchange,
    upstream: &Upstream,
    target: RelayTarget<'_>,
    body: Bytes,
    answer_limit: usize,
    within: Duration,
) -> Result<Response<Bytes>, RelayError> {
    let mut request = outgoing_head(exchange, &target)?.map(|()| body);
    *request.extensions_mut() = exchange.extensions().clone();
    let mut answer = upstream.fetch(request, answer_limit, within).await?;
    strip_hop_by_hop(answer.headers_mut());
    answer.headers_mut().remove(header::CONTENT_LENGTH);
    Ok(answer)
}

/// The head of the request to the upstream. Its length is the client's (the body sets its own).
fn outgoing_head(exchange: &Exchange, target: &RelayTarget<'_>) -> Result<Request<()>, RelayError> {
    let uri = join(&target.base, target.path_and_query)?;
    let headers = exchange.headers();
    // RFC 9110 §10.1.4: TE must be named in Connection, which HTTP/2 lacks.
    let takes_trailers = headers.contains_key(header::TE)
        && has(headers, header::TE, "trailers")
        && (has(headers, header::CONNECTION, "te") || exchange.version() == Version::HTTP_2);
    let hop = HopByHop::from_headers(headers);
    let is_dropped =
        |name: &HeaderName| *name == header::EXPECT || hop.has(name) || target.remove_headers.contains(name);
    let mut headers = if headers.keys().any(is_dropped) { without(headers, is_dropped) } else { headers.clone() };
    join_cookies(&mut headers);
    if target.mount.is_none() {
        forwarded(&mut headers, exchange.hop());
    }
    let host = match target.host {
        HostRule::Upstream => uri.authority().map(|authority| authority.as_str()),
        HostRule::Preserve => exchange.host(),
    };
    if let Some(Ok(host)) = host.map(HeaderValue::from_str) {
        // At its original position.
        headers.insert(header::HOST, host);
    }
    for (name, value) in &target.set_headers {
        headers.insert(name, value.clone());
    }
    if takes_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("TE"));
    }
    let mut request = Request::new(());
    *request.method_mut() = exchange.method().clone();
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Ok(request)
}

fn join(base: &Uri, path_and_query: &str) -> Result<Uri, RelayError> {
    let prefix = base.path().trim_end_matches('/');
    let target = match prefix {
        "" => PathAndQuery::try_from(path_and_query),
        prefix => PathAndQuery::try_from(format!("{prefix}{path_and_query}")),
    };
    let mut parts = base.clone().into_parts();
    match target {
        Ok(target) if path_and_query.starts_with('/') => parts.path_and_query = Some(target),
        _ => {
            return Err(RelayError::BadTarget(format!("{path_and_query:?} is not a path")));
        }
    }
    Uri::from_parts(parts).map_err(|error| RelayError::BadTarget(format!("{base}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_put_behind_the_base() {
        for (base, path, complete) in [
            ("https://api.example", "/v1/x?y=%20", "https://api.example/v1/x?y=%20"),
            ("https://api.example/", "/v1", "https://api.example/v1"),
            ("http://api.example:81/base/", "/v1", "http://api.example:81/base/v1"),
        ] {
            assert_eq!(join(&Uri::from_static(base), path).unwrap().to_string(), complete);
        }
        assert!(join(&Uri::from_static("http://a"), "@evil/").is_err());
    }
}
