//! The program over Postgres: away at the start, away while calls are up, taken from under it.

use std::cell::RefCell;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use ringfence::app::App;
use ringfence::clock::Clock;
use ringfence::config;
use ringfence::net::{Upstream, UpstreamSettings, install_crypto_provider};

use crate::store_faults::outage;
use crate::support::child::Scene;
use crate::support::postgres::{Server, is_missing};
use crate::support::stage::{Setup, Stage};

fn store(url: &str) -> String {
    format!("[store]\nurl = \"{url}\"")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_goes_away_refuses_creates_until_it_is_back() {
    if is_missing() {
        return;
    }
    for how in ["INT", "QUIT"] {
        let server = RefCell::new(Server::start());
        let tables = store(&server.borrow().database());
        let scene = Scene::set(Setup::default().sim, "front", "", &tables).await;
        let stop = |_: &Scene| server.borrow_mut().stop(how);
        outage(scene, stop, "cannot be reached", true, |_| server.borrow_mut().start_again()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_comes_back_over_its_record_at_once() {
    if is_missing() {
        return;
    }
    let server = Server::start();
    let mut scene = Scene::set(Setup::default().sim, "front", "", &store(&server.database())).await;
    scene.start_well().await;
    for _ in 0..2 {
        assert_eq!(scene.dial().await.unwrap().status, 200);
    }
    scene.kill();
    scene.start_well().await;
    assert_eq!(scene.held().await, 2, "rebuilt from the record");
    scene.kill();
    for point in ["create.recorded=abort", "store.committing=abort:4", "store.committed=abort:4"] {
        // At what the start itself writes, it does not come up.
        if scene.start(point).await {
            scene.dial().await;
            scene.talk().await;
        }
        let name = point.split('=').next().unwrap();
        assert!(scene.log().contains(&format!("failpoint {name}: abort")), "{}", scene.log());
        scene.kill();
    }
    scene.start_well().await;
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lost_the_record_admits_nothing() {
    if is_missing() {
        return;
    }
    let server = Server::start();
    let url = server.database();
    let stage = Stage::start(Setup { tables: store(&url), ..Setup::default() }).await;
    assert_eq!(stage.dial(None, "+15550002222").await.status, 200);
    let name = url.split('?').next().unwrap().rsplit('/').next().unwrap();
    server.psql(name, "UPDATE ringfence.holders SET generation = generation + 1");
    let refused = stage.dial(None, "+15550002223").await;
    assert_eq!((refused.status, &refused.json()["error"]), (503, &"CALL_STORE_UNAVAILABLE".into()));
    assert_eq!(stage.control.counts().creates_el, 1, "nothing is sent");
    let ready = stage.send("GET", &stage.admin("/ready"), &[], "").await;
    assert!(ready.status == 503 && ready.json()["message"].as_str().unwrap().contains("taken"), "{ready:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_at_the_start_is_waited_for() {
    if is_missing() {
        return;
    }
    install_crypto_provider();
    let mut server = Server::start();
    let url = server.database();
    server.stop("INT");
    let port = ringfence::net::spare_port;
    let (api, webhooks, admin) = (port(), port(), port());
    let text = format!(
        "[listen]\napi = \"127.0.0.1:{api}\"\nwebhooks = \"127.0.0.1:{webhooks}\"\nadmin = \"127.0.0.1:{admin}\"\nclient = \"127.0.0.1:0\"\n\
         [accounts.elevenlabs]\nupstream = \"http://127.0.0.1:1\"\nconcurrent = 1\n{}",
        store(&url)
    );
    let loaded = config::load(&text, std::path::Path::new("/nowhere"), &|_| None);
    let config = loaded.config.unwrap_or_else(|| panic!("{:?}", loaded.diagnostics));
    let mut starting = tokio::spawn(App::start(config, Clock::system()));
    let http = Upstream::new(UpstreamSettings::default()).unwrap();
    let ask = async |method: &str, port: u16, path: &str| {
        let mut request = Request::new(Bytes::new());
        *request.method_mut() = method.parse().unwrap();
        *request.uri_mut() = format!("http://127.0.0.1:{port}{path}").parse().unwrap();
        let answer = http.fetch(request, 1 << 20, Duration::from_secs(20)).await.unwrap();
        (answer.status().as_u16(), String::from_utf8(answer.body().to_vec()).unwrap())
    };
    while std::net::TcpStream::connect(("127.0.0.1", admin)).is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (status, why) = ask("GET", admin, "/ready").await;
    assert!(status == 503 && why.contains("cannot be reached"), "{why}");
    for port in [api, webhooks, admin] {
        assert_eq!(ask("GET", port, "/health").await.0, 200);
    }
    let (status, body) = ask("POST", api, "/elevenlabs/v1/convai/twilio/outbound-call").await;
    assert!(status == 503 && body.contains("CALL_STORE_UNAVAILABLE") && !body.contains("postgres"), "{body}");
    assert_eq!(ask("POST", webhooks, "/webhooks/twilio/status").await.0, 503);
    assert!(!starting.is_finished());
    server.start_again();
    let app = (&mut starting).await.unwrap().unwrap();
    assert_eq!(ask("GET", admin, "/ready").await.0, 200);
    app.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_migrates_and_checks_a_database() {
    if is_missing() {
        return;
    }
    let (server, folder) = (Server::start(), std::env::temp_dir().join(format!("ringfence-pg-{}", std::process::id())));
    std::fs::create_dir_all(&folder).unwrap();
    let url = server.database_over_tcp().replace("postgres@", "postgres:hunter2@");
    let text = "[listen]\napi = \":0\"\nwebhooks = \":0\"\nadmin = \":0\"\nclient = \":0\"\n[accounts.elevenlabs]\nconcurrent = 1\n\
                [store]\nurl = { env = \"DATABASE_URL\" }\n";
    std::fs::write(folder.join("ringfence.toml"), text).unwrap();
    let run = |words: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ringfence"));
        let out = command.args(words).current_dir(&folder).env("DATABASE_URL", &url).output().unwrap();
        let said = [out.stdout, out.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
        assert!(!said.contains("hunter2"), "{said}");
        (out.status.code(), said)
    };
    let all = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/postgres")).unwrap().count() / 2;
    let (code, said) = run(&["migrate", "status"]);
    assert!(code == Some(0) && said.matches("missing").count() == all, "{said}");
    let (code, said) = run(&["check", "--live"]);
    let every = (1..=all).map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
    assert!(
        code == Some(0) && said.contains(&format!("lacks migration {every}, which the next start applies")),
        "{said}"
    );
    let (code, said) = run(&["migrate", "up"]);
    assert!(code == Some(0) && said.matches("applied").count() == all, "{said}");
    let (code, said) = run(&["check", "--live"]);
    assert!(code == Some(0) && said.contains("PostgreSQL 1") && said.contains("its schema is up to date"), "{said}");
    assert!(said.contains("W014"), "the tests' server flushes nothing: {said}");
    let (code, said) = run(&["migrate", "down"]);
    assert!(code == Some(0) && said.matches("missing").count() == 1, "{said}");
    drop(server);
    let (code, said) = run(&["check", "--live"]);
    assert!(code == Some(2) && said.contains("E053") && said.contains("cannot be reached"), "{said}");
    let (code, said) = run(&["migrate", "status"]);
    assert!(code == Some(1) && said.contains("it does not answer"), "{said}");
    let _ = std::fs::remove_dir_all(&folder);
}
