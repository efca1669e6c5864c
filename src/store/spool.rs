//! Bodies that are too large for the database: files in a local folder. The folder has a name, which is stored in the webhook's
//! row; a file's name is the webhook's id.
//!
//! A file is complete and synced before its row is written, so a row never names a partial file. A file without a row that needs
//! it is an orphan: the next scan deletes it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use tracing::warn;
use ulid::Ulid;

use super::membership::host;
use crate::clock::UnixMs;
use crate::sync::lock;

/// The file with the folder's name.
const NAME_FILE: &str = "name";

/// A body could not be put into the spool.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The quota or the disk is full.
    #[error("the spool is full: {0}")]
    Full(String),
    /// The folder cannot be written.
    #[error("the spool {folder} cannot be written: {why}")]
    Failed {
        /// The folder.
        folder: String,
        /// The reason.
        why: String,
    },
}

/// A file of the spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spooled {
    /// The webhook whose body it is.
    pub event_id: String,
    /// Its length.
    pub bytes: u64,
    /// The time at which it was written.
    pub written_at: UnixMs,
}

/// A folder of bodies. Cloning is cheap. Processes of one machine may share a folder, if they share a database.
#[derive(Debug, Clone)]
pub struct Spool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    name: OnceLock<String>,
    /// Serialises checks of the quota.
    measuring: Mutex<()>,
}

impl Spool {
    /// The spool in this folder, which is created with the first body.
    pub fn new(folder: &Path) -> Self {
        let name = OnceLock::new();
        if let Ok(known) = read_name(folder) {
            let _ = name.set(known);
        }
        Self(Arc::new(Inner { folder: folder.to_owned(), name, measuring: Mutex::default() }))
    }

    /// The name in rows; empty until the first body.
    pub fn name(&self) -> &str {
        self.0.name.get().map_or("", String::as_str)
    }

    /// Adds a webhook's body, within a quota of `bytes_max`. When it returns, the body survives a crash. It is completed even if
    /// its caller is dropped.
    ///
    /// # Errors
    /// There is no room, or the folder cannot be written; nothing is left then.
    pub async fn put(&self, event_id: &str, body: Bytes, bytes_max: u64) -> Result<String, SpoolError> {
        let (inner, id) = (self.0.clone(), event_id.to_owned());
        let done = tokio::task::spawn_blocking(move || inner.put(&id, &body, bytes_max)).await;
        done.unwrap_or_else(|_| Err(self.0.failed(&io::Error::other("the write was cut off"))))
    }

    /// Moves a repeated webhook's body to the stored webhook. Idempotent.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub async fn reassign(&self, from_id: &str, to_id: &str) -> io::Result<()> {
        let (from, to) = (self.0.path(from_id)?, self.0.path(to_id)?);
        let inner = self.0.clone();
        blocking(move || {
            if let Err(error) = fs::rename(from, &to)
                && !(error.kind() == ErrorKind::NotFound && to.exists())
            {
                return Err(error);
            }
            sync(&inner.folder)
        })
        .await
    }

    /// A webhook's body.
    ///
    /// # Errors
    /// It is not there, or cannot be read.
    pub async fn read(&self, event_id: &str) -> io::Result<Bytes> {
        tokio::fs::read(self.0.path(event_id)?).await.map(Bytes::from)
    }

    /// Opens a webhook's body to be read in parts; returns its size.
    ///
    /// # Errors
    /// It is not there, or cannot be read.
    pub async fn open(&self, event_id: &str) -> io::Result<(tokio::fs::File, u64)> {
        let file = tokio::fs::File::open(self.0.path(event_id)?).await?;
        let bytes = file.metadata().await?.len();
        Ok((file, bytes))
    }

    /// Deletes a body. A missing one is no error.
    pub async fn delete(&self, event_id: &str) {
        let removed = match self.0.path(event_id) {
            Ok(path) => tokio::fs::remove_file(path).await,
            Err(error) => Err(error),
        };
        if let Err(error) = removed.or_else(ignore_missing) {
            warn!(event = event_id, %error, "failed to delete a spooled body; retrying");
        }
    }

    /// All bodies in the spool.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub async fn list(&self) -> io::Result<Vec<Spooled>> {
        let inner = self.0.clone();
        blocking(move || inner.list()).await
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

pub(super) fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Syncs a folder, so that created and deleted files stay so after a crash.
pub(super) fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn read_name(folder: &Path) -> io::Result<String> {
    let name = fs::read_to_string(folder.join(NAME_FILE))?.trim().to_owned();
    if name.is_empty() { Err(ErrorKind::InvalidData.into()) } else { Ok(name) }
}

pub(super) fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Transcripts must not be readable by others.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(path);
    }
    written
}

/// Ids name files: nothing but letters, digits and `_`.
pub(super) fn is_event_id(name: &str) -> bool {
    name.starts_with("ev_") && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Creates a folder that only this user can read.
pub(super) fn make_folder(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// The reason why a folder cannot be written.
pub(super) fn failed_in(folder: &Path, error: &io::Error) -> SpoolError {
    let folder = folder.display().to_string();
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => SpoolError::Full(format!("the disk of {folder} is full")),
        _ => SpoolError::Failed { folder, why: error.to_string() },
    }
}

impl Inner {
    fn path(&self, event_id: &str) -> io::Result<PathBuf> {
        if is_event_id(event_id) { Ok(self.folder.join(event_id)) } else { Err(ErrorKind::InvalidInput.into()) }
    }

    fn failed(&self, error: &io::Error) -> SpoolError {
        failed_in(&self.folder, error)
    }

    fn put(&self, event_id: &str, body: &[u8], bytes_max: u64) -> Result<String, SpoolError> {
        let failed = |error: io::Error| self.failed(&error);
        let name = self.name_or_create().map_err(failed)?;
        let path = self.path(event_id).map_err(failed)?;
        // Serialised: two concurrent measurements would both find the same room.
        let _measuring = lock(&self.measuring);
        let used: u64 = self.list().map_err(failed)?.iter().map(|file| file.bytes).sum();
        if used.saturating_add(body.len() as u64) > bytes_max {
            return Err(SpoolError::Full(format!("{used} of {bytes_max} bytes are in use, {} came", body.len())));
        }
        // A partial file is deleted. One whose folder could not be synced has no row, and is an orphan.
        write_new(&path, body).and_then(|()| sync(&self.folder)).map(|()| name).map_err(failed)
    }

    /// The folder's name; creates the folder if necessary.
    fn name_or_create(&self) -> io::Result<String> {
        if let Some(name) = self.name.get() {
            // It may have been deleted.
            if self.folder.is_dir() {
                return Ok(name.clone());
            }
        }
        make_folder(&self.folder)?;
        let new = self
            .name
            .get()
            .cloned()
            .unwrap_or_else(|| format!("{}-{}", host(), Ulid::new().to_string().to_lowercase()));
        // The first process to link it names it for all.
        let draft = self.folder.join(format!("{NAME_FILE}.{}", Ulid::new()));
        write_new(&draft, new.as_bytes())?;
        let linked = fs::hard_link(&draft, self.folder.join(NAME_FILE));
        fs::remove_file(&draft)?;
        if let Err(error) = linked
            && error.kind() != ErrorKind::AlreadyExists
        {
            return Err(error);
        }
        sync(&self.folder)?;
        if let Some(parent) = self.folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync(parent)?;
        }
        let name = read_name(&self.folder)?;
        Ok(self.name.get_or_init(|| name).clone())
    }

    fn list(&self) -> io::Result<Vec<Spooled>> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) => return ignore_missing(error).map(|()| vec![]),
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry?;
            let Ok(event_id) = entry.file_name().into_string() else { continue };
            if self.path(&event_id).is_err() {
                continue;
            }
            // Deleted since: delivered.
            let Ok(about) = entry.metadata() else { continue };
            let written = about.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
            let written_at = UnixMs::try_from(written.as_millis()).unwrap_or(UnixMs::MAX);
            files.push(Spooled { event_id, bytes: about.len(), written_at });
        }
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            Self(std::env::temp_dir().join(format!("ringfence-spool-{}", Ulid::new())))
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[tokio::test]
    async fn a_body_is_there_for_whoever_opens_the_folder_again() {
        let folder = Folder::new();
        let spool = Spool::new(&folder.0.join("deep"));
        assert_eq!((spool.name(), spool.list().await.unwrap()), ("", vec![]), "nothing is made before it is needed");
        let name = spool.put("ev_1", Bytes::from_static(b"audio"), 5).await.unwrap();
        assert_eq!(spool.name(), name);
        let again = Spool::new(&folder.0.join("deep"));
        assert_eq!(again.name(), name);
        assert_eq!(again.read("ev_1").await.unwrap(), "audio");
        assert_eq!(again.open("ev_1").await.unwrap().1, 5);
        again.reassign("ev_1", "ev_0").await.unwrap();
        again.reassign("ev_1", "ev_0").await.unwrap();
        assert!(again.reassign("ev_8", "ev_9").await.is_err(), "there is nothing to reassign");
        let files = spool.list().await.unwrap();
        assert_eq!((files.len(), files[0].event_id.as_str(), files[0].bytes), (1, "ev_0", 5));
        spool.delete("ev_0").await;
        spool.delete("ev_0").await;
        assert_eq!(again.read("ev_0").await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(spool.list().await.unwrap(), []);
    }

    #[tokio::test]
    async fn what_has_no_room_leaves_nothing() {
        let folder = Folder::new();
        let spool = Spool::new(&folder.0);
        spool.put("ev_1", Bytes::from_static(b"1234"), 9).await.unwrap();
        let full = spool.put("ev_2", Bytes::from_static(b"123456"), 9).await.unwrap_err();
        assert!(matches!(full, SpoolError::Full(_)), "{full}");
        spool.put("ev_3", Bytes::from_static(b"12345"), 9).await.unwrap();
        spool.delete("ev_1").await;
        assert!(spool.put("ev_3", Bytes::from_static(b"1"), 9).await.is_err(), "an id is taken once");
        assert_eq!(spool.read("ev_3").await.unwrap(), "12345");
        for path in ["../ev_1", "name", "ev_/x", ""] {
            assert!(spool.put(path, Bytes::new(), 9).await.is_err(), "{path}");
        }
    }

    #[tokio::test]
    async fn those_who_share_a_folder_call_it_by_one_name() {
        let folder = Folder::new();
        let spools = [Spool::new(&folder.0), Spool::new(&folder.0)];
        let (one, two) = tokio::join!(
            spools[0].put("ev_1", Bytes::from_static(b"1"), 9),
            spools[1].put("ev_2", Bytes::from_static(b"2"), 9)
        );
        assert_eq!(one.unwrap(), two.unwrap());
        assert_eq!(spools[0].read("ev_2").await.unwrap(), "2");
    }
}
