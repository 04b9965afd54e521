//! Why a GGUF file can't be read or written.

use std::fmt;
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
    /// The file can't be shown in memory, for want of address space in all likelihood.
    #[error("{}: mapping: found {source}, expected {size} bytes of address space", path.display())]
    Map {
        /// The file.
        path: PathBuf,
        /// Its size in bytes, which is what mapping takes.
        size: u64,
        /// The system's reason.
        source: io::Error,
    },
    /// The file is something else.
    #[error("{}: format: found {found}, expected a GGUF file, which begins with \"GGUF\"", path.display())]
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
    #[error("{}: {field}: found the end of the file after {size} bytes, expected at least {needed}", path.display())]
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
    #[error("{}: parts: found {} of {expected}, missing {}", path.display(), expected - missing.len(), list(missing))]
    MissingParts {
        /// The part that was opened.
        path: PathBuf,
        /// The others that should be beside it.
        missing: Vec<PathBuf>,
        /// How many parts there should be.
        expected: usize,
    },
    /// A metadata entry has another type than it is used as.
    #[error("{}{key}: found {found}, expected {expected}", prefix(path.as_deref()))]
    ValueType {
        /// The file that the metadata was read from, if it was.
        path: Option<PathBuf>,
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
    #[error("{}: output: found an existing file, expected a new name or leave to replace it", path.display())]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// The output path names something that can't be replaced by a file.
    #[error("{}: output: found {found}, expected a new name or a regular file", path.display())]
    NotAFile {
        /// The output.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// Not every byte of a tensor was written before the end.
    #[error("{}: tensor {name}: found {written} bytes written, expected {size}", path.display())]
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

/// Most missing parts that a message lists one by one.
const MAX_LISTED: usize = 20;

fn list(paths: &[PathBuf]) -> impl fmt::Display {
    let mut text = Vec::new();
    for path in paths.iter().take(MAX_LISTED) {
        text.push(path.display().to_string());
    }
    match paths.len().saturating_sub(MAX_LISTED) {
        0 => text.join(", "),
        more => format!("{} and {more} more", text.join(", ")),
    }
}

fn prefix(path: Option<&Path>) -> String {
    path.map_or(String::new(), |path| format!("{}: ", path.display()))
}

/// Longest piece of a file's text that a message repeats, in characters.
const MAX_QUOTED: usize = 64;

/// Text of a file as a message shows it: control characters escaped, and cut where it is long.
pub(crate) fn shown(text: &str) -> String {
    let mut out = String::new();
    for (n, c) in text.chars().enumerate() {
        if n == MAX_QUOTED {
            out.push_str("...");
            break;
        }
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

impl Error {
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { path: path.to_path_buf(), action, source }
    }

    /// The file that the message begins with; `None` where it names none.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Error::Io { path, .. }
            | Error::Map { path, .. }
            | Error::NotGguf { path, .. }
            | Error::Malformed { path, .. }
            | Error::Truncated { path, .. }
            | Error::MissingParts { path, .. }
            | Error::Exists { path }
            | Error::NotAFile { path, .. }
            | Error::Incomplete { path, .. } => Some(path),
            Error::ValueType { path, .. } => path.as_deref(),
            Error::Layout { .. } => None,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_and_hostile_text_is_cut_and_escaped() {
        assert_eq!(shown("plain"), "plain");
        assert_eq!(shown("a\x1b[2J\nb"), "a\\u{1b}[2J\\nb");
        assert_eq!(shown(&"ü".repeat(65)), "ü".repeat(64) + "...");
    }

    #[test]
    fn a_long_list_of_missing_parts_is_cut() {
        let missing: Vec<PathBuf> = (0..50).map(|i| PathBuf::from(format!("m-{i}"))).collect();
        let text = Error::MissingParts { path: "m".into(), missing, expected: 51 }.to_string();
        assert!(text.starts_with("m: parts: found 1 of 51, missing m-0, m-1, "), "{text}");
        assert!(text.ends_with("m-19 and 30 more"), "{text}");
    }
}
