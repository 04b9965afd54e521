//! How the next token is chosen.

use super::values::{finite, logit_bias, seed};
use bruce::exit::UsageError;
use runtime::sampler::{Params, Stage};
use runtime::tokenizer::TokenId;

/// llama.cpp's sampling flags; what is not given keeps llama.cpp's default.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Seed of the random numbers; -1: a different one each time
    #[arg(short, long, value_name = "N", value_parser = seed)]
    seed: Option<Seed>,

    /// Temperature; 0 always takes the likeliest token [default: 0.8]
    #[arg(long, alias = "temperature", value_name = "N", env = "LLAMA_ARG_TEMPERATURE", value_parser = finite)]
    temp: Option<f32>,

    /// Choose among the N likeliest tokens; 0: all [default: 40]
    #[arg(long, value_name = "N", env = "LLAMA_ARG_TOP_K")]
    top_k: Option<i32>,

    /// Choose among the likeliest tokens that make up this probability; 1: all [default: 0.95]
    #[arg(long, value_name = "P", env = "LLAMA_ARG_TOP_P", value_parser = finite)]
    top_p: Option<f32>,

    /// Drop tokens below this share of the likeliest one's probability; 0: none [default: 0.05]
    #[arg(long, value_name = "P", env = "LLAMA_ARG_MIN_P", value_parser = finite)]
    min_p: Option<f32>,

    /// Locally typical sampling; 1: off [default: 1]
    #[arg(long, alias = "typical-p", value_name = "P", value_parser = finite)]
    typical: Option<f32>,

    /// Make tokens of the recent text less likely by this factor; 1: off [default: 1]
    #[arg(long, value_name = "N", env = "LLAMA_ARG_REPEAT_PENALTY", value_parser = finite)]
    repeat_penalty: Option<f32>,

    /// How many tokens the recent text has; -1: the whole context [default: 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(-1..))]
    repeat_last_n: Option<i32>,

    /// Taken from the logit of each token of the recent text [default: 0]
    #[arg(long, value_name = "N", env = "LLAMA_ARG_PRESENCE_PENALTY", value_parser = finite)]
    presence_penalty: Option<f32>,

    /// Taken from it for each time it occurs [default: 0]
    #[arg(long, value_name = "N", env = "LLAMA_ARG_FREQUENCY_PENALTY", value_parser = finite)]
    frequency_penalty: Option<f32>,

    /// The stages in order, by name: penalties;top_k;typ_p;top_p;min_p;temperature
    #[arg(long, value_name = "NAMES")]
    samplers: Option<String>,

    /// The stages in order, by letter: ekypmt
    #[arg(long, alias = "sampling-seq", value_name = "LETTERS", conflicts_with = "samplers")]
    sampler_seq: Option<String>,

    /// Change a token's logit: 15043+1, 15043-1, 15043-inf
    #[arg(short = 'l', long, value_name = "ID(+/-)BIAS", value_parser = logit_bias)]
    logit_bias: Vec<(TokenId, f32)>,

    /// Never end an answer by itself
    #[arg(long)]
    pub ignore_eos: bool,
}

/// A seed that was named; none for a random one.
type Seed = Option<u32>;

impl SamplingArgs {
    /// The resolved form, for a context of `n_ctx` tokens.
    ///
    /// # Errors
    /// [`UsageError`] for a stage that does not exist.
    pub fn params(&self, n_ctx: u32) -> Result<Params, anyhow::Error> {
        let default = Params::default();
        let chain = match (&self.samplers, &self.sampler_seq) {
            (Some(names), _) => Stage::parse_list(names),
            (None, Some(letters)) => Stage::parse_letters(letters),
            (None, None) => Ok(default.chain),
        };
        Ok(Params {
            seed: self.seed.flatten(),
            temperature: self.temp.unwrap_or(default.temperature),
            top_k: self.top_k.map_or(default.top_k, |k| u32::try_from(k).unwrap_or(0)),
            top_p: self.top_p.unwrap_or(default.top_p),
            min_p: self.min_p.unwrap_or(default.min_p),
            typical_p: self.typical.unwrap_or(default.typical_p),
            repeat_penalty: self.repeat_penalty.unwrap_or(default.repeat_penalty),
            repeat_last_n: self
                .repeat_last_n
                .map_or(default.repeat_last_n, |n| u32::try_from(n).unwrap_or(n_ctx)),
            presence_penalty: self.presence_penalty.unwrap_or(default.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(default.frequency_penalty),
            min_keep: default.min_keep,
            chain: chain.map_err(|e| UsageError(e.to_string()))?,
            logit_bias: self.logit_bias.clone(),
        })
    }
}
