//! What a cache of a layer's experts would serve: the share of requests that find their expert in it.
//!
//! A token asks its layer for `n_used` experts, the likeliest first. Each layer has slots of its own: one token's sweep
//! over all layers is longer than a cache shared by them, so that a shared LRU below half residency would hit nothing.
//!
//! All policies start with full slots, so that they compare at every size, and a cache of all experts hits always. Every
//! policy but LRU may leave a missing expert outside, because whoever computes on a miss does so where the bytes are
//! (or from a staging slot).

/// Which experts stay in a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The one that was asked for longest ago makes room for each that is missing.
    Lru,
    /// The most frequent of the whole trace are pinned: the best that a fixed placement can do.
    Pinned,
    /// A missing expert comes in when its decayed frequency is larger than that of the least frequent one inside. The
    /// half-life is [`HALF_LIFE`] tokens.
    Decayed,
    /// Belady's optimum: the expert needed furthest in the future is left outside. No policy hits more often.
    Optimal,
}

impl Policy {
    /// All, in the order of reports.
    pub const ALL: [Policy; 4] = [Policy::Lru, Policy::Pinned, Policy::Decayed, Policy::Optimal];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Policy::Lru => "lru",
            Policy::Pinned => "pinned",
            Policy::Decayed => "decayed",
            Policy::Optimal => "optimal",
        }
    }
}

/// Tokens after which a request counts half, under [`Policy::Decayed`].
pub const HALF_LIFE: f64 = 32.0;

/// Requests that hit in `n_slots` slots.
///
/// `requests` are experts below `n_expert`, `n_used` for each token in turn.
///
/// # Panics
/// When an expert is not below `n_expert`, or `n_used` is 0.
pub fn hits(policy: Policy, requests: &[u32], n_used: usize, n_expert: usize, n_slots: usize) -> usize {
    if n_slots >= n_expert {
        return requests.len();
    }
    if n_slots == 0 {
        return 0;
    }
    match policy {
        Policy::Lru => lru(requests, n_expert, n_slots),
        Policy::Pinned => pinned(requests, n_expert, n_slots),
        Policy::Decayed => decayed(requests, n_used, n_expert, n_slots),
        Policy::Optimal => optimal(requests, n_expert, n_slots),
    }
}

/// Share of hits for 0, 1, ... `n_expert` slots; 0 where nothing was asked for.
pub fn curve(policy: Policy, requests: &[u32], n_used: usize, n_expert: usize) -> Vec<f64> {
    let n = requests.len().max(1) as f64;
    (0..=n_expert).map(|slots| hits(policy, requests, n_used, n_expert, slots) as f64 / n).collect()
}

fn lru(requests: &[u32], n_expert: usize, n_slots: usize) -> usize {
    // Most recent last. It starts with the experts n_slots - 1 to 0, so that a smaller cache holds a part of a larger one's.
    let mut order: Vec<u32> = (0..n_expert.min(n_slots) as u32).rev().collect();
    let mut n_hits = 0;
    for request in requests {
        match order.iter().position(|inside| inside == request) {
            Some(at) => {
                order.remove(at);
                n_hits += 1;
            }
            None => {
                order.remove(0);
            }
        }
        order.push(*request);
    }
    n_hits
}

fn pinned(requests: &[u32], n_expert: usize, n_slots: usize) -> usize {
    let mut counts = vec![0usize; n_expert];
    requests.iter().for_each(|request| counts[*request as usize] += 1);
    counts.sort_unstable_by_key(|count| std::cmp::Reverse(*count));
    counts[..n_slots].iter().sum()
}

fn decayed(requests: &[u32], n_used: usize, n_expert: usize, n_slots: usize) -> usize {
    let decay = 0.5f64.powf(1.0 / HALF_LIFE);
    let mut score = vec![0.0f64; n_expert];
    let mut inside: Vec<bool> = (0..n_expert).map(|expert| expert < n_slots).collect();
    let mut n_hits = 0;
    for taken in requests.chunks(n_used) {
        score.iter_mut().for_each(|s| *s *= decay);
        for request in taken {
            score[*request as usize] += 1.0;
        }
        for request in taken {
            let expert = *request as usize;
            if inside[expert] {
                n_hits += 1;
                continue;
            }
            let residents = (0..n_expert).filter(|other| inside[*other]);
            let least = residents.min_by(|a, b| score[*a].total_cmp(&score[*b])).expect("at least one slot");
            if score[expert] > score[least] {
                inside[least] = false;
                inside[expert] = true;
            }
        }
    }
    n_hits
}

/// Belady (1966), with the right to leave a missing item outside.
fn optimal(requests: &[u32], n_expert: usize, n_slots: usize) -> usize {
    // next[i]: index of the next request for the same expert after i; first[e]: that of the first one for e.
    let mut upcoming = vec![usize::MAX; n_expert];
    let mut next = vec![usize::MAX; requests.len()];
    for (index, request) in requests.iter().enumerate().rev() {
        next[index] = upcoming[*request as usize];
        upcoming[*request as usize] = index;
    }
    // For experts inside: when they are asked for next. Starts with those that are asked for first.
    let mut first: Vec<usize> = (0..n_expert).collect();
    first.sort_by_key(|expert| upcoming[*expert]);
    let mut inside: Vec<Option<usize>> = vec![None; n_expert];
    first[..n_slots].iter().for_each(|expert| inside[*expert] = Some(upcoming[*expert]));
    let mut n_hits = 0;
    for (index, request) in requests.iter().enumerate() {
        let expert = *request as usize;
        if inside[expert].is_some() {
            n_hits += 1;
            inside[expert] = Some(next[index]);
            continue;
        }
        let furthest = (0..n_expert).max_by_key(|other| inside[*other].map_or(0, |at| at.saturating_add(1)));
        let furthest = furthest.expect("at least one expert");
        if inside[furthest].is_some_and(|at| next[index] < at) {
            inside[furthest] = None;
            inside[expert] = Some(next[index]);
        }
    }
    n_hits
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Hits of the best of all ways to run a cache, found by trying them all.
    fn best_by_search(requests: &[u32], inside: u32) -> usize {
        let Some((request, rest)) = requests.split_first() else { return 0 };
        let bit = 1u32 << request;
        if inside & bit != 0 {
            return 1 + best_by_search(rest, inside);
        }
        let leave = best_by_search(rest, inside);
        let swaps = (0..32).filter(|other| inside & (1 << other) != 0);
        swaps.map(|other| best_by_search(rest, inside & !(1 << other) | bit)).fold(leave, usize::max)
    }

    #[test]
    fn policies_differ_where_they_should() {
        // A loop one longer than the cache: LRU's worst case, where pinning keeps what it has.
        let requests: Vec<u32> = (0..3).cycle().take(30).collect();
        assert_eq!(hits(Policy::Lru, &requests, 1, 3, 2), 2); // the two it started with
        assert_eq!(hits(Policy::Pinned, &requests, 1, 3, 2), 20);
        assert!(hits(Policy::Optimal, &requests, 1, 3, 2) >= 15);
        // Two phases: pinning can only serve one of them, the others follow.
        let requests: Vec<u32> = [[0u32; 100], [1; 100]].concat();
        assert_eq!(hits(Policy::Pinned, &requests, 1, 2, 1), 100);
        assert_eq!(hits(Policy::Lru, &requests, 1, 2, 1), 199);
        let decayed = hits(Policy::Decayed, &requests, 1, 2, 1);
        assert!((150..199).contains(&decayed), "{decayed}");
        assert_eq!(hits(Policy::Optimal, &requests, 1, 2, 1), 199);
    }

    #[test]
    fn a_curve_runs_from_nothing_to_all() {
        for policy in Policy::ALL {
            let curve = curve(policy, &[0, 1, 2, 1], 2, 3);
            assert_eq!((curve[0], curve[3], curve.len()), (0.0, 1.0, 4), "{policy:?}");
        }
        assert_eq!(super::curve(Policy::Lru, &[], 2, 3), [0.0; 4]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..Default::default() })]

        #[test]
        fn the_optimum_is_that_of_an_exhaustive_search(
            requests in prop::collection::vec(0u32..4, 0..9),
            n_slots in 1usize..4,
        ) {
            let starts = (0u32..16).filter(|set| set.count_ones() as usize == n_slots);
            let best = starts.map(|start| best_by_search(&requests, start)).max();
            prop_assert_eq!(Some(hits(Policy::Optimal, &requests, 1, 4, n_slots)), best);
        }

        #[test]
        fn nobody_beats_the_optimum_and_more_slots_never_hurt(
            requests in prop::collection::vec(0u32..6, 0..200),
        ) {
            let curves: Vec<Vec<f64>> = Policy::ALL.iter().map(|p| curve(*p, &requests, 1, 6)).collect();
            for (policy, curve) in Policy::ALL.iter().zip(&curves) {
                for slots in 0..=6 {
                    prop_assert!(curve[slots] <= curves[3][slots], "{:?} with {} slots", policy, slots);
                    // What decays is no stack algorithm; the others are.
                    if slots > 0 && *policy != Policy::Decayed {
                        prop_assert!(curve[slots] >= curve[slots - 1], "{:?} with {} slots", policy, slots);
                    }
                }
            }
        }
    }
}
