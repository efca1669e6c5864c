//! A tenant, what its callers hear when it is full, and the rules that identify the business of a request.

use serde::{Deserialize, Serialize};

use crate::destinations;
use crate::ids::BusinessId;

/// The response that an inbound caller hears when a limit is full.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// A busy tone before the call is answered; not billed.
    Busy,
    /// A sentence, then hang-up. Answers the call, so it is billed.
    Say {
        /// The sentence.
        text: String,
        /// The language tag, as in `en-US`.
        language: String,
    },
    /// The call is forwarded.
    Forward {
        /// The number to dial, in E.164.
        number: String,
    },
}

/// The part of a call's transcript that is kept. Each variant keeps less than the one before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Privacy {
    /// Everything.
    #[default]
    Keep,
    /// Digests, which only tell whether two texts are equal.
    Hash,
    /// Nothing.
    None,
}

impl Privacy {
    /// All variants with their names in the config.
    pub const WORDS: [(&'static str, Privacy); 3] =
        [("keep", Privacy::Keep), ("hash", Privacy::Hash), ("none", Privacy::None)];
}

/// The range of a retention, in days.
pub const RETENTION_DAYS: std::ops::RangeInclusive<u32> = 1..=3650;

/// Slots that can be kept free of bulk calls at most.
pub const RESERVE_MAX: u32 = 1_000_000;

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Business {
    /// The business id; taken from the path in a `PUT` request.
    #[serde(default = "BusinessId::default_business")]
    pub id: BusinessId,
    /// The plan; [`DEFAULT_PLAN`](super::DEFAULT_PLAN) if `None`.
    #[serde(default)]
    pub plan: Option<String>,
    /// Concurrent calls; overrides the plan's number.
    #[serde(default)]
    pub max_calls: Option<u32>,
    /// Agents of the business.
    #[serde(default)]
    pub agent_ids: Vec<String>,
    /// Numbers of ours, or provider ids of numbers, that belong to the business.
    #[serde(default)]
    pub phone_numbers: Vec<String>,
    /// Hex SHA-256 digests of the API keys that only this business uses.
    #[serde(default)]
    pub api_key_sha256: Vec<String>,
    /// Overrides the plan's setting.
    #[serde(default)]
    pub when_full: Option<WhenFull>,
    /// Retention of its call data in days, within [`RETENTION_DAYS`]; overrides the store's. Not serialised when unset, because
    /// older versions reject unknown fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_days: Option<u32>,
    /// The part of its transcripts that is kept; overrides the platform's setting. Not serialised when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transcripts: Option<Privacy>,
    /// Slots that each limit of concurrent calls keeps free of its bulk calls, at most [`RESERVE_MAX`]; overrides
    /// `runs.reserve_for_direct`. Not serialised when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserve_for_direct: Option<u32>,
    /// Destination rules, in addition to the global ones and those of the plan. Not serialised when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destinations: Option<destinations::Rules>,
}

impl Business {
    /// A business with an id and no settings.
    pub fn named(id: BusinessId) -> Self {
        Self {
            id,
            plan: None,
            max_calls: None,
            agent_ids: vec![],
            phone_numbers: vec![],
            api_key_sha256: vec![],
            when_full: None,
            retention_days: None,
            transcripts: None,
            reserve_for_direct: None,
            destinations: None,
        }
    }
}

/// A way to identify the business of a request; tried in the configured order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The header `X-Business-Id`.
    Header,
    /// The path prefix `/b/{business}/…`.
    Path,
    /// The agent id.
    Agent,
    /// Our number.
    Number,
    /// The account's `business` setting.
    Account,
    /// The API key of the request.
    ApiKey,
}

impl Rule {
    /// The default rules.
    pub const USUAL: &'static [Rule] = &[Rule::Header, Rule::Path, Rule::Agent, Rule::Number];

    /// All rules with their names in the config.
    pub const WORDS: &'static [(&'static str, Rule)] = &[
        ("header", Rule::Header),
        ("path", Rule::Path),
        ("agent", Rule::Agent),
        ("number", Rule::Number),
        ("account", Rule::Account),
        ("api_key", Rule::ApiKey),
    ];
}

/// The attributes of a request that identify its business.
#[derive(Debug, Clone, Default)]
pub struct RequestAttributes<'a> {
    /// The header `X-Business-Id`.
    pub header: Option<&'a str>,
    /// The business in `/b/{business}/…`.
    pub path: Option<&'a str>,
    /// The agent id.
    pub agent: Option<&'a str>,
    /// Our number, or the provider's id for it.
    pub number: Option<&'a str>,
    /// The account name.
    pub account: Option<&'a str>,
    /// The hex SHA-256 digest of the API key.
    pub api_key_sha256: Option<String>,
}

/// Treatment of a request of an unknown business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnUnknownBusiness {
    /// The request is rejected with 403.
    Reject,
    /// The request is accepted on this plan, under the id it names, or as `default`.
    Plan(String),
}

impl OnUnknownBusiness {
    /// The consequence in a sentence for operators.
    pub fn consequence(&self) -> String {
        match self {
            OnUnknownBusiness::Reject => {
                "requests without a known business are refused with 403 UNKNOWN_BUSINESS (businesses.unknown = \
                                \"reject\")"
                    .to_owned()
            }
            OnUnknownBusiness::Plan(plan) => format!(
                "requests of unknown businesses are accepted on plan {plan:?}, each under the id it names, or as \"default\" \
                 (businesses.unknown = {plan:?}; \"reject\" refuses them with 403)"
            ),
        }
    }
}

impl Default for OnUnknownBusiness {
    fn default() -> Self {
        Self::Plan(super::DEFAULT_PLAN.to_owned())
    }
}

/// The identified business of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identified {
    /// The business: a known one, or the id that the request names, or `default`.
    pub business: BusinessId,
    /// The reason why the business is unknown, if unknown ones are rejected. The caller decides what to do: observe mode rejects nothing.
    pub unknown_business: Option<UnknownBusiness>,
    /// An id in the request that was not used: malformed, or read by no rule.
    pub ignored: Option<Ignored>,
}

/// The reason why a business id in the request was ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ignored {
    /// `X-Business-Id` is malformed.
    #[error("X-Business-Id: its value is not a business id")]
    BadHeader,
    /// No rule uses `X-Business-Id`.
    #[error("X-Business-Id: businesses.identify_by does not name \"header\"")]
    Header,
    /// The id in `/b/…/` is malformed.
    #[error("/b/…/: it has no business id")]
    BadPath,
    /// No rule uses `/b/…/`.
    #[error("/b/…/: businesses.identify_by does not name \"path\"")]
    Path,
}

/// The request's business is unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no business is known for this request: {0}")]
pub struct UnknownBusiness(pub String);
