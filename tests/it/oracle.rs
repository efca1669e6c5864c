//! The oracle: the providers' own counts judge, whatever goes wrong between them, ringfence and the app.
//!
//! `RINGFENCE_CHAOS_SECS` lets it go on for longer than CI has time for, `RINGFENCE_SEED` repeats a run.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringfence_simulator::{Fault, FaultKind, Millis, Provider};

use crate::support::child::{ALL_MAX, EL_MAX, Scene, signal};
use crate::support::rng::{Rng, chaos};
use crate::support::stage::unreliable;

/// How the providers' answers go wrong.
const WEATHER: [FaultKind; 8] = [
    FaultKind::Drop,
    FaultKind::AcceptThenDrop,
    FaultKind::ServerError,
    FaultKind::ServerErrorAfterCreate,
    FaultKind::NullIds,
    FaultKind::Slow,
    FaultKind::TooManyConcurrent,
    FaultKind::Invalid,
];

async fn weather(scene: &Scene, rng: &mut Rng, alive: &AtomicBool) {
    while alive.load(Ordering::Relaxed) {
        let kind = WEATHER[rng.below(WEATHER.len() as u64) as usize];
        let provider = [Provider::ElevenLabs, Provider::Twilio][rng.below(2) as usize];
        // Some answers come after the app's time-out, which is a second.
        let ms = if kind == FaultKind::Slow { rng.below(2_500) } else { 0 };
        scene.control.fault(Fault { ms, ..Fault::next(provider, kind, 1) });
        tokio::time::sleep(Duration::from_millis(100 + rng.below(300))).await;
    }
}

/// An app: it orders, takes calls, sometimes does not wait for the answer, and sometimes sends an order until it is told.
async fn app(scene: &Scene, mut rng: Rng, alive: &AtomicBool) {
    while alive.load(Ordering::Relaxed) {
        match rng.below(11) {
            0..3 => drop(scene.dial().await),
            3..6 => drop(scene.talk().await),
            6..9 => scene.insist(Duration::from_millis(20 << rng.below(8))).await,
            9 => scene.dial_and_hang_up(Duration::from_millis(rng.below(60))).await,
            _ => drop(scene.call_in()),
        }
        tokio::time::sleep(Duration::from_millis(10 + rng.below(30))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_goes_wrong_passes_a_limit_dials_twice_or_leaks() {
    let mut rng = Rng::new("oracle under faults");
    let sim = unreliable(&mut rng, Millis::between(50, 300));
    let mut scene = Scene::set(sim, "app", "create_secs = 1\ncreate_read_secs = 4", "").await;
    let (started, mut restarts) = (Instant::now(), 0);
    while started.elapsed() < chaos(10) {
        scene.start_well().await;
        {
            let alive = AtomicBool::new(true);
            let (moment, name) =
                (Duration::from_millis(500 + rng.below(2_500)), ["KILL", "TERM"][rng.below(2) as usize]);
            let apps: Vec<Rng> = (0..8).map(|_| rng.fork()).collect();
            let apps = apps.into_iter().map(|rng| app(&scene, rng, &alive));
            let end = async {
                tokio::time::sleep(moment).await;
                signal(scene.pid(), name);
                alive.store(false, Ordering::Relaxed);
            };
            tokio::join!(end, weather(&scene, &mut rng, &alive), futures_util::future::join_all(apps));
        }
        scene.died(Duration::from_secs(20)).await.expect("it stops");
        restarts += 1;
    }
    let counts = scene.control.counts();
    eprintln!(
        "{restarts} restarts, {} orders, {} of them dialled, {} callers, at most {} of {EL_MAX} and {} of {ALL_MAX} at once",
        scene.create_count(),
        counts.creates_el + counts.creates_tw,
        counts.inbound,
        counts.el_live_max,
        counts.both_live_max,
    );
    scene.give_up();
    scene.start_well().await;
    scene.finish().await;
}
