//! config.json: which architecture, and its hyperparameters.
//!
//! Keys that are missing mean what transformers takes them for, which differs between the three families.

use std::path::Path;

use model_spec::{Architecture, HyperParams, MAX_EXPERTS, MAX_LAYERS};
use serde_json::{Map, Value};

use crate::error::{Error, Result, list, quoted};
use crate::fields::Fields;
use crate::json::kind;
use crate::rope;

/// Widths beyond this are typing errors; also keeps products of two within 64 bits.
const MAX_WIDTH: u32 = 1 << 24;

/// The architectures that are read, by their transformers names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Llama,
    Mistral,
    Mixtral,
}

const FAMILIES: &[(&str, &str, Family)] = &[
    ("LlamaForCausalLM", "llama", Family::Llama),
    ("LLaMAForCausalLM", "llama", Family::Llama),
    ("MistralForCausalLM", "mistral", Family::Mistral),
    ("MixtralForCausalLM", "mixtral", Family::Mixtral),
];

impl Family {
    /// As messages name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Family::Llama => "Llama",
            Family::Mistral => "Mistral",
            Family::Mixtral => "Mixtral",
        }
    }
}

/// What config.json says, apart from the vocabulary's size, which the embedding decides.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) family: Family,
    /// `n_vocab` is that of config.json, or 0 where it has none.
    pub(crate) hparams: HyperParams,
    pub(crate) rope_freqs: Option<Vec<f32>>,
    pub(crate) tied_embeddings: bool,
    /// Whether the projections of attention have biases.
    pub(crate) attention_bias: bool,
    /// Whether the dense feed-forward network has biases.
    pub(crate) mlp_bias: bool,
    /// `dtype` or `torch_dtype`; informative only, the shards decide.
    pub(crate) dtype: Option<String>,
    /// `_name_or_path`.
    pub(crate) name_or_path: Option<String>,
    /// `*_token_id` and other members that the vocabulary looks at.
    pub(crate) map: Map<String, Value>,
}

impl Config {
    pub(crate) fn read(file: &Path, map: Map<String, Value>, warnings: &mut Vec<String>) -> Result<Config> {
        let fields = Fields::new(file, &map);
        let family = family(fields)?;
        refuse_quantized(fields)?;
        check_activation(fields)?;
        let need =
            |key: &str, max| fields.count(key, max)?.ok_or_else(|| fields.missing(key, "a whole number"));

        let n_embd = need("hidden_size", MAX_WIDTH)?;
        let Heads { n_head, n_head_kv, head_dim, is_dim_stated } = heads(fields, family, n_embd)?;
        let (n_expert, n_expert_used) = experts(fields, family)?;
        let default_ctx = if family == Family::Llama { 2048 } else { 131_072 };
        let n_ctx_train = fields.count("max_position_embeddings", i32::MAX as u32)?.unwrap_or(default_ctx);
        let default_base = if family == Family::Mixtral { 1e6 } else { 1e4 };
        let rope = rope::read(fields, head_dim, n_ctx_train, default_base, warnings)?;
        let default_eps = if family == Family::Mixtral { 1e-5 } else { 1e-6 };
        let sliding_window = match fields.count("sliding_window", i32::MAX as u32)? {
            None if family == Family::Mistral && !fields.contains("sliding_window") => Some(4096),
            window => window,
        };

        let hparams = HyperParams {
            arch: Architecture::Llama,
            n_layer: need("num_hidden_layers", MAX_LAYERS)?,
            n_embd,
            n_ff: need("intermediate_size", MAX_WIDTH)?,
            n_head,
            n_head_kv,
            head_dim_k: head_dim,
            head_dim_v: head_dim,
            head_dim_stated: is_dim_stated,
            n_rot: head_dim,
            n_vocab: fields.count("vocab_size", i32::MAX as u32)?.unwrap_or(0),
            n_ctx_train,
            n_expert,
            n_expert_used,
            rms_eps: fields.positive("rms_norm_eps")?.unwrap_or(default_eps) as f32,
            rope: rope.rope,
            sliding_window,
        };
        let dtype = match fields.str("dtype")? {
            Some(dtype) => Some(dtype),
            None => fields.str("torch_dtype")?,
        };
        Ok(Config {
            family,
            hparams,
            rope_freqs: rope.freqs,
            tied_embeddings: fields.bool("tie_word_embeddings")?.unwrap_or(false),
            attention_bias: fields.bool("attention_bias")?.unwrap_or(false),
            mlp_bias: fields.bool("mlp_bias")?.unwrap_or(false),
            dtype: dtype.map(str::to_owned),
            name_or_path: fields.str("_name_or_path").ok().flatten().map(str::to_owned),
            map,
        })
    }
}

/// The heads of attention.
struct Heads {
    n_head: u32,
    n_head_kv: u32,
    head_dim: u32,
    is_dim_stated: bool,
}

fn heads(fields: Fields<'_>, family: Family, n_embd: u32) -> Result<Heads> {
    let key = "num_attention_heads";
    let n_head = fields.count(key, n_embd)?.ok_or_else(|| fields.missing(key, "a whole number"))?;
    let head_dim = fields.count("head_dim", MAX_WIDTH)?;
    if head_dim.is_none() && !n_embd.is_multiple_of(n_head) {
        let expected = format!("a divisor of hidden_size, {n_embd}, or head_dim stated");
        return Err(Error::malformed(fields.file, key, n_head.to_string(), expected));
    }
    let n_head_kv = match fields.count("num_key_value_heads", n_head)? {
        Some(n) => n,
        None if family == Family::Llama || fields.contains("num_key_value_heads") => n_head,
        None => 8,
    };
    if n_head % n_head_kv != 0 {
        let expected = format!("a divisor of the {n_head} query heads");
        return Err(Error::malformed(fields.file, "num_key_value_heads", n_head_kv.to_string(), expected));
    }
    // The converter sees the configuration through transformers, which fills in head_dim for the dense
    // families; the file then states it.
    let is_dim_stated = head_dim.is_some() || family != Family::Mixtral;
    let head_dim = head_dim.unwrap_or(n_embd / n_head);
    if head_dim % 2 != 0 {
        let expected = "an even number (pairs rotate)";
        return Err(Error::malformed(fields.file, "head_dim", head_dim.to_string(), expected));
    }
    Ok(Heads { n_head, n_head_kv, head_dim, is_dim_stated })
}

fn family(fields: Fields<'_>) -> Result<Family> {
    let supported = "LlamaForCausalLM, MistralForCausalLM or MixtralForCausalLM";
    if let Some(value) = fields.value("architectures") {
        let names: Option<Vec<&str>> =
            value.as_array().map(|names| names.iter().filter_map(Value::as_str).collect());
        let Some(names) = names.filter(|n| !n.is_empty()) else {
            return Err(fields.wrong("architectures", value, supported));
        };
        let known = FAMILIES.iter().find(|(name, ..)| names.contains(name));
        return known
            .map(|(.., family)| *family)
            .ok_or_else(|| Error::malformed(fields.file, "architectures", list(&names, 4), supported));
    }
    let Some(model_type) = fields.str("model_type")? else {
        return Err(fields.missing("architectures", supported));
    };
    let known = FAMILIES.iter().find(|(_, name, _)| *name == model_type);
    known.map(|(.., family)| *family).ok_or_else(|| {
        Error::malformed(fields.file, "model_type", quoted(model_type), "llama, mistral or mixtral")
    })
}

/// Number of experts and how many of them a token uses; zeros for a dense model.
fn experts(fields: Fields<'_>, family: Family) -> Result<(u32, u32)> {
    if family != Family::Mixtral {
        return Ok((0, 0));
    }
    let n_expert = match fields.count("num_local_experts", MAX_EXPERTS)? {
        Some(n) => n,
        None => fields.count("num_experts", MAX_EXPERTS)?.ok_or_else(|| {
            fields.missing("num_local_experts", format!("a whole number from 1 to {MAX_EXPERTS}"))
        })?,
    };
    let used = match fields.count("num_experts_per_tok", MAX_EXPERTS)? {
        Some(n) => n,
        None => 2.min(n_expert),
    };
    if used > n_expert {
        let expected = format!("at most the number of experts, {n_expert}");
        return Err(Error::malformed(fields.file, "num_experts_per_tok", used.to_string(), expected));
    }
    Ok((n_expert, used))
}

fn refuse_quantized(fields: Fields<'_>) -> Result<()> {
    let Some(value) = fields.value("quantization_config") else { return Ok(()) };
    let method = value.get("quant_method").map_or_else(|| kind(value), kind);
    Err(Error::malformed(
        fields.file,
        "quantization_config",
        method,
        "none: quantize the original F32, F16 or BF16 weights instead",
    ))
}

fn check_activation(fields: Fields<'_>) -> Result<()> {
    match fields.str("hidden_act")? {
        None | Some("silu" | "swish") => Ok(()),
        Some(other) => Err(Error::malformed(fields.file, "hidden_act", quoted(other), "silu")),
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
