//! Handles an app that rejects a voice webhook: its caller hears an error, and the operator learns the probable cause.

use http::StatusCode;
use tracing::warn;

use super::context::Webhooks;
use super::parsed::ParsedWebhook;
use crate::ids::CallId;
use crate::metrics::NotApplied;

impl Webhooks {
    /// Logs the app's rejection, and checks whether the provider dropped the call: then its slot is free.
    pub(super) fn note_app_rejection(&self, parsed: &ParsedWebhook<'_>, call: Option<&CallId>, status: StatusCode) {
        let (account, path) = (&parsed.from.account.name, parsed.raw.path());
        self.count(parsed, NotApplied::AppRefused);
        let url = self.settings.app_url(&parsed.raw.headers, path);
        let (status, cause) = (status.as_u16(), cause(status));
        warn!(%account, path, status, url, cause, "the app rejected a voice webhook; the caller hears an error");
        if let Some(call) = call {
            self.calls.provider.look_soon(call);
        }
    }
}

/// The probable cause.
fn cause(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 | 403 => {
            "its check of the signature fails: it must use the account's auth token and this URL, \
             so it must trust X-Forwarded-Proto (docs/what-your-app-sees.md)"
        }
        404 | 405 | 410 => {
            "it serves nothing at this path: set the number's Voice URL to a path that it serves, \
             and name that path in inbound.voice_paths"
        }
        _ => "see the app's own log",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likely_cause_is_named() {
        for (status, word) in [(403, "signature"), (401, "signature"), (404, "inbound.voice_paths"), (400, "log")] {
            assert!(cause(StatusCode::from_u16(status).unwrap()).contains(word), "{status}");
        }
    }
}
