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
//!     sync         locks
//!     words        enums whose variants have names
//! L1  call         what a call is: phases, events, next(phase, event), proofs of an end. Pure
//!     destinations numbers that may be called, and when: lists, types, hours of the week, time zones. Pure
//!     jws          signed tokens: taken apart, checked, made. Pure
//! L2  provider     a provider as data: select, sign, render, account. Pure
//!     policy       which limits bind a call, and the decision over them that every limiter makes alike; which business a request
//!                  belongs to. Pure
//! L3  token        JWT: the client that shows one, and what it allows
//!     net          HTTP server (hyper) and client (hyper, pingora's pool); no other module depends on an HTTP engine
//!     metrics      every metric; the only caller of prometheus
//! L4  store        durable state: calls, inbox, outbox, rejections, businesses, runs, schedules
//!     telemetry    spans, log lines, panics and errors, sent to collectors; the only caller of opentelemetry and Sentry's types
//!     reply        rejections and errors as response bytes, in the provider's own shape
//! L5  admission    admits or rejects a call: the limiters (memory, Redis, the database), which of them decides, under which epoch
//! L6  calls        placing, looking up and ending calls; inbound calls; `lifecycle`, the only writer of a call's phase, ids
//!                  and end (persist → release if ended); `reconcile`, which compares our calls with the providers'
//! L7  proxy        listen.api: routes, parses and answers one request
//!     webhooks     listen.webhooks: authenticate → persist → translate → apply → reply or deliver
//!     transcripts  listen.client: live transcripts for clients with a token
//!     runs         bulk runs: a list of leads, dialled within the same limits as every other call, once or by a schedule
//! L8  config       TOML → each module's settings; reports all mistakes at once
//! L9  admin        listen.admin: the operator's page, health, status, metrics, calls, businesses, reload
//! L10 app          wiring: builds all parts, owns all tasks; start, reload, drain
//! L11 cli          the command line, one file a command
//! ```
//!
//! The crate `ringfence-simulator` has the providers of `ringfence simulate`, of `ringfence demo` and of the tests. It uses
//! nothing of this crate, and only [`cli`] uses it.
//!
//! # Invariants
//!
//! 1. Admitted calls never exceed a limit. [`admission`] decides over all limits of a call at once; only
//!    [`admission::limiter::Gate::adopt`] may go
//!    over a limit, for calls that exist already.
//! 2. A rejection leaves no trace in any limit.
//! 3. Every lease ends exactly once, with exactly one recorded proof ([`call::EndProof`]). No lease is released by a timer, and
//!    none by dropping a value: a client that hangs up changes nothing.
//! 4. There is no lease without a call record, and no open record without a lease; both have the same number of slots (a batch
//!    has several). The record is written before anything is sent. The one exception is observe mode: a create that no limiter can
//!    count, or whose record cannot be written, is sent with neither, and counted when a sweep finds its call.
//! 5. An acknowledged webhook is in the store, or in the journal until the store is back, and is applied once.
//! 6. A create request is sent at most once ([`net::Upstream::create`] never retries). Unknown outcomes are looked up, never
//!    dialled again. Only an admitted request can be sent: it has an [`admission::Permit`], which is the lease of a recorded call or,
//!    in observe mode alone, an [`admission::Uncounted`] call.
//! 7. No secret and no full telephone number in a log line, an error or a metric.

pub mod admin;
pub mod admission;
pub mod app;
pub mod call;
pub mod calls;
pub mod cli;
pub mod clock;
pub mod config;
pub mod destinations;
pub mod failpoint;
pub mod ids;
pub mod jws;
pub mod metrics;
pub mod net;
pub mod policy;
pub mod provider;
pub mod proxy;
pub mod reply;
pub mod runs;
pub mod store;
pub mod sync;
pub mod telemetry;
pub mod token;
pub mod transcripts;
pub mod webhooks;
pub mod words;
