//! Why experts can't be had.

use std::path::PathBuf;

/// An error of the pool, with the evidence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The pool would be too small to compute with.
    #[error(
        "pool of experts (--expert-pool): found {found_bytes} bytes, expected {needed_bytes} at least for this model"
    )]
    TooSmall {
        /// What was given.
        found_bytes: u64,
        /// The least that works.
        needed_bytes: u64,
    },
    /// A model file can't be opened for reading by position.
    #[error("{}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A part of an expert can't be read.
    #[error("{}: tensor {tensor}: {n_bytes} bytes at {offset} can't be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The tensor's GGUF name.
        tensor: String,
        /// Where in the file, in bytes.
        offset: u64,
        /// How many bytes.
        n_bytes: usize,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file ends before the expert does.
    #[error(
        "{}: tensor {tensor}: found the end of the file at byte {end}, expected {n_bytes} bytes at {offset}; the file was truncated while in use", path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The tensor's GGUF name.
        tensor: String,
        /// Where in the file, in bytes.
        offset: u64,
        /// How many bytes.
        n_bytes: usize,
        /// Where the file ends now.
        end: u64,
    },
    /// There is no memory for a tile, though the pool has room.
    #[error("{size_bytes} bytes for experts can't be allocated: {source}")]
    Memory {
        /// How much was asked for.
        size_bytes: usize,
        /// What the system says.
        source: std::io::Error,
    },
    /// Reader threads can't be started.
    #[error("threads that read experts can't be started: {0}")]
    Threads(std::io::Error),
    /// Nobody reads any more: a reader has failed in a way that is no fault of the files.
    #[error("experts can't be read any more: {0}")]
    Readers(String),
    /// There is no io_uring, and nothing else was to do.
    #[error("experts can't be read through io_uring: {0}")]
    Uring(std::io::Error),
    /// The computation was stopped by its flag.
    #[error("stopped")]
    Stopped,
}
