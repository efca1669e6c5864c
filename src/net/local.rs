//! A listener on a Unix socket, for programs of the same user.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::unistd::Uid;
use tokio::net::{UnixListener, UnixStream};

/// The maximum path of a socket, in bytes: `sun_path` of `unix(7)` without its NUL.
pub const PATH_BYTES_MAX: usize = 107;

/// The peer of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A program over TCP.
    Net(SocketAddr),
    /// A program on this machine over the Unix socket, run by this user (`SO_PEERCRED`).
    Local {
        /// The user's id.
        uid: u32,
    },
}

impl Peer {
    /// The address, if it is a TCP peer.
    pub fn addr(self) -> Option<SocketAddr> {
        match self {
            Peer::Net(addr) => Some(addr),
            Peer::Local { .. } => None,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Net(addr) => addr.fmt(f),
            Peer::Local { uid } => write!(f, "unix socket, uid {uid}"),
        }
    }
}

/// The file of a socket, owned by the holder of the lock beside it: a dead process's file is replaced, a living one's is not.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    _lock: File,
}

impl SocketFile {
    /// Removes the file, so that no client can connect. The lock stays until the value is dropped.
    pub(super) fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove();
    }
}

/// A bound Unix socket that does not accept yet.
#[derive(Debug)]
pub struct LocalSocket {
    listener: UnixListener,
    file: Arc<SocketFile>,
}

impl LocalSocket {
    /// Binds, with mode 0600.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] if a living process has the path, [`io::ErrorKind::AlreadyExists`] if there is a file that is
    /// no socket, [`io::ErrorKind::InvalidInput`] if the path is longer than [`PATH_BYTES_MAX`]; else the operating system's.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let length = path.as_os_str().len();
        if length > PATH_BYTES_MAX {
            let why = format!("the path has {length} bytes; a Unix socket's can have {PATH_BYTES_MAX}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let mut beside = path.as_os_str().to_owned();
        beside.push(".lock");
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&beside)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        match fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => fs::remove_file(path)?,
            Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is not a socket exists")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = UnixListener::bind(path)?;
        let file = Arc::new(SocketFile { path: path.to_owned(), _lock: lock });
        // Clients that connect before this are checked too: see `accept`.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, file })
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    pub(super) fn file(&self) -> Arc<SocketFile> {
        self.file.clone()
    }

    /// The next connection of this process's own user, or of root. Others are closed.
    pub(super) async fn accept(&self) -> io::Result<(UnixStream, Peer)> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            let uid = stream.peer_cred()?.uid();
            if uid == 0 || uid == Uid::effective().as_raw() {
                return Ok((stream, Peer::Local { uid }));
            }
            tracing::warn!(uid, socket = %self.path().display(), "connection of another user rejected");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("ringfence-local-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn kind(result: io::Result<LocalSocket>) -> io::ErrorKind {
        result.unwrap_err().kind()
    }

    #[tokio::test]
    async fn a_socket_is_its_owners_until_it_goes() {
        let folder = folder("owner");
        let path = folder.join("admin.sock");
        let first = LocalSocket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(kind(LocalSocket::bind(&path)), io::ErrorKind::AddrInUse);
        assert!(path.exists(), "a living one's is not taken");
        drop(first);
        assert!(!path.exists(), "it goes with its owner");
        // What a process left behind that was killed.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(LocalSocket::bind(&path).unwrap());
        fs::write(&path, "a config, by mistake").unwrap();
        assert_eq!(kind(LocalSocket::bind(&path)), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "a config, by mistake");
        let long = folder.join("x".repeat(PATH_BYTES_MAX));
        let error = LocalSocket::bind(&long).unwrap_err();
        assert!(error.to_string().contains("can have 107"), "{error}");
        fs::remove_dir_all(&folder).unwrap();
    }
}
