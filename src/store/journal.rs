//! Webhooks received while the database could not be written: files in a local folder, until they are stored.
//!
//! A file is complete and synced before its webhook is answered, and is deleted when its row is written. Its name is the
//! webhook's id, so files sorted by name are in the order of receipt.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tracing::warn;

use super::NewEvent;
use super::spool::{SpoolError, blocking, failed_in, ignore_missing, is_event_id, make_folder, sync, write_new};
use crate::sync::lock;

/// The extension of an incomplete file.
const PART: &str = "part";
/// The extension of an unreadable file.
const ASIDE: &str = "damaged";
/// An older incomplete file was left by a crash.
const PART_AGE_MAX: Duration = Duration::from_secs(600);

/// A folder of webhooks. Cloning is cheap. Processes of one machine may share a folder, if they share a database.
#[derive(Debug, Clone)]
pub struct Journal(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    /// The known contents.
    size: JournalSize,
    /// Serialises changes and counts.
    changing: Mutex<()>,
}

#[derive(Debug, Default)]
struct JournalSize {
    files: AtomicU64,
    bytes: AtomicU64,
}

impl Journal {
    /// The journal in this folder, which is created with the first webhook.
    pub fn new(folder: &Path) -> Self {
        let inner = Inner { folder: folder.to_owned(), size: JournalSize::default(), changing: Mutex::default() };
        // An unreadable folder is reported when it is used.
        let _ = inner.list();
        Self(Arc::new(inner))
    }

    /// The number of journaled webhooks.
    pub fn waiting(&self) -> u64 {
        self.0.size.files.load(Ordering::Relaxed)
    }

    /// Adds a webhook, within a quota of `bytes_max`. When it returns, the webhook survives a crash. It is completed even if its
    /// caller is dropped.
    ///
    /// # Errors
    /// There is no room, or the folder cannot be written; nothing is left then.
    pub async fn put(&self, event: NewEvent, bytes_max: u64) -> Result<(), SpoolError> {
        let inner = self.0.clone();
        let done = tokio::task::spawn_blocking(move || inner.put(&event, bytes_max)).await;
        done.unwrap_or_else(|_| Err(failed_in(&self.0.folder, &io::Error::other("the write was cut off"))))
    }

    /// The ids of the journaled webhooks, oldest first.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub async fn list(&self) -> io::Result<Vec<String>> {
        let inner = self.0.clone();
        blocking(move || inner.list().map(|files| files.into_iter().map(|(id, _)| id).collect())).await
    }

    /// Reads one.
    ///
    /// # Errors
    /// It is not there, or cannot be read.
    pub async fn read(&self, id: &str) -> io::Result<NewEvent> {
        decode(&tokio::fs::read(self.0.folder.join(id)).await?)
    }

    /// Whether it is journaled.
    pub async fn has(&self, id: &str) -> bool {
        tokio::fs::try_exists(self.0.folder.join(id)).await.unwrap_or(false)
    }

    /// Sets an unreadable one aside for an operator. It is no longer listed.
    pub async fn set_aside(&self, id: &str) {
        let (inner, path) = (self.0.clone(), self.0.folder.join(id));
        let aside = path.with_extension(ASIDE);
        if let Err(error) = blocking(move || fs::rename(path, aside).and_then(|()| inner.list().map(drop))).await {
            warn!(event = id, %error, "failed to move a damaged journal file");
        }
    }

    /// Deletes one that is stored. If that fails it is found to be stored when it is read again.
    pub async fn delete(&self, id: &str) {
        let (inner, path) = (self.0.clone(), self.0.folder.join(id));
        if let Err(error) = blocking(move || inner.remove(&path).or_else(ignore_missing)).await {
            warn!(event = id, %error, "failed to delete a stored webhook from the journal");
        }
    }
}

/// A line of JSON, then the body.
fn encode(event: &NewEvent) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(event)?;
    bytes.push(b'\n');
    bytes.extend_from_slice(event.body.as_deref().unwrap_or_default());
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> io::Result<NewEvent> {
    let end = bytes.iter().position(|b| *b == b'\n').ok_or(ErrorKind::UnexpectedEof)?;
    let event: NewEvent = serde_json::from_slice(&bytes[..end])?;
    // A spooled body is not in the file.
    let body = event.spool.is_none().then(|| bytes[end + 1..].to_vec());
    Ok(NewEvent { body, ..event })
}

impl Inner {
    fn changing(&self) -> MutexGuard<'_, ()> {
        lock(&self.changing)
    }

    fn count(&self, files: u64, bytes: u64) {
        self.size.files.store(files, Ordering::Relaxed);
        self.size.bytes.store(bytes, Ordering::Relaxed);
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let _changing = self.changing();
        let len = fs::metadata(path)?.len();
        fs::remove_file(path)?;
        let (files, bytes) = (self.size.files.load(Ordering::Relaxed), self.size.bytes.load(Ordering::Relaxed));
        self.count(files.saturating_sub(1), bytes.saturating_sub(len));
        Ok(())
    }

    fn put(&self, event: &NewEvent, bytes_max: u64) -> Result<(), SpoolError> {
        let failed = |error: io::Error| failed_in(&self.folder, &error);
        if !is_event_id(&event.id) {
            return Err(failed(ErrorKind::InvalidInput.into()));
        }
        let bytes = encode(event).map_err(failed)?;
        // Serialised: two concurrent measurements would both find the same room.
        let _changing = self.changing();
        let is_new = !self.folder.exists();
        make_folder(&self.folder).map_err(failed)?;
        if is_new && let Some(parent) = self.folder.parent() {
            sync(parent).map_err(failed)?;
        }
        let (files, used) = (self.size.files.load(Ordering::Relaxed), self.size.bytes.load(Ordering::Relaxed));
        let all = used.saturating_add(bytes.len() as u64);
        if all > bytes_max {
            return Err(SpoolError::Full(format!("{used} of {bytes_max} bytes are in use, {} came", bytes.len())));
        }
        let (part, path) = (self.folder.join(&event.id).with_extension(PART), self.folder.join(&event.id));
        let put = write_new(&part, &bytes).and_then(|()| fs::rename(&part, &path)).and_then(|()| sync(&self.folder));
        if let Err(error) = put {
            // A webhook that was not acknowledged must not reappear as if it had been.
            let _ = (fs::remove_file(&part), fs::remove_file(&path));
            return Err(failed(error));
        }
        self.count(files + 1, all);
        Ok(())
    }

    /// Names and sizes, in the order of their names.
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let _changing = self.changing();
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) => return ignore_missing(error).map(|()| vec![]),
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry?;
            let (Ok(name), Ok(about)) = (entry.file_name().into_string(), entry.metadata()) else { continue };
            if is_event_id(&name) {
                files.push((name, about.len()));
            } else if name.ends_with(PART) && about.modified()?.elapsed().is_ok_and(|age| age > PART_AGE_MAX) {
                let _ = fs::remove_file(entry.path());
            }
        }
        files.sort_unstable();
        self.count(files.len() as u64, files.iter().map(|(_, bytes)| bytes).sum());
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str, body: Option<&[u8]>) -> NewEvent {
        NewEvent {
            id: id.to_owned(),
            account: "twilio".to_owned(),
            webhook: "status".to_owned(),
            event: "completed".to_owned(),
            dedupe_key: Some("key".to_owned()),
            received_at: 1,
            method: "POST".to_owned(),
            path: "/webhooks/twilio/status?x=1".to_owned(),
            headers: vec![("x-one".to_owned(), "1".to_owned())],
            body: body.map(<[u8]>::to_vec),
            spool: body.is_none().then(|| "a spool".to_owned()),
        }
    }

    #[tokio::test]
    async fn webhooks_are_there_for_the_next_process_in_their_order_until_they_are_forgotten() {
        let folder = std::env::temp_dir().join(format!("ringfence-journal-{}", ulid::Ulid::new()));
        let journal = Journal::new(&folder.join("deep"));
        assert_eq!(
            (journal.list().await.unwrap(), journal.waiting()),
            (vec![], 0),
            "nothing is made before it is needed"
        );
        let all = [event("ev_1", Some(b"one\ntwo\0")), event("ev_2", Some(b"")), event("ev_3", None)];
        for event in [&all[2], &all[0], &all[1]] {
            journal.put(event.clone(), 10_000).await.unwrap();
        }
        let again = Journal::new(&folder.join("deep"));
        assert_eq!((again.list().await.unwrap(), again.waiting()), (all.iter().map(|e| e.id.clone()).collect(), 3));
        for event in &all {
            assert_eq!(again.read(&event.id).await.unwrap(), *event);
            assert!(again.has(&event.id).await);
            again.delete(&event.id).await;
            assert!(!again.has(&event.id).await);
        }
        assert_eq!((again.list().await.unwrap(), again.waiting()), (vec![], 0));
        fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn what_has_no_room_or_no_name_leaves_nothing() {
        let folder = std::env::temp_dir().join(format!("ringfence-journal-{}", ulid::Ulid::new()));
        let journal = Journal::new(&folder);
        let large = event("ev_1", Some(&[b'x'; 1000]));
        assert!(matches!(journal.put(large.clone(), 1000).await.unwrap_err(), SpoolError::Full(_)));
        journal.put(large, 2000).await.unwrap();
        assert!(journal.put(event("ev_2", Some(&[b'x'; 1000])), 2000).await.is_err());
        assert!(journal.put(event("../ev_2", Some(b"")), 2000).await.is_err());
        // An incomplete file of a crash.
        fs::write(folder.join("ev_3.part"), "{").unwrap();
        assert_eq!(journal.list().await.unwrap(), ["ev_1"]);
        journal.set_aside("ev_1").await;
        assert_eq!((journal.list().await.unwrap(), journal.waiting()), (vec![], 0));
        assert!(folder.join("ev_1.damaged").exists());
        fs::remove_dir_all(folder).unwrap();
    }
}
