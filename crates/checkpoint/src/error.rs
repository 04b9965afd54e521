//! What can be wrong with a checkpoint directory, with the evidence.

use std::fmt::Write as _;
use std::path::PathBuf;

/// Shorthand of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A checkpoint that cannot be used, and where, what and why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused something.
    #[error("{}: {action}: {source}", file.display())]
    Io {
        /// The file or directory.
        file: PathBuf,
        /// What was attempted.
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A value in a file is not what it must be.
    #[error("{}: {what}: found {found}, expected {expected}", file.display())]
    Malformed {
        /// The file that holds the value.
        file: PathBuf,
        /// Which value: a tensor, a key, a field.
        what: String,
        /// The value as found, shortened and without control characters.
        found: String,
        /// What would have been right.
        expected: String,
    },
    /// Shards that the index or the numbering names are not there.
    #[error("{}: shards: missing {}, expected all {expected} beside it", file.display(), list(names, usize::MAX))]
    MissingShards {
        /// The index, or the directory where the file names carry the count.
        file: PathBuf,
        /// Every missing file name.
        names: Vec<String>,
        /// How many files the checkpoint has.
        expected: usize,
    },
    /// Tensors that the configuration promises are not there.
    #[error("{}: {missing} of {expected} tensors: missing {}", dir.display(), some(names, *missing))]
    MissingTensors {
        /// The checkpoint directory.
        dir: PathBuf,
        /// The missing names, the first [`MAX_MISSING_NAMES`].
        names: Vec<String>,
        /// How many are missing.
        missing: usize,
        /// How many tensors the configuration asks for.
        expected: usize,
    },
    /// Tensors that no part of a Llama, Mistral or Mixtral uses.
    #[error("{}: {} unknown tensors: found {}, expected only those of a {architecture}", dir.display(), names.len(), list(names, 16))]
    UnknownTensors {
        /// The checkpoint directory.
        dir: PathBuf,
        /// Every unknown name.
        names: Vec<String>,
        /// What the configuration says the model is.
        architecture: String,
    },
    /// The configuration's numbers fit no model.
    #[error("{}: {source}", file.display())]
    HyperParams {
        /// config.json.
        file: PathBuf,
        /// Which number, under its GGUF key.
        source: Box<model_spec::Error>,
    },
    /// The weights exist only in a format that runs code when it is read.
    #[error(
        "{}: weights: found only {}, expected safetensors; pickle files can run code and are not read: \
         save the model again with safe_serialization (transformers) or --safe-serialization (mergekit)",
        dir.display(), list(names, 8)
    )]
    PickleOnly {
        /// The checkpoint directory.
        dir: PathBuf,
        /// The pickle files found.
        names: Vec<String>,
    },
}

/// How many missing tensors are named; a configuration may ask for millions.
pub const MAX_MISSING_NAMES: usize = 1000;

impl Error {
    pub(crate) fn malformed(
        file: impl Into<PathBuf>,
        what: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> Error {
        Error::Malformed {
            file: file.into(),
            what: what.into(),
            found: found.into(),
            expected: expected.into(),
        }
    }
}

/// `text` in quotes, without control characters and at most 100 characters long: names come from strangers
/// and end up on terminals.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for (n, c) in text.chars().enumerate() {
        if n == 100 {
            out.push('…');
            break;
        }
        // Bidirectional overrides reorder what a terminal shows; `escape_debug` leaves them as they are.
        let reorders =
            matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        match c {
            '\'' => out.push(c),
            _ if reorders => out.extend(c.escape_unicode()),
            _ => out.extend(c.escape_debug()),
        }
    }
    out.push('"');
    out
}

/// The first `limit` names, quoted and separated by commas, and how many more there are.
pub(crate) fn list<S: AsRef<str>>(names: &[S], limit: usize) -> String {
    let mut out = String::new();
    for (n, name) in names.iter().take(limit).enumerate() {
        if n > 0 {
            out.push_str(", ");
        }
        out.push_str(&quoted(name.as_ref()));
    }
    if names.len() > limit {
        let _ = write!(out, " and {} more", names.len() - limit);
    }
    out
}

/// The first 16 of the names, and how many of `total` are not shown.
fn some(names: &[String], total: usize) -> String {
    let shown = names.len().min(16);
    let mut out = list(&names[..shown], shown);
    if total > shown {
        let _ = write!(out, " and {} more", total - shown);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_messages_cannot_drive_a_terminal() {
        assert_eq!(quoted("a\u{1b}[2Jb"), "\"a\\u{1b}[2Jb\"");
        assert_eq!(quoted("x\u{202e}y"), "\"x\\u{202e}y\"");
        assert_eq!(quoted(&"é".repeat(300)).chars().count(), 103);
    }

    #[test]
    fn long_lists_end_with_a_count() {
        assert_eq!(list(&["a", "b", "c"], 2), "\"a\", \"b\" and 1 more");
    }
}
