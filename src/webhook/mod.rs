//! `listen.webhooks`: verify → remember → translate → apply → reply or deliver. What no description knows passes to the app.
//!
//! A webhook is on record before it is answered; the answer tells its provider that it need not be sent again.

pub mod arrive;
pub mod deliver;
mod exact;
mod front;
mod hear;
mod journal;
mod noise;
mod records;
mod refused;
mod renew;
mod replay;
mod signer;
mod spool;
mod subaccounts;
mod to_app;
mod unlisted;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, Response, StatusCode, Uri};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tracing::{debug, warn};
use ulid::Ulid;

use crate::call::{Direction, EndProof, Event, Origin, Phase};
use crate::calls::arrival::{Arrival, ArrivalOutcome};
use crate::calls::{Calls, ForwardPaths};
use crate::failpoint;
use crate::ids::{Alias, CallId, number_key};
use crate::net::{BodyError, Exchange, Handler};
use crate::policy::WhenFull;
use crate::provider::account::Account;
use crate::provider::description::{OWN_ID_KIND, Reply, SUBACCOUNT_KIND, UtteranceDraft, Webhook, WebhookEvent};
use crate::provider::render::fill_json;
use crate::provider::select::{Decoded, Document, Flaw, Message, is_form};
use crate::provider::sign::{Keys, Signature, sha256_hex};
use crate::reply::{json_answer, problem, respond, twiml, when_full_twiml};
use crate::store::{
    ApplyOutcome, CallRecord, Change, Contradiction, IngestOutcome, Journal, NewEvent, RECORDED, ReceiveOutcome,
    Result, Spool, SpoolError, UtteranceRef, Voucher,
};
use arrive::{Candidate, ExtraPaths, Found, find};
pub use front::AppHost;
pub use journal::journal_loop;
pub use records::records_loop;
pub use replay::{RETRY_DELAYS_SECS as REPLAY_AGAIN_SECS, Replayed, replay_loop};
pub use spool::spool_loop;
use subaccounts::Subaccounts;

/// Bodies up to here are kept in the record, larger ones in the spool.
pub const KEPT_BYTES_MAX: usize = 1024 * 1024;
/// The largest body that is taken: base64 audio of an hour-long call (facts A4.3: "many MB").
pub const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// What of a stranger's path is logged, in characters.
const LOGGED_PATH_MAX: usize = 256;
/// Longer dedupe keys are hashed, in bytes.
const KEY_BYTES_MAX: usize = 512;
/// Bytes of all bodies at once, up to a MiB of each. They are counted as they arrive: were room promised to who only names a length,
/// a few that send nothing would keep every call waiting.
pub const BODIES_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The same of what large bodies have beyond it: one of the largest, and a little.
pub const LARGE_BODIES_BYTES_MAX: usize = 72 * 1024 * 1024;

/// How an inbound call is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InboundMode {
    /// ringfence answers the voice webhook with the TwiML of the agent's provider.
    Front,
    /// The app answers it.
    App,
}

/// Times and addresses of this layer.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What providers call.
    pub public_url: Option<Uri>,
    /// Where webhooks go on to.
    pub forward_url: Option<Uri>,
    /// The app's own public address, where that is not [`Settings::public_url`].
    pub app_public_url: Option<Uri>,
    /// Which `Host` the app sees.
    pub app_host: AppHost,
    /// A webhook that nothing can be checked with is refused.
    pub strict: bool,
    /// How an inbound call is answered.
    pub inbound_mode: InboundMode,
    /// How long the app may take to answer a webhook that waits for its answer. Carriers wait 15 s (facts B4.2).
    pub app_timeout: Duration,
    /// What a caller meets whose webhook the app does not answer; none: its provider is told, and takes its own way out.
    pub when_down: Option<WhenFull>,
    /// The agent that answers a number, by its key (`ids::number_key`), in front mode.
    pub agents: BTreeMap<String, String>,
    /// Paths that the operator added.
    pub extra_paths: ExtraPaths,
    /// Paths that pass to the app although no description knows them.
    pub forward_paths: ForwardPaths,
    /// The answer about a call that nobody knows, where the caller is told.
    pub unknown_status: u16,
    /// What the spool holds at most, in bytes.
    pub spool_bytes_max: u64,
    /// How long a body stays in the spool at most, in days.
    pub spool_days: u32,
}

/// The handler of `listen.webhooks`. Cloning is cheap.
#[derive(Clone)]
pub struct Webhooks {
    calls: Calls,
    settings: Arc<Settings>,
    /// Woken when there is something to deliver.
    deliver: Arc<Notify>,
    /// Has large bodies.
    spool: Spool,
    /// What subaccounts sign with.
    subaccounts: Subaccounts,
    /// Has what came while the record could not be written.
    journal: Journal,
    /// What is in the inbox and could not be applied.
    left: Arc<Mutex<Vec<String>>>,
}

/// A webhook as it came; from the edge, or out of the inbox after a crash.
struct Raw {
    method: String,
    path_and_query: String,
    headers: HeaderMap,
    body: Bytes,
    document: Document,
    /// What of the body could not be read.
    flaw: Option<Flaw>,
    query: Vec<(String, String)>,
}

impl Raw {
    /// Only a form is taken apart yet, since a signature may be over its pairs: what nobody vouches for is not worth more.
    fn new(method: &str, path_and_query: &str, headers: HeaderMap, body: Bytes) -> Self {
        let query = path_and_query.split_once('?').map_or("", |(_, query)| query);
        // What is posted without a body says nothing: its query is part of the address.
        let no_body = body.is_empty() && method != "GET";
        Self {
            document: if no_body { Document::Form(vec![]) } else { form(&headers, &body) },
            flaw: None,
            query: form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
            method: method.to_owned(),
            path_and_query: path_and_query.to_owned(),
            headers,
            body,
        }
    }

    /// Takes the body apart, whatever it is.
    fn decoded(mut self) -> Self {
        if self.form().is_none() {
            let content_type = self.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
            Decoded { document: self.document, flaw: self.flaw } = decode(content_type, &self.body);
        }
        // A body that says nothing is a body: the query beside it is part of the address.
        if !self.body.is_empty() && matches!(self.document, Document::Empty) {
            self.query.clear();
        }
        self
    }

    /// Nothing of the body can be read: what it is, nobody knows.
    fn is_unreadable(&self) -> bool {
        self.flaw == Some(Flaw::Unreadable)
    }

    /// The body is nothing that can be read as news, or a part of it was left out.
    fn is_unread(&self) -> bool {
        let is_odd = !matches!(self.document, Document::Json(_) | Document::Form(_));
        is_odd || self.flaw.is_some_and(|flaw| flaw != Flaw::Lenient)
    }

    fn form(&self) -> Option<&[(String, String)]> {
        pairs(&self.document)
    }

    fn path(&self) -> &str {
        self.path_and_query.split('?').next().unwrap_or_default()
    }
}

/// A webhook that has been read and verified.
struct Taken<'a> {
    raw: &'a Raw,
    from: &'a Candidate,
    /// What its signature is checked with.
    keys: Keys,
    /// Who vouches for it.
    by: Voucher,
    event: Option<&'a WebhookEvent>,
    message: Message<'a>,
    aliases: Vec<Alias>,
    direction: Direction,
    /// What it says of the call.
    news: Option<Event>,
    /// What is said in the call; or why that cannot be read.
    heard: Option<std::result::Result<UtteranceDraft, String>>,
    /// Which delivery of which event.
    event_id: String,
}

/// What applying a webhook came to.
struct Came {
    call: Option<CallId>,
    outcome: &'static str,
    refused: Option<WhenFull>,
    /// The call's record after it, where it was applied to one.
    record: Option<Box<CallRecord>>,
    /// What was said, as it stands on record.
    said: Option<UtteranceRef>,
}

impl Came {
    fn of(outcome: &'static str) -> Self {
        Self { call: None, outcome, refused: None, record: None, said: None }
    }

    fn is_contradicted(&self) -> bool {
        self.outcome == Contradiction::OtherAccount.outcome()
    }

    fn applied(applied: ApplyOutcome) -> Self {
        let record = applied.record;
        match applied.contradiction {
            Some(what) => Self::of(what.outcome()),
            None => Self { call: Some(record.id.clone()), record: Some(Box::new(record)), ..Self::of("applied") },
        }
    }
}

#[async_trait]
impl Handler for Webhooks {
    async fn handle(&self, exchange: &mut Exchange) {
        if exchange.path() == "/health" {
            return exchange.respond(json_answer(StatusCode::OK, &json!({"status": "ok"}))).await;
        }
        let (kind, status) = match find(&self.calls.accounts, &self.settings.extra_paths, exchange.path()) {
            Found::Nothing => ("passed", self.pass(exchange).await),
            Found::Ambiguous => {
                let message = "This path can be read as a webhook's and as another: write it without escapes.";
                ("refused", self.odd(exchange, "AMBIGUOUS_PATH", message).await)
            }
            // Providers post webhooks. A socket at their paths would reach the app unseen.
            Found::Webhooks(_) if exchange.is_upgrade() => {
                let message = "No upgrade is expected at the path of a webhook.";
                ("refused", self.odd(exchange, "UPGRADE_NOT_EXPECTED", message).await)
            }
            Found::Webhooks(found) => ("webhook", self.take(exchange, &found).await),
        };
        self.calls.lifecycle.metrics.request("webhooks", kind, status);
    }
}

impl Webhooks {
    /// Puts the handler together.
    pub fn new(calls: Calls, settings: Settings, deliver: Arc<Notify>, spool: Spool, journal: Journal) -> Self {
        let subaccounts = Subaccounts::default();
        Self { calls, settings: Arc::new(settings), deliver, spool, subaccounts, journal, left: Arc::default() }
    }

    /// The same handler on the next generation of calls and settings.
    pub fn next(&self, calls: Calls, settings: Settings) -> Self {
        Self { calls, settings: Arc::new(settings), ..self.clone() }
    }

    /// Refuses a request whose path is a webhook's, and that is none.
    async fn odd(&self, exchange: &mut Exchange, code: &'static str, message: &str) -> u16 {
        let path: String = exchange.path().chars().take(LOGGED_PATH_MAX).collect();
        warn!(path, code, "webhook request denied");
        self.answer(exchange, problem(StatusCode::BAD_REQUEST, code, message)).await
    }

    async fn take(&self, exchange: &mut Exchange, found: &[Candidate]) -> u16 {
        let is_exact = found.iter().any(|one| one.is_exact_at(exchange.path()));
        match self.answer_to(exchange, found).boxed().await {
            Some(answer) => self.answer(exchange, if is_exact { exact::shaped(answer) } else { answer }).await,
            None => 200,
        }
    }

    /// The answer to a webhook. `None`: it has been written already (the app's, relayed).
    async fn answer_to(&self, exchange: &mut Exchange, found: &[Candidate]) -> Option<Response<Bytes>> {
        if let Some(answer) = self.refused_by_head(exchange, found) {
            return Some(answer);
        }
        let body = match exchange.read_body(BODY_BYTES_MAX).await {
            Ok(body) => body,
            Err(BodyError::TooLarge { limit }) => {
                let message = format!("A webhook has at most {limit} bytes.");
                return Some(problem(StatusCode::PAYLOAD_TOO_LARGE, "BODY_TOO_LARGE", &message));
            }
            Err(error) => {
                debug!(%error, "failed to read a webhook's body");
                let answer = body_missing(error);
                return Some(answer);
            }
        };
        let raw = Raw::new(exchange.method().as_str(), exchange.path_and_query(), exchange.arrived(), body);
        let (from, keys, by) = match self.signer(&raw, found).boxed().await {
            Ok(signer) => signer,
            Err(answer) => return Some(answer),
        };
        // Whoever signed it is told that it has arrived, whether it can be read or not: it is kept, and the app gets it.
        let raw = raw.decoded();
        self.note_flaw(&raw, from);
        let event_id = format!("ev_{}", Ulid::new().to_string().to_lowercase());
        let taken = read(&raw, from, keys, by, event_id);
        let subaccounts = from.account.provider.subaccounts.as_ref();
        let is_doubled = from.webhook().is_doubled(&taken.message)
            || subaccounts.is_some_and(|rule| rule.id.is_doubled(&taken.message));
        if is_doubled {
            let (account, name) = (&from.account.name, taken.event.map_or("unknown", |e| e.name.as_str()));
            warn!(%account, webhook = from.webhook().name, "webhook denied: repeated parameter");
            self.calls.lifecycle.metrics.webhook(account.as_str(), name, "doubled");
            let message = "The request names a call, or what happened to it, more than once.";
            return Some(problem(StatusCode::BAD_REQUEST, "INVALID_PAYLOAD", message));
        }
        if from.webhook().is_foreign(&taken.message) && !taken.aliases.is_empty() {
            let (account, name) = (&from.account.name, taken.event.map_or("unknown", |e| e.name.as_str()));
            warn!(%account, webhook = from.webhook().name, "webhook denied: not about a call, yet it names one");
            self.calls.lifecycle.metrics.webhook(account.as_str(), name, "foreign");
            let message = "The request is about something else than a call, and names a call.";
            return Some(problem(StatusCode::BAD_REQUEST, "INVALID_PAYLOAD", message));
        }
        if taken.is_exact() && taken.is_unusable() {
            let message = "The payload names no type, or no conversation.";
            let invalid = problem(StatusCode::BAD_REQUEST, "INVALID_PAYLOAD", message);
            // Whoever signed it is told that it cannot be used. What it may have told of is not lost for that: its bytes are kept.
            let kept = match raw.is_unread() {
                true => self.run(exchange, &taken).boxed().await.map(drop),
                false => Ok(()),
            };
            let answer = kept.map_or_else(
                |error| {
                    warn!(account = %from.account.name, %error, "failed to store an unreadable webhook");
                    not_recorded()
                },
                |()| invalid,
            );
            return Some(answer);
        }
        if let Some(answer) = self.unheard(&taken).await {
            return Some(answer);
        }
        let response = match self.run(exchange, &taken).await {
            Ok(Some(response)) => response,
            Ok(None) => return None,
            Err(error) => {
                warn!(account = %from.account.name, webhook = from.webhook().name, %error, "failed to store a webhook");
                let name = taken.event.map_or("unknown", |e| e.name.as_str());
                self.calls.lifecycle.metrics.webhook(from.account.name.as_str(), name, "failed");
                // Whoever only observes keeps nobody from the app.
                let asks = self.calls.observes() && from.webhook().reply.is_some();
                match asks {
                    true => match self.reply(exchange, &taken, None).await {
                        Ok(Some(response)) => response,
                        Ok(None) => return None,
                        Err(_) => not_recorded(),
                    },
                    false => not_recorded(),
                }
            }
        };
        match taken.is_exact() && response.status().is_success() {
            true => Some(self.with_call(response, &taken.aliases).await),
            false => Some(response),
        }
    }

    /// Says what of a webhook could not be read.
    fn note_flaw(&self, raw: &Raw, from: &Candidate) {
        let Some(flaw) = raw.flaw else { return };
        let (account, webhook, flaw) = (from.account.name.as_str(), from.webhook().name.as_str(), flaw.as_str());
        self.calls.lifecycle.metrics.unreadable(account, "webhook", flaw);
        let bytes = raw.body.len();
        if raw.flaw == Some(Flaw::Lenient) {
            debug!(account, webhook, bytes, "webhook body is not strict JSON");
        } else {
            warn!(account, webhook, flaw, bytes, "failed to parse a webhook; stored and delivered as received");
        }
    }

    /// Remembers, applies, settles. `None`: the answer has been written already (the app's, relayed).
    async fn run(&self, exchange: &mut Exchange, taken: &Taken<'_>) -> Result<Option<Response<Bytes>>> {
        let (account, webhook) = (&taken.from.account, taken.from.webhook());
        let store = &self.calls.lifecycle.store;
        let name = taken.event.map_or("unknown", |e| e.name.as_str());
        let count = |outcome: &str| self.calls.lifecycle.metrics.webhook(account.name.as_str(), name, outcome);
        failpoint::hit("webhook.read").await;
        let mut row = self.inbox_row(taken, name);
        if self.is_for_spool(taken) {
            match self.spool.put(&row.id, taken.raw.body.clone(), self.settings.spool_bytes_max).await {
                Ok(spool) => row.spool = Some(spool),
                Err(error) => {
                    count(if matches!(error, SpoolError::Full(_)) { "spool_full" } else { "spool_failed" });
                    warn!(account = %account.name, webhook = webhook.name, bytes = taken.raw.body.len(), %error, "large webhook not accepted: spool full");
                    let message = "There is no room for a body of this size just now; send it again.";
                    return Ok(Some(problem(StatusCode::SERVICE_UNAVAILABLE, "SPOOL_UNAVAILABLE", message)));
                }
            }
        }
        let (spool, received_at) = (row.spool.clone(), row.received_at);
        let received = match self.said_alone(taken) {
            Some(heard) => match self.take_said(taken, heard, row).boxed().await {
                Ok(IngestOutcome::Whole(_, said) | IngestOutcome::Before(_, said)) => {
                    count(RECORDED);
                    failpoint::hit("webhook.settled").await;
                    return Ok(Some(fixed_answer(webhook, Some(said))));
                }
                Ok(IngestOutcome::Inbox(received)) => Ok(received),
                Err(error) => Err(error),
            },
            None => self.receive(row).await,
        };
        let received = match received {
            Ok(received) => received,
            Err(error) => {
                // Made anew: a copy of every body would be kept for the few that need it.
                let row = NewEvent { spool, received_at, ..self.inbox_row(taken, name) };
                return self.journal_fallback(taken, row, error).boxed().await.map(Some);
            }
        };
        failpoint::hit("webhook.received").await;
        let event_id = match &received {
            ReceiveOutcome::New => taken.event_id.clone(),
            ReceiveOutcome::Before { id, outcome } => {
                // Of a call that nobody knew it may be known by now; of what was said the answer tells where it stands, which is looked
                // up by saying it again.
                let waits = (taken.is_exact() && outcome.as_deref() == Some("kept")) || taken.heard.is_some();
                if outcome.is_some() && webhook.reply.is_none() && !waits {
                    count("duplicate");
                    return Ok(Some(fixed_answer(webhook, None)));
                }
                id.clone()
            }
        };
        let applied = self.apply_all(taken, &event_id).boxed().await;
        failpoint::hit("webhook.applied").await;
        let came = match applied {
            Ok(came) => came,
            Err(error) => return self.defer(taken, &event_id, error).map(Some),
        };
        count(came.outcome);
        if webhook.reply.is_none() {
            if let Err(error) = self.settle(taken, &event_id, &came).await {
                return self.defer(taken, &event_id, error).map(Some);
            }
            if let (ReceiveOutcome::Before { outcome: Some(_), .. }, Some(call)) = (&received, &came.call) {
                store.mark_matched(&event_id, Some(call), came.outcome).await?;
            }
            failpoint::hit("webhook.settled").await;
            if came.is_contradicted() && taken.heard.is_some() {
                return Ok(Some(not_yours()));
            }
            let unknown = taken.is_exact() && came.outcome == "kept";
            return Ok(Some(if unknown { self.unknown_call(taken) } else { fixed_answer(webhook, came.said) }));
        }
        let at_ms = self.calls.lifecycle.clock.now_ms();
        store.settle(&event_id, came.call.as_ref(), came.outcome, None, at_ms).await?;
        if came.is_contradicted() {
            return Ok(Some(not_yours()));
        }
        if came.outcome == "missing_id" {
            let message = "The request names no call.";
            return Ok(Some(problem(StatusCode::BAD_REQUEST, "INVALID_PAYLOAD", message)));
        }
        match &came.refused {
            Some(when_full) if webhook.reply == Some(Reply::Twiml) => Ok(Some(twiml(when_full_twiml(when_full)))),
            _ => self.reply(exchange, taken, came.call.as_ref()).await,
        }
    }

    /// Notes what came of a notification, and what the app has to be told of it; and forgets what was said, where nothing of it
    /// is to be kept.
    async fn settle(&self, taken: &Taken<'_>, event_id: &str, came: &Came) -> Result<()> {
        self.note_settled(taken, event_id, came).await?;
        let may_say = || taken.raw.is_unreadable() && taken.from.webhook().events.iter().any(|event| event.said);
        let said = taken.event.is_some_and(|event| event.said) || may_say();
        let waits = came.outcome == "kept" && taken.event.is_some_and(|event| event.record.is_some());
        if said && !waits && self.calls.post_call.forgets_bodies(came.call.as_ref()).await? {
            self.calls.lifecycle.store.forget_body(event_id).await?;
        }
        if self.is_for_spool(taken) {
            spool::release(&self.spool, &self.calls, event_id).await;
        }
        Ok(())
    }

    async fn note_settled(&self, taken: &Taken<'_>, event_id: &str, came: &Came) -> Result<()> {
        let (store, at_ms) = (&self.calls.lifecycle.store, self.calls.lifecycle.clock.now_ms());
        // The app takes what it gets for its own.
        let delivery = match came.is_contradicted() {
            true => None,
            false => self.delivery(taken, came.call.as_ref(), event_id).await?,
        };
        let something = delivery.is_some();
        if store.settle(event_id, came.call.as_ref(), came.outcome, delivery, at_ms).await? && something {
            self.deliver.notify_one();
        }
        Ok(())
    }

    fn inbox_row(&self, taken: &Taken<'_>, name: &str) -> NewEvent {
        let raw = taken.raw;
        let account = &taken.from.account;
        let webhook = taken.from.webhook();
        let parts: Vec<Cow<'_, str>> = webhook.dedupe.iter().filter_map(|s| s.text(&taken.message)).collect();
        let complete = !parts.is_empty() && parts.len() == webhook.dedupe.len();
        // Postgres keeps no NUL in a text, and no long one in an index.
        let of = |key: String| {
            let key = format!("{}|{}|{key}", account.name, webhook.name).replace('\0', "\u{FFFD}");
            if key.len() > KEY_BYTES_MAX { sha256_hex(key.as_bytes()) } else { key }
        };
        // A notification that lacks what would tell its deliveries apart: the same bytes are the same event.
        let same_bytes = || {
            let tells = taken.news.is_some() || taken.heard.is_some() || raw.is_unread();
            let notifies = webhook.reply.is_none() && tells && !raw.body.is_empty();
            notifies.then(|| of(format!("sha256|{}|{}", raw.path_and_query, sha256_hex(&raw.body))))
        };
        NewEvent {
            id: taken.event_id.clone(),
            account: account.name.to_string(),
            webhook: webhook.name.clone(),
            event: name.to_owned(),
            dedupe_key: if complete { Some(of(parts.join("|"))) } else { same_bytes() },
            received_at: self.calls.lifecycle.clock.now_ms(),
            method: raw.method.clone(),
            path: raw.path_and_query.clone(),
            headers: kept_headers(&raw.headers, &webhook.signature),
            body: (raw.body.len() <= KEPT_BYTES_MAX).then(|| raw.body.to_vec()),
            spool: None,
        }
    }

    /// Translates the event into a transition of a call. An event of an unknown call whose direction is outbound never
    /// admits and never ends anything: it waits under its ids.
    async fn apply(&self, taken: &Taken<'_>, event_id: &str) -> Result<Came> {
        if taken.raw.is_unreadable() && taken.aliases.is_empty() {
            // It may have told of an end: the provider's own list says so, too.
            self.calls.sweep_requests.request(&taken.from.account.name);
            return Ok(Came::of("unreadable"));
        }
        if let Some(heard) = &taken.heard {
            return self.ingest(taken, heard, event_id).boxed().await;
        }
        let Some(news) = taken.news else { return Ok(Came::of("ignored")) };
        let (own, outside): (Vec<Alias>, Vec<Alias>) =
            taken.aliases.iter().cloned().partition(|a| a.kind == OWN_ID_KIND);
        // Our own id came back through the provider: exact, and a proof that the call exists.
        if let Some(call) = own.first().and_then(|a| CallId::parse(&a.id)) {
            let change = Change {
                event: Some(news),
                bind: outside.clone(),
                by: Some(taken.by.clone()),
                ..self.calls.lifecycle.change(&call, "webhook")
            };
            if let Some(applied) = self.calls.lifecycle.apply(change).await? {
                return Ok(self.came_of(taken, applied));
            }
        }
        let admits = taken.event.is_some_and(|e| e.admits) && taken.direction == Direction::Inbound;
        if let (true, Event::Reached(phase)) = (admits, news) {
            if outside.is_empty() {
                return Ok(Came::of("missing_id"));
            }
            return self.arrived(taken, outside, phase).await;
        }
        Ok(match self.calls.lifecycle.news(outside, news, taken.by.clone(), "webhook").await? {
            Some(applied) => self.came_of(taken, applied),
            None => Came::of("kept"),
        })
    }

    /// What applying it came to. What is not about the call that it points to is reported; a part that ended makes its carrier be asked.
    fn came_of(&self, taken: &Taken<'_>, applied: ApplyOutcome) -> Came {
        if let Some(what) = applied.contradiction {
            self.report(taken, Some(&applied.record.id), what);
            if what == Contradiction::OtherCall {
                self.calls.sweep_requests.request(&applied.record.facts.account);
            }
        }
        if applied.ended_a_part {
            let facts = &applied.record.facts;
            self.calls.sweep_requests.request(facts.carrier.as_ref().unwrap_or(&facts.account));
        }
        Came::applied(applied)
    }

    fn report(&self, taken: &Taken<'_>, call: Option<&CallId>, what: Contradiction) {
        let (account, subaccount) = (&taken.from.account.name, taken.by.subaccount.as_deref());
        let call = call.map(CallId::as_str);
        warn!(%account, subaccount, event = taken.event_id, call, why = what.why(), "failed to apply a webhook");
    }

    async fn arrived(&self, taken: &Taken<'_>, aliases: Vec<Alias>, phase: Phase) -> Result<Came> {
        let webhook = taken.from.webhook();
        let mut facts = webhook.facts.read(&taken.message, taken.direction);
        let front = self.settings.inbound_mode == InboundMode::Front && webhook.reply == Some(Reply::Twiml);
        if front && facts.agent.is_none() {
            facts.agent = self.agent_of(facts.own_number.as_deref());
        }
        let arrival = Arrival {
            account: taken.from.account.clone(),
            operation: taken.event.map_or_else(String::new, |e| e.name.clone()),
            direction: taken.direction,
            facts,
            aliases,
            phase,
            refusable: webhook.reply == Some(Reply::Twiml),
            origin: Origin::Webhook,
            by: Some(taken.by.clone()),
        };
        Ok(match self.calls.inbound.arrive(arrival).await? {
            ArrivalOutcome::Admitted(call) => Came { call: Some(call), ..Came::of("admitted") },
            ArrivalOutcome::Contradicted(what) => {
                self.report(taken, None, what);
                Came::of(what.outcome())
            }
            ArrivalOutcome::Refused(call, full) => {
                Came { call: Some(call), refused: Some(full), ..Came::of("capacity_inbound") }
            }
        })
    }

    /// The agent that answers a number: as configured, else the first of the business that the number belongs to.
    fn agent_of(&self, number: Option<&str>) -> Option<String> {
        let number = number?;
        self.settings.agents.get(number_key(number).as_ref()).cloned().or_else(|| {
            let policy = &self.calls.policy;
            policy.business(policy.owner_of_number(number)?)?.agent_ids.first().cloned()
        })
    }

    async fn answer(&self, exchange: &mut Exchange, response: Response<Bytes>) -> u16 {
        let status = response.status().as_u16();
        exchange.respond(response).await;
        failpoint::hit("webhook.answered").await;
        status
    }
}

/// Reads a webhook as its description says.
fn read<'a>(raw: &'a Raw, from: &'a Candidate, keys: Keys, by: Voucher, event_id: String) -> Taken<'a> {
    let webhook = from.webhook();
    let message = Message { body: &raw.document, query: &raw.query, path: &from.captures, headers: &raw.headers };
    let event = webhook.events.iter().find(|e| e.when.is_empty() || e.when.holds(&message));
    let mut aliases = webhook.ids.read(&message);
    aliases.extend(subaccount_alias(&from.account, &message, &aliases));
    // The id that tells calls apart goes before those that several may share.
    let needs = from.account.provider.lookup.as_ref().map(|lookup| lookup.needs.as_str());
    aliases.sort_by_key(|alias| Some(alias.kind.as_str()) != needs);
    Taken {
        raw,
        from,
        keys,
        by,
        event,
        message,
        aliases,
        direction: webhook.direction.as_ref().and_then(|d| d.read(&message)).unwrap_or(Direction::Outbound),
        news: event.and_then(|e| e.state.as_ref()).and_then(|s| s.read(&message, EndProof::Webhook)),
        heard: event.and_then(|e| e.utterance.as_ref()).map(|rules| rules.read(&message)),
        event_id,
    }
}

/// Which subaccount has the call, if one has.
fn subaccount_alias(account: &Account, message: &Message<'_>, aliases: &[Alias]) -> Option<Alias> {
    let needs = &account.provider.lookup.as_ref()?.needs;
    let call = aliases.iter().find(|alias| alias.kind == *needs)?;
    Alias::new(SUBACCOUNT_KIND, &format!("{}/{}", subaccounts::named_in(account, message)?, call.id))
}

/// The answer where a body could not be had; one that there was no room for may come again.
fn body_missing(error: BodyError) -> Response<Bytes> {
    let status = match error {
        BodyError::NoRoom => StatusCode::SERVICE_UNAVAILABLE,
        BodyError::TooLarge { .. } | BodyError::Timeout | BodyError::Broken => StatusCode::BAD_REQUEST,
    };
    let mut answer = problem(status, "BODY_INCOMPLETE", &error.to_string());
    if error == BodyError::NoRoom {
        answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
    }
    answer
}

/// The answer about a call of somebody else.
fn not_yours() -> Response<Bytes> {
    let message = "The call is not one of those that the signature vouches for.";
    problem(StatusCode::FORBIDDEN, "CALL_NOT_YOURS", message)
}

/// What its provider is asked to send again.
fn not_recorded() -> Response<Bytes> {
    let message = "The event could not be recorded; send it again.";
    problem(StatusCode::SERVICE_UNAVAILABLE, "STORE_UNAVAILABLE", message)
}

/// The answer that a webhook's description gives, with where it stands what was said.
fn fixed_answer(webhook: &Webhook, said: Option<UtteranceRef>) -> Response<Bytes> {
    let Some(answer) = &webhook.answer else { return respond(StatusCode::NO_CONTENT, HeaderMap::new(), Bytes::new()) };
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    match &answer.body {
        Some(body) => {
            let number = |name: &str| match (name, said) {
                ("transcription_id", Some(said)) => said.id.into(),
                ("sequence_number", Some(said)) => said.sequence.into(),
                _ => Value::Null,
            };
            json_answer(status, &fill_json(body, &number))
        }
        None => respond(status, HeaderMap::new(), Bytes::new()),
    }
}

/// Headers that were kept.
fn headers_of(kept: &[(String, String)]) -> HeaderMap {
    let headers = kept
        .iter()
        .filter_map(|(name, value)| Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?)));
    headers.fold(HeaderMap::new(), |mut all, (name, value)| {
        all.append(name, value);
        all
    })
}

/// Headers worth keeping: no credentials, none of the connection. A token that is a signature over the body is none.
fn kept_headers(headers: &HeaderMap, signature: &Signature) -> Vec<(String, String)> {
    let kept = headers.iter().filter(|(name, _)| {
        (**name != AUTHORIZATION || signature.is_signature(name))
            && **name != COOKIE
            && name.as_str() != "x-ringfence-token"
            && name.as_str() != "connection"
            && !signature.is_credential(name)
    });
    kept.filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned()))).collect()
}

/// A body as a document. Texts that no selector reads (base64 audio) are left out.
fn decode(content_type: Option<&str>, body: &Bytes) -> Decoded {
    match is_form(content_type) && body.len() > KEPT_BYTES_MAX {
        true => Decoded { document: Document::Empty, flaw: Some(Flaw::Unreadable) },
        false => Document::read(content_type, body, &["full_audio"]),
    }
}

/// A body as a form, if it is one.
fn form(headers: &HeaderMap, body: &Bytes) -> Document {
    let content_type = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
    match is_form(content_type) && body.len() <= KEPT_BYTES_MAX {
        true => Document::decode(content_type, body),
        false => Document::Empty,
    }
}

fn pairs(document: &Document) -> Option<&[(String, String)]> {
    match document {
        Document::Form(pairs) => Some(pairs),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Settings of nothing in particular.
    pub(super) fn settings() -> Settings {
        Settings {
            public_url: None,
            forward_url: None,
            app_public_url: None,
            app_host: AppHost::Public,
            forward_paths: ForwardPaths::default(),
            strict: false,
            inbound_mode: InboundMode::App,
            app_timeout: Duration::from_secs(1),
            when_down: None,
            agents: BTreeMap::new(),
            extra_paths: ExtraPaths::new(),
            unknown_status: 404,
            spool_bytes_max: 0,
            spool_days: 1,
        }
    }
}
