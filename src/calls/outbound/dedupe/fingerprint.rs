//! Equality of create requests.

use bytes::Bytes;
use http::{HeaderMap, Request};
use ring::digest::{Context, SHA256};

use crate::ids::Alias;
use crate::policy::CallAttributes;
use crate::store::KEY_KIND;

/// The header of an idempotency key (draft-ietf-httpapi-idempotency-key-header).
const KEY_HEADER: &str = "idempotency-key";
/// The longest key, in bytes.
const KEY_BYTES_MAX: usize = 255;

/// Equal requests have equal fingerprints: a hash of account, operation, business, method, path, query and body.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub(super) String);

impl Fingerprint {
    /// The fingerprint of a request as the app sent it.
    pub fn new(attributes: &CallAttributes, request: &Request<Bytes>) -> Self {
        let uri = request.uri();
        let parts = [
            attributes.account.as_str().as_bytes(),
            attributes.operation.as_bytes(),
            attributes.business.as_str().as_bytes(),
            request.method().as_str().as_bytes(),
            uri.path_and_query().map_or(&b""[..], |p| p.as_str().as_bytes()),
            request.body(),
        ];
        Self(hash(&parts))
    }

    /// The stored form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The alias of an app's idempotency key. Keys of different accounts and businesses are different.
///
/// # Errors
/// A sentence, if the header is there and cannot be a key.
pub(in crate::calls) fn key(attributes: &CallAttributes, headers: &HeaderMap) -> Result<Option<Alias>, String> {
    let Some(value) = headers.get(KEY_HEADER) else { return Ok(None) };
    let value = value.as_bytes();
    if value.is_empty() || value.len() > KEY_BYTES_MAX {
        return Err(format!("Idempotency-Key must have 1 to {KEY_BYTES_MAX} bytes"));
    }
    let id = hash(&[attributes.account.as_str().as_bytes(), attributes.business.as_str().as_bytes(), value]);
    Ok(Some(Alias { kind: KEY_KIND.to_owned(), id }))
}

/// A hash over length-prefixed parts: different lists of parts never hash the same bytes.
fn hash(parts: &[&[u8]]) -> String {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    hex::encode(context.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_together() {
        assert_ne!(hash(&[b"ab", b"c"]), hash(&[b"a", b"bc"]));
    }
}
