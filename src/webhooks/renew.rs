//! Renews a delivery before it is sent: a time-stamped signature is made anew where the app's own check would reject it as too
//! old.

use std::borrow::Cow;

use http::HeaderMap;
use tokio::io::AsyncReadExt as _;

use super::raw::headers_of;
use crate::calls::Calls;
use crate::provider::sign::{Keys, Renewal, Signature};
use crate::store::{Delivery, Spool};

/// The part of a body that is read at once, in bytes.
const PIECE: usize = 64 * 1024;

/// The delivery with renewed signature headers, if it needs any: by the key of the account that matches the original signature.
pub(super) async fn renewed<'d>(calls: &Calls, spool: &Spool, delivery: &'d Delivery) -> Cow<'d, Delivery> {
    let headers = headers_of(&delivery.headers);
    let signatures = signatures(calls, &headers);
    let now_secs = calls.lifecycle.clock.now_ms() / 1000;
    let mut renewals: Vec<Renewal<'_>> =
        signatures.iter().filter_map(|(signature, keys)| signature.renewal(keys, &headers, now_secs)).collect();
    if renewals.is_empty() || !feed(&mut renewals, spool, delivery).await {
        return Cow::Borrowed(delivery);
    }
    let anew = renewals.into_iter().map(Renewal::finish).find(|anew| !anew.is_empty()).unwrap_or_default();
    let mut headers = headers.clone();
    for (name, value) in anew {
        headers.insert(name, value);
    }
    let texts = headers.iter().filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())));
    Cow::Owned(Delivery { headers: texts.collect(), ..delivery.clone() })
}

/// The possible signature schemes and keys.
fn signatures<'c>(calls: &'c Calls, headers: &HeaderMap) -> Vec<(&'c Signature, Keys)> {
    let mut found: Vec<(&Signature, Keys)> = Vec::new();
    for account in calls.accounts.values() {
        let from = found.len();
        for webhook in &account.provider.webhooks {
            let signature = &webhook.signature;
            if signature.is_shown(headers) && !found[from..].iter().any(|(known, _)| *known == signature) {
                found.push((signature, account.keys(signature)));
            }
        }
    }
    found
}

/// Feeds the body to the renewals. `false`: it cannot be read.
async fn feed(renewals: &mut [Renewal<'_>], spool: &Spool, delivery: &Delivery) -> bool {
    let mut update = |piece: &[u8]| renewals.iter_mut().for_each(|one| one.update(piece));
    if delivery.spool.is_none() {
        update(&delivery.body);
        return true;
    }
    let Ok((mut file, _)) = spool.open(&delivery.event_id).await else { return false };
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece).await {
            Ok(0) => return true,
            Ok(bytes) => update(&piece[..bytes]),
            Err(_) => return false,
        }
    }
}
