//! Lists, creates and deletes businesses at run time.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Map, Value, json};

use super::auth::Requester;
use super::operator::Act;
use super::{Admin, Answer, BODY_BYTES_MAX, Problem, bad, bulk, not_found, ok};
use crate::ids::BusinessId;
use crate::net::Exchange;
use crate::policy::Business;
use crate::reply::{json_answer, respond};

impl Admin {
    /// Every known business: from the config, or created by the API (`put`); and what each holds (`up`).
    pub(super) async fn businesses(&self, who: &Requester) -> Answer {
        let put = self.calls.lifecycle.store.businesses().await?;
        let open = self.calls.lifecycle.store.open_calls().await?;
        let mut up = BTreeMap::<&str, u32>::new();
        for call in
            open.iter().filter(|call| call.counts() && !call.over_limit && who.sees(call.attributes.business.as_str()))
        {
            *up.entry(call.attributes.business.as_str()).or_default() += call.slots;
        }
        let policy = self.calls.lifecycle.policy.load();
        let mut known: Vec<&Business> = policy.businesses().filter(|one| who.sees(one.id.as_str())).collect();
        known.sort_by(|a, b| a.id.cmp(&b.id));
        let shown = known.into_iter().map(|business| {
            let mut shown = serde_json::to_value(business).unwrap_or_default();
            shown["put"] = put.iter().any(|one| one.id == business.id).into();
            shown
        });
        ok(&json!({"businesses": shown.collect::<Vec<Value>>(), "up": up}))
    }

    /// A business as it is in force, for the audit.
    pub(super) fn business_in_force(&self, id: &BusinessId) -> Value {
        let policy = self.calls.lifecycle.policy.load();
        policy.business(id).map_or(Value::Null, |business| serde_json::to_value(business).unwrap_or_default())
    }

    pub(super) async fn business(
        &self,
        exchange: &mut Exchange,
        method: &Method,
        id: BusinessId,
        who: &Requester,
    ) -> Answer {
        let store = self.calls.lifecycle.store.clone();
        match *method {
            Method::GET => {
                let policy = self.calls.lifecycle.policy.load();
                let business = policy
                    .business(&id)
                    .filter(|_| who.sees(id.as_str()))
                    .ok_or_else(|| not_found("no business of this id is known"))?;
                ok(&serde_json::to_value(business).unwrap_or_default())
            }
            Method::PUT => {
                let business = self.read_business(exchange, id).await?;
                let before = self.business_in_force(&business.id);
                let mut shown = serde_json::to_value(&business).unwrap_or_default();
                let first = !self.calls.lifecycle.policy.load().has_named_businesses();
                self.audit(who, Act::new("put business", business.id.as_str()).changes(before, shown.clone())).await?;
                let new = store.put_business(&business, self.calls.lifecycle.clock.now_ms()).await?;
                self.program()?.refresh_businesses().await?;
                let status = if new { StatusCode::CREATED } else { StatusCode::OK };
                if first {
                    shown["note"] = self.unknown_businesses_notice().into();
                }
                Ok(json_answer(status, &shown))
            }
            Method::DELETE => {
                let was = store.businesses().await?.into_iter().find(|business| business.id == id);
                let Some(was) = was else {
                    return Err(not_found("no business of this id was put; those of the config file stay"));
                };
                let before = serde_json::to_value(was).unwrap_or_default();
                self.audit(who, Act::new("delete business", id.as_str()).changes(before, Value::Null)).await?;
                if !store.delete_business(id.as_str()).await? {
                    return Err(not_found("no business of this id was put; those of the config file stay"));
                }
                self.program()?.refresh_businesses().await?;
                Ok(respond(StatusCode::NO_CONTENT, HeaderMap::new(), Bytes::new()))
            }
            _ => Err(Problem::Is(
                StatusCode::METHOD_NOT_ALLOWED,
                "METHOD_NOT_ALLOWED",
                "use GET, PUT or DELETE".to_owned(),
            )),
        }
    }

    async fn read_business(&self, exchange: &mut Exchange, id: BusinessId) -> Result<Business, Problem> {
        let body = exchange.read_body(BODY_BYTES_MAX).await.map_err(|e| bad(e.to_string()))?;
        // Via a map: serde also accepts a struct as an array, and an empty one would be a business without limits.
        let fields: Map<String, Value> = serde_json::from_slice(&body).map_err(|e| bad(format!("no business: {e}")))?;
        let mut business: Business =
            serde_json::from_value(fields.into()).map_err(|e| bad(format!("no business: {e}")))?;
        let named = business.id != BusinessId::default_business() && business.id != id;
        if named {
            return Err(bad(format!("the path names {id}, the body {}", business.id)));
        }
        business.id = id;
        let wrong = bulk::invalid(&business, &self.calls.lifecycle.policy.load(), |_| false);
        if !wrong.is_empty() {
            return Err(Problem::Is(StatusCode::UNPROCESSABLE_ENTITY, "INVALID_BUSINESS", wrong.join("; ")));
        }
        Ok(business)
    }
}
