//! Bulk runs: made, shown, paused, resumed, canceled, retried, exported.

use std::io::Read;

use bytes::{Buf as _, Bytes};
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::auth::Requester;
use super::listing::visible_businesses;
use super::operator::Act;
use super::{Admin, Answer, BODY_BYTES_MAX, Problem, bad, body_of, limit_of, not_found, nothing_here, ok};
use crate::call::Outcome;
use crate::clock::{UnixMs, rfc3339};
use crate::ids::mask_number;
use crate::net::Exchange;
use crate::reply::json_answer;
use crate::runs::leads::{self, Format, LeadsIn, Row, Stopped};
use crate::runs::load::{LoadError, Loaded, Loading};
use crate::runs::spec::Spec;
use crate::store::runs::{JobResult, Run, RunChange, RunCounts, RunState};

/// The longest body with leads, in bytes: it is read piece by piece.
const LEADS_BYTES_MAX: usize = 512 * 1024 * 1024;
/// Rows that go from the reader to the store at once, pieces of a body that wait for the reader, and rows that wait for the store.
const ROWS: usize = 500;
const PIECES: usize = 8;
const WAITING: usize = 4;
/// Results of a page, unless asked otherwise; and at most.
const PAGE: u32 = 1_000;
const PAGE_MAX: u32 = 10_000;

/// A part of a body that its reader hands over.
enum UploadPart {
    /// The fields of the run.
    Head(Map<String, Value>, LeadsIn),
    Rows(Vec<Row>),
}

/// A body as a reader on a thread of its own has it.
struct Pieces {
    from: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.piece.is_empty() {
            match self.from.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let n = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..n]);
        Ok(n)
    }
}

impl From<LoadError> for Problem {
    fn from(error: LoadError) -> Self {
        let message = error.to_string();
        match error {
            LoadError::Invalid(_) => bad(message),
            LoadError::Leads { .. } => Problem::Is(StatusCode::UNPROCESSABLE_ENTITY, "INVALID_LEADS", message),
            LoadError::Conflict(_) => Problem::Is(StatusCode::CONFLICT, "RUN_CONFLICT", message),
            LoadError::Unknown => not_found("no run of this id is on record"),
            LoadError::Store(error) => Problem::Store(error),
        }
    }
}

/// An answer to a list of leads: every mistake by its line.
fn answered(loaded: Result<Loaded, LoadError>) -> Answer {
    match loaded {
        Ok(loaded) => {
            let status = if loaded.known { StatusCode::OK } else { StatusCode::CREATED };
            Ok(json_answer(status, &run_json(&loaded.run, None)))
        }
        Err(LoadError::Leads { count, mistakes }) => {
            let message = LoadError::Leads { count, mistakes: vec![] }.to_string();
            let body = json!({"error": "INVALID_LEADS", "message": message, "count": count, "mistakes": mistakes});
            Ok(json_answer(StatusCode::UNPROCESSABLE_ENTITY, &body))
        }
        Err(error) => Err(error.into()),
    }
}

/// Receives the parts of an upload and loads them.
struct RunUpload<'a> {
    admin: &'a Admin,
    who: &'a Requester,
    key: Option<String>,
    loading: Option<Loading>,
    leads_follow: bool,
}

impl RunUpload<'_> {
    /// Whether more is wanted.
    async fn take(&mut self, part: UploadPart) -> Result<bool, Problem> {
        let Admin { calls, runs, .. } = self.admin;
        match (part, &mut self.loading) {
            (UploadPart::Head(mut head, leads_in), None) => {
                if let Some(key) = &self.key {
                    head.entry("idempotency_key").or_insert_with(|| key.as_str().into());
                }
                let spec =
                    serde_json::from_value::<Spec>(Value::Object(head)).map_err(|e| bad(format!("the run: {e}")))?;
                if spec.batch.is_some() {
                    return Err(bad("the run: unknown field `batch`"));
                }
                if !self.who.sees(spec.business.as_str()) {
                    return Err(not_found("no such business"));
                }
                let begun = runs.begin(calls, spec, leads_in).await?;
                let run = begun.run();
                let act = Act::new("create run", &run.id);
                let after = json!({"business": run.business, "account": run.account, "operation": begun.operation()});
                self.admin.audit(self.who, act.changes(Value::Null, after)).await?;
                let wants = begun.wants_leads();
                (self.loading, self.leads_follow) = (Some(begun), wants && leads_in == LeadsIn::Create);
                Ok(wants)
            }
            (UploadPart::Rows(rows), Some(loading)) => Ok(loading.take(rows).await.map(|()| true)?),
            // What is no run has no leads either.
            (UploadPart::Rows(rows), None) => {
                Err(bad(rows.into_iter().find_map(|row| row.lead.err()).unwrap_or_default()))
            }
            (UploadPart::Head(..), Some(_)) => Ok(true),
        }
    }
}

impl Admin {
    pub(super) async fn route_runs(
        &self,
        exchange: &mut Exchange,
        method: &Method,
        rest: &[&str],
        who: &Requester,
    ) -> Answer {
        match (method, rest) {
            (&Method::GET, []) => self.list_runs(exchange.query().unwrap_or_default(), who).await,
            (&Method::POST, []) => self.create_run(exchange, who).await,
            (&Method::GET, [id]) => {
                let run = self.run_of(id, who).await?;
                let counts = self.calls.lifecycle.store.run_counts(&run.id).await?;
                let now_ms = self.calls.lifecycle.clock.now_ms();
                let mut shown = run_json_at(&run, Some(counts), now_ms);
                shown["now"] = rfc3339(now_ms).into();
                ok(&shown)
            }
            (&Method::POST, [id, "leads"]) => self.load_run(exchange, id, who).await,
            (&Method::GET, [id, "results"]) => {
                let run = self.run_of(id, who).await?;
                self.run_results(&run, exchange.query().unwrap_or_default(), who).await
            }
            (&Method::POST, [id, act @ ("pause" | "resume" | "cancel" | "retry")]) => {
                let run = self.run_of(id, who).await?;
                let body = exchange.read_body(BODY_BYTES_MAX).await.map_err(|e| bad(e.to_string()))?;
                self.act_on_run(&run, act, &body_of(&body)?, who).await
            }
            _ => Err(nothing_here()),
        }
    }

    /// A run that this requester may see.
    async fn run_of(&self, id: &str, who: &Requester) -> Result<Run, Problem> {
        let run = self.calls.lifecycle.store.run_of(id).await?;
        run.filter(|run| who.sees(&run.business)).ok_or_else(|| not_found("no run of this id is on record"))
    }

    async fn list_runs(&self, query: &str, who: &Requester) -> Answer {
        let businesses = visible_businesses(query, who);
        let runs = self.calls.lifecycle.store.latest_runs(businesses, limit_of(query)).await?;
        ok(&json!({"runs": runs.iter().map(|run| run_json(run, None)).collect::<Vec<_>>()}))
    }

    async fn create_run(&self, exchange: &mut Exchange, who: &Requester) -> Answer {
        let key = exchange.header("idempotency-key").map(str::to_owned);
        let mut intake = RunUpload { admin: self, who, key, loading: None, leads_follow: false };
        let read = self.read_leads(exchange, None, &mut intake).await;
        match (read, intake.loading) {
            (Ok(()), Some(loading)) if intake.leads_follow => answered(loading.finish().await),
            (Ok(()), Some(loading)) => answered(Ok(loading.without_leads())),
            (Ok(()), None) => Err(bad("the body must be a run")),
            (Err(problem), loading) => {
                if let Some(loading) = loading {
                    loading.discard().await;
                }
                Err(problem)
            }
        }
    }

    async fn load_run(&self, exchange: &mut Exchange, id: &str, who: &Requester) -> Answer {
        let run = self.run_of(id, who).await?;
        let kind = exchange.header("content-type").unwrap_or_default();
        let format =
            Format::of(kind).ok_or_else(|| bad("leads are text/csv, application/x-ndjson or application/json"))?;
        self.audit(who, Act::new("load run", &run.id)).await?;
        let loading = Some(self.runs.begin_leads(&self.calls, run).await?);
        let mut intake = RunUpload { admin: self, who, key: None, loading, leads_follow: true };
        let read = self.read_leads(exchange, Some(format), &mut intake).await;
        let Some(loading) = intake.loading else { return Err(bad("the body must be a list of leads")) };
        match read {
            Ok(()) => answered(loading.finish().await),
            Err(problem) => {
                loading.discard().await;
                Err(problem)
            }
        }
    }

    /// Reads a body piece by piece on a thread of its own, and hands over what is in it, until no more is wanted.
    async fn read_leads(
        &self,
        exchange: &mut Exchange,
        format: Option<Format>,
        intake: &mut RunUpload<'_>,
    ) -> Result<(), Problem> {
        let (feed, from) = mpsc::channel(PIECES);
        let (hand, mut parts) = mpsc::channel(WAITING);
        let pieces = Pieces { from, piece: Bytes::new() };
        let reading = tokio::task::spawn_blocking(move || read_all(format, pieces, &hand));
        let feeding = async {
            let mut bytes = 0;
            while let Some(piece) = exchange.next_piece().await.map_err(|e| bad(e.to_string()))? {
                bytes += piece.len();
                if bytes > LEADS_BYTES_MAX {
                    return Err(bad(format!("a list of leads has at most {LEADS_BYTES_MAX} bytes")));
                }
                if feed.send(piece).await.is_err() {
                    // The reader wants no more; the rest of the body is of no use.
                    break;
                }
            }
            drop(feed);
            Ok(())
        };
        let taking = async {
            let mut taken = Ok(true);
            while let (Ok(true), Some(one)) = (&taken, parts.recv().await) {
                taken = intake.take(one).await;
            }
            // Else the reader waits for ever.
            parts.close();
            while parts.recv().await.is_some() {}
            taken.map(drop)
        };
        let (fed, taken) = tokio::join!(feeding, taking);
        let read = reading.await;
        taken?;
        fed?;
        read.map_err(|error| Problem::Is(StatusCode::INTERNAL_SERVER_ERROR, "FAILED", error.to_string()))
    }

    async fn run_results(&self, run: &Run, query: &str, who: &Requester) -> Answer {
        let asked = |name: &str| {
            form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name).map(|(_, v)| v.into_owned())
        };
        let after = asked("after").and_then(|text| text.parse().ok()).unwrap_or(0);
        let limit = asked("limit").and_then(|text| text.parse().ok()).unwrap_or(PAGE).clamp(1, PAGE_MAX);
        let results = self.calls.lifecycle.store.job_results(&run.id, after, limit).await?;
        let next = (results.len() == limit as usize).then(|| results.last().map(|one| one.job.seq)).flatten();
        let rows: Vec<Value> = results.iter().map(|one| result(one, who.whole_numbers)).collect();
        let (kind, body) = match asked("format").as_deref() {
            None | Some("json") => return ok(&json!({"results": rows, "next": next})),
            Some("ndjson") => ("application/x-ndjson", rows.iter().map(|row| format!("{row}\n")).collect::<String>()),
            Some("csv") => ("text/csv", csv(&rows, after == 0).map_err(bad)?),
            Some(_) => return Err(bad("format is one of json, ndjson, csv")),
        };
        let mut answer = Response::new(Bytes::from(body));
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        if let Some(next) = next {
            answer.headers_mut().insert("x-next-after", HeaderValue::from(next));
        }
        Ok(answer)
    }

    async fn act_on_run(&self, run: &Run, act: &str, body: &Value, who: &Requester) -> Answer {
        let (store, now_ms) = (&self.calls.lifecycle.store, self.calls.lifecycle.clock.now_ms());
        let reason = body["reason"].as_str();
        let (what, to) = match act {
            "pause" => ("pause run", RunState::Paused),
            "resume" => ("resume run", RunState::Running),
            "cancel" => ("cancel run", RunState::Canceled),
            _ => ("retry run", RunState::Running),
        };
        let outcomes = if act == "retry" { retried(body)? } else { vec![] };
        let (before, after) = (json!({"state": run.state}), json!({"state": to}));
        self.audit(who, Act::new(what, &run.id).because(reason).changes(before, after)).await?;
        let jobs = match act {
            "cancel" => Some(self.runs.cancel(&self.calls, &run.id).await?.ok_or_else(|| conflict(run, act))?),
            "retry" => Some(self.runs.retry(&self.calls, run, outcomes).await?.ok_or_else(|| conflict(run, act))?),
            _ => {
                // A run that its breaker paused can be paused for good: it no longer resumes by itself.
                let from: &[_] = match act {
                    "pause" if run.resume_at.is_some() => &[RunState::Running, RunState::Paused],
                    "pause" => &[RunState::Running],
                    _ => &[RunState::Paused],
                };
                let paused = (act == "pause").then(|| reason.unwrap_or("an operator paused it").to_owned());
                let change = RunChange { reason: paused, ..RunChange::of(&run.id, from, to, now_ms) };
                if !store.move_run(change, self.calls.lifecycle.notice).await? {
                    return Err(conflict(run, act));
                }
                None
            }
        };
        self.runs.changed();
        let run = store.run_of(&run.id).await?.ok_or_else(|| not_found("no run of this id is on record"))?;
        let mut shown = run_json(&run, Some(store.run_counts(&run.id).await?));
        shown["jobs"] = json!(jobs);
        ok(&shown)
    }
}

fn conflict(run: &Run, act: &str) -> Problem {
    let message = format!("a run that is {} cannot {act}", run.state.as_str());
    Problem::Is(StatusCode::CONFLICT, "RUN_STATE", message)
}

/// The body of a retry.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RetryBody {
    /// The outcomes whose leads are called again; none: all that were not reached.
    outcomes: Option<Vec<Outcome>>,
    #[serde(rename = "reason")]
    _reason: Option<String>,
}

/// The outcomes whose leads are called again. A body that is not understood calls nobody.
fn retried(body: &Value) -> Result<Vec<Outcome>, Problem> {
    let body: Option<RetryBody> = Deserialize::deserialize(body).map_err(|e| bad(format!("the body: {e}")))?;
    let all = || vec![Outcome::Busy, Outcome::NoAnswer, Outcome::Failed, Outcome::Capacity, Outcome::Canceled];
    Ok(body.and_then(|body| body.outcomes).unwrap_or_else(all))
}

/// Reads a body to its end.
fn read_all(format: Option<Format>, pieces: Pieces, hand: &mpsc::Sender<UploadPart>) {
    let mut rows = Vec::with_capacity(ROWS);
    let give = |part: UploadPart| hand.blocking_send(part).map_err(|_| Stopped);
    let mut take = |row: Row| {
        rows.push(row);
        if rows.len() < ROWS { Ok(()) } else { give(UploadPart::Rows(std::mem::take(&mut rows))) }
    };
    let read = match format {
        Some(format) => leads::read(format, pieces, &mut take),
        None => leads::read_with_head(pieces, |head, leads_in| give(UploadPart::Head(head, leads_in)), &mut take),
    };
    if read.is_ok() && !rows.is_empty() {
        // Whoever takes them may have gone.
        let _ = give(UploadPart::Rows(rows));
    }
}

/// A run as its operators see it.
pub(super) fn run_json(run: &Run, counts: Option<RunCounts>) -> Value {
    let spec: Value = serde_json::from_str(&run.spec).unwrap_or_default();
    let time = |at: Option<UnixMs>| at.map(rfc3339);
    let mut shown = json!({
        "runId": run.id, "businessId": run.business, "account": run.account, "operation": spec["operation"], "name": run.name,
        "state": run.state, "reason": run.reason, "leads": run.total, "startAt": rfc3339(run.start_at),
        "createdAt": rfc3339(run.created_at), "updatedAt": rfc3339(run.updated_at), "finishedAt": time(run.finished_at),
        "resumeAt": time(run.resume_at), "idempotencyKey": run.key, "retries": run.retries,
    });
    if let Some(counts) = counts {
        shown["counts"] = serde_json::to_value(counts).unwrap_or_default();
        shown["done"] = counts.done().into();
    }
    shown
}

/// A run as JSON, with when it dials next: null where somebody is due, since it waits for a slot alone.
pub(super) fn run_json_at(run: &Run, counts: Option<RunCounts>, now_ms: UnixMs) -> Value {
    let next_dial = counts.and_then(|counts| counts.next_due).map(|at| at.max(run.start_at));
    let mut shown = run_json(run, counts);
    shown["nextDialAt"] = next_dial.filter(|at| *at > now_ms).map(rfc3339).into();
    shown
}

/// A job's result. The names are the columns of the CSV.
fn result(one: &JobResult, whole: bool) -> Value {
    let job = &one.job;
    let time = |at: Option<UnixMs>| at.map(rfc3339);
    let id = |kind: &str| one.ids.get(kind);
    let talked = one.answered_at.zip(one.ended_at).map(|(from, to)| (to - from) / 1000);
    let lead: Value = if whole { serde_json::from_str(&job.lead).unwrap_or_default() } else { Value::Null };
    json!({
        "lead": job.seq, "number": if whole { job.number.clone() } else { mask_number(&job.number) },
        "state": job.state, "outcome": job.outcome, "attempts": job.attempts, "call_id": job.call,
        "call_sid": id("call_sid"), "conversation_id": id("conversation_id"), "sip_call_id": id("sip_call_id"),
        "started_at": time(one.started_at), "answered_at": time(one.answered_at), "ended_at": time(one.ended_at),
        "duration_secs": one.duration_secs.or(talked), "cost": one.cost, "cost_unit": one.cost_unit,
        "error": job.error, "fields": lead,
    })
}

fn csv(rows: &[Value], with_header: bool) -> Result<String, String> {
    let mut writer = ::csv::Writer::from_writer(vec![]);
    let fields = |row: &Value| row.as_object().cloned().unwrap_or_default();
    if with_header && let Some(first) = rows.first() {
        writer.write_record(fields(first).keys()).map_err(|e| e.to_string())?;
    }
    for row in rows {
        let cells = fields(row).into_iter().map(|(_, value)| match value {
            Value::Null => String::new(),
            Value::String(text) => inert(text),
            other => other.to_string(),
        });
        writer.write_record(cells).map_err(|e| e.to_string())?;
    }
    let bytes = writer.into_inner().map_err(|e| e.to_string())?;
    String::from_utf8(bytes).map_err(|e| e.to_string())
}

/// A text that no spreadsheet takes for a formula. A telephone number is none.
fn inert(text: String) -> String {
    let is_number = text.strip_prefix('+').is_some_and(|rest| rest.chars().all(|c| c.is_ascii_digit() || c == '•'));
    if text.starts_with(['=', '+', '-', '@', '\t', '\r']) && !is_number { format!("'{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_csv_has_one_header_and_no_formulas() {
        let rows = [json!({"a": "=1+1", "b": null, "c": 2.5}), json!({"a": "+155••••••01", "b": "x,\"y\"", "c": null})];
        assert_eq!(csv(&rows, true).unwrap(), "a,b,c\n'=1+1,,2.5\n+155••••••01,\"x,\"\"y\"\"\",\n");
        assert_eq!(csv(&rows[1..], false).unwrap(), "+155••••••01,\"x,\"\"y\"\"\",\n");
        assert_eq!(csv(&[], true).unwrap(), "");
    }
}
