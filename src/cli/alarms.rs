//! The alarms in a sidecar's status, with advice. Used by `status`, `top` and `doctor`. Pure.

use serde_json::Value;

use super::text::{field, list};

/// The severity of an alarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// Calls are refused, or may be lost.
    Bad,
    /// Calls may be refused or lost soon.
    Warn,
}

impl Level {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Level::Bad => "bad",
            Level::Warn => "warn",
        }
    }
}

/// A condition that needs attention, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Alarm {
    pub(super) level: Level,
    pub(super) what: String,
    pub(super) fix: &'static str,
}

/// All alarms, the most severe first.
pub(super) fn alarms(status: &Value) -> Vec<Alarm> {
    let mut all = Vec::new();
    let mut add = |level, what: String, fix| all.push(Alarm { level, what, fix });
    let count = |value: &Value| value.as_u64().unwrap_or(0);
    if status["draining"] == true {
        add(Level::Warn, "this process is stopping".to_owned(), "start another");
    }
    let bypass = &status["bypass"];
    if bypass.is_object() {
        let until = field(bypass, "until");
        let what = format!("bypass on until {until}, by {}: {}", field(bypass, "by"), field(bypass, "reason"));
        add(Level::Bad, what, "limits reject nothing; to end it: ringfence bypass off");
        if bypass["everywhere"] == false {
            let what = "the bypass is on in this process only: the database does not answer".to_owned();
            add(Level::Warn, what, "switch it on at every replica, or repair the database");
        }
    }
    let store = &status["store"];
    if store["ok"] == false {
        let what = format!("store {}: {}", field(store, "path"), field(store, "error"));
        add(Level::Bad, what, "no call is admitted while the database rejects writes; docs/runbook.md");
    }
    if count(&store["journaled"]) > 0 {
        let what = format!("{} webhooks wait in the journal", count(&store["journaled"]));
        add(Level::Warn, what, "they are applied when the store is back");
    }
    let gate = &status["gate"]["standing"];
    if gate["degraded"] == true {
        let why = gate["away"].as_str().unwrap_or("it has just recovered");
        let what = format!("limiter: {} active instead of {}: {why}", field(gate, "mode"), field(gate, "backend"));
        add(Level::Bad, what, "check Redis; the limiter returns to it automatically");
    }
    if count(&gate["waiting"]) > 0 {
        let what = format!("{} limiter operations pending", count(&gate["waiting"]));
        add(Level::Warn, what, "sent when the limiter responds");
    }
    if status["policiesDiffer"] == true {
        let what = "replicas run different policies; the lower number of each limit applies".to_owned();
        add(Level::Warn, what, "use the same config at every replica, and reload");
    }
    let failed = &status["policy"]["lastFailedReload"];
    if failed.is_object() {
        let what = format!("config not loaded at {}: {}", field(failed, "at"), field(failed, "reason"));
        add(Level::Warn, what, "ringfence check, then ringfence reload");
    }
    for account in list(status, "accounts") {
        of_account(status, account, &mut add);
    }
    all.sort_by_key(|alarm| alarm.level);
    all
}

fn of_account(status: &Value, account: &Value, add: &mut impl FnMut(Level, String, &'static str)) {
    let name = field(account, "name");
    let count = |key: &str| account[key].as_u64().unwrap_or(0);
    if let Some(error) = account["sweepError"].as_str() {
        let what = format!("account {name}: cannot query its provider: {error}");
        add(Level::Warn, what, "ringfence doctor; until then only webhooks and deadlines end calls");
    }
    if let Some(limit) = account["limit"].as_u64().filter(|limit| *limit > 0) {
        let in_use = count("inUse");
        let what = format!("account {name}: {in_use} of {limit} calls in use");
        if in_use >= limit && status["bypass"].is_object() {
            add(Level::Warn, what, "the bypass is on: creates go on; once it ends, they are rejected");
        } else if in_use >= limit && status["mode"] == "observe" {
            add(Level::Warn, what, "the mode is observe: creates go on; enforce would reject them");
        } else if in_use >= limit {
            add(Level::Bad, what, "creates are rejected until one ends: ringfence calls list --account NAME");
        } else if in_use * 5 >= limit * 4 {
            add(Level::Warn, what, "nearly full");
        }
    }
    if count("overLimit") > 0 {
        let what = format!("account {name}: {} calls are over a limit", count("overLimit"));
        add(Level::Warn, what, "they were not placed through ringfence, or began while it was full");
    }
    if count("unsettled") > 0 {
        let what = format!("account {name}: {} creates have an unknown outcome", count("unsettled"));
        add(Level::Warn, what, "they are being looked up; ringfence reconcile does so now");
    }
    if let Some(live) = account["providerLive"].as_u64().filter(|live| *live > count("inUse")) {
        let what = format!("account {name}: its provider reports {live} calls, {} are known here", count("inUse"));
        add(Level::Warn, what, "calls are placed outside ringfence, or not reconciled yet");
    }
    let unread = account["unread"].as_object().map_or(0, |unread| unread.len());
    if unread > 0 {
        let what = format!("account {name}: the state of {unread} calls cannot be read");
        add(Level::Warn, what, "the log says why; their slots stay held");
    }
    for seen in list(account, "hooks").iter().filter(|seen| seen["late"] == true) {
        let (webhook, missed) = (field(seen, "webhook"), &seen["missedInARow"]);
        let what = format!("account {name}: {missed} calls in a row ended without its webhook {webhook}");
        add(Level::Warn, what, "check the webhook at the provider: ringfence doctor");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn alarms_are_sorted_by_severity() {
        let sound = json!({
            "draining": false, "bypass": null, "store": {"ok": true, "journaled": 0}, "policiesDiffer": false,
            "gate": {"standing": {"degraded": false, "waiting": 0}}, "policy": {"hash": "x", "lastFailedReload": null},
            "accounts": [{"name": "e", "inUse": 3, "limit": 10, "providerLive": 3, "unread": {}, "overLimit": 0}],
        });
        assert_eq!(alarms(&sound), []);
        let mut ill = sound.clone();
        ill["accounts"][0]["inUse"] = json!(8);
        ill["accounts"][0]["sweepError"] = json!("no answer");
        ill["store"]["ok"] = json!(false);
        ill["bypass"] = json!({"until": "soon", "by": "local", "reason": "test", "everywhere": false});
        let found = alarms(&ill);
        let levels: Vec<Level> = found.iter().map(|alarm| alarm.level).collect();
        assert_eq!(levels, [Level::Bad, Level::Bad, Level::Warn, Level::Warn, Level::Warn], "{found:?}");
        assert!(found[0].what.starts_with("bypass on until soon, by local: test"), "{found:?}");
        ill["accounts"][0]["inUse"] = json!(10);
        let full = |status: &Value| {
            let alarm = alarms(status).into_iter().find(|alarm| alarm.what.contains("10 of 10 calls in use")).unwrap();
            (alarm.level, alarm.fix.split(':').next().unwrap_or_default().to_owned())
        };
        assert_eq!(full(&ill), (Level::Warn, "the bypass is on".to_owned()));
        ill["bypass"] = Value::Null;
        assert_eq!(full(&ill), (Level::Bad, "creates are rejected until one ends".to_owned()));
        ill["mode"] = json!("observe");
        assert_eq!(full(&ill), (Level::Warn, "the mode is observe".to_owned()));
    }
}
