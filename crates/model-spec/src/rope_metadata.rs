//! Rotary embedding out of GGUF metadata and into it.

use gguf::Metadata;

use crate::{Error, Rope, RopeScaling, keys};

/// Base frequency of models whose files state none.
const DEFAULT_FREQ_BASE: f32 = 10000.0;

const EXT_FACTOR: f32 = 1.0;
const ATTN_FACTOR: f32 = 1.0;
const BETA_FAST: f32 = 32.0;
const BETA_SLOW: f32 = 1.0;

impl Rope {
    pub(crate) fn from_metadata(metadata: &Metadata) -> Result<Self, Error> {
        let freq_base = metadata.f32(keys::ROPE_FREQ_BASE)?.unwrap_or(DEFAULT_FREQ_BASE);
        let factor = match metadata.f32(keys::ROPE_SCALING_FACTOR)? {
            Some(factor) => Some(factor),
            None => metadata.f32(keys::ROPE_SCALE_LINEAR)?,
        };
        // llama.cpp reads a factor of 0 as "unstated", and a factor without a type as linear.
        let factor = factor.filter(|f| *f != 0.0);
        let scaling = match (metadata.str(keys::ROPE_SCALING_TYPE)?, factor) {
            (Some("none"), _) | (_, None) => RopeScaling::None,
            (Some("linear") | None, Some(factor)) => RopeScaling::Linear { factor },
            (Some("yarn"), Some(factor)) => {
                let attn = match metadata.f32(keys::ROPE_SCALING_YARN_ATTN_FACTOR)? {
                    Some(attn) => Some(attn),
                    None => metadata.f32(keys::ROPE_SCALING_ATTN_FACTOR)?,
                };
                RopeScaling::Yarn {
                    factor,
                    orig_ctx: metadata.u32(keys::ROPE_SCALING_ORIG_CTX)?.unwrap_or(0),
                    ext_factor: metadata.f32(keys::ROPE_SCALING_YARN_EXT_FACTOR)?.unwrap_or(EXT_FACTOR),
                    attn_factor: attn.unwrap_or(ATTN_FACTOR),
                    beta_fast: metadata.f32(keys::ROPE_SCALING_YARN_BETA_FAST)?.unwrap_or(BETA_FAST),
                    beta_slow: metadata.f32(keys::ROPE_SCALING_YARN_BETA_SLOW)?.unwrap_or(BETA_SLOW),
                }
            }
            (Some(other), Some(_)) => {
                let found = format!("{other:?}");
                return Err(Error::invalid(keys::ROPE_SCALING_TYPE, found, "none, linear or yarn"));
            }
        };
        Ok(Rope { freq_base, scaling })
    }

    /// Sets the keys of the scaling; the base frequency is set by the caller, whose order of keys it
    /// belongs to. YaRN's parameters are set where they differ from what a reader assumes.
    pub(crate) fn write_scaling(&self, metadata: &mut Metadata) {
        match self.scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } => {
                metadata.insert(keys::ROPE_SCALING_TYPE, "linear");
                metadata.insert(keys::ROPE_SCALING_FACTOR, factor);
            }
            RopeScaling::Yarn { factor, orig_ctx, ext_factor, attn_factor, beta_fast, beta_slow } => {
                metadata.insert(keys::ROPE_SCALING_TYPE, "yarn");
                metadata.insert(keys::ROPE_SCALING_FACTOR, factor);
                metadata.insert(keys::ROPE_SCALING_ORIG_CTX, orig_ctx);
                for (key, value, assumed) in [
                    (keys::ROPE_SCALING_YARN_EXT_FACTOR, ext_factor, EXT_FACTOR),
                    (keys::ROPE_SCALING_YARN_ATTN_FACTOR, attn_factor, ATTN_FACTOR),
                    (keys::ROPE_SCALING_YARN_BETA_FAST, beta_fast, BETA_FAST),
                    (keys::ROPE_SCALING_YARN_BETA_SLOW, beta_slow, BETA_SLOW),
                ] {
                    if value != assumed {
                        metadata.insert(key, value);
                    }
                }
            }
        }
    }
}
