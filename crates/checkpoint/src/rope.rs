//! Rotary embedding as config.json states it, old key names and new.
//!
//! Until transformers 5: `rope_theta` and `rope_scaling: {"type" or "rope_type", "factor", ...}`. Since then:
//! `rope_parameters`, which holds all of it. What each kind becomes in GGUF follows llama.cpp's converter:
//! linear and yarn are keys, llama3 is the tensor `rope_freqs.weight`, dynamic is nothing (it changes nothing
//! within the trained context).

use model_spec::{Rope, RopeScaling};

use crate::error::{Error, Result, quoted};
use crate::fields::Fields;

/// Rotary embedding in GGUF's terms.
#[derive(Debug, PartialEq)]
pub(crate) struct RopeConfig {
    pub(crate) rope: Rope,
    /// One divisor per rotated pair, for Llama 3's scaling.
    pub(crate) freqs: Option<Vec<f32>>,
}

/// The rotary embedding of a configuration whose heads are `head_dim` wide; `default_base` is what the
/// model's family assumes where nothing is stated.
pub(crate) fn read(
    config: Fields<'_>,
    head_dim: u32,
    n_ctx: u32,
    default_base: f64,
    warnings: &mut Vec<String>,
) -> Result<RopeConfig> {
    let params = parameters(config)?;
    let base = match params.map(|p| p.positive("rope_theta")).transpose()?.flatten() {
        Some(base) => base,
        None => config.positive("rope_theta")?.unwrap_or(default_base),
    } as f32;
    for fields in [Some(config), params].into_iter().flatten() {
        if let Some(value) = fields.value("partial_rotary_factor").filter(|v| v.as_f64() != Some(1.0)) {
            let expected = "1: all of a head rotates in this architecture";
            return Err(fields.wrong("partial_rotary_factor", value, expected));
        }
    }
    let plain = |scaling| RopeConfig { rope: Rope { freq_base: base, scaling }, freqs: None };
    let Some(params) = params else { return Ok(plain(RopeScaling::None)) };
    let kind = match params.str("rope_type")? {
        Some(kind) => Some(kind),
        None => params.str("type")?,
    };
    match kind.map(str::to_ascii_lowercase).as_deref() {
        None | Some("default" | "none") => Ok(plain(RopeScaling::None)),
        Some("linear") => Ok(plain(RopeScaling::Linear { factor: factor(params)? })),
        Some("dynamic" | "ntk") => {
            let file = config.file.display();
            warnings.push(format!(
                "{file}: rope scaling: found \"dynamic\", which GGUF has no key for; positions within the trained \
                 context of {n_ctx} are not affected"
            ));
            Ok(plain(RopeScaling::None))
        }
        Some("yarn") => Ok(plain(yarn(config, params, n_ctx)?)),
        Some("llama3") => {
            let freqs = Some(Llama3::read(config, params)?.divisors(base, head_dim));
            Ok(RopeConfig { freqs, ..plain(RopeScaling::None) })
        }
        Some(other) => Err(Error::malformed(
            config.file,
            "rope scaling",
            quoted(other),
            "default, linear, dynamic, yarn or llama3",
        )),
    }
}

/// The object that says how positions rotate, by its new name or the old one.
fn parameters(config: Fields<'_>) -> Result<Option<Fields<'_>>> {
    let params = match config.object("rope_parameters", "rope_parameters.")? {
        Some(params) => Some(params),
        None => config.object("rope_scaling", "rope_scaling.")?,
    };
    // Per layer type since transformers 5; these architectures have one kind of layer.
    let inner = params.map(|p| p.object("full_attention", "rope_parameters.full_attention.")).transpose()?;
    Ok(inner.flatten().or(params))
}

fn factor(params: Fields<'_>) -> Result<f32> {
    Ok(params.positive("factor")?.ok_or_else(|| params.missing("factor", "a number above 0"))? as f32)
}

fn optional(params: Fields<'_>, key: &str) -> Result<Option<f32>> {
    Ok(params.positive(key)?.map(|value| value as f32))
}

fn yarn(config: Fields<'_>, params: Fields<'_>, n_ctx: u32) -> Result<RopeScaling> {
    let key = "original_max_position_embeddings";
    let orig_ctx = match params.count(key, i32::MAX as u32)? {
        Some(n) => n,
        None => config.count(key, i32::MAX as u32)?.unwrap_or(n_ctx),
    };
    let attn_factor = match optional(params, "attention_factor")? {
        Some(factor) => Some(factor),
        None => optional(params, "attn_factor")?,
    };
    Ok(RopeScaling::Yarn {
        factor: factor(params)?,
        orig_ctx,
        ext_factor: optional(params, "extrapolation_factor")?.unwrap_or(1.0),
        attn_factor: attn_factor.unwrap_or(1.0),
        beta_fast: optional(params, "beta_fast")?.unwrap_or(32.0),
        beta_slow: optional(params, "beta_slow")?.unwrap_or(1.0),
    })
}

/// Llama 3.1's scaling: long wavelengths are stretched by `factor`, short ones kept, those between blended.
struct Llama3 {
    factor: f32,
    low_freq_factor: f32,
    high_freq_factor: f32,
    original_context: f32,
}

impl Llama3 {
    fn read(config: Fields<'_>, params: Fields<'_>) -> Result<Llama3> {
        let original = params.positive("original_max_position_embeddings")?.unwrap_or(8192.0);
        let scaling = Llama3 {
            factor: optional(params, "factor")?.unwrap_or(8.0),
            low_freq_factor: optional(params, "low_freq_factor")?.unwrap_or(1.0),
            high_freq_factor: optional(params, "high_freq_factor")?.unwrap_or(4.0),
            original_context: original as f32,
        };
        if scaling.high_freq_factor <= scaling.low_freq_factor {
            return Err(Error::malformed(
                config.file,
                "rope scaling: high_freq_factor",
                scaling.high_freq_factor.to_string(),
                format!("more than low_freq_factor, {}", scaling.low_freq_factor),
            ));
        }
        Ok(scaling)
    }

    /// What each pair's frequency is divided by.
    ///
    /// Every step is rounded to f32, quotients of a constant as the constant times the rounded reciprocal:
    /// that is what torch does in the converter, and the result is stored as it is.
    fn divisors(&self, base: f32, head_dim: u32) -> Vec<f32> {
        let over = |constant: f32, value: f32| value.recip() * constant;
        let low_wavelength = self.original_context / self.low_freq_factor;
        let high_wavelength = self.original_context / self.high_freq_factor;
        let pairs = (0..head_dim).step_by(2);
        let divisor = |i: u32| {
            let frequency = base.powf(i as f32 / head_dim as f32).recip();
            let wavelength = over(std::f32::consts::TAU, frequency);
            if wavelength < high_wavelength {
                1.0
            } else if wavelength > low_wavelength {
                self.factor
            } else {
                let position = over(self.original_context, wavelength) - self.low_freq_factor;
                let smooth = position / (self.high_freq_factor - self.low_freq_factor);
                ((1.0 - smooth) / self.factor + smooth).recip()
            }
        };
        pairs.map(divisor).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read_text(text: &str) -> Result<(RopeConfig, Vec<String>)> {
        let map = crate::json::parse_object(Path::new("config.json"), text.as_bytes())?;
        let mut warnings = Vec::new();
        let rope = read(Fields::new(Path::new("config.json"), &map), 64, 4096, 10000.0, &mut warnings)?;
        Ok((rope, warnings))
    }

    fn scaling(text: &str) -> RopeScaling {
        read_text(text).unwrap().0.rope.scaling
    }

    #[test]
    fn base_frequency_under_either_name() {
        for text in [
            r#"{"rope_theta": 1000000.0, "rope_scaling": null}"#,
            r#"{"rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}}"#,
            r#"{"rope_theta": 5.0, "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}}"#,
            r#"{"rope_parameters": {"full_attention": {"rope_theta": 1e6, "rope_type": "default"}}}"#,
        ] {
            let (rope, warnings) = read_text(text).unwrap();
            assert_eq!(rope.rope, Rope { freq_base: 1e6, scaling: RopeScaling::None }, "{text}");
            assert!(warnings.is_empty());
        }
        assert_eq!(read_text("{}").unwrap().0.rope.freq_base, 10000.0);
    }

    #[test]
    fn linear_scaling_old_and_new() {
        for text in [
            r#"{"rope_scaling": {"type": "linear", "factor": 4.0}}"#,
            r#"{"rope_scaling": {"rope_type": "linear", "factor": 4}}"#,
            r#"{"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000}}"#,
        ] {
            assert_eq!(scaling(text), RopeScaling::Linear { factor: 4.0 }, "{text}");
        }
    }

    #[test]
    fn yarn_keeps_what_is_stated_and_fills_the_rest() {
        let text =
            r#"{"rope_scaling": {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 8192}}"#;
        let RopeScaling::Yarn { factor, orig_ctx, ext_factor, attn_factor, beta_fast, beta_slow } =
            scaling(text)
        else {
            panic!("not yarn")
        };
        assert_eq!((factor, orig_ctx), (16.0, 8192));
        assert_eq!((ext_factor, attn_factor, beta_fast, beta_slow), (1.0, 1.0, 32.0, 1.0));
        let text = r#"{"rope_parameters": {"rope_type": "yarn", "factor": 2, "attention_factor": 1.5, "beta_fast": 64}}"#;
        let RopeScaling::Yarn { orig_ctx, attn_factor, beta_fast, .. } = scaling(text) else {
            panic!("not yarn")
        };
        assert_eq!((orig_ctx, attn_factor, beta_fast), (4096, 1.5, 64.0));
    }

    #[test]
    fn dynamic_scaling_is_said_to_be_left_out() {
        let (rope, warnings) = read_text(r#"{"rope_scaling": {"type": "dynamic", "factor": 2.0}}"#).unwrap();
        assert_eq!(rope.rope.scaling, RopeScaling::None);
        assert!(warnings[0].contains("dynamic"), "{warnings:?}");
    }

    #[test]
    fn llama3_divisors_are_those_of_the_converter() {
        let text = r#"{"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 32.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}"#;
        let (rope, _) = read_text(text).unwrap();
        assert_eq!(rope.rope.scaling, RopeScaling::None);
        let freqs = rope.freqs.unwrap();
        // From torch, for head_dim 64: short wavelengths stay, long ones get the whole factor.
        assert_eq!(freqs.len(), 32);
        assert_eq!(&freqs[..15], &[1.0; 15]);
        for (i, expected) in LLAMA3_BLENDED {
            let error = (freqs[i] - expected).abs() / expected;
            assert!(error < 1e-6, "pair {i}: {} instead of {expected}", freqs[i]);
        }
        assert_eq!(&freqs[18..], &[32.0; 14]);
    }

    const LLAMA3_BLENDED: [(usize, f32); 3] = [(15, 1.651_329_3), (16, 3.292_262_8), (17, 9.666_731)];

    #[test]
    fn unusable_scaling_names_its_key() {
        for (text, part) in [
            (r#"{"rope_scaling": {"type": "linear"}}"#, "rope_scaling.factor: found no such key"),
            (r#"{"rope_scaling": {"type": "linear", "factor": -1}}"#, "rope_scaling.factor: found -1"),
            (r#"{"rope_scaling": {"type": "linear", "factor": "4"}}"#, "rope_scaling.factor: found \"4\""),
            (r#"{"rope_scaling": {"type": "longrope", "factor": 4}}"#, "found \"longrope\""),
            (r#"{"rope_theta": 0}"#, "rope_theta: found 0"),
            (r#"{"partial_rotary_factor": 0.5}"#, "partial_rotary_factor: found 0.5"),
        ] {
            let message = read_text(text).unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
