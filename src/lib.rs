//! ringfence: a sidecar between a voice product and its telephony providers. It keeps each business, and all of them together,
//! within the concurrent calls that were bought.
//!
//! # Modules, in reading order
//!
//! A module imports only from layers below its own; `tests/it/layering.rs` fails with file and line when one does not.
//!
//! ```text
//! L0  ids          identifiers, checked once, where they enter
//!     clock        the time, as a handle
//!     failpoint    points at which a debug build fails on request
//!     schedule     time zones of numbers, hours of the week, recurring times. Pure
//! L1  call         what a call is: phases, events, next(phase, event), proofs of an end. Pure
//!     destinations numbers that may be called: lists, types, hours. Pure
//!     jws          signed tokens: taken apart, checked, made. Pure
//!     metrics      every metric; the only caller of prometheus
//! L2  policy       which limits bind a call; which business a request belongs to. Pure
//!     provider     a provider as data: select, sign, render, account. Pure
//! L3  admission    the admission request, and the decision that every back end makes alike. Pure
//!     token        JWT: the client that shows one, and what it allows
//!     net          HTTP server (hyper) and client (hyper, pingora's pool); no other module depends on an HTTP engine
//! L4  gate         the limiter back ends: admit or reject, over all limits, in one atomic step
//!     store        durable state: calls, inbox, outbox, rejections, businesses, runs, schedules
//!     reports      panics and logged errors, sent to Sentry; the only caller of its types
//!     traces       span trees of creates, webhooks and deliveries, and log lines, sent to a collector; the only caller of opentelemetry
//! L5  capacity     which limiter decides at present, and under which epoch: memory, Redis or the database
//!     reply        rejections and errors as response bytes, in the provider's own shape
//!     notify       notifications between tasks and replicas that a call has changed
//! L6  lifecycle    the only writer of a call's state: persist → release if ended
//! L7  calls        placing, looking up and ending calls at providers; admission of inbound calls
//! L8  proxy        listen.api: routes, parses and answers one request
//!     webhook      listen.webhooks: authenticate → persist → translate → apply → reply or deliver
//!     transcripts  listen.client: live transcripts for clients with a token
//!     reconcile    compares our calls with the providers' lists and look-ups
//!     runs         bulk runs: a list of leads, dialled within the same limits as every other call, once or by a schedule
//! L9  config       TOML → each module's settings; reports all mistakes at once
//! L10 admin        listen.admin: the operator's page, health, status, metrics, calls, businesses, reload
//! L11 app          wiring: builds all parts, owns all tasks; start, reload, drain
//! L12 cli          the command line, one file a command
//! ```
//!
//! The crate `ringfence-simulator` has the providers of `ringfence simulate`, of `ringfence demo` and of the tests. It uses
//! nothing of this crate, and only [`cli`] uses it.
//!
//! # Invariants
//!
//! 1. Admitted calls never exceed a limit. [`gate`] decides over all limits of a call at once; only [`gate::Gate::adopt`] may go
//!    over a limit, for calls that exist already.
//! 2. A rejection leaves no trace in any limit.
//! 3. Every lease ends exactly once, with exactly one recorded proof ([`call::EndProof`]). No lease is released by a timer, and
//!    none by dropping a value: a client that hangs up changes nothing.
//! 4. There is no lease without a call record, and no open record without a lease; both have the same number of slots (a batch
//!    has several). The record is written before anything is sent.
//! 5. An acknowledged webhook is in the store, or in the journal until the store is back, and is applied once.
//! 6. A create request is sent at most once ([`net::Upstream::create`] never retries). Unknown outcomes are looked up, never
//!    dialled again. Only an admitted request can be sent: it has a [`capacity::Lease`], which only a recorded call is given.
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
pub mod reports;
pub mod runs;
pub mod schedule;
pub mod store;
pub mod token;
pub mod traces;
pub mod transcripts;
pub mod webhook;
