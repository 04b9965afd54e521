//! From logits to perplexity.
//!
//! Perplexity is exp of the mean negative log-likelihood of the tokens scored. The error is the standard error of
//! that mean, carried through the exponential, as llama-perplexity prints it.

/// Running sums over all scored tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Score {
    n: u64,
    sum: f64,
    sum_of_squares: f64,
}

/// A perplexity and its error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// exp of the mean negative log-likelihood.
    pub perplexity: f64,
    /// Its standard error; `None` with fewer than two tokens, or where all were equally likely.
    pub error: Option<f64>,
}

impl Score {
    /// Adds a token's negative log-likelihood.
    pub fn add(&mut self, nll: f64) {
        self.n += 1;
        self.sum += nll;
        self.sum_of_squares += nll * nll;
    }

    /// Number of tokens scored.
    pub fn n_tokens(&self) -> u64 {
        self.n
    }

    /// The perplexity so far; NaN before the first token.
    pub fn estimate(&self) -> Estimate {
        let n = self.n as f64;
        let mean = self.sum / n;
        let perplexity = mean.exp();
        let variance = self.sum_of_squares / n - mean * mean;
        let error = (variance > 0.0 && self.n > 1).then(|| (variance / (n - 1.0)).sqrt() * perplexity);
        Estimate { perplexity, error }
    }
}

/// Negative log-likelihood of `token` by `logits`, one for each entry of the vocabulary. The sum over the vocabulary
/// is kept in double precision; the rest, as in llama.cpp, in single.
pub fn negative_log_likelihood(logits: &[f32], token: usize) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from((logit - max).exp())).sum();
    -(f64::from(logits[token] - max) - sum.ln())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-6 * b.abs().max(1.0)
    }

    #[test]
    fn equal_logits_give_the_size_of_the_vocabulary() {
        let mut score = Score::default();
        for token in 0..4 {
            score.add(negative_log_likelihood(&[2.5; 7], token));
        }
        let estimate = score.estimate();
        assert!(close(estimate.perplexity, 7.0), "{estimate:?}");
        assert_eq!(score.n_tokens(), 4);
    }

    #[test]
    fn likelihoods_sum_to_one() {
        let logits = [-3.0, 0.5, 80.0, 79.0, f32::NEG_INFINITY];
        let sum: f64 = (0..5).map(|token| (-negative_log_likelihood(&logits, token)).exp()).sum();
        assert!(close(sum, 1.0), "{sum}");
        assert_eq!(negative_log_likelihood(&logits, 4), f64::INFINITY);
    }

    #[test]
    fn the_error_is_that_of_the_mean() {
        let mut score = Score::default();
        for nll in [1.0, 2.0, 3.0] {
            score.add(nll);
        }
        let estimate = score.estimate();
        assert!(close(estimate.perplexity, 2f64.exp()));
        // Variance 2/3, over n - 1 = 2.
        assert!(close(estimate.error.unwrap_or(0.0), (1f64 / 3.0).sqrt() * 2f64.exp()));
    }

    #[test]
    fn one_token_has_no_error() {
        let mut score = Score::default();
        score.add(1.5);
        assert_eq!(score.estimate().error, None);
        assert!(Score::default().estimate().perplexity.is_nan());
    }
}
