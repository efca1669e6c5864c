//! The lock that makes a memory limiter exclusive: a file beside the database, locked for the life of the process. Processes that
//! share the database lock it shared.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::OwnershipMode;
use super::errors::{OpenError, explain_io};

/// The lock, held until it is dropped. The operating system releases it when the process dies.
#[derive(Debug)]
pub struct FileLock {
    _file: File,
}

pub(super) enum Refused {
    Held(String),
    File(String),
}

/// Attempts to lock, and the pause between them: an inspection holds the lock for a moment.
const LOCK_TRIES: u32 = 5;
const LOCK_RETRY_DELAY: Duration = Duration::from_millis(20);

impl FileLock {
    /// Locks a database for this process, exclusively or shared, until the lock is dropped. `migrate down`, which drops tables,
    /// needs it exclusively.
    ///
    /// # Errors
    /// Another process has it open and does not share it; or it cannot be used.
    pub(super) async fn hold(database: &Path, sharing: OwnershipMode) -> Result<Self, OpenError> {
        let path = database.display().to_string();
        Self::take(database, sharing).await.map_err(|refused| match refused {
            Refused::Held(holder) => OpenError::Held { path, holder, advice: sharing.advice() },
            Refused::File(why) => OpenError::File { path, why },
        })
    }

    pub(super) async fn take(database: &Path, sharing: OwnershipMode) -> Result<Self, Refused> {
        let name = beside(database);
        let shown = name.display().to_string();
        let file = |e: std::io::Error| Refused::File(format!("its lock {shown}: {}", explain_io(&e)));
        let mut lock =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&name).map_err(file)?;
        if !try_for(|| match sharing {
            OwnershipMode::Exclusive => lock.try_lock(),
            OwnershipMode::Shared => lock.try_lock_shared(),
        })
        .await
        .map_err(file)?
        {
            return Err(Refused::Held(said(&mut lock)));
        }
        let started = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
        // It names the last sharer to start, which may have stopped before the others.
        let others = if sharing == OwnershipMode::Shared { " or another that shares it" } else { "" };
        lock.set_len(0).and_then(|()| lock.rewind()).map_err(file)?;
        let line = format!("ringfence, process {}{others}, since {started}\n", std::process::id());
        lock.write_all(line.as_bytes()).map_err(file)?;
        Ok(Self { _file: lock })
    }
}

/// Whether the lock was acquired.
async fn try_for(mut lock: impl FnMut() -> Result<(), TryLockError>) -> std::io::Result<bool> {
    for _ in 0..LOCK_TRIES {
        match lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_RETRY_DELAY).await,
            Err(TryLockError::Error(e)) => return Err(e),
        }
    }
    Ok(false)
}

fn said(lock: &mut File) -> String {
    let mut holder = String::new();
    let _ = lock.read_to_string(&mut holder);
    let holder = holder.trim();
    if holder.is_empty() { "another process" } else { holder }.to_owned()
}

fn beside(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

/// The process that has a database open, exclusively or shared.
pub(super) async fn holder(database: &Path) -> Option<String> {
    let mut lock = File::open(beside(database)).ok()?;
    // Two concurrent inspections see each other only briefly.
    match try_for(|| lock.try_lock()).await {
        Ok(false) => Some(said(&mut lock)),
        Ok(true) | Err(_) => None,
    }
}
