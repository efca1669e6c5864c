//! The limiter in a Redis that replicas share. A rejection is final, an admission counts when the call is recorded under the same
//! epoch.
//!
//! # What keeps it exact
//!
//! * Every operation names an epoch. The server answers only for the epoch that was published last.
//! * The published epoch names the data set it was filled into (`master_replid`). A server that restarted, was promoted or took
//!   over another's data has another one, so a loss of leases is noticed before the first decision.
//! * Leases are one sorted set per epoch, rates another, each with a marker: a set that was flushed or evicted is noticed.
//! * A decision is one script, and so is a release. The time is the server's.
//! * A decision waits for `timeout` at most, and is requested once. One whose answer was lost is revoked by
//!   [`RedisGate::forbid`], which also rejects it should it arrive late.
//!
//! # Access
//!
//! The least rights of a user, for the pool `default` (in a file of rules: without `ACL SETUSER`):
//!
//! ```text
//! ACL SETUSER ringfence on >PASSWORD resetchannels &ringfence:1:{default}:* ~ringfence:1:{default}:* -@all +evalsha +script|load +info +time +get +set
//!   +exists +unlink +rename +persist +pexpire +zadd +zrem +zcard +zscore +zlexcount +zrangebylex +hset +hget +hexists +hlen +hrandfield +hkeys +hdel +pubsub|numsub +publish +subscribe
//! ```
//!
//! and `+select` where the URL names a database other than 0.

mod breaker;
mod channel;
mod connection;
mod inspect;
mod keys;
mod rebuild;
mod scripts;
mod settings;
#[cfg(test)]
pub(crate) mod tests;

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use redis::Value;
use tokio::task::JoinHandle;

use super::{Gate, GateError, Result};
use crate::ids::CallId;
use crate::net::install_crypto_provider;
use crate::policy::decision::{AdmissionRequest, Counts, Decision, LeaseRow, RateLog, Shortfall};
use crate::policy::{Bound, Mode};
use crate::provider::secret::Secret;
use breaker::Shared;
use connection::Fault;
use keys::escape;
use scripts::Script;

pub use breaker::Health;
pub use inspect::{Observed, Problem};
pub use settings::RedisSettings;

/// The longest wait for an operation other than a decision.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(5);
/// The time for which a revoked admission is rejected.
const FORBIDDEN_FOR: Duration = Duration::from_secs(60);
/// Leases per page.
const HELD_PAGE: usize = 2_000;
/// Limit keys per page.
const COUNTS_PAGE: usize = 500;
/// The cursor before the first page. No limit key and no lease equals it.
const START: &str = "|";

/// The limiter in Redis. Dropping it ends its connection and its task.
pub struct RedisGate {
    shared: Arc<Shared>,
    keeper: JoinHandle<()>,
}

impl std::fmt::Debug for RedisGate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisGate").field("redis", &self.shared.settings.shown()).finish_non_exhaustive()
    }
}

#[async_trait]
impl Gate for RedisGate {
    async fn admit(&self, epoch: i64, request: &AdmissionRequest) -> Result<Decision> {
        self.shared.decisions.fetch_add(1, Ordering::Relaxed);
        let mut keys = self.shared.keys.of_epoch(epoch);
        keys.push(self.shared.keys.gone(&request.call));
        let mode = match request.mode {
            Mode::Enforce => "enforce",
            Mode::Observe => "observe",
        };
        let mut args = vec![
            epoch.to_string(),
            if self.shared.settings.callers_clock { request.at_ms.to_string() } else { "-".to_owned() },
            request.call.to_string(),
            request.slots.wanted.to_string(),
            request.slots.at_least.to_string(),
            mode.to_owned(),
        ];
        for binding in &request.bindings {
            let key = escape(&binding.key);
            args.extend(match binding.bound {
                Bound::Concurrent(allowed) => {
                    ["c".to_owned(), key, allowed.to_string(), "-".to_owned(), "-".to_owned()]
                }
                Bound::Rate(rate) => {
                    let [count, held, slice] = [i64::from(rate.count), rate.held_ms(), rate.slice_ms()];
                    ["r".to_owned(), key, count.to_string(), held.to_string(), slice.to_string()]
                }
            });
        }
        let words = self.ask(Script::Admit, &keys, &args, self.shared.settings.timeout).await?;
        match words[0].as_str() {
            "held" => Ok(Decision::Admitted { slots: number(&words, 1)?, would_reject: None }),
            "gone" => Err(GateError::Away("this admission was already revoked".to_owned())),
            "admitted" => {
                let would_reject = if words.len() > 2 { Some(short(&words[2..])?) } else { None };
                Ok(Decision::Admitted { slots: number(&words, 1)?, would_reject })
            }
            "refused" => Ok(Decision::Rejected(short(words.get(1..).unwrap_or_default())?)),
            other => Err(strange(other)),
        }
    }

    async fn adopt(&self, epoch: i64, held: &LeaseRow) -> Result<()> {
        let mut args = vec![
            epoch.to_string(),
            held.call.to_string(),
            held.slots.to_string(),
            held.since_ms.to_string(),
            u8::from(held.over_limit).to_string(),
        ];
        args.extend(held.keys.iter().map(|key| escape(key)));
        let keys = self.shared.keys.of_epoch(epoch);
        self.ask(Script::Adopt, &keys, &args, self.shared.settings.timeout).await.map(drop)
    }

    async fn release(&self, epoch: i64, call: &CallId) -> Result<bool> {
        self.remove_lease(epoch, call, self.shared.keys.of_epoch(epoch)).await
    }

    async fn forbid(&self, epoch: i64, call: &CallId) -> Result<()> {
        let mut keys = self.shared.keys.of_epoch(epoch);
        keys.push(self.shared.keys.gone(call));
        self.remove_lease(epoch, call, keys).await.map(drop)
    }

    async fn rebuild(&self, epoch: i64, held: &[LeaseRow], rates: &[(String, RateLog)]) -> Result<()> {
        RedisGate::rebuild(self, epoch, held, rates).await
    }

    async fn counts(&self, epoch: i64) -> Result<Counts> {
        let keys = self.shared.keys.of_epoch(epoch);
        let (mut counts, mut from) = (Counts::default(), START.to_owned());
        loop {
            let args = [epoch.to_string(), from, COUNTS_PAGE.to_string()];
            let words = self.ask(Script::Counts, &keys, &args, ADMIN_TIMEOUT).await?;
            (counts.calls, counts.over_limit) = (number(&words, 1)?, number(&words, 2)?);
            let pairs = words.get(3..).unwrap_or_default();
            for at in (0..pairs.len()).step_by(2) {
                counts.by_key.insert(keys::unescape(&pairs[at]), number(pairs, at + 1)?);
            }
            match pairs.len().checked_sub(2) {
                Some(last) if pairs.len() >= 2 * COUNTS_PAGE => from = pairs[last].clone(),
                _ => return Ok(counts),
            }
        }
    }

    async fn held(&self, epoch: i64) -> Result<Vec<LeaseRow>> {
        let keys = self.shared.keys.of_epoch(epoch);
        let (mut all, mut from) = (Vec::new(), START.to_owned());
        loop {
            let args = [epoch.to_string(), from, HELD_PAGE.to_string()];
            let page = self.ask(Script::Leases, &keys, &args, ADMIN_TIMEOUT).await?;
            for member in &page[1..] {
                all.push(keys::lease(member).ok_or_else(|| strange("malformed lease"))?);
            }
            match page.last() {
                Some(last) if page.len() > HELD_PAGE => from = last.clone(),
                _ => return Ok(all),
            }
        }
    }

    fn renew_credential(&self, url: &Secret) {
        self.shared.renew(url);
    }

    fn away(&self) -> Option<(Instant, String)> {
        let health = self.health();
        let since = Instant::now().checked_sub(health.lasting).unwrap_or_else(Instant::now);
        (!health.up).then(|| (since, health.last_error.unwrap_or_else(|| "not connected yet".to_owned())))
    }
}

impl Drop for RedisGate {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl RedisGate {
    /// A limiter that connects in the background, and retries for ever. Until it is connected, it is [`GateError::Away`].
    ///
    /// # Errors
    /// The settings cannot be used, or there is no runtime.
    pub fn new(settings: RedisSettings) -> std::result::Result<Self, String> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|error| error.to_string())?;
        settings.usable()?;
        install_crypto_provider();
        let shared = Arc::new(Shared::new(settings));
        let keeper = runtime.spawn({
            let shared = Arc::clone(&shared);
            async move { shared.stay_connected().await }
        });
        Ok(Self { shared, keeper })
    }

    async fn remove_lease(&self, epoch: i64, call: &CallId, keys: Vec<String>) -> Result<bool> {
        let args = [epoch.to_string(), call.to_string(), FORBIDDEN_FOR.as_millis().to_string()];
        let words = self.ask(Script::Release, &keys, &args, self.shared.settings.timeout).await?;
        Ok(words.get(1).is_some_and(|freed| freed == "1"))
    }

    /// Problems that an operator has to solve before the limiter can rely on the server. Uses a connection of its own, so that it
    /// also reports why the limiter has none.
    ///
    /// # Errors
    /// [`GateError::Away`]: there is no server to ask.
    pub async fn inspect(&self) -> Result<Vec<Problem>> {
        let shared = &self.shared;
        let look = async {
            let link = connection::find(&shared.newest(), &shared.keys, connection::Purpose::Inspect).await?;
            inspect::look(&link, &shared.keys).await
        };
        match tokio::time::timeout(ADMIN_TIMEOUT, look).await {
            Ok(looked) => looked.map_err(|fault| GateError::Away(fault.to_string())),
            Err(_) => Err(GateError::Away(format!("no answer within {} ms", ADMIN_TIMEOUT.as_millis()))),
        }
    }

    /// The server's clock, and what it keeps on disk.
    ///
    /// # Errors
    /// [`GateError::Away`]: there is no server to ask, or its user may not.
    pub async fn observe(&self) -> Result<Observed> {
        let shared = &self.shared;
        let look = async {
            let link = connection::find(&shared.newest(), &shared.keys, connection::Purpose::Inspect).await?;
            inspect::observe(&link).await
        };
        match tokio::time::timeout(ADMIN_TIMEOUT, look).await {
            Ok(looked) => looked.map_err(|fault| GateError::Away(fault.to_string())),
            Err(_) => Err(GateError::Away(format!("no answer within {} ms", ADMIN_TIMEOUT.as_millis()))),
        }
    }

    /// Checks whether decisions are possible now: one round trip that does all that decisions do.
    ///
    /// # Errors
    /// [`GateError::Away`].
    pub async fn ping(&self) -> Result<()> {
        let link = self.shared.link()?;
        let bound = self.shared.settings.timeout;
        let probe = async { link.probe(&self.shared.keys, bound).await.map(|()| Value::Nil) };
        self.shared.round_trip(&link, bound, probe).await.map(drop)
    }

    /// Health of the server. No round trip.
    pub fn health(&self) -> Health {
        self.shared.health()
    }

    /// Runs a script for an epoch.
    async fn ask(&self, script: Script, keys: &[String], args: &[String], bound: Duration) -> Result<Vec<String>> {
        let said = self.shared.run(script, keys, args, bound).await?;
        let words = inspect::words(said).map_err(GateError::Away)?;
        match words.first().map(String::as_str) {
            Some("unfilled") => Err(GateError::Unfilled(words.get(1).cloned().unwrap_or_default())),
            Some("epoch") => Err(GateError::Epoch(number(&words, 1)?)),
            Some(_) => Ok(words),
            None => Err(strange("nothing")),
        }
    }
}

fn number<T: FromStr>(words: &[String], at: usize) -> Result<T> {
    words.get(at).and_then(|word| word.parse().ok()).ok_or_else(|| strange("no number"))
}

fn strange(what: &str) -> GateError {
    GateError::Away(format!("unexpected reply: {what}"))
}

/// Parses binding, held, missing, wait, oldest….
fn short(words: &[String]) -> Result<Shortfall> {
    let token_in_ms = match words.get(3).map(String::as_str) {
        Some("") => None,
        _ => Some(number(words, 3)?),
    };
    let oldest = (4..words.len()).map(|at| number(words, at)).collect::<Result<_>>()?;
    Ok(Shortfall {
        binding: number(words, 0)?,
        current: number(words, 1)?,
        lacking: number(words, 2)?,
        token_in_ms,
        oldest,
    })
}
