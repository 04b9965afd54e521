//! Which kind of value readers expect under a key.

use crate::keys;

/// What a value is, whatever its width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueKind {
    /// A whole number.
    Integer,
    /// A number with a fraction.
    Float,
    /// True or false.
    Bool,
    /// A text.
    String,
    /// A list.
    Array,
}

impl ValueKind {
    /// What readers expect under a key: llama.cpp's loader for this architecture (llama-arch.cpp, llama-hparams, llama-vocab)
    /// and the format's document. `None` for keys that none of them knows.
    pub fn of_key(key: &str) -> Option<ValueKind> {
        use ValueKind::*;
        Some(match key {
            keys::BLOCK_COUNT
            | keys::CONTEXT_LENGTH
            | keys::EMBEDDING_LENGTH
            | keys::FEED_FORWARD_LENGTH
            | keys::HEAD_COUNT
            | keys::HEAD_COUNT_KV
            | keys::KEY_LENGTH
            | keys::VALUE_LENGTH
            | keys::SLIDING_WINDOW
            | keys::EXPERT_COUNT
            | keys::EXPERT_USED_COUNT
            | keys::VOCAB_SIZE
            | keys::ROPE_DIMENSION_COUNT
            | keys::ROPE_SCALING_ORIG_CTX
            | keys::GENERAL_FILE_TYPE
            | keys::GENERAL_QUANTIZATION_VERSION
            | keys::GENERAL_ALIGNMENT
            | keys::GENERAL_BASE_MODEL_COUNT
            | keys::GENERAL_DATASET_COUNT
            | "general.sampling.top_k" => Integer,
            keys::LAYER_NORM_RMS_EPSILON
            | keys::ROPE_FREQ_BASE
            | keys::ROPE_SCALING_FACTOR
            | keys::ROPE_SCALE_LINEAR
            | keys::ROPE_SCALING_ATTN_FACTOR
            | keys::ROPE_SCALING_YARN_EXT_FACTOR
            | keys::ROPE_SCALING_YARN_ATTN_FACTOR
            | keys::ROPE_SCALING_YARN_BETA_FAST
            | keys::ROPE_SCALING_YARN_BETA_SLOW => Float,
            keys::ROPE_SCALING_TYPE | keys::TOKENIZER_MODEL | keys::TOKENIZER_PRE => String,
            keys::GENERAL_TAGS
            | keys::GENERAL_LANGUAGES
            | keys::MERGEKIT_EXPERTS
            | keys::TOKENIZER_TOKENS
            | keys::TOKENIZER_SCORES
            | keys::TOKENIZER_TOKEN_TYPE
            | keys::TOKENIZER_MERGES
            | keys::CHAT_TEMPLATES => Array,
            _ => return by_form(key),
        })
    }

    /// The kind's name in messages: `a whole number`.
    pub fn described(self) -> &'static str {
        match self {
            ValueKind::Integer => "a whole number (int)",
            ValueKind::Float => "a number with a fraction (float)",
            ValueKind::Bool => "true or false (bool)",
            ValueKind::String => "a text (str)",
            ValueKind::Array => "a list, which cannot be set here",
        }
    }
}

/// Keys of which there are many.
fn by_form(key: &str) -> Option<ValueKind> {
    if key == keys::CHAT_TEMPLATE || key.starts_with("tokenizer.chat_template.") {
        return Some(ValueKind::String);
    }
    if let Some(name) = key.strip_prefix("tokenizer.ggml.") {
        return match name {
            _ if name.ends_with("_token_id") => Some(ValueKind::Integer),
            _ if name.starts_with("add_") => Some(ValueKind::Bool),
            "remove_extra_whitespaces" | "escape_whitespaces" | "byte_fallback" => Some(ValueKind::Bool),
            _ => None,
        };
    }
    if key.starts_with("general.sampling.") {
        return Some(ValueKind::Float);
    }
    // Names, licences, addresses, whatever else describes a model.
    key.starts_with("general.").then_some(ValueKind::String)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_those_of_the_values_that_are_written() {
        for (key, kind) in [
            ("llama.block_count", ValueKind::Integer),
            ("llama.rope.freq_base", ValueKind::Float),
            ("tokenizer.ggml.add_bos_token", ValueKind::Bool),
            ("tokenizer.ggml.seperator_token_id", ValueKind::Integer),
            ("tokenizer.ggml.tokens", ValueKind::Array),
            ("tokenizer.chat_template.tool_use", ValueKind::String),
            ("general.base_model.0.name", ValueKind::String),
            ("general.sampling.top_k", ValueKind::Integer),
            ("general.sampling.temp", ValueKind::Float),
        ] {
            assert_eq!(ValueKind::of_key(key), Some(kind), "{key}");
        }
        for key in ["llama.something", "my.own", "tokenizer.ggml.new"] {
            assert_eq!(ValueKind::of_key(key), None, "{key}");
        }
    }
}
