//! Which kernel multiplies.

#[cfg(target_arch = "aarch64")]
use super::aarch64::matmul as aarch64;
#[cfg(target_arch = "x86_64")]
use super::x86::matmul as x86;
use crate::TensorType;
use crate::matmul::{ActivationKind, Shape, multiply_scalar};
use std::sync::OnceLock;

/// What [`Level::current`] is.
static CURRENT: OnceLock<Level> = OnceLock::new();

/// An instruction set with kernels of its own. All levels give the same bits.
///
/// They are not [`crate::Level`]'s: products gain by instructions that nothing else gains by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Level(Isa);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Isa {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    X86(x86::Isa),
    #[cfg(target_arch = "aarch64")]
    AArch64(aarch64::Isa),
}

impl Level {
    /// The reference, which runs everywhere.
    pub const SCALAR: Self = Self(Isa::Scalar);

    /// The best level that this processor has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(isa) = x86::Isa::supported().next_back() {
            return Self(Isa::X86(isa));
        }
        #[cfg(target_arch = "aarch64")]
        if let Some(isa) = aarch64::Isa::supported().next_back() {
            return Self(Isa::AArch64(isa));
        }
        Self::SCALAR
    }

    /// The level of all kernels that are not told another: the best, unless another was [chosen](Level::choose).
    pub fn current() -> Self {
        *CURRENT.get_or_init(Self::detect)
    }

    /// Makes this the [current](Level::current) level of the process, unless one has been asked for before; the result is
    /// the current one.
    pub fn choose(self) -> Self {
        *CURRENT.get_or_init(|| self)
    }

    /// Every level that this processor has, the scalar one first.
    pub fn all_supported() -> Vec<Self> {
        let mut levels = vec![Self::SCALAR];
        #[cfg(target_arch = "x86_64")]
        levels.extend(x86::Isa::supported().map(|isa| Self(Isa::X86(isa))));
        #[cfg(target_arch = "aarch64")]
        levels.extend(aarch64::Isa::supported().map(|isa| Self(Isa::AArch64(isa))));
        levels
    }

    /// The instruction set of x86-64 that the level stands for.
    #[cfg(target_arch = "x86_64")]
    pub(super) const fn x86(self) -> Option<x86::Isa> {
        match self.0 {
            Isa::Scalar => None,
            Isa::X86(isa) => Some(isa),
        }
    }

    /// The level's name in lower case, for reports: `scalar`, `avx2`, `avx-vnni`, `avx512-vnni`,
    /// `amx`, `neon`, `neon-dotprod`, `neon-i8mm`.
    pub const fn name(self) -> &'static str {
        match self.0 {
            Isa::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Isa::X86(isa) => isa.name(),
            #[cfg(target_arch = "aarch64")]
            Isa::AArch64(isa) => isa.name(),
        }
    }
}

/// Stores a row of activations. All levels give the same bytes.
pub(crate) fn quantize_activations(kind: ActivationKind, row: &[f32], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if Level::current() != Level::SCALAR {
        // SAFETY: the processor has AVX2, as every level but the scalar one needs.
        return unsafe { x86::quantize_activations(kind, row, out) };
    }
    crate::matmul::quantize_activations(kind, row, out);
}

/// [`crate::matmul::multiply`] with sizes that have been checked.
pub(crate) fn multiply_checked(
    level: Level,
    ty: TensorType,
    weights: &[u8],
    activations: &[u8],
    shape: &Shape,
    out: &mut [f32],
) {
    // SAFETY: the results' length has been checked, and the slice is borrowed for nobody else.
    unsafe { run(level, ty, weights, activations, shape, out.as_mut_ptr()) }
}

/// # Safety
///
/// `out.add(a * shape.out_stride + w)` must be valid for writes, aligned, and neither read nor written by anyone else
/// meanwhile, for each row w of `weights` and a of `activations`.
unsafe fn run(
    level: Level,
    ty: TensorType,
    weights: &[u8],
    activations: &[u8],
    shape: &Shape,
    out: *mut f32,
) {
    if shape.n_rows == 0 || shape.n_acts == 0 {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if let Isa::X86(isa) = level.0 {
        // SAFETY: as promised by the caller; a level exists only where the processor has it.
        let done = unsafe { x86::multiply(isa, ty, weights.as_ptr(), activations.as_ptr(), shape, out) };
        if done {
            return;
        }
    }
    #[cfg(target_arch = "aarch64")]
    if let Isa::AArch64(isa) = level.0 {
        // SAFETY: as promised by the caller; a level exists only where the processor has it.
        let done = unsafe { aarch64::multiply(isa, ty, weights.as_ptr(), activations.as_ptr(), shape, out) };
        if done {
            return;
        }
    }
    multiply_scalar(ty, weights, activations, shape, |a, w, dot| {
        // SAFETY: rows within the shape, for which the caller vouches.
        unsafe { out.add(a * shape.out_stride + w).write(dot) };
    });
}
