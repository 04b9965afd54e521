//! Kernels for x86-64.

pub(super) mod matmul;
mod matmul_blocks;
mod matmul_floats;
mod matmul_rows;
mod matmul_tiles;
