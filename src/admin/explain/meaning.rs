//! The meaning of each refusal code, and its fix.

/// The meaning of a code, and its fix.
pub(super) fn meaning(code: &str) -> (&'static str, &'static str) {
    match code {
        "GLOBAL_CAPACITY_EXCEEDED" => (
            "all calls that were bought, at the account or on the whole platform, were in use",
            "wait for a call to end, end one, or raise `concurrent` if more was bought",
        ),
        "BUSINESS_CONCURRENT_LIMIT_EXCEEDED" => (
            "the business had all its calls in use",
            "wait for one of its calls to end, or give it another plan or max_calls",
        ),
        "CONCURRENT_LIMIT_EXCEEDED" => {
            ("one of the limits under [[limits]] was full", "wait for a call in it to end, or raise that limit")
        }
        "REQUEST_RATE_EXCEEDED" => (
            "too many creates came within the window of a rate",
            "send them more slowly, or raise the rate if more was bought",
        ),
        "PLAN_NOT_ALLOWED" => ("the plan of the business allows 0 calls", "give the business another plan"),
        "UNKNOWN_BUSINESS" => (
            "the request names no known business",
            "register the business (ringfence businesses import), or set businesses.unknown to a plan",
        ),
        "CALL_INITIATION_FAILED" => (
            "the provider could not be reached, so nothing was dialled",
            "check the network and the provider's status: ringfence doctor",
        ),
        "ACCOUNT_REMOVED" => ("its account was removed from the config at that moment", "send it to another account"),
        "BATCH_ENDED" => ("the batch that was to be retried had ended", "submit a new one"),
        "BATCH_SIZE_UNKNOWN" => (
            "the number of concurrent calls of the batch is unknown",
            "submit a new batch, whose size is in the request",
        ),
        "PROCESS_PAUSED" => (
            "the process paused past the send deadline, so nothing was dialled",
            "look for CPU limits, swapping or a paused machine",
        ),
        "OVERLOADED" => {
            ("there was no memory for the request's body", "reduce concurrency, or give the process more memory")
        }
        "IDEMPOTENCY_KEY_REUSED" => ("its Idempotency-Key belonged to another request", "use a new key for every call"),
        "INVALID_DESTINATION_PHONE" => (
            "the destination is not a valid telephone number",
            "write it in E.164, as in +905321234567, or set destinations.default_country",
        ),
        "DO_NOT_CALL_BLOCKED" => (
            "the destination is blocked: a do-not-call list, or the rules of [destinations]",
            "do not call it, or check the rule named in blockedBy",
        ),
        "CLIENT_HUNG_UP" => (
            "the app disconnected before its request was admitted, so nothing was dialled",
            "raise the app's own time-out",
        ),
        "CALL_STORE_UNAVAILABLE" => {
            ("the call could not be recorded, so nothing was dialled", "check the database: ringfence status")
        }
        "GATE_REBUILDING" => (
            "the limiter was unavailable or being rebuilt",
            "it recovers within seconds; if not, check Redis: ringfence status",
        ),
        "capacity_inbound" => (
            "an inbound call arrived while a limit was full; when_full applied",
            "wait for a call to end, or raise the limit named here",
        ),
        "INVALID_REQUEST"
        | "BODY_TOO_LARGE"
        | "UNSUPPORTED_CONTENT_ENCODING"
        | "ACCOUNT_MISMATCH"
        | "UNKNOWN_ROUTE" => {
            ("the request could not be read, or its route is unknown", "read the message of the response")
        }
        _ => (
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
            let (means, fix) = meaning(code);
            assert!(!means.is_empty() && !fix.is_empty(), "{code}");
        }
        assert!(meaning("ELEVENLABS_429").0.contains("provider's own limit"));
        assert!(meaning("BUSINESS_CONCURRENT_LIMIT_EXCEEDED").1.contains("max_calls"));
    }
}
