//! Blocks of weights taken apart into vectors of 16 signed bytes, and into integer scales.
//!
//! Types are numbers here (`const TY: u32`, ggml's ids), so that each function is compiled for each type with the
//! others' branches gone.

use std::arch::aarch64::*;
use std::arch::asm;

use crate::TensorType;
use crate::matmul::IQ4_GRID;

pub(super) const Q4_0: u32 = TensorType::Q4_0.id();
pub(super) const Q4_1: u32 = TensorType::Q4_1.id();
pub(super) const Q5_0: u32 = TensorType::Q5_0.id();
pub(super) const Q5_1: u32 = TensorType::Q5_1.id();
pub(super) const Q8_0: u32 = TensorType::Q8_0.id();
pub(super) const Q2_K: u32 = TensorType::Q2_K.id();
pub(super) const Q3_K: u32 = TensorType::Q3_K.id();
pub(super) const Q4_K: u32 = TensorType::Q4_K.id();
pub(super) const Q5_K: u32 = TensorType::Q5_K.id();
pub(super) const Q6_K: u32 = TensorType::Q6_K.id();
pub(super) const IQ4_NL: u32 = TensorType::IQ4_NL.id();
pub(super) const IQ4_XS: u32 = TensorType::IQ4_XS.id();

/// Rows of weights whose floats share a vector.
pub(super) const GROUP: usize = 4;

/// What kernels must know of a type.
#[derive(Clone, Copy)]
pub(super) struct Traits {
    pub(super) block_bytes: usize,
    /// Columns that share an integer scale: 16 or 32.
    pub(super) sub_len: usize,
    /// Whether minima have a scale of their own, so that their sum is a second number.
    pub(super) minima: bool,
    /// What quants as they are unpacked must be reduced by.
    pub(super) offset: i8,
    /// Where the F16 scale is; that of minima follows it.
    d_at: usize,
}

pub(super) const fn traits(ty: u32) -> Traits {
    let (block_bytes, sub_len, minima, offset, d_at) = match ty {
        Q2_K => (84, 16, true, 0, 80),
        Q3_K => (110, 16, false, 4, 108),
        Q4_K => (144, 32, true, 0, 0),
        Q5_K => (176, 32, true, 0, 0),
        Q6_K => (210, 16, false, 32, 208),
        IQ4_XS => (136, 32, false, 0, 0),
        Q4_0 => (18, 32, false, 8, 0),
        Q4_1 => (20, 32, true, 0, 0),
        Q5_0 => (22, 32, false, 16, 0),
        Q5_1 => (24, 32, true, 0, 0),
        IQ4_NL => (18, 32, false, 0, 0),
        Q8_0 => (34, 32, false, 0, 0),
        _ => panic!("not a type that these kernels multiply"),
    };
    Traits { block_bytes, sub_len, minima, offset, d_at }
}

/// Whether blocks have 256 weights.
pub(super) const fn is_long(ty: u32) -> bool {
    !matches!(ty, Q8_0 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | IQ4_NL)
}

/// The integer scales of a super-block.
#[derive(Clone, Copy)]
pub(super) struct Scales {
    /// In the sub-blocks' order; with sub-blocks of 32 there are eight.
    pub(super) scales: [int16x8_t; 2],
    /// The minima, or scale * offset where the type has no others: in the order of the activations' sums, which with
    /// sub-blocks of 16 is the even ones first.
    pub(super) mins: [int16x8_t; 2],
}

/// # Safety
///
/// 16 bytes must be readable.
#[inline(always)]
pub(super) unsafe fn load(from: *const u8) -> int8x16_t {
    // SAFETY: as promised by the caller; unaligned is fine.
    unsafe { vld1q_s8(from.cast()) }
}

/// # Safety
///
/// 16 bytes must be readable.
#[inline(always)]
unsafe fn load_u8(from: *const u8) -> uint8x16_t {
    // SAFETY: as promised by the caller; unaligned is fine.
    unsafe { vld1q_u8(from) }
}

/// Each byte's bits from `n` on in the lowest places, for `n` known where this is inlined; negative is the other way.
#[inline(always)]
fn down(v: uint8x16_t, n: isize) -> uint8x16_t {
    // SAFETY: every processor that this is compiled for has NEON.
    unsafe {
        match n {
            -3 => vshlq_n_u8::<3>(v),
            -2 => vshlq_n_u8::<2>(v),
            -1 => vshlq_n_u8::<1>(v),
            0 => v,
            1 => vshrq_n_u8::<1>(v),
            2 => vshrq_n_u8::<2>(v),
            3 => vshrq_n_u8::<3>(v),
            4 => vshrq_n_u8::<4>(v),
            5 => vshrq_n_u8::<5>(v),
            6 => vshrq_n_u8::<6>(v),
            _ => vshrq_n_u8::<7>(v),
        }
    }
}

/// The quants of columns 128 H .. 128 H + 128 of a super-block.
///
/// # Safety
///
/// A block of the type must be readable.
#[inline(always)]
pub(super) unsafe fn quants<const TY: u32, const H: usize>(block: *const u8) -> [int8x16_t; 8] {
    // SAFETY: all offsets lie within the block.
    unsafe {
        let mut out = [vdupq_n_u8(0); 8];
        match TY {
            Q4_K => {
                let low = vdupq_n_u8(15);
                for i in 0..4 {
                    let v = load_u8(block.add(16 + 64 * H + 16 * i));
                    let at = i / 2 * 4 + i % 2;
                    out[at] = vandq_u8(v, low);
                    out[at + 2] = vshrq_n_u8::<4>(v);
                }
            }
            Q5_K => {
                let low = vdupq_n_u8(31);
                for i in 0..4 {
                    // Shifts that insert put a fifth bit above a nibble, with others above it.
                    let v = load_u8(block.add(48 + 64 * H + 16 * i));
                    let fifth = load_u8(block.add(16 + 16 * (i % 2)));
                    let (at, bit) = (i / 2 * 4 + i % 2, (4 * H + i / 2 * 2) as isize);
                    out[at] = vandq_u8(vsliq_n_u8::<4>(v, down(fifth, bit)), low);
                    out[at + 2] = vandq_u8(vsriq_n_u8::<4>(down(fifth, bit + 1 - 4), v), low);
                }
            }
            Q6_K => {
                let low = vdupq_n_u8(63);
                for i in 0..2 {
                    let a = load_u8(block.add(64 * H + 16 * i));
                    let b = load_u8(block.add(64 * H + 32 + 16 * i));
                    let upper = load_u8(block.add(128 + 32 * H + 16 * i));
                    out[i] = vandq_u8(vsliq_n_u8::<4>(a, upper), low);
                    out[i + 2] = vandq_u8(vsliq_n_u8::<4>(b, vshrq_n_u8::<2>(upper)), low);
                    out[i + 4] = vandq_u8(vsriq_n_u8::<4>(upper, a), low);
                    out[i + 6] = vsriq_n_u8::<4>(vshrq_n_u8::<2>(upper), b);
                }
            }
            Q2_K => {
                for (i, out) in out.iter_mut().enumerate() {
                    let v = down(load_u8(block.add(16 + 32 * H + 16 * (i % 2))), i as isize / 2 * 2);
                    *out = vandq_u8(v, vdupq_n_u8(3));
                }
            }
            Q3_K => {
                for (i, out) in out.iter_mut().enumerate() {
                    let v = down(load_u8(block.add(32 + 32 * H + 16 * (i % 2))), i as isize / 2 * 2);
                    let third = down(load_u8(block.add(16 * (i % 2))), (4 * H + i / 2) as isize);
                    *out = vandq_u8(vsliq_n_u8::<2>(v, third), vdupq_n_u8(7));
                }
            }
            IQ4_XS => {
                for i in 0..4 {
                    let [lower, upper] = nibbles(block.add(8 + 64 * H + 16 * i));
                    (out[2 * i], out[2 * i + 1]) = (on_grid(lower), on_grid(upper));
                }
            }
            _ => unreachable!(),
        }
        out.map(|v| vreinterpretq_s8_u8(v))
    }
}

/// The 32 quants of a block.
///
/// # Safety
///
/// A block of the type must be readable.
#[inline(always)]
pub(super) unsafe fn short_quants<const TY: u32>(block: *const u8) -> [int8x16_t; 2] {
    // SAFETY: all offsets lie within the block.
    unsafe {
        let out = match TY {
            Q8_0 => [load_u8(block.add(2)), load_u8(block.add(18))],
            Q4_0 => nibbles(block.add(2)),
            Q4_1 => nibbles(block.add(4)),
            Q5_0 => with_fifth_bits(nibbles(block.add(6)), block.add(2)),
            Q5_1 => with_fifth_bits(nibbles(block.add(8)), block.add(4)),
            IQ4_NL => {
                let [lower, upper] = nibbles(block.add(2));
                [on_grid(lower), on_grid(upper)]
            }
            _ => unreachable!(),
        };
        [vreinterpretq_s8_u8(out[0]), vreinterpretq_s8_u8(out[1])]
    }
}

/// The lower 4 bits of 16 bytes, then the upper ones.
///
/// # Safety
///
/// 16 bytes must be readable.
#[inline(always)]
unsafe fn nibbles(from: *const u8) -> [uint8x16_t; 2] {
    // SAFETY: as promised by the caller.
    unsafe {
        let v = load_u8(from);
        [vandq_u8(v, vdupq_n_u8(15)), vshrq_n_u8::<4>(v)]
    }
}

/// With 16 added to each whose bit is set in the 32 bits.
///
/// # Safety
///
/// 4 bytes must be readable.
#[inline(always)]
unsafe fn with_fifth_bits(nibbles: [uint8x16_t; 2], from: *const u8) -> [uint8x16_t; 2] {
    // SAFETY: as promised by the caller.
    unsafe {
        let bits = vreinterpretq_u8_u32(vdupq_n_u32(from.cast::<u32>().read_unaligned()));
        let bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
        let eighths = |first: u8| vcombine_u8(vdup_n_u8(first), vdup_n_u8(first + 1));
        [0, 1].map(|half| {
            let is_set = vtstq_u8(vqtbl1q_u8(bits, eighths(2 * half as u8)), bit);
            vorrq_u8(nibbles[half], vandq_u8(is_set, vdupq_n_u8(16)))
        })
    }
}

#[inline(always)]
fn on_grid(indices: uint8x16_t) -> uint8x16_t {
    // SAFETY: the table has 16 bytes.
    unsafe { vqtbl1q_u8(load_u8(IQ4_GRID.as_ptr().cast()), indices) }
}

/// The integer scales of a super-block.
///
/// # Safety
///
/// A block of the type must be readable.
#[inline(always)]
pub(super) unsafe fn scales<const TY: u32>(block: *const u8) -> Scales {
    // SAFETY: all offsets lie within the block.
    unsafe {
        match TY {
            Q4_K | Q5_K => {
                // 8 bytes hold the first four scales and minima, and the upper bits of the others. Whole numbers leave
                // the vector units to the quants.
                let packed = block.add(4).cast::<u64>().read_unaligned();
                let rest = u64::from(block.add(12).cast::<u32>().read_unaligned());
                let first = packed & 0x3F3F_3F3F_3F3F_3F3F;
                let lower = (rest | rest << 28) & 0x0F0F_0F0F_0F0F_0F0F;
                let second = lower | packed >> 2 & 0x3030_3030_3030_3030;
                let scales = first & 0xFFFF_FFFF | second << 32;
                let mins = first >> 32 | second & 0xFFFF_FFFF_0000_0000;
                let [scales, mins] = [scales, mins].map(|v| vreinterpretq_s16_u16(vmovl_u8(vcreate_u8(v))));
                Scales { scales: [scales; 2], mins: [mins; 2] }
            }
            Q6_K => {
                let scales = vld1q_s8(block.add(192).cast());
                Scales { scales: widened(scales), mins: even_odd(scales).map(|v| vshlq_n_s16::<5>(v)) }
            }
            Q3_K => {
                let packed = vld1_u8(block.add(96));
                let lower = vcombine_u8(vand_u8(packed, vdup_n_u8(15)), vshr_n_u8::<4>(packed));
                let upper = vdupq_n_u32(block.add(104).cast::<u32>().read_unaligned());
                let upper = vshlq_u32(upper, vld1q_s32([0, -2, -4, -6].as_ptr()));
                let upper = vandq_u8(vreinterpretq_u8_u32(upper), vdupq_n_u8(3));
                let scales = vreinterpretq_s8_u8(vsliq_n_u8::<4>(lower, upper));
                let scales = vsubq_s8(scales, vdupq_n_s8(32));
                Scales { scales: widened(scales), mins: even_odd(scales).map(|v| vshlq_n_s16::<2>(v)) }
            }
            Q2_K => {
                let packed = load_u8(block);
                let scales = vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(15)));
                let mins = vreinterpretq_s8_u8(vshrq_n_u8::<4>(packed));
                Scales { scales: widened(scales), mins: even_odd(mins) }
            }
            IQ4_XS => {
                let packed = vcreate_u8(u64::from(block.add(4).cast::<u32>().read_unaligned()));
                let lower = vzip1_u8(vand_u8(packed, vdup_n_u8(15)), vshr_n_u8::<4>(packed));
                let upper = vdupq_n_u16(block.add(2).cast::<u16>().read_unaligned());
                let places = vld1q_s16([0, -2, -4, -6, -8, -10, -12, -14].as_ptr());
                let upper = vandq_u16(vshlq_u16(upper, places), vdupq_n_u16(3));
                let scales = vsliq_n_u16::<4>(vmovl_u8(lower), upper);
                let scales = vsubq_s16(vreinterpretq_s16_u16(scales), vdupq_n_s16(32));
                Scales { scales: [scales; 2], mins: [vdupq_n_s16(0); 2] }
            }
            _ => unreachable!(),
        }
    }
}

#[inline(always)]
fn widened(scales: int8x16_t) -> [int16x8_t; 2] {
    // SAFETY: every processor that this is compiled for has NEON.
    unsafe { [vmovl_s8(vget_low_s8(scales)), vmovl_high_s8(scales)] }
}

/// The even ones of sixteen, then the odd ones.
#[inline(always)]
fn even_odd(scales: int8x16_t) -> [int16x8_t; 2] {
    // SAFETY: every processor that this is compiled for has NEON.
    let (even, odd) = unsafe { (vuzp1q_s8(scales, scales), vuzp2q_s8(scales, scales)) };
    [widened(even)[0], widened(odd)[0]]
}

/// The F16 scales of four rows' blocks, and behind them those of their minima, where the type has any.
///
/// # Safety
///
/// Blocks of the type must be readable.
#[inline(always)]
pub(super) unsafe fn float_scales<const TY: u32>(blocks: &[*const u8; GROUP]) -> (float32x4_t, float32x4_t) {
    let traits = const { traits(TY) };
    // SAFETY: the F16, or both, lie within each block.
    unsafe {
        if traits.minima {
            let pair = |r: usize| blocks[r].add(traits.d_at).cast::<u32>();
            let mut pairs = vdupq_n_u32(pair(0).read_unaligned());
            pairs = vld1q_lane_u32::<1>(pair(1), pairs);
            pairs = vld1q_lane_u32::<2>(pair(2), pairs);
            pairs = vld1q_lane_u32::<3>(pair(3), pairs);
            let pairs = vreinterpretq_u16_u32(pairs);
            (
                widen_halves(vget_low_u16(vuzp1q_u16(pairs, pairs))),
                widen_halves(vget_low_u16(vuzp2q_u16(pairs, pairs))),
            )
        } else {
            let one = |r: usize| blocks[r].add(traits.d_at).cast::<u16>();
            let mut halves = vdup_n_u16(one(0).read_unaligned());
            halves = vld1_lane_u16::<1>(one(1), halves);
            halves = vld1_lane_u16::<2>(one(2), halves);
            halves = vld1_lane_u16::<3>(one(3), halves);
            (widen_halves(halves), vdupq_n_f32(0.0))
        }
    }
}

/// Four F16 as F32. The compiler's own conversion needs types that are not stable in the oldest supported Rust.
#[inline(always)]
pub(crate) fn widen_halves(halves: uint16x4_t) -> float32x4_t {
    let wide;
    // SAFETY: every AArch64 processor with NEON has the instruction; it touches registers only.
    unsafe {
        asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) wide, in(vreg) halves, options(pure, nomem, nostack, preserves_flags));
    }
    wide
}

/// Fetches these bytes into the first cache. Prefetching an address that can't be read does nothing.
#[inline(always)]
pub(super) fn prefetch(from: *const u8, bytes: usize) {
    for at in (0..bytes).step_by(64) {
        let from = from.wrapping_add(at);
        // SAFETY: a hint, which faults nowhere.
        unsafe {
            asm!("prfm pldl1keep, [{0}]", in(reg) from, options(readonly, nostack, preserves_flags));
        }
    }
}

/// How many bytes from its own block `b` of `n_blocks` a row is to prefetch: to the block `distance` blocks later or, at
/// the end of the row, as far into the row that comes next in its place, `stride` bytes on.
///
/// Processors' own prefetching may give up at each row's end and at each page's.
#[inline(always)]
pub(super) fn ahead(b: usize, n_blocks: usize, distance: usize, stride: usize, block_bytes: usize) -> isize {
    let same_row = (distance * block_bytes) as isize;
    if b + distance < n_blocks {
        same_row
    } else {
        same_row + stride as isize - (n_blocks * block_bytes) as isize
    }
}
