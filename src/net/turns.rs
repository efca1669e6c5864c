//! Several futures in one task, each polled only if it was woken itself: most wake-ups of a connection concern one of them.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// Maximum rounds over the futures before other tasks run.
const ROUNDS_MAX: usize = 8;

/// The wake-up state of the task.
#[derive(Debug, Default)]
pub(super) struct Turns(Arc<AtomicWaker>);

impl Turns {
    /// Adds a future, which is due at once.
    pub(super) fn turn(&self) -> Turn {
        let due = Arc::new(Due { is_due: AtomicBool::new(true), task: self.0.clone() });
        Turn { waker: due.clone().into(), due }
    }

    /// Polls `round` until it is ready, or no future is due.
    pub(super) fn poll<T>(&self, cx: &mut Context<'_>, turns: &[&Turn], mut round: impl FnMut() -> Poll<T>) -> Poll<T> {
        // Wake-ups from here on are noticed below, without another run of the task.
        self.0.take();
        for _ in 0..ROUNDS_MAX {
            let ready = round();
            if ready.is_ready() {
                return ready;
            }
            self.0.register(cx.waker());
            if !turns.iter().any(|turn| turn.due.is_due.load(Ordering::Acquire)) {
                return Poll::Pending;
            }
            self.0.take();
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// The wake-up state of one future.
#[derive(Debug)]
pub(super) struct Turn {
    due: Arc<Due>,
    waker: Waker,
}

#[derive(Debug)]
struct Due {
    is_due: AtomicBool,
    task: Arc<AtomicWaker>,
}

impl Wake for Due {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.is_due.swap(true, Ordering::AcqRel) {
            self.task.wake();
        }
    }
}

impl Turn {
    /// Marks it due in the next round.
    pub(super) fn wake(&self) {
        self.waker.wake_by_ref();
    }

    /// Marks it as not due.
    pub(super) fn rest(&self) {
        self.due.is_due.store(false, Ordering::Release);
    }

    /// The waker of the future.
    pub(super) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Polls the future if it is due.
    pub(super) fn poll<F: Future + ?Sized>(&self, future: Pin<&mut F>) -> Poll<F::Output> {
        if !self.due.is_due.swap(false, Ordering::AcqRel) {
            return Poll::Pending;
        }
        future.poll(&mut Context::from_waker(&self.waker))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::pin::pin;

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn only_who_was_woken_is_polled() {
        let (first, second, polls) = (Notify::new(), Notify::new(), [const { Cell::new(0) }; 2]);
        let counted = |nth: usize, of: &'static str| polls[nth].set(polls[nth].get() + of.len());
        let mut one = pin!(async {
            loop {
                first.notified().await;
                counted(0, "1");
            }
        });
        let mut two = pin!(async {
            for _ in 0..3 {
                first.notify_one();
                second.notified().await;
                counted(1, "1");
            }
        });
        let turns = Turns::default();
        let (a, b) = (turns.turn(), turns.turn());
        let mut rounds = 0;
        let mut both = pin!(poll_fn(|cx| {
            turns.poll(cx, &[&a, &b], || {
                rounds += 1;
                let _: Poll<()> = a.poll(one.as_mut());
                b.poll(two.as_mut())
            })
        }));
        for done in 0..3 {
            assert!(futures_util::poll!(both.as_mut()).is_pending());
            assert_eq!((polls[0].get(), polls[1].get()), (done + 1, done));
            second.notify_one();
        }
        both.await;
        assert_eq!(rounds, 3 * 2 + 1);
    }
}
