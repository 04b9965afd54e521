//! Many rows of activations: tiles of weights are unpacked once, interleaved, and used for all of them.
//!
//! In a tile a vector holds four columns of each of eight or sixteen weight rows, so that sums stay apart by row and
//! nothing is ever added across a vector. Tiles are made with AVX2; `steps` and `vnni` multiply them.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::blocks::*;
use super::rows::GROUP;
use super::steps;
#[cfg(avx512)]
use super::vnni;
use crate::arch::cursor::Cursor;
use crate::matmul::{LONG, SHORT, Shape};

/// Calls a step for `n` rows of activations, one of the numbers in brackets.
macro_rules! with_rows {
    ($n:ident, [$($rows:literal)*], $step:path, $ty:ident, $args:tt) => {
        match $n {
            $($rows => { use $step as step; step::<$ty, $rows> $args })*
            _ => unreachable!(),
        }
    };
}

/// What works on the tiles (`const ISA: u32`).
pub(crate) const AVX2: u32 = 0;
#[cfg(avx512)]
pub(crate) const AVX_VNNI: u32 = 1;
#[cfg(avx512)]
pub(crate) const AVX512_VNNI: u32 = 2;
#[cfg(avx512)]
pub(crate) const AMX: u32 = 3;

/// Tiles that are unpacked together: with their results and the activations they fit a small first cache.
const TILES: usize = 4;
/// Rows of activations up to which one tile is worked on at a time.
const FEW: usize = 16;
/// Super-blocks' lengths to fetch ahead.
const AHEAD: usize = 2;
/// Groups of eight weight rows in the largest tile.
const MAX_GROUPS: usize = 2;
/// Rows of activations that the longest step multiplies.
const MAX_STEP_ROWS: usize = 12;
/// Rows of activations for which results are kept while tiles move along the columns.
const PANEL: usize = 256;

/// Groups of eight weight rows in a tile: as many as a vector has or, without VNNI, in two vectors.
pub(super) const fn groups(isa: u32) -> usize {
    match isa {
        #[cfg(avx512)]
        AVX_VNNI => 1,
        _ => 2,
    }
}

/// Whether products are those of VNNI, of an unsigned byte with a signed one in 32 bits.
pub(super) const fn has_vnni(isa: u32) -> bool {
    match isa {
        #[cfg(avx512)]
        AVX_VNNI | AVX512_VNNI => true,
        _ => false,
    }
}

/// Rows of activations that one step multiplies: as many as there are registers for.
const fn step_rows(isa: u32) -> usize {
    match isa {
        #[cfg(avx512)]
        AVX512_VNNI => MAX_STEP_ROWS,
        #[cfg(avx512)]
        AVX_VNNI => 6,
        _ => 3,
    }
}

/// A super-block of eight weight rows, or of sixteen, interleaved. In each array the parts of the two groups of eight rows
/// alternate, so that both together are a long vector; with one group it is filled to the half.
#[repr(C, align(64))]
pub(super) struct LongTile {
    /// Columns 4 i .. 4 i + 4 of the rows.
    pub(super) quants: [__m256i; MAX_GROUPS * LONG / 4],
    /// Each row's scale of a sub-block: twice in 16 bits or, for VNNI, once in 32.
    pub(super) scales: [__m256i; MAX_GROUPS * 16],
    /// Each row's pair of minima, in the order of the activations' sums.
    pub(super) mins: [__m256i; MAX_GROUPS * 8],
    pub(super) d: [__m256; MAX_GROUPS],
    pub(super) dmin: [__m256; MAX_GROUPS],
}

/// Up to eight blocks of 32, likewise.
#[repr(C, align(64))]
pub(super) struct ShortTile {
    pub(super) quants: [__m256i; MAX_GROUPS * LONG / 4],
    pub(super) d: [__m256; MAX_GROUPS * LONG / SHORT],
    pub(super) m: [__m256; MAX_GROUPS * LONG / SHORT],
}

/// Where the scale of the i-th sub-block is: those of sub-blocks of 16 lie in the order of the activations' sums.
pub(super) const fn scale_at(i: usize, sub_len: usize) -> usize {
    if sub_len == 16 { i % 2 * 8 + i / 2 } else { i }
}

/// What the sums of a row's sub-blocks, or blocks, start from where quants are too large: what they are too large by times
/// the sum of the activations' quants, negative. In the order of the activations' sums.
pub(super) type Starts = [[i32; LONG / 16]; MAX_STEP_ROWS];

/// What a type's quants are too large by where sums start from [`Starts`]; else 0.
pub(super) const fn excess(ty: u32, isa: u32) -> i16 {
    match traits(ty) {
        traits if has_vnni(isa) && traits.wide() => WIDE_OFFSET,
        traits if has_vnni(isa) || !is_long(ty) => traits.offset,
        _ => 0,
    }
}

/// What the sums of row `n` start from: those of the sub-blocks of a super-block, or of `n_blocks` blocks.
///
/// # Safety
///
/// All of these must be within the cursor's shape.
#[inline(always)]
unsafe fn start<const TY: u32, const ISA: u32>(
    activations: Cursor<'_>,
    n: usize,
    n_blocks: usize,
    starts: &mut [i32; LONG / 16],
) {
    let sub_len = const { traits(TY).sub_len };
    // SAFETY: as promised by the caller.
    unsafe {
        let (sums, n_sums) = if const { is_long(TY) } {
            (activations.long_sums(n, sub_len), LONG / sub_len)
        } else {
            (activations.short_sums(n), n_blocks)
        };
        for (i, start) in starts[..n_sums].iter_mut().enumerate() {
            *start = -i32::from(const { excess(TY, ISA) }) * i32::from(sums.add(i).read_unaligned());
        }
    }
}

/// Two floats' vectors or one long one: a row of results.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Dots([__m256; MAX_GROUPS]);

type Panel = [[MaybeUninit<Dots>; PANEL]; TILES];

/// Floats from one row's results to the next in a panel.
pub(super) const DOTS: usize = MAX_GROUPS * GROUP;

/// All rows of activations times all rows of weights.
///
/// # Safety
///
/// The processor must have what `ISA` stands for, and `weights`, `activations` and `out` be as large as the shape says.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn multiply<const TY: u32, const ISA: u32>(
    weights: *const u8,
    activations: *const u8,
    shape: &Shape,
    out: *mut f32,
) {
    // With few activations the weights come from memory, which is faster in few streams.
    let n_tiles = if shape.n_acts <= FEW { 1 } else { TILES };
    let max_rows = n_tiles * const { groups(ISA) * GROUP };
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
                if const { is_long(TY) } {
                    panel::<TY, ISA, LongTile>(weights, n_rows, activations, n_acts, out);
                } else {
                    panel::<TY, ISA, ShortTile>(weights, n_rows, activations, n_acts, out);
                }
            }
        }
    }
}

/// Whether blocks have 256 weights.
pub(super) const fn is_long(ty: u32) -> bool {
    !matches!(ty, Q8_0 | Q4_0 | Q4_1 | Q5_0 | Q5_1 | IQ4_NL)
}

/// A panel of results: so many rows of weights, so many of activations, all columns.
///
/// # Safety
///
/// As for [`multiply`], for so many rows of each, and the tile must be of the type's length.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn panel<const TY: u32, const ISA: u32, Tile>(
    weights: *const u8,
    n_rows: usize,
    mut activations: Cursor<'_>,
    n_acts: usize,
    out: *mut f32,
) {
    let (shape, block_bytes) = (activations.shape, const { traits(TY).block_bytes });
    let rows_per_tile = const { groups(ISA) * GROUP };
    let mut panel: Panel = [[MaybeUninit::uninit(); PANEL]; TILES];
    let mut tiles = [const { MaybeUninit::<Tile>::uninit() }; TILES];
    let mut starts: Starts = [[0; _]; MAX_STEP_ROWS];
    let n_tiles = n_rows.div_ceil(rows_per_tile);
    let (n_blocks, per_tile) = match const { is_long(TY) } {
        true => (shape.n_cols / LONG, 1),
        false => (shape.n_cols / SHORT, LONG / SHORT),
    };
    for b in (0..n_blocks).step_by(per_tile) {
        let n = per_tile.min(n_blocks - b);
        for (t, tile) in tiles[..n_tiles].iter_mut().enumerate() {
            for g in 0..const { groups(ISA) } {
                // SAFETY: rows within the shape; missing ones are stood in for by the last.
                unsafe {
                    let blocks: [*const u8; GROUP] = std::array::from_fn(|r| {
                        let row = (t * rows_per_tile + g * GROUP + r).min(n_rows - 1);
                        weights.add(row * shape.row_bytes + b * block_bytes)
                    });
                    prefetch_blocks::<TY>(&blocks, b, n_blocks, n_rows * shape.row_bytes);
                    if const { is_long(TY) } {
                        unpack_long::<TY, ISA>(&blocks, tile.as_mut_ptr().cast(), g);
                    } else {
                        unpack_short::<TY, ISA>(&blocks, n, tile.as_mut_ptr().cast(), g);
                    }
                }
            }
        }
        activations.block = b;
        let n_steps = n_acts.div_ceil(const { step_rows(ISA) });
        let mut a = 0;
        for i in 0..n_steps {
            let n_step = (n_acts - a).div_ceil(n_steps - i);
            // SAFETY: the tiles were unpacked above, and the activations are rows within the shape. Results are zeroed
            // in the first step and read in later ones.
            unsafe {
                let activations = Cursor { rows: activations.row(a), ..activations };
                if const { excess(TY, ISA) != 0 } {
                    for (row, starts) in starts[..n_step].iter_mut().enumerate() {
                        start::<TY, ISA>(activations, row, n, starts);
                    }
                }
                for t in 0..n_tiles {
                    let dots = panel[t].as_mut_ptr().add(a).cast::<f32>();
                    if const { is_long(TY) } {
                        long::<TY, ISA>(n_step, &*tiles[t].as_ptr().cast(), activations, &starts, dots);
                    } else {
                        short::<TY, ISA>(n_step, tiles[t].as_ptr().cast(), activations, &starts, n, dots);
                    }
                }
            }
            a += n_step;
        }
    }
    for (t, dots) in panel[..n_tiles].iter().enumerate() {
        let n = rows_per_tile.min(n_rows - t * rows_per_tile);
        for (a, dots) in dots[..n_acts].iter().enumerate() {
            // SAFETY: these results have been computed, there being at least one block, and have a place.
            unsafe {
                let to = out.add(a * shape.out_stride + t * rows_per_tile);
                std::ptr::copy_nonoverlapping(dots.as_ptr().cast::<f32>(), to, n);
            }
        }
    }
}

/// Fetches what follows blocks `b` of `n_blocks`, one super-block of columns, in rows whose next are `stride` bytes on.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn prefetch_blocks<const TY: u32>(
    blocks: &[*const u8; GROUP],
    b: usize,
    n_blocks: usize,
    stride: usize,
) {
    let block_bytes = const { traits(TY).block_bytes };
    let per_tile = if const { is_long(TY) } { 1 } else { LONG / SHORT };
    let ahead = ahead(b, n_blocks, AHEAD * per_tile, stride, block_bytes);
    for block in blocks {
        prefetch(block.wrapping_offset(ahead), per_tile.min(n_blocks - b) * block_bytes);
    }
}

/// [`steps::long`] or its like, for `n` rows of activations.
///
/// # Safety
///
/// That of the step.
#[inline(always)]
unsafe fn long<const TY: u32, const ISA: u32>(
    n: usize,
    tile: &LongTile,
    activations: Cursor<'_>,
    starts: &Starts,
    dots: *mut f32,
) {
    // SAFETY: as promised by the caller.
    unsafe {
        match ISA {
            #[cfg(avx512)]
            AVX512_VNNI => {
                with_rows!(n, [1 2 3 4 5 6 7 8 9 10 11 12], vnni::long_512, TY, (tile, activations, starts, dots))
            }
            #[cfg(avx512)]
            AVX_VNNI => {
                with_rows!(n, [1 2 3 4 5 6], vnni::long_256, TY, (tile, activations, starts, dots))
            }
            _ => with_rows!(n, [1 2 3], steps::long, TY, (tile, activations, dots)),
        }
    }
}

/// [`steps::short`] or its like, for `n` rows of activations.
///
/// # Safety
///
/// That of the step.
#[inline(always)]
unsafe fn short<const TY: u32, const ISA: u32>(
    n: usize,
    tile: *const ShortTile,
    activations: Cursor<'_>,
    starts: &Starts,
    n_blocks: usize,
    dots: *mut f32,
) {
    // SAFETY: as promised by the caller.
    unsafe {
        match ISA {
            #[cfg(avx512)]
            AVX512_VNNI => {
                with_rows!(n, [1 2 3 4 5 6 7 8 9 10 11 12], vnni::short_512, TY, (tile, activations, starts, n_blocks, dots))
            }
            #[cfg(avx512)]
            AVX_VNNI => {
                with_rows!(n, [1 2 3 4 5 6], vnni::short_256, TY, (tile, activations, starts, n_blocks, dots))
            }
            _ => with_rows!(n, [1 2 3], steps::short, TY, (tile, activations, starts, n_blocks, dots)),
        }
    }
}

/// Fills the part of a tile that belongs to group `g` of eight rows.
///
/// # Safety
///
/// Blocks of the type must be readable, and the tile writable.
#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn unpack_long<const TY: u32, const ISA: u32>(
    blocks: &[*const u8; GROUP],
    tile: *mut LongTile,
    g: usize,
) {
    let traits = const { traits(TY) };
    let n_groups = const { groups(ISA) };
    let mut rows = [[_mm256_setzero_si256(); GROUP]; 8];
    let mut factors = [_mm256_setzero_si256(); GROUP];
    let mut mins = [_mm256_setzero_si256(); GROUP];
    // SAFETY: as promised by the caller; all of the tile that is read later is written.
    unsafe {
        for r in 0..GROUP {
            let quants = quants::<TY>(blocks[r]);
            for (rows, quants) in rows.iter_mut().zip(quants) {
                rows[r] = for_products::<TY, ISA>(quants);
            }
            let scales = scales::<TY>(blocks[r]);
            (factors[r], mins[r]) = (scales.scales, scales.mins);
        }
        for (c, rows) in rows.iter().enumerate() {
            for (i, columns) in transpose(rows).into_iter().enumerate() {
                (*tile).quants[(8 * c + i) * n_groups + g] = columns;
            }
        }
        for (i, pair) in transpose(&factors).into_iter().enumerate().take(LONG / traits.sub_len / 2) {
            let (first, second) = (_mm256_slli_epi32(pair, 16), _mm256_srli_epi32(pair, 16));
            let both = match (const { has_vnni(ISA) }, traits.sub_sums_fit_16_bits()) {
                (false, _) => [
                    _mm256_or_si256(first, _mm256_srli_epi32(first, 16)),
                    _mm256_or_si256(second, _mm256_slli_epi32(second, 16)),
                ],
                (_, true) => [_mm256_srli_epi32(first, 16), second],
                (_, false) => [_mm256_srai_epi32(first, 16), _mm256_srai_epi32(pair, 16)],
            };
            (*tile).scales[2 * i * n_groups + g] = both[0];
            (*tile).scales[(2 * i + 1) * n_groups + g] = both[1];
        }
        for (i, pair) in transpose(&mins).into_iter().enumerate() {
            (*tile).mins[i * n_groups + g] = pair;
        }
        ((*tile).d[g], (*tile).dmin[g]) = float_scales::<TY>(blocks);
    }
}

/// Fills the part of a tile that belongs to group `g` of eight rows, for `n` blocks.
///
/// # Safety
///
/// So many blocks of the type must be readable in each row, and the tile writable.
#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn unpack_short<const TY: u32, const ISA: u32>(
    blocks: &[*const u8; GROUP],
    n: usize,
    tile: *mut ShortTile,
    g: usize,
) {
    let traits = const { traits(TY) };
    let n_groups = const { groups(ISA) };
    // SAFETY: as promised by the caller.
    unsafe {
        for b in 0..n {
            let blocks = blocks.map(|block| block.add(b * traits.block_bytes));
            #[allow(unused_mut, reason = "without AVX-512")]
            let mut rows = blocks.map(|block| for_products::<TY, ISA>(short_quants::<TY>(block)));
            // The other levels take the offset off the sums.
            #[cfg(avx512)]
            if ISA == AMX && traits.offset != 0 {
                rows = rows.map(|quants| _mm256_sub_epi8(quants, _mm256_set1_epi8(traits.offset as i8)));
            }
            for (i, columns) in transpose(&rows).into_iter().enumerate() {
                (*tile).quants[(8 * b + i) * n_groups + g] = columns;
            }
            let (d, m) = float_scales::<TY>(&blocks);
            (*tile).d[b * n_groups + g] = d;
            if traits.minima {
                (*tile).m[b * n_groups + g] = m;
            }
        }
    }
}

/// Quants as the instruction set multiplies them: VNNI takes unsigned ones only.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn for_products<const TY: u32, const ISA: u32>(quants: __m256i) -> __m256i {
    if const { has_vnni(ISA) && traits(TY).wide() } {
        _mm256_xor_si256(quants, _mm256_set1_epi8(WIDE_OFFSET as u8 as i8))
    } else {
        quants
    }
}
