//! ElevenLabs' batch calling, answered by bulk runs, so that a batch obeys all limits call by call.
//!
//! [`convert`] reads a batch as a run and its leads, [`shape`] shows a run as a batch. The fields are those of ElevenLabs' own SDK
//! (`elevenlabs` 2.78, `BatchCallResponse`, `BatchCallDetailedResponse`, `WorkspaceBatchCallsResponse`). A request whose key is not
//! the account's, and a batch that a run cannot dial, go to the provider: it judges keys, and the batch holds slots as a whole.

mod convert;
mod shape;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode};
use serde_json::{Value, json};
use tracing::{debug, info, warn};

use super::Runs;
use super::leads::LeadsIn;
use super::load::LoadError;
use super::spec::Spec;
use crate::call::Outcome;
use crate::calls::Calls;
use crate::calls::batches::{BatchCalling, OtherRequest};
use crate::calls::outbound::CreateRequest;
use crate::calls::rejection::RejectedRequest;
use crate::provider::account::Account;
use crate::provider::path::{percent_decode, readings};
use crate::provider::select::Document;
use crate::provider::sign::{equal, sha256_hex};
use crate::reply::{Rejection, RejectionCode, json_answer, problem};
use crate::store::StoreError;
use crate::store::runs::{BATCH_KEY, JobResult, Run, RunState};
use convert::{Batch, PhoneProvider};
use shape::submitted_digest;

/// The provider whose batches these are.
const PROVIDER: &str = "elevenlabs";
/// The operations of its description that create a batch, and call its recipients again.
const SUBMIT: &str = "batch_submit";
const RETRY: &str = "batch_retry";
/// The same batch that comes again within this time, in milliseconds, is one that an SDK has sent again.
const SAME_WITHIN_MS: i64 = 600_000;
/// The time that a request waits for the same one that is being read, and the time between two looks at that.
const LOADING_WAIT: Duration = Duration::from_secs(30);
const LOADING_POLL: Duration = Duration::from_millis(200);
/// Leads that are handed over at once, and results that are read at once.
const PAGE: usize = 500;
/// Pages of runs that one list reads at most, where batches of one agent are looked for.
const PAGES_MAX: u32 = 4;
/// Batches in a page of a list, unless asked otherwise; and at most.
const LISTED_DEFAULT: usize = 30;
const LISTED_MAX: usize = 100;
/// Outcomes of recipients that a retry calls again.
const NOT_REACHED: [Outcome; 4] = [Outcome::Busy, Outcome::NoAnswer, Outcome::Failed, Outcome::Canceled];

/// The operation that a path below `/convai/batch-calling` asks for.
#[derive(Debug, PartialEq, Eq)]
enum BatchRequest {
    List,
    Get(String),
    Cancel(String),
}

fn parse_request(method: &Method, path: &str) -> Option<BatchRequest> {
    readings(path).iter().find_map(|path| {
        let segments: Vec<&str> = path.as_str().trim_matches('/').split('/').collect();
        let [_, convai, batch_calling, rest @ ..] = segments.as_slice() else { return None };
        let is = |segment: &str, word: &str| segment.replace('_', "-").eq_ignore_ascii_case(word);
        if !is(convai, "convai") || !is(batch_calling, "batch-calling") {
            return None;
        }
        match (method, rest) {
            (&Method::GET, [list]) if is(list, "workspace") => Some(BatchRequest::List),
            (&Method::GET, [id]) => Some(BatchRequest::Get(percent_decode(id).into_owned())),
            (&Method::POST, [id, cancel]) if is(cancel, "cancel") => {
                Some(BatchRequest::Cancel(percent_decode(id).into_owned()))
            }
            _ => None,
        }
    })
}

/// Whether a request shows the account's own key. Runs dial with that, so nobody else's requests are theirs.
fn shows_key(account: &Account, headers: &HeaderMap) -> bool {
    account.provider.name == PROVIDER
        && account.can_ask()
        && account
            .credentials()
            .is_ok_and(|(name, value)| headers.get(name).is_some_and(|shown| equal(shown.as_bytes(), value.as_bytes())))
}

/// The key that tells whether a batch was submitted before.
struct BatchKey {
    /// The beginning of the idempotency key of the batch's run. A later run for the same key has the id of the one before it
    /// behind that.
    text: String,
    /// The digest of the body.
    body_digest: String,
    /// The app named it (`Idempotency-Key`), so it is the same for as long as its run is on record.
    is_named: bool,
}

impl BatchKey {
    fn of(request: &CreateRequest) -> Result<Self, String> {
        let (account, body) = (&request.account.name, sha256_hex(request.upstream.body()));
        let named = request.idempotency_key()?;
        let text = named.as_ref().map_or_else(|| body.clone(), |key| format!("key:{}", key.id));
        Ok(Self { text: format!("{BATCH_KEY}{account}:{text}"), body_digest: body, is_named: named.is_some() })
    }

    /// Whether a request with this key means this run. A batch without a name that was canceled, or comes again later, is to be
    /// called once more: nothing but a person repeats it so.
    fn is_of(&self, run: &Run, now_ms: i64) -> bool {
        let is_over = matches!(run.state, RunState::Canceled | RunState::Failed);
        self.is_named || (!is_over && run.created_at >= now_ms - SAME_WITHIN_MS)
    }
}

#[async_trait]
impl BatchCalling for Runs {
    async fn create(&self, calls: &Calls, request: &CreateRequest) -> Option<Response<Bytes>> {
        let account = &*request.account;
        if !shows_key(account, request.upstream.headers()) {
            return None;
        }
        match request.operation.name.as_str() {
            SUBMIT => {
                let Document::Json(body) = &request.body else { return None };
                let batch = Batch::read(body)?;
                self.submit(calls, request, batch).await.unwrap_or_else(|error| Some(error_response(error)))
            }
            RETRY => {
                let run = self.find_batch(calls, account, &request.batch.as_ref()?.id).await;
                let run = run.transpose()?;
                let retried = async { self.retry_batch(calls, run?).await };
                Some(retried.await.unwrap_or_else(|error| error_response(LoadError::Store(error))))
            }
            _ => None,
        }
    }

    async fn other(&self, calls: &Calls, account: &Account, request: OtherRequest<'_>) -> Option<Response<Bytes>> {
        let parsed = parse_request(request.method, request.path)?;
        if !shows_key(account, request.headers) {
            return None;
        }
        let answered = match parsed {
            BatchRequest::List if calls.observes() => return None,
            BatchRequest::List => self.list_batches(calls, account, request.query).await,
            BatchRequest::Get(id) => self.show_batch(calls, account, &id).await,
            BatchRequest::Cancel(id) => self.cancel_batch(calls, account, &id).await,
        };
        answered.unwrap_or_else(|error| {
            warn!(account = %account.name, %error, "failed to answer a request about a batch");
            let why = "The database does not answer; try again.";
            Some(rejection_response(calls, account, RejectionCode::StoreUnavailable, why))
        })
    }
}

impl Runs {
    /// A run that is a batch of this account. `None`: the provider may know it.
    async fn find_batch(&self, calls: &Calls, account: &Account, id: &str) -> Result<Option<Run>, StoreError> {
        let run = calls.lifecycle.store.run_of(id).await?;
        // One that is being read may still be none: nobody has been told its id.
        let is_whole = |run: &Run| run.state != RunState::Loading;
        Ok(run.filter(|run| run.account == account.name.as_str() && is_whole(run) && is_batch(run)))
    }

    async fn submit(
        &self,
        calls: &Calls,
        request: &CreateRequest,
        batch: Batch<'_>,
    ) -> Result<Option<Response<Bytes>>, LoadError> {
        let reject =
            |code, why: &str| Ok(Some(calls.rejections.respond(Rejection::new(code, why), &request.rejected())));
        let key = match BatchKey::of(request) {
            Ok(key) => key,
            Err(why) => return reject(RejectionCode::InvalidRequest, &why),
        };
        let (store, business) = (&calls.lifecycle.store, &request.attributes.business);
        let mut latest = store.latest_keyed_run(business.as_str(), &key.text).await?;
        let mut telephony = None;
        let until = Instant::now() + LOADING_WAIT;
        let mut loading = loop {
            let text = match &latest {
                Some(run) if key.is_of(run, calls.lifecycle.clock.now_ms()) => {
                    if key.body_digest != submitted_digest(run) {
                        return reject(
                            RejectionCode::KeyReused,
                            "Not dialled: this Idempotency-Key was used for another batch.",
                        );
                    }
                    if run.state != RunState::Loading {
                        return self.batch_response(calls, run).await.map(Some).map_err(LoadError::Store);
                    }
                    // The same request is being read, here or at another replica.
                    if Instant::now() > until {
                        return reject(RejectionCode::Overloaded, "The same batch is still being read; ask again.");
                    }
                    tokio::time::sleep(LOADING_POLL).await;
                    latest = store.run_of(&run.id).await?;
                    continue;
                }
                Some(run) => format!("{}:{}", key.text, run.id),
                None => key.text.clone(),
            };
            if calls.observes() {
                // Limits are not enforced, so the provider dials new batches. Those that are runs already stay runs.
                return Ok(None);
            }
            let telephony = match telephony {
                Some(telephony) => telephony,
                None => match phone_provider(calls, &request.account, batch.phone_number_id).await {
                    PhoneAnswer::By(provider) => *telephony.insert(provider),
                    PhoneAnswer::Other => return Ok(None),
                    PhoneAnswer::Silent => {
                        let why =
                            "Not dialled: ElevenLabs did not say who carries the batch's phone number; try again.";
                        return reject(RejectionCode::UpstreamUnreachable, why);
                    }
                },
            };
            let spec = batch.spec(business, &request.account.name, telephony, text, &key.body_digest);
            let loading = self.begin(calls, spec, LeadsIn::Create).await?;
            if !loading.is_known() {
                break loading;
            }
            latest = Some(loading.run().clone());
        };
        let loaded = if loading.wants_leads() {
            for rows in batch.rows().collect::<Vec<_>>().chunks(PAGE) {
                loading.take(rows.to_vec()).await?;
            }
            loading.finish().await?
        } else {
            loading.without_leads()
        };
        let run = loaded.run;
        info!(run = run.id, business = run.business, leads = run.total, "batch submitted as a run");
        Ok(Some(self.batch_response(calls, &run).await?))
    }

    /// The answer that shows a run as a batch.
    async fn batch_response(&self, calls: &Calls, run: &Run) -> Result<Response<Bytes>, StoreError> {
        let counts = calls.lifecycle.store.run_counts(&run.id).await?;
        Ok(json_answer(StatusCode::OK, &shape::batch(run, &counts)))
    }

    async fn list_batches(
        &self,
        calls: &Calls,
        account: &Account,
        query: &str,
    ) -> Result<Option<Response<Bytes>>, StoreError> {
        let query: HashMap<String, String> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let before = query.get("last_doc").map(String::as_str).filter(|cursor| !cursor.is_empty());
        // A cursor that is not one of ours is the provider's.
        if before.is_some_and(|cursor| !cursor.starts_with("run_")) {
            return Ok(None);
        }
        let limit =
            query.get("limit").and_then(|text| text.parse().ok()).unwrap_or(LISTED_DEFAULT).clamp(1, LISTED_MAX);
        let agent = query.get("agent_id").filter(|agent| !agent.is_empty());
        let (mut batches, mut cursor, mut has_more) = (vec![], before.map(str::to_owned), false);
        let page = if agent.is_some() { PAGE } else { limit + 1 };
        'pages: for nth in 1.. {
            let runs = calls.lifecycle.store.batch_runs(account.name.as_str(), cursor.clone(), page as u32).await?;
            for run in &runs {
                if run.state == RunState::Loading
                    || !is_batch(run)
                    || agent.is_some_and(|agent| shape::agent(run).as_ref() != Some(agent))
                {
                    continue;
                }
                if batches.len() == limit {
                    has_more = true;
                    break 'pages;
                }
                let counts = calls.lifecycle.store.run_counts(&run.id).await?;
                batches.push(shape::batch(run, &counts));
                cursor = Some(run.id.clone());
            }
            match runs.last() {
                Some(last) if runs.len() == page => cursor = Some(last.id.clone()),
                _ => break,
            }
            if nth == PAGES_MAX {
                has_more = true;
                break;
            }
        }
        if batches.is_empty() && before.is_none() && !has_more {
            return Ok(None);
        }
        if has_more {
            let page = json!({"batch_calls": batches, "next_doc": cursor, "has_more": true});
            return Ok(Some(json_answer(StatusCode::OK, &page)));
        }
        Ok(Some(with_providers_own(calls, account, batches, limit, agent.map(String::as_str)).await))
    }

    async fn show_batch(
        &self,
        calls: &Calls,
        account: &Account,
        id: &str,
    ) -> Result<Option<Response<Bytes>>, StoreError> {
        let Some(run) = self.find_batch(calls, account, id).await? else { return Ok(None) };
        let store = &calls.lifecycle.store;
        let mut shown = shape::batch(&run, &store.run_counts(&run.id).await?);
        let (mut recipients, mut after) = (vec![], 0);
        loop {
            let page: Vec<JobResult> = store.job_results(&run.id, after, PAGE as u32).await?;
            recipients.extend(page.iter().map(|one| shape::recipient(&run, one)));
            match page.last() {
                Some(last) if page.len() == PAGE => after = last.job.seq,
                _ => break,
            }
        }
        shown["recipients"] = recipients.into();
        Ok(Some(json_answer(StatusCode::OK, &shown)))
    }

    async fn cancel_batch(
        &self,
        calls: &Calls,
        account: &Account,
        id: &str,
    ) -> Result<Option<Response<Bytes>>, StoreError> {
        let Some(run) = self.find_batch(calls, account, id).await? else { return Ok(None) };
        self.cancel(calls, &run.id).await?;
        let run = calls.lifecycle.store.run_of(&run.id).await?.unwrap_or(run);
        self.batch_response(calls, &run).await.map(Some)
    }

    async fn retry_batch(&self, calls: &Calls, run: Run) -> Result<Response<Bytes>, StoreError> {
        self.retry(calls, &run, NOT_REACHED.to_vec()).await?;
        let run = calls.lifecycle.store.run_of(&run.id).await?.unwrap_or(run);
        self.batch_response(calls, &run).await
    }
}

/// Whether a run was submitted as a batch.
fn is_batch(run: &Run) -> bool {
    serde_json::from_str::<Spec>(&run.spec).is_ok_and(|spec| spec.batch.is_some())
}

/// The last page of our batches, with the first of those that the provider itself has.
async fn with_providers_own(
    calls: &Calls,
    account: &Account,
    mut batches: Vec<Value>,
    limit: usize,
    agent: Option<&str>,
) -> Response<Bytes> {
    let rest = limit.saturating_sub(batches.len()).max(1).to_string();
    let query = [("limit", rest.as_str())].into_iter().chain(agent.map(|agent| ("agent_id", agent)));
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
    let path = format!("/v1/convai/batch-calling/workspace?{query}");
    match calls.provider.ask(account, Method::GET, &path, None).await {
        Ok(answer) if answer.status() == StatusCode::OK => {
            let mut page: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
            if let Some(Value::Array(theirs)) = page.get_mut("batch_calls") {
                batches.append(theirs);
            }
            let page = json!({"batch_calls": batches, "next_doc": page["next_doc"], "has_more": page["has_more"]});
            json_answer(StatusCode::OK, &page)
        }
        Ok(answer) => answer,
        Err(error) => {
            warn!(account = %account.name, %error, "failed to list batches of provider");
            let why = "The provider's own batches cannot be listed.";
            rejection_response(calls, account, RejectionCode::UpstreamUnreachable, why)
        }
    }
}

/// The provider's answer about the telephony provider of a phone number.
enum PhoneAnswer {
    By(PhoneProvider),
    /// A run cannot call from it, or the provider has no such number for this key.
    Other,
    /// The provider did not answer.
    Silent,
}

/// Asks the provider (`GET /v1/convai/phone-numbers/{id}`, `provider`).
async fn phone_provider(calls: &Calls, account: &Account, id: &str) -> PhoneAnswer {
    let id = percent_encoding::utf8_percent_encode(id, percent_encoding::NON_ALPHANUMERIC);
    let path = format!("/v1/convai/phone-numbers/{id}");
    match calls.provider.ask(account, Method::GET, &path, None).await {
        Ok(answer) if answer.status() == StatusCode::OK => {
            let body: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
            let provider = body["provider"].as_str().and_then(PhoneProvider::parse);
            provider.map_or(PhoneAnswer::Other, PhoneAnswer::By)
        }
        // These are the provider's last word: it answers the batch as it likes.
        Ok(answer) if answer.status().is_client_error() && !is_temporary(answer.status()) => {
            debug!(account = %account.name, status = answer.status().as_u16(), "phone number unknown; batch passed on");
            PhoneAnswer::Other
        }
        Ok(answer) => {
            warn!(account = %account.name, status = answer.status().as_u16(), "failed to read phone number");
            PhoneAnswer::Silent
        }
        Err(error) => {
            warn!(account = %account.name, %error, "failed to read phone number");
            PhoneAnswer::Silent
        }
    }
}

fn is_temporary(status: StatusCode) -> bool {
    matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS)
}

/// The rejection of a request that creates no call, in the provider's shape.
fn rejection_response(calls: &Calls, account: &Account, code: RejectionCode, why: &str) -> Response<Bytes> {
    calls.rejections.respond(Rejection::new(code, why), &RejectedRequest::other(account))
}

/// The reason why a batch was not taken, in the provider's shape.
fn error_response(error: LoadError) -> Response<Bytes> {
    let invalid = |detail: Value| json_answer(StatusCode::UNPROCESSABLE_ENTITY, &json!({"detail": detail}));
    match error {
        LoadError::Leads { mistakes, .. } => {
            let of = |line: u64| json!(["body", "recipients", line.saturating_sub(1), "phone_number"]);
            let detail = mistakes.iter().map(|m| json!({"loc": of(m.line), "msg": m.error, "type": "value_error"}));
            invalid(detail.collect())
        }
        LoadError::Invalid(why) => invalid(json!([{"loc": ["body"], "msg": why, "type": "value_error"}])),
        LoadError::Conflict(why) => problem(StatusCode::CONFLICT, "RUN_CONFLICT", &why),
        LoadError::Unknown => problem(StatusCode::NOT_FOUND, "NOT_FOUND", "no batch of this id is known"),
        LoadError::Store(error) => {
            warn!(%error, "failed to create a run from a batch");
            let why = "The database does not answer; try again.";
            problem(StatusCode::SERVICE_UNAVAILABLE, "STORE_UNAVAILABLE", why)
        }
    }
}
