//! Fills a server from the record, and publishes what was filled in.

use redis::Cmd;
use ulid::Ulid;

use super::keys::{escape, members};
use super::scripts::Script;
use super::{ADMIN_TIMEOUT, GateError, RedisGate, Result, strange};
use crate::admission::{LeaseRow, RateLog};

/// Members that are sent at once: a few milliseconds of the server's time.
const PORTION: usize = 2_000;
/// What nobody publishes is forgotten after this.
const UNPUBLISHED_MS: u64 = 600_000;
/// How often what is published may change under a rebuild before it gives up.
const TRIES: usize = 5;

impl RedisGate {
    /// Fills the server with what an epoch starts from, and makes that epoch the one that counts there: only upward, unless what
    /// is published is from another line of data. What the epoch before had is deleted.
    ///
    /// Nobody reads what is filled in before it is published, in one step and whole. Of two rebuilds of one epoch the first
    /// counts.
    ///
    /// # Errors
    /// [`GateError::Epoch`]: a later one is published. Others: nothing was published, or it is not known; may be repeated.
    pub async fn rebuild(&self, epoch: i64, held: &[LeaseRow], rates: &[(String, RateLog)]) -> Result<()> {
        // Under a name of its own: what another attempt has still on its way comes to nothing.
        let [leases, filled_rates] = self.shared.keys.filling(epoch, &Ulid::new().to_string().to_lowercase());
        let (mut said, line) = self.before(epoch).await?;
        let filled = self.fill([&leases, &filled_rates], held, rates).await?;
        for _ in 0..TRIES {
            let before = said.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0);
            let mut keys = self.shared.keys.of_epoch(epoch);
            keys.extend([leases.clone(), filled_rates.clone()]);
            // Of an epoch that is filled once more, nothing else is deleted: these keys do not exist.
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

    /// What is published, and the server's line of data.
    pub(super) async fn before(&self, epoch: i64) -> Result<(String, String)> {
        let keys = self.shared.keys.of_epoch(epoch);
        let words = self.ask(Script::Before, &keys, &[epoch.to_string()], ADMIN_TIMEOUT).await?;
        match <[String; 3]>::try_from(words) {
            Ok([_, said, line]) => Ok((said, line)),
            Err(_) => Err(strange("no line")),
        }
    }

    /// Returns how many members the leases have.
    async fn fill(&self, [leases, rates]: [&str; 2], held: &[LeaseRow], logs: &[(String, RateLog)]) -> Result<usize> {
        let mut all = vec!["!".to_owned()];
        held.iter().for_each(|held| members(held, &mut all));
        // In their order, each finds its place at the end of the set.
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
        self.shared.trip(&link, ADMIN_TIMEOUT, link.command(command)).await
    }
}
