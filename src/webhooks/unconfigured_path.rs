//! Genuine news of calls at paths that are not webhook paths: the app gets it, and ringfence applies it too.

use std::collections::BTreeMap;

use tracing::{debug, warn};

use super::context::Webhooks;
use super::log_limit::shortened;
use super::parsed::parse;
use super::raw::RawWebhook;
use super::route::Candidate;
use crate::call::{Direction, Event, Source};
use crate::metrics::NotApplied;
use crate::provider::description::OWN_ID_KIND;
use crate::provider::sign::Keys;

impl Webhooks {
    /// Applies the news in an authenticated request that is forwarded. An end of a known call is applied; an inbound call cannot
    /// be admitted here, as the app answers it, and is reported.
    pub(super) async fn unlisted(&self, from: &Candidate, raw: RawWebhook) {
        let raw = raw.decoded();
        let path = shortened(raw.path());
        let account = &from.account;
        for index in 0..account.provider.webhooks.len() {
            let one = Candidate { account: account.clone(), index, captures: BTreeMap::new() };
            if one.webhook().signature != from.webhook().signature {
                continue;
            }
            let parsed = parse(&raw, &one, Keys::default(), self.voucher_again(&one, &raw), String::new());
            if one.webhook().is_foreign(&parsed.message) {
                continue;
            }
            let (Some(event), Some(news)) = (parsed.event, parsed.news) else { continue };
            let count = || self.calls.lifecycle.metrics.webhook(&account.name, &event.name, NotApplied::UnlistedPath);
            match news {
                Event::Reached(_) if event.admits && parsed.direction == Direction::Inbound => {
                    count();
                    warn!(
                        account = %account.name, path, key = "inbound.voice_paths",
                        "inbound call forwarded without admission: its path is not configured as a webhook"
                    );
                    return;
                }
                Event::Ended(..) if !one.webhook().is_doubled(&parsed.message) => {
                    let mut aliases = parsed.aliases.clone();
                    aliases.retain(|alias| alias.kind != OWN_ID_KIND);
                    let applied = match self.calls.lifecycle.store.resolve(&aliases).await {
                        Ok(Some(_)) => {
                            self.calls.lifecycle.news(aliases, news, parsed.by.clone(), Source::Webhook).await
                        }
                        other => other.map(|_| None),
                    };
                    match applied {
                        Ok(None) => continue,
                        Ok(Some(applied)) => {
                            count();
                            debug!(call = %applied.record.id, "end of the call received at an app path");
                            self.outcome_of(&parsed, applied);
                        }
                        Err(error) => {
                            warn!(account = %account.name, path, %error, "failed to record the end of a call")
                        }
                    }
                    warn!(account = %account.name, path, "end of a call received at a path that is not configured as a webhook");
                    return;
                }
                Event::Reached(_) | Event::Ended(..) => {}
            }
        }
    }
}
