//! Renews timestamped signatures: a late or repeated delivery would be too old for the app's own check. Only signatures that match a
//! key are renewed, with that key.

use http::{HeaderMap, HeaderName, HeaderValue};
use ring::hmac;

use super::common::{Keys, Request, equal};
use super::message::{MessageSignature, SignaturePlace};

/// The age up to which a signature is passed on unchanged, in seconds, so that immediate deliveries are what the provider sent.
const FRESH_SECS: i64 = 30;

/// The prefix of headers with original values.
const ORIGINAL: &str = "x-ringfence-original-";

/// Whether a signature is renewed: it is old, or in the future.
pub(super) fn is_old(age_secs: i64) -> bool {
    age_secs.saturating_abs() > FRESH_SECS
}

/// A header with its original value, under ringfence's name for it.
pub(super) fn original(name: &HeaderName, value: HeaderValue) -> Option<(HeaderName, HeaderValue)> {
    Some((HeaderName::try_from(format!("{ORIGINAL}{name}")).ok()?, value))
}

/// A signature that is being renewed. The body is fed in pieces, so that a large one need not be in memory.
pub struct Renewal<'a> {
    tries: Vec<Try<'a>>,
    /// The message after the body: original, and renewed.
    ends: [Vec<u8>; 2],
    stamps: [String; 2],
    signature: Option<&'a MessageSignature>,
    headers: Option<&'a HeaderMap>,
    ready: Vec<(HeaderName, HeaderValue)>,
}

/// A key and a header with a signature: original, and renewed.
struct Try<'a> {
    key: usize,
    shown: &'a SignaturePlace,
    messages: [hmac::Context; 2],
}

impl<'a> Renewal<'a> {
    /// A renewal that does not depend on the body.
    pub(super) fn ready(headers: Vec<(HeaderName, HeaderValue)>) -> Self {
        Self {
            tries: vec![],
            ends: Default::default(),
            stamps: Default::default(),
            signature: None,
            headers: None,
            ready: headers,
        }
    }

    /// Feeds the next piece of the body.
    pub fn update(&mut self, piece: &[u8]) {
        self.tries.iter_mut().flat_map(|one| &mut one.messages).for_each(|message| message.update(piece));
    }

    /// The replaced headers, and their originals under ringfence's names. Empty if no key matches the original signature.
    pub fn finish(self) -> Vec<(HeaderName, HeaderValue)> {
        let (Some(signature), Some(headers)) = (self.signature, self.headers) else { return self.ready };
        let (ends, mut fits, mut anew) = (&self.ends, None, Vec::new());
        for Try { key, shown, messages: [mut received, mut forwarded] } in self.tries {
            received.update(&ends[0]);
            forwarded.update(&ends[1]);
            let received = received.sign();
            let texts = shown.texts(headers);
            let holds =
                || texts.iter().filter_map(|t| signature.encoding.decode(t)).any(|one| equal(&one, received.as_ref()));
            if fits.is_none() && holds() {
                fits = Some(key);
            }
            anew.push((key, shown, signature.encoding.encode(forwarded.sign().as_ref())));
        }
        let Some(fits) = fits else { return vec![] };
        let anew: Vec<(&SignaturePlace, String)> =
            anew.into_iter().filter(|(key, ..)| *key == fits).map(|(_, shown, text)| (shown, text)).collect();
        renewed_headers(signature, headers, &anew, &self.stamps)
    }
}

impl MessageSignature {
    /// See [`super::Signature::renewal`].
    pub(super) fn renewal<'a>(&'a self, keys: &Keys, headers: &'a HeaderMap, now_secs: i64) -> Option<Renewal<'a>> {
        let stamp = self.timestamp.as_ref().filter(|_| !self.is_public_key() && !self.is_over_url())?;
        let (before, at_secs) = stamp.read(headers).ok()?;
        if !is_old(now_secs.saturating_sub(at_secs)) {
            return None;
        }
        let request = Request { method: "", url: "", headers, body: b"", form: None };
        let stamps = [before.to_owned(), stamp.write(before, now_secs)];
        let (received, _) = self.values(&request).ok()?;
        let (start, end) = self.message.around_body(&received)?;
        let forwarded = super::template::Values { timestamp: &stamps[1], ..received };
        let (start_anew, end_anew) = self.message.around_body(&forwarded)?;
        let mut tries = Vec::new();
        for (key, (algorithm, secret)) in self.candidates(keys, &request).ok()?.into_iter().enumerate() {
            for shown in self.signature.iter().filter(|shown| headers.contains_key(&shown.header)) {
                let hmac_key = hmac::Key::new(self.algorithm_of(algorithm, shown).hmac()?, &secret);
                let begun = |start: &[u8]| {
                    let mut message = hmac::Context::with_key(&hmac_key);
                    message.update(start);
                    message
                };
                tries.push(Try { key, shown, messages: [begun(&start), begun(&start_anew)] });
            }
        }
        let ends = [end, end_anew];
        Some(Renewal { tries, ends, stamps, signature: Some(self), headers: Some(headers), ready: vec![] })
    }
}

/// The headers of the timestamp and the signatures, with new values.
fn renewed_headers(
    signature: &MessageSignature,
    headers: &HeaderMap,
    anew: &[(&SignaturePlace, String)],
    [before, now]: &[String; 2],
) -> Vec<(HeaderName, HeaderValue)> {
    let mut lines: Vec<(&str, String)> = Vec::new();
    for (shown, text) in anew {
        let text = format!("{}{text}", shown.prefix);
        match &shown.field {
            None => lines.push((&shown.header, text)),
            Some(field) => {
                let line = headers.get(&shown.header).and_then(|line| line.to_str().ok()).unwrap_or_default();
                lines.push((&shown.header, with_field(line, field, &text)));
            }
        }
    }
    if let Some(stamp) = &signature.timestamp {
        let line = lines.iter_mut().find(|(header, _)| header.eq_ignore_ascii_case(&stamp.header));
        match (&stamp.field, line) {
            (Some(field), Some((_, line))) => *line = with_field(line, field, now),
            (Some(field), None) => lines.push((&stamp.header, with_field(&format!("{field}={before}"), field, now))),
            (None, _) => lines.push((&stamp.header, now.clone())),
        }
    }
    let both = lines.into_iter().filter_map(|(header, line)| {
        let name = HeaderName::try_from(header).ok()?;
        let kept = original(&name, headers.get(&name)?.clone())?;
        Some([kept, (name, HeaderValue::try_from(line).ok()?)])
    });
    both.flatten().collect()
}

/// Replaces the value of a name in `a=1,b=2`; duplicates of it are removed.
fn with_field(line: &str, field: &str, value: &str) -> String {
    let mut done = false;
    let parts = line.split(',').filter_map(|part| {
        match part.trim().strip_prefix(field).and_then(|rest| rest.strip_prefix('=')) {
            Some(_) if done => None,
            Some(_) => {
                done = true;
                Some(format!("{field}={value}"))
            }
            None => Some(part.trim().to_owned()),
        }
    });
    parts.collect::<Vec<_>>().join(",")
}
