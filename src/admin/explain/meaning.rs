//! The meaning of each refusal code, and its fix.

use crate::calls::rejection::CAPACITY_INBOUND;
use crate::reply::RejectionCode;

/// The meaning of the code of a recorded rejection.
pub(super) struct Meaning {
    /// The meaning.
    pub(super) means: &'static str,
    /// What to do about it.
    pub(super) fix: &'static str,
}

/// Returns the meaning of a code. A code that is not ours is a provider's for its own limit.
pub(super) fn meaning(code: &str) -> Meaning {
    let (means, fix) = texts(code);
    Meaning { means, fix }
}

/// The two texts of [`Meaning`], as a table.
fn texts(code: &str) -> (&'static str, &'static str) {
    if code == CAPACITY_INBOUND {
        return (
            "an inbound call arrived while a limit was full; when_full applied",
            "wait for a call to end, or raise the limit named here",
        );
    }
    match RejectionCode::parse(code).unwrap_or(RejectionCode::ProviderLimit) {
        RejectionCode::GlobalCapacityExceeded => (
            "all calls that were bought, at the account or on the whole platform, were in use",
            "wait for a call to end, end one, or raise `concurrent` if more was bought",
        ),
        RejectionCode::BusinessLimitExceeded => (
            "the business had all its calls in use",
            "wait for one of its calls to end, or give it another plan or max_calls",
        ),
        RejectionCode::LimitExceeded => {
            ("one of the limits under [[limits]] was full", "wait for a call in it to end, or raise that limit")
        }
        RejectionCode::RateExceeded => (
            "too many creates came within the window of a rate",
            "send them more slowly, or raise the rate if more was bought",
        ),
        RejectionCode::PlanNotAllowed => ("the plan of the business allows 0 calls", "give the business another plan"),
        RejectionCode::UnknownBusiness => (
            "the request names no known business",
            "register the business (ringfence businesses import), or set businesses.unknown to a plan",
        ),
        RejectionCode::InitiationFailed => (
            "the provider could not be reached, so nothing was dialled",
            "check the network and the provider's status: ringfence doctor",
        ),
        RejectionCode::AccountRemoved => {
            ("its account was removed from the config at that moment", "send it to another account")
        }
        RejectionCode::BatchEnded => ("the batch that was to be retried had ended", "submit a new one"),
        RejectionCode::BatchSizeUnknown => (
            "the number of concurrent calls of the batch is unknown",
            "submit a new batch, whose size is in the request",
        ),
        RejectionCode::ProcessPaused => (
            "the process paused past the send deadline, so nothing was dialled",
            "look for CPU limits, swapping or a paused machine",
        ),
        RejectionCode::Overloaded => {
            ("there was no memory for the request's body", "reduce concurrency, or give the process more memory")
        }
        RejectionCode::KeyReused => ("its Idempotency-Key belonged to another request", "use a new key for every call"),
        RejectionCode::InvalidDestination => (
            "the destination is not a valid telephone number",
            "write it in E.164, as in +905321234567, or set destinations.default_country",
        ),
        RejectionCode::DoNotCall => (
            "the destination is blocked: a do-not-call list, or the rules of [destinations]",
            "do not call it, or check the rule named in blockedBy",
        ),
        RejectionCode::ClientDisconnected => (
            "the app disconnected before its request was admitted, so nothing was dialled",
            "raise the app's own time-out",
        ),
        RejectionCode::StoreUnavailable => {
            ("the call could not be recorded, so nothing was dialled", "check the database: ringfence status")
        }
        RejectionCode::GateUnavailable => (
            "the limiter was unavailable or being rebuilt",
            "it recovers within seconds; if not, check Redis: ringfence status",
        ),
        RejectionCode::InvalidRequest
        | RejectionCode::BodyTooLarge
        | RejectionCode::EncodedBody
        | RejectionCode::AccountMismatch => {
            ("the request could not be read, or belongs to another account", "read the message of the response")
        }
        RejectionCode::UpstreamRedirects => (
            "the provider redirects creates, and ringfence follows no redirect",
            "set the account's `upstream` to where it leads",
        ),
        RejectionCode::UpstreamUnreachable => {
            ("the provider could not be reached", "check the network and the provider's status: ringfence doctor")
        }
        RejectionCode::OutcomeUnknown | RejectionCode::AlreadyPlaced | RejectionCode::UpstreamSilent => {
            ("the request was carried out, or may have been", "read the message of the response")
        }
        RejectionCode::ProviderLimit => (
            "the provider's own limit was full: it answered 429",
            "compare `concurrent` with what was bought (ringfence doctor), and look for calls placed outside ringfence",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_has_a_meaning_and_a_way_out() {
        for code in ["GLOBAL_CAPACITY_EXCEEDED", "capacity_inbound", "ELEVENLABS_429", "GATE_REBUILDING"] {
            let Meaning { means, fix } = meaning(code);
            assert!(!means.is_empty() && !fix.is_empty(), "{code}");
        }
        assert!(meaning("ELEVENLABS_429").means.contains("provider's own limit"));
        assert!(meaning("BUSINESS_CONCURRENT_LIMIT_EXCEEDED").fix.contains("max_calls"));
    }
}
