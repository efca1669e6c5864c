//! The specification of a run. Pure.

use std::collections::BTreeMap;

use http::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::template::document;
use crate::call::Outcome;
use crate::destinations::Hours;
use crate::ids::{AccountName, BusinessId};
use crate::provider::description::Operation;
use crate::provider::select::Message;

/// The specification of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// The business whose capacity the run uses.
    pub business: BusinessId,
    /// At which account.
    pub account: AccountName,
    /// The operation of the provider's description that makes its calls.
    pub operation: String,
    /// The request's body, as a template: an object; of a form its fields.
    pub request: Map<String, Value>,
    /// The name that the run's creator gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// A second create of its business with this key is the same run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// The field of a lead that has its number.
    #[serde(default = "number_field")]
    pub number_field: String,
    /// Our numbers, or the provider's ids of them: each call takes the next.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub own_numbers: Vec<String>,
    /// Treatment of two leads with one number.
    #[serde(default)]
    pub duplicates: Duplicates,
    /// The time before which the run is not dialled, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_at: Option<String>,
    /// Hours of the week, by the clock of whom it calls, within which alone it calls; none: at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub windows: Option<Hours>,
    /// Calls of it at once; none: as many as the limits allow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// Calls in a time, as in `5/s`; none: as fast as slots are free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<String>,
    /// The run's share of free slots beside other runs', from 1 to 1000.
    #[serde(default = "weight")]
    pub weight: u32,
    /// Slots that each limit of concurrent calls keeps free of its calls; none: as its business says, or the config.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserve_for_direct: Option<u32>,
    /// Outcomes after which a lead is called again: `busy`, `no_answer`, `failed`, `voicemail`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub retry: BTreeMap<Outcome, Again>,
    /// The failures for which it is paused.
    #[serde(default)]
    pub breaker: Breaker,
    /// The fields that a batch was submitted with, for clients that ask for the batch. No app sends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<Map<String, Value>>,
}

/// The number of calls to a lead, and the pause between them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Again {
    /// Calls in all.
    pub attempts: u32,
    /// Seconds from the end of a call to the next.
    pub after_secs: u32,
}

/// The failures for which a run is paused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Breaker {
    /// So many of the last calls are looked at.
    pub window: u32,
    /// So many of them must have failed; 0: never.
    pub failures: u32,
    /// Seconds until it goes on by itself; none: until somebody resumes it.
    pub resume_after_secs: Option<u32>,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { window: 20, failures: 15, resume_after_secs: None }
    }
}

/// Treatment of two leads with one number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Duplicates {
    /// The list is wrong.
    #[default]
    Reject,
    /// Each of them is called.
    Keep,
}

fn number_field() -> String {
    "number".to_owned()
}

fn weight() -> u32 {
    1
}

/// Whether the provider will report who answered the calls of a run.
pub(super) fn reports_who_answered(spec: &Spec, operation: &Operation) -> bool {
    let Some(when) = &operation.reports_who_answered else { return false };
    let body = document(&spec.request, operation.dial.as_ref().is_some_and(|dial| dial.form));
    when.holds(&Message { body: &body, query: &[], path: &BTreeMap::new(), headers: &HeaderMap::new() })
}
