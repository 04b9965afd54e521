//! Writes a new file, or one in several parts, so that it appears under its name only when it is complete.
//!
//! The bytes go into a hidden file beside the target, one for each part. [`Writer::finish`] makes them durable in this
//! order: write, fsync of every file, rename of every file, fsync of the directory. So whatever happens, the target is
//! the old file or the new one. Parts are renamed last to first: a first part that is there has all others beside it.
//!
//! A hidden file is called after this process and goes when the writer does, or it is called after the target alone, so
//! that another run can go on with it ([`Writer::create_resumable`], [`Writer::reopen`]).

use crate::coverage::Coverage;
use crate::error::kind_of;
use crate::position::{read_exact_at, write_all_at};
use crate::{Error, Layout, PartialFile};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// What to do when the target is there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overwrite {
    /// Refuse.
    #[default]
    Refuse,
    /// Replace it, once the new file is complete.
    Replace,
}

/// A file being written.
///
/// Dropped without [`finish`](Self::finish), it leaves nothing behind, unless it was told to.
#[derive(Debug)]
pub struct Writer {
    target: PathBuf,
    parts: Vec<Part>,
    layout: Layout,
    /// Which bytes of each tensor are there.
    written: Vec<Mutex<Coverage>>,
    overwrite: Overwrite,
}

/// A file on its way to its name.
#[derive(Debug)]
pub(crate) struct Part {
    /// The name it will have.
    pub(crate) target: PathBuf,
    partial: PartialFile,
    pub(crate) file: File,
}

/// What tells the hidden files of this process, and of others, apart.
fn unique() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    format!(".{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

impl Writer {
    /// Starts writing a file of the given layout that will be called `target`; parts add their numbers to that.
    ///
    /// # Errors
    /// [`Error::Exists`] or [`Error::NotAFile`] when there is something at `target` that is not to be replaced (a
    /// symbolic link never is), [`Error::Io`] when the temporary file can't be made beside it.
    pub fn create(target: &Path, layout: Layout, overwrite: Overwrite) -> Result<Writer, Error> {
        let how = OpenOptions::new().write(true).create_new(true).to_owned();
        Self::begin(target, layout, overwrite, &unique(), &how, false)
    }

    /// As [`create`](Self::create), with a hidden file whose name another run can tell from the target's; one that an
    /// earlier run left is emptied. With `stays` it is left behind when the writer is dropped before it is finished. The
    /// caller sees to it that no two processes do this at once.
    ///
    /// # Errors
    /// As [`create`](Self::create); [`Error::Io`] also when the disk has not room enough.
    pub fn create_resumable(
        target: &Path,
        layout: Layout,
        overwrite: Overwrite,
        stays: bool,
    ) -> Result<Writer, Error> {
        let how = OpenOptions::new().write(true).create(true).truncate(true).to_owned();
        Self::begin(target, layout, overwrite, "", &how, stays)
    }

    fn begin(
        target: &Path,
        layout: Layout,
        overwrite: Overwrite,
        distinction: &str,
        how: &OpenOptions,
        stays: bool,
    ) -> Result<Writer, Error> {
        let names = layout.file_names(target);
        names.iter().try_for_each(|name| check_target(name, overwrite))?;
        let mut parts = Vec::new();
        for (index, target) in names.into_iter().enumerate() {
            let part = Part::open(target, distinction, how, stays)?;
            reserve(&part.file, layout.part_size(index))
                .map_err(Error::io(&part.target, "set the size of"))?;
            parts.push(part);
        }
        let written = (0..layout.n_tensors()).map(|_| Mutex::default()).collect();
        let writer = Writer { target: target.to_path_buf(), parts, layout, written, overwrite };
        for part in 0..writer.parts.len() {
            writer.put(part, writer.layout.part_header(part), 0)?;
        }
        Ok(writer)
    }

    /// Goes on with what a writer of [`create_resumable`](Self::create_resumable) left: `None` where there is nothing of
    /// that layout. Which of its bytes are good the caller must know, and say with
    /// [`mark_written`](Self::mark_written).
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn reopen(
        target: &Path,
        layout: Layout,
        overwrite: Overwrite,
        stays: bool,
    ) -> Result<Option<Writer>, Error> {
        let names = layout.file_names(target);
        names.iter().try_for_each(|name| check_target(name, overwrite))?;
        let mut parts = Vec::new();
        for (index, target) in names.into_iter().enumerate() {
            let path = hidden_name(&target, ".partial");
            let found = fs::symlink_metadata(&path);
            if !found.is_ok_and(|found| found.is_file() && found.len() == layout.part_size(index)) {
                return Ok(None);
            }
            // It stays until it is known to be of this layout.
            let opened = PartialFile::open(path.clone(), OpenOptions::new().read(true).write(true), true);
            let (_, file) = opened.map_err(Error::io(&target, "open the unfinished file beside it"))?;
            let mut header = vec![0; layout.part_header(index).len()];
            if read_exact_at(&file, &mut header, 0).is_err() || header != layout.part_header(index) {
                return Ok(None);
            }
            let opened = PartialFile::open(path, OpenOptions::new().write(true), stays);
            let (partial, file) = opened.map_err(Error::io(&target, "open the unfinished file beside it"))?;
            parts.push(Part { target, partial, file });
        }
        let written = (0..layout.n_tensors()).map(|_| Mutex::default()).collect();
        Ok(Some(Writer { target: target.to_path_buf(), parts, layout, written, overwrite }))
    }

    /// Where [`create_resumable`](Self::create_resumable) keeps the unfinished files of such an output.
    pub fn resumable_files(target: &Path, layout: &Layout) -> Vec<PathBuf> {
        layout.file_names(target).iter().map(|name| hidden_name(name, ".partial")).collect()
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
        let start = self.checked_start(tensor, offset, bytes.len() as u64);
        self.put(self.layout.tensor_part(tensor), bytes, start)?;
        self.mark_written(tensor, offset, bytes.len() as u64);
        Ok(())
    }

    /// Takes bytes of a tensor for written, as an earlier run did it.
    ///
    /// # Panics
    /// When the bytes leave the tensor, or there is no such tensor.
    pub fn mark_written(&self, tensor: usize, offset: u64, len: u64) {
        self.checked_start(tensor, offset, len);
        let mut written = self.written[tensor].lock().unwrap_or_else(PoisonError::into_inner);
        written.add(offset..offset + len);
    }

    /// Where bytes of a tensor go in its part.
    fn checked_start(&self, tensor: usize, offset: u64, len: u64) -> u64 {
        let range = self.layout.tensor_range(tensor);
        let size = range.end - range.start;
        if offset.checked_add(len).is_none_or(|end| end > size) {
            let name = self.layout.tensor_name(tensor);
            panic!("{len} bytes at {offset} leave tensor {name} of {size} bytes");
        }
        range.start + offset
    }

    fn put(&self, part: usize, bytes: &[u8], offset: u64) -> Result<(), Error> {
        let Part { target, file, .. } = &self.parts[part];
        write_all_at(file, bytes, offset).map_err(Error::io(target, "write"))
    }

    /// The file as it will be.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Makes what has been written so far durable; meanwhile others may go on writing.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync_data(&self) -> Result<(), Error> {
        for part in &self.parts {
            part.file.sync_data().map_err(Error::io(&part.target, "make durable"))?;
        }
        Ok(())
    }

    /// Completes the file and gives it its name; returns its size in bytes.
    ///
    /// # Errors
    /// [`Error::Incomplete`] when bytes are missing, [`Error::Io`] when they can't be made durable, [`Error::Exists`]
    /// when somebody else made the target meanwhile. The temporary file is then removed, unless it is to stay.
    pub fn finish(self) -> Result<u64, Error> {
        self.complete()?;
        self.give_names()
    }

    /// The first half of [`finish`](Self::finish): the file is whole and durable, under its hidden name.
    ///
    /// # Errors
    /// [`Error::Incomplete`] and [`Error::Io`], as there.
    pub fn complete(&self) -> Result<(), Error> {
        for (index, written) in self.written.iter().enumerate() {
            let range = self.layout.tensor_range(index);
            let size = range.end - range.start;
            let written = written.lock().unwrap_or_else(PoisonError::into_inner).total();
            if written != size {
                let name = self.layout.tensor_name(index).to_owned();
                return Err(Error::Incomplete { path: self.target.clone(), name, written, size });
            }
        }
        for (index, part) in self.parts.iter().enumerate() {
            let size = self.layout.part_size(index);
            part.file.set_len(size).map_err(Error::io(&part.target, "set the size of"))?;
            part.file.sync_all().map_err(Error::io(&part.target, "make durable"))?;
        }
        Ok(())
    }

    /// The second half of [`finish`](Self::finish), after [`complete`](Self::complete); returns the size in bytes of all
    /// files. Where one of several can't have its name, the others lose theirs again if they were new.
    ///
    /// # Errors
    /// [`Error::Exists`] and [`Error::Io`], as there.
    pub fn give_names(self) -> Result<u64, Error> {
        let mut named: Vec<&Path> = Vec::new();
        for part in self.parts.iter().rev() {
            if let Err(error) = part.give_name(self.overwrite) {
                if self.overwrite == Overwrite::Refuse {
                    named.iter().for_each(|path| drop(fs::remove_file(path)));
                }
                return Err(error);
            }
            named.push(&part.target);
        }
        sync_directory(directory_of(&self.target))?;
        Ok(self.layout.total_size())
    }
}

impl Part {
    /// A new hidden file for what will be called `target`.
    pub(crate) fn create(target: &Path, overwrite: Overwrite) -> Result<Part, Error> {
        check_target(target, overwrite)?;
        Self::open(target.to_path_buf(), &unique(), OpenOptions::new().write(true).create_new(true), false)
    }

    fn open(target: PathBuf, distinction: &str, how: &OpenOptions, stays: bool) -> Result<Part, Error> {
        let path = hidden_name(&target, &format!("{distinction}.partial"));
        let (partial, file) = PartialFile::open(path, how, stays)
            .map_err(Error::io(&target, "create a temporary file beside it"))?;
        Ok(Part { target, partial, file })
    }

    /// Gives the complete file its name.
    pub(crate) fn give_name(&self, overwrite: Overwrite) -> Result<(), Error> {
        match overwrite {
            Overwrite::Replace => self.rename(overwrite),
            Overwrite::Refuse => self.name_anew(),
        }
    }

    fn rename(&self, overwrite: Overwrite) -> Result<(), Error> {
        check_target(&self.target, overwrite)?;
        fs::rename(self.partial.path(), &self.target)
            .map_err(Error::io(&self.target, "rename the finished file to"))
    }

    /// Gives the file its name only if nobody has taken it: a hard link fails where a rename would replace.
    fn name_anew(&self) -> Result<(), Error> {
        match fs::hard_link(self.partial.path(), &self.target) {
            Ok(()) => fs::remove_file(self.partial.path())
                .map_err(Error::io(self.partial.path(), "remove the temporary name")),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(Error::Exists { path: self.target.clone() })
            }
            // A file system without hard links.
            Err(_) => self.rename(Overwrite::Refuse),
        }
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

fn check_target(target: &Path, overwrite: Overwrite) -> Result<(), Error> {
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

/// Bytes of the target's name that a hidden name repeats; file systems allow 255, and an ending comes to them.
const MAX_STEM: usize = 200;

/// A hidden name beside `target`, made of its name and an ending.
pub fn hidden_name(target: &Path, ending: &str) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let stem_end = (0..=name.len().min(MAX_STEM)).rfind(|end| name.is_char_boundary(*end)).unwrap_or(0);
    directory_of(target).join(format!(".{}{ending}", &name[..stem_end]))
}

/// Gives a new file its size, and its place on the disk where the file system can: then a full disk shows now.
fn reserve(file: &File, size: u64) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        use rustix::fs::{FallocateFlags, fallocate};
        match fallocate(file, FallocateFlags::empty(), 0, size) {
            Ok(()) => return Ok(()),
            // Nothing of the kind on this file system.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS | rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    file.set_len(size)
}
