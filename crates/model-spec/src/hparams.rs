//! The numbers that define a model, and which of them can be.

use crate::rope::Rope;
use crate::{Error, keys};

/// Most experts a model may have; llama.cpp stops at the same number (`LLAMA_MAX_EXPERTS`).
pub const MAX_EXPERTS: u32 = 1024;
/// Most layers a model may have; llama.cpp stops at the same number (`LLAMA_MAX_LAYERS`).
pub const MAX_LAYERS: u32 = 512;
/// Widths beyond this cannot be meant; with it, products of two widths fit in 64 bits easily.
const MAX_WIDTH: u32 = 1 << 24;

/// A model family with its own graph and key prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Llama, Mistral and Mixtral, which GGUF files under one name.
    Llama,
}

impl Architecture {
    /// The value of `general.architecture`.
    pub const fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
        }
    }

    /// The architecture of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        (name == "llama").then_some(Architecture::Llama)
    }
}

/// What defines a model besides its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct HyperParams {
    /// The family.
    pub arch: Architecture,
    /// Number of layers.
    pub n_layer: u32,
    /// Width of the residual stream.
    pub n_embd: u32,
    /// Inner width of the feed-forward network, per expert.
    pub n_ff: u32,
    /// Number of query heads.
    pub n_head: u32,
    /// Number of key and value heads; divides `n_head`.
    pub n_head_kv: u32,
    /// Width of one query or key head.
    pub head_dim_k: u32,
    /// Width of one value head.
    pub head_dim_v: u32,
    /// Whether the model states its head widths rather than leaving them to `n_embd / n_head`.
    pub head_dim_stated: bool,
    /// Number of head components that rotate.
    pub n_rot: u32,
    /// Number of vocabulary entries.
    pub n_vocab: u32,
    /// Context length the model was trained for.
    pub n_ctx_train: u32,
    /// Number of experts; 0 for a dense model.
    pub n_expert: u32,
    /// Number of experts used per token; 0 for a dense model.
    pub n_expert_used: u32,
    /// Epsilon of the RMS norms.
    pub rms_eps: f32,
    /// Rotary embedding.
    pub rope: Rope,
    /// Number of past positions attention sees, where limited.
    pub sliding_window: Option<u32>,
}

impl HyperParams {
    /// Whether tokens choose among experts.
    pub fn is_moe(&self) -> bool {
        self.n_expert > 0
    }

    /// Checks that every number is one such a model can have.
    ///
    /// # Errors
    /// Names the key of the first that is not.
    pub fn validate(&self) -> Result<(), Error> {
        let within = |key: &str, value: u32, max: u32| {
            let fits = (1..=max).contains(&value);
            if fits { Ok(()) } else { Err(Error::invalid(key, value, format!("1 to {max}"))) }
        };
        within(keys::BLOCK_COUNT, self.n_layer, MAX_LAYERS)?;
        within(keys::EMBEDDING_LENGTH, self.n_embd, MAX_WIDTH)?;
        within(keys::FEED_FORWARD_LENGTH, self.n_ff, MAX_WIDTH)?;
        within(keys::CONTEXT_LENGTH, self.n_ctx_train, i32::MAX as u32)?;
        within(keys::VOCAB_SIZE, self.n_vocab, i32::MAX as u32)?;
        within(keys::HEAD_COUNT, self.n_head, self.n_embd)?;
        within(keys::KEY_LENGTH, self.head_dim_k, MAX_WIDTH)?;
        within(keys::VALUE_LENGTH, self.head_dim_v, MAX_WIDTH)?;
        if !self.head_dim_stated {
            check_heads_divide(self.n_embd, self.n_head)?;
        }
        if self.n_head_kv == 0 || !self.n_head.is_multiple_of(self.n_head_kv) {
            let expected = format!("a divisor of the {} query heads", self.n_head);
            return Err(Error::invalid(keys::HEAD_COUNT_KV, self.n_head_kv, expected));
        }
        if self.n_rot == 0 || self.n_rot > self.head_dim_k || !self.n_rot.is_multiple_of(2) {
            let expected = format!("an even number from 2 to the head's width, {}", self.head_dim_k);
            return Err(Error::invalid(keys::ROPE_DIMENSION_COUNT, self.n_rot, expected));
        }
        if self.n_expert > MAX_EXPERTS {
            return Err(Error::invalid(keys::EXPERT_COUNT, self.n_expert, format!("0 to {MAX_EXPERTS}")));
        }
        let used = (u32::from(self.n_expert > 0))..=self.n_expert;
        if !used.contains(&self.n_expert_used) {
            let expected = match self.n_expert {
                0 => "0, as there are no experts".to_owned(),
                n => format!("1 to the number of experts, {n}"),
            };
            return Err(Error::invalid(keys::EXPERT_USED_COUNT, self.n_expert_used, expected));
        }
        if !(self.rms_eps.is_finite() && self.rms_eps > 0.0) {
            return Err(Error::invalid(
                keys::LAYER_NORM_RMS_EPSILON,
                self.rms_eps,
                "a positive finite number",
            ));
        }
        self.rope.validate()
    }
}

pub(crate) fn check_heads_divide(n_embd: u32, n_head: u32) -> Result<(), Error> {
    if n_head == 0 || !n_embd.is_multiple_of(n_head) {
        let expected = format!("a divisor of the embedding length, {n_embd}");
        return Err(Error::invalid(keys::HEAD_COUNT, n_head, expected));
    }
    Ok(())
}
