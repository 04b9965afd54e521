//! How much each type would round each weight, from samples of it.
//!
//! A sample is [`PIECES`] pieces of rows, spread evenly over the rows and columns of a matrix, so that tensors and experts
//! cost alike whatever their size, and all of them together no more than a part of a quantization. The error of a type is
//! that of the pieces quantized and read back: the squares of the differences over the squares of the weights, both times
//! the importance of their columns where that is known. With importances this is the part of the output's power, on the
//! text they come from, that becomes noise, if inputs are uncorrelated.
//!
//! Which pieces are taken depends on the shape alone, and sums run in one order, so that errors are the same on any machine
//! and with any number of threads.

use std::collections::BTreeMap;
use std::ops::Range;

use model_spec::TensorId;
use quants::TensorType;
use rayon::prelude::*;

use crate::plan::{Source, Step};
use crate::{Error, Input, Progress, block};

/// Pieces of a sample.
const PIECES: u64 = 32;

/// Most elements of a piece; blocks of every type divide it.
const PIECE_COLS: u64 = 1024;

/// Pieces for types that take long to make: those that search a codebook.
const FEW_PIECES: usize = 8;

/// Parts of a weight's power that types would turn into noise.
pub(crate) type Errors = BTreeMap<TensorType, f64>;

/// The error of each of `types` for each weight that is to be measured, by its id in the input (one per expert). A type that
/// can't hold a weight's sample is left out.
///
/// # Errors
/// Weights cannot be read, or the threads cannot be started.
pub(crate) fn errors(
    input: &dyn Input,
    work: &[(&Step, Vec<TensorType>)],
    threads: usize,
    progress: &dyn Progress,
) -> Result<BTreeMap<TensorId, Errors>, Error> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("measure-{i}"))
        .build()
        .map_err(|e| Error::Threads { threads, reason: e.to_string() })?;
    progress.begin_measuring(work.len() as u64);
    let measure = |(step, types): &(&Step, Vec<TensorType>)| -> Result<(TensorId, Errors), Error> {
        progress.tensor(&step.id.name());
        let sample = Sample::read(input, step)?;
        let errors = types.iter().filter_map(|ty| Some((*ty, sample.error(*ty)?))).collect();
        progress.advance(1);
        Ok((step.id, errors))
    };
    pool.install(|| work.par_iter().map(measure).collect())
}

/// Pieces of a weight's rows.
struct Sample {
    /// Elements of a piece.
    cols: usize,
    /// `[pieces][cols]`; zero where the weight is not finite.
    weights: Vec<f32>,
    /// The importances of each piece's columns, `[pieces][cols]`.
    importance: Option<Vec<f32>>,
}

impl Sample {
    fn read(input: &dyn Input, step: &Step) -> Result<Sample, Error> {
        let Source::Weight(weight) = &step.source else {
            return Ok(Sample { cols: 1, weights: Vec::new(), importance: None });
        };
        let mut sample = Sample { cols: 0, weights: Vec::new(), importance: None };
        let mut importance = Vec::new();
        let mut bytes = Vec::new();
        for (row, cols) in pieces(step.rows, step.cols) {
            let n_cols = (cols.end - cols.start) as usize;
            let row_bytes = weight.size / step.rows;
            // Pieces are whole blocks of any type, or whole rows.
            let before = row_bytes * cols.start / step.cols;
            bytes.resize((row_bytes * (cols.end - cols.start) / step.cols) as usize, 0);
            input.read(weight, row * row_bytes + before, &mut bytes)?;
            let at = sample.weights.len();
            sample.weights.resize(at + n_cols, 0.0);
            block::dequantize(weight.dtype, &bytes, &mut sample.weights[at..])
                .map_err(|source| Error::Quants { tensor: step.id.name(), source })?;
            if let Some(all) = &step.importance {
                importance.extend_from_slice(&all[cols.start as usize..cols.end as usize]);
            }
            sample.cols = n_cols;
        }
        // Whether they are an error is for the conversion to say, which knows their place.
        sample.weights.iter_mut().filter(|w| !w.is_finite()).for_each(|w| *w = 0.0);
        sample.importance = step.importance.is_some().then_some(importance);
        Ok(sample)
    }

    /// The part of the sample's power that becomes noise; `None` where the type can't hold it.
    fn error(&self, ty: TensorType) -> Option<f64> {
        let n_pieces = self.weights.len() / self.cols.max(1);
        let stride = if is_slow(ty) { n_pieces.div_ceil(FEW_PIECES).max(1) } else { 1 };
        let mut blocks = vec![0; ty.row_bytes(self.cols as u64)? as usize];
        let mut back = vec![0f32; self.cols];
        let (mut noise, mut power) = (0f64, 0f64);
        for piece in (0..n_pieces).step_by(stride) {
            let range = piece * self.cols..(piece + 1) * self.cols;
            let weights = &self.weights[range.clone()];
            let importance = self.importance.as_ref().map(|all| &all[range]);
            block::quantize(ty, weights, self.cols, importance, &mut blocks).ok()?;
            block::dequantize(ty, &blocks, &mut back).ok()?;
            for (i, (w, b)) in weights.iter().zip(&back).enumerate() {
                let count = importance.map_or(1.0, |importance| f64::from(importance[i]));
                let (w, b) = (f64::from(*w), f64::from(*b));
                noise += count * (w - b) * (w - b);
                power += count * w * w;
            }
        }
        let error = if power > 0.0 { noise / power } else { 0.0 };
        error.is_finite().then_some(error)
    }
}

/// Whether a type is made by the search of a codebook, some hundred times slower than others.
fn is_slow(ty: TensorType) -> bool {
    !quants::can_quantize(ty)
}

/// Row and columns of each piece: at even distances through the rows, and through the columns over and over.
fn pieces(rows: u64, cols: u64) -> Vec<(u64, Range<u64>)> {
    // What no piece of blocks divides is taken in whole rows.
    let n_cols = if cols.is_multiple_of(256) { gcd(cols, PIECE_COLS) } else { cols };
    let per_row = cols / n_cols;
    let n = PIECES.min(rows * per_row);
    let place = |i: u64| {
        // The middle of the i-th of n equal parts.
        let row = if rows >= n { (2 * i + 1) * rows / (2 * n) } else { i % rows };
        // Multiples of the golden ratio's share of 2^32, whose upper bits go everywhere alike.
        let piece = (i.wrapping_mul(0x9e37_79b9) >> 16 & 0xffff) * per_row >> 16;
        (row, piece * n_cols..(piece + 1) * n_cols)
    };
    (0..n).map(place).collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize) -> Vec<f32> {
        let value = |i: u64| {
            let x = (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let x = (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (0..4).map(|n| (x >> (16 * n) & 0xffff) as f32 / 65536.0 - 0.5).sum()
        };
        (0..n as u64).map(value).collect()
    }

    #[test]
    fn pieces_go_through_rows_and_columns() {
        let found = pieces(14336, 4096);
        assert_eq!(found.len(), 32);
        assert!(
            found.iter().all(|(row, cols)| *row < 14336 && cols.end <= 4096 && cols.end - cols.start == 1024)
        );
        assert!(found.windows(2).all(|pair| pair[1].0 - pair[0].0 == 448));
        for part in 0..4 {
            let n = found.iter().filter(|(_, cols)| cols.start == part * 1024).count();
            assert!((4..=12).contains(&n), "{n} of 32 pieces in part {part}");
        }
        assert_eq!(pieces(5, 100), [0, 1, 2, 3, 4].map(|row| (row, 0..100)));
        // A few long rows are taken in more than one place.
        let long = pieces(2, 14336);
        assert_eq!(long.len(), 28);
        assert!(
            long.iter().any(|(_, cols)| cols.start == 0) && long.iter().any(|(_, cols)| cols.start > 12000)
        );
        assert_eq!(pieces(1000, 768)[0].1, 0..256);
    }

    #[test]
    fn larger_types_have_smaller_errors() {
        let sample = Sample { cols: 1024, weights: noise(32 * 1024), importance: None };
        let ladder =
            [TensorType::Q2_K, TensorType::Q3_K, TensorType::Q4_K, TensorType::Q5_K, TensorType::Q6_K];
        let errors: Vec<f64> = ladder.iter().map(|ty| sample.error(*ty).unwrap()).collect();
        assert!(errors.windows(2).all(|pair| pair[1] < pair[0] / 2.0), "{errors:?}");
        assert!((0.001..0.01).contains(&errors[2]), "{errors:?}");
        assert_eq!(sample.error(TensorType::F32), Some(0.0));
        let slow = sample.error(TensorType::IQ3_S).unwrap();
        assert!((errors[2]..errors[0]).contains(&slow), "{slow}");
    }

    #[test]
    fn columns_count_as_their_importances_say() {
        let mut weights = noise(4 * 256);
        // Some columns are on a grid of their own, which four bits hold.
        weights.chunks_exact_mut(256).for_each(|piece| piece[..128].fill(0.25));
        let halves = |first: f32, second: f32| {
            let one = [[first; 128], [second; 128]].concat();
            Sample { cols: 256, weights: weights.clone(), importance: Some(one.repeat(4)) }
                .error(TensorType::Q4_K)
                .unwrap()
        };
        assert!(halves(1.0, 1e-6) < halves(1e-6, 1.0) / 10.0);
    }

    #[test]
    fn a_type_that_cannot_hold_a_weight_has_no_error() {
        let mut weights = noise(1024);
        weights[3] = 1e30;
        let sample = Sample { cols: 1024, weights, importance: None };
        assert!(sample.error(TensorType::F16).is_none(), "infinity is no rounding");
        assert!(sample.error(TensorType::BF16).unwrap() < 1e-4);
        let nothing = Sample { cols: 256, weights: vec![0.0; 512], importance: None };
        assert_eq!(nothing.error(TensorType::Q4_K), Some(0.0));
    }
}
