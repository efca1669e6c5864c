//! Rows of results, and errors of statements.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rusqlite::types::Value as Cell;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

/// The result of a statement.
pub(super) type Sql<T> = std::result::Result<T, Fault>;

/// The reason why a statement, or the reading of its rows, failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error(transparent)]
    Postgres(#[from] sqlx::Error),
    #[error("{0}")]
    Damaged(String),
    #[error("a value cannot be written: {0}")]
    Unwritable(#[from] serde_json::Error),
    #[error("a step of a transaction waited, which SQLite does not allow")]
    Waited,
}

/// An error for unreadable data.
pub(super) fn damaged(what: impl std::fmt::Display) -> Fault {
    Fault::Damaged(what.to_string())
}

/// A row. Columns are read by name; in the order of the table each is found at once.
#[derive(Debug)]
pub(super) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl Row {
    pub(super) fn optional_str(&self, column: &str) -> Sql<Option<&str>> {
        match self {
            Self::Sqlite(row) => row.text(column),
            Self::Postgres(row) => Ok(row.try_get(column)?),
        }
    }
    pub(super) fn optional_number(&self, column: &str) -> Sql<Option<i64>> {
        match self {
            Self::Sqlite(row) => row.number(column),
            Self::Postgres(row) => Ok(row.try_get(column)?),
        }
    }
    pub(super) fn optional_flag(&self, column: &str) -> Sql<Option<bool>> {
        match self {
            Self::Sqlite(row) => Ok(row.number(column)?.map(|n| n != 0)),
            Self::Postgres(row) => Ok(row.try_get(column)?),
        }
    }
    pub(super) fn optional_float(&self, column: &str) -> Sql<Option<f64>> {
        match self {
            Self::Sqlite(row) => row.float(column),
            Self::Postgres(row) => Ok(row.try_get(column)?),
        }
    }
    pub(super) fn optional_bytes(&self, column: &str) -> Sql<Option<Vec<u8>>> {
        match self {
            Self::Sqlite(row) => row.bytes(column),
            Self::Postgres(row) => Ok(row.try_get(column)?),
        }
    }
    pub(super) fn optional_text(&self, column: &str) -> Sql<Option<String>> {
        Ok(self.optional_str(column)?.map(str::to_owned))
    }
    /// A count, stored as a signed 64-bit number: Postgres has no unsigned type.
    pub(super) fn optional_count(&self, column: &str) -> Sql<Option<u32>> {
        self.optional_number(column)?.map(|n| n.try_into().map_err(damaged)).transpose()
    }
    pub(super) fn str(&self, column: &str) -> Sql<&str> {
        self.optional_str(column)?.ok_or_else(|| missing(column))
    }
    pub(super) fn text(&self, column: &str) -> Sql<String> {
        self.str(column).map(str::to_owned)
    }
    pub(super) fn number(&self, column: &str) -> Sql<i64> {
        self.optional_number(column)?.ok_or_else(|| missing(column))
    }
    pub(super) fn count(&self, column: &str) -> Sql<u32> {
        self.optional_count(column)?.ok_or_else(|| missing(column))
    }
    pub(super) fn flag(&self, column: &str) -> Sql<bool> {
        self.optional_flag(column)?.ok_or_else(|| missing(column))
    }
    /// A word of an enum.
    pub(super) fn word<T: std::str::FromStr<Err: std::fmt::Display>>(&self, column: &str) -> Sql<T> {
        self.str(column)?.parse().map_err(damaged)
    }
    pub(super) fn optional_word<T: std::str::FromStr<Err: std::fmt::Display>>(&self, column: &str) -> Sql<Option<T>> {
        self.optional_str(column)?.map(|word| word.parse().map_err(damaged)).transpose()
    }
    pub(super) fn json<T: serde::de::DeserializeOwned>(&self, column: &str) -> Sql<Option<T>> {
        self.optional_str(column)?.map(|text| serde_json::from_str(text).map_err(damaged)).transpose()
    }
}

fn missing(column: &str) -> Fault {
    damaged(format!("{column} is missing"))
}

/// A row that was read. The search for a column starts after the last one read.
#[derive(Debug)]
pub(super) struct SqliteRow {
    names: Arc<[String]>,
    cells: Vec<Cell>,
    next: AtomicUsize,
}

impl SqliteRow {
    pub(super) fn new(names: Arc<[String]>, cells: Vec<Cell>) -> Self {
        Self { names, cells, next: AtomicUsize::new(0) }
    }

    fn cell(&self, column: &str) -> Sql<&Cell> {
        let from = self.next.load(Ordering::Relaxed);
        let is_it = |at: &usize| self.names.get(*at).is_some_and(|name| name == column);
        let at = (from..self.names.len()).chain(0..from).find(is_it);
        let at = at.ok_or_else(|| damaged(format!("missing column {column}")))?;
        self.next.store(at + 1, Ordering::Relaxed);
        self.cells.get(at).ok_or_else(|| damaged(format!("missing column {column}")))
    }

    pub(super) fn text(&self, column: &str) -> Sql<Option<&str>> {
        match self.cell(column)? {
            Cell::Null => Ok(None),
            Cell::Text(text) => Ok(Some(text)),
            other => Err(strange(column, other)),
        }
    }
    pub(super) fn number(&self, column: &str) -> Sql<Option<i64>> {
        match self.cell(column)? {
            Cell::Null => Ok(None),
            Cell::Integer(number) => Ok(Some(*number)),
            other => Err(strange(column, other)),
        }
    }
    pub(super) fn float(&self, column: &str) -> Sql<Option<f64>> {
        match self.cell(column)? {
            Cell::Null => Ok(None),
            Cell::Real(number) => Ok(Some(*number)),
            other => Err(strange(column, other)),
        }
    }
    pub(super) fn bytes(&self, column: &str) -> Sql<Option<Vec<u8>>> {
        match self.cell(column)? {
            Cell::Null => Ok(None),
            Cell::Blob(bytes) => Ok(Some(bytes.clone())),
            other => Err(strange(column, other)),
        }
    }
}

fn strange(column: &str, cell: &Cell) -> Fault {
    damaged(format!("column {column} has a value of the type {}", cell.data_type()))
}
