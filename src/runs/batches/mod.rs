//! ElevenLabs' batch calling, answered by bulk runs, so that a batch obeys all limits call by call.
//!
//! [`convert`] reads a batch as a run and its leads, [`shape`] shows a run as a batch. The fields are those of ElevenLabs' own SDK
//! (`elevenlabs` 2.78, `BatchCallResponse`, `BatchCallDetailedResponse`, `WorkspaceBatchCallsResponse`). A request whose key is not
//! the account's, and a batch that a run cannot dial, go to the provider: it judges keys, and the batch holds slots as a whole.

mod convert;
mod shape;

use std::collections::HashMap;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode};
use serde_json::{Value, json};
use tracing::{debug, info, warn};

use super::Runs;
use super::load::{LoadError, Loaded};
use super::spec::Spec;
use crate::call::Outcome;
use crate::calls::Calls;
use crate::calls::batches::{BatchCalling, OtherRequest};
use crate::calls::outbound::CreateRequest;
use crate::provider::account::Account;
use crate::provider::path::{percent_decode, readings};
use crate::provider::select::Document;
use crate::provider::sign::{equal, sha256_hex};
use crate::reply::{json_answer, problem};
use crate::store::StoreError;
use crate::store::runs::{JobResult, Run};
use convert::{Batch, PhoneProvider};

/// The provider whose batches these are.
const PROVIDER: &str = "elevenlabs";
/// The operations of its description that create a batch, and call its recipients again.
const SUBMIT: &str = "batch_submit";
const RETRY: &str = "batch_retry";
/// What the idempotency key of a batch's run begins with.
const KEY: &str = "batch:";
/// The same batch that comes again within this time, in milliseconds, is one that an SDK has sent again.
const SAME_WITHIN_MS: i64 = 600_000;
/// Leads that are handed over at once, and results that are read at once.
const PAGE: usize = 500;
/// Batches in a page of a list, unless asked otherwise; and at most.
const LISTED: usize = 30;
const LISTED_MAX: usize = 100;
/// Outcomes of recipients that a retry calls again.
const NOT_REACHED: [Outcome; 4] = [Outcome::Busy, Outcome::NoAnswer, Outcome::Failed, Outcome::Canceled];

/// What a path below `/convai/batch-calling` asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    List,
    Get(String),
    Cancel(String),
}

fn asked(method: &Method, path: &str) -> Option<Asked> {
    readings(path).iter().find_map(|path| {
        let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        let [_, convai, batch_calling, rest @ ..] = segments.as_slice() else { return None };
        let is = |segment: &str, word: &str| segment.replace('_', "-").eq_ignore_ascii_case(word);
        if !is(convai, "convai") || !is(batch_calling, "batch-calling") {
            return None;
        }
        match (method, rest) {
            (&Method::GET, [list]) if is(list, "workspace") => Some(Asked::List),
            (&Method::GET, [id]) => Some(Asked::Get(percent_decode(id).into_owned())),
            (&Method::POST, [id, cancel]) if is(cancel, "cancel") => {
                Some(Asked::Cancel(percent_decode(id).into_owned()))
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

#[async_trait]
impl BatchCalling for Runs {
    async fn create(&self, calls: &Calls, request: &CreateRequest) -> Option<Response<Bytes>> {
        let account = &*request.account;
        if calls.observes() || !shows_key(account, request.upstream.headers()) {
            return None;
        }
        match request.operation.name.as_str() {
            SUBMIT => {
                let Document::Json(body) = &request.body else { return None };
                let batch = Batch::read(body)?;
                let carrier = phone_provider(calls, account, batch.phone_number_id).await?;
                let digest = sha256_hex(request.upstream.body());
                Some(self.submit(calls, request, batch, carrier, &digest).await.unwrap_or_else(answer_of))
            }
            RETRY => {
                let run = self.batch(calls, account, &request.batch.as_ref()?.id).await;
                let run = run.transpose()?;
                let retried = async { self.retry_batch(calls, run?).await };
                Some(retried.await.unwrap_or_else(|error| answer_of(LoadError::Store(error))))
            }
            _ => None,
        }
    }

    async fn other(&self, calls: &Calls, account: &Account, request: OtherRequest<'_>) -> Option<Response<Bytes>> {
        let asked = asked(request.method, request.path)?;
        if calls.observes() || !shows_key(account, request.headers) {
            return None;
        }
        let answered = match asked {
            Asked::List => self.list_batches(calls, account, request.query).await,
            Asked::Get(id) => self.show_batch(calls, account, &id).await,
            Asked::Cancel(id) => self.cancel_batch(calls, account, &id).await,
        };
        answered.unwrap_or_else(|error| Some(answer_of(LoadError::Store(error))))
    }
}

impl Runs {
    /// A run that is a batch of this account. `None`: the provider may know it.
    async fn batch(&self, calls: &Calls, account: &Account, id: &str) -> Result<Option<Run>, StoreError> {
        let run = calls.lifecycle.store.run_of(id).await?;
        Ok(run.filter(|run| run.account == account.name.as_str() && is_batch(run)))
    }

    async fn submit(
        &self,
        calls: &Calls,
        request: &CreateRequest,
        batch: Batch<'_>,
        carrier: PhoneProvider,
        digest: &str,
    ) -> Result<Response<Bytes>, LoadError> {
        let first = format!("{KEY}{}:{digest}", request.account.name);
        let mut key = first.clone();
        let loaded = loop {
            let spec = batch.spec(&request.facts.business, &request.account.name, carrier, key.clone());
            let mut loading = self.begin(calls, spec, true).await?;
            let run = loading.run();
            if loading.is_known() && run.created_at < calls.lifecycle.clock.now_ms() - SAME_WITHIN_MS {
                // It was meant to be called another time.
                key = format!("{first}:{}", run.id);
                continue;
            }
            if !loading.wants_leads() {
                break loading.without_leads();
            }
            for rows in batch.rows().collect::<Vec<_>>().chunks(PAGE) {
                loading.take(rows.to_vec()).await?;
            }
            break loading.finish().await?;
        };
        let Loaded { run, known } = loaded;
        info!(run = run.id, business = run.business, leads = run.total, known, "batch submitted as a run");
        Ok(self.shown(calls, &run).await?)
    }

    /// The answer that shows a run as a batch.
    async fn shown(&self, calls: &Calls, run: &Run) -> Result<Response<Bytes>, StoreError> {
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
        let limit = query.get("limit").and_then(|text| text.parse().ok()).unwrap_or(LISTED).clamp(1, LISTED_MAX);
        let agent = query.get("agent_id").filter(|agent| !agent.is_empty());
        let (mut batches, mut cursor, mut has_more) = (vec![], before.map(str::to_owned), false);
        'pages: loop {
            let runs =
                calls.lifecycle.store.keyed_runs(account.name.as_str(), KEY, cursor.clone(), PAGE as u32).await?;
            for run in &runs {
                if !is_batch(run) || agent.is_some_and(|agent| shape::agent(run).as_ref() != Some(agent)) {
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
                Some(last) if runs.len() == PAGE => cursor = Some(last.id.clone()),
                _ => break,
            }
        }
        if batches.is_empty() && before.is_none() {
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
        let Some(run) = self.batch(calls, account, id).await? else { return Ok(None) };
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
        let Some(run) = self.batch(calls, account, id).await? else { return Ok(None) };
        self.cancel(calls, &run.id).await?;
        let run = calls.lifecycle.store.run_of(&run.id).await?.unwrap_or(run);
        self.shown(calls, &run).await.map(Some)
    }

    async fn retry_batch(&self, calls: &Calls, run: Run) -> Result<Response<Bytes>, StoreError> {
        self.retry(calls, &run, NOT_REACHED.to_vec()).await?;
        let run = calls.lifecycle.store.run_of(&run.id).await?.unwrap_or(run);
        self.shown(calls, &run).await
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
            problem(StatusCode::BAD_GATEWAY, "UPSTREAM_UNREACHABLE", "The provider's own batches cannot be listed.")
        }
    }
}

/// Who carries the calls of a phone number (`GET /v1/convai/phone-numbers/{id}`, `provider`). `None`: a run cannot call from it.
async fn phone_provider(calls: &Calls, account: &Account, id: &str) -> Option<PhoneProvider> {
    let id = percent_encoding::utf8_percent_encode(id, percent_encoding::NON_ALPHANUMERIC);
    let path = format!("/v1/convai/phone-numbers/{id}");
    let provider = match calls.provider.ask(account, Method::GET, &path, None).await {
        Ok(answer) if answer.status() == StatusCode::OK => {
            let body: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
            body["provider"].as_str().unwrap_or_default().to_owned()
        }
        Ok(answer) => {
            debug!(account = %account.name, status = answer.status().as_u16(), "failed to read phone number; batch passed on");
            return None;
        }
        Err(error) => {
            warn!(account = %account.name, %error, "failed to read phone number; batch passed on");
            return None;
        }
    };
    PhoneProvider::parse(&provider)
}

/// What is wrong, in the provider's shape.
fn answer_of(error: LoadError) -> Response<Bytes> {
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
            warn!(%error, "failed to answer batch");
            let why = "The database does not answer; try again.";
            problem(StatusCode::SERVICE_UNAVAILABLE, "STORE_UNAVAILABLE", why)
        }
    }
}
