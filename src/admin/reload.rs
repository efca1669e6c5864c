//! `POST /api/reload`: the config is read again, whole or not at all. The program that can do it stands above this layer.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Response, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};

use super::Admin;
use crate::capacity::Compared;
use crate::clock::{UnixMs, rfc3339};
use crate::config::diagnostics::Diagnostic;
use crate::reconcile::SweepReport;
use crate::reply::json_answer;
use crate::store::StoreError;
use crate::webhook::Replayed;

/// Who asks for a reload, for the log and the audit.
#[derive(Debug, Clone)]
pub struct ReloadTrigger {
    /// The subject of a token, `local`, `SIGHUP`, `file`.
    pub who: String,
    /// Where they came from.
    pub from: String,
}

impl ReloadTrigger {
    /// This process itself: a signal, or the file that changed.
    pub fn this_process(who: &str) -> Self {
        Self { who: who.to_owned(), from: "this process".to_owned() }
    }
}

/// The running program, as the console may steer it.
#[async_trait]
pub trait Running: Send + Sync + 'static {
    /// Reads the config again and puts it in force, or keeps the old one and says why.
    async fn reload(self: Arc<Self>, by: ReloadTrigger) -> Reloaded;

    /// Puts the businesses of the store in force, after one was put or deleted.
    async fn take_up_businesses(self: Arc<Self>) -> Result<(), StoreError>;

    /// Compares leases, records and providers now, and mends what differs.
    async fn reconcile(self: Arc<Self>) -> Reconciled;

    /// Applies a webhook once more and delivers it again; or delivers an event of our own again. `None`: there is none.
    async fn replay_event(self: Arc<Self>, id: &str) -> Result<Option<Replayed>, StoreError>;

    /// The console in force: what outlives a reload asks for it anew.
    fn console(&self) -> Admin;

    /// Which config is in force.
    fn in_force(&self) -> InForce;
}

/// What a comparison on demand found and did.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reconciled {
    /// At each account.
    pub accounts: Vec<SweepReport>,
    /// Leases against the record.
    pub gate: Option<Compared>,
    /// Why they could not be compared.
    pub gate_error: Option<String>,
}

/// What came of a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReloadOutcome {
    /// The new config is in force.
    Loaded,
    /// Nothing that it is read from has changed.
    Unchanged,
    /// The new one cannot be used; the old one stays.
    Kept,
    /// It could not be tried: the store does not answer, or the program was not started from a file. The old one stays.
    Failed,
}

impl ReloadOutcome {
    /// The word in answers, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            ReloadOutcome::Loaded => "loaded",
            ReloadOutcome::Unchanged => "unchanged",
            ReloadOutcome::Kept => "kept",
            ReloadOutcome::Failed => "failed",
        }
    }

    /// Whether what is written is in force now.
    pub fn is_ok(self) -> bool {
        matches!(self, ReloadOutcome::Loaded | ReloadOutcome::Unchanged)
    }
}

/// The answer to a reload.
#[derive(Debug, Clone)]
pub struct Reloaded {
    /// What came of it.
    pub came: ReloadOutcome,
    /// Mistakes and warnings of the config that was read.
    pub diagnostics: Vec<Diagnostic>,
    /// The same, drawn as `ringfence check` draws them.
    pub drawn: String,
    /// Why the old one stays, in a line.
    pub reason: Option<String>,
}

/// The config that is in force.
#[derive(Debug, Clone)]
pub struct InForce {
    /// The start of the SHA-256 of its file; none where it came from none.
    pub hash: Option<String>,
    /// Counts policies since the start.
    pub generation: u64,
    /// When it was loaded.
    pub loaded_at: UnixMs,
    /// When the last reload that came to nothing was, and why. Forgotten at the next that succeeds.
    pub last_failed: Option<(UnixMs, String)>,
}

impl InForce {
    /// As `/status` shows it.
    pub fn shown(&self) -> Value {
        let failed = self.last_failed.as_ref();
        json!({
            "hash": self.hash, "generation": self.generation, "loadedAt": rfc3339(self.loaded_at),
            "lastFailedReload": failed.map(|(at, reason)| json!({"at": rfc3339(*at), "reason": reason})),
        })
    }
}

/// The answer over HTTP: 200 when the config that is written is in force, 422 when it cannot be used, 503 when it could not be tried.
pub(super) fn answer(reloaded: &Reloaded, now: &InForce) -> Response<Bytes> {
    let status = match reloaded.came {
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
        "result": reloaded.came.as_str(), "policy": now.hash, "generation": now.generation,
        "message": reloaded.reason, "diagnostics": diagnostics, "drawn": reloaded.drawn,
    });
    json_answer(status, &body)
}
