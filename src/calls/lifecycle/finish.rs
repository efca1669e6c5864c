//! Work that is finished even if its waiter is dropped.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

/// The work panicked. The panic hook has printed the message and place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it panicked")]
pub struct Panicked;

/// Work that runs where it is awaited, and continues in a task of its own if its waiter is dropped. Cheaper than a task from the
/// start: no wake-ups while the waiter stays. Made by [`run_to_completion`].
pub struct Finish<T: Send + 'static> {
    work: Option<BoxFuture<'static, std::thread::Result<T>>>,
}

/// Runs work to its end, even if its waiter is dropped (see [`Finish`]). Work that is dropped outside a runtime, or with it, is lost.
pub fn run_to_completion<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Finish<T> {
    Finish { work: Some(AssertUnwindSafe(work).catch_unwind().boxed()) }
}

impl<T: Send + 'static> Future for Finish<T> {
    type Output = Result<T, Panicked>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Polled after its end.
        let Some(work) = &mut self.work else { return Poll::Pending };
        let done = ready!(work.poll_unpin(cx));
        self.work = None;
        Poll::Ready(done.map_err(|_| Panicked))
    }
}

impl<T: Send + 'static> Drop for Finish<T> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(work);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn work_goes_on_without_its_waiter_and_a_panic_is_told() {
        let (go, wait) = oneshot::channel();
        let (done, told) = oneshot::channel();
        let mut work = run_to_completion(async move {
            wait.await.unwrap();
            done.send(5).unwrap();
        });
        assert!((&mut work).now_or_never().is_none(), "it waits");
        drop(work);
        go.send(()).unwrap();
        assert_eq!(told.await, Ok(5));

        let (done, told) = oneshot::channel();
        drop(run_to_completion(async move { done.send(6) }));
        assert_eq!(told.await, Ok(6), "it was not even begun");

        assert_eq!(run_to_completion(async { 7 }).await, Ok(7));
        let broken: Result<(), Panicked> = run_to_completion(async { panic!("as the test wants") }).await;
        assert_eq!(broken, Err(Panicked));
    }
}
