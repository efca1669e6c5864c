//! Checks that ringfence's files are accessible to its user only.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use crate::config::Config;
use crate::config::diagnostics::{Diagnostic, Report};

/// The mode bits of other users.
const OTHERS: u32 = 0o077;

/// Warns of files and folders that other users may access: they contain calls, telephone numbers and transcripts.
pub(super) fn check_modes(config: &Config) -> Vec<Diagnostic> {
    let report = Report::default();
    let beside = |end: &str| {
        let mut path = config.store.path.clone().into_os_string();
        path.push(end);
        PathBuf::from(path)
    };
    let mut kept =
        vec![config.spool_dir.clone(), config.spool_dir.join("journal"), config.listen.admin_socket.path.clone()];
    if config.store.postgres.is_none() {
        kept.extend(["", "-wal", "-shm", ".lock"].map(beside));
    }
    for path in kept {
        let Ok(found) = std::fs::metadata(&path) else { continue };
        let mode = found.permissions().mode() & 0o7777;
        if mode & OTHERS != 0 {
            let path = path.display();
            let title = format!("{path} has mode {mode:04o}: others than its user may use it");
            let right = if found.is_dir() { "0700" } else { "0600" };
            report.warning("W016", None, title, &format!("chmod {right} {path}"));
        }
    }
    report.finish()
}
