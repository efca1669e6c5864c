//! Webhooks by what they are signed with: subaccounts' tokens, and every scheme that a provider's file can name.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD as BASE64_URL};
use ring::{digest, hmac};
use ringfence::call::Outcome;
use ringfence::config;
use ringfence::ids::CallId;
use ringfence_simulator::{Fault, FaultKind, Operation, Provider, SimSettings, Subaccount, sign};
use serde_json::{Value, json};

use crate::support::hooks::{FORM, STATUS, VOICE, call_form, encoded, inbox, now_secs, pairs};
use crate::support::stage::{Answer, Behind, Setup, Stage};

const SUB: &str = "AC0000000000000000000000000000000a";
const OTHERS: &str = "AC0000000000000000000000000000000b";
const TOKEN: &str = "the token of the subaccount";

fn with_subaccounts() -> Setup {
    let mine = Subaccount { auth_token: TOKEN.to_owned(), ..Subaccount::default() };
    let others = Subaccount { owner: Some("AC000000000000000000000000000000ff".to_owned()), ..mine.clone() };
    let subaccounts = [(SUB.to_owned(), mine), (OTHERS.to_owned(), others)].into();
    let sim = SimSettings { subaccounts, ..Setup::default().sim };
    let replace = vec![("sweep_ms = 100".to_owned(), "sweep_ms = 60000".to_owned())];
    Setup { sim, replace, ..Setup::default() }
}

/// Posts a form of an account, signed with a token.
async fn post(stage: &Stage, path: &str, account: &str, token: &str, form: &[(&str, &str)]) -> Answer {
    let form = [form, &[("AccountSid", account)]].concat();
    let url = stage.webhooks(path);
    let signature = sign::twilio(token, &url, &pairs(&form));
    stage.send("POST", &url, &[FORM, ("x-twilio-signature", &signature)], encoded(&form)).await
}

fn asked(stage: &Stage) -> u64 {
    stage.control.counts().account_requests
}

#[tokio::test(flavor = "multi_thread")]
async fn subaccounts_sign_with_their_own_token_which_is_asked_for_once() {
    let app = Behind::start().await;
    let stage = Stage::start(Setup { app: Some(app.url()), ..with_subaccounts() }).await;
    let form = |sid| call_form(sid, "inbound", "completed");
    assert_eq!(post(&stage, STATUS, SUB, TOKEN, &form("CA1")).await.status, 204);
    // The app's own check has the subaccount's token, too: what goes on is signed with it.
    stage.wait("the app has it", async || app.at(STATUS).len() == 1).await;
    let got = app.at(STATUS).pop().unwrap();
    let expected = sign::twilio(TOKEN, &stage.webhooks(STATUS), &got.form());
    assert_eq!(got.headers["x-twilio-signature"], expected.as_str());
    // Paths that no description knows are signed anew as well, and a handshake, which names no account.
    assert_eq!(post(&stage, "/my/sms", SUB, TOKEN, &[("MessageSid", "SM1")]).await.status, 200);
    let got = app.at("/my/sms").pop().unwrap();
    assert_eq!(
        got.headers["x-twilio-signature"],
        sign::twilio(TOKEN, &stage.webhooks("/my/sms"), &got.form()).as_str()
    );
    let recording = stage.webhooks("/my/recordings?RecordingSid=RE1");
    let signature = sign::twilio(TOKEN, &recording, &[]);
    stage.send("GET", &recording, &[("x-twilio-signature", &signature)], "").await;
    assert_eq!(app.at("/my/recordings")[0].headers["x-twilio-signature"], signature.as_str());
    // At once: they wait for one question.
    let many = (0..8).map(|n| {
        let (stage, sid) = (&stage, format!("CA2{n}"));
        async move { post(stage, STATUS, SUB, TOKEN, &call_form(&sid, "inbound", "completed")).await.status }
    });
    assert_eq!(futures_util::future::join_all(many).await, [204; 8]);
    assert_eq!(asked(&stage), 1);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_names_a_subaccount_falsely_is_refused_and_seldom_asked_for() {
    let stage = Stage::start(with_subaccounts()).await;
    let form = call_form("CA1", "inbound", "ringing");
    for (account, token, questions) in [
        (SUB, "a guess", 1),
        (SUB, "another guess", 1),
        (OTHERS, TOKEN, 2), // the provider shows its token, but it is below another account
        (OTHERS, TOKEN, 2),
        ("AC0000000000000000000000000000000c", TOKEN, 3), // there is none
        ("AC0000000000000000000000000000000c", TOKEN, 3),
        ("../../../v1/x?", TOKEN, 3), // no id at all
        ("", TOKEN, 3),
    ] {
        let answer = post(&stage, VOICE, account, token, &form).await;
        assert_eq!((answer.status, &answer.json()["error"]), (401, &"INVALID_SIGNATURE".into()), "{account}");
        assert_eq!(asked(&stage), questions, "{account}");
    }
    // Unsigned: nobody is asked.
    let unsigned = [form.clone(), vec![("AccountSid", "AC0000000000000000000000000000000d")]].concat();
    assert_eq!(stage.send("POST", &stage.webhooks(VOICE), &[FORM], encoded(&unsigned)).await.status, 401);
    assert_eq!(asked(&stage), 3);
    assert_eq!((stage.held().await, inbox(&stage).await.len()), (0, 0));
    // Three hundred a minute. One that was known before is not kept waiting by that.
    let mut statuses = Vec::new();
    for n in 0..310 {
        let account = format!("AC1111111111111111111111111111{n:04}");
        statuses.push(post(&stage, VOICE, &account, TOKEN, &form).await.status);
    }
    assert_eq!(asked(&stage), 300);
    assert_eq!((statuses[296], statuses[297], statuses[309]), (401, 503, 503));
    assert_eq!(post(&stage, STATUS, SUB, TOKEN, &call_form("CA9", "inbound", "completed")).await.status, 204);
    stage.clock.advance_ms(60_000);
    assert_eq!(post(&stage, VOICE, "AC11111111111111111111111111110309", TOKEN, &form).await.status, 401);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subaccounts_token_may_change_and_its_provider_be_away() {
    let stage = Stage::start(with_subaccounts()).await;
    let status = async |sid: &str, token: &str| {
        post(&stage, STATUS, SUB, token, &call_form(sid, "inbound", "completed")).await.status
    };
    let away = || {
        let everything =
            Fault { n: None, on: Operation::Get, ..Fault::next(Provider::Twilio, FaultKind::ServerError, 1) };
        stage.control.fault(everything);
    };
    away();
    let answer = post(&stage, STATUS, SUB, TOKEN, &call_form("CA1", "inbound", "completed")).await;
    assert_eq!((answer.status, &answer.json()["error"]), (503, &"SIGNATURE_UNCHECKED".into()), "it may come again");
    stage.control.clear_faults(None);
    assert_eq!(status("CA1", TOKEN).await, 503, "not asked again at once");
    stage.clock.advance_ms(5_000);
    assert_eq!(status("CA1", TOKEN).await, 204);
    stage.control.configure(|s| s.subaccounts.get_mut(SUB).unwrap().auth_token = "a new token".to_owned());
    assert_eq!(status("CA2", "a new token").await, 401, "asked for a moment ago");
    stage.clock.advance_ms(60_000);
    assert_eq!(status("CA2", "a new token").await, 204);
    assert_eq!(status("CA3", TOKEN).await, 401, "the old one counts no more");
    // After an hour it is asked for again; while nobody answers, what was known counts.
    stage.clock.advance_ms(3_600_000);
    away();
    assert_eq!(status("CA4", "a new token").await, 204);
    stage.control.clear_faults(None);
    stage.finish().await;
}

/// The parent's list does not have a subaccount's call, and below the parent's id it is unknown: it is asked for below its own, so
/// that its slot is not taken for free.
#[tokio::test(flavor = "multi_thread")]
async fn a_subaccounts_call_is_looked_up_below_its_own_id() {
    let app = Behind::start().await;
    let mut setup = Setup { app: Some(app.url()), replace: vec![], ..with_subaccounts() };
    let calls = [("CA00000000000000000000000000000007".to_owned(), "in-progress".to_owned())].into();
    setup.sim.subaccounts.get_mut(SUB).unwrap().calls = calls;
    let stage = Stage::start(setup).await;
    let sid = "CA00000000000000000000000000000007";
    assert_eq!(post(&stage, VOICE, SUB, TOKEN, &call_form(sid, "inbound", "ringing")).await.status, 200);
    assert_eq!(stage.held().await, 1);
    let looked = stage.control.counts().get_requests;
    stage.wait("it was looked up often", async || stage.control.counts().get_requests >= looked + 5).await;
    assert_eq!(stage.held().await, 1);
    // It is hung up there as well, and its end is found there.
    let call = stage.record(sid).await.unwrap().id;
    let answer = stage.send("POST", &stage.admin(&format!("/api/calls/{call}/hangup")), &[], "").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    stage.wait("its end is found", async || stage.held().await == 0).await;
    assert_eq!(stage.control.counts().hangups, 1);
    assert_eq!(stage.record(sid).await.unwrap().outcome, Some(Outcome::Completed));
    stage.finish().await;
}

// === a provider of one's own ===

const PROVIDER: &str = r#"
name              = "mine"
mount             = "/mine"
upstream          = "https://api.example.test"
longest_call_secs = 3600

[credentials]
header = "authorization"
value  = "Bearer none"

[refusal]
provider_429_code = "PROVIDER_429"
unknown_status    = 504
content_type      = "application/json"
words             = {}
body              = { message = "{message}" }
"#;

const SECRET: &str = "a secret of 32 bytes for the test";
const WHSEC: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// The public key of the seed 0, 1, … 31.
const PUBLIC: &str = "A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=";

fn webhook(name: &str, signature: &str) -> String {
    format!(
        "\n[[webhook]]\nname = {name:?}\npaths = [\"/hooks/{name}\"]\nsignature = {signature}\nanswer = {{ status = 200 }}\n[[webhook.event]]\nname = \"{name}\"\n"
    )
}

/// A folder with one provider's file.
struct Folder(PathBuf);

impl Folder {
    fn with(text: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("ringfence-signatures-{}", CallId::new()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("mine.toml"), text).unwrap();
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn tag(algorithm: hmac::Algorithm, message: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(algorithm, SECRET.as_bytes()), message.as_bytes()).as_ref().to_vec()
}

fn jwt(claims: &Value) -> String {
    let message = format!("{}.{}", BASE64_URL.encode(r#"{"alg":"HS256"}"#), BASE64_URL.encode(claims.to_string()));
    format!("{message}.{}", BASE64_URL.encode(tag(hmac::HMAC_SHA256, &message)))
}

/// The headers of a body that each provider signs now, for a URL.
fn signed(preset: &str, url: &str, body: &str) -> Vec<(&'static str, String)> {
    let (now, sha256) = (now_secs().to_string(), digest::digest(&digest::SHA256, body.as_bytes()));
    let hex256 = |message: &str| hex::encode(tag(hmac::HMAC_SHA256, message));
    match preset {
        "bland" => vec![("x-webhook-signature", hex256(body))],
        "vapi" => vec![("x-signature", hex256(&format!("{now}.{body}"))), ("x-timestamp", now)],
        "vapi_secret" => vec![("x-vapi-secret", SECRET.to_owned())],
        "retell" => vec![("x-retell-signature", format!("v={now}000,d={}", hex256(&format!("{body}{now}000"))))],
        "openai" => {
            let key = BASE64.decode(WHSEC.trim_start_matches("whsec_")).unwrap();
            let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
            let signature = BASE64.encode(hmac::sign(&key, format!("wh_1.{now}.{body}").as_bytes()));
            vec![
                ("webhook-id", "wh_1".to_owned()),
                ("webhook-signature", format!("v1,{signature}")),
                ("webhook-timestamp", now),
            ]
        }
        "telnyx" => {
            let seed: Vec<u8> = (0..32).collect();
            let pair = ring::signature::Ed25519KeyPair::from_seed_unchecked(&seed).unwrap();
            let signature = BASE64.encode(pair.sign(format!("{now}|{body}").as_bytes()));
            vec![("telnyx-signature-ed25519", signature), ("telnyx-timestamp", now)]
        }
        "vonage" => {
            let claims = json!({"iss": "Vonage", "iat": now_secs(), "payload_hash": hex::encode(sha256)});
            vec![("authorization", format!("Bearer {}", jwt(&claims)))]
        }
        "livekit" => {
            let claims = json!({"iss": "any", "exp": now_secs() + 300, "sha256": BASE64.encode(sha256)});
            vec![("authorization", jwt(&claims))]
        }
        "signalwire_swml" => vec![
            ("x-signalwire-signature", hex::encode(tag(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &format!("{url}{body}")))),
            ("x-signalwire-sha256-signature", hex256(&format!("{url}{body}"))),
        ],
        other => panic!("{other}"),
    }
}

const SCHEMES: [&str; 9] =
    ["bland", "vapi", "vapi_secret", "retell", "openai", "telnyx", "vonage", "livekit", "signalwire_swml"];

/// The app's own public address.
const ELSEWHERE: &str = "https://app.example.test";

/// A stage whose app has an address of its own, so that what goes on has to be signed anew.
fn elsewhere(setup: Setup) -> Setup {
    let forward = format!("forward_url = \"{}\"", setup.app.as_ref().unwrap());
    let both = format!("{forward}\npublic_url = \"{ELSEWHERE}\"");
    Setup { replace: [setup.replace, vec![(forward, both)]].concat(), ..setup }
}

/// Every scheme in one file: what is signed is taken, what was changed is not, and the app can check it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_provider_of_ones_own_names_how_it_signs() {
    let hooks: String = SCHEMES.iter().map(|name| webhook(name, &format!("{name:?}"))).collect();
    let folder = Folder::with(&format!("{PROVIDER}{hooks}"));
    let app = Behind::start().await;
    let account = format!(
        "[accounts.mine]\nwebhook_secrets = [{WHSEC:?}, {PUBLIC:?}, {SECRET:?}]\nwebhook_tokens = [{SECRET:?}]\n"
    );
    let root = format!("providers_dir = {:?}", folder.0);
    let stage =
        Stage::start(elsewhere(Setup { root, tables: account, app: Some(app.url()), ..Setup::default() })).await;
    for name in SCHEMES {
        let (path, body) = (format!("/hooks/{name}"), format!("{{\"of\":\"{name}\"}}"));
        let url = stage.webhooks(&path);
        let headers = signed(name, &url, &body);
        let headers: Vec<(&str, &str)> = [("content-type", "application/json")]
            .into_iter()
            .chain(headers.iter().map(|(k, v)| (*k, v.as_str())))
            .collect();
        let send = async |headers: &[(&str, &str)], body: &str| {
            stage.send("POST", &url, headers, body.to_owned()).await.status
        };
        if name != "vapi_secret" {
            assert_eq!(send(&headers, &body.replace("of", "oF")).await, 401, "{name}: another body");
        }
        for n in 1..headers.len().min(2) {
            let flipped = if headers[n].1.ends_with('0') { "1" } else { "0" };
            let mut other = headers.clone();
            let changed = format!("{}{flipped}", &headers[n].1[..headers[n].1.len() - 1]);
            other[n].1 = &changed;
            // Of two signatures one is enough.
            other.retain(|(header, _)| *header != "x-signalwire-sha256-signature");
            assert_eq!(send(&other, &body).await, 401, "{name}: {}", headers[n].0);
        }
        assert_eq!(send(&headers[..1], &body).await, 401, "{name}: unsigned");
        assert_eq!(send(&headers, &body).await, 200, "{name}");
        stage.wait("the app has it", async || app.at(&path).len() == 1).await;
        let got = app.at(&path).pop().unwrap();
        assert_eq!(got.body, body);
        for (header, value) in &headers[1..] {
            let shown = got.headers.get(*header).map(|v| v.to_str().unwrap());
            match name {
                "vapi_secret" => assert_eq!(shown, None, "a credential is not stored"),
                "signalwire_swml" => {
                    let anew = signed(name, &format!("{ELSEWHERE}{path}"), &body);
                    assert_eq!(shown, anew.iter().find(|(k, _)| k == header).map(|(_, v)| v.as_str()));
                }
                _ => assert_eq!(shown, Some(*value), "{name}: {header}"),
            }
        }
    }
    stage.finish().await;
}

/// Plivo's URL is signed with parameters and nonce, by POST and by GET.
#[tokio::test(flavor = "multi_thread")]
async fn plivos_signatures_are_made_anew_for_the_app() {
    let folder = Folder::with(&format!("{PROVIDER}{}", webhook("plivo", "\"plivo\"")));
    let app = Behind::start().await;
    let account = format!("[accounts.mine]\nwebhook_secrets = [{SECRET:?}]\n");
    let root = format!("providers_dir = {:?}", folder.0);
    let stage =
        Stage::start(elsewhere(Setup { root, tables: account, app: Some(app.url()), ..Setup::default() })).await;
    let nonce = ("x-plivo-signature-v3-nonce", "5432");
    let sign = |base: &str| BASE64.encode(tag(hmac::HMAC_SHA256, &format!("{base}.5432")));
    let url = stage.webhooks("/hooks/plivo");
    let form = "From=%2B15550001111&CallUUID=c1";
    let signature = sign(&format!("{url}?CallUUIDc1From+15550001111"));
    let headers = [FORM, ("x-plivo-signature-v3", signature.as_str()), nonce];
    assert_eq!(stage.send("POST", &url, &headers, form.replace("c1", "c2")).await.status, 401);
    assert_eq!(stage.send("POST", &url, &headers, form).await.status, 200);
    let get = sign(&format!("{url}?CallUUID=c3&z=1"));
    let headers = [("x-plivo-signature-v3", get.as_str()), nonce];
    assert_eq!(stage.send("GET", &format!("{url}?z=1&CallUUID=c3"), &headers, "").await.status, 200);
    stage.wait("the app has both", async || app.at("/hooks/plivo").len() == 2).await;
    for got in app.at("/hooks/plivo") {
        let url = format!("{ELSEWHERE}/hooks/plivo");
        let base = match got.method.as_str() {
            "POST" => format!("{url}?CallUUIDc1From+15550001111"),
            _ => format!("{url}?CallUUID=c3&z=1"),
        };
        assert_eq!(got.headers["x-plivo-signature-v3"], sign(&base).as_str(), "{}", got.method);
        assert_eq!(got.headers[nonce.0], nonce.1);
    }
    stage.finish().await;
}

/// What cannot be meant is said at `ringfence check`: file, line, what was probably meant.
#[test]
fn mistakes_in_signatures_are_found_before_the_start() {
    let diagnosed = |hooks: &str, secrets: &str| {
        let folder = Folder::with(&format!("{PROVIDER}{hooks}"));
        let text = format!("providers_dir = {:?}\n[accounts.mine]\nwebhook_secrets = [{secrets}]\n", folder.0);
        let loaded = config::load(&text, &folder.0, &|_| None);
        let shown = config::diagnostics::render(&loaded.diagnostics, "ringfence.toml", &text);
        (loaded.has_errors(), shown)
    };
    for (signature, expected) in [
        ("\"telnix\"", "did you mean \"telnyx\"?"),
        ("{ preset = \"vapi\", message = \"{timestam}{body}\" }", "did you mean {timestamp}?"),
    ] {
        let (failed, shown) = diagnosed(&webhook("mine", signature), "");
        assert!(failed && shown.contains(expected) && shown.contains("mine.toml: TOML parse error at line"), "{shown}");
    }
    for (preset, bad, good, why) in [
        ("telnyx", "too short", PUBLIC, "is not a public key"),
        ("openai", SECRET, WHSEC, "does not start with whsec_"),
        ("openai", "whsec_AAAA", WHSEC, "24 to 64 bytes"),
    ] {
        let hook = webhook("mine", &format!("{preset:?}"));
        let (failed, shown) = diagnosed(&hook, &format!("{bad:?}"));
        assert!(failed && shown.contains(why) && shown.contains("accounts.mine.webhook_secrets"), "{shown}");
        assert!(!shown.contains(bad), "the secret is shown: {shown}");
        let (failed, shown) = diagnosed(&hook, &format!("{good:?}"));
        assert!(!failed, "{shown}");
    }
}
