//! What must hold of any bytes at all. Each target is a plain function, so that a test, a loop and a fuzzer can call it.
//!
//! Targets of two parts take the first line as the one and the rest as the other.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD as BASE64_URL};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use ring::{digest, hmac};
use ringfence::admin::auth::{Claims, mint};
use ringfence::call::{Direction, EndProof, Event};
use ringfence::config;
use ringfence::ids::{AccountName, Alias, BusinessId, CallId, ID_BYTES_MAX, RejectionId, mask_number};
use ringfence::policy::{Business, CallAttributes};
use ringfence::provider::Registry;
use ringfence::provider::description::{Description, List, MessageAttributes};
use ringfence::provider::json::{self, Read};
use ringfence::provider::path::{PathPattern, percent_decode};
use ringfence::provider::render::{Target, fill_json, render};
use ringfence::provider::secret::Secret;
use ringfence::provider::select::{Document, Message, Predicate, Selector};
use ringfence::provider::sign::{Keys, Request, Signature, SignatureError, Verification};
use ringfence::proxy::route::{may_create, operation};
use ringfence::store::AppCallback;
use ringfence::token::Keys as TokenKeys;
use ringfence_simulator::sign as simulated;
use serde_json::Value;

/// A target: panics where a property does not hold.
pub type Check = fn(&[u8]);

/// Every target, by the name of its folder in `tests/fixtures/fuzz`.
pub const ALL: &[(&str, Check)] = &[
    ("webhook", webhook),
    ("signature", signature),
    ("scheme", scheme),
    ("config", config),
    ("description", description),
    ("selector", selector),
    ("template", template),
    ("path", path),
    ("token", token),
    ("answer", answer),
    ("xml", xml),
    ("route", route),
    ("id", id),
    ("record", record),
    ("json", json),
];

const SECRET: &str = "a secret that no input knows: 7d1f0c52";
const NOW_SECS: i64 = 1_770_000_000;
const FORM: &str = "application/x-www-form-urlencoded";

/// First line, and what follows it.
fn two_parts(data: &[u8]) -> (String, &[u8]) {
    let (first, rest) = match data.iter().position(|b| *b == b'\n') {
        Some(end) => (&data[..end], &data[end + 1..]),
        None => (data, &[][..]),
    };
    (String::from_utf8_lossy(first).into_owned(), rest)
}

fn registry() -> &'static Registry {
    static REGISTRY: std::sync::OnceLock<Registry> = std::sync::OnceLock::new();
    REGISTRY.get_or_init(|| Registry::new(&[]).unwrap())
}

fn pairs(text: &str) -> Vec<(String, String)> {
    form_urlencoded::parse(text.as_bytes()).into_owned().collect()
}

// === what is read off any message is fit to be kept ===

fn sound_aliases(aliases: &[Alias]) {
    for Alias { kind, id } in aliases {
        assert!((1..=ID_BYTES_MAX).contains(&id.len()) && !id.chars().any(char::is_control), "{kind} = {id:?}");
    }
    let mut kinds: Vec<&String> = aliases.iter().map(|a| &a.kind).collect();
    kinds.dedup();
    assert_eq!(kinds.len(), aliases.len(), "one id of a kind: {aliases:?}");
}

fn sound_attributes(attributes: &MessageAttributes) {
    for fact in [&attributes.agent, &attributes.own_number, &attributes.other_number].into_iter().flatten() {
        assert!((1..=256).contains(&fact.len()), "{fact:?}");
    }
}

fn sound_event(event: Option<Event>, expected: EndProof) {
    if let Some(Event::Ended(_, proof)) = event {
        assert_eq!(proof, expected, "the proof is the reader's word, never the message's");
    }
}

/// Path and query, then the body of a webhook.
pub fn webhook(data: &[u8]) {
    let (path_and_query, body) = two_parts(data);
    let (path, query) = path_and_query.split_once('?').unwrap_or((&path_and_query, ""));
    let query = pairs(query);
    let mut headers = HeaderMap::new();
    if let Ok(token) = HeaderValue::from_bytes(&data[..data.len().min(40)]) {
        headers.insert(HeaderName::from_static("i-twilio-idempotency-token"), token);
    }
    for content_type in [Some("application/json"), Some(FORM), None] {
        let document = Document::decode(content_type, body);
        assert_eq!(document, Document::decode(content_type, body));
        for provider in registry().all() {
            for webhook in &provider.webhooks {
                let captures = webhook.paths.iter().find_map(|p| p.captures(path)).unwrap_or_default();
                let message = Message { body: &document, query: &query, path: &captures, headers: &headers };
                sound_aliases(&webhook.ids.read(&message));
                sound_attributes(&webhook.attributes.read(&message, Direction::Inbound));
                let event = webhook.events.iter().find(|e| e.when.is_empty() || e.when.holds(&message));
                sound_event(event.and_then(|e| e.state.as_ref()?.read(&message, EndProof::Webhook)), EndProof::Webhook);
                let _ = webhook.direction.as_ref().and_then(|d| d.read(&message));
                for part in &webhook.dedupe {
                    assert!(part.text(&message).is_none() || part.exists(&message));
                }
            }
        }
    }
}

// === signatures ===

const URL: &str = "https://hooks.example.test/hook?x=1";

/// Checks a POST at `url` by a preset.
fn verified(
    preset: &str,
    keys: &Keys,
    url: &str,
    shown: &[(&str, &str)],
    body: &[u8],
    form: Option<&[(String, String)]>,
) -> Result<Verification, SignatureError> {
    let mut headers = HeaderMap::new();
    for (name, value) in shown {
        // What no header can be reaches no verifier.
        if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
            headers.append(HeaderName::try_from(*name).unwrap(), value);
        }
    }
    let request = Request { method: "POST", url, headers: &headers, body, form };
    Signature::preset(preset).unwrap().verify(keys, &request, NOW_SECS)
}

fn holds(checked: &Result<Verification, SignatureError>) -> bool {
    matches!(checked, Ok(Verification::Valid))
}

fn fuzz_keys() -> Keys {
    let secrets = vec![Secret::new("an older one"), Secret::new(SECRET)];
    let named = BTreeMap::from([("key_1".to_owned(), Secret::new(SECRET))]);
    Keys { tokens: secrets.clone(), secrets, named }
}

/// A signature header, then the body that it is for. `SIGN` in the header stands for a signature that holds.
pub fn signature(data: &[u8]) {
    let (header, body) = two_parts(data);
    let keys = fuzz_keys();
    let older = Keys { secrets: keys.secrets[..1].to_vec(), ..Keys::default() };
    let elevenlabs = |keys: &Keys, header: &str, body: &[u8]| {
        holds(&verified("elevenlabs", keys, URL, &[("elevenlabs-signature", header)], body, None))
    };

    let stamp = header.split(',').find_map(|p| p.trim().strip_prefix("t="));
    let stamp_secs = stamp.and_then(|s| s.parse::<i64>().ok());
    let made = simulated::elevenlabs(SECRET, stamp_secs.unwrap_or(NOW_SECS), body);
    let good = made.split_once("v0=").unwrap().1;
    let signed = header.replace("SIGN", good);
    if elevenlabs(&keys, &signed, body) {
        assert!(header.contains("SIGN"), "{header:?} was guessed");
        let age_secs = NOW_SECS.saturating_sub(stamp_secs.expect("no stamp, no signature"));
        assert!(age_secs.abs() <= 1800, "{age_secs} s old");
        let other = [body, b" "].concat();
        assert!(!elevenlabs(&keys, &signed, &other), "another body");
        assert!(!elevenlabs(&older, &signed, body), "another secret");
    }
    assert!(!elevenlabs(&keys, &header, body), "{header:?}");
    assert!(!elevenlabs(&Keys::default(), &signed, body), "without a secret nothing holds");
    assert!(elevenlabs(&keys, &simulated::elevenlabs(SECRET, NOW_SECS, body), body));

    let text = String::from_utf8_lossy(body);
    let (url, form_text) = text.split_once('\n').unwrap_or((&text, ""));
    let url = if ["http", "https", "ws", "wss"].contains(&url.split("://").next().unwrap_or_default()) {
        url.to_owned()
    } else {
        format!("https://{url}") // The caller's: public_url is one of these.
    };
    let form = pairs(form_text);
    let settings = "x-twilio-webhooks-signature-settings";
    let url = url.split('#').next().unwrap();
    for form in [Some(form.as_slice()), None] {
        for shown in
            [&[("x-twilio-signature", header.as_str())][..], &[("x-twilio-signature", &header), (settings, &header)]]
        {
            assert!(!holds(&verified("twilio", &keys, url, shown, body, form)), "{header:?} was guessed");
            assert!(
                !holds(&verified("twilio", &Keys::default(), url, shown, body, form)),
                "without a key nothing holds"
            );
        }
    }
    let good = simulated::twilio(SECRET, url, &form);
    let shown = [("x-twilio-signature", good.as_str())];
    assert!(holds(&verified("twilio", &keys, url, &shown, body, Some(&form))), "{url:?}");
    let more = [form.clone(), vec![("Injected".to_owned(), "1".to_owned())]].concat();
    assert!(!holds(&verified("twilio", &keys, url, &shown, body, Some(&more))), "a field more");
    // What goes on under another URL holds there, and under no third one.
    let headers = HeaderMap::from_iter([(HeaderName::from_static("x-twilio-signature"), good.parse().unwrap())]);
    let came = Request { method: "POST", url, headers: &headers, body, form: Some(&form) };
    let goes = Request { url: URL, ..came };
    let anew = Signature::preset("twilio").unwrap().resign(&keys, &came, &goes);
    let anew = anew[0].1.to_str().unwrap();
    assert!(holds(&verified("twilio", &keys, URL, &[("x-twilio-signature", anew)], body, Some(&form))));
    let third = [("x-twilio-signature", anew)];
    assert!(!holds(&verified("twilio", &keys, "https://third.example.test/", &third, body, Some(&form))));
}

/// A header, then a body: nobody guesses a signature of any scheme, and one that holds does so for no other body and with no bit of it
/// changed.
pub fn scheme(data: &[u8]) {
    let (header, body) = two_parts(data);
    let keys = fuzz_keys();
    for preset in Signature::presets().filter(|name| *name != "none") {
        let shown: Vec<(&str, &str)> = SIGNATURE_HEADERS.iter().map(|name| (*name, header.as_str())).collect();
        for form in [None, Some(pairs(&header))] {
            let checked = verified(preset, &keys, URL, &shown, body, form.as_deref());
            assert!(!holds(&checked), "{preset}: {header:?} was guessed");
        }
    }
    let flip = data.iter().fold(data.len(), |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
    let other = [body, b"0"].concat();
    for (preset, secret, make) in MAKERS {
        let keys = Keys { secrets: vec![Secret::new(secret)], ..Keys::default() };
        for (changed, expected) in [(None, true), (Some(flip), false)] {
            let made = make(body, changed);
            let shown: Vec<(&str, &str)> = made.iter().map(|(name, value)| (*name, value.as_str())).collect();
            assert_eq!(holds(&verified(preset, &keys, URL, &shown, body, None)), expected, "{preset}: {shown:?}");
            assert!(!holds(&verified(preset, &keys, URL, &shown, &other, None)), "{preset}: another body");
        }
    }
}

/// Every header that a preset reads.
const SIGNATURE_HEADERS: [&str; 20] = [
    "authorization",
    "x-ringfence-token",
    "x-vapi-secret",
    "dg-token",
    "elevenlabs-signature",
    "x-twilio-signature",
    "x-twilio-webhooks-signature-settings",
    "x-signalwire-signature",
    "x-signalwire-sha256-signature",
    "x-plivo-signature-v3",
    "x-plivo-signature-ma-v3",
    "x-plivo-signature-v3-nonce",
    "x-retell-signature",
    "x-signature",
    "x-timestamp",
    "x-webhook-signature",
    "webhook-id",
    "webhook-signature",
    "webhook-timestamp",
    "telnyx-signature-ed25519",
];

/// Signs a body now; with a number, one bit of the signature is changed.
type Maker = fn(&[u8], Option<usize>) -> Vec<(&'static str, String)>;

/// Written apart from the program's own code: preset, secret, how it signs.
const MAKERS: [(&str, &str, Maker); 7] = [
    ("bland", SECRET, |body, flip| vec![("x-webhook-signature", hex::encode(tag(&[body], flip)))]),
    ("vapi", SECRET, |body, flip| {
        let stamp = NOW_SECS.to_string();
        let signature = hex::encode(tag(&[stamp.as_bytes(), b".", body], flip));
        vec![("x-signature", signature), ("x-timestamp", stamp)]
    }),
    ("retell", SECRET, |body, flip| {
        let stamp = (NOW_SECS * 1000).to_string();
        let signature = hex::encode(tag(&[body, stamp.as_bytes()], flip));
        vec![("x-retell-signature", format!("v={stamp},d={signature}"))]
    }),
    ("signalwire_swml", SECRET, |body, flip| {
        vec![("x-signalwire-sha256-signature", hex::encode(tag(&[URL.as_bytes(), body], flip)))]
    }),
    ("telnyx", "A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=", |body, flip| {
        let seed: Vec<u8> = (0..32).collect();
        let pair = ring::signature::Ed25519KeyPair::from_seed_unchecked(&seed).unwrap();
        let stamp = NOW_SECS.to_string();
        let signed = pair.sign(&[stamp.as_bytes(), b"|", body].concat());
        let signature = BASE64.encode(flipped(signed.as_ref().to_vec(), flip));
        vec![("telnyx-signature-ed25519", signature), ("telnyx-timestamp", stamp)]
    }),
    ("vonage", SECRET, |body, flip| {
        let hash = hex::encode(digest::digest(&digest::SHA256, body));
        let claims = serde_json::json!({"iss": "Vonage", "iat": NOW_SECS, "payload_hash": hash});
        vec![("authorization", format!("Bearer {}", jwt(&claims, flip)))]
    }),
    ("livekit", SECRET, |body, flip| {
        let hash = BASE64.encode(digest::digest(&digest::SHA256, body));
        let claims = serde_json::json!({"iss": "key_1", "exp": NOW_SECS + 300, "sha256": hash});
        vec![("authorization", jwt(&claims, flip))]
    }),
];

fn flipped(mut bytes: Vec<u8>, flip: Option<usize>) -> Vec<u8> {
    if let Some(bit) = flip {
        let at = bit / 8 % bytes.len();
        bytes[at] ^= 1 << (bit % 8);
    }
    bytes
}

fn tag(message: &[&[u8]], flip: Option<usize>) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    flipped(hmac::sign(&key, &message.concat()).as_ref().to_vec(), flip)
}

fn jwt(claims: &Value, flip: Option<usize>) -> String {
    let message = format!("{}.{}", BASE64_URL.encode(r#"{"alg":"HS256"}"#), BASE64_URL.encode(claims.to_string()));
    format!("{message}.{}", BASE64_URL.encode(tag(&[message.as_bytes()], flip)))
}

/// A config file.
pub fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    // Secrets are read from the files that a config names; a fuzzer must not name devices.
    if text.contains("/dev") || text.contains("/proc") {
        return;
    }
    let loaded = config::load(&text, std::path::Path::new("/nowhere"), &|_| None);
    assert_eq!(loaded.config.is_none(), loaded.has_errors(), "usable, or an error says why not");
    for d in &loaded.diagnostics {
        let context = d.context.as_ref().map(|(span, _)| span);
        for span in d.span.iter().chain(context) {
            assert!(span.start <= span.end && span.end <= text.len(), "{d:?}");
            assert!(text.is_char_boundary(span.start) && text.is_char_boundary(span.end), "{d:?}");
        }
        assert!(!d.title.is_empty() && d.code.len() == 4, "{d:?}");
    }
    let shown = config::diagnostics::render(&loaded.diagnostics, "a.toml", &text);
    config::diagnostics::render_coloured(&loaded.diagnostics, "a.toml", &text);
    let inline = loaded.diagnostics.iter().filter(|d| d.code == config::diagnostics::INLINE_SECRET);
    for secret in inline.filter_map(|d| text.get(d.span.clone()?)) {
        let secret = secret.trim_matches(['"', '\'', '\n']);
        // Short texts, and such as stand elsewhere too, may be in a title or on another line by chance.
        if secret.len() >= 16 && !secret.contains('\n') && text.matches(secret).count() == 1 {
            assert!(!shown.contains(secret), "a secret is shown:\n{shown}");
        }
    }
}

/// A provider description.
pub fn description(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match Description::parse(&text) {
        Err(why) => assert!(!why.is_empty() && why.iter().all(|one| !one.trim().is_empty())),
        Ok(it) => {
            assert!(it.mount.starts_with('/') && !it.mount.ends_with('/'));
            let body = Document::Json(serde_json::json!({"a": [{"k": "v", "n": 1}], "status": "queued"}));
            read_answer(&it, &body);
            for one in &it.operations {
                may_create(&it, &one.method, one.path.as_str());
            }
            let path = BTreeMap::new();
            let headers = HeaderMap::new();
            let message = Message { body: &body, query: &[], path: &path, headers: &headers };
            for one in &it.webhooks {
                sound_aliases(&one.ids.read(&message));
                sound_attributes(&one.attributes.read(&message, Direction::Inbound));
            }
            fill_json(&it.refusal.body, &|name| name.into());
        }
    }
}

/// A selector, then a body.
pub fn selector(data: &[u8]) {
    let (written, body) = two_parts(data);
    let Ok(selector) = Selector::parse(&written) else {
        let condition = toml::Table::from_iter([(written, "*".into())]);
        assert!(condition.try_into::<Predicate>().is_err(), "an unsound selector in a condition");
        return;
    };
    let path = BTreeMap::from([("account_sid".to_owned(), "AC1".to_owned())]);
    let query = pairs("a=1&b=2");
    let mut headers = HeaderMap::new();
    headers.insert("xi-api-key", HeaderValue::from_static("k"));
    for content_type in [Some("application/json"), Some(FORM), Some("text/xml")] {
        let document = Document::decode(content_type, body);
        let message = Message { body: &document, query: &query, path: &path, headers: &headers };
        let text = selector.text(&message);
        assert!(text.is_none() || selector.exists(&message), "what has a text exists");
        assert!(selector.list(&document).is_none() || matches!(document, Document::Json(_)));
        let holds = |wanted: &str| {
            let condition = toml::Table::from_iter([(written.clone(), wanted.into())]);
            condition.try_into::<Predicate>().unwrap().holds(&message)
        };
        assert_eq!((holds("*"), holds("!")), (selector.exists(&message), !selector.exists(&message)));
        if let Some(text) = text.as_deref().filter(|t| !["*", "!"].contains(t)) {
            assert!(holds(text));
        }
        // Plain names say the same as a JSON pointer does.
        let names = written.strip_prefix("body.").filter(|n| !n.contains(['[', ']', '|', '~', '/']) && n.trim() == *n);
        if let (Some(names), Document::Json(value)) = (names, &document) {
            let at = value.pointer(&format!("/{}", names.replace('.', "/"))).filter(|_| is_by_name(value, names));
            let expected = match at {
                Some(Value::String(text)) => Some(text.clone()),
                Some(scalar @ (Value::Number(_) | Value::Bool(_))) => Some(scalar.to_string()),
                _ => None,
            };
            assert_eq!(text.as_deref(), expected.as_deref(), "{written}");
        }
    }
}

/// A pointer also counts through lists, a name does not.
fn is_by_name(value: &Value, names: &str) -> bool {
    let mut at = Some(value);
    names.split('.').all(|name| {
        let here = at.and_then(Value::as_object);
        at = here.and_then(|object| object.get(name));
        here.is_some()
    })
}

/// A template, then a value for every name in it.
pub fn template(data: &[u8]) {
    let (template, value) = two_parts(data);
    let value = String::from_utf8_lossy(value).into_owned();
    let with = |template: &str, target| render(template, target, |_| Some(value.as_str().into()));
    for target in [Target::Url, Target::Plain, Target::Xml] {
        with(&template, target).expect("every name has a value");
        if let Err(missing) = render(&template, target, |_| None) {
            assert!(template.contains(&format!("{{{}}}", missing.0)));
        }
    }
    let url = with("{v}", Target::Url).unwrap();
    assert!(url.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%".contains(&b)), "{url}");
    assert_eq!(percent_decode(&url), value);
    let xml = with("<a b=\"{v}\">{v}</a>", Target::Xml).unwrap();
    let parsed = roxmltree::Document::parse(&xml).unwrap_or_else(|e| panic!("{e}: {xml:?}"));
    let printable = |c: char| !c.is_control() && !c.is_whitespace() && !matches!(c, '\u{fffe}' | '\u{ffff}');
    let only = |text: &str| text.chars().filter(|c| printable(*c)).collect::<String>();
    let root = parsed.root_element();
    assert_eq!(root.children().filter(|n| n.is_element()).count(), 0, "a value opens no element");
    assert_eq!(only(root.text().unwrap_or_default()), only(&value));
    assert_eq!(only(root.attribute("b").unwrap()), only(&value));
    let json = serde_json::json!({ template.as_str(): [template.as_str(), {"v": "{v}"}], "n": 1 });
    let filled = fill_json(&json, &|_| Value::String(value.clone()));
    if template != "n" {
        assert_eq!(
            filled[template.as_str()][1]["v"],
            Value::String(value.clone()),
            "keys stay, values are put in whole"
        );
    }
}

/// A pattern, then a path.
pub fn path(data: &[u8]) {
    #[derive(serde::Deserialize)]
    struct Written {
        p: PathPattern,
    }
    let (pattern, path) = two_parts(data);
    let path = String::from_utf8_lossy(path);
    let Ok(Written { p }) = toml::Table::from_iter([("p".to_owned(), pattern.clone().into())]).try_into() else {
        // A parenthesis may be left open, or stand for too many paths.
        assert!(!pattern.starts_with('/') || pattern.contains('('), "{pattern:?}");
        return;
    };
    assert_eq!(p.as_str(), pattern);
    let Some(captures) = p.captures(&*path) else { return };
    if !pattern.contains('(') && !pattern.starts_with("/**") {
        assert_eq!(path.split('/').count(), pattern.split('/').count(), "segments fit one to one");
    }
    assert!(captures.values().all(|value| !value.is_empty()), "{captures:?}");
    let escaped: Vec<String> = path
        .split('/')
        .map(|s| {
            percent_encoding::utf8_percent_encode(&percent_decode(s), percent_encoding::NON_ALPHANUMERIC).to_string()
        })
        .collect();
    assert_eq!(p.captures(escaped.join("/").as_str()), Some(captures), "another spelling of the same path");
}

/// A token as it is; or, on two lines, header and claims of a token that is then signed in every way but the right one, and
/// in the right one.
pub fn token(data: &[u8]) {
    let secret = Secret::new(SECRET);
    let keys = TokenKeys::of_secrets(vec![secret.clone()]);
    let text = String::from_utf8_lossy(data);
    assert!(keys.operator(&text, NOW_SECS).is_err(), "{text:?} was guessed");

    let (header, claims) = two_parts(data);
    let message = format!("{}.{}", BASE64_URL.encode(&header), BASE64_URL.encode(claims));
    let signed = |key: &[u8], algorithm| {
        let tag = hmac::sign(&hmac::Key::new(algorithm, key), message.as_bytes());
        format!("{message}.{}", BASE64_URL.encode(tag))
    };
    let digest = BASE64_URL.encode(digest::digest(&digest::SHA256, message.as_bytes()));
    let forged = [
        message.clone(),
        format!("{message}."),
        format!("{message}.{digest}"),
        signed(b"", hmac::HMAC_SHA256),
        signed(b"another secret", hmac::HMAC_SHA256),
        signed(SECRET.as_bytes(), hmac::HMAC_SHA512),
        signed(SECRET.as_bytes(), hmac::HMAC_SHA384),
        format!("{}.", signed(SECRET.as_bytes(), hmac::HMAC_SHA256)),
    ];
    for token in forged {
        assert!(
            keys.operator(&token, NOW_SECS).is_err() && keys.authenticate(&token, NOW_SECS, &[]).is_err(),
            "{token}"
        );
    }
    if let Ok(read) = keys.operator(&signed(SECRET.as_bytes(), hmac::HMAC_SHA256), NOW_SECS) {
        let header: Value = serde_json::from_str(&header).unwrap();
        assert_eq!(header["alg"], "HS256");
        assert!(header.get("crit").is_none() && header.get("b64").is_none(), "{header}");
        assert!(read.expires_at >= NOW_SECS - 10, "expired: {}", read.expires_at);
        let claims: Value = serde_json::from_slice(claims).unwrap();
        let sub = claims["sub"].as_str().map_or_else(|| claims["sub"].to_string(), str::to_owned);
        assert_eq!((claims["exp"].as_f64().map(|exp| exp as i64), sub), (Some(read.expires_at), read.name));
    }
    let claims = Claims { sub: format!("a{text}"), exp: 1 << 40, businesses: vec![], scope: "metrics".to_owned() };
    let minted = mint(&secret, &claims).unwrap();
    assert_eq!(keys.operator(&minted, NOW_SECS).unwrap().name, claims.sub);
    let (rest, tag) = minted.rsplit_once('.').unwrap();
    let flipped = if tag.starts_with('A') { 'B' } else { 'A' };
    assert!(keys.operator(&format!("{rest}.{flipped}{}", &tag[1..]), NOW_SECS).is_err());
}

fn read_answer(provider: &Description, body: &Document) {
    let (path, headers) = (BTreeMap::new(), HeaderMap::new());
    let message = Message { body, query: &[], path: &path, headers: &headers };
    for one in &provider.operations {
        one.success.unless.holds(&message);
        sound_event(one.phase.read(&message, EndProof::Provider), EndProof::Provider);
        sound_aliases(&one.ids.read(&message));
    }
    for limit in &provider.limits {
        limit.when.holds(&message);
    }
    if let Some(lookup) = &provider.lookup {
        sound_event(lookup.state.read(&message, EndProof::Provider), EndProof::Provider);
        sound_aliases(&lookup.ids.read(&message));
        sound_attributes(&lookup.attributes.read(&message, Direction::Outbound));
        lookup.phone.holds(&message);
    }
    for list in [&provider.list, &provider.find].into_iter().flatten() {
        read_list(list, body);
    }
    if let Some(count) = &provider.count {
        let _ = count.value.text(&message).map(|t| t.parse::<usize>());
    }
    if let Some(front) = &provider.front {
        sound_aliases(&front.ids.read(&message));
    }
    for means in provider.hang_up_methods.values() {
        means.over.holds(&message);
    }
}

fn read_list(list: &List, body: &Document) {
    for item in list.items.list(body).into_iter().flatten() {
        let (item, path, headers) = (Document::Json(item.clone()), BTreeMap::new(), HeaderMap::new());
        let message = Message { body: &item, query: &[], path: &path, headers: &headers };
        list.skip.holds(&message);
        let id = list.id.from.text(&message).and_then(|id| Alias::new(&list.id.kind, &id));
        sound_aliases(&id.into_iter().collect::<Vec<_>>());
        sound_event(list.state.read(&message, EndProof::Provider), EndProof::Provider);
        sound_attributes(&list.attributes.read(&message, Direction::Inbound));
        let _ = list.direction.as_ref().and_then(|d| d.read(&message));
        let _ = list.created_at.as_ref().and_then(|s| s.text(&message)).map(|t| jiff::fmt::rfc2822::parse(&t));
    }
}

/// An answer of a provider: to a create, a look-up, a list, a count.
pub fn answer(data: &[u8]) {
    for content_type in [Some("application/json"), Some("text/xml"), None] {
        let body = Document::decode(content_type, data);
        for provider in registry().all() {
            read_answer(provider, &body);
        }
    }
}

/// The XML of register-call, or what claims to be it.
pub fn xml(data: &[u8]) {
    let text = String::from_utf8_lossy(data).into_owned();
    let (body, path, headers) = (Document::Xml(text.clone()), BTreeMap::new(), HeaderMap::new());
    let message = Message { body: &body, query: &[], path: &path, headers: &headers };
    let read = |selector: &str| Selector::parse(selector).unwrap().text(&message).map(|t| t.into_owned());
    let id = read("body.Parameter[name=conversation_id].value");
    if let Some(id) = &id {
        assert!(text.contains("Parameter") && text.contains("value"), "{id:?} out of nothing");
        // No reference of the text's own making is ever resolved: a value is never longer than what was written.
        assert!(id.len() <= text.len(), "{} bytes out of {}", id.len(), text.len());
    }
    if text.contains("<!DOCTYPE") && id.is_some() {
        panic!("a document type was taken");
    }
    for selector in ["body.Stream.url", "body.Sid", "body.Status", "body.Response", "body.x[a=b].c.d"] {
        read(selector);
    }
}

/// Another spelling of a create's path, the request's method before it: what a lenient server may take for a create is gated.
pub fn route(data: &[u8]) {
    let (method, path) = two_parts(data);
    let (Ok(method), Ok(path)) = (method.parse::<Method>(), std::str::from_utf8(path)) else { return };
    let legal = |b: u8| (0x21..=0x7e).contains(&b) && !b"\"<>\\#?".contains(&b);
    if !path.starts_with('/') || !path.bytes().all(legal) {
        return; // The edge lets no other path in.
    }
    let (body, none, headers) = (Document::Empty, BTreeMap::new(), HeaderMap::new());
    let message = Message { body: &body, query: &[], path: &none, headers: &headers };
    for provider in registry().all() {
        let gated = may_create(provider, &method, path);
        let created = operation(provider, &method, path, &message);
        assert_eq!(gated, created.is_some(), "{method} {path}: read as a create, then not taken for one");
        if lenient_readings(path).iter().any(|segments| is_create(&provider.name, &method, segments)) {
            assert!(gated, "{method} {path} of {} goes past the gate", provider.name);
        }
        if method != Method::POST && !method.as_str().eq_ignore_ascii_case("post") {
            assert!(!gated, "{method} {path}");
        }
    }
}

/// How servers more lenient than any known one read a path: escapes undone before or after it is cut into segments, empty
/// and dot segments gone, parameters after a semicolon ignored, case too.
fn lenient_readings(path: &str) -> [Vec<String>; 2] {
    let segments = |path: &str, decode: bool| {
        let mut kept: Vec<String> = Vec::new();
        for segment in path.split('/') {
            let segment = if decode { percent_decode(segment) } else { segment.into() };
            let segment = segment.split(';').next().unwrap_or_default().to_ascii_lowercase();
            match segment.as_str() {
                "" | "." => {}
                ".." => drop(kept.pop()),
                _ => kept.push(segment),
            }
        }
        kept
    };
    [segments(path, true), segments(&percent_decode(path), false)]
}

fn is_create(provider: &str, method: &Method, segments: &[String]) -> bool {
    // An extension says how Twilio answers.
    let bare =
        |last: &'_ str| last.split_once('.').filter(|(_, kind)| !kind.is_empty()).map(|(name, _)| name.to_owned());
    let last = segments.last().map(|last| bare(last).filter(|_| provider == "twilio").unwrap_or_else(|| last.clone()));
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let before = segments.split_last().map_or(&[][..], |(_, before)| before);
    method.as_str().eq_ignore_ascii_case("post")
        && matches!(
            (provider, before, last.as_deref().unwrap_or_default()),
            ("elevenlabs", _, "outbound-call" | "outbound_call")
                | ("elevenlabs", ["v1", "convai", "twilio"], "register-call")
                | ("twilio", [.., "accounts", _], "calls" | "outgoingcallerids")
                | ("twilio", [.., "accounts", _, "conferences", _], "participants")
                | ("twilio", ["v1" | "v2", "flows", _], "executions" | "engagements")
        )
}

/// An id or a telephone number.
pub fn id(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let masked = mask_number(&text);
    let (shown, chars): (Vec<char>, Vec<char>) = (masked.chars().collect(), text.chars().collect());
    if chars.len() < 9 {
        assert!(shown.iter().all(|c| *c == '•') && shown.len() == chars.len(), "{masked}");
    } else {
        assert_eq!(shown.len(), chars.len());
        assert!(shown[4..shown.len() - 2].iter().all(|c| *c == '•'), "{masked}: more than four and two are shown");
    }
    if let Ok(business) = BusinessId::parse(&text) {
        assert!(business.as_str() == text && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/'));
        assert!(AccountName::parse(&text).is_ok());
        HeaderValue::from_str(business.as_str()).expect("fit for a header");
    }
    if let Some(own) = CallId::parse(&text) {
        assert!(own.as_str() == text && text.starts_with("c_") && RejectionId::parse(&text).is_none());
    }
    if let Some(alias) = Alias::new("call_sid", &text) {
        sound_aliases(&[alias]);
    }
}

/// JSON as the store keeps it, and as `PUT /api/businesses/{id}` takes it.
pub fn record(data: &[u8]) {
    fn round<T: serde::de::DeserializeOwned + serde::Serialize + PartialEq + std::fmt::Debug>(data: &[u8]) {
        if let Ok(read) = serde_json::from_slice::<T>(data) {
            let written = serde_json::to_string(&read).unwrap();
            assert_eq!(serde_json::from_str::<T>(&written).unwrap(), read, "{written}");
        }
    }
    round::<Business>(data);
    round::<CallAttributes>(data);
    round::<AppCallback>(data);
    round::<Alias>(data);
    round::<Vec<(String, String)>>(data);
}

/// A JSON pointer, then JSON as anybody may write it.
pub fn json(data: &[u8]) {
    let (pointer, body) = two_parts(data);
    let strict = serde_json::from_slice::<Value>(body).ok().filter(|value| value.is_array() || value.is_object());
    let read = json::read(body);
    match (&strict, &read) {
        (Some(_), None) => panic!("JSON to the letter is not read"),
        // Numbers that no type holds, and what is too deep or too much, are read otherwise.
        (Some(strict), Some(read)) if !read.lenient && !read.cut => assert_eq!(*strict, read.value),
        _ => {}
    }
    if let Some(read) = &read {
        assert!(serde_json::from_str::<Value>(&read.value.to_string()).is_ok(), "what is kept of it can be read again");
    }
    let without = json::read_without(body, &["full_audio"]);
    assert_eq!(read.is_some(), without.is_some(), "leaving out hides no fault");
    let Some(with) = json::put(body, &pointer, &Value::from("put")) else { return };
    assert!(with.len() >= body.len().min(5), "nothing but the place is changed");
    if let Some(Read { cut: false, .. }) = &read
        && pointer.matches('/').count() < 50
    {
        let again = json::read(&with).map(|read| read.value);
        let put = again
            .as_ref()
            .and_then(|value| pointer.split('/').skip(1).try_fold(value, |at, key| at.as_object()?.get(key)));
        assert_eq!(put, Some(&Value::from("put")), "what was put is where it was put");
    }
}
