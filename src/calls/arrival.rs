//! An inbound call as a provider announces it, and the outcome of its admission.

use std::sync::Arc;

use crate::call::{Direction, Origin, Phase};
use crate::ids::{Alias, CallId};
use crate::policy::WhenFull;
use crate::provider::account::Account;
use crate::provider::description::MessageAttributes;
use crate::store::{Contradiction, Voucher};

/// A call as its provider announces it.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// The account that it came through.
    pub account: Arc<Account>,
    /// The webhook, or `sweep`.
    pub operation: String,
    /// The side that placed the call.
    pub direction: Direction,
    /// The attributes that policy selects by.
    pub attributes: MessageAttributes,
    /// The call's ids.
    pub aliases: Vec<Alias>,
    /// The call's phase.
    pub phase: Phase,
    /// The provider waits for our reply, so the call can be rejected before it is answered.
    pub rejectable: bool,
    /// The source from which ringfence learnt of it.
    pub origin: Origin,
    /// The accounts that signed the news of it; `None`: its provider was asked.
    pub by: Option<Voucher>,
}

/// The outcome of an inbound call's admission.
#[derive(Debug, Clone)]
pub enum ArrivalOutcome {
    /// The call has a slot, new or from before.
    Admitted(CallId),
    /// No slot is free. Where the call could not be rejected by a reply, it is being hung up.
    Rejected(CallId, WhenFull),
    /// The signer does not own the call. Nothing was done.
    Contradicted(Contradiction),
}
