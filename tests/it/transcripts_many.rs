//! Live transcripts of very many calls at once, and of a process that dies while they are followed.
//! `RINGFENCE_FIGURES` makes it as many as there may be.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use ringfence::ids::CallId;
use ringfence::net::{Upstream, UpstreamSettings};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::chaos::DATABASE;
use super::support::child::Serve;
use super::support::postgres as server;
use super::support::rng::Rng;
use super::support::socket::{HEARD, SECRET, SOCKET, Socket, TOKEN, say, setup, token};
use super::support::stage::{PATIENCE, Setup, Stage};

/// Utterances of a conversation after its first.
const EACH: usize = 3;
/// Webhooks that are under way at once.
const SENDERS: usize = 64;
/// Calls that one socket follows.
const FOLLOWED: usize = 1000;

fn conversations() -> usize {
    if std::env::var_os("RINGFENCE_FIGURES").is_some() { 10_000 } else { 2000 }
}

fn conversation(n: usize) -> String {
    format!("conv_{n}")
}

fn line(conversation: usize, n: usize) -> String {
    format!("{conversation} says {n}")
}

/// What each of these is answered: (conversation, utterance), number, id. Many go at once, each sender's in order.
async fn say_all(stage: &Arc<Stage>, all: &[(usize, usize)]) -> Vec<((usize, usize), u64, u64)> {
    let mut senders = JoinSet::new();
    for sender in 0..SENDERS {
        let own: Vec<(usize, usize)> = all.iter().skip(sender).step_by(SENDERS).copied().collect();
        let stage = stage.clone();
        senders.spawn(async move {
            let mut answers = vec![];
            for (call, n) in own {
                let answer = say(&stage, &conversation(call), "user", &line(call, n)).await;
                let number = |field: &str| answer[field].as_u64().unwrap();
                answers.push(((call, n), number("sequence_number"), number("transcription_id")));
            }
            answers
        });
    }
    senders.join_all().await.into_iter().flatten().collect()
}

/// Follows these from their beginning.
async fn follow(stage: Arc<Stage>, calls: std::ops::Range<usize>) -> (Socket, usize) {
    let mut socket = Socket::open(&stage, &token()).await;
    let count = calls.len();
    for call in calls.clone() {
        socket.say(&json!({"subscribe": conversation(call), "after": 0})).await;
    }
    for call in calls {
        assert_eq!(socket.hear_a("subscription_confirmed").await["sequence_number"], 1);
        assert_eq!(socket.hear_a("transcription").await["message_text"], line(call, 0));
    }
    (socket, count)
}

/// The texts of each conversation by their number, which come in order and without gaps.
async fn read(mut socket: Socket, calls: usize) -> HashMap<String, Vec<String>> {
    let mut texts = HashMap::<String, Vec<String>>::new();
    for _ in 0..calls * EACH {
        let message = socket.hear_a("transcription").await;
        let of = texts.entry(message["conversation_id"].as_str().unwrap().to_owned()).or_default();
        of.push(message["message_text"].as_str().unwrap().to_owned());
        assert_eq!(message["sequence_number"], of.len() + 1, "{message}");
    }
    socket.hears_nothing().await;
    texts
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_sequences_have_no_gaps_whatever_comes_twice_or_late() {
    let count = conversations();
    let mut rng = Rng::new("thousands of sequences");
    // However long it takes, no provider is asked about these calls, which it does not know.
    let sweep = ("sweep_ms = 100".to_owned(), "sweep_ms = 600000".to_owned());
    let setup = Setup { replace: vec![sweep], ..setup("", "", "[store]\npath = \"ringfence.db\"\n") };
    let stage = Arc::new(Stage::start(setup).await);
    let first: Vec<(usize, usize)> = (0..count).map(|call| (call, 0)).collect();
    assert!(say_all(&stage, &first).await.iter().all(|(_, number, _)| *number == 1));
    let ranges = (0..count).step_by(FOLLOWED).map(|from| from..count.min(from + FOLLOWED));
    let following: JoinSet<_> = ranges.map(|calls| follow(stage.clone(), calls)).collect();
    // Only now: nothing comes before all are followed.
    let readers: JoinSet<_> =
        following.join_all().await.into_iter().map(|(socket, calls)| read(socket, calls)).collect();
    // Every third comes twice or three times, and all of them in no order.
    let mut all = vec![];
    for said in (0..count).flat_map(|call| (1..=EACH).map(move |n| (call, n))) {
        let copies = if rng.below(3) == 0 { 2 + rng.below(2) } else { 1 };
        all.extend((0..copies).map(|_| said));
    }
    for n in (1..all.len()).rev() {
        all.swap(n, rng.below(n as u64 + 1) as usize);
    }
    let mut stands = BTreeMap::new();
    for (said, number, id) in say_all(&stage, &all).await {
        let before = stands.insert(said, (number, id));
        assert!(before.is_none_or(|before| before == (number, id)), "{said:?} got two numbers");
    }
    let mut heard = HashMap::new();
    for texts in readers.join_all().await {
        heard.extend(texts);
    }
    assert_eq!((stands.len(), heard.len()), (count * EACH, count));
    // Whoever follows has each under the number that its sender was told.
    for ((call, n), (number, _)) in stands {
        assert_eq!(heard[&conversation(call)][number as usize - 2], line(call, n));
    }
    let open = stage.app().calls().lifecycle.store.open_calls().await.unwrap();
    assert_eq!((open.len(), stage.held().await), (count, 0), "a record each, and no place for an app's word");
    eprintln!("{count} conversations, {} webhooks", first.len() + all.len());
    Arc::into_inner(stage).unwrap().finish().await;
}

/// One who follows a call, wherever it can.
struct Follower {
    last: u64,
    epoch: Value,
}

impl Follower {
    /// Comes again, to this process.
    async fn resume(&mut self, at: &Serve) -> Socket {
        let url = at.at("client", &format!("{SOCKET}?token={}", token()));
        let mut socket = Socket::connect_to(&url, &[]).await.ok().unwrap();
        socket.say(&json!({"subscribe": "conv_1", "after": self.last, "epoch": self.epoch})).await;
        let confirmed = socket.hear_a("subscription_confirmed").await;
        assert!(self.epoch.is_null() || self.epoch == confirmed["epoch"], "{confirmed}");
        self.epoch = confirmed["epoch"].clone();
        socket
    }

    fn take(&mut self, message: &Value) {
        self.last += 1;
        let wanted = (&json!("transcription"), &json!(self.last), &json!(format!("line {}", self.last)));
        assert_eq!((&message["type"], &message["sequence_number"], &message["message_text"]), wanted);
    }

    async fn hear(&mut self, socket: &mut Socket, count: u64) {
        for _ in 0..count {
            self.take(&socket.hear().await);
        }
    }
}

/// Nobody is asked about calls without a key.
fn config(store: &str) -> String {
    format!(
        "[listen]\napi = \"127.0.0.1:0\"\nwebhooks = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\nclient = \"127.0.0.1:0\"\n\
         [accounts.elevenlabs]\nupstream = \"http://127.0.0.1:1\"\nconcurrent = 5\nwebhook_tokens = [\"{}\"]\n\
         [client]\ntoken_secret = \"{SECRET}\"\n{store}\n",
        TOKEN.1
    )
}

/// Says the nth line, and returns what it is answered; `None` if nobody answers.
async fn say_line(http: &Upstream, at: &Serve, n: u64) -> Option<Value> {
    let body = json!({"conversation_id": "conv_1", "speaker": "agent", "message": format!("line {n}"),
        "timestamp": "2026-01-02T03:04:05Z"});
    let mut request = Request::new(Bytes::from(body.to_string()));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = at.at("webhooks", HEARD).parse().unwrap();
    request.headers_mut().insert("content-type", "application/json".parse().unwrap());
    request.headers_mut().insert(TOKEN.0, TOKEN.1.parse().unwrap());
    let answer = http.fetch(request, 1 << 20, PATIENCE).await.ok()?;
    assert_eq!(answer.status(), 201, "{:?}", answer.body());
    Some(serde_json::from_slice(answer.body()).unwrap())
}

/// The process dies while somebody speaks; who was not answered says it again.
async fn what_is_said_survives(fail: String) {
    let folder = std::env::temp_dir().join(format!("ringfence-said-{}", CallId::new()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("ringfence.toml"), config("")).unwrap();
    let http = Upstream::new(UpstreamSettings::default()).unwrap();
    let mut serve = Serve::start(&folder, &[], &fail).await;
    assert!(serve.is_ready(), "{fail}: {}", std::fs::read_to_string(folder.join("log")).unwrap());
    let (mut n, mut after_death) = (1, 0);
    while after_death < 3 {
        match say_line(&http, &serve, n).await {
            Some(answer) => {
                assert_eq!(answer["sequence_number"], n, "{fail}");
                n += 1;
                after_death += u64::from(after_death > 0);
            }
            None => {
                assert_eq!(after_death, 0, "{fail}: it dies once");
                after_death = 1;
                drop(serve);
                serve = replica(&folder).await;
            }
        }
        assert!(n < 200, "{fail}: it does not die");
    }
    let mut follower = Follower { last: 0, epoch: Value::Null };
    let mut socket = follower.resume(&serve).await;
    follower.hear(&mut socket, n - 1).await;
    socket.hears_nothing().await;
    drop(serve);
    let _ = std::fs::remove_dir_all(&folder);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_is_numbered_once_wherever_the_process_dies() {
    ringfence::net::install_crypto_provider();
    let mut rng = Rng::new("what is said survives");
    for point in ["webhook.read", "store.committing", "store.committed", "webhook.settled", "webhook.answered"] {
        // Past the commits of a start, and of a call's first words.
        what_is_said_survives(format!("{point}=abort:{}", 25 + rng.below(15))).await;
    }
}

async fn replica(folder: &Path) -> Serve {
    let serve = Serve::start(folder, &[], "").await;
    assert!(serve.is_ready(), "{}", std::fs::read_to_string(folder.join("log")).unwrap());
    serve
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_at_a_replica_that_is_killed_resumes_at_another() {
    if server::is_missing() {
        return;
    }
    ringfence::net::install_crypto_provider();
    let url = tokio::task::spawn_blocking(|| server::shared().database_over_tcp()).await.unwrap();
    let folder = std::env::temp_dir().join(format!("ringfence-killed-{}", CallId::new()));
    let (hearing, showing) = (folder.join("hears"), folder.join("shows"));
    let text = config(&format!("[store]\nurl = \"{url}\"\n{DATABASE}"));
    for folder in [&hearing, &showing] {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("ringfence.toml"), &text).unwrap();
    }
    let (hears, mut shows) = (replica(&hearing).await, replica(&showing).await);
    let hears = Arc::new(hears);
    let http = Upstream::new(UpstreamSettings::default()).unwrap();
    let heard_at = hears.clone();
    let says = async move |n: u64| {
        let told = say_line(&http, &heard_at, n).await.unwrap();
        assert_eq!(told["sequence_number"], n, "{told}");
    };
    says(1).await;
    // Somebody speaks all the time.
    let enough = Arc::new(AtomicBool::new(false));
    let is_enough = enough.clone();
    let speaker = tokio::spawn(async move {
        let mut n = 1;
        while !is_enough.load(Ordering::Relaxed) {
            n += 1;
            says(n).await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        n
    });
    let mut rng = Rng::new("a replica is killed");
    let mut follower = Follower { last: 0, epoch: Value::Null };
    for _ in 0..3 {
        let mut socket = follower.resume(&shows).await;
        follower.hear(&mut socket, 10 + rng.below(60)).await;
        // `kill -9`. What was sent before still comes, and then the end.
        drop(shows);
        while let Some(message) = socket.hear_on().await {
            follower.take(&message);
        }
        let mut socket = follower.resume(&hears).await;
        follower.hear(&mut socket, 10 + rng.below(60)).await;
        shows = replica(&showing).await;
    }
    let mut socket = follower.resume(&shows).await;
    enough.store(true, Ordering::Relaxed);
    let said: u64 = speaker.await.unwrap();
    follower.hear(&mut socket, said - follower.last).await;
    socket.hears_nothing().await;
    eprintln!("{said} utterances");
    drop((hears, shows));
    let _ = std::fs::remove_dir_all(&folder);
}
