//! Many rows of activations with AMX, whose tile registers multiply 16 rows of 64 bytes with 64 bytes of 16 rows at
//! once.
//!
//! What makes a tile of weights is that of AVX-512 VNNI (`tiles`): in each vector four columns of sixteen weight rows,
//! which is how AMX takes its second factor. The first are the activations as they lie.
//!
//! Tile registers add integers only. So in super-blocks weights are multiplied with their sub-block's scale beforehand;
//! the product takes up to 14 bits and is cut in two bytes, `product = 128 * high + low`, which are multiplied apart and
//! put together once a super-block. Blocks of 32 have a float scale each and leave the tile registers at once. The
//! integers are those of the other levels, hence the bits too.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::blocks::*;
use super::rows::GROUP;
use super::tile_config::{Config, Configured, ROWS};
use super::tiles::{
    AMX, DOTS, Dots, LongTile, ShortTile, is_long, prefetch_blocks, scale_at, unpack_long, unpack_short,
};
use crate::arch::cursor::Cursor;
use crate::matmul::{LONG, SHORT, Shape};

/// Tiles that are unpacked together: with the activations of a super-block they share the second cache.
const TILES: usize = 2;
/// Rows of activations for which results are kept while tiles move along the columns: the more, the less unpacking.
const PANEL: usize = 512;
/// What the high bytes count.
const HIGH_BITS: u32 = 7;
/// Blocks of 32 that one step multiplies, each in a tile register of its own.
const BLOCKS: usize = 4;

/// The products of a super-block's weights with their scales, in two bytes, in the order of [`LongTile::quants`].
#[repr(C, align(64))]
struct Scaled {
    low: [__m512i; LONG / 4],
    high: [__m512i; LONG / 4],
}

/// Results of a panel, by tile and row of activations.
type Panel = [[MaybeUninit<Dots>; PANEL]; TILES];

/// Integers as they come from a tile register: for each of 16 rows of activations, for each of 16 weight rows.
type Sums = [__m512i; ROWS];

/// All rows of activations times all rows of weights.
///
/// # Safety
///
/// AMX must be usable, and `weights`, `activations` and `out` be as large as the shape says.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) unsafe fn multiply<const TY: u32>(
    weights: *const u8,
    activations: *const u8,
    shape: &Shape,
    out: *mut f32,
) {
    let n_cols = if const { is_long(TY) } { 64 } else { SHORT };
    let config = Config::new(shape.n_acts.min(ROWS), n_cols);
    // SAFETY: AMX is usable, and nothing else in this program keeps anything in tile registers.
    let _configured = unsafe { Configured::new(&config) };
    // Panels of like size: each has at least as many rows as a tile register, where there are so many.
    let n_panels = shape.n_acts.div_ceil(PANEL);
    let mut a = 0;
    for i in 0..n_panels {
        let n_acts = (shape.n_acts - a).div_ceil(n_panels - i);
        for w in (0..shape.n_rows).step_by(TILES * ROWS) {
            let n_rows = (TILES * ROWS).min(shape.n_rows - w);
            // SAFETY: the offsets are rows within the shape.
            unsafe {
                let weights = weights.add(w * shape.row_bytes);
                let rows = activations.add(a * shape.layout.row_bytes);
                let activations = Cursor { rows, shape, block: 0 };
                panel::<TY>(weights, n_rows, activations, n_acts, out.add(a * shape.out_stride + w));
            }
        }
        a += n_acts;
    }
}

/// A panel of results: so many rows of weights, so many of activations, all columns.
///
/// # Safety
///
/// As for [`multiply`], for so many rows of each, with tile registers set.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn panel<const TY: u32>(
    weights: *const u8,
    n_rows: usize,
    mut activations: Cursor<'_>,
    n_acts: usize,
    out: *mut f32,
) {
    let (shape, block_bytes) = (activations.shape, const { traits(TY).block_bytes });
    let mut panel: Panel = [[const { MaybeUninit::uninit() }; PANEL]; TILES];
    let mut long_tiles = [const { MaybeUninit::<LongTile>::uninit() }; TILES];
    let mut scaled = [const { MaybeUninit::<Scaled>::uninit() }; TILES];
    let mut short_tiles = [const { MaybeUninit::<ShortTile>::uninit() }; TILES];
    let mut sums = [[[_mm512_setzero_si512(); ROWS]; 4]; 2];
    let (n_blocks, per_tile) = match const { is_long(TY) } {
        true => (shape.n_cols / LONG, 1),
        false => (shape.n_cols / SHORT, LONG / SHORT),
    };
    let n_tiles = n_rows.div_ceil(ROWS);
    for b in (0..n_blocks).step_by(per_tile) {
        let n = per_tile.min(n_blocks - b);
        activations.block = b;
        for t in 0..n_tiles {
            // SAFETY: rows within the shape; missing ones are stood in for by the last.
            unsafe {
                for g in 0..ROWS / GROUP {
                    let blocks: [*const u8; GROUP] = std::array::from_fn(|r| {
                        let row = (t * ROWS + g * GROUP + r).min(n_rows - 1);
                        weights.add(row * shape.row_bytes + b * block_bytes)
                    });
                    prefetch_blocks::<TY>(&blocks, b, n_blocks, n_rows * shape.row_bytes);
                    if const { is_long(TY) } {
                        unpack_long::<TY, AMX>(&blocks, long_tiles[t].as_mut_ptr(), g);
                    } else {
                        unpack_short::<TY, AMX>(&blocks, n, short_tiles[t].as_mut_ptr(), g);
                    }
                }
                if const { is_long(TY) } {
                    scale::<TY>(&*long_tiles[t].as_ptr(), scaled[t].as_mut_ptr());
                }
            }
        }
        // SAFETY: the tiles were unpacked above. Results are zeroed in the first step and read in later ones.
        unsafe {
            if const { is_long(TY) } {
                let tiles = (long_tiles.as_ptr().cast(), scaled.as_ptr().cast());
                long::<TY>(n_tiles, tiles, activations, n_acts, &mut sums, &mut panel);
            } else {
                for first in (0..n_acts).step_by(ROWS) {
                    for t in 0..n_tiles {
                        prefetch_rows::<TY>(activations, first, n_acts, ROWS, t, n_tiles);
                        let dots = panel[t].as_mut_ptr().cast::<f32>();
                        short::<TY>(
                            short_tiles[t].as_ptr(),
                            activations,
                            n,
                            first,
                            n_acts,
                            &mut sums[t % 2],
                            dots,
                        );
                    }
                }
            }
        }
    }
    for (t, dots) in panel[..n_tiles].iter().enumerate() {
        let n = ROWS.min(n_rows - t * ROWS);
        for (a, dots) in dots[..n_acts].iter().enumerate() {
            // SAFETY: these results have been computed, there being at least one block, and have a place.
            unsafe {
                let to = out.add(a * shape.out_stride + t * ROWS);
                if n == ROWS {
                    _mm512_storeu_ps(to, _mm512_load_ps(dots.as_ptr().cast()));
                } else {
                    std::ptr::copy_nonoverlapping(dots.as_ptr().cast::<f32>(), to, n);
                }
            }
        }
    }
}

/// Multiplies a tile's weights with their sub-blocks' scales.
///
/// # Safety
///
/// The tile must have been unpacked, and `scaled` be writable.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn scale<const TY: u32>(tile: &LongTile, scaled: *mut Scaled) {
    let traits = const { traits(TY) };
    let vectors = tile.quants.as_ptr().cast::<__m512i>();
    let scales = tile.scales.as_ptr().cast::<__m512i>();
    let even = _mm512_set1_epi16(0xFF);
    let low_bits = _mm512_set1_epi8(((1_u8 << HIGH_BITS) - 1) as i8);
    for q in 0..LONG / 4 {
        // SAFETY: both lie within the tile.
        let (quants, scale) =
            unsafe { (*vectors.add(q), *scales.add(scale_at(4 * q / traits.sub_len, traits.sub_len))) };
        let (evens, odds) = if traits.minima {
            (_mm512_and_si512(quants, even), _mm512_srli_epi16(quants, 8))
        } else {
            let quants = _mm512_sub_epi8(quants, _mm512_set1_epi8(traits.offset as i8));
            (_mm512_srai_epi16(_mm512_slli_epi16(quants, 8), 8), _mm512_srai_epi16(quants, 8))
        };
        let (evens, odds) = (_mm512_mullo_epi16(evens, scale), _mm512_mullo_epi16(odds, scale));
        // Bytes of the first where `even` is set, else of the second.
        let merge = |evens, odds| _mm512_ternarylogic_epi32(even, evens, odds, 0xCA);
        let low = _mm512_and_si512(merge(evens, _mm512_slli_epi16(odds, 8)), low_bits);
        let high = merge(_mm512_srli_epi16(evens, HIGH_BITS), _mm512_slli_epi16(odds, 8 - HIGH_BITS));
        // SAFETY: as promised by the caller.
        unsafe {
            (*scaled).low[q] = low;
            (*scaled).high[q] = high;
        }
    }
}

/// Where the tile of activations begins that brings row `first` and those behind it: earlier where there would not be
/// enough, so that it holds rows a second time.
fn begin(first: usize, n_acts: usize) -> usize {
    first.min(n_acts - ROWS.min(n_acts))
}

/// Fetches a part of the columns that come after those of the `step` rows from `first` on: those of the next rows or,
/// behind the last of `n_acts`, the first rows' next. Each of `n_tiles` tiles fetches its share.
///
/// Rows lie pages apart, which is beyond what the processor fetches on its own.
#[inline]
#[target_feature(enable = "avx2")]
fn prefetch_rows<const TY: u32>(
    activations: Cursor<'_>,
    first: usize,
    n_acts: usize,
    step: usize,
    t: usize,
    n_tiles: usize,
) {
    let block = activations.block * if const { is_long(TY) } { LONG } else { SHORT };
    let (first, columns) = if first + step < n_acts { (first + step, block) } else { (0, block + LONG) };
    let n = step.min(n_acts - first);
    for row in n * t / n_tiles..n * (t + 1) / n_tiles {
        let at = (first + row) * activations.shape.layout.row_bytes + columns;
        let from = activations.rows.wrapping_add(at);
        // Where rows don't begin with a cache line they reach into one more.
        let before = from.addr() % 64;
        prefetch(from.wrapping_sub(before), before + LONG);
    }
}

/// Adds one super-block's part to the dot products of the weight rows of `n_tiles` tiles with all rows of activations.
///
/// # Safety
///
/// The activations must be within their shape, the tile registers set for them, so many tiles be unpacked, and the panel
/// hold results (after the first block).
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn long<const TY: u32>(
    n_tiles: usize,
    (tiles, scaled): (*const LongTile, *const Scaled),
    activations: Cursor<'_>,
    n_acts: usize,
    sums: &mut [[Sums; 4]; 2],
    panel: &mut Panel,
) {
    let stride = activations.shape.layout.row_bytes;
    let columns = activations.block * LONG;
    // While the sums of one step are computed, those of the one before are used.
    let mut waiting = None;
    let mut step = 0;
    for first in (0..n_acts).step_by(2 * ROWS) {
        let firsts = [first, (first + ROWS).min(n_acts)];
        for t in 0..n_tiles {
            // SAFETY: whole tiles of rows within the shape; where there is no second one, the last again.
            unsafe {
                let [a, b] = firsts.map(|first| activations.row(begin(first, n_acts)).add(columns));
                long_products(&*scaled.add(t), a, b, stride, &mut sums[step % 2]);
            }
            step += 1;
            prefetch_rows::<TY>(activations, first, n_acts, 2 * ROWS, t, n_tiles);
            if let Some((t, firsts)) = waiting.replace((t, firsts)) {
                let dots = panel[t].as_mut_ptr().cast();
                // SAFETY: as promised by the caller.
                unsafe { add_long::<TY>(&sums[step % 2], &*tiles.add(t), activations, firsts, n_acts, dots) };
            }
        }
    }
    if let Some((t, firsts)) = waiting {
        let dots = panel[t].as_mut_ptr().cast();
        // SAFETY: as promised by the caller.
        unsafe { add_long::<TY>(&sums[(step + 1) % 2], &*tiles.add(t), activations, firsts, n_acts, dots) };
    }
}

/// 64 columns of two tiles of activations (at `a` and `b`) times low and high bytes of weights.
macro_rules! quarter {
    ($weights:literal, $activations:literal) => {
        concat!(
            "tileloadd tmm6, [{low} + {line} + ",
            $weights,
            "]\n",
            "tileloadd tmm4, [{a} + {stride} + ",
            $activations,
            "]\n",
            "tdpbssd tmm0, tmm4, tmm6\n",
            "tileloadd tmm7, [{high} + {line} + ",
            $weights,
            "]\n",
            "tdpbssd tmm1, tmm4, tmm7\n",
            "tileloadd tmm5, [{b} + {stride} + ",
            $activations,
            "]\n",
            "tdpbssd tmm2, tmm5, tmm6\n",
            "tdpbssd tmm3, tmm5, tmm7\n",
        )
    };
}

/// Sums over a super-block for two tiles of activations, low and high.
///
/// # Safety
///
/// Tile registers must be set for as many rows of 256 activations as are readable at `a` and `b`, `stride` bytes apart.
#[inline(always)]
unsafe fn long_products(scaled: &Scaled, a: *const u8, b: *const u8, stride: usize, sums: &mut [Sums; 4]) {
    // SAFETY: as promised by the caller; all stores are within `sums`, a tile register having at most 16 rows.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            quarter!(0, 0), quarter!(1024, 64), quarter!(2048, 128), quarter!(3072, 192),
            "tilestored [{sums} + {line}], tmm0",
            "tilestored [{sums} + {line} + 1024], tmm1",
            "tilestored [{sums} + {line} + 2048], tmm2",
            "tilestored [{sums} + {line} + 3072], tmm3",
            low = in(reg) scaled.low.as_ptr(),
            high = in(reg) scaled.high.as_ptr(),
            a = in(reg) a,
            b = in(reg) b,
            stride = in(reg) stride,
            line = in(reg) 64_usize,
            sums = in(reg) sums.as_mut_ptr(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack)
        );
    }
}

/// Adds a super-block's sums to the dot products of the rows of activations from `firsts` on.
///
/// # Safety
///
/// That of [`long`].
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn add_long<const TY: u32>(
    sums: &[Sums; 4],
    tile: &LongTile,
    activations: Cursor<'_>,
    firsts: [usize; 2],
    n_acts: usize,
    dots: *mut f32,
) {
    let traits = const { traits(TY) };
    let mins = tile.mins.as_ptr().cast::<__m512i>();
    for (sums, first) in sums.as_chunks::<2>().0.iter().zip(firsts) {
        let begin = begin(first, n_acts);
        for r in first..(begin + ROWS).min(n_acts) {
            let high = _mm512_slli_epi32(sums[1][r - begin], HIGH_BITS);
            let isum = _mm512_add_epi32(sums[0][r - begin], high);
            // SAFETY: row r is within the shape, and its results have a place.
            unsafe {
                let scale = _mm512_set1_ps(activations.scale(r, 0));
                let at = dots.add(r * DOTS);
                let dot = if activations.block == 0 { _mm512_setzero_ps() } else { _mm512_loadu_ps(at) };
                let d = _mm512_mul_ps(_mm512_loadu_ps(tile.d.as_ptr().cast()), scale);
                let mut dot = _mm512_fmadd_ps(d, _mm512_cvtepi32_ps(isum), dot);
                if traits.minima {
                    let sums = activations.long_sums(r, traits.sub_len).cast::<i32>();
                    let mut msum = _mm512_setzero_si512();
                    for k in 0..LONG / traits.sub_len / 2 {
                        let pair = _mm512_set1_epi32(sums.add(k).read_unaligned());
                        msum = _mm512_dpwssd_epi32(msum, *mins.add(k), pair);
                    }
                    let dmin = _mm512_mul_ps(_mm512_loadu_ps(tile.dmin.as_ptr().cast()), scale);
                    dot = _mm512_fnmadd_ps(dmin, _mm512_cvtepi32_ps(msum), dot);
                }
                _mm512_storeu_ps(at, dot);
            }
        }
    }
}

/// A block of 32 columns of a tile of activations times one of weights, by tile register number.
macro_rules! block {
    ($sum:literal, $activations:literal, $weights:literal) => {
        concat!(
            "tilezero tmm",
            $sum,
            "\n",
            "tileloadd tmm",
            $activations,
            ", [{a} + {stride} + 32 * ",
            $sum,
            "]\n",
            "tileloadd tmm",
            $weights,
            ", [{w} + {line} + 512 * ",
            $sum,
            "]\n",
            "tdpbssd tmm",
            $sum,
            ", tmm",
            $activations,
            ", tmm",
            $weights,
            "\n",
            "tilestored [{sums} + {line} + 1024 * ",
            $sum,
            "], tmm",
            $sum,
            "\n",
        )
    };
}

/// Adds `n_blocks` blocks' part to the dot products of a tile's weight rows with all rows of activations.
///
/// # Safety
///
/// So many blocks must be in the tile, the activations be within their shape, the tile registers set for them, and
/// `dots` readable (after the first block) and writable for `n_acts` rows.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn short<const TY: u32>(
    tile: *const ShortTile,
    activations: Cursor<'_>,
    n_blocks: usize,
    first: usize,
    n_acts: usize,
    sums: &mut [Sums; BLOCKS],
    dots: *mut f32,
) {
    let stride = activations.shape.layout.row_bytes;
    let last = ROWS.min(n_acts) - 1;
    {
        let begin = begin(first, n_acts);
        // SAFETY: rows within the shape, and blocks within the tile.
        unsafe {
            let rows = Cursor { rows: activations.row(begin), ..activations };
            let quants = rows.rows.add(activations.block * SHORT);
            let at: [*mut f32; ROWS] = std::array::from_fn(|r| dots.add((begin + r.min(last)) * DOTS));
            let mut totals = [_mm512_setzero_ps(); ROWS];
            if activations.block > 0 {
                totals = at.map(|at| _mm512_loadu_ps(at));
            }
            for b in (0..n_blocks).step_by(BLOCKS) {
                let n = BLOCKS.min(n_blocks - b);
                let (a, w) = (quants.add(SHORT * b), (&raw const (*tile).quants).cast::<u8>().add(512 * b));
                if n == BLOCKS {
                    asm!(
                        block!(0, 4, 6), block!(1, 5, 7), block!(2, 4, 6), block!(3, 5, 7),
                        a = in(reg) a,
                        w = in(reg) w,
                        stride = in(reg) stride,
                        line = in(reg) 64_usize,
                        sums = in(reg) sums.as_mut_ptr(),
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                        options(nostack)
                    );
                } else {
                    for i in 0..n {
                        asm!(
                            block!(0, 4, 6),
                            a = in(reg) a.add(SHORT * i),
                            w = in(reg) w.add(512 * i),
                            stride = in(reg) stride,
                            line = in(reg) 64_usize,
                            sums = in(reg) &raw mut sums[i],
                            out("tmm0") _, out("tmm4") _, out("tmm6") _,
                            options(nostack)
                        );
                    }
                }
                for (i, sums) in sums[..n].iter().enumerate() {
                    let d = _mm512_loadu_ps((&raw const (*tile).d).cast::<f32>().add(ROWS * (b + i)));
                    let m = (&raw const (*tile).m).cast::<f32>().add(ROWS * (b + i));
                    let m = if const { traits(TY).minima } { _mm512_loadu_ps(m) } else { d };
                    for r in 0..ROWS {
                        let scale = _mm512_set1_ps(rows.scale(r.min(last), b + i));
                        let isum = _mm512_cvtepi32_ps(sums[r]);
                        totals[r] = _mm512_fmadd_ps(_mm512_mul_ps(d, scale), isum, totals[r]);
                        if const { traits(TY).minima } {
                            let sum = _mm512_set1_ps(rows.short_sum(r.min(last), b + i));
                            totals[r] = _mm512_fmadd_ps(_mm512_mul_ps(m, scale), sum, totals[r]);
                        }
                    }
                }
            }
            for r in first - begin..=last {
                _mm512_storeu_ps(at[r], totals[r]);
            }
        }
    }
}
