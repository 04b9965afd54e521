//! Rows of activations as the kernels read them.
//!
//! A row is quantized once and then multiplied with as many weight rows as there are. Its parts lie one behind the
//! other, little-endian, so that quants stay aligned as the buffer is:
//!
//! | part   | 256 columns to a block ([`ActivationKind::Int8x256`]) | 32 ([`ActivationKind::Int8x32`]) |
//! |--------|--------------------------------------------------------|----------------------------------|
//! | quants | i8 for each column, -127..=127 | the same |
//! | scales | f32 for each block: a column is scale * quant | the same |
//! | sums   | 24 i16 for each block: the sums of 16 quants each, first of the 8 even sub-blocks, then of the odd ones; then those of 32 quants each | i16 for each block: the sum of its quants; an even number of them |
//!
//! [`ActivationKind::F32`] keeps the numbers as they are, four bytes each. The rest of a row is zeros, up to an odd
//! number of cache lines: so rows far apart don't compete for the same lines of the cache.
//!
//! A block's scale is its largest magnitude / 127, and quants are rounded to nearest, ties to even: the error of a
//! column is at most scale / 2, as it is in ggml's `Q8_K` and `Q8_0` (there the scale of 32 is also rounded to F16).

use crate::TensorType;

/// Columns that share a scale in [`ActivationKind::Int8x256`].
pub(crate) const LONG: usize = 256;
/// Columns that share a scale in [`ActivationKind::Int8x32`].
pub(crate) const SHORT: usize = 32;
/// Sums that are kept of a block of 256 columns: 16 of 16 columns and 8 of 32.
pub(crate) const LONG_SUMS: usize = 16 + 8;
/// Which of these is the sum of the 16 columns of sub-block `s`.
pub(super) const fn long_sum_at(s: usize) -> usize {
    s % 2 * 8 + s / 2
}
const CACHE_LINE: usize = 64;
/// Magnitudes up to here become zeros: the reciprocal of their scale would be infinite.
const NEGLIGIBLE: f32 = 1e-36;

/// How activations are stored for a multiplication.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActivationKind {
    /// 8 bits, one scale for 256 columns: for weights in super-blocks of 256.
    Int8x256,
    /// 8 bits, one scale for 32 columns: for weights in blocks of 32.
    Int8x32,
    /// Single precision: for weights that are floats.
    F32,
}

/// Where the parts of a row lie, in bytes from its start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) scales: usize,
    pub(crate) sums: usize,
    pub(crate) row_bytes: usize,
}

impl ActivationKind {
    /// Columns that a row must be a multiple of.
    pub const fn block_len(self) -> usize {
        match self {
            Self::Int8x256 => LONG,
            Self::Int8x32 => SHORT,
            Self::F32 => 1,
        }
    }

    /// Bytes that a row of `n_cols` activations takes; a multiple of 64.
    pub const fn row_bytes(self, n_cols: usize) -> usize {
        self.layout(n_cols).row_bytes
    }

    pub(crate) const fn layout(self, n_cols: usize) -> Layout {
        let n_blocks = n_cols / self.block_len();
        let (quants, scales, sums) = match self {
            Self::Int8x256 => (n_cols, n_blocks * 4, n_blocks * LONG_SUMS * 2),
            Self::Int8x32 => (n_cols, n_blocks * 4, n_blocks.next_multiple_of(2) * 2),
            Self::F32 => (n_cols * 4, 0, 0),
        };
        let n_lines = (quants + scales + sums).div_ceil(CACHE_LINE) | 1;
        Layout { scales: quants, sums: quants + scales, row_bytes: n_lines * CACHE_LINE }
    }

    /// Writes the row to `out`, all of it. A block with infinities or NaN in it makes NaN of every product.
    ///
    /// # Panics
    ///
    /// Where `row` is not whole blocks, or `out` not exactly [`row_bytes`](Self::row_bytes) long.
    pub fn quantize(self, row: &[f32], out: &mut [u8]) {
        assert!(row.len().is_multiple_of(self.block_len()), "{} columns", row.len());
        assert_eq!(out.len(), self.row_bytes(row.len()), "bytes of a row of {} activations", row.len());
        crate::arch::matmul::quantize_activations(self, row, out);
    }
}

/// The kind of activations that weights of this type are multiplied with; `None` for types without a kernel.
pub(super) fn kind_for(ty: TensorType) -> Option<ActivationKind> {
    Some(match ty {
        TensorType::Q2_K
        | TensorType::Q3_K
        | TensorType::Q4_K
        | TensorType::Q5_K
        | TensorType::Q6_K
        | TensorType::IQ4_XS => ActivationKind::Int8x256,
        TensorType::Q8_0
        | TensorType::Q4_0
        | TensorType::Q4_1
        | TensorType::Q5_0
        | TensorType::Q5_1
        | TensorType::IQ4_NL => ActivationKind::Int8x32,
        TensorType::F16 | TensorType::BF16 | TensorType::F32 => ActivationKind::F32,
        _ => return None,
    })
}

/// [`ActivationKind::quantize`], to be compiled for several instruction sets: the compiler makes vectors of it.
#[inline(always)]
pub(crate) fn quantize(kind: ActivationKind, row: &[f32], out: &mut [u8]) {
    let layout = kind.layout(row.len());
    let (quants, rest) = out.split_at_mut(layout.scales);
    let (scales, rest) = rest.split_at_mut(layout.sums - layout.scales);
    match kind {
        ActivationKind::Int8x256 => {
            let blocks = row.as_chunks::<LONG>().0.iter().zip(quants.as_chunks_mut::<LONG>().0);
            let (sums, padding) = rest.split_at_mut(row.len() / LONG * LONG_SUMS * 2);
            let parts = scales.as_chunks_mut().0.iter_mut().zip(sums.as_chunks_mut::<{ LONG_SUMS * 2 }>().0);
            for ((columns, quants), (scale, sums)) in blocks.zip(parts) {
                *scale = quantize_block(columns, quants).to_le_bytes();
                for (s, quants) in quants.as_chunks::<16>().0.iter().enumerate() {
                    store_sum(quants, sums, long_sum_at(s));
                }
                for (s, quants) in quants.as_chunks::<32>().0.iter().enumerate() {
                    store_sum(quants, sums, 16 + s);
                }
            }
            padding.fill(0);
        }
        ActivationKind::Int8x32 => {
            let blocks = row.as_chunks::<SHORT>().0.iter().zip(quants.as_chunks_mut::<SHORT>().0);
            let (sums, padding) = rest.split_at_mut(row.len() / SHORT * 2);
            let parts = scales.as_chunks_mut().0.iter_mut().zip(sums.as_chunks_mut::<2>().0);
            for ((columns, quants), (scale, sum)) in blocks.zip(parts) {
                *scale = quantize_block(columns, quants).to_le_bytes();
                store_sum(quants, sum, 0);
            }
            padding.fill(0);
        }
        ActivationKind::F32 => {
            for (bytes, value) in quants.as_chunks_mut().0.iter_mut().zip(row) {
                *bytes = value.to_le_bytes();
            }
            rest.fill(0);
        }
    }
}

/// Rounds the columns of a block to quants; the result is their scale, NaN where a column is not finite.
#[inline(always)]
fn quantize_block<const LEN: usize>(columns: &[f32; LEN], quants: &mut [u8; LEN]) -> f32 {
    // Bits without the sign order magnitudes, infinity and NaN above the rest.
    let largest = columns.iter().fold(0, |largest: u32, column| largest.max(column.to_bits() & 0x7FFF_FFFF));
    let largest = f32::from_bits(largest);
    if !largest.is_finite() || largest < NEGLIGIBLE {
        quants.fill(0);
        return if largest.is_finite() { 0.0 } else { f32::NAN };
    }
    let inverse = 127.0 / largest;
    for (quant, column) in quants.iter_mut().zip(columns) {
        // The sum with 1.5 * 2^23 leaves the nearest integer in the low bits, ties to even.
        *quant = (column * inverse + 12_582_912.0).to_bits() as u8;
    }
    largest / 127.0
}

#[inline(always)]
fn store_sum(quants: &[u8], sums: &mut [u8], at: usize) {
    let sum: i16 = quants.iter().map(|&quant| i16::from(quant as i8)).sum();
    sums[2 * at..][..2].copy_from_slice(&sum.to_le_bytes());
}
