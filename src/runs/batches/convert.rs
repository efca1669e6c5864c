//! A batch as it is submitted, read as a run and its leads. Pure.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::super::leads::Row;
use super::super::spec::{Breaker, Duplicates, Spec};
use crate::clock::rfc3339;
use crate::ids::{AccountName, BusinessId};

/// Fields of a batch that a run has a place for. One with others goes to the provider.
const KNOWN: [&str; 11] = [
    "call_name",
    "agent_id",
    "recipients",
    "scheduled_time_unix",
    "agent_phone_number_id",
    "whatsapp_params",
    "timezone",
    "branch_id",
    "environment",
    "telephony_call_config",
    "target_concurrency_limit",
];

/// The field in which a run keeps the digest of the body that it was submitted with.
pub(super) const BODY_DIGEST: &str = "body_sha256";

/// The telephony provider of a phone number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PhoneProvider {
    Twilio,
    SipTrunk,
}

impl PhoneProvider {
    /// `None`: runs have no operation for it.
    pub(super) fn parse(word: &str) -> Option<Self> {
        match word {
            "twilio" => Some(Self::Twilio),
            "sip_trunk" => Some(Self::SipTrunk),
            _ => None,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Twilio => "twilio",
            Self::SipTrunk => "sip_trunk",
        }
    }

    /// The operation of the provider's description that places one call.
    const fn operation(self) -> &'static str {
        match self {
            Self::Twilio => "twilio_outbound_call",
            Self::SipTrunk => "sip_trunk_outbound_call",
        }
    }
}

/// A batch that a run can dial.
#[derive(Debug)]
pub(super) struct Batch<'b> {
    body: &'b Map<String, Value>,
    agent_id: &'b str,
    pub(super) phone_number_id: &'b str,
    recipients: Vec<&'b Map<String, Value>>,
}

impl<'b> Batch<'b> {
    /// `None`: it is not whole, or has what no run has. The provider judges it.
    pub(super) fn read(body: &'b Value) -> Option<Self> {
        let body = body.as_object()?;
        let is_set = |name: &str| body.get(name).is_some_and(|value| !value.is_null());
        if is_set("whatsapp_params") || body.keys().any(|key| !KNOWN.contains(&key.as_str())) {
            return None;
        }
        let text = |name: &str| body.get(name)?.as_str().filter(|text| !text.is_empty());
        text("call_name")?;
        let is_number = |name: &str| !is_set(name) || body.get(name).is_some_and(Value::is_u64);
        if !is_number("scheduled_time_unix") || !is_number("target_concurrency_limit") {
            return None;
        }
        let recipients = body.get("recipients")?.as_array()?;
        let recipients: Vec<_> = recipients.iter().map(Value::as_object).collect::<Option<_>>()?;
        let by_phone = |one: &&Map<String, Value>| one.get("whatsapp_user_id").is_none_or(Value::is_null);
        if recipients.is_empty() || !recipients.iter().all(by_phone) {
            return None;
        }
        let (agent_id, phone_number_id) = (text("agent_id")?, text("agent_phone_number_id")?);
        Some(Self { body, agent_id, phone_number_id, recipients })
    }

    fn value(&self, name: &str) -> Option<&'b Value> {
        self.body.get(name).filter(|value| !value.is_null())
    }

    /// The run that dials it. The provider pauses no batch for its failures, so the run's breaker is off.
    pub(super) fn spec(
        &self,
        business: &BusinessId,
        account: &AccountName,
        by: PhoneProvider,
        key: String,
        body_digest: &str,
    ) -> Spec {
        let mut request = Map::new();
        request.insert("agent_id".to_owned(), self.agent_id.into());
        request.insert("agent_phone_number_id".to_owned(), self.phone_number_id.into());
        request.insert("conversation_initiation_client_data".to_owned(), "{{lead.data}}".into());
        if let Some(config) = self.value("telephony_call_config") {
            request.insert("telephony_call_config".to_owned(), config.clone());
        }
        let mut batch = Map::new();
        for name in ["timezone", "branch_id", "environment", "telephony_call_config", "target_concurrency_limit"] {
            batch.extend(self.value(name).map(|value| (name.to_owned(), value.clone())));
        }
        batch.insert("agent_id".to_owned(), self.agent_id.into());
        batch.insert("phone_number_id".to_owned(), self.phone_number_id.into());
        batch.insert("phone_provider".to_owned(), by.as_str().into());
        batch.insert(BODY_DIGEST.to_owned(), body_digest.into());
        let scheduled = self.value("scheduled_time_unix").and_then(Value::as_i64);
        let limit = self.value("target_concurrency_limit").and_then(Value::as_u64);
        Spec {
            business: business.clone(),
            account: account.clone(),
            operation: by.operation().to_owned(),
            request,
            name: self.value("call_name").and_then(Value::as_str).map(str::to_owned),
            idempotency_key: Some(key),
            number_field: "phone_number".to_owned(),
            own_numbers: vec![],
            duplicates: Duplicates::Keep,
            start_at: scheduled.map(|secs| rfc3339(secs.saturating_mul(1000))),
            windows: None,
            concurrency: limit.map(|limit| u32::try_from(limit).unwrap_or(u32::MAX).max(1)),
            rate: None,
            weight: 1,
            reserve_for_direct: None,
            retry: BTreeMap::new(),
            breaker: Breaker { failures: 0, ..Breaker::default() },
            batch: Some(batch),
        }
    }

    /// Returns the batch's recipients as leads.
    pub(super) fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        self.recipients.iter().zip(1_u64..).map(|(recipient, line)| {
            let mut lead = Map::new();
            let copied = ["id", "phone_number"].into_iter();
            lead.extend(copied.filter_map(|name| Some((name.to_owned(), recipient.get(name)?.clone()))));
            let given = recipient.get("conversation_initiation_client_data").filter(|data| !data.is_null());
            let mut data = given.cloned().unwrap_or_else(|| json!({}));
            if let Value::Object(data) = &mut data {
                for name in ["branch_id", "environment"] {
                    if let Some(value) = self.value(name) {
                        data.entry(name).or_insert_with(|| value.clone());
                    }
                }
            }
            lead.insert("data".to_owned(), data);
            Row { line, lead: Ok(lead) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body() -> Value {
        json!({
            "call_name": "Monday", "agent_id": "agent_1", "agent_phone_number_id": "phnum_1", "timezone": null,
            "scheduled_time_unix": 1_800_000_000_u64, "target_concurrency_limit": 2, "branch_id": "br_1",
            "telephony_call_config": {"ringing_timeout_secs": 30},
            "recipients": [
                {"phone_number": "+15550001101", "id": "r1", "conversation_initiation_client_data": {"user_id": "u"}},
                {"phone_number": "+15550001102", "conversation_initiation_client_data": {"branch_id": "br_2"}},
            ],
        })
    }

    #[test]
    fn a_batch_is_a_run_that_says_the_same() {
        let body = body();
        let batch = Batch::read(&body).unwrap();
        let (business, account) = (BusinessId::parse("acme").unwrap(), AccountName::parse("elevenlabs").unwrap());
        let spec = batch.spec(&business, &account, PhoneProvider::SipTrunk, "batch:1".to_owned(), "0f");
        assert_eq!((spec.operation.as_str(), spec.concurrency), ("sip_trunk_outbound_call", Some(2)));
        assert_eq!((spec.start_at.as_deref(), spec.name.as_deref()), (Some("2027-01-15T08:00:00Z"), Some("Monday")));
        assert_eq!(spec.request["telephony_call_config"], json!({"ringing_timeout_secs": 30}));
        let shown = spec.batch.as_ref().unwrap();
        assert_eq!((&shown["phone_provider"], shown.get("timezone")), (&json!("sip_trunk"), None));
        let rows: Vec<Value> = batch.rows().map(|row| row.lead.unwrap().into()).collect();
        assert_eq!(
            rows[0],
            json!({"id": "r1", "phone_number": "+15550001101", "data": {"user_id": "u", "branch_id": "br_1"}})
        );
        assert_eq!(rows[1], json!({"phone_number": "+15550001102", "data": {"branch_id": "br_2"}}), "its own wins");
    }

    #[test]
    fn what_no_run_can_dial_goes_to_the_provider() {
        for (path, value) in [
            ("/whatsapp_params", json!({"whatsapp_phone_number_id": "w"})),
            ("/something_new", json!(1)),
            ("/recipients", json!([])),
            ("/recipients", json!([{"whatsapp_user_id": "15550001101"}])),
            ("/recipients", json!(["+15550001101"])),
            ("/agent_id", json!(null)),
            ("/agent_phone_number_id", json!(7)),
            ("/call_name", json!("")),
            ("/target_concurrency_limit", json!("two")),
            ("/scheduled_time_unix", json!(-1)),
        ] {
            let mut body = body();
            body[&path[1..]] = value.clone();
            assert!(Batch::read(&body).is_none(), "{path} {value}");
        }
        assert!(Batch::read(&json!([])).is_none());
        assert_eq!(PhoneProvider::parse("exotel"), None);
    }
}
