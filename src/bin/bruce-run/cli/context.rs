//! Size of the context, batches, threads, and types of the KV cache.

use super::values::cache_type;
use clap::ArgAction;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use quants::TensorType;
use runtime::session::{SessionOptions, StageExperts};

/// Sizes and threads.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Context")]
pub struct ContextArgs {
    /// Size of the context in tokens, made a multiple of 256; 0: what the model was trained with
    #[arg(short = 'c', long, value_name = "N", env = "LLAMA_ARG_CTX_SIZE")]
    pub ctx_size: Option<u32>,

    /// Tokens of a prompt that share what is read from the file or copied to GPUs, at most 8 times -ub [default: 2048]
    #[arg(short = 'b', long, value_name = "N", env = "LLAMA_ARG_BATCH", value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: Option<u32>,

    /// Tokens computed at once [-ub, default: 512]
    #[arg(long, alias = "ub", value_name = "N", env = "LLAMA_ARG_UBATCH", value_parser = clap::value_parser!(u32).range(1..))]
    pub ubatch_size: Option<u32>,

    /// Threads for single tokens [default: one per core]
    #[arg(short = 't', long, value_name = "N", env = "LLAMA_ARG_THREADS", allow_hyphen_values = true, value_parser = threads)]
    pub threads: Option<u32>,

    /// Threads for prompts [-tb, default: as -t]
    #[arg(long, alias = "tb", value_name = "N", value_parser = threads)]
    pub threads_batch: Option<u32>,

    /// Flash attention: on, off or auto [-fa]
    #[arg(long, alias = "fa", value_name = "WHEN", env = "LLAMA_ARG_FLASH_ATTN", num_args = 0..=1, require_equals = true,
          default_missing_value = "on", value_parser = switch_parser())]
    pub flash_attn: Option<Switch>,

    /// Type of the cached keys [-ctk, default: f16]
    #[arg(long, alias = "ctk", value_name = "TYPE", env = "LLAMA_ARG_CACHE_TYPE_K", value_parser = cache_type)]
    pub cache_type_k: Option<TensorType>,

    /// Type of the cached values [-ctv, default: f16]
    #[arg(long, alias = "ctv", value_name = "TYPE", env = "LLAMA_ARG_CACHE_TYPE_V", value_parser = cache_type)]
    pub cache_type_v: Option<TensorType>,

    /// Which prompts GPUs read with the experts that are on the CPU, copied to them in time: batches (-b) of so many tokens
    /// and more, off, or auto: as measured when the model is loaded, and none where their memory is short
    #[arg(long, value_name = "N", default_value = "auto", value_parser = stage_experts)]
    pub stage_experts: StageExperts,

    /// Skip the empty run before the first prompt: it is made where a GPU computes, or while you type the first question
    #[arg(long, overrides_with = "warmup")]
    pub no_warmup: bool,

    /// Make an empty run before the first prompt
    #[arg(long, overrides_with = "no_warmup", action = ArgAction::SetTrue)]
    pub warmup: bool,
}

impl ContextArgs {
    /// Whether an empty run comes first, by what the user says or else by `default`.
    pub fn warms_up(&self, default: bool) -> bool {
        self.warmup || (default && !self.no_warmup)
    }

    /// The resolved form.
    pub fn options(&self) -> SessionOptions {
        let default = SessionOptions::default();
        let n_batch = self.batch_size.unwrap_or(default.n_batch);
        SessionOptions {
            n_ctx: self.ctx_size.unwrap_or(default.n_ctx),
            n_batch,
            n_ubatch: self.ubatch_size.unwrap_or(default.n_ubatch).min(n_batch),
            n_threads: self.threads.unwrap_or(default.n_threads),
            n_threads_batch: self.threads_batch.unwrap_or(default.n_threads_batch),
            flash_attention: self.flash_attn.map_or(default.flash_attention, Switch::or_on),
            type_k: self.cache_type_k.unwrap_or(default.type_k),
            type_v: self.cache_type_v.unwrap_or(default.type_v),
            stage_experts: self.stage_experts,
            ..default
        }
    }
}

/// `--stage-experts`.
fn stage_experts(text: &str) -> Result<StageExperts, String> {
    match text {
        "auto" => Ok(StageExperts::Auto),
        "off" => Ok(StageExperts::Never),
        _ => match text.parse::<u32>() {
            Ok(n) if n > 0 => Ok(StageExperts::From(n)),
            _ => Err("expected a number of tokens, auto or off".to_owned()),
        },
    }
}

/// On, off, or as the model and machine allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// Yes.
    On,
    /// No.
    Off,
    /// Whatever works best.
    Auto,
}

impl Switch {
    /// Yes or no, where automatic means yes.
    pub fn or_on(self) -> bool {
        self != Switch::Off
    }

    /// The value of a word that [`switch_parser`] let through.
    pub fn parse(word: &str) -> Switch {
        match word.to_ascii_lowercase().as_str() {
            "off" | "0" | "false" | "disabled" => Switch::Off,
            "auto" | "-1" => Switch::Auto,
            _ => Switch::On,
        }
    }
}

/// llama.cpp's words for on, off and auto.
pub fn switch_parser() -> impl TypedValueParser<Value = Switch> {
    PossibleValuesParser::new([
        PossibleValue::new("on").aliases(["1", "true", "enabled"]),
        PossibleValue::new("off").aliases(["0", "false", "disabled"]),
        PossibleValue::new("auto").alias("-1"),
    ])
    .map(|word| Switch::parse(&word))
}

/// Number of threads; 0 and -1 mean one per core.
fn threads(text: &str) -> Result<u32, String> {
    match text.parse::<i64>() {
        Ok(-1 | 0) => Ok(0),
        Ok(n @ 1..=512) => Ok(n as u32),
        _ => Err("expected 1 to 512, or -1 for one per core".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ContextArgs,
    }

    #[test]
    fn the_last_word_on_empty_runs_counts() {
        let warms_up = |flags: &[&str]| {
            let line = ["program"].iter().chain(flags);
            let args = Line::try_parse_from(line).expect("a command line").args;
            [args.warms_up(false), args.warms_up(true)]
        };
        assert_eq!(warms_up(&[]), [false, true]);
        assert_eq!(warms_up(&["--no-warmup"]), [false, false]);
        assert_eq!(warms_up(&["--no-warmup", "--warmup"]), [true, true]);
        assert_eq!(warms_up(&["--warmup", "--no-warmup"]), [false, false]);
    }
}
