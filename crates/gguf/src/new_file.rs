//! Any other new file that appears under its name only when it is complete, by the same steps as [`Writer`](crate::Writer).

use crate::writer::{self, check_target, create_temporary, discard, give_name};
use crate::{Error, Overwrite};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A file being written from its beginning to its end.
///
/// Dropped without [`finish`](Self::finish), it leaves nothing behind. It is not buffered.
#[derive(Debug)]
pub struct NewFile {
    target: PathBuf,
    temporary: PathBuf,
    file: File,
    overwrite: Overwrite,
}

impl NewFile {
    /// Starts writing a file that will be called `target`.
    ///
    /// # Errors
    /// As [`Writer::create`](crate::Writer::create).
    pub fn create(target: &Path, overwrite: Overwrite) -> Result<NewFile, Error> {
        check_target(target, overwrite)?;
        let (temporary, file) = create_temporary(target)?;
        Ok(NewFile { target: target.to_path_buf(), temporary, file, overwrite })
    }

    /// Adds bytes at the end.
    ///
    /// # Errors
    /// [`Error::Io`], as when the disk is full.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all(bytes).map_err(Error::io(&self.target, "write"))
    }

    /// Makes the file durable and gives it its name.
    ///
    /// # Errors
    /// [`Error::Io`] when it can't be made durable, [`Error::Exists`] when somebody else made the target meanwhile. The
    /// temporary file is then removed.
    pub fn finish(self) -> Result<(), Error> {
        self.file.sync_all().map_err(Error::io(&self.target, "make durable"))?;
        give_name(&self.temporary, &self.target, self.overwrite)?;
        writer::sync_directory(writer::directory_of(&self.target))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        discard(&self.temporary);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("a folder");
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn the_name_is_there_with_the_last_byte_and_not_before() {
        let folder = tempfile::tempdir().expect("a folder");
        let target = folder.path().join("text");
        let mut file = NewFile::create(&target, Overwrite::Refuse).expect("a file");
        file.append(b"one ").expect("room");
        file.append(b"two").expect("room");
        assert!(!target.exists());
        file.finish().expect("a name");
        assert_eq!(fs::read(&target).expect("a file"), b"one two");
        assert_eq!(names(folder.path()), ["text"]);
    }

    #[test]
    fn a_file_given_up_leaves_nothing_and_the_old_one_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let target = folder.path().join("text");
        fs::write(&target, "old").expect("a file");
        assert!(matches!(NewFile::create(&target, Overwrite::Refuse), Err(Error::Exists { .. })));
        let mut file = NewFile::create(&target, Overwrite::Replace).expect("a file");
        file.append(b"new").expect("room");
        drop(file);
        assert_eq!(fs::read(&target).expect("a file"), b"old");
        assert_eq!(names(folder.path()), ["text"]);
    }
}
