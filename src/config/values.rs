//! Checks of single values that several sections have in common.

use http::Uri;

use super::table::Table;
use crate::jws::SECRET_BYTES_MIN;
use crate::provider::secret::Secret;

/// The name of the Unix socket of `listen.admin` where there is no database file to put it beside.
pub(super) const POSTGRES_SOCKET: &str = "ringfence-admin.sock";

/// The reason why signatures and tokens are required, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strict {
    /// `public_url` is set.
    PublicUrl,
    /// A listener is not on loopback.
    NotLoopback,
    /// Nothing is reachable from other machines.
    No,
}

impl Strict {
    /// Whether they are required.
    pub fn is_strict(self) -> bool {
        self != Strict::No
    }

    /// The reason, as shown by `check` and in the first log line.
    pub fn because(self) -> &'static str {
        match self {
            Strict::PublicUrl => "strict: public_url is set, so signatures and tokens are required",
            Strict::NotLoopback => "strict: a listener is not on loopback, so signatures and tokens are required",
            Strict::No => {
                "lenient: no public_url and every listener on loopback, so unsigned webhooks are accepted where no secret is configured"
            }
        }
    }
}

/// An HTTP or HTTPS URL.
///
/// # Errors
/// The mistake in the text, as the rest of a sentence.
pub(super) fn url(text: &str) -> Result<Uri, String> {
    if splits_password(text) {
        return Err("has a `#`, `/` or `?` before its `@`: write it in a password as %23, %2F or %3F".to_owned());
    }
    let uri: Uri = text.parse().map_err(|e| format!("is not a URL: {e}"))?;
    match (uri.scheme_str(), uri.authority()) {
        (Some("http" | "https"), Some(_)) => Ok(uri),
        _ => Err("must start with http:// or https:// and a host".to_owned()),
    }
}

/// Whether user and password of a URL end before its `@`, so that the parser would take a part of the password for the host.
fn splits_password(text: &str) -> bool {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let Some((before, _)) = rest.rsplit_once('@') else { return false };
    // A path may contain `@`; text with a colon before it that is not a port is a password.
    let Some(at) = before.find(['/', '#', '?']) else { return false };
    let (head, tail) = before.split_at(at);
    let port = head.rsplit_once(':').map(|(_, port)| port);
    port.is_some_and(|port| tail.starts_with('#') || port.parse::<u16>().is_err())
}

/// Reports a secret that is too short to sign tokens.
pub(super) fn long_enough(table: &Table<'_>, secrets: &[Secret]) {
    if let Some(short) = secrets.iter().map(|secret| secret.expose().len()).find(|length| *length < SECRET_BYTES_MIN) {
        let path = table.path_of("token_secret");
        let title = format!("`{path}` has {short} bytes; a secret that signs tokens needs at least {SECRET_BYTES_MIN}");
        table.report().error("E003", table.span("token_secret"), title, "make one: openssl rand -base64 32");
    }
}
