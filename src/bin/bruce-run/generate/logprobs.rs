//! Log-probabilities of a row of logits, before any sampling.

use runtime::tokenizer::TokenId;
use serde_json::{Value, json};

/// The chosen token's log-probability, and those of the likeliest.
#[derive(Clone, Debug, PartialEq)]
pub struct LogProbs {
    /// The chosen token's.
    pub chosen: f64,
    /// The likeliest tokens, best first; of equals the smaller id first.
    pub top: Vec<(TokenId, f64)>,
}

impl LogProbs {
    /// Over all of `logits`, one for each entry of the vocabulary; `n_top` of the likeliest.
    pub fn new(logits: &[f32], chosen: TokenId, n_top: usize) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
        let log_sum = f64::from(max) + sum.ln();
        let logprob = |id: usize| f64::from(logits[id]) - log_sum;
        let mut ids: Vec<usize> = (0..logits.len()).collect();
        let order = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
        let n_top = n_top.min(ids.len());
        if n_top > 0 && n_top < ids.len() {
            ids.select_nth_unstable_by(n_top - 1, order);
        }
        ids.truncate(n_top);
        ids.sort_unstable_by(order);
        let top = ids.into_iter().map(|id| (id as TokenId, logprob(id))).collect();
        LogProbs { chosen: logprob(chosen as usize), top }
    }

    /// The likeliest as `[[id, logprob], ...]`.
    pub fn top_json(&self) -> Value {
        self.top.iter().map(|(id, logprob)| json!([id, logprob])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_come_first() {
        let probabilities = LogProbs::new(&[1.0, 3.0, 3.0, -2.0, 0.0], 3, 3);
        let ids: Vec<TokenId> = probabilities.top.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [1, 2, 0]);
        assert!((probabilities.chosen - (probabilities.top[0].1 - 5.0)).abs() < 1e-9);
    }

    #[test]
    fn probabilities_sum_to_one() {
        let all = LogProbs::new(&[90.0, 88.5, 0.0, -30.0], 0, 99);
        assert_eq!(all.top.len(), 4);
        let sum: f64 = all.top.iter().map(|(_, logprob)| logprob.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-9, "{sum}");
        assert_eq!(LogProbs::new(&[1.0, 2.0], 1, 0).top, []);
    }
}
