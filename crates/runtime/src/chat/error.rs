//! What can go wrong with a chat template.

/// Why a chat cannot be written down.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The template is not Jinja.
    #[error("chat template, line {line}: {detail}")]
    Syntax {
        /// Line of the template, from 1.
        line: usize,
        /// What is wrong there.
        detail: String,
    },
    /// The template itself refuses these messages.
    #[error("the chat template refuses this conversation: {0}")]
    Refused(String),
    /// The template works without end.
    #[error("chat template: it loops, recurses or grows without end")]
    Endless,
    /// The template fails on these messages.
    #[error("chat template, line {line}: {detail}")]
    Render {
        /// Line of the template, from 1.
        line: usize,
        /// What failed there.
        detail: String,
    },
    /// A name that is no built-in template.
    #[error("--chat-template: found \"{found}\", expected Jinja or one of {expected}")]
    UnknownName {
        /// The name.
        found: String,
        /// All names, separated by commas.
        expected: String,
    },
    /// Too many messages, or messages that use up the characters that would keep them apart from the template.
    #[error("chat: cannot keep {n_messages} messages apart from the template")]
    Marks {
        /// Number of messages.
        n_messages: usize,
    },
    /// The file's template is not text.
    #[error(transparent)]
    Metadata(#[from] gguf::Error),
}
