//! Signature schemes: verify what providers sent, re-sign what is relayed under another URL. Pure; compared in constant time.
//!
//! Sources: facts A5 (ElevenLabs), B5 (Twilio).

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::{digest, hmac};
use serde::Deserialize;

use super::secret::Secret;

/// ElevenLabs' SDKs take a stamp of at most 30 minutes ago (facts A5).
pub const ELEVENLABS_TOLERANCE_SECS: i64 = 30 * 60;

/// How a webhook is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    /// Not at all.
    None,
    /// A shared token in a header of our choice: `X-Ringfence-Token`, or `Authorization: Bearer`.
    Token,
    /// `ElevenLabs-Signature: t=…,v0=…`.
    Elevenlabs,
    /// `X-Twilio-Signature`.
    Twilio,
}

/// Why a signature does not count. The sentences tell an operator what to check and hold no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSignature {
    /// No header.
    #[error("the request carries no {0} header")]
    Missing(&'static str),
    /// A header that cannot be read.
    #[error("the {0} header cannot be read")]
    Malformed(&'static str),
    /// Too old.
    #[error("the signature is {age_secs} s old; at most {ELEVENLABS_TOLERANCE_SECS} s are allowed")]
    Stale {
        /// How old.
        age_secs: i64,
    },
    /// No configured secret gives this signature.
    #[error(
        "no configured secret gives this signature; check the secret and that public_url is the URL the provider calls"
    )]
    Mismatch,
    /// There is no secret to check with.
    #[error("no secret is configured for this webhook")]
    NoSecret,
}

/// Equality that takes the same time wherever the first difference is.
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    // Comparing MACs under a fixed key hides lengths and contents alike.
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"ringfence constant-time comparison");
    hmac::verify(&key, a, hmac::sign(&key, b).as_ref()).is_ok()
}

/// SHA-256 in lower-case hex.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

/// Checks a shared token.
pub fn verify_token(secrets: &[Secret], shown: Option<&str>) -> Result<(), BadSignature> {
    if secrets.is_empty() {
        return Err(BadSignature::NoSecret);
    }
    let shown = shown.ok_or(BadSignature::Missing("X-Ringfence-Token"))?;
    let fits = secrets.iter().any(|secret| equal(secret.expose().as_bytes(), shown.as_bytes()));
    if fits { Ok(()) } else { Err(BadSignature::Mismatch) }
}

/// Checks `ElevenLabs-Signature: t=<unix seconds>,v0=<hex>`: HMAC-SHA256 over `t.body`, any `v0` and any secret may fit.
pub fn verify_elevenlabs(
    secrets: &[Secret],
    header: Option<&str>,
    body: &[u8],
    now_secs: i64,
) -> Result<(), BadSignature> {
    const HEADER: &str = "ElevenLabs-Signature";
    if secrets.is_empty() {
        return Err(BadSignature::NoSecret);
    }
    let header = header.ok_or(BadSignature::Missing(HEADER))?;
    let parts = || header.split(',').filter_map(|part| part.trim().split_once('='));
    let stamp = parts().find(|(k, _)| *k == "t").map(|(_, v)| v).ok_or(BadSignature::Malformed(HEADER))?;
    let stamp_secs: i64 = stamp.parse().map_err(|_| BadSignature::Malformed(HEADER))?;
    let signatures: Vec<Vec<u8>> =
        parts().filter(|(k, _)| *k == "v0").filter_map(|(_, v)| hex::decode(v).ok()).collect();
    if signatures.is_empty() {
        return Err(BadSignature::Malformed(HEADER));
    }
    let age_secs = now_secs.saturating_sub(stamp_secs);
    let message = [stamp.as_bytes(), b".", body].concat();
    let fits = secrets.iter().any(|secret| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes());
        signatures.iter().any(|signature| hmac::verify(&key, &message, signature).is_ok())
    });
    match fits {
        true if age_secs > ELEVENLABS_TOLERANCE_SECS => Err(BadSignature::Stale { age_secs }),
        true => Ok(()),
        false => Err(BadSignature::Mismatch),
    }
}

/// The key of a Standard Webhooks secret: `whsec_`, then 24 to 64 bytes in base64.
///
/// # Errors
/// What it is not. The sentence holds nothing of it.
pub fn standard_key(secret: &Secret) -> Result<Vec<u8>, &'static str> {
    let text = secret.expose().strip_prefix("whsec_").ok_or("does not start with whsec_")?;
    let key = BASE64.decode(text).map_err(|_| "is not base64 after whsec_")?;
    if (24..=64).contains(&key.len()) { Ok(key) } else { Err("must have 24 to 64 bytes after whsec_") }
}

/// The `webhook-signature` of Standard Webhooks: HMAC-SHA256 over `id.timestamp.body`.
pub fn sign_standard(key: &[u8], id: &str, at_secs: i64, body: &[u8]) -> String {
    let message = [format!("{id}.{at_secs}.").as_bytes(), body].concat();
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    format!("v1,{}", BASE64.encode(hmac::sign(&key, &message)))
}

/// What Twilio's scheme is checked with.
#[derive(Debug, Clone, Default)]
pub struct TwilioKeys {
    /// Auth tokens: the classic mode, HMAC-SHA1. Several while one is rotated.
    pub auth_tokens: Vec<Secret>,
    /// Shared keys by name: the new mode, HMAC-SHA256.
    pub shared_keys: BTreeMap<String, Secret>,
}

/// A request as Twilio signs it.
#[derive(Debug, Clone, Copy)]
pub struct TwilioRequest<'a> {
    /// The URL that Twilio called: public scheme, host, path and query.
    pub url: &'a str,
    /// The pairs of a form body; none for other bodies and for GET.
    pub form: Option<&'a [(String, String)]>,
    /// The raw body.
    pub body: &'a [u8],
    /// `X-Twilio-Signature`.
    pub signature: Option<&'a str>,
    /// `X-Twilio-Webhooks-Signature-Settings`.
    pub settings: Option<&'a str>,
}

/// Checks `X-Twilio-Signature` in both modes, with and without the default port, as `https` and `wss`.
pub fn verify_twilio(keys: &TwilioKeys, request: &TwilioRequest<'_>) -> Result<(), BadSignature> {
    fitting_url(keys, request).map(drop)
}

/// The form of the URL that Twilio signed, if the signature holds.
pub fn fitting_url(keys: &TwilioKeys, request: &TwilioRequest<'_>) -> Result<String, BadSignature> {
    const HEADER: &str = "X-Twilio-Signature";
    if keys.auth_tokens.is_empty() && keys.shared_keys.is_empty() {
        return Err(BadSignature::NoSecret);
    }
    let signature = request.signature.ok_or(BadSignature::Missing(HEADER))?;
    let signature = BASE64.decode(signature.trim()).map_err(|_| BadSignature::Malformed(HEADER))?;
    let candidates: Vec<hmac::Key> = match request.settings {
        Some(settings) => {
            let part = |name: &str| settings.split(',').find_map(|p| p.trim().strip_prefix(name));
            if part("algorithm=").is_some_and(|a| a != "HMAC_SHA256") {
                return Err(BadSignature::Malformed("X-Twilio-Webhooks-Signature-Settings"));
            }
            let name = part("key=").ok_or(BadSignature::Malformed("X-Twilio-Webhooks-Signature-Settings"))?;
            let key = keys.shared_keys.get(name);
            key.map(|k| hmac::Key::new(hmac::HMAC_SHA256, k.expose().as_bytes())).into_iter().collect()
        }
        None => {
            let sha1 = |t: &Secret| hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, t.expose().as_bytes());
            keys.auth_tokens.iter().map(sha1).collect()
        }
    };
    // The sender chooses mode and key name: to name one that nobody configured must not pass for "nothing to check with".
    if candidates.is_empty() {
        return Err(BadSignature::Mismatch);
    }
    if request.form.is_none() && !body_hash_fits(request.url, request.body) {
        return Err(BadSignature::Mismatch);
    }
    let fits = |url: &String| {
        let message = twilio_message(url, request.form);
        candidates.iter().any(|key| hmac::verify(key, message.as_bytes(), &signature).is_ok())
    };
    url_variants(request.url).into_iter().find(fits).ok_or(BadSignature::Mismatch)
}

/// Signs a request for the URL of the app in the mode in which it came: with the shared key that its settings name, else with
/// the auth token. `None` if there is no such key.
pub fn resign_twilio(
    keys: &TwilioKeys,
    settings: Option<&str>,
    url: &str,
    form: Option<&[(String, String)]>,
) -> Option<String> {
    let Some(settings) = settings else { return Some(sign_twilio(keys.auth_tokens.first()?, url, form)) };
    let name = settings.split(',').find_map(|p| p.trim().strip_prefix("key="))?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, keys.shared_keys.get(name)?.expose().as_bytes());
    Some(BASE64.encode(hmac::sign(&key, twilio_message(without_fragment(url), form).as_bytes())))
}

/// Signs a request for the URL of the app, as Twilio would have (classic mode).
pub fn sign_twilio(auth_token: &Secret, url: &str, form: Option<&[(String, String)]>) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, auth_token.expose().as_bytes());
    BASE64.encode(hmac::sign(&key, twilio_message(without_fragment(url), form).as_bytes()))
}

/// Signs a body as ElevenLabs would.
pub fn sign_elevenlabs(secret: &Secret, body: &[u8], now_secs: i64) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes());
    let message = [now_secs.to_string().as_bytes(), b".", body].concat();
    format!("t={now_secs},v0={}", hex::encode(hmac::sign(&key, &message)))
}

/// A URL without its fragment: Twilio neither sends nor signs it.
pub fn without_fragment(url: &str) -> &str {
    url.split('#').next().unwrap_or(url)
}

/// URL, then for each name in order each of its different values in order: name and value.
fn twilio_message(url: &str, form: Option<&[(String, String)]>) -> String {
    let sorted: BTreeSet<(&str, &str)> =
        form.unwrap_or_default().iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let mut message = url.to_owned();
    for (name, value) in sorted {
        message.push_str(name);
        message.push_str(value);
    }
    message
}

/// Bodies other than forms are covered by `bodySHA256` in the query. An empty body needs none.
fn body_hash_fits(url: &str, body: &[u8]) -> bool {
    if body.is_empty() {
        return true;
    }
    let query = url.split_once('?').map_or("", |(_, q)| q);
    let claimed = form_urlencoded::parse(query.as_bytes()).find(|(k, _)| k == "bodySHA256");
    claimed.is_some_and(|(_, hash)| equal(hash.to_ascii_lowercase().as_bytes(), sha256_hex(body).as_bytes()))
}

fn url_variants(url: &str) -> Vec<String> {
    let Some((scheme, rest)) = url.split_once("://") else { return vec![url.to_owned()] };
    let (authority, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let port = match scheme {
        "https" | "wss" => ":443",
        _ => ":80",
    };
    let mut authorities = vec![authority.to_owned()];
    match authority.strip_suffix(port) {
        Some(bare) => authorities.push(bare.to_owned()),
        None if !authority.rsplit(']').next().unwrap_or(authority).contains(':') => {
            authorities.push(format!("{authority}{port}"));
        }
        None => {}
    }
    let schemes: &[&str] = match scheme {
        "https" | "wss" => &["https", "wss"],
        _ => &["http", "ws"],
    };
    schemes.iter().flat_map(|s| authorities.iter().map(move |a| format!("{s}://{a}{tail}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";
    const URL: &str = "https://calls.example.test/hooks/twilio/status?biz=acme";

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn status_form() -> Vec<(String, String)> {
        pairs(&[
            ("CallSid", "CA00000000000000000000000000000001"),
            ("CallStatus", "completed"),
            ("CallDuration", "42"),
            ("From", "+15550001111"),
            ("To", "+15550002222"),
            ("SequenceNumber", "3"),
        ])
    }

    fn keys() -> TwilioKeys {
        TwilioKeys {
            auth_tokens: vec![Secret::new("an older token"), Secret::new(TOKEN)],
            shared_keys: BTreeMap::from([("webhooks_sharedkey_1".to_owned(), Secret::new(TOKEN))]),
        }
    }

    fn check(url: &str, form: Option<&[(String, String)]>, body: &[u8], signature: &str) -> Result<(), BadSignature> {
        verify_twilio(&keys(), &TwilioRequest { url, form, body, signature: Some(signature), settings: None })
    }

    /// The vectors of facts B5.
    #[test]
    fn twilio_vectors_pass() {
        let form = status_form();
        assert_eq!(check(URL, Some(&form), b"", "acEvkn2qe36vcFhFs0pGnMysDT8="), Ok(()));
        assert_eq!(sign_twilio(&Secret::new(TOKEN), URL, Some(&form)), "acEvkn2qe36vcFhFs0pGnMysDT8=");
        let with_fragment = format!("{URL}#rc=3&rp=ct,rt,5xx");
        assert_eq!(sign_twilio(&Secret::new(TOKEN), &with_fragment, Some(&form)), "acEvkn2qe36vcFhFs0pGnMysDT8=");
        let repeated = pairs(&[("A", "2"), ("A", "1"), ("A", "2"), ("B", "x")]);
        assert_eq!(check(URL, Some(&repeated), b"", "/07keIlqIYrQacYI65JR5Ecybn8="), Ok(()));
        let sha256 = TwilioRequest {
            url: URL,
            form: Some(&form),
            body: b"",
            signature: Some("hItbEAwSdxGYEkNb9cxAfcpdLCbumoJZQfjkEVyjB2M="),
            settings: Some("key=webhooks_sharedkey_1,algorithm=HMAC_SHA256"),
        };
        assert_eq!(verify_twilio(&keys(), &sha256), Ok(()));
    }

    /// Facts B5: signed with `:443`, received without, and the other way round.
    #[test]
    fn twilio_port_variants_pass() {
        let form = status_form();
        let with_port = URL.replace("example.test", "example.test:443");
        assert_eq!(check(URL, Some(&form), b"", "JzTe4PCREktiRe0AF2r2u/MfpIM="), Ok(()));
        assert_eq!(check(&with_port, Some(&form), b"", "acEvkn2qe36vcFhFs0pGnMysDT8="), Ok(()));
        let other_port = URL.replace("example.test", "example.test:8443");
        assert_eq!(check(&other_port, Some(&form), b"", "acEvkn2qe36vcFhFs0pGnMysDT8="), Err(BadSignature::Mismatch));
    }

    #[test]
    fn twilio_json_bodies_are_bound_by_their_hash() {
        let url = "https://calls.example.test/hooks/twilio/json?bodySHA256=015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862";
        assert_eq!(check(url, None, b"{\"a\":1}", "1vWL1lKYMF7tnK2MV1z+fp4iXQ4="), Ok(()));
        assert_eq!(check(url, None, b"{\"a\":2}", "1vWL1lKYMF7tnK2MV1z+fp4iXQ4="), Err(BadSignature::Mismatch));
    }

    #[test]
    fn forged_twilio_requests_fail() {
        let mut form = status_form();
        form[1].1 = "busy".to_owned();
        assert_eq!(check(URL, Some(&form), b"", "acEvkn2qe36vcFhFs0pGnMysDT8="), Err(BadSignature::Mismatch));
        assert_eq!(
            check(URL, Some(&status_form()), b"", "not base64!"),
            Err(BadSignature::Malformed("X-Twilio-Signature"))
        );
        let other_key = TwilioRequest {
            url: URL,
            form: None,
            body: b"",
            signature: Some("AAAA"),
            settings: Some("key=of_nobody,algorithm=HMAC_SHA256"),
        };
        assert_eq!(
            verify_twilio(&keys(), &other_key),
            Err(BadSignature::Mismatch),
            "not NoSecret, which may be let in"
        );
        assert_eq!(verify_twilio(&TwilioKeys::default(), &other_key), Err(BadSignature::NoSecret));
        let unsigned = TwilioRequest { url: URL, form: None, body: b"", signature: None, settings: None };
        assert_eq!(verify_twilio(&keys(), &unsigned), Err(BadSignature::Missing("X-Twilio-Signature")));
    }

    /// The vector of facts A5, with its tolerance.
    #[test]
    fn elevenlabs_vector_passes_within_its_tolerance() {
        let secrets = [Secret::new("older"), Secret::new("wsec_example_secret")];
        let body =
            br#"{"type":"post_call_transcription","event_timestamp":1760000000,"data":{"conversation_id":"conv_abc"}}"#;
        let header = "t=1760000000,v0=0cddfb9c064860eb1aa71aaa428695c99675b23a1f8b72de07e5864d1a5bc386";
        let at = |now| verify_elevenlabs(&secrets, Some(header), body, now);
        assert_eq!(at(1_760_000_000), Ok(()));
        assert_eq!(at(1_760_000_000 + 1800), Ok(()));
        assert_eq!(at(1_760_000_000 + 1801), Err(BadSignature::Stale { age_secs: 1801 }));
        assert_eq!(at(1_759_990_000), Ok(()), "stamps of the future are not refused by the SDKs either");
        assert_eq!(verify_elevenlabs(&secrets, Some(header), b"{}", 1_760_000_000), Err(BadSignature::Mismatch));
        assert_eq!(sign_elevenlabs(&secrets[1], body, 1_760_000_000), header);
        for bad in ["", "t=1", "v0=00", "t=x,v0=00", "t=1760000000,v0=zz"] {
            assert_eq!(
                verify_elevenlabs(&secrets, Some(bad), body, 1_760_000_000),
                Err(BadSignature::Malformed("ElevenLabs-Signature")),
                "{bad:?}"
            );
        }
    }

    /// The example of the specification's own libraries.
    #[test]
    fn standard_webhooks_are_signed_as_specified() {
        let key = standard_key(&Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")).unwrap();
        let signature = sign_standard(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        for bad in ["MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_short", "whsec_c2hvcnQ=", "whsec_!!"] {
            assert!(standard_key(&Secret::new(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn without_a_secret_nothing_is_valid() {
        assert_eq!(verify_elevenlabs(&[], Some("t=1,v0=00"), b"", 1), Err(BadSignature::NoSecret));
        assert_eq!(verify_token(&[], Some("x")), Err(BadSignature::NoSecret));
        assert_eq!(verify_token(&[Secret::new("x")], Some("x")), Ok(()));
        assert_eq!(verify_token(&[Secret::new("x")], Some("xy")), Err(BadSignature::Mismatch));
    }
}
