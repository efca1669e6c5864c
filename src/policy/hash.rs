//! The policy hash, by which replicas tell their policies apart.

use std::fmt::Debug;

use ring::digest::{SHA256, digest};

/// Hexadecimal digits of the policy hash.
const HASH_DIGITS: usize = 12;

/// The first digits of the SHA-256 of the settings. Businesses created over HTTP are excluded, because all replicas of one
/// database share them.
pub(super) fn hash(settings: &impl Debug) -> String {
    let mut text = hex::encode(digest(&SHA256, format!("{settings:?}").as_bytes()));
    text.truncate(HASH_DIGITS);
    text
}
