//! Sampling parameters, their defaults and ranges, and the names of the stages.

use super::Error;
use crate::tokenizer::TokenId;

/// One stage of the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Repetition, presence and frequency penalties.
    Penalties,
    /// The k likeliest.
    TopK,
    /// Locally typical sampling.
    Typical,
    /// Nucleus sampling.
    TopP,
    /// A share of the likeliest's probability.
    MinP,
    /// Temperature.
    Temperature,
}

/// llama.cpp's default order, without the stages that are off by default (dry, top_n_sigma, xtc).
pub const DEFAULT_CHAIN: [Stage; 6] =
    [Stage::Penalties, Stage::TopK, Stage::Typical, Stage::TopP, Stage::MinP, Stage::Temperature];

/// Canonical name, letter in a `--sampler-seq`, further spellings.
const NAMES: [(Stage, &str, char, &[&str]); 6] = [
    (Stage::Penalties, "penalties", 'e', &[]),
    (Stage::TopK, "top_k", 'k', &["top-k", "topk"]),
    (Stage::Typical, "typ_p", 'y', &["typ-p", "typp", "typ", "typical", "typical_p", "typical-p"]),
    (Stage::TopP, "top_p", 'p', &["top-p", "topp", "nucleus"]),
    (Stage::MinP, "min_p", 'm', &["min-p", "minp"]),
    (Stage::Temperature, "temperature", 't', &["temp"]),
];

/// Stages that llama.cpp has, that are off unless asked for by their own flags, and that do not exist here: a list of
/// samplers may name them (llama.cpp's default does), which changes nothing.
const OFF: [(&str, char, &[&str]); 3] =
    [("dry", 'd', &[]), ("top_n_sigma", 's', &["top-n-sigma", "topnsigma"]), ("xtc", 'x', &[])];

impl Stage {
    /// llama.cpp's name.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|row| row.0 == self).map_or("", |row| row.1)
    }

    /// The stages of a list such as `top_k;top_p;temperature`, in llama.cpp's spellings.
    ///
    /// # Errors
    /// [`Error::UnknownStage`] for any other name.
    pub fn parse_list(list: &str) -> Result<Vec<Stage>, Error> {
        let mut chain = Vec::new();
        for name in list.split(';').map(str::trim).filter(|name| !name.is_empty()) {
            if let Some(row) = NAMES.iter().find(|row| row.1 == name || row.3.contains(&name)) {
                chain.push(row.0);
            } else if !OFF.iter().any(|row| row.0 == name || row.2.contains(&name)) {
                return Err(unknown(name));
            }
        }
        Ok(chain)
    }

    /// The stages of a sequence of letters such as `kpt`, as llama.cpp's `--sampler-seq` takes them.
    ///
    /// # Errors
    /// [`Error::UnknownStage`] for any other letter.
    pub fn parse_letters(letters: &str) -> Result<Vec<Stage>, Error> {
        let mut chain = Vec::new();
        for letter in letters.chars() {
            if let Some(row) = NAMES.iter().find(|row| row.2 == letter) {
                chain.push(row.0);
            } else if !OFF.iter().any(|row| row.1 == letter) {
                return Err(unknown(&letter.to_string()));
            }
        }
        Ok(chain)
    }
}

fn unknown(found: &str) -> Error {
    let names: Vec<&str> = NAMES.iter().map(|row| row.1).chain(OFF.iter().map(|row| row.0)).collect();
    Error::UnknownStage { found: found.to_owned(), expected: names.join(", ") }
}

/// How to sample. [`Params::default`] is llama.cpp's default.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// Start of the random sequence; None: a different one each time.
    pub seed: Option<u32>,
    /// Divides the logits; 0 or less: always the likeliest token.
    pub temperature: f32,
    /// How many of the likeliest tokens to keep; 0: all.
    pub top_k: u32,
    /// Probability to keep, from the likeliest down; 1: all.
    pub top_p: f32,
    /// Least probability to keep, as a share of the likeliest's; 0: all.
    pub min_p: f32,
    /// Probability to keep, from the most typical on; 1: all.
    pub typical_p: f32,
    /// Factor against tokens of the recent text; 1: none.
    pub repeat_penalty: f32,
    /// How many tokens the recent text has; 0: penalties are off.
    pub repeat_last_n: u32,
    /// Taken from the logit of each token of the recent text; 0: none.
    pub presence_penalty: f32,
    /// Taken from the logit of each token once per occurrence in the recent text; 0: none.
    pub frequency_penalty: f32,
    /// Least number of tokens that typical, top-p and min-p leave.
    pub min_keep: usize,
    /// The stages in order.
    pub chain: Vec<Stage>,
    /// Added to the logits of these tokens before the chain; negative infinity forbids a token.
    pub logit_bias: Vec<(TokenId, f32)>,
}

impl Default for Params {
    fn default() -> Self {
        Params {
            seed: None,
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            typical_p: 1.0,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            min_keep: 0,
            chain: DEFAULT_CHAIN.to_vec(),
            logit_bias: Vec::new(),
        }
    }
}

impl Params {
    /// Always the likeliest token, without penalties.
    pub fn greedy() -> Self {
        Params { temperature: 0.0, ..Params::default() }
    }

    /// Whether the likeliest token is chosen whatever the draw: at temperature 0, unless a stage may drop it.
    pub(super) fn is_greedy(&self) -> bool {
        self.temperature <= 0.0 && self.typical_p >= 1.0 && self.chain.contains(&Stage::Temperature)
    }

    /// Checks every range, for a vocabulary of `n_vocab` tokens.
    pub(super) fn validate(&self, n_vocab: usize) -> Result<(), Error> {
        let finite: [(&'static str, f32); 7] = [
            ("--temp", self.temperature),
            ("--top-p", self.top_p),
            ("--min-p", self.min_p),
            ("--typical", self.typical_p),
            ("--repeat-penalty", self.repeat_penalty),
            ("--presence-penalty", self.presence_penalty),
            ("--frequency-penalty", self.frequency_penalty),
        ];
        for (name, value) in finite {
            if !value.is_finite() {
                return Err(Error::Parameter { name, found: value.to_string(), expected: "a finite number" });
            }
        }
        if self.repeat_penalty <= 0.0 || !self.repeat_penalty.recip().is_finite() {
            let found = self.repeat_penalty.to_string();
            return Err(Error::Parameter { name: "--repeat-penalty", found, expected: "more than 0" });
        }
        for &(id, bias) in &self.logit_bias {
            if id as usize >= n_vocab {
                let expected = "a token of the vocabulary";
                return Err(Error::Parameter { name: "--logit-bias", found: id.to_string(), expected });
            }
            if bias.is_nan() || bias == f32::INFINITY {
                let expected = "a finite number or -inf";
                return Err(Error::Parameter { name: "--logit-bias", found: bias.to_string(), expected });
            }
        }
        Ok(())
    }
}
