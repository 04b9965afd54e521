//! Mean and spread of a few measurements.

use std::time::Duration;

/// The repetitions of one test.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// Tokens that each repetition computed.
    pub n_tokens: u32,
    /// How long each took.
    pub times: Vec<Duration>,
}

impl Samples {
    /// Nanoseconds of each repetition.
    pub fn nanoseconds(&self) -> Vec<u64> {
        self.times.iter().map(|t| u64::try_from(t.as_nanos()).unwrap_or(u64::MAX)).collect()
    }

    /// Tokens per second of each repetition.
    pub fn rates(&self) -> Vec<f64> {
        self.times.iter().map(|t| f64::from(self.n_tokens) / t.as_secs_f64().max(1e-9)).collect()
    }
}

/// Arithmetic mean; 0 of nothing.
pub fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

/// The middle value (the mean of the two in the middle); 0 of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    match n {
        0 => 0.0,
        _ if n % 2 == 1 => sorted[n / 2],
        _ => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// Standard deviation of a sample (over n - 1); 0 with fewer than two values.
pub fn deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    let sum: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
    (sum / (values.len() - 1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_and_deviation_of_a_sample() {
        assert_eq!(mean(&[]), 0.0);
        assert_eq!(mean(&[1.0, 2.0, 6.0]), 3.0);
        assert_eq!((median(&[]), median(&[9.0, 1.0, 2.0]), median(&[4.0, 1.0])), (0.0, 2.0, 2.5));
        assert_eq!(deviation(&[5.0]), 0.0);
        assert_eq!(deviation(&[2.0, 4.0]), 2f64.sqrt());
        assert_eq!(deviation(&[7.0; 5]), 0.0);
    }

    #[test]
    fn rates_are_tokens_per_second() {
        let samples =
            Samples { n_tokens: 128, times: vec![Duration::from_millis(500), Duration::from_secs(2)] };
        assert_eq!(samples.rates(), [256.0, 64.0]);
        assert_eq!(samples.nanoseconds(), [500_000_000, 2_000_000_000]);
    }
}
