//! The counts of the providers.

use serde::Serialize;
use std::collections::BTreeMap;

/// The providers' own figures. "Live" is from an accepted create, or an inbound arrival that
/// was admitted, until the line is down.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Conversations live now, those of register-call that wait for their telephone call included.
    pub el_live_now: u32,
    /// Most conversations that were ever live at once.
    pub el_live_max: u32,
    /// Twilio calls live now, those that carry ElevenLabs' calls included.
    pub tw_live_now: u32,
    /// Most Twilio calls at once.
    pub tw_live_max: u32,
    /// Physical calls now; one that both providers count is one.
    pub both_live_now: u32,
    /// Most physical calls at once.
    pub both_live_max: u32,
    /// Accepted creates at ElevenLabs: outbound calls, one per batch recipient.
    pub creates_el: u64,
    /// Accepted register-calls.
    pub registers: u64,
    /// Accepted creates at Twilio (those that ElevenLabs makes there not included).
    pub creates_tw: u64,
    /// Inbound calls that arrived.
    pub inbound: u64,
    /// Answers 429, from limits and from faults.
    pub refused_429: u64,
    /// Telephones that were dialled.
    pub dials: u64,
    /// Attempts to deliver an event webhook.
    pub webhooks_sent: u64,
    /// Event webhooks dropped by `webhook_loss`.
    pub webhooks_lost: u64,
    /// Attempts that got no answer.
    pub webhooks_unanswered: u64,
    /// Attempts by the status of their answer.
    pub webhooks_answered_by_status: BTreeMap<u16, u64>,
    /// Voice URLs and initiation webhooks asked for an answer.
    pub voice_requests: u64,
    /// Conversations deleted.
    pub deletes: u64,
    /// Calls ended by an API request.
    pub hangups: u64,
    /// Lists of calls or conversations read.
    pub list_requests: u64,
    /// `live-count` read.
    pub count_requests: u64,
    /// Single calls or conversations read.
    pub get_requests: u64,
    /// Subaccounts asked for.
    pub account_requests: u64,
}

/// Moves one live count and its maximum.
pub(crate) fn shift(now: &mut u32, max: &mut u32, was: bool, is: bool) {
    match (was, is) {
        (false, true) => {
            *now = now.saturating_add(1);
            *max = (*max).max(*now);
        }
        (true, false) => *now = now.saturating_sub(1),
        _ => {}
    }
}
