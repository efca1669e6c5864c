//! A connection to the file. A statement is a function call: it is done before its future is awaited.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use futures_util::FutureExt as _;
use rusqlite::config::DbConfig;
use rusqlite::types::{ToSqlOutput, Value as Cell, ValueRef};
use rusqlite::{Connection, OpenFlags, Rows, ToSql, params_from_iter};

use super::super::StoreError;
use super::super::driver::{Driver, Fault, Sql, Value, Work};
use super::super::row::{Row, SqliteRow};
use super::dialect::translate;
use super::errors::{BUSY_TIMEOUT, explain_code};

/// The size of the cache of compiled statements: more than there are.
const STATEMENTS_MAX: usize = 256;

impl ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let borrowed = |value| Ok(ToSqlOutput::Borrowed(value));
        match self {
            Self::Flag(Some(flag)) => borrowed(ValueRef::Integer((*flag).into())),
            Self::Number(Some(number)) => borrowed(ValueRef::Integer(*number)),
            Self::Float(Some(number)) => borrowed(ValueRef::Real(*number)),
            Self::Text(Some(text)) => borrowed(ValueRef::Text(text.as_bytes())),
            Self::Bytes(Some(bytes)) => borrowed(ValueRef::Blob(bytes)),
            Self::Texts(texts) => match serde_json::to_string(texts) {
                Ok(json) => Ok(ToSqlOutput::Owned(Cell::Text(json))),
                Err(error) => Err(rusqlite::Error::ToSqlConversionFailure(error.into())),
            },
            _ => borrowed(ValueRef::Null),
        }
    }
}

/// A translated statement.
struct Prepared {
    sql: String,
    names: Option<Arc<[String]>>,
}

/// A SQLite connection, as the queries see it.
pub(super) struct Sqlite {
    pub(super) connection: Connection,
    /// By the address of the text, and the number of columns.
    known: HashMap<(usize, usize, usize), Prepared>,
}

impl Sqlite {
    /// Opens a file for reading and writing; creates a missing one.
    pub(super) fn open_or_create(path: &Path) -> Sql<Self> {
        Self::open_to_write(path, OpenFlags::SQLITE_OPEN_CREATE)
    }

    /// Opens an existing file for reading and writing.
    pub(super) fn open_existing(path: &Path) -> Sql<Self> {
        Self::open_to_write(path, OpenFlags::empty())
    }

    fn open_to_write(path: &Path, create: OpenFlags) -> Sql<Self> {
        let this = Self::open_with(path, OpenFlags::SQLITE_OPEN_READ_WRITE | create)?;
        this.connection
            .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON")?;
        Ok(this)
    }

    /// Opens an existing file for reading.
    pub(super) fn open_to_read(path: &Path) -> Sql<Self> {
        Self::open_with(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
    }

    fn open_with(path: &Path, flags: OpenFlags) -> Sql<Self> {
        let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        // A statement with `LIMIT $1` is planned anew each time it is bound, unless its plan may not depend on what is bound.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
        Ok(Self { connection, known: HashMap::new() })
    }

    /// Runs a statement without parameters.
    pub(super) fn simply(&mut self, sql: &'static str) -> Sql<()> {
        self.connection.prepare_cached(sql)?.execute([]).map(drop).map_err(Fault::from)
    }

    /// Runs work within a transaction; a failure rolls it back.
    pub(super) fn between<T, E: From<Fault>>(
        &mut self,
        begin: &'static str,
        work: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        self.simply(begin)?;
        let done = work(self).and_then(|done| Ok(self.simply("COMMIT").map(|()| done)?));
        if done.is_err() {
            self.roll_back();
        }
        done
    }

    /// Ends any open transaction: otherwise every later BEGIN would fail. Errors such as a full disk roll back automatically;
    /// SQLite's COMMIT either happened or can be rolled back: there is no third state while the file is ours.
    pub(super) fn roll_back(&mut self) {
        if !self.connection.is_autocommit() {
            let _ = self.simply("ROLLBACK");
        }
    }

    fn with<T>(
        &mut self,
        sql: &'static str,
        columns: usize,
        work: impl FnOnce(&Connection, &mut Prepared) -> Sql<T>,
    ) -> Sql<T> {
        let make = || Prepared { sql: translate(sql, columns), names: None };
        let known = self.known.entry((sql.as_ptr() as usize, sql.len(), columns)).or_insert_with(make);
        work(&self.connection, known)
    }

    fn read(&mut self, sql: &'static str, binds: &[Value<'_>]) -> Sql<Vec<Row>> {
        self.with(sql, 0, |connection, known| {
            let mut statement = connection.prepare_cached(&known.sql)?;
            let names =
                known.names.get_or_insert_with(|| statement.column_names().into_iter().map(str::to_owned).collect());
            let names = names.clone();
            collect(statement.query(params_from_iter(binds))?, &names)
        })
    }

    fn write(&mut self, sql: &'static str, columns: usize, rows: &[&[Value<'_>]]) -> Sql<u64> {
        self.with(sql, columns, |connection, known| {
            let mut statement = connection.prepare_cached(&known.sql)?;
            let mut written = 0;
            for binds in rows {
                written += statement.execute(params_from_iter(*binds))? as u64;
            }
            Ok(written)
        })
    }
}

fn collect(mut rows: Rows<'_>, names: &Arc<[String]>) -> Sql<Vec<Row>> {
    let mut read = Vec::new();
    while let Some(row) = rows.next()? {
        let cells = (0..names.len()).map(|at| row.get(at)).collect::<rusqlite::Result<_>>()?;
        read.push(Row::Sqlite(SqliteRow::new(names.clone(), cells)));
    }
    Ok(read)
}

impl Driver for Sqlite {
    fn fetch<'c>(&'c mut self, sql: &'static str, binds: &'c [Value<'c>]) -> Work<'c, Vec<Row>> {
        std::future::ready(self.read(sql, binds)).boxed()
    }

    fn execute<'c>(&'c mut self, sql: &'static str, binds: &'c [Value<'c>]) -> Work<'c, u64> {
        std::future::ready(self.write(sql, 0, &[binds])).boxed()
    }

    fn execute_all<'c>(&'c mut self, sql: &'static str, rows: Vec<Vec<Value<'c>>>) -> Work<'c, u64> {
        let columns = rows.first().map(Vec::len);
        let rows: Vec<&[Value<'_>]> = rows.iter().map(Vec::as_slice).collect();
        std::future::ready(columns.map_or(Ok(0), |columns| self.write(sql, columns, &rows))).boxed()
    }

    fn script<'c>(&'c mut self, sql: &'c str) -> Work<'c, ()> {
        std::future::ready(self.connection.execute_batch(sql).map_err(Fault::from)).boxed()
    }

    fn may_wait(&self) -> bool {
        false
    }
}

/// The result of a step that did not await.
pub(super) fn at_once<T, E: From<Fault>>(work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    work.now_or_never().unwrap_or_else(|| Err(Fault::Waited.into()))
}

/// SQLite's code of an error, extended or not; 0 of others.
pub(super) fn code(error: &Fault) -> u32 {
    match error {
        Fault::Sqlite(error) => error.sqlite_error().map_or(0, |error| error.extended_code.unsigned_abs()),
        _ => 0,
    }
}

/// Whether an error concerns the file, not the write: busy, read-only, I/O, corrupt, full, cannot open, no database.
pub(super) fn is_outside(error: &Fault) -> bool {
    [5, 8, 10, 11, 13, 14, 26].contains(&(code(error) & 0xff))
}

pub(super) fn explain(error: &Fault) -> String {
    explain_code(code(error), error)
}

pub(super) fn failed(error: &Fault) -> StoreError {
    match error {
        Fault::Damaged(why) => StoreError::Damaged(why.clone()),
        other => StoreError::Failed(explain(other)),
    }
}
