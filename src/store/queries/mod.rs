//! What is asked of the database, each query and each transaction once: every [`Backend`](super::driver::Backend) is a store by them.
//! Written in Postgres's words; `sqlite/dialect.rs` replaces the few that SQLite has not.

pub(super) mod bindings;
pub(super) mod calls;
mod do_not_call;
pub(super) mod gate;
pub(super) mod messages;
mod operator;
mod records;
mod replicas;
mod retention;
mod runs;
mod schedules;
mod store;
mod transcripts;

use super::driver::{Sql, damaged};

fn to_json(value: &(impl serde::Serialize + ?Sized)) -> Sql<String> {
    Ok(serde_json::to_string(value)?)
}

/// The only row, or the first.
fn first<T>(rows: Vec<T>) -> Sql<T> {
    rows.into_iter().next().ok_or_else(|| damaged("a row is missing"))
}
