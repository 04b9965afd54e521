//! How a session computes.

use crate::Error;
use crate::batch::MIN_OFFLOAD_TOKENS;
use ggml::Type;
use model_spec::HyperParams;
use quants::TensorType;

/// How a session computes; llama.cpp's names and defaults.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Tokens the context holds; 0 for what the model was trained for.
    pub n_ctx: u32,
    /// Tokens of a prompt that pass a layer before any of them enters the next, in several micro-batches, where experts are
    /// streamed or staged: these are brought once for all of them. (No more than eight micro-batches.)
    pub n_batch: u32,
    /// Tokens computed at once when a prompt is read.
    pub n_ubatch: u32,
    /// Threads for single tokens; 0 for as many as there are cores.
    pub n_threads: u32,
    /// Threads for batches; 0 for the same.
    pub n_threads_batch: u32,
    /// Attention in one pass.
    pub flash_attention: bool,
    /// Type of the cached keys.
    pub type_k: TensorType,
    /// Type of the cached values.
    pub type_v: TensorType,
    /// Devices compute large batches with weights that lie on the host.
    pub offload: bool,
    /// Which batches take the experts that lie on the host through stacks on devices.
    pub stage_experts: StageExperts,
}

/// Which batches take the experts that lie on the host through stacks on their layer's device, where one layer's are copied
/// while another's are computed with. For layers whose other weights are on a device; smaller batches are computed by the CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StageExperts {
    /// Those that ggml has devices take over; or by measurement, where there is a [plan](crate::plan). None where memory
    /// for the stacks is short.
    #[default]
    Auto,
    /// As [`Auto`](Self::Auto), but those of so many tokens and more.
    AutoFrom(u32),
    /// None.
    Never,
    /// Those of so many tokens and more; an error where memory for the stacks is short.
    From(u32),
}

impl StageExperts {
    /// The fewest tokens of such a batch.
    pub(crate) fn least_tokens(self) -> Option<usize> {
        match self {
            StageExperts::Auto => Some(MIN_OFFLOAD_TOKENS),
            StageExperts::Never => None,
            StageExperts::AutoFrom(n_tokens) | StageExperts::From(n_tokens) => Some(n_tokens as usize),
        }
    }
}

impl Default for SessionOptions {
    fn default() -> Self {
        SessionOptions {
            n_ctx: 0,
            n_batch: 2048,
            n_ubatch: 512,
            n_threads: 0,
            n_threads_batch: 0,
            flash_attention: true,
            type_k: TensorType::F16,
            type_v: TensorType::F16,
            offload: true,
            stage_experts: StageExperts::Auto,
        }
    }
}

/// Types that the cache may have: those that rows can be written in and attention can read.
pub(crate) fn cache_types(hparams: &HyperParams, options: &SessionOptions) -> Result<(Type, Type), Error> {
    use TensorType::*;
    let allowed = [F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL];
    let check = |option: &'static str, ty: TensorType, head_dim: u32| {
        let wrong = |expected: String| Err(Error::Option { option, found: ty.name().to_owned(), expected });
        if !allowed.contains(&ty) {
            return wrong(allowed.map(TensorType::name).join(", "));
        }
        if !(head_dim as usize).is_multiple_of(ty.block_len()) {
            return wrong(format!("a type whose blocks divide a head of {head_dim}"));
        }
        Ok(Type::from_id(ty.id())?)
    };
    let type_k = check("--cache-type-k", options.type_k, hparams.head_dim_k)?;
    let type_v = check("--cache-type-v", options.type_v, hparams.head_dim_v)?;
    if !options.flash_attention && options.type_v.is_quantized() {
        let expected = "F32, F16 or BF16 without flash attention".to_owned();
        return Err(Error::Option {
            option: "--cache-type-v",
            found: options.type_v.name().to_owned(),
            expected,
        });
    }
    Ok((type_k, type_v))
}
