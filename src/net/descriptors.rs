//! File descriptors: the process's limit, and its distribution among listeners.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Maximum connections of listeners, chosen so that no listener can exhaust the descriptors of another, or of ringfence's own files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// For each public listener.
    pub public: usize,
    /// For `listen.admin`.
    pub admin: usize,
}

/// Raises the soft limit of open files to the hard limit, and returns it.
///
/// Linux gives a shell's processes only 1,024, for programs that use `select`; systemd asks daemons to raise it
/// (<https://0pointer.net/blog/file-descriptor-limits.html>).
pub fn raise_open_files() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    let now = if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft };
    usize::try_from(now).unwrap_or(usize::MAX)
}

/// Distributes `open_files`: a quarter is for connections to upstreams and databases and for files, a sixteenth for `listen.admin`, the
/// rest in equal parts for the three public listeners.
pub fn shares(open_files: usize) -> Shares {
    let (own, admin) = (open_files / 4, open_files / 16);
    Shares { public: ((open_files - own - admin) / 3).max(1), admin: admin.max(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_one() {
        let raised = raise_open_files();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!((soft, usize::try_from(soft).unwrap()), (hard, raised));
    }

    #[test]
    fn all_that_is_dealt_out_is_there() {
        for open_files in [64, 256, 1024, 4096, 65_536, 1 << 20] {
            let shares = shares(open_files);
            assert!(3 * shares.public + shares.admin <= open_files - open_files / 4, "{open_files}: {shares:?}");
        }
        assert_eq!(shares(1024), Shares { public: 234, admin: 64 });
        assert!(shares(1 << 20).public > 10_000);
    }
}
