//! `[client]` and `[transcripts]`: live transcripts.

use std::time::Duration;

use super::inputs::{digest, digest_of_unreadable};
use super::table::Table;
use super::values::long_enough;
use crate::provider::secret::Secret;
use crate::token::Keys;
use crate::transcripts::ClientSettings;

/// Reads `[client]` and `[transcripts]`. Without a secret of its own, the app's tokens are verified with the operators'.
pub(super) fn client(root: &Table<'_>, folder: &std::path::Path, operators: &[Secret]) -> ClientSettings {
    let table = root.table("client");
    let mut secrets = table.secrets("token_secret");
    long_enough(&table, &secrets);
    if secrets.is_empty() {
        secrets.extend_from_slice(operators);
    }
    let mut keys = Keys::of_secrets(secrets);
    if let Some(path) = table.text("jwks_file").map(|file| folder.join(file)) {
        let read = std::fs::read_to_string(&path);
        table.note(path, read.as_ref().map_or_else(digest_of_unreadable, |text| digest(text.as_bytes())));
        let with =
            read.map_err(|error| format!("cannot be read: {error}")).and_then(|text| keys.clone().with_jwks(&text));
        match with {
            Ok(with) => keys = with,
            Err(why) => {
                table.report().error("E011", table.span("jwks_file"), format!("`client.jwks_file` {why}"), "");
            }
        }
    }
    let (issuer, audience) = (table.text("issuer"), table.text("audience"));
    if table.has("jwks_file") && audience.is_none() {
        let title = "client.jwks_file is set without client.audience: tokens that its issuer made for other programs are accepted";
        table.report().warning(
            "W018",
            table.span("jwks_file"),
            title,
            "set client.audience to the `aud` of your tokens",
        );
    }
    let keys = keys.only_for(issuer, audience);
    let default_businesses = table.texts("default_businesses").unwrap_or_default();
    let allowed_origins = table.texts("allowed_origins").unwrap_or_default();
    let sockets_per_token = table.count("sockets_per_token", 1..=10_000).unwrap_or(20);
    let secs =
        |table: &Table<'_>, key: &str, range, default| Duration::from_secs(table.number(key, range).unwrap_or(default));
    let (idle, slow) = (secs(&table, "idle_secs", 2..=3600, 60), secs(&table, "slow_secs", 1..=25, 10));
    table.finish();
    let table = root.table("transcripts");
    let user_label = table.text("user_label").unwrap_or_else(|| "user".to_owned());
    // The label "driver" means that clients are those of the replaced systems.
    let transcript_list = table.flag("bare_list").unwrap_or(user_label == "driver");
    let completion_wait = secs(&table, "completion_wait_secs", 0..=3600, 60);
    table.finish();
    ClientSettings {
        keys,
        default_businesses,
        allowed_origins,
        sockets_per_token,
        idle,
        slow,
        user_label,
        transcript_list,
        completion_wait,
    }
}
