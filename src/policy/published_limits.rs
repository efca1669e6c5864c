//! The limits of a policy, published to other replicas: while policies differ, the lower limit applies.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Binding, Bound, Limit, Policy, Scope};

/// Businesses of the config whose own limits are published; further ones are not compared.
const BUSINESSES_MAX: usize = 1_000;

/// The limits of a policy, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedLimits {
    /// The policy hash.
    pub hash: String,
    /// Concurrent calls.
    concurrent: BTreeMap<String, u32>,
    /// Creates and window, in milliseconds.
    rates: BTreeMap<String, (u32, i64)>,
}

impl PublishedLimits {
    /// The limits of a policy.
    pub fn from_policy(policy: &Policy) -> Self {
        let mut declared = Self { hash: policy.hash().to_owned(), ..Self::default() };
        for (name, plan) in &policy.settings.plans {
            let bounds = plan.concurrent.map(Bound::Concurrent).into_iter().chain(plan.rate.map(Bound::Rate));
            bounds.for_each(|bound| declared.add(&format!("plan.{name}"), bound));
        }
        let own = policy.settings.businesses.iter().filter_map(|b| Some((&b.id, b.max_calls?)));
        for (id, calls) in own.take(BUSINESSES_MAX) {
            declared.add(&own_name(id.as_str()), Bound::Concurrent(calls));
        }
        for Limit { name, bound, .. } in policy.settings.limits.iter().chain(&policy.global) {
            declared.add(name, *bound);
        }
        declared
    }

    fn add(&mut self, name: &str, bound: Bound) {
        match bound {
            Bound::Concurrent(calls) => drop(self.concurrent.insert(name.to_owned(), calls)),
            Bound::Rate(rate) => drop(self.rates.insert(name.to_owned(), (rate.count, rate.window_ms))),
        }
    }

    /// Lowers each binding to the limit of the same name here. Rates with different windows are not compared.
    pub fn lower(&self, bindings: &mut [Binding]) {
        for binding in bindings {
            let business = (binding.scope == Scope::Business).then(|| binding.key.split_once('|')).flatten();
            let own = business.map(|(_, id)| own_name(id));
            match &mut binding.bound {
                Bound::Concurrent(calls) => {
                    let names = [Some(&*binding.limit), own.as_deref()];
                    let here = names.into_iter().flatten().filter_map(|name| self.concurrent.get(name)).min();
                    *calls = here.map_or(*calls, |here| (*calls).min(*here));
                }
                Bound::Rate(rate) => {
                    let here = self.rates.get(&*binding.limit).filter(|(_, window_ms)| *window_ms == rate.window_ms);
                    rate.count = here.map_or(rate.count, |(count, _)| rate.count.min(*count));
                }
            }
        }
    }
}

fn own_name(business: &str) -> String {
    format!("business.{business}")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::Rate;
    use super::*;

    fn binding(limit: &str, scope: Scope, key: &str, bound: Bound) -> Binding {
        Binding { limit: Arc::from(limit), scope, key: key.to_owned(), bound }
    }

    #[test]
    fn the_lower_limit_of_a_name_holds() {
        let rate = |count, window_ms| Bound::Rate(Rate { count, window_ms });
        let mut other = PublishedLimits::default();
        for (name, bound) in [
            ("global", Bound::Concurrent(5)),
            ("plan.PRO", Bound::Concurrent(9)),
            ("business.acme", Bound::Concurrent(1)),
            ("slow", rate(2, 1_000)),
            ("fast", rate(2, 60_000)),
        ] {
            other.add(name, bound);
        }
        let mut bindings = [
            binding("plan.PRO", Scope::Business, "business|acme", Bound::Concurrent(3)),
            binding("plan.PRO", Scope::Business, "business|other", Bound::Concurrent(3)),
            binding("slow", Scope::Named, "slow.rate|", rate(7, 1_000)),
            binding("fast", Scope::Named, "fast.rate|", rate(7, 1_000)),
            binding("account.a", Scope::Account, "account.a|", Bound::Concurrent(4)),
            binding("global", Scope::Global, "global|", Bound::Concurrent(30)),
        ];
        other.lower(&mut bindings);
        let bounds: Vec<Bound> = bindings.iter().map(|b| b.bound).collect();
        let four = Bound::Concurrent(4);
        let lowered = [Bound::Concurrent(1), Bound::Concurrent(3), rate(2, 1_000), rate(7, 1_000), four];
        assert_eq!(bounds, [&lowered[..], &[Bound::Concurrent(5)]].concat());
    }
}
