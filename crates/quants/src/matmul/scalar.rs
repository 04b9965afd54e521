//! The reference: one dot product at a time, in safe Rust.

use super::{LONG, LONG_SUMS, SHORT, Shape, blocks};
use crate::TensorType;
use crate::matmul::activations::{ActivationKind, long_sum_at};
use crate::scalar::f32_from_f16;

/// Running sums of a dot product of floats.
pub(crate) const LANES: usize = 16;

/// Calls `store` with the number of each row of activations, of each row of weights, and their dot product.
pub(crate) fn multiply(
    ty: TensorType,
    weights: &[u8],
    activations: &[u8],
    shape: &Shape,
    mut store: impl FnMut(usize, usize, f32),
) {
    let dot = match super::activation_kind(ty) {
        ActivationKind::Int8x256 => dot_long,
        ActivationKind::Int8x32 => dot_short,
        ActivationKind::F32 => dot_float,
    };
    for (w, row) in weights.chunks_exact(shape.row_bytes).enumerate() {
        for (a, activations) in activations.chunks_exact(shape.layout.row_bytes).enumerate() {
            store(a, w, dot(ty, row, activations, shape));
        }
    }
}

fn dot_long(ty: TensorType, weights: &[u8], activations: &[u8], shape: &Shape) -> f32 {
    let mut dot = 0.0_f32;
    for (b, block) in weights.chunks_exact(ty.block_bytes()).enumerate() {
        let block = blocks::long(ty, block);
        let quants = &activations[b * LONG..][..LONG];
        let a = f32_at(activations, shape.layout.scales + 4 * b);
        let sums = &activations[shape.layout.sums + 2 * LONG_SUMS * b..][..2 * 16];
        let (mut isum, mut msum) = (0, 0);
        for s in 0..16 {
            let products = block.quants[16 * s..][..16].iter().zip(&quants[16 * s..][..16]);
            let sum: i32 = products.map(|(&w, &x)| i32::from(w) * i32::from(x as i8)).sum();
            isum += i32::from(block.scales[s]) * sum;
            let sum = u16_at(sums, 2 * long_sum_at(s)) as i16;
            msum += i32::from(block.mins[s]) * i32::from(sum);
        }
        dot = (block.d * a).mul_add(isum as f32, dot);
        if blocks::has_minima(ty) {
            dot = (-(block.dmin * a)).mul_add(msum as f32, dot);
        }
    }
    dot
}

fn dot_short(ty: TensorType, weights: &[u8], activations: &[u8], shape: &Shape) -> f32 {
    let mut dot = 0.0_f32;
    for (b, block) in weights.chunks_exact(ty.block_bytes()).enumerate() {
        let block = blocks::short(ty, block);
        let products = block.quants.iter().zip(&activations[b * SHORT..][..SHORT]);
        let isum: i32 = products.map(|(&w, &x)| i32::from(w) * i32::from(x as i8)).sum();
        let a = f32_at(activations, shape.layout.scales + 4 * b);
        dot = (block.d * a).mul_add(isum as f32, dot);
        if blocks::has_minima(ty) {
            let sum = u16_at(activations, shape.layout.sums + 2 * b) as i16;
            dot = (block.m * a).mul_add(f32::from(sum), dot);
        }
    }
    dot
}

fn dot_float(ty: TensorType, weights: &[u8], activations: &[u8], shape: &Shape) -> f32 {
    let weight = |i: usize| match ty {
        TensorType::F32 => f32_at(weights, 4 * i),
        TensorType::BF16 => f32::from_bits(u32::from(u16_at(weights, 2 * i)) << 16),
        _ => f32_from_f16(u16_at(weights, 2 * i)),
    };
    let mut sums = [0.0_f32; LANES];
    // The last columns are filled up with products of zeros, which make a negative zero positive.
    for i in 0..shape.n_cols.next_multiple_of(LANES) {
        let sum = &mut sums[i % LANES];
        let weight = if i < shape.n_cols { weight(i) } else { 0.0 };
        *sum = weight.mul_add(f32_at(activations, 4 * i), *sum);
    }
    let mut n = LANES / 2;
    while n > 0 {
        for i in 0..n {
            sums[i] += sums[i + n];
        }
        n /= 2;
    }
    sums[0]
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn f32_at(bytes: &[u8], at: usize) -> f32 {
    f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
