//! Webhooks of subaccounts are signed with the subaccount's own token. It is asked of the provider with the credentials of the
//! account that has it, and kept in memory alone.
//!
//! Anybody can name a subaccount: who is none is not asked for again for a while, an account is asked so often a minute at most, and
//! once at a time for each.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tracing::{info, warn};

use super::raw::RawWebhook;
use super::route::{Candidate, Signed, verify_with};
use crate::calls::Calls;
use crate::clock::UnixMs;
use crate::provider::account::Account;
use crate::provider::secret::Secret;
use crate::provider::sign::Keys;

/// How long a token counts before it is asked for again.
const FRESH_MS: i64 = 3_600_000;
/// How soon a token that does not fit, and one who is no subaccount, may be asked for again.
const AGAIN_MS: i64 = 60_000;
/// How soon it is asked again after it could not be asked.
const FAILED_MS: i64 = 5_000;
/// How long a webhook waits for it. Twilio waits 15 s for an answer, of which the app may have 12.
const WITHIN: Duration = Duration::from_secs(2);
/// How long a token counts that could not be confirmed since.
const KEPT_MS: i64 = 24 * 3_600_000;
/// How many of an account that nobody knows may be asked for in a minute. Those that are known are asked for once a minute each at most.
const ASKS_A_MINUTE: usize = 300;
/// How many are remembered.
const KNOWN_MAX: usize = 1_000;

/// What is known of subaccounts. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Subaccounts(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    /// By the account that was asked, and its own id.
    of: HashMap<(String, String), Entry>,
    /// When an account was asked in the last minute for one that nobody knew.
    asked: HashMap<String, VecDeque<UnixMs>>,
}

#[derive(Default)]
struct Entry {
    /// The token; none: it is no subaccount.
    token: Option<Secret>,
    answered_at: Option<UnixMs>,
    failed_at: Option<UnixMs>,
    /// Ends when the answer is there.
    under_way: Option<watch::Receiver<()>>,
}

impl Entry {
    fn is_due(&self, now_ms: UnixMs, how: Look) -> bool {
        if self.failed_at.is_some_and(|at| now_ms - at < FAILED_MS) {
            return false;
        }
        let Some(at) = self.answered_at else { return true };
        let fresh_ms = if how == Look::Anew || self.token.is_none() { AGAIN_MS } else { FRESH_MS };
        now_ms - at >= fresh_ms
    }

    fn answer(&self, now_ms: UnixMs) -> Asked {
        match (&self.token, self.answered_at) {
            (Some(token), Some(at)) if now_ms - at < KEPT_MS => Asked::Token(token.clone()),
            (None, Some(_)) => Asked::Nobody,
            _ => Asked::Unknown,
        }
    }
}

/// How a token is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// One that is known will do.
    Known,
    /// One that is known does not fit: it may have been changed since.
    Anew,
}

/// What is known of a subaccount.
enum Asked {
    Token(Secret),
    /// It is none of the account's.
    Nobody,
    /// The provider could not be asked.
    Unknown,
}

/// Whose signature it is.
pub(super) enum Signer<'c> {
    /// This subaccount's of the candidate's account: its keys.
    Subaccount(&'c Candidate, Keys),
    /// That cannot be told just now.
    Unknown,
    /// Nobody's.
    Nobody,
}

impl Subaccounts {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who of the candidates' subaccounts has signed a request that none of the accounts has.
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
            // A token that does not fit may have been changed since.
            for how in [Look::Known, Look::Anew] {
                match self.ask(calls, &from.account, &id, how).await {
                    Asked::Token(token) => {
                        let keys = keys(&from.account, token);
                        if verify_with(from, &keys, signed) == Ok(true) {
                            return Signer::Subaccount(from, keys);
                        }
                    }
                    Asked::Nobody => break,
                    Asked::Unknown => {
                        nobody = Signer::Unknown;
                        break;
                    }
                }
            }
        }
        nobody
    }

    /// What the account's subaccounts that are known sign with: of a request that names none.
    pub(super) fn known_keys(&self, account: &Account) -> Vec<Keys> {
        let Some(own) = owner(account) else { return vec![] };
        let known = self.lock();
        let of_account = known.of.iter().filter(|((owner, _), _)| *owner == own);
        of_account.filter_map(|(_, entry)| Some(keys(account, entry.token.clone()?))).collect()
    }

    /// The keys of a subaccount, as far as they are known or can be had.
    pub(super) async fn keys_of(&self, calls: &Calls, account: &Arc<Account>, id: &str) -> Option<Keys> {
        match tokio::time::timeout(WITHIN, self.ask(calls, account, id, Look::Known)).await {
            Ok(Asked::Token(token)) => Some(keys(account, token)),
            _ => None,
        }
    }

    async fn ask(&self, calls: &Calls, account: &Arc<Account>, id: &str, how: Look) -> Asked {
        let Some(own) = owner(account) else { return Asked::Nobody };
        let (key, now_ms) = ((own, id.to_owned()), calls.lifecycle.clock.now_ms());
        let mut under_way = {
            let mut known = self.lock();
            let entry = known.of.get(&key);
            let running = entry.and_then(|entry| entry.under_way.clone()).filter(|one| one.has_changed().is_ok());
            match (running, entry) {
                (Some(running), _) => running,
                (None, Some(entry)) if !entry.is_due(now_ms, how) => return entry.answer(now_ms),
                (None, entry) => {
                    let before = entry.map_or(Asked::Unknown, |entry| entry.answer(now_ms));
                    let is_known = entry.is_some_and(|entry| entry.token.is_some());
                    if !is_known && !known.may_ask(&key.0, now_ms) {
                        warn!(account = %account.name, "subaccount look-up skipped: too many pending");
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
        // It ends without a word.
        let _ = under_way.changed().await;
        self.lock().of.get(&key).map_or(Asked::Unknown, |entry| entry.answer(calls.lifecycle.clock.now_ms()))
    }

    /// Asks, whoever still waits for it.
    async fn learn(&self, calls: &Calls, account: &Account, id: &str, key: (String, String)) {
        let answer = calls.provider.subaccount_token(account, id).await;
        let now_ms = calls.lifecycle.clock.now_ms();
        let mut known = self.lock();
        let Some(entry) = known.of.get_mut(&key) else { return };
        entry.under_way = None;
        match answer {
            // It may be the account's own credentials that are refused. What it signs with is believed for a day yet.
            Ok(None) if entry.token.is_some() && entry.answered_at.is_some_and(|at| now_ms - at < KEPT_MS) => {
                entry.failed_at = Some(now_ms);
                warn!(account = %account.name, subaccount = id, "subaccount no longer visible");
            }
            Ok(token) => {
                info!(account = %account.name, subaccount = id, ours = token.is_some(), "subaccount looked up");
                (entry.token, entry.answered_at, entry.failed_at) = (token, Some(now_ms), None);
            }
            // A token that was known stays.
            Err(error) => {
                entry.failed_at = Some(now_ms);
                warn!(account = %account.name, subaccount = id, %error, "failed to fetch a subaccount's token")
            }
        }
    }
}

/// Whose subaccounts they are.
fn owner(account: &Account) -> Option<String> {
    let own = account.provider.subaccounts.as_ref().and_then(|rule| account.secrets.get(&rule.own))?;
    Some(format!("{}/{}", account.name, own.expose()))
}

impl Known {
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

    /// Forgets those who are none, then the one that was asked for longest ago.
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
