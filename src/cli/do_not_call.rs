//! `ringfence do-not-call`: manages the do-not-call lists of a running sidecar.

use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::admin_client::{AdminClient, path_of, refused};
use super::outcome::Outcome;
use crate::destinations::{NumberSet, key_of};

/// Numbers per request.
const NUMBERS_PER_REQUEST: usize = 50_000;
/// Numbers per page.
const PAGE: u32 = 1_000;
/// Maximum bad rows printed.
const MISTAKES_SHOWN_MAX: usize = 50;

#[derive(Debug, Args)]
pub(super) struct DoNotCall {
    #[command(flatten)]
    admin: AdminClient,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    /// The list of this business [default: the global list]
    #[arg(long, global = true, value_name = "ID")]
    business: Option<String>,
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, Subcommand)]
enum Act {
    /// Add numbers
    Add {
        /// Numbers with their country code, as in +905321234567
        #[arg(required = true, value_name = "NUMBER")]
        numbers: Vec<String>,
        /// The reason, for the list and the audit log
        #[arg(long)]
        reason: Option<String>,
    },
    /// Remove numbers
    Remove {
        /// Numbers with their country code
        #[arg(required = true, value_name = "NUMBER")]
        numbers: Vec<String>,
        /// The reason, for the audit log
        #[arg(long)]
        reason: Option<String>,
    },
    /// Print the list, in the order of its additions
    List,
    /// Add the numbers of a file: one per line, # starts a comment. With a bad line, none are added
    Import {
        /// The file; - is standard input
        file: PathBuf,
        /// The reason, for the list and the audit log
        #[arg(long)]
        reason: Option<String>,
    },
    /// Show which lists contain a number
    Check {
        /// The number with its country code
        number: String,
    },
}

impl DoNotCall {
    pub(super) async fn run(self) -> Outcome {
        match &self.act {
            Act::Add { numbers, reason } => {
                let Some((all, new)) = self.put(numbers.clone(), reason.as_deref()).await? else {
                    return Ok(ExitCode::FAILURE);
                };
                self.print_result(
                    &json!({"put": all, "new": new}),
                    &format!("{all} on {}, {new} of them new", self.list()),
                );
            }
            Act::Remove { numbers, reason } => {
                let body = json!({"numbers": numbers, "reason": reason});
                let Some(answer) = self.change(Method::DELETE, body).await? else { return Ok(ExitCode::FAILURE) };
                let gone = answer["deleted"].as_u64().unwrap_or(0);
                self.print_result(&answer, &format!("{gone} of {} removed from {}", numbers.len(), self.list()));
            }
            Act::Import { file, reason } => {
                let numbers = read(file).with_context(|| format!("{}; nothing stored", file.display()))?;
                let (mut all, mut new) = (0, 0);
                for some in numbers.chunks(NUMBERS_PER_REQUEST) {
                    let Some((put, added)) = self.put(some.to_vec(), reason.as_deref()).await? else {
                        return Ok(ExitCode::FAILURE);
                    };
                    (all, new) = (all + put, new + added);
                }
                self.print_result(
                    &json!({"put": all, "new": new}),
                    &format!("{all} on {}, {new} of them new", self.list()),
                );
            }
            Act::List => self.print().await?,
            Act::Check { number } => {
                let key = key_of(number)
                    .ok_or_else(|| anyhow::anyhow!("{number} is not a telephone number with its country code"))?;
                let path = format!("{}{}", path_of("/api/do-not-call", &format!("+{key}")), self.query('?'));
                let found = self.admin.ask(Method::GET, &path, None).await?;
                let lists: Vec<&str> =
                    found["lists"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                let shown = found["number"].as_str().unwrap_or_default();
                let print_result = match lists.as_slice() {
                    [] => format!("{shown} is on no list"),
                    lists => format!("{shown} is blocked by: {}", lists.join(", ")),
                };
                self.print_result(&found, &print_result);
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    fn print_result(&self, json: &Value, text: &str) {
        println!("{}", if self.json { json.to_string() } else { text.to_owned() });
    }

    fn list(&self) -> String {
        self.business.as_ref().map_or_else(|| "the global list".to_owned(), |id| format!("the list of {id}"))
    }

    /// The list as a query parameter, after `begin`.
    fn query(&self, begin: char) -> String {
        let escaped = |id: &String| form_urlencoded::byte_serialize(id.as_bytes()).collect::<String>();
        self.business.as_ref().map_or_else(String::new, |id| format!("{begin}business={}", escaped(id)))
    }

    /// Adds numbers; returns how many were new. `None`: some are malformed, and were printed.
    async fn put(&self, numbers: Vec<String>, reason: Option<&str>) -> anyhow::Result<Option<(u64, u64)>> {
        let answer = self.change(Method::PUT, json!({"numbers": numbers, "reason": reason})).await?;
        let count = |answer: &Value, name: &str| answer[name].as_u64().unwrap_or(0);
        Ok(answer.map(|answer| (count(&answer, "put"), count(&answer, "new"))))
    }

    async fn change(&self, method: Method, body: Value) -> anyhow::Result<Option<Value>> {
        let path = format!("/api/do-not-call{}", self.query('?'));
        let (status, answer) = self.admin.send(method, &path, Some(body)).await?;
        if let Some(rows) = answer["rows"].as_array() {
            for one in rows.iter().take(MISTAKES_SHOWN_MAX) {
                eprintln!("number {}: {}", one["row"], one["message"].as_str().unwrap_or_default());
            }
            eprintln!("ringfence: {}", answer["message"].as_str().unwrap_or_default());
            return Ok(None);
        }
        if status.is_success() { Ok(Some(answer)) } else { Err(refused(status, &answer)) }
    }

    async fn print(&self) -> anyhow::Result<()> {
        let (mut after, mut printed) = (0, 0_u64);
        loop {
            let path = format!("/api/do-not-call?limit={PAGE}&after={after}{}", self.query('&'));
            let page = self.admin.ask(Method::GET, &path, None).await?;
            for one in page["numbers"].as_array().into_iter().flatten() {
                let text = |name: &str| one[name].as_str().unwrap_or_default();
                let line = format!("{:<17} {:<25} {}", text("number"), text("addedAt"), text("reason"));
                println!("{}", if self.json { one.to_string() } else { line.trim_end().to_owned() });
                printed += 1;
            }
            match page["next"].as_i64() {
                Some(next) => after = next,
                None => break,
            }
        }
        if printed == 0 && !self.json {
            println!("no number is on {}", self.list());
        }
        Ok(())
    }
}

/// The distinct numbers of a file.
fn read(file: &Path) -> anyhow::Result<Vec<String>> {
    let from: Box<dyn std::io::Read> = match file.to_str() {
        Some("-") => Box::new(std::io::stdin().lock()),
        _ => Box::new(std::fs::File::open(file)?),
    };
    let mut from = BufReader::new(from);
    let set = NumberSet::read(from.by_ref()).map_err(anyhow::Error::msg)?;
    Ok(set.iter().map(|key| format!("+{key}")).collect())
}
