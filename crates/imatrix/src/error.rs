//! Why a file of importances can't be read or written.

use std::io;
use std::path::PathBuf;

/// What is wrong, where, and what should be there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was attempted.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The container is damaged, or can't be written.
    #[error(transparent)]
    Gguf(#[from] gguf::Error),
    /// A value is not what it must be.
    #[error("{}: {field}: found {found}, expected {expected}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Which tensor, key or field.
        field: String,
        /// Its value.
        found: String,
        /// What would be accepted.
        expected: String,
    },
}
