//! Businesses as label values: the busiest by their id, all others together. So there is a bound, whatever ids requests show.

use std::collections::{BTreeSet, HashMap};

/// The label of all businesses that have none of their own.
pub(super) const OTHERS: &str = "other";

/// Businesses that are kept count of, for each that has a label.
const COUNTED_PER_LABEL: usize = 20;
/// How often it is looked who is busiest, in milliseconds.
const RANKED_EVERY_MS: i64 = 60_000;
/// What is left of a count each time: after ten minutes about a third.
const KEPT: f64 = 0.9;
/// How much busier another must be than one that has a label, so that labels do not come and go.
const STAYS: f64 = 1.5;

/// Who has a label. Counts fade, so that it is who is busy now and not who was once.
#[derive(Debug)]
pub(super) struct Busiest {
    labels_max: usize,
    counts: HashMap<String, f64>,
    named: BTreeSet<String>,
    ranked_at_ms: i64,
}

impl Busiest {
    pub(super) fn new(labels_max: usize) -> Self {
        Self { labels_max, counts: HashMap::new(), named: BTreeSet::new(), ranked_at_ms: 0 }
    }

    /// Businesses that may have a label.
    pub(super) fn labels_max(&self) -> usize {
        self.labels_max
    }

    /// Another bound. Those that lose their label are given back.
    pub(super) fn set_max(&mut self, labels_max: usize) -> Vec<String> {
        if labels_max == self.labels_max {
            return vec![];
        }
        self.labels_max = labels_max;
        self.rank()
    }

    /// Counts an event of a business, and says its label.
    pub(super) fn label<'a>(&mut self, business: &'a str) -> &'a str {
        if self.labels_max == 0 {
            return OTHERS;
        }
        match self.counts.get_mut(business) {
            Some(count) => *count += 1.0,
            None => {
                if self.counts.len() >= self.labels_max * COUNTED_PER_LABEL {
                    self.forget_one();
                }
                self.counts.insert(business.to_owned(), 1.0);
            }
        }
        if !self.named.contains(business) {
            if self.named.len() >= self.labels_max {
                return OTHERS;
            }
            self.named.insert(business.to_owned());
        }
        business
    }

    /// Looks who is busiest, once a minute. Those that lose their label are given back.
    pub(super) fn rank_when_due(&mut self, now_ms: i64) -> Vec<String> {
        if (now_ms - self.ranked_at_ms).abs() < RANKED_EVERY_MS {
            return vec![];
        }
        // The first look has nobody to take a label from.
        let is_first = std::mem::replace(&mut self.ranked_at_ms, now_ms) == 0;
        if is_first { vec![] } else { self.rank() }
    }

    fn rank(&mut self) -> Vec<String> {
        self.counts.values_mut().for_each(|count| *count *= KEPT);
        let weight = |(id, count): (&String, &f64)| count * if self.named.contains(id) { STAYS } else { 1.0 };
        let mut all: Vec<(f64, String)> = self.counts.iter().map(|one| (weight(one), one.0.clone())).collect();
        all.sort_by(|(a, first), (b, second)| b.total_cmp(a).then_with(|| first.cmp(second)));
        let named: BTreeSet<String> = all.into_iter().take(self.labels_max).map(|(_, id)| id).collect();
        let before = std::mem::replace(&mut self.named, named);
        before.into_iter().filter(|id| !self.named.contains(id)).collect()
    }

    /// Makes room: the one that is least busy has no label.
    fn forget_one(&mut self) {
        let unnamed = self.counts.iter().filter(|(id, _)| !self.named.contains(*id));
        let least = unnamed.min_by(|a, b| a.1.total_cmp(b.1)).map(|(id, _)| id.clone());
        if let Some(id) = least {
            self.counts.remove(&id);
        }
    }
}

/// What businesses have, as the busiest have it and all others together.
pub(super) fn split(mut all: Vec<(String, u32)>, labels_max: usize) -> (Vec<(String, u32)>, u32) {
    all.sort_by(|(a, n), (b, m)| m.cmp(n).then_with(|| a.cmp(b)));
    let others = all.split_off(labels_max.min(all.len()));
    (all, others.iter().map(|(_, n)| n).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_have_labels_and_never_more_than_allowed() {
        let mut busiest = Busiest::new(2);
        assert_eq!(busiest.label("a"), "a");
        assert_eq!(busiest.label("b"), "b");
        assert_eq!(busiest.label("c"), OTHERS, "there are two labels");
        for _ in 0..10 {
            busiest.label("c");
        }
        assert_eq!(busiest.rank(), ["b"], "c is busier than b by far; a comes first of the two others");
        assert_eq!(busiest.label("c"), "c");
        assert_eq!(busiest.label("b"), OTHERS);
        // One that is a little busier takes nobody's place.
        for _ in 0..2 {
            busiest.label("b");
            busiest.label("a");
        }
        assert_eq!(busiest.rank(), Vec::<String>::new());
        assert_eq!(busiest.set_max(1), ["a"]);
        assert_eq!(busiest.set_max(0), ["c"]);
        assert_eq!(busiest.label("c"), OTHERS);
    }

    #[test]
    fn ids_that_requests_make_up_take_no_room() {
        let mut busiest = Busiest::new(3);
        for n in 0..5_000 {
            busiest.label(&format!("made-up-{n}"));
        }
        assert!(busiest.counts.len() <= 3 * COUNTED_PER_LABEL);
        assert_eq!(busiest.named.len(), 3);
        assert!(busiest.named.iter().all(|id| busiest.counts.contains_key(id)));
    }

    #[test]
    fn what_is_split_adds_up() {
        let all = vec![("a".to_owned(), 1), ("b".to_owned(), 5), ("c".to_owned(), 1), ("d".to_owned(), 2)];
        assert_eq!(split(all.clone(), 2), (vec![("b".to_owned(), 5), ("d".to_owned(), 2)], 2));
        assert_eq!(split(all.clone(), 0), (vec![], 9));
        assert_eq!(split(all, 9).1, 0);
    }
}
