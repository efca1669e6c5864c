//! `POST /api/reload`: the config is read again, as a whole or not at all. The program that does it is in a layer above.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Response, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};

use super::Admin;
use crate::admission::Compared;
use crate::calls::reconcile::SweepReport;
use crate::clock::{UnixMs, rfc3339};
use crate::config::diagnostics::Diagnostic;
use crate::metrics::ReloadOutcome;
use crate::reply::json_answer;
use crate::store::StoreError;
use crate::webhooks::Replayed;

/// The trigger of a reload, for the log and the audit.
#[derive(Debug, Clone)]
pub struct ReloadTrigger {
    /// The subject of a token, `local`, `SIGHUP`, `file`.
    pub who: String,
    /// The origin.
    pub from: String,
}

impl ReloadTrigger {
    /// A trigger in this process: a signal, or a changed file.
    pub fn this_process(who: &str) -> Self {
        Self { who: who.to_owned(), from: "this process".to_owned() }
    }
}

/// The running program's interface to this handler.
#[async_trait]
pub trait Running: Send + Sync + 'static {
    /// Reads the config again and applies it, or keeps the old one and returns why.
    async fn reload(self: Arc<Self>, by: ReloadTrigger) -> Reloaded;

    /// Applies the businesses in the store, after one was created, replaced or deleted.
    async fn refresh_businesses(self: Arc<Self>) -> Result<(), StoreError>;

    /// Compares leases, call records and providers now, and repairs differences.
    async fn reconcile(self: Arc<Self>) -> Reconciled;

    /// Applies a webhook again and repeats its deliveries; or repeats one of ringfence's own events. `None`: there is none.
    async fn replay_event(self: Arc<Self>, id: &str) -> Result<Option<Replayed>, StoreError>;

    /// The current handler, for tasks that outlive a reload.
    fn admin(&self) -> Admin;

    /// Returns the config in force.
    fn config_status(&self) -> ConfigStatus;
}

/// The result of a comparison on demand.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reconciled {
    /// At each account.
    pub accounts: Vec<SweepReport>,
    /// The comparison of leases with call records.
    pub gate: Option<Compared>,
    /// The reason why they could not be compared.
    pub gate_error: Option<String>,
}

/// The answer to a reload.
#[derive(Debug, Clone)]
pub struct Reloaded {
    /// The outcome.
    pub outcome: ReloadOutcome,
    /// Mistakes and warnings of the config that was read.
    pub diagnostics: Vec<Diagnostic>,
    /// The mistakes, drawn as `ringfence check` draws them.
    pub drawn: String,
    /// The reason why the old one stays, in one line.
    pub reason: Option<String>,
}

/// The config that is in force.
#[derive(Debug, Clone)]
pub struct ConfigStatus {
    /// The start of the SHA-256 of its file; `None` without a file.
    pub hash: Option<String>,
    /// Counts policies since the start.
    pub generation: u64,
    /// The time at which it was loaded.
    pub loaded_at: UnixMs,
    /// Time and reason of the last failed reload. Cleared by the next success.
    pub last_failed: Option<(UnixMs, String)>,
}

impl ConfigStatus {
    /// Returns the JSON of the config in force for `/status`.
    pub fn to_json(&self) -> Value {
        let failed = self.last_failed.as_ref();
        json!({
            "hash": self.hash, "generation": self.generation, "loadedAt": rfc3339(self.loaded_at),
            "lastFailedReload": failed.map(|(at, reason)| json!({"at": rfc3339(*at), "reason": reason})),
        })
    }
}

/// The HTTP response: 200 when the config in the file is in force, 422 when it is invalid, 503 when the reload could not be
/// attempted.
pub(super) fn answer(reloaded: &Reloaded, now: &ConfigStatus) -> Response<Bytes> {
    let status = match reloaded.outcome {
        ReloadOutcome::Loaded | ReloadOutcome::Unchanged => StatusCode::OK,
        ReloadOutcome::Kept => StatusCode::UNPROCESSABLE_ENTITY,
        ReloadOutcome::Failed => StatusCode::SERVICE_UNAVAILABLE,
    };
    let diagnostics: Vec<Value> = reloaded
        .diagnostics
        .iter()
        .map(|d| {
            json!({
                "code": d.code, "severity": format!("{:?}", d.severity).to_lowercase(), "title": d.title,
                "span": d.span.as_ref().map(|s| [s.start, s.end]), "help": d.help,
            })
        })
        .collect();
    let body = json!({
        "result": reloaded.outcome.as_str(), "policy": now.hash, "generation": now.generation,
        "message": reloaded.reason, "diagnostics": diagnostics, "drawn": reloaded.drawn,
    });
    json_answer(status, &body)
}
