//! Every query and transaction, once for all back ends: they make each [`Backend`](super::driver::Backend) a store. Written in
//! Postgres's dialect; `sqlite/dialect.rs` replaces what SQLite lacks.

pub(super) mod bindings;
pub(super) mod calls;
mod do_not_call;
pub(super) mod gate;
pub(super) mod messages;
mod operator;
mod records;
mod replicas;
mod retention;
pub(super) mod run_jobs;
pub(super) mod runs;
mod schedules;
mod store;
pub(super) mod transcripts;

use super::Result;
use super::driver::{Backend, Owned, Sql, damaged};

fn to_json(value: &(impl serde::Serialize + ?Sized)) -> Sql<String> {
    Ok(serde_json::to_string(value)?)
}

/// The only row, or the first.
fn first<T>(rows: Vec<T>) -> Sql<T> {
    rows.into_iter().next().ok_or_else(|| damaged("a row is missing"))
}

/// Runs a statement that changes at most `batch` rows until it changes fewer. Returns how many it changed in all. A statement over
/// jobs names its rows by their key alone, as an array, like [`CLAIM`](run_jobs::CLAIM).
async fn run_in_batches(store: &impl Backend, sql: &'static str, binds: Owned, batch: u32) -> Result<u64> {
    let mut all = 0;
    loop {
        let rows = store.run(sql, binds.clone()).await?;
        all += rows;
        if rows < batch.into() {
            return Ok(all);
        }
    }
}
