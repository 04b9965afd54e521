//! Keys and values read from their rows.
//!
//! Types are numbers here (`const TY: u32`, ggml's ids), so that each function is compiled for each type.

use super::vector::Vector;
use crate::TensorType;
use crate::attention::{BLOCK, Cells, LANES};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

pub(super) const F32: u32 = TensorType::F32.id();
pub(super) const F16: u32 = TensorType::F16.id();
pub(super) const BF16: u32 = TensorType::BF16.id();
pub(super) const Q8_0: u32 = TensorType::Q8_0.id();

/// Blocks of [`Q8_0`]: a scale of two bytes, then a byte for each element.
const Q8_0_BYTES: usize = 34;
const Q8_0_LEN: usize = 32;

/// Elements of a cell that are transposed at once: 128 bits of them.
const EIGHT: usize = 8;

/// Calls a function for the type of some cells.
macro_rules! for_type {
    ($ty:expr, $function:ident::<$($generic:ty),*>, $args:tt) => {
        match $ty {
            TensorType::F16 => $function::<$($generic,)* { F16 }> $args,
            TensorType::BF16 => $function::<$($generic,)* { BF16 }> $args,
            TensorType::Q8_0 => $function::<$($generic,)* { Q8_0 }> $args,
            _ => $function::<$($generic,)* { F32 }> $args,
        }
    };
}

/// Reads these cells, of one block, to their places in `out`, one row behind the other.
///
/// # Safety
///
/// The processor must have the vector's instructions and F16C, and `out` be good for the block's rows, padded to whole
/// [`LANES`].
#[inline(always)]
pub(super) unsafe fn widen<V: Vector>(values: &Cells<'_>, cells: Range<usize>, out: *mut f32) {
    // SAFETY: as promised by the caller.
    unsafe { for_type!(values.ty, rows::<V>, (values, cells, out)) }
}

/// Reads these cells, of one block, to their columns in `out`: rows of [`BLOCK`] cells, one for each element, those of a
/// sum of the dot product behind one another. In columns of other cells, numbers without a meaning are left.
///
/// # Safety
///
/// As for [`widen`].
#[inline(always)]
pub(super) unsafe fn widen_transposed<V: Vector>(keys: &Cells<'_>, cells: Range<usize>, out: *mut f32) {
    // SAFETY: as promised by the caller.
    unsafe { for_type!(keys.ty, columns::<V>, (keys, cells, out)) }
}

const fn element_bytes(ty: u32) -> usize {
    match ty {
        F32 => 4,
        F16 | BF16 => 2,
        _ => panic!("not a type of floats"),
    }
}

/// Bytes from `from` on, with zeros behind the first `n`.
#[inline(always)]
unsafe fn padded(from: *const u8, n: usize) -> [u8; 64] {
    let mut bytes = [0; 64];
    // SAFETY: the caller has so many, fewer than 64.
    unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), n) };
    bytes
}

/// Fetches what lies a block of cells behind these bytes. Nothing happens where that can't be read.
///
/// Between two blocks there is too much work for the processor to go on fetching on its own.
#[inline(always)]
fn prefetch(from: *const u8, row_bytes: usize) {
    // SAFETY: x86-64 has the instruction, which never faults.
    unsafe { _mm_prefetch(from.wrapping_add(BLOCK * row_bytes).cast(), _MM_HINT_T1) };
}

/// # Safety
///
/// As for [`widen`].
#[inline(always)]
unsafe fn rows<V: Vector, const TY: u32>(values: &Cells<'_>, cells: Range<usize>, out: *mut f32) {
    let stride = values.dim.next_multiple_of(LANES);
    for cell in cells {
        // SAFETY: as promised by the caller.
        unsafe { row::<V, TY>(values, cell, out.add(cell % BLOCK * stride)) };
    }
}

/// # Safety
///
/// As for [`widen`], for one row.
#[inline(always)]
unsafe fn row<V: Vector, const TY: u32>(values: &Cells<'_>, cell: usize, out: *mut f32) {
    let (dim, row_bytes) = (values.dim, values.row_bytes);
    let row = values.rows[cell * row_bytes..][..row_bytes].as_ptr();
    for at in (0..row_bytes).step_by(64) {
        prefetch(row.wrapping_add(at), row_bytes);
    }
    if TY == Q8_0 {
        for b in 0..dim / Q8_0_LEN {
            // SAFETY: as promised by the caller; offsets lie within the row.
            unsafe {
                let (block, out) = (row.add(b * Q8_0_BYTES), out.add(b * Q8_0_LEN));
                let d = _mm_cvtsi32_si128(i32::from(block.cast::<u16>().read_unaligned()));
                let d = V::splat(_mm_cvtss_f32(_mm_cvtph_ps(d)));
                for at in (0..Q8_0_LEN).step_by(V::LEN) {
                    V::mul(V::read::<TY>(block.add(2 + at)), d).store(out.add(at));
                }
            }
        }
        return;
    }
    for at in (0..dim.next_multiple_of(LANES)).step_by(V::LEN) {
        // SAFETY: as promised by the caller; offsets lie within the row.
        unsafe {
            let vector = if at + V::LEN <= dim {
                V::read::<TY>(row.add(at * element_bytes(TY)))
            } else {
                let rest = dim.saturating_sub(at) * element_bytes(TY);
                V::read::<TY>(padded(row.wrapping_add(at * element_bytes(TY)), rest).as_ptr())
            };
            vector.store(out.add(at));
        }
    }
}

/// # Safety
///
/// As for [`widen`].
#[inline(always)]
unsafe fn columns<V: Vector, const TY: u32>(keys: &Cells<'_>, cells: Range<usize>, out: *mut f32) {
    let n = keys.dim.div_ceil(LANES);
    let start = cells.start / BLOCK * BLOCK;
    let bytes = &keys.rows[cells.start * keys.row_bytes..cells.end * keys.row_bytes];
    // Cells that are not there are stood in for by others.
    let mut rows = [bytes.as_ptr(); BLOCK];
    for (place, row) in rows.iter_mut().enumerate() {
        let cell = (start + place).clamp(cells.start, cells.end - 1);
        *row = bytes[(cell - cells.start) * keys.row_bytes..].as_ptr();
    }
    // SAFETY: as promised by the caller; offsets lie within the rows.
    unsafe {
        if TY == F32 {
            for (place, row) in rows.iter().enumerate() {
                for i in 0..keys.dim {
                    let element = row.cast::<f32>().add(i).read_unaligned();
                    *out.add((i % LANES * n + i / LANES) * BLOCK + place) = element;
                }
            }
            return;
        }
        for first in (0..BLOCK).step_by(2 * V::LEN) {
            let rows = &rows[first..first + 2 * V::LEN];
            let mut d = [V::splat(1.0); 2];
            for at in (0..n * LANES).step_by(EIGHT) {
                if TY == Q8_0 && at % Q8_0_LEN == 0 {
                    d = q8_0_scales(rows, at);
                }
                if at % Q8_0_LEN == 0 {
                    // About the length of a cache line.
                    for row in rows {
                        prefetch(row.wrapping_add(at * keys.row_bytes / keys.dim), keys.row_bytes);
                    }
                }
                let mut columns = MaybeUninit::<[i16; EIGHT * BLOCK]>::uninit();
                let columns = columns.as_mut_ptr().cast();
                V::transpose::<TY>(rows, at, keys.dim, columns);
                for i in 0..EIGHT {
                    let row = (at + i) % LANES * n + at / LANES;
                    for (half, d) in d.iter().enumerate() {
                        let mut vector = V::read_halves::<TY>(columns.add((2 * i + half) * V::LEN));
                        if TY == Q8_0 {
                            vector = V::mul(vector, *d);
                        }
                        vector.store(out.add(row * BLOCK + first + half * V::LEN));
                    }
                }
            }
        }
    }
}

/// Element `at` and the seven behind it, 16 bits each; zeros behind the row's end.
///
/// # Safety
///
/// The processor must have SSE 4.1, and the row hold `dim` elements.
#[inline(always)]
pub(super) unsafe fn eight<const TY: u32>(row: *const u8, at: usize, dim: usize) -> __m128i {
    // SAFETY: as promised by the caller.
    unsafe {
        if TY == Q8_0 {
            let block = row.add(at / Q8_0_LEN * Q8_0_BYTES);
            _mm_cvtepi8_epi16(_mm_loadl_epi64(block.add(2 + at % Q8_0_LEN).cast()))
        } else if at + EIGHT <= dim {
            _mm_loadu_si128(row.add(2 * at).cast())
        } else {
            _mm_loadu_si128(padded(row.wrapping_add(2 * at), 2 * dim.saturating_sub(at)).as_ptr().cast())
        }
    }
}

/// The scales of the blocks that hold element `at` of each row.
///
/// # Safety
///
/// As for [`widen`], for two vectors of rows.
#[inline(always)]
unsafe fn q8_0_scales<V: Vector>(rows: &[*const u8], at: usize) -> [V; 2] {
    let mut halves = [0_i16; BLOCK];
    // SAFETY: as promised by the caller.
    unsafe {
        for (half, row) in halves.iter_mut().zip(rows) {
            *half = row.add(at / Q8_0_LEN * Q8_0_BYTES).cast::<i16>().read_unaligned();
        }
        [V::read_halves::<F16>(halves.as_ptr()), V::read_halves::<F16>(halves.as_ptr().add(V::LEN))]
    }
}
