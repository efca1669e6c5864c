//! Observe mode: what enforce mode would have refused is sent and marked. What it marks, and what not even this mode can send, is
//! decided for every code in [`Code::observed`].

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::header::{CONTENT_LENGTH, EXPECT, HeaderName};
use http::{HeaderValue, Request, Response};
use tracing::info;

use super::Calls;
use super::place::{CreateOrder, pass_on};
use super::repost::OrderRef;
use crate::admission::{Gated, Lease};
use crate::clock::since_boot;
use crate::ids::CallId;
use crate::lifecycle::finish;
use crate::net::Outcome;
use crate::policy::Mode;
use crate::reply::{Code, Observed, Refusal};

/// The header that names what would have refused a create: a limit, or the code of another refusal.
pub(super) const WOULD_REFUSE: HeaderName = HeaderName::from_static("x-ringfence-would-refuse");
/// The header that says what of a create named a business and was not read.
pub(super) const IGNORED: HeaderName = HeaderName::from_static("x-ringfence-ignored");

impl Calls {
    /// Whether nothing is refused that can be sent.
    pub fn observes(&self) -> bool {
        self.lifecycle.policy.load().mode() == Mode::Observe
    }

    /// Whether a refusal only marks its order.
    pub(super) fn only_marks(&self, what: &Refusal) -> bool {
        self.observes() && what.code.observed() == Observed::Sent
    }

    /// Notes what would have refused an order that is sent: in a counter, the record and the log.
    pub(super) fn note_would_refuse(&self, order: &CreateOrder, what: &Refusal) {
        let code = what.code.as_str(&order.account.provider.refusal);
        self.lifecycle.metrics.would_refuse(code);
        info!(refusal = %what.id, business = %order.facts.business, account = %order.facts.account, code, why = what.message, "would refuse");
        self.record_refusal(&order.facts, what, order, true);
    }

    /// RequestAttributes an answer with what would have refused its order, unless something does already, and with what was not read.
    pub(super) fn mark(&self, order: &CreateOrder, response: &mut Response<Bytes>) {
        if let Some(what) = order.would.get()
            && !response.headers().contains_key(&WOULD_REFUSE)
            && let Ok(code) = HeaderValue::try_from(what.code.as_str(&order.account.provider.refusal))
        {
            response.headers_mut().insert(WOULD_REFUSE, code);
        }
        if let Some(ignored) = order.ignored
            && let Ok(ignored) = HeaderValue::try_from(ignored.to_string().replace('…', "ID"))
        {
            response.headers_mut().insert(IGNORED, ignored);
        }
    }

    /// Sends an order that could not be counted, where nothing is refused: whoever only observes must not stop calls because its
    /// record is away. The sweep counts the call when it sees it.
    pub(super) async fn send_uncounted(
        &self,
        order: &Arc<CreateOrder>,
        mine: Option<OrderRef>,
        what: Refusal,
    ) -> Response<Bytes> {
        self.note_would_refuse(order, &what);
        let _ = order.would.set(what);
        let mut request = Request::new(order.request.body().clone());
        *request.method_mut() = order.request.method().clone();
        *request.uri_mut() = order.request.uri().clone();
        *request.headers_mut() = order.request.headers().clone();
        for gone in [CONTENT_LENGTH, EXPECT] {
            request.headers_mut().remove(gone);
        }
        let this = self.clone();
        let send_by = since_boot() + self.settings.send_within;
        let (request, lease) = (Gated::new(request), Lease::uncounted(CallId::new()));
        let sending = async move { this.send(request, lease, send_by).await.1 }.boxed();
        // A client that goes away, or is answered at its time-out, cuts no create off.
        let sending = finish(self.tasks.track_future(sending));
        let sent = tokio::time::timeout(self.settings.create_timeout, sending).await;
        // Nothing of it is on record, so nothing of it can be given again.
        mine.as_ref().inspect(|mine| mine.not_created());
        self.looks.want(&order.account.name);
        let why = match sent {
            Ok(Ok(Outcome::Answered(answer))) => return pass_on(answer),
            Ok(Ok(Outcome::NotSent(error))) => {
                let message = format!("Not dialled: {} cannot be reached: {error}", order.account.provider.name);
                return self.refuse(order, Refusal::new(Code::InitiationFailed, message)).await;
            }
            Ok(Ok(Outcome::Unknown(error))) => format!("the answer was lost: {error}"),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", self.settings.create_timeout.as_secs()),
        };
        let message = format!(
            "It is not known whether the call was dialled: {why}. Do not send it again; it is not counted, as the record was away."
        );
        self.refuse(order, Refusal::new(Code::OutcomeUnknown, message)).await
    }
}
