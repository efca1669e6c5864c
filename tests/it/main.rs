//! The one integration-test binary.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests say what they expect by unwrapping it"
)]

mod acceptance;
mod app_sees;
mod attacks;
mod batch_runs;
mod callbacks;
mod canary;
mod chaos;
mod circles;
mod cli;
mod cli_check;
mod cli_do_not_call;
mod cli_first;
mod cli_mend;
mod cli_operate;
mod cli_smoke;
mod crash;
mod destinations;
mod docs;
mod fence;
mod figures;
mod first_contact;
mod fuzz;
mod harness;
mod holes;
mod hostile;
mod inbound;
mod inbound_native;
mod journal;
mod layering;
mod listeners;
mod log_records;
mod net_cost;
mod net_hygiene;
mod net_passing;
mod net_proxies;
mod net_relay;
mod net_tls;
mod net_tunnels;
mod observing;
mod openapi;
mod oracle;
mod outbound;
mod outbound_admin;
mod outbound_batches;
mod outbound_callbacks;
mod outbound_faults;
mod outbound_limits;
mod page;
mod page_acts;
mod postgres;
mod records;
mod redis;
mod reference;
mod rejections;
mod reload;
mod reminders;
mod replicas;
mod reports;
mod reposts;
mod run_windows;
mod runs;
mod runs_followed;
mod runs_killed;
mod schedules;
mod security_admin;
mod security_api;
mod seeds;
mod signatures;
mod spool;
mod start;
mod store_faults;
mod support;
mod traces;
mod transcripts;
mod transcripts_beyond;
mod transcripts_many;
mod vouchers;
mod webhook_paths;
mod webhooks;
mod webhooks_to_app;
