//! `[accounts.NAME]`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Strict;
use super::diagnostics::Report;
use super::table::{Table, closest};
use crate::ids::{AccountName, BusinessId};
use crate::policy::AccountLimits;
use crate::provider::Registry;
use crate::provider::account::Account;
use crate::provider::description::Description;
use crate::provider::secret::Secret;

/// Reads every account, and what each contributes to policy.
pub(super) fn read(
    root: &Table<'_>,
    registry: Option<&Registry>,
) -> (BTreeMap<AccountName, Arc<Account>>, Vec<AccountLimits>) {
    let table = root.table("accounts");
    let (mut accounts, mut limits) = (BTreeMap::new(), Vec::new());
    // `terminate = []` is a choice too: calls are counted, never hung up.
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
    // The only account that can carry another's calls is its carrier, unless said otherwise.
    let carriers: Vec<AccountName> = accounts
        .values()
        .filter(|a: &&Account| a.provider.terminate.contains_key("hangup"))
        .map(|a| a.name.clone())
        .collect();
    let mut done = BTreeMap::new();
    for (name, mut account) in accounts {
        let wants = account.provider.terminate.values().any(|t| t.carrier.is_some());
        if wants && account.carrier.is_none() && carriers.len() == 1 {
            account.carrier = carriers.first().cloned();
        }
        // A call that a known carrier carries can be ended there, which destroys nothing.
        if !chosen.contains(&account.name) {
            let means = account
                .provider
                .terminate
                .iter()
                .find(|(means, t)| *means == "hangup" || (t.carrier.is_some() && account.carrier.is_some()));
            account.terminate = means.map(|(name, _)| name.clone()).into_iter().collect();
        }
        if let Some(carrier) = account.carrier.as_ref().filter(|c| !carriers.contains(c)) {
            let title = format!("`accounts.{name}.carrier` is {carrier}, which is no account that carries calls");
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
    // The name of a provider is enough for its first account.
    let written = table.text("provider").unwrap_or_else(|| name.to_owned());
    let provider = registry.and_then(|r| r.get(&written)).cloned();
    if let (None, Some(registry)) = (&provider, registry) {
        let known: Vec<&str> = registry.all().map(|d| d.name.as_str()).collect();
        let title = format!("no provider {written:?} is known (`accounts.{name}.provider`)");
        let near = closest(&written, &known).map(|w| format!("did you mean \"{w}\"? "));
        let help = format!("{}known: {}", near.unwrap_or_default(), known.join(", "));
        report.error("E020", table.span("provider"), title, &help);
    }
    let secrets = provider.iter().flat_map(|p| &p.secrets);
    let secrets = secrets.filter_map(|key| Some((key.clone(), table.secret(key)?))).collect();
    let upstream = table.parsed("upstream", super::url);
    let webhook_secrets = table.secrets("webhook_secrets");
    let webhook_tokens = table.secrets("webhook_tokens");
    let shared_keys = table.table("shared_keys").named_secrets();
    if let Some(provider) = &provider {
        check_secrets(name, table, provider, &webhook_secrets);
    }
    let terminate = table.texts("terminate").unwrap_or_default();
    if let Some(provider) = &provider {
        let known: Vec<&str> = provider.terminate.keys().map(String::as_str).collect();
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
    // Who names an upstream means all of the provider: a stand-in, a region, another proxy.
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
        terminate,
        carrier,
    };
    Some((account, limits))
}

/// A webhook secret has to be a key of one of the provider's signatures.
fn check_secrets(name: &str, table: &Table<'_>, provider: &Description, secrets: &[Secret]) {
    let signatures = || provider.webhooks.iter().map(|w| &w.signature).filter(|s| s.needs_key());
    for secret in secrets {
        let wrong: Vec<&str> = signatures().filter_map(|signature| signature.check_secret(secret).err()).collect();
        if let (Some(why), true) = (wrong.first(), wrong.len() == signatures().count()) {
            let title = format!("a secret of `accounts.{name}.webhook_secrets` {why}");
            let help = format!("copy it from {} again, whole", provider.name);
            table.report().error("E003", table.span("webhook_secrets"), title, &help);
        }
    }
}

/// What will not work, said once, before the first call.
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
        let title = "without public_url no provider can tell of a call's end: ends are polled";
        report.warning("W002", None, title, "set public_url to what providers reach listen.webhooks by");
    }
    for account in accounts.values() {
        let name = &account.name;
        // A secret that is written but cannot be read has been told of.
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
            report.warning("W004", None, title, "give it the credentials that ringfence may ask with");
        }
        if account.terminate.is_empty() {
            let known: Vec<&str> = account.provider.terminate.keys().map(String::as_str).collect();
            let title = format!("account {name} has no means to end a call that is over capacity");
            let help = format!("set terminate to a list out of: {}", known.join(", "));
            report.warning("W003", None, title, &help);
        }
        if account.terminate.iter().any(|m| account.provider.terminate.get(m).is_some_and(|t| t.deletes_record)) {
            let title = format!("account {name} ends calls by deleting their record: the call may talk on, unseen");
            report.warning("W006", None, title, "list means that hang up first, as in terminate = [\"twilio\"]");
        }
        let unchecked = account.provider.webhooks.iter().any(|w| {
            let (signature, keys) = (&w.signature, account.keys(&w.signature));
            // Of a key that it needs for its own requests too W004 has told.
            let told = signature.key_from().is_some_and(|key| account.provider.secrets.iter().any(|one| one == key));
            signature.needs_secret() && !told && keys.secrets.is_empty() && keys.named.is_empty()
        });
        if strict.is_strict() && unchecked {
            let title = format!("account {name} has no webhook_secrets: its webhooks will be refused with 401");
            report.warning("W005", None, title, "set webhook_secrets = [{ env = \"…\" }]");
        }
    }
}
