//! Simulated providers: ElevenLabs Agents and Twilio Voice in one process, speaking their wire
//! formats, with calls that ring, talk and end, webhooks that arrive or do not, and counts of
//! their own.
//!
//! This is the oracle of ringfence's tests and the stage of `ringfence simulate` and `ringfence demo`:
//! what it counts is the truth that ringfence is measured by. So it is a crate of its own, which uses
//! nothing of ringfence: server, client, signatures and ids are hyper's or its own.
//!
//! ```text
//! server, monitor ──► engine (lock, clock, deliveries) ──► world (state machine; knows no socket, no wait)
//! (requests in)         │                                    ├─ elevenlabs, records, batch   requests → answers
//!                       ▼                                    ├─ twilio, twilio_list, subaccounts
//!                     post (webhooks out)                    ├─ inbound                      calls from outside, TwiML
//!                                                            └─ webhooks                     what is sent, and lost
//! ```

mod batch;
mod call;
mod control;
mod counts;
mod elevenlabs;
mod engine;
mod fault;
mod inbound;
mod monitor;
mod post;
mod records;
mod rng;
mod server;
mod settings;
pub mod sign;
mod subaccounts;
mod transcription;
mod twilio;
mod twilio_list;
mod webhooks;
mod wire;
mod world;

pub use call::{CallView, Outcome};
pub use control::Control;
pub use counts::Counts;
pub use fault::{Fault, FaultKind, Operation, Provider};
pub use inbound::{Inbound, Via};
pub use server::Simulator;
pub use settings::{Millis, SimSettings};
pub use subaccounts::Subaccount;
