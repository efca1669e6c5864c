//! Stores webhooks in the inbox, before they are answered.

use std::borrow::Cow;

use super::context::Webhooks;
use super::parsed::ParsedWebhook;
use super::raw::kept_headers;
use super::settings::KEPT_BYTES_MAX;
use crate::provider::sign::sha256_hex;
use crate::store::{NewEvent, ReceiveOutcome, Result, StoreError};

/// The longest deduplication key, in bytes; a longer one is hashed.
const KEY_BYTES_MAX: usize = 512;

impl Webhooks {
    /// Returns the webhook's inbox row, without a body that is too large for it.
    pub(super) fn inbox_row(&self, parsed: &ParsedWebhook<'_>) -> NewEvent {
        let raw = parsed.raw;
        let account = &parsed.from.account;
        let webhook = parsed.from.webhook();
        let parts: Vec<Cow<'_, str>> = webhook.dedupe.iter().filter_map(|s| s.text(&parsed.message)).collect();
        let complete = !parts.is_empty() && parts.len() == webhook.dedupe.len();
        // Postgres allows no NUL in a text, and no long text in an index.
        let of = |key: String| {
            let key = format!("{}|{}|{key}", account.name, webhook.name).replace('\0', "\u{FFFD}");
            if key.len() > KEY_BYTES_MAX { sha256_hex(key.as_bytes()) } else { key }
        };
        // A notification without a distinguishing id: equal bytes are the same event.
        let same_bytes = || {
            let tells = parsed.news.is_some() || parsed.utterance.is_some() || raw.has_unread_part();
            let notifies = webhook.reply.is_none() && tells && !raw.body.is_empty();
            notifies.then(|| of(format!("sha256|{}|{}", raw.path_and_query, sha256_hex(&raw.body))))
        };
        NewEvent {
            id: parsed.event_id.clone(),
            account: account.name.to_string(),
            webhook: webhook.name.clone(),
            event: parsed.event_name().to_owned(),
            dedupe_key: if complete { Some(of(parts.join("|"))) } else { same_bytes() },
            received_at: self.calls.lifecycle.clock.now_ms(),
            method: raw.method.clone(),
            path: raw.path_and_query.clone(),
            headers: kept_headers(&raw.headers, &webhook.signature),
            body: (raw.body.len() <= KEPT_BYTES_MAX).then(|| raw.body.to_vec()),
            spool: None,
        }
    }

    /// Whether its body is too large for the database. A webhook that waits for a reply is not needed after it.
    pub(super) fn is_for_spool(&self, parsed: &ParsedWebhook<'_>) -> bool {
        parsed.raw.body.len() > KEPT_BYTES_MAX && parsed.from.webhook().reply.is_none()
    }

    /// Stores a webhook in the inbox; its body may be in the spool already.
    pub(super) async fn persist_event(&self, row: NewEvent) -> Result<ReceiveOutcome> {
        let store = &self.calls.lifecycle.store;
        let (new, spool) = (row.id.clone(), row.spool.clone());
        let received = store.receive(row).await;
        let Some(spool) = spool else { return received };
        match &received {
            // The next sweep of the spool will see whether there is a row, or a journal file.
            Ok(ReceiveOutcome::New) | Err(_) => {}
            // The process that stored it first may be gone, and its file with it.
            Ok(ReceiveOutcome::Before { id, outcome: None }) => {
                let given = self.spool.reassign(&new, id).await;
                given.map_err(|error| StoreError::Failed(format!("the spool cannot be written: {error}")))?;
                store.set_spool(id, &spool).await?;
            }
            // Its own row, which was written before: the delivery may need the file.
            Ok(ReceiveOutcome::Before { id, .. }) if *id == new => {}
            Ok(ReceiveOutcome::Before { .. }) => self.spool.delete(&new).await,
        }
        received
    }
}
