//! Finds limits that can never match, so that a typo does not silently disable a limit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::table::{Table, closest};
use crate::call::Direction;
use crate::ids::{AccountName, BusinessId, number_key};
use crate::policy::{DEFAULT_PLAN, Limit, Plan};
use crate::provider::account::Account;

/// All accounts by name.
pub(super) type Accounts = BTreeMap<AccountName, Arc<Account>>;

/// The operation of calls found by polling a provider.
const SWEEP: &str = "sweep";

/// Checks the selectors of one limit.
pub(super) fn check(table: &Table<'_>, limit: &Limit, accounts: &Accounts, plans: &BTreeMap<String, Plan>) {
    let (report, name, on) = (table.report(), limit.name.as_ref(), table.span("match"));
    let selects = &limit.selects;
    for account in selects.account.iter().filter(|a| !accounts.keys().any(|k| k.as_str() == a.as_str())) {
        let title = format!("limit {name:?} matches account {account:?}, but there is no [accounts.{account}]");
        report.error("E022", on.clone(), title, "");
    }
    for plan in selects.plan.iter().filter(|p| !plans.contains_key(*p) && *p != DEFAULT_PLAN) {
        let known: Vec<&str> = plans.keys().map(String::as_str).collect();
        let title = format!("limit {name:?} matches plan {plan:?}, which does not exist");
        report.error("E021", on.clone(), title, &format!("known: {}", known.join(", ")));
    }
    for business in &selects.business {
        if business.starts_with('!') {
            let title = format!("limit {name:?} matches business {business:?}: there is no \"all but\"");
            report.error("E003", on.clone(), title, "give the others a plan of their own and match that, or name them");
        } else if let Err(error) = BusinessId::parse(business) {
            let title =
                format!("limit {name:?} matches business {business:?}, which is not a valid business id: {error}");
            report.error("E003", on.clone(), title, "a limit matches exact ids: there are no patterns");
        }
    }
    for number in &selects.own_number {
        let bare = number.strip_prefix('+').unwrap_or(number);
        if bare.len() < 7 && bare.bytes().all(|b| b.is_ascii_digit()) {
            let title = format!("limit {name:?} matches own_number {number:?}, which is not a complete number");
            report.error("E003", on.clone(), title, "write it in full, as in \"+15550001111\"");
        } else if number.starts_with('0') && number_key(number) == number.as_str() {
            let title = format!("limit {name:?} matches own_number {number:?}, which has no country code");
            report.error("E003", on.clone(), title, "write it as in \"+442079460018\"");
        }
    }
    operations(table, limit, accounts);
}

fn operations(table: &Table<'_>, limit: &Limit, accounts: &Accounts) {
    let (report, name, on) = (table.report(), limit.name.as_ref(), table.span("match"));
    let selects = &limit.selects;
    // The directions of each operation: creates, look-ups and webhooks that start a call.
    let mut known = BTreeMap::<&str, BTreeSet<Option<Direction>>>::from([(SWEEP, BTreeSet::from([None]))]);
    let fits = |account: &str| selects.account.is_empty() || selects.account.iter().any(|one| one == account);
    for account in accounts.values().filter(|account| fits(account.name.as_str())) {
        for operation in &account.provider.operations {
            known.entry(&operation.name).or_default().insert(Some(operation.direction));
        }
        for event in account.provider.webhooks.iter().flat_map(|webhook| &webhook.events) {
            known.entry(&event.name).or_default().insert(None);
        }
    }
    if accounts.is_empty() {
        return;
    }
    for operation in &selects.operation {
        let names: Vec<&str> = known.keys().copied().collect();
        match known.get(operation.as_str()) {
            None => {
                let title = format!("limit {name:?} matches operation {operation:?}, which none of its accounts has");
                let near = closest(operation, &names).map(|near| format!("did you mean \"{near}\"? "));
                report.error(
                    "E005",
                    on.clone(),
                    title,
                    &format!("{}known: {}", near.unwrap_or_default(), names.join(", ")),
                );
            }
            Some(directions) => {
                let is_other = |wanted: Direction| !directions.iter().any(|one| one.is_none_or(|d| d == wanted));
                if let Some(direction) = selects.direction.filter(|wanted| is_other(*wanted)) {
                    let title = format!(
                        "limit {name:?} matches {direction} calls of operation {operation:?}, which makes none"
                    );
                    report.error("E005", on.clone(), title, "remove the direction, or the operation");
                }
            }
        }
    }
}
