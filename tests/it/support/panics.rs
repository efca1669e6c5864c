//! A panic in a task of the program under test fails the whole run. The runtime swallows it, and so may the edge: the test
//! that made it happen would pass.

use std::io::Write as _;
use std::sync::Once;

/// The beginning of a deliberate panic of a test's own handler.
pub const ON_PURPOSE: &str = "on purpose";

/// From now on a panic in a task ends the process. Those on a test's own thread fail that test anyway.
pub fn end_the_run() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            before(panic);
            let on_purpose = panic.payload_as_str().is_some_and(|text| text.starts_with(ON_PURPOSE));
            if tokio::task::try_id().is_some() && !on_purpose {
                // Written past the capture of the test's output, which would be lost with the process.
                let trace = std::backtrace::Backtrace::force_capture();
                let _ = writeln!(std::io::stderr(), "\nA task panicked, so the run fails: {panic}\n{trace}");
                std::process::abort();
            }
        }));
    });
}

/// Whether what a child process said on stderr tells of a panic.
pub fn tells_of_a_panic(stderr: &str) -> bool {
    stderr.contains("panicked at")
}

/// Runs itself once more, as a process in which a task does panic.
#[tokio::test]
async fn a_panic_in_a_task_fails_the_run() {
    const INSIDE: &str = "RINGFENCE_TEST_PANIC_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        end_the_run();
        assert!(tokio::spawn(async { panic!("{ON_PURPOSE}, so nothing happens") }).await.is_err());
        let _ = tokio::spawn(async { panic!("a bug") }).await;
        return;
    }
    let run = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "support::panics::a_panic_in_a_task_fails_the_run"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(!run.status.success() && said.contains("A task panicked") && said.contains("a bug"), "{run:?}");
}
