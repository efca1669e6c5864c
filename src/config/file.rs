//! The config file, read once and again, and whether anything that it was read from has changed since.
//!
//! Files are compared by what they hold, not by inode or time: an editor's rename, a ConfigMap's `..data` link that points elsewhere
//! and a file that is written anew all come down to the same. Only of a large one that would take too long: it is looked at every second.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Loaded, load};
use crate::provider::sign::sha256_hex;

/// Files and folders that a config was read from, each with a digest of what it held.
pub type Inputs = BTreeMap<PathBuf, String>;

/// Enough to tell two configs apart.
const HASH_CHARS: usize = 12;

/// A config file, and what stands over it.
#[derive(Debug, Clone)]
pub struct File {
    path: PathBuf,
    /// Names as in the environment, over which they stand.
    flags: Vec<(&'static str, String)>,
}

/// A config file as it was read.
#[derive(Debug)]
pub struct FileRead {
    /// The config with its mistakes.
    pub loaded: Loaded,
    /// The text, to draw mistakes in.
    pub text: String,
    /// Everything that it was read from, the file itself included.
    pub inputs: Inputs,
}

impl File {
    /// A file that has not been read. `flags` stand over the environment, which stands over the file.
    pub fn new(path: PathBuf, flags: Vec<(&'static str, String)>) -> Self {
        Self { path, flags }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it, and every file that it names.
    ///
    /// # Errors
    /// The file itself cannot be read. Everything else is a mistake among [`Loaded::diagnostics`].
    pub fn read(&self) -> std::io::Result<FileRead> {
        let text = std::fs::read_to_string(&self.path)?;
        let folder = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        let env = |name: &str| {
            let flag = self.flags.iter().find(|(n, _)| *n == name).map(|(_, value)| value.clone());
            flag.or_else(|| std::env::var(name).ok())
        };
        let loaded = load(&text, folder, &env);
        Ok(FileRead { inputs: self.inputs(&loaded), loaded, text })
    }

    /// Everything that a config was read from, the file itself included.
    pub fn inputs(&self, loaded: &Loaded) -> Inputs {
        let mut inputs = loaded.inputs.clone();
        inputs.insert(self.path.clone(), loaded.digest.clone());
        inputs
    }

    /// The hash that a config goes by: the start of what `sha256sum` says of the file.
    pub fn hash(&self, inputs: &Inputs) -> Option<String> {
        inputs.get(&self.path).map(|digest| digest.chars().take(HASH_CHARS).collect())
    }

    /// What the file, and every file of `before`, holds now.
    pub fn inputs_now(&self, before: &Inputs) -> Inputs {
        let paths = before.keys().chain([&self.path]);
        paths.map(|path| (path.clone(), held_by(path).unwrap_or_else(|error| unreadable(&error)))).collect()
    }
}

/// The largest file that is compared by what it holds, in bytes.
const COMPARED_BYTES_MAX: u64 = 1024 * 1024;

/// A digest of what a file or a folder holds; of a large file, of where it is and when it was written.
pub(super) fn held_by(path: &Path) -> std::io::Result<String> {
    let about = std::fs::metadata(path)?;
    if about.is_file() && about.len() > COMPARED_BYTES_MAX {
        use std::os::unix::fs::MetadataExt as _;
        return Ok(format!("{}:{}:{}.{}", about.ino(), about.len(), about.mtime(), about.mtime_nsec()));
    }
    if path.is_dir() { Ok(digest_of_files(&read_dir(path)?)) } else { Ok(digest(&std::fs::read(path)?)) }
}

/// The TOML files of a folder, name and text, in the order of their names.
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

/// A digest of what a file holds.
pub(super) fn digest(bytes: &[u8]) -> String {
    sha256_hex(bytes)
}

/// A digest of names and texts.
pub(super) fn digest_of_files(files: &[(String, String)]) -> String {
    let each: String = files.iter().map(|(name, text)| format!("{name}\n{}\n", digest(text.as_bytes()))).collect();
    digest(each.as_bytes())
}

/// Stands for what a file holds that cannot be read.
pub(super) fn unreadable(error: &std::io::Error) -> String {
    format!("unreadable: {:?}", error.kind())
}
