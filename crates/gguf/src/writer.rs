//! Writes a new file so that it appears under its name only when it is complete.
//!
//! The bytes go into a hidden file beside the target. [`Writer::finish`] makes them durable in this order: write, fsync
//! of the file, rename, fsync of the directory. So whatever happens, the target is the old file or the new one.

use crate::coverage::Coverage;
use crate::error::kind_of;
use crate::{Error, Layout};
use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};

/// What to do when the target is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    /// Refuse.
    Refuse,
    /// Replace it, once the new file is complete.
    Replace,
}

/// Temporary files of this process that are not finished yet, also as C strings: a signal handler can't make those.
static PARTIAL_FILES: Mutex<Vec<(PathBuf, CString)>> = Mutex::new(Vec::new());

fn partial_files() -> MutexGuard<'static, Vec<(PathBuf, CString)>> {
    PARTIAL_FILES.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Removes every temporary file of this process; for the handler of an interrupt, just before the process ends.
/// Writers that are still at work fail when they finish.
pub fn discard_partial_files() {
    for (path, _) in partial_files().drain(..) {
        // There is nobody left to tell; the name says that the file is partial.
        let _ = fs::remove_file(path);
    }
}

/// Calls `f` with each temporary file. Neither waits nor allocates, so that a signal handler may call it.
#[cfg(unix)]
pub(crate) fn for_each_partial_file(f: impl Fn(&CStr)) {
    let files = match PARTIAL_FILES.try_lock() {
        Ok(files) => files,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return,
    };
    files.iter().for_each(|(_, path)| f(path));
}

/// A file being written.
///
/// Dropped without [`finish`](Self::finish), it leaves nothing behind.
#[derive(Debug)]
pub struct Writer {
    target: PathBuf,
    temporary: PathBuf,
    file: File,
    layout: Layout,
    /// Which bytes of each tensor are there.
    written: Vec<Mutex<Coverage>>,
    overwrite: Overwrite,
}

impl Writer {
    /// Starts writing a file of the given layout that will be called `target`.
    ///
    /// # Errors
    /// [`Error::Exists`] or [`Error::NotAFile`] when there is something at `target` that is not to be replaced (a
    /// symbolic link never is), [`Error::Io`] when the temporary file can't be made beside it.
    pub fn create(target: &Path, layout: Layout, overwrite: Overwrite) -> Result<Writer, Error> {
        check_target(target, overwrite)?;
        let (temporary, file) = create_temporary(target)?;
        let written = (0..layout.n_tensors()).map(|_| Mutex::default()).collect();
        let writer = Writer { target: target.to_path_buf(), temporary, file, layout, written, overwrite };
        writer.put(writer.layout.header(), 0)?;
        Ok(writer)
    }

    /// Writes bytes of a tensor at an offset within it; any order, from any thread. Bytes written twice are those of
    /// the later call.
    ///
    /// # Errors
    /// [`Error::Io`], as when the disk is full.
    ///
    /// # Panics
    /// When the bytes leave the tensor, or there is no such tensor.
    pub fn write_at(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let range = self.layout.tensor_range(tensor);
        let size = range.end - range.start;
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= size);
        let Some(end) = end else {
            let name = self.layout.tensor_name(tensor);
            panic!("{} bytes at {offset} leave tensor {name} of {size} bytes", bytes.len());
        };
        self.put(bytes, range.start + offset)?;
        let mut written = self.written[tensor].lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        written.add(offset..end);
        Ok(())
    }

    fn put(&self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        write_all_at(&self.file, bytes, offset).map_err(Error::io(&self.target, "write"))
    }

    /// The file as it will be.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Completes the file and gives it its name; returns its size in bytes.
    ///
    /// # Errors
    /// [`Error::Incomplete`] when bytes are missing, [`Error::Io`] when they can't be made durable, [`Error::Exists`]
    /// when somebody else made the target meanwhile. The temporary file is then removed.
    pub fn finish(self) -> Result<u64, Error> {
        for (index, written) in self.written.iter().enumerate() {
            let range = self.layout.tensor_range(index);
            let size = range.end - range.start;
            let written = written.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).total();
            if written != size {
                let name = self.layout.tensor_name(index).to_owned();
                return Err(Error::Incomplete { path: self.target.clone(), name, written, size });
            }
        }
        let total = self.layout.total_size();
        self.file.set_len(total).map_err(Error::io(&self.target, "set the size of"))?;
        self.file.sync_all().map_err(Error::io(&self.target, "make durable"))?;
        give_name(&self.temporary, &self.target, self.overwrite)?;
        sync_directory(directory_of(&self.target))?;
        Ok(total)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        discard(&self.temporary);
    }
}

/// Forgets a temporary file and removes it, if it has not got its name yet.
pub(crate) fn discard(temporary: &Path) {
    partial_files().retain(|(path, _)| path != temporary);
    // Gone already after a rename; otherwise there is nobody to tell.
    let _ = fs::remove_file(temporary);
}

/// Gives a complete temporary file its name.
pub(crate) fn give_name(temporary: &Path, target: &Path, overwrite: Overwrite) -> Result<(), Error> {
    match overwrite {
        Overwrite::Replace => rename(temporary, target, overwrite),
        Overwrite::Refuse => name_anew(temporary, target),
    }
}

fn rename(temporary: &Path, target: &Path, overwrite: Overwrite) -> Result<(), Error> {
    check_target(target, overwrite)?;
    fs::rename(temporary, target).map_err(Error::io(target, "rename the finished file to"))
}

/// Gives the file its name only if nobody has taken it: a hard link fails where a rename would replace.
fn name_anew(temporary: &Path, target: &Path) -> Result<(), Error> {
    match fs::hard_link(temporary, target) {
        Ok(()) => fs::remove_file(temporary).map_err(Error::io(temporary, "remove the temporary name")),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(Error::Exists { path: target.to_path_buf() })
        }
        // A file system without hard links.
        Err(_) => rename(temporary, target, Overwrite::Refuse),
    }
}

pub(crate) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

pub(crate) fn sync_directory(directory: &Path) -> Result<(), Error> {
    // Other systems neither need this nor open directories as files.
    if cfg!(unix) {
        let synced = File::open(directory).and_then(|opened| opened.sync_all());
        synced.map_err(Error::io(directory, "make durable"))?;
    }
    Ok(())
}

pub(crate) fn check_target(target: &Path, overwrite: Overwrite) -> Result<(), Error> {
    let not_a_file = |found| Error::NotAFile { path: target.to_path_buf(), found };
    if target.as_os_str().as_encoded_bytes().last().is_none_or(|last| std::path::is_separator(*last as char))
    {
        return Err(not_a_file("the name of a directory"));
    }
    match fs::symlink_metadata(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io(target, "look at")(error)),
        Ok(metadata) => match kind_of(&metadata) {
            Some(found) => Err(not_a_file(found)),
            None if overwrite == Overwrite::Refuse => Err(Error::Exists { path: target.to_path_buf() }),
            None => Ok(()),
        },
    }
}

/// Bytes of the target's name that the temporary name repeats; file systems allow 255, and a suffix comes to them.
const MAX_STEM: usize = 200;

/// A new hidden file beside `target`, whose name says that it is partial and whose it is.
pub(crate) fn create_temporary(target: &Path) -> Result<(PathBuf, File), Error> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let stem_end = (0..=name.len().min(MAX_STEM)).rfind(|end| name.is_char_boundary(*end)).unwrap_or(0);
    let stem = &name[..stem_end];
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let temporary = directory_of(target).join(format!(".{stem}.{}-{number}.partial", std::process::id()));
    let c_path = CString::new(temporary.as_os_str().as_encoded_bytes()).unwrap_or_default();
    // Held until the file is registered, so that an interrupt between the two can't leave it behind.
    let mut registered = partial_files();
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&temporary)
        .map_err(Error::io(target, "create a temporary file beside it"))?;
    registered.push((temporary.clone(), c_path));
    Ok((temporary, file))
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_write(file, bytes, offset)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => {
                bytes = &bytes[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}
