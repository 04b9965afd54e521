//! Many rows of activations: tiles of weights are unpacked once, interleaved, and used for all of them.
//!
//! A tile has eight weight rows. For `sdot` a vector holds four columns of each of four rows, and the activations' four
//! columns are named by the instruction; for `smmla` it holds eight columns of each of two rows, to be multiplied with two
//! rows of activations. So sums stay apart by row and nothing is ever added across a vector.

use std::arch::aarch64::*;
use std::mem::MaybeUninit;

use super::blocks::*;
use super::steps;
use crate::arch::cursor::Cursor;
use crate::matmul::{LONG, SHORT, Shape};

/// Tiles that are unpacked together: with their results and the activations they fit a first cache of 64 KiB.
const TILES: usize = 4;
/// Rows of activations up to which one tile is worked on at a time.
const FEW: usize = 16;
/// Super-blocks' lengths to fetch ahead.
const AHEAD: usize = 2;
/// Rows of activations for which results are kept while tiles move along the columns.
const PANEL: usize = 128;
/// Rows of activations that one step multiplies, at most: as many as there are registers for.
pub(super) const STEP: usize = 4;
/// Rows of weights in a tile.
pub(super) const ROWS: usize = 2 * GROUP;

/// 256 columns of eight weight rows: a super-block, or up to eight blocks of 32.
#[repr(C, align(64))]
pub(super) struct Tile {
    /// Eight vectors for each 16 columns, in the order in which a step reads them.
    pub(super) quants: [int8x16_t; ROWS * LONG / 16],
    /// Each row's scale of a sub-block, in the order of a step's sums; for super-blocks only.
    pub(super) scales: [[int32x4_t; ROWS / 2]; 16],
    /// Each row's minimum, in the order of the activations' sums; for super-blocks with minima only.
    pub(super) mins: [int16x8_t; 16],
    /// The floats of each block; those of the minima only where there are any.
    pub(super) d: [[float32x4_t; 2]; LONG / SHORT],
    pub(super) m: [[float32x4_t; 2]; LONG / SHORT],
}

/// The results of a tile's rows with a row of activations.
pub(super) type Dots = [float32x4_t; 2];
type Panel = [[MaybeUninit<Dots>; PANEL]; TILES];

/// All rows of activations times all rows of weights.
///
/// # Safety
///
/// The processor must have what `ISA` stands for, and `weights`, `activations` and `out` be as large as the shape says.
pub(super) unsafe fn multiply<const TY: u32, const ISA: u32>(
    weights: *const u8,
    activations: *const u8,
    shape: &Shape,
    out: *mut f32,
) {
    // With few activations the weights come from memory, which is faster in few streams.
    let n_tiles = if shape.n_acts <= FEW { 1 } else { TILES };
    let max_rows = n_tiles * ROWS;
    for a in (0..shape.n_acts).step_by(PANEL) {
        let n_acts = PANEL.min(shape.n_acts - a);
        for w in (0..shape.n_rows).step_by(max_rows) {
            let n_rows = max_rows.min(shape.n_rows - w);
            // SAFETY: the offsets are rows within the shape.
            unsafe {
                let weights = weights.add(w * shape.row_bytes);
                let activations = activations.add(a * shape.layout.row_bytes);
                let activations = Cursor { rows: activations, shape, block: 0 };
                let out = out.add(a * shape.out_stride + w);
                panel::<TY, ISA>(weights, n_rows, activations, n_acts, out);
            }
        }
    }
}

/// A panel of results: so many rows of weights, so many of activations, all columns.
///
/// # Safety
///
/// As for [`multiply`], for so many rows of each.
unsafe fn panel<const TY: u32, const ISA: u32>(
    weights: *const u8,
    n_rows: usize,
    mut activations: Cursor<'_>,
    n_acts: usize,
    out: *mut f32,
) {
    let (shape, block_bytes) = (activations.shape, const { traits(TY).block_bytes });
    let mut panel: Panel = [[MaybeUninit::uninit(); PANEL]; TILES];
    let mut tiles = [const { MaybeUninit::<Tile>::uninit() }; TILES];
    let n_tiles = n_rows.div_ceil(ROWS);
    let (n_blocks, per_tile) = match const { is_long(TY) } {
        true => (shape.n_cols / LONG, 1),
        false => (shape.n_cols / SHORT, LONG / SHORT),
    };
    for b in (0..n_blocks).step_by(per_tile) {
        let n = per_tile.min(n_blocks - b);
        for (t, tile) in tiles[..n_tiles].iter_mut().enumerate() {
            // SAFETY: rows within the shape; missing ones are stood in for by the last.
            unsafe {
                let blocks: [*const u8; ROWS] = std::array::from_fn(|r| {
                    let row = (t * ROWS + r).min(n_rows - 1);
                    weights.add(row * shape.row_bytes + b * block_bytes)
                });
                let ahead = ahead(b, n_blocks, AHEAD * per_tile, n_rows * shape.row_bytes, block_bytes);
                for block in blocks {
                    prefetch(block.wrapping_offset(ahead), n * block_bytes);
                }
                if const { is_long(TY) } {
                    unpack_long::<TY, ISA>(&blocks, tile.as_mut_ptr());
                } else {
                    unpack_short::<TY, ISA>(&blocks, n, tile.as_mut_ptr());
                }
            }
        }
        activations.block = b;
        let n_steps = n_acts.div_ceil(STEP);
        let mut a = 0;
        for i in 0..n_steps {
            let n_step = (n_acts - a).div_ceil(n_steps - i);
            // SAFETY: the tiles were unpacked above, and the activations are rows within the shape. Results are written
            // in the first step and read in later ones.
            unsafe {
                let activations = Cursor { rows: activations.row(a), ..activations };
                for t in 0..n_tiles {
                    let (tile, dots) = (tiles[t].as_ptr(), panel[t].as_mut_ptr().add(a).cast());
                    match n_step {
                        1 => step::<TY, ISA, 1>(tile, activations, n, dots),
                        2 => step::<TY, ISA, 2>(tile, activations, n, dots),
                        3 => step::<TY, ISA, 3>(tile, activations, n, dots),
                        _ => step::<TY, ISA, STEP>(tile, activations, n, dots),
                    }
                }
            }
            a += n_step;
        }
    }
    for (t, dots) in panel[..n_tiles].iter().enumerate() {
        let n = ROWS.min(n_rows - t * ROWS);
        for (a, dots) in dots[..n_acts].iter().enumerate() {
            // SAFETY: these results have been computed, there being at least one block, and have a place.
            unsafe {
                let to = out.add(a * shape.out_stride + t * ROWS);
                std::ptr::copy_nonoverlapping(dots.as_ptr().cast::<f32>(), to, n);
            }
        }
    }
}

/// Adds a tile's part to the dot products with `N` rows of activations.
///
/// # Safety
///
/// That of the step.
#[inline(always)]
unsafe fn step<const TY: u32, const ISA: u32, const N: usize>(
    tile: *const Tile,
    activations: Cursor<'_>,
    n_blocks: usize,
    dots: *mut Dots,
) {
    // SAFETY: as promised by the caller.
    unsafe {
        if const { is_long(TY) } {
            steps::long::<TY, ISA, N>(tile, activations, dots);
        } else {
            steps::short::<TY, ISA, N>(tile, activations, n_blocks, dots);
        }
    }
}

/// Fills a tile with a super-block of each row.
///
/// # Safety
///
/// Blocks of the type must be readable, and the tile writable.
unsafe fn unpack_long<const TY: u32, const ISA: u32>(blocks: &[*const u8; ROWS], tile: *mut Tile) {
    let traits = const { traits(TY) };
    // SAFETY: as promised by the caller; all of the tile that is read later is written.
    unsafe {
        let quants = (&raw mut (*tile).quants).cast::<int8x16_t>();
        interleave_half::<TY, ISA, 0>(blocks, quants);
        interleave_half::<TY, ISA, 1>(blocks, quants.add(ROWS * LONG / 32));
        let factors = blocks.map(|block| scales::<TY>(block));
        for part in 0..LONG / traits.sub_len / 8 {
            let scales = transposed(&factors.map(|factors| factors.scales[part]));
            for (s, v) in scales.into_iter().enumerate() {
                let [a, b] = [vmovl_s16(vget_low_s16(v)), vmovl_high_s16(v)];
                (*tile).scales[8 * part + s] = steps::scales::<ISA>(a, b);
            }
            if traits.minima {
                let mins = transposed(&factors.map(|factors| factors.mins[part]));
                for (k, mins) in mins.into_iter().enumerate() {
                    (*tile).mins[8 * part + k] = mins;
                }
            }
        }
        store_floats::<TY>(blocks, tile, 0);
    }
}

/// Unpacks the `H`-th half of the quants of a super-block of each row.
///
/// # Safety
///
/// Blocks of the type must be readable, and 64 vectors writable.
#[inline(always)]
unsafe fn interleave_half<const TY: u32, const ISA: u32, const H: usize>(
    blocks: &[*const u8; ROWS],
    to: *mut int8x16_t,
) {
    // SAFETY: as promised by the caller.
    unsafe {
        let rows = blocks.map(|block| quants::<TY, H>(block));
        for i in 0..8 {
            let columns = std::array::from_fn(|r| without_offset::<TY>(rows[r][i]));
            to.add(i * ROWS).cast::<[int8x16_t; ROWS]>().write(steps::interleaved::<ISA>(&columns));
        }
    }
}

/// Signed quants.
#[inline(always)]
fn without_offset<const TY: u32>(quants: int8x16_t) -> int8x16_t {
    match const { traits(TY).offset } {
        0 => quants,
        // SAFETY: every processor that this is compiled for has NEON.
        offset => unsafe { vsubq_s8(quants, vdupq_n_s8(offset)) },
    }
}

/// Fills a tile with `n` blocks of each row.
///
/// # Safety
///
/// So many blocks of the type must be readable in each row, and the tile writable.
unsafe fn unpack_short<const TY: u32, const ISA: u32>(blocks: &[*const u8; ROWS], n: usize, tile: *mut Tile) {
    let traits = const { traits(TY) };
    // SAFETY: as promised by the caller.
    unsafe {
        let quants = (&raw mut (*tile).quants).cast::<int8x16_t>();
        for b in 0..n {
            let blocks = blocks.map(|block| block.add(b * traits.block_bytes));
            let rows = blocks.map(|block| short_quants::<TY>(block));
            for i in 0..2 {
                let columns = std::array::from_fn(|r| without_offset::<TY>(rows[r][i]));
                let to = quants.add((2 * b + i) * ROWS).cast::<[int8x16_t; ROWS]>();
                to.write(steps::interleaved::<ISA>(&columns));
            }
            store_floats::<TY>(&blocks, tile, b);
        }
    }
}

/// Fills in the floats of block `b` of a tile.
///
/// # Safety
///
/// Blocks of the type must be readable, and the tile writable.
#[inline(always)]
unsafe fn store_floats<const TY: u32>(blocks: &[*const u8; ROWS], tile: *mut Tile, b: usize) {
    // SAFETY: as promised by the caller.
    unsafe {
        for j in 0..2 {
            let blocks: [*const u8; GROUP] = std::array::from_fn(|r| blocks[j * GROUP + r]);
            let (d, m) = float_scales::<TY>(&blocks);
            (*tile).d[b][j] = d;
            if const { traits(TY).minima } {
                (*tile).m[b][j] = m;
            }
        }
    }
}

/// The i-th result holds the i-th elements of the eight.
#[inline(always)]
fn transposed(rows: &[int16x8_t; 8]) -> [int16x8_t; 8] {
    // SAFETY: every processor that this is compiled for has NEON.
    unsafe {
        let mut pairs = [vdupq_n_s32(0); 8];
        for i in 0..4 {
            // In pairs[2 i + k], columns k, k + 2, k + 4 and k + 6 of rows 2 i and 2 i + 1.
            let (a, b) = (rows[2 * i], rows[2 * i + 1]);
            pairs[2 * i] = vreinterpretq_s32_s16(vtrn1q_s16(a, b));
            pairs[2 * i + 1] = vreinterpretq_s32_s16(vtrn2q_s16(a, b));
        }
        let mut fours = [vdupq_n_s64(0); 8];
        for i in 0..2 {
            for k in 0..2 {
                // In fours[4 i + c], columns c and c + 4 of rows 4 i to 4 i + 3.
                let (a, b) = (pairs[4 * i + k], pairs[4 * i + 2 + k]);
                fours[4 * i + k] = vreinterpretq_s64_s32(vtrn1q_s32(a, b));
                fours[4 * i + 2 + k] = vreinterpretq_s64_s32(vtrn2q_s32(a, b));
            }
        }
        let mut columns = [vdupq_n_s16(0); 8];
        for c in 0..4 {
            columns[c] = vreinterpretq_s16_s64(vtrn1q_s64(fours[c], fours[c + 4]));
            columns[c + 4] = vreinterpretq_s16_s64(vtrn2q_s64(fours[c], fours[c + 4]));
        }
        columns
    }
}
