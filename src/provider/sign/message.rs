//! Signatures over a message built from parts of the request: HMAC and Ed25519.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{HeaderMap, HeaderName, HeaderValue};
use ring::{hmac, signature};
use serde::Deserialize;

use super::super::secret::Secret;
use super::common::{Encoding, Keys, Request, SignatureError, equal, standard_key, without_prefix};
use super::template::{Base, Part, Template, Values};
use super::url::{body_hash_fits, node_spellings, plivo_v3_bases, twilio_params, variants, without_fragment};

/// Timestamps of either unit from here on are in milliseconds: as seconds it would be after the year 5000.
const MS_FROM: i64 = 100_000_000_000;
/// The maximum number of signatures that are checked per request.
const SHOWN_MAX: usize = 16;

/// A signature over a message.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MessageSignature {
    /// The hash of the HMAC. Not given with `ed25519`.
    pub(super) algorithm: Algorithm,
    /// The encoding of the secret.
    #[serde(default)]
    key: KeyForm,
    /// The signed text, with the parts `{body}`, `{timestamp}`, `{id}`, `{nonce}`, `{method}`, `{url}`, `{twilio_params}` and
    /// `{plivo_v3_base}`.
    pub(super) message: Template,
    /// The encoding of the signature. Not given with `ed25519`, which uses base64.
    #[serde(default)]
    pub(super) encoding: Encoding,
    /// The places of the signature. Any of several may be valid.
    pub(super) signature: Vec<SignaturePlace>,
    /// The place of the timestamp, if the message has one.
    pub(super) timestamp: Option<TimestampPlace>,
    /// The header with the message's id.
    id: Option<String>,
    /// The header with the nonce.
    nonce: Option<String>,
    /// The header that selects a key, and HMAC-SHA256: `key=NAME,algorithm=HMAC_SHA256`.
    settings: Option<String>,
    /// The maximum age of the timestamp, or time in the future. Seconds; default 300.
    #[serde(default = "tolerance_default")]
    tolerance_secs: u32,
}

/// Five minutes, as in most providers' own libraries.
pub(super) fn tolerance_default() -> u32 {
    300
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Algorithm {
    /// HMAC-SHA1.
    Sha1,
    /// HMAC-SHA256.
    Sha256,
    /// HMAC-SHA512.
    Sha512,
    /// Only by `scheme = "ed25519"`.
    Ed25519,
}

impl Algorithm {
    pub(super) fn hmac(self) -> Option<hmac::Algorithm> {
        match self {
            Algorithm::Sha1 => Some(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY),
            Algorithm::Sha256 => Some(hmac::HMAC_SHA256),
            Algorithm::Sha512 => Some(hmac::HMAC_SHA512),
            Algorithm::Ed25519 => None,
        }
    }

    fn signature_bytes(self) -> usize {
        match self {
            Algorithm::Sha1 => 20,
            Algorithm::Sha256 => 32,
            Algorithm::Sha512 | Algorithm::Ed25519 => 64,
        }
    }

    fn sign(self, key: &[u8], message: &[&[u8]]) -> Option<hmac::Tag> {
        let mut context = hmac::Context::with_key(&hmac::Key::new(self.hmac()?, key));
        message.iter().for_each(|part| context.update(part));
        Some(context.sign())
    }

    fn fits(self, key: &[u8], message: &[&[u8]], shown: &[Vec<u8>]) -> bool {
        match self.sign(key, message) {
            Some(tag) => shown.iter().any(|one| equal(one, tag.as_ref())),
            None => {
                let public = signature::UnparsedPublicKey::new(&signature::ED25519, key);
                let message = message.concat();
                shown.iter().any(|one| public.verify(&message, one).is_ok())
            }
        }
    }
}

/// The encoding of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KeyForm {
    /// The text itself; the default.
    #[default]
    Text,
    /// Base64 of the key.
    Base64,
    /// `whsec_` and base64 of the key, as Standard Webhooks has it.
    Whsec,
}

/// The place of a signature.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SignaturePlace {
    /// The header's name.
    pub(super) header: String,
    /// The header is a comma-separated list of `name=value`: the name to read.
    pub(super) field: Option<String>,
    /// The header is a list of signatures: the separator.
    list: Option<String>,
    /// Text before each signature, such as `v1,`.
    #[serde(default)]
    pub(super) prefix: String,
    /// The hash, if it is not the scheme's.
    algorithm: Option<Algorithm>,
}

impl SignaturePlace {
    pub(super) fn texts<'h>(&'h self, headers: &'h HeaderMap) -> Vec<&'h str> {
        let lines = headers.get_all(&self.header).into_iter().filter_map(|value| value.to_str().ok());
        let all = lines.flat_map(|line| match (&self.field, &self.list) {
            (Some(field), _) => fields(line, field).collect::<Vec<_>>(),
            (None, Some(list)) => line.split(list.as_str()).map(str::trim).collect(),
            (None, None) => vec![line.trim()],
        });
        all.filter_map(|text| without_prefix(text, &self.prefix)).take(SHOWN_MAX).collect()
    }
}

/// The values of a name in `a=1,b=2,a=3`.
fn fields<'h>(line: &'h str, name: &str) -> impl Iterator<Item = &'h str> {
    line.split(',').filter_map(move |part| part.trim().strip_prefix(name)?.strip_prefix('='))
}

/// The place of the timestamp.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TimestampPlace {
    /// The header's name.
    pub(super) header: String,
    /// The header is a comma-separated list of `name=value`: the name to read.
    pub(super) field: Option<String>,
    /// The unit of the timestamp.
    #[serde(default)]
    unit: Unit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Unit {
    /// Seconds; the default.
    #[default]
    S,
    /// Milliseconds.
    Ms,
    /// Seconds or milliseconds, told apart by size.
    Either,
}

impl TimestampPlace {
    /// Formats a time in the unit of `before`.
    pub(super) fn write(&self, before: &str, at_secs: i64) -> String {
        let in_ms = match self.unit {
            Unit::S => false,
            Unit::Ms => true,
            Unit::Either => before.parse::<i64>().is_ok_and(|number| number >= MS_FROM),
        };
        (if in_ms { at_secs.saturating_mul(1000) } else { at_secs }).to_string()
    }

    /// The timestamp as text, which is what is signed, and in seconds. Only digits are accepted.
    pub(super) fn read<'h>(&self, headers: &'h HeaderMap) -> Result<(&'h str, i64), SignatureError> {
        let line = headers.get(&self.header).ok_or_else(|| SignatureError::Missing(self.header.clone()))?;
        let text = line.to_str().ok().and_then(|line| match &self.field {
            Some(field) => fields(line, field).next(),
            None => Some(line.trim()),
        });
        let digits = text.filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
        let number = digits.and_then(|text| text.parse::<i64>().ok());
        let (Some(text), Some(number)) = (text, number) else {
            return Err(SignatureError::Malformed(self.header.clone()));
        };
        let in_ms = match self.unit {
            Unit::S => false,
            Unit::Ms => true,
            Unit::Either => number >= MS_FROM,
        };
        Ok((text, if in_ms { number / 1000 } else { number }))
    }
}

/// The signatures of a request, by place.
type Tags<'s> = Vec<(&'s SignaturePlace, Vec<Vec<u8>>)>;

/// A key, and its algorithm if that is not the scheme's.
type Candidate = (Option<Algorithm>, Vec<u8>);

/// The signatures of a request, and what they sign except the body.
struct ReadSignatures<'s, 'a> {
    tags: Tags<'s>,
    values: Values<'a>,
    stamp_secs: Option<i64>,
}

/// The key that a signature matches.
struct MatchingKey {
    key: Candidate,
    /// The form of the URL that was signed.
    base: Base,
    stamp_secs: Option<i64>,
}

impl MessageSignature {
    /// Checks what the types cannot express.
    pub(super) fn check(&self) -> Result<(), String> {
        let has = |part: &Part| self.message.has(part);
        if !has(&Part::Body) && !has(&Part::TwilioParams) && !has(&Part::PlivoV3Base) {
            return Err(
                "message must have {body}, {twilio_params} or {plivo_v3_base}: else anyone can change the body"
                    .to_owned(),
            );
        }
        if has(&Part::TwilioParams) && !has(&Part::Url) {
            return Err("message has {twilio_params}, which needs {url}: bodies other than forms are covered by their hash there".to_owned());
        }
        let headers = [
            ("timestamp", Part::Timestamp, self.timestamp.is_some()),
            ("id", Part::Id, self.id.is_some()),
            ("nonce", Part::Nonce, self.nonce.is_some()),
        ];
        for (key, part, is_given) in headers {
            match (has(&part), is_given) {
                (true, false) => return Err(format!("message has {{{key}}}, but {key} does not say where it is")),
                (false, true) => {
                    return Err(format!("{key} is given, but message does not have {{{key}}}: anyone can change it"));
                }
                _ => {}
            }
        }
        if self.signature.is_empty() {
            return Err("signature names no header".to_owned());
        }
        if self.is_over_url() && self.signature.iter().any(|shown| shown.field.is_some()) {
            return Err(
                "a signature over the URL must have a header of its own, no field: it is made anew for the app"
                    .to_owned(),
            );
        }
        let algorithms = self.signature.iter().filter_map(|shown| shown.algorithm);
        if algorithms.chain([self.algorithm]).any(|one| (one == Algorithm::Ed25519) != self.is_public_key()) {
            return Err("algorithms of hmac and ed25519 cannot be mixed".to_owned());
        }
        if self.is_public_key() && self.is_over_url() {
            return Err("a signature by a private key over the URL cannot be made anew for the app".to_owned());
        }
        Ok(())
    }

    pub(super) fn is_public_key(&self) -> bool {
        self.algorithm == Algorithm::Ed25519
    }

    pub(super) fn headers(&self) -> impl Iterator<Item = &str> {
        self.signature.iter().map(|shown| shown.header.as_str())
    }

    /// All headers that it reads.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        let shown = self.signature.iter().map(|shown| &shown.header);
        let stamp = self.timestamp.as_ref().map(|stamp| &stamp.header);
        shown.chain(stamp).chain(&self.id).chain(&self.nonce).chain(&self.settings)
    }

    pub(super) fn is_over_url(&self) -> bool {
        self.message.has(&Part::Url) || self.message.has(&Part::PlivoV3Base)
    }

    /// Decodes the key of a secret.
    pub(super) fn key(&self, secret: &Secret) -> Result<Vec<u8>, &'static str> {
        let text = secret.expose();
        match self.key {
            _ if self.is_public_key() => match BASE64.decode(text) {
                Ok(key) if key.len() == 32 => Ok(key),
                Ok(_) => Err("is not a public key: 32 bytes in base64"),
                Err(_) => Err("is not a public key: it is not base64"),
            },
            KeyForm::Text => Ok(text.as_bytes().to_vec()),
            KeyForm::Base64 => BASE64.decode(text).map_err(|_| "is not base64"),
            KeyForm::Whsec => standard_key(secret),
        }
    }

    pub(super) fn verify(&self, keys: &Keys, request: &Request<'_>, now_secs: i64) -> Result<(), SignatureError> {
        let MatchingKey { stamp_secs, .. } = self.matching_key(keys, request)?;
        self.check_age(stamp_secs, now_secs)
    }

    fn check_age(&self, stamp_secs: Option<i64>, now_secs: i64) -> Result<(), SignatureError> {
        let (age_secs, at_most_secs) =
            (now_secs.saturating_sub(stamp_secs.unwrap_or(now_secs)), i64::from(self.tolerance_secs));
        if age_secs.saturating_abs() > at_most_secs {
            return Err(SignatureError::Stale { age_secs, at_most_secs });
        }
        Ok(())
    }

    /// The first reason to reject a request that does not depend on its body: a missing or malformed header, or a timestamp
    /// that is too old.
    pub(super) fn validate_head(&self, headers: &HeaderMap, now_secs: i64) -> Result<(), SignatureError> {
        let request = Request { method: "", url: "", headers, body: &[], form: None };
        let ReadSignatures { tags: shown, stamp_secs, .. } = self.read_signatures(&request)?;
        // A named key may have another algorithm.
        let is_as_long = |(one, all): &(&SignaturePlace, Vec<Vec<u8>>)| {
            all.iter().any(|tag| tag.len() == self.algorithm_of(None, one).signature_bytes())
        };
        if !shown.iter().any(is_as_long) && !self.settings.as_ref().is_some_and(|name| headers.contains_key(name)) {
            return Err(SignatureError::Mismatch);
        }
        self.check_age(stamp_secs, now_secs)
    }

    /// Finds the key that a signature matches.
    fn matching_key(&self, keys: &Keys, request: &Request<'_>) -> Result<MatchingKey, SignatureError> {
        if !self.has_key(keys) {
            return Err(SignatureError::NoSecret);
        }
        let ReadSignatures { tags: shown, values, stamp_secs } = self.read_signatures(request)?;
        let candidates = self.candidates(keys, request)?;
        if !self.covers_body(request) {
            return Err(SignatureError::Mismatch);
        }
        for base in self.bases(request, request.url) {
            for (algorithm, key) in &candidates {
                let message = self.message.fill(&values, &base);
                let fits = |(one, all): &(&SignaturePlace, Vec<Vec<u8>>)| {
                    self.algorithm_of(*algorithm, one).fits(key, &message, all)
                };
                if shown.iter().any(fits) {
                    return Ok(MatchingKey { key: (*algorithm, key.clone()), base, stamp_secs });
                }
            }
        }
        Err(SignatureError::Mismatch)
    }

    /// Whether there is a key to check a signature with.
    pub(super) fn has_key(&self, keys: &Keys) -> bool {
        !keys.secrets.is_empty() || (self.settings.is_some() && !keys.named.is_empty())
    }

    /// Reads the signatures and the signed headers.
    fn read_signatures<'a>(&self, request: &Request<'a>) -> Result<ReadSignatures<'_, 'a>, SignatureError> {
        let first = || self.headers().next().unwrap_or_default().to_owned();
        let texts: Vec<(&SignaturePlace, Vec<&str>)> = self
            .signature
            .iter()
            .filter(|shown| request.headers.contains_key(&shown.header))
            .map(|shown| (shown, shown.texts(request.headers)))
            .collect();
        if texts.is_empty() {
            return Err(SignatureError::Missing(first()));
        }
        let (values, stamp_secs) = self.values(request)?;
        let shown: Vec<(&SignaturePlace, Vec<Vec<u8>>)> = texts
            .into_iter()
            .map(|(shown, texts)| (shown, texts.into_iter().filter_map(|text| self.encoding.decode(text)).collect()))
            .filter(|(_, all): &(_, Vec<_>)| !all.is_empty())
            .collect();
        if shown.is_empty() {
            return Err(SignatureError::Malformed(first()));
        }
        Ok(ReadSignatures { tags: shown, values, stamp_secs })
    }

    pub(super) fn algorithm_of(&self, of_key: Option<Algorithm>, shown: &SignaturePlace) -> Algorithm {
        of_key.or(shown.algorithm).unwrap_or(self.algorithm)
    }

    /// The candidate keys. The sender chooses the mode, so naming an unknown key must be an error, not "nothing to check
    /// with".
    pub(super) fn candidates(&self, keys: &Keys, request: &Request<'_>) -> Result<Vec<Candidate>, SignatureError> {
        let Some((header, settings)) = self.settings.as_ref().and_then(|name| Some((name, request.header(name)?)))
        else {
            return Ok(keys.secrets.iter().filter_map(|secret| Some((None, self.key(secret).ok()?))).collect());
        };
        let malformed = || SignatureError::Malformed(header.clone());
        if fields(settings, "algorithm").any(|algorithm| algorithm != "HMAC_SHA256") {
            return Err(malformed());
        }
        let name = fields(settings, "key").next().ok_or_else(malformed)?;
        let key = keys.named.get(name).map(|key| (Some(Algorithm::Sha256), key.expose().as_bytes().to_vec()));
        Ok(key.into_iter().collect())
    }

    /// Whether the parts in the message cover the whole body.
    fn covers_body(&self, request: &Request<'_>) -> bool {
        if self.message.has(&Part::Body) {
            return true;
        }
        match self.message.has(&Part::TwilioParams) {
            true => body_hash_fits(request),
            false => request.form.is_some() || request.body.is_empty(),
        }
    }

    pub(super) fn values<'a>(&self, request: &Request<'a>) -> Result<(Values<'a>, Option<i64>), SignatureError> {
        let header = |name: &Option<String>| match name {
            Some(name) => request.header(name).ok_or_else(|| SignatureError::Missing(name.clone())),
            None => Ok(""),
        };
        let stamp = self.timestamp.as_ref().map(|stamp| stamp.read(request.headers)).transpose()?;
        let params = if self.message.has(&Part::TwilioParams) { twilio_params(request.form) } else { String::new() };
        let values = Values {
            body: request.body,
            timestamp: stamp.map_or("", |(text, _)| text),
            id: header(&self.id)?,
            nonce: header(&self.nonce)?,
            method: request.method,
            params,
        };
        Ok((values, stamp.map(|(_, secs)| secs)))
    }

    fn bases(&self, request: &Request<'_>, url: &str) -> Vec<Base> {
        if !self.is_over_url() {
            return vec![Base::default()];
        }
        let with_plivo = |url: String| {
            if !self.message.has(&Part::PlivoV3Base) {
                return vec![Base { url, ..Base::default() }];
            }
            let all = plivo_v3_bases(request, &url).into_iter().enumerate();
            all.map(|(nth, plivo_v3)| Base { url: url.clone(), plivo_v3, nth }).collect()
        };
        let more = if self.message.has(&Part::TwilioParams) { node_spellings(url) } else { vec![] };
        variants(url).into_iter().chain(more).flat_map(with_plivo).collect()
    }

    /// The headers re-signed for another URL, method and form; timestamps and nonces stay.
    pub(super) fn resign(
        &self,
        keys: &Keys,
        received: &Request<'_>,
        forwarded: &Request<'_>,
    ) -> Vec<(HeaderName, HeaderValue)> {
        let current = || Some((self.candidates(keys, received).ok()?.into_iter().next()?, Base::default()));
        let fitting = self.matching_key(keys, received).ok().map(|matching| (matching.key, matching.base));
        let Some(((algorithm, key), fitted)) = fitting.or_else(current) else { return vec![] };
        let mut url = without_fragment(forwarded.url).to_owned();
        // A handshake signed as wss:// is also checked as wss:// by the app.
        if fitted.url.starts_with("ws") {
            url = url.replacen("http", "ws", 1);
        }
        let as_it_came = Request { headers: received.headers, url: &url, ..*forwarded };
        let Ok((values, _)) = self.values(&as_it_came) else { return vec![] };
        let mut bases = plivo_v3_bases(&as_it_came, &url);
        let plivo_v3 = bases.swap_remove(fitted.nth.min(bases.len() - 1));
        let base = Base { url: url.clone(), plivo_v3, nth: 0 };
        let message = self.message.fill(&values, &base);
        let shown = self.signature.iter().filter(|shown| received.headers.contains_key(&shown.header));
        let signed = shown.filter_map(|shown| {
            let tag = self.algorithm_of(algorithm, shown).sign(&key, &message)?;
            let text = format!("{}{}", shown.prefix, self.encoding.encode(tag.as_ref()));
            Some((HeaderName::try_from(&shown.header).ok()?, HeaderValue::try_from(text).ok()?))
        });
        signed.collect()
    }
}
