//! Limits that have just turned a direct or inbound call away. Calls of bulk runs leave the next free slot of these to the call that
//! comes again. As far as this replica knows: it is a preference, and no limit.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::policy::{Binding, Bound};
use crate::sync::lock;

/// How long a slot is left for a call that was turned away.
const KEPT_FOR: Duration = Duration::from_secs(30);
/// The number of keys from which expired ones are dropped, and the maximum.
const KEYS_MANY: usize = 1_000;
const KEYS_MAX: usize = 10_000;

/// Limits that have just turned a direct or inbound call away.
#[derive(Debug, Default)]
pub(super) struct TurnedAway(Mutex<HashMap<String, Instant>>);

impl TurnedAway {
    /// Notes that a limit, by its name, was full for a call with these bindings.
    pub(super) fn rejected(&self, bindings: &[Binding], limit: &str, now: Instant) {
        let full = |binding: &&Binding| &*binding.limit == limit && matches!(binding.bound, Bound::Concurrent(_));
        let Some(binding) = bindings.iter().find(full) else { return };
        let mut keys = lock(&self.0);
        if keys.len() >= KEYS_MANY {
            keys.retain(|_, at| now.duration_since(*at) < KEPT_FOR);
        }
        if keys.len() < KEYS_MAX {
            keys.insert(binding.key.clone(), now);
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
        keys.get(key).is_some_and(|at| now.duration_since(*at) < KEPT_FOR)
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
        turned_away.rejected(&bindings, "b", now);
        turned_away.rejected(&bindings, "none", now);
        let waits = |key, after| turned_away.waits_for(key, now + Duration::from_secs(after));
        assert_eq!([waits("b|x", 0), waits("b|x", 29), waits("b|x", 30), waits("a|x", 0)], [true, true, false, false]);
        turned_away.admitted(&bindings);
        assert!(!turned_away.waits_for("b|x", now));
    }
}
