//! Attention for x86-64: kernels over transposed keys, with AVX2 or AVX-512.
#![allow(clippy::needless_range_loop, reason = "arrays of registers are walked side by side")]

#[cfg(avx512)]
#[clippy::msrv = "1.89"]
mod avx512;
mod cells;
mod kernels;
mod vector;

use self::vector::Vector;
use super::matmul::Isa;
use crate::attention::{BLOCK, Buffers, Job, LANES, Lanes, Steps, attend_by};
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::ops::Range;

/// Calls a kernel for `n` rows, `max` or fewer.
macro_rules! with_rows {
    ($n:expr, $max:ident, $kernel:ident, [$vectors:tt], $args:tt) => {
        match $n {
            1 => kernels::$kernel::<V, 1, $vectors> $args,
            2 => kernels::$kernel::<V, 2, $vectors> $args,
            3 => kernels::$kernel::<V, 3, $vectors> $args,
            4 if $max >= 4 => kernels::$kernel::<V, 4, $vectors> $args,
            5 if $max >= 5 => kernels::$kernel::<V, 5, $vectors> $args,
            6 if $max >= 6 => kernels::$kernel::<V, 6, $vectors> $args,
            _ => unreachable!(),
        }
    };
}

/// Does the job.
///
/// # Safety
///
/// The processor must have the instruction set.
pub(crate) unsafe fn attend(isa: Isa, job: &Job<'_>, buffers: &mut Buffers, out: &mut [f32]) {
    // SAFETY: as promised by the caller.
    unsafe {
        match isa {
            #[cfg(avx512)]
            Isa::Avx512Vnni | Isa::Amx => attend_512(job, buffers, out),
            _ => attend_256(job, buffers, out),
        }
    }
}

/// # Safety
///
/// The processor must have these instructions.
#[cfg(avx512)]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn attend_512(job: &Job<'_>, buffers: &mut Buffers, out: &mut [f32]) {
    attend_by(job, buffers, out, &Transposed::<__m512, 16, 2, 6, 4>(PhantomData));
}

/// # Safety
///
/// The processor must have these instructions.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn attend_256(job: &Job<'_>, buffers: &mut Buffers, out: &mut [f32]) {
    attend_by(job, buffers, out, &Transposed::<__m256, 8, 4, 3, 4>(PhantomData));
}

/// The steps of the kernels in vectors of `LEN` floats, of which a block has `C`: up to `R` rows of queries at a time, which
/// gather `N` vectors at a time. It exists only in functions that are compiled for the vector's instruction set.
struct Transposed<V, const LEN: usize, const C: usize, const R: usize, const N: usize>(PhantomData<V>);

impl<V: Vector, const LEN: usize, const C: usize, const R: usize, const N: usize> Steps
    for Transposed<V, LEN, C, R, N>
{
    #[inline(always)]
    fn keep_query(&self, query: &[f32], scale: f32, kept: &mut [Lanes]) {
        let n = kept.len();
        for (i, element) in query.iter().enumerate() {
            let at = i % LANES * n + i / LANES;
            kept[at / LANES].0[at % LANES] = element * scale;
        }
    }

    #[inline(always)]
    fn widen(&self, job: &Job<'_>, cells: Range<usize>, buffers: &mut Buffers) {
        // SAFETY: the buffers hold a block of either; the processor has the instructions, as all of this is inlined into
        // functions that require them.
        unsafe {
            cells::widen_transposed::<V>(&job.keys, cells.clone(), buffers.keys.as_mut_ptr().cast());
            cells::widen::<V>(&job.values, cells, buffers.values.as_mut_ptr().cast());
        }
    }

    #[inline(always)]
    fn look_at(
        &self,
        buffers: &mut Buffers,
        rows: Range<usize>,
        cells: Range<usize>,
        [n_k, n_v]: [usize; 2],
    ) {
        let Buffers { queries, gathered, keys, values, scores, largest, total } = buffers;
        let queries = &queries[rows.start * n_k..rows.end * n_k];
        let gathered = &mut gathered[rows.start * n_v..rows.end * n_v];
        let scores = &mut scores[rows.clone()];
        let (keys, values): (&[Lanes], &[Lanes]) = (&keys[..BLOCK * n_k], &values[..BLOCK * n_v]);
        let stride = n_v * LANES;
        let n_steps = rows.len().div_ceil(R);
        let mut row = 0;
        for i in 0..n_steps {
            let n = (rows.len() - row).div_ceil(n_steps - i);
            // SAFETY: rows, cells and vectors lie within the slices above, whose lengths have been checked; instructions
            // as in `widen`.
            unsafe {
                let queries: *const f32 = queries.as_ptr().add(row * n_k).cast();
                let block: *mut f32 = scores.as_mut_ptr().add(row).cast();
                with_rows!(n, R, score, [C], (queries, keys.as_ptr().cast(), block, n_k));
                for row in row..row + n {
                    let (largest, total) = (&mut largest[rows.start + row], &mut total[rows.start + row]);
                    if let Some(factor) = kernels::weigh::<V, C>(&mut scores[row], largest, total, &cells) {
                        let factor = V::splat(factor);
                        let gathered: *mut f32 = gathered.as_mut_ptr().add(row * n_v).cast();
                        for at in (0..stride).step_by(LEN) {
                            V::mul(V::load(gathered.add(at)), factor).store(gathered.add(at));
                        }
                    }
                }
                let mut at = 0;
                while at < stride {
                    let gathered: *mut f32 = gathered.as_mut_ptr().add(row * n_v).cast::<f32>().add(at);
                    let values: *const f32 = values.as_ptr().cast::<f32>().add(at);
                    let weights: *const f32 = scores.as_ptr().add(row).cast();
                    if at + N * LEN <= stride {
                        with_rows!(n, R, gather, [N], (gathered, values, weights, &cells, stride));
                        at += N * LEN;
                    } else {
                        with_rows!(n, R, gather, [1], (gathered, values, weights, &cells, stride));
                        at += LEN;
                    }
                }
            }
            row += n;
        }
    }
}
