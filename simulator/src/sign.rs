//! Signatures as the providers make them, written apart from ringfence's own
//! verifier: two implementations that agree are each other's proof.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use std::collections::{BTreeMap, BTreeSet};

/// The value of `ElevenLabs-Signature` for a body sent at `unix` seconds.
pub fn elevenlabs(secret: &str, unix: i64, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let mut message = format!("{unix}.").into_bytes();
    message.extend_from_slice(body);
    format!("t={unix},v0={}", hex::encode(hmac::sign(&key, &message)))
}

/// The value of `X-Twilio-Signature`: the URL as it is called (no fragment), then
/// every unique name in order with each of its unique values in order.
///
/// For GET requests and JSON bodies Twilio signs the URL alone: pass no `params`.
pub fn twilio(token: &str, url: &str, params: &[(String, String)]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, token.as_bytes());
    let mut unique: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, value) in params {
        unique.entry(name).or_default().insert(value);
    }
    let mut message = without_fragment(url).to_owned();
    for (name, values) in unique {
        for value in values {
            message.push_str(name);
            message.push_str(value);
        }
    }
    STANDARD.encode(hmac::sign(&key, message.as_bytes()))
}

/// The part of a URL that goes over the wire.
pub(crate) fn without_fragment(url: &str) -> &str {
    url.split_once('#').map_or(url, |(before, _)| before)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";
    const STATUS: &str = "https://calls.example.test/hooks/twilio/status?biz=acme";

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn elevenlabs_vector() {
        let body =
            br#"{"type":"post_call_transcription","event_timestamp":1760000000,"data":{"conversation_id":"conv_abc"}}"#;
        assert_eq!(
            elevenlabs("wsec_example_secret", 1_760_000_000, body),
            "t=1760000000,v0=0cddfb9c064860eb1aa71aaa428695c99675b23a1f8b72de07e5864d1a5bc386"
        );
    }

    #[test]
    fn twilio_vectors() {
        let form = pairs(&[
            ("CallSid", "CA00000000000000000000000000000001"),
            ("CallStatus", "completed"),
            ("CallDuration", "42"),
            ("From", "+15550001111"),
            ("To", "+15550002222"),
            ("SequenceNumber", "3"),
        ]);
        assert_eq!(twilio(TOKEN, STATUS, &form), "acEvkn2qe36vcFhFs0pGnMysDT8=");
        let fragment = format!("{STATUS}#rc=3&rp=ct,rt,5xx");
        assert_eq!(twilio(TOKEN, &fragment, &form), "acEvkn2qe36vcFhFs0pGnMysDT8=");
        let with_port = STATUS.replace(".test/", ".test:443/");
        assert_eq!(twilio(TOKEN, &with_port, &form), "JzTe4PCREktiRe0AF2r2u/MfpIM=");
        let repeated = pairs(&[("A", "2"), ("A", "1"), ("A", "2"), ("B", "x")]);
        assert_eq!(twilio(TOKEN, STATUS, &repeated), "/07keIlqIYrQacYI65JR5Ecybn8=");
        let json = "https://calls.example.test/hooks/twilio/json?bodySHA256=015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862";
        assert_eq!(twilio(TOKEN, json, &[]), "1vWL1lKYMF7tnK2MV1z+fp4iXQ4=");
    }
}
