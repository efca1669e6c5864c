//! Leases. They are given by this module alone, to calls that are on record.

use crate::ids::CallId;

/// A call's place in the limits that bind it, and so the right to send its create. Dropping it frees nothing: drop runs when a client
/// hangs up, the call does not.
#[must_use = "a lease is held until its call has ended"]
#[derive(Debug)]
pub struct Lease {
    call: CallId,
    slots: u32,
}

impl Lease {
    pub(super) fn new(call: CallId, slots: u32) -> Self {
        Self { call, slots }
    }

    /// The call that holds it.
    pub fn call(&self) -> &CallId {
        &self.call
    }

    /// How many places it holds in each limit: 1, or what a batch was granted. 0 of a call that nobody could count.
    pub fn slots(&self) -> u32 {
        self.slots
    }
}
