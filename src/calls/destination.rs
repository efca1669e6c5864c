//! Destination checks of a create: may this number be called now; and the cached do-not-call lists.

use std::borrow::Cow;
use std::sync::Arc;

use tracing::warn;

use super::context::Context;
use super::outbound::CreateRequest;
use crate::call::Direction;
use crate::destinations::{Blocked, CallTime, DoNotCall};
use crate::destinations::{Hours, Zone};
use crate::ids::{BusinessId, mask_number};
use crate::policy::Mode;
use crate::reply::{Rejection, RejectionCode};
use crate::store;

/// Changes of the lists that are read in one batch, so that other queries get their turn.
const CHANGES_AT_ONCE: u32 = 10_000;
/// Recipients of a batch that are checked before the task yields.
const JUDGED_AT_ONCE: usize = 64;

/// This process's copy of the do-not-call lists in the database. It outlives a reload.
#[derive(Debug, Default)]
pub(super) struct Lists {
    known: DoNotCall,
    /// One reader at a time: each continues where the last one stopped.
    reading: tokio::sync::Mutex<()>,
}

/// A destination that must not be called.
struct BlockedNumber {
    why: Blocked,
    masked: String,
    /// The destination's position among the recipients of a batch, and the number of recipients.
    at: Option<(usize, usize)>,
}

/// Decides whether a number may be called now: the rules, and the do-not-call lists with their cache.
pub struct Destinations {
    context: Arc<Context>,
    lists: Arc<Lists>,
}

impl Destinations {
    pub(super) fn new(context: Arc<Context>, lists: Arc<Lists>) -> Self {
        Self { context, lists }
    }

    /// The reason why a create's destination must not be called, if so. In observe mode it only marks the request.
    pub(super) async fn rejection(&self, request: &CreateRequest) -> Option<Rejection> {
        let found = self.blocked(request).await?;
        self.context.lifecycle.metrics.destination_rejected(found.why.rule());
        let code = match found.why {
            Blocked::Invalid => RejectionCode::InvalidDestination,
            _ => RejectionCode::DoNotCall,
        };
        let message = format!("Not dialled: {}.", found.sentence());
        let rejection = Rejection { blocked_by: Some(found.why.rule()), ..Rejection::new(code, message) };
        let written = self.context.lifecycle.policy.load().mode();
        if written == Mode::Observe || (matches!(found.why, Blocked::Unreadable) && self.context.observes()) {
            let _ = request.would_reject.set(rejection);
            return None;
        }
        Some(rejection)
    }

    async fn blocked(&self, request: &CreateRequest) -> Option<BlockedNumber> {
        if request.attributes.direction != Direction::Outbound {
            return None;
        }
        let message = request.message();
        let operation = &request.operation;
        if let Some(rule) = operation.slots.as_ref().filter(|rule| !rule.destination.is_empty()) {
            let all = rule.destinations(&message);
            for (at, one) in all.iter().enumerate() {
                if at % JUDGED_AT_ONCE == JUDGED_AT_ONCE - 1 {
                    tokio::task::yield_now().await;
                }
                // A request without a destination is judged like an invalid number.
                if let Err(found) = self.judge(request, one.unwrap_or_default()) {
                    return Some(BlockedNumber { at: Some((at + 1, all.len())), ..found });
                }
            }
        }
        let written = operation.attributes.destination(&message);
        let called = written.or_else(|| request.attributes.other_number.as_deref().map(Cow::Borrowed))?;
        self.judge(request, &called).err()
    }

    fn judge(&self, request: &CreateRequest, called: &str) -> Result<(), BlockedNumber> {
        let called = match request.operation.international && !called.starts_with('+') {
            true => Cow::Owned(format!("+{called}")),
            false => Cow::Borrowed(called),
        };
        let attributes = &request.attributes;
        let judged = self.judge_number(&attributes.business, &attributes.plan, &called, None, None);
        judged.map_err(|why| BlockedNumber { why, masked: mask_number(&called), at: None })
    }

    fn judge_number(
        &self,
        business: &BusinessId,
        plan: &str,
        called: &str,
        open: Option<&Hours>,
        zone: Option<&Zone>,
    ) -> Result<(), Blocked> {
        let policy = self.context.lifecycle.policy.load();
        let rules = policy.destination_rules(business, plan);
        let when = CallTime { now_ms: self.context.lifecycle.clock.now_ms(), open, zone };
        let lists = &self.lists.known;
        policy.settings().destinations.judge(called, business.as_str(), &rules, lists, when)
    }

    /// Checks whether a business may call a number now, apart from limits: within the hours of a run, `open`, and in the time
    /// zone `zone` where it is known better than from the number.
    ///
    /// # Errors
    /// The reason; for hours, with the time from which it is allowed.
    pub fn may_call(
        &self,
        business: &BusinessId,
        called: &str,
        open: Option<&Hours>,
        zone: Option<&Zone>,
    ) -> Result<(), Blocked> {
        let plan = self.context.lifecycle.policy.load().plan_of(business);
        self.judge_number(business, &plan, called, open, zone)
    }

    /// The E.164 form of a number that could be called. `None`: it is not a number, or it is an address.
    pub fn normalise(&self, called: &str) -> Option<String> {
        self.context.lifecycle.policy.load().settings().destinations.normalise(called)
    }

    /// Loads changes of the do-not-call table. Until that succeeds, a number that is not known to be listed counts as unknown.
    ///
    /// # Errors
    /// The table cannot be read.
    pub async fn refresh_do_not_call(&self) -> store::Result<()> {
        let Lists { known, reading } = &*self.lists;
        let _one_at_a_time = reading.lock().await;
        loop {
            let page = match self.context.lifecycle.store.do_not_call_changes(known.change(), CHANGES_AT_ONCE).await {
                Ok(page) => page,
                Err(error) => {
                    known.set_readable(false);
                    self.show_do_not_call();
                    return Err(error);
                }
            };
            known.apply(page.changes.iter().map(|one| (one.list.as_str(), one.number, one.listed)), page.until);
            if !page.more {
                break;
            }
        }
        if !known.is_readable() {
            warn!("do-not-call lists readable again");
        }
        known.set_readable(true);
        self.show_do_not_call();
        Ok(())
    }

    /// Sets the metric of numbers on do-not-call lists.
    pub fn show_do_not_call(&self) {
        let (known, policy) = (&self.lists.known, self.context.lifecycle.policy.load());
        let metrics = &self.context.lifecycle.metrics;
        metrics.do_not_call_readable(known.is_readable());
        metrics.do_not_call(policy.settings().destinations.file.len(), known.len());
    }

    /// Whether this process has the lists of this change, or of a later one.
    pub fn knows_do_not_call(&self, change: i64) -> bool {
        self.lists.known.change() >= change && self.lists.known.is_readable()
    }

    /// This process's copy of the do-not-call lists.
    pub fn do_not_call(&self) -> &DoNotCall {
        &self.lists.known
    }
}

impl BlockedNumber {
    fn sentence(&self) -> String {
        let who = match (self.at, self.masked.as_str()) {
            (Some((at, of)), masked) => format!("recipient {at} of {of} ({masked})"),
            (None, "") => "the destination".to_owned(),
            (None, masked) => masked.to_owned(),
        };
        let all = if self.at.is_some() { "; no recipient of the batch was called" } else { "" };
        let why = self.why;
        format!("{who} {why}{all}")
    }
}
