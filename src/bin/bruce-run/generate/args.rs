//! What to say to the model, and how its answer is shown.

use super::prompt_cache::PromptCacheArgs;
use crate::cli::context::ContextArgs;
use crate::cli::model::{LoadArgs, ModelFile, PlacementArgs};
use crate::cli::sampling::SamplingArgs;
use crate::cli::values::{n_predict, unescape};
use crate::plan::DryRun;
use crate::text_file;
use bruce::exit::UsageError;
use clap::{ArgAction, ValueEnum};
use std::path::PathBuf;

/// Flags of `bruce-run` without a subcommand.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub model: ModelFile,

    #[command(flatten)]
    pub prompt: PromptArgs,

    #[command(flatten)]
    pub sampling: SamplingArgs,

    #[command(flatten)]
    pub context: ContextArgs,

    #[command(flatten)]
    pub load: LoadArgs,

    #[command(flatten)]
    pub placement: PlacementArgs,

    /// Show what would live where and how fast it should run, as text or json, and stop
    #[arg(long, value_enum, value_name = "FORMAT", num_args = 0..=1, require_equals = true,
          default_missing_value = "text", help_heading = "Placement")]
    pub dry_run: Option<DryRun>,

    #[command(flatten)]
    pub ignored: IgnoredArgs,
}

/// Prompt and answer.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Prompt and answer")]
pub struct PromptArgs {
    /// What to ask or, without a chat template, to continue
    #[arg(short, long, value_name = "TEXT")]
    prompt: Option<String>,

    /// A file with the prompt; - is stdin
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    file: Option<PathBuf>,

    /// What the model is told before the conversation [-sys]
    #[arg(long, alias = "sys", value_name = "TEXT")]
    system_prompt: Option<String>,

    /// A file with the system prompt [-sysf]
    #[arg(long, alias = "sysf", value_name = "FILE", conflicts_with = "system_prompt")]
    system_prompt_file: Option<PathBuf>,

    /// Go on with a conversation after the first answer [-cnv, -i]
    #[arg(long, aliases = ["cnv", "interactive", "i"], overrides_with = "no_conversation")]
    conversation: bool,

    /// Continue the prompt's text as it is, without the chat template [-no-cnv]
    #[arg(long, alias = "no-cnv", overrides_with = "conversation")]
    no_conversation: bool,

    /// End after one answer [-st]
    #[arg(long, alias = "st", conflicts_with = "no_conversation")]
    single_turn: bool,

    /// Use this template instead of the file's: a well-known name (chatml, mistral-v3, ...) or Jinja
    #[arg(long, value_name = "NAME|TEXT", env = "LLAMA_ARG_CHAT_TEMPLATE")]
    chat_template: Option<String>,

    /// A file with the template
    #[arg(long, value_name = "FILE", env = "LLAMA_ARG_CHAT_TEMPLATE_FILE", conflicts_with = "chat_template")]
    chat_template_file: Option<PathBuf>,

    /// Tokens an answer has at most; -1: until the model ends it, -2: until the context is full [default: -1]
    #[arg(short = 'n', long, alias = "n-predict", value_name = "N", value_parser = n_predict, env = "LLAMA_ARG_N_PREDICT")]
    predict: Option<i64>,

    /// Draft tokens from what the text said before, where it repeats itself; only what the model says too is kept
    #[arg(long)]
    lookup: bool,

    /// With --lookup: tokens that are drafted at once [--draft]
    #[arg(long, alias = "draft", value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=62))]
    draft_max: u32,

    /// Words that end an answer
    #[arg(short, long, value_name = "WORDS")]
    reverse_prompt: Vec<String>,

    /// When the context is full, forget half of it and go on
    #[arg(long, env = "LLAMA_ARG_CONTEXT_SHIFT", value_parser = clap::builder::FalseyValueParser::new(), action = ArgAction::SetTrue, overrides_with = "no_context_shift")]
    context_shift: bool,

    /// The default: when the context is full, end the answer
    #[arg(long, hide = true, overrides_with = "context_shift")]
    no_context_shift: bool,

    /// Tokens at the beginning of the prompt that are never forgotten; -1: all of it
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep: i64,

    /// Resolve escapes such as \n in prompts (the default)
    #[arg(short, long, overrides_with = "no_escape")]
    escape: bool,

    /// Leave them as they are
    #[arg(long, overrides_with = "escape")]
    no_escape: bool,

    /// Whether text to be continued may name control tokens
    #[arg(long, value_name = "YES|NO", default_value = "true", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_parser = clap::builder::BoolishValueParser::new(), action = ArgAction::Set)]
    parse_special: bool,

    /// Show control tokens in the answer [-sp]
    #[arg(long, alias = "sp")]
    special: bool,

    /// Do not repeat the text that is continued
    #[arg(long, overrides_with = "display_prompt")]
    no_display_prompt: bool,

    /// The default; undoes --no-display-prompt
    #[arg(long, hide = true, overrides_with = "no_display_prompt")]
    display_prompt: bool,

    #[command(flatten)]
    pub cache: PromptCacheArgs,

    /// How the answer is written
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = Output::Text)]
    output: Output,

    /// With --output json: log-probabilities of the chosen and of the N likeliest tokens
    #[arg(long, value_name = "N", default_value_t = 0)]
    logprobs: usize,

    /// Print no timings at the end
    #[arg(long, aliases = ["no-show-timings", "log-disable"], overrides_with = "perf")]
    no_perf: bool,

    /// The default; undoes --no-perf
    #[arg(long, hide = true, alias = "show-timings", overrides_with = "no_perf")]
    perf: bool,

    /// Say on stderr where the weights are and what the memory is used for
    #[arg(short, long)]
    verbose: bool,
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// As text, while it is being made
    Text,
    /// As one JSON object, at the end
    Json,
}

/// Flags of llama.cpp that change nothing here, so that command lines written for it work.
#[derive(Debug, clap::Args)]
pub struct IgnoredArgs {
    /// Templates are always Jinja.
    #[arg(long, hide = true)]
    jinja: bool,
    /// Nothing is coloured.
    #[arg(long, hide = true, alias = "co", num_args = 0..=1, require_equals = true, value_parser = ["on", "off", "auto"])]
    color: Option<Option<String>>,
    /// Output is plain as it is.
    #[arg(long, hide = true)]
    simple_io: bool,
}

/// The resolved form of [`PromptArgs`]: files read, escapes resolved.
#[derive(Clone, Debug)]
pub struct Config {
    /// What to ask or continue.
    pub prompt: Option<String>,
    /// What the model is told first.
    pub system: Option<String>,
    /// The user's word on conversations: yes, no, or as the model allows.
    pub conversation: Option<bool>,
    /// End after one answer.
    pub single_turn: bool,
    /// Template instead of the file's.
    pub template: Option<String>,
    /// Tokens an answer has at most.
    pub n_predict: Option<u64>,
    /// Words that end an answer.
    pub stop_words: Vec<String>,
    /// Whether a full context is shortened.
    pub context_shift: bool,
    /// Tokens kept then; `None` for the whole prompt.
    pub n_keep: Option<usize>,
    /// Whether text to be continued may name control tokens.
    pub parse_special: bool,
    /// Control tokens show in the answer.
    pub show_control: bool,
    /// Text to be continued is repeated.
    pub show_prompt: bool,
    /// How many tokens are drafted at once; 0 for none.
    pub n_draft: usize,
    /// How the answer is written.
    pub output: Output,
    /// How many of the likeliest tokens are reported.
    pub n_logprobs: usize,
    /// Timings at the end.
    pub timings: bool,
    /// Whether lines typed in a conversation have escapes.
    pub escape: bool,
    /// Details on stderr.
    pub verbose: bool,
}

impl PromptArgs {
    /// Reads the files and resolves escapes. Stdin is read where the prompt's file is `-`.
    ///
    /// # Errors
    /// Where a file can't be read, or flags contradict each other.
    pub fn resolve(&self) -> Result<Config, anyhow::Error> {
        let resolved = |text: String| if self.no_escape { text } else { unescape(&text) };
        let prompt = match (&self.prompt, &self.file) {
            (Some(text), _) => Some(resolved(text.clone())),
            (None, Some(path)) if path.as_os_str() == "-" => Some(super::stdin_text()?),
            (None, Some(path)) => Some(one_line_end_less(text_file(path)?)),
            (None, None) => None,
        };
        let system = match (&self.system_prompt, &self.system_prompt_file) {
            (Some(text), _) => Some(resolved(text.clone())),
            (None, Some(path)) => Some(one_line_end_less(text_file(path)?)),
            (None, None) => None,
        };
        let template = match &self.chat_template_file {
            Some(path) => Some(text_file(path)?),
            None => self.chat_template.clone(),
        };
        let conversation = match (self.conversation, self.no_conversation) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        };
        if conversation == Some(false) && system.is_some() {
            return Err(
                UsageError("--system-prompt needs the chat template that -no-cnv turns off".into()).into()
            );
        }
        if self.output == Output::Json && conversation == Some(true) && !self.single_turn {
            return Err(
                UsageError("--output json gives one answer: leave out -cnv, or add -st".into()).into()
            );
        }
        Ok(Config {
            prompt,
            system,
            conversation,
            single_turn: self.single_turn,
            template,
            n_predict: self.predict.and_then(|n| u64::try_from(n).ok()),
            stop_words: self.reverse_prompt.iter().cloned().map(resolved).collect(),
            context_shift: self.context_shift && self.predict != Some(-2),
            n_keep: usize::try_from(self.keep).ok(),
            parse_special: self.parse_special,
            show_control: self.special,
            show_prompt: !self.no_display_prompt,
            n_draft: if self.lookup { self.draft_max as usize } else { 0 },
            output: self.output,
            n_logprobs: self.logprobs,
            timings: !self.no_perf,
            escape: !self.no_escape,
            verbose: self.verbose,
        })
    }
}

/// A text file ends in a line end that belongs to the file and not to the text.
fn one_line_end_less(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
    }
    text
}
