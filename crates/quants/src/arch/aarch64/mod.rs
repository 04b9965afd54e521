//! Tokens for the instruction sets of AArch64.

pub(super) mod attention;
pub(super) mod matmul;
mod neon;

pub(crate) use neon::Neon;
