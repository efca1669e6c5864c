//! Looks at a store without changing it, for `ringfence check --live`.

use std::fs::OpenOptions;
use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};

use super::{OpenError, explain, explain_io, lock, migrate};

/// What stands at a store's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inspected {
    /// Nothing: the first start makes it.
    Absent,
    /// A schema that this version uses.
    Ready,
    /// Migrations that are missing.
    Behind(Vec<i64>),
}

/// Who holds a store now, as its lock says.
pub async fn holder(path: &Path) -> Option<String> {
    lock::holder(path).await
}

/// Looks at a store.
///
/// # Errors
/// What would keep a start from using it: it cannot be written, is damaged, is of a newer version.
pub async fn inspect(path: &Path) -> Result<Inspected, OpenError> {
    let shown = path.display().to_string();
    let file = |why: String| OpenError::File { path: shown.clone(), why };
    if !path.exists() {
        // Its folder is made by the first start, as far as the nearest that is there allows.
        let above = path.ancestors().skip(1).find(|a| a.as_os_str().is_empty() || a.exists());
        return match above {
            Some(above) if !above.as_os_str().is_empty() && !above.is_dir() => {
                Err(file(format!("{} is no folder", above.display())))
            }
            _ => Ok(Inspected::Absent),
        };
    }
    // Opened for writing, never written.
    OpenOptions::new().read(true).write(true).open(path).map_err(|e| file(explain_io(&e)))?;
    let pool = SqlitePoolOptions::new()
        .max_connections(1)
        .connect_with(SqliteConnectOptions::new().filename(path).read_only(true))
        .await
        .map_err(|e| file(explain(&e)))?;
    let found = schema(&pool).await;
    pool.close().await;
    found.map_err(|why| OpenError::Schema { path: shown.clone(), why })
}

async fn schema(pool: &SqlitePool) -> Result<Inspected, String> {
    let missing = migrate::missing(pool).await?;
    Ok(if missing.is_empty() { Inspected::Ready } else { Inspected::Behind(missing) })
}
