//! How fast a file is read past the page cache, with several reads under way.

use expert_pool::open_direct;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long is read.
const TIME: Duration = Duration::from_millis(250);
/// Reads under way at once.
const N_READERS: usize = 8;
/// Bytes of a read: about what a part of an expert is read in.
const CHUNK_BYTES: u64 = 1 << 20;
/// Direct reads go to memory of this alignment, which is enough for every disk.
const ALIGNMENT: usize = 4096;
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

/// How fast `path` is read from its disk.
///
/// # Errors
/// Where it can't be read.
pub fn file_rate(path: &Path) -> io::Result<FileRate> {
    match open_direct(path).and_then(|file| rate(&file)) {
        Ok(bytes_per_second) => Ok(FileRate { bytes_per_second, is_direct: true }),
        Err(_) => Ok(FileRate { bytes_per_second: rate(&File::open(path)?)?, is_direct: false }),
    }
}

/// Bytes a second that several threads read from places all over the file.
fn rate(file: &File) -> io::Result<f64> {
    let n_chunks = file.metadata()?.len() / CHUNK_BYTES;
    let next = AtomicU64::new(0);
    let start = Instant::now();
    let read_some = || -> io::Result<u64> {
        let mut memory = vec![0; CHUNK_BYTES as usize + ALIGNMENT];
        let skip = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        let chunk = &mut memory[skip..skip + CHUNK_BYTES as usize];
        let mut n_bytes = 0;
        while start.elapsed() < TIME {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let offset = index.wrapping_mul(STRIDE) % n_chunks.max(1) * CHUNK_BYTES;
            match read_at(file, chunk, offset)? {
                0 => break,
                n => n_bytes += n as u64,
            }
        }
        Ok(n_bytes)
    };
    let n_bytes = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..N_READERS).map(|_| scope.spawn(read_some)).collect();
        readers.into_iter().map(|reader| reader.join().expect("no panic")).sum::<io::Result<u64>>()
    })?;
    Ok(n_bytes as f64 / start.elapsed().as_secs_f64().max(1e-9))
}

#[cfg(unix)]
fn read_at(file: &File, chunk: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, chunk, offset)
}

#[cfg(windows)]
fn read_at(file: &File, chunk: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, chunk, offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_a_rate_however_small_it_is() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        std::fs::write(&path, vec![1; 3 << 20]).expect("written");
        assert!(file_rate(&path).expect("read").bytes_per_second > 1e5);
        std::fs::write(&path, [1, 2, 3]).expect("written");
        assert!(file_rate(&path).expect("read").bytes_per_second > 0.0);
        assert!(file_rate(&directory.path().join("no file")).is_err());
    }
}
