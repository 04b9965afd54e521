//! NEON: eight lanes, in two vectors of four.

use std::arch::aarch64::*;

use crate::arch::{Kernel, Simd, Steps};

/// Proof that the processor has NEON, which every one of this architecture has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Neon(());

impl Neon {
    pub(crate) const fn new() -> Self {
        Self(())
    }
}

/// Methods that do the same with either vector of their operands, `a` of each method's type.
macro_rules! halves {
    ($($name:ident($($arg:ident: $ty:ident),*) -> $out:ident = $body:expr;)*) => {
        $(#[inline(always)]
        fn $name(self, $($arg: $ty),*) -> $out {
            // SAFETY: the token proves that the processor has the instructions.
            let half = |$($arg),*| unsafe { $body };
            $out(half($($arg.0),*), half($($arg.1),*))
        })*
    };
}

/// A table of four floats, as the instructions that look up bytes want it.
#[inline(always)]
fn bytes_of(floats: [f32; 4]) -> uint8x16_t {
    // SAFETY: the array has as many bytes as the vector, and any bytes make one.
    unsafe { std::mem::transmute(floats) }
}

impl Simd for Neon {
    const LANES: usize = 8;
    type F32 = float32x4x2_t;
    type I32 = int32x4x2_t;
    type Mask = uint32x4x2_t;
    type Floats = [f32; 8];

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        // A function of its own for each kernel, though it needs no instructions beyond the baseline.
        #[inline(never)]
        fn run<K: Kernel>(simd: Neon, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        run(self, kernel)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> float32x4x2_t {
        // SAFETY: the token proves that the processor has the instructions.
        unsafe { float32x4x2_t(vdupq_n_f32(value), vdupq_n_f32(value)) }
    }

    #[inline(always)]
    fn load(self, floats: &[f32; 8]) -> float32x4x2_t {
        // SAFETY: the array has as many bytes as the two vectors, and any bytes make them.
        unsafe { std::mem::transmute(*floats) }
    }

    #[inline(always)]
    fn store(self, vector: float32x4x2_t) -> [f32; 8] {
        // SAFETY: as many bytes, and any bytes make floats.
        unsafe { std::mem::transmute(vector) }
    }

    #[inline(always)]
    fn transpose(self, rows: &[&[f32; 8]]) -> [float32x4x2_t; 8] {
        // Columns of four rows, from each row's first or last four elements.
        let four = |r0, r1, r2, r3| {
            // SAFETY: the token proves that the processor has the instructions.
            unsafe {
                let even = vreinterpretq_f64_f32(vtrn1q_f32(r0, r1));
                let odd = vreinterpretq_f64_f32(vtrn2q_f32(r0, r1));
                let even_below = vreinterpretq_f64_f32(vtrn1q_f32(r2, r3));
                let odd_below = vreinterpretq_f64_f32(vtrn2q_f32(r2, r3));
                [
                    vreinterpretq_f32_f64(vtrn1q_f64(even, even_below)),
                    vreinterpretq_f32_f64(vtrn1q_f64(odd, odd_below)),
                    vreinterpretq_f32_f64(vtrn2q_f64(even, even_below)),
                    vreinterpretq_f32_f64(vtrn2q_f64(odd, odd_below)),
                ]
            }
        };
        let row = |i: usize| self.load(rows[i]);
        let a = four(row(0).0, row(1).0, row(2).0, row(3).0);
        let b = four(row(4).0, row(5).0, row(6).0, row(7).0);
        let c = four(row(0).1, row(1).1, row(2).1, row(3).1);
        let d = four(row(4).1, row(5).1, row(6).1, row(7).1);
        [
            float32x4x2_t(a[0], b[0]),
            float32x4x2_t(a[1], b[1]),
            float32x4x2_t(a[2], b[2]),
            float32x4x2_t(a[3], b[3]),
            float32x4x2_t(c[0], d[0]),
            float32x4x2_t(c[1], d[1]),
            float32x4x2_t(c[2], d[2]),
            float32x4x2_t(c[3], d[3]),
        ]
    }

    halves! {
        add(a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t = vaddq_f32(a, b);
        sub(a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t = vsubq_f32(a, b);
        mul(a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t = vmulq_f32(a, b);
        div(a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t = vdivq_f32(a, b);
        sqrt(a: float32x4x2_t) -> float32x4x2_t = vsqrtq_f32(a);
        abs(a: float32x4x2_t) -> float32x4x2_t = vabsq_f32(a);
        neg(a: float32x4x2_t) -> float32x4x2_t = vnegq_f32(a);
        // `fmin` and `fmax` give NaN for NaN, and know which zero is smaller.
        min(a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t = vbslq_f32(vcltq_f32(a, b), a, b);
        max(a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t = vbslq_f32(vcgtq_f32(a, b), a, b);

        lt(a: float32x4x2_t, b: float32x4x2_t) -> uint32x4x2_t = vcltq_f32(a, b);
        le(a: float32x4x2_t, b: float32x4x2_t) -> uint32x4x2_t = vcleq_f32(a, b);
        eq(a: float32x4x2_t, b: float32x4x2_t) -> uint32x4x2_t = vceqq_f32(a, b);
        and(a: uint32x4x2_t, b: uint32x4x2_t) -> uint32x4x2_t = vandq_u32(a, b);
        or(a: uint32x4x2_t, b: uint32x4x2_t) -> uint32x4x2_t = vorrq_u32(a, b);
        not(a: uint32x4x2_t) -> uint32x4x2_t = vmvnq_u32(a);
        select(mask: uint32x4x2_t, yes: float32x4x2_t, no: float32x4x2_t) -> float32x4x2_t =
            vbslq_f32(mask, yes, no);

        bits(a: float32x4x2_t) -> int32x4x2_t = vreinterpretq_s32_f32(a);
        and_i32(a: int32x4x2_t, b: int32x4x2_t) -> int32x4x2_t = vandq_s32(a, b);
        sub_i32(a: int32x4x2_t, b: int32x4x2_t) -> int32x4x2_t = vsubq_s32(a, b);
        min_i32(a: int32x4x2_t, b: int32x4x2_t) -> int32x4x2_t = vminq_s32(a, b);
        clamp_i32(value: int32x4x2_t, low: int32x4x2_t, high: int32x4x2_t) -> int32x4x2_t =
            vminq_s32(vmaxq_s32(value, low), high);
        to_f32(a: int32x4x2_t) -> float32x4x2_t = vcvtq_f32_s32(a);

        // The instruction alone saturates, and gives 0 for NaN.
        truncate(a: float32x4x2_t) -> int32x4x2_t = vbslq_s32(
            vcaltq_f32(a, vdupq_n_f32(2_147_483_648.0)),
            vcvtq_s32_f32(a),
            vdupq_n_s32(i32::MIN)
        );
        copysign(a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t = vbslq_f32(vdupq_n_u32(1 << 31), b, a);
    }

    #[inline(always)]
    fn any(self, a: uint32x4x2_t) -> bool {
        // SAFETY: the token proves that the processor has the instructions.
        unsafe { vmaxvq_u32(vorrq_u32(a.0, a.1)) != 0 }
    }

    #[inline(always)]
    fn all(self, a: uint32x4x2_t) -> bool {
        // SAFETY: the token proves that the processor has the instructions.
        unsafe { vminvq_u32(vandq_u32(a.0, a.1)) != 0 }
    }

    #[inline(always)]
    fn splat_i32(self, value: i32) -> int32x4x2_t {
        // SAFETY: the token proves that the processor has the instructions.
        unsafe { int32x4x2_t(vdupq_n_s32(value), vdupq_n_s32(value)) }
    }

    #[inline(always)]
    fn largest(self, a: float32x4x2_t) -> f32 {
        // SAFETY: the token proves that the processor has the instructions.
        unsafe { vmaxvq_f32(vmaxq_f32(a.0, a.1)) }
    }

    #[inline(always)]
    fn narrow(self, integers: &[int32x4x2_t]) -> [u8; 32] {
        // SAFETY: the token proves that the processor has the instructions; the two vectors have as many bytes as the array.
        unsafe {
            let eight = |i: usize| vcombine_s16(vqmovn_s32(integers[i].0), vqmovn_s32(integers[i].1));
            let sixteen = |i: usize| vcombine_s8(vqmovn_s16(eight(i)), vqmovn_s16(eight(i + 1)));
            std::mem::transmute([sixteen(0), sixteen(2)])
        }
    }

    #[inline(always)]
    fn step(self, steps: &Steps, a: float32x4x2_t) -> (int32x4x2_t, float32x4x2_t) {
        // A binary search down the heap. The index within a level is kept in each byte of its lane, as masks are, so that
        // the places of a float's bytes in a table are a shift away.
        let table =
            |floats: &[f32; 16], i: usize| bytes_of([floats[i], floats[i + 1], floats[i + 2], floats[i + 3]]);
        let third_level = table(&steps.heap, 4);
        let fourth_level = uint8x16x2_t(table(&steps.heap, 8), table(&steps.heap, 12));
        let value = |i: usize| table(&steps.values, i);
        let values = uint8x16x4_t(value(0), value(4), value(8), value(12));
        let half = |a| {
            // SAFETY: the token proves that the processor has the instructions.
            unsafe {
                let byte_in_float = vreinterpretq_u8_u32(vdupq_n_u32(0x0302_0100));
                let places = |index| vsliq_n_u8::<2>(byte_in_float, index);
                // Not smaller, so that NaN is to the right of everything.
                let is_right = |threshold| vreinterpretq_u8_u32(vmvnq_u32(vcltq_f32(a, threshold)));
                let first = is_right(vdupq_n_f32(steps.heap[1]));
                let threshold = vbslq_f32(
                    vreinterpretq_u32_u8(first),
                    vdupq_n_f32(steps.heap[3]),
                    vdupq_n_f32(steps.heap[2]),
                );
                // Each bit goes below the ones so far.
                let index = vsliq_n_u8::<1>(is_right(threshold), vandq_u8(first, vdupq_n_u8(1)));
                let threshold = vreinterpretq_f32_u8(vqtbl1q_u8(third_level, places(index)));
                let index = vsliq_n_u8::<1>(is_right(threshold), index);
                let threshold = vreinterpretq_f32_u8(vqtbl2q_u8(fourth_level, places(index)));
                let index = vsliq_n_u8::<1>(is_right(threshold), index);
                let value = vreinterpretq_f32_u8(vqtbl4q_u8(values, places(index)));
                (vandq_s32(vreinterpretq_s32_u8(index), vdupq_n_s32(0xFF)), value)
            }
        };
        let (low, high) = (half(a.0), half(a.1));
        (int32x4x2_t(low.0, high.0), float32x4x2_t(low.1, high.1))
    }
}
