//! The config file: reads it, and detects changes of the file and of the files that it names.
//!
//! Files are compared by content, not by inode or time, so that an editor's rename, a ConfigMap's swapped `..data` link and a
//! rewritten file are all detected. Large files are compared by inode and time, because they are checked every second.

use std::path::{Path, PathBuf};

use super::inputs::{Inputs, digest_of_path, digest_of_unreadable};
use super::load::load;
use super::loaded::Loaded;

/// Digits of the hash, enough to tell two configs apart.
const HASH_CHARS: usize = 12;

/// A config file, and the flags that override it.
#[derive(Debug, Clone)]
pub struct ConfigPath {
    path: PathBuf,
    /// Overrides, by environment name; they also override the environment.
    flags: Vec<(&'static str, String)>,
}

/// A config file that was read.
#[derive(Debug)]
pub struct FileRead {
    /// The config and its diagnostics.
    pub loaded: Loaded,
    /// The text, for showing diagnostics.
    pub text: String,
    /// All files of the config, the file itself included.
    pub inputs: Inputs,
}

impl ConfigPath {
    /// A file that was not read yet. `flags` override the environment, which overrides the file.
    pub fn new(path: PathBuf, flags: Vec<(&'static str, String)>) -> Self {
        Self { path, flags }
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file, and all files that it names.
    ///
    /// # Errors
    /// The file itself cannot be read. All other mistakes are in [`Loaded::diagnostics`].
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

    /// All files of a config, the file itself included.
    pub fn inputs(&self, loaded: &Loaded) -> Inputs {
        let mut inputs = loaded.inputs.clone();
        inputs.insert(self.path.clone(), loaded.digest.clone());
        inputs
    }

    /// The hash of a config: the first digits of the file's `sha256sum`.
    pub fn hash(&self, inputs: &Inputs) -> Option<String> {
        inputs.get(&self.path).map(|digest| digest.chars().take(HASH_CHARS).collect())
    }

    /// The present digests of the file and of all files of `before`.
    pub fn inputs_now(&self, before: &Inputs) -> Inputs {
        let paths = before.keys().chain([&self.path]);
        paths
            .map(|path| (path.clone(), digest_of_path(path).unwrap_or_else(|error| digest_of_unreadable(&error))))
            .collect()
    }
}
