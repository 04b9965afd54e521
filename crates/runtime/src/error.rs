//! Why a model can't be loaded or run.

use crate::residency::budget::Usage;
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
        "{place}: a context of {n_ctx} tokens needs {needed_bytes} bytes ({kv_bytes} for the KV cache, {compute_bytes} for computing), but {available_bytes} are free; use a smaller -c, or -ctk q8_0 -ctv q8_0"
    )]
    ContextMemory {
        /// The kind of memory: `CPU`, `CUDA0`, ...
        place: String,
        /// Tokens asked for.
        n_ctx: u64,
        /// All in all.
        needed_bytes: u64,
        /// The KV cache's part.
        kv_bytes: u64,
        /// The compute buffers' part.
        compute_bytes: u64,
        /// What the device, or the machine (or its cgroup), has.
        available_bytes: u64,
    },
    /// Weights that are copied don't fit.
    #[error("{place}: {needed_bytes} bytes are needed for weights, but {available_bytes} are free")]
    WeightMemory {
        /// The kind of memory: `CPU`, `CUDA0`, ...
        place: String,
        /// All weights that are to go there.
        needed_bytes: u64,
        /// What the device, or the machine (or its cgroup), has.
        available_bytes: u64,
    },
    /// The pool of streamed experts doesn't fit.
    #[error(
        "--expert-pool: {needed_bytes} bytes are needed beside {dense_bytes} of other weights, but {available_bytes} are free"
    )]
    PoolMemory {
        /// What the pool would fill: its size, or all experts where these are less.
        needed_bytes: u64,
        /// Weights that every token reads, which are in memory already.
        dense_bytes: u64,
        /// What the machine (or its cgroup) has left.
        available_bytes: u64,
    },
    /// A model that is to be locked into memory doesn't fit.
    #[error("--mlock: {needed_bytes} bytes are to be locked, but {available_bytes} are free")]
    LockedMemory {
        /// The parts of the file with weights on the host, which are locked whole.
        needed_bytes: u64,
        /// What the machine (or its cgroup) has.
        available_bytes: u64,
    },
    /// Stacks that experts are staged in for large batches don't fit.
    #[error(
        "{place}: staging experts needs {needed_bytes} bytes beside {context_bytes} for the context, but {available_bytes} are free"
    )]
    StagingMemory {
        /// The device's kind of memory.
        place: String,
        /// For the stacks.
        needed_bytes: u64,
        /// For KV cache and compute buffers.
        context_bytes: u64,
        /// What the device has.
        available_bytes: u64,
    },
    /// The least that a model needs, with experts read from the file, is more than may be used.
    #[error(
        "the model needs {} bytes of memory at least ({} for weights that every token reads, {} for experts, {} for the KV cache, {} for computing), and {available_bytes} may be used; use a smaller -c, or -ctk q8_0 -ctv q8_0",
        needed.total_bytes(), needed.dense_bytes, needed.expert_bytes + needed.staging_bytes, needed.cache_bytes, needed.compute_bytes
    )]
    Shortage {
        /// In the host's memory.
        needed: Box<Usage>,
        /// There.
        available_bytes: u64,
    },
    /// The model file can't be read.
    #[error("{}: cannot read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
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
    /// A file with a saved context is damaged, or belongs to another model or other settings.
    #[error("{}: {field}: found {found}, expected {expected}", path.display())]
    SavedContext {
        /// The file.
        path: PathBuf,
        /// The part of it that is wrong.
        field: &'static str,
        /// What it says.
        found: String,
        /// What it should say.
        expected: String,
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
