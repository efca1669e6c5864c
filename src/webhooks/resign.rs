//! Makes URL-bound signatures anew for the app's URL.

use http::{HeaderName, HeaderValue};

use super::parsed::ParsedWebhook;
use crate::provider::sign::{Keys, Request, Signature};

/// The keys and request for a signature over the app's URL.
pub(super) struct Resign<'a> {
    pub(super) signature: &'a Signature,
    pub(super) keys: &'a Keys,
    /// The request as received.
    pub(super) received: Request<'a>,
}

impl Resign<'_> {
    /// The signature headers of the forwarded request; none where the URL is not signed.
    pub(super) fn headers(
        &self,
        method: &str,
        url: &str,
        body: &[u8],
        form: Option<&[(String, String)]>,
    ) -> Vec<(HeaderName, HeaderValue)> {
        let forwarded = Request { method, url, headers: self.received.headers, body, form };
        self.signature.resign(self.keys, &self.received, &forwarded)
    }
}

impl ParsedWebhook<'_> {
    /// `received_url` is the URL that the provider called.
    pub(super) fn resign<'s>(&'s self, received_url: &'s str) -> Resign<'s> {
        let raw = self.raw;
        Resign {
            signature: &self.from.webhook().signature,
            keys: &self.keys,
            received: Request {
                method: &raw.method,
                url: received_url,
                headers: &raw.headers,
                body: &raw.body,
                form: raw.form(),
            },
        }
    }
}
