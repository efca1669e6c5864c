//! Obstacles to the use of a file, in sentences for an operator.

use std::time::Duration;

/// The time that a connection waits for another's lock: that of a backup, or of an operator's shell.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The store could not be opened. Sentences for an operator.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("{path} is in use by {holder}. {advice}, or give this one another [store] path")]
    Held {
        /// The database.
        path: String,
        /// The process that has the database open.
        holder: String,
        /// Advice to the operator.
        advice: &'static str,
    },
    /// The file cannot be opened.
    #[error("cannot open {path}: {why}")]
    File {
        /// The database.
        path: String,
        /// The reason.
        why: String,
    },
    /// The schema does not fit.
    #[error("{path} {why}")]
    Schema {
        /// The database.
        path: String,
        /// The mismatch, and the command to run.
        why: String,
    },
}

/// Returns what an operator can do about an error of SQLite, by its code, extended or not.
pub(super) fn explain_code(code: u32, error: &dyn std::fmt::Display) -> String {
    match code & 0xff {
        5 => "another program holds its lock".to_owned(),
        13 => "the disk is full; make room on it, or give ringfence another [store] path".to_owned(),
        8 => "it is read-only; ringfence must be able to write it, or needs another [store] path".to_owned(),
        10 => format!("the disk cannot be read or written ({error}); look at the disk, its quota and its limits"),
        11 | 26 => {
            format!(
                "it is damaged or no SQLite file ({error}); put a backup in its place, or move it away to start anew"
            )
        }
        14 => format!("the file or its folder cannot be opened ({error})"),
        _ => error.to_string(),
    }
}

/// Returns what an operator can do about an error of a file or folder.
pub(super) fn explain_io(error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    let hint = match error.kind() {
        ErrorKind::PermissionDenied => "ringfence must be able to write there, or needs another [store] path",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "make room on the disk, or give ringfence another [store] path"
        }
        ErrorKind::AlreadyExists | ErrorKind::NotADirectory => {
            "a part of the path is a file: give ringfence another [store] path"
        }
        _ => "give ringfence another [store] path",
    };
    format!("{error}; {hint}")
}
