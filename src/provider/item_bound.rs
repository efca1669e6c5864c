//! Bounds that a provider sets to single items, such as agents, compared with what the config admits. Pure.

use serde::Deserialize;
use serde_json::Value;

use super::select::Selector;
use super::setting::{Setting, read};

/// A bound of an item on its calls, compared with what the config admits.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ItemBound {
    /// The bound in the item.
    pub at: Selector,
    /// Values that are not compared: no bound, or the provider's default.
    #[serde(default)]
    pub ignored: Vec<String>,
    /// The period in which it counts calls, in seconds. Default: it bounds calls at once.
    pub per_secs: Option<u32>,
    /// The message for the operator; `{bound}`, `{admitted}` and `{item}`, the item's id, are filled in.
    pub says: String,
    /// The reason why it matters.
    pub why: String,
    /// The advice to the operator, with the same placeholders filled in.
    pub fix: String,
}

impl ItemBound {
    /// The finding if the config admits more. `admitted`: how many calls it admits at once, or within so many seconds; `None`: any
    /// number.
    pub(super) fn fault(
        &self,
        item: &Value,
        id: &str,
        admitted: impl Fn(Option<u32>) -> Option<u64>,
    ) -> Option<Setting> {
        let text = read(item, |message| self.at.text(message).map(|text| text.into_owned()))?;
        let bound: u64 = text.parse().ok().filter(|_| !self.ignored.contains(&text))?;
        let admitted = admitted(self.per_secs);
        if admitted.is_some_and(|admitted| admitted <= bound) {
            return None;
        }
        let admitted = admitted.map_or_else(|| "any number".to_owned(), |n| n.to_string());
        let filled = |text: &str| {
            text.replace("{bound}", &bound.to_string()).replace("{admitted}", &admitted).replace("{item}", id)
        };
        Some(Setting { says: filled(&self.says), why: Some(self.why.clone()), fix: Some(filled(&self.fix)) })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::provider::Registry;

    #[test]
    fn an_agent_that_takes_fewer_calls_than_are_admitted_is_found() {
        let registry = Registry::new(&[]).unwrap();
        let agents = &registry.get("elevenlabs").unwrap().check.as_ref().unwrap().lists[0];
        let found = |at_once: i64, daily: i64, admitted: [Option<u64>; 2]| {
            let limits = json!({"agent_concurrency_limit": at_once, "daily_limit": daily});
            let agent = json!({"agent_id": "agent_1", "platform_settings": {"call_limits": limits}});
            agents.below(&agent, |id, per_secs| {
                assert_eq!(id, "agent_1");
                admitted[usize::from(per_secs.is_some())]
            })
        };
        assert_eq!(found(-1, 100_000, [Some(10), None]), [], "no bound, and the default");
        assert_eq!(found(10, 500, [Some(10), Some(500)]), []);
        let below = found(3, 500, [Some(10), None]);
        let [at_once, daily] = &below[..] else { panic!("{below:?}") };
        assert!(at_once.says.contains('3') && at_once.says.contains("10"), "{at_once:?}");
        assert!(daily.says.contains("500") && daily.says.contains("any number"), "{daily:?}");
        assert!(at_once.fix.as_ref().unwrap().contains("agent_1"), "{at_once:?}");
    }
}
