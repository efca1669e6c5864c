//! Health of webhooks that a provider disables after repeated failures. It is derived from the records of the latest calls, so it
//! does not matter which replica received a webhook.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::records::PostCallRecords;
use crate::admission::Role;
use crate::calls::context::Context;
use crate::clock::{UnixMs, rfc3339};
use crate::ids::AccountName;
use crate::provider::account::Account;
use crate::provider::description::Webhook;
use crate::store::{Result, WebhookHealthQuery};

/// The interval at which the health is checked.
const POLL_INTERVAL: Duration = Duration::from_secs(10);
/// The number of latest calls that are checked.
const CALLS: u32 = 200;
/// The number of calls in a row without the webhook that raises the alarm: half of what makes ElevenLabs disable a webhook (ten
/// failures in a row).
const LATE_CALLS: u32 = 5;
/// The age up to which calls and webhooks are checked, in milliseconds. ElevenLabs disables no webhook whose last success is younger.
const LOOK_BACK_MS: i64 = 7 * 24 * 3_600_000;

/// The health of a webhook that brings records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WatchedWebhook {
    /// The webhook's name in the description.
    pub webhook: String,
    /// The time at which it last arrived, for one of the latest calls of a week.
    pub last_came_at: Option<String>,
    /// The number of latest answered calls in a row for which it did not arrive, 200 at most.
    pub missed_in_a_row: u32,
    /// The number is high enough to raise the alarm.
    pub late: bool,
    #[serde(skip)]
    last_ms: Option<UnixMs>,
    #[serde(skip)]
    look_at: String,
}

impl PostCallRecords {
    /// The health of an account's watched webhooks.
    ///
    /// # Errors
    /// The store failed.
    pub async fn watched_webhooks(&self, account: &Account) -> Result<Vec<WatchedWebhook>> {
        let now_ms = self.context.lifecycle.clock.now_ms();
        let watched = account.provider.webhooks.iter().filter_map(|hook| Some((hook, hook.watched.as_ref()?)));
        let mut all = vec![];
        for (hook, look_at) in watched {
            let asked = WebhookHealthQuery {
                account: account.name.to_string(),
                events: events_of(hook),
                since_ms: now_ms - LOOK_BACK_MS,
                until_ms: self.over_before_ms(),
                calls: CALLS,
            };
            let came = self.context.lifecycle.store.webhook_health(asked).await?;
            // Without a public URL no webhook is expected, unless one arrived.
            let expected = self.context.settings.app.public_url.is_some() || came.last_at.is_some();
            all.push(WatchedWebhook {
                webhook: hook.name.clone(),
                last_came_at: came.last_at.map(rfc3339),
                missed_in_a_row: came.missed_in_a_row,
                late: expected && came.missed_in_a_row >= LATE_CALLS,
                last_ms: came.last_at,
                look_at: look_at.clone(),
            });
        }
        Ok(all)
    }
}

/// The events of a webhook that bring records.
fn events_of(hook: &Webhook) -> Vec<String> {
    hook.events.iter().filter(|event| event.record.is_some()).map(|event| event.name.clone()).collect()
}

/// Updates the metrics of watched webhooks, and logs once when one stops and when it arrives again; `leads` says whether this
/// process is the leader. `newest` gives the newest generation.
pub async fn watch_hooks(newest: impl Fn() -> Arc<PostCallRecords>, role: impl Fn() -> Role, stop: CancellationToken) {
    let (mut shown, mut late) = (BTreeMap::<AccountName, Vec<String>>::new(), BTreeSet::new());
    loop {
        let post_call = newest();
        let context = &post_call.context;
        let gone: Vec<AccountName> =
            shown.keys().filter(|name| !context.accounts.contains_key(*name)).cloned().collect();
        for name in gone {
            for hook in shown.remove(&name).unwrap_or_default() {
                context.lifecycle.metrics.watched_webhook_gone(&name, &hook);
            }
        }
        for account in context.accounts.values() {
            let seen = tokio::select! {
                () = stop.cancelled() => return,
                seen = Box::pin(post_call.watched_webhooks(account)) => seen,
            };
            match seen {
                Ok(seen) => {
                    for hook in &seen {
                        report_health(context, account, hook, &role(), &mut late);
                    }
                    shown.insert(account.name.clone(), seen.into_iter().map(|hook| hook.webhook).collect());
                }
                Err(error) => warn!(account = %account.name, %error, "failed to read the webhook health of an account"),
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
    }
}

fn report_health(
    context: &Context,
    account: &Arc<Account>,
    hook: &WatchedWebhook,
    role: &Role,
    late: &mut BTreeSet<(AccountName, String)>,
) {
    let last_secs = hook.last_ms.map(|ms| ms / 1000);
    context.lifecycle.metrics.watched_webhook(&account.name, &hook.webhook, hook.missed_in_a_row, last_secs);
    let key = (account.name.clone(), hook.webhook.clone());
    let (account, webhook) = (&account.name, &hook.webhook);
    if hook.late && late.insert(key.clone()) {
        if role.leads {
            let (missed, last_came_at) = (hook.missed_in_a_row, hook.last_came_at.as_deref());
            warn!(%account, webhook, missed, last_came_at, "webhook missing for the latest answered calls; see {}", hook.look_at);
        }
    } else if !hook.late && late.remove(&key) && role.leads {
        info!(%account, webhook, "webhook received again");
    }
}
