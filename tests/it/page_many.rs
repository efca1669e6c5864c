//! The operator's page of a platform with hundreds of businesses, and on a connection that dies without a word.

use std::fmt::Write as _;
use std::net::SocketAddr;

use serde_json::json;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::outbound::id;
use crate::outbound_limits::stage;
use crate::page::{SECRET, token, with_secret};
use crate::support::browser::Browser;

/// Businesses on a plan, and those with a limit of their own: more than the limits list by name.
const ON_PLAN: usize = 275;
const WITH_OWN: usize = 25;

fn businesses() -> String {
    let mut tables = format!("[admin]\ntoken_secret = \"{SECRET}\"\n");
    for n in 0..ON_PLAN {
        writeln!(tables, "[businesses.clinic_{n:03}]\nplan = \"PRO\"").unwrap();
    }
    for n in 0..WITH_OWN {
        writeln!(tables, "[businesses.chain_{n:02}]\nplan = \"PRO\"\nmax_calls = 9").unwrap();
    }
    tables
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_300_businesses_is_found_and_counted_under_its_own_limit() {
    let stage = stage("concurrent = 50", &businesses()).await;
    let Some(mut browser) = Browser::open(&stage.admin("/")).await else { return stage.finish().await };
    browser.sign_in(&token(&stage, "read", json!("*"), 600)).await;
    // Nobody has a call: all are there all the same.
    browser.says("#businesses-said", "25 of 300 businesses shown.").await;
    browser.rows("businesses", 25).await;
    // One with a limit of its own that the list of limits does not name, and one on its plan.
    for n in 0..5 {
        let placed = stage.dial(Some("chain_24"), &format!("+155500020{n:02}")).await;
        assert_eq!(placed.status, 200, "{placed:?}");
    }
    assert_eq!(stage.dial(Some("clinic_250"), "+15550003000").await.status, 200);
    let row = |n: usize| format!("document.querySelectorAll('#businesses tbody tr')[{n}].textContent");
    browser.until(&format!("{}.includes('chain_24') && {0}.includes('5 of 9')", row(0))).await;
    browser.until(&format!("{}.includes('clinic_250') && {0}.includes('1 of 3')", row(1))).await;
    let of_plan = "[...document.querySelectorAll('#limits tbody tr')].find((row) => row.children[0].textContent === 'plan.PRO' \
                   && row.children[2].textContent === '3 calls at once').children[3].textContent";
    browser.until(&format!("{of_plan} === '1 at most, by clinic_250'")).await;
    // What a line shows is said as text, too.
    browser.until("document.querySelector('#limits td.spark span').textContent.startsWith('most ')").await;

    // By the keyboard: from the way past the navigation into the search, and on page by page.
    browser.is("(() => { document.querySelector('#main').focus(); return true })()").await;
    for _ in 0..8 {
        browser.press("Tab", 9).await;
        if browser.is("document.activeElement.matches('#business-filters [name=text]')").await == true {
            break;
        }
    }
    assert_eq!(browser.is("document.activeElement.labels?.[0]?.textContent.trim()").await, "Search");
    for (before, shown, hidden) in [(25, 125, false), (125, 225, false), (225, 300, true)] {
        browser.is("(() => { document.querySelector('#businesses-more').focus(); return true })()").await;
        browser.press("Enter", 13).await;
        browser.rows("businesses", shown).await;
        browser.says("#businesses-said", &format!("{shown} of 300 businesses shown.")).await;
        assert_eq!(browser.is("document.querySelector('#businesses-more').hidden").await, hidden);
        // Whoever reads on is at the first new row.
        let at = "[...document.querySelectorAll('#businesses tbody tr')].indexOf(document.activeElement.closest('tr'))";
        assert_eq!(browser.is(at).await, before);
    }
    browser.fill("#business-filters [name=text]", "clinic_173").await;
    browser.rows("businesses", 1).await;
    browser.says("#businesses-said", "1 of 1 found businesses shown, 300 in all.").await;
    browser.fill("#business-filters [name=text]", "").await;
    browser.fill("#business-filters [name=use]", "up").await;
    browser.rows("businesses", 2).await;
    browser.fill("#business-filters [name=use]", "full").await;
    browser.rows("businesses", 0).await;
    browser.says("#businesses .empty", "none that you look for").await;
    browser.fill("#business-filters [name=use]", "").await;
    browser.rows("businesses", 25).await;
    browser.width(375).await;
    assert_eq!(browser.is("document.documentElement.scrollWidth <= innerWidth").await, true);
    // A token of two of them sees these two.
    browser.is(&crate::support::browser::enter(&token(&stage, "read", json!(["clinic_250", "clinic_001"]), 600))).await;
    browser.says("#note", "clinic_001").await;
    browser.says("#businesses-said", "2 of 2 businesses shown.").await;
    let text = browser.is("document.body.textContent").await;
    assert!(!text.as_str().unwrap().contains("chain_24"), "{text}");
    browser.close().await;
    stage.finish().await;
}

/// A proxy whose connections can be made to hang: they stand, and nothing passes any more.
struct Hanging {
    at: SocketAddr,
    hang: watch::Sender<u32>,
}

impl Hanging {
    async fn before(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (at, hang) = (listener.local_addr().unwrap(), watch::Sender::new(0));
        let hung = hang.clone();
        tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                let mut hung = hung.subscribe();
                tokio::spawn(async move {
                    let mut to = TcpStream::connect(upstream).await.unwrap();
                    tokio::select! {
                        _ = copy_bidirectional(&mut from, &mut to) => {}
                        _ = hung.changed() => std::future::pending::<()>().await,
                    }
                });
            }
        });
        Self { at, hang }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_whose_connection_died_without_a_word_says_so_and_comes_back() {
    let stage = with_secret("").await;
    let proxy = Hanging::before(stage.app().admin()).await;
    let Some(mut browser) = Browser::open(&format!("http://{}/", proxy.at)).await else { return stage.finish().await };
    let operate = token(&stage, "operate", json!("*"), 600);
    browser.sign_in(&operate).await;
    browser.view("calls").await;
    let first = id(&stage.dial(Some("pro"), "+15550002001").await, "conversation_id");
    browser.rows("calls-list", 1).await;
    // Every word that the page says of its connection.
    let watch = "(() => { window.told = []; new MutationObserver(() => told.push(document.querySelector('#link').textContent)) \
                 .observe(document.querySelector('#link'), { childList: true, characterData: true, subtree: true }); return true })()";
    browser.is(watch).await;
    // One call is open, with a stream of its own.
    browser.click("#calls-list tbody button").await;
    browser.says("#call-attributes", "pro").await;
    proxy.hang.send_modify(|n| *n += 1);
    stage.dial(Some("pro"), "+15550002002").await;
    browser.is("(() => { document.documentElement.dataset.silenceMs = 4000; return true })()").await;
    browser.rows("calls-list", 2).await;
    browser.until("told.some((text) => text.startsWith('Connection lost')) && told.at(-1) === 'Live'").await;
    browser.is("(() => { delete document.documentElement.dataset.silenceMs; return true })()").await;
    // The open call hears what is said from now on.
    let said = json!({"conversation_id": first, "speaker": "user", "message": "Are you there?", "timestamp": "2026-01-02T03:04:05Z"});
    let headers = [("content-type", "application/json"), crate::support::socket::TOKEN];
    let heard = stage.webhooks(crate::support::socket::HEARD);
    assert_eq!(stage.send("POST", &heard, &headers, said.to_string()).await.status, 201);
    browser.says("#said", "Are you there?").await;
    browser.close().await;
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_opens_a_call_or_a_refusal_and_a_refused_call_is_told_of() {
    let stage = with_secret("").await;
    let placed = id(&stage.dial(Some("starter"), "+15550002001").await, "conversation_id");
    let refused = stage.dial(Some("starter"), "+15550002002").await;
    let refusal = refused.header("x-ringfence-refusal").unwrap().to_owned();
    let operate = token(&stage, "operate", json!("*"), 600);
    let call = crate::page::get(&stage, &format!("/api/calls/{placed}"), Some(&operate)).await.json();
    let call = call["callId"].as_str().unwrap().to_owned();
    let Some(mut browser) = Browser::open(&stage.admin(&format!("/#calls/{call}"))).await else {
        return stage.finish().await;
    };
    browser.sign_in(&operate).await;
    browser.until("document.querySelector('#call-dialog').open").await;
    browser.says("#call-title", &call).await;
    browser.says("#call-attributes", "starter").await;
    browser.is("(() => { document.querySelector('#call-dialog').close(); return true })()").await;
    browser.until("location.hash === '#calls'").await;
    // What is opened has an address.
    browser.click("#calls-list tbody button").await;
    browser.until(&format!("location.hash === '#calls/{call}' && document.querySelector('#call-dialog').open")).await;
    // From one address to the other.
    browser.is(&format!("(() => {{ location.hash = '#refusals/{refusal}'; return true }})()")).await;
    browser
        .until("document.querySelector('#explain-dialog').open && !document.querySelector('#call-dialog').open")
        .await;
    browser.says("#explain-title", &refusal).await;
    browser.says("#explain-limits", "plan.STARTER: 1 of 1, full").await;
    browser.is("(() => { document.querySelector('#explain-dialog').close(); return true })()").await;
    browser.until("location.hash === '#refusals'").await;
    // A row has its refusal's address.
    browser.click(&format!("#refusals-list a[href='#refusals/{refusal}']")).await;
    browser.until("document.querySelector('#explain-dialog').open").await;
    browser.is("(() => { document.querySelector('#explain-dialog').close(); return true })()").await;
    browser.until("location.hash === '#refusals'").await;
    // For whom the next slot is kept; nobody waits in a queue.
    browser.view("overview").await;
    let started = std::time::Instant::now();
    for n in 10.. {
        // It is kept for half a minute, and this machine may be slow.
        assert_eq!(stage.dial(Some("starter"), &format!("+155500020{n}")).await.status, 503);
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        let told = browser.is("document.querySelector('#kept tbody').textContent").await;
        if told.as_str().unwrap().contains("plan.STARTER") && told.as_str().unwrap().contains("starter") {
            break;
        }
        assert!(started.elapsed() < crate::support::stage::PATIENCE, "{told}");
    }
    let status = crate::page::get(&stage, "/status", Some(&operate)).await.json();
    let kept = &status["gate"]["kept"][0];
    assert_eq!((&kept["limit"], &kept["business"]), (&json!("plan.STARTER"), &json!("starter")));
    assert!(kept["refusedAt"].as_str() < kept["keptUntil"].as_str() && kept["refusedAt"].is_string(), "{kept}");
    browser.close().await;
    stage.finish().await;
}
