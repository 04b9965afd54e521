//! Few rows of activations: eight rows of weights at a time, read once, vectors along the columns. AVX2.
//!
//! Each weight row's block gives a vector of partial sums for each row of activations; those of eight weight rows are
//! added across at once, so that the float arithmetic works on eight rows in one vector too.

use std::arch::x86_64::*;
use std::sync::OnceLock;

use super::Isa;
use super::blocks::{float_scales, load, prefetch, quants, row_scales, scale_at, traits};
use crate::matmul::{LONG, LONG_SUMS, Layout, Shape};

/// Rows of weights that are worked on together.
pub(crate) const GROUP: usize = 8;

/// Bytes to fetch ahead of each row.
///
/// Rows of a group often lie a multiple of 4 KiB apart, where all eight streams share the same places of the first cache:
/// in eight ways nothing is left for what is being used, so that far less may wait there.
pub(super) fn ahead() -> usize {
    static AHEAD: OnceLock<usize> = OnceLock::new();
    *AHEAD.get_or_init(|| if first_cache_ways() > GROUP { 2048 } else { 384 })
}

/// Ways of the first data cache; 8, the usual number, where the processor doesn't say.
#[allow(unused_unsafe, reason = "the instruction is safe in newer Rust")]
fn first_cache_ways() -> usize {
    const DATA: u32 = 1;
    // Intel's leaf and AMD's, which describe caches alike.
    for (first, leaf) in [(0, 4), (0x8000_0000, 0x8000_001D)] {
        // SAFETY: every processor of x86-64 has the instruction.
        let (last, cache) = unsafe { (__get_cpuid_max(first).0, __cpuid_count(leaf, 0)) };
        if leaf <= last && cache.eax & 0x1F == DATA {
            return (cache.ebx >> 22) as usize + 1;
        }
    }
    8
}

/// The sums across each of the eight vectors. A blend and a shuffle halve two of them at once, where `hadd` is two shuffles.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn sums_across(v: &[__m256i; 8]) -> __m256i {
    let mut twos = [_mm256_setzero_si256(); 4];
    for i in 0..4 {
        let (a, b) = (v[2 * i], v[2 * i + 1]);
        twos[i] = _mm256_add_epi32(_mm256_blend_epi32(a, b, 0b1100_1100), _mm256_alignr_epi8(b, a, 8));
    }
    let mut ones = [_mm256_setzero_si256(); 2];
    for i in 0..2 {
        let (a, b) = (_mm256_castsi256_ps(twos[2 * i]), _mm256_castsi256_ps(twos[2 * i + 1]));
        let (even, odd) = (_mm256_shuffle_ps(a, b, 0b10_00_10_00), _mm256_shuffle_ps(a, b, 0b11_01_11_01));
        ones[i] = _mm256_add_epi32(_mm256_castps_si256(even), _mm256_castps_si256(odd));
    }
    let [a, b] = ones;
    _mm256_add_epi32(_mm256_blend_epi32(a, b, 0b1111_0000), _mm256_permute2x128_si256(a, b, 0x21))
}

/// The sums across each of the eight lower halves.
#[inline]
#[target_feature(enable = "avx2")]
fn sums_across_halves(v: &[__m256i; 8]) -> __m256i {
    let pair = |r: usize| _mm256_inserti128_si256(v[r], _mm256_castsi256_si128(v[r + 4]), 1);
    let (a, b) = (_mm256_hadd_epi32(pair(0), pair(1)), _mm256_hadd_epi32(pair(2), pair(3)));
    _mm256_hadd_epi32(a, b)
}

/// Rows of weights that are worked on together, as far apart as `stride` says.
///
/// Each of the eight places goes through neighbouring rows from one group to the next, so that memory is read in eight
/// streams without a break: what the processor fetches ahead of them on its own is always wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    first: usize,
    stride: usize,
    n_rows: usize,
}

impl Group {
    /// The groups of so many rows; what is left of them is the last group, of fewer rows.
    pub(super) fn of(n_rows: usize) -> impl Iterator<Item = Self> {
        let stride = n_rows / GROUP;
        let rest = n_rows % GROUP;
        let whole = (0..stride).map(move |first| Self { first, stride, n_rows: GROUP });
        whole.chain((rest > 0).then_some(Self { first: n_rows - rest, stride: 1, n_rows: rest }))
    }

    /// Where its rows begin. Missing rows are stood in for by the last one; what comes of them is not stored.
    ///
    /// # Safety
    ///
    /// `weights` must be those rows, of `row_bytes` bytes.
    #[inline(always)]
    pub(super) unsafe fn starts(self, weights: *const u8, row_bytes: usize) -> [*const u8; GROUP] {
        let mut starts = [weights; GROUP];
        for r in 0..GROUP {
            // SAFETY: as promised by the caller.
            starts[r] =
                unsafe { weights.add((self.first + r.min(self.n_rows - 1) * self.stride) * row_bytes) };
        }
        starts
    }

    /// Writes its results.
    ///
    /// # Safety
    ///
    /// `to` must be writable for a float for each of the rows that groups were made of.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn store(self, to: *mut f32, dots: __m256) {
        let mut all = [0.0; GROUP];
        // SAFETY: as promised by the caller.
        unsafe {
            _mm256_storeu_ps(all.as_mut_ptr(), dots);
            for r in 0..self.n_rows {
                *to.add(self.first + r * self.stride) = all[r];
            }
        }
    }
}

/// Products of a super-block's integer minima (or scales times the offset) with the sums of its activations.
///
/// # Safety
///
/// `row` must be a row of activations of this layout, and have a block `b`.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn mins_times_sums<const TY: u32>(
    mins: __m256i,
    row: *const u8,
    b: usize,
    layout: &Layout,
) -> __m256i {
    // SAFETY: as promised by the caller.
    unsafe {
        let sums = row.add(layout.sums + 2 * LONG_SUMS * b);
        if const { traits(TY).sub_len } == 16 {
            _mm256_madd_epi16(mins, load(sums))
        } else {
            let sums = _mm_loadu_si128(sums.add(2 * 16).cast());
            _mm256_madd_epi16(mins, _mm256_zextsi128_si256(sums))
        }
    }
}

/// The dot products of a group after one more super-block: `d` and `dmin` are those of its rows, `scale` that of the
/// activations.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn scaled<const TY: u32>(
    dots: __m256,
    [d, dmin]: [__m256; 2],
    scale: f32,
    isums: &[__m256i; GROUP],
    msums: &[__m256i; GROUP],
) -> __m256 {
    let traits = const { traits(TY) };
    let scale = _mm256_set1_ps(scale);
    let isum = _mm256_cvtepi32_ps(sums_across(isums));
    let dots = _mm256_fmadd_ps(_mm256_mul_ps(d, scale), isum, dots);
    if !traits.minima {
        return dots;
    }
    let msum = _mm256_cvtepi32_ps(match traits.sub_len {
        16 => sums_across(msums),
        _ => sums_across_halves(msums),
    });
    _mm256_fnmadd_ps(_mm256_mul_ps(dmin, scale), msum, dots)
}

/// One, two or three rows of activations times all rows of weights, in super-blocks of 256; with AVX2 whatever the set.
///
/// # Safety
///
/// The processor must have the instruction set, and `weights`, `activations` and `out` be as large as the shape says.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn multiply<const TY: u32>(
    _isa: Isa,
    weights: *const u8,
    activations: *const u8,
    shape: &Shape,
    out: *mut f32,
) {
    // SAFETY: as promised by the caller.
    unsafe {
        match shape.n_acts {
            1 => long::<TY, 1>(weights, activations, shape, out),
            2 => long::<TY, 2>(weights, activations, shape, out),
            3 => long::<TY, 3>(weights, activations, shape, out),
            n => unreachable!("{n} rows of activations"),
        }
    }
}

/// `N` rows of activations times all rows of weights, in super-blocks of 256.
///
/// # Safety
///
/// `weights`, `activations` and `out` must be as large as the shape says, for `N` rows of activations.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn long<const TY: u32, const N: usize>(
    weights: *const u8,
    activations: *const u8,
    shape: &Shape,
    out: *mut f32,
) {
    let traits = const { traits(TY) };
    let (n_blocks, ahead) = (shape.n_cols / LONG, ahead());
    // SAFETY: all offsets lie within rows of the shape.
    unsafe {
        for group in Group::of(shape.n_rows) {
            let mut blocks = group.starts(weights, shape.row_bytes);
            let mut dots = [_mm256_setzero_ps(); N];
            for b in 0..n_blocks {
                let mut isums = [[_mm256_setzero_si256(); GROUP]; N];
                let mut msums = [[_mm256_setzero_si256(); GROUP]; N];
                for r in 0..GROUP {
                    prefetch(blocks[r].wrapping_add(ahead), traits.block_bytes);
                    let quants = quants::<TY>(blocks[r]);
                    let factors = row_scales::<TY>(blocks[r]);
                    for n in 0..N {
                        let row = activations.add(n * shape.layout.row_bytes);
                        let mut isum = long_sum::<TY>(&quants, factors.scales, row.add(b * LONG));
                        if traits.minima || traits.offset != 0 {
                            let msum = mins_times_sums::<TY>(factors.mins, row, b, &shape.layout);
                            if traits.minima {
                                msums[n][r] = msum;
                            } else {
                                isum = _mm256_sub_epi32(isum, msum);
                            }
                        }
                        isums[n][r] = isum;
                    }
                }
                let (d, dmin) = float_scales::<TY>(&blocks);
                for n in 0..N {
                    let scale = activations.add(n * shape.layout.row_bytes + shape.layout.scales + 4 * b);
                    let scale = scale.cast::<f32>().read_unaligned();
                    dots[n] = scaled::<TY>(dots[n], [d, dmin], scale, &isums[n], &msums[n]);
                }
                for block in &mut blocks {
                    *block = block.wrapping_add(traits.block_bytes);
                }
            }
            for n in 0..N {
                group.store(out.add(n * shape.out_stride), dots[n]);
            }
        }
    }
}

/// Partial sums of scale * quant * activation quant over a super-block.
///
/// # Safety
///
/// 256 activations must be readable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn long_sum<const TY: u32>(quants: &[__m256i; 8], scales: __m256i, activations: *const u8) -> __m256i {
    let mut isum = _mm256_setzero_si256();
    for s in 0..8 {
        // SAFETY: as promised by the caller.
        let x = unsafe { load(activations.add(32 * s)) };
        let products = if const { traits(TY).wide() } {
            _mm256_maddubs_epi16(_mm256_abs_epi8(quants[s]), _mm256_sign_epi8(x, quants[s]))
        } else {
            _mm256_maddubs_epi16(quants[s], x)
        };
        let which = _mm256_set1_epi16(scale_at(TY, s));
        let scale = _mm256_shuffle_epi8(scales, which);
        isum = _mm256_add_epi32(isum, _mm256_madd_epi16(products, scale));
    }
    isum
}

#[cfg(test)]
mod tests {
    use super::{GROUP, Group, first_cache_ways};

    #[test]
    fn the_first_cache_has_the_ways_that_linux_says() {
        let cache = std::path::Path::new("/sys/devices/system/cpu/cpu0/cache/index0");
        let read = |name: &str| std::fs::read_to_string(cache.join(name)).unwrap_or_default();
        // Other systems don't say, nor do some virtual machines.
        if read("level").trim() == "1" && read("type").trim() == "Data" {
            assert_eq!(read("ways_of_associativity").trim(), first_cache_ways().to_string());
        }
    }

    #[test]
    fn groups_take_each_row_once() {
        for n_rows in 0..100 {
            let mut taken: Vec<usize> = Vec::new();
            for group in Group::of(n_rows) {
                assert!((1..=GROUP).contains(&group.n_rows));
                taken.extend((0..group.n_rows).map(|r| group.first + r * group.stride));
            }
            taken.sort_unstable();
            assert_eq!(taken, (0..n_rows).collect::<Vec<_>>());
        }
    }
}
