//! A call that a provider brings, and what it meets.

use std::sync::Arc;

use crate::call::{Direction, Origin, Phase};
use crate::ids::{Alias, CallId};
use crate::policy::WhenFull;
use crate::provider::account::Account;
use crate::provider::description::CallFacts;
use crate::store::{Contradiction, Voucher};

/// A call as its provider announces it.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// The account that it came through.
    pub account: Arc<Account>,
    /// The webhook, or `sweep`.
    pub operation: String,
    /// Which side placed it.
    pub direction: Direction,
    /// What policy selects by.
    pub facts: CallFacts,
    /// Its ids.
    pub aliases: Vec<Alias>,
    /// Where it stands.
    pub phase: Phase,
    /// The provider takes its answer from our reply, so the call can be refused before it is answered.
    pub refusable: bool,
    /// Who brought it to our knowledge.
    pub origin: Origin,
    /// Who vouches for it; none: its provider, which was asked.
    pub by: Option<Voucher>,
}

/// What an arriving call meets.
#[derive(Debug, Clone)]
pub enum ArrivalOutcome {
    /// It has a slot, from now on or already.
    Admitted(CallId),
    /// There is none. Where it could not be refused, it is being hung up.
    Refused(CallId, WhenFull),
    /// It is not one of those that vouch for it. Nothing was done.
    Contradicted(Contradiction),
}
