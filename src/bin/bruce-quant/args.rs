//! The command line, as typed.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use bruce::exit;
use clap::builder::styling::Styles;
use clap::error::ErrorKind;
use clap::{Parser, ValueEnum};

use crate::card::CardOptions;
use crate::subcommand;

/// Far more than there are cores; each more only waits.
const MAX_THREADS: i64 = 512;

const EXAMPLES: &str = "\
Examples:
  bruce-quant BurningBruce-004 -q q4_k
      writes BurningBruce-004-Q4_K_M.gguf beside the directory
  bruce-quant BurningBruce-004 -q q4_k,q8_0 -o /srv/models/
      writes two files into /srv/models and reads the checkpoint once
  bruce-quant BurningBruce-004 -q q5_k_m --dry-run
      shows every tensor, the size, and whether the disk has room
  bruce-quant verify BurningBruce-004-Q4_K_M.gguf
      checks a file: every weight, the tokenizer, the chat template
  bruce-quant verify BurningBruce-004-Q4_K_M.gguf --against BurningBruce-004
      and how far every tensor and expert is from the checkpoint's
  bruce-quant card BurningBruce-004-*.gguf
      writes README.md for the Hugging Face hub; --model-card does it while quantizing
  bruce-quant BurningBruce-004 -q iq3_m --imatrix imatrix.gguf --tensor-type 'attn_.*=q8_0'
      takes importances from a file of llama-imatrix or bruce-run imatrix, and keeps attention large
  bruce-quant BurningBruce-004 --target-size 12G --dry-run
      shows the types that do least harm in a file of at most 12 GB
  bruce-quant mixtral-BF16.gguf -q q5_k
      starts from a GGUF file, as llama-quantize does
  bruce-quant mixtral-2023.Q4_K_M.gguf -q copy
      stacks the experts of an old file, so that today's llama.cpp loads it; no weight changes

Types, in any case: Q4_K_M (or Q4_K), Q4_K_S, Q5_K_M (or Q5_K), Q5_K_S, Q6_K, Q8_0, BF16, F16, F32;
  Q3_K_L, Q3_K_M (or Q3_K), Q3_K_S, Q2_K, IQ4_XS, IQ4_NL, IQ3_M, IQ3_S, Q4_0, Q4_1, Q5_0, Q5_1,
  MXFP4_MOE, TQ1_0, TQ2_0, Q1_0, Q2_0; and only with --imatrix: IQ3_XS, IQ3_XXS, Q2_K_S, IQ2_M,
  IQ2_S, IQ2_XS, IQ2_XXS, IQ1_M, IQ1_S.
COPY keeps the types of a GGUF file.
The types of single tensors follow llama-quantize, so the tensors equal those it makes.
Types of tensors (TYPE below): f32, f16, bf16, q8_0, q6_K, q5_K, q4_K, q3_K, q2_K, iq4_xs, iq4_nl,
  iq3_s, iq3_xxs and so on.";

/// Quantizes a Hugging Face checkpoint or a GGUF file (Llama, Mistral, Mixtral) to GGUF, in one pass.
#[derive(Debug, Parser)]
#[command(
    name = "bruce-quant",
    version = bruce::VERSION,
    long_version = bruce::LONG_VERSION,
    after_help = EXAMPLES,
    max_term_width = 100,
    override_usage = "bruce-quant <MODEL> -q <TYPE[,TYPE]> [OPTIONS]\n       bruce-quant verify <FILE> [OPTIONS]\n       bruce-quant card <FILE>... [OPTIONS]"
)]
pub struct Args {
    /// The model: a directory with config.json, safetensors and a tokenizer, or a GGUF file (of several parts, any one).
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,

    /// What to quantize to; several separated by commas.
    #[arg(
        short,
        long = "quant",
        visible_alias = "type",
        value_name = "TYPE[,TYPE]",
        required_unless_present_any = ["target_size", "target_bpw"],
        value_delimiter = ','
    )]
    pub quant: Vec<String>,

    /// Instead of -q: as large a file as SIZE allows (12G, 800M, 11.5GiB), all parts, headers and the tokenizer included.
    /// Each tensor (each expert, with --expert-layout split) is sampled in every type, and gets the one that keeps the
    /// model's output nearest to the original's for its bytes.
    #[arg(long, value_name = "SIZE", conflicts_with_all = ["quant", "pure", "recipe"], value_parser = target_size)]
    pub target_size: Option<TargetSize>,

    /// The same with so many bits per weight, counted over the tensors.
    #[arg(
        long,
        value_name = "BITS",
        conflicts_with_all = ["quant", "pure", "recipe", "target_size"],
        value_parser = target_bpw
    )]
    pub target_bpw: Option<f64>,

    /// The file to write, or a directory to write into [default: <Name>-<TYPE>.gguf beside MODEL; with a target size
    /// <Name>-<SIZE>-<TYPE>.gguf, TYPE the one whose files are about as large].
    #[arg(short, long, value_name = "PATH|DIR", value_parser = bruce::usage::output_path())]
    pub output: Option<PathBuf>,

    /// Replace files that exist.
    #[arg(short, long)]
    pub force: bool,

    /// Show what would be written, and whether the disk has room; write nothing.
    #[arg(short = 'n', long)]
    pub dry_run: bool,

    /// How experts are stored: all of a layer in one tensor, which llama.cpp needs, or each in its own.
    #[arg(long, value_enum, default_value_t = Experts::Stacked, value_name = "LAYOUT")]
    pub expert_layout: Experts,

    /// Quantize weights again that a GGUF file has quantized already; they get worse by it.
    #[arg(long)]
    pub allow_requantize: bool,

    /// A type weights pass through first, as in llama.cpp's two steps (convert, then quantize).
    #[arg(long, value_enum, default_value_t = Via::Source, value_name = "TYPE")]
    pub via: Via,

    /// How much each column of each weight counts: a file of llama-imatrix (GGUF or .dat) or of bruce-run imatrix.
    #[arg(long, value_name = "FILE", help_heading = "Importances")]
    pub imatrix: Option<PathBuf>,

    /// Take importances only for tensors with this in their names (repeatable).
    #[arg(long, value_name = "NAME", requires = "imatrix", help_heading = "Importances")]
    pub include_weights: Vec<String>,

    /// Take no importances for tensors with this in their names (repeatable).
    #[arg(
        long,
        value_name = "NAME",
        requires = "imatrix",
        conflicts_with = "include_weights",
        help_heading = "Importances"
    )]
    pub exclude_weights: Vec<String>,

    /// Which tensors get more bits than others: as in llama-quantize, or, for models with experts and at no more size, as
    /// samples of them and measured sensitivities say.
    #[arg(long, value_enum, default_value_t = Mix::Llama, value_name = "RECIPE", help_heading = "Types of tensors")]
    pub recipe: Mix,

    /// All tensors in the file's own type, without llama-quantize's exceptions.
    #[arg(long, help_heading = "Types of tensors")]
    pub pure: bool,

    /// Leave output.weight as it is.
    #[arg(long, help_heading = "Types of tensors")]
    pub leave_output_tensor: bool,

    /// The type of output.weight.
    #[arg(long, value_name = "TYPE", help_heading = "Types of tensors")]
    pub output_tensor_type: Option<String>,

    /// The type of token_embd.weight.
    #[arg(long, value_name = "TYPE", help_heading = "Types of tensors")]
    pub token_embedding_type: Option<String>,

    /// The type of tensors in whose names REGEX is found (repeatable; the first that fits counts).
    #[arg(long, value_name = "REGEX=TYPE", help_heading = "Types of tensors")]
    pub tensor_type: Vec<String>,

    /// A file of such rules, separated by spaces or lines.
    #[arg(long, value_name = "FILE", help_heading = "Types of tensors")]
    pub tensor_type_file: Vec<PathBuf>,

    /// A table of types by layer and expert, for --expert-layout split: lines "LAYERS EXPERTS [gate|up|down] TYPE",
    /// such as "0-3,7 * down q6_K".
    #[arg(long, value_name = "FILE", help_heading = "Types of tensors")]
    pub expert_types: Option<PathBuf>,

    /// A metadata entry to set; KIND is int, float, bool or str (repeatable).
    #[arg(long, value_name = "KEY=KIND:VALUE")]
    pub override_kv: Vec<String>,

    /// --tensor-type and the contents of --tensor-type-file in the order of the command line.
    #[arg(skip)]
    pub type_rules: Vec<TypeRules>,

    /// Divide each output into parts of at most this size (300M, 4G), each a file of its own.
    #[arg(long, value_name = "SIZE", value_parser = split_size, conflicts_with = "keep_split")]
    pub split_max_size: Option<u64>,

    /// Divide each output into the parts that the input, a GGUF file, has.
    #[arg(long)]
    pub keep_split: bool,

    /// Go on where an interrupted run with the same input and options came to; leave the unfinished files (hidden, beside
    /// the output) when this one is interrupted or fails.
    #[arg(long)]
    pub resume: bool,

    /// Number of threads [default: one per core].
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=MAX_THREADS))]
    pub threads: Option<u16>,

    /// The model's name, instead of what the checkpoint or GGUF file says.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// The pre-tokenizer (tokenizer.ggml.pre), where tokenizer.json is not recognised.
    #[arg(long, value_name = "NAME")]
    pub pre_tokenizer: Option<String>,

    /// Leave out tensors that no Llama or Mixtral has, instead of refusing the model.
    #[arg(long)]
    pub ignore_unknown_tensors: bool,

    /// Let NaN and infinities in weights through (never in norms and routers).
    #[arg(long)]
    pub allow_non_finite: bool,

    /// Also write a model card for the Hugging Face hub, README.md beside the first file.
    #[arg(long, help_heading = "Model card")]
    pub model_card: bool,

    /// What the card says that no file knows.
    #[command(flatten)]
    pub card: CardOptions,

    /// Show the plan before the work.
    #[arg(short, long, conflicts_with = "quiet")]
    pub verbose: bool,

    /// Print errors only.
    #[arg(long)]
    pub quiet: bool,
}

/// Bytes of a size with a unit, as llama-gguf-split takes it: powers of ten.
fn split_size(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.strip_suffix(['G', 'g']) {
        Some(digits) => (digits, 1_000_000_000),
        None => (text.strip_suffix(['M', 'm']).unwrap_or(""), 1_000_000),
    };
    let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| "expected a whole number of M or G, such as 300M or 4G".to_owned())
}

/// A size as it was typed.
#[derive(Debug, Clone)]
pub struct TargetSize {
    /// What was typed; it names the file.
    pub text: String,
    /// What it means.
    pub bytes: u64,
}

fn target_size(text: &str) -> Result<TargetSize, String> {
    let bytes = bruce::size::parse(text).filter(|bytes| *bytes > 0);
    let bytes = bytes.ok_or_else(|| "expected a size such as 12G, 800M or 11.5GiB".to_owned())?;
    Ok(TargetSize { text: text.trim().to_owned(), bytes })
}

fn target_bpw(text: &str) -> Result<f64, String> {
    let bits = text.parse::<f64>().ok().filter(|bits| *bits > 0.0 && *bits <= 32.0);
    bits.ok_or_else(|| "expected bits per weight, such as 4.5".to_owned())
}

/// How experts are stored.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Experts {
    /// One tensor per projection holds all experts.
    Stacked,
    /// One tensor per projection and expert.
    Split,
}

/// Which tensors get more bits than others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mix {
    /// As llama-quantize has it.
    Llama,
    /// Where they do most at the size of llama-quantize's file.
    Moe,
}

/// What weights pass through.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Via {
    /// Nothing: quantize what the checkpoint holds.
    Source,
    /// BF16.
    Bf16,
    /// F16.
    F16,
}

/// Where rules about types come from.
#[derive(Debug, Clone)]
pub enum TypeRules {
    /// One that was typed.
    Typed(String),
    /// Those of a file.
    File(PathBuf),
}

/// The rules about types in the order in which they were typed, which decides between them.
fn in_order(matches: &clap::ArgMatches) -> Vec<TypeRules> {
    let mut found: Vec<(usize, TypeRules)> = Vec::new();
    if let (Some(at), Some(rules)) =
        (matches.indices_of("tensor_type"), matches.get_many::<String>("tensor_type"))
    {
        found.extend(at.zip(rules.map(|rule| TypeRules::Typed(rule.clone()))));
    }
    if let (Some(at), Some(files)) =
        (matches.indices_of("tensor_type_file"), matches.get_many::<PathBuf>("tensor_type_file"))
    {
        found.extend(at.zip(files.map(|file| TypeRules::File(file.clone()))));
    }
    found.sort_by_key(|(at, _)| *at);
    found.into_iter().map(|(_, rules)| rules).collect()
}

impl Args {
    /// The arguments of this process, or the exit code where the command line asks for help or makes no sense.
    pub fn from_command_line(argv: &[OsString]) -> Result<Args, ExitCode> {
        let plain = bruce::terminal::no_color();
        let matches = <Args as clap::CommandFactory>::command();
        let matches = if plain { matches.styles(Styles::plain()) } else { matches };
        let parsed = matches.try_get_matches_from(argv).and_then(|m| {
            let mut args = <Args as clap::FromArgMatches>::from_arg_matches(&m)?;
            args.type_rules = in_order(&m);
            Ok(args)
        });
        parsed.map_err(|error| match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                let shown = write!(std::io::stdout(), "{}", error.render());
                exit::finish(shown.map_err(exit::stdout_error))
            }
            _ => exit::finish(Err(bruce::usage::refusal(&error, "bruce-quant", subcommand::NAMES, argv))),
        })
    }
}
