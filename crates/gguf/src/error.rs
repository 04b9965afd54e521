//! Why a GGUF file can't be read or written.

use std::io;
use std::path::{Path, PathBuf};

/// What is wrong, where, and what should be there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was attempted.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The file is something else.
    #[error("{}: not a GGUF file: found {found}, expected the magic bytes \"GGUF\"", path.display())]
    NotGguf {
        /// The file.
        path: PathBuf,
        /// What it looks like.
        found: String,
    },
    /// A field of the header is wrong.
    #[error("{}: {field}: found {found}, expected {expected}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Which field: a metadata key, a tensor, or a part of the header.
        field: String,
        /// Its value.
        found: String,
        /// What would be accepted.
        expected: String,
    },
    /// The file ends too early.
    #[error("{}: {field}: the file ends after {size} bytes, expected at least {needed}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What was being read.
        field: String,
        /// Size of the file in bytes.
        size: u64,
        /// How large it would have to be; `u64::MAX` when more than any file.
        needed: u64,
    },
    /// Parts of a split file are not there.
    #[error("{}: parts of this split file are missing: {}", path.display(), list(missing))]
    MissingParts {
        /// The part that was opened.
        path: PathBuf,
        /// The others that should be beside it.
        missing: Vec<PathBuf>,
    },
    /// A metadata entry has another type than it is used as.
    #[error("{key}: found {found}, expected {expected}")]
    ValueType {
        /// The key.
        key: String,
        /// Type and value that are there.
        found: String,
        /// What is needed.
        expected: &'static str,
    },
    /// What is to be written can't be a GGUF file.
    #[error("{field}: found {found}, expected {expected}")]
    Layout {
        /// Which key or tensor.
        field: String,
        /// Its value.
        found: String,
        /// What would be accepted.
        expected: String,
    },
    /// The output is there already.
    #[error("{}: the file exists already", path.display())]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// The output path names something that can't be replaced by a file.
    #[error("{}: found {found}, expected a new name or a regular file", path.display())]
    NotAFile {
        /// The output.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// Not every byte of a tensor was written before the end.
    #[error("{}: tensor {name}: {written} of {size} bytes were written", path.display())]
    Incomplete {
        /// The output.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Bytes written.
        written: u64,
        /// Bytes it has.
        size: u64,
    },
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
}

impl Error {
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { path: path.to_path_buf(), action, source }
    }
}

/// What a directory entry is, in words; `None` for a regular file.
pub(crate) fn kind_of(metadata: &std::fs::Metadata) -> Option<&'static str> {
    let kind = metadata.file_type();
    if kind.is_file() {
        None
    } else if kind.is_dir() {
        Some("a directory")
    } else if kind.is_symlink() {
        Some("a symbolic link")
    } else {
        Some("a device, pipe or socket")
    }
}
