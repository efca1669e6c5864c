//! Fills a server from the store, and publishes the result.

use redis::Cmd;
use ulid::Ulid;

use super::keys::{escape, members};
use super::scripts::Script;
use super::{ADMIN_TIMEOUT, GateError, RedisGate, Result, strange};
use crate::policy::decision::{LeaseRow, RateLog};

/// Members per command: a few milliseconds of the server's time.
const PORTION: usize = 2_000;
/// Unpublished data expires after this time, in milliseconds.
const UNPUBLISHED_MS: u64 = 600_000;
/// The number of times that the published epoch may change during a rebuild before it gives up.
const TRIES: usize = 5;

impl RedisGate {
    /// Fills the server with the data of an epoch, and publishes that epoch: only upward, unless the published one is from
    /// another data set. The previous epoch's data is deleted.
    ///
    /// The data is not read before it is published, in one step. Of two rebuilds of one epoch the first counts.
    ///
    /// # Errors
    /// [`GateError::Epoch`]: a later one is published. Others: nothing was published, or that is unknown; may be repeated.
    pub async fn rebuild(&self, epoch: i64, held: &[LeaseRow], rates: &[(String, RateLog)]) -> Result<()> {
        // Under a unique name: commands of another attempt that are still in flight have no effect.
        let [leases, filled_rates] = self.shared.keys.filling(epoch, &Ulid::new().to_string().to_lowercase());
        let (mut said, line) = self.before(epoch).await?;
        let filled = self.fill([&leases, &filled_rates], held, rates).await?;
        for _ in 0..TRIES {
            let before = said.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0);
            let mut keys = self.shared.keys.of_epoch(epoch);
            keys.extend([leases.clone(), filled_rates.clone()]);
            // For a repeated rebuild of one epoch nothing else is deleted: these keys do not exist.
            keys.extend(self.shared.keys.of_epoch(if before == epoch { 0 } else { before }).into_iter().skip(1));
            keys.push(self.shared.keys.databases());
            let (database, prefix) = (self.shared.keys.database().to_owned(), self.shared.keys.prefix().to_owned());
            let args = [epoch.to_string(), said, line.clone(), filled.to_string(), database, prefix];
            let words = self.ask(Script::Publish, &keys, &args, ADMIN_TIMEOUT).await?;
            match words[0].as_str() {
                "published" => return Ok(()),
                "again" => said = self.before(epoch).await?.0,
                other => return Err(strange(other)),
            }
        }
        Err(GateError::Away("what is published there changes all the time".to_owned()))
    }

    /// The published epoch, and the server's data set.
    pub(super) async fn before(&self, epoch: i64) -> Result<(String, String)> {
        let keys = self.shared.keys.of_epoch(epoch);
        let words = self.ask(Script::Before, &keys, &[epoch.to_string()], ADMIN_TIMEOUT).await?;
        match <[String; 3]>::try_from(words) {
            Ok([_, said, line]) => Ok((said, line)),
            Err(_) => Err(strange("no line")),
        }
    }

    /// Returns the number of members of the leases.
    async fn fill(&self, [leases, rates]: [&str; 2], held: &[LeaseRow], logs: &[(String, RateLog)]) -> Result<usize> {
        let mut all = vec!["!".to_owned()];
        held.iter().for_each(|held| members(held, &mut all));
        // Sorted, each is appended at the end of the set.
        all.sort_unstable();
        let mut filled = 0;
        for part in all.chunks(PORTION) {
            let mut add = redis::cmd("ZADD");
            add.arg(leases);
            for member in part {
                add.arg(0).arg(member);
            }
            filled += redis::from_redis_value::<usize>(self.send(&add).await?).map_err(|_| strange("no number"))?;
            self.send(redis::cmd("PEXPIRE").arg(leases).arg(UNPUBLISHED_MS)).await?;
        }
        self.send(redis::cmd("HSET").arg(rates).arg("!").arg("")).await?;
        for part in logs.chunks(PORTION) {
            let mut add = redis::cmd("HSET");
            add.arg(rates);
            for (key, log) in part {
                add.arg(format!("r|{}", escape(key))).arg(log.to_string());
            }
            self.send(&add).await?;
        }
        self.send(redis::cmd("PEXPIRE").arg(rates).arg(UNPUBLISHED_MS)).await?;
        Ok(filled)
    }

    async fn send(&self, command: &Cmd) -> Result<redis::Value> {
        let link = self.shared.link()?;
        self.shared.round_trip(&link, ADMIN_TIMEOUT, link.command(command)).await
    }
}
