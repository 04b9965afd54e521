//! How fast a file is read past the page cache, as experts are.
//!
//! That depends on the memory too: a read into small pages is one piece for each, and virtual machines' disks were seen to give
//! half as much then, differently from one second to the next. So this reads into large pages, as the pool of experts does.
//! Short samples are taken between other measurements, and their median counts.

use expert_pool::{N_READERS, ReadAt, open_direct};
use gguf::Gguf;
use memmap2::MmapMut;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long is read for a sample.
const TIME: Duration = Duration::from_millis(120);
/// Bytes of a read: about what a part of an expert is read in.
const CHUNK_BYTES: u64 = 1 << 20;
/// Each reader has a large page of its own.
const LARGE_PAGE: usize = 2 << 20;
/// Neighbouring reads lie this many chunks apart, so that they don't ride on one another.
const STRIDE: u64 = 61;

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FileRate {
    /// Read in a second.
    pub bytes_per_second: f64,
    /// Whether the page cache was left out. Some file systems can't, and then the figure may be the memory's.
    pub is_direct: bool,
}

/// Samples of how fast a file is read.
#[derive(Debug)]
pub struct FileMeter {
    file: File,
    /// What is read to.
    memory: MmapMut,
    is_direct: bool,
    /// Number of the next chunk.
    next: AtomicU64,
    /// Bytes per second.
    samples: Vec<f64>,
}

impl FileMeter {
    /// A meter for the file at `path`, with a first sample.
    ///
    /// # Errors
    /// Where it can't be read.
    pub fn new(path: &Path) -> io::Result<FileMeter> {
        let meter = |file, is_direct| -> io::Result<FileMeter> {
            let (memory, next) = (large_pages()?, AtomicU64::new(0));
            Ok(FileMeter { file, memory, is_direct, next, samples: Vec::new() })
        };
        if let Ok(file) = open_direct(path) {
            let mut direct = meter(file, true)?;
            // Some file systems open files so, and then can't read them.
            if direct.sample().is_ok() {
                return Ok(direct);
            }
        }
        let mut buffered = meter(File::open(path)?, false)?;
        buffered.sample()?;
        Ok(buffered)
    }

    /// A meter for the file of a model; for the part of a split one that has most.
    ///
    /// # Errors
    /// Where it can't be read.
    pub fn of_model(gguf: &Gguf) -> io::Result<FileMeter> {
        let largest = (0..gguf.parts().len()).max_by_key(|part| gguf.mapping(*part).len()).unwrap_or(0);
        FileMeter::new(&gguf.parts()[largest])
    }

    /// Forgets all samples but the last `n`.
    pub fn keep_last(&mut self, n: usize) {
        self.samples.drain(..self.samples.len().saturating_sub(n));
    }

    /// Takes one more sample: bytes that several threads read from places all over the file.
    ///
    /// # Errors
    /// Where it can't be read.
    pub fn sample(&mut self) -> io::Result<()> {
        let n_chunks = self.file.metadata()?.len() / CHUNK_BYTES;
        let FileMeter { file, memory, next, .. } = self;
        let skip = memory.as_ptr().align_offset(LARGE_PAGE).min(LARGE_PAGE);
        let pages = memory[skip..].chunks_exact_mut(LARGE_PAGE);
        let start = Instant::now();
        let read_some = |page: &mut [u8]| -> io::Result<u64> {
            let chunk = &mut page[..CHUNK_BYTES as usize];
            let mut n_bytes = 0;
            while start.elapsed() < TIME {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let offset = index.wrapping_mul(STRIDE) % n_chunks.max(1) * CHUNK_BYTES;
                match file.read_at(chunk, offset)? {
                    0 => break,
                    n => n_bytes += n as u64,
                }
            }
            Ok(n_bytes)
        };
        let n_bytes = std::thread::scope(|scope| {
            let read_some = &read_some;
            let readers: Vec<_> =
                pages.take(N_READERS).map(|page| scope.spawn(move || read_some(page))).collect();
            readers.into_iter().map(|reader| reader.join().expect("no panic")).sum::<io::Result<u64>>()
        })?;
        self.samples.push(n_bytes as f64 / start.elapsed().as_secs_f64().max(1e-9));
        Ok(())
    }

    /// The median of the samples.
    pub fn rate(&self) -> FileRate {
        FileRate { bytes_per_second: median(&self.samples), is_direct: self.is_direct }
    }
}

/// Memory with a large page for each reader, where the system has such; it is there, and need not be cleared any more.
fn large_pages() -> io::Result<MmapMut> {
    let mut memory = MmapMut::map_anon((N_READERS + 1) * LARGE_PAGE)?;
    // Advice only.
    #[cfg(target_os = "linux")]
    let _ = memory.advise(memmap2::Advice::HugePage);
    memory.fill(1);
    Ok(memory)
}

/// The middle one, or the mean of the two in the middle; 0 of none.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = |index: usize| sorted.get(index).copied().unwrap_or(0.0);
    (middle(sorted.len() / 2) + middle(sorted.len().saturating_sub(1) / 2)) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_a_rate_however_small_it_is() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        std::fs::write(&path, vec![1; 3 << 20]).expect("written");
        let mut meter = FileMeter::new(&path).expect("read");
        meter.sample().expect("read again");
        assert!(meter.samples.len() == 2 && meter.rate().bytes_per_second > 1e5, "{meter:?}");
        meter.keep_last(1);
        assert_eq!(meter.rate().bytes_per_second, meter.samples[0]);
        std::fs::write(&path, [1, 2, 3]).expect("written");
        assert!(FileMeter::new(&path).expect("read").rate().bytes_per_second > 0.0);
        assert!(FileMeter::new(&directory.path().join("no file")).is_err());
    }

    #[test]
    fn one_sample_that_is_far_off_changes_little() {
        assert_eq!(median(&[2.0, 9.0, 1.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), 3.0);
        assert_eq!((median(&[5.0]), median(&[])), (5.0, 0.0));
    }
}
