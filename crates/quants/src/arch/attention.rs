//! Attention compiled for each instruction set, from the one definition in [`crate::attention`].

#[cfg(target_arch = "aarch64")]
use super::aarch64::attention as aarch64;
#[cfg(target_arch = "x86_64")]
use super::x86::attention as x86;
use crate::attention::{Buffers, Cells, Job, Lanes, attend_with};
use crate::matmul::Level;

/// Does the job with the kernels of a level.
pub(crate) fn attend(level: Level, job: &Job<'_>, buffers: &mut Buffers, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if let Some(isa) = level.x86() {
        // SAFETY: a level exists only where the processor has it.
        return unsafe { x86::attend(isa, job, buffers, out) };
    }
    #[cfg(target_arch = "aarch64")]
    if level != Level::SCALAR {
        return aarch64::attend(job, buffers, out);
    }
    attend_with::<2, 2, 2, 1>(job, buffers, out, widen);
}

/// Reads the row of a cell; lanes behind its end are left alone.
fn widen(cells: &Cells<'_>, cell: usize, out: &mut [Lanes]) {
    let row = &cells.rows[cell * cells.row_bytes..][..cells.row_bytes];
    let len = cells.ty.block_len().max(16);
    let bytes = len / cells.ty.block_len() * cells.ty.block_bytes();
    let mut values = [0.0; 32];
    for (i, blocks) in row.chunks(bytes).enumerate() {
        let n = blocks.len() / cells.ty.block_bytes() * cells.ty.block_len();
        let values = &mut values[..n];
        let known = crate::dequantize_at(crate::Level::SCALAR, cells.ty, blocks, values);
        known.expect("one of the types that cells have");
        for (lanes, values) in out[i * len / 16..].iter_mut().zip(values.chunks(16)) {
            lanes.0[..values.len()].copy_from_slice(values);
        }
    }
}
