//! Businesses as label values: the busiest under their id, all others together, so that the number of series is bounded.

use std::collections::{BTreeSet, HashMap};

/// The label of all businesses without one of their own.
pub(super) const OTHERS: &str = "other";

/// Businesses that are counted, per label.
const COUNTED_PER_LABEL: usize = 20;
/// The interval at which the busiest are determined, in milliseconds.
const RANKED_EVERY_MS: i64 = 60_000;
/// The fraction of a count that is kept each time: after ten minutes about a third is left.
const KEPT: f64 = 0.9;
/// The factor by which a business must be busier to take another's label, so that labels do not flap.
const STAYS: f64 = 1.5;

/// The businesses with a label. Counts decay, so that recent calls weigh more than old ones.
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

    /// The maximum number of labels.
    pub(super) fn labels_max(&self) -> usize {
        self.labels_max
    }

    /// Changes the maximum. Returns the businesses that lost their label.
    pub(super) fn set_max(&mut self, labels_max: usize) -> Vec<String> {
        if labels_max == self.labels_max {
            return vec![];
        }
        self.labels_max = labels_max;
        self.rank()
    }

    /// Counts an event of a business and returns its label.
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

    /// Determines the busiest businesses, once a minute. Returns those that lost their label.
    pub(super) fn rank_when_due(&mut self, now_ms: i64) -> Vec<String> {
        if (now_ms - self.ranked_at_ms).abs() < RANKED_EVERY_MS {
            return vec![];
        }
        // At the first time there is no label to lose.
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

    /// Makes room by forgetting the least busy business.
    fn forget_one(&mut self) {
        let unnamed = self.counts.iter().filter(|(id, _)| !self.named.contains(*id));
        let least = unnamed.min_by(|a, b| a.1.total_cmp(b.1)).map(|(id, _)| id.clone());
        if let Some(id) = least {
            self.counts.remove(&id);
        }
    }
}

/// Splits values into those of the busiest and the sum of all others.
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
