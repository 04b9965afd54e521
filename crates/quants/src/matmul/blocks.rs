//! Blocks of weights taken apart into integers: the reference for what kernels read.
//!
//! Layouts are described where the blocks are dequantized (`scalar`); those of the 4-bit types on a grid are here.
//!
//! | bytes of IQ4_NL | of IQ4_XS | content |
//! |-----------------|-----------|---------|
//! | 0..2            | 0..2      | d, F16 |
//! |                 | 2..4      | u16: bits 2 s and 2 s + 1 are the upper bits of scale\[s\] |
//! |                 | 4..8      | lower 4 bits of the scales, scale\[0\] lowest |
//! | 2..18           | 8..136    | byte 16 s + i: indices into the grid of weights i and (above) i + 16 of sub-block s |
//!
//! In IQ4_XS weight = d * (scale\[s\] - 32) * grid\[index\], in IQ4_NL d * grid\[index\].

use crate::TensorType;
use crate::scalar::f32_from_f16;

use super::{LONG, SHORT};

/// The values that IQ4_NL and IQ4_XS choose from.
pub(crate) const IQ4_GRID: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// 256 weights: weight = d * scale\[s\] * quant - dmin * min\[s\], s the sub-block of 16.
pub(super) struct Long {
    pub(super) d: f32,
    pub(super) dmin: f32,
    pub(super) scales: [i16; 16],
    pub(super) mins: [i16; 16],
    pub(super) quants: [i8; LONG],
}

/// 32 weights: weight = d * quant + m.
pub(super) struct Short {
    pub(super) d: f32,
    pub(super) m: f32,
    pub(super) quants: [i8; SHORT],
}

/// Whether a type's weights have minima of their own, so that they take a second `fma`.
pub(super) const fn has_minima(ty: TensorType) -> bool {
    matches!(ty, TensorType::Q2_K | TensorType::Q4_K | TensorType::Q5_K | TensorType::Q4_1 | TensorType::Q5_1)
}

/// The block of one of the types with 256 weights to a block.
pub(super) fn long(ty: TensorType, block: &[u8]) -> Long {
    match ty {
        TensorType::Q2_K => q2_k(block),
        TensorType::Q3_K => q3_k(block),
        TensorType::Q4_K => affine(block, |_, nibble| nibble, &block[16..]),
        TensorType::Q5_K => affine(
            block,
            |i, nibble| nibble | ((block[16 + i % 32] >> (i / 32) & 1) << 4) as i8,
            &block[48..],
        ),
        TensorType::Q6_K => q6_k(block),
        TensorType::IQ4_XS => iq4_xs(block),
        _ => unreachable!("{ty} has no blocks of 256 that are multiplied"),
    }
}

/// The block of one of the types with 32 weights to a block.
pub(super) fn short(ty: TensorType, block: &[u8]) -> Short {
    let d = f16(block, 0);
    let (m, rest) = if has_minima(ty) { (f16(block, 2), &block[4..]) } else { (0.0, &block[2..]) };
    let nibble_of = |bytes: &[u8], i: usize| (bytes[i % 16] >> (i / 16 * 4)) & 15;
    let nibble = |i: usize| nibble_of(rest, i);
    // In the 5-bit types the fifth bits of all weights come first.
    let five_bits = |i: usize| (nibble_of(&rest[4..], i) | (rest[i / 8] >> (i % 8) & 1) << 4) as i8;
    let quants = match ty {
        TensorType::Q8_0 => std::array::from_fn(|i| rest[i] as i8),
        TensorType::Q4_0 => std::array::from_fn(|i| nibble(i) as i8 - 8),
        TensorType::Q4_1 => std::array::from_fn(|i| nibble(i) as i8),
        TensorType::Q5_0 => std::array::from_fn(|i| five_bits(i) - 16),
        TensorType::Q5_1 => std::array::from_fn(five_bits),
        TensorType::IQ4_NL => std::array::from_fn(|i| IQ4_GRID[usize::from(nibble(i))]),
        _ => unreachable!("{ty} has no blocks of 32 that are multiplied"),
    };
    Short { d, m, quants }
}

fn f16(block: &[u8], at: usize) -> f32 {
    f32_from_f16(u16::from_le_bytes([block[at], block[at + 1]]))
}

fn q2_k(block: &[u8]) -> Long {
    Long {
        d: f16(block, 80),
        dmin: f16(block, 82),
        scales: std::array::from_fn(|s| i16::from(block[s] & 15)),
        mins: std::array::from_fn(|s| i16::from(block[s] >> 4)),
        quants: std::array::from_fn(|i| {
            let (half, rest) = (i / 128, i % 128);
            (block[16 + 32 * half + rest % 32] >> (rest / 32 * 2) & 3) as i8
        }),
    }
}

fn q3_k(block: &[u8]) -> Long {
    let scale = |s: usize| {
        let nibble = block[96 + s % 8] >> (s / 8 * 4) & 15;
        let upper = block[104 + s % 4] >> (s / 4 * 2) & 3;
        i16::from(nibble | upper << 4) - 32
    };
    Long {
        d: f16(block, 108),
        dmin: 0.0,
        scales: std::array::from_fn(scale),
        mins: [0; 16],
        quants: std::array::from_fn(|i| {
            let (half, rest) = (i / 128, i % 128);
            let lower = block[32 + 32 * half + rest % 32] >> (rest / 32 * 2) & 3;
            let upper = block[i % 32] >> (i / 32) & 1;
            (lower | upper << 2) as i8 - 4
        }),
    }
}

/// Q4_K and Q5_K, which differ in where nibbles begin and in what is added to them.
fn affine(block: &[u8], complete: impl Fn(usize, i8) -> i8, nibbles: &[u8]) -> Long {
    let packed = &block[4..16];
    let pair = |s: usize| match s {
        0..4 => (packed[s] & 63, packed[s + 4] & 63),
        _ => (packed[s + 4] & 15 | packed[s - 4] >> 6 << 4, packed[s + 4] >> 4 | packed[s] >> 6 << 4),
    };
    Long {
        d: f16(block, 0),
        dmin: f16(block, 2),
        scales: std::array::from_fn(|s| i16::from(pair(s / 2).0)),
        mins: std::array::from_fn(|s| i16::from(pair(s / 2).1)),
        quants: std::array::from_fn(|i| {
            let (pair, rest) = (i / 64, i % 64);
            complete(i, (nibbles[32 * pair + rest % 32] >> (rest / 32 * 4) & 15) as i8)
        }),
    }
}

fn q6_k(block: &[u8]) -> Long {
    Long {
        d: f16(block, 208),
        dmin: 0.0,
        scales: std::array::from_fn(|s| i16::from(block[192 + s] as i8)),
        mins: [0; 16],
        quants: std::array::from_fn(|i| {
            let (half, rest) = (i / 128, i % 128);
            let lower = block[64 * half + rest % 64] >> (rest / 64 * 4) & 15;
            let upper = block[128 + 32 * half + rest % 32] >> (rest / 32 * 2) & 3;
            (lower | upper << 4) as i8 - 32
        }),
    }
}

fn iq4_xs(block: &[u8]) -> Long {
    let upper = u16::from_le_bytes([block[2], block[3]]);
    let scale = |s: usize| {
        let lower = block[4 + s / 2] >> (s % 2 * 4) & 15;
        i16::from(lower | ((upper >> (2 * s) & 3) as u8) << 4) - 32
    };
    Long {
        d: f16(block, 0),
        dmin: 0.0,
        scales: std::array::from_fn(|s| scale(s / 2)),
        mins: [0; 16],
        quants: std::array::from_fn(|i| {
            let (s, rest) = (i / 32, i % 32);
            IQ4_GRID[usize::from(block[8 + 16 * s + rest % 16] >> (rest / 16 * 4) & 15)]
        }),
    }
}
