//! Leases. Only this layer makes them, for recorded calls.

use crate::ids::CallId;

/// A call's slots in the limits that bind it, and so the right to send its create. Dropping it releases nothing: a client that
/// hangs up does not end the call.
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

    /// The slots that it holds in each limit: 1, or those granted to a batch. 0 for an uncounted call.
    pub fn slots(&self) -> u32 {
        self.slots
    }
}
