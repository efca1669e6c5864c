//! The tables `[accounts.NAME]`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::diagnostics::Report;
use super::table::{Table, closest};
use super::values::{Strict, url};
use crate::ids::{AccountName, BusinessId};
use crate::policy::AccountLimits;
use crate::provider::Registry;
use crate::provider::account::Account;
use crate::provider::description::Description;
use crate::provider::secret::Secret;

/// Reads all accounts, and their part of the policy.
pub(super) fn read(
    root: &Table<'_>,
    registry: Option<&Registry>,
) -> (BTreeMap<AccountName, Arc<Account>>, Vec<AccountLimits>) {
    let table = root.table("accounts");
    let (mut accounts, mut limits) = (BTreeMap::new(), Vec::new());
    // An explicit `terminate = []` is kept: calls are counted, never hung up.
    let mut chosen = BTreeSet::new();
    for (name, one) in table.named_tables(&[]) {
        if one.has("terminate") {
            chosen.extend(AccountName::parse(&name));
        }
        if let Some((account, limit)) = account(&name, &one, registry) {
            accounts.insert(account.name.clone(), account);
            limits.push(limit);
        }
    }
    table.finish();
    // Without `carrier`, the only account that can carry another's calls is its carrier.
    let carriers: Vec<AccountName> = accounts
        .values()
        .filter(|a: &&Account| a.provider.hang_up_methods.contains_key("hangup"))
        .map(|a| a.name.clone())
        .collect();
    let mut done = BTreeMap::new();
    for (name, mut account) in accounts {
        let wants = account.provider.hang_up_methods.values().any(|t| t.carrier.is_some());
        if wants && account.carrier.is_none() && carriers.len() == 1 {
            account.carrier = carriers.first().cloned();
        }
        // A call carried by a known account can be ended there, which deletes no record.
        if !chosen.contains(&account.name) {
            let means = account
                .provider
                .hang_up_methods
                .iter()
                .find(|(means, t)| *means == "hangup" || (t.carrier.is_some() && account.carrier.is_some()));
            account.hang_up_methods = means.map(|(name, _)| name.clone()).into_iter().collect();
        }
        if let Some(carrier) = account.carrier.as_ref().filter(|c| !carriers.contains(c)) {
            let title = format!("`accounts.{name}.carrier` is {carrier}, which is not an account that carries calls");
            root.report().error("E022", None, title, "name an account of provider \"twilio\"");
        }
        done.insert(name, Arc::new(account));
    }
    (done, limits)
}

fn account(name: &str, table: &Table<'_>, registry: Option<&Registry>) -> Option<(Account, AccountLimits)> {
    let report = table.report();
    let account_name = AccountName::parse(name)
        .map_err(|error| report.error("E003", table.span(""), format!("`accounts.{name}`: {error}"), ""))
        .ok();
    // The first account of a provider may be named like it.
    let written = table.text("provider").unwrap_or_else(|| name.to_owned());
    let provider = registry.and_then(|r| r.get(&written)).cloned();
    if let (None, Some(registry)) = (&provider, registry) {
        let known: Vec<&str> = registry.all().map(|d| d.name.as_str()).collect();
        let title = format!("unknown provider {written:?} (`accounts.{name}.provider`)");
        let near = closest(&written, &known).map(|w| format!("did you mean \"{w}\"? "));
        let help = format!("{}known: {}", near.unwrap_or_default(), known.join(", "));
        report.error("E020", table.span("provider"), title, &help);
    }
    let secrets = provider.iter().flat_map(|p| &p.secrets);
    let secrets = secrets.filter_map(|key| Some((key.clone(), table.secret(key)?))).collect();
    let upstream = table.parsed("upstream", url);
    let webhook_secrets = table.secrets("webhook_secrets");
    let webhook_tokens = table.secrets("webhook_tokens");
    let shared_keys = table.table("shared_keys").named_secrets();
    if let Some(provider) = &provider {
        check_secrets(name, table, provider, &webhook_secrets);
    }
    let terminate = table.texts("terminate").unwrap_or_default();
    if let Some(provider) = &provider {
        let known: Vec<&str> = provider.hang_up_methods.keys().map(String::as_str).collect();
        for means in terminate.iter().filter(|m| !known.contains(&m.as_str())) {
            let title = format!("`accounts.{name}.terminate` names {means:?}, which {} does not have", provider.name);
            report.error("E005", table.span("terminate"), title, &format!("known: {}", known.join(", ")));
        }
    }
    let carrier = table.parsed("carrier", |t| AccountName::parse(t).map_err(|e| e.to_string()));
    let concurrent = table.count("concurrent", 0..=1_000_000);
    let rate = table.rate();
    let business = table.parsed("business", |t| BusinessId::parse(t).map_err(|e| e.to_string()));
    table.finish();
    let (name, provider) = (account_name?, provider?);
    // An explicit upstream replaces all of the provider's: a simulator, a region, another proxy.
    let others = provider.upstreams.iter().filter(|_| upstream.is_none());
    let upstreams = others.filter_map(|other| Some((other.prefix.clone(), other.url.parse().ok()?))).collect();
    let upstream = upstream.or_else(|| provider.upstream.parse().ok())?;
    let limits = AccountLimits { name: name.clone(), concurrent, rate, business };
    let account = Account {
        name,
        provider,
        upstream,
        upstreams,
        secrets,
        webhook_secrets,
        shared_keys,
        webhook_tokens,
        hang_up_methods: terminate,
        carrier,
    };
    Some((account, limits))
}

/// Checks that a webhook secret can be a key of one of the provider's signatures.
fn check_secrets(name: &str, table: &Table<'_>, provider: &Description, secrets: &[Secret]) {
    let signatures = || provider.webhooks.iter().map(|w| &w.signature).filter(|s| s.needs_key());
    for secret in secrets {
        let wrong: Vec<&str> = signatures().filter_map(|signature| signature.check_secret(secret).err()).collect();
        if let (Some(why), true) = (wrong.first(), wrong.len() == signatures().count()) {
            let title = format!("a secret of `accounts.{name}.webhook_secrets` {why}");
            let help = format!("copy it completely from {}", provider.name);
            table.report().error("E003", table.span("webhook_secrets"), title, &help);
        }
    }
}

/// Warns of what will not work, before the first call.
pub(super) fn warn(
    report: &Report,
    accounts: &BTreeMap<AccountName, Arc<Account>>,
    written: bool,
    public_url: bool,
    strict: Strict,
) {
    if accounts.is_empty() && !written {
        report.error("E004", None, "there is no account", "write [accounts.elevenlabs] or [accounts.twilio]");
    }
    if !public_url && !accounts.is_empty() {
        let title = "without public_url no provider can report the end of a call: ends are polled";
        report.warning("W002", None, title, "set public_url to the URL at which providers reach listen.webhooks");
    }
    for account in accounts.values() {
        let name = &account.name;
        // An unreadable secret has been reported.
        if !account.can_ask() && !report.has("E010") && !report.has("E011") {
            let missing: Vec<&str> = account
                .provider
                .secrets
                .iter()
                .filter(|k| !account.secrets.contains_key(*k))
                .map(String::as_str)
                .collect();
            let title = format!(
                "account {name} has no {}: lost ends are settled by deadline alone, nothing can be hung up",
                missing.join(" and no ")
            );
            report.warning("W004", None, title, "add the credentials for ringfence's own requests");
        }
        if account.hang_up_methods.is_empty() {
            let known: Vec<&str> = account.provider.hang_up_methods.keys().map(String::as_str).collect();
            let title = format!("account {name} has no way to end a call that is over capacity");
            let help = format!("set terminate to a list out of: {}", known.join(", "));
            report.warning("W003", None, title, &help);
        }
        if account
            .hang_up_methods
            .iter()
            .any(|m| account.provider.hang_up_methods.get(m).is_some_and(|t| t.deletes_record))
        {
            let title = format!("account {name} ends calls by deleting their record: the call may continue unseen");
            report.warning("W006", None, title, "list methods that hang up first, as in terminate = [\"twilio\"]");
        }
        let unchecked = account.provider.webhooks.iter().any(|w| {
            let (signature, keys) = (&w.signature, account.keys(&w.signature));
            // A key that own requests need too has been reported by W004.
            let told = signature.key_from().is_some_and(|key| account.provider.secrets.iter().any(|one| one == key));
            signature.needs_secret() && !told && keys.secrets.is_empty() && keys.named.is_empty()
        });
        if strict.is_strict() && unchecked {
            let title = format!("account {name} has no webhook_secrets: its webhooks will be refused with 401");
            report.warning("W005", None, title, "set webhook_secrets = [{ env = \"…\" }]");
        }
    }
}
