//! Messages on the pool's channel.

use std::sync::{Arc, Mutex};

use super::super::super::Channel as _;
use super::*;

/// Listens in the background, and keeps what it hears.
pub(super) struct Listener {
    heard: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<GateError>,
}

impl Listener {
    pub(super) fn of(gate: &Arc<RedisGate>) -> Self {
        let (gate, heard) = (Arc::clone(gate), Arc::<Mutex<Vec<String>>>::default());
        let all = Arc::clone(&heard);
        let task = tokio::spawn(async move {
            gate.subscribe(Box::new(move |word| all.lock().unwrap().push(word.to_owned()))).await
        });
        Self { heard, task }
    }

    fn has(&self, word: &str) -> bool {
        self.heard.lock().unwrap().iter().any(|heard| heard == word)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A listener hears from now on: says something until all have heard it.
pub(super) async fn all_hear(speaker: &RedisGate, listeners: &[&Listener], word: &str) {
    until("it is heard", async || {
        let _ = speaker.publish(&[word.to_owned()]).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        listeners.iter().all(|listener| listener.has(word))
    })
    .await;
}

#[tokio::test]
async fn what_one_says_all_hear_in_its_order() {
    let server = Server::start(&[]).await;
    let [a, b, other] = [settings(&server.url()), settings(&server.url()), pool(&server.url(), "another")];
    let (a, b, other) = (Arc::new(up(a).await), Arc::new(up(b).await), Arc::new(up(other).await));
    let (at_a, at_b, at_other) = (Listener::of(&a), Listener::of(&b), Listener::of(&other));
    all_hear(&a, &[&at_a, &at_b], "ready").await;
    all_hear(&other, &[&at_other], "there").await;
    let words: Vec<String> = (0..500).map(|n| n.to_string()).collect();
    a.publish(&words).await.unwrap();
    for at in [&at_a, &at_b] {
        until("all came", async || at.has("499")).await;
        assert!(at.heard.lock().unwrap().ends_with(&words));
    }
    assert!(!at_other.has("ready") && !at_a.has("there"), "pools do not hear each other");
}

#[tokio::test]
async fn who_lost_the_server_is_told_and_hears_again_when_it_is_back() {
    let mut server = Server::start(&[]).await;
    let gate = Arc::new(up(settings(&server.url())).await);
    let mut listener = Listener::of(&gate);
    all_hear(&gate, &[&listener], "one").await;
    server.kill();
    let ended = tokio::time::timeout(Duration::from_secs(20), &mut listener.task).await.unwrap().unwrap();
    assert!(matches!(ended, GateError::Away(_)), "{ended}");
    until("it cannot be said", async || is_away(gate.publish(&["two".to_owned()]).await)).await;
    assert!(is_away::<()>(Err(gate.subscribe(Box::new(|_| {})).await)));
    server.restart().await;
    until_up(&gate).await;
    let listener = Listener::of(&gate);
    all_hear(&gate, &[&listener], "three").await;
}

#[tokio::test]
async fn rights_that_lack_for_it_are_told_and_keep_no_decision() {
    let server = Server::start(&[]).await;
    let grant = outages::documented_rights();
    let less: Vec<_> = grant.split_whitespace().filter(|word| !["+publish", "+subscribe"].contains(word)).collect();
    server.say::<()>(&less).await;
    let gate = up(settings(&format!("redis://ringfence:hunter2@127.0.0.1:{}", server.port))).await;
    for said in [gate.publish(&["one".to_owned()]).await.unwrap_err(), gate.subscribe(Box::new(|_| {})).await] {
        assert!(said.to_string().contains("NOPERM") && !said.to_string().contains("hunter2"), "{said}");
    }
    gate.rebuild(1, &[], &[]).await.unwrap();
    assert_eq!(gate.admit(1, &request(&[concurrent("g", 1)])).await, admitted(1));
    server.say::<()>(&["ACL", "DELUSER", "ringfence"]).await;
    server.say::<()>(&grant.split_whitespace().collect::<Vec<_>>()).await;
    until_up(&gate).await;
    let gate = Arc::new(gate);
    let listener = Listener::of(&gate);
    all_hear(&gate, &[&listener], "two").await;
}
