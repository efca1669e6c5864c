//! The array `[[lead_sources]]`: where recurring runs get their leads.

use std::sync::Arc;
use std::time::Duration;

use super::table::Table;
use super::values::url;
use crate::ids::BusinessId;
use crate::provider::sign::standard_key;
use crate::runs::recurring::source::{LeadSource, LeadsLocation, Query, SourceCredential, SourceKind, Sources};
use crate::store::postgres::PostgresSettings;

/// The default timeout of a source, in seconds.
const TIMEOUT_SECS: u64 = 60;

/// Reads all sources. `has_app`: `app.forward_url` is set.
pub(super) fn read(root: &Table<'_>, has_app: bool) -> Sources {
    let mut sources = Sources::new();
    for table in &root.tables("lead_sources") {
        let source = source(table, has_app);
        table.finish();
        let Some(source) = source else { continue };
        if sources.contains_key(&source.name) {
            let title = format!("two lead sources have the name {:?}", source.name);
            table.report().error("E030", table.span("name"), title, "");
        }
        sources.insert(source.name.clone(), Arc::new(source));
    }
    sources
}

fn source(table: &Table<'_>, has_app: bool) -> Option<LeadSource> {
    let name = table.text("name").filter(|name| !name.trim().is_empty());
    if name.is_none() {
        table.report().error("E004", table.span("name"), "a lead source needs a name", "schedules refer to it");
    }
    let businesses = table.texts("businesses").map(|list| {
        let id = |text: &String| {
            let why = |error| {
                let title = format!("`{}` has {text:?}: {error}", table.path_of("businesses"));
                table.report().error("E003", table.span("businesses"), title, "");
            };
            BusinessId::parse(text).map_err(why).ok()
        };
        list.iter().filter_map(id).collect::<Vec<_>>()
    });
    let timeout = Duration::from_secs(table.number("timeout_secs", 1..=600).unwrap_or(TIMEOUT_SECS));
    let (server, query) = (server(table), table.parsed("query", Query::parse));
    let (location, credential) = (table.parsed("url", location), credential(table));
    let in_database = ["database_url", "query"].iter().any(|key| table.has(key));
    let at_app = ["url", "bearer", "secret"].iter().any(|key| table.has(key));
    let is_whole = ["database_url", "query"].iter().all(|key| table.has(key)) != table.has("url");
    if !is_whole || in_database == at_app {
        let title = "a lead source has either database_url and query, or url (with bearer or secret)";
        table.report().error("E004", table.span("name"), title, "write two sources for both");
        return None;
    }
    if matches!(location, Some(LeadsLocation::Behind(_))) && !has_app {
        let title = format!("`{}` is a path, but app.forward_url is not set", table.path_of("url"));
        table.report().error("E004", table.span("url"), title, "set [app] forward_url, or write the full URL");
    }
    let kind = match (in_database, location) {
        (true, _) => SourceKind::Database { server: server?, query: query? },
        (false, location) => SourceKind::App { location: location?, credential: credential? },
    };
    Some(LeadSource { name: name?, kind, businesses, timeout })
}

fn server(table: &Table<'_>) -> Option<PostgresSettings> {
    let path = table.path_of("database_url");
    let server = PostgresSettings::new(table.secret("database_url")?)
        .map_err(|why| table.report().error("E003", table.span("database_url"), format!("`{path}` {why}"), ""))
        .ok()?;
    if let Some(why) = server.exposed() {
        let title = format!("leads could be read or forged in transit: `{path}`: {why}");
        let help = "add ?sslmode=verify-full, and sslrootcert=FILE where its certificate is your own";
        table.report().warning("W008", table.span("database_url"), title, help);
    }
    Some(server)
}

fn location(text: &str) -> Result<LeadsLocation, String> {
    if text.starts_with('/') {
        let is_path = text.parse::<http::Uri>().is_ok_and(|uri| uri.authority().is_none());
        return if is_path { Ok(LeadsLocation::Behind(text.to_owned())) } else { Err("is not a path".to_owned()) };
    }
    url(text).map(LeadsLocation::At)
}

fn credential(table: &Table<'_>) -> Option<SourceCredential> {
    let (bearer, secret) = (table.secret("bearer"), table.secret("secret"));
    match (bearer, secret) {
        (None, None) => Some(SourceCredential::Nothing),
        (Some(token), None) => Some(SourceCredential::Bearer(token)),
        (None, Some(secret)) => {
            let path = table.path_of("secret");
            let help = "make one with: echo whsec_$(openssl rand -base64 32)";
            let wrong = |why| table.report().error("E003", table.span("secret"), format!("`{path}` {why}"), help);
            standard_key(&secret).map_err(wrong).ok().map(|_| SourceCredential::Signature(secret))
        }
        (Some(_), Some(_)) => {
            let title = "a lead source has either bearer or secret, not both";
            table.report().error("E004", table.span("bearer"), title, "remove bearer or secret");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::load;

    fn found(source: &str) -> Vec<(String, String)> {
        let env = |name: &str| match name {
            "DB" => Some("postgres://u:hunter2@127.0.0.1/app".to_owned()),
            "SECRET" => Some("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned()),
            _ => None,
        };
        let text = format!("[app]\nforward_url = \"http://127.0.0.1:3000\"\n[[lead_sources]]\n{source}\n");
        let loaded = load(&text, std::path::Path::new("/nowhere"), &env);
        let errors = loaded.diagnostics.into_iter().filter(|d| d.code.starts_with('E'));
        let ours = errors.filter(|d| d.title.contains("lead_source") || d.title.contains("source"));
        ours.map(|d| (d.code.to_owned(), d.title)).collect()
    }

    #[test]
    fn a_source_is_a_query_or_an_address() {
        let query = "database_url = { env = \"DB\" }\nquery = \"SELECT {{business}}\"";
        for good in [
            format!("name = \"a\"\n{query}\nbusinesses = [\"acme\"]\ntimeout_secs = 5"),
            "name = \"a\"\nurl = \"/api/leads\"\nsecret = { env = \"SECRET\" }".to_owned(),
            "name = \"a\"\nurl = \"https://app.example.com/leads?x=1\"".to_owned(),
        ] {
            assert_eq!(found(&good), [], "{good}");
        }
        for (bad, part) in [
            ("url = \"/api/leads\"".to_owned(), "needs a name"),
            ("name = \"a\"".to_owned(), "has either"),
            (format!("name = \"a\"\nurl = \"/x\"\n{query}"), "has either"),
            ("name = \"a\"\nquery = \"SELECT 1\"".to_owned(), "has either"),
            (format!("name = \"a\"\n{query}\nbearer = {{ env = \"SECRET\" }}"), "has either"),
            ("name = \"a\"\nurl = \"ftp://x\"".to_owned(), "must start with"),
            ("name = \"a\"\nurl = \"/x\"\nsecret = { env = \"DB\" }".to_owned(), "whsec_"),
            ("name = \"a\"\nurl = \"/x\"\n[[lead_sources]]\nname = \"a\"\nurl = \"/y\"".to_owned(), "two lead sources"),
            ("name = \"a\"\ndatabase_url = { env = \"DB\" }\nquery = \"SELECT {{lead.x}}\"".to_owned(), "alone"),
        ] {
            let told = found(&bad);
            assert!(told.iter().any(|(_, title)| title.contains(part)), "{bad}: {told:?}");
            assert!(told.iter().all(|(_, title)| !title.contains("hunter2")), "{told:?}");
        }
    }
}
