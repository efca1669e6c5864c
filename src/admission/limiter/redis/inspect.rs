//! Inspects a server: whether a limiter can rely on it.

use std::time::Duration;

use redis::Value;
use tokio::time::timeout;

use super::connection::{Fault, Link, failures};
use super::keys::Keys;
use super::scripts::Script;
use crate::clock::Clock;

/// The oldest version that the scripts were tested on.
const VERSION_MIN: u32 = 7;
const LOOK_WITHIN: Duration = Duration::from_secs(2);

/// A setting that an operator has to change before a limiter can rely on the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The problem.
    pub what: String,
    /// The remedy.
    pub hint: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.what, self.hint)
    }
}

impl Problem {
    fn new(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), hint: hint.into() }
    }
}

/// Facts that a server reports about itself and that a limiter does not depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The lead of its clock over ours, in seconds.
    pub ahead_secs: i64,
    /// Whether it writes an append-only file; `None` where its user may not read that.
    pub append_only: Option<bool>,
    /// The state of its last snapshot, as in `ok`.
    pub snapshot: Option<String>,
    /// The state of the last write of its append-only file, as in `ok`.
    pub append: Option<String>,
}

impl Observed {
    fn new(now_secs: i64, info: &str) -> Self {
        let owned = |name| field(info, name).map(str::to_owned);
        Self {
            ahead_secs: now_secs - Clock::system().now_ms() / 1000,
            append_only: field(info, "aof_enabled").map(|on| on == "1"),
            snapshot: owned("rdb_last_bgsave_status"),
            append: owned("aof_last_write_status").filter(|_| field(info, "aof_enabled") == Some("1")),
        }
    }

    /// Returns the file that the server could not write to its disk, after which it may reject every write.
    pub fn failed(&self) -> Option<&'static str> {
        let is_bad = |state: &Option<String>| state.as_deref().is_some_and(|state| state != "ok");
        match (is_bad(&self.append), is_bad(&self.snapshot)) {
            (true, _) => Some("append-only file"),
            (false, true) => Some("snapshot"),
            (false, false) => None,
        }
    }
}

/// Observes a server.
pub(super) async fn observe(link: &Link) -> Result<Observed, Fault> {
    let asked = async {
        let time: Vec<String> = redis::from_redis_value(link.command(&redis::cmd("TIME")).await?)
            .map_err(|error| Fault::Answer(error.to_string()))?;
        let now_secs = time.first().and_then(|secs| secs.parse().ok()).unwrap_or_default();
        let info = link.command(redis::cmd("INFO").arg("persistence")).await?;
        Ok::<_, Fault>(Observed::new(now_secs, &redis::from_redis_value::<String>(info).unwrap_or_default()))
    };
    timeout(LOOK_WITHIN, asked).await.map_err(|_| Fault::Late(LOOK_WITHIN))?
}

/// The rights that the user needs, in the form of `ACL SETUSER`.
fn rights(keys: &Keys) -> String {
    format!(
        "ACL SETUSER ringfence on >PASSWORD resetchannels &{0}:* ~{0}:* -@all +evalsha +script|load +info +time +get +set \
         +exists +unlink +rename +persist +pexpire +zadd +zrem +zcard +zscore +zlexcount +zrangebylex +hset +hget +hexists +hlen +hrandfield +hkeys +hdel +pubsub|numsub \
         +publish +subscribe",
        keys.prefix()
    )
}

/// The problems of a server.
pub(super) async fn look(link: &Link, keys: &Keys) -> Result<Vec<Problem>, Fault> {
    timeout(LOOK_WITHIN, asked(link, keys)).await.map_err(|_| Fault::Late(LOOK_WITHIN))?
}

async fn asked(link: &Link, keys: &Keys) -> Result<Vec<Problem>, Fault> {
    let mut problems = Vec::new();
    let lacks = |command: &str| Problem::new(format!("its user may not run {command}"), rights(keys));
    let info = match link.command(&redis::cmd("INFO")).await {
        Ok(said) => redis::from_redis_value::<String>(said).unwrap_or_default(),
        Err(Fault::Away(why)) if why.contains("NOPERM") => {
            problems.push(lacks("INFO"));
            String::new()
        }
        Err(fault) => return Err(fault),
    };
    problems.extend(of_info(&info));
    let is_replica = field(&info, "role") == Some("slave");
    match link.run(Script::Probe, &keys.probe(), &[]).await {
        Ok(probed) => {
            for (command, why) in failures(probed)? {
                let is_lacking = ["NOPERM", "can't run", "no permissions"].iter().any(|words| why.contains(words));
                match is_lacking {
                    true if command == "INFO" && info.is_empty() => {}
                    true => problems.push(lacks(&command)),
                    // Reported already.
                    false if is_replica && why.contains("READONLY") => {}
                    false => {
                        problems
                            .push(Problem::new(format!("{command} fails: {why}"), "see what the server says of it"));
                        break;
                    }
                }
            }
        }
        Err(Fault::Away(why)) if why.contains("NOPERM") => {
            let what = format!("its user may not run the scripts on {}:*: {why}", keys.prefix());
            problems.push(Problem::new(what, rights(keys)));
        }
        Err(fault) => return Err(fault),
    }
    Ok(problems)
}

/// The problems that `INFO` shows.
fn of_info(info: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let Some(policy) = field(info, "maxmemory_policy").filter(|policy| *policy != "noeviction") {
        problems.push(Problem::new(
            format!("maxmemory-policy is {policy}: leases would be evicted when its memory is full"),
            "set maxmemory-policy noeviction, or give the gate a Redis of its own",
        ));
    }
    if field(info, "role") == Some("slave") {
        problems.push(Problem::new(
            "it is a replica, which takes no writes",
            "name the master, or the sentinels that know it: redis+sentinel://host1:26379,host2:26379/master",
        ));
    }
    if let Some(version) = field(info, "redis_version")
        && version.split('.').next().and_then(|major| major.parse().ok()).is_none_or(|major: u32| major < VERSION_MIN)
    {
        problems
            .push(Problem::new(format!("it is version {version}"), format!("Redis {VERSION_MIN} or later is needed")));
    }
    problems
}

fn field<'i>(info: &'i str, name: &str) -> Option<&'i str> {
    info.lines().find_map(|line| line.trim_end().strip_prefix(name)?.strip_prefix(':'))
}

/// The strings of an answer.
pub(super) fn words(said: Value) -> Result<Vec<String>, String> {
    redis::from_redis_value(said).map_err(|error| format!("unexpected reply: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn persistence_is_read() {
        let now_secs = Clock::system().now_ms() / 1000;
        let of = |info: &str| Observed::new(now_secs + 90, info);
        let good = of("aof_enabled:0\r\nrdb_last_bgsave_status:ok\r\naof_last_write_status:err\r\n");
        assert_eq!((good.append_only, good.failed()), (Some(false), None));
        assert!((89..=90).contains(&good.ahead_secs));
        assert_eq!(of("aof_enabled:0\r\nrdb_last_bgsave_status:err\r\n").failed(), Some("snapshot"));
        let bad = of("aof_enabled:1\r\nrdb_last_bgsave_status:ok\r\naof_last_write_status:err\r\n");
        assert_eq!(bad.failed(), Some("append-only file"));
        assert_eq!((of("").append_only, of("").failed()), (None, None));
    }

    #[test]
    fn what_info_shows_is_told() {
        let info = "# Server\r\nredis_version:6.2.14\r\nrole:slave\r\nmaxmemory_policy:allkeys-lru\r\n";
        let told: Vec<_> = of_info(info).into_iter().map(|problem| problem.what).collect();
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(of_info("redis_version:7.2.4\r\nrole:master\r\nmaxmemory_policy:noeviction\r\n").is_empty());
    }
}
