//! Runs a GGUF model on ggml: weights, placement, graph, session, sampler, tokenizer, chat template.

pub mod bandwidth;
mod batch;
pub mod chat;
mod error;
mod graph;
pub mod kernels;
mod kv_cache;
pub mod memory;
pub mod model;
pub mod plan;
pub mod residency;
pub mod routing;
pub mod sampler;
mod saved_context;
pub mod session;
pub mod slots;
mod staging;
pub mod tokenizer;

pub use error::Error;
pub use expert_pool::{Readers as StreamReaders, Statistics as StreamStatistics};
pub use kernels::Kernels;
pub use model::{Model, ModelOptions};
pub use session::{ExpertStaging, Logits, Session, SessionOptions, StageExperts};
