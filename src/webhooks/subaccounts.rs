//! Webhooks of subaccounts are signed with the subaccount's own token. It is fetched from the provider with the parent account's
//! credentials, and kept in memory only.
//!
//! Anybody can name a subaccount, so fetches are bounded: an unknown one is not fetched again for a while, an account has a
//! number of fetches per minute, and each token is fetched once at a time.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::watch;
use tracing::{info, warn};

use super::raw::RawWebhook;
use super::route::{Candidate, Signed, verify_with};
use crate::calls::Calls;
use crate::clock::UnixMs;
use crate::provider::account::Account;
use crate::provider::secret::Secret;
use crate::provider::sign::{Keys, Verification};
use crate::sync::lock;

/// The time for which a token is valid before it is fetched again, in milliseconds.
const FRESH_MS: i64 = 3_600_000;
/// The time after which a mismatching token, or an unknown subaccount, may be fetched again, in milliseconds.
const RETRY_AFTER_MS: i64 = 60_000;
/// The pause after a failed fetch, in milliseconds.
const FAILED_MS: i64 = 5_000;
/// The time that a webhook waits for the token. Twilio waits 15 s for a response, of which the app may use 12.
const WITHIN: Duration = Duration::from_secs(2);
/// The time for which a token stays valid while it cannot be confirmed, in milliseconds.
const KEPT_MS: i64 = 24 * 3_600_000;
/// Fetches of unknown subaccounts per account and minute. Known ones are fetched once a minute each at most.
const ASKS_A_MINUTE: usize = 300;
/// Subaccounts that are remembered.
const KNOWN_MAX: usize = 1_000;

/// Known subaccounts. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Subaccounts(Arc<Mutex<CachedSubaccounts>>);

#[derive(Default)]
struct CachedSubaccounts {
    /// By the parent account, and the subaccount's id.
    of: HashMap<(String, String), Entry>,
    /// Times of the last minute's fetches of unknown subaccounts, by account.
    asked: HashMap<String, VecDeque<UnixMs>>,
}

#[derive(Default)]
struct Entry {
    /// The token; `None`: it is no subaccount.
    token: Option<Secret>,
    answered_at: Option<UnixMs>,
    failed_at: Option<UnixMs>,
    /// Closed when the fetch has finished.
    under_way: Option<watch::Receiver<()>>,
}

impl Entry {
    fn is_due(&self, now_ms: UnixMs, how: Look) -> bool {
        if self.failed_at.is_some_and(|at| now_ms - at < FAILED_MS) {
            return false;
        }
        let Some(at) = self.answered_at else { return true };
        let fresh_ms = if how == Look::Anew || self.token.is_none() { RETRY_AFTER_MS } else { FRESH_MS };
        now_ms - at >= fresh_ms
    }

    fn answer(&self, now_ms: UnixMs) -> TokenResult {
        match (&self.token, self.answered_at) {
            (Some(token), Some(at)) if now_ms - at < KEPT_MS => TokenResult::Token(token.clone()),
            (None, Some(_)) => TokenResult::Nobody,
            _ => TokenResult::Unknown,
        }
    }
}

/// The way in which a token is obtained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// A known one is sufficient.
    Known,
    /// The known one does not match: it may have been rotated.
    Anew,
}

/// The result of obtaining a token.
enum TokenResult {
    Token(Secret),
    /// The signer is no subaccount of this account.
    Nobody,
    /// The provider could not be queried.
    Unknown,
}

/// The signer of a request.
pub(super) enum Signer<'c> {
    /// A subaccount of the candidate's account, with its keys.
    Subaccount(&'c Candidate, Keys),
    /// The signer cannot be determined at present.
    Unknown,
    /// No subaccount.
    Nobody,
}

impl Subaccounts {
    fn lock(&self) -> MutexGuard<'_, CachedSubaccounts> {
        lock(&self.0)
    }

    /// Finds the candidates' subaccount that signed a request which none of the accounts signed.
    pub(super) async fn signer<'c>(
        &self,
        calls: &Calls,
        found: &'c [Candidate],
        raw: &RawWebhook,
        signed: &Signed<'_>,
    ) -> Signer<'c> {
        tokio::time::timeout(WITHIN, self.signer_in_time(calls, found, raw, signed)).await.unwrap_or(Signer::Unknown)
    }

    async fn signer_in_time<'c>(
        &self,
        calls: &Calls,
        found: &'c [Candidate],
        raw: &RawWebhook,
        signed: &Signed<'_>,
    ) -> Signer<'c> {
        let mut nobody = Signer::Nobody;
        for from in found {
            let is_shown = from.webhook().signature.is_shown(&raw.headers);
            let Some(id) = raw.subaccount(from).filter(|_| is_shown && from.account.can_ask()) else { continue };
            // A mismatching token may have been rotated.
            for how in [Look::Known, Look::Anew] {
                match self.ask(calls, &from.account, &id, how).await {
                    TokenResult::Token(token) => {
                        let keys = keys(&from.account, token);
                        if verify_with(from, &keys, signed) == Ok(Verification::Valid) {
                            return Signer::Subaccount(from, keys);
                        }
                    }
                    TokenResult::Nobody => break,
                    TokenResult::Unknown => {
                        nobody = Signer::Unknown;
                        break;
                    }
                }
            }
        }
        nobody
    }

    /// Keys of the account's known subaccounts, for a request that names none.
    pub(super) fn known_keys(&self, account: &Account) -> Vec<Keys> {
        let Some(own) = owner(account) else { return vec![] };
        let known = self.lock();
        let of_account = known.of.iter().filter(|((owner, _), _)| *owner == own);
        of_account.filter_map(|(_, entry)| Some(keys(account, entry.token.clone()?))).collect()
    }

    /// The keys of a subaccount, if they are known or can be fetched.
    pub(super) async fn keys_of(&self, calls: &Calls, account: &Arc<Account>, id: &str) -> Option<Keys> {
        match tokio::time::timeout(WITHIN, self.ask(calls, account, id, Look::Known)).await {
            Ok(TokenResult::Token(token)) => Some(keys(account, token)),
            _ => None,
        }
    }

    async fn ask(&self, calls: &Calls, account: &Arc<Account>, id: &str, how: Look) -> TokenResult {
        let Some(own) = owner(account) else { return TokenResult::Nobody };
        let (key, now_ms) = ((own, id.to_owned()), calls.lifecycle.clock.now_ms());
        let mut under_way = {
            let mut known = self.lock();
            let entry = known.of.get(&key);
            let running = entry.and_then(|entry| entry.under_way.clone()).filter(|one| one.has_changed().is_ok());
            match (running, entry) {
                (Some(running), _) => running,
                (None, Some(entry)) if !entry.is_due(now_ms, how) => return entry.answer(now_ms),
                (None, entry) => {
                    let before = entry.map_or(TokenResult::Unknown, |entry| entry.answer(now_ms));
                    let is_known = entry.is_some_and(|entry| entry.token.is_some());
                    if !is_known && !known.may_ask(&key.0, now_ms) {
                        warn!(account = %account.name, "subaccount look-up skipped: too many unknown subaccounts within a minute");
                        return before;
                    }
                    known.make_room();
                    let (done, running) = watch::channel(());
                    known.of.entry(key.clone()).or_default().under_way = Some(running.clone());
                    let (this, calls, account, id) = (self.clone(), calls.clone(), account.clone(), id.to_owned());
                    let key = key.clone();
                    calls.tasks.clone().spawn(async move {
                        this.learn(&calls, &account, &id, key).await;
                        drop(done);
                    });
                    running
                }
            }
        };
        // The channel closes without a value.
        let _ = under_way.changed().await;
        self.lock().of.get(&key).map_or(TokenResult::Unknown, |entry| entry.answer(calls.lifecycle.clock.now_ms()))
    }

    /// Fetches the token, even if its waiter is gone.
    async fn learn(&self, calls: &Calls, account: &Account, id: &str, key: (String, String)) {
        let answer = calls.provider.subaccount_token(account, id).await;
        let now_ms = calls.lifecycle.clock.now_ms();
        let mut known = self.lock();
        let Some(entry) = known.of.get_mut(&key) else { return };
        entry.under_way = None;
        match answer {
            // The account's own credentials may be the cause. The known token stays valid for a day.
            Ok(None) if entry.token.is_some() && entry.answered_at.is_some_and(|at| now_ms - at < KEPT_MS) => {
                entry.failed_at = Some(now_ms);
                warn!(account = %account.name, subaccount = id, "subaccount not found at its provider any more; its known token stays valid for a day");
            }
            Ok(token) => {
                info!(account = %account.name, subaccount = id, ours = token.is_some(), "subaccount looked up");
                (entry.token, entry.answered_at, entry.failed_at) = (token, Some(now_ms), None);
            }
            // A known token stays valid.
            Err(error) => {
                entry.failed_at = Some(now_ms);
                warn!(account = %account.name, subaccount = id, %error, "failed to fetch a subaccount's token")
            }
        }
    }
}

/// The id of the parent account.
fn owner(account: &Account) -> Option<String> {
    let own = account.provider.subaccounts.as_ref().and_then(|rule| account.secrets.get(&rule.own))?;
    Some(format!("{}/{}", account.name, own.expose()))
}

impl CachedSubaccounts {
    fn may_ask(&mut self, account: &str, now_ms: UnixMs) -> bool {
        let asked = self.asked.entry(account.to_owned()).or_default();
        while asked.front().is_some_and(|at| now_ms - at >= 60_000) {
            asked.pop_front();
        }
        let may = asked.len() < ASKS_A_MINUTE;
        if may {
            asked.push_back(now_ms);
        }
        may
    }

    fn oldest(&self) -> Option<(String, String)> {
        let at_rest = self.of.iter().filter(|(_, entry)| entry.under_way.is_none());
        at_rest.min_by_key(|(_, entry)| entry.answered_at).map(|(key, _)| key.clone())
    }

    /// Drops unknown ones first, then the one that was fetched longest ago.
    fn make_room(&mut self) {
        if self.of.len() < KNOWN_MAX {
            return;
        }
        self.of.retain(|_, entry| entry.token.is_some() || entry.under_way.is_some());
        if self.of.len() >= KNOWN_MAX
            && let Some(oldest) = self.oldest()
        {
            self.of.remove(&oldest);
        }
    }
}

fn keys(account: &Account, token: Secret) -> Keys {
    Keys { secrets: vec![token], named: account.shared_keys.clone(), tokens: vec![] }
}
