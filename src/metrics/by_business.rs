//! Metrics by business: the busiest under their id, all others together.

use std::borrow::Cow;
use std::sync::{Mutex, MutexGuard};

use prometheus::{IntCounterVec, IntGaugeVec};

use super::busiest::{Busiest, OTHERS, split};
use crate::ids::mask_number;
use crate::sync::lock;

/// The metrics that have a `business` label.
pub(super) struct BusinessMetrics {
    pub(super) busiest: Mutex<Busiest>,
    pub(super) admitted: IntCounterVec,
    pub(super) rejected: IntCounterVec,
    pub(super) in_use: IntGaugeVec,
}

impl BusinessMetrics {
    fn busiest(&self) -> MutexGuard<'_, Busiest> {
        lock(&self.busiest)
    }

    /// Creates the counters at 0, and sets the maximum number of labels.
    pub(super) fn create_series(&self, labels_max: usize) {
        for counter in [&self.admitted, &self.rejected] {
            counter.with_label_values(&[OTHERS]);
        }
        let gone = self.busiest().set_max(labels_max);
        self.forget(&gone);
    }

    /// Counts an admitted call.
    pub(super) fn admitted(&self, business: &str) {
        self.count(&self.admitted, business);
    }

    /// Counts a rejected call.
    pub(super) fn rejected(&self, business: &str) {
        self.count(&self.rejected, business);
    }

    /// Sets the slots in use by business. `None`: they cannot be read.
    pub(super) fn show(&self, slots: Option<&[(String, u32)]>, now_ms: i64) {
        let labels_max = {
            let mut busiest = self.busiest();
            let gone = busiest.rank_when_due(now_ms);
            self.forget(&gone);
            busiest.labels_max()
        };
        let Some(slots) = slots else { return };
        let (most, others) = split(slots.to_vec(), labels_max);
        self.in_use.reset();
        for (business, slots) in &most {
            // Two masked numbers may look alike.
            self.in_use.with_label_values(&[shown(business).as_ref()]).add((*slots).into());
        }
        self.in_use.with_label_values(&[OTHERS]).add(others.into());
    }

    /// Counts while holding the lock; otherwise a label that is removed concurrently would come back.
    fn count(&self, counter: &IntCounterVec, business: &str) {
        let business = shown(business);
        let mut busiest = self.busiest();
        counter.with_label_values(&[busiest.label(&business)]).inc();
    }

    /// Removes the series of businesses that lost their label.
    fn forget(&self, gone: &[String]) {
        for (counter, business) in
            [&self.admitted, &self.rejected].iter().flat_map(|c| gone.iter().map(move |id| (c, id)))
        {
            // Fails for a series that does not exist.
            let _ = counter.remove_label_values(&[business.as_str()]);
        }
    }
}

/// The label of a business. An id that is a telephone number is masked like any other.
fn shown(business: &str) -> Cow<'_, str> {
    let is_number = business.len() >= 7
        && business.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'(' | b')'))
        && business.bytes().filter(u8::is_ascii_digit).count() >= 7;
    if is_number { mask_number(business).into() } else { business.into() }
}
