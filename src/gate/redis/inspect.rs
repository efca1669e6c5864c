//! Inspects a server: whether a limiter can rely on it.

use std::time::Duration;

use redis::Value;
use tokio::time::timeout;

use super::connection::{Fault, Link, failures};
use super::keys::Keys;
use super::scripts::Script;

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
    fn what_info_shows_is_told() {
        let info = "# Server\r\nredis_version:6.2.14\r\nrole:slave\r\nmaxmemory_policy:allkeys-lru\r\n";
        let told: Vec<_> = of_info(info).into_iter().map(|problem| problem.what).collect();
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(of_info("redis_version:7.2.4\r\nrole:master\r\nmaxmemory_policy:noeviction\r\n").is_empty());
    }
}
