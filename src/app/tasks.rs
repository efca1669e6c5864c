//! The program's tasks.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Tasks, and what ends them.
#[derive(Clone, Default)]
pub(super) struct Tasks {
    /// All tasks of the program, apart from the listeners'.
    pub(super) all: TaskTracker,
    /// Ends them, after the last request is answered.
    pub(super) stop: CancellationToken,
    /// Cancelled when a drain begins: nothing new is started.
    pub(super) draining: CancellationToken,
}
