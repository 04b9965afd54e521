//! Many rows of activations: tiles of weights are unpacked once, interleaved, and used for all of them. AVX2.
//!
//! In a tile a vector holds four columns of each of eight weight rows, so that sums stay apart by row and nothing is ever
//! added across a vector. Products of pairs are added in 16 bits as long as they can't overflow, and widened together:
//! by `madd` with the sub-block's scale, which multiplies and widens at once.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::matmul_blocks::{float_scales, quants, scales, short_quants, traits, transpose};
use super::matmul_rows::GROUP;
use crate::matmul::{LONG, LONG_SUMS, SHORT, Shape};

/// Groups of eight weight rows in a tile: together with their results and the activations they fit a small first cache.
const GROUPS: usize = 4;
/// Rows of activations for which results are kept while a tile moves along the columns.
const PANEL: usize = 128;
/// Rows of activations that one step multiplies: as many as there are registers for.
const STEP: usize = 6;

/// Eight weight rows' super-block, interleaved.
#[repr(C, align(64))]
struct LongTile {
    /// Columns 4 i .. 4 i + 4 of the eight rows.
    quants: [__m256i; LONG / 4],
    /// Each row's scale of a sub-block, twice.
    scales: [__m256i; 16],
    /// Each row's pair of minima, in the order of the activations' sums.
    mins: [__m256i; 8],
    d: __m256,
    dmin: __m256,
}

/// Eight weight rows' blocks of 32, up to eight of them, interleaved.
#[repr(C, align(64))]
struct ShortTile {
    quants: [__m256i; LONG / 4],
    d: [__m256; LONG / SHORT],
}

type Panel = [[MaybeUninit<__m256>; PANEL]; GROUPS];

/// All rows of activations times all rows of weights.
///
/// # Safety
///
/// `weights`, `activations` and `out` must be as large as the shape says.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn multiply<const TY: u32>(
    weights: *const u8,
    activations: *const u8,
    shape: &Shape,
    out: *mut f32,
) {
    let mut a = 0;
    while a < shape.n_acts {
        let n_acts = PANEL.min(shape.n_acts - a);
        let mut w = 0;
        while w < shape.n_rows {
            let n_rows = (GROUPS * GROUP).min(shape.n_rows - w);
            // SAFETY: the offsets are rows within the shape.
            unsafe {
                let weights = weights.add(w * shape.row_bytes);
                let activations = activations.add(a * shape.layout.row_bytes);
                let out = out.add(a * shape.out_stride + w);
                if const { traits(TY).block_bytes > 60 } {
                    long_panel::<TY>(weights, n_rows, activations, n_acts, shape, out);
                } else {
                    short_panel::<TY>(weights, n_rows, activations, n_acts, shape, out);
                }
            }
            w += n_rows;
        }
        a += n_acts;
    }
}

/// # Safety
///
/// As for [`multiply`], for so many rows of each.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn long_panel<const TY: u32>(
    weights: *const u8,
    n_rows: usize,
    activations: *const u8,
    n_acts: usize,
    shape: &Shape,
    out: *mut f32,
) {
    let mut panel: Panel = [[MaybeUninit::uninit(); PANEL]; GROUPS];
    let mut tiles = [const { MaybeUninit::<LongTile>::uninit() }; GROUPS];
    let n_groups = n_rows.div_ceil(GROUP);
    for b in 0..shape.n_cols / LONG {
        for (g, tile) in tiles[..n_groups].iter_mut().enumerate() {
            let at = b * const { traits(TY).block_bytes };
            // SAFETY: rows within the shape; missing ones are stood in for by the last.
            unsafe {
                let blocks = std::array::from_fn(|r| {
                    weights.add((g * GROUP + r).min(n_rows - 1) * shape.row_bytes + at)
                });
                unpack_long::<TY>(&blocks, tile.as_mut_ptr());
            }
        }
        for_each_step(n_acts, |a, n| {
            for g in 0..n_groups {
                // SAFETY: the tile was unpacked above, and the activations are rows within the shape. Results
                // are zeroed in the first step and read in later ones.
                unsafe {
                    let tile = tiles[g].assume_init_ref();
                    let row = activations.add(a * shape.layout.row_bytes);
                    let dots = panel[g].as_mut_ptr().add(a).cast();
                    match n {
                        1 => long_step::<TY, 1>(tile, row, shape, b, dots),
                        2 => long_step::<TY, 2>(tile, row, shape, b, dots),
                        3 => long_step::<TY, 3>(tile, row, shape, b, dots),
                        4 => long_step::<TY, 4>(tile, row, shape, b, dots),
                        5 => long_step::<TY, 5>(tile, row, shape, b, dots),
                        _ => long_step::<TY, 6>(tile, row, shape, b, dots),
                    }
                }
            }
        });
    }
    // SAFETY: the panel's results have been computed for these rows, of which there is at least one block.
    unsafe { store_panel(&panel, n_rows, n_acts, shape, out) };
}

/// # Safety
///
/// As for [`multiply`], for so many rows of each.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn short_panel<const TY: u32>(
    weights: *const u8,
    n_rows: usize,
    activations: *const u8,
    n_acts: usize,
    shape: &Shape,
    out: *mut f32,
) {
    let mut panel: Panel = [[MaybeUninit::uninit(); PANEL]; GROUPS];
    let mut tiles = [const { MaybeUninit::<ShortTile>::uninit() }; GROUPS];
    let n_groups = n_rows.div_ceil(GROUP);
    let n_blocks = shape.n_cols / SHORT;
    let mut b = 0;
    while b < n_blocks {
        let n = (LONG / SHORT).min(n_blocks - b);
        for (g, tile) in tiles[..n_groups].iter_mut().enumerate() {
            let at = b * const { traits(TY).block_bytes };
            // SAFETY: rows within the shape; missing ones are stood in for by the last.
            unsafe {
                let blocks = std::array::from_fn(|r| {
                    weights.add((g * GROUP + r).min(n_rows - 1) * shape.row_bytes + at)
                });
                unpack_short::<TY>(&blocks, n, tile.as_mut_ptr());
            }
        }
        for_each_step(n_acts, |a, n_step| {
            for g in 0..n_groups {
                // SAFETY: the tile was unpacked above, and the activations are rows within the shape. Results
                // are zeroed in the first step and read in later ones.
                unsafe {
                    let tile = tiles[g].as_ptr();
                    let row = activations.add(a * shape.layout.row_bytes);
                    let dots = panel[g].as_mut_ptr().add(a).cast();
                    match n_step {
                        1 => short_step::<TY, 1>(tile, row, shape, b, n, dots),
                        2 => short_step::<TY, 2>(tile, row, shape, b, n, dots),
                        3 => short_step::<TY, 3>(tile, row, shape, b, n, dots),
                        4 => short_step::<TY, 4>(tile, row, shape, b, n, dots),
                        5 => short_step::<TY, 5>(tile, row, shape, b, n, dots),
                        _ => short_step::<TY, 6>(tile, row, shape, b, n, dots),
                    }
                }
            }
        });
        b += n;
    }
    // SAFETY: the panel's results have been computed for these rows, of which there is at least one block.
    unsafe { store_panel(&panel, n_rows, n_acts, shape, out) };
}

/// Calls `step` with the first row of activations of each step and their number: all alike, within one.
#[inline(always)]
fn for_each_step(n_acts: usize, mut step: impl FnMut(usize, usize)) {
    let n_steps = n_acts.div_ceil(STEP);
    let mut a = 0;
    for i in 0..n_steps {
        let n = (n_acts - a).div_ceil(n_steps - i);
        step(a, n);
        a += n;
    }
}

/// # Safety
///
/// Results of so many rows must be in the panel, and `out` be writable for them.
#[target_feature(enable = "avx2")]
unsafe fn store_panel(panel: &Panel, n_rows: usize, n_acts: usize, shape: &Shape, out: *mut f32) {
    for (g, dots) in panel[..n_rows.div_ceil(GROUP)].iter().enumerate() {
        let n = GROUP.min(n_rows - g * GROUP);
        for (a, dots) in dots[..n_acts].iter().enumerate() {
            // SAFETY: as promised by the caller.
            unsafe {
                let to = out.add(a * shape.out_stride + g * GROUP);
                std::ptr::copy_nonoverlapping(dots.as_ptr().cast::<f32>(), to, n);
            }
        }
    }
}

/// # Safety
///
/// Blocks of the type must be readable, and the tile writable.
#[target_feature(enable = "avx2,f16c")]
unsafe fn unpack_long<const TY: u32>(blocks: &[*const u8; GROUP], tile: *mut LongTile) {
    let traits = const { traits(TY) };
    // SAFETY: as promised by the caller; all of the tile that is read later is written.
    unsafe {
        let tile = &mut *tile.cast::<MaybeUninit<LongTile>>();
        let tile = tile.as_mut_ptr();
        let mut rows = [[_mm256_setzero_si256(); GROUP]; 8];
        let mut factors = [_mm256_setzero_si256(); GROUP];
        let mut mins = [_mm256_setzero_si256(); GROUP];
        for r in 0..GROUP {
            let quants = quants::<TY>(blocks[r]);
            for (rows, quants) in rows.iter_mut().zip(quants) {
                rows[r] = quants;
            }
            let scales = scales::<TY>(blocks[r]);
            (factors[r], mins[r]) = (scales.scales, scales.mins);
        }
        for (c, rows) in rows.iter().enumerate() {
            for (i, columns) in transpose(rows).into_iter().enumerate() {
                (*tile).quants[8 * c + i] = columns;
            }
        }
        let lower = _mm256_set1_epi32(0xFFFF);
        for (i, pair) in transpose(&factors).into_iter().enumerate().take(traits_pairs(traits.sub_len)) {
            let (a, b) = (_mm256_and_si256(pair, lower), _mm256_srli_epi32(pair, 16));
            (*tile).scales[2 * i] = _mm256_or_si256(a, _mm256_slli_epi32(pair, 16));
            (*tile).scales[2 * i + 1] = _mm256_or_si256(b, _mm256_andnot_si256(lower, pair));
        }
        (*tile).mins = transpose(&mins);
        ((*tile).d, (*tile).dmin) = float_scales::<TY>(blocks);
    }
}

/// Pairs of sub-blocks in a super-block.
const fn traits_pairs(sub_len: usize) -> usize {
    LONG / sub_len / 2
}

/// # Safety
///
/// `n` blocks of the type must be readable in each row, and the tile writable.
#[target_feature(enable = "avx2,f16c")]
unsafe fn unpack_short<const TY: u32>(blocks: &[*const u8; GROUP], n: usize, tile: *mut ShortTile) {
    let traits = const { traits(TY) };
    // SAFETY: as promised by the caller.
    unsafe {
        for b in 0..n {
            let blocks = blocks.map(|block| block.add(b * traits.block_bytes));
            let rows = blocks.map(|block| short_quants::<TY>(block));
            for (i, columns) in transpose(&rows).into_iter().enumerate() {
                (*tile).quants[8 * b + i] = columns;
            }
            (*tile).d[b] = float_scales::<TY>(&blocks).0;
        }
    }
}

/// Four bytes in each lane.
///
/// # Safety
///
/// Four bytes must be readable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn broadcast(from: *const u8) -> __m256i {
    // SAFETY: as promised by the caller.
    _mm256_set1_epi32(unsafe { from.cast::<i32>().read_unaligned() })
}

/// Adds one super-block's part to the dot products of eight weight rows with `N` rows of activations.
///
/// # Safety
///
/// The activations must be rows of the shape, and `dots` readable (after the first block) and writable for `N`.
#[target_feature(enable = "avx2,fma")]
unsafe fn long_step<const TY: u32, const N: usize>(
    tile: &LongTile,
    activations: *const u8,
    shape: &Shape,
    b: usize,
    dots: *mut __m256,
) {
    let traits = const { traits(TY) };
    let row_bytes = shape.layout.row_bytes;
    let quads = traits.sub_len / 4;
    let mut isums = [_mm256_setzero_si256(); N];
    // SAFETY: all offsets lie within the rows.
    unsafe {
        let rows: [*const u8; N] = std::array::from_fn(|n| activations.add(n * row_bytes + b * LONG));
        for i in 0..LONG / traits.sub_len {
            // Scales of sub-blocks of 16 lie in the order of the activations' sums.
            let scale = match traits.sub_len {
                16 => tile.scales[i % 2 * 8 + i / 2],
                _ => tile.scales[i],
            };
            let mut q = i * quads;
            while q < (i + 1) * quads {
                let mut products = [_mm256_setzero_si256(); N];
                for p in 0..traits.pairs {
                    let weights = tile.quants[q + p];
                    let magnitudes = _mm256_abs_epi8(weights);
                    for n in 0..N {
                        let x = broadcast(rows[n].add(4 * (q + p)));
                        let product = if traits.wide {
                            _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(x, weights))
                        } else {
                            _mm256_maddubs_epi16(weights, x)
                        };
                        products[n] = if p == 0 { product } else { _mm256_add_epi16(products[n], product) };
                    }
                }
                for n in 0..N {
                    isums[n] = _mm256_add_epi32(isums[n], _mm256_madd_epi16(products[n], scale));
                }
                q += traits.pairs;
            }
        }
        for n in 0..N {
            let row = activations.add(n * row_bytes);
            let sums = row.add(shape.layout.sums + 2 * LONG_SUMS * b);
            let sums = if traits.sub_len == 16 { sums } else { sums.add(2 * 16) };
            let mut isum = isums[n];
            let mut msum = _mm256_setzero_si256();
            if traits.minima || traits.offset != 0 {
                for k in 0..traits_pairs(traits.sub_len) {
                    let pair = _mm256_madd_epi16(tile.mins[k], broadcast(sums.add(4 * k)));
                    msum = _mm256_add_epi32(msum, pair);
                }
            }
            if !traits.minima {
                isum = _mm256_sub_epi32(isum, msum);
            }
            let scale = row.add(shape.layout.scales + 4 * b).cast::<f32>().read_unaligned();
            let scale = _mm256_set1_ps(scale);
            let dot = if b == 0 { _mm256_setzero_ps() } else { *dots.add(n) };
            let mut dot = _mm256_fmadd_ps(_mm256_mul_ps(tile.d, scale), _mm256_cvtepi32_ps(isum), dot);
            if traits.minima {
                let dmin = _mm256_mul_ps(tile.dmin, scale);
                dot = _mm256_fnmadd_ps(dmin, _mm256_cvtepi32_ps(msum), dot);
            }
            dots.add(n).write(dot);
        }
    }
}

/// Adds `n_blocks` blocks' part to the dot products of eight weight rows with `N` rows of activations.
///
/// # Safety
///
/// So many blocks must be in the tile, the activations be rows of the shape, and `dots` readable (after the first block)
/// and writable for `N`.
#[target_feature(enable = "avx2,fma")]
unsafe fn short_step<const TY: u32, const N: usize>(
    tile: *const ShortTile,
    activations: *const u8,
    shape: &Shape,
    first: usize,
    n_blocks: usize,
    dots: *mut __m256,
) {
    let traits = const { traits(TY) };
    let row_bytes = shape.layout.row_bytes;
    let ones = _mm256_set1_epi16(1);
    // SAFETY: all offsets lie within the tile and the rows.
    unsafe {
        let rows: [*const u8; N] = std::array::from_fn(|n| activations.add(n * row_bytes + first * SHORT));
        let mut sums = [_mm256_setzero_ps(); N];
        if first > 0 {
            sums = std::array::from_fn(|n| *dots.add(n));
        }
        for b in 0..n_blocks {
            let mut isums = [_mm256_setzero_si256(); N];
            for q in 0..SHORT / 4 {
                let weights = (*tile).quants[8 * b + q];
                let magnitudes = _mm256_abs_epi8(weights);
                for n in 0..N {
                    let x = broadcast(rows[n].add(SHORT * b + 4 * q));
                    if traits.wide {
                        let product = _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(x, weights));
                        isums[n] = _mm256_add_epi32(isums[n], _mm256_madd_epi16(product, ones));
                    } else {
                        isums[n] = _mm256_add_epi16(isums[n], _mm256_maddubs_epi16(weights, x));
                    }
                }
            }
            let d = (*tile).d[b];
            for n in 0..N {
                let row = activations.add(n * row_bytes);
                if !traits.wide {
                    isums[n] = _mm256_madd_epi16(isums[n], ones);
                }
                if traits.offset != 0 {
                    let at = first + b;
                    let sum = broadcast(row.add(shape.layout.sums + 4 * (at / 2)));
                    let offset = i32::from(traits.offset) << (at % 2 * 16);
                    let correction = _mm256_madd_epi16(sum, _mm256_set1_epi32(offset));
                    isums[n] = _mm256_sub_epi32(isums[n], correction);
                }
                let scale = row.add(shape.layout.scales + 4 * (first + b)).cast::<f32>().read_unaligned();
                let scale = _mm256_mul_ps(d, _mm256_set1_ps(scale));
                sums[n] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(isums[n]), sums[n]);
            }
        }
        for n in 0..N {
            dots.add(n).write(sums[n]);
        }
    }
}
