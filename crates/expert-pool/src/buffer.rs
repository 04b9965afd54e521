//! Memory for tiles: anonymous, aligned to pages, and used again.

use memmap2::MmapMut;
use std::io;

/// Files are read from multiples of this into memory aligned to it, as reading past the page cache demands.
pub(crate) const PAGE: usize = 4096;

/// A tile's bytes, somewhere inside of the pages that hold them.
#[derive(Debug)]
pub(crate) struct Bytes {
    pub memory: MmapMut,
    pub skip: usize,
    pub len: usize,
}

impl Bytes {
    pub fn get(&self) -> &[u8] {
        &self.memory[self.skip..self.skip + self.len]
    }
}

/// `size_bytes` of memory that nothing else uses.
pub(crate) fn allocate(size_bytes: usize) -> io::Result<MmapMut> {
    MmapMut::map_anon(size_bytes)
}
