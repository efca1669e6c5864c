//! Hostile input: every target over its corpus, then over mutations of it.
//!
//! `tests/fixtures/fuzz/<target>/` holds inputs that reach different code, and every input that once broke something. The
//! mutations differ from run to run: a failure prints the seed and the input. `RINGFENCE_FUZZ_SEED=N` repeats a run,
//! `RINGFENCE_FUZZ_RUNS=1000000` makes it longer.

mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use ring::rand::SecureRandom as _;

/// Mutations of each target's corpus in an ordinary run.
const RUNS: u64 = 1_000;
/// Longest input that is made, in bytes: longer ones cost time and find nothing more.
const INPUT_BYTES_MAX: usize = 4096;
/// Pieces that mean something to one parser or another.
const PIECES: &[&str] = &[
    "\n",
    "\0",
    "\r\n",
    " ",
    "\"",
    "'",
    "{",
    "}",
    "[",
    "]",
    "=",
    ",",
    ".",
    "/",
    "//",
    "/../",
    "/./",
    "%2e%2e",
    "%2F",
    "%00",
    "%",
    "%ff",
    ";",
    "&",
    "?",
    "#",
    "|",
    "+1555",
    "-1",
    "0",
    "9223372036854775808",
    "1e999",
    "null",
    "true",
    "\u{feff}",
    "\u{ffff}",
    "\u{202e}",
    "é",
    "😀",
    "<a>",
    "</a>",
    "<!DOCTYPE a [<!ENTITY b \"c\">]>",
    "&b;",
    "<![CDATA[",
    "SIGN",
    "t=1770000000",
    "v0=",
    "body.",
    "[0]",
    "[k=v]",
    "{v}",
    "{account.api_key}",
    "none",
    "HS256",
    "\"exp\":",
    "\\u0000",
    "\\ud800",
    "[[[[[[[[",
    "{\"a\":",
    "[x]\n",
    "[[x]]\n",
    "\"\"\"",
    "'''",
    "1979-05-27T07:32:00Z",
    "inf",
    "nan",
];

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/fuzz").join(target)
}

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(folder(target)).unwrap_or_else(|e| panic!("{target}: {e}"));
    let mut files: Vec<_> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap())
        })
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{target} has no corpus");
    files
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        start..start + self.below((length - start).min(64) + 1)
    }
}

fn mutated(rng: &mut Rng, corpus: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut input = corpus[rng.below(corpus.len())].1.clone();
    for _ in 0..=rng.below(6) {
        let at = rng.below(input.len() + 1);
        match rng.below(8) {
            0 | 1 => drop(input.splice(at..at, PIECES[rng.below(PIECES.len())].bytes())),
            2 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << rng.below(8);
                }
            }
            3 => drop(input.drain(rng.range(input.len()))),
            4 => {
                let piece = input[rng.range(input.len())].to_vec();
                input.splice(at..at, piece);
            }
            5 | 6 => {
                let other = &corpus[rng.below(corpus.len())].1;
                let piece = other[rng.range(other.len())].to_vec();
                let gone = at..at + rng.below((input.len() - at).min(piece.len()) + 1);
                input.splice(gone, piece);
            }
            _ => input.insert(at, rng.next() as u8),
        }
    }
    input.truncate(INPUT_BYTES_MAX);
    input
}

/// Runs a target; a failure shows what it was given.
fn run(name: &str, target: fn(&[u8]), input: &[u8], origin: &str) {
    if catch_unwind(AssertUnwindSafe(|| target(input))).is_err() {
        panic!(
            "{name}, {origin}, on {} bytes:\n{}\nkeep them as a file in {}",
            input.len(),
            input.escape_ascii(),
            folder(name).display()
        );
    }
}

#[test]
fn every_target_holds_on_its_corpus() {
    for &(name, target) in targets::ALL {
        for (file, input) in corpus(name) {
            run(name, target, &input, &file);
        }
    }
    let folders = std::fs::read_dir(folder("")).unwrap().count();
    assert_eq!(folders, targets::ALL.len(), "a corpus without a target is run by nobody");
}

#[test]
fn every_target_holds_on_mutations_of_its_corpus() {
    let runs = from_environment("RINGFENCE_FUZZ_RUNS").unwrap_or(RUNS);
    let seed = from_environment("RINGFENCE_FUZZ_SEED").unwrap_or_else(|| {
        let mut bytes = [0; 8];
        ring::rand::SystemRandom::new().fill(&mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    });
    println!("RINGFENCE_FUZZ_SEED={seed}");
    for &(name, target) in targets::ALL {
        let corpus = corpus(name);
        let mut rng = Rng(seed);
        for nth in 0..runs {
            let input = mutated(&mut rng, &corpus);
            run(name, target, &input, &format!("RINGFENCE_FUZZ_SEED={seed}, run {nth}"));
        }
    }
}
