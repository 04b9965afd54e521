//! The stages of the chain, each a function over what is left of the vocabulary.
//!
//! Every stage computes in f32 and in llama.cpp's order of operations, so that the same logits and seed choose the
//! same token. `min_keep` is the number of candidates a stage must leave.

use super::candidates::Candidates;
use crate::tokenizer::TokenId;
use std::collections::{HashMap, VecDeque};

/// The tokens that count for the repetition penalties, and how often each occurs among them.
#[derive(Clone, Default)]
pub(super) struct Recent {
    window: VecDeque<TokenId>,
    counts: HashMap<TokenId, u32>,
    capacity: usize,
}

impl Recent {
    /// An empty memory of the last `capacity` tokens.
    pub(super) fn new(capacity: usize) -> Self {
        Recent { capacity, ..Recent::default() }
    }

    /// Remembers `id` and forgets what is older than the window.
    pub(super) fn push(&mut self, id: TokenId) {
        if self.capacity == 0 {
            return;
        }
        if self.window.len() == self.capacity
            && let Some(old) = self.window.pop_front()
            && let Some(count) = self.counts.get_mut(&old)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&old);
            }
        }
        self.window.push_back(id);
        *self.counts.entry(id).or_insert(0) += 1;
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.window.clear();
        self.counts.clear();
    }
}

/// Makes tokens of the recent text less likely: a factor once (`repeat`), a difference once (`presence`) and a
/// difference per occurrence (`frequency`). Dividing would favour negative logits, so those are multiplied.
pub(super) fn penalties(c: &mut Candidates, recent: &Recent, repeat: f32, frequency: f32, presence: f32) {
    if repeat == 1.0 && frequency == 0.0 && presence == 0.0 {
        return;
    }
    for (&id, &count) in &recent.counts {
        c.adjust(id, |logit| {
            let scaled = if logit <= 0.0 { logit * repeat } else { logit / repeat };
            scaled - (count as f32 * frequency + presence)
        });
    }
}

/// Keeps the `k` likeliest; 0 keeps all.
pub(super) fn top_k(c: &mut Candidates, k: usize) {
    if k > 0 {
        c.keep_top(k);
    }
}

/// Keeps the fewest likeliest tokens whose probabilities sum to `p` (Holtzman et al. 2019, nucleus sampling).
pub(super) fn top_p(c: &mut Candidates, p: f32, min_keep: usize) {
    if p >= 1.0 || c.items.is_empty() {
        return;
    }
    c.softmax();
    c.sort();
    let mut sum = 0.0f32;
    let enough = c.items.iter().enumerate().position(|(i, item)| {
        sum += item.p;
        sum >= p && i + 1 >= min_keep
    });
    if let Some(last) = enough {
        c.items.truncate(last + 1);
        c.dense = false;
    }
}

/// Keeps the tokens at least `p` times as likely as the likeliest.
pub(super) fn min_p(c: &mut Candidates, p: f32, min_keep: usize) {
    if p <= 0.0 || c.items.is_empty() {
        return;
    }
    let least = c.max_logit() + p.ln();
    let n_kept = c.items.iter().filter(|item| item.logit >= least).count();
    if n_kept > 0 && n_kept >= min_keep {
        c.items.retain(|item| item.logit >= least);
        c.dense = false;
    } else {
        c.keep_top(min_keep.max(1));
    }
}

/// Keeps the tokens whose surprise is nearest the expected one until their probabilities exceed `p` (Meister et al.
/// 2022, locally typical sampling). The result is in order of that distance.
pub(super) fn typical(c: &mut Candidates, p: f32, min_keep: usize) {
    if p >= 1.0 || c.items.is_empty() {
        return;
    }
    c.sort();
    c.softmax();
    let mut entropy = 0.0f32;
    for item in &c.items {
        // A token of probability zero has no share in the entropy; its logarithm would make the sum NaN.
        if item.p > 0.0 {
            entropy += -item.p * item.p.ln();
        }
    }
    let mut order: Vec<(f32, usize)> =
        c.items.iter().enumerate().map(|(i, item)| ((-item.p.ln() - entropy).abs(), i)).collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut sum = 0.0f32;
    let enough = order.iter().enumerate().position(|(n, &(_, i))| {
        sum += c.items[i].p;
        sum > p && n + 1 >= min_keep
    });
    let n_kept = enough.map_or(order.len(), |last| last + 1);
    c.items = order[..n_kept].iter().map(|&(_, i)| c.items[i]).collect();
    c.sorted = false;
    c.dense = false;
}

/// Divides the logits by the temperature; zero or less leaves only the likeliest token possible.
pub(super) fn temperature(c: &mut Candidates, t: f32) {
    if t > 0.0 {
        c.items.iter_mut().for_each(|item| item.logit /= t);
    } else if let Some(best) = c.best() {
        c.items = vec![best];
        c.sorted = true;
        c.dense = false;
    }
}

/// The token on which a fraction `unit` of the total probability falls. None when nothing is left.
pub(super) fn pick(c: &mut Candidates, unit: f64) -> Option<TokenId> {
    let max = c.max_logit();
    let mut total = 0.0f64;
    for item in &mut c.items {
        item.p = (item.logit - max).exp();
        total += f64::from(item.p);
    }
    let target = total * unit;
    let mut sum = 0.0f64;
    let hit = c.items.iter().find(|item| {
        sum += f64::from(item.p);
        sum >= target && item.p > 0.0
    });
    hit.or(c.items.last()).map(|item| item.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Candidates with the given probabilities.
    fn with_probabilities(p: &[f32]) -> Candidates {
        let mut c = Candidates::default();
        c.fill(&p.iter().map(|p| p.ln()).collect::<Vec<_>>());
        c
    }

    fn ids(c: &Candidates) -> Vec<TokenId> {
        c.items.iter().map(|item| item.id).collect()
    }

    #[test]
    fn recent_tokens_leave_the_window_in_order() {
        let mut recent = Recent::new(3);
        for id in [7, 7, 8, 9] {
            recent.push(id);
        }
        assert_eq!(recent.counts, HashMap::from([(7, 1), (8, 1), (9, 1)]));
        recent.push(9);
        assert_eq!(recent.counts, HashMap::from([(8, 1), (9, 2)]));
        let mut off = Recent::new(0);
        off.push(1);
        assert!(off.counts.is_empty());
    }

    #[test]
    fn penalties_by_hand() {
        let mut recent = Recent::new(64);
        for id in [0, 1, 1, 1] {
            recent.push(id);
        }
        let mut c = Candidates::default();
        c.fill(&[4.0, -4.0, 4.0]);
        penalties(&mut c, &recent, 2.0, 0.25, 0.5);
        // 4/2 - (1*0.25 + 0.5); -4*2 - (3*0.25 + 0.5); untouched
        assert_eq!(c.items.iter().map(|i| i.logit).collect::<Vec<_>>(), [1.25, -9.25, 4.0]);
    }

    #[test]
    fn penalties_reach_tokens_after_a_cut() {
        let mut recent = Recent::new(64);
        recent.push(2);
        let mut c = Candidates::default();
        c.fill(&[1.0, 2.0, 3.0]);
        top_k(&mut c, 2);
        penalties(&mut c, &recent, 1.0, 0.0, 5.0);
        assert_eq!(c.best().unwrap().id, 1);
    }

    #[test]
    fn top_k_of_zero_keeps_all() {
        let mut c = with_probabilities(&[0.1, 0.6, 0.3]);
        top_k(&mut c, 0);
        assert_eq!(ids(&c), [0, 1, 2]);
        top_k(&mut c, 2);
        assert_eq!(ids(&c), [1, 2]);
    }

    #[test]
    fn top_p_by_hand() {
        let p = [0.1, 0.2, 0.3, 0.4];
        for (limit, expected) in
            [(0.0, vec![3]), (0.4, vec![3]), (0.5, vec![3, 2]), (0.7, vec![3, 2]), (0.8, vec![3, 2, 1])]
        {
            let mut c = with_probabilities(&p);
            top_p(&mut c, limit, 0);
            assert_eq!(ids(&c), expected, "p = {limit}");
        }
        let mut c = with_probabilities(&p);
        top_p(&mut c, 1.0, 0);
        assert_eq!(ids(&c), [0, 1, 2, 3]);
        let mut c = with_probabilities(&p);
        top_p(&mut c, 0.0, 3);
        assert_eq!(ids(&c), [3, 2, 1]);
    }

    #[test]
    fn min_p_by_hand() {
        let p = [0.1, 0.2, 0.3, 0.4];
        for (limit, expected) in [
            (0.24, vec![0, 1, 2, 3]),
            (0.26, vec![1, 2, 3]),
            (0.51, vec![2, 3]),
            (0.76, vec![3]),
            (1.0, vec![3]),
        ] {
            let mut unsorted = with_probabilities(&p);
            min_p(&mut unsorted, limit, 0);
            assert_eq!(ids(&unsorted), expected, "p = {limit}");
            let mut sorted = with_probabilities(&p);
            sorted.sort();
            min_p(&mut sorted, limit, 0);
            let mut kept = ids(&sorted);
            kept.reverse();
            assert_eq!(kept, expected, "p = {limit}, sorted");
        }
        let mut c = with_probabilities(&p);
        min_p(&mut c, 0.76, 3);
        assert_eq!(ids(&c), [3, 2, 1]);
    }

    #[test]
    fn typical_by_hand() {
        // Entropy of (0.97, 0.01, 0.01, 0.01) is 0.168: the likeliest, at distance 0.137, comes first.
        let mut c = with_probabilities(&[0.97, 0.01, 0.01, 0.01]);
        typical(&mut c, 0.5, 0);
        assert_eq!(ids(&c), [0]);
        // Entropy of (0.4, 0.2, 0.2, 0.2) is 1.332; distances are 0.416 for the first and 0.277 for the others.
        let mut c = with_probabilities(&[0.4, 0.2, 0.2, 0.2]);
        typical(&mut c, 0.5, 0);
        let mut kept = ids(&c);
        kept.sort_unstable();
        assert_eq!(kept, [1, 2, 3]);
        let mut c = with_probabilities(&[0.4, 0.2, 0.2, 0.2]);
        typical(&mut c, 1.0, 0);
        assert_eq!(ids(&c), [0, 1, 2, 3]);
    }

    #[test]
    fn typical_survives_impossible_tokens() {
        let mut c = with_probabilities(&[0.5, 0.0, 0.5]);
        typical(&mut c, 0.9, 0);
        assert!(!c.items.is_empty());
        assert!(!ids(&c).contains(&1));
    }

    #[test]
    fn temperature_by_hand() {
        let mut c = Candidates::default();
        c.fill(&[1.0, 3.0, -2.0]);
        temperature(&mut c, 0.5);
        assert_eq!(c.items.iter().map(|i| i.logit).collect::<Vec<_>>(), [2.0, 6.0, -4.0]);
        temperature(&mut c, 0.0);
        assert_eq!(ids(&c), [1]);
    }

    #[test]
    fn picking_walks_the_cumulative_sum() {
        let p = [0.5, 0.25, 0.25];
        for (unit, expected) in [(0.0, 0), (0.49, 0), (0.51, 1), (0.74, 1), (0.76, 2), (0.999_999, 2)] {
            assert_eq!(pick(&mut with_probabilities(&p), unit), Some(expected), "{unit}");
        }
        assert_eq!(
            pick(&mut with_probabilities(&[0.0, 1.0]), 0.0),
            Some(1),
            "impossible tokens are never picked"
        );
        assert_eq!(pick(&mut Candidates::default(), 0.5), None);
    }
}
