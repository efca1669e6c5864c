//! What `ringfence check` finds before the first call: limits that could never match, TLS that would not come up, what is ignored, and
//! every limit in force.

use std::path::Path;
use std::process::Command;

use crate::cli::{Folder, LISTEN, run};

fn check(folder: &Folder, text: &str) -> (Option<i32>, String, String) {
    let file = folder.write("ringfence.toml", text);
    run(&["check", "--config", &file])
}

const TWILIO: &str = "[accounts.twilio]\naccount_sid = \"AC1\"\nauth_token = { env = \"HOME_IS_UNSET\" }\n";

fn config(limits: &str) -> String {
    let twilio = TWILIO.replace("{ env = \"HOME_IS_UNSET\" }", "\"0123456789abcdef0123456789abcdef\"");
    format!("{LISTEN}{twilio}[accounts.elevenlabs]\napi_key = \"sk_1\"\n{limits}")
}

#[test]
fn limits_that_could_never_match_are_errors() {
    let folder = Folder::new();
    for (wrong, told) in [
        ("business = [\"!acme\"]", "all but"),
        ("business = [\"two words\"]", "is not a valid business id"),
        ("business = []", "is empty"),
        ("operation = [\"call\"]", "did you mean \"calls\"?"),
        ("operation = [\"twilio_outbound_call\"]\naccount = [\"twilio\"]", "none of its accounts has"),
        ("operation = [\"calls\"]\ndirection = \"inbound\"", "makes none"),
        ("destination_prefix = [\"turkey\"]", "is not the prefix of a number"),
        ("destination_prefix = [\"\"]", "is not the prefix of a number"),
        ("own_number = [\"+1555\"]", "is not a complete number"),
        ("own_number = [\"020 7946 0018\"]", "no country code"),
        ("account = [\"twillio\"]", "no [accounts.twillio]"),
        ("plan = [\"PROO\"]", "does not exist"),
    ] {
        let text = config(&format!("[[limits]]\nname = \"one\"\nconcurrent = 1\n[limits.match]\n{wrong}\n"));
        let (code, _, err) = check(&folder, &text);
        assert!(code == Some(2) && err.contains(told), "{wrong}: {err}");
    }
    for right in [
        "business = [\"acme\"]",
        "operation = [\"calls\"]\ndirection = \"outbound\"",
        "operation = [\"sweep\"]",
        "destination_prefix = [\"90\", \"+1 809\"]",
        "own_number = [\"15550001111\", \"phnum_1\"]",
    ] {
        let text = config(&format!("[[limits]]\nname = \"one\"\nconcurrent = 1\n[limits.match]\n{right}\n"));
        let (code, _, err) = check(&folder, &text);
        assert_eq!(code, Some(0), "{right}: {err}");
    }
    let (code, _, err) = check(&folder, &config("burst = 3\n"));
    assert!(code == Some(2) && err.contains("E004") && err.contains("without `rate`"), "{err}");
}

fn openssl(folder: &Path, arguments: &str) {
    let made = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output().unwrap();
    assert!(made.status.success(), "{arguments}: {}", String::from_utf8_lossy(&made.stderr));
}

#[test]
fn tls_that_would_not_come_up_is_found() {
    let folder = Folder::new();
    let at = &folder.0;
    let make = |name: &str, more: &str| {
        let files = format!("-keyout {name}.key -out {name}.pem");
        let fixed = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -subj /CN=localhost";
        openssl(at, &format!("{fixed} {files} {more}"));
    };
    make("good", "-nodes -days 365");
    make("other", "-nodes -days 365");
    make("locked", "-passout pass:hunter2 -days 365");
    // A certificate of the past is signed by an authority alone.
    let of_authority = "[ca]\ndefault_ca = d\n[d]\ndatabase = index.txt\nserial = serial\nnew_certs_dir = .\ndefault_md = sha256\npolicy = p\nx509_extensions = x\n[p]\ncommonName = supplied\n[x]\nsubjectAltName = DNS:localhost\n";
    for (name, text) in [("ca.cnf", of_authority), ("index.txt", ""), ("serial", "01\n")] {
        std::fs::write(at.join(name), text).unwrap();
    }
    openssl(
        at,
        "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -subj /CN=localhost -nodes -keyout old.key -out old.csr",
    );
    let dates = "-startdate 20200101000000Z -enddate 20200201000000Z";
    openssl(
        at,
        &format!("ca -config ca.cnf -batch -selfsign -keyfile old.key -in old.csr -out old.pem -notext {dates}"),
    );
    make("soon", "-nodes -days 3");
    std::fs::write(at.join("empty.pem"), "").unwrap();
    let tls = |cert: &str, key: &str| {
        let listen = format!("{LISTEN}tls_cert = \"{cert}\"\ntls_key = \"{key}\"\n");
        check(&folder, &config("").replacen(LISTEN, &listen, 1))
    };
    for (cert, key, told) in [
        ("missing.pem", "good.key", "missing.pem"),
        ("good.pem", "missing.key", "missing.key"),
        ("good.key", "good.pem", "swapped"),
        ("good.pem", "other.key", "not a certificate and its key"),
        ("locked.pem", "locked.key", "encrypted"),
        ("empty.pem", "good.key", "no certificate"),
        ("good.pem", "empty.pem", "no private key"),
        ("old.pem", "old.key", "expired on 2020-02-01"),
    ] {
        let (code, _, err) = tls(cert, key);
        assert!(code == Some(2) && err.contains(told), "{cert} and {key}: {code:?} {err}");
        assert!(!err.contains("hunter2"), "{err}");
    }
    let (code, _, err) = tls("soon.pem", "soon.key");
    assert!(code == Some(0) && err.contains("W023"), "{err}");
    let (code, out, err) = tls("good.pem", "good.key");
    assert!(code == Some(0) && !err.contains("listen.tls"), "{out}{err}");
}

#[test]
fn what_serve_would_build_is_built() {
    let folder = Folder::new();
    let empty = folder.write("empty.pem", "");
    for (more, told) in [
        (format!("[upstream]\nca_file = \"{empty}\"\n"), "upstream.ca_file"),
        ("[upstream]\nca_file = \"/nowhere/ca.pem\"\n".to_owned(), "/nowhere/ca.pem"),
        ("[log]\nfilter = \"ringfence=loud\"\n".to_owned(), "log.filter"),
        (
            "[gate]\nbackend = \"redis\"\nredis_url = \"redis://127.0.0.1:1\"\npool = \"a}b\"\n".to_owned(),
            "pool's name",
        ),
        (
            "[gate]\nbackend = \"redis\"\nredis_url = \"rediss://127.0.0.1:1\"\nredis_ca_file = \"/nowhere/ca.pem\"\n"
                .to_owned(),
            "/nowhere/ca.pem",
        ),
    ] {
        let (code, _, err) = check(&folder, &config(&more));
        assert!(code == Some(2) && err.contains(told), "{more}: {code:?} {err}");
    }
}

#[test]
fn what_is_ignored_and_what_binds_is_said() {
    let folder = Folder::new();
    let (code, out, err) = check(&folder, &config("[businesses]\nidentify_by = [\"agent\"]\n"));
    assert!(code == Some(0) && err.contains("W020") && err.contains("X-Business-Id"), "{err}");
    // A limit that nobody wrote.
    assert!(out.contains("limit     global") && out.contains("5 calls at once") && out.contains("is not set"), "{out}");
    assert!(out.contains("plan.PRO") && out.contains("(built in)"), "{out}");
    assert!(out.contains("strangers requests of unknown businesses are accepted on plan \"default\""), "{out}");
    let (code, _, err) = check(&folder, &config("[businesses]\nunknown = \"reject\"\n"));
    assert!(code == Some(0) && err.contains("W021"), "{err}");
    let strict = "[businesses]\nunknown = \"reject\"\n[businesses.acme]\n[[limits]]\nname = \"one\"\nconcurrent = 1\n[limits.match]\nbusiness = [\"amce\"]\n";
    let (code, _, err) = check(&folder, &config(strict));
    assert!(code == Some(0) && err.contains("W022") && err.contains("amce"), "{err}");
}

#[test]
fn mistakes_of_provider_files_come_all_at_once() {
    let folder = Folder::new();
    std::fs::create_dir(folder.0.join("providers")).unwrap();
    let twilio = include_str!("../../config/providers/twilio.toml");
    let broken = twilio.replace("sweep_secs = 15", "sweep_sec = 15").replacen("= \"outbound\"", "= \"out\"", 1);
    folder.write("providers/twilio.toml", &broken);
    folder.write("providers/mine.toml", "name = \n");
    let (code, _, err) = check(&folder, &format!("providers_dir = \"providers\"\nmode = \"observ\"\n{}", config("")));
    assert_eq!(code, Some(2));
    for told in ["sweep_sec", "unknown variant `out`", "mine.toml", "E005"] {
        assert!(err.contains(told), "{told} is not in\n{err}");
    }
}
