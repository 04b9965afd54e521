//! Why a model can't be loaded or run.

use std::path::PathBuf;

/// An error of the runtime, with the evidence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file is not a readable GGUF.
    #[error(transparent)]
    Gguf(#[from] gguf::Error),
    /// The metadata does not describe a model that can be run.
    #[error(transparent)]
    Spec(#[from] model_spec::Error),
    /// The tokenizer can't be rebuilt from the metadata.
    #[error("{}: {source}", path.display())]
    Tokenizer {
        /// The model file.
        path: PathBuf,
        /// What is wrong with its tokenizer.
        source: crate::tokenizer::Error,
    },
    /// ggml or the device beneath it failed.
    #[error(transparent)]
    Ggml(#[from] ggml::Error),
    /// Experts that are read while they are used can't be had.
    #[error(transparent)]
    ExpertPool(expert_pool::Error),
    /// A tensor that the architecture needs is not in the file.
    #[error("{}: tensor {name}: missing", path.display())]
    MissingTensor {
        /// The model file.
        path: PathBuf,
        /// The tensor's GGUF name.
        name: String,
    },
    /// A tensor has another shape than the metadata says.
    #[error("{}: tensor {name}: found shape {found:?}, expected {expected:?}", path.display())]
    Shape {
        /// The model file.
        path: PathBuf,
        /// The tensor's GGUF name.
        name: String,
        /// Its extents, contiguous axis first.
        found: Vec<u64>,
        /// What the hyperparameters ask for.
        expected: Vec<u64>,
    },
    /// A tensor has a type that can't be computed with in its role.
    #[error("{}: tensor {name}: found type {found}, expected {expected}", path.display())]
    TensorType {
        /// The model file.
        path: PathBuf,
        /// The tensor's GGUF name.
        name: String,
        /// The type in the file.
        found: &'static str,
        /// What the role takes.
        expected: &'static str,
    },
    /// A quantized tensor holds a scale or value that is NaN or infinite.
    #[error("{}: tensor {name}: element {index} is not a finite number; the file is damaged", path.display())]
    NotFinite {
        /// The model file.
        path: PathBuf,
        /// The tensor's GGUF name.
        name: String,
        /// Index of the first such element.
        index: u64,
    },
    /// An option does not fit the model or the machine.
    #[error("{option}: found {found}, expected {expected}")]
    Option {
        /// The option as users write it.
        option: &'static str,
        /// What was given.
        found: String,
        /// What can be given.
        expected: String,
    },
    /// The context and its buffers don't fit in memory.
    #[error(
        "a context of {n_ctx} tokens needs {needed_bytes} bytes ({kv_bytes} for the KV cache, {compute_bytes} for computing), but {available_bytes} are free; use a smaller -c, or -ctk q8_0 -ctv q8_0"
    )]
    ContextMemory {
        /// Tokens asked for.
        n_ctx: u32,
        /// All in all.
        needed_bytes: u64,
        /// The KV cache's part.
        kv_bytes: u64,
        /// The compute buffers' part.
        compute_bytes: u64,
        /// What the machine (or the cgroup) has.
        available_bytes: u64,
    },
    /// More tokens than the context has room for.
    #[error(
        "the context is full: {n_tokens} tokens were to be added to {n_past}, and there is room for {n_ctx}"
    )]
    ContextFull {
        /// Tokens already there.
        n_past: u32,
        /// Tokens to be added.
        n_tokens: u32,
        /// Room for.
        n_ctx: u32,
    },
    /// A token id outside the vocabulary.
    #[error("token {id} is outside the vocabulary of {n_vocab}")]
    Token {
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        n_vocab: u32,
    },
    /// The computation was stopped through the session's stop flag.
    #[error("stopped")]
    Stopped,
}

impl From<expert_pool::Error> for Error {
    fn from(error: expert_pool::Error) -> Error {
        match error {
            expert_pool::Error::Stopped => Error::Stopped,
            other => Error::ExpertPool(other),
        }
    }
}
