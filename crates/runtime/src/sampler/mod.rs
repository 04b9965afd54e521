//! Chooses the next token from a row of logits.
//!
//! A [`Sampler`] runs llama.cpp's chain with llama.cpp's defaults: penalties, top-k, typical, top-p, min-p and
//! temperature in the order that [`Params::chain`] gives, then one draw from what is left. Arithmetic, generator (a
//! Mersenne Twister) and the drawing of doubles are those of a llama.cpp built with GCC, so equal logits and an equal
//! seed choose equal tokens; only among exactly equal logits, which a C++ sort leaves in any order, is the smaller id
//! preferred here. On another C library `expf` may round differently, and a draw on the edge may fall otherwise.

mod candidates;
mod params;
mod rng;
mod stages;

pub use params::{DEFAULT_CHAIN, Params, Stage};

use crate::tokenizer::TokenId;
use candidates::Candidates;
use rng::Mt19937;
use stages::Recent;

/// What can be wrong with sampling parameters or logits.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// A parameter outside its range.
    #[error("{name}: found {found}, expected {expected}")]
    Parameter {
        /// The parameter, as its flag is called.
        name: &'static str,
        /// Its value.
        found: String,
        /// The values it may have.
        expected: &'static str,
    },
    /// A name in a list of samplers that is none.
    #[error("--samplers: found \"{found}\", expected names among {expected}, separated by ;")]
    UnknownStage {
        /// The name.
        found: String,
        /// All names, separated by commas.
        expected: String,
    },
    /// A row of logits of the wrong length.
    #[error("logits: found {found} values, expected {expected} (the vocabulary)")]
    Length {
        /// Number of logits given.
        found: usize,
        /// Size of the vocabulary.
        expected: usize,
    },
    /// Logits from which nothing can be chosen: NaN, positive infinity, or all negative infinity.
    #[error(
        "logits: found {found} for token {id}, expected finite numbers (the model or its file is broken)"
    )]
    NotFinite {
        /// The first token with such a logit.
        id: TokenId,
        /// Its logit.
        found: f32,
    },
}

/// The sampling state of one sequence: parameters, recent tokens and random generator.
pub struct Sampler {
    params: Params,
    seed: u32,
    n_vocab: usize,
    recent: Recent,
    rng: Mt19937,
    candidates: Candidates,
}

impl Sampler {
    /// A sampler for a vocabulary of `n_vocab` tokens. Without a seed in `params` a random one is taken; see
    /// [`Sampler::seed`].
    ///
    /// # Errors
    /// [`Error::Parameter`] for a value outside its range.
    pub fn new(params: Params, n_vocab: usize) -> Result<Self, Error> {
        params.validate(n_vocab)?;
        let seed = params.seed.unwrap_or_else(random_seed);
        Ok(Sampler {
            recent: Recent::new(params.repeat_last_n as usize),
            rng: Mt19937::new(seed),
            candidates: Candidates::default(),
            params,
            seed,
            n_vocab,
        })
    }

    /// The seed in use, so that a run can be repeated.
    pub fn seed(&self) -> u32 {
        self.seed
    }

    /// The parameters in use.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The next token for `logits`, one value per token of the vocabulary. Call [`Sampler::accept`] with the token
    /// that is then really used.
    ///
    /// # Errors
    /// [`Error::Length`] and [`Error::NotFinite`].
    pub fn sample(&mut self, logits: &[f32]) -> Result<TokenId, Error> {
        if logits.len() != self.n_vocab {
            return Err(Error::Length { found: logits.len(), expected: self.n_vocab });
        }
        if let Some(id) = logits.iter().position(|x| x.is_nan() || *x == f32::INFINITY) {
            return Err(Error::NotFinite { id: id as TokenId, found: logits[id] });
        }
        let c = &mut self.candidates;
        c.fill(logits);
        for &(id, bias) in &self.params.logit_bias {
            c.adjust(id, |logit| logit + bias);
        }
        let p = &self.params;
        if p.is_greedy() {
            if p.chain.contains(&Stage::Penalties) {
                stages::penalties(c, &self.recent, p.repeat_penalty, p.frequency_penalty, p.presence_penalty);
            }
            return match c.best() {
                Some(best) if best.logit > f32::NEG_INFINITY => Ok(best.id),
                _ => Err(Error::NotFinite { id: 0, found: f32::NEG_INFINITY }),
            };
        }
        for stage in &p.chain {
            match stage {
                Stage::Penalties => stages::penalties(
                    c,
                    &self.recent,
                    p.repeat_penalty,
                    p.frequency_penalty,
                    p.presence_penalty,
                ),
                Stage::TopK => stages::top_k(c, p.top_k as usize),
                Stage::Typical => stages::typical(c, p.typical_p, p.min_keep),
                Stage::TopP => stages::top_p(c, p.top_p, p.min_keep),
                Stage::MinP => stages::min_p(c, p.min_p, p.min_keep),
                Stage::Temperature => stages::temperature(c, p.temperature),
            }
        }
        if c.max_logit() == f32::NEG_INFINITY {
            return Err(Error::NotFinite { id: 0, found: f32::NEG_INFINITY });
        }
        let unit = self.rng.next_f64();
        stages::pick(c, unit).ok_or(Error::NotFinite { id: 0, found: f32::NEG_INFINITY })
    }

    /// Remembers `id` as part of the text, for the penalties. llama.cpp counts the prompt's tokens too.
    pub fn accept(&mut self, id: TokenId) {
        self.recent.push(id);
    }

    /// Forgets the text and starts the random sequence again.
    pub fn reset(&mut self) {
        self.recent.clear();
        self.rng = Mt19937::new(self.seed);
    }
}

/// A seed that differs from run to run, from the randomness std gives its hash maps.
fn random_seed() -> u32 {
    use std::hash::{BuildHasher, Hasher};
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u128(now.as_nanos());
    hasher.finish() as u32
}

#[cfg(test)]
mod tests;
