//! Blocks of weights taken apart into vectors, eight rows of them at a time where that is cheaper. AVX2.
//!
//! Types are numbers here (`const TY: u32`, ggml's ids), so that each function is compiled for each type with the
//! others' branches gone.

use std::arch::x86_64::*;

use crate::TensorType;
use crate::matmul::IQ4_GRID;

pub(crate) const Q4_0: u32 = TensorType::Q4_0.id();
pub(crate) const Q4_1: u32 = TensorType::Q4_1.id();
pub(crate) const Q5_0: u32 = TensorType::Q5_0.id();
pub(crate) const Q5_1: u32 = TensorType::Q5_1.id();
pub(crate) const Q8_0: u32 = TensorType::Q8_0.id();
pub(crate) const Q2_K: u32 = TensorType::Q2_K.id();
pub(crate) const Q3_K: u32 = TensorType::Q3_K.id();
pub(crate) const Q4_K: u32 = TensorType::Q4_K.id();
pub(crate) const Q5_K: u32 = TensorType::Q5_K.id();
pub(crate) const Q6_K: u32 = TensorType::Q6_K.id();
pub(crate) const IQ4_NL: u32 = TensorType::IQ4_NL.id();
pub(crate) const IQ4_XS: u32 = TensorType::IQ4_XS.id();

/// What makes signed bytes unsigned.
pub(crate) const WIDE_OFFSET: i16 = 128;

/// What kernels must know of a type.
#[derive(Clone, Copy)]
pub(crate) struct Traits {
    pub(crate) block_bytes: usize,
    /// Columns that share an integer scale: 16 or 32.
    pub(crate) sub_len: usize,
    /// The largest quant where they are unsigned; 0 where they use all of i8.
    max: i16,
    /// Whether minima have a scale of their own, so that their sum is a second number.
    pub(crate) minima: bool,
    /// What unsigned quants must be reduced by.
    pub(crate) offset: i16,
    /// Where the F16 scale is; that of minima follows it.
    pub(crate) d_at: usize,
}

impl Traits {
    /// Whether quants use all of i8.
    pub(crate) const fn wide(self) -> bool {
        self.max == 0
    }

    /// Vectors of products of pairs that can be added in 16 bits, out of those of a sub-block.
    pub(crate) const fn pairs(self) -> usize {
        let quads = self.sub_len / 4;
        match self.max {
            0 => 1,
            max => {
                let fit = (i16::MAX / (2 * 127 * max)) as usize;
                if fit >= quads { quads } else { fit.next_power_of_two() >> !fit.is_power_of_two() as usize }
            }
        }
    }

    /// Whether a sub-block's sum of products fits 16 bits.
    pub(crate) const fn sub_sums_fit_16_bits(self) -> bool {
        self.max != 0 && self.sub_len as i32 * 127 * (self.max as i32) < 1 << 15
    }
}

pub(crate) const fn traits(ty: u32) -> Traits {
    let (block_bytes, sub_len, max, minima, offset, d_at) = match ty {
        Q2_K => (84, 16, 3, true, 0, 80),
        Q3_K => (110, 16, 7, false, 4, 108),
        Q4_K => (144, 32, 15, true, 0, 0),
        Q5_K => (176, 32, 31, true, 0, 0),
        Q6_K => (210, 16, 63, false, 32, 208),
        IQ4_XS => (136, 32, 0, false, 0, 0),
        Q4_0 => (18, 32, 15, false, 8, 0),
        Q4_1 => (20, 32, 15, true, 0, 0),
        Q5_0 => (22, 32, 31, false, 16, 0),
        Q5_1 => (24, 32, 31, true, 0, 0),
        IQ4_NL => (18, 32, 0, false, 0, 0),
        Q8_0 => (34, 32, 0, false, 0, 0),
        _ => panic!("not a type that these kernels multiply"),
    };
    Traits { block_bytes, sub_len, max, minima, offset, d_at }
}

const _: () = {
    assert!(traits(Q2_K).pairs() == 4 && traits(Q3_K).pairs() == 4 && traits(Q4_K).pairs() == 8);
    assert!(traits(Q5_0).pairs() == 4 && traits(Q8_0).pairs() == 1);
    assert!(traits(Q5_K).pairs() == 4 && traits(Q6_K).pairs() == 2 && traits(Q4_0).pairs() == 8);
};

/// The integer scales of a super-block.
///
/// With sub-blocks of 32: the 8 scales in either half of `scales`, the minima in the lower half of `mins` over zeros.
/// With sub-blocks of 16: those of even sub-blocks in the lower half, of odd ones in the upper half.
#[derive(Clone, Copy)]
pub(crate) struct Scales {
    pub(crate) scales: __m256i,
    pub(crate) mins: __m256i,
}

/// # Safety
///
/// 32 bytes must be readable.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn load(from: *const u8) -> __m256i {
    // SAFETY: as promised by the caller; unaligned is fine.
    unsafe { _mm256_loadu_si256(from.cast()) }
}

/// # Safety
///
/// 16 bytes must be readable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_half(from: *const u8) -> __m128i {
    // SAFETY: as promised by the caller; unaligned is fine.
    unsafe { _mm_loadu_si128(from.cast()) }
}

/// The 256 quants of a super-block, in their columns' order.
///
/// # Safety
///
/// A block of the type must be readable.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn quants<const TY: u32>(block: *const u8) -> [__m256i; 8] {
    let low = _mm256_set1_epi8(15);
    let two = _mm256_set1_epi8(3);
    let bit = |s: u8| _mm256_set1_epi8((1u8 << s) as i8);
    let mut out = [_mm256_setzero_si256(); 8];
    // SAFETY: all offsets lie within the block.
    unsafe {
        match TY {
            Q4_K => {
                for p in 0..4 {
                    let v = load(block.add(16 + 32 * p));
                    out[2 * p] = _mm256_and_si256(v, low);
                    out[2 * p + 1] = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
                }
            }
            Q5_K => {
                for p in 0..4 {
                    let v = load(block.add(48 + 32 * p));
                    out[2 * p] = _mm256_and_si256(v, low);
                    out[2 * p + 1] = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
                }
                let fifth = load(block.add(16));
                let fifths = [
                    _mm256_slli_epi16(_mm256_and_si256(fifth, bit(0)), 4),
                    _mm256_slli_epi16(_mm256_and_si256(fifth, bit(1)), 3),
                    _mm256_slli_epi16(_mm256_and_si256(fifth, bit(2)), 2),
                    _mm256_slli_epi16(_mm256_and_si256(fifth, bit(3)), 1),
                    _mm256_and_si256(fifth, bit(4)),
                    _mm256_srli_epi16(_mm256_and_si256(fifth, bit(5)), 1),
                    _mm256_srli_epi16(_mm256_and_si256(fifth, bit(6)), 2),
                    _mm256_srli_epi16(_mm256_and_si256(fifth, bit(7)), 3),
                ];
                for s in 0..8 {
                    out[s] = _mm256_or_si256(out[s], fifths[s]);
                }
            }
            Q6_K => {
                for h in 0..2 {
                    let (a, b) = (load(block.add(64 * h)), load(block.add(64 * h + 32)));
                    let upper = load(block.add(128 + 32 * h));
                    let middle = _mm256_set1_epi8(0x30);
                    let uppers = [
                        _mm256_and_si256(_mm256_slli_epi16(upper, 4), middle),
                        _mm256_and_si256(_mm256_slli_epi16(upper, 2), middle),
                        _mm256_and_si256(upper, middle),
                        _mm256_and_si256(_mm256_srli_epi16(upper, 2), middle),
                    ];
                    let lowers = [
                        _mm256_and_si256(a, low),
                        _mm256_and_si256(b, low),
                        _mm256_and_si256(_mm256_srli_epi16(a, 4), low),
                        _mm256_and_si256(_mm256_srli_epi16(b, 4), low),
                    ];
                    for k in 0..4 {
                        out[4 * h + k] = _mm256_or_si256(lowers[k], uppers[k]);
                    }
                }
            }
            Q2_K | Q3_K => {
                for h in 0..2 {
                    let v = load(block.add(if TY == Q2_K { 16 } else { 32 } + 32 * h));
                    out[4 * h] = _mm256_and_si256(v, two);
                    out[4 * h + 1] = _mm256_and_si256(_mm256_srli_epi16(v, 2), two);
                    out[4 * h + 2] = _mm256_and_si256(_mm256_srli_epi16(v, 4), two);
                    out[4 * h + 3] = _mm256_and_si256(_mm256_srli_epi16(v, 6), two);
                }
                if TY == Q3_K {
                    let third = load(block);
                    let thirds = [
                        _mm256_slli_epi16(_mm256_and_si256(third, bit(0)), 2),
                        _mm256_slli_epi16(_mm256_and_si256(third, bit(1)), 1),
                        _mm256_and_si256(third, bit(2)),
                        _mm256_srli_epi16(_mm256_and_si256(third, bit(3)), 1),
                        _mm256_srli_epi16(_mm256_and_si256(third, bit(4)), 2),
                        _mm256_srli_epi16(_mm256_and_si256(third, bit(5)), 3),
                        _mm256_srli_epi16(_mm256_and_si256(third, bit(6)), 4),
                        _mm256_srli_epi16(_mm256_and_si256(third, bit(7)), 5),
                    ];
                    for s in 0..8 {
                        out[s] = _mm256_or_si256(out[s], thirds[s]);
                    }
                }
            }
            IQ4_XS => {
                for (s, out) in out.iter_mut().enumerate() {
                    *out = on_grid(nibbles(block.add(8 + 16 * s)));
                }
            }
            _ => unreachable!(),
        }
    }
    out
}

/// The 32 quants of a block, in their columns' order.
///
/// # Safety
///
/// A block of the type must be readable.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn short_quants<const TY: u32>(block: *const u8) -> __m256i {
    // SAFETY: all offsets lie within the block.
    unsafe {
        match TY {
            Q8_0 => load(block.add(2)),
            Q4_0 => nibbles(block.add(2)),
            Q4_1 => nibbles(block.add(4)),
            Q5_0 => _mm256_or_si256(nibbles(block.add(6)), fifth_bits(block.add(2))),
            Q5_1 => _mm256_or_si256(nibbles(block.add(8)), fifth_bits(block.add(4))),
            IQ4_NL => on_grid(nibbles(block.add(2))),
            _ => unreachable!(),
        }
    }
}

/// The lower 4 bits of 16 bytes, then the upper ones.
///
/// # Safety
///
/// 16 bytes must be readable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn nibbles(from: *const u8) -> __m256i {
    // SAFETY: as promised by the caller.
    let v = unsafe { load_half(from) };
    let both = _mm256_set_m128i(_mm_srli_epi16(v, 4), v);
    _mm256_and_si256(both, _mm256_set1_epi8(15))
}

/// 16 in each byte whose bit is set in the 32 bits.
///
/// # Safety
///
/// 4 bytes must be readable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn fifth_bits(from: *const u8) -> __m256i {
    // SAFETY: as promised by the caller.
    let bits = _mm256_set1_epi32(unsafe { from.cast::<i32>().read_unaligned() });
    let eighth = |of: i64| of * 0x0101_0101_0101_0101;
    let bytes = _mm256_shuffle_epi8(bits, _mm256_set_epi64x(eighth(3), eighth(2), eighth(1), 0));
    let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
    let is_set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
    _mm256_and_si256(is_set, _mm256_set1_epi8(16))
}

#[inline]
#[target_feature(enable = "avx2")]
fn on_grid(indices: __m256i) -> __m256i {
    // SAFETY: the table has 16 bytes.
    let grid = unsafe { _mm_loadu_si128(IQ4_GRID.as_ptr().cast()) };
    _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(grid), indices)
}

/// The integer scales of a super-block, and its minima: those of the offset, where the type has no others.
///
/// # Safety
///
/// A block of the type must be readable.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn scales<const TY: u32>(block: *const u8) -> Scales {
    // SAFETY: all offsets lie within the block.
    unsafe {
        match TY {
            Q4_K | Q5_K => {
                let packed = load_half(block.add(4));
                let first = _mm_and_si128(packed, _mm_set1_epi8(63));
                let upper = _mm_and_si128(_mm_srli_epi32(packed, 2), _mm_set1_epi8(0x30));
                let lower = _mm_srlv_epi32(_mm_shuffle_epi32(packed, 0xAA), _mm_set_epi32(0, 0, 4, 0));
                let second = _mm_or_si128(_mm_and_si128(lower, _mm_set1_epi8(15)), upper);
                let both = _mm256_cvtepu8_epi16(_mm_unpacklo_epi32(first, second));
                Scales {
                    scales: _mm256_permute4x64_epi64(both, 0x44),
                    mins: _mm256_permute2x128_si256(both, both, 0x81),
                }
            }
            Q6_K => {
                let scales = even_odd(load_half(block.add(192)));
                Scales { scales, mins: _mm256_slli_epi16(scales, 5) }
            }
            Q3_K => {
                let packed = _mm_loadl_epi64(block.add(96).cast());
                let lower = _mm_unpacklo_epi64(packed, _mm_srli_epi16(packed, 4));
                let lower = _mm_and_si128(lower, _mm_set1_epi8(15));
                let upper = _mm_set1_epi32(block.add(104).cast::<i32>().read_unaligned());
                let upper = _mm_srlv_epi32(upper, _mm_set_epi32(6, 4, 2, 0));
                let upper = _mm_slli_epi16(_mm_and_si128(upper, _mm_set1_epi8(3)), 4);
                let scales = _mm_sub_epi8(_mm_or_si128(lower, upper), _mm_set1_epi8(32));
                let scales = even_odd(scales);
                Scales { scales, mins: _mm256_slli_epi16(scales, 2) }
            }
            Q2_K => {
                let packed = load_half(block);
                let low = _mm_set1_epi8(15);
                let scales = even_odd(_mm_and_si128(packed, low));
                let mins = even_odd(_mm_and_si128(_mm_srli_epi16(packed, 4), low));
                Scales { scales, mins }
            }
            IQ4_XS => {
                let upper = block.add(2).cast::<i16>().read_unaligned();
                let packed = _mm_cvtsi32_si128(block.add(4).cast::<i32>().read_unaligned());
                let lower = _mm_unpacklo_epi8(packed, _mm_srli_epi16(packed, 4));
                let lower = _mm_cvtepu8_epi16(_mm_and_si128(lower, _mm_set1_epi8(15)));
                let places = _mm_set_epi16(1, 1 << 2, 1 << 4, 1 << 6, 1 << 8, 1 << 10, 1 << 12, 1 << 14);
                let upper = _mm_srli_epi16(_mm_mullo_epi16(_mm_set1_epi16(upper), places), 14);
                let scales = _mm_or_si128(lower, _mm_slli_epi16(upper, 4));
                let scales = _mm_sub_epi16(scales, _mm_set1_epi16(32));
                let scales = _mm256_broadcastsi128_si256(scales);
                Scales { scales, mins: _mm256_slli_epi16(scales, 7) }
            }
            _ => unreachable!(),
        }
    }
}

/// The eight scales of a super-block of [`Q4_K`] or [`Q5_K`] and its eight minima, a byte each.
///
/// # Safety
///
/// 16 bytes must be readable.
#[inline(always)]
unsafe fn six_bits(block: *const u8) -> [u64; 2] {
    // SAFETY: as promised by the caller.
    let (first, last) = unsafe {
        (block.add(4).cast::<u64>().read_unaligned(), block.add(12).cast::<u32>().read_unaligned())
    };
    // The first four of either, then the last four of either.
    let lower = first & 0x3F3F_3F3F_3F3F_3F3F;
    let nibbles = (u64::from(last) | u64::from(last) << 28) & 0x0F0F_0F0F_0F0F_0F0F;
    let upper = (first >> 2 & 0x3030_3030_3030_3030) | nibbles;
    [lower & 0xFFFF_FFFF | upper << 32, lower >> 32 | upper & 0xFFFF_FFFF_0000_0000]
}

/// As [`scales`], but those of [`Q4_K`] and [`Q5_K`] are bytes, all eight in each eight: see [`scale_at`].
///
/// # Safety
///
/// A block of the type must be readable.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn row_scales<const TY: u32>(block: *const u8) -> Scales {
    // SAFETY: as promised by the caller.
    unsafe {
        match TY {
            Q4_K | Q5_K => {
                let [scales, mins] = six_bits(block).map(|bytes| bytes as i64);
                let mins = _mm_cvtepu8_epi16(_mm_cvtsi64_si128(mins));
                Scales { scales: _mm256_set1_epi64x(scales), mins: _mm256_zextsi128_si256(mins) }
            }
            _ => scales::<TY>(block),
        }
    }
}

/// Where a shuffle finds the 16 bits of the scale of sub-block `s` of [`row_scales`].
pub(crate) const fn scale_at(ty: u32, s: usize) -> i16 {
    match ty {
        // A byte, and zeros.
        Q4_K | Q5_K => (s | 0x8000) as u16 as i16,
        _ => (2 * s + 256 * (2 * s + 1)) as i16,
    }
}

/// Sixteen i8 as i16: the even ones, then the odd ones.
#[inline]
#[target_feature(enable = "avx2")]
fn even_odd(scales: __m128i) -> __m256i {
    let order = _mm_set_epi8(15, 13, 11, 9, 7, 5, 3, 1, 14, 12, 10, 8, 6, 4, 2, 0);
    _mm256_cvtepi8_epi16(_mm_shuffle_epi8(scales, order))
}

/// The F16 scales of eight rows' blocks, and behind them those of their minima, where the type has any.
///
/// # Safety
///
/// Blocks of the type must be readable.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(crate) unsafe fn float_scales<const TY: u32>(blocks: &[*const u8; 8]) -> (__m256, __m256) {
    let traits = const { traits(TY) };
    if traits.minima {
        // SAFETY: both F16 lie within each block.
        let pair = |r: usize| unsafe { blocks[r].add(traits.d_at).cast::<i32>().read_unaligned() };
        let pairs = _mm256_set_epi32(pair(7), pair(6), pair(5), pair(4), pair(3), pair(2), pair(1), pair(0));
        let lower = _mm256_and_si256(pairs, _mm256_set1_epi32(0xFFFF));
        let halves = _mm256_packus_epi32(lower, _mm256_srli_epi32(pairs, 16));
        let halves = _mm256_permute4x64_epi64(halves, 0xD8);
        let (d, dmin) = (_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
        (_mm256_cvtph_ps(d), _mm256_cvtph_ps(dmin))
    } else {
        // SAFETY: the F16 lies within each block.
        let one = |r: usize| unsafe { blocks[r].add(traits.d_at).cast::<i16>().read_unaligned() };
        let halves = _mm_set_epi16(one(7), one(6), one(5), one(4), one(3), one(2), one(1), one(0));
        (_mm256_cvtph_ps(halves), _mm256_setzero_ps())
    }
}

/// Fetches these bytes into the first cache. Prefetching an address that can't be read does nothing.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn prefetch(from: *const u8, bytes: usize) {
    for at in (0..bytes).step_by(64) {
        _mm_prefetch(from.wrapping_add(at).cast(), _MM_HINT_T0);
    }
}

/// How many bytes from its own block `b` of `n_blocks` a row is to prefetch: to the block `distance` blocks later or, at
/// the end of the row, as far into the row that comes next in its place, `stride` bytes on.
///
/// The processor's own prefetching gives up at each row's end and at each page's.
#[inline(always)]
pub(crate) fn ahead(b: usize, n_blocks: usize, distance: usize, stride: usize, block_bytes: usize) -> isize {
    let same_row = (distance * block_bytes) as isize;
    if b + distance < n_blocks {
        same_row
    } else {
        same_row + stride as isize - (n_blocks * block_bytes) as isize
    }
}

/// The i-th result holds the i-th 32 bits of each of the eight.
#[inline]
#[target_feature(enable = "avx2")]
pub(crate) fn transpose(rows: &[__m256i; 8]) -> [__m256i; 8] {
    let mut pairs = [_mm256_setzero_si256(); 8];
    for i in 0..4 {
        pairs[2 * i] = _mm256_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm256_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    let mut fours = [_mm256_setzero_si256(); 8];
    for i in 0..2 {
        let at = 4 * i;
        fours[at] = _mm256_unpacklo_epi64(pairs[at], pairs[at + 2]);
        fours[at + 1] = _mm256_unpackhi_epi64(pairs[at], pairs[at + 2]);
        fours[at + 2] = _mm256_unpacklo_epi64(pairs[at + 1], pairs[at + 3]);
        fours[at + 3] = _mm256_unpackhi_epi64(pairs[at + 1], pairs[at + 3]);
    }
    let mut columns = [_mm256_setzero_si256(); 8];
    for i in 0..4 {
        columns[i] = _mm256_permute2x128_si256(fours[i], fours[i + 4], 0x20);
        columns[i + 4] = _mm256_permute2x128_si256(fours[i], fours[i + 4], 0x31);
    }
    columns
}
