//! Rotary position embedding: base frequency and the ways a context is stretched.
//!
//! Llama 3's scaling is not here: it is a tensor (`rope_freqs.weight`), one divisor per pair.

use crate::{Error, keys};

/// How head components rotate with the position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Base of the frequencies: pair i of n rotates by `position * freq_base^(-2i / n)`.
    pub freq_base: f32,
    /// How positions beyond the trained context are brought back.
    pub scaling: RopeScaling,
}

/// How positions beyond the trained context are brought back into it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Positions are divided.
    Linear {
        /// By this much.
        factor: f32,
    },
    /// YaRN (arXiv 2309.00071): low frequencies are divided, high ones kept.
    Yarn {
        /// How many times longer the context is meant to be.
        factor: f32,
        /// Context length before scaling; 0 where the file leaves it to the trained context length.
        orig_ctx: u32,
        /// Share of extrapolation, 1 where unstated.
        ext_factor: f32,
        /// Multiplier of the attention temperature, 1 where unstated.
        attn_factor: f32,
        /// Upper correction bound in rotations, 32 where unstated.
        beta_fast: f32,
        /// Lower correction bound in rotations, 1 where unstated.
        beta_slow: f32,
    },
}

impl Rope {
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let positive = |key: &str, value: f32| {
            let fits = value.is_finite() && value > 0.0;
            if fits { Ok(()) } else { Err(Error::invalid(key, value, "a positive finite number")) }
        };
        let finite = |key: &str, value: f32| {
            if value.is_finite() { Ok(()) } else { Err(Error::invalid(key, value, "a finite number")) }
        };
        positive(keys::ROPE_FREQ_BASE, self.freq_base)?;
        match self.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => positive(keys::ROPE_SCALING_FACTOR, factor),
            RopeScaling::Yarn { factor, ext_factor, attn_factor, beta_fast, beta_slow, .. } => {
                positive(keys::ROPE_SCALING_FACTOR, factor)?;
                finite(keys::ROPE_SCALING_YARN_EXT_FACTOR, ext_factor)?;
                positive(keys::ROPE_SCALING_YARN_ATTN_FACTOR, attn_factor)?;
                positive(keys::ROPE_SCALING_YARN_BETA_FAST, beta_fast)?;
                positive(keys::ROPE_SCALING_YARN_BETA_SLOW, beta_slow)
            }
        }
    }
}
