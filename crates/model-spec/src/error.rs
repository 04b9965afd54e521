//! Why a model's metadata is refused.

use std::path::PathBuf;

/// What is wrong with a model's metadata, with the key and the value that show it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key that every model needs is missing.
    #[error("{key}: found no such key, expected {expected}")]
    Missing {
        /// The key.
        key: &'static str,
        /// What should be there.
        expected: &'static str,
    },
    /// A value no model of this architecture can have.
    #[error("{key}: found {found}, expected {expected}")]
    Invalid {
        /// The key.
        key: String,
        /// The value.
        found: String,
        /// What would be accepted.
        expected: String,
    },
    /// An architecture that is not handled.
    #[error("general.architecture: found {found:?}, expected \"llama\" (Llama, Mistral and Mixtral models)")]
    Architecture {
        /// The architecture the file names.
        found: String,
    },
    /// A key has a value of the wrong type.
    #[error(transparent)]
    Metadata(#[from] gguf::Error),
    /// Any of the above, in a file.
    #[error("{}: {source}", file.display())]
    InFile {
        /// The file.
        file: PathBuf,
        /// What is wrong in it.
        source: Box<Error>,
    },
}

impl Error {
    pub(crate) fn invalid(
        key: impl Into<String>,
        found: impl std::fmt::Display,
        expected: impl Into<String>,
    ) -> Self {
        Error::Invalid { key: key.into(), found: found.to_string(), expected: expected.into() }
    }

    /// The same error, naming the file it was found in.
    pub fn in_file(self, file: impl Into<PathBuf>) -> Self {
        match self {
            Error::InFile { .. } => self,
            Error::Metadata(ref error) if error.path().is_some() => self, // names it already
            other => Error::InFile { file: file.into(), source: Box::new(other) },
        }
    }
}
