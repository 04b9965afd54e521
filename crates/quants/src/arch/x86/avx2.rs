//! AVX2: eight lanes.

use std::arch::x86_64::*;

use crate::arch::{Kernel, Simd, Steps};

/// Proof that the processor has AVX2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(crate) fn detect() -> Option<Self> {
        is_x86_feature_detected!("avx2").then_some(Self(()))
    }
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    type F32 = __m256;
    type I32 = __m256i;
    type Mask = __m256;
    type Floats = [f32; 8];

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2")]
        fn run<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: the token proves that the processor has AVX2.
        unsafe { run(self, kernel) }
    }

    #[inline(always)]
    fn transpose(self, rows: &[&[f32; 8]]) -> [__m256; 8] {
        let row = |i: usize| self.load(rows[i]);
        // SAFETY: the token proves that the processor has the instructions.
        unsafe {
            // Elements 0, 1, 4, 5 and 2, 3, 6, 7 of two rows each; then of four; then whole columns. There are no loops,
            // as they are not always unrolled.
            let p0 = _mm256_unpacklo_ps(row(0), row(1));
            let p1 = _mm256_unpackhi_ps(row(0), row(1));
            let p2 = _mm256_unpacklo_ps(row(2), row(3));
            let p3 = _mm256_unpackhi_ps(row(2), row(3));
            let p4 = _mm256_unpacklo_ps(row(4), row(5));
            let p5 = _mm256_unpackhi_ps(row(4), row(5));
            let p6 = _mm256_unpacklo_ps(row(6), row(7));
            let p7 = _mm256_unpackhi_ps(row(6), row(7));
            let f0 = _mm256_shuffle_ps::<0b01_00_01_00>(p0, p2);
            let f1 = _mm256_shuffle_ps::<0b11_10_11_10>(p0, p2);
            let f2 = _mm256_shuffle_ps::<0b01_00_01_00>(p1, p3);
            let f3 = _mm256_shuffle_ps::<0b11_10_11_10>(p1, p3);
            let f4 = _mm256_shuffle_ps::<0b01_00_01_00>(p4, p6);
            let f5 = _mm256_shuffle_ps::<0b11_10_11_10>(p4, p6);
            let f6 = _mm256_shuffle_ps::<0b01_00_01_00>(p5, p7);
            let f7 = _mm256_shuffle_ps::<0b11_10_11_10>(p5, p7);
            [
                _mm256_permute2f128_ps::<0x20>(f0, f4),
                _mm256_permute2f128_ps::<0x20>(f1, f5),
                _mm256_permute2f128_ps::<0x20>(f2, f6),
                _mm256_permute2f128_ps::<0x20>(f3, f7),
                _mm256_permute2f128_ps::<0x31>(f0, f4),
                _mm256_permute2f128_ps::<0x31>(f1, f5),
                _mm256_permute2f128_ps::<0x31>(f2, f6),
                _mm256_permute2f128_ps::<0x31>(f3, f7),
            ]
        }
    }

    operations! {
        splat(value: f32) -> __m256 = _mm256_set1_ps(value);
        load(floats: &[f32; 8]) -> __m256 = _mm256_loadu_ps(floats.as_ptr());
        store(vector: __m256) -> [f32; 8] = std::mem::transmute(vector);

        add(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
        sub(a: __m256, b: __m256) -> __m256 = _mm256_sub_ps(a, b);
        mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
        div(a: __m256, b: __m256) -> __m256 = _mm256_div_ps(a, b);
        sqrt(a: __m256) -> __m256 = _mm256_sqrt_ps(a);
        abs(a: __m256) -> __m256 = _mm256_andnot_ps(_mm256_set1_ps(-0.0), a);
        neg(a: __m256) -> __m256 = _mm256_xor_ps(_mm256_set1_ps(-0.0), a);
        min(a: __m256, b: __m256) -> __m256 = _mm256_min_ps(a, b);
        max(a: __m256, b: __m256) -> __m256 = _mm256_max_ps(a, b);

        lt(a: __m256, b: __m256) -> __m256 = _mm256_cmp_ps::<_CMP_LT_OQ>(a, b);
        le(a: __m256, b: __m256) -> __m256 = _mm256_cmp_ps::<_CMP_LE_OQ>(a, b);
        eq(a: __m256, b: __m256) -> __m256 = _mm256_cmp_ps::<_CMP_EQ_OQ>(a, b);
        and(a: __m256, b: __m256) -> __m256 = _mm256_and_ps(a, b);
        or(a: __m256, b: __m256) -> __m256 = _mm256_or_ps(a, b);
        not(a: __m256) -> __m256 = _mm256_xor_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(-1)));
        any(a: __m256) -> bool = _mm256_movemask_ps(a) != 0;
        all(a: __m256) -> bool = _mm256_movemask_ps(a) == 0xFF;
        select(mask: __m256, yes: __m256, no: __m256) -> __m256 = _mm256_blendv_ps(no, yes, mask);

        bits(a: __m256) -> __m256i = _mm256_castps_si256(a);
        splat_i32(value: i32) -> __m256i = _mm256_set1_epi32(value);
        and_i32(a: __m256i, b: __m256i) -> __m256i = _mm256_and_si256(a, b);
        sub_i32(a: __m256i, b: __m256i) -> __m256i = _mm256_sub_epi32(a, b);
        min_i32(a: __m256i, b: __m256i) -> __m256i = _mm256_min_epi32(a, b);
        clamp_i32(value: __m256i, low: __m256i, high: __m256i) -> __m256i =
            _mm256_min_epi32(_mm256_max_epi32(value, low), high);
        to_f32(a: __m256i) -> __m256 = _mm256_cvtepi32_ps(a);

        truncate(a: __m256) -> __m256i = _mm256_cvttps_epi32(a);
        copysign(a: __m256, b: __m256) -> __m256 = {
            let sign = _mm256_set1_ps(-0.0);
            _mm256_or_ps(_mm256_andnot_ps(sign, a), _mm256_and_ps(sign, b))
        };
    }

    #[inline(always)]
    fn largest(self, a: __m256) -> f32 {
        // SAFETY: the token proves that the processor has the instructions.
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn narrow(self, integers: &[__m256i]) -> [u8; 32] {
        // SAFETY: the token proves that the processor has the instructions; the vector has as many bytes as the array.
        unsafe {
            let a = _mm256_packs_epi32(integers[0], integers[1]);
            let b = _mm256_packs_epi32(integers[2], integers[3]);
            // Packing stays within the halves of vectors, so that groups of four end up interleaved.
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            std::mem::transmute(_mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b), order))
        }
    }

    #[inline(always)]
    fn step(self, steps: &Steps, a: __m256) -> (__m256i, __m256) {
        // A binary search. The bits of the index come as masks, which are 0 or -1, so the index is built up negated; the
        // tables, which are looked up by its three lowest bits, are in that order.
        // SAFETY: the token proves that the processor has the instructions.
        unsafe {
            let threshold = self.splat(steps.heap[1]);
            let first = _mm256_cmp_ps::<_CMP_NLT_UQ>(a, threshold);
            let threshold = _mm256_blendv_ps(self.splat(steps.heap[2]), self.splat(steps.heap[3]), first);
            let second = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_NLT_UQ>(a, threshold));
            let first = _mm256_castps_si256(first);
            let index = _mm256_add_epi32(_mm256_add_epi32(first, first), second);
            let threshold = _mm256_permutevar8x32_ps(self.load(&steps.third), index);
            let third = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_NLT_UQ>(a, threshold));
            let index = _mm256_add_epi32(_mm256_add_epi32(index, index), third);
            let threshold = _mm256_permutevar8x32_ps(self.load(&steps.fourth), index);
            let fourth = _mm256_cmp_ps::<_CMP_NLT_UQ>(a, threshold);
            let left = _mm256_permutevar8x32_ps(self.load(&steps.left), index);
            let right = _mm256_permutevar8x32_ps(self.load(&steps.right), index);
            let value = _mm256_blendv_ps(left, right, fourth);
            let index = _mm256_add_epi32(_mm256_add_epi32(index, index), _mm256_castps_si256(fourth));
            (_mm256_sub_epi32(_mm256_setzero_si256(), index), value)
        }
    }
}
