//! The vector operations that kernels are written in.

/// An instruction set that the processor is known to have, as a zero-sized token.
///
/// Each operation rounds on its own, to nearest, ties to even, and keeps denormals, as the scalar one does. `min` and
/// `max` give the second operand where the first does not compare as smaller or larger, NaN included.
///
/// Implementations of the methods are `#[inline(always)]`, so that they end up within [`Simd::vectorize`].
pub(crate) trait Simd: Copy {
    /// Lanes of a vector.
    const LANES: usize;

    /// A vector of single-precision floats.
    type F32: Copy;
    /// A vector of 32-bit integers.
    type I32: Copy;
    /// A truth value for each lane.
    type Mask: Copy;
    /// The lanes in memory.
    type Floats: Copy + AsRef<[f32]> + AsMut<[f32]> + Default;

    /// Runs the kernel compiled for this instruction set.
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output;

    fn splat(self, value: f32) -> Self::F32;
    fn load(self, floats: &Self::Floats) -> Self::F32;
    fn store(self, vector: Self::F32) -> Self::Floats;

    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn sqrt(self, a: Self::F32) -> Self::F32;
    fn abs(self, a: Self::F32) -> Self::F32;
    fn neg(self, a: Self::F32) -> Self::F32;
    /// `a` where it is smaller than `b`, else `b`.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a` where it is larger than `b`, else `b`.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;

    /// Where `a < b`; false for NaN.
    fn lt(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    /// Where `a <= b`; false for NaN.
    fn le(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    /// Where `a == b`; false for NaN.
    fn eq(self, a: Self::F32, b: Self::F32) -> Self::Mask;
    fn and(self, a: Self::Mask, b: Self::Mask) -> Self::Mask;
    fn or(self, a: Self::Mask, b: Self::Mask) -> Self::Mask;
    fn not(self, a: Self::Mask) -> Self::Mask;
    fn any(self, a: Self::Mask) -> bool;
    fn all(self, a: Self::Mask) -> bool;
    /// `yes` where the mask holds, else `no`.
    fn select(self, mask: Self::Mask, yes: Self::F32, no: Self::F32) -> Self::F32;

    /// The bits as integers.
    fn bits(self, a: Self::F32) -> Self::I32;
    fn splat_i32(self, value: i32) -> Self::I32;
    fn and_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    fn sub_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// `value` within `low..=high`, signed.
    fn clamp_i32(self, value: Self::I32, low: Self::I32, high: Self::I32) -> Self::I32;
    /// The floats of these values.
    fn to_f32(self, a: Self::I32) -> Self::F32;
}

/// Code that is compiled for an instruction set as a whole, with everything it calls inlined.
pub(crate) trait Kernel {
    type Output;

    /// `#[inline(always)]` in every implementation, and so are the functions it calls that take the token.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}
