//! Runs a GGUF model on ggml: weights, placement, graph, session, sampler, tokenizer, chat template.

pub mod sampler;
pub mod tokenizer;
