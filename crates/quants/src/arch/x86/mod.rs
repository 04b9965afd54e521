//! Tokens for the instruction sets of x86-64.

/// A method that consists of one expression over intrinsics.
macro_rules! operations {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $out:ty = $body:expr;)*) => {
        $(#[inline(always)]
        #[allow(unused_unsafe, reason = "some of the expressions are safe")]
        fn $name(self, $($arg: $ty),*) -> $out {
            // SAFETY: the token proves that the processor has the instructions; the operands are values, or arrays as
            // long as the vector.
            unsafe { $body }
        })*
    };
}
pub(super) mod attention;
mod avx2;
#[cfg(avx512)]
#[allow(clippy::incompatible_msrv, reason = "compiled only where the compiler has it")]
mod avx512;
pub(super) mod matmul;

pub(crate) use avx2::Avx2;
#[cfg(avx512)]
pub(crate) use avx512::Avx512;
