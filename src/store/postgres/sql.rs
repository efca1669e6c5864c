//! Statements, and what an error of one means.

tokio::task_local! {
    /// Whether statements are prepared once per session.
    pub(super) static PREPARED: bool;
}

/// The result of a statement.
pub(super) type Sql<T> = std::result::Result<T, sqlx::Error>;

/// A statement, which is prepared once per session unless a pooler changes sessions.
pub(super) fn query<'q>(sql: &'static str) -> sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments> {
    sqlx::query(sql).persistent(prepared())
}

/// A value as JSON text, for a parameter.
pub(super) fn to_json(value: &impl serde::Serialize) -> Sql<String> {
    serde_json::to_string(value).map_err(|e| sqlx::Error::Encode(e.into()))
}

/// The SQLSTATE of an error; empty if it is not the server's.
pub(super) fn code(error: &sqlx::Error) -> String {
    error.as_database_error().and_then(|e| e.code()).unwrap_or_default().into_owned()
}

/// Returns what an operator can do about an error. The server's messages contain no values, only its details do.
pub(super) fn explain(error: &sqlx::Error, shown: &str) -> String {
    match error {
        sqlx::Error::PoolTimedOut => {
            format!("no connection to {shown}: it does not answer, or store.pool_max connections are all in use")
        }
        sqlx::Error::Io(cause) => format!("{shown} cannot be reached: {cause}"),
        sqlx::Error::PoolClosed => "the store is closed".to_owned(),
        sqlx::Error::Database(cause) => match &*code(error) {
            "53100" => format!("the disk of {shown} is full"),
            "25006" => format!("{shown} takes no writes: it is a standby, or set to read only"),
            "57014" => format!("{shown} did not finish a statement within store.statement_timeout_ms"),
            _ => format!("{shown} reports: {}", cause.message()),
        },
        other => format!("{shown}: {other}"),
    }
}

/// Whether an error concerns the server or the connection, not the write: other writes would fail too.
pub(super) fn is_outside(error: &sqlx::Error) -> bool {
    let code = code(error);
    match error {
        // Connections, resources, intervention, system, authorization, internal; and a server that takes no writes.
        sqlx::Error::Database(_) => {
            ["08", "28", "3D", "53", "57", "58", "XX"].iter().any(|class| code.starts_with(class))
                || ["25006", "42501", "42P01", "3F000"].contains(&code.as_str())
        }
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        _ => false,
    }
}

/// Outside our transactions nothing is prepared, which works behind every pooler.
pub(super) fn prepared() -> bool {
    PREPARED.try_with(|prepared| *prepared).unwrap_or(false)
}
