//! Limits that have just turned a direct or inbound call away. Calls of bulk runs leave the next free slot of these to the call that
//! comes again. As far as this replica knows: it is a preference, and no limit.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::clock::UnixMs;
use crate::ids::BusinessId;
use crate::policy::{Binding, Bound};
use crate::sync::lock;

/// The time for which a slot is left for a call that was turned away.
const KEPT_FOR: Duration = Duration::from_secs(30);
/// The number of keys from which expired ones are dropped, and the maximum.
const KEYS_PURGE_AT: usize = 1_000;
const KEYS_MAX: usize = 10_000;

/// A slot that is left for a call that was turned away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptSlot {
    /// The name of the limit that was full.
    pub limit: String,
    /// The business of the call.
    pub business: BusinessId,
    /// The time at which the call was turned away.
    pub refused_at: UnixMs,
    /// Until when the slot is left for it.
    pub kept_until: UnixMs,
}

/// The latest call that was turned away under a key.
#[derive(Debug)]
struct Turned {
    at: Instant,
    at_ms: UnixMs,
    limit: Arc<str>,
    business: BusinessId,
}

/// Limits that have just turned a direct or inbound call away.
#[derive(Debug, Default)]
pub(super) struct TurnedAway(Mutex<HashMap<String, Turned>>);

impl TurnedAway {
    /// Notes that a limit, by its name, was full for a call of this business with these bindings.
    pub(super) fn rejected(
        &self,
        bindings: &[Binding],
        limit: &str,
        business: &BusinessId,
        (now, now_ms): (Instant, UnixMs),
    ) {
        let full = |binding: &&Binding| &*binding.limit == limit && matches!(binding.bound, Bound::Concurrent(_));
        let Some(binding) = bindings.iter().find(full) else { return };
        let mut keys = lock(&self.0);
        if keys.len() >= KEYS_PURGE_AT {
            keys.retain(|_, turned| now.duration_since(turned.at) < KEPT_FOR);
        }
        if keys.len() < KEYS_MAX {
            let turned = Turned { at: now, at_ms: now_ms, limit: binding.limit.clone(), business: business.clone() };
            keys.insert(binding.key.clone(), turned);
        }
    }

    /// Notes that a call with these bindings got its slot.
    pub(super) fn admitted(&self, bindings: &[Binding]) {
        let mut keys = lock(&self.0);
        for binding in bindings {
            keys.remove(&binding.key);
        }
    }

    /// Whether a call was turned away under this key lately, and has not come again.
    pub(super) fn waits_for(&self, key: &str, now: Instant) -> bool {
        let keys = lock(&self.0);
        keys.get(key).is_some_and(|turned| now.duration_since(turned.at) < KEPT_FOR)
    }

    /// The slots that are left for somebody now, those that are left longest first.
    pub(super) fn kept(&self, now: Instant) -> Vec<KeptSlot> {
        let keys = lock(&self.0);
        let is_left = |turned: &&Turned| now.duration_since(turned.at) < KEPT_FOR;
        let kept = keys.values().filter(is_left).map(|turned| KeptSlot {
            limit: turned.limit.to_string(),
            business: turned.business.clone(),
            refused_at: turned.at_ms,
            kept_until: turned.at_ms + KEPT_FOR.as_millis() as UnixMs,
        });
        let mut kept: Vec<KeptSlot> = kept.collect();
        drop(keys);
        kept.sort_by(|a, b| (b.kept_until, &a.limit, &a.business).cmp(&(a.kept_until, &b.limit, &b.business)));
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Scope;

    #[test]
    fn a_slot_is_left_until_the_call_comes_again_or_its_time_is_over() {
        let binding =
            |limit: &str, bound| Binding { limit: limit.into(), scope: Scope::Named, key: format!("{limit}|x"), bound };
        let bindings = [binding("a", Bound::Concurrent(1)), binding("b", Bound::Concurrent(2))];
        let (turned_away, now) = (TurnedAway::default(), Instant::now());
        let acme = BusinessId::parse("acme").unwrap();
        turned_away.rejected(&bindings, "b", &acme, (now, 5_000));
        turned_away.rejected(&bindings, "none", &acme, (now, 5_000));
        let waits = |key, after| turned_away.waits_for(key, now + Duration::from_secs(after));
        assert_eq!([waits("b|x", 0), waits("b|x", 29), waits("b|x", 30), waits("a|x", 0)], [true, true, false, false]);
        let after = Duration::from_secs(12);
        let kept = KeptSlot { limit: "b".to_owned(), business: acme, refused_at: 5_000, kept_until: 35_000 };
        assert_eq!(turned_away.kept(now + after), [kept]);
        assert_eq!(turned_away.kept(now + KEPT_FOR), []);
        turned_away.admitted(&bindings);
        assert!(!turned_away.waits_for("b|x", now) && turned_away.kept(now).is_empty());
    }
}
