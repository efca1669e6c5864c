//! The files of a config, compared by content.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::provider::sign::sha256_hex;

/// The files and folders of a config, each with a digest of its content.
pub type Inputs = BTreeMap<PathBuf, String>;

/// The largest file that is compared by content, in bytes.
const COMPARED_BYTES_MAX: u64 = 1024 * 1024;

/// A digest of the content of a file or a folder; for a large file, of its inode and time.
pub(super) fn digest_of_path(path: &Path) -> std::io::Result<String> {
    let about = std::fs::metadata(path)?;
    if about.is_file() && about.len() > COMPARED_BYTES_MAX {
        use std::os::unix::fs::MetadataExt as _;
        return Ok(format!("{}:{}:{}.{}", about.ino(), about.len(), about.mtime(), about.mtime_nsec()));
    }
    if path.is_dir() { Ok(digest_of_files(&read_dir(path)?)) } else { Ok(digest(&std::fs::read(path)?)) }
}

/// The TOML files of a folder, name and text, sorted by name.
pub(super) fn read_dir(dir: &Path) -> std::io::Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "toml") {
            files.push((path.display().to_string(), std::fs::read_to_string(&path)?));
        }
    }
    files.sort();
    Ok(files)
}

/// A digest of a file's content.
pub(super) fn digest(bytes: &[u8]) -> String {
    sha256_hex(bytes)
}

/// A digest of names and texts.
pub(super) fn digest_of_files(files: &[(String, String)]) -> String {
    let each: String = files.iter().map(|(name, text)| format!("{name}\n{}\n", digest(text.as_bytes()))).collect();
    digest(each.as_bytes())
}

/// The digest of an unreadable file.
pub(super) fn digest_of_unreadable(error: &std::io::Error) -> String {
    format!("unreadable: {:?}", error.kind())
}
