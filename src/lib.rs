//! ringfence: a sidecar between a voice product and its telephony providers. It fences the calls of each business, and of all
//! together, inside the capacity that was bought.
//!
//! # The house, in reading order
//!
//! A module imports only from layers below its own; `tests/it/layering.rs` fails with file and line when one does not.
//!
//! ```text
//! L0  ids          identifiers, checked once, where they enter
//!     clock        the time, as a handle
//!     failpoint    where a debug build fails when a test asks for it
//!     schedule     time zones of numbers, hours of the week, recurring times. Pure
//! L1  call         what a call is: phases, events, next(phase, event), proofs of an end. Pure
//!     destinations whom the app may call: numbers, lists, hours. Pure
//!     jws          signed tokens: taken apart, checked, made. Pure
//!     metrics      every metric; the only caller of prometheus
//! L2  policy       which limits bind a call; which business a request belongs to. Pure
//!     provider     a provider as data: select, sign, render, account. Pure
//! L3  admission    what is asked of a gate, and the decision that every back end makes alike. Pure
//!     token        JWT: who shows one, and what it allows
//!     net          the edge (hyper's server) and the way out (hyper's client, pingora's pool); only it knows which engines run
//! L4  gate         proposes: admits or refuses, over all limits, in one atomic step
//!     store        disposes: what survives a restart: calls, inbox, outbox, refusals, businesses, runs, schedules
//! L5  capacity     who decides just now, under which epoch: this process's gate, Redis or the database
//!     reply        every refusal and failure as bytes, in the provider's own shape
//!     notify       says that there is something new about a call, to whoever listens
//! L6  lifecycle    the only writer of a call's state: persist → release if ended
//! L7  calls        what is asked of providers: place, look up, end; what an inbound call meets
//! L8  proxy        listen.api: one request from head to tail
//!     webhook      listen.webhooks: verify → remember → translate → apply → reply or deliver
//!     transcripts  listen.client: what is said in calls, to who may follow them
//!     reconcile    leases and calls against the provider's truth
//!     runs         bulk runs: a list of leads, dialled inside the same limits as every other call, once or by a schedule
//! L9  config       the TOML as written → each module's settings; every mistake at once
//! L10 admin        listen.admin: the operator's page, health, status, metrics, calls, businesses, reload
//! L11 app          builds every part, owns every task, starts, reloads, drains
//! L12 cli          the command line, one file a command
//! ```
//!
//! Beside it stands the crate `ringfence-simulator`: the providers of `ringfence simulate`, of `ringfence demo` and of the tests. It
//! uses nothing of this one, and of this one only [`cli`] uses it.
//!
//! # What is always true
//!
//! 1. Admitted calls never exceed a limit. [`gate`] decides over all limits of a call at once; [`gate::Gate::adopt`] alone may go
//!    over one, for calls that exist anyway.
//! 2. A refusal leaves no trace in any limit.
//! 3. Every lease ends exactly once, with exactly one recorded proof ([`call::EndProof`]). No lease is freed by the clock, and
//!    none by dropping a value: a client that hangs up changes nothing.
//! 4. No lease without a record, no open record without a lease, and both say how many slots: a batch has several. The record
//!    is written before anything is sent.
//! 5. An acknowledged webhook is on record, or in the journal until it can be, and is applied once.
//! 6. A create is sent at most once an order ([`net::Upstream::create`] never repeats). Unknown outcomes are looked up, never
//!    dialled again. Only what was admitted can be sent: it has a
//!    [`capacity::Lease`], which is given for a call that is on record.
//! 7. No secret and no full telephone number in a log line, an error or a metric.

pub mod admin;
pub mod admission;
pub mod app;
pub mod call;
pub mod calls;
pub mod capacity;
pub mod cli;
pub mod clock;
pub mod config;
pub mod destinations;
pub mod failpoint;
pub mod gate;
pub mod ids;
pub mod jws;
pub mod lifecycle;
pub mod metrics;
pub mod net;
pub mod notify;
pub mod policy;
pub mod provider;
pub mod proxy;
pub mod reconcile;
pub mod reply;
pub mod runs;
pub mod schedule;
pub mod store;
pub mod token;
pub mod transcripts;
pub mod webhook;
