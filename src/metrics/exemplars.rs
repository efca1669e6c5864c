//! Exemplars: the trace of the last observation in each bucket of a histogram, so that a slow bucket leads to a slow request.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use crate::sync::lock;
use prometheus::HistogramVec;

/// The trace of one observation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exemplar {
    /// The trace id, 32 hexadecimal digits (<https://www.w3.org/TR/trace-context/#trace-id>).
    pub trace_id: String,
    /// The time at which it was observed, in milliseconds since 1970.
    pub at_ms: i64,
}

/// By label value: for each bucket the last value with a trace.
type Latest = HashMap<String, Vec<Option<(f64, Exemplar)>>>;

/// A histogram with one label that keeps exemplars. It keeps at most one for each label value and bucket.
pub(super) struct TracedHistogram {
    pub(super) name: &'static str,
    pub(super) histogram: HistogramVec,
    /// Upper bounds, ascending, without the last bucket's `+Inf`.
    bounds: &'static [f64],
    latest: Mutex<Latest>,
}

impl TracedHistogram {
    pub(super) fn new(name: &'static str, histogram: HistogramVec, bounds: &'static [f64]) -> Self {
        Self { name, histogram, bounds, latest: Mutex::default() }
    }

    fn latest(&self) -> MutexGuard<'_, Latest> {
        lock(&self.latest)
    }

    /// Creates the series of a label value, without an observation.
    pub(super) fn create_series(&self, label: &str) {
        drop(self.histogram.with_label_values(&[label]));
    }

    /// Observes a duration. Without a trace it costs no lock of ours.
    pub(super) fn observe(&self, label: &str, seconds: f64, exemplar: Option<Exemplar>) {
        self.histogram.with_label_values(&[label]).observe(seconds);
        let Some(exemplar) = exemplar else { return };
        let bucket = self.bounds.partition_point(|bound| *bound < seconds);
        let mut latest = self.latest();
        let buckets = latest.entry(label.to_owned()).or_insert_with(|| vec![None; self.bounds.len() + 1]);
        if let Some(kept) = buckets.get_mut(bucket) {
            *kept = Some((seconds, exemplar));
        }
    }

    /// The value and the trace of the last observation in a bucket.
    pub(super) fn exemplar(&self, label: &str, bucket: usize) -> Option<(f64, Exemplar)> {
        self.latest().get(label)?.get(bucket)?.clone()
    }
}
