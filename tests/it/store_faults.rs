//! The record cannot be written while calls are up: nothing is sent, nothing leaks, and it goes on by itself.

use std::cell::Cell;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ringfence_simulator::{Fault, FaultKind, Provider};

use crate::support::child::Scene;
use crate::support::stage::Setup;

/// A call is up; the record cannot be written for a while, in which another is ordered and the first ends.
/// `kept`: webhooks can be kept beside the record meanwhile.
pub async fn outage(mut scene: Scene, breaks: impl FnOnce(&Scene), says: &str, kept: bool, mends: impl FnOnce(&Scene)) {
    scene.start_well().await;
    assert_eq!(scene.dial().await.unwrap().status, 200);
    let (up, _) = scene.talk().await;
    let up = up.unwrap().json()["sid"].as_str().unwrap().to_owned();
    scene.wait("both are up", async || scene.live().iter().all(|c| c.answered)).await;
    breaks(&scene);
    let refused = async || {
        let answer = scene.dial().await.unwrap();
        (answer.status == 503).then(|| {
            let body = answer.json();
            assert_eq!((&body["error"], &body["called"]), (&"CALL_STORE_UNAVAILABLE".into(), &false.into()));
        })
    };
    // What is in SQLite's hands already may still be written, and a small write may find room where a larger one did not.
    let mut before = (0, 0);
    scene
        .wait("creates are refused, one after another", async || {
            before = (scene.control.counts().creates_el, scene.held().await);
            for _ in 0..4 {
                if refused().await.is_none() {
                    return false;
                }
            }
            true
        })
        .await;
    let held = before.1;
    assert_eq!((scene.control.counts().creates_el, scene.held().await), before, "nothing sent, nothing held");
    let ready = scene.ask("admin", "GET", "/ready", &[], "").await.unwrap();
    assert_eq!((ready.status, &ready.json()["error"]), (503, &"STORE_UNAVAILABLE".into()));
    let store = scene.status().await["store"].clone();
    assert!(store["ok"] == false && store["error"].as_str().unwrap().contains(says), "{store}");
    let metrics = scene.ask("admin", "GET", "/metrics", &[], "").await.unwrap();
    let metrics = String::from_utf8(metrics.body.to_vec()).unwrap();
    let failed = metrics.lines().find_map(|l| l.strip_prefix("ringfence_store_failed_writes_total "));
    assert!(failed.unwrap().parse::<u64>().unwrap() >= 4, "{failed:?}");
    // Acknowledged if it is safe elsewhere, else not, so that the provider may send it again; and the slot stays until the end is on
    // record.
    scene.control.end_call(&up);
    let statuses = async || scene.control.counts().webhooks_answered_by_status;
    if kept {
        scene.wait("it is kept", async || scene.status().await["store"]["journaled"] != 0).await;
        assert!(!statuses().await.contains_key(&503), "{:?}", statuses().await);
    } else {
        scene.wait("it is refused", async || statuses().await.contains_key(&503)).await;
        assert_eq!(scene.status().await["store"]["journaled"], 0);
    }
    assert_eq!(scene.held().await, held);
    mends(&scene);
    scene
        .wait("it is ready again", async || {
            scene.ask("admin", "GET", "/ready", &[], "").await.is_some_and(|ready| ready.status == 200)
        })
        .await;
    scene.wait("the end that was missed is noticed", async || scene.held().await == held - 1).await;
    if kept {
        scene.wait("what was kept is on record", async || scene.status().await["store"]["journaled"] == 0).await;
    }
    let unsettled = async || scene.ask("admin", "GET", "/api/events?state=unsettled", &[], "").await.unwrap().json();
    scene.wait("what is in the inbox is applied", async || unsettled().await["events"] == serde_json::json!([])).await;
    assert_eq!(scene.status().await["store"]["ok"], true);
    assert_eq!(scene.talk().await.0.unwrap().status, 201);
    assert!(scene.log().contains("database writes work again"), "{}", scene.log());
    scene.finish().await;
}

/// A file system of its own, in memory.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(at).output().ok()?;
        done.status.success().then(|| Self(at.to_owned()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        let _ = std::fs::remove_dir(&self.0).and_then(|()| std::fs::remove_dir_all(self.0.join("..")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_creates_until_there_is_room() {
    let scene = Scene::set(Setup::default().sim, "front", "", "[store]\npath = \"disk/ringfence.db\"").await;
    let Some(disk) = Disk::mount(&scene.folder().join("disk")) else {
        return eprintln!("skipped: this user may not mount a small file system to fill");
    };
    let filler = disk.0.join("filler");
    let (stop, filling) = (Arc::new(AtomicBool::new(false)), Cell::new(None));
    let fill = |_: &Scene| {
        let mut file = std::fs::File::create(&filler).unwrap();
        while file.write_all(&[0; 1024]).is_ok() {}
        // A file that the program removes makes room again, which is filled at once.
        let stop = stop.clone();
        filling.set(Some(std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let _ = file.write_all(&[0; 1024]);
                std::thread::park_timeout(Duration::from_millis(1));
            }
        })));
    };
    let empty = |_: &Scene| {
        stop.store(true, Ordering::Relaxed);
        filling.take().unwrap().join().unwrap();
        std::fs::remove_file(&filler).unwrap();
    };
    outage(scene, fill, "the disk is full", false, empty).await;
}

/// The disk fails: here at the size of file that the process may write.
#[tokio::test(flavor = "multi_thread")]
async fn a_failing_disk_refuses_creates_until_it_works() {
    let mut scene = Scene::usual().await;
    // Without the signal that would end the process, writes beyond the limit fail.
    scene.wrapper = ["sh", "-c", "trap '' XFSZ; exec \"$0\" \"$@\""].map(str::to_owned).to_vec();
    let limit = |scene: &Scene, size: &str| {
        let limits = format!("--fsize={size}:unlimited");
        let done = Command::new("prlimit").args(["--pid", &scene.pid().to_string(), &limits]).status().unwrap();
        assert!(done.success());
    };
    let breaks = |scene: &Scene| {
        let wal = std::fs::metadata(format!("{}-wal", scene.database().display())).unwrap().len();
        limit(scene, &wal.to_string());
    };
    outage(scene, breaks, "the disk cannot be read or written", true, |scene| limit(scene, "unlimited")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_moved_away_refuses_creates_until_it_is_back() {
    let scene = Scene::usual().await;
    let (file, aside) = (scene.folder().join("ringfence.db"), scene.folder().join("aside"));
    let away = |_: &Scene| std::fs::rename(&file, &aside).unwrap();
    outage(scene, away, "deleted or replaced", true, |_| std::fs::rename(&aside, &file).unwrap()).await;
}

/// The provider refuses an order whose end cannot be recorded: its slot is free as soon as it can.
#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_could_not_be_recorded_is_recorded_when_it_can() {
    let mut scene = Scene::usual().await;
    assert!(scene.start("create.limit=sleep:1500").await);
    scene.control.fault(Fault::next(Provider::ElevenLabs, FaultKind::TooManyConcurrent, 1));
    let (file, aside) = (scene.folder().join("ringfence.db"), scene.folder().join("aside"));
    let away = async {
        scene.wait("the provider has refused", async || scene.control.counts().refused_429 == 1).await;
        std::fs::rename(&file, &aside).unwrap();
    };
    let (answer, ()) = tokio::join!(scene.dial(), away);
    assert_eq!((answer.unwrap().status, scene.held().await), (503, 1), "what is not on record is held");
    std::fs::rename(&aside, &file).unwrap();
    scene.wait("the end is on record", async || scene.held().await == 0).await;
    scene.finish().await;
}

/// The file goes away between a commit and the look whether it is still there: the end is on record, and its writer was told
/// that it may not be. The slot must not stay held for it.
#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_is_on_record_without_anybody_knowing_frees_its_slot() {
    let mut scene = Scene::usual().await;
    assert!(scene.start("store.committed=sleep:500").await);
    assert_eq!(scene.dial().await.unwrap().status, 200);
    let (file, aside) = (scene.database(), scene.folder().join("aside"));
    let reader = rusqlite::Connection::open_with_flags(&file, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    scene.control.set_webhook_loss(1.0);
    scene.end_all();
    let ended = async || {
        let sql = "SELECT count(*) FROM calls WHERE phase = 'ended'";
        reader.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap() == 1
    };
    scene.wait("the end is committed", ended).await;
    std::fs::rename(&file, &aside).unwrap();
    scene.wait("it is noticed", async || scene.log().contains("failed to write to the database")).await;
    assert_eq!(scene.held().await, 1, "nobody was told of the end");
    std::fs::rename(&aside, &file).unwrap();
    scene.wait("the slot is free", async || scene.held().await == 0).await;
    drop(reader);
    scene.finish().await;
}

/// The same for an order: it is refused, so nothing was sent; what is on record of it all the same is ended.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_is_on_record_without_anybody_knowing_is_ended() {
    let mut scene = Scene::usual().await;
    assert!(scene.start("store.committed=sleep:500").await);
    let (file, aside, to) = (scene.database(), scene.folder().join("aside"), scene.number());
    let reader = rusqlite::Connection::open_with_flags(&file, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let are = async |wanted: &str| -> i64 {
        let counted = "SELECT count(*) FROM calls WHERE phase = ?1";
        reader.query_row(counted, [wanted], |row| row.get(0)).unwrap()
    };
    let away = async {
        scene.wait("it is committed", async || are("reserved").await == 1).await;
        std::fs::rename(&file, &aside).unwrap();
    };
    let (answer, ()) = tokio::join!(scene.dial_to(&to), away);
    assert_eq!((answer.unwrap().status, scene.held().await, are("reserved").await), (503, 0, 1));
    std::fs::rename(&aside, &file).unwrap();
    scene.wait("its record is ended", async || are("ended").await == 1).await;
    assert_eq!(scene.dial_to(&to).await.unwrap().status, 200);
    assert_eq!(scene.control.counts().creates_el, 1);
    drop(reader);
    scene.finish().await;
}

/// A damaged record cannot be mended by us. Nothing is admitted over it; over a new one, what lives is counted.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_record_refuses_creates_and_a_new_one_counts_what_lives() {
    let mut scene = Scene::usual().await;
    scene.start_well().await;
    for _ in 0..2 {
        assert_eq!(scene.dial().await.unwrap().status, 200);
    }
    let files = ["", "-wal", "-shm"].map(|end| PathBuf::from(format!("{}{end}", scene.database().display())));
    for file in &files[..2] {
        let length = std::fs::metadata(file).unwrap().len() as usize;
        // Over what is there: SQLite has the file open.
        let mut file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
        file.write_all(&vec![0xa5; length]).unwrap();
    }
    scene
        .wait("it is not ready", async || {
            scene.ask("admin", "GET", "/ready", &[], "").await.is_some_and(|ready| ready.status == 503)
        })
        .await;
    let (refused, before) = (scene.dial().await.unwrap(), scene.control.counts().creates_el);
    assert_eq!((refused.status, &refused.json()["error"]), (503, &"CALL_STORE_UNAVAILABLE".into()));
    assert_eq!(scene.control.counts().creates_el, before);
    scene.kill();
    assert!(!scene.start("").await, "nobody starts over a damaged record");
    assert!(scene.log().contains("damaged or no SQLite file"), "{}", scene.log());
    scene.kill();
    files.iter().for_each(|file| drop(std::fs::remove_file(file)));
    scene.start_well().await;
    let up = u64::from(scene.control.counts().el_live_now);
    assert_eq!(scene.held().await, up, "all of them are counted before anything is admitted");
    tokio::join!(scene.dial(), scene.dial(), scene.dial());
    scene.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_panics_fails_alone() {
    // The first write is the start's own.
    // The first three writes are the start's own.
    for nth in [4, 5, 6, 7] {
        let mut scene = Scene::usual().await;
        assert!(scene.start(&format!("store.writing=panic:{nth}")).await, "{}", scene.log());
        let answers = [scene.dial().await, scene.talk().await.0, scene.dial().await, scene.talk().await.0];
        let placed = answers.iter().flatten().filter(|a| matches!(a.status, 200 | 201)).count();
        assert!(placed >= 3 && answers.iter().all(Option::is_some), "{answers:?}");
        assert!(scene.log().contains("failpoint store.writing: panic") || scene.log().contains("panicked"));
        scene.finish().await;
    }
}
