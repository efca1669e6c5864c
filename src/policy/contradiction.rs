//! Requests that name one business and use an agent, number or key of another.

use super::{OnUnknownBusiness, Policy, RequestAttributes};
use crate::ids::BusinessId;

/// Treatment of a request with contradicting attributes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Contradictions {
    /// The request is refused with 403.
    #[default]
    Refuse,
    /// The contradiction is logged, and the rules apply in order.
    Log,
}

impl Contradictions {
    /// All variants with their names in the config.
    pub const WORDS: [(&'static str, Contradictions); 2] =
        [("refuse", Contradictions::Refuse), ("log", Contradictions::Log)];
}

impl Policy {
    /// Returns why a request contradicts itself: header or path hold a malformed id, or different ids, or an id that its agent,
    /// number or API key does not belong to. `None` if it does not, or if no rules are configured.
    pub fn contradiction(&self, attributes: &RequestAttributes<'_>) -> Option<String> {
        if self.rules.is_empty() {
            return None;
        }
        let mut named: Option<(&str, &str)> = None;
        for (what, id) in [("X-Business-Id", attributes.header), ("the path", attributes.path)] {
            let Some(id) = id else { continue };
            if let Err(error) = BusinessId::parse(id) {
                return Some(format!("{what} names no business: {error}"));
            }
            match named {
                Some((first, other)) if other != id => return Some(format!("{first} names {other}, {what} {id}")),
                _ => named = Some((what, id)),
            }
        }
        let (what, id) = named?;
        let (thing, owner) = self.part_of_another(id, attributes)?;
        Some(format!("{what} names {id}, but {thing} belongs to {owner}"))
    }

    /// Returns why no call may be made for a business with this agent and number, by the same rules, if any. For calls whose business
    /// is certain.
    pub fn denial_reason(&self, business: &BusinessId, agent: Option<&str>, number: Option<&str>) -> Option<String> {
        if self.rules.is_empty() {
            return None;
        }
        if self.settings.unknown == OnUnknownBusiness::Reject && !self.businesses.contains_key(business) {
            return Some(format!("business {business} is not configured"));
        }
        let attributes = RequestAttributes { agent, number, ..RequestAttributes::default() };
        let (thing, owner) = self.part_of_another(business.as_str(), &attributes)?;
        match self.settings.contradictions {
            Contradictions::Refuse => Some(format!("{thing} belongs to {owner}")),
            Contradictions::Log => None,
        }
    }

    /// The agent, number or API key that belongs to another business than this, and that business.
    fn part_of_another(&self, id: &str, attributes: &RequestAttributes<'_>) -> Option<(String, &BusinessId)> {
        let owners = [
            attributes.agent.and_then(|agent| Some((format!("agent {agent}"), self.by_agent.get(agent)?))),
            attributes.number.and_then(|number| Some(("its number".to_owned(), self.owner_of_number(number)?))),
            attributes
                .api_key_sha256
                .as_ref()
                .and_then(|key| Some(("its API key".to_owned(), self.by_api_key.get(key)?))),
        ];
        owners.into_iter().flatten().find(|(_, owner)| owner.as_str() != id)
    }
}
