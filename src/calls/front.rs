//! Front mode: connects an admitted inbound call to its agent.

use futures_util::FutureExt as _;
use serde_json::Value;
use tracing::warn;

use super::inbound::Inbound;
use super::provider_client::of_record;
use crate::call::{EndProof, Outcome, Phase, Source};
use crate::failpoint;
use crate::ids::CallId;
use crate::provider::render::fill_json;
use crate::provider::select::{Document, Message};
use crate::store::{CallRecord, Change};

impl Inbound {
    /// The TwiML that connects an admitted call to its agent, requested from the agent's provider. `Err` is a sentence for the
    /// log; the call has been ended. Repeated for one call, it returns the same conversation: a second conversation would never
    /// be joined, and its end would be taken for the call's.
    pub async fn front(&self, call: &CallId, agent: &str) -> std::result::Result<String, String> {
        let twiml = self.state.fronts.of(call);
        let asked = twiml.get_or_try_init(async || {
            let record = match self.context.lifecycle.store.call(call).await {
                Ok(Some(record)) => record,
                Ok(None) => return Err("its record is gone".to_owned()),
                Err(error) => return Err(error.to_string()),
            };
            if record.phase == Phase::Ended {
                return Err("it is over; its slot is free".to_owned());
            }
            self.register(&record, agent).boxed().await
        });
        match asked.await {
            Ok(twiml) => Ok(twiml.clone()),
            Err(why) => {
                self.context.lifecycle.end_with_retry(call, Outcome::Failed, EndProof::Provider, Source::Answer).await;
                Err(why)
            }
        }
    }

    async fn register(&self, record: &CallRecord, agent: &str) -> std::result::Result<String, String> {
        let account = self.context.account(&record.attributes.account).ok_or("its account is gone")?;
        let front = account.provider.front.as_ref().ok_or("its provider connects no calls")?;
        let body = fill_json(&front.body, &|name| match name {
            "agent" => agent.into(),
            name => of_record(record, name).map_or(Value::Null, |v| v.into_owned().into()),
        });
        let request = Some(("application/json", body.to_string().into()));
        let response =
            self.provider.ask(account, http::Method::POST, &front.path, request).await.map_err(|e| e.to_string())?;
        let status = response.status().as_u16();
        if let Some(limit) = account.provider.limits.iter().find(|l| l.status == status && l.when.is_empty()) {
            self.context.lifecycle.metrics.provider_limit(account, limit.class);
        }
        if !response.status().is_success() {
            return Err(format!("{} answered {}", account.provider.name, response.status().as_u16()));
        }
        let document = Document::decode(Some("text/xml"), response.body());
        let message = Message::new(&document, response.headers());
        let Document::Xml(twiml) = &document else { return Err("the answer is not TwiML".to_owned()) };
        let bind = front.ids.read(&message);
        if bind.is_empty() {
            warn!(call = %record.id, "TwiML names no conversation; the call is tracked by its carrier only");
        }
        failpoint::hit("inbound.fronted").await;
        let change = Change { bind, ..self.context.lifecycle.change(&record.id, Source::Answer) };
        match self.context.lifecycle.apply(change).await.map_err(|e| e.to_string())? {
            Some(applied) if applied.record.phase != Phase::Ended => Ok(twiml.clone()),
            _ => Err("it ended meanwhile; its slot is free".to_owned()),
        }
    }
}
