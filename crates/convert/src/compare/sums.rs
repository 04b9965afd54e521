//! Sums over pairs of weights, and what follows from them.

use quants::TensorType;

use super::min_cosine;

/// Sums over weights of the source and what they became. In F64: products of F32 are exact there.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Sums {
    n: u64,
    /// Of squared differences.
    error: f64,
    /// Of squared weights of the source.
    source: f64,
    /// Of squared weights of the file.
    output: f64,
    /// Largest difference.
    max: f64,
}

/// Independent sums, so that additions need not wait for each other.
const LANES: usize = 8;

impl Sums {
    /// Adds as many weights of the one as of the other.
    pub fn add(&mut self, source: &[f32], output: &[f32]) {
        debug_assert_eq!(source.len(), output.len());
        let (mut error, mut of_source, mut of_output) = ([0f64; LANES], [0f64; LANES], [0f64; LANES]);
        let mut max = [0f32; LANES];
        let mut one = |lane: usize, a: f32, b: f32| {
            let (x, y) = (f64::from(a), f64::from(b));
            error[lane] += (x - y) * (x - y);
            of_source[lane] += x * x;
            of_output[lane] += y * y;
            let distance = (a - b).abs();
            max[lane] = if distance > max[lane] { distance } else { max[lane] };
        };
        let (a, a_rest) = source.as_chunks::<LANES>();
        let (b, b_rest) = output.as_chunks::<LANES>();
        for (a, b) in a.iter().zip(b) {
            for lane in 0..LANES {
                one(lane, a[lane], b[lane]);
            }
        }
        for (a, b) in a_rest.iter().zip(b_rest) {
            one(0, *a, *b);
        }
        self.merge(&Sums {
            n: source.len() as u64,
            error: error.iter().sum(),
            source: of_source.iter().sum(),
            output: of_output.iter().sum(),
            max: max.iter().fold(0.0, |m, x| f64::from(*x).max(m)),
        });
    }

    pub fn merge(&mut self, other: &Sums) {
        self.n += other.n;
        self.error += other.error;
        self.source += other.source;
        self.output += other.output;
        self.max = self.max.max(other.max);
    }

    /// Whether all weights were numbers: squares of finite F32 can't overflow these sums.
    pub fn is_finite(&self) -> bool {
        (self.source + self.output).is_finite()
    }

    pub fn deviation(&self) -> Deviation {
        self.totals().deviation()
    }

    pub fn totals(&self) -> Totals {
        let Sums { n, error, source, output, max } = *self;
        Totals { n, error, source, output, max }
    }

    /// The sum of squared differences.
    pub fn squared_error(&self) -> f64 {
        self.error
    }
}

/// Sums of several tensors, from which one deviation over all of them follows.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Totals {
    n: u64,
    error: f64,
    source: f64,
    output: f64,
    max: f64,
}

impl Totals {
    /// Takes in those of another tensor.
    pub fn merge(&mut self, other: &Totals) {
        self.n += other.n;
        self.error += other.error;
        self.source += other.source;
        self.output += other.output;
        self.max = self.max.max(other.max);
    }

    /// Number of weights that were compared.
    pub fn n_weights(&self) -> u64 {
        self.n
    }

    /// How far the ones are from the others.
    pub fn deviation(&self) -> Deviation {
        let n = self.n.max(1) as f64;
        // The dot product, from |a - b|^2 = |a|^2 + |b|^2 - 2ab.
        let dot = 0.5 * (self.source + self.output - self.error);
        let norms = (self.source * self.output).sqrt();
        let relative = match self.source {
            0.0 if self.error == 0.0 => 0.0,
            0.0 => f64::INFINITY,
            source => (self.error / source).sqrt(),
        };
        let cosine = match self.error {
            0.0 => 1.0,
            _ if norms == 0.0 => 0.0,
            // Not `min`, which makes a number of NaN.
            _ => (dot / norms).clamp(-1.0, 1.0),
        };
        Deviation { rmse: (self.error / n).sqrt(), relative_rmse: relative, max: self.max, cosine }
    }
}

/// How far weights are from their source.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Deviation {
    /// Root of the mean squared difference.
    pub rmse: f64,
    /// That, divided by the root mean square of the source's weights; infinite where those are all zero and these not.
    pub relative_rmse: f64,
    /// Largest difference.
    pub max: f64,
    /// Cosine of the angle between the two, taken as vectors; 1 where they are equal, 0 where one of them is zero.
    pub cosine: f64,
}

impl Deviation {
    /// Whether it is what rounding to this type explains.
    pub fn is_within(&self, ty: TensorType) -> bool {
        self.cosine >= min_cosine(ty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deviation(source: &[f32], output: &[f32]) -> Deviation {
        let mut sums = Sums::default();
        sums.add(source, output);
        sums.deviation()
    }

    #[test]
    fn deviations_are_what_their_formulas_say() {
        let source: Vec<f32> = (0..19).map(|i| i as f32 - 9.0).collect();
        let output: Vec<f32> = source.iter().enumerate().map(|(i, x)| x + (i % 3) as f32).collect();
        let found = deviation(&source, &output);
        let square = |v: &[f32]| v.iter().map(|x| f64::from(x * x)).sum::<f64>();
        let dot: f64 = source.iter().zip(&output).map(|(a, b)| f64::from(a * b)).sum();
        let error: f64 = source.iter().zip(&output).map(|(a, b)| f64::from((a - b) * (a - b))).sum();
        assert!((found.rmse - (error / 19.0).sqrt()).abs() < 1e-12);
        assert!((found.relative_rmse - (error / square(&source)).sqrt()).abs() < 1e-12);
        assert!((found.cosine - dot / (square(&source) * square(&output)).sqrt()).abs() < 1e-12);
        assert_eq!(found.max, 2.0);
    }

    #[test]
    fn zeros_and_opposites_are_no_division_by_zero() {
        assert_eq!(deviation(&[0.0; 9], &[0.0; 9]).cosine, 1.0);
        assert_eq!(deviation(&[0.0; 9], &[0.0; 9]).relative_rmse, 0.0);
        assert_eq!(deviation(&[0.0; 9], &[1.0; 9]).cosine, 0.0);
        assert!(deviation(&[0.0; 9], &[1.0; 9]).relative_rmse.is_infinite());
        assert_eq!(deviation(&[1.0; 9], &[0.0; 9]).cosine, 0.0);
        assert_eq!(deviation(&[1.0; 9], &[-1.0; 9]).cosine, -1.0);
        assert!(!deviation(&[1.0; 9], &[f32::NAN; 9]).is_within(TensorType::TQ1_0));
    }

    #[test]
    fn one_weight_that_is_no_number_shows_in_the_sums() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = [f32::MAX; 20];
            let mut sums = Sums::default();
            sums.add(&values, &values);
            assert!(sums.is_finite());
            values[17] = bad;
            sums.add(&[1.0; 20], &values);
            assert!(!sums.is_finite(), "{bad}");
        }
    }
}
