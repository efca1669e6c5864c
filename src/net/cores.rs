//! The cores that serve connections: one thread each, with a runtime of its own, so that what a request wakes is on the thread that
//! serves it, and so are the connections to upstreams that it uses. Accepting is one task's: it deals connections out in turn, so that
//! few of them are spread evenly, and a port has one owner (with `SO_REUSEPORT` a second process would silently share it).

use std::cell::Cell;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::{Builder, Handle};

static CORES: OnceLock<Vec<Handle>> = OnceLock::new();

thread_local! {
    /// Which core this thread is; 0 for all threads that are none.
    static HERE: Cell<usize> = const { Cell::new(0) };
}

/// Starts as many cores as the machine (or its share of one) has. They live as long as the process. Later calls do nothing.
///
/// # Errors
/// The system's, if a thread cannot be made.
pub fn start() -> io::Result<()> {
    if CORES.get().is_some() {
        return Ok(());
    }
    let count = last();
    let mut handles = Vec::with_capacity(count);
    for nth in 1..=count {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        handles.push(runtime.handle().clone());
        std::thread::Builder::new().name(format!("core-{nth}")).spawn(move || {
            HERE.set(nth);
            runtime.block_on(std::future::pending::<()>());
        })?;
    }
    let _ = CORES.set(handles);
    Ok(())
}

/// Returns when every core has answered: one that is stuck never does.
pub async fn answer() {
    for core in CORES.get().into_iter().flatten() {
        // Its runtime lives as long as the process.
        let _ = core.spawn(async {}).await;
    }
}

/// The core whose turn it is; `None` where there are none.
pub(super) fn next() -> Option<&'static Handle> {
    static TURN: AtomicUsize = AtomicUsize::new(0);
    let cores = CORES.get()?;
    cores.get(TURN.fetch_add(1, Ordering::Relaxed) % cores.len().max(1))
}

/// Which core the caller runs on: from 1; 0 on any other thread.
pub(super) fn here() -> usize {
    HERE.get()
}

/// The highest number that [`here`] can return.
pub(super) fn last() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
