//! The fair share of free slots among runs. Pure.
//!
//! The rule: the next slot goes to the business with the fewest open jobs for its weight, and there to the run with the fewest open jobs for
//! its own weight. Open jobs are claimed or in a call, at any replica. A business has the weight of its heaviest waiting run. Ties go to
//! the run that was served longest ago. So a run without open jobs is never behind one with open jobs, and no run starves.

use std::collections::HashMap;

/// A run with due jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane {
    /// The business.
    pub business: String,
    /// The weight, from 1.
    pub weight: u32,
    /// The number of open jobs, at all replicas.
    pub open: u32,
    /// The turn in which it was served last.
    pub served: u64,
    /// The maximum number of open jobs.
    pub open_max: u32,
    /// Slots that each concurrency limit keeps free of its calls.
    pub reserve: u32,
    /// The keys of the limits that bind its calls.
    pub keys: Vec<String>,
}

/// Shares at most `slots` slots, and no more than `room` has under any key of a lane. Returns the slots of each lane.
pub fn share(lanes: &[Lane], slots: u32, room: &mut HashMap<String, u32>) -> Vec<u32> {
    let mut given = vec![0_u32; lanes.len()];
    let mut businesses: HashMap<&str, (u32, u32)> = HashMap::new();
    for lane in lanes {
        let (weight, open) = businesses.entry(&lane.business).or_default();
        *weight = (*weight).max(lane.weight).max(1);
        *open = open.saturating_add(lane.open);
    }
    for _ in 0..slots {
        let can = |n: &usize| {
            let lane = &lanes[*n];
            lane.open.saturating_add(given[*n]) < lane.open_max
                && lane.keys.iter().all(|key| room.get(key).is_none_or(|free| *free > lane.reserve))
        };
        let turn = |n: &usize| {
            let lane = &lanes[*n];
            let (weight, open) = businesses.get(lane.business.as_str()).copied().unwrap_or((1, 0));
            let load = |open: u32, weight: u32| u64::from(open) * 1_000_000 / u64::from(weight.max(1));
            (load(open, weight), load(lane.open.saturating_add(given[*n]), lane.weight), lane.served, *n)
        };
        let Some(next) = (0..lanes.len()).filter(can).min_by_key(turn) else { break };
        given[next] += 1;
        if let Some((_, open)) = businesses.get_mut(lanes[next].business.as_str()) {
            *open = open.saturating_add(1);
        }
        for key in &lanes[next].keys {
            if let Some(free) = room.get_mut(key) {
                *free = free.saturating_sub(1);
            }
        }
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(business: &str, weight: u32, open: u32) -> Lane {
        let keys = vec!["all".to_owned(), format!("business|{business}")];
        Lane { business: business.to_owned(), weight, open, served: 0, open_max: u32::MAX, reserve: 0, keys }
    }

    fn room(all: u32, businesses: &[(&str, u32)]) -> HashMap<String, u32> {
        let own = businesses.iter().map(|(name, free)| (format!("business|{name}"), *free));
        own.chain([("all".to_owned(), all)]).collect()
    }

    #[test]
    fn businesses_share_alike_however_many_runs_they_have() {
        let lanes = [lane("acme", 1, 0), lane("acme", 1, 0), lane("beta", 1, 0)];
        assert_eq!(share(&lanes, 8, &mut room(8, &[])), [2, 2, 4]);
        let lanes = [lane("acme", 1, 6), lane("beta", 1, 0)];
        assert_eq!(share(&lanes, 4, &mut room(4, &[])), [0, 4], "who has fewer comes first");
    }

    #[test]
    fn what_one_leaves_free_another_may_take() {
        let lanes = [Lane { reserve: 3, ..lane("acme", 1, 0) }, lane("beta", 1, 0)];
        assert_eq!(share(&lanes, 9, &mut room(5, &[])), [1, 4], "acme takes none of the last three");
        assert_eq!(share(&lanes, 9, &mut room(3, &[])), [0, 3]);
        assert_eq!(share(&lanes[..1], 9, &mut room(5, &[])), [2]);
    }

    #[test]
    fn weights_count() {
        assert_eq!(share(&[lane("acme", 3, 0), lane("beta", 1, 0)], 8, &mut room(8, &[])), [6, 2]);
        assert_eq!(share(&[lane("acme", 3, 0), lane("acme", 1, 0)], 8, &mut room(8, &[])), [6, 2]);
    }

    #[test]
    fn nobody_gets_more_than_there_is_room_for() {
        let lanes = [lane("acme", 1, 0), lane("beta", 1, 0)];
        assert_eq!(share(&lanes, 9, &mut room(5, &[("acme", 1)])), [1, 4], "what one cannot use the other gets");
        assert_eq!(share(&lanes, 9, &mut room(0, &[])), [0, 0]);
        let bounded = Lane { open_max: 3, ..lane("acme", 1, 2) };
        assert_eq!(share(&[bounded], 9, &mut room(9, &[])), [1]);
    }

    /// A run of 50,000 leads and one of 50 by another business, one slot free at a time: the small one has every second slot until it
    /// is done, and none of the two waits for longer than one call of the other.
    #[test]
    fn a_small_run_beside_a_large_one_is_done_in_its_fair_time() {
        let (mut left, mut open, mut served) = ([50_000_u32, 50], [0_u32; 2], [0_u64; 2]);
        let mut running: std::collections::VecDeque<usize> = [].into();
        let mut slots = 0;
        while left[1] > 0 {
            if running.len() == 4
                && let Some(ended) = running.pop_front()
            {
                open[ended] -= 1;
            }
            let lanes = [0, 1].map(|n| Lane { served: served[n], ..lane(["large", "small"][n], 1, open[n]) });
            let given = share(&lanes, 1, &mut room(1, &[]));
            let next = given.iter().position(|n| *n > 0).unwrap();
            slots += 1;
            (left[next], open[next], served[next]) = (left[next] - 1, open[next] + 1, slots);
            running.push_back(next);
        }
        assert!((99..=101).contains(&slots), "{slots} calls until 50 leads of the small run were dialled");
    }
}
