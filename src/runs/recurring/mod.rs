//! Recurring runs: a schedule makes a run whenever its time comes, of leads that it asks a source of the app for.
//!
//! [`spec`] is what a schedule asks for, [`source`] where leads come from, [`decide`] says what is to be done now, [`firing`] makes the run
//! of a firing, [`scheduler`] looks after all of them.
//!
//! One firing makes one run, on however many replicas and whatever crashes: the run's idempotency key names schedule and firing
//! ([`firing::key`]), and no two runs of a business have one key. The leader alone looks after schedules, so that a source is not
//! asked by all; that is for politeness and not for safety.

pub mod cron;
pub mod decide;
pub mod firing;
pub mod scheduler;
pub mod source;
pub mod spec;
