//! Dot products of bytes with what each instruction set has for them.
//!
//! `sdot` and `smmla` are written as assembly, as their intrinsics are not stable in the oldest supported Rust. They are
//! used in code that is compiled for every processor, so the assembler is told that it may; who calls them has looked
//! whether the processor has them.

use std::arch::aarch64::*;
use std::arch::asm;

/// What multiplies (`const ISA: u32`): the widening products that every processor has.
pub(super) const NEON: u32 = 0;
/// `sdot`.
pub(super) const DOTPROD: u32 = 1;
/// `sdot`, and `smmla` for many rows.
pub(super) const I8MM: u32 = 2;

/// `sum` with sixteen products added to it; which of its lanes one goes to is not told.
///
/// # Safety
///
/// The processor must have what `ISA` stands for, and `-128 * -128` not be among the products of `NEON`.
#[inline(always)]
pub(super) unsafe fn dot<const ISA: u32>(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: as promised by the caller; the assembly touches registers only.
    unsafe {
        if ISA == NEON {
            let products = vmull_s8(vget_low_s8(a), vget_low_s8(b));
            return vpadalq_s16(sum, vmlal_high_s8(products, a, b));
        }
        asm!(
            ".arch_extension dotprod",
            "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inout(vreg) sum, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// `sums` with products added: to lane i those of the i-th four bytes of `weights` with the `QUAD`-th four of
/// `activations`.
///
/// # Safety
///
/// The processor must have `sdot`.
#[inline(always)]
pub(super) unsafe fn dot_quads<const QUAD: usize>(
    mut sums: int32x4_t,
    weights: int8x16_t,
    activations: int8x16_t,
) -> int32x4_t {
    // SAFETY: as promised by the caller; the assembly touches registers only.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{quad}]",
            inout(vreg) sums, in(vreg) weights, in(vreg) activations, quad = const QUAD,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

/// `sums` with products added: to lane 2 i + k those of the i-th eight bytes of `a` with the k-th eight of `b`.
///
/// # Safety
///
/// The processor must have `smmla`.
#[inline(always)]
pub(super) unsafe fn dot_pairs(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: as promised by the caller; the assembly touches registers only.
    unsafe {
        asm!(
            ".arch_extension i8mm",
            "smmla {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inout(vreg) sums, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

/// The sums across each of the four vectors.
#[inline(always)]
pub(super) fn sums_across(v: [int32x4_t; 4]) -> int32x4_t {
    // SAFETY: every processor that this is compiled for has NEON.
    unsafe { vpaddq_s32(vpaddq_s32(v[0], v[1]), vpaddq_s32(v[2], v[3])) }
}
