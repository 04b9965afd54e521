//! Every kernel against the scalar one, the scalar one against double precision, and both against damaged requests.

use super::*;
use crate::{can_dequantize, dequantize};

/// A stream of numbers without a pattern (xorshift), the same in each run.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn bits(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32
    }

    /// Between -1 and 1.
    pub(super) fn float(&mut self) -> f32 {
        self.bits() as i32 as f32 / 2_147_483_648.0
    }
}

pub(super) fn supported() -> impl Iterator<Item = TensorType> {
    TensorType::ALL.iter().copied().filter(|&ty| supports(ty))
}

/// Rows of random blocks whose scales are ordinary numbers.
pub(super) fn random_weights(ty: TensorType, n_rows: usize, n_cols: usize, random: &mut Random) -> Vec<u8> {
    let n_blocks = n_rows * n_cols / ty.block_len();
    let mut bytes: Vec<u8> = (0..n_blocks * ty.block_bytes()).map(|_| random.bits() as u8).collect();
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        for at in scales_at(ty) {
            // F16 between 2^-12 and 2^-8, of either sign.
            let bits = random.bits();
            let half = (bits & 0x83FF) as u16 | (3 + (bits >> 20 & 3) as u16) << 10;
            block[*at..at + 2].copy_from_slice(&half.to_le_bytes());
        }
        if !ty.is_quantized() {
            let value = random.float();
            match ty {
                TensorType::F32 => block.copy_from_slice(&value.to_le_bytes()),
                TensorType::BF16 => block.copy_from_slice(&((value.to_bits() >> 16) as u16).to_le_bytes()),
                _ => crate::quantize(ty, &[value], block).unwrap(),
            }
        }
    }
    bytes
}

/// Where a block's F16 scales are.
pub(super) fn scales_at(ty: TensorType) -> &'static [usize] {
    match ty {
        TensorType::Q2_K => &[80, 82],
        TensorType::Q3_K => &[108],
        TensorType::Q4_K | TensorType::Q5_K => &[0, 2],
        TensorType::Q6_K => &[208],
        TensorType::Q8_0 | TensorType::Q4_0 | TensorType::IQ4_NL | TensorType::IQ4_XS => &[0],
        _ => &[],
    }
}

pub(super) fn random_activations(n_acts: usize, n_cols: usize, random: &mut Random) -> Vec<f32> {
    (0..n_acts * n_cols).map(|_| random.float() * random.float() * 4.0).collect()
}

pub(super) fn quantize_rows(ty: TensorType, activations: &[f32], n_cols: usize) -> Vec<u8> {
    let kind = activation_kind(ty);
    let row_bytes = kind.row_bytes(n_cols);
    let mut out = vec![0xAA; activations.len() / n_cols * row_bytes];
    for (row, out) in activations.chunks_exact(n_cols).zip(out.chunks_exact_mut(row_bytes)) {
        kind.quantize(row, out);
    }
    out
}

#[test]
fn dot_products_are_those_of_the_dequantized_rows() {
    let mut random = Random::new(1);
    let (n_rows, n_acts, n_cols) = (3, 2, 512);
    for ty in supported().filter(|&ty| can_dequantize(ty)) {
        let weights = random_weights(ty, n_rows, n_cols, &mut random);
        let activations = random_activations(n_acts, n_cols, &mut random);
        let mut out = vec![f32::NAN; n_rows * n_acts];
        let rows = quantize_rows(ty, &activations, n_cols);
        multiply(ty, &weights, n_cols, &rows, &mut out, n_rows).unwrap();
        let mut exact = vec![0.0; n_rows * n_cols];
        dequantize(ty, &weights, &mut exact).unwrap();
        for (a, activations) in activations.chunks_exact(n_cols).enumerate() {
            for (w, weights) in exact.chunks_exact(n_cols).enumerate() {
                let products = weights.iter().zip(activations);
                let dot: f64 = products.map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
                // Each activation is off by at most half a step of a scale of at most 4 / 127.
                let step = if activation_kind(ty) == ActivationKind::F32 { 1e-7 } else { 4.0 / 254.0 };
                let bound = weights.iter().map(|w| f64::from(w.abs())).sum::<f64>() * step * 1.001;
                let found = f64::from(out[a * n_rows + w]);
                assert!((found - dot).abs() <= bound, "{ty}: found {found}, expected {dot} +- {bound}");
            }
        }
    }
}

/// Sizes around every boundary of the kernels: rows of weights, rows of activations, super-blocks or blocks.
const SIZES: &[(usize, usize, usize)] = &[
    (1, 1, 1),
    (8, 1, 2),
    (9, 2, 1),
    (31, 3, 2),
    (7, 4, 1),
    (32, 5, 1),
    (33, 6, 2),
    (40, 7, 1),
    (65, 8, 3),
    (16, 13, 1),
    (5, 127, 1),
    (3, 128, 2),
    (10, 131, 1),
    (9, 257, 1),
];

fn assert_levels_agree(ty: TensorType, weights: &[u8], n_cols: usize, activations: &[u8]) {
    let n_rows = weights.len() / ty.row_bytes(n_cols as u64).unwrap() as usize;
    let n_acts = activations.len() / activation_kind(ty).row_bytes(n_cols);
    let stride = n_rows + 3;
    let run = |level: Level| {
        let mut out = vec![f32::from_bits(0xABCD); n_acts * stride];
        multiply_at(level, ty, weights, n_cols, activations, &mut out, stride).unwrap();
        out
    };
    let expected = run(Level::SCALAR);
    for level in Level::all_supported() {
        let found = run(level);
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let (a, w) = (i / stride, i % stride);
            let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
            assert!(
                same,
                "{level:?} {ty} {n_rows} * {n_acts} * {n_cols}, row {a} with {w}: found {found}, expected {expected}"
            );
        }
    }
}

#[test]
fn every_level_gives_the_bits_of_the_scalar_kernel() {
    let mut random = Random::new(2);
    for ty in supported() {
        for &(n_rows, n_acts, n_blocks) in SIZES {
            let lengths = match activation_kind(ty) {
                ActivationKind::Int8x256 => vec![n_blocks * 256],
                ActivationKind::Int8x32 => vec![n_blocks * 32, n_blocks * 256, 256 + n_blocks * 32],
                ActivationKind::F32 => vec![n_blocks * 64, n_blocks * 16 + 5],
            };
            for n_cols in lengths {
                let weights = random_weights(ty, n_rows, n_cols, &mut random);
                let activations = random_activations(n_acts, n_cols, &mut random);
                assert_levels_agree(ty, &weights, n_cols, &quantize_rows(ty, &activations, n_cols));
            }
        }
    }
}
