//! What the app is told of an order that was not placed, or of which nobody knows; and what of it is counted and kept.

use std::time::Duration;

use bytes::Bytes;
use http::header::LOCATION;
use http::{Response, Uri};
use tracing::{info, warn};

use super::Calls;
use super::place::CreateOrder;
use crate::admission::LimitExceeded;
use crate::call::Direction;
use crate::ids::{AccountName, CallId, RefusalId, mask_number};
use crate::policy::{Bound, Facts};
use crate::provider::account::Account;
use crate::provider::description::LimitClass;
use crate::reply::{Code, Manner, Refusal, refusal};
use crate::store::RefusalRecord;

impl Calls {
    pub(super) async fn note_admitted(
        &self,
        order: &CreateOrder,
        call: &CallId,
        slots: (u32, u32),
        would_refuse: Option<&LimitExceeded>,
    ) {
        let facts = &order.facts;
        self.lifecycle.metrics.admitted(facts.account.as_str(), facts.direction.as_str(), &facts.plan);
        info!(
            %call,
            business = %facts.business,
            plan = facts.plan,
            account = %facts.account,
            to = facts.other_number.as_deref().map(mask_number),
            slots = (slots != (1, 1)).then(|| format!("{} of {}", slots.0, slots.1)),
            would_refuse = would_refuse.map(|f| f.limit.as_ref()),
            "admitted"
        );
        if let Some(full) = would_refuse {
            self.lifecycle.metrics.would_refuse(&full.limit);
            let what = self.full_refusal(facts, full, RefusalId::new()).await;
            self.record_refusal(facts, &what, order, true);
        }
    }

    pub(super) async fn refused_full(&self, order: &CreateOrder, full: &LimitExceeded) -> Refusal {
        let (id, first) = self.refusal_id(order);
        let what = self.full_refusal(&order.facts, full, id).await;
        self.count_refusal(order, &what, first);
        what
    }

    /// The id of a refusal, and whether it is a new one: an SDK's tries of one order are one refusal.
    pub(super) fn refusal_id(&self, order: &CreateOrder) -> (RefusalId, bool) {
        if !order.sdk_sleeps {
            return (RefusalId::new(), true);
        }
        let fingerprint = order.fingerprint();
        let told = Duration::from_secs(self.settings.sdk_retry_after_max_secs.into());
        if let Some(id) = self.reposts.refused_before(&fingerprint, told) {
            return (id, false);
        }
        let id = RefusalId::new();
        self.reposts.refused(&fingerprint, &id);
        (id, true)
    }

    pub(super) fn count_refusal(&self, order: &CreateOrder, what: &Refusal, first: bool) {
        if first {
            let reason = what.code.metric_reason(&order.account.provider.refusal);
            self.lifecycle.metrics.refused(reason, &order.facts.plan);
        }
    }

    /// The words for a full limit.
    pub(super) async fn full_refusal(&self, facts: &Facts, full: &LimitExceeded, id: RefusalId) -> Refusal {
        let counts = self.lifecycle.capacity.counts().await.unwrap_or_default();
        let policy = self.lifecycle.policy.load();
        let (used, all) = (counts.calls.saturating_sub(counts.over_limit), policy.global_limit());
        let code = Code::of_full(full);
        let wait_secs = full.free_in_ms.and_then(|ms| u32::try_from((ms + 999) / 1000).ok());
        let mut what = Refusal { id, retry_after_secs: wait_secs, ..Refusal::new(code, String::new()) };
        let about = match (what.wait_secs(), full.free_in_ms) {
            (Some(secs), Some(_)) => format!("; one is expected to end in about {secs} s"),
            (Some(secs), None) => format!("; try again in about {secs} s"),
            (None, _) => String::new(),
        };
        let who = &facts.business;
        what.message = match full.bound {
            Bound::Rate(rate) => format!(
                "Not dialled: limit {} allows {} creates in {} s{about}. [{}]",
                full.limit,
                rate.count,
                rate.window_ms as f64 / 1000.0,
                what.id
            ),
            Bound::Concurrent(0) => {
                format!("Not dialled: calls are not available to {who} (limit {} is 0). [{}]", full.limit, what.id)
            }
            Bound::Concurrent(n) => format!(
                "Not dialled: {who} meets limit {}, {} of {n} calls in use{about}. In all {used} of {all}. [{}]",
                full.limit, full.current, what.id
            ),
        };
        let bound = match full.bound {
            Bound::Concurrent(n) => n,
            Bound::Rate(rate) => rate.count,
        };
        what.limit = Some((full.limit.to_string(), full.current, bound));
        what.global = Some((used, all));
        what
    }

    pub(super) async fn refuse_by_provider(
        &self,
        order: &CreateOrder,
        class: LimitClass,
        wait_secs: u32,
    ) -> Response<Bytes> {
        let provider = &order.account.provider.name;
        self.lifecycle.metrics.provider_limit(provider, order.account.name.as_str(), class.as_str());
        if class == LimitClass::Concurrency {
            // It counts more calls than we do: our view is stale.
            self.looks.want(&order.account.name);
        }
        let (id, first) = self.refusal_id(order);
        let mut what = Refusal { id, ..Refusal::new(Code::ProviderLimit, String::new()) };
        what.retry_after_secs = Some(wait_secs);
        what.provider_class = Some(class);
        let why = match class {
            LimitClass::Concurrency => "says that the account's calls at once are used up",
            LimitClass::Rate => "takes no more requests just now",
            LimitClass::Busy => "is overloaded",
        };
        what.message =
            format!("Not dialled: {provider} {why}; try again in about {} s. [{}]", wait_secs.max(1), what.id);
        self.count_refusal(order, &what, first);
        self.refuse(order, what).await
    }

    pub(super) async fn refuse(&self, order: &CreateOrder, what: Refusal) -> Response<Bytes> {
        self.record_refusal(&order.facts, &what, order, false);
        refusal(
            &what,
            Manner {
                shape: &order.account.provider.refusal,
                retry_after_max_secs: order.sdk_sleeps.then_some(self.settings.sdk_retry_after_max_secs),
            },
        )
    }

    pub(super) fn record_refusal(&self, facts: &Facts, what: &Refusal, order: &CreateOrder, observed: bool) {
        let code = what.code.as_str(&order.account.provider.refusal);
        if !observed {
            info!(
                refusal = %what.id,
                business = %facts.business,
                plan = facts.plan,
                account = %facts.account,
                code,
                limit = what.limit.as_ref().map(|(name, ..)| name.as_str()),
                retry_after_secs = what.wait_secs(),
                to = facts.other_number.as_deref().map(mask_number),
                "refused"
            );
        }
        self.keep_refusal(facts, what, code, observed);
    }

    /// Keeps a refusal beside the way of the request: a refusal must not wait for a disk.
    pub(super) fn keep_refusal(&self, facts: &Facts, what: &Refusal, code: &str, observed: bool) {
        self.keep_refusal_of(facts.business.as_str(), &facts.account, facts.direction, what, code, observed);
    }

    /// The same, of an order whose facts are not known.
    pub fn keep_refusal_of(
        &self,
        business: &str,
        account: &AccountName,
        direction: Direction,
        what: &Refusal,
        code: &str,
        observed: bool,
    ) {
        let record = RefusalRecord {
            id: what.id.clone(),
            at: self.lifecycle.clock.now_ms(),
            business: business.to_owned(),
            account: account.to_string(),
            direction: direction.to_string(),
            code: code.to_owned(),
            limit_name: what.limit.as_ref().map(|(name, ..)| name.clone()),
            current: what.limit.as_ref().map(|(_, current, _)| *current),
            limit: what.limit.as_ref().map(|(.., limit)| *limit),
            observed,
            attempts: 1,
            tell: self.lifecycle.tell,
        };
        self.refusals.keep(record, &self.lifecycle.store, &self.tasks);
    }

    pub(super) fn unknown_answer(
        &self,
        account: &Account,
        sdk_sleeps: bool,
        call: &CallId,
        why: &str,
    ) -> Response<Bytes> {
        self.lifecycle.metrics.outcome_unknown(account.name.as_str());
        warn!(%call, why, "create outcome unknown; slot held until the provider is queried");
        let message = format!(
            "It is not known whether the call was dialled: {why}. Do not send it again; its slot is held until {} was asked. [{call}]",
            account.provider.name
        );
        refusal(
            &Refusal::new(Code::OutcomeUnknown, message),
            Manner {
                shape: &account.provider.refusal,
                retry_after_max_secs: sdk_sleeps.then_some(self.settings.sdk_retry_after_max_secs),
            },
        )
    }
}

/// For a client that has gone before its order was admitted: it may be waiting on another connection by now.
pub(super) fn hung_up() -> Refusal {
    Refusal::new(Code::ClientHungUp, "Not dialled: the client disconnected before the request was admitted.")
}

/// For an order that the provider answered with a redirect that says that it was not carried out.
pub(super) fn redirected(order: &CreateOrder, call: &CallId, answer: &Response<Bytes>) -> Refusal {
    let (account, status) = (&order.account, answer.status().as_u16());
    let location = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let leads_to = location.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_owned));
    warn!(%call, account = %account.name, status, leads_to, "create redirected by the provider; not followed");
    let message = format!(
        "Not dialled: {} redirects creates, and ringfence follows no redirect; set the account's `upstream` to where it leads.",
        account.provider.name
    );
    Refusal::new(Code::UpstreamRedirects, message)
}
