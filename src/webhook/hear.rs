//! What is said in calls: finals go on record under the next number of their call, what is half said is only shown.

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, Response, StatusCode};
use tracing::warn;

use super::{Came, Taken, Webhooks};
use crate::call::{EndProof, Origin, Phase};
use crate::calls::inbound::Arrival;
use crate::clock::rfc3339;
use crate::hub::Partial;
use crate::provider::description::Heard;
use crate::reply::{problem, respond};
use crate::store::{Change, NewUtterance, Result};

impl Webhooks {
    /// The answer to what is not taken into the inbox: what cannot be read, and what is only half said. `None`: it is taken.
    pub(super) async fn unheard(&self, taken: &Taken<'_>) -> Option<Response<Bytes>> {
        let name = taken.event.map_or("unknown", |event| event.name.as_str());
        let count =
            |outcome: &str| self.calls.lifecycle.metrics.webhook(taken.from.account.name.as_str(), name, outcome);
        let invalid = |why: &str| {
            count("invalid");
            Some(problem(StatusCode::UNPROCESSABLE_ENTITY, "INVALID_PAYLOAD", why))
        };
        match taken.heard.as_ref()? {
            Err(why) => invalid(why),
            Ok(_) if taken.aliases.is_empty() => invalid("It does not say in which call: conversation_id or call_sid."),
            Ok(heard) if heard.is_partial => {
                count("partial");
                let partial =
                    Partial { speaker: heard.speaker, text: heard.text.as_str().into(), source_sequence: heard.order };
                match self.calls.lifecycle.store.resolve(&taken.aliases).await {
                    Ok(Some(call)) => self.calls.lifecycle.hub.murmur(&call, partial),
                    // The next one says more.
                    Ok(None) => {}
                    Err(error) => warn!(%error, "what is half said in a call is not shown"),
                }
                Some(respond(StatusCode::NO_CONTENT, HeaderMap::new(), Bytes::new()))
            }
            Ok(_) => None,
        }
    }

    /// Puts on record what was said. A call that nobody knows exists all the same, and is counted from now on.
    pub(super) async fn hear(
        &self,
        taken: &Taken<'_>,
        heard: &std::result::Result<Heard, String>,
        event_id: &str,
    ) -> Result<Came> {
        let Ok(heard) = heard else { return Ok(Came::of("unreadable")) };
        let lifecycle = &self.calls.lifecycle;
        let call = match lifecycle.store.resolve(&taken.aliases).await? {
            Some(call) => call,
            None => self.calls.overhear(self.overheard(taken)).boxed().await?,
        };
        let at_ms = lifecycle.clock.now_ms();
        let said = NewUtterance {
            event_id: event_id.to_owned(),
            speaker: heard.speaker,
            text: self.calls.text_kept_now(&call, &heard.text).await?,
            said_at: heard.said_at.clone().unwrap_or_else(|| rfc3339(at_ms)),
            source_sequence: heard.order,
            source: heard.order_in.clone(),
            at_ms,
        };
        let Some(said) = lifecycle.store.say(&call, said).await? else { return Ok(Came::of("forgotten")) };
        lifecycle.hub.ring(&call);
        // Who speaks has been connected, and may be known by another id from now on.
        let record = lifecycle.store.call(&call).await?;
        let is_news = |record: &crate::store::CallRecord| {
            record.phase < Phase::Live
                // It was taken for over, or is about to be.
                || record.proof == Some(EndProof::Deadline)
                || record.absent_at.is_some()
                || taken.aliases.iter().any(|alias| !record.aliases.contains(alias))
        };
        if record.as_ref().is_some_and(is_news) {
            let bind = taken.aliases.clone();
            lifecycle.apply(Change { event: taken.news, bind, ..lifecycle.change(&call, "webhook") }).await?;
        }
        Ok(Came { call: Some(call), said: Some(said), ..Came::of("recorded") })
    }

    fn overheard(&self, taken: &Taken<'_>) -> Arrival {
        Arrival {
            account: taken.from.account.clone(),
            operation: taken.event.map_or_else(String::new, |e| e.name.clone()),
            direction: taken.direction,
            facts: taken.from.webhook().facts.read(&taken.message, taken.direction),
            aliases: taken.aliases.clone(),
            phase: Phase::Live,
            refusable: false,
            origin: Origin::Foreign,
        }
    }
}
