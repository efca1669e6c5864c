//! The threads that serve connections: one per core, each with a runtime of its own, so that a request, its connection and its
//! upstream connections stay on one thread. One task accepts and distributes connections round-robin, so that few connections are
//! spread evenly and a port has one owner (with `SO_REUSEPORT` a second process could silently share it).

use std::cell::Cell;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::{Builder, Handle};

static CORES: OnceLock<Vec<Handle>> = OnceLock::new();

thread_local! {
    /// The core of this thread; 0 on other threads.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// Starts one thread per core of the machine (or of its share). They live as long as the process. Later calls do nothing.
///
/// # Errors
/// A thread cannot be started.
pub fn start() -> io::Result<()> {
    if CORES.get().is_some() {
        return Ok(());
    }
    let count = count();
    let mut handles = Vec::with_capacity(count);
    for nth in 1..=count {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        handles.push(runtime.handle().clone());
        std::thread::Builder::new().name(format!("core-{nth}")).spawn(move || {
            CURRENT.set(nth);
            runtime.block_on(std::future::pending::<()>());
        })?;
    }
    let _ = CORES.set(handles);
    Ok(())
}

/// Returns when every core has answered; never if one is stuck.
pub async fn all_respond() {
    for core in CORES.get().into_iter().flatten() {
        // The runtime lives as long as the process.
        let _ = core.spawn(async {}).await;
    }
}

/// The next core in turn; `None` if none were started.
pub(super) fn next() -> Option<&'static Handle> {
    static TURN: AtomicUsize = AtomicUsize::new(0);
    let cores = CORES.get()?;
    cores.get(TURN.fetch_add(1, Ordering::Relaxed) % cores.len().max(1))
}

/// The core of the calling thread, from 1; 0 on other threads.
pub(super) fn current() -> usize {
    CURRENT.get()
}

/// The number of cores: the maximum of [`current`].
pub(super) fn count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
