//! A model ready to run: hyperparameters, tokenizer, and weights bound to their roles.

mod bind;
mod check;
mod load;
mod read_ahead;
mod slots;
mod stream;

use crate::Error;
use crate::embeddings::Embeddings;
use crate::kernels::{self, Kernels};
use crate::residency::{Placement, PlacementOptions};
use crate::slots::{Bytes, LayerSlots, SlotCache};
use crate::tokenizer::Tokenizer;
use expert_pool::{Pool, Readers};
use ggml::{BufferType, Tensor};
use gguf::Gguf;
use model_spec::{FileType, HyperParams, TensorId, TensorRole, keys};
use std::path::Path;
use std::sync::Arc;
pub(crate) use stream::sources as expert_sources;

/// How a model is loaded.
#[derive(Clone, Debug)]
pub struct ModelOptions {
    /// Weights on the host are read in place from the mapped file; otherwise they are copied into memory.
    pub use_mmap: bool,
    /// Pages of the mapped file are locked into memory.
    pub mlock: bool,
    /// Every tensor is read and checked for NaN and infinite values first.
    pub check_tensors: bool,
    /// Where the weights go.
    pub placement: PlacementOptions,
    /// How many experts each token takes, instead of what the file says.
    pub n_expert_used: Option<u32>,
    /// Rotary embedding, instead of what the file says.
    pub rope: RopeOverrides,
    /// Whose kernels multiply on the CPU; by the model's size where `None`.
    pub kernels: Option<Kernels>,
    /// Experts that are placed on the host are read from the file when tokens take them, into a pool of so many bytes; all
    /// other weights are copied to where they are placed. The CPU computes with them by [`Kernels::Bruce`].
    pub expert_pool_bytes: Option<u64>,
    /// Who reads them.
    pub expert_readers: Readers,
}

impl Default for ModelOptions {
    fn default() -> Self {
        ModelOptions {
            use_mmap: true,
            mlock: false,
            check_tensors: false,
            placement: PlacementOptions::default(),
            n_expert_used: None,
            rope: RopeOverrides::default(),
            kernels: None,
            expert_pool_bytes: None,
            expert_readers: Readers::Auto,
        }
    }
}

/// Parts of the rotary embedding that a user may set; `None` leaves what the file says.
#[derive(Clone, Copy, Debug, Default)]
pub struct RopeOverrides {
    /// `--rope-freq-base`.
    pub freq_base: Option<f32>,
    /// `--rope-freq-scale`: positions are multiplied by it.
    pub freq_scale: Option<f32>,
    /// `--rope-scaling`: `none`, `linear` or `yarn` in place of the file's way.
    pub scaling: Option<ScalingKind>,
    /// `--yarn-orig-ctx`.
    pub orig_ctx: Option<u32>,
    /// `--yarn-ext-factor`.
    pub ext_factor: Option<f32>,
    /// `--yarn-attn-factor`.
    pub attn_factor: Option<f32>,
    /// `--yarn-beta-fast`.
    pub beta_fast: Option<f32>,
    /// `--yarn-beta-slow`.
    pub beta_slow: Option<f32>,
}

/// How positions beyond the trained context are brought back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScalingKind {
    /// Not at all.
    None,
    /// All frequencies are divided.
    Linear,
    /// Low frequencies are divided, high ones kept.
    Yarn,
}

/// A loaded model; shared by the sessions that run it.
pub struct Model {
    gguf: Arc<Gguf>,
    hparams: HyperParams,
    n_expert_used: u32,
    rope: ggml::Rope,
    tokenizer: Tokenizer,
    weights: Weights,
    placement: Placement,
    sizes: Vec<(BufferType, u64)>,
    kernels: Kernels,
    slots: Option<Arc<SlotCache>>,
    expert_pool: Option<Arc<Pool>>,
    embeddings: Option<Embeddings>,
}

/// What is read and multiplied for one token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes of weights.
    pub bytes: u64,
    /// Weights, each of which is multiplied and added once.
    pub weights: u64,
}

/// The weights by role.
pub(crate) struct Weights {
    /// `[n_embd, n_vocab]`; without data where [`Model::embeddings`] reads its rows.
    pub token_embd: Tensor,
    /// `[n_embd]`.
    pub output_norm: Tensor,
    /// `[n_embd, n_vocab]`; the token embeddings where the file ties them.
    pub output: Tensor,
    /// `[n_rot / 2]`.
    pub rope_freqs: Option<Tensor>,
    /// A tensor in host memory, for nodes to be computed there whose weights have no place; only with streamed experts.
    pub anchor: Option<Tensor>,
    pub layers: Vec<Layer>,
}

/// A matrix `[n_in, n_out]` and what is added to its result.
pub(crate) struct Linear {
    pub weight: Tensor,
    pub bias: Option<Tensor>,
}

pub(crate) struct Layer {
    pub attn_norm: Tensor,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub o: Linear,
    pub ffn_norm: Tensor,
    pub ffn: FeedForward,
}

pub(crate) enum FeedForward {
    Dense {
        gate: Linear,
        up: Linear,
        down: Linear,
    },
    Experts {
        router: Tensor,
        gate: ExpertBank,
        up: ExpertBank,
        down: ExpertBank,
        /// Copies of some experts on the layer's device; the banks are then all on the host.
        slots: Option<Arc<LayerSlots>>,
        /// The layer's number in the pool that its experts come from; their tensors then have no data.
        streamed: Option<usize>,
    },
}

impl Layer {
    /// Whether our kernels compute the experts on the host, where some of them have slots.
    fn experts_are_served(&self) -> bool {
        match &self.ffn {
            FeedForward::Experts { gate, up, down, slots: Some(_), streamed: None, .. } => {
                let mut groups = [gate, up, down].into_iter().flat_map(|bank| &bank.groups);
                groups.all(|group| kernels::served(&group.weights))
            }
            _ => true,
        }
    }
}

/// One projection of all experts of a layer, in as many groups as there are (type, place) pairs among them.
#[derive(Default)]
pub(crate) struct ExpertBank {
    pub groups: Vec<ExpertGroup>,
}

/// Experts of one type in one place.
pub(crate) struct ExpertGroup {
    /// `[n_in, n_out, n_members]`.
    pub weights: Tensor,
    /// The experts it holds, by number; empty where these are all in order.
    pub members: Vec<u32>,
    /// How a token's experts map to members; `None` where the group holds all experts in order.
    pub route: Option<GroupRoute>,
}

/// Tables over all experts of the layer.
#[derive(Clone)]
pub(crate) struct GroupRoute {
    /// `[1, n_expert]`, I32: an expert's number within the group, 0 for experts of other groups.
    pub member: Tensor,
    /// `[1, n_expert]`, F32: 1 for members, 0 for the others.
    pub mask: Tensor,
}

/// Told while weights are copied or checked, so that a program can show how far it is.
pub trait LoadProgress {
    /// `done` of `total` bytes are in place.
    fn bytes(&mut self, done: u64, total: u64);
}

impl LoadProgress for () {
    fn bytes(&mut self, _: u64, _: u64) {}
}

impl Model {
    /// Loads the model of a GGUF file (any part of a split one).
    ///
    /// # Errors
    /// Names file, key or tensor where the file can't be run, and what was needed where memory is short.
    pub fn load(
        path: &Path,
        options: &ModelOptions,
        progress: &mut dyn LoadProgress,
    ) -> Result<Arc<Model>, Error> {
        ggml::load_backends()?;
        let gguf = Arc::new(Gguf::open(path)?);
        let hparams = HyperParams::from_gguf(&gguf)?;
        let tokenizer = Tokenizer::from_metadata(gguf.metadata())
            .map_err(|source| Error::Tokenizer { path: path.to_path_buf(), source })?;
        let size_bytes = gguf.tensors().iter().map(|tensor| tensor.size).sum();
        let streamed = options.expert_pool_bytes.is_some();
        let usual = if streamed { Kernels::Bruce } else { Kernels::for_weights(size_bytes) };
        let kernels = options.kernels.unwrap_or(usual);
        let mut options = ModelOptions { kernels: Some(kernels), ..options.clone() };
        if streamed {
            stream::prepare(&hparams, &mut options)?;
        }
        let options = &options;
        let n_expert_used = experts_used(&hparams, options.n_expert_used)?;
        let rope = rope(&hparams, &options.rope);
        let placement = Placement::plan(&hparams, gguf.tensors(), &options.placement)?;
        if options.check_tensors {
            check::finite(&gguf, progress)?;
        }
        let loaded = load::load(&gguf, &hparams, &placement, options, progress)?;
        let slots = (!loaded.slots.is_empty()).then(|| {
            let moves = !options.placement.fixed_experts;
            let spared =
                kernels == Kernels::Bruce && loaded.weights.layers.iter().all(Layer::experts_are_served);
            let bytes = match &loaded.expert_pool {
                Some(pool) => Bytes::Streamed(Arc::clone(pool)),
                None => Bytes::Mapped(Arc::clone(&gguf)),
            };
            Arc::new(SlotCache::new(bytes, loaded.slots, n_expert_used as usize, moves, spared))
        });
        // By now it knows what the slots have.
        if let Some(pool) = &loaded.expert_pool {
            pool.fill();
        }
        Ok(Arc::new(Model {
            gguf,
            hparams,
            n_expert_used,
            rope,
            tokenizer,
            weights: loaded.weights,
            placement,
            sizes: loaded.sizes,
            kernels,
            slots,
            expert_pool: loaded.expert_pool,
            embeddings: loaded.embeddings,
        }))
    }

    /// The file.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// The numbers that define the model.
    pub fn hparams(&self) -> &HyperParams {
        &self.hparams
    }

    /// Text to tokens and back.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// How many experts each token takes.
    pub fn n_expert_used(&self) -> u32 {
        self.n_expert_used
    }

    /// Where the weights are.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Bytes of weights in each kind of memory; `CPU_Mapped` is the file itself.
    pub fn sizes(&self) -> Vec<(String, u64)> {
        self.sizes.iter().map(|(buffer, bytes)| (buffer.name(), *bytes)).collect()
    }

    /// Number of weights.
    pub fn n_params(&self) -> u64 {
        self.gguf.tensors().iter().map(|t| t.ne.iter().product::<u64>()).sum()
    }

    /// Bytes of all tensors.
    pub fn size_bytes(&self) -> u64 {
        self.gguf.tensors().iter().map(|t| t.size).sum()
    }

    /// What computing one token takes: its share of the experts, all other matrices; of the embeddings a row, unless
    /// they are the output matrix too.
    pub fn work_per_token(&self) -> Work {
        let tied = self.gguf.tensor(&TensorId::global(TensorRole::Output).name()).is_none();
        let mut work = Work::default();
        for tensor in self.gguf.tensors() {
            let Some(id) = TensorId::parse(&tensor.name) else { continue };
            if id.role == TensorRole::TokenEmbd && !tied {
                continue;
            }
            let (part, of) = if id.is_expert() {
                (u64::from(self.n_expert_used), u64::from(self.hparams.n_expert.max(1)))
            } else {
                (1, 1)
            };
            let of_all = |n: u64| (u128::from(n) * u128::from(part) / u128::from(of)) as u64;
            work.bytes += of_all(tensor.size);
            work.weights += of_all(tensor.ne.iter().product());
        }
        work
    }

    /// Architecture, size and file type in llama.cpp's manner: `llama 4x7B Q4_K - Medium`.
    pub fn description(&self) -> String {
        let h = &self.hparams;
        let file_type =
            self.gguf.metadata().u32(keys::GENERAL_FILE_TYPE).ok().flatten().and_then(FileType::from_id);
        let label = self.gguf.metadata().str(keys::GENERAL_SIZE_LABEL).ok().flatten().map(str::to_owned);
        let label = label.unwrap_or_else(|| {
            let billions = self.n_params() as f64 / 1e9;
            if h.is_moe() {
                format!("{billions:.1}B ({} experts)", h.n_expert)
            } else {
                format!("{billions:.1}B")
            }
        });
        let file_type = file_type.map_or("unknown", FileType::name);
        format!("{} {label} {file_type}", h.arch.name())
    }

    /// The experts in slots on devices; `None` where every expert lives in one place.
    pub fn slots(&self) -> Option<&Arc<SlotCache>> {
        self.slots.as_ref()
    }

    /// Whose kernels multiply on the CPU.
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// Where experts come from that are read when tokens take them; `None` where none are.
    pub fn expert_pool(&self) -> Option<&Arc<Pool>> {
        self.expert_pool.as_ref()
    }

    /// What reads the rows of the token embeddings, where these stay in the file.
    pub(crate) fn embeddings(&self) -> Option<&Embeddings> {
        self.embeddings.as_ref()
    }

    pub(crate) fn weights(&self) -> &Weights {
        &self.weights
    }

    pub(crate) fn rope(&self) -> &ggml::Rope {
        &self.rope
    }
}

pub(crate) fn experts_used(hparams: &HyperParams, wanted: Option<u32>) -> Result<u32, Error> {
    match wanted {
        None => Ok(hparams.n_expert_used),
        Some(n) if hparams.is_moe() && (1..=hparams.n_expert).contains(&n) => Ok(n),
        Some(n) => Err(Error::Option {
            option: "--experts",
            found: n.to_string(),
            expected: match hparams.n_expert {
                0 => "no such option: the model has no experts".to_owned(),
                count => format!("1 to {count}, the number of experts"),
            },
        }),
    }
}

/// What the file says, with the user's word over it.
fn rope(hparams: &HyperParams, over: &RopeOverrides) -> ggml::Rope {
    use model_spec::RopeScaling;
    let mut rope = ggml::Rope {
        n_dims: hparams.n_rot as usize,
        style: ggml::RopeStyle::Interleaved,
        n_ctx_orig: hparams.n_ctx_train as usize,
        freq_base: hparams.rope.freq_base,
        freq_scale: 1.0,
        ext_factor: 0.0,
        attn_factor: 1.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
    };
    match hparams.rope.scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { factor } => rope.freq_scale = 1.0 / factor,
        RopeScaling::Yarn { factor, orig_ctx, ext_factor, attn_factor, beta_fast, beta_slow } => {
            rope = ggml::Rope {
                freq_scale: 1.0 / factor,
                ext_factor,
                attn_factor,
                beta_fast,
                beta_slow,
                ..rope
            };
            if orig_ctx != 0 {
                rope.n_ctx_orig = orig_ctx as usize;
            }
        }
    }
    match over.scaling {
        Some(ScalingKind::None) => (rope.freq_scale, rope.ext_factor) = (1.0, 0.0),
        Some(ScalingKind::Linear) => rope.ext_factor = 0.0,
        Some(ScalingKind::Yarn) => rope.ext_factor = 1.0,
        None => {}
    }
    let set = |value: &mut f32, given: Option<f32>| *value = given.unwrap_or(*value);
    set(&mut rope.freq_base, over.freq_base);
    set(&mut rope.freq_scale, over.freq_scale);
    set(&mut rope.ext_factor, over.ext_factor);
    set(&mut rope.attn_factor, over.attn_factor);
    set(&mut rope.beta_fast, over.beta_fast);
    set(&mut rope.beta_slow, over.beta_slow);
    rope.n_ctx_orig = over.orig_ctx.map_or(rope.n_ctx_orig, |n| n as usize);
    rope
}
