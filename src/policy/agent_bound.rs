//! The number of calls of one agent that the limits admit in any case, for a comparison with the provider's own bounds.

use super::{Bound, Limit, Per, Policy};
use crate::ids::AccountName;

impl Policy {
    /// The number of calls of an agent that the limits admit at once, or, with `within_secs`, within that time. `None`: any number. Only
    /// limits that bind every call of the agent count.
    pub fn agent_bound(&self, account: &AccountName, agent: &str, within_secs: Option<u32>) -> Option<u64> {
        let all = self.settings.limits.iter().chain(&self.global);
        let binding = all.filter(|limit| binds_agent(limit, account, agent));
        let admitted = binding.filter_map(|limit| match (limit.bound, within_secs) {
            (Bound::Concurrent(n), None) => Some(u64::from(n)),
            (Bound::Rate(rate), Some(secs)) => {
                let windows = (u64::from(secs) * 1000).div_ceil(u64::try_from(rate.window_ms).ok()?);
                Some(windows.saturating_mul(rate.count.into()))
            }
            _ => None,
        });
        admitted.min()
    }
}

fn binds_agent(limit: &Limit, account: &AccountName, agent: &str) -> bool {
    let selects = &limit.selects;
    let has = |list: &[String], one: &str| list.is_empty() || list.iter().any(|own| own == one);
    let is_of_all =
        [&selects.business, &selects.plan, &selects.own_number, &selects.destination_prefix, &selects.operation];
    matches!(limit.per, Per::All | Per::Account | Per::Agent)
        && selects.direction.is_none()
        && is_of_all.iter().all(|list| list.is_empty())
        && has(&selects.account, account.as_str())
        && has(&selects.agent, agent)
}
