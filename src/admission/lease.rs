//! The right to send a create: a lease, which only a recorded call is given; or, in observe mode alone, an [`Uncounted`] call. Only
//! this layer makes either.

use crate::ids::CallId;

/// A recorded call's slots in the limits that bind it, and so the right to send its create. Dropping it releases nothing: a client
/// that hangs up does not end the call.
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

    /// The slots that it holds in each limit: 1, or those granted to a batch.
    pub fn slots(&self) -> u32 {
        self.slots
    }
}

/// A call that observe mode sends although no limiter can count it, or its record cannot be written: it is in no limit, and is not
/// recorded until a sweep finds it at its provider.
#[must_use]
#[derive(Debug)]
pub struct Uncounted {
    call: CallId,
}

impl Uncounted {
    pub(super) fn new(call: CallId) -> Self {
        Self { call }
    }
}

/// The right to send one create.
#[must_use]
#[derive(Debug)]
pub enum Permit {
    /// The call is recorded, and holds its slots.
    Leased(Lease),
    /// The create is not recorded, and holds no slot.
    Uncounted(Uncounted),
}

impl Permit {
    /// The call. The id of an uncounted one is in no record.
    pub fn call(&self) -> &CallId {
        match self {
            Permit::Leased(lease) => &lease.call,
            Permit::Uncounted(uncounted) => &uncounted.call,
        }
    }
}
