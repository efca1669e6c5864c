//! The process dies at every point between admission and settlement, and at any moment. Whatever it leaves behind, the next one
//! finds it: nothing is dialled twice, no limit is passed, no slot leaks, no acknowledged webhook is lost.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringfence::failpoint;
use ringfence_simulator::{Fault, FaultKind, Millis, Operation, Provider, SimSettings, Simulator};
use tokio::sync::Semaphore;

use crate::support::child::{ALL_MAX, EL_MAX, Scene, signal};
use crate::support::rng::{Rng, chaos};
use crate::support::spooled;
use crate::support::stage::{PATIENCE, Setup, unreliable};

/// Processes that die at once: two cores are shared with the other tests.
static AT_ONCE: Semaphore = Semaphore::const_new(4);

/// What makes the process come to a point.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    /// It comes there by itself, at its start.
    Nothing,
    /// Orders at both providers.
    AdmissionRequest,
    /// An order, and the provider's answer goes wrong.
    Fault(FaultKind),
    /// An order whose answer is lost, and no webhook either.
    Lost,
    /// An order at an account whose provider is away.
    Away,
    /// register-call for a call that is up.
    Join,
    /// A caller.
    CallIn,
    /// A caller, while every slot is taken.
    CallInFull,
    /// A call ends.
    End,
    /// A call ends, and no webhook comes.
    EndUnheard,
    /// A call ends while the record is away.
    EndUnrecorded,
    /// A call is placed past ringfence.
    Past,
    /// An operator hangs up.
    HangUp,
    /// An operator has leases compared with the record.
    Compare,
    /// SIGTERM.
    Term,
}

/// How to come to a point: where the process before died already, what else is armed, what happens.
fn script(point: &str) -> Option<(&'static str, &'static str, Act)> {
    Some(match point {
        "create.recorded" | "create.sending" | "create.head" | "create.answered" | "create.unbound"
        | "create.bound" | "call.opened" | "store.writing" | "store.committing" | "store.committed" => {
            ("", "", Act::AdmissionRequest)
        }
        "gate.admitted" => ("", "", Act::AdmissionRequest),
        "gate.advanced" | "gate.rebuilt" => ("", "", Act::Nothing),
        "gate.comparing" => ("", "", Act::Compare),
        "create.stale" | "create.stale.ended" => ("", "create.recorded=sleep:1500", Act::AdmissionRequest),
        "create.joined" => ("", "", Act::Join),
        "create.not_sent" | "create.not_sent.ended" => ("", "", Act::Away),
        "create.limit" | "create.limit.ended" => ("", "", Act::Fault(FaultKind::TooManyConcurrent)),
        "create.rejected" | "create.rejected.ended" => ("", "", Act::Fault(FaultKind::Invalid)),
        "create.unknown" | "create.unknown.recorded" => ("", "", Act::Fault(FaultKind::ServerErrorAfterCreate)),
        "inbound.opened" | "inbound.fronted" => ("", "", Act::CallIn),
        "inbound.full" | "inbound.adopted" | "inbound.refused" => ("", "", Act::CallInFull),
        "webhook.read" | "webhook.received" | "webhook.applied" | "webhook.settled" | "webhook.answered"
        | "call.applied" | "call.ended" | "call.released" | "delivery.sent" | "delivery.noted" => ("", "", Act::End),
        "journal.kept" | "journal.received" => ("", "", Act::EndUnrecorded),
        // A webhook that is received may be a repeated one; one that is applied was new.
        "replay.applied" | "replay.settled" => ("webhook.applied", "", Act::Nothing),
        "call.kept_early" | "call.adopted" | "sweep.meeting" => ("", "", Act::Past),
        "hangup.sending" | "hangup.sent" | "hangup.over" => ("", "", Act::HangUp),
        "fetch.head" | "sweep.listed" => ("", "", Act::Nothing),
        "sweep.asked" => ("", "", Act::EndUnheard),
        "sweep.found" | "sweep.bound" => ("", "", Act::Lost),
        "sweep.absent" => ("", "", Act::Fault(FaultKind::ServerError)),
        "start.read" | "start.rebuilt" | "start.sighted" => ("", "", Act::Nothing),
        "start.marked" => ("create.recorded", "", Act::Nothing),
        "drain.begun" | "drain.answered" | "drain.settled" => ("", "", Act::Term),
        _ => return None,
    })
}

async fn act(scene: &mut Scene, act: Act) {
    match act {
        Act::Nothing => {}
        Act::AdmissionRequest => {
            tokio::join!(scene.dial(), scene.talk());
        }
        Act::Fault(kind) => {
            scene.control.fault(Fault::next(Provider::ElevenLabs, kind, 1));
            scene.dial().await;
        }
        Act::Lost => {
            scene.control.set_webhook_loss(1.0);
            scene.control.fault(Fault::next(Provider::Twilio, FaultKind::AcceptThenDrop, 1));
            scene.talk().await;
        }
        Act::Away => drop(scene.dial_at("away").await),
        Act::Join => {
            let (answer, to) = scene.talk().await;
            if answer.is_some() {
                scene.register("+15550001111", &to).await;
            }
        }
        Act::CallIn => drop(scene.call_in()),
        Act::CallInFull => {
            for _ in 0..ALL_MAX {
                scene.talk().await;
            }
            scene.call_in();
        }
        Act::End | Act::EndUnheard => {
            if act == Act::EndUnheard {
                scene.control.set_webhook_loss(1.0);
            }
            tokio::join!(scene.dial(), scene.talk());
            scene.end_all();
        }
        Act::EndUnrecorded => {
            tokio::join!(scene.dial(), scene.talk());
            let (file, aside) = (scene.folder().join("ringfence.db"), scene.folder().join("aside"));
            std::fs::rename(&file, &aside).unwrap();
            scene.end_all();
            let journal = scene.folder().join("ringfence.db-spool/journal");
            let started = Instant::now();
            while spooled(&journal).is_empty() && scene.serve().dead().is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
                assert!(started.elapsed() < PATIENCE, "no webhook is kept\n{}", scene.log());
            }
            std::fs::rename(&aside, &file).unwrap();
        }
        Act::Past => {
            scene.place_outside_ringfence().await;
        }
        Act::HangUp => {
            // Where a look-up of the sweep said it first, it is tried again with another call.
            if scene.live().is_empty() {
                scene.talk().await;
            }
            // Neither a webhook nor the sweep may say it first.
            scene.control.set_webhook_loss(1.0);
            for provider in [Provider::ElevenLabs, Provider::Twilio] {
                let kind = FaultKind::ServerError;
                scene.control.fault(Fault { on: Operation::List, n: None, ..Fault::next(provider, kind, 1) });
            }
            if let Some(sid) = scene.live().first().and_then(|call| call.call_sid.clone()) {
                scene.ask("admin", "POST", &format!("/api/calls/{sid}/hangup"), &[], "").await;
            }
        }
        Act::Compare => {
            scene.talk().await;
            scene.ask("admin", "POST", "/api/reconcile", &[], "").await;
        }
        Act::Term => signal(scene.serve().pid(), "TERM"),
    }
}

/// Lets the process die there, by `abort`.
async fn dies(scene: &mut Scene, point: &str, pass: u32) {
    let (_, more, what) = script(point).unwrap_or_else(|| panic!("nothing here comes to {point}"));
    let started = Instant::now();
    scene.start(&format!("{more},{point}=abort:{pass}")).await;
    loop {
        if let Some(status) = scene.died(Duration::from_millis(50)).await {
            assert_eq!(status.signal(), Some(6), "{point}: {status}\n{}", scene.log());
            assert!(scene.log().contains(&format!("failpoint {point}: abort")), "{}", scene.log());
            return;
        }
        assert!(started.elapsed() < PATIENCE, "nobody came to {point}\n{}", scene.log());
        act(scene, what).await;
        if let Some(status) = scene.died(Duration::from_millis(1_500)).await {
            assert_eq!(status.signal(), Some(6), "{point}: {status}\n{}", scene.log());
            return;
        }
        // Room for another try.
        scene.end_all();
    }
}

/// Calls are up, the process dies, one call ends meanwhile, the next process dies at the point, the third has to cope.
async fn survives(point: &'static str, pass: u32) {
    let _room = AT_ONCE.acquire().await.unwrap();
    let away = std::net::SocketAddr::from(([127, 0, 0, 1], ringfence::net::spare_port()));
    let timeouts = if point.starts_with("create.stale") { "send_within_secs = 1" } else { "" };
    let (before, _, what) = script(point).unwrap_or_else(|| panic!("nothing here comes to {point}"));
    let tables = match what {
        Act::Away => format!(
            "[accounts.away]\nprovider = \"elevenlabs\"\nupstream = \"http://{away}\"\napi_key = \"{}\"",
            SimSettings::default().el_api_key
        ),
        _ => String::new(),
    };
    let mut scene = Scene::set(Setup::default().sim, "front", timeouts, &tables).await;
    scene.start_well().await;
    let ended = scene.dial().await.unwrap().json()["conversation_id"].as_str().unwrap().to_owned();
    assert_eq!(scene.talk().await.0.unwrap().status, 201);
    scene.kill();
    if !before.is_empty() {
        dies(&mut scene, before, 1).await;
    }
    scene.control.end_call(&ended);
    dies(&mut scene, point, pass).await;

    // The provider that was away is back: else nobody could ever be asked about its orders.
    let back = match what {
        Act::Away => Some(Simulator::start(SimSettings { listen: away, ..SimSettings::default() }).await.unwrap()),
        _ => None,
    };
    scene.start_well().await;
    let live = scene.live().len() as u64;
    let held = scene.held().await;
    assert!(held >= live, "{point}: {live} are up, {held} are held\n{}", scene.log());
    // Whatever is left of the limits can be used, and no more.
    tokio::join!(scene.dial(), scene.talk(), scene.dial(), scene.talk(), scene.dial());
    scene.finish().await;
    if let Some(back) = back {
        back.stop().await;
    }
}

async fn all_survive(places: &[&str]) {
    let mut deaths = tokio::task::JoinSet::new();
    let taken = |point: &&&str| places.contains(&place(point)) && !IN_THE_STORE.contains(*point);
    for point in failpoint::ALL.iter().filter(taken) {
        deaths.spawn(survives(point, 1));
    }
    assert!(!deaths.is_empty());
    deaths.join_all().await;
}

fn place(point: &str) -> &str {
    point.split('.').next().unwrap_or_default()
}

/// Taken by the store's own tests, which die at it in a process of their own.
const IN_THE_STORE: &[&str] = &["store.advancing"];
const OF_ORDERS: &[&str] = &["create"];
const OF_WEBHOOKS: &[&str] = &["inbound", "webhook", "journal", "replay", "delivery"];
const OF_CALLS: &[&str] = &["call", "hangup", "store", "fetch"];
/// Taken by the tests of `runs` and `schedules`, which know whom a run calls.
const OF_RUNS: &[&str] = &["run", "schedule"];
const OF_PROCESSES: &[&str] = &["sweep", "start", "drain", "gate"];

#[tokio::test(flavor = "multi_thread")]
async fn a_death_on_the_way_of_an_order_costs_nothing() {
    all_survive(OF_ORDERS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_on_the_way_of_a_webhook_costs_nothing() {
    all_survive(OF_WEBHOOKS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_while_a_calls_state_changes_costs_nothing() {
    all_survive(OF_CALLS).await;
    // Later passes of the writer's points: between the commits of one order.
    let later =
        ["store.committing", "store.committed"].into_iter().flat_map(|point| (2..5).map(move |pass| (point, pass)));
    let mut deaths = tokio::task::JoinSet::new();
    later.for_each(|(point, pass)| drop(deaths.spawn(survives(point, pass))));
    deaths.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_in_a_sweep_a_start_or_a_drain_costs_nothing() {
    all_survive(OF_PROCESSES).await;
}

fn sources(dir: &Path, all: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("failpoint.rs") {
            all.push(path);
        }
    }
}

/// Every name is in the code, every name in the code is in the list, and the tests above come to each.
#[test]
fn every_failpoint_is_exercised() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    let code: String = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    for point in failpoint::ALL {
        assert!(code.contains(&format!("\"{point}\"")), "{point} is nowhere in the code");
        let is_scripted = script(point).is_some() || IN_THE_STORE.contains(point) || OF_RUNS.contains(&place(point));
        assert!(is_scripted, "no test comes to {point}");
        let tested = [OF_ORDERS, OF_WEBHOOKS, OF_CALLS, OF_PROCESSES, OF_RUNS].concat().contains(&place(point));
        assert!(tested, "no test takes {point}");
    }
    for (at, _) in code.match_indices("failpoint::hit(\"") {
        let name = code[at + 16..].split('"').next().unwrap();
        assert!(failpoint::ALL.contains(&name), "{name} is not in failpoint::ALL");
    }
}

/// The request has left, the answer has not come: the provider has the call, and nobody here knows.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_between_a_request_and_its_answer_loses_nothing() {
    let mut scene = Scene::usual().await;
    scene.start_well().await;
    for provider in [Provider::ElevenLabs, Provider::Twilio] {
        scene.control.fault(Fault { ms: 60_000, ..Fault::next(provider, FaultKind::Slow, 1) });
    }
    {
        let orders = async { tokio::join!(scene.dial(), scene.talk()) };
        let both = async {
            scene
                .wait("the providers have both", async || {
                    let counts = scene.control.counts();
                    counts.creates_el == 1 && counts.creates_tw == 1
                })
                .await;
            signal(scene.pid(), "KILL");
        };
        tokio::join!(orders, both);
    }
    scene.kill();
    scene.control.clear_faults(None);
    scene.control.set_webhook_loss(1.0);
    scene.start_well().await;
    assert_eq!(scene.held().await, 2, "both are counted before anything is decided");
    scene
        .wait("both are found", async || {
            let status = scene.status().await;
            status["accounts"].as_array().unwrap().iter().all(|a| a["unsettled"] == 0)
        })
        .await;
    assert_eq!((scene.held().await, scene.live().len()), (2, 2));
    scene.finish().await;
}

/// `kill -9` at any moment, while orders and callers come as fast as they can and webhooks are lost.
#[tokio::test(flavor = "multi_thread")]
async fn kills_at_any_moment_under_load_cost_nothing() {
    let mut rng = Rng::new("kills under load");
    let sim = unreliable(&mut rng, Millis::between(20, 400));
    let mut scene = Scene::set(sim, "app", "", "").await;
    let (started, mut kills) = (Instant::now(), 0);
    while started.elapsed() < chaos(10) {
        scene.start_well().await;
        {
            let alive = AtomicBool::new(true);
            let client = async |kind: usize| {
                while alive.load(Ordering::Relaxed) {
                    match kind % 3 {
                        0 => drop(scene.dial().await),
                        1 => drop(scene.talk().await),
                        _ => drop(scene.call_in()),
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            let moment = Duration::from_millis(rng.below(700));
            let killer = async {
                tokio::time::sleep(moment).await;
                signal(scene.pid(), "KILL");
                alive.store(false, Ordering::Relaxed);
            };
            tokio::join!(killer, futures_util::future::join_all((0..9).map(client)));
        }
        scene.kill();
        kills += 1;
    }
    let counts = scene.control.counts();
    eprintln!(
        "{kills} kills, {} calls, at most {} of {EL_MAX} and {} of {ALL_MAX} at once",
        counts.dials + counts.inbound,
        counts.el_live_max,
        counts.both_live_max
    );
    scene.start_well().await;
    scene.finish().await;
}

/// The process stands still between admission and dialling, longer than `send_within_secs`: nothing is sent late.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_stood_still_sends_nothing_late() {
    let mut scene = Scene::set(Setup::default().sim, "front", "send_within_secs = 3", "").await;
    // Alone, this pause is short enough.
    assert!(scene.start("create.recorded=sleep:2000").await);
    let order = scene.dial();
    let stop = async {
        scene
            .wait("it is on record", async || {
                let status = tokio::time::timeout(Duration::from_millis(300), scene.held()).await;
                status.is_ok_and(|held| held == 1)
            })
            .await;
        signal(scene.pid(), "STOP");
        tokio::time::sleep(Duration::from_millis(3_200)).await;
        signal(scene.pid(), "CONT");
    };
    let (answer, ()) = tokio::join!(order, stop);
    let answer = answer.unwrap();
    assert_eq!((answer.status, &answer.json()["error"]), (503, &"PROCESS_PAUSED".into()));
    assert_eq!(answer.json()["called"], false);
    assert_eq!((scene.control.counts().creates_el, scene.held().await), (0, 0));
    scene.finish().await;
}
