//! Do-not-call lists in memory: sets of numbers with eight bytes each.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::BufRead;
use std::sync::{PoisonError, RwLock};

/// Malformed lines of a file that an error names.
const BAD_LINES_NAMED: usize = 5;
/// Numbers between two marks: a look-up reads the marks, which stay in the processor's cache, and then a few cache lines.
const BETWEEN_MARKS: usize = 256;
/// Minimum changes beside a set before they are merged into it.
const RECENT_MIN: usize = 4_096;
/// A set is merged when its changes reach one in this many of it, so each number is moved a bounded number of times until the set
/// has doubled, and the changes need little memory.
const RECENT_PART: usize = 64;

/// A set of numbers (see [`key_of`](super::key_of)): a sorted list, and the latest changes.
#[derive(Clone, Default)]
pub struct NumberSet {
    sorted: Vec<u64>,
    /// Every [`BETWEEN_MARKS`]th number of `sorted`.
    marks: Vec<u64>,
    /// Changes to `sorted`: added (`true`) or removed.
    recent: BTreeMap<u64, bool>,
    len: usize,
    /// An order-independent digest of the numbers.
    digest: u64,
}

impl PartialEq for NumberSet {
    fn eq(&self, other: &Self) -> bool {
        (self.len, self.digest) == (other.len, other.digest)
    }
}

impl fmt::Debug for NumberSet {
    /// Shows size and digest, so that different sets look different.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NumberSet({} numbers, {:016x})", self.len, self.digest)
    }
}

/// Spreads a number over 64 bits (the finalizer of MurmurHash3).
fn spread(key: u64) -> u64 {
    let key = (key ^ (key >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    let key = (key ^ (key >> 33)).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    key ^ (key >> 33)
}

impl NumberSet {
    /// Reads a file: one number with its country code per line, in any spelling; `#` starts a comment.
    ///
    /// # Errors
    /// The file cannot be read, or the first lines that are not numbers. A list is never used in part, because that would let calls
    /// through.
    pub fn read(from: impl BufRead) -> Result<Self, String> {
        let (mut sorted, mut bad, mut bad_count) = (Vec::new(), Vec::new(), 0_usize);
        for (at, line) in from.lines().enumerate() {
            let line = line.map_err(|error| format!("line {}: {error}", at + 1))?;
            let line = line.trim_start_matches('\u{feff}').split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            match super::key_of(line) {
                Some(key) => sorted.push(key),
                None => {
                    bad_count += 1;
                    if bad.len() < BAD_LINES_NAMED {
                        bad.push((at + 1).to_string());
                    }
                }
            }
        }
        if bad.is_empty() {
            sorted.sort_unstable();
            sorted.dedup();
            sorted.shrink_to_fit();
            let digest = sorted.iter().fold(0_u64, |all, key| all.wrapping_add(spread(*key)));
            let mut set = Self { len: sorted.len(), sorted, digest, ..Self::default() };
            set.mark();
            return Ok(set);
        }
        let more = bad_count - bad.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        Err(format!("no number with its country code in line {}{more}", bad.join(", ")))
    }

    /// All numbers, unordered.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        let stays = |key: &&u64| self.recent.get(key) != Some(&false);
        let added = self.recent.iter().filter(|(_, is_in)| **is_in).map(|(key, _)| *key);
        self.sorted.iter().filter(stays).copied().chain(added)
    }

    /// Adds a number; `false` if it was in the set.
    pub fn insert(&mut self, key: u64) -> bool {
        let new = !self.contains(key);
        if new {
            self.change(key, true);
            (self.len, self.digest) = (self.len + 1, self.digest.wrapping_add(spread(key)));
        }
        new
    }

    /// Removes a number; `false` if it was not in the set.
    pub fn remove(&mut self, key: u64) -> bool {
        let gone = self.contains(key);
        if gone {
            self.change(key, false);
            (self.len, self.digest) = (self.len.saturating_sub(1), self.digest.wrapping_sub(spread(key)));
        }
        gone
    }

    /// Records that a number was added or removed.
    fn change(&mut self, key: u64, is_in: bool) {
        if self.recent.remove(&key).is_none() {
            self.recent.insert(key, is_in);
        }
        if self.recent.len() > RECENT_MIN.max(self.sorted.len() / RECENT_PART) {
            self.merge();
        }
    }

    /// Merges the changes into `sorted` in place, without a second copy.
    fn merge(&mut self) {
        let recent = std::mem::take(&mut self.recent);
        let mut gone = recent.iter().filter(|(_, is_in)| !**is_in).map(|(key, _)| *key).peekable();
        if gone.peek().is_some() {
            self.sorted.retain(|key| {
                while gone.next_if(|gone| gone < key).is_some() {}
                gone.next_if_eq(key).is_none()
            });
        }
        let new: Vec<u64> = recent.into_iter().filter(|(_, is_in)| *is_in).map(|(key, _)| key).collect();
        // Backwards: each number moves up by the count of new numbers that are still to be placed.
        let mut end = self.sorted.len();
        self.sorted.resize(end + new.len(), 0);
        for (before, key) in new.iter().enumerate().rev() {
            let start = self.sorted.get(..end).map_or(0, |old| old.partition_point(|old| old < key));
            self.sorted.copy_within(start..end, start + before + 1);
            if let Some(place) = self.sorted.get_mut(start + before) {
                *place = *key;
            }
            end = start;
        }
        self.mark();
    }

    fn mark(&mut self) {
        self.marks = self.sorted.iter().step_by(BETWEEN_MARKS).copied().collect();
    }

    /// Whether the set contains a number.
    pub fn contains(&self, key: u64) -> bool {
        let in_sorted = || {
            let start = self.marks.partition_point(|mark| *mark <= key).checked_sub(1)? * BETWEEN_MARKS;
            let end = self.sorted.len().min(start + BETWEEN_MARKS);
            self.sorted.get(start..end)?.binary_search(&key).ok()
        };
        self.recent.get(&key).copied().unwrap_or_else(|| in_sorted().is_some())
    }

    /// The size of the set.
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The list that contains a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListHit {
    /// The operator's file.
    File,
    /// The table's global list.
    All,
    /// The table's list of the business.
    Business,
}

impl ListHit {
    /// The name in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            ListHit::File => "file",
            ListHit::All => "all",
            ListHit::Business => "business",
        }
    }
}

#[derive(Debug, Default)]
struct Lists {
    all: NumberSet,
    of_business: HashMap<String, NumberSet>,
    /// The table's last change that is included.
    change: i64,
    /// Whether the table could not be read since it changed.
    unreadable: bool,
}

/// The lists of the table, in memory. Shared; updated row by row.
#[derive(Debug, Default)]
pub struct DoNotCall(RwLock<Lists>);

impl DoNotCall {
    /// The list of the table that contains a number.
    ///
    /// # Errors
    /// The table has changed and cannot be read.
    pub fn find(&self, business: &str, key: u64) -> Result<Option<ListHit>, Unreadable> {
        let lists = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if lists.all.contains(key) {
            return Ok(Some(ListHit::All));
        }
        if lists.of_business.get(business).is_some_and(|list| list.contains(key)) {
            return Ok(Some(ListHit::Business));
        }
        if lists.unreadable { Err(Unreadable) } else { Ok(None) }
    }

    /// Applies changes in order: the list's business (empty: the global list), the number, and whether it was added. `change` is the last one.
    pub fn apply<'a>(&self, changes: impl IntoIterator<Item = (&'a str, u64, bool)>, change: i64) {
        let mut lists = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for (business, key, listed) in changes {
            let list = match business {
                "" => &mut lists.all,
                business if lists.of_business.contains_key(business) || listed => {
                    lists.of_business.entry(business.to_owned()).or_default()
                }
                _ => continue,
            };
            if listed {
                list.insert(key)
            } else {
                list.remove(key)
            };
        }
        lists.of_business.retain(|_, list| !list.is_empty());
        lists.change = lists.change.max(change);
    }

    /// The last change that was applied.
    pub fn change(&self) -> i64 {
        self.0.read().unwrap_or_else(PoisonError::into_inner).change
    }

    /// Records whether the table could be read after a change.
    pub fn set_readable(&self, readable: bool) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).unreadable = !readable;
    }

    /// Whether the table could be read after its last change.
    pub fn is_readable(&self) -> bool {
        !self.0.read().unwrap_or_else(PoisonError::into_inner).unreadable
    }

    /// The numbers in all lists.
    pub fn len(&self) -> u64 {
        let lists = self.0.read().unwrap_or_else(PoisonError::into_inner);
        lists.all.len() + lists.of_business.values().map(NumberSet::len).sum::<u64>()
    }

    /// Whether all lists are empty.
    pub fn is_empty(&self) -> bool {
        let lists = self.0.read().unwrap_or_else(PoisonError::into_inner);
        lists.all.is_empty() && lists.of_business.is_empty()
    }
}

/// The do-not-call table has changed and cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreadable;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_a_number_a_line_and_comments() {
        let text = "\u{feff}# ours\n+905321234567\n\n 1 (212) 555-0100 # asked on 2026-01-02\r\n+44 (0)20 7946 0018\n+905321234567\n";
        let set = NumberSet::read(text.as_bytes()).unwrap();
        assert_eq!(set.len(), 3);
        for key in [905_321_234_567, 12_125_550_100, 442_079_460_018] {
            assert!(set.contains(key) && !set.contains(key + 1), "{key}");
        }
        assert!(NumberSet::read("".as_bytes()).unwrap().is_empty());
    }

    #[test]
    fn a_file_with_a_bad_line_is_no_list() {
        let error = NumberSet::read("+905321234567\nalice\n\n0532 123 45 67\n".as_bytes()).unwrap_err();
        assert_eq!(error, "no number with its country code in line 2, 4");
        let many = "x\n".repeat(9);
        assert!(NumberSet::read(many.as_bytes()).unwrap_err().ends_with("line 1, 2, 3, 4, 5 and 4 more"));
    }

    #[test]
    fn sets_that_differ_are_shown_differently() {
        let of = |text: &str| format!("{:?}", NumberSet::read(text.as_bytes()).unwrap());
        assert_eq!(of("+905321234567\n+905321234568"), of("+905321234568\n+905321234567"));
        assert_ne!(of("+905321234567"), of("+905321234568"));
        assert!(!of("+905321234567").contains("905321234567"));
    }

    #[test]
    fn a_set_is_what_was_put_into_it_however_often_it_was_merged() {
        // A sequence of numbers without a pattern, the same each time (Marsaglia's xorshift).
        let mut seed = 88_172_645_463_325_252_u64;
        let mut next = move |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below
        };
        let (mut set, mut wanted) = (NumberSet::default(), std::collections::BTreeSet::new());
        for step in 0..60_000 {
            let key = next(20_000);
            match next(3) {
                0 => assert_eq!(set.remove(key), wanted.remove(&key), "{step}"),
                _ => assert_eq!(set.insert(key), wanted.insert(key), "{step}"),
            }
        }
        let merged = set.sorted.len();
        assert!(merged > RECENT_MIN && set.sorted.is_sorted() && set.recent.len() <= RECENT_MIN, "{merged}");
        assert_eq!(set.len(), wanted.len() as u64);
        assert!((0..20_001).all(|key| set.contains(key) == wanted.contains(&key)));
        set.merge();
        assert!(set.sorted.iter().eq(wanted.iter()));
        let text: String = wanted.iter().map(|key| format!("+1212{key:07}\n")).collect();
        assert_eq!(NumberSet::read(text.as_bytes()).unwrap().len(), wanted.len() as u64);
    }

    #[test]
    fn changes_are_taken_up_and_what_cannot_be_read_is_told() {
        let lists = DoNotCall::default();
        lists.apply([("", 1, true), ("acme", 2, true), ("acme", 3, true), ("acme", 3, false), ("other", 2, false)], 5);
        assert_eq!((lists.len(), lists.change()), (2, 5));
        assert_eq!(lists.find("acme", 1), Ok(Some(ListHit::All)));
        assert_eq!(lists.find("acme", 2), Ok(Some(ListHit::Business)));
        assert_eq!((lists.find("other", 2), lists.find("acme", 3)), (Ok(None), Ok(None)));
        lists.set_readable(false);
        assert_eq!((lists.find("acme", 1), lists.find("acme", 3)), (Ok(Some(ListHit::All)), Err(Unreadable)));
        lists.apply([("acme", 2, false), ("", 1, false)], 7);
        lists.set_readable(true);
        assert!(lists.is_empty() && lists.find("acme", 2) == Ok(None));
    }
}
