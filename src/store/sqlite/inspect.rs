//! Inspects a store without changing it, for `ringfence check --live`.

use std::fs::OpenOptions;
use std::path::Path;

use super::blocking::on_thread;
use super::driver::{Sqlite, explain};
use super::errors::{OpenError, explain_io};
use super::{lock, migrate};

/// The state of a store's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inspected {
    /// No file: the first start creates it.
    Absent,
    /// The schema of this version.
    Ready,
    /// Missing migrations.
    Behind(Vec<i64>),
}

/// The process that has the store open, according to its lock.
pub async fn holder(path: &Path) -> Option<String> {
    lock::holder(path).await
}

/// Inspects a store.
///
/// # Errors
/// What would make a start fail: it cannot be written, is damaged, is of a newer version.
pub async fn inspect(path: &Path) -> Result<Inspected, OpenError> {
    let shown = path.display().to_string();
    let file = |why: String| OpenError::File { path: shown.clone(), why };
    if !path.exists() {
        // The first start creates its folder, as far as the nearest existing one allows.
        let above = path.ancestors().skip(1).find(|a| a.as_os_str().is_empty() || a.exists());
        return match above {
            Some(above) if !above.as_os_str().is_empty() && !above.is_dir() => {
                Err(file(format!("{} is not a folder", above.display())))
            }
            _ => Ok(Inspected::Absent),
        };
    }
    // Opened for writing, but never written.
    OpenOptions::new().read(true).write(true).open(path).map_err(|e| file(explain_io(&e)))?;
    let mut reader = Sqlite::open_to_read(path).map_err(|e| file(explain(&e)))?;
    let missing = on_thread(move || migrate::missing(&mut reader)).await;
    let missing = missing.map_err(|why| OpenError::Schema { path: shown, why })?;
    Ok(if missing.is_empty() { Inspected::Ready } else { Inspected::Behind(missing) })
}
