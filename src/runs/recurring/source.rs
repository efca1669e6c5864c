//! The sources of the leads of recurring runs: a query on a database of the app's, or an address of the app. The operator names them in
//! the config; a tenant only says which.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT};
use http::{Request, StatusCode, Uri};
use serde_json::Value;
use tokio::sync::mpsc::{self, Sender};
use ulid::Ulid;

use super::super::leads::{self, Format, Row, Stopped};
use crate::calls::Calls;
use crate::clock::{UnixMs, rfc3339};
use crate::ids::BusinessId;
use crate::net::UpstreamError;
use crate::provider::account::join_url;
use crate::provider::secret::Secret;
use crate::provider::sign::{sign_standard, standard_key};
use crate::store::postgres::{self, PostgresSettings};

/// The longest list of an address, in bytes.
const LIST_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Rows that are handed over at once, and batches that wait.
const ROWS_AT_ONCE: usize = 500;
const BATCHES_WAITING: usize = 4;

/// Sources by name.
pub type Sources = BTreeMap<String, Arc<LeadSource>>;

/// The author of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Author {
    /// An operator, or a program with a token for all businesses.
    Operator,
    /// A tenant, with a token for some businesses.
    Tenant,
}

/// A source of leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeadSource {
    /// The source's name.
    pub name: String,
    /// The kind of the source.
    pub kind: SourceKind,
    /// Businesses that may use it; none: all.
    pub businesses: Option<Vec<BusinessId>>,
    /// The time that a read may take.
    pub timeout: Duration,
}

/// The kind of a source of leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceKind {
    /// A database.
    Database {
        /// The server.
        server: PostgresSettings,
        /// The query that the database is asked.
        query: Query,
    },
    /// An address of the app.
    App {
        /// Its address.
        location: LeadsLocation,
        /// The credential of ringfence.
        credential: SourceCredential,
    },
}

/// An address of the app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeadsLocation {
    /// A path behind `app.forward_url`.
    Behind(String),
    /// An address.
    At(Uri),
}

/// The credential that a request shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceCredential {
    /// Nothing.
    Nothing,
    /// `Authorization: Bearer`.
    Bearer(Secret),
    /// The headers of Standard Webhooks, signed over path and query in place of a body.
    Signature(Secret),
}

/// A request for leads.
#[derive(Debug, Clone)]
pub struct LeadsRequest {
    /// The business whose leads are asked for.
    pub business: String,
    /// The schedule's name.
    pub schedule: String,
    /// The firing.
    pub firing_at: UnixMs,
    /// The firing's date on the schedule's own clock.
    pub date: String,
}

impl LeadsRequest {
    fn value(&self, name: &str) -> Option<String> {
        Some(match name {
            "business" => self.business.clone(),
            "schedule" => self.schedule.clone(),
            "firing" => rfc3339(self.firing_at),
            "date" => self.date.clone(),
            _ => return None,
        })
    }
}

/// Names that may stand in `{{…}}` in a query, and are in the query string of an address.
const PLACEHOLDERS: [&str; 4] = ["business", "schedule", "firing", "date"];

/// A query whose `{{…}}` are parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    sql: String,
    names: Vec<&'static str>,
}

impl Query {
    /// Reads a query: one `SELECT`, in which `{{business}}`, `{{schedule}}`, `{{firing}}` and `{{date}}` are parameters of type text.
    ///
    /// # Errors
    /// A sentence for an operator.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut sql, mut names) = (String::new(), Vec::new());
        let mut rest = text.trim().trim_end_matches(';').trim_end();
        if rest.is_empty() {
            return Err("is empty".to_owned());
        }
        while let Some((before, after)) = rest.split_once("{{") {
            let (name, after) = after.split_once("}}").ok_or("has {{ without }}")?;
            let name = PLACEHOLDERS.into_iter().find(|known| *known == name.trim());
            let name = name.ok_or_else(|| format!("may have {{{{…}}}} of {} alone", PLACEHOLDERS.join(", ")))?;
            let place = names.iter().position(|one| *one == name).unwrap_or_else(|| {
                names.push(name);
                names.len() - 1
            });
            sql.push_str(before);
            sql.push_str(&format!("${}", place + 1));
            rest = after;
        }
        sql.push_str(rest);
        Ok(Self { sql, names })
    }
}

impl LeadSource {
    /// Whether runs of a business may use it. A tenant speaks for one business alone, and may only if it asks for that one's leads.
    pub fn is_for(&self, business: &BusinessId, author: Author) -> bool {
        match (&self.businesses, &self.kind) {
            (Some(named), _) => named.contains(business),
            (None, SourceKind::Database { query, .. }) => {
                author == Author::Operator || query.names.contains(&"business")
            }
            (None, SourceKind::App { .. }) => true,
        }
    }

    /// Asks it, and hands its leads over.
    ///
    /// # Errors
    /// A sentence for an operator. It holds no secret.
    pub async fn read(&self, calls: &Calls, asked: &LeadsRequest, rows: Sender<Vec<Row>>) -> Result<(), String> {
        match &self.kind {
            SourceKind::Database { server, query } => self.select(server, query, asked, &rows).await,
            SourceKind::App { location, credential } => {
                let (format, list) = self.get(calls, location, credential, asked).await?;
                if list.is_empty() {
                    return Ok(());
                }
                let read = tokio::task::spawn_blocking(move || read_list(format, list, &rows)).await;
                read.map_err(|error| format!("failed to read the list: {error}"))
            }
        }
    }

    async fn select(
        &self,
        server: &PostgresSettings,
        query: &Query,
        asked: &LeadsRequest,
        rows: &Sender<Vec<Row>>,
    ) -> Result<(), String> {
        let parameters: Vec<String> = query.names.iter().filter_map(|name| asked.value(name)).collect();
        let (found, mut came) = mpsc::channel::<Vec<String>>(BATCHES_WAITING);
        let ask = async {
            let asked = postgres::leads::read(server, &query.sql, &parameters, self.timeout, &found).await;
            drop(found);
            asked
        };
        let hand_over = async {
            let mut line = 0;
            while let Some(texts) = came.recv().await {
                let some = texts.iter().map(|text| {
                    line += 1;
                    Row { line, lead: lead(text) }
                });
                if rows.send(some.collect()).await.is_err() {
                    break;
                }
            }
        };
        tokio::join!(ask, hand_over).0
    }

    async fn get(
        &self,
        calls: &Calls,
        location: &LeadsLocation,
        credential: &SourceCredential,
        asked: &LeadsRequest,
    ) -> Result<(Format, Bytes), String> {
        let uri = address(location, calls.settings.app.forward_url.as_ref(), asked)?;
        let target = uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
        let mut request = Request::new(Bytes::new());
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json, application/x-ndjson, text/csv"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("ringfence/", env!("CARGO_PKG_VERSION"))));
        for (name, value) in credential.headers(&target, calls.lifecycle.clock.now_ms())? {
            let mut value = HeaderValue::try_from(value).map_err(|_| "its secret cannot stand in a header")?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        let answer =
            calls.upstream.fetch(request, LIST_BYTES_MAX, self.timeout).await.map_err(|error| match error {
                UpstreamError::TooLarge { limit } => format!("its list is longer than {} MiB", limit / (1024 * 1024)),
                other => format!("the app did not answer: {other}"),
            })?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NO_CONTENT => return Ok((Format::Json, Bytes::new())),
            status => return Err(format!("the app answered {}, not 200", status.as_u16())),
        }
        let kind = answer.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let format = Format::of(kind).ok_or_else(|| {
            format!("the app answered with {kind:?}; leads are application/json, application/x-ndjson or text/csv")
        })?;
        Ok((format, answer.into_body()))
    }
}

impl SourceCredential {
    fn headers(&self, target: &str, now_ms: UnixMs) -> Result<Vec<(HeaderName, String)>, String> {
        Ok(match self {
            Self::Nothing => vec![],
            Self::Bearer(token) => vec![(AUTHORIZATION, format!("Bearer {}", token.expose()))],
            Self::Signature(secret) => {
                let key = standard_key(secret).map_err(|why| format!("its secret {why}"))?;
                let (id, at_secs) = (format!("msg_{}", Ulid::new().to_string().to_lowercase()), now_ms / 1000);
                let signature = sign_standard(&key, &id, at_secs, target.as_bytes());
                vec![
                    (HeaderName::from_static("webhook-id"), id),
                    (HeaderName::from_static("webhook-timestamp"), at_secs.to_string()),
                    (HeaderName::from_static("webhook-signature"), signature),
                ]
            }
        })
    }
}

/// The whole address of a source, with what is asked for in its query.
fn address(location: &LeadsLocation, app: Option<&Uri>, asked: &LeadsRequest) -> Result<Uri, String> {
    let base = match location {
        LeadsLocation::At(uri) => uri.to_string(),
        LeadsLocation::Behind(path) => join_url(app.ok_or("app.forward_url is not set")?, path),
    };
    let mut query = form_urlencoded::Serializer::new(String::new());
    for name in PLACEHOLDERS {
        query.append_pair(name, &asked.value(name).unwrap_or_default());
    }
    let mark = if base.contains('?') { '&' } else { '?' };
    format!("{base}{mark}{}", query.finish()).parse().map_err(|_| "its url cannot be read".to_owned())
}

fn lead(text: &str) -> Result<serde_json::Map<String, Value>, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(lead)) if text.len() <= leads::LEAD_BYTES_MAX => Ok(lead),
        Ok(Value::Object(_)) => Err(format!("a lead must not be longer than {} bytes", leads::LEAD_BYTES_MAX)),
        _ => Err("a row is no object".to_owned()),
    }
}

fn read_list(format: Format, list: Bytes, rows: &Sender<Vec<Row>>) {
    let mut some = Vec::with_capacity(ROWS_AT_ONCE);
    let read = leads::read(format, Cursor::new(list), |row| {
        some.push(row);
        if some.len() < ROWS_AT_ONCE {
            return Ok(());
        }
        rows.blocking_send(std::mem::take(&mut some)).map_err(|_| Stopped)
    });
    if read.is_ok() {
        // Whoever takes them may have gone.
        let _ = rows.blocking_send(some);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_braces_is_a_parameter() {
        let query = Query::parse(
            " SELECT phone AS number FROM a WHERE b = {{business}} AND d = {{ date }}::date + 1 AND c <> {{business}}; \n",
        );
        let query = query.unwrap();
        assert_eq!(query.sql, "SELECT phone AS number FROM a WHERE b = $1 AND d = $2::date + 1 AND c <> $1");
        assert_eq!(query.names, ["business", "date"]);
        for bad in ["", " ; ", "SELECT {{lead.x}}", "SELECT {{business"] {
            assert!(Query::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_tenant_uses_what_asks_for_his_own_leads_alone() {
        let server = PostgresSettings::new(Secret::new("postgres://u@127.0.0.1/x")).unwrap();
        let source = |query: &str, businesses| LeadSource {
            name: "one".to_owned(),
            kind: SourceKind::Database { server: server.clone(), query: Query::parse(query).unwrap() },
            businesses,
            timeout: Duration::from_secs(1),
        };
        let (acme, beta) = (BusinessId::parse("acme").unwrap(), BusinessId::parse("beta").unwrap());
        let everybodys = source("SELECT 1", None);
        assert!(everybodys.is_for(&acme, Author::Operator) && !everybodys.is_for(&acme, Author::Tenant));
        assert!(source("SELECT {{business}}", None).is_for(&acme, Author::Tenant));
        let named = source("SELECT 1", Some(vec![acme.clone()]));
        assert!(named.is_for(&acme, Author::Tenant) && !named.is_for(&beta, Author::Operator));
    }

    #[test]
    fn a_signature_binds_path_and_query() {
        let secret = Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let shown = SourceCredential::Signature(secret.clone()).headers("/leads?business=acme", 1_000_000).unwrap();
        let of = |name: &str| shown.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str()).unwrap();
        let key = standard_key(&secret).unwrap();
        let wanted = sign_standard(&key, of("webhook-id"), 1_000, b"/leads?business=acme");
        assert_eq!((of("webhook-signature"), of("webhook-timestamp")), (wanted.as_str(), "1000"));
        let bearer = SourceCredential::Bearer(Secret::new("t")).headers("/", 0).unwrap();
        assert_eq!(bearer, [(AUTHORIZATION, "Bearer t".to_owned())]);
    }
}
