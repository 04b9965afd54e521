//! Which model, how it is loaded, and where its weights go.

use super::context::{Switch, switch_parser};
use crate::plan::BudgetArgs;
use bruce::exit::{UsageError, with_hint};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, ValueEnum};
use regex::Regex;
use runtime::model::{ModelOptions, RopeOverrides, ScalingKind};
use runtime::residency::{ExpertSlots, GpuLayers, PlacementOptions, Repack};
use runtime::{Kernels, StreamReaders};
use std::path::PathBuf;

/// Which file.
#[derive(Debug, clap::Args)]
pub struct ModelFile {
    /// The model: a GGUF file, any part of a split one
    #[arg(value_name = "MODEL")]
    model_file: Option<PathBuf>,

    /// The model, as llama.cpp takes it [env: LLAMA_ARG_MODEL]
    // The variable is read below, as it must give way to a file named on the command line.
    #[arg(short = 'm', long = "model", value_name = "MODEL")]
    model: Option<PathBuf>,
}

impl ModelFile {
    /// The file.
    ///
    /// # Errors
    /// [`UsageError`] where none is named, or two.
    pub fn path(&self) -> Result<PathBuf, anyhow::Error> {
        match (&self.model_file, &self.model) {
            (Some(a), Some(b)) if a != b => {
                Err(UsageError(format!("two models are named: {} and {}", a.display(), b.display())).into())
            }
            (Some(path), _) | (None, Some(path)) => Ok(path.clone()),
            (None, None) => std::env::var_os("LLAMA_ARG_MODEL")
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
                .ok_or_else(|| {
                    with_hint(
                        UsageError("no model is named".to_owned()),
                        "bruce-run MODEL.gguf -p \"...\"; bruce-run --help shows examples",
                    )
                }),
        }
    }
}

/// How it is loaded.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Model")]
pub struct LoadArgs {
    /// How many experts each token takes, instead of what the file says
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    experts: Option<u32>,

    /// How the file is read: auto, none (copied to memory), mmap, mlock, mmap+mlock [-lm]
    #[arg(
        long,
        alias = "lm",
        value_enum,
        value_name = "MODE",
        ignore_case = true,
        env = "LLAMA_ARG_LOAD_MODE"
    )]
    load_mode: Option<LoadMode>,

    /// Map the file into memory (the default)
    #[arg(long, overrides_with = "no_mmap")]
    mmap: bool,

    /// Copy the weights to memory instead, in large pages: starts later, decodes faster where the file's pages lie badly
    #[arg(long, overrides_with = "mmap", env = "LLAMA_ARG_NO_MMAP", value_parser = clap::builder::FalseyValueParser::new(), action = ArgAction::SetTrue)]
    no_mmap: bool,

    /// Keep the weights in memory: they are never swapped out
    #[arg(long, env = "LLAMA_ARG_MLOCK", value_parser = clap::builder::FalseyValueParser::new(), action = ArgAction::SetTrue)]
    mlock: bool,

    /// Whose code multiplies with weights on the CPU: bruce (fast, from the file's layout) or ggml (as llama.cpp does)
    /// [default: bruce from 128 MiB of weights on]
    #[arg(long, value_name = "NAME", value_parser = kernels_parser())]
    kernels: Option<Kernels>,

    /// Keep no more than so much of the experts in memory (800M, 6G) and read the others when tokens take them, for models
    /// that are larger than the memory; the CPU computes with these, GPUs with what they hold [default: as memory is short]
    #[arg(long, value_name = "SIZE", value_parser = super::values::size)]
    expert_pool: Option<u64>,

    /// Who reads experts: auto, threads, threads:N, io_uring:N; for measuring
    #[arg(long, hide = true, value_name = "WHO", env = "BRUCE_EXPERT_READERS", default_value = "auto", value_parser = super::values::readers)]
    expert_readers: StreamReaders,

    /// Check every weight for NaN and infinities first
    #[arg(long)]
    check_tensors: bool,

    /// Scaling of the rotary embedding, instead of what the file says
    #[arg(long, value_enum, value_name = "KIND", env = "LLAMA_ARG_ROPE_SCALING_TYPE")]
    rope_scaling: Option<RopeScaling>,

    /// Longer contexts by this factor (the inverse of --rope-freq-scale)
    #[arg(long, value_name = "N", env = "LLAMA_ARG_ROPE_SCALE", value_parser = positive, conflicts_with = "rope_freq_scale")]
    rope_scale: Option<f32>,

    /// Base of the rotary frequencies
    #[arg(long, value_name = "N", env = "LLAMA_ARG_ROPE_FREQ_BASE", value_parser = positive)]
    rope_freq_base: Option<f32>,

    /// Factor of the rotary frequencies
    #[arg(long, value_name = "N", env = "LLAMA_ARG_ROPE_FREQ_SCALE", value_parser = positive)]
    rope_freq_scale: Option<f32>,

    /// YaRN: context the model was trained with
    #[arg(long, value_name = "N", env = "LLAMA_ARG_YARN_ORIG_CTX")]
    yarn_orig_ctx: Option<u32>,

    /// YaRN: mix of extrapolation, 0 for none
    #[arg(long, value_name = "N", env = "LLAMA_ARG_YARN_EXT_FACTOR", value_parser = unless_negative)]
    yarn_ext_factor: Option<Given>,

    /// YaRN: factor of the attention's magnitude
    #[arg(long, value_name = "N", env = "LLAMA_ARG_YARN_ATTN_FACTOR", value_parser = unless_negative)]
    yarn_attn_factor: Option<Given>,

    /// YaRN: upper correction bound
    #[arg(long, value_name = "N", env = "LLAMA_ARG_YARN_BETA_FAST", value_parser = unless_negative)]
    yarn_beta_fast: Option<Given>,

    /// YaRN: lower correction bound
    #[arg(long, value_name = "N", env = "LLAMA_ARG_YARN_BETA_SLOW", value_parser = unless_negative)]
    yarn_beta_slow: Option<Given>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LoadMode {
    Auto,
    None,
    Mmap,
    Mlock,
    #[value(name = "mmap+mlock")]
    MmapMlock,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RopeScaling {
    None,
    Linear,
    Yarn,
}

/// A number, or nothing where llama.cpp writes a negative one for "as the file says".
type Given = Option<f32>;

fn positive(text: &str) -> Result<f32, String> {
    let number = text.parse::<f32>().ok().filter(|n| n.is_finite() && *n > 0.0);
    number.ok_or_else(|| "expected a positive number".to_owned())
}

// clap takes the type from the signature, so the path must be written out for it to be one value.
fn unless_negative(text: &str) -> Result<Option<f32>, String> {
    let number = super::values::finite(text)?;
    Ok((number >= 0.0).then_some(number))
}

/// Where its weights go.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Placement")]
pub struct PlacementArgs {
    #[command(flatten)]
    pub budget: BudgetArgs,

    /// Layers on GPUs, counted from the output: a number, auto or all [-ngl]
    #[arg(long, aliases = ["ngl", "gpu-layers"], value_name = "N", value_parser = gpu_layers, env = "LLAMA_ARG_N_GPU_LAYERS")]
    n_gpu_layers: Option<GpuLayers>,

    /// Keep the experts of this many layers, from the first on, on the CPU [-ncmoe]
    #[arg(long, alias = "ncmoe", value_name = "N", env = "LLAMA_ARG_N_CPU_MOE")]
    n_cpu_moe: Option<u32>,

    /// Keep all experts on the CPU [-cmoe]
    #[arg(long, alias = "cmoe", env = "LLAMA_ARG_CPU_MOE", value_parser = clap::builder::FalseyValueParser::new(), action = ArgAction::SetTrue)]
    cpu_moe: bool,

    /// Keep the experts on the CPU and copies of so many of each layer on its GPU, which computes these while the CPU
    /// computes the others: a number, or one for each layer; with --expert-pool the CPU keeps others than these
    #[arg(long, value_name = "N[,N]", value_delimiter = ',')]
    expert_slots: Vec<u32>,

    /// Leave the experts that are on GPUs there, whichever are asked for, for answers that repeat bit by bit
    #[arg(long, requires = "expert_slots")]
    fixed_experts: bool,

    /// Put tensors whose name matches into a buffer: REGEX=BUFFER[,...] [-ot]
    #[arg(long, alias = "ot", value_name = "REGEX=BUFFER", value_parser = tensor_overrides, env = "LLAMA_ARG_OVERRIDE_TENSOR")]
    override_tensor: Vec<Overrides>,

    /// Keep weights in a layout that the CPU multiplies faster: a copy in memory; 0 or 1 [default: as it pays]
    #[arg(long, value_name = "0|1", env = "LLAMA_ARG_REPACK", num_args = 0..=1, require_equals = true,
          default_missing_value = "1", value_parser = switch_parser(), overrides_with = "no_repack")]
    repack: Option<Switch>,

    /// Read the weights as the file has them [-nr]
    #[arg(long, alias = "nr", overrides_with = "repack")]
    no_repack: bool,

    /// GPUs to use, by name (bruce-run devices), or none [-dev]
    #[arg(long, alias = "dev", value_name = "NAME[,NAME]", value_delimiter = ',', env = "LLAMA_ARG_DEVICE")]
    device: Vec<String>,

    /// Share of the layers of each GPU, such as 3,1 [-ts]
    #[arg(long, alias = "ts", value_name = "N[,N]", value_delimiter = ',', env = "LLAMA_ARG_TENSOR_SPLIT")]
    tensor_split: Vec<f32>,
}

/// What one `-ot` says.
pub type Overrides = Vec<(Regex, String)>;

/// `--repack`.
pub fn repack(switch: Option<Switch>) -> Repack {
    match switch {
        Some(Switch::On) => Repack::On,
        Some(Switch::Off) => Repack::Off,
        Some(Switch::Auto) | None => Repack::Auto,
    }
}

/// `--kernels`.
pub fn kernels_parser() -> impl TypedValueParser<Value = Kernels> {
    PossibleValuesParser::new(["bruce", "ggml"]).map(|name| match name.as_str() {
        "ggml" => Kernels::Ggml,
        _ => Kernels::Bruce,
    })
}

/// `-ngl`.
///
/// # Errors
/// A message for the user.
pub fn gpu_layers(text: &str) -> Result<GpuLayers, String> {
    match text.parse::<i64>() {
        Ok(-1) => Ok(GpuLayers::Auto),
        Ok(-2) => Ok(GpuLayers::All),
        Ok(n) => u32::try_from(n).map(GpuLayers::Count).map_err(|_| "expected 0 or more".to_owned()),
        Err(_) if text.eq_ignore_ascii_case("auto") => Ok(GpuLayers::Auto),
        Err(_) if text.eq_ignore_ascii_case("all") => Ok(GpuLayers::All),
        Err(_) => Err("expected a number, auto or all".to_owned()),
    }
}

/// `-ot`: rules separated by commas.
///
/// # Errors
/// A message for the user.
pub fn tensor_overrides(text: &str) -> Result<Overrides, String> {
    text.split(',')
        .filter(|rule| !rule.is_empty())
        .map(|rule| {
            let (pattern, buffer) =
                rule.split_once('=').ok_or_else(|| format!("\"{rule}\": expected REGEX=BUFFER"))?;
            let regex = Regex::new(pattern).map_err(|e| {
                let reason = e.to_string();
                format!("\"{pattern}\": {}", reason.lines().last().unwrap_or_default().trim())
            })?;
            Ok((regex, buffer.to_owned()))
        })
        .collect()
}

impl PlacementArgs {
    fn options(&self) -> PlacementOptions {
        PlacementOptions {
            n_gpu_layers: self.n_gpu_layers.unwrap_or_default(),
            n_cpu_moe: self.n_cpu_moe.unwrap_or(0),
            cpu_moe: self.cpu_moe,
            overrides: self.override_tensor.concat(),
            devices: (!self.device.is_empty()).then(|| self.device.clone()),
            repack: if self.no_repack { Repack::Off } else { repack(self.repack) },
            tensor_split: self.tensor_split.clone(),
            expert_slots: match self.expert_slots[..] {
                [] => None,
                [n] => Some(ExpertSlots::Uniform(n)),
                _ => Some(ExpertSlots::PerLayer(self.expert_slots.clone())),
            },
            fixed_experts: self.fixed_experts,
        }
    }
}

impl LoadArgs {
    /// Whether the rotary embedding is another than the file's, as for longer texts than the model was trained with.
    pub fn changes_rotation(&self) -> bool {
        self.rope_scaling.is_some()
            || self.rope_scale.is_some()
            || self.rope_freq_base.is_some()
            || self.rope_freq_scale.is_some()
    }

    /// The same with these kernels, where none were asked for.
    pub fn with_default_kernels(&self, kernels: Kernels) -> LoadArgs {
        LoadArgs { kernels: self.kernels.or(Some(kernels)), ..self.clone() }
    }

    /// The resolved form of both groups.
    pub fn options(&self, placement: &PlacementArgs) -> ModelOptions {
        let (mut use_mmap, mut mlock) = (!self.no_mmap, self.mlock);
        match self.load_mode {
            None | Some(LoadMode::Auto) => {}
            Some(LoadMode::None) => (use_mmap, mlock) = (false, false),
            Some(LoadMode::Mmap) => (use_mmap, mlock) = (true, false),
            Some(LoadMode::Mlock) => (use_mmap, mlock) = (false, true),
            Some(LoadMode::MmapMlock) => (use_mmap, mlock) = (true, true),
        }
        let scaling = self.rope_scaling.map(|scaling| match scaling {
            RopeScaling::None => ScalingKind::None,
            RopeScaling::Linear => ScalingKind::Linear,
            RopeScaling::Yarn => ScalingKind::Yarn,
        });
        ModelOptions {
            use_mmap,
            mlock,
            check_tensors: self.check_tensors,
            kernels: self.kernels,
            expert_pool_bytes: self.expert_pool,
            expert_readers: self.expert_readers,
            placement: placement.options(),
            n_expert_used: self.experts,
            rope: RopeOverrides {
                freq_base: self.rope_freq_base,
                freq_scale: self.rope_freq_scale.or(self.rope_scale.map(f32::recip)),
                scaling,
                orig_ctx: self.yarn_orig_ctx,
                ext_factor: self.yarn_ext_factor.flatten(),
                attn_factor: self.yarn_attn_factor.flatten(),
                beta_fast: self.yarn_beta_fast.flatten(),
                beta_slow: self.yarn_beta_slow.flatten(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_on_gpus() {
        assert_eq!(gpu_layers("99"), Ok(GpuLayers::Count(99)));
        assert_eq!(gpu_layers("-1"), Ok(GpuLayers::Auto));
        assert_eq!(gpu_layers("ALL"), Ok(GpuLayers::All));
        assert!(gpu_layers("-3").is_err() && gpu_layers("many").is_err());
    }

    #[test]
    fn rules_name_a_pattern_and_a_buffer() {
        let rules = tensor_overrides(r"blk\.[0-3]\..*_exps=CPU,output=CUDA0").expect("two rules");
        assert_eq!(rules.len(), 2);
        assert!(rules[0].0.is_match("blk.2.ffn_up_exps.weight") && rules[0].1 == "CPU");
        assert!(tensor_overrides("output").is_err_and(|e| e.contains("REGEX=BUFFER")));
        assert!(tensor_overrides("(=CPU").is_err_and(|e| e.starts_with("\"(\": error")));
    }
}
