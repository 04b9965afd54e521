//! The options of a run that decide its bytes, as a command line that gives them again.

use std::path::Path;

use crate::args::{Args, Experts, Mix, TypeRules, Via};

/// The command line for an output, with [`convert::provenance::TYPE`] for its type and MODEL for the input. Directories are
/// left out: a file must not tell where its maker keeps things, and must not depend on it.
///
/// # Errors
/// A file of rules cannot be read.
pub fn recorded(args: &Args) -> Result<String, anyhow::Error> {
    let size = match (&args.target_size, args.target_bpw) {
        (Some(size), _) => ["--target-size".to_owned(), size.bytes.to_string()],
        (_, Some(bits)) => ["--target-bpw".to_owned(), bits.to_string()],
        _ => ["-q".to_owned(), convert::provenance::TYPE.to_owned()],
    };
    let mut words = vec!["bruce-quant".to_owned(), "MODEL".to_owned()];
    words.extend(size);
    let mut flag = |name: &str, given: bool| {
        if given {
            words.push(name.to_owned());
        }
    };
    flag("--expert-layout split", matches!(args.expert_layout, Experts::Split));
    flag("--recipe moe", matches!(args.recipe, Mix::Moe));
    flag("--via bf16", matches!(args.via, Via::Bf16));
    flag("--via f16", matches!(args.via, Via::F16));
    flag("--allow-requantize", args.allow_requantize);
    flag("--pure", args.pure);
    flag("--leave-output-tensor", args.leave_output_tensor);
    flag("--ignore-unknown-tensors", args.ignore_unknown_tensors);
    flag("--allow-non-finite", args.allow_non_finite);
    flag("--keep-split", args.keep_split);
    let mut option = |name: &str, value: &str| {
        words.push(name.to_owned());
        words.push(quoted(value));
    };
    let texts = |values: &Option<String>| values.clone().into_iter().collect::<Vec<String>>();
    let files =
        |path: &Option<std::path::PathBuf>| path.iter().map(|p| file_name(p)).collect::<Vec<String>>();
    for (name, values) in [
        ("--output-tensor-type", texts(&args.output_tensor_type)),
        ("--token-embedding-type", texts(&args.token_embedding_type)),
        ("--tensor-type", type_rules(args)?),
        ("--expert-types", files(&args.expert_types)),
        ("--imatrix", files(&args.imatrix)),
        ("--include-weights", args.include_weights.clone()),
        ("--exclude-weights", args.exclude_weights.clone()),
        ("--override-kv", args.override_kv.clone()),
        ("--split-max-size", args.split_max_size.iter().map(|n| split_size(*n)).collect()),
        ("--name", texts(&args.name)),
        ("--pre-tokenizer", texts(&args.pre_tokenizer)),
    ] {
        values.iter().for_each(|value| option(name, value));
    }
    Ok(words.join(" "))
}

/// All rules about types, those of files written out.
fn type_rules(args: &Args) -> Result<Vec<String>, anyhow::Error> {
    let mut rules = Vec::new();
    for source in &args.type_rules {
        match source {
            TypeRules::Typed(rule) => rules.push(rule.clone()),
            TypeRules::File(path) => {
                rules.extend(crate::rules::text(path)?.split_whitespace().map(str::to_owned));
            }
        }
    }
    Ok(rules)
}

fn split_size(bytes: u64) -> String {
    match bytes % 1_000_000_000 {
        0 => format!("{}G", bytes / 1_000_000_000),
        _ => format!("{}M", bytes / 1_000_000),
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// A word as a shell takes it.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_a_shell_as_they_are() {
        assert_eq!(quoted("ffn_up=q8_0"), "ffn_up=q8_0");
        assert_eq!(quoted("ffn_.*=q8_0"), "'ffn_.*=q8_0'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
        assert_eq!(quoted(""), "''");
        assert_eq!((split_size(4_000_000_000), split_size(300_000_000)), ("4G".into(), "300M".into()));
    }
}
