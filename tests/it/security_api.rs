//! Attacks on `listen.api` and `listen.webhooks`: a request that says that it is another's, and noise of who is not known.

use crate::outbound::{elevenlabs, id, order};
use crate::outbound_limits::{EL, stage};

const TWO: &str =
    "[businesses.acme]\nplan = \"PRO\"\nagent_ids = [\"agent_acme\"]\n[businesses.birch]\nplan = \"PRO\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_contradicts_itself_is_refused() {
    let stage = stage("", TWO).await;
    // Its agent is acme's.
    let body = order("+15550002001");
    for (path, headers) in [
        (EL.to_owned(), vec![("x-business-id", "birch")]),
        (EL.to_owned(), vec![("x-business-id", "stranger")]),
        (format!("/b/birch{EL}"), vec![]),
        (format!("/b/birch{EL}"), vec![("x-business-id", "acme")]),
        (format!("/b/acme{EL}"), vec![("x-business-id", "birch")]),
        (EL.to_owned(), vec![("x-business-id", "acme"), ("x-business-id", "birch")]),
        (EL.to_owned(), vec![("x-business-id", "*")]),
        (EL.to_owned(), vec![("x-business-id", "acme|")]),
        (EL.to_owned(), vec![("x-business-id", "acme,birch")]),
        (EL.to_owned(), vec![("x-business-id", "a\tb")]),
        (format!("/b/%2A{EL}"), vec![]),
        (format!("/b/acme%7C{EL}"), vec![]),
    ] {
        let answer = elevenlabs(&stage, &path, &headers, &body).await;
        assert_eq!(
            (answer.status, answer.json()["error"].as_str()),
            (403, Some("UNKNOWN_BUSINESS")),
            "{path} {headers:?}"
        );
    }
    assert_eq!(stage.control.calls().len(), 0, "nothing was dialled");
    for (path, headers) in
        [(EL.to_owned(), vec![("x-business-id", "acme")]), (EL.to_owned(), vec![]), (format!("/b/acme{EL}"), vec![])]
    {
        assert_eq!(elevenlabs(&stage, &path, &headers, &body).await.status, 200, "{path} {headers:?}");
    }
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_contradiction_may_be_logged_alone() {
    let stage = stage("", &format!("[businesses]\ncontradictions = \"log\"\n{TWO}")).await;
    let call = id(&stage.dial(Some("birch"), "+15550002001").await, "conversation_id");
    assert_eq!(stage.record(&call).await.unwrap().attributes.business.as_str(), "birch", "the header goes first");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_business_is_nobody_unless_it_is_switched_on() {
    let stage = stage("", TWO).await;
    assert_eq!(stage.dial(Some("999999"), "+15550002001").await.status, 403);
    stage.finish().await;
}

/// Unsigned requests with long paths fill no log.
#[test]
fn what_anybody_can_send_fills_no_log() {
    use crate::cli::{self, Folder};
    let folder = Folder::new();
    let text = cli::sound("http://127.0.0.1:1");
    let more = "[accounts.twilio]\naccount_sid = \"AC1\"\nauth_token = \"12345\"\n";
    let file = folder.write("ok.toml", &format!("public_url = \"https://hooks.example.com\"\n{text}{more}"));
    let (mut serve, ready) = cli::start(&["serve", "--config", &file, "--ready-json"]);
    let webhooks = ready["webhooks"].as_str().unwrap();
    let url = format!("http://{webhooks}/ringfence/twilio/status/{}", "x".repeat(8000));
    for _ in 0..100 {
        let out = std::process::Command::new("curl")
            .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "-d", "A=1", &url])
            .output();
        assert_eq!(String::from_utf8(out.unwrap().stdout).unwrap(), "401");
    }
    assert_eq!(cli::term(&mut serve), Some(0));
    let mut log = String::new();
    std::io::Read::read_to_string(&mut serve.0.stderr.take().unwrap(), &mut log).unwrap();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("webhook signature invalid")).collect();
    assert!(
        (1..=30).contains(&told.len()) && told.iter().all(|line| line.len() <= 1024),
        "{} lines:\n{log}",
        told.len()
    );
}
