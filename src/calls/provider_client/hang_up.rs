//! Ends a call at its provider, by the account's hang-up methods in order, and checks that it has ended.
//!
//! A method's success response proves nothing: the call is looked up until its record says that it has ended. Where a method
//! destroys the record, "no such call" proves nothing either.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use http::header::CONTENT_TYPE;
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tracing::{info, warn};

use super::ask::{AskError, ProviderClient};
use super::lookup::LookedUp;
use crate::call::{EndProof, Event, Outcome, Phase, Source};
use crate::failpoint;
use crate::ids::CallId;
use crate::provider::account::Account;
use crate::provider::description::HangUpMethod;
use crate::provider::select::{Document, Message};
use crate::store::{CallRecord, Change};

/// Pauses before the look-ups that check a hang-up. Twilio's records are eventually consistent.
const CHECKS: [Duration; 5] = [
    Duration::from_millis(150),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];

/// The outcome of a hang-up.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum HangUpResult {
    /// The call has ended, and its provider's record says so.
    Over {
        /// The method that ended it.
        means: String,
    },
    /// A method succeeded, but the record does not show the end yet. The sweep keeps checking.
    Unproven {
        /// The method.
        means: String,
    },
    /// No method worked.
    Failed {
        /// Each method with its error.
        tried: Vec<String>,
    },
}

enum Acted {
    Done,
    RecordGone,
}

impl ProviderClient {
    /// Ends a call. `outcome` is recorded as its outcome.
    pub async fn hang_up(&self, record: &CallRecord, outcome: Outcome) -> HangUpResult {
        let mut tried = Vec::new();
        for account in self.context.accounts_of(record) {
            for name in &account.hang_up_methods {
                let Some(means) = account.provider.hang_up_methods.get(name) else { continue };
                failpoint::hit("hangup.sending").await;
                match self.act(account, means, record).await {
                    Ok(acted) => {
                        failpoint::hit("hangup.sent").await;
                        info!(call = %record.id, account = %account.name, means = name, "hang-up sent");
                        if self.check_over(record, outcome, &acted).await {
                            return HangUpResult::Over { means: name.clone() };
                        }
                        if matches!(acted, Acted::RecordGone) {
                            // The record is gone; only the method's response is left, and the carrier may know more.
                            tried.push(format!("{name}: the provider's record is gone, so the end cannot be checked"));
                            continue;
                        }
                        return HangUpResult::Unproven { means: name.clone() };
                    }
                    Err(error) => tried.push(format!("{name}: {error}")),
                }
            }
        }
        if tried.is_empty() {
            tried.push(format!("account {} has no hang-up method", record.attributes.account));
        }
        warn!(call = %record.id, tried = tried.join("; "), "failed to hang up a call");
        HangUpResult::Failed { tried }
    }

    /// Ends an over-limit call in the background, unless that was started a moment ago.
    pub fn hang_up_later(self: &Arc<Self>, call: &CallId) {
        if !self.hang_ups.begin(call) {
            return;
        }
        let (this, call) = (self.clone(), call.clone());
        self.context.tasks.spawn(async move {
            match this.context.lifecycle.store.call(&call).await {
                Ok(Some(record)) if record.phase != Phase::Ended && this.has_means(&record) => {
                    this.hang_up(&record, Outcome::Capacity).await;
                }
                Ok(_) => {}
                Err(error) => warn!(%call, %error, "failed to read an over-limit call; the sweep retries"),
            }
        });
    }

    fn has_means(&self, record: &CallRecord) -> bool {
        self.context.accounts_of(record).iter().any(|account| !account.hang_up_methods.is_empty())
    }

    async fn act(&self, account: &Account, means: &HangUpMethod, record: &CallRecord) -> Result<Acted, AskError> {
        if record.alias(&means.needs).is_none() {
            return Err(AskError::CannotQuery(
                account.name.clone(),
                "the call has no id of the kind that this method needs",
            ));
        }
        if let Some(of_carrier) = &means.carrier {
            let no_carrier = || AskError::CannotQuery(account.name.clone(), "it names no carrier account");
            let carrier = account.carrier.as_ref().and_then(|c| self.context.account(c)).ok_or_else(no_carrier)?;
            let there = carrier.provider.hang_up_methods.get(of_carrier).ok_or_else(no_carrier)?;
            return self.request(carrier, there, record).await;
        }
        if let Some(template) = &means.socket {
            return self.socket(account, template, &means.send, record).await;
        }
        self.request(account, means, record).await
    }

    async fn request(&self, account: &Account, means: &HangUpMethod, record: &CallRecord) -> Result<Acted, AskError> {
        let path = self.path(account, Some(record), &means.path)?;
        let method = means.method.clone().unwrap_or(http::Method::POST);
        let form = (!means.form.is_empty()).then(|| {
            let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(&means.form).finish();
            ("application/x-www-form-urlencoded", body.into())
        });
        let response = self.ask(account, method, &path, form).await?;
        let status = response.status().as_u16();
        let content_type = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let body = Document::decode(content_type, response.body());
        let message = Message::new(&body, response.headers());
        let over = !means.over.is_empty() && means.over.holds(&message);
        if !over && !means.ok.contains(&status) {
            return Err(AskError::Status(status));
        }
        Ok(if means.deletes_record { Acted::RecordGone } else { Acted::Done })
    }

    async fn socket(
        &self,
        account: &Account,
        template: &str,
        send: &str,
        record: &CallRecord,
    ) -> Result<Acted, AskError> {
        let cannot_query = |why| AskError::CannotQuery(account.name.clone(), why);
        let path = self.path(account, Some(record), template)?;
        let url = account.url(&path).map_err(|_| cannot_query("its URL is bad"))?.to_string();
        let url = url.replacen("http", "ws", 1);
        let mut request = url.into_client_request().map_err(|_| cannot_query("its socket URL is bad"))?;
        let (name, value) = account.credentials()?;
        request.headers_mut().insert(name, value);
        let talk = async {
            let mut socket = self.context.upstream.web_socket(request).await?;
            socket.send(Frame::text(send)).await?;
            // The provider closes the socket when the conversation ends. A short wait is enough: the look-up decides.
            let _ = tokio::time::timeout(Duration::from_millis(500), socket.next()).await;
            socket.close(None).await
        };
        match tokio::time::timeout(self.context.settings.provider_query_timeout, talk).await {
            Ok(Ok(())) => Ok(Acted::Done),
            Ok(Err(tokio_tungstenite::tungstenite::Error::ConnectionClosed)) => Ok(Acted::Done),
            Ok(Err(tokio_tungstenite::tungstenite::Error::Http(answer))) => {
                Err(AskError::Status(answer.status().as_u16()))
            }
            Ok(Err(_)) => Err(cannot_query("its socket broke")),
            Err(_) => Err(cannot_query("its socket did not answer in time")),
        }
    }

    /// Looks the call up until its record shows the end.
    async fn check_over(&self, record: &CallRecord, outcome: Outcome, acted: &Acted) -> bool {
        for pause in CHECKS {
            tokio::time::sleep(pause).await;
            // A webhook may have reported the end meanwhile.
            let Ok(Some(now)) = self.context.lifecycle.store.call(&record.id).await else { continue };
            if now.phase == Phase::Ended {
                return true;
            }
            match self.look_up(&now).await {
                Ok(LookedUp::Found(found)) if matches!(found.event, Some(Event::Ended(..))) => {
                    failpoint::hit("hangup.over").await;
                    let change = found.change(now.phase, self.context.lifecycle.change(&record.id, Source::Poll));
                    let event = Some(Event::Ended(outcome, EndProof::Provider));
                    let change = Change { event, ..change };
                    return self.context.lifecycle.apply(change).await.is_ok();
                }
                Ok(LookedUp::Absent) if matches!(acted, Acted::RecordGone) => return false,
                Ok(_) | Err(_) => {}
            }
        }
        false
    }
}
