//! Why a trace can't be used.

/// A trace that is damaged, or does not fit.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The text is not JSON of a trace's structure.
    #[error("no routing trace: {reason}")]
    Structure {
        /// What the parser says.
        reason: String,
    },
    /// A field holds what it can't.
    #[error("{field}: found {found}, expected {expected}")]
    Field {
        /// Which one.
        field: String,
        /// Its value.
        found: String,
        /// What it may hold.
        expected: String,
    },
}
