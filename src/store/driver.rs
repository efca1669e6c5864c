//! The interface between queries and back ends: a connection inside a transaction ([`Driver`]), and the transactions themselves
//! ([`Backend`]).

use std::borrow::Cow;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::row::Row;
pub(super) use super::row::{Fault, Sql, damaged};
use super::{AdmitOutcome, IngestOutcome, NewCall, NewUtterance, OnSignal, Result, UtteranceIngest, UtteranceRef};
use crate::clock::UnixMs;
use crate::failpoint;
use crate::ids::{Alias, CallId};
use crate::policy::decision::{AdmissionRequest, GateState};
use crate::provider::secret::Secret;

/// A step of a transaction. On SQLite it never awaits: it runs on a thread of the store.
pub(super) type Work<'c, T> = BoxFuture<'c, Sql<T>>;

/// A connection in a transaction, as queries use it.
pub(super) type Db<'c> = &'c mut (dyn Driver + 'c);

/// A parameter's value. Each has a type, null or not: Postgres needs it.
#[derive(Debug, Clone)]
pub(super) enum Value<'a> {
    Flag(Option<bool>),
    Number(Option<i64>),
    Float(Option<f64>),
    Text(Option<Cow<'a, str>>),
    Bytes(Option<Cow<'a, [u8]>>),
    /// A list: an array for Postgres, JSON for SQLite.
    Texts(Cow<'a, [String]>),
}

/// Parameters that are made before the transaction begins.
pub(super) type Owned = Vec<Value<'static>>;

macro_rules! values {
    ($($from:ty => |$value:ident| $make:expr),+ $(,)?) => {$(
        impl<'a> From<$from> for Value<'a> {
            fn from($value: $from) -> Self {
                $make
            }
        }
    )+};
}
values! {
    bool => |value| Self::Flag(Some(value)),
    Option<bool> => |value| Self::Flag(value),
    i64 => |value| Self::Number(Some(value)),
    Option<i64> => |value| Self::Number(value),
    u32 => |value| Self::Number(Some(value.into())),
    Option<u32> => |value| Self::Number(value.map(i64::from)),
    Option<f64> => |value| Self::Float(value),
    &'a str => |value| Self::Text(Some(value.into())),
    &'a String => |value| Self::Text(Some(value.as_str().into())),
    String => |value| Self::Text(Some(value.into())),
    Option<&'a str> => |value| Self::Text(value.map(Cow::from)),
    Option<String> => |value| Self::Text(value.map(Cow::from)),
    &'a Option<String> => |value| Self::Text(value.as_deref().map(Cow::from)),
    &'a [u8] => |value| Self::Bytes(Some(value.into())),
    Option<&'a [u8]> => |value| Self::Bytes(value.map(Cow::from)),
    Vec<String> => |value| Self::Texts(value.into()),
    &'a [String] => |value| Self::Texts(value.into()),
    &'a Vec<String> => |value| Self::Texts(value.as_slice().into()),
}

/// Parameters: `binds![id, at_ms]`.
macro_rules! binds {
    ($($value:expr),* $(,)?) => {
        [$($crate::store::driver::Value::from($value)),*]
    };
}
pub(super) use binds;

/// A connection inside a transaction. Statements are written for Postgres; SQLite's driver replaces what differs
/// (`sqlite/dialect.rs`). They are constants of the program: a driver caches a statement by its address.
pub(super) trait Driver: Send {
    /// Runs a statement; returns its rows.
    fn fetch<'c>(&'c mut self, sql: &'static str, binds: &'c [Value<'c>]) -> Work<'c, Vec<Row>>;

    /// Runs a statement; returns the number of written rows.
    fn execute<'c>(&'c mut self, sql: &'static str, binds: &'c [Value<'c>]) -> Work<'c, u64>;

    /// Runs a statement for many rows of parameters, which replace `{rows}`; returns the number of written rows, 0 for no rows.
    /// Postgres inserts them in one statement, so a row must not be written twice.
    fn execute_all<'c>(&'c mut self, sql: &'static str, rows: Vec<Vec<Value<'c>>>) -> Work<'c, u64>;

    /// Runs statements without parameters.
    fn script<'c>(&'c mut self, sql: &'c str) -> Work<'c, ()>;

    /// Whether a step may await something other than its statements: not on SQLite's writer thread.
    fn may_wait(&self) -> bool;

    /// Locks these ids until the transaction ends, before any row is locked. SQLite's single writer needs no locks.
    fn lock_ids<'c>(&'c mut self, _aliases: &'c [Alias]) -> Work<'c, ()> {
        std::future::ready(Ok(())).boxed()
    }

    /// Locks calls until the transaction ends.
    fn lock_calls<'c>(&'c mut self, _calls: &'c [&'c str]) -> Work<'c, ()> {
        std::future::ready(Ok(())).boxed()
    }

    /// Waits for other transitions of the limiter.
    fn queue_transition(&mut self) -> Work<'_, ()> {
        std::future::ready(Ok(())).boxed()
    }
}

/// Passes a failpoint.
pub(super) async fn failpoint(c: &mut dyn Driver, name: &'static str) {
    if c.may_wait() { failpoint::hit(name).await } else { failpoint::hit_in_thread(name) }
}

/// Runs a long computation outside the runtime's threads.
pub(super) async fn compute<T: Send + 'static>(
    c: &mut dyn Driver,
    work: impl FnOnce() -> T + Send + 'static,
) -> Sql<T> {
    match c.may_wait() {
        true => tokio::task::spawn_blocking(work).await.map_err(|_| sqlx::Error::WorkerCrashed.into()),
        false => Ok(work()),
    }
}

/// A back end: it begins and ends transactions, and does what the two databases do differently. Each is a store: see `queries`.
#[async_trait]
pub(super) trait Backend: Send + Sync + 'static {
    /// Runs a read in one snapshot.
    async fn read<A, T, F>(&self, args: A, work: F) -> Result<T>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
        F: for<'c> Fn(Db<'c>, &'c A) -> Work<'c, T> + Send + Sync + 'static;

    /// Runs a write in a transaction, and returns when it is durable. It may be run again from its beginning.
    async fn write<A, T, F>(&self, args: A, work: F) -> Result<T>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
        F: for<'c> Fn(Db<'c>, &'c A) -> Work<'c, T> + Send + Sync + 'static;

    /// Runs a write for a call while the pool has the given epoch, if any: otherwise nothing is written, and the inner error is the
    /// pool's current state.
    async fn write_under<A, T, F>(
        &self,
        epoch: Option<i64>,
        call: &CallId,
        args: A,
        work: F,
    ) -> Result<std::result::Result<T, GateState>>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
        F: for<'c> Fn(Db<'c>, &'c A) -> Work<'c, T> + Send + Sync + 'static;

    /// Uses the user and the password of this URL for new connections, where there is a server.
    fn reconnect_with(&self, _url: &Secret) {}

    /// Runs a writing statement; returns the number of rows.
    async fn run(&self, sql: &'static str, binds: Owned) -> Result<u64> {
        self.write(binds, move |c, binds| c.execute(sql, binds)).await
    }

    /// Runs a reading statement.
    async fn select<T: Send + 'static>(
        &self,
        sql: &'static str,
        binds: Owned,
        decode: for<'r> fn(&'r Row) -> Sql<T>,
    ) -> Result<Vec<T>> {
        let select = self.read(binds, move |c, binds| {
            async move {
                let rows = c.fetch(sql, binds).await?;
                rows.iter().map(decode).collect()
            }
            .boxed()
        });
        select.await
    }

    /// Settles whether a call is recorded, if its write got no answer.
    async fn settle_doubt(&self, _call: &CallId) -> Result<()> {
        Ok(())
    }

    /// The time of transitions, if the caller's is used.
    fn transition_time(&self, now_ms: UnixMs) -> Option<UnixMs>;

    /// Whether any delivery may be due: checked before a claim that would wait for other writes.
    async fn any_due(&self, _at_ms: UnixMs, _spool: &str) -> Result<bool> {
        Ok(true)
    }

    /// See [`super::Store::admit`].
    async fn decide(&self, call: NewCall, request: AdmissionRequest, epoch: i64) -> Result<AdmitOutcome>;

    /// See [`super::Transcripts::add_utterance`].
    async fn put_utterance(&self, call: &CallId, said: NewUtterance) -> Result<Option<UtteranceRef>>;

    /// See [`super::Transcripts::ingest`].
    async fn ingest_utterance(&self, ingested: UtteranceIngest) -> Result<IngestOutcome>;

    /// See [`super::Transcripts::listen`].
    async fn listen_for_signals(&self, on_signal: OnSignal) {
        drop(on_signal);
    }

    /// See [`super::Transcripts::wake_remote_diallers`].
    async fn wake_remote_diallers(&self) -> Result<()> {
        Ok(())
    }

    /// See [`super::Store::ping`].
    async fn probe(&self) -> Result<()>;

    /// See [`super::Store::failed_writes`].
    fn failures(&self) -> u64;

    /// See [`super::Store::close`].
    async fn shut(&self);
}
