//! A reload: whole or not at all, by command, by signal and by a file that changes.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Response};
use ringfence_simulator::{Millis, SimSettings};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::cli::{self, Folder};
use crate::support::hooks;
use crate::support::stage::{Answer, Behind, PATIENCE, Setup, Stage};

async fn stage(root: &str, tables: &str) -> Stage {
    Stage::start(Setup { root: root.to_owned(), tables: tables.to_owned(), ..Setup::default() }).await
}

fn came(answer: &Answer, status: u16, result: &str) {
    assert_eq!((answer.status, answer.json()["result"].as_str()), (status, Some(result)), "{answer:?}");
}

fn codes(answer: &Answer) -> Vec<String> {
    let errors = |d: &&Value| d["severity"] == "error";
    let all = answer.json();
    let list = all["diagnostics"].as_array().unwrap();
    list.iter().filter(errors).map(|d| d["code"].as_str().unwrap().to_owned()).collect()
}

async fn metric(stage: &Stage, line: &str) -> bool {
    stage.ask("/metrics").await.as_str().unwrap().lines().any(|l| l == line)
}

#[tokio::test(flavor = "multi_thread")]
async fn lowered_limits_only_drain_and_raised_ones_are_in_force_at_once() {
    let stage = stage("concurrent = 3\nmode = \"enforce\"", "").await;
    let before = stage.ask("/status").await["policy"].clone();
    for n in 0..3 {
        assert_eq!(stage.dial(None, &format!("+1555000200{n}")).await.status, 200);
    }
    stage.rewrite("concurrent = 3", "concurrent = 1");
    came(&stage.reload().await, 200, "loaded");
    let after = stage.ask("/status").await["policy"].clone();
    assert_eq!((&before["generation"], &after["generation"]), (&json!(1), &json!(2)));
    assert!(before["hash"] != after["hash"] && after["hash"].as_str().is_some_and(|h| h.len() == 12), "{after}");
    let refused = stage.dial(None, "+15550002003").await.json();
    assert_eq!(
        (&refused["currentActive"], &refused["limit"], &refused["globalLimit"]),
        (&json!(3), &json!(1), &json!(1))
    );
    assert_eq!((stage.held().await, stage.control.counts().el_live_now), (3, 3), "nobody is hung up");

    stage.rewrite("concurrent = 1", "concurrent = 4");
    came(&stage.reload().await, 200, "loaded");
    assert_eq!(stage.dial(None, "+15550002003").await.status, 200);
    assert_eq!(stage.dial(None, "+15550002004").await.json()["limit"], 4);

    stage.rewrite("\"enforce\"", "\"observe\"");
    came(&stage.reload().await, 200, "loaded");
    let observed = stage.dial(None, "+15550002004").await;
    assert_eq!((observed.status, observed.header("x-ringfence-would-refuse")), (200, Some("global")));
    stage.rewrite("\"observe\"", "\"enforce\"");
    came(&stage.reload().await, 200, "loaded");
    assert_eq!(stage.dial(None, "+15550002005").await.status, 503);
    came(&stage.reload().await, 200, "unchanged");
    assert!(metric(&stage, "ringfence_config_reloads_total{result=\"loaded\"} 4").await);
    assert!(metric(&stage, "ringfence_config_reloads_total{result=\"unchanged\"} 1").await);
    let status = stage.ask("/status").await;
    let (hash, policy) = (&status["policy"]["hash"], &status["replicas"][0]["policy"]);
    assert!(metric(&stage, &format!("ringfence_policy_info{{hash={policy}}} 1")).await, "{status}");
    assert!(metric(&stage, &format!("ringfence_config_info{{hash={hash}}} 1")).await);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_that_cannot_be_used_keeps_the_old_one_and_tells_every_mistake() {
    let stage = stage("concurrent = 1\nmode = \"enforce\"", "").await;
    let before = stage.ask("/status").await["policy"].clone();
    stage.rewrite("concurrent = 1\nmode = \"enforce\"", "concurrent = \"9\"\nmode = \"enforcing\"\nspeed = 3");
    let kept = stage.reload().await;
    came(&kept, 422, "kept");
    assert_eq!(codes(&kept), ["E002", "E005", "E014"]);
    let drawn = kept.json()["drawn"].as_str().unwrap().to_owned();
    for part in ["error[E002]", "error[E005]", "error[E014]", "ringfence.toml:", "did you mean \"enforce\"?"] {
        assert!(drawn.contains(part), "{part} is not in\n{drawn}");
    }
    let key = stage.control.settings().el_api_key;
    assert!(!drawn.contains(&key), "secrets are painted over:\n{drawn}");
    let status = stage.ask("/status").await["policy"].clone();
    assert_eq!((&status["hash"], &status["generation"]), (&before["hash"], &before["generation"]));
    let reason = status["lastFailedReload"]["reason"].as_str().unwrap();
    assert!(reason.contains("E014") && reason.contains("ringfence.toml:"), "{reason}");
    assert!(metric(&stage, "ringfence_config_last_reload_successful 0").await);
    assert_eq!(stage.dial(None, "+15550002001").await.status, 200);
    assert_eq!(stage.dial(None, "+15550002002").await.json()["limit"], 1, "the old limit binds");

    // The old text is back: nothing has to be loaded, and nothing is wrong any more.
    stage.rewrite("concurrent = \"9\"\nmode = \"enforcing\"\nspeed = 3", "concurrent = 1\nmode = \"enforce\"");
    came(&stage.reload().await, 200, "unchanged");
    assert_eq!(stage.ask("/status").await["policy"], before);
    assert!(metric(&stage, "ringfence_config_last_reload_successful 1").await);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_a_restart_is_refused_whole_and_named() {
    let stage = stage("concurrent = 1", "[store]\nretention_days = 30\n").await;
    stage.rewrite("concurrent = 1", "concurrent = 5");
    stage.rewrite("[store]\n", "[store]\npath = \"other.db\"\n");
    stage.rewrite("admin = \"127.0.0.1:0\"", "admin = \"127.0.0.1:1\"");
    let kept = stage.reload().await;
    came(&kept, 422, "kept");
    assert_eq!(codes(&kept), ["E060", "E060"]);
    let reason = kept.json()["message"].as_str().unwrap().to_owned();
    assert!(reason.contains("`listen.admin`") && reason.contains("`store.path`"), "{reason}");
    assert_eq!(stage.dial(None, "+15550002001").await.status, 200);
    assert_eq!(stage.dial(None, "+15550002002").await.json()["limit"], 1, "nothing of it was taken up");
    // Without those keys the rest goes in.
    stage.rewrite("path = \"other.db\"\n", "");
    stage.rewrite("admin = \"127.0.0.1:1\"", "admin = \"127.0.0.1:0\"");
    came(&stage.reload().await, 200, "loaded");
    assert_eq!(stage.dial(None, "+15550002002").await.status, 200);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn creates_that_race_with_reloads_never_exceed_the_limit_in_force() {
    const LIMITS: [u32; 5] = [12, 3, 7, 1, 9];
    let sim = SimSettings { talk_ms: Millis::between(20, 120), ..Setup::default().sim };
    // Only who asks for a reload gets one: the watcher must not be quicker.
    let (root, tables) = ("concurrent = 12".to_owned(), "[reload]\nwatch = false\n".to_owned());
    let stage = Stage::start(Setup { sim, root, tables, ..Setup::default() }).await;
    let url = stage.api("/elevenlabs/v1/convai/twilio/outbound-call");
    let key = stage.control.settings().el_api_key;
    let client = ringfence::net::Upstream::new(ringfence::net::UpstreamSettings::default()).unwrap();
    let reloading = Arc::new(AtomicBool::new(true));
    let mut creates = tokio::task::JoinSet::new();
    for worker in 0..20 {
        let (url, key, client, reloading) = (url.clone(), key.clone(), client.clone(), reloading.clone());
        creates.spawn(async move {
            let (mut placed, mut asked) = (0, 0);
            // 200 creates at least, and on until the last reload is done.
            while asked < 10 || reloading.load(Ordering::Relaxed) {
                let to = format!("+1555{worker:03}{asked:04}");
                let body = json!({"agent_id": "a", "agent_phone_number_id": "p", "to_number": to}).to_string();
                let mut request = http::Request::new(Bytes::from(body));
                *request.method_mut() = http::Method::POST;
                *request.uri_mut() = url.parse().unwrap();
                request.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
                request.headers_mut().insert("xi-api-key", HeaderValue::from_str(&key).unwrap());
                let answer = client.fetch(request, 1 << 20, PATIENCE).await.unwrap();
                assert!(matches!(answer.status().as_u16(), 200 | 503), "{answer:?}");
                placed += u32::from(answer.status() == 200);
                asked += 1;
            }
            (placed, asked)
        });
    }
    let mut limit = 12;
    for round in 0..50 {
        let next = LIMITS[round % LIMITS.len()];
        if next != limit {
            stage.rewrite(&format!("concurrent = {limit}\n"), &format!("concurrent = {next}\n"));
            came(&stage.reload().await, 200, "loaded");
            limit = next;
        }
        // Decisions of before are in the gate by now; after them nobody comes in above the limit.
        let mut most = stage.held().await;
        for _ in 0..10 {
            let held = stage.held().await;
            assert!(held <= most.max(limit), "{held} calls are up: a limit of {limit}, and {most} a moment ago");
            most = held;
            tokio::task::yield_now().await;
        }
    }
    reloading.store(false, Ordering::Relaxed);
    let (mut placed, mut asked) = (0, 0);
    while let Some(done) = creates.join_next().await {
        let (p, a) = done.unwrap();
        (placed, asked) = (placed + p, asked + a);
    }
    let counts = stage.control.counts();
    assert!(counts.el_live_max <= 12, "the provider counted {}", counts.el_live_max);
    assert_eq!(counts.creates_el, u64::from(placed), "an admitted create is sent once, a refused one never");
    assert!(asked >= 200 && placed > 0 && placed < asked, "{placed} of {asked}");
    stage.wait("every slot to be free again", async || stage.held().await == 0).await;
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_keeps_what_it_began_with() {
    let (began, go_on) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (saw, may) = (began.clone(), go_on.clone());
    let old_provider = Behind::replying(Box::new(move |got| {
        if got.method != "POST" {
            return Response::builder().status(404).body(Bytes::new()).unwrap();
        }
        saw.store(true, Ordering::SeqCst);
        // The runtime has other work for this thread's queue meanwhile.
        tokio::task::block_in_place(|| {
            let started = Instant::now();
            while !may.load(Ordering::SeqCst) && started.elapsed() < PATIENCE {
                std::thread::park_timeout(Duration::from_millis(5));
            }
        });
        let body = json!({"success": true, "message": "", "conversation_id": "conv_old", "callSid": "CA_old"});
        Response::builder().header("content-type", "application/json").body(body.to_string().into()).unwrap()
    }))
    .await;
    let replace = vec![(
        "[accounts.elevenlabs]\nupstream = ".to_owned(),
        format!("[accounts.elevenlabs]\nupstream = \"{}\" #", old_provider.url()),
    )];
    let stage = Stage::start(Setup { root: "concurrent = 5".to_owned(), replace, ..Setup::default() }).await;
    let (answer, ()) = tokio::join!(stage.dial(None, "+15550002001"), async {
        // The create is on its way to the old address when the new one is loaded.
        while !began.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stage.rewrite(&format!("upstream = \"{}\" #", old_provider.url()), "upstream = ");
        came(&stage.reload().await, 200, "loaded");
        let new = stage.dial(None, "+15550002002").await;
        assert_eq!((new.status, stage.control.counts().creates_el), (200, 1), "the next one goes where it is sent now");
        go_on.store(true, Ordering::SeqCst);
    });
    assert_eq!((answer.status, answer.json()["conversation_id"].as_str()), (200, Some("conv_old")));
    assert!(stage.record("conv_old").await.is_some(), "its ids were learnt");
    stage.finish().await;
}

/// A create whose head is taken while its body is still to come.
async fn begin_create(stage: &Stage, body: &str) -> TcpStream {
    let mut socket = TcpStream::connect(stage.app().api()).await.unwrap();
    let head = format!(
        "POST /elevenlabs/v1/convai/twilio/outbound-call HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: application/json\r\nxi-api-key: {}\r\ncontent-length: {}\r\nexpect: 100-continue\r\n\r\n",
        stage.control.settings().el_api_key,
        body.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        seen.push(tokio::time::timeout(PATIENCE, socket.read_u8()).await.unwrap().unwrap());
    }
    assert!(seen.starts_with(b"HTTP/1.1 100"), "{}", String::from_utf8_lossy(&seen));
    socket
}

async fn finish_create(mut socket: TcpStream, body: &str) -> String {
    socket.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, socket.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_began_before_a_reload_is_decided_by_the_limits_after_it() {
    let stage = stage("concurrent = 2", "").await;
    let body = json!({"agent_id": "a", "agent_phone_number_id": "p", "to_number": "+15550002001"}).to_string();
    assert_eq!(stage.dial(None, "+15550002000").await.status, 200);
    let begun = begin_create(&stage, &body).await;
    stage.rewrite("concurrent = 2", "concurrent = 1");
    came(&stage.reload().await, 200, "loaded");
    let answer = finish_create(begun, &body).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("\"limit\":1,"), "{answer}");

    // Nor is it dialled on an account that is gone, whose limit binds nobody any more.
    stage.rewrite("concurrent = 1", "concurrent = 5");
    came(&stage.reload().await, 200, "loaded");
    let begun = begin_create(&stage, &body).await;
    stage.rewrite("[accounts.elevenlabs]", "[accounts.renamed]\nprovider = \"elevenlabs\"");
    came(&stage.reload().await, 200, "loaded");
    let answer = finish_create(begun, &body).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("removed from the config"), "{answer}");
    assert_eq!(stage.control.counts().creates_el, 1);
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_come_and_go_and_their_calls_end_by_proof() {
    let stage = stage("concurrent = 5", "# more").await;
    let url = stage.api("/second/v1/convai/twilio/outbound-call");
    let key = stage.control.settings().el_api_key;
    let body = json!({"agent_id": "a", "agent_phone_number_id": "p", "to_number": "+15550002001"}).to_string();
    let headers = [("content-type", "application/json"), ("xi-api-key", key.as_str())];
    assert_eq!(stage.send("POST", &url, &headers, body.clone()).await.status, 404);

    let upstream = stage.simulator_url();
    let second = format!(
        "[accounts.second]\nprovider = \"elevenlabs\"\nupstream = \"{upstream}\"\napi_key = \"{key}\"\nconcurrent = 1\n"
    );
    stage.rewrite("# more", &second);
    came(&stage.reload().await, 200, "loaded");
    let placed = stage.send("POST", &url, &headers, body.clone()).await;
    assert_eq!(placed.status, 200, "{placed:?}");
    let full = stage.send("POST", &url, &headers, body.clone()).await;
    assert_eq!(full.header("x-ringfence-limit"), Some("account.second"));
    let swept = async || {
        let status = stage.ask("/status").await;
        status["accounts"].as_array().unwrap().iter().any(|a| a["name"] == "second" && a["sweptAt"].is_string())
    };
    stage.wait("the new account is swept", swept).await;

    stage.rewrite(&second, "# more");
    came(&stage.reload().await, 200, "loaded");
    assert_eq!(stage.send("POST", &url, &headers, body).await.status, 404);
    assert_eq!(stage.held().await, 1, "its call is up, and counted");
    let gauge = "ringfence_provider_live_calls{account=\"second\"}";
    let gone = async || !stage.ask("/metrics").await.as_str().unwrap().contains(gauge);
    stage.wait("nothing is said of the account that is gone", gone).await;
    let sid = placed.json()["callSid"].as_str().unwrap().to_owned();
    assert!(stage.control.end_call(&sid));
    stage.wait("its slot is free", async || stage.held().await == 0).await;
    let proof = stage.record(&sid).await.unwrap().proof.unwrap();
    assert!(["webhook", "provider"].contains(&proof.as_str()), "{proof:?}");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn webhook_secrets_rotate_by_reload() {
    let stage = stage("concurrent = 5", "").await;
    let old = stage.control.settings().el_webhook_secret;
    let event = |n: u32| hooks::seed_event("conversation.started", &format!("conv_{n}"), "outbound");
    assert_eq!(hooks::elevenlabs(&stage, &event(1)).await.status, 200);
    let sign_with = |secret: &str| {
        let secret = secret.to_owned();
        stage.control.configure(|s| s.el_webhook_secret = secret);
    };
    sign_with("the next secret");
    assert_eq!(hooks::elevenlabs(&stage, &event(2)).await.status, 401);
    stage.rewrite(
        &format!("webhook_secrets = [\"an older secret\", \"{old}\"]"),
        "webhook_secrets = [\"the next secret\"]",
    );
    came(&stage.reload().await, 200, "loaded");
    assert_eq!(hooks::elevenlabs(&stage, &event(2)).await.status, 200);
    stage.control.configure(|s| s.el_webhook_secret = old);
    assert_eq!(hooks::elevenlabs(&stage, &event(3)).await.status, 401, "the old one counts no more");
    stage.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn businesses_that_were_put_survive_and_keep_their_limits() {
    let stage = stage("concurrent = 9", "[plans]\nGOLD = { concurrent = 2 }\n").await;
    let put = stage.send("PUT", &stage.admin("/api/businesses/birch"), &[], r#"{"plan":"GOLD"}"#).await;
    assert_eq!(put.status, 201, "{put:?}");
    assert_eq!(stage.ask("/status").await["policy"]["generation"], 2, "another policy is in force");
    assert_eq!(stage.dial(Some("birch"), "+15550002001").await.status, 200);
    stage.rewrite("concurrent = 9", "concurrent = 8");
    came(&stage.reload().await, 200, "loaded");
    assert_eq!(stage.ask("/api/businesses/birch").await["plan"], "GOLD");
    assert_eq!(stage.dial(Some("birch"), "+15550002002").await.status, 200);
    assert_eq!(stage.dial(Some("birch"), "+15550002003").await.header("x-ringfence-limit"), Some("plan.GOLD"));

    // A config without its plan would leave it without a limit.
    stage.rewrite("GOLD = { concurrent = 2 }", "");
    let kept = stage.reload().await;
    came(&kept, 422, "kept");
    assert_eq!(codes(&kept), ["E061"]);
    assert_eq!(stage.dial(Some("birch"), "+15550002003").await.header("x-ringfence-limit"), Some("plan.GOLD"));
    stage.finish().await;
}

// === the real program ===

fn status(admin: &str) -> Value {
    let got = Command::new("curl").args(["-s", &format!("http://{admin}/status")]).output().unwrap();
    serde_json::from_slice(&got.stdout).unwrap()
}

fn until(what: &str, admin: &str, so: impl Fn(&Value) -> bool) -> Value {
    let started = Instant::now();
    loop {
        let policy = status(admin)["policy"].clone();
        if so(&policy) {
            return policy;
        }
        assert!(started.elapsed() < PATIENCE, "it does not happen: {what}: {policy}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// As Kubernetes updates a ConfigMap: the files are links into `..data`, a link to a folder, which is replaced by a rename.
fn swap_data(folder: &Folder, version: &str, config: &str, key: &str) {
    let data = folder.0.join(version);
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("ringfence.toml"), config).unwrap();
    std::fs::write(data.join("key"), key).unwrap();
    std::os::unix::fs::symlink(version, folder.0.join("..data_tmp")).unwrap();
    std::fs::rename(folder.0.join("..data_tmp"), folder.0.join("..data")).unwrap();
}

#[test]
fn a_config_map_that_is_swapped_is_followed() {
    let folder = Folder::new();
    let key = folder.0.join("key").display().to_string();
    let config = |concurrent: &str| {
        let text = cli::sound("http://127.0.0.1:1")
            .replace("api_key = \"sk_simulated\"", &format!("api_key = {{ file = \"{key}\" }}"));
        let store = folder.0.join("ringfence.db").display().to_string();
        format!("concurrent = {concurrent}\n{text}[store]\npath = \"{store}\"\n")
    };
    for name in ["ringfence.toml", "key"] {
        std::os::unix::fs::symlink(format!("..data/{name}"), folder.0.join(name)).unwrap();
    }
    swap_data(&folder, "..v1", &config("3"), "sk_one");
    let file = folder.0.join("ringfence.toml").display().to_string();
    let (mut serve, ready) = cli::start(&["serve", "--config", &file, "--ready-json"]);
    let admin = ready["admin"].as_str().unwrap();
    let first = status(admin)["policy"].clone();

    swap_data(&folder, "..v2", &config("4"), "sk_one");
    let second = until("the new config is in force", admin, |p| p["hash"] != first["hash"]);
    assert_eq!(second["generation"], 2);
    // A secret alone: the config reads the same, what it names does not.
    swap_data(&folder, "..v3", &config("4"), "sk_two");
    let third = until("the new secret is in force", admin, |p| p["generation"] == 3);
    assert_eq!(third["hash"], second["hash"]);
    // A broken one is told, and changes nothing; neither does a file that is gone.
    swap_data(&folder, "..v4", &config("\"many\""), "sk_two");
    let broken = until("the mistake is told", admin, |p| p["lastFailedReload"].is_object());
    assert_eq!((&broken["hash"], &broken["generation"]), (&third["hash"], &json!(3)));
    std::fs::remove_file(folder.0.join("..data")).unwrap();
    let reason = |p: &Value| p["lastFailedReload"]["reason"].as_str().unwrap_or_default().to_owned();
    until("the missing file is told", admin, |p| reason(p).contains("cannot read the config"));
    swap_data(&folder, "..v5", &config("4"), "sk_two");
    let last = until("it is well again", admin, |p| p["lastFailedReload"].is_null());
    assert_eq!(last["generation"], 3);
    assert_eq!(cli::term(&mut serve), Some(0));
    let mut log = String::new();
    std::io::Read::read_to_string(&mut serve.0.stderr.take().unwrap(), &mut log).unwrap();
    let told = log.lines().filter(|l| l.contains("config not reloaded")).count();
    assert_eq!(told, 2, "once a mistake, not once a look:\n{log}");
    assert!(!log.contains("sk_one") && !log.contains("sk_two"), "{log}");
}

#[test]
fn the_signal_and_the_command_reload_and_the_command_says_how_it_went() {
    let folder = Folder::new();
    let config = |root: &str, filter: &str| {
        let store = folder.0.join("ringfence.db").display().to_string();
        let text = cli::sound("http://127.0.0.1:1");
        folder.write(
            "ok.toml",
            &format!(
                "{root}\n{text}[store]\npath = \"{store}\"\n[reload]\nwatch = false\n[log]\nfilter = \"{filter}\"\n"
            ),
        )
    };
    let file = config("concurrent = 3", "warn");
    let (mut serve, ready) = cli::start(&["serve", "--config", &file, "--ready-json"]);
    let address = ready["admin"].as_str().unwrap();
    let admin = ready["adminSocket"].as_str().unwrap().to_owned();
    let reload = || cli::run(&["reload", "--admin", &admin]);
    let first = status(address)["policy"].clone();

    config("concurrent = 4", "warn");
    let id = serve.0.id().to_string();
    assert!(Command::new("kill").args(["-HUP", &id]).status().unwrap().success());
    let second = until("the signal reloads", address, |p| p["generation"] == 2);
    assert!(second["hash"] != first["hash"]);

    let (code, out, _) = reload();
    assert!(code == Some(0) && out.starts_with("unchanged: policy "), "{out}");
    config("concurrent = 5", "info");
    let (code, out, _) = reload();
    assert!(code == Some(0) && out.starts_with("loaded: policy "), "{out}");
    let (_, listed, _) = cli::run(&["calls", "--admin", &admin, "list"]);
    let hash = status(address)["policy"]["hash"].as_str().unwrap().to_owned();
    assert!(listed.contains(&format!("policy {hash} enforce")), "{listed}");

    config("concurent = 6\nmode = \"observ\"", "info");
    let (code, out, err) = reload();
    assert_eq!((code, out.as_str()), (Some(2), ""), "{err}");
    for part in ["error[E014]", "error[E005]", "ok.toml:1:1", "did you mean `concurrent`?", &hash] {
        assert!(err.contains(part), "{part} is not in\n{err}");
    }
    let (code, out, _) = cli::run(&["reload", "--json", "--admin", &admin]);
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, json["result"].as_str(), json["policy"].as_str()), (Some(2), Some("kept"), Some(hash.as_str())));

    assert_eq!(cli::term(&mut serve), Some(0));
    let mut log = String::new();
    std::io::Read::read_to_string(&mut serve.0.stderr.take().unwrap(), &mut log).unwrap();
    assert!(log.contains("stopped") && !log.contains("SIGHUP"), "the filter became info with the third config:\n{log}");
    let (code, _, err) = reload();
    assert!(code == Some(1) && err.contains("no sidecar answers"), "{err}");
}
