//! Kernels for instruction sets, and the choice among them.
#![allow(unsafe_code, reason = "instruction sets are reached through unsafe functions")]

pub(crate) mod matmul;
#[cfg(target_arch = "x86_64")]
mod x86_64;
