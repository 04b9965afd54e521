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
        TensorType::Q4_1 | TensorType::Q5_1 => &[0, 2],
        TensorType::Q8_0 | TensorType::Q4_0 | TensorType::Q5_0 | TensorType::IQ4_NL | TensorType::IQ4_XS => {
            &[0]
        }
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
    (17, 523, 1),
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

/// Rows that reach the ends of every range on the way to a dot product.
#[test]
fn levels_agree_on_extreme_blocks_and_activations() {
    let n_cols = 512;
    let activations: [(&str, Vec<f32>); 8] = [
        ("ones", vec![1.0; n_cols]),
        ("minus ones", vec![-1.0; n_cols]),
        ("alternating", (0..n_cols).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect()),
        ("zeros", vec![-0.0; n_cols]),
        ("huge", (0..n_cols).map(|i| if i % 3 == 0 { f32::MAX } else { -1e30 }).collect()),
        ("tiny", vec![1e-40; n_cols]),
        ("an infinity", (0..n_cols).map(|i| if i == 300 { f32::INFINITY } else { 1.0 }).collect()),
        ("NaN", (0..n_cols).map(|i| if i == 0 { f32::NAN } else { 1.0 }).collect()),
    ];
    // Largest, smallest normal and denormal scales, zeros of both signs, an infinity.
    let halves = [0x7BFF_u16, 0xFBFF, 0x0400, 0x0001, 0x0000, 0x8000, 0x7C00];
    for ty in supported() {
        let row_bytes = ty.row_bytes(n_cols as u64).unwrap() as usize;
        let mut weights = Vec::new();
        for fill in [0x00, 0xFF, 0x80, 0x7F, 0x0F, 0xF0, 0x55] {
            for half in halves {
                let mut row = vec![fill; row_bytes];
                for block in row.chunks_exact_mut(ty.block_bytes()) {
                    scales_at(ty)
                        .iter()
                        .for_each(|&at| block[at..at + 2].copy_from_slice(&half.to_le_bytes()));
                }
                weights.extend(row);
            }
        }
        for (name, row) in &activations {
            eprintln!("{ty}: {name}");
            // One, a few and many rows take different kernels.
            for n_acts in [1, 3, 9] {
                let rows = quantize_rows(ty, &row.repeat(n_acts), n_cols);
                assert_levels_agree(ty, &weights, n_cols, &rows);
            }
        }
    }
}

#[test]
fn a_dot_product_depends_on_its_two_rows_only() {
    let mut random = Random::new(3);
    let (n_rows, n_acts, n_cols) = (37, 21, 768);
    for ty in supported() {
        let weights = random_weights(ty, n_rows, n_cols, &mut random);
        let activations = random_activations(n_acts, n_cols, &mut random);
        let rows = quantize_rows(ty, &activations, n_cols);
        let row_bytes = activation_kind(ty).row_bytes(n_cols);
        let mut all = vec![0.0; n_rows * n_acts];
        multiply(ty, &weights, n_cols, &rows, &mut all, n_rows).unwrap();
        let bytes = weights.len() / n_rows;
        for (first, n) in [(0, 1), (0, 3), (4, 5), (2, 19), (20, 1)] {
            // Weight rows in uneven parts, as threads take them.
            for (from, to) in [(0, 13), (13, 14), (14, 37)] {
                let mut part = vec![0.0; n * (to - from)];
                let rows = &rows[first * row_bytes..][..n * row_bytes];
                multiply(ty, &weights[from * bytes..to * bytes], n_cols, rows, &mut part, to - from).unwrap();
                for a in 0..n {
                    let expected = &all[(first + a) * n_rows + from..][..to - from];
                    let found = &part[a * (to - from)..][..to - from];
                    assert!(found.iter().zip(expected).all(|(x, y)| x.to_bits() == y.to_bits()), "{ty}");
                }
            }
        }
    }
}

/// The stated bound: (2 n + 2) roundings of the blocks' contributions, on top of the rounding of activations.
#[test]
fn dot_products_of_quantized_rows_are_exact_within_the_stated_bound() {
    let mut random = Random::new(5);
    let n_cols = 2048;
    for ty in supported().filter(|&ty| can_dequantize(ty) && activation_kind(ty) != ActivationKind::F32) {
        let kind = activation_kind(ty);
        let weights = random_weights(ty, 1, n_cols, &mut random);
        let rows = quantize_rows(ty, &random_activations(1, n_cols, &mut random), n_cols);
        let mut found = [0.0];
        multiply(ty, &weights, n_cols, &rows, &mut found, 1).unwrap();
        let mut exact = vec![0.0; n_cols];
        dequantize(ty, &weights, &mut exact).unwrap();
        let scales = &rows[kind.layout(n_cols).scales..];
        let (mut dot, mut size) = (0.0, 0.0);
        for (i, weight) in exact.iter().enumerate() {
            let at = 4 * (i / kind.block_len());
            let scale = f32::from_le_bytes(scales[at..at + 4].try_into().unwrap());
            let product = f64::from(*weight) * f64::from(scale) * f64::from(rows[i] as i8);
            dot += product;
            size += product.abs();
        }
        // Dequantized weights are rounded too, at most three times each.
        let n_roundings = (2 * n_cols / kind.block_len() + 2 + 3) as f64;
        let bound = n_roundings * 2.0_f64.powi(-24) * size;
        assert!((f64::from(found[0]) - dot).abs() <= bound, "{ty}: {} and {dot} +- {bound}", found[0]);
    }
}

/// Trained weights, in every type that can be made of them.
#[test]
fn levels_agree_on_the_weights_of_the_shipped_model() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny-moe/model.safetensors");
    let file = std::fs::read(path).unwrap();
    let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let (n_rows, n_cols) = (40, 512);
    let mut all = vec![0.0; n_rows * n_cols * 3];
    dequantize(TensorType::BF16, &file[8 + header..][..2 * all.len()], &mut all).unwrap();
    for (part, floats) in all.chunks_exact(n_rows * n_cols).enumerate() {
        for ty in supported().filter(|&ty| crate::can_quantize(ty)) {
            let mut weights = vec![0; floats.len() / ty.block_len() * ty.block_bytes()];
            crate::quantize(ty, floats, &mut weights).unwrap();
            // The rows themselves, as activations of a kind that occurs.
            for n_acts in [1, 2, 5, 40] {
                let rows = quantize_rows(ty, &floats[..n_acts * n_cols], n_cols);
                assert_levels_agree(ty, &weights, n_cols, &rows);
            }
            let rows = quantize_rows(ty, floats, n_cols);
            let mut dots = vec![0.0; n_rows * n_rows];
            multiply(ty, &weights, n_cols, &rows, &mut dots, n_rows).unwrap();
            for (w, row) in floats.chunks_exact(n_cols).enumerate() {
                let square: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
                let found = f64::from(dots[w * n_rows + w]);
                // Coarse types miss small weights beside large ones.
                assert!((found - square).abs() <= 0.3 * square, "{ty} {part} {w}: {found} and {square}");
            }
        }
    }
}

#[test]
fn sizes_that_do_not_match_are_refused_and_nothing_is_written() {
    let ty = TensorType::Q4_K;
    let (weights, rows) = (vec![0; 2 * 144], vec![0; 3 * activation_kind(ty).row_bytes(256)]);
    let mut out = [7.0; 6];
    let mut check = |ty, weights: &[u8], n_cols, rows: &[u8], out_len: usize, stride| {
        let error = multiply(ty, weights, n_cols, rows, &mut out[..out_len], stride).unwrap_err();
        assert_eq!(out, [7.0; 6]);
        error
    };
    let found = TensorType::IQ1_S;
    assert_eq!(check(found, &weights, 256, &rows, 6, 2), Error::CannotMultiply { found });
    for n_cols in [0, 255, 300] {
        assert_eq!(check(ty, &weights, n_cols, &rows, 6, 2), Error::PartialBlock { ty, found: n_cols });
    }
    let error = check(ty, &weights[1..], 256, &rows, 6, 2);
    assert_eq!(error, Error::RowBytes { ty, what: "weights", found: 287, expected: 144 });
    let error = check(ty, &weights, 256, &rows[1..], 6, 2);
    assert!(matches!(error, Error::RowBytes { what: "activations", .. }), "{error}");
    assert_eq!(
        check(ty, &weights, 256, &rows, 5, 2),
        Error::Output { rows: 3, cols: 2, found: 5, stride: 2 }
    );
    assert_eq!(
        check(ty, &weights, 256, &rows, 6, 1),
        Error::Output { rows: 3, cols: 2, found: 6, stride: 1 }
    );
    assert_eq!(multiply(ty, &[], 256, &rows, &mut [], 0), Ok(()));
    assert_eq!(multiply(ty, &weights, 256, &[], &mut [], 0), Ok(()));
}

#[test]
fn activations_are_rounded_to_nearest_with_their_sums_behind_them() {
    let mut random = Random::new(6);
    let row = random_activations(1, 800 / 32 * 32, &mut random);
    for (kind, n_cols) in [(ActivationKind::Int8x256, 768), (ActivationKind::Int8x32, 800)] {
        let row = &row[..n_cols];
        let mut bytes = vec![0xAA; kind.row_bytes(n_cols)];
        kind.quantize(row, &mut bytes);
        assert_eq!(bytes.len() % 128, 64, "an odd number of cache lines");
        let layout = kind.layout(n_cols);
        let sum_at =
            |at: usize| i16::from_le_bytes([bytes[layout.sums + 2 * at], bytes[layout.sums + 2 * at + 1]]);
        let sum_of = |quants: &[u8]| quants.iter().map(|&quant| i16::from(quant as i8)).sum::<i16>();
        for (b, columns) in row.chunks_exact(kind.block_len()).enumerate() {
            let at = layout.scales + 4 * b;
            let scale = f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            let largest = columns.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
            assert_eq!(scale, largest / 127.0);
            let quants = &bytes[b * kind.block_len()..][..kind.block_len()];
            for (x, &quant) in columns.iter().zip(quants) {
                assert!((x - scale * f32::from(quant as i8)).abs() <= scale * 0.50001, "{x} as {quant}");
            }
            match kind {
                ActivationKind::Int8x256 => {
                    for s in 0..16 {
                        let order = if s % 2 == 0 { s / 2 } else { 8 + s / 2 };
                        assert_eq!(sum_at(b * 24 + order), sum_of(&quants[16 * s..][..16]));
                    }
                    for s in 0..8 {
                        assert_eq!(sum_at(b * 24 + 16 + s), sum_of(&quants[32 * s..][..32]));
                    }
                }
                _ => assert_eq!(sum_at(b), sum_of(quants)),
            }
        }
        let n_sums = if kind == ActivationKind::Int8x256 { 3 * 24 } else { 25 };
        assert!(bytes[layout.sums + 2 * n_sums..].iter().all(|&byte| byte == 0));
    }
}
