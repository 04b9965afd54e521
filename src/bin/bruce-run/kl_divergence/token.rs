//! What one token says about two models: the one measured, and the one whose log-probabilities were saved.
//!
//! In single and double precision where llama-perplexity uses them, so that the results are its own.

use crate::logits_file::Row;

/// Log-probabilities of the base below this count as nothing.
const NEGLIGIBLE: f32 = -16.0;

/// How two models see one token and its successor in the text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenDivergence {
    /// Negative log-likelihood of the successor, by the model.
    pub nll: f32,
    /// The same by the base.
    pub nll_base: f32,
    /// Kullback-Leibler divergence of the model's distribution from the base's: sum of p_base ln(p_base / p).
    pub kld: f64,
    /// Probability of the successor by the model, less that by the base.
    pub delta_p: f32,
    /// Whether both find the same token likeliest.
    pub same_top: bool,
}

impl TokenDivergence {
    /// The comparison of `logits` with the base's `row`, for the successor `next`.
    pub fn new(logits: &[f32], row: &Row<'_>, next: usize) -> TokenDivergence {
        let (top, max) = likeliest(logits.iter().copied());
        let sum: f64 = logits.iter().map(|logit| f64::from((logit - max).exp())).sum();
        let ln_sum = sum.ln() as f32;
        let nll = max + ln_sum - logits[next];
        let nll_base = -row.log_probability(next);
        let normaliser = max + ln_sum;
        let mut kld = 0f64;
        for (p_base, logit) in row.log_probabilities().zip(logits) {
            if p_base > NEGLIGIBLE {
                kld += f64::from(p_base.exp() * (p_base - logit + normaliser));
            }
        }
        let (top_base, _) = likeliest(row.log_probabilities());
        let delta_p = (-nll).exp() - (-nll_base).exp();
        TokenDivergence { nll, nll_base, kld, delta_p, same_top: top == top_base }
    }
}

/// Index and value of the largest, the first of equals.
fn likeliest(values: impl Iterator<Item = f32>) -> (usize, f32) {
    let mut top = (0, f32::NEG_INFINITY);
    for (i, value) in values.enumerate() {
        if value > top.1 {
            top = (i, value);
        }
    }
    top
}
