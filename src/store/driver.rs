//! What a back end is to the queries: a connection inside a transaction ([`Driver`]), and who begins and ends transactions
//! ([`Backend`]). Values that go in, rows that come out.

use std::borrow::Cow;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::row::Row;
pub(super) use super::row::{Fault, Sql, damaged};
use super::{AdmitOutcome, IngestOutcome, NewCall, NewUtterance, Result, Ring, UtteranceIngest, UtteranceRef};
use crate::admission::{AdmissionRequest, GateState};
use crate::clock::UnixMs;
use crate::failpoint;
use crate::ids::{Alias, CallId};

/// A step of a transaction. On SQLite it never waits: it runs on a thread of the store.
pub(super) type Work<'c, T> = BoxFuture<'c, Sql<T>>;

/// A connection in a transaction, as queries have it.
pub(super) type Db<'c> = &'c mut (dyn Driver + 'c);

/// What a parameter is given. Each has its type, null or not: Postgres asks for it.
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

/// Parameters that are made before the transaction is.
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

/// A connection inside a transaction. Statements are written for Postgres; what SQLite calls otherwise is replaced by its driver
/// (`sqlite/dialect.rs`). They are texts of the program: a driver keeps what it made of one by where it stands.
pub(super) trait Driver: Send {
    /// Runs a statement; its rows.
    fn fetch<'c>(&'c mut self, sql: &'static str, binds: &'c [Value<'c>]) -> Work<'c, Vec<Row>>;

    /// Runs a statement; how many rows it wrote.
    fn execute<'c>(&'c mut self, sql: &'static str, binds: &'c [Value<'c>]) -> Work<'c, u64>;

    /// Runs a statement for many rows of parameters, which stand where it says `{rows}`; how many it wrote: of none, none. Postgres takes them all
    /// at once, so one row may not be written twice.
    fn execute_all<'c>(&'c mut self, sql: &'static str, rows: Vec<Vec<Value<'c>>>) -> Work<'c, u64>;

    /// Runs statements without parameters.
    fn script<'c>(&'c mut self, sql: &'c str) -> Work<'c, ()>;

    /// Whether a step may wait for something else than its statements: not on the thread that SQLite's writes share.
    fn may_wait(&self) -> bool;

    /// Keeps others from these ids until the transaction ends, before any row is locked. One writer needs no locks.
    fn lock_ids<'c>(&'c mut self, _aliases: &'c [Alias]) -> Work<'c, ()> {
        std::future::ready(Ok(())).boxed()
    }

    /// Keeps others from calls until the transaction ends.
    fn lock_calls<'c>(&'c mut self, _calls: &'c [&'c str]) -> Work<'c, ()> {
        std::future::ready(Ok(())).boxed()
    }

    /// Goes to the head of those who move the gate.
    fn queue_move(&mut self) -> Work<'_, ()> {
        std::future::ready(Ok(())).boxed()
    }
}

/// Passes a failpoint.
pub(super) async fn failpoint(c: &mut dyn Driver, name: &'static str) {
    if c.may_wait() { failpoint::hit(name).await } else { failpoint::hit_in_thread(name) }
}

/// Computes what takes its time, on no thread of the runtime.
pub(super) async fn compute<T: Send + 'static>(
    c: &mut dyn Driver,
    work: impl FnOnce() -> T + Send + 'static,
) -> Sql<T> {
    match c.may_wait() {
        true => tokio::task::spawn_blocking(work).await.map_err(|_| sqlx::Error::WorkerCrashed.into()),
        false => Ok(work()),
    }
}

/// Who begins and ends transactions, and does what the two databases do in their own ways. Every one is a store: see `queries`.
#[async_trait]
pub(super) trait Backend: Send + Sync + 'static {
    /// Runs a read, which sees one state.
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

    /// The same of a call, while the pool's epoch is the one that is given, if any: otherwise nothing is written, and the inner error is
    /// where the gate is.
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

    /// A statement that writes; how many rows.
    async fn run(&self, sql: &'static str, binds: Owned) -> Result<u64> {
        self.write(binds, move |c, binds| c.execute(sql, binds)).await
    }

    /// What a statement finds.
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

    /// Makes certain whether a call is on record, if its write got no answer.
    async fn settle_doubt(&self, _call: &CallId) -> Result<()> {
        Ok(())
    }

    /// The time of moves of the gate, if they go by the caller's.
    fn move_time(&self, now_ms: UnixMs) -> Option<UnixMs>;

    /// Whether any delivery may be due: asked where a take would wait for other writes.
    async fn any_due(&self, _at_ms: UnixMs, _spool: &str) -> Result<bool> {
        Ok(true)
    }

    /// See [`super::Store::admit`].
    async fn decide(&self, call: NewCall, order: AdmissionRequest, epoch: i64) -> Result<AdmitOutcome>;

    /// See [`super::Transcripts::say`].
    async fn put_utterance(&self, call: &CallId, said: NewUtterance) -> Result<Option<UtteranceRef>>;

    /// See [`super::Transcripts::hear`].
    async fn take_speech(&self, speech: UtteranceIngest) -> Result<IngestOutcome>;

    /// See [`super::Transcripts::listen`].
    async fn ring(&self, ring: Ring) {
        drop(ring);
    }

    /// See [`super::Store::ping`].
    async fn probe(&self) -> Result<()>;

    /// See [`super::Store::failed_writes`].
    fn failures(&self) -> u64;

    /// See [`super::Store::close`].
    async fn shut(&self);
}
