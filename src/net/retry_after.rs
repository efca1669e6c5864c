//! Parses `Retry-After`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderMap;
use http::header::{DATE, HeaderName, RETRY_AFTER};

use crate::clock::UnixMs;

/// The maximum that is honoured, in seconds. A longer wait is reduced to it.
pub const RETRY_AFTER_MAX_SECS: u32 = 3600;

/// `Retry-After` in whole seconds, rounded up, at most [`RETRY_AFTER_MAX_SECS`] (RFC 9110 §10.2.3): seconds, possibly with a fraction,
/// or an HTTP date, relative to the answer's own `Date` if it has one. `None`: absent or
/// malformed.
pub fn retry_after_secs(headers: &HeaderMap, now_ms: UnixMs) -> Option<u32> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let all_digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if all_digits(whole) && all_digits(fraction) {
        // A number that overflows exceeds the maximum.
        let secs = whole.parse().unwrap_or(RETRY_AFTER_MAX_SECS);
        let rounded = secs.saturating_add(u32::from(fraction.bytes().any(|b| b != b'0')));
        return Some(rounded.min(RETRY_AFTER_MAX_SECS));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    let now = date(headers, DATE).or_else(|| UNIX_EPOCH.checked_add(Duration::from_millis(now_ms.try_into().ok()?)))?;
    let wait = at.duration_since(now).unwrap_or_default();
    let rounded = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0));
    Some(u32::try_from(rounded).unwrap_or(u32::MAX).min(RETRY_AFTER_MAX_SECS))
}

fn date(headers: &HeaderMap, name: HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?.trim()).ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// 1994-11-06 08:49:37, the date of RFC 9110's examples.
    const NOW_MS: UnixMs = 784_111_777_000;

    fn wait(text: &str, date: Option<&str>) -> Option<u32> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::try_from(text).unwrap());
        date.map(|date| headers.insert(DATE, HeaderValue::try_from(date).unwrap()));
        retry_after_secs(&headers, NOW_MS)
    }

    #[test]
    fn seconds_are_rounded_up_and_bounded() {
        for (text, secs) in [
            ("0", 0),
            ("7", 7),
            (" 120 ", 120),
            ("0.2", 1),
            ("1.0", 1),
            ("1.5", 2),
            ("59.001", 60),
            ("4000000000", 3600),
            ("99999999999999999999999", 3600),
        ] {
            assert_eq!(wait(text, None), Some(secs), "{text}");
        }
        for bad in ["", "-1", "soon", "1e3", "5s", "1.", ".5", "1,5", "0x10"] {
            assert_eq!(wait(bad, None), None, "{bad}");
        }
        assert_eq!(retry_after_secs(&HeaderMap::new(), NOW_MS), None);
    }

    #[test]
    fn dates_of_all_three_forms_are_read() {
        for date in ["Sun, 06 Nov 1994 08:50:07 GMT", "Sunday, 06-Nov-94 08:50:07 GMT", "Sun Nov  6 08:50:07 1994"] {
            assert_eq!(wait(date, None), Some(30), "{date}");
        }
        assert_eq!(wait("Sun, 06 Nov 1994 08:00:00 GMT", None), Some(0), "it is past");
        assert_eq!(wait("Tue, 06 Nov 2040 08:00:00 GMT", None), Some(3600));
        // The server's own clock is what its date means.
        let theirs = Some("Sun, 06 Nov 1994 08:50:00 GMT");
        assert_eq!(wait("Sun, 06 Nov 1994 08:50:07 GMT", theirs), Some(7));
    }
}
