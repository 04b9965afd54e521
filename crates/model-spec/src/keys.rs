//! The metadata keys of a Llama-architecture GGUF, spelled once.
//!
//! Keys under `llama.` belong to the one architecture handled here: llama.cpp files every Llama,
//! Mistral and Mixtral under that prefix.

/// Names the architecture, and with it the prefix of the hyperparameter keys.
pub const GENERAL_ARCHITECTURE: &str = "general.architecture";
/// `model` for a model, `imatrix` for an importance matrix.
pub const GENERAL_TYPE: &str = "general.type";
/// The model's name as people read it.
pub const GENERAL_NAME: &str = "general.name";
/// Who made it.
pub const GENERAL_AUTHOR: &str = "general.author";
/// Version of the model, as its name states it.
pub const GENERAL_VERSION: &str = "general.version";
/// The organisation behind it.
pub const GENERAL_ORGANIZATION: &str = "general.organization";
/// What it was tuned for, as its name states it.
pub const GENERAL_FINETUNE: &str = "general.finetune";
/// The family's name.
pub const GENERAL_BASENAME: &str = "general.basename";
/// Free text about the model.
pub const GENERAL_DESCRIPTION: &str = "general.description";
/// Which program quantized the file.
pub const GENERAL_QUANTIZED_BY: &str = "general.quantized_by";
/// Rounded number of weights: `8B`, `4x7B`.
pub const GENERAL_SIZE_LABEL: &str = "general.size_label";
/// Licence identifier.
pub const GENERAL_LICENSE: &str = "general.license";
/// Licence name where the identifier is `other`.
pub const GENERAL_LICENSE_NAME: &str = "general.license.name";
/// Where the licence can be read.
pub const GENERAL_LICENSE_LINK: &str = "general.license.link";
/// Where the checkpoint came from.
pub const GENERAL_SOURCE_URL: &str = "general.source.url";
/// Where the checkpoint's repository is.
pub const GENERAL_SOURCE_REPO_URL: &str = "general.source.repo_url";
/// Tags of the model card.
pub const GENERAL_TAGS: &str = "general.tags";
/// Languages of the model card.
pub const GENERAL_LANGUAGES: &str = "general.languages";
/// Number of base models that follow under `general.base_model.<i>.`.
pub const GENERAL_BASE_MODEL_COUNT: &str = "general.base_model.count";
/// What each expert of a merge was made of, by index.
pub const MERGEKIT_EXPERTS: &str = "mergekit.experts";
/// Number of datasets that follow under `general.dataset.<i>.`.
pub const GENERAL_DATASET_COUNT: &str = "general.dataset.count";
/// Which recipe most tensors follow; see [`crate::FileType`].
pub const GENERAL_FILE_TYPE: &str = "general.file_type";
/// Version of the quantized block layouts.
pub const GENERAL_QUANTIZATION_VERSION: &str = "general.quantization_version";
/// Byte alignment of tensor data.
pub const GENERAL_ALIGNMENT: &str = "general.alignment";

/// Number of layers.
pub const BLOCK_COUNT: &str = "llama.block_count";
/// Context length the model was trained for.
pub const CONTEXT_LENGTH: &str = "llama.context_length";
/// Width of the residual stream.
pub const EMBEDDING_LENGTH: &str = "llama.embedding_length";
/// Inner width of the feed-forward network, per expert.
pub const FEED_FORWARD_LENGTH: &str = "llama.feed_forward_length";
/// Number of query heads.
pub const HEAD_COUNT: &str = "llama.attention.head_count";
/// Number of key and value heads.
pub const HEAD_COUNT_KV: &str = "llama.attention.head_count_kv";
/// Width of one key head.
pub const KEY_LENGTH: &str = "llama.attention.key_length";
/// Width of one value head.
pub const VALUE_LENGTH: &str = "llama.attention.value_length";
/// Epsilon of the RMS norms.
pub const LAYER_NORM_RMS_EPSILON: &str = "llama.attention.layer_norm_rms_epsilon";
/// Number of past positions attention sees, where limited.
pub const SLIDING_WINDOW: &str = "llama.attention.sliding_window";
/// Number of experts.
pub const EXPERT_COUNT: &str = "llama.expert_count";
/// Number of experts used per token.
pub const EXPERT_USED_COUNT: &str = "llama.expert_used_count";
/// Number of vocabulary entries.
pub const VOCAB_SIZE: &str = "llama.vocab_size";
/// Number of head components that rotate.
pub const ROPE_DIMENSION_COUNT: &str = "llama.rope.dimension_count";
/// Base of the rotary frequencies.
pub const ROPE_FREQ_BASE: &str = "llama.rope.freq_base";
/// `none`, `linear` or `yarn`.
pub const ROPE_SCALING_TYPE: &str = "llama.rope.scaling.type";
/// How many times longer than trained the context is meant to be.
pub const ROPE_SCALING_FACTOR: &str = "llama.rope.scaling.factor";
/// The factor under its name of 2023, still found in linear-scaled files.
pub const ROPE_SCALE_LINEAR: &str = "llama.rope.scale_linear";
/// YaRN's multiplier of the attention temperature.
pub const ROPE_SCALING_ATTN_FACTOR: &str = "llama.rope.scaling.attn_factor";
/// Context length before scaling.
pub const ROPE_SCALING_ORIG_CTX: &str = "llama.rope.scaling.original_context_length";
/// YaRN's mix of extrapolation.
pub const ROPE_SCALING_YARN_EXT_FACTOR: &str = "llama.rope.scaling.yarn_ext_factor";
/// YaRN's attention factor as the converter spells it.
pub const ROPE_SCALING_YARN_ATTN_FACTOR: &str = "llama.rope.scaling.yarn_attn_factor";
/// YaRN's upper correction bound, in rotations.
pub const ROPE_SCALING_YARN_BETA_FAST: &str = "llama.rope.scaling.yarn_beta_fast";
/// YaRN's lower correction bound, in rotations.
pub const ROPE_SCALING_YARN_BETA_SLOW: &str = "llama.rope.scaling.yarn_beta_slow";

/// `llama` (SentencePiece style) or `gpt2` (byte-level BPE).
pub const TOKENIZER_MODEL: &str = "tokenizer.ggml.model";
/// Which pre-tokenizer splits text.
pub const TOKENIZER_PRE: &str = "tokenizer.ggml.pre";
/// Token texts by id.
pub const TOKENIZER_TOKENS: &str = "tokenizer.ggml.tokens";
/// Token scores by id.
pub const TOKENIZER_SCORES: &str = "tokenizer.ggml.scores";
/// Token types by id: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
pub const TOKENIZER_TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
/// Merges of a byte-level BPE, best first.
pub const TOKENIZER_MERGES: &str = "tokenizer.ggml.merges";
/// Begins a text.
pub const TOKENIZER_BOS_ID: &str = "tokenizer.ggml.bos_token_id";
/// Ends a text.
pub const TOKENIZER_EOS_ID: &str = "tokenizer.ggml.eos_token_id";
/// Ends a turn.
pub const TOKENIZER_EOT_ID: &str = "tokenizer.ggml.eot_token_id";
/// Ends a message that expects a tool's answer.
pub const TOKENIZER_EOM_ID: &str = "tokenizer.ggml.eom_token_id";
/// Stands for what the vocabulary lacks.
pub const TOKENIZER_UNK_ID: &str = "tokenizer.ggml.unknown_token_id";
/// Pads batches.
pub const TOKENIZER_PAD_ID: &str = "tokenizer.ggml.padding_token_id";
/// Whether a text begins with the BOS token.
pub const TOKENIZER_ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
/// Whether a text ends with the EOS token.
pub const TOKENIZER_ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
/// Whether a space is put in front of a text.
pub const TOKENIZER_ADD_SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";
/// The chat template, in Jinja.
pub const CHAT_TEMPLATE: &str = "tokenizer.chat_template";
/// Names of further chat templates, each under `tokenizer.chat_template.<name>`.
pub const CHAT_TEMPLATES: &str = "tokenizer.chat_templates";
