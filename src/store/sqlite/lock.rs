//! The lock that makes a memory gate the only one: a file beside the database, held for the life of the process.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

/// The lock, held until it is dropped. The operating system frees it when the process dies, however it dies.
#[derive(Debug)]
pub struct Held {
    _file: File,
}

pub(super) enum Refused {
    Held(String),
    File(String),
}

impl Held {
    pub(super) fn take(database: &Path) -> Result<Self, Refused> {
        let name = beside(database);
        let shown = name.display().to_string();
        let file = |e: std::io::Error| Refused::File(format!("its lock {shown}: {}", super::explain_io(&e)));
        let mut lock =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&name).map_err(file)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = lock.read_to_string(&mut holder);
                let holder = holder.trim();
                return Err(Refused::Held(if holder.is_empty() { "another process" } else { holder }.to_owned()));
            }
            Err(TryLockError::Error(e)) => return Err(file(e)),
        }
        let started = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
        lock.set_len(0).and_then(|()| lock.rewind()).map_err(file)?;
        writeln!(lock, "ringfence, process {}, since {started}", std::process::id()).map_err(file)?;
        Ok(Self { _file: lock })
    }
}

fn beside(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

/// Who has a database now, if anybody has.
pub(super) fn holder(database: &Path) -> Option<String> {
    let mut lock = File::open(beside(database)).ok()?;
    // Shared, so that two who look do not see each other.
    if !matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)) {
        return None;
    }
    let mut holder = String::new();
    let _ = lock.read_to_string(&mut holder);
    Some(holder.trim().to_owned())
}
