//! Takes webhooks into the inbox, before they are answered.

use std::borrow::Cow;

use super::context::Webhooks;
use super::parsed::ParsedWebhook;
use super::raw::kept_headers;
use super::settings::KEPT_BYTES_MAX;
use crate::provider::sign::sha256_hex;
use crate::store::{NewEvent, ReceiveOutcome, Result, StoreError};

/// Longer dedupe keys are hashed, in bytes.
const KEY_BYTES_MAX: usize = 512;

impl Webhooks {
    /// Its row of the inbox, without a body that is too large for it.
    pub(super) fn inbox_row(&self, taken: &ParsedWebhook<'_>) -> NewEvent {
        let raw = taken.raw;
        let account = &taken.from.account;
        let webhook = taken.from.webhook();
        let parts: Vec<Cow<'_, str>> = webhook.dedupe.iter().filter_map(|s| s.text(&taken.message)).collect();
        let complete = !parts.is_empty() && parts.len() == webhook.dedupe.len();
        // Postgres keeps no NUL in a text, and no long one in an index.
        let of = |key: String| {
            let key = format!("{}|{}|{key}", account.name, webhook.name).replace('\0', "\u{FFFD}");
            if key.len() > KEY_BYTES_MAX { sha256_hex(key.as_bytes()) } else { key }
        };
        // A notification that lacks what would tell its deliveries apart: the same bytes are the same event.
        let same_bytes = || {
            let tells = taken.news.is_some() || taken.heard.is_some() || raw.is_unread();
            let notifies = webhook.reply.is_none() && tells && !raw.body.is_empty();
            notifies.then(|| of(format!("sha256|{}|{}", raw.path_and_query, sha256_hex(&raw.body))))
        };
        NewEvent {
            id: taken.event_id.clone(),
            account: account.name.to_string(),
            webhook: webhook.name.clone(),
            event: taken.event_name().to_owned(),
            dedupe_key: if complete { Some(of(parts.join("|"))) } else { same_bytes() },
            received_at: self.calls.lifecycle.clock.now_ms(),
            method: raw.method.clone(),
            path: raw.path_and_query.clone(),
            headers: kept_headers(&raw.headers, &webhook.signature),
            body: (raw.body.len() <= KEPT_BYTES_MAX).then(|| raw.body.to_vec()),
            spool: None,
        }
    }

    /// Its body is too large for the record. Of what waits for a reply nothing is needed after it.
    pub(super) fn is_for_spool(&self, taken: &ParsedWebhook<'_>) -> bool {
        taken.raw.body.len() > KEPT_BYTES_MAX && taken.from.webhook().reply.is_none()
    }

    /// Takes a webhook into the inbox, whose body may be in the spool already.
    pub(super) async fn take_in(&self, row: NewEvent) -> Result<ReceiveOutcome> {
        let store = &self.calls.lifecycle.store;
        let (new, spool) = (row.id.clone(), row.spool.clone());
        let received = store.receive(row).await;
        let Some(spool) = spool else { return received };
        match &received {
            // Whether there is a row, or the journal has it, the next look will know.
            Ok(ReceiveOutcome::New) | Err(_) => {}
            // Whoever took it first may be gone, and its file with it.
            Ok(ReceiveOutcome::Before { id, outcome: None }) => {
                let given = self.spool.give(&new, id).await;
                given.map_err(|error| StoreError::Failed(format!("the spool cannot be written: {error}")))?;
                store.set_spool(id, &spool).await?;
            }
            Ok(ReceiveOutcome::Before { .. }) => self.spool.forget(&new).await,
        }
        received
    }
}
