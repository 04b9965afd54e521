//! Few rows of activations with AVX-512 VNNI: as in [`super::rows`], with 64 columns of a weight row to a vector.
//!
//! Half as many instructions a weight leave room for more loads under way.

use std::arch::x86_64::*;

use super::blocks::{
    Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, float_scales, load, prefetch, row_scales, scale_at, traits,
};
use super::rows::{GROUP, Group, ahead, mins_times_sums, scaled};
use crate::TensorType;
use crate::matmul::{LONG, Shape};

/// Whether there is a kernel for the type and so few rows of activations; if so the products have been written.
///
/// # Safety
///
/// The processor must have AVX-512 with VNNI, and `weights`, `activations` and `out` be as large as the shape says.
pub(super) unsafe fn multiply(
    ty: TensorType,
    weights: *const u8,
    activations: *const u8,
    shape: &Shape,
    out: *mut f32,
) -> bool {
    macro_rules! kernels {
        ($ty:ident) => {
            match shape.n_acts {
                1 => long::<$ty, 1>(weights, activations, shape, out),
                2 => long::<$ty, 2>(weights, activations, shape, out),
                3 => long::<$ty, 3>(weights, activations, shape, out),
                _ => return false,
            }
        };
    }
    // SAFETY: as promised by the caller.
    unsafe {
        match ty {
            // With one row these wait for memory only, and shorter loads got more out of it (BENCHMARKS.md).
            TensorType::Q4_K | TensorType::Q5_K if shape.n_acts == 1 => return false,
            TensorType::Q2_K => kernels!(Q2_K),
            TensorType::Q3_K => kernels!(Q3_K),
            TensorType::Q4_K => kernels!(Q4_K),
            TensorType::Q5_K => kernels!(Q5_K),
            TensorType::Q6_K => kernels!(Q6_K),
            _ => return false,
        }
    }
    true
}

/// Which two of a super-block's eight runs of 32 columns are in each of its four vectors, as files have them together.
const fn runs(ty: u32) -> [[usize; 2]; 4] {
    match ty {
        Q4_K | Q5_K => [[0, 2], [1, 3], [4, 6], [5, 7]],
        Q6_K => [[0, 1], [2, 3], [4, 5], [6, 7]],
        Q2_K | Q3_K => [[0, 4], [1, 5], [2, 6], [3, 7]],
        _ => panic!("not a type that these kernels multiply"),
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn joined(low: __m256i, high: __m256i) -> __m512i {
    _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)
}

/// # Safety
///
/// 64 bytes must be readable.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_wide(from: *const u8) -> __m512i {
    // SAFETY: as promised by the caller; unaligned is fine.
    unsafe { _mm512_loadu_si512(from.cast()) }
}

/// The 256 quants of a super-block, in the order of [`runs`].
///
/// # Safety
///
/// A block of the type must be readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
unsafe fn quants<const TY: u32>(block: *const u8) -> [__m512i; 4] {
    let low = _mm512_set1_epi8(15);
    let two = _mm512_set1_epi8(3);
    let mut out = [_mm512_setzero_si512(); 4];
    // SAFETY: all offsets lie within the block.
    unsafe {
        match TY {
            Q4_K | Q5_K => {
                let at = if TY == Q4_K { 16 } else { 48 };
                for h in 0..2 {
                    let v = load_wide(block.add(at + 64 * h));
                    out[2 * h] = _mm512_and_si512(v, low);
                    out[2 * h + 1] = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
                }
                if TY == Q5_K {
                    add_bits::<TY, 16>(&mut out, load(block.add(16)));
                }
            }
            Q6_K => {
                let middle = _mm512_set1_epi8(0x30);
                let left = joined(_mm256_set1_epi16(4), _mm256_set1_epi16(2));
                let right = joined(_mm256_setzero_si256(), _mm256_set1_epi16(2));
                for h in 0..2 {
                    let v = load_wide(block.add(64 * h));
                    let upper = _mm512_broadcast_i64x4(load(block.add(128 + 32 * h)));
                    let uppers = [_mm512_sllv_epi16(upper, left), _mm512_srlv_epi16(upper, right)];
                    let lowers = [v, _mm512_srli_epi16(v, 4)].map(|v| _mm512_and_si512(v, low));
                    for k in 0..2 {
                        // (upper & middle) | lower
                        out[2 * h + k] = _mm512_ternarylogic_epi32(uppers[k], middle, lowers[k], 0xEA);
                    }
                }
            }
            Q2_K | Q3_K => {
                let v = load_wide(block.add(if TY == Q2_K { 16 } else { 32 }));
                out[0] = _mm512_and_si512(v, two);
                out[1] = _mm512_and_si512(_mm512_srli_epi16(v, 2), two);
                out[2] = _mm512_and_si512(_mm512_srli_epi16(v, 4), two);
                out[3] = _mm512_and_si512(_mm512_srli_epi16(v, 6), two);
                if TY == Q3_K {
                    add_bits::<TY, 4>(&mut out, load(block));
                }
            }
            _ => unreachable!(),
        }
    }
    out
}

/// Adds `VALUE` to the quants of run r whose bit r is set in the byte of their place in the run.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn add_bits<const TY: u32, const VALUE: i8>(quants: &mut [__m512i; 4], bits: __m256i) {
    let bits = _mm512_broadcast_i64x4(bits);
    for (quants, [a, b]) in quants.iter_mut().zip(const { runs(TY) }) {
        let bit = |run: usize| _mm256_set1_epi8((1u8 << run) as i8);
        let set = _mm512_test_epi8_mask(bits, joined(bit(a), bit(b)));
        *quants = _mm512_mask_add_epi8(*quants, set, *quants, _mm512_set1_epi8(VALUE));
    }
}

/// `N` rows of activations times all rows of weights, in super-blocks of 256 with unsigned quants.
///
/// # Safety
///
/// `weights`, `activations` and `out` must be as large as the shape says, for `N` rows of activations.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn long<const TY: u32, const N: usize>(
    weights: *const u8,
    activations: *const u8,
    shape: &Shape,
    out: *mut f32,
) {
    let traits = const { traits(TY) };
    let runs = const { runs(TY) };
    let (n_blocks, ahead) = (shape.n_cols / LONG, ahead());
    // Which 16 bits of the scales go with each 32 columns; both layouts of scales have them in the same places.
    let which = runs.map(|[a, b]| {
        let both = |run: usize| _mm256_set1_epi16(scale_at(TY, run));
        joined(both(a), both(b))
    });
    // SAFETY: all offsets lie within rows of the shape.
    unsafe {
        for group in Group::of(shape.n_rows) {
            let mut blocks = group.starts(weights, shape.row_bytes);
            let mut dots = [_mm256_setzero_ps(); N];
            for b in 0..n_blocks {
                let mut columns = [[_mm512_setzero_si512(); 4]; N];
                for n in 0..N {
                    let row = activations.add(n * shape.layout.row_bytes + b * LONG);
                    for k in 0..4 {
                        let [low, high] = runs[k];
                        columns[n][k] = joined(load(row.add(32 * low)), load(row.add(32 * high)));
                    }
                }
                let mut isums = [[_mm256_setzero_si256(); GROUP]; N];
                let mut msums = [[_mm256_setzero_si256(); GROUP]; N];
                for r in 0..GROUP {
                    prefetch(blocks[r].wrapping_add(ahead), traits.block_bytes);
                    let quants = quants::<TY>(blocks[r]);
                    let factors = row_scales::<TY>(blocks[r]);
                    let spread = _mm512_broadcast_i64x4(factors.scales);
                    for n in 0..N {
                        let row = activations.add(n * shape.layout.row_bytes);
                        let mut sums = _mm512_setzero_si512();
                        for k in 0..4 {
                            let products = _mm512_maddubs_epi16(quants[k], columns[n][k]);
                            let scale = _mm512_shuffle_epi8(spread, which[k]);
                            sums = _mm512_dpwssd_epi32(sums, products, scale);
                        }
                        let (lower, upper) =
                            (_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64(sums, 1));
                        let mut isum = _mm256_add_epi32(lower, upper);
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
