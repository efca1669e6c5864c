//! The servers of ringfence's own: the database, and the limiter's Redis.

use super::{Depth, LiveCheck, join};
use crate::admission::limiter::GateError;
use crate::admission::limiter::redis::{self, RedisGate, RedisSettings};
use crate::store::Migrate;
use crate::store::postgres::{self, PostgresSettings};
use crate::store::sqlite::inspect::{Inspected, holder, inspect};

impl LiveCheck<'_> {
    /// The line about the database, and its owner.
    pub(super) async fn store(&self) -> (Option<String>, Option<String>) {
        match &self.config.store.postgres {
            Some(settings) => self.postgres(settings).await,
            None => self.sqlite().await,
        }
    }

    async fn sqlite(&self) -> (Option<String>, Option<String>) {
        let path = &self.config.store.path;
        let running = holder(path).await;
        let line = match inspect(path).await {
            Ok(Inspected::Absent) => Some(format!("store {}: does not exist; created at first start", path.display())),
            Ok(Inspected::Ready) => self.schema(&[], "", running.as_deref()),
            Ok(Inspected::Behind(missing)) => self.schema(&missing, "", running.as_deref()),
            Err(error) => {
                self.report.error("E053", None, format!("the store cannot be used: {error}"), "");
                None
            }
        };
        (line, running)
    }

    async fn postgres(&self, settings: &PostgresSettings) -> (Option<String>, Option<String>) {
        match postgres::inspect::inspect(settings).await {
            Ok(found) => {
                let pooler = if found.server.pooled { " behind a transaction pooler" } else { "" };
                let server = format!("PostgreSQL {}{pooler}, ", found.server.version);
                self.ahead_secs.borrow_mut().insert(settings.shown(), found.server.ahead_secs);
                if found.server.fsync == "off" {
                    let title = format!("store {}: fsync is off: a crash of its machine loses calls", settings.shown());
                    self.report.warning("W014", None, title, "set fsync = on in postgresql.conf");
                }
                (self.schema(&found.missing, &server, found.holder.as_deref()), found.holder)
            }
            Err(why) => {
                self.report.error("E053", None, format!("the store cannot be used: {why}"), "");
                (None, None)
            }
        }
    }

    fn schema(&self, missing: &[i64], server: &str, running: Option<&str>) -> Option<String> {
        let shown = self.config.store.shown();
        let running = running.map(|who| format!(", in use by {who}")).unwrap_or_default();
        if missing.is_empty() {
            return Some(format!("store {shown}: {server}its schema is up to date{running}"));
        }
        if self.config.store.migrate_on_start == Migrate::Run {
            let versions = join(missing);
            return Some(format!(
                "store {shown}: {server}lacks migration {versions}, which the next start applies{running}"
            ));
        }
        let title = format!("store {shown} lacks migration {}, and store.migrate_on_start is false", join(missing));
        self.report.error("E053", None, title, "run `ringfence migrate up`");
        None
    }

    pub(super) async fn redis(&self, settings: &RedisSettings) -> Vec<String> {
        let shown = settings.shown();
        let help = "look at gate.redis_url, at the network and at the server; until it answers, gate.on_outage says who decides";
        let away = |why: String| self.report.error("E055", None, format!("gate {shown}: {why}"), help);
        let gate = match RedisGate::new(settings.clone()) {
            Ok(gate) => gate,
            Err(why) => {
                away(why);
                return vec![];
            }
        };
        let mut lines = vec![];
        match gate.inspect().await {
            Ok(problems) if problems.is_empty() => {
                lines.push(format!("gate {shown}: pool {}, no risk of losing leases", settings.pool));
            }
            Ok(problems) => {
                for problem in problems {
                    let title = format!("gate {shown} cannot be relied on: {}", problem.what);
                    self.report.error("E055", None, title, &problem.hint);
                }
            }
            Err(error) => {
                away(error.to_string());
                return lines;
            }
        }
        if self.depth == Depth::Doctor {
            lines.extend(self.observed(&shown, gate.observe().await));
        }
        lines
    }

    /// The clock of the limiter's Redis, and what it keeps on disk.
    fn observed(&self, shown: &str, observed: Result<redis::Observed, GateError>) -> Option<String> {
        let observed = match observed {
            Ok(observed) => observed,
            Err(error) => return Some(format!("gate {shown}: its clock and its persistence were not read: {error}")),
        };
        self.ahead_secs.borrow_mut().insert(shown.to_owned(), observed.ahead_secs);
        if let Some(what) = observed.failed() {
            let title = format!("gate {shown}: its last {what} could not be written");
            self.record_why(&title, "Redis rejects every write until one succeeds, and the limiter is unavailable");
            let help = "look at the disk and the log of Redis; the gate needs no persistence: it may be off";
            self.report.warning("W032", None, title, help);
        }
        let kept = match observed.append_only {
            Some(true) => "it writes an append-only file",
            Some(false) => "it writes no append-only file",
            None => return None,
        };
        Some(format!("gate {shown}: {kept}; the gate needs none: its state is rebuilt from the database"))
    }
}
