//! What the arguments mean: every choice made, nothing of the model read yet.

use std::path::{Path, PathBuf};

use anyhow::Context;
use bruce::exit::{self, UsageError};
use model_spec::FileType;

use crate::args::{Args, Experts, Mix, Via};
use crate::card::CardOptions;
use crate::{command, rules};

/// What this run will do.
pub struct Config {
    /// The checkpoint directory or GGUF file.
    pub model: PathBuf,
    /// Where to write, if anywhere in particular.
    pub output: Option<PathBuf>,
    /// Whether existing files are replaced.
    pub force: bool,
    /// Whether to show the plan and stop.
    pub dry_run: bool,
    /// Whether to show the plan before the work.
    pub verbose: bool,
    /// Whether to print errors only.
    pub quiet: bool,
    /// How the checkpoint is opened.
    pub open: checkpoint::OpenOptions,
    /// What is made of it.
    pub plan: convert::Options,
    /// Which types are worked out from samples of the weights.
    pub fitted: Fitted,
    /// How.
    pub execute: convert::ExecuteOptions,
    /// What the files will say about their making; all but the source.
    pub provenance: convert::Provenance,
    /// What the model card is to say, if there is to be one.
    pub card: Option<CardOptions>,
}

/// Which types are worked out from samples of the weights.
pub enum Fitted {
    /// None.
    No,
    /// All, so that the file keeps to a size; the name of that size goes into the file's.
    ToTarget(convert::Target, String),
    /// Those of every file whose recipe allows it, at the size that llama.cpp's recipe gives.
    ToRecipe,
}

impl Config {
    /// The meaning of `args`; reads the files of rules and importances among them.
    ///
    /// # Errors
    /// A type is unknown or named twice, a rule makes no sense, a file of rules or importances is not one.
    pub fn resolve(args: Args) -> Result<Config, anyhow::Error> {
        let keep_types = args.quant.iter().any(|name| is_copy(name));
        let file_types =
            if keep_types { check_copy(&args).map(|()| Vec::new())? } else { file_types(&args)? };
        let fitted = fitted(&args);
        let (rules, importance) = (rules::rules(&args)?, rules::importance(&args)?);
        let overrides = rules::overrides(&args.override_kv)?;
        let provenance = convert::Provenance {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            command: command::recorded(&args)?,
            source: String::new(),
            imatrix: sha256(args.imatrix.as_deref())?,
            expert_types: sha256(args.expert_types.as_deref())?,
        };
        if !args.model_card && args.card != CardOptions::default() {
            let what = "--repo, --base-model, --quality: found no --model-card, expected it beside them";
            return Err(UsageError(what.to_owned()).into());
        }
        let overwrite = if args.force { gguf::Overwrite::Replace } else { gguf::Overwrite::Refuse };
        Ok(Config {
            model: args.model,
            output: args.output,
            force: args.force,
            dry_run: args.dry_run,
            verbose: args.verbose,
            quiet: args.quiet,
            open: checkpoint::OpenOptions {
                pre_tokenizer: args.pre_tokenizer,
                ignore_unknown_tensors: args.ignore_unknown_tensors,
            },
            plan: convert::Options {
                file_types,
                expert_layout: match args.expert_layout {
                    Experts::Stacked => convert::ExpertLayout::Stacked,
                    Experts::Split => convert::ExpertLayout::Split,
                },
                via: match args.via {
                    Via::Source => convert::Via::Source,
                    Via::Bf16 => convert::Via::Bf16,
                    Via::F16 => convert::Via::F16,
                },
                name: args.name,
                quantized_by: Some("Bruce".to_owned()),
                rules,
                chosen: Vec::new(),
                importance,
                overrides,
                keep_types,
                allow_requantize: args.allow_requantize,
                split: match args.split_max_size {
                    Some(max) => convert::Split::MaxBytes(max),
                    None if args.keep_split => convert::Split::AsInput,
                    None => convert::Split::None,
                },
                provenance: None,
            },
            fitted,
            execute: convert::ExecuteOptions {
                threads: args.threads.map_or(0, usize::from),
                overwrite,
                allow_non_finite: args.allow_non_finite,
                resume: args.resume,
            },
            provenance,
            card: args.model_card.then_some(args.card),
        })
    }
}

/// Refuses what makes no sense beside `-q copy`.
fn check_copy(args: &Args) -> Result<(), UsageError> {
    if args.quant.len() > 1 {
        let what = "-q copy: found other types beside it, expected none, as it keeps those of the input";
        return Err(UsageError(what.to_owned()));
    }
    match chooses_types(args) {
        Some(option) => Err(UsageError(format!(
            "-q copy: found {option} beside it, expected none, as it keeps every type"
        ))),
        None => Ok(()),
    }
}

/// The file types of `-q`.
fn file_types(args: &Args) -> Result<Vec<FileType>, anyhow::Error> {
    let mut file_types = Vec::new();
    for name in &args.quant {
        let file_type = file_type(name)?;
        if file_types.contains(&file_type) {
            return Err(UsageError(format!("-q: {file_type} is named twice")).into());
        }
        file_types.push(file_type);
    }
    Ok(file_types)
}

/// Whether types are chosen by samples of the weights, and for which size.
fn fitted(args: &Args) -> Fitted {
    match (&args.target_size, args.target_bpw, args.recipe) {
        (Some(size), ..) => Fitted::ToTarget(convert::Target::Bytes(size.bytes), size.text.clone()),
        (_, Some(bits), _) => Fitted::ToTarget(convert::Target::BitsPerWeight(bits), format!("{bits}bpw")),
        (_, _, Mix::Moe) if !args.pure => Fitted::ToRecipe,
        _ => Fitted::No,
    }
}

/// The sum of a file that the command names.
fn sha256(path: Option<&Path>) -> Result<Option<String>, anyhow::Error> {
    let sum = |path: &Path| {
        convert::provenance::sha256(path, &|_| ()).with_context(|| format!("{}: cannot read", path.display()))
    };
    path.map(sum).transpose()
}

/// The first option given that says which types tensors get, or how they are quantized.
fn chooses_types(args: &Args) -> Option<&'static str> {
    let given = [
        (args.pure, "--pure"),
        (args.recipe == Mix::Moe, "--recipe"),
        (args.leave_output_tensor, "--leave-output-tensor"),
        (args.output_tensor_type.is_some(), "--output-tensor-type"),
        (args.token_embedding_type.is_some(), "--token-embedding-type"),
        (!args.type_rules.is_empty(), "--tensor-type"),
        (args.expert_types.is_some(), "--expert-types"),
        (args.imatrix.is_some(), "--imatrix"),
    ];
    given.into_iter().find_map(|(is_given, option)| is_given.then_some(option))
}

/// Whether a name that was typed is llama-quantize's for keeping every type.
fn is_copy(name: &str) -> bool {
    name.trim().eq_ignore_ascii_case("copy")
}

/// The file type of a name that was typed.
fn file_type(name: &str) -> Result<FileType, anyhow::Error> {
    FileType::from_name(name.trim()).ok_or_else(|| {
        let valid: Vec<_> = FileType::all().map(FileType::name).collect();
        let error =
            UsageError(format!("-q: found unknown type {name:?}, expected one of {}", valid.join(", ")));
        match bruce::usage::nearest(name.trim(), valid) {
            Some(meant) => exit::with_hint(error, format!("did you mean {meant}?")),
            None => error.into(),
        }
    })
}

/// An error of the conversion, with what to do about it where that is known.
pub fn advise(error: convert::Error) -> anyhow::Error {
    match &error {
        convert::Error::NonFinite { .. } => exit::with_hint(
            error,
            "the merge that made this checkpoint went wrong there; --allow-non-finite lets such weights through \
             (never in norms and routers)",
        ),
        convert::Error::NeedsImportance { .. } => exit::with_hint(
            error,
            "--imatrix takes a file that llama-imatrix or bruce-run imatrix makes; Q2_K, Q3_K_S and IQ3_S need none",
        ),
        convert::Error::Requantize { .. } => exit::with_hint(
            error,
            "--allow-requantize does it; from the unquantized model the result is better",
        ),
        convert::Error::TargetTooSmall { has_importance: false, .. } => {
            exit::with_hint(error, "with --imatrix there are smaller types")
        }
        convert::Error::MixedExperts { .. } => exit::with_hint(
            error,
            "--expert-layout split keeps them apart; -q with a type and --allow-requantize makes them alike",
        ),
        convert::Error::UnknownTensors { .. } => {
            exit::with_hint(error, "--ignore-unknown-tensors leaves them out")
        }
        convert::Error::NoTypesToKeep { .. } => exit::with_hint(error, "-q bf16 keeps the values of most"),
        _ => error.into(),
    }
}
