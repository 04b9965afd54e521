//! From tokens to the statistics that llama-perplexity prints after `--kl-divergence`.
//!
//! Errors are standard errors of means; those of functions of means follow by linear propagation.

use super::token::TokenDivergence;

/// A value and its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    pub value: f64,
    pub error: f64,
}

/// Sums over all tokens, and the values that percentiles need.
#[derive(Clone, Debug, Default)]
pub struct Statistics {
    n: usize,
    nll: Moments,
    nll_base: Moments,
    nll_nll_base: f64,
    kld: Moments,
    delta_p: Moments,
    squared_delta_p: Moments,
    n_same_top: usize,
    klds: Vec<f32>,
    delta_ps: Vec<f32>,
}

/// Sum and sum of squares.
#[derive(Clone, Copy, Debug, Default)]
struct Moments {
    sum: f64,
    sum_of_squares: f64,
}

impl Moments {
    fn add(&mut self, value: f64, square: f64) {
        self.sum += value;
        self.sum_of_squares += square;
    }

    /// The mean of `n` values; of ten or less, the error is not known and taken for none.
    fn mean(self, n: usize) -> Measured {
        if n == 0 {
            return Measured { value: 0.0, error: 0.0 };
        }
        let value = self.sum / n as f64;
        let variance = self.sum_of_squares / n as f64 - value * value;
        let error = if variance > 0.0 && n > 10 { (variance / (n - 1) as f64).sqrt() } else { 0.0 };
        Measured { value, error }
    }
}

/// Percentiles of one quantity.
#[derive(Clone, Debug)]
pub struct Percentiles(Vec<f32>);

impl Percentiles {
    fn of(values: &[f32]) -> Percentiles {
        let mut sorted = values.to_vec();
        sorted.sort_by(f32::total_cmp);
        Percentiles(sorted)
    }

    /// The value that `fraction` of all lie below, interpolated between neighbours; NaN where there are none.
    pub fn at(&self, fraction: f32) -> f32 {
        let values = &self.0;
        let Some(last) = values.len().checked_sub(1) else { return f32::NAN };
        if fraction <= 0.0 || fraction >= 1.0 {
            return values[if fraction <= 0.0 { 0 } else { last }];
        }
        let place = fraction * last as f32;
        let index = (place as usize).min(last);
        let rest = place - index as f32;
        (1.0 - rest) * values[index] + rest * values[(index + 1).min(last)]
    }

    /// The middle value, or the mean of the two in the middle.
    pub fn median(&self) -> f32 {
        let (values, middle) = (&self.0, self.0.len() / 2);
        match values.len() {
            0 => f32::NAN,
            n if n % 2 == 0 => 0.5 * (values[middle] + values[middle - 1]),
            _ => values[middle],
        }
    }
}

impl Statistics {
    /// Adds a token.
    pub fn add(&mut self, token: &TokenDivergence) {
        let square = |x: f32| f64::from(x * x);
        self.n += 1;
        self.nll.add(token.nll.into(), square(token.nll));
        self.nll_base.add(token.nll_base.into(), square(token.nll_base));
        self.nll_nll_base += f64::from(token.nll * token.nll_base);
        self.kld.add(token.kld, token.kld * token.kld);
        let squared = square(token.delta_p);
        self.delta_p.add(token.delta_p.into(), squared);
        self.squared_delta_p.add(squared, squared * squared);
        self.n_same_top += usize::from(token.same_top);
        self.klds.push(token.kld as f32);
        self.delta_ps.push(token.delta_p);
    }

    /// Tokens so far.
    pub fn n_tokens(&self) -> usize {
        self.n
    }

    /// Perplexity of the model.
    pub fn perplexity(&self) -> Measured {
        exponential(self.nll.mean(self.n))
    }

    /// Perplexity of the base.
    pub fn perplexity_base(&self) -> Measured {
        exponential(self.nll_base.mean(self.n))
    }

    /// Covariance of the two mean negative log-likelihoods.
    fn covariance(&self) -> f64 {
        if self.n < 10 {
            return 0.0;
        }
        let n = self.n as f64;
        (self.nll_nll_base / n - (self.nll.sum / n) * (self.nll_base.sum / n)) / (n - 1.0)
    }

    /// How the log-likelihoods of the two models go together: 1 where they always do.
    pub fn correlation(&self) -> f64 {
        self.covariance() / (self.nll.mean(self.n).error * self.nll_base.mean(self.n).error)
    }

    /// Logarithm of the ratio of the perplexities, the model's over the base's.
    pub fn ln_perplexity_ratio(&self) -> Measured {
        let (model, base) = (self.nll.mean(self.n), self.nll_base.mean(self.n));
        let value = model.value - base.value;
        Measured { value, error: error_of_difference(model.error, base.error, self.covariance()) }
    }

    /// Ratio of the perplexities.
    pub fn perplexity_ratio(&self) -> Measured {
        exponential(self.ln_perplexity_ratio())
    }

    /// Difference of the perplexities.
    pub fn perplexity_difference(&self) -> Measured {
        let (model, base) = (self.perplexity(), self.perplexity_base());
        let covariance = model.value * base.value * self.covariance();
        let value = model.value - base.value;
        Measured { value, error: error_of_difference(model.error, base.error, covariance) }
    }

    /// Mean Kullback-Leibler divergence.
    pub fn kld(&self) -> Measured {
        self.kld.mean(self.n)
    }

    /// Percentiles of the divergence.
    pub fn kld_percentiles(&self) -> Percentiles {
        Percentiles::of(&self.klds)
    }

    /// Mean change of the probability of the text's tokens.
    pub fn delta_p(&self) -> Measured {
        self.delta_p.mean(self.n)
    }

    /// Percentiles of that change.
    pub fn delta_p_percentiles(&self) -> Percentiles {
        Percentiles::of(&self.delta_ps)
    }

    /// Root of the mean square of that change.
    pub fn rms_delta_p(&self) -> Measured {
        let square = self.squared_delta_p.mean(self.n);
        let value = square.value.sqrt();
        Measured { value, error: 0.5 / value * square.error }
    }

    /// Share of tokens after which both models find the same one likeliest.
    pub fn same_top(&self) -> Measured {
        let value = self.n_same_top as f64 / self.n as f64;
        Measured { value, error: (value * (1.0 - value) / (self.n as f64 - 1.0)).sqrt() }
    }
}

fn exponential(x: Measured) -> Measured {
    let value = x.value.exp();
    Measured { value, error: value * x.error }
}

fn error_of_difference(a: f64, b: f64, covariance: f64) -> f64 {
    // Rounding may leave a little less than nothing where the two are the same.
    (a * a + b * b - 2.0 * covariance).max(0.0).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-5 * b.abs().max(1.0)
    }

    fn statistics(tokens: &[TokenDivergence]) -> Statistics {
        let mut statistics = Statistics::default();
        tokens.iter().for_each(|token| statistics.add(token));
        statistics
    }

    fn token(i: u16) -> TokenDivergence {
        let x = f32::from(i);
        TokenDivergence {
            nll: 1.0 + x / 8.0,
            nll_base: 1.0 + x / 16.0,
            kld: f64::from(x) / 100.0,
            delta_p: (x - 2.0) / 10.0,
            same_top: i < 15,
        }
    }

    #[test]
    fn sums_become_means_with_errors() {
        let s = statistics(&(0..20).map(token).collect::<Vec<_>>());
        // Mean of 0 .. 19 is 9.5, its variance 33.25; the error of the mean is the root of 33.25 / 19.
        let error = (33.25f64 / 19.0).sqrt();
        assert!(close(s.kld().value, 0.095) && close(s.kld().error, error / 100.0), "{:?}", s.kld());
        let ratio = s.ln_perplexity_ratio();
        assert!(close(ratio.value, 9.5 / 16.0) && close(ratio.error, error / 16.0), "{ratio:?}");
        assert!(close(s.correlation(), 1.0), "{}", s.correlation());
        assert!(close(s.perplexity().value, (1.0 + 9.5 / 8.0f64).exp()));
        assert!(close(s.perplexity_base().error, s.perplexity_base().value * error / 16.0));
        assert!(close(s.delta_p().value, 0.75));
        assert!(close(s.rms_delta_p().value, (0.75f64 * 0.75 + 0.3325).sqrt()));
        assert!(close(s.same_top().value, 0.75) && close(s.same_top().error, (0.1875f64 / 19.0).sqrt()));
    }

    #[test]
    fn percentiles_lie_between_neighbours() {
        let p = statistics(&(0..5).map(token).collect::<Vec<_>>()).kld_percentiles();
        assert_eq!((p.at(0.0), p.median(), p.at(1.0)), (0.0, 0.02, 0.04));
        assert!((p.at(0.1) - 0.004).abs() < 1e-7 && (p.at(0.9) - 0.036).abs() < 1e-7);
        let even = Percentiles::of(&[4.0, 1.0, 3.0, 2.0]);
        assert_eq!(even.median(), 2.5);
        assert!(Percentiles::of(&[]).at(0.5).is_nan() && Percentiles::of(&[]).median().is_nan());
    }

    #[test]
    fn a_model_compared_with_itself_has_no_error() {
        let same = TokenDivergence { nll: 2.0, nll_base: 2.0, kld: 0.0, delta_p: 0.0, same_top: true };
        let s = statistics(&[same; 12]);
        assert_eq!(s.ln_perplexity_ratio(), Measured { value: 0.0, error: 0.0 });
        assert_eq!(s.perplexity_ratio().value, 1.0);
        assert_eq!(s.same_top(), Measured { value: 1.0, error: 0.0 });
    }
}
