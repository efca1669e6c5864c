//! All limits in force, with their origin.

use serde::Serialize;

use super::{Bound, DEFAULT_PLAN, Per, Policy, default_plans};

/// Businesses with a limit of their own that are listed one by one; further ones are only counted.
const BUSINESSES_MAX: usize = 20;

/// A limit in the form shown to operators.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShownLimit {
    /// The name in rejections.
    pub name: String,
    /// The unit that the limit is counted per.
    pub per: &'static str,
    /// The bound: `5 calls at once`, `5/s`.
    pub allows: String,
    /// The config key that sets it, or why it exists without one.
    pub from: String,
}

fn allows(bound: Bound) -> String {
    match bound {
        Bound::Concurrent(1) => "1 call at once".to_owned(),
        Bound::Concurrent(n) => format!("{n} calls at once"),
        Bound::Rate(rate) => rate.to_string(),
    }
}

const fn word(per: Per) -> &'static str {
    match per {
        Per::All => "all",
        Per::Business => "business",
        Per::Plan => "plan",
        Per::Account => "account",
        Per::Agent => "agent",
        Per::OwnNumber => "own number",
        Per::Destination => "destination",
    }
}

fn shown(name: &str, per: Per, bound: Bound, from: String) -> ShownLimit {
    ShownLimit { name: name.to_owned(), per: word(per), allows: allows(bound), from }
}

impl Policy {
    /// All limits in force, in the order in which a rejection names them.
    pub fn in_force(&self) -> Vec<ShownLimit> {
        let settings = self.settings();
        let mut all = Vec::new();
        let mut own: Vec<_> = self.businesses().filter_map(|b| Some((&b.id, b.max_calls?))).collect();
        own.sort();
        for (id, n) in own.iter().take(BUSINESSES_MAX) {
            let written = settings.businesses.iter().any(|b| b.id == **id);
            let from = match (id.as_str() == super::DEMO_BUSINESS, written) {
                (true, false) => "built in: demo business".to_owned(),
                (_, true) => format!("businesses.{id}.max_calls"),
                (_, false) => format!("PUT /api/businesses/{id}"),
            };
            all.push(shown(&format!("business.{id}"), Per::Business, Bound::Concurrent(*n), from));
        }
        if let Some(more) = own.len().checked_sub(BUSINESSES_MAX).filter(|n| *n > 0) {
            all.push(ShownLimit {
                name: "business.…".to_owned(),
                per: word(Per::Business),
                allows: "its own max_calls".to_owned(),
                from: format!("{more} more businesses"),
            });
        }
        let built_in = default_plans();
        for (name, plan) in &settings.plans {
            let from = match (name.as_str(), built_in.get(name) == Some(plan)) {
                (_, true) => "built in".to_owned(),
                (DEFAULT_PLAN, _) => "per_business, or plans.default".to_owned(),
                _ => format!("plans.{name}"),
            };
            let bounds = plan.concurrent.map(Bound::Concurrent).into_iter().chain(plan.rate.map(Bound::Rate));
            all.extend(bounds.map(|bound| shown(&format!("plan.{name}"), Per::Business, bound, from.clone())));
        }
        for limit in settings.limits.iter().chain(&self.global) {
            let key = if matches!(limit.bound, Bound::Rate(_)) { "rate" } else { "concurrent" };
            let from = match (limit.scope, limit.name.strip_prefix("account.")) {
                (super::Scope::Account, Some(account)) => format!("accounts.{account}.{key}"),
                (super::Scope::Global, _) if key == "concurrent" && settings.concurrent.is_none() => {
                    "default: `concurrent` is not set, and no account says what was bought".to_owned()
                }
                (super::Scope::Global, _) => key.to_owned(),
                _ => "[[limits]]".to_owned(),
            };
            all.push(shown(&limit.name, limit.per, limit.bound, from));
        }
        all
    }
}
