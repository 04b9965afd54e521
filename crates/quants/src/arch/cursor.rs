//! A place in rows of activations, from which a kernel's step reads.

use crate::matmul::{LONG_SUMS, Shape};

/// Rows of activations, from a block on.
#[derive(Clone, Copy)]
pub(crate) struct Cursor<'a> {
    /// The first row.
    pub(crate) rows: *const u8,
    pub(crate) shape: &'a Shape,
    /// The first block.
    pub(crate) block: usize,
}

impl Cursor<'_> {
    /// # Safety
    ///
    /// Row `n` must be within the shape, as must be the bytes of it that are read.
    #[inline(always)]
    pub(crate) unsafe fn row(&self, n: usize) -> *const u8 {
        // SAFETY: as promised by the caller.
        unsafe { self.rows.add(n * self.shape.layout.row_bytes) }
    }

    /// The scale of row `n` in the block `b` blocks after the first.
    ///
    /// # Safety
    ///
    /// Both must be within the shape.
    #[inline(always)]
    pub(crate) unsafe fn scale(&self, n: usize, b: usize) -> f32 {
        // SAFETY: as promised by the caller.
        unsafe {
            let scales = self.row(n).add(self.shape.layout.scales).cast::<f32>();
            scales.add(self.block + b).read_unaligned()
        }
    }

    /// Where row `n` keeps the sums of a super-block's sub-blocks of 16 or 32 columns.
    ///
    /// # Safety
    ///
    /// The row must be within the shape.
    #[inline(always)]
    pub(crate) unsafe fn long_sums(&self, n: usize, sub_len: usize) -> *const i16 {
        // SAFETY: as promised by the caller.
        unsafe {
            let sums = self.row(n).add(self.shape.layout.sums).cast::<i16>().add(LONG_SUMS * self.block);
            if sub_len == 16 { sums } else { sums.add(16) }
        }
    }

    /// Where row `n` keeps the sums of the blocks of 32 columns, from the first on.
    ///
    /// # Safety
    ///
    /// The row must be within the shape.
    #[inline(always)]
    pub(crate) unsafe fn short_sums(&self, n: usize) -> *const i16 {
        // SAFETY: as promised by the caller.
        unsafe { self.row(n).add(self.shape.layout.sums).cast::<i16>().add(self.block) }
    }

    /// The sum of row `n`'s quants in the block `b` blocks after the first.
    ///
    /// # Safety
    ///
    /// Both must be within the shape.
    #[inline(always)]
    pub(crate) unsafe fn short_sum(&self, n: usize, b: usize) -> f32 {
        // SAFETY: as promised by the caller.
        f32::from(unsafe { self.short_sums(n).add(b).read_unaligned() })
    }
}
