//! Options about types, importances and metadata, as typed or in files, to what the library takes.

use std::path::Path;

use anyhow::Context;
use bruce::exit::{self, UsageError};
use convert::{ExpertTypes, Importance, RuleError, Rules, TypeRule};
use gguf::Value;
use model_spec::ValueKind;
use quants::TensorType;

use crate::args::{Args, TypeRules};

/// What the arguments ask for about types.
///
/// # Errors
/// A rule makes no sense, or a file of rules can't be read.
pub fn rules(args: &Args) -> Result<Rules, anyhow::Error> {
    let mut rules = Rules { pure: args.pure, leave_output: args.leave_output_tensor, ..Rules::default() };
    rules.output_type = tensor_type("--output-tensor-type", args.output_tensor_type.as_deref())?;
    rules.token_embedding_type = tensor_type("--token-embedding-type", args.token_embedding_type.as_deref())?;
    for source in &args.type_rules {
        match source {
            TypeRules::Typed(rule) => {
                rules.tensor_types.push(TypeRule::parse(rule, "--tensor-type").map_err(usage)?);
            }
            TypeRules::File(path) => rules.tensor_types.extend(TypeRule::parse_file(path, &text(path)?)?),
        }
    }
    if let Some(path) = &args.expert_types {
        rules.expert_types = Some(ExpertTypes::parse(path, &text(path)?)?);
    }
    Ok(rules)
}

/// The importances that the arguments name.
///
/// # Errors
/// The file can't be read or is none of importances.
pub fn importance(args: &Args) -> Result<Option<Importance>, anyhow::Error> {
    let Some(path) = &args.imatrix else { return Ok(None) };
    Ok(Some(Importance::read(path, &args.include_weights, &args.exclude_weights)?))
}

/// The metadata entries of `--override-kv KEY=KIND:VALUE`, with the types that llama-quantize gives them.
///
/// # Errors
/// One is of another form, a value is none of its kind or not of the one that readers expect, or the key is one that the file's tensors depend on.
pub fn overrides(typed: &[String]) -> Result<Vec<(String, Value)>, anyhow::Error> {
    typed.iter().map(|text| Ok(override_kv(text).map_err(usage)?)).collect()
}

/// Keys whose values say how the rest of the file is to be read.
const FIXED: &[&str] = &["general.architecture", "general.alignment", "general.quantization_version"];

fn override_kv(text: &str) -> Result<(String, Value), RuleError> {
    let error = |found: &str, expected: &str| RuleError {
        place: "--override-kv".to_owned(),
        found: found.to_owned(),
        expected: expected.to_owned(),
    };
    let form = || error(text, "KEY=KIND:VALUE, such as tokenizer.ggml.add_bos_token=bool:false");
    let (key, rest) = text.split_once('=').ok_or_else(form)?;
    let (kind, value) = rest.split_once(':').ok_or_else(form)?;
    if key.is_empty() {
        return Err(form());
    }
    if FIXED.contains(&key) || key.starts_with("split.") {
        return Err(error(key, "a key that the rest of the file does not depend on"));
    }
    let value = match kind {
        "int" => value.parse::<u32>().ok().map(Value::from),
        "float" => value.parse::<f32>().ok().filter(|v| v.is_finite()).map(Value::from),
        "bool" => value.parse::<bool>().ok().map(Value::from),
        "str" => Some(Value::from(value)),
        _ => return Err(error(kind, "int, float, bool or str")),
    };
    let expected = match kind {
        "int" => "a whole number from 0 to 4294967295",
        "float" => "a number",
        _ => "true or false",
    };
    let value = value.ok_or_else(|| error(rest, expected))?;
    let given = match value {
        Value::Bool(_) => ValueKind::Bool,
        Value::F32(_) => ValueKind::Float,
        Value::String(_) => ValueKind::String,
        _ => ValueKind::Integer,
    };
    match ValueKind::of_key(key).filter(|known| *known != given) {
        Some(known) => Err(error(text, &format!("{} for {key}", known.described()))),
        None => Ok((key.to_owned(), value)),
    }
}

fn tensor_type(option: &str, name: Option<&str>) -> Result<Option<TensorType>, anyhow::Error> {
    Ok(name.map(|name| convert::tensor_type(name, option)).transpose().map_err(usage)?)
}

/// What was typed is wrong, not a file.
fn usage(error: RuleError) -> UsageError {
    UsageError(error.to_string())
}

/// The text of a file of rules.
///
/// # Errors
/// It can't be read, or is too large for one.
pub fn text(path: &Path) -> Result<String, anyhow::Error> {
    /// Far more than any list of rules.
    const MAX_BYTES: u64 = 16 << 20;
    let meta = path.metadata().with_context(|| format!("{}: cannot open", path.display()))?;
    if !meta.is_file() || meta.len() > MAX_BYTES {
        let error = anyhow::anyhow!("{}: found something else, expected a file of rules", path.display());
        return Err(exit::with_hint(error, "a rule is REGEX=TYPE, such as attn_v=q8_0"));
    }
    std::fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_keys_take_only_the_kind_that_readers_expect() {
        for good in [
            "llama.rope.freq_base=float:10000",
            "llama.expert_used_count=int:3",
            "tokenizer.ggml.add_bos_token=bool:false",
            "general.name=str:A name: with = signs",
            "my.own=int:1",
        ] {
            assert!(override_kv(good).is_ok(), "{good}");
        }
        for (bad, expected) in [
            ("llama.block_count=str:2", "a whole number (int) for llama.block_count"),
            ("llama.rope.freq_base=int:10000", "float"),
            ("tokenizer.ggml.add_bos_token=int:0", "bool"),
            ("tokenizer.ggml.eos_token_id=bool:true", "int"),
            ("general.name=int:7", "str"),
            ("tokenizer.ggml.tokens=str:a", "list"),
        ] {
            let said = override_kv(bad).expect_err(bad).to_string();
            assert!(said.contains(expected) && said.contains(bad), "{said}");
        }
    }
}
