//! Server-sent events (WHATWG HTML, "Server-sent events") for the operator's page: all data, or one call with its transcript.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;

use super::auth::{Access, AccessError, Requester, Scope, refuse_own};
use super::board::{Rights, event};
use super::{Admin, Problem, call_json_for, draining, secured};
use crate::ids::CallId;
use crate::metrics::Served;
use crate::net::{Exchange, Peer};
use crate::provider::path::percent_decode;
use crate::token::bearer;

/// The keep-alive interval of an idle stream: proxies keep it open, and disconnected clients are noticed.
const PING: Duration = Duration::from_secs(15);
/// The shortest pause between two reads of one call.
const PAUSE: Duration = Duration::from_millis(500);
/// Utterances in one event.
const SAID_MAX: u32 = 500;

impl Admin {
    /// Serves a stream until it ends, if the request is for one.
    pub(super) async fn stream(&self, exchange: &mut Exchange) -> Result<bool, Problem> {
        let path = exchange.path().to_owned();
        let call = path.strip_prefix("/api/calls/").and_then(|rest| rest.strip_suffix("/stream"));
        if exchange.method() != Method::GET || (path != "/api/stream" && call.is_none()) {
            return Ok(false);
        }
        refuse_own(exchange)?;
        let who = self.access.authorize(exchange, Scope::Read, self.calls.lifecycle.clock.now_ms() / 1000)?;
        if self.draining.is_cancelled() {
            return Err(draining());
        }
        let (to, pieces) = mpsc::channel(1);
        let mut head = Response::new(());
        let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
        head.headers_mut().insert(CONTENT_TYPE, kind);
        // nginx buffers responses unless told otherwise.
        head.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
        let head = secured(exchange, head);
        let over = self.over(exchange, &who)?;
        match call {
            None => {
                let rights: Rights = who.businesses.as_ref().map(|own| own.iter().cloned().collect());
                let Some(mut seen) = self.board.join(self, rights) else {
                    return Err(Problem::Is(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "TOO_MANY_VIEWERS",
                        "too many viewers of this page".to_owned(),
                    ));
                };
                let feed = async move {
                    send(&to, event("you", &requester_json(&who).to_string())).await?;
                    let mut version = 0;
                    loop {
                        let frame = seen.borrow_and_update().clone();
                        if let Some(news) = frame.since(version) {
                            version = frame.version;
                            send(&to, news).await?;
                        }
                        drop(frame);
                        tokio::select! {
                            changed = seen.changed() => if changed.is_err() { return Some(()) },
                            () = tokio::time::sleep(PING) => send(&to, ping()).await?,
                            () = to.closed() => return None,
                        }
                    }
                };
                serve(exchange, head, pieces, feed, over).await;
            }
            Some(id) => {
                let record = self.find(&percent_decode(id), &who).await?;
                let feed = self.follow(record.id, &who, to);
                serve(exchange, head, pieces, feed, over).await;
            }
        }
        self.calls.lifecycle.metrics.request(Served::Admin, 200);
        Ok(true)
    }

    /// Completes when a stream has to end: its requester's token expires or is no longer valid under a new config, or the process stops.
    fn over(&self, exchange: &Exchange, who: &Requester) -> Result<impl Future<Output = ()> + Send + use<>, Problem> {
        let (draining, clock, until) = (self.draining.clone(), self.calls.lifecycle.clock.clone(), who.expires_at);
        let token = bearer(exchange.headers()).map_err(AccessError::from)?.map(str::to_owned);
        let is_local = matches!(exchange.peer(), Peer::Local { .. });
        let mut access = self.newest_access.subscribe();
        Ok(async move {
            let revoked = async {
                let is_valid = |access: &Access| access.still_reads(token.as_deref(), is_local, clock.now_ms() / 1000);
                while is_valid(&access.borrow_and_update()) {
                    if access.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
            };
            let expired = async {
                let Some(until) = until else { return std::future::pending().await };
                while clock.now_ms() / 1000 < until {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            };
            tokio::select! {
                () = draining.cancelled() => {}
                () = expired => {}
                () = revoked => {}
            }
        })
    }

    /// Sends a call and its transcript, as they change. `None`: the client disconnected.
    async fn follow(&self, id: CallId, who: &Requester, to: mpsc::Sender<Bytes>) -> Option<()> {
        let (store, hub) = (&self.calls.lifecycle.store, &self.calls.lifecycle.hub);
        let mut notifications = hub.subscribe();
        let (mut before, mut after, mut murmured) = (Value::Null, 0, 0);
        loop {
            let found = store.call(&id).await.ok().flatten().filter(|call| who.sees(call.attributes.business.as_str()));
            // Purged, or unreadable at present: the client reconnects.
            let record = found?;
            let mut shown = call_json_for(&record, who);
            let kept = store.post_call(&id).await.ok().flatten();
            shown["record"] =
                json!(kept.as_ref().map(|kept| crate::calls::post_call::shown::shown(kept, who.numbers())));
            if shown != before {
                send(&to, event("call", &shown.to_string())).await?;
                before = shown;
            }
            while let Ok(said) = store.utterances(&id, after, SAID_MAX).await
                && let Some(last) = said.last()
            {
                after = last.sequence;
                let said: Vec<Value> = said
                    .iter()
                    .map(|one| json!({"sequence": one.sequence, "speaker": one.speaker, "text": one.text, "saidAt": one.said_at}))
                    .collect();
                send(&to, event("said", &json!(said).to_string())).await?;
            }
            if let Some((number, partial)) = hub.partial_since(&id, murmured) {
                murmured = number;
                let partial = json!({"speaker": partial.speaker, "text": &*partial.text});
                send(&to, event("partial", &partial.to_string())).await?;
            }
            tokio::time::sleep(PAUSE).await;
            let heard = async {
                loop {
                    match notifications.recv().await {
                        Ok(notification) if notification.call != id => {}
                        Ok(_) | Err(RecvError::Lagged(_)) => return,
                        Err(RecvError::Closed) => return std::future::pending().await,
                    }
                }
            };
            tokio::select! {
                () = heard => {}
                () = tokio::time::sleep(PING) => send(&to, ping()).await?,
                () = to.closed() => return None,
            }
        }
    }
}

/// Streams what `feed` sends, until it ends, `over` completes or the client disconnects.
async fn serve(
    exchange: &mut Exchange,
    head: Response<()>,
    pieces: mpsc::Receiver<Bytes>,
    feed: impl Future<Output = Option<()>>,
    over: impl Future<Output = ()>,
) {
    let answer = Box::pin(exchange.respond_live(head, pieces));
    let fed = async {
        // Its end drops the sender, which ends the response.
        let (feed, over) = (Box::pin(feed), Box::pin(over));
        tokio::select! {
            _ = feed => {}
            () = over => {}
        }
    };
    tokio::join!(answer, fed);
}

async fn send(to: &mpsc::Sender<Bytes>, piece: Bytes) -> Option<()> {
    to.send(piece).await.ok()
}

/// A keep-alive comment.
fn ping() -> Bytes {
    Bytes::from_static(b": still here\n\n")
}

fn requester_json(who: &Requester) -> Value {
    json!({
        "name": who.name, "scope": who.scope.as_str(), "businesses": who.businesses, "wholeNumbers": who.whole_numbers,
        "version": env!("CARGO_PKG_VERSION"),
    })
}
