//! What an operator finds and does on the page, in a real browser.

use ringfence::call::Direction;
use ringfence::ids::RejectionId;
use ringfence::store::{NewEvent, RejectionRecord};
use serde_json::{Value, json};

use crate::outbound::id;
use crate::page::{get, token, with_secret};
use crate::support::browser::Browser;
use crate::support::stage::Stage;

/// The page of a program with a secret, and a token that may do everything; `None`: there is no browser.
async fn page(tables: &str) -> (Stage, Option<(Browser, String)>) {
    let stage = with_secret(tables).await;
    let Some(mut browser) = Browser::open(&stage.admin("/")).await else { return (stage, None) };
    let operate = token(&stage, "operate", json!("*"), 600);
    browser.sign_in(&operate).await;
    (stage, Some((browser, operate)))
}

/// What was done, as the audit has it: the latest first.
async fn audited(stage: &Stage, operate: &str, what: &str) -> Vec<Value> {
    let audit = get(stage, "/api/audit?limit=1000", Some(operate)).await.json();
    audit["audit"].as_array().unwrap().iter().filter(|one| one["what"] == what).cloned().collect()
}

fn refusals(count: usize, business: &str, at_ms: i64) -> Vec<RejectionRecord> {
    let one = |_| RejectionRecord {
        id: RejectionId::new(),
        at: at_ms,
        business: business.to_owned(),
        account: "twilio".to_owned(),
        direction: Direction::Outbound,
        code: "LIMIT_EXCEEDED".to_owned(),
        limit_name: Some("night".to_owned()),
        current: Some(9),
        limit: Some(9),
        observed: false,
        attempts: 1,
        notice: ringfence::store::AppNotice::Omit,
    };
    (0..count).map(one).collect()
}

/// Parks webhooks of an account.
async fn park(stage: &Stage, account: &str, count: usize) {
    let (store, now_ms) = (&stage.app().calls().lifecycle.store, stage.clock.now_ms());
    for n in 0..count {
        let event = NewEvent {
            id: format!("ev_{account}_{n:03}"),
            account: account.to_owned(),
            webhook: "status".to_owned(),
            event: "call_status".to_owned(),
            dedupe_key: None,
            received_at: now_ms,
            method: "POST".to_owned(),
            path: "/status".to_owned(),
            headers: vec![],
            body: Some(b"x=1".to_vec()),
            spool: None,
        };
        store.receive(event.clone()).await.unwrap();
        store.record_failed_try(&event.id, "nobody knows how", None, now_ms).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_opened_and_hung_up_by_the_keyboard_alone() {
    let (stage, Some((mut browser, operate))) = page("").await else { return };
    assert_eq!(stage.dial(Some("pro"), "+15550002001").await.status, 200);
    browser.view("calls").await;
    browser.rows("calls-list", 1).await;
    // The first key finds the way past the navigation, and every view is a link.
    browser.is("(() => { document.activeElement.blur(); return true })()").await;
    browser.press("Tab", 9).await;
    browser.until("document.activeElement.className === 'skip'").await;
    browser.press("Enter", 13).await;
    browser.until("document.activeElement.id === 'main'").await;
    for _ in 0..8 {
        browser.press("Tab", 9).await;
        if browser.is("Boolean(document.activeElement.closest('#calls-list'))").await == true {
            break;
        }
    }
    browser.press("Enter", 13).await;
    browser.until("document.querySelector('#call-dialog').open").await;
    browser.press("Escape", 27).await;
    browser.until("!document.querySelector('#call-dialog').open").await;
    // Who closes it is where he was.
    browser.until("Boolean(document.activeElement.closest('#calls-list'))").await;
    browser.press("Enter", 13).await;
    browser.until("document.activeElement.id === 'call-title'").await;
    for _ in 0..4 {
        browser.press("Tab", 9).await;
        if browser.is("document.activeElement.id").await == "call-hangup" {
            break;
        }
    }
    browser.press("Enter", 13).await;
    browser.until("document.querySelector('#confirm').open && document.activeElement.id === 'confirm-reason'").await;
    browser.is("(() => { document.activeElement.value = 'asked to'; return true })()").await;
    browser.press("Enter", 13).await;
    browser.says("#done", "Hang up").await;
    browser.rows("calls-list", 0).await;
    assert_eq!(stage.held().await, 0);
    let hung = audited(&stage, &operate, "hangup").await;
    assert_eq!((hung.len(), &hung[0]["who"], &hung[0]["reason"]), (1, &json!("ops"), &json!("asked to")));
    browser.close().await;
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_found_behind_a_flood_and_explained() {
    let (stage, Some((mut browser, _))) = page("").await else { return };
    let first = stage.dial(Some("starter"), "+15550002001").await;
    assert_eq!(first.status, 200);
    let refused = stage.dial(Some("starter"), "+15550002002").await;
    let refusal = refused.header("x-ringfence-refusal").unwrap().to_owned();
    stage
        .wait("it is on record", async || {
            !stage.app().calls().lifecycle.store.latest_rejections(9).await.unwrap().is_empty()
        })
        .await;
    let loud = refusals(250, "loud", stage.clock.now_ms() + 1_000);
    stage.app().calls().lifecycle.store.record_rejections(loud).await.unwrap();
    browser.view("refusals").await;
    browser.rows("refusals-list", 100).await;
    browser.says("#refusals-said", "search for older ones").await;
    let list = browser.is("document.querySelector('#refusals-list').textContent").await;
    assert!(!list.as_str().unwrap().contains("starter"), "the flood hides it");
    browser.fill("#refusal-filters [name=business]", "starter").await;
    browser.rows("refusals-list", 1).await;
    browser.says("#refusals-said", "1 refusal found.").await;
    browser.click("#refusals-list td.act button").await;
    browser.until("document.querySelector('#explain-dialog').open").await;
    browser.says("#explain-title", &refusal).await;
    browser.says("#explain-attributes", "plan.STARTER: 1 of 1").await;
    browser.says("#explain-decision", "business concurrent limit exceeded").await;
    browser.says("#explain-limits", "plan.STARTER: 1 of 1, full").await;
    browser.says("#explain-limits", "held by c_").await;
    browser.click("#explain-dialog [data-close]").await;
    // Page by page, to the last of the flood.
    browser.fill("#refusal-filters [name=business]", "loud").await;
    browser.rows("refusals-list", 100).await;
    browser.says("#refusals-said", "and there are more").await;
    browser.click("#refusals-more").await;
    browser.rows("refusals-list", 200).await;
    browser.click("#refusals-more").await;
    browser.rows("refusals-list", 250).await;
    browser.says("#refusals-said", "250 refusals found.").await;
    browser.fill("#refusal-filters [name=code]", "LIMIT_EXCEEDED").await;
    browser.fill("#refusal-filters [name=business]", "").await;
    browser.says("#refusals-said", "100 refusals found so far").await;
    browser.fill("#refusal-filters [name=code]", "").await;
    browser.fill("#refusal-filters [name=business]", &refusal).await;
    browser.says("#refusals-said", "1 refusal found.").await;
    browser.close().await;
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_are_found_and_replayed_one_by_one_or_by_a_filter() {
    let (stage, Some((mut browser, operate))) = page("").await else { return };
    park(&stage, "twilio", 3).await;
    park(&stage, "elevenlabs", 120).await;
    browser.view("webhooks").await;
    browser.rows("parked", 100).await;
    // The page may have been told before the last ones were parked.
    browser.says("#parked tbody tr", "ev_elevenlabs_119").await;
    // One.
    browser.click("#parked td.act button").await;
    browser.says("#confirm-text", "ev_elevenlabs_119").await;
    browser.click("#confirm-yes").await;
    browser.says("#done", "ev_elevenlabs_119 was replayed").await;
    assert_eq!(audited(&stage, &operate, "replay").await.len(), 1);
    // What came before the latest hundred is found, counted, and replayed with nothing else.
    browser.fill("#webhook-filters [name=account]", "twilio").await;
    browser.rows("found", 3).await;
    browser.says("#webhooks-said", "3 webhooks found.").await;
    browser.click("#replay-all").await;
    browser.says("#confirm-title", "Replay 3 webhooks?").await;
    browser.fill("#confirm-reason", "mended").await;
    browser.click("#confirm-yes").await;
    browser.says("#done", "3 webhooks were replayed").await;
    let replayed = audited(&stage, &operate, "replay").await;
    let targets: Vec<&Value> = replayed.iter().rev().map(|one| &one["target"]).collect();
    assert_eq!(targets[1..], ["ev_twilio_000", "ev_twilio_001", "ev_twilio_002"], "the oldest first");
    assert_eq!(replayed[0]["reason"], "mended");
    // More than one request takes, to the last of them.
    browser.fill("#webhook-filters [name=account]", "elevenlabs").await;
    browser.rows("found", 100).await;
    browser.click("#webhooks-more").await;
    // Without the one that was replayed before: it was applied.
    browser.rows("found", 119).await;
    browser.click("#replay-all").await;
    browser.says("#confirm-title", "Replay 1").await;
    let asked = get(&stage, "/api/events/replay?account=elevenlabs", Some(&operate)).await.json();
    let matching = usize::try_from(asked["matching"].as_u64().unwrap()).unwrap();
    assert!(matching > 100, "{asked}");
    browser.click("#confirm-yes").await;
    browser.says("#done", &format!("{matching} webhooks were replayed")).await;
    assert_eq!(audited(&stage, &operate, "replay").await.len(), 4 + matching);
    // One that was applied is found, too.
    let call = id(&stage.dial(Some("pro"), "+15550002001").await, "conversation_id");
    assert!(stage.control.end_call(&call));
    let settled = async || get(&stage, "/api/events?state=settled", Some(&operate)).await.json();
    stage.wait("it is applied", async || settled().await["events"].as_array().is_some_and(|all| !all.is_empty())).await;
    browser.fill("#webhook-filters [name=account]", "").await;
    browser.fill("#webhook-filters [name=state]", "settled").await;
    browser.until("document.querySelectorAll('#found tbody tr').length > 0").await;
    browser.says("#replay-all", "Replay those that were applied").await;
    browser.close().await;
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_paused_resumed_and_canceled() {
    let (stage, Some((mut browser, operate))) = page("").await else { return };
    let bearer = format!("Bearer {operate}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let leads: Vec<Value> = (0..9).map(|n| json!({"number": format!("+1555100{:04}", n + 10)})).collect();
    let run = json!({"business": "pro", "account": "twilio", "operation": "calls", "request": {"Twiml": "<Response><Say>Hello</Say></Response>"},
        "name": "<b>Spring</b>", "own_numbers": ["+15550001111"], "leads": leads});
    assert_eq!(stage.send("POST", &stage.admin("/api/runs"), &headers, run.to_string()).await.status, 201);
    browser.view("runs").await;
    browser.rows("runs-list", 1).await;
    let row = "#runs-list tbody tr";
    for text in ["<b>Spring</b>", "pro", "running", "0 of 9"] {
        browser.says(row, text).await;
    }
    // Its business has three calls at once.
    browser.until("document.querySelector('#runs-list [data-label=Calling]').textContent === '3'").await;
    browser.until("document.querySelector('#runs-list [data-label=Queued]').textContent === '6'").await;
    let bar = "document.querySelector('#runs-list [role=progressbar]')";
    assert_eq!(browser.is(&format!("{bar}.getAttribute('aria-valuetext')")).await, "0 of 9");
    assert_eq!(browser.is("document.documentElement.scrollWidth <= innerWidth").await, true);
    let acts =
        [("Pause", "paused", "pause run"), ("Resume", "running", "resume run"), ("Cancel", "canceled", "cancel run")];
    for (name, state, what) in acts {
        browser.click(&format!("#runs-list button[aria-label^={name}]")).await;
        browser.says("#confirm-title", &format!("{name} <b>Spring</b>?")).await;
        if name == "Cancel" {
            browser.says("#confirm-text", "6 are queued").await;
        }
        browser.click("#confirm-yes").await;
        browser.says(row, state).await;
        let done = audited(&stage, &operate, what).await;
        assert_eq!((done.len(), &done[0]["who"]), (1, &json!("ops")), "{what}");
    }
    browser.until("document.querySelector('#runs-list [data-label=Queued]').textContent === '0'").await;
    let shown = "[...document.querySelectorAll('#runs-list button')].filter((one) => !one.hidden).length";
    assert_eq!(browser.is(shown).await, 0, "nothing is left to be done to it");
    browser.close().await;
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_not_said_to_be_none() {
    let (stage, Some((mut browser, operate))) = page("").await else { return };
    browser.view("refusals").await;
    browser.says("#refusals-list", "Nothing was refused").await;
    if stage.postgres().is_some() {
        browser.close().await;
        return stage.finish().await;
    }
    let status = get(&stage, "/status", Some(&operate)).await.json();
    let record = rusqlite::Connection::open(status["store"]["path"].as_str().unwrap()).unwrap();
    record.busy_timeout(std::time::Duration::from_secs(5)).unwrap();
    let tables = ["refusals", "webhook_events", "deliveries"];
    for table in tables {
        record.execute_batch(&format!("ALTER TABLE {table} RENAME TO away_{table}")).unwrap();
    }
    browser.says("#refusals-list", "Not known just now").await;
    assert_eq!(browser.is("document.body.innerText.includes('Nothing was refused')").await, false);
    assert_eq!(browser.is("document.querySelector('[data-count=refusals]').textContent").await, "?");
    browser.view("webhooks").await;
    for list in ["parked", "given-up", "unsettled", "pending"] {
        browser.says(&format!("#{list}"), "Not known just now").await;
    }
    browser.view("overview").await;
    browser.says("#troubles", "not known just now").await;
    for table in tables {
        record.execute_batch(&format!("ALTER TABLE away_{table} RENAME TO {table}")).unwrap();
    }
    browser.view("webhooks").await;
    browser.says("#parked", "No webhook failed").await;
    browser.close().await;
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_goes_on_after_the_program_started_again() {
    let (mut stage, Some((mut browser, _))) = page("").await else { return };
    assert_eq!(stage.dial(Some("pro"), "+15550002001").await.status, 200);
    browser.view("calls").await;
    browser.rows("calls-list", 1).await;
    let admin = format!("admin = \"{}\"", stage.app().admin());
    stage.edit("admin = \"127.0.0.1:0\"", &admin);
    stage.stop_app().await;
    browser.says("#link", "Connection lost").await;
    browser.rows("calls-list", 1).await;
    stage.start_app().await;
    browser.until("document.querySelector('#link').textContent === 'Live'").await;
    assert_eq!(stage.dial(Some("pro"), "+15550002002").await.status, 200);
    browser.rows("calls-list", 2).await;
    browser.close().await;
    stage.finish().await;
}
