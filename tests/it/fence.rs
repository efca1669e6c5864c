//! What the fence sees: families of paths that dial, calls of requests that nobody described, which account a request is of, and
//! answers that cannot be read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use http::Response;
use ringfence::call::Outcome;
use serde_json::{Value, json};

use crate::outbound::{account_at, all_free, basic};
use crate::support::stage::{Behind, Setup, Stage, grown};

fn json_answer(status: u16, body: &Value) -> Response<Bytes> {
    let builder = Response::builder().status(status).header("content-type", "application/json");
    builder.body(body.to_string().into()).unwrap()
}

/// A mirror of a provider that makes a call of every POST.
async fn maker(kind: &'static str) -> Behind {
    let calls = AtomicU32::new(0);
    Behind::replying(Box::new(move |got| {
        let n = calls.fetch_add(1, Ordering::Relaxed);
        match (kind, got.path_and_query.rsplit_once('.')) {
            ("elevenlabs", _) => {
                json_answer(200, &json!({"success": true, "conversation_id": format!("conv_{n}"), "callSid": null}))
            }
            (_, Some((_, "xml"))) | (_, None) => Response::builder()
                .status(201)
                .header("content-type", "application/xml")
                .body(
                    format!("<TwilioResponse><Call><Sid>CAx{n}</Sid><Status>queued</Status></Call></TwilioResponse>")
                        .into(),
                )
                .unwrap(),
            (_, Some((_, "csv"))) => Response::builder()
                .status(201)
                .header("content-type", "text/csv")
                .body(format!("Sid,Status\r\nCAc{n},queued\r\n").into())
                .unwrap(),
            _ => {
                json_answer(201, &json!({"sid": format!("CAj{n}"), "call_sid": format!("CAp{n}"), "status": "queued"}))
            }
        }
    }))
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_spelling_of_a_path_that_dials_is_fenced() {
    for (provider, paths) in [
        (
            "elevenlabs",
            &[
                "/v1/convai/twilio/outbound_call",
                "/v1/convai/conversation/outbound-call",
                "/v1/convai/something/new/outbound-call",
                "/v1/convai/sip_trunk/outbound_call/",
                "/v1/convai/batch_calling/submit",
            ][..],
        ),
        (
            "twilio",
            &[
                "/2010-04-01/Accounts/ACm/Calls.xml",
                "/2010-04-01/Accounts/ACm/Calls.csv",
                "/2008-08-01/Accounts/ACm/Calls",
                "/2010-04-01/Accounts/ACm/Conferences/room/Participants.xml",
                "/2010-04-01/Accounts/ACm/OutgoingCallerIds.json",
                "/v2/Flows/FW1/Executions.json",
            ][..],
        ),
    ] {
        for path in paths {
            let behind = maker(provider).await;
            let tables = format!("{}concurrent = 1\n", account_at("mirror", provider, &behind.url()));
            let stage = Stage::start(Setup { tables, ..Setup::default() }).await;
            let (kind, body) = match provider {
                "elevenlabs" => (
                    "application/json",
                    json!({"agent_id": "a", "to_number": "+15550002222", "recipients": [{"phone_number": "+1"}]})
                        .to_string(),
                ),
                _ => ("application/x-www-form-urlencoded", "To=%2B15550002222&From=%2B15550001111".to_owned()),
            };
            let url = stage.api(&format!("/mirror{path}"));
            let first = stage.send("POST", &url, &[("content-type", kind)], body.clone()).await;
            assert!((200..300).contains(&first.status), "{path}: {first:?}");
            assert_eq!(stage.held().await, 1, "{path}");
            let second = stage.send("POST", &url, &[("content-type", kind)], body.replace("0002222", "0003333")).await;
            assert_eq!((second.status, behind.got().len()), (503, 1), "{path}: {second:?}");
            let metrics = stage.ask("/metrics").await;
            assert_eq!(grown(&metrics, "ringfence_unmatched_creates_total"), None, "{path}");
            stage.finish().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_of_a_request_that_nobody_described_is_counted_at_once() {
    let behind = Behind::replying(Box::new(|got| match got.path_and_query.as_str() {
        "/v1/convai/dial-somebody" => json_answer(200, &json!({"conversation_id": "conv_past", "status": "ok"})),
        "/v1/convai/conversations/conv_other/feedback" => json_answer(200, &json!({"conversation_id": "conv_other"})),
        _ => json_answer(200, &json!({"agent_id": "agent_1"})),
    }))
    .await;
    let stage =
        Stage::start(Setup { tables: account_at("mirror", "elevenlabs", &behind.url()), ..Setup::default() }).await;
    for path in ["/v1/convai/agents/create", "/v1/convai/conversations/conv_other/feedback", "/v1/convai/dial-somebody"]
    {
        let url = stage.api(&format!("/mirror{path}"));
        assert_eq!(stage.send("POST", &url, &[("content-type", "application/json")], "{}").await.status, 200);
    }
    stage.wait("its call is on record", async || stage.record("conv_past").await.is_some()).await;
    assert_eq!(stage.held().await, 1);
    assert_eq!(stage.record("conv_past").await.unwrap().attributes.operation, "unfenced");
    let metrics = stage.ask("/metrics").await;
    assert!(metrics.as_str().unwrap().contains("ringfence_unmatched_creates_total{account=\"mirror\"} 1"));
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_request_says_of_its_account_decides() {
    let behind = maker("twilio").await;
    let tables = format!(
        "[accounts.twilio_de]\nprovider = \"twilio\"\naccount_sid = \"AC2\"\nauth_token = \"t2\"\nupstream = \"{}\"\nconcurrent = 1\n",
        behind.url()
    );
    let stage = Stage::start(Setup { tables, ..Setup::default() }).await;
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let dial = async |path: &str, to: u32| {
        let body = format!("To=%2B1555000222{to}&From=%2B15550001111");
        stage.send("POST", &stage.api(path), &form, body).await.status
    };
    assert_eq!(dial("/twilio/2010-04-01/Accounts/AC2/Calls.json", 1).await, 201);
    assert_eq!(dial("/twilio/2010-04-01/Accounts/AC2/Calls.json", 2).await, 503, "what twilio_de bought");
    let open = stage.app().calls().lifecycle.store.open_calls().await.unwrap();
    assert!(open.len() == 1 && open[0].attributes.account.as_str() == "twilio_de", "{open:?}");
    let sid = stage.control.settings().account_sid;
    let posted = || behind.got().iter().filter(|got| got.method == "POST").count();
    let before = posted();
    assert_eq!(dial(&format!("/twilio_de/2010-04-01/Accounts/{sid}/Calls.json"), 3).await, 400);
    let authorization = basic(&stage.control);
    let headers = [form[0], ("authorization", authorization.as_str())];
    let answer =
        stage.send("POST", &stage.api("/twilio_de/v2/Flows/FW1/Executions"), &headers, "To=%2B1&From=%2B1").await;
    assert_eq!((answer.status, posted()), (400, before), "{answer:?}");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_create_is_refused_and_odd_json_is_fenced_and_sent_as_it_came() {
    let behind = maker("elevenlabs").await;
    let tables = format!(
        "{}[[limits]]\nname = \"one_agent\"\nconcurrent = 1\n[limits.match]\nagent = [\"agent_nan\"]\n",
        account_at("mirror", "elevenlabs", &behind.url())
    );
    let stage = Stage::start(Setup { tables, ..Setup::default() }).await;
    let url = stage.api("/mirror/v1/convai/sip-trunk/outbound-call");
    let kind = ("content-type", "application/json");
    let packed = stage.send("POST", &url, &[kind, ("content-encoding", "gzip")], "\u{1f}").await;
    assert_eq!((packed.status, &packed.json()["called"], behind.got().len()), (415, &json!(false), 0));
    let body = r#"{"agent_id":"agent_nan", "to_number":"+15550002222","x":NaN,"y":"\ud83d","z":1e400,"z":[[1,],]}"#;
    assert_eq!(stage.send("POST", &url, &[kind], body).await.status, 200);
    let sent = String::from_utf8(behind.got()[0].body.to_vec()).unwrap();
    assert!(sent.starts_with(&body[..body.len() - 1]) && sent.contains("ringfence_call"), "{sent}");
    assert_eq!(
        stage.send("POST", &url, &[kind], body.replace("2222", "3333")).await.status,
        503,
        "a rule by agent holds"
    );
    for nul in ["a\\u0000b", "a\u{0}b"] {
        let body = format!("{{\"agent_id\":\"{nul}\",\"to_number\":\"+1555000{}\"}}", nul.len());
        assert_eq!(stage.send("POST", &url, &[kind], body).await.status, 200, "on every store");
    }
    stage.finish().await;
}

/// A provider whose look-up of one call answers what `answer` says.
async fn unreadable(answer: fn() -> Response<Bytes>, listed: &'static str, count: usize) -> (Behind, Arc<AtomicU32>) {
    let (asked, made) = (Arc::new(AtomicU32::new(0)), AtomicU32::new(0));
    let seen = asked.clone();
    let behind = Behind::replying(Box::new(move |got| match got.path_and_query.split('?').next().unwrap() {
        "/v1/convai/sip-trunk/outbound-call" => {
            made.store(1, Ordering::Relaxed);
            json_answer(200, &json!({"success": true, "conversation_id": "conv_odd", "sip_call_id": null}))
        }
        "/v1/convai/conversations" if listed.is_empty() || made.load(Ordering::Relaxed) == 0 => {
            json_answer(200, &json!({"conversations": []}))
        }
        "/v1/convai/conversations" => json_answer(
            200,
            &json!({"conversations": [{"conversation_id": "conv_odd", "status": listed, "direction": "outbound"}]}),
        ),
        "/v1/convai/analytics/live-count" => json_answer(200, &json!({"count": count})),
        _ => {
            seen.fetch_add(1, Ordering::Relaxed);
            answer()
        }
    }))
    .await;
    (behind, asked)
}

async fn dialled(behind: &Behind) -> Stage {
    let tables = format!("{}api_key = \"k\"\n", account_at("mirror", "elevenlabs", &behind.url()));
    let replace = vec![(
        "not_found_confirm_secs = 1".to_owned(),
        "not_found_confirm_secs = 1\nunreadable_alarm_secs = 1".to_owned(),
    )];
    let stage = Stage::start(Setup { tables, replace, ..Setup::default() }).await;
    let url = stage.api("/mirror/v1/convai/sip-trunk/outbound-call");
    let body = json!({"agent_id": "a", "to_number": "+15550002222"}).to_string();
    assert_eq!(
        stage.send("POST", &url, &[("content-type", "application/json"), ("xi-api-key", "k")], body).await.status,
        200
    );
    stage
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_one_parser_refuses_ends_its_call() {
    fn odd() -> Response<Bytes> {
        let deep = format!("{}{}", "[".repeat(5_000), "]".repeat(5_000));
        let body = format!(
            "{{\"status\":\"done\",\"analysis\":{{\"transcript_summary\":\"cut \\ud83d\",\"n\":NaN,\"deep\":{deep}}}}}"
        );
        Response::new(body.into())
    }
    let (behind, _) = unreadable(odd, "", 0).await;
    let stage = dialled(&behind).await;
    all_free(&stage).await;
    assert_eq!(stage.record("conv_odd").await.unwrap().outcome, Some(Outcome::Completed));
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_record_cannot_be_read_the_list_and_the_count_are_believed() {
    let (behind, asked) = unreadable(|| Response::new("<html>maintenance</html>".into()), "", 0).await;
    let stage = dialled(&behind).await;
    stage
        .wait("the error is shown", async || {
            let status = stage.ask("/status").await;
            let all = status["accounts"].as_array().unwrap().clone();
            all.iter().any(|a| {
                a["name"] == "mirror" && a["sweepError"].as_str().is_some_and(|e| e.contains("cannot be read"))
            })
        })
        .await;
    all_free(&stage).await;
    assert!(asked.load(Ordering::Relaxed) >= 2);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_state_nobody_can_read_is_held_and_raises_an_alarm() {
    let answer = || json_answer(200, &json!({"status": "archived", "metadata": {"phone_call": {}}}));
    let (behind, _) = unreadable(answer, "archived", 1).await;
    let stage = dialled(&behind).await;
    let call = stage.record("conv_odd").await.unwrap().id;
    stage
        .wait("it is named", async || {
            let status = stage.ask("/status").await;
            let all = status["accounts"].as_array().unwrap().clone();
            let why = all.iter().find(|a| a["name"] == "mirror").map(|a| a["unread"][call.as_str()]["why"].clone());
            why.is_some_and(|why| why.as_str().is_some_and(|why| why.contains("archived")))
        })
        .await;
    let metrics = stage.ask("/metrics").await;
    assert!(metrics.as_str().unwrap().contains("ringfence_unreadable_calls{account=\"mirror\"} 1"));
    assert_eq!(stage.held().await, 1, "nothing says that it is over");
    stage.finish().await;
}

/// The page of the docs names every operation with its path, and no path that is not fenced.
#[test]
fn the_docs_name_every_path_that_dials() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/coverage.md")).unwrap();
    let registry = ringfence::provider::Registry::new(&[]).unwrap();
    let mut rows = 0;
    for operation in registry.all().flat_map(|provider| &provider.operations) {
        let path = operation.path.as_str().replace('|', "\\|");
        let row = page.lines().find(|line| line.starts_with(&format!("| `{path}` |")));
        let row = row.unwrap_or_else(|| panic!("{path} does not stand in the docs"));
        assert!(row.contains(&format!("`{}`", operation.name)), "{} is not named: {row}", operation.name);
        assert_eq!(operation.method, http::Method::POST);
        rows += 1;
    }
    assert!(rows > 10);
    let known: Vec<String> =
        registry.all().flat_map(|p| &p.operations).map(|o| o.path.as_str().replace('|', "\\|")).collect();
    for line in page.lines().filter(|line| line.starts_with("| `/")) {
        let path = line.trim_start_matches("| `").split("` |").next().unwrap();
        assert!(known.iter().any(|one| one == path), "{path} stands in the docs and is not fenced");
    }
}
