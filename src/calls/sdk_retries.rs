//! Recognises an SDK's retries of a rejected request: its attempts of one request are one rejection.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::ids::RejectionId;
use crate::sync::lock;

/// Requests that are remembered at most.
const REMEMBERED_MAX: usize = 50_000;
/// An SDK that sleeps for `Retry-After` retries no sooner than this; an earlier equal request was sent in parallel.
const SDK_SLEEPS: Duration = Duration::from_millis(300);
/// The time within which an SDK retries at most, whatever `Retry-After` says.
const SDK_GIVES_UP: Duration = Duration::from_secs(90);
/// The delay that it may add to `Retry-After`: jitter (a tenth of the wait in ElevenLabs' SDKs), network, a new connection.
const SDK_DELAY: Duration = Duration::from_secs(2);
/// Attempts in all: two retries.
const SDK_TRIES: u32 = 3;

#[derive(Debug)]
struct Rejected {
    id: RejectionId,
    at: Instant,
    tries: u32,
}

/// Rejected requests that an SDK may retry. Cloning is cheap.
#[derive(Debug, Clone, Default)]
pub(super) struct SdkRetries(Arc<Mutex<HashMap<String, Rejected>>>);

impl SdkRetries {
    fn rejected(&self) -> MutexGuard<'_, HashMap<String, Rejected>> {
        lock(&self.0)
    }

    /// The id of a rejection, and whether an SDK's earlier attempt of this request had it already; `fresh` otherwise.
    /// `retry_after_max_secs`: the longest `Retry-After` sent to the SDK; a later request is a new one.
    pub(super) fn id_of(&self, key: &str, retry_after_max_secs: u32, fresh: RejectionId) -> (RejectionId, bool) {
        let told = Duration::from_secs(retry_after_max_secs.into());
        let mut all = self.rejected();
        if let Some(before) = all.get_mut(key) {
            let since = before.at.elapsed();
            let is_retry = since >= SDK_SLEEPS
                && since <= (told * 6 / 5 + SDK_DELAY).min(SDK_GIVES_UP)
                && before.tries < SDK_TRIES;
            if is_retry {
                (before.tries, before.at) = (before.tries + 1, Instant::now());
                return (before.id.clone(), true);
            }
        }
        if all.len() >= REMEMBERED_MAX {
            all.retain(|_, one| one.at.elapsed() < SDK_GIVES_UP);
        }
        if all.len() < REMEMBERED_MAX {
            all.insert(key.to_owned(), Rejected { id: fresh.clone(), at: Instant::now(), tries: 1 });
        }
        (fresh, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Moves remembered times into the past.
    fn pass(all: &SdkRetries, ms: u64) {
        let mut rejected = all.rejected();
        let one = rejected.get_mut("x").unwrap();
        one.at = one.at.checked_sub(Duration::from_millis(ms)).unwrap();
    }

    #[test]
    fn tries_of_an_sdk_are_one_rejection_and_parallel_ones_are_not() {
        let all = SdkRetries::default();
        let ask = || all.id_of("x", 1, RejectionId::new());
        let (_, is_retry) = ask();
        assert!(!is_retry);
        let (id, is_retry) = ask();
        assert!(!is_retry, "it was sent beside the first");
        pass(&all, 1_000);
        assert_eq!(ask(), (id.clone(), true));
        pass(&all, 3_000);
        assert_eq!(ask(), (id.clone(), true));
        pass(&all, 1_000);
        let (other, is_retry) = ask();
        assert!(!is_retry && other != id, "an SDK tries three times");
    }

    #[test]
    fn equal_requests_further_apart_than_an_sdk_waits_are_two_rejections() {
        // `Retry-After`, delay of an equal request, and whether it is a retry.
        for (retry_after_max_secs, later_ms, same) in [
            (1, 3_100, true),
            (1, 3_300, false),
            (1, 8_000, false),
            (1, 16_000, false),
            (10, 13_900, true),
            (10, 14_200, false),
            (600, 89_000, true),
            (600, 91_000, false),
            (0, 1_900, true),
            (0, 2_100, false),
        ] {
            let all = SdkRetries::default();
            all.id_of("x", retry_after_max_secs, RejectionId::new());
            pass(&all, later_ms);
            let (_, is_retry) = all.id_of("x", retry_after_max_secs, RejectionId::new());
            assert_eq!(is_retry, same, "told {retry_after_max_secs} s, {later_ms} ms later");
        }
    }
}
