//! docs/reminders.md, step by step: what stands there is what is run.

use std::process::Command;

use bytes::Bytes;
use http::{HeaderValue, Response};
use ringfence_simulator::{Millis, SimSettings};
use serde_json::Value;
use tokio::task::block_in_place;

use crate::reference::read;
use crate::support::stage::{Behind, Setup, Stage};

/// The block of the page that has this info string; its first, where there are several.
fn block(page: &str, info: &str) -> String {
    let fence = format!("```{info}\n");
    let after = page.split_once(&fence).unwrap_or_else(|| panic!("docs/reminders.md has no block {info}")).1;
    after.split_once("```").unwrap().0.to_owned()
}

/// Runs a command of the page, as a shell does.
fn shell(stage: &Stage, folder: &std::path::Path, script: &str, more: &[(&str, &str)]) -> String {
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_ringfence")).parent().unwrap();
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("sh");
    command.args(["-ec", script]).current_dir(folder).env_clear().env("PATH", path);
    command.env("RINGFENCE_ADMIN_URL", stage.app().admin_socket().unwrap());
    let out = block_in_place(|| command.envs(more.iter().copied()).output().unwrap());
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_followed_from_the_list_to_the_calls() {
    let page = read("docs/reminders.md");
    let (leads, twiml) = (block(&page, "json leads"), block(&page, "xml twiml"));
    let app = Behind::replying(Box::new(move |got| {
        let (kind, body) = match got.path_and_query.split('?').next() {
            Some("/api/reminders") => ("application/json", leads.clone()),
            Some("/api/v1/webhooks/outbound-reminder") => ("text/xml", twiml.clone()),
            _ => ("text/plain", String::new()),
        };
        let mut response = Response::new(Bytes::from(body));
        response.headers_mut().insert("content-type", HeaderValue::from_static(kind));
        response
    }))
    .await;
    let source = block(&page, "toml").replace("{ env = \"LEADS_TOKEN\" }", "\"the token\"");
    let sim = SimSettings { talk_ms: Millis::exactly(50), ..Setup::default().sim };
    let tables = format!("[businesses.practice]\nmax_calls = 2\n{source}");
    let stage = Stage::start(Setup { sim, app: Some(app.url()), tables, ..Setup::default() }).await;

    let folder = std::env::temp_dir().join(format!("ringfence-reminders-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("daily-reminders.json"), block(&page, "json schedule")).unwrap();
    let worker = [("WORKER_REMINDER_HOUR", "11"), ("WORKER_REMINDER_TIMEZONE", "Europe/Istanbul")];
    let made = shell(&stage, &folder, &block(&page, "sh create"), &worker);
    let id = made.split_whitespace().next().unwrap().to_owned();
    assert!(id.starts_with("sched_") && made.contains("\"0 11 * * *\" Europe/Istanbul"), "{made}");
    let again = shell(&stage, &folder, &block(&page, "sh create"), &worker);
    assert!(again.starts_with(&id), "it may stand in a script: {again}");

    // Eleven on the clock there: it is the zone's hour, and inside the windows.
    let shown = stage.ask(&format!("/api/schedules/{id}")).await;
    let next: jiff::Timestamp = shown["nextAt"].as_str().unwrap().parse().unwrap();
    let there = next.in_tz("Europe/Istanbul").unwrap();
    assert_eq!((there.hour(), there.minute()), (11, 0));
    stage.clock.advance_ms(next.as_millisecond() - stage.clock.now_ms() + 10);
    let run = async || stage.ask("/api/runs").await["runs"][0].clone();
    stage.wait("everybody was called", async || run().await["state"] == "done").await;
    let calls = stage.control.calls();
    assert_eq!(calls.len(), 3, "{calls:?}");
    assert_eq!(run().await["businessId"], "practice");
    let listed = app.at("/api/reminders");
    assert_eq!((listed.len(), &listed[0].headers["authorization"]), (1, &HeaderValue::from_static("Bearer the token")));
    let date = there.strftime("%F").to_string();
    assert!(listed[0].path_and_query.contains("business=practice&schedule=daily-reminders&firing="));
    assert!(listed[0].path_and_query.ends_with(&format!("&date={date}")), "{}", listed[0].path_and_query);
    // The calls were answered with the app's own words, each with the fields of its lead.
    let mut asked: Vec<String> =
        app.at("/api/v1/webhooks/outbound-reminder").into_iter().map(|got| got.path_and_query).collect();
    asked.sort();
    let wanted = [("1041", "10%3A30"), ("1042", "14%3A00"), ("1043", "16%3A15")]
        .map(|(id, time)| format!("/api/v1/webhooks/outbound-reminder?appointment={id}&time={time}"));
    assert_eq!(asked, wanted);

    // By hand.
    let fired = shell(&stage, &folder, &block(&page, "sh fire"), &[("SCHEDULE", &id)]);
    assert!(fired.starts_with("run_") && fired.contains("3 leads"), "{fired}");
    stage.wait("everybody is called once more", async || stage.control.calls().len() == 6).await;
    let listed = shell(&stage, &folder, "ringfence schedules list", &[]);
    assert!(listed.lines().nth(1).unwrap().contains("daily-reminders"), "{listed}");
    let shown = shell(&stage, &folder, &format!("ringfence schedules show {id} --json"), &[]);
    assert_eq!(serde_json::from_str::<Value>(&shown).unwrap()["state"], "active");
    let paused = shell(&stage, &folder, &format!("ringfence schedules pause {id}"), &[]);
    assert!(paused.contains("  paused  "), "{paused}");
    shell(&stage, &folder, &format!("ringfence schedules resume {id} && ringfence schedules delete {id}"), &[]);
    assert_eq!(stage.ask("/api/schedules").await["schedules"], serde_json::json!([]));
    stage.wait("they are over", async || stage.held().await == 0).await;
    let _ = std::fs::remove_dir_all(&folder);
    stage.finish().await;
}

/// The other source of the page is one that the config takes, and its trial is one that `check` warns of.
#[test]
fn every_block_of_the_page_is_sound() {
    let page = read("docs/reminders.md");
    let blocks: Vec<&str> = page.split("```toml\n").skip(1).map(|rest| rest.split_once("```").unwrap().0).collect();
    assert_eq!(blocks.len(), 3);
    for block in blocks {
        let account = "[accounts.twilio]\naccount_sid = \"AC1\"\nauth_token = \"t\"\n[app]\nforward_url = \"http://127.0.0.1:1\"\n";
        let text = format!("{account}{block}");
        let env = |name: &str| match name {
            "LEADS_TOKEN" => Some("t".to_owned()),
            "APP_DATABASE_URL" => Some("postgres://reader@127.0.0.1/app".to_owned()),
            _ => None,
        };
        let loaded = ringfence::config::load(&text, std::path::Path::new("/nowhere"), &env);
        assert!(loaded.config.is_some(), "{block}: {:?}", loaded.diagnostics);
    }
}
