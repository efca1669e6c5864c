//! The program's source, for tests of its structure.

use std::path::{Path, PathBuf};

/// Every Rust file below a folder of the repository: its path there, and its text.
pub fn files(folder: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut all = vec![];
    collect(&root, &mut all);
    all.sort();
    let relative = |file: PathBuf| {
        let text = std::fs::read_to_string(&file).unwrap();
        (file.strip_prefix(&root).unwrap().to_owned(), text)
    };
    all.into_iter().map(relative).collect()
}

/// Whether a file has nothing but tests.
pub fn is_test(path: &Path) -> bool {
    path.ends_with("tests.rs") || path.components().any(|part| part.as_os_str() == "tests")
}

fn collect(folder: &Path, all: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push(path);
        }
    }
}
