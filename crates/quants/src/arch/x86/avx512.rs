//! AVX-512: sixteen lanes.

use std::arch::x86_64::*;

use super::Avx2;
use crate::arch::{Kernel, Simd};

/// Proof that the processor has the common part of AVX-512, and AVX2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Avx512(Avx2);

impl Avx512 {
    pub(crate) fn detect() -> Option<Self> {
        let all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq");
        if all { Avx2::detect().map(Self) } else { None }
    }

    /// The token for the shorter vectors.
    pub(crate) fn avx2(self) -> Avx2 {
        self.0
    }
}

impl Simd for Avx512 {
    const LANES: usize = 16;
    type F32 = __m512;
    type I32 = __m512i;
    type Mask = __mmask16;
    type Floats = [f32; 16];

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2")]
        fn run<K: Kernel>(simd: Avx512, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: the token proves that the processor has these.
        unsafe { run(self, kernel) }
    }

    operations! {
        splat(value: f32) -> __m512 = _mm512_set1_ps(value);
        load(floats: &[f32; 16]) -> __m512 = _mm512_loadu_ps(floats.as_ptr());
        store(vector: __m512) -> [f32; 16] = std::mem::transmute(vector);

        add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
        mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
        sqrt(a: __m512) -> __m512 = _mm512_sqrt_ps(a);
        abs(a: __m512) -> __m512 = _mm512_abs_ps(a);
        neg(a: __m512) -> __m512 = _mm512_xor_ps(_mm512_set1_ps(-0.0), a);
        min(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
        max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);

        lt(a: __m512, b: __m512) -> __mmask16 = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b);
        le(a: __m512, b: __m512) -> __mmask16 = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(a, b);
        eq(a: __m512, b: __m512) -> __mmask16 = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b);
        and(a: __mmask16, b: __mmask16) -> __mmask16 = a & b;
        or(a: __mmask16, b: __mmask16) -> __mmask16 = a | b;
        not(a: __mmask16) -> __mmask16 = !a;
        any(a: __mmask16) -> bool = a != 0;
        all(a: __mmask16) -> bool = a == 0xFFFF;
        select(mask: __mmask16, yes: __m512, no: __m512) -> __m512 = _mm512_mask_blend_ps(mask, no, yes);

        bits(a: __m512) -> __m512i = _mm512_castps_si512(a);
        splat_i32(value: i32) -> __m512i = _mm512_set1_epi32(value);
        and_i32(a: __m512i, b: __m512i) -> __m512i = _mm512_and_si512(a, b);
        sub_i32(a: __m512i, b: __m512i) -> __m512i = _mm512_sub_epi32(a, b);
        clamp_i32(value: __m512i, low: __m512i, high: __m512i) -> __m512i =
            _mm512_min_epi32(_mm512_max_epi32(value, low), high);
        to_f32(a: __m512i) -> __m512 = _mm512_cvtepi32_ps(a);
    }
}
