//! Hyperparameters out of GGUF metadata and into it.

use gguf::{Gguf, Metadata, Value};

use crate::hparams::check_heads_divide;
use crate::rope::Rope;
use crate::{Architecture, Error, HyperParams, keys};

impl HyperParams {
    /// The hyperparameters of a GGUF file.
    ///
    /// # Errors
    /// As [`HyperParams::from_metadata`], naming the file.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, Error> {
        Self::from_metadata(gguf.metadata()).map_err(|e| e.in_file(gguf.path()))
    }

    /// The hyperparameters that metadata states, validated, together with the vocabulary's consistency.
    ///
    /// # Errors
    /// Names the key where one is missing, has the wrong type, or a value no such model can have, and where
    /// special token ids or the lengths of the vocabulary's arrays do not fit.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, Error> {
        let arch = metadata.str(keys::GENERAL_ARCHITECTURE)?;
        let arch = arch.ok_or(Error::Missing { key: keys::GENERAL_ARCHITECTURE, expected: "\"llama\"" })?;
        let arch =
            Architecture::from_name(arch).ok_or_else(|| Error::Architecture { found: arch.to_owned() })?;

        let need = |key: &'static str| -> Result<u32, Error> {
            metadata.u32(key)?.ok_or(Error::Missing { key, expected: "a whole number" })
        };
        let n_head = need(keys::HEAD_COUNT)?;
        let n_embd = need(keys::EMBEDDING_LENGTH)?;
        let (key_length, value_length) = (metadata.u32(keys::KEY_LENGTH)?, metadata.u32(keys::VALUE_LENGTH)?);
        if key_length.is_none() || value_length.is_none() {
            check_heads_divide(n_embd, n_head)?;
        }
        let head_dim_k = key_length.unwrap_or_else(|| n_embd / n_head);
        let rms_eps = metadata.f32(keys::LAYER_NORM_RMS_EPSILON)?;
        let hparams = HyperParams {
            arch,
            n_layer: need(keys::BLOCK_COUNT)?,
            n_embd,
            n_ff: need(keys::FEED_FORWARD_LENGTH)?,
            n_head,
            n_head_kv: metadata.u32(keys::HEAD_COUNT_KV)?.unwrap_or(n_head),
            head_dim_k,
            head_dim_v: value_length.unwrap_or_else(|| n_embd / n_head),
            head_dim_stated: key_length.is_some() || value_length.is_some(),
            n_rot: metadata.u32(keys::ROPE_DIMENSION_COUNT)?.unwrap_or(head_dim_k),
            n_vocab: vocabulary_size(metadata)?,
            n_ctx_train: need(keys::CONTEXT_LENGTH)?,
            n_expert: metadata.u32(keys::EXPERT_COUNT)?.unwrap_or(0),
            n_expert_used: metadata.u32(keys::EXPERT_USED_COUNT)?.unwrap_or(0),
            rms_eps: rms_eps
                .ok_or(Error::Missing { key: keys::LAYER_NORM_RMS_EPSILON, expected: "a number" })?,
            rope: Rope::from_metadata(metadata)?,
            sliding_window: metadata.u32(keys::SLIDING_WINDOW)?.filter(|w| *w != 0),
        };
        hparams.validate()?;
        check_special_ids(metadata, hparams.n_vocab)?;
        Ok(hparams)
    }

    /// Sets the architecture's keys, in the order in which llama.cpp's converter writes them.
    ///
    /// `general.architecture` is left to the caller: it comes first, before other `general` keys.
    /// The sliding window is written where there is one. llama.cpp's converter drops it for this
    /// architecture and its runtime ignores the key; without it a window the model was trained with would be
    /// lost for good.
    pub fn write_metadata(&self, metadata: &mut Metadata) {
        metadata.insert(keys::BLOCK_COUNT, self.n_layer);
        metadata.insert(keys::CONTEXT_LENGTH, self.n_ctx_train);
        metadata.insert(keys::EMBEDDING_LENGTH, self.n_embd);
        metadata.insert(keys::FEED_FORWARD_LENGTH, self.n_ff);
        metadata.insert(keys::HEAD_COUNT, self.n_head);
        metadata.insert(keys::HEAD_COUNT_KV, self.n_head_kv);
        self.rope.write_scaling(metadata);
        metadata.insert(keys::ROPE_FREQ_BASE, self.rope.freq_base);
        metadata.insert(keys::LAYER_NORM_RMS_EPSILON, self.rms_eps);
        if self.n_expert > 0 {
            metadata.insert(keys::EXPERT_COUNT, self.n_expert);
            metadata.insert(keys::EXPERT_USED_COUNT, self.n_expert_used);
        }
        if self.head_dim_stated {
            metadata.insert(keys::KEY_LENGTH, self.head_dim_k);
            metadata.insert(keys::VALUE_LENGTH, self.head_dim_v);
        }
        if let Some(window) = self.sliding_window {
            metadata.insert(keys::SLIDING_WINDOW, window);
        }
        metadata.insert(keys::VOCAB_SIZE, self.n_vocab);
        metadata.insert(keys::ROPE_DIMENSION_COUNT, self.n_rot);
    }
}

/// Number of vocabulary entries, with the vocabulary's arrays checked against each other.
///
/// The token list decides where there is one, as in llama.cpp; `llama.vocab_size` alone is what files
/// without a tokenizer have.
fn vocabulary_size(metadata: &Metadata) -> Result<u32, Error> {
    let length = |key: &str| match metadata.get(key) {
        Some(Value::Array(array)) => Ok(Some(array.len() as u64)),
        Some(_) => Err(Error::invalid(key, "a single value", "an array")),
        None => Ok(None),
    };
    let Some(n_tokens) = length(keys::TOKENIZER_TOKENS)? else {
        let expected = "the number of vocabulary entries";
        return metadata.u32(keys::VOCAB_SIZE)?.ok_or(Error::Missing { key: keys::VOCAB_SIZE, expected });
    };
    for key in [keys::TOKENIZER_SCORES, keys::TOKENIZER_TOKEN_TYPE] {
        if let Some(n) = length(key)?.filter(|n| *n != n_tokens) {
            let expected = format!("{n_tokens}, one per token");
            return Err(Error::invalid(key, format!("{n} entries"), expected));
        }
    }
    u32::try_from(n_tokens).ok().filter(|n| *n <= i32::MAX as u32).ok_or_else(|| {
        Error::invalid(keys::TOKENIZER_TOKENS, format!("{n_tokens} entries"), "at most 2147483647")
    })
}

/// Checks that every `tokenizer.ggml.*_token_id` is an id of the vocabulary.
///
/// llama.cpp ignores an id beyond the vocabulary with a warning; it is an error here because such a file
/// never ends its answers, or begins its prompts wrongly, without anybody being told.
fn check_special_ids(metadata: &Metadata, n_vocab: u32) -> Result<(), Error> {
    for (key, value) in metadata.iter() {
        let special = key.starts_with("tokenizer.ggml.") && key.ends_with("_token_id");
        if !special || matches!(value, Value::Array(_)) {
            continue;
        }
        match metadata.u32(key)? {
            Some(id) if id >= n_vocab => {
                return Err(Error::invalid(key, id, format!("an id below the vocabulary's {n_vocab}")));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "metadata_tests.rs"]
mod tests;
