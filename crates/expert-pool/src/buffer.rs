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

/// `size_bytes` of memory that nothing else uses, in large pages where the system has them: reading into those takes a
/// fraction of the processor's time, and was seen to be twice as fast. None of it is taken before it is written to.
pub(crate) fn allocate(size_bytes: usize) -> io::Result<MmapMut> {
    let memory = MmapMut::map_anon(size_bytes)?;
    // Advice only.
    #[cfg(target_os = "linux")]
    let _ = memory.advise(memmap2::Advice::HugePage);
    Ok(memory)
}

/// Memory for `n` tiles, `slot_bytes` each.
///
/// # Errors
/// As the system has it.
pub(crate) fn slots(n: usize, slot_bytes: usize) -> io::Result<Vec<MmapMut>> {
    // Systems map one below or above the other, so that a large page can lie across two.
    (0..n).map(|_| allocate(slot_bytes)).collect()
}
