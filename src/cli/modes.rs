//! Whether what ringfence keeps is its user's alone.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use crate::config::Config;
use crate::config::diagnostics::{Diagnostic, Report};

/// The bits of a mode that let others in.
const OTHERS: u32 = 0o077;

/// A warning for each file and folder that others than its user may use: calls, telephone numbers and transcripts stand there.
pub(super) fn wide(config: &Config) -> Vec<Diagnostic> {
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
