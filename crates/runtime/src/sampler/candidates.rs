//! The tokens that are still in the running for one position, with their logits.

use crate::tokenizer::TokenId;

/// One token that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    /// Index into the vocabulary.
    pub(super) id: TokenId,
    /// Unnormalised log-probability, as the stages before have left it.
    pub(super) logit: f32,
    /// Probability; meaningful only after a softmax.
    pub(super) p: f32,
}

/// The order of sampling: higher logits first, and of equal ones the smaller id, so that results never depend on
/// how a sort treats ties.
fn by_logit(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// What is left of the vocabulary while the stages run.
#[derive(Default)]
pub(super) struct Candidates {
    /// The tokens; in descending order of logit where `sorted` says so.
    pub(super) items: Vec<Candidate>,
    /// Whether `items` is in descending order of logit.
    pub(super) sorted: bool,
    /// Whether `items[i].id == i` for every i, as before any stage has dropped or moved a token.
    pub(super) dense: bool,
}

impl Candidates {
    /// Refills with the whole vocabulary.
    pub(super) fn fill(&mut self, logits: &[f32]) {
        self.items.clear();
        self.items.extend(logits.iter().enumerate().map(|(id, &logit)| Candidate {
            id: id as TokenId,
            logit,
            p: 0.0,
        }));
        self.sorted = false;
        self.dense = true;
    }

    /// Applies `change` to the logit of `id`, if it is still there.
    pub(super) fn adjust(&mut self, id: TokenId, change: impl FnOnce(f32) -> f32) {
        let found = if self.dense {
            self.items.get_mut(id as usize)
        } else {
            self.items.iter_mut().find(|item| item.id == id)
        };
        if let Some(item) = found {
            item.logit = change(item.logit);
            self.sorted = false;
        }
    }

    /// Keeps the `k` likeliest, in descending order. Linear in the number of candidates for small `k`.
    pub(super) fn keep_top(&mut self, k: usize) {
        let k = k.min(self.items.len());
        if !self.sorted {
            if k < self.items.len() && k > 0 {
                self.items.select_nth_unstable_by(k - 1, by_logit);
                self.items.truncate(k);
            }
            self.items.sort_unstable_by(by_logit);
            self.sorted = true;
            self.dense = false;
        }
        self.items.truncate(k);
    }

    /// Brings all candidates into descending order.
    pub(super) fn sort(&mut self) {
        self.keep_top(self.items.len());
    }

    /// The likeliest candidate; of equal ones the smallest id.
    pub(super) fn best(&self) -> Option<Candidate> {
        self.items.iter().copied().min_by(by_logit)
    }

    /// The highest logit, or negative infinity when nothing is left.
    pub(super) fn max_logit(&self) -> f32 {
        match self.items.first() {
            Some(first) if self.sorted => first.logit,
            _ => self.items.iter().fold(f32::NEG_INFINITY, |max, item| max.max(item.logit)),
        }
    }

    /// Sets `p` to the softmax of the logits, summed in f32 in the present order as llama.cpp does.
    pub(super) fn softmax(&mut self) {
        let max = self.max_logit();
        let mut sum = 0.0f32;
        for item in &mut self.items {
            item.p = (item.logit - max).exp();
            sum += item.p;
        }
        for item in &mut self.items {
            item.p /= sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Candidates;

    fn filled(logits: &[f32]) -> Candidates {
        let mut candidates = Candidates::default();
        candidates.fill(logits);
        candidates
    }

    #[test]
    fn top_k_equals_the_head_of_a_full_sort() {
        let logits: Vec<f32> = (0..5000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 20) as f32).collect();
        let mut all = filled(&logits);
        all.sort();
        for k in [1, 2, 40, 1000, 4999, 5000, 9000] {
            let mut top = filled(&logits);
            top.keep_top(k);
            assert_eq!(top.items[..], all.items[..k.min(5000)], "k = {k}");
        }
    }

    #[test]
    fn ties_go_to_the_smaller_id() {
        let mut candidates = filled(&[1.0, 3.0, 3.0, 3.0, 0.0]);
        assert_eq!(candidates.best().unwrap().id, 1);
        candidates.keep_top(2);
        assert_eq!(candidates.items.iter().map(|c| c.id).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn softmax_by_hand() {
        let mut candidates = filled(&[0.0, 2f32.ln(), 5f32.ln()]);
        candidates.softmax();
        for (item, expected) in candidates.items.iter().zip([0.125f32, 0.25, 0.625]) {
            assert!((item.p - expected).abs() < 1e-6, "{item:?}");
        }
    }

    #[test]
    fn adjusting_finds_tokens_before_and_after_sorting() {
        let mut candidates = filled(&[1.0, 2.0, 3.0]);
        candidates.adjust(0, |x| x + 10.0);
        assert_eq!(candidates.items[0].logit, 11.0);
        candidates.sort();
        candidates.adjust(2, |x| -x);
        assert_eq!(candidates.best().unwrap().id, 0);
        assert!(candidates.items.iter().any(|c| c.id == 2 && c.logit == -3.0));
        candidates.adjust(99, |_| unreachable!());
    }
}
