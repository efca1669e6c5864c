//! `ringfence runs`: manages bulk runs of a running sidecar.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::{Subcommand, ValueEnum};
use http::Method;
use serde_json::{Value, json};

use super::admin_client::{AdminCommand, path_of, query, refused};
use super::outcome::Outcome;

/// The interval of progress updates.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Results per page.
const PAGE: u32 = 5_000;
/// Maximum mistakes printed.
const MISTAKES_SHOWN_MAX: usize = 50;
/// Characters of the progress bar.
const BAR_CHARS: u64 = 30;

pub(super) type Runs = AdminCommand<Act>;

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Format {
    Csv,
    Ndjson,
}

impl Format {
    fn as_str(self) -> &'static str {
        match self {
            Format::Csv => "csv",
            Format::Ndjson => "ndjson",
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Act {
    /// Create a run from a description (JSON), and start it with a list of leads
    Create {
        /// The description of the run: docs/runs.md
        description: PathBuf,
        /// The leads: .csv, .ndjson (.jsonl) or .json [default: those in the description]
        #[arg(long, value_name = "FILE")]
        leads: Option<PathBuf>,
        /// An idempotency key: a second create of the business with this key returns the same run
        #[arg(long)]
        key: Option<String>,
        /// Show its progress until it ends
        #[arg(long)]
        watch: bool,
    },
    /// List the latest runs
    List {
        /// Only runs of this business
        #[arg(long)]
        business: Option<String>,
        /// The maximum number
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// Show one run and its progress
    Show {
        /// The run
        id: String,
        /// Repeat until it ends
        #[arg(long)]
        watch: bool,
    },
    /// Stop dialling until the run is resumed. Open calls continue
    Pause {
        /// The run
        id: String,
        /// The reason, for the audit log
        #[arg(long)]
        reason: Option<String>,
    },
    /// Resume a paused run
    Resume {
        /// The run
        id: String,
    },
    /// End a run. Open calls continue
    Cancel {
        /// The run
        id: String,
        /// The reason, for the audit log
        #[arg(long)]
        reason: Option<String>,
    },
    /// Call the leads again that were not reached
    Retry {
        /// The run
        id: String,
        /// The outcomes to retry [default: busy, no_answer, failed, capacity, canceled; also: voicemail]
        #[arg(long, value_delimiter = ',')]
        outcomes: Option<Vec<String>>,
    },
    /// Write the results of a run, one per lead
    Export {
        /// The run
        id: String,
        /// The format
        #[arg(long, value_enum, default_value_t = Format::Csv)]
        format: Format,
        /// The file to write [default: standard output]
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

impl Runs {
    pub(super) async fn run(self) -> Outcome {
        let of = |id: &str| path_of("/api/runs", id);
        match &self.act {
            Act::Create { description, leads, key, watch } => {
                let Some(id) = self.create(description, leads.as_deref(), key.as_deref()).await? else {
                    return Ok(ExitCode::FAILURE);
                };
                if *watch {
                    return self.watch(&of(&id)).await;
                }
            }
            Act::List { business, limit } => {
                let limit = limit.to_string();
                let path = query("/api/runs", &[("limit", Some(&limit)), ("business", business.as_deref())]);
                let listed = self.admin.ask(Method::GET, &path, None).await?;
                print!("{}", if self.json { format!("{listed}\n") } else { table(&listed) });
            }
            Act::Show { id, watch: true } => return self.watch(&of(id)).await,
            Act::Show { id, watch: false } => {
                let run = self.admin.ask(Method::GET, &of(id), None).await?;
                println!("{}", if self.json { run.to_string() } else { described(&run) });
            }
            Act::Pause { id, reason } => self.act(id, "pause", json!({"reason": reason})).await?,
            Act::Resume { id } => self.act(id, "resume", json!({})).await?,
            Act::Cancel { id, reason } => self.act(id, "cancel", json!({"reason": reason})).await?,
            Act::Retry { id, outcomes } => self.act(id, "retry", json!({"outcomes": outcomes})).await?,
            Act::Export { id, format, output } => self.export(&of(id), *format, output.as_deref()).await?,
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn act(&self, id: &str, act: &str, body: Value) -> anyhow::Result<()> {
        let path = format!("{}/{act}", path_of("/api/runs", id));
        let run = self.admin.ask(Method::POST, &path, Some(body)).await?;
        println!("{}", if self.json { run.to_string() } else { described(&run) });
        Ok(())
    }

    /// Creates a run; returns its id. `None`: its leads have mistakes, which were printed.
    async fn create(
        &self,
        description: &Path,
        leads: Option<&Path>,
        key: Option<&str>,
    ) -> anyhow::Result<Option<String>> {
        let mut run: Value = serde_json::from_slice(&read(description)?)
            .map_err(|error| anyhow::anyhow!("{} is not JSON: {error}", description.display()))?;
        if let (Some(key), Some(fields)) = (key, run.as_object_mut()) {
            fields.insert("idempotency_key".to_owned(), key.into());
        }
        if let Some(fields) = run.as_object_mut()
            && let Some(leads) = fields.shift_remove("leads")
        {
            // `leads` must be the last field.
            fields.insert("leads".to_owned(), leads);
        }
        let (mut status, mut made) = self.admin.send(Method::POST, "/api/runs", Some(run)).await?;
        if let (true, Some(leads), Some(id)) = (status.is_success(), leads, made["runId"].as_str())
            && made["state"] != "failed"
        {
            let kind = match leads.extension().and_then(|e| e.to_str()) {
                Some("csv") => "text/csv",
                Some("ndjson" | "jsonl") => "application/x-ndjson",
                Some("json") => "application/json",
                _ => anyhow::bail!("{}: leads are a .csv, .ndjson, .jsonl or .json file", leads.display()),
            };
            let path = format!("{}/leads", path_of("/api/runs", id));
            let (answered, _, body) = self.admin.exchange(Method::POST, &path, kind, read(leads)?.into()).await?;
            (status, made) = (answered, serde_json::from_slice(&body).unwrap_or_default());
        }
        if let Some(mistakes) = made["mistakes"].as_array() {
            for one in mistakes.iter().take(MISTAKES_SHOWN_MAX) {
                eprintln!("line {}: {}", one["line"], one["error"].as_str().unwrap_or_default());
            }
            eprintln!("ringfence: {}", made["message"].as_str().unwrap_or_default());
            return Ok(None);
        }
        if !status.is_success() {
            return Err(refused(status, &made));
        }
        println!("{}", if self.json { made.to_string() } else { described(&made) });
        if made["state"] == "failed" {
            return Ok(None);
        }
        Ok(made["runId"].as_str().map(str::to_owned))
    }

    /// Shows progress until the run has ended or is paused.
    async fn watch(&self, path: &str) -> Outcome {
        let (started, mut first, is_screen) = (Instant::now(), None, std::io::stdout().is_terminal() && !self.json);
        loop {
            let run = self.admin.ask(Method::GET, path, None).await?;
            let done = run["done"].as_u64().unwrap_or(0);
            let first = *first.get_or_insert(done);
            let rate = done.saturating_sub(first) as f64 / started.elapsed().as_secs_f64().max(0.001);
            let line = if self.json { run.to_string() } else { bar(&run, rate) };
            match is_screen {
                true => print!("\r\x1b[2K{line}"),
                false => println!("{line}"),
            }
            std::io::stdout().flush()?;
            let state = run["state"].as_str().unwrap_or_default();
            if !matches!(state, "running" | "loading" | "ready") {
                if is_screen {
                    println!();
                }
                return Ok(if state == "done" { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    async fn export(&self, path: &str, format: Format, output: Option<&Path>) -> anyhow::Result<()> {
        let mut out: Box<dyn std::io::Write> = match output {
            Some(file) => Box::new(std::io::BufWriter::new(std::fs::File::create(file)?)),
            None => Box::new(std::io::stdout().lock()),
        };
        let mut after = 0;
        loop {
            let page = format!("{path}/results?format={}&after={after}&limit={PAGE}", format.as_str());
            let (status, headers, body) = self.admin.exchange(Method::GET, &page, "", Bytes::new()).await?;
            if !status.is_success() {
                return Err(refused(status, &serde_json::from_slice(&body).unwrap_or_default()));
            }
            out.write_all(&body)?;
            match headers.get("x-next-after").and_then(|next| next.to_str().ok()?.parse().ok()) {
                Some(next) => after = next,
                None => return Ok(out.flush()?),
            }
        }
    }
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file).map_err(|error| anyhow::anyhow!("failed to read {}: {error}", file.display()))
}

fn number(run: &Value, name: &str) -> u64 {
    run["counts"][name].as_u64().unwrap_or(0)
}

/// A line such as `[######------] 12 of 20  3 in a call  1.5/s  done at 12:03`.
fn bar(run: &Value, rate: f64) -> String {
    let (all, done) = (run["leads"].as_u64().unwrap_or(0), run["done"].as_u64().unwrap_or(0));
    let full = (done * BAR_CHARS).checked_div(all).unwrap_or(0).min(BAR_CHARS);
    let cells = format!("{}{}", "#".repeat(full as usize), "-".repeat((BAR_CHARS - full) as usize));
    let up = number(run, "calling") + number(run, "dialing");
    let left = all.saturating_sub(done);
    let end = (rate > 0.0 && left > 0).then(|| {
        let secs = (left as f64 / rate).ceil() as i64;
        let now = run["now"].as_str().and_then(|now| now.parse::<jiff::Timestamp>().ok());
        now.and_then(|now| now.checked_add(jiff::SignedDuration::from_secs(secs)).ok())
    });
    let end = end.flatten().map_or(String::new(), |at| format!("  expected end {}", at.strftime("%Y-%m-%d %H:%M:%SZ")));
    let state = run["state"].as_str().unwrap_or_default();
    let why = run["reason"].as_str().map_or(String::new(), |why| format!(": {why}"));
    format!("[{cells}] {done} of {all}  {up} in a call  {rate:.1}/s{end}  {state}{why}")
}

fn described(run: &Value) -> String {
    let text = |key: &str| run[key].as_str().unwrap_or("-");
    let why = run["reason"].as_str().map_or(String::new(), |why| format!(": {why}"));
    let head = format!(
        "{}  {}{why}  {} leads of {} by {} at {}",
        text("runId"),
        text("state"),
        run["leads"].as_u64().unwrap_or(0),
        text("businessId"),
        text("operation"),
        text("account")
    );
    if run["counts"].is_null() {
        return head;
    }
    let counts = ["queued", "dialing", "calling", "completed", "voicemail", "busy", "noAnswer", "failed", "canceled"];
    let counts = counts.map(|name| format!("{} {name}", number(run, name))).join(", ");
    let next = run["nextDialAt"].as_str().map_or(String::new(), |at| format!("\nnobody is due before {at}"));
    format!("{head}\n{counts}{next}")
}

fn table(listed: &Value) -> String {
    let runs = listed["runs"].as_array().map(Vec::as_slice).unwrap_or_default();
    if runs.is_empty() {
        return "no runs\n".to_owned();
    }
    let mut out = format!("{:<31} {:<14} {:<9} {:>8} {:<25} REASON\n", "RUN", "BUSINESS", "STATE", "LEADS", "MADE");
    for run in runs {
        let text = |key: &str| run[key].as_str().unwrap_or_default();
        out += &format!(
            "{:<31} {:<14} {:<9} {:>8} {:<25} {}\n",
            text("runId"),
            text("businessId"),
            text("state"),
            run["leads"].as_u64().unwrap_or(0),
            text("createdAt"),
            text("reason")
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_says_how_far_how_fast_and_until_when() {
        let run = json!({"leads": 20, "done": 10, "state": "running", "now": "2026-11-28T12:00:00Z", "counts": {"calling": 2, "dialing": 1}});
        let shown = bar(&run, 2.0);
        assert_eq!(
            shown,
            "[###############---------------] 10 of 20  3 in a call  2.0/s  expected end 2026-11-28 12:00:05Z  running"
        );
        let paused = json!({"leads": 0, "done": 0, "state": "paused", "reason": "why", "counts": {}});
        assert!(bar(&paused, 0.0).ends_with("0 of 0  0 in a call  0.0/s  paused: why"));
    }
}
