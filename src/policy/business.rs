//! A tenant, what its callers meet when it is full, and the rules that tell whose a request is.

use serde::{Deserialize, Serialize};

use crate::destinations;
use crate::ids::BusinessId;

/// What an inbound caller meets when a limit is full.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// A busy tone before answer: not billed.
    Busy,
    /// A sentence, then the line is hung up. Answers the call, and is billed.
    Say {
        /// What is said.
        text: String,
        /// As in `en-US`.
        language: String,
    },
    /// Another number is dialled.
    Forward {
        /// E.164.
        number: String,
    },
}

/// What is kept of what was said in calls. Each keeps less than the one before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Privacy {
    /// All.
    #[default]
    Keep,
    /// Digests, by which two texts can be compared.
    Hash,
    /// Nothing.
    None,
}

impl Privacy {
    /// Every one with its word in the config.
    pub const WORDS: [(&'static str, Privacy); 3] =
        [("keep", Privacy::Keep), ("hash", Privacy::Hash), ("none", Privacy::None)];
}

/// How long a record is kept, in days.
pub const RETENTION_DAYS: std::ops::RangeInclusive<u32> = 1..=3650;

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Business {
    /// Its id; in the path where it is put over HTTP.
    #[serde(default = "BusinessId::default_business")]
    pub id: BusinessId,
    /// Its plan; [`DEFAULT_PLAN`](super::DEFAULT_PLAN) unless given.
    #[serde(default)]
    pub plan: Option<String>,
    /// Calls at once; overrides the plan's.
    #[serde(default)]
    pub max_calls: Option<u32>,
    /// Agents that belong to it.
    #[serde(default)]
    pub agent_ids: Vec<String>,
    /// Our numbers (or provider ids of numbers) that belong to it.
    #[serde(default)]
    pub phone_numbers: Vec<String>,
    /// SHA-256, in hex, of the API keys that only this business uses.
    #[serde(default)]
    pub api_key_sha256: Vec<String>,
    /// Overrides the plan's.
    #[serde(default)]
    pub when_full: Option<WhenFull>,
    /// How long what its calls left behind is kept, in days, within [`RETENTION_DAYS`]; overrides the store's. Left out where it is
    /// not said, as an older version that reads this knows no such field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_days: Option<u32>,
    /// What is kept of what is said in its calls; overrides the platform's. Left out likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transcripts: Option<Privacy>,
    /// Whom it may call, beside what holds for everybody and for its plan. Left out likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destinations: Option<destinations::Rules>,
}

impl Business {
    /// A business that has an id and nothing else.
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
            destinations: None,
        }
    }
}

/// A way to tell the business of a request; tried in the configured order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The header `X-Business-Id`.
    Header,
    /// The path prefix `/b/{business}/…`.
    Path,
    /// The agent's id.
    Agent,
    /// Our number.
    Number,
    /// The account's `business`.
    Account,
    /// The API key that came with the request.
    ApiKey,
}

impl Rule {
    /// The rules where none were written.
    pub const USUAL: &'static [Rule] = &[Rule::Header, Rule::Path, Rule::Agent, Rule::Number];

    /// Every rule with its word in the config.
    pub const WORDS: &'static [(&'static str, Rule)] = &[
        ("header", Rule::Header),
        ("path", Rule::Path),
        ("agent", Rule::Agent),
        ("number", Rule::Number),
        ("account", Rule::Account),
        ("api_key", Rule::ApiKey),
    ];
}

/// What a request shows of its business.
#[derive(Debug, Clone, Default)]
pub struct RequestAttributes<'a> {
    /// `X-Business-Id`.
    pub header: Option<&'a str>,
    /// From `/b/{business}/…`.
    pub path: Option<&'a str>,
    /// The agent's id.
    pub agent: Option<&'a str>,
    /// Our number or the provider's id of it.
    pub number: Option<&'a str>,
    /// The account.
    pub account: Option<&'a str>,
    /// SHA-256 of the API key, in hex.
    pub api_key_sha256: Option<String>,
}

/// What becomes of a request whose business nobody knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unknown {
    /// Refused with 403.
    Reject,
    /// Taken, on this plan, under the id it shows (or `default`).
    Plan(String),
}

impl Unknown {
    /// What follows from it, for a person.
    pub fn means(&self) -> String {
        match self {
            Unknown::Reject => {
                "requests that show no known business are refused with 403 UNKNOWN_BUSINESS (businesses.unknown = \
                                \"reject\")"
                    .to_owned()
            }
            Unknown::Plan(plan) => format!(
                "requests of businesses that are not known are taken on plan {plan:?}, each under the id it shows, or as \"default\" \
                 (businesses.unknown = {plan:?}; \"reject\" refuses them with 403)"
            ),
        }
    }
}

impl Default for Unknown {
    fn default() -> Self {
        Self::Plan(super::DEFAULT_PLAN.to_owned())
    }
}

/// Whose a request is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identified {
    /// The business: a known one, or the id that the request shows, or `default`.
    pub business: BusinessId,
    /// Why nobody knows it, where strangers are refused. Who refuses is for the caller to say: nobody is refused in observe mode.
    pub stranger: Option<UnknownBusiness>,
    /// What the request shows and nothing reads: a bad id, or a mark that no rule looks at.
    pub ignored: Option<Ignored>,
}

/// A mark of a business that nothing reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ignored {
    /// `X-Business-Id` has no id.
    #[error("X-Business-Id: its value is no business id")]
    BadHeader,
    /// No rule reads `X-Business-Id`.
    #[error("X-Business-Id: businesses.identify_by does not name \"header\"")]
    Header,
    /// `/b/…/` has no id.
    #[error("/b/…/: it names no business id")]
    BadPath,
    /// No rule reads `/b/…/`.
    #[error("/b/…/: businesses.identify_by does not name \"path\"")]
    Path,
}

/// No business could be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no business is known for this request: {0}")]
pub struct UnknownBusiness(pub String);
