//! Makes URL-bound signatures anew for the app's URL.

use http::{HeaderName, HeaderValue};

use super::parsed::ParsedWebhook;
use crate::provider::sign::{Keys, Request, Signature};

/// The keys and request for a signature over the app's URL.
pub(super) struct Resign<'a> {
    pub(super) signature: &'a Signature,
    pub(super) keys: &'a Keys,
    /// The request as received.
    pub(super) came: Request<'a>,
}

impl Resign<'_> {
    /// The headers of the forwarded request; `None` where the URL is not signed.
    pub(super) fn headers(
        &self,
        method: &str,
        url: &str,
        body: &[u8],
        form: Option<&[(String, String)]>,
    ) -> Vec<(HeaderName, HeaderValue)> {
        let goes = Request { method, url, headers: self.came.headers, body, form };
        self.signature.resign(self.keys, &self.came, &goes)
    }
}

impl ParsedWebhook<'_> {
    /// `came_to` is the URL that the provider called.
    pub(super) fn resign<'s>(&'s self, came_to: &'s str) -> Resign<'s> {
        let raw = self.raw;
        Resign {
            signature: &self.from.webhook().signature,
            keys: &self.keys,
            came: Request {
                method: &raw.method,
                url: came_to,
                headers: &raw.headers,
                body: &raw.body,
                form: raw.form(),
            },
        }
    }
}
