//! `ringfence businesses`: lists, imports and exports businesses.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Subcommand, ValueEnum};
use http::Method;
use serde_json::{Map, Value, json};

use super::admin_client::{AdminCommand, path_of, refused};
use super::outcome::Outcome;
use super::text::{field, list, table};

/// CSV columns with lists, separated by semicolons.
const LISTS: [&str; 3] = ["agent_ids", "phone_numbers", "api_key_sha256"];
/// CSV columns with numbers.
const NUMBERS: [&str; 3] = ["max_calls", "retention_days", "reserve_for_direct"];
/// CSV columns with JSON.
const OBJECTS: [&str; 2] = ["when_full", "destinations"];
/// The columns of an exported CSV file, in order.
const COLUMNS: [&str; 11] = [
    "id",
    "plan",
    "max_calls",
    "agent_ids",
    "phone_numbers",
    "api_key_sha256",
    "when_full",
    "transcripts",
    "retention_days",
    "reserve_for_direct",
    "destinations",
];
/// Maximum bad rows printed.
const BAD_ROWS: usize = 50;

pub(super) type Businesses = AdminCommand<Act>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Csv,
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Act {
    /// List all businesses, with their open calls
    List {
        /// Only those whose id, agents or numbers contain this text
        #[arg(long, value_name = "TEXT")]
        search: Option<String>,
    },
    /// Show one business
    Show {
        /// The business id
        id: String,
    },
    /// Create or replace all businesses of a file (.csv or .json), or none of them
    Import {
        /// The file; - is standard input, as JSON
        file: PathBuf,
    },
    /// Write the businesses that were created at run time
    Export {
        /// The format
        #[arg(long, value_enum, default_value_t = Format::Csv)]
        format: Format,
        /// Include those of the config file
        #[arg(long)]
        all: bool,
        /// The file to write [default: standard output]
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

impl Businesses {
    pub(super) async fn run(self) -> Outcome {
        match &self.act {
            Act::List { search } => {
                let known = self.admin.ask(Method::GET, "/api/businesses", None).await?;
                if self.json && search.is_none() {
                    println!("{known}");
                    return Ok(ExitCode::SUCCESS);
                }
                let fits = |one: &&Value| search.as_ref().is_none_or(|text| one.to_string().contains(text.as_str()));
                let found: Vec<&Value> = list(&known, "businesses").iter().filter(fits).collect();
                if self.json {
                    println!("{}", json!({"businesses": found}));
                    return Ok(ExitCode::SUCCESS);
                }
                print!("{}", render(&found, &known["up"]));
            }
            Act::Show { id } => {
                let shown = self.admin.ask(Method::GET, &path_of("/api/businesses", id), None).await?;
                println!("{}", if self.json { shown.to_string() } else { serde_json::to_string_pretty(&shown)? });
            }
            Act::Import { file } => return self.import(file).await,
            Act::Export { format, all, output } => {
                let known = self.admin.ask(Method::GET, "/api/businesses", None).await?;
                let chosen = list(&known, "businesses").iter().filter(|one| *all || one["put"] == true);
                let rows: Vec<Map<String, Value>> = chosen.filter_map(|one| Some(lean(one.as_object()?))).collect();
                let text = match format {
                    Format::Json => serde_json::to_string_pretty(&json!({"businesses": rows}))? + "\n",
                    Format::Csv => to_csv(&rows)?,
                };
                match output {
                    Some(path) => std::fs::write(path, text).with_context(|| path.display().to_string())?,
                    None => print!("{text}"),
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn import(&self, file: &Path) -> Outcome {
        let is_csv = file.extension().is_some_and(|ext| ext.eq_ignore_ascii_case("csv"));
        let text = match file.to_str() {
            Some("-") => std::io::read_to_string(std::io::stdin())?,
            _ => std::fs::read_to_string(file).with_context(|| file.display().to_string())?,
        };
        let body = match is_csv {
            true => json!({"businesses": from_csv(&text).with_context(|| file.display().to_string())?}),
            false => serde_json::from_str(&text).with_context(|| format!("{}: no JSON", file.display()))?,
        };
        let (status, answer) = self.admin.send(Method::PUT, "/api/businesses", Some(body)).await?;
        let bad = list(&answer, "rows");
        if !bad.is_empty() && !self.json {
            for one in bad.iter().take(BAD_ROWS) {
                let row = one["row"].as_u64().unwrap_or(0) + u64::from(is_csv);
                let what = if is_csv { "line" } else { "business" };
                eprintln!("{what} {row} ({}): {}", field(one, "id"), field(one, "message"));
            }
            if bad.len() > BAD_ROWS {
                eprintln!("… and {} more", bad.len() - BAD_ROWS);
            }
        }
        if self.json {
            println!("{answer}");
            return Ok(if status.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        if !status.is_success() {
            return Err(refused(status, &answer).into());
        }
        println!(
            "{} businesses imported, {} of them new. From now on {}.",
            answer["put"],
            answer["new"],
            field(&answer, "note")
        );
        Ok(ExitCode::SUCCESS)
    }
}

/// A business as written by an operator: without unset fields, and without its origin.
fn lean(business: &Map<String, Value>) -> Map<String, Value> {
    let is_set = |value: &Value| !value.is_null() && value.as_array().is_none_or(|all| !all.is_empty());
    let kept = business.iter().filter(|(key, value)| *key != "put" && is_set(value));
    kept.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn render(found: &[&Value], up: &Value) -> String {
    if found.is_empty() {
        return "no businesses\n".to_owned();
    }
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|one| {
            let id = field(one, "id");
            let limit = one["max_calls"].as_u64().map_or("of its plan".to_owned(), |n| n.to_string());
            let count = |key: &str| list(one, key).len().to_string();
            let from = if one["put"] == true { "put" } else { "config" };
            let up = up[id].as_u64().unwrap_or(0).to_string();
            vec![
                id.to_owned(),
                field(one, "plan").to_owned(),
                limit,
                up,
                count("agent_ids"),
                count("phone_numbers"),
                from.to_owned(),
            ]
        })
        .collect();
    let columns =
        [("BUSINESS", 34), ("PLAN", 16), ("MAX CALLS", 11), ("UP", 6), ("AGENTS", 6), ("NUMBERS", 7), ("FROM", 6)];
    table(&columns, &rows)
}

/// The businesses of a CSV file: a header with field names, and a row per business. Empty cells are unset fields.
fn from_csv(text: &str) -> anyhow::Result<Vec<Value>> {
    let mut reader =
        csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.trim_start_matches('\u{feff}').as_bytes());
    let head = reader.headers()?.clone();
    if let Some(unknown) = head.iter().find(|name| !COLUMNS.contains(name)) {
        bail!("unknown column {unknown:?}; columns are {}", COLUMNS.join(", "));
    }
    if !head.iter().any(|name| name == "id") {
        bail!("missing column id");
    }
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record?;
        let line = record.position().map_or(0, csv::Position::line);
        let mut fields = Map::new();
        for (name, cell) in head.iter().zip(&record).filter(|(_, cell)| !cell.is_empty()) {
            let value = if LISTS.contains(&name) {
                let all = cell.split(';').map(str::trim).filter(|one| !one.is_empty());
                all.map(Value::from).collect()
            } else if NUMBERS.contains(&name) {
                let number: u32 =
                    cell.parse().map_err(|_| anyhow::anyhow!("line {line}: {name} is {cell:?}, no number"))?;
                number.into()
            } else if OBJECTS.contains(&name) {
                // A bare word is a string: when_full = busy.
                serde_json::from_str(cell).unwrap_or_else(|_| cell.into())
            } else {
                cell.into()
            };
            fields.insert(name.to_owned(), value);
        }
        rows.push(fields.into());
    }
    Ok(rows)
}

fn to_csv(rows: &[Map<String, Value>]) -> anyhow::Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(COLUMNS)?;
    for row in rows {
        let cell = |name: &&str| match row.get(*name) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(";"),
            Some(other) => other.to_string(),
        };
        writer.write_record(COLUMNS.iter().map(cell))?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_exported_is_what_is_imported() {
        let rows = json!([
            {"id": "acme", "plan": "PRO", "max_calls": 4, "agent_ids": ["a1", "a2"], "phone_numbers": ["+15550001111"],
             "when_full": {"say": {"text": "Busy, \"sorry\"", "language": "en-US"}}, "transcripts": "hash", "retention_days": 9,
             "reserve_for_direct": 2},
            {"id": "birch", "when_full": "busy", "destinations": {"allowed_prefixes": ["+90"]}},
        ]);
        let maps: Vec<Map<String, Value>> =
            rows.as_array().unwrap().iter().map(|r| r.as_object().unwrap().clone()).collect();
        let text = to_csv(&maps).unwrap();
        assert_eq!(Value::from(from_csv(&text).unwrap()), rows, "{text}");
    }

    #[test]
    fn a_file_that_is_no_list_of_businesses_says_where() {
        let wrong = |text: &str| from_csv(text).unwrap_err().to_string();
        assert!(wrong("id,plann\nacme,PRO\n").contains("unknown column \"plann\""));
        assert!(wrong("plan\nPRO\n").contains("missing column id"));
        assert!(wrong("id,max_calls\nacme,3\nbirch,many\n").contains("line 3: max_calls is \"many\""));
        assert_eq!(from_csv("\u{feff}id , plan\n acme , \n").unwrap(), [json!({"id": "acme"})]);
    }
}
