//! The engine that moves the world: its clock, its lock, and the sending of what it left in the outbox.
//!
//! The lock is never held across a wait.

use crate::control;
use crate::inbound::Question;
use crate::post::Post;
use crate::settings::SimSettings;
use crate::webhooks::{Attempt, Hook};
use crate::wire::{Ask, Reply};
use crate::world::{Effect, World};
use crate::{elevenlabs, sign, twilio};
use bytes::Bytes;
use http::{Method, Request, Response};
use jiff::Timestamp;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The time for which a call's next event waits for the answer to the one before.
const IN_ORDER: Duration = Duration::from_millis(250);

/// Both providers, running.
pub(crate) struct Engine {
    world: Mutex<World>,
    wake: Notify,
    post: Post,
    /// Events that wait for their turn, by call. A lane exists while something delivers from it.
    lanes: Mutex<HashMap<u64, VecDeque<Hook>>>,
    /// Events and questions on their way.
    on_the_way: AtomicUsize,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// Counts a Twilio API request as being answered while it exists.
struct Answering<'a>(&'a Engine);

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        let mut world = self.0.lock();
        world.api_now = world.api_now.saturating_sub(1);
    }
}

impl Engine {
    /// Builds the world and starts its clock.
    pub(crate) fn start(settings: SimSettings) -> Arc<Engine> {
        let engine = Arc::new(Engine {
            world: Mutex::new(World::new(settings)),
            wake: Notify::new(),
            post: Post::new(),
            lanes: Mutex::new(HashMap::new()),
            on_the_way: AtomicUsize::new(0),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        let clock = Arc::clone(&engine);
        engine.tasks.spawn(async move { clock.run().await });
        engine
    }

    /// Stops the clock and every delivery.
    pub(crate) async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the world.
    pub(crate) fn look<R>(&self, read: impl FnOnce(&World) -> R) -> R {
        read(&self.lock())
    }

    /// Changes the world and sends what comes of it.
    pub(crate) fn with<R>(self: &Arc<Self>, change: impl FnOnce(&mut World, Instant) -> R) -> R {
        let result = self.turn(change);
        self.wake.notify_one();
        result
    }

    fn turn<R>(self: &Arc<Self>, change: impl FnOnce(&mut World, Instant) -> R) -> R {
        let (result, effects) = {
            let mut world = self.lock();
            let result = change(&mut world, Instant::now());
            let effects = std::mem::take(&mut world.outbox);
            // Counted under the lock, so that nobody sees an idle world between.
            self.on_the_way.fetch_add(effects.len(), Ordering::SeqCst);
            (result, effects)
        };
        for effect in effects {
            self.dispatch(effect);
        }
        result
    }

    async fn run(self: Arc<Self>) {
        loop {
            let next = self.turn(|world, now| world.advance(now));
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.wake.notified() => {}
                () = due => {}
            }
        }
    }

    /// Nothing is live, nothing is waited for, nothing is on its way.
    pub(crate) fn idle(&self) -> bool {
        let world = self.lock();
        world.idle() && self.on_the_way.load(Ordering::SeqCst) == 0
    }

    /// Answers a request, after the time that the answer takes.
    pub(crate) async fn handle(self: &Arc<Self>, ask: &Ask<'_>) -> Reply {
        if ask.path.starts_with("/_sim/") {
            return control::respond(self, ask);
        }
        let is_twilio = ["/2010-04-01/", "/v1/Flows/", "/v2/Flows/"].iter().any(|p| ask.path.starts_with(p));
        let (reply, _answering) = if is_twilio {
            self.lock().api_now += 1;
            let answering = Answering(self);
            (self.with(|world, now| twilio::respond(world, ask, now)), Some(answering))
        } else {
            (self.with(|world, now| elevenlabs::respond(world, ask, now)), None)
        };
        if reply.wait_ms > 0 {
            tokio::time::sleep(Duration::from_millis(reply.wait_ms)).await;
        }
        reply
    }

    fn spawn(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = work => {}
            }
        });
    }

    fn arrived(&self) {
        self.on_the_way.fetch_sub(1, Ordering::SeqCst);
    }

    fn dispatch(self: &Arc<Self>, effect: Effect) {
        let engine = Arc::clone(self);
        match effect {
            Effect::Ask(question) => self.spawn(async move {
                engine.ask(question).await;
                engine.arrived();
            }),
            Effect::Hook(hook) => match hook.held_ms {
                Some(ms) => self.spawn(async move {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    engine.deliver(&hook).await;
                    engine.arrived();
                }),
                None => self.line_up(hook),
            },
        }
    }

    /// Events of one call go out in order; a slow receiver holds the next one up only briefly.
    fn line_up(self: &Arc<Self>, hook: Hook) {
        let n = hook.n;
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = lanes.get_mut(&n) {
            lane.push_back(hook);
            return;
        }
        lanes.insert(n, VecDeque::from([hook]));
        drop(lanes);
        let engine = Arc::clone(self);
        self.spawn(async move {
            while let Some(hook) = engine.next_in_lane(n) {
                let (sender, done) = tokio::sync::oneshot::channel::<()>();
                let deliverer = Arc::clone(&engine);
                engine.spawn(async move {
                    deliverer.deliver(&hook).await;
                    deliverer.arrived();
                    drop(sender);
                });
                _ = tokio::time::timeout(IN_ORDER, done).await;
            }
        });
    }

    fn next_in_lane(&self, n: u64) -> Option<Hook> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let hook = lanes.get_mut(&n).and_then(VecDeque::pop_front);
        if hook.is_none() {
            lanes.remove(&n);
        }
        hook
    }

    async fn deliver(&self, hook: &Hook) {
        let mut waits = hook.retry.waits.iter();
        loop {
            self.lock().counts.webhooks_sent += 1;
            let attempt = match self.attempt(hook).await {
                Ok(answer) => Attempt::Answered(answer.status().as_u16()),
                Err(attempt) => attempt,
            };
            {
                let counts = &mut self.lock().counts;
                match attempt {
                    Attempt::Answered(status) => *counts.webhooks_answered_by_status.entry(status).or_default() += 1,
                    _ => counts.webhooks_unanswered += 1,
                }
            }
            match waits.next() {
                Some(ms) if hook.retry.applies(attempt) => tokio::time::sleep(Duration::from_millis(*ms)).await,
                _ => return,
            }
        }
    }

    async fn attempt(&self, hook: &Hook) -> Result<Response<Bytes>, Attempt> {
        let method = if hook.get { Method::GET } else { Method::POST };
        let mut request = Request::builder().method(method).uri(&hook.url);
        for (name, value) in &hook.headers {
            request = request.header(*name, value);
        }
        if let Some(secret) = &hook.secret {
            let signature = sign::elevenlabs(secret, Timestamp::now().as_second(), &hook.body);
            request = request.header("elevenlabs-signature", signature);
        }
        let request = request.body(hook.body.clone()).map_err(|_| Attempt::NotConnected)?;
        self.post.send(request, hook.timeout).await
    }

    async fn ask(self: &Arc<Self>, question: Question) {
        let answer = self.attempt(&question.hook).await.ok();
        let answer = answer.map(|answer| (answer.status().as_u16(), answer.into_body()));
        self.with(|world, now| world.answered(question.hook.n, question.about, answer, now));
    }
}
