//! Files read by position and past the page cache, where the system can.

use crate::Error;
use crate::buffer::{self, PAGE};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Something that is read by position.
pub trait ReadAt: Send + Sync {
    /// Fills the beginning of `buffer` with what lies at `offset`, and says how many bytes that were; 0 at the end.
    /// `buffer` is aligned to pages, and `offset` and its length are multiples of a page.
    ///
    /// # Errors
    /// As the system has it.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// The file behind it, where reading that gives the same and leaves the system's cache alone; asked before every read.
    /// Others may then read from it by position, at any time.
    fn file(&self) -> Option<&File> {
        None
    }
}

/// As the system reads it, through its cache or not.
impl ReadAt for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        #[cfg(unix)]
        let done = std::os::unix::fs::FileExt::read_at(self, buffer, offset);
        #[cfg(windows)]
        let done = std::os::windows::fs::FileExt::seek_read(self, buffer, offset);
        done
    }
}

/// The files of a model, and how they are read.
pub struct Files {
    pub(crate) files: Vec<(PathBuf, Box<dyn ReadAt>)>,
}

impl Files {
    /// Opens files for direct reading. Where the file system refuses that, they are read through the page cache, and what
    /// was read is dropped from it.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn open(paths: &[PathBuf]) -> Result<Files, Error> {
        let open = |path: &PathBuf| {
            let file = ModelFile::open(path);
            let file = file.map_err(|source| Error::Open { path: path.clone(), source })?;
            Ok((path.clone(), Box::new(file) as Box<dyn ReadAt>))
        };
        Ok(Files { files: paths.iter().map(open).collect::<Result<_, Error>>()? })
    }

    /// Other sources under these names.
    pub fn new(files: Vec<(PathBuf, Box<dyn ReadAt>)>) -> Files {
        Files { files }
    }

    /// Whether all are files that others may read from, as [`ReadAt::file`] has it.
    pub(crate) fn are_plain(&self) -> bool {
        self.files.iter().all(|(_, source)| source.file().is_some())
    }

    /// As [`ReadAt::file`].
    pub(crate) fn file(&self, file: usize) -> Option<&File> {
        self.files[file].1.file()
    }

    /// Fills `memory` with the rest of a window. `what` names the tensor in errors.
    pub(crate) fn read(&self, window: &mut Window, memory: &mut [u8], what: &str) -> Result<(), Error> {
        while let Some(from) = window.next() {
            let offset = window.start + from as u64;
            let result = self.files[window.file].1.read_at(&mut memory[from..window.len()], offset);
            window.note(self, what, result)?;
        }
        Ok(())
    }

    /// Lends the bytes of a tensor to `use_bytes` in pieces of some MiB, each with its offset in the tensor.
    ///
    /// # Errors
    /// [`Error::Read`] and [`Error::Truncated`] with the tensor's name; [`Error::Memory`].
    pub fn read_tensor(
        &self,
        file: usize,
        offset: u64,
        size_bytes: u64,
        name: &str,
        use_bytes: &mut dyn FnMut(usize, &[u8]),
    ) -> Result<(), Error> {
        const PIECE: usize = 8 << 20;
        let page = PAGE as u64;
        let memory_bytes = PIECE.min(size_bytes as usize).next_multiple_of(page as usize) + page as usize;
        let mut memory = buffer::allocate(memory_bytes)
            .map_err(|source| Error::Memory { size_bytes: memory_bytes, source })?;
        let mut done = 0u64;
        while done < size_bytes {
            let n = (size_bytes - done).min(PIECE as u64) as usize;
            let start = (offset + done) / page * page;
            let skip = (offset + done - start) as usize;
            self.read(&mut Window::new(file, start, skip + n), &mut memory, name)?;
            use_bytes(done as usize, &memory[skip..skip + n]);
            done += n as u64;
        }
        Ok(())
    }
}

/// Whole pages of a file on their way into memory, by as many reads as the system makes of it.
#[derive(Debug)]
pub(crate) struct Window {
    /// Index of the file.
    pub file: usize,
    /// Where it begins there, in bytes: at a page.
    pub start: u64,
    /// Bytes that must arrive; the rest of the last page may lie behind the end of the file.
    needed: usize,
    /// Bytes that have arrived.
    done: usize,
}

impl Window {
    pub fn new(file: usize, start: u64, needed: usize) -> Window {
        Window { file, start, needed, done: 0 }
    }

    /// Bytes of its pages.
    pub fn len(&self) -> usize {
        self.needed.next_multiple_of(PAGE)
    }

    /// Where in the window the next read begins: at a page again, as direct reading demands. None when all is there.
    pub fn next(&self) -> Option<usize> {
        (self.done < self.needed).then_some(self.done / PAGE * PAGE)
    }

    /// Takes note of what the read that began at [`next`](Self::next) gave; one that was interrupted is to be repeated.
    /// `what` names the tensor in errors.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Truncated`].
    pub fn note(&mut self, files: &Files, what: &str, result: io::Result<usize>) -> Result<(), Error> {
        let from = self.done / PAGE * PAGE;
        let path = || files.files[self.file].0.clone();
        match result {
            Ok(n) if from + n > self.done => self.done = from + n,
            Ok(_) => {
                return Err(Error::Truncated {
                    path: path(),
                    tensor: what.to_owned(),
                    offset: self.start,
                    n_bytes: self.needed,
                    end: self.start + self.done as u64,
                });
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => {
                return Err(Error::Read {
                    path: path(),
                    tensor: what.to_owned(),
                    offset: self.start + from as u64,
                    n_bytes: self.needed - from,
                    source,
                });
            }
        }
        Ok(())
    }
}

struct ModelFile {
    /// None where the file system refuses.
    direct: Option<File>,
    buffered: File,
    /// Direct reading was tried and refused.
    refused: AtomicBool,
}

impl ModelFile {
    fn open(path: &Path) -> io::Result<ModelFile> {
        let buffered = File::open(path)?;
        let file = ModelFile { direct: open_direct(path).ok(), buffered, refused: AtomicBool::new(false) };
        // Finds out whether direct reading is refused. Other errors come back when the bytes are wanted.
        let _ = file.read_at(&mut buffer::allocate(PAGE)?, 0);
        Ok(file)
    }
}

impl ReadAt for ModelFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if let Some(direct) = self.file() {
            match direct.read_at(buffer, offset) {
                // What a file system says that opens files for direct reading and then can't.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.refused.store(true, Ordering::Relaxed);
                }
                done => return done,
            }
        }
        let n = self.buffered.read_at(buffer, offset)?;
        forget(&self.buffered, offset, n);
        Ok(n)
    }

    fn file(&self) -> Option<&File> {
        self.direct.as_ref().filter(|_| !self.refused.load(Ordering::Relaxed))
    }
}

/// A file whose reads leave the system's cache alone.
///
/// # Errors
/// As the system has it, and [`io::ErrorKind::Unsupported`] where it knows nothing of the kind.
fn open_direct(path: &Path) -> io::Result<File> {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::OpenOptionsExt;
        std::fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)
    }
    #[cfg(target_os = "macos")]
    {
        let file = File::open(path)?;
        rustix::fs::fcntl_nocache(&file, true)?;
        Ok(file)
    }
    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    {
        let _ = path;
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Asks the system to drop what was read from its cache. Advice only.
#[cfg(target_os = "linux")]
fn forget(file: &File, offset: u64, n_bytes: usize) {
    let len = std::num::NonZeroU64::new(n_bytes as u64);
    let _ = rustix::fs::fadvise(file, offset, len, rustix::fs::Advice::DontNeed);
}

#[cfg(not(target_os = "linux"))]
fn forget(_: &File, _: u64, _: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_of(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        std::fs::write(&path, bytes).expect("written");
        (dir, path)
    }

    #[test]
    fn bytes_arrive_wherever_they_lie() {
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(i) >> 3) as u8).collect();
        let (_dir, path) = file_of(&bytes);
        let files = Files::open(&[path]).expect("it is there");
        for (offset, size) in [(0usize, 100_000usize), (1, 99_999), (4095, 2), (4096, 4096), (99_999, 1)] {
            let mut found = Vec::new();
            let mut take = |at: usize, piece: &[u8]| {
                assert_eq!(at, found.len());
                found.extend_from_slice(piece);
            };
            files.read_tensor(0, offset as u64, size as u64, "t", &mut take).expect("read");
            assert!(found == bytes[offset..offset + size], "{size} at {offset}");
        }
    }

    #[test]
    fn a_file_that_ends_early_is_named_with_the_tensor() {
        let (_dir, path) = file_of(&[1; 5000]);
        let files = Files::open(std::slice::from_ref(&path)).expect("it is there");
        let error =
            files.read_tensor(0, 4000, 2000, "blk.0.x", &mut |_, _| ()).expect_err("1000 are missing");
        let text = error.to_string();
        assert!(matches!(error, Error::Truncated { end: 5000, .. }), "{error:?}");
        assert!(text.contains("blk.0.x") && text.contains(&path.display().to_string()), "{text}");
        assert!(matches!(Files::open(&[path.with_extension("no")]), Err(Error::Open { .. })));
    }

    struct Stutters;
    impl ReadAt for Stutters {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            static CALLS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
            if CALLS.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            assert!(offset.is_multiple_of(4096));
            let n = buffer.len().min(5000);
            buffer[..n].iter_mut().zip(offset..).for_each(|(byte, at)| *byte = at as u8);
            Ok(n)
        }
    }

    #[test]
    fn short_and_interrupted_reads_go_on() {
        let files = Files::new(vec![(PathBuf::from("x"), Box::new(Stutters))]);
        let mut seen = 0;
        let mut take = |_: usize, piece: &[u8]| {
            assert!(piece.iter().zip(7u64..).all(|(byte, at)| *byte == at as u8));
            seen = piece.len();
        };
        files.read_tensor(0, 7, 20_000, "t", &mut take).expect("read");
        assert_eq!(seen, 20_000);
    }
}
