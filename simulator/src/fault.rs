//! Faults that a test or a demonstration asks for.

use serde::{Deserialize, Serialize};

/// Which simulated provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// ElevenLabs Agents.
    ElevenLabs,
    /// Twilio Voice.
    Twilio,
}

/// Which requests a fault hits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// Requests that make calls, register-call and batches included.
    #[default]
    Create,
    /// One call or conversation read.
    Get,
    /// Lists and counts.
    List,
    /// Hang-ups, redirections, deletions.
    End,
    /// Anything.
    Any,
}

/// The kind of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FaultKind {
    /// 429 `too_many_concurrent_requests`; at Twilio 20429.
    #[serde(rename = "429_concurrency")]
    TooManyConcurrent,
    /// 429 `system_busy`; at Twilio 20429.
    #[serde(rename = "429_busy")]
    SystemBusy,
    /// 429 `rate_limit_exceeded`; at Twilio 20429.
    #[serde(rename = "429_rate")]
    RateLimited,
    /// 500, nothing created.
    #[serde(rename = "500")]
    ServerError,
    /// 500 although the call was created.
    #[serde(rename = "500_created")]
    ServerErrorAfterCreate,
    /// 200 with `success: false`, nothing created (ElevenLabs).
    #[serde(rename = "success_false")]
    SuccessFalse,
    /// The call is created, its ids are null in the answer (ElevenLabs).
    #[serde(rename = "null_ids")]
    NullIds,
    /// The call is created at once, the answer comes `ms` later.
    #[serde(rename = "slow")]
    Slow,
    /// The connection closes without an answer, nothing created.
    #[serde(rename = "drop")]
    Drop,
    /// The call is created and the connection closes without an answer.
    #[serde(rename = "accept_then_drop")]
    AcceptThenDrop,
    /// 402 `insufficient_credits`.
    #[serde(rename = "402")]
    PaymentRequired,
    /// 401 `quota_exceeded`.
    #[serde(rename = "401")]
    QuotaExceeded,
    /// 422 as for an invalid request.
    #[serde(rename = "422")]
    Invalid,
}

/// A fault, for the next `n` requests it fits, or until cleared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// The provider at which it happens.
    pub provider: Provider,
    /// Its kind.
    pub kind: FaultKind,
    /// The number of times; none is until cleared.
    #[serde(default)]
    pub n: Option<u32>,
    /// Milliseconds of `slow`; of other kinds a wait before the answer.
    #[serde(default)]
    pub ms: u64,
    /// `Retry-After` to send with a 429, in seconds.
    #[serde(default)]
    pub retry_after: Option<u64>,
    /// On which requests.
    #[serde(default)]
    pub on: Operation,
}

impl Fault {
    /// The next `n` creates at a provider go wrong.
    pub fn next(provider: Provider, kind: FaultKind, n: u32) -> Fault {
        Fault { provider, kind, n: Some(n), ms: 0, retry_after: None, on: Operation::Create }
    }
}

/// The faults that are set, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Faults(Vec<Fault>);

impl Faults {
    pub(crate) fn set(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    pub(crate) fn clear(&mut self, provider: Option<Provider>) {
        self.0.retain(|fault| provider.is_some_and(|one| one != fault.provider));
    }

    pub(crate) fn list(&self) -> &[Fault] {
        &self.0
    }

    /// Uses up one turn of the first fault that fits.
    pub(crate) fn take(&mut self, provider: Provider, on: Operation) -> Option<Fault> {
        let fits = |fault: &Fault| fault.provider == provider && (fault.on == on || fault.on == Operation::Any);
        self.0.retain(|fault| fault.n != Some(0));
        let place = self.0.iter().position(fits)?;
        let fault = self.0.get_mut(place)?;
        if let Some(n) = &mut fault.n {
            *n = n.saturating_sub(1);
        }
        Some(fault.clone())
    }
}
