//! F32, F16 and BF16: one weight to a block, little-endian.
//!
//! | type | sign | exponent (bias) | fraction | largest | step of the denormals |
//! |------|------|-----------------|----------|---------|-----------------------|
//! | F32  | 31   | 30..23 (127)    | 22..0    | 3.4e38  | 2^-149 |
//! | F16  | 15   | 14..10 (15)     | 9..0     | 65504   | 2^-24  |
//! | BF16 | 15   | 14..7 (127)     | 6..0     | 3.4e38  | 2^-133 |
//!
//! Narrowing rounds to nearest, ties to even, and keeps denormals. NaN becomes 0x7E00 with its sign in F16, and keeps the
//! upper part of its payload, made quiet, in BF16. Widening is exact; it makes F16's NaNs quiet and leaves BF16's alone.
//!
//! Conversions are integer arithmetic without branches on the value, so that loops over rows vectorise and no
//! processor-specific conversion with other NaNs gets in.

use crate::TensorType;

const _: () = assert!(TensorType::F32.block_bytes() == 4 && TensorType::F32.block_len() == 1);
const _: () = assert!(TensorType::F16.block_bytes() == 2 && TensorType::F16.block_len() == 1);
const _: () = assert!(TensorType::BF16.block_bytes() == 2 && TensorType::BF16.block_len() == 1);

const SIGN: u32 = 0x8000_0000;
const INFINITY: u32 = 0x7F80_0000;

pub(super) fn store_f32([weight]: &[f32; 1], block: &mut [u8; 4]) {
    *block = weight.to_le_bytes();
}

pub(super) fn load_f32(block: &[u8; 4], [weight]: &mut [f32; 1]) {
    *weight = f32::from_le_bytes(*block);
}

pub(super) fn store_f16([weight]: &[f32; 1], block: &mut [u8; 2]) {
    *block = f16_from_f32(*weight).to_le_bytes();
}

pub(super) fn load_f16(block: &[u8; 2], [weight]: &mut [f32; 1]) {
    *weight = f32_from_f16(u16::from_le_bytes(*block));
}

pub(super) fn store_bf16([weight]: &[f32; 1], block: &mut [u8; 2]) {
    *block = bf16_from_f32(*weight).to_le_bytes();
}

pub(super) fn load_bf16(block: &[u8; 2], [weight]: &mut [f32; 1]) {
    *weight = f32::from_bits(u32::from(u16::from_le_bytes(*block)) << 16);
}

/// The bits of the F16 nearest to `value`.
#[inline(always)]
pub(crate) fn f16_from_f32(value: f32) -> u16 {
    /// 2^-14, the smallest normal F16.
    const SMALLEST_NORMAL: u32 = (127 - 14) << 23;
    /// Half-way between the largest F16 and 2^16; it and everything above rounds to infinity.
    const OVERFLOW: u32 = 0x477F_F000;
    /// Next to 0.5 the step of F32 is F16's step for denormals: adding it makes the adder round as F16 does.
    const HALF: f32 = 0.5;

    let bits = value.to_bits();
    let magnitude = bits & !SIGN;
    let odd = (magnitude >> 13) & 1;
    let normal = magnitude.wrapping_sub((127 - 15) << 23).wrapping_add(0xFFF + odd) >> 13;
    let denormal = (f32::from_bits(magnitude) + HALF).to_bits().wrapping_sub(HALF.to_bits());

    let mut half = if magnitude < SMALLEST_NORMAL { denormal } else { normal };
    half = if magnitude >= OVERFLOW { 0x7C00 } else { half };
    half = if magnitude > INFINITY { 0x7E00 } else { half };
    (half | (bits >> 16) & 0x8000) as u16
}

/// The value of the F16 with these bits.
#[inline(always)]
pub(crate) fn f32_from_f16(half: u16) -> f32 {
    /// 2^112, the distance between the biases of the two exponents.
    const REBIAS: f32 = f32::from_bits((127 + 112) << 23);

    let sign = u32::from(half & 0x8000) << 16;
    let magnitude = u32::from(half & 0x7FFF);
    // Seen as an F32 the shifted bits are the value times 2^-112, denormals included; the product is exact.
    let finite = (f32::from_bits(magnitude << 13) * REBIAS).to_bits();
    let quiet = if magnitude > 0x7C00 { 0x0040_0000 } else { 0 };
    let special = INFINITY | magnitude << 13 | quiet;
    f32::from_bits(sign | if magnitude >= 0x7C00 { special } else { finite })
}

/// The bits of the BF16 nearest to `value`.
#[inline(always)]
pub(crate) fn bf16_from_f32(value: f32) -> u16 {
    let bits = value.to_bits();
    let odd = (bits >> 16) & 1;
    let rounded = bits.wrapping_add(0x7FFF + odd) >> 16;
    let quiet = bits >> 16 | 0x40;
    (if bits & !SIGN > INFINITY { quiet } else { rounded }) as u16
}
