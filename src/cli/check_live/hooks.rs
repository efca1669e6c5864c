//! The lists of an account's webhooks and numbers: what they lead to, and which of them the provider uses.

use futures_util::stream::{self, StreamExt as _};
use serde_json::Value;

use super::{Depth, EACH_MAX, LiveCheck, REQUESTS_AT_ONCE, fill, numbers, short};
use crate::config::extra_paths_key;
use crate::provider::account::Account;
use crate::provider::check::{Below, Finding, Hooks, InUse, OwnWebhooks, Setting, plain};

impl LiveCheck<'_> {
    /// Lines about what is in order, and the ids of the webhooks that lead here, where the provider says which it uses.
    pub(super) async fn hooks(
        &self,
        account: &Account,
        hooks: &Hooks,
        here: OwnWebhooks<'_>,
    ) -> (Vec<String>, Option<Vec<String>>) {
        let what = &hooks.what;
        let mut items = match self.list(account, &hooks.path, &hooks.items, hooks.next.as_ref()).await {
            Ok(items) => items,
            Err(why) => {
                self.unlisted(account, &format!("{what}s"), &why);
                return (vec![], None);
            }
        };
        if let Some(below) = hooks.below.as_ref().filter(|_| self.depth == Depth::Doctor) {
            items.extend(self.below(account, hooks, below).await);
        }
        let found = hooks.findings(&items, here);
        let mut good = found.is_empty();
        for (finding, names) in found {
            self.hook(account, hooks, finding, &names);
        }
        let ours = hooks.in_use.is_some().then(|| hooks.ids_posting_here(&items, here));
        // Without one that leads here, none can be in use.
        if let (Some(in_use), Some(ours)) = (&hooks.in_use, ours.as_ref().filter(|ours| !ours.is_empty())) {
            good &= self.in_use(account, what, in_use, ours).await;
        }
        (self.hooks_in_order(account, hooks, &items, here, good), ours)
    }

    /// Whether the webhook that the provider uses leads here, and is sent what it needs.
    async fn in_use(&self, account: &Account, what: &str, in_use: &InUse, ours: &[String]) -> bool {
        let Some(path) = &in_use.path else { return true };
        let answer = match self.get(account, path).await {
            Ok(answer) if answer.status().is_success() => Ok(answer),
            Ok(answer) => Err(format!("the provider answers {}", answer.status())),
            Err(why) => Err(why),
        };
        let setting = answer.and_then(|answer| {
            serde_json::from_slice(answer.body()).map_err(|_| "the provider's answer is not JSON".to_owned())
        });
        let setting: Value = match setting {
            Ok(setting) => setting,
            Err(why) => {
                let title = format!("account {}: which {what} is in use cannot be looked at: {why}", account.name);
                let help = "the key may lack the right to read it: check it by hand";
                self.report.warning("W013", None, title, help);
                return false;
            }
        };
        let Some(Setting { says, why, fix }) = in_use.fault(&setting, ours) else { return true };
        let title = format!("account {}: {says}", account.name);
        if let Some(why) = &why {
            self.record_why(&title, why);
        }
        self.report.warning("W011", None, title, &fix.unwrap_or_default());
        false
    }

    /// The items of accounts below this one.
    async fn below(&self, account: &Account, hooks: &Hooks, below: &Below) -> Vec<Value> {
        let listed = self.list(account, &below.path, &below.accounts, below.next.as_ref()).await;
        let own = fill(account, &below.own).unwrap_or_default();
        let ids: Vec<String> = match listed {
            Ok(accounts) => accounts.iter().filter_map(|one| below.id_of(one)).filter(|id| *id != own).collect(),
            Err(why) => {
                self.unlisted(account, &format!("{}s of accounts below it", hooks.what), &why);
                vec![]
            }
        };
        let more = ids.len().saturating_sub(EACH_MAX);
        if more > 0 {
            let why = format!("{more} more than the {EACH_MAX} that are looked at");
            self.unlisted(account, &format!("{}s of accounts below it", hooks.what), &why);
        }
        let asked = ids.iter().take(EACH_MAX).map(|id| self.of_account(account, hooks, below, id));
        let answers: Vec<Result<Vec<Value>, String>> = stream::iter(asked).buffered(REQUESTS_AT_ONCE).collect().await;
        let mut items = Vec::new();
        for (id, answer) in ids.iter().zip(answers) {
            match answer {
                Ok(more) => items.extend(more),
                Err(why) => self.unlisted(account, &format!("{}s of {}", hooks.what, plain(id)), &why),
            }
        }
        items
    }

    /// The items of one account below this one.
    async fn of_account(
        &self,
        account: &Account,
        hooks: &Hooks,
        below: &Below,
        id: &str,
    ) -> Result<Vec<Value>, String> {
        let path = self.path_of_item(account, &below.each, id)?;
        self.pages(account, path, &hooks.items, hooks.next.as_ref()).await
    }

    /// Lines about a list of webhooks, or numbers.
    fn hooks_in_order(
        &self,
        account: &Account,
        hooks: &Hooks,
        items: &[Value],
        here: OwnWebhooks<'_>,
        good: bool,
    ) -> Vec<String> {
        let (name, what) = (&account.name, &hooks.what);
        if self.depth == Depth::Doctor && hooks.every {
            return numbers::numbers(self.config, account, &hooks.places(items, here));
        }
        let line = match (hooks.every, items.len()) {
            (_, 1) => format!("account {name}: its {what} comes here"),
            (true, n) => format!("account {name}: its {n} {what}s come here"),
            (false, n) => format!("account {name}: of its {n} {what}s at least one comes here"),
        };
        good.then_some(line).into_iter().collect()
    }

    fn hook(&self, account: &Account, hooks: &Hooks, finding: Finding, names: &[String]) {
        let (name, what) = (&account.name, &hooks.what);
        let list = short(names);
        let plural = if names.len() == 1 { "" } else { "s" };
        match finding {
            Finding::NoneHere { of, what, path, webhook, url, without } => {
                let host = self.config.webhooks.public_url.as_ref().and_then(|u| u.authority());
                let host = host.map_or("here", |a| a.as_str());
                let title = match of {
                    0 => format!("account {name} has no {what}: {without}"),
                    _ => format!("account {name}: none of its {of} {what}s comes to {host}: {without}"),
                };
                let help = match added(account, &webhook, path.as_deref()) {
                    Some(added) => format!("{added}; or make one with the URL {url}"),
                    None => format!("make one with the URL {url}"),
                };
                self.report.warning("W011", None, title, &help);
            }
            Finding::Elsewhere { called, is, path, webhook, url, without } => {
                let title = format!("account {name}: the {called} of {what}{plural} {list} {is}: {without}");
                let help = match added(account, &webhook, path.as_deref()) {
                    Some(added) => format!("{added}; or set it to {url}, if your app serves that path"),
                    None => format!("set it to {url}, or to a path of your app that inbound names"),
                };
                self.report.warning("W012", None, title, &help);
            }
            Finding::Fault(setting) => {
                // Separate codes for a webhook that does not post and for a setting that affects calls.
                let code = if setting.why.is_some() { "W032" } else { "W011" };
                self.fault(account, what, code, names, setting);
            }
        }
    }
}

/// The advice that makes a path known that providers already call; `None` if no key can.
fn added(account: &Account, webhook: &str, path: Option<&str>) -> Option<String> {
    let (key, path) = (extra_paths_key(&account.provider.name, webhook)?, path?);
    Some(format!("if that is where your app answers, add it: [inbound] {key} = [{path:?}]"))
}
