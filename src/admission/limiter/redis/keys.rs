//! Names of the limiter's keys in Redis. `scripts/guard.lua` describes the sets.

use crate::ids::CallId;
use crate::policy::decision::LeaseRow;

/// The version of the key layout. Limiters with different layouts never read each other's data.
const LAYOUT: &str = "ringfence:1";

/// The keys of a pool: one hash slot, and one prefix for access rights. They include the database's identity, as an epoch of one
/// database means nothing in another.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
    database: String,
}

impl Keys {
    pub(super) fn of(pool: &str, database: &str) -> Self {
        Self { prefix: format!("{LAYOUT}:{{{pool}}}"), database: database.to_owned() }
    }

    /// The identity of the database.
    pub(super) fn database(&self) -> &str {
        &self.database
    }

    fn own(&self, name: impl std::fmt::Display) -> String {
        format!("{}:{}:{name}", self.prefix, self.database)
    }

    /// The key with the databases that use this pool.
    pub(super) fn databases(&self) -> String {
        format!("{}:databases", self.prefix)
    }

    /// The common prefix.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) fn epoch(&self) -> String {
        self.own("epoch")
    }

    /// The keys of an epoch: epoch, leases, rates.
    pub(super) fn of_epoch(&self, epoch: i64) -> Vec<String> {
        vec![self.epoch(), self.own(format_args!("{epoch}:leases")), self.own(format_args!("{epoch}:rates"))]
    }

    /// Leases and rates that a rebuild fills before they are published.
    pub(super) fn filling(&self, epoch: i64, nonce: &str) -> [String; 2] {
        ["leases", "rates"].map(|what| self.own(format_args!("{epoch}:filling:{nonce}:{what}")))
    }

    /// The key that rejects a late admission of a call.
    pub(super) fn gone(&self, call: &CallId) -> String {
        self.own(format_args!("gone:{call}"))
    }

    /// The channel between replicas.
    pub(super) fn channel(&self) -> String {
        self.own("news")
    }

    /// Two keys that probes write to.
    pub(super) fn probe(&self) -> Vec<String> {
        ["a", "b"].map(|which| format!("{}:probe:{which}", self.prefix)).to_vec()
    }
}

/// A limit's key as a part of a member: without `|`, which separates parts.
pub(super) fn escape(key: &str) -> String {
    key.replace('%', "%25").replace('|', "%7C")
}

pub(super) fn unescape(part: &str) -> String {
    part.replace("%7C", "|").replace("%25", "%")
}

/// All members of a lease, as `members` in `scripts/guard.lua` makes them.
pub(super) fn members(held: &LeaseRow, all: &mut Vec<String>) {
    let LeaseRow { call, slots, since_ms, over_limit, .. } = held;
    let stamp = since_ms.max(&0);
    let mut own = format!("h|{call}|{slots}|{since_ms}|{}", u8::from(*over_limit));
    for key in &held.keys {
        let key = escape(key);
        own.push('|');
        own.push_str(&key);
        match slots {
            1 => all.push(format!("k|{key}|1|{stamp:016}|{call}")),
            _ => all.extend((1..=*slots).map(|i| format!("k|{key}|n|{stamp:016}|{call}|{i}"))),
        }
    }
    all.extend((2..=*slots).map(|i| format!("p|{call}|{i}")));
    if *over_limit {
        all.extend((1..=*slots).map(|i| format!("o|{call}|{i}")));
    }
    all.push(own);
}

/// Parses the member that describes a lease.
pub(super) fn lease(member: &str) -> Option<LeaseRow> {
    let mut parts = member.strip_prefix("h|")?.split('|');
    Some(LeaseRow {
        call: CallId::parse(parts.next()?)?,
        slots: parts.next()?.parse().ok()?,
        since_ms: parts.next()?.parse().ok()?,
        over_limit: parts.next()? == "1",
        keys: parts.map(unescape).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_survives_its_member() {
        for keys in [vec![], vec![""], vec!["a|b", "%7C", "100%|", "plan:x}"]] {
            let keys: Vec<_> = keys.into_iter().map(str::to_owned).collect();
            for slots in [1, 3] {
                let held = LeaseRow { call: CallId::new(), keys: keys.clone(), slots, since_ms: -5, over_limit: true };
                let mut all = Vec::new();
                members(&held, &mut all);
                assert_eq!(all.len(), slots as usize * (keys.len() + 2));
                assert_eq!(lease(all.last().unwrap()), Some(held));
            }
        }
    }
}
