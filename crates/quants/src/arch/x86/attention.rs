//! Attention for x86-64: the definition compiled for wider vectors, and rows of cells read by instructions for it.

use super::matmul::Isa;
use crate::TensorType;
use crate::attention::{Buffers, Cells, Job, Lanes, attend_with};
use std::arch::x86_64::*;

/// Does the job.
///
/// # Safety
///
/// The processor must have the instruction set.
pub(crate) unsafe fn attend(isa: Isa, job: &Job<'_>, buffers: &mut Buffers, out: &mut [f32]) {
    // SAFETY: as promised by the caller; every instruction set has AVX2, FMA and F16C.
    unsafe {
        match isa {
            #[cfg(avx512)]
            Isa::Avx512Vnni => avx512(job, buffers, out),
            _ => avx2(job, buffers, out),
        }
    }
}

/// Sixteen registers of eight lanes: eight sums, and what is multiplied.
#[target_feature(enable = "avx2,fma,f16c")]
fn avx2(job: &Job<'_>, buffers: &mut Buffers, out: &mut [f32]) {
    attend_with::<2, 2, 4, 1>(job, buffers, out, |cells, cell, row| widen(cells, cell, row));
}

/// Thirty-two registers of sixteen lanes.
#[cfg(avx512)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn avx512(job: &Job<'_>, buffers: &mut Buffers, out: &mut [f32]) {
    attend_with::<4, 4, 4, 4>(job, buffers, out, |cells, cell, row| widen(cells, cell, row));
}

/// Reads the row of a cell; lanes behind its end are left alone.
#[inline(always)]
fn widen(cells: &Cells<'_>, cell: usize, out: &mut [Lanes]) {
    let row = &cells.rows[cell * cells.row_bytes..][..cells.row_bytes];
    match cells.ty {
        TensorType::F16 => {
            for (lanes, bytes) in out.iter_mut().zip(row.chunks(32)) {
                widen_f16(bytes, lanes);
            }
        }
        TensorType::BF16 => {
            for (lanes, bytes) in out.iter_mut().zip(row.chunks(32)) {
                for (lane, bytes) in lanes.0.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *lane = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
                }
            }
        }
        TensorType::Q8_0 => {
            for (lanes, block) in out.as_chunks_mut::<2>().0.iter_mut().zip(row.as_chunks::<34>().0) {
                let d = crate::scalar::f32_from_f16(u16::from_le_bytes([block[0], block[1]]));
                for (lanes, quants) in lanes.iter_mut().zip(block[2..].as_chunks::<16>().0) {
                    for (lane, quant) in lanes.0.iter_mut().zip(quants) {
                        *lane = f32::from(*quant as i8) * d;
                    }
                }
            }
        }
        _ => {
            for (lanes, bytes) in out.iter_mut().zip(row.chunks(64)) {
                for (lane, bytes) in lanes.0.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *lane = f32::from_le_bytes(*bytes);
                }
            }
        }
    }
}

/// Reads up to sixteen elements.
#[inline(always)]
fn widen_f16(bytes: &[u8], lanes: &mut Lanes) {
    let Ok(whole) = <&[u8; 32]>::try_from(bytes) else {
        for (lane, bytes) in lanes.0.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *lane = crate::scalar::f32_from_f16(u16::from_le_bytes(*bytes));
        }
        return;
    };
    // SAFETY: the callers' instruction sets have F16C; there are 32 bytes to read and 16 floats to write.
    unsafe {
        let from = whole.as_ptr();
        let to = lanes.0.as_mut_ptr();
        _mm256_store_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(from.cast())));
        _mm256_store_ps(to.add(8), _mm256_cvtph_ps(_mm_loadu_si128(from.add(16).cast())));
    }
}
