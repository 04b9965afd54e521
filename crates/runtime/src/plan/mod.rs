//! From a budget to options: what of a model lives where, decided before it is loaded, and how fast it should decode.
//!
//! The arithmetic is in [`residency::budget`](crate::residency::budget); here its inputs are gathered (sizes from the
//! file's header, free memory from devices and host, bandwidths from short measurements) and its result is turned into
//! [`ModelOptions`]. Where everything fits, options are left as they are.

mod batches;
mod rates;
mod survey;

use crate::model::ModelOptions;
use crate::residency::budget::{
    self, Decided, Demand, Disk, Grain, Home, Machine, Outlook, Shortage, Store, Streaming, Usage,
};
use crate::residency::{ExpertSlots, GpuLayers, Repack};
use crate::session::{KV_STEP, SessionOptions, StageExperts};
use crate::staging::{N_STACKS, pinned_bytes};
use crate::{Error, Kernels, batch, kv_cache, model};
pub use batches::Crossover;
use gguf::Gguf;
use model_spec::{HyperParams, TensorId};
use rates::Rates;
use survey::Survey;

/// What may be used. What is free, where nothing is said.
#[derive(Clone, Debug, Default)]
pub struct Budget {
    /// Memory of the devices together: weights, KV cache and compute buffers.
    pub vram_bytes: Option<u64>,
    /// Memory of the host, the program and the parts of the file that are kept in memory included.
    pub ram_bytes: Option<u64>,
    /// For each layer the chance of each expert that a token takes it, 0 to 1; those of ranks where there is none.
    pub chances: Vec<Vec<f64>>,
}

/// When bandwidths are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Where something does not fit.
    AsNeeded,
    /// In any case.
    Always,
    /// Never: the plan is without speeds.
    Never,
}

/// What lives where, and what to expect.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What the model asks for.
    pub demand: Demand,
    /// What there is. Rates are those measured, or of no meaning where [`is_measured`](Self::is_measured) is false.
    pub machine: Machine,
    /// The devices' names.
    pub devices: Vec<String>,
    /// The result.
    pub outlook: Outlook,
    /// Whether bandwidths were measured.
    pub is_measured: bool,
    /// Whether the file was read past the page cache for that.
    pub is_file_rate_direct: bool,
    /// Memory for experts that are read from the file when tokens take them; `None` where all stay in memory, or the
    /// user's flags leave it to the page cache.
    pub pool_bytes: Option<u64>,
    /// Tokens of context.
    pub n_ctx: u32,
    /// Tokens of context that the model was trained for, where fewer are planned because memory is short.
    pub reduced_from: Option<u32>,
    /// Bytes that the user's rules for single tensors put on devices; they are not part of the plan.
    pub pinned_device_bytes: u64,
    /// Which batches have experts staged on devices, and the rates that say so; `None` where none have or nothing was measured.
    pub crossover: Option<Crossover>,
    decided: Decided,
    grain: Grain,
}

/// The inputs of a plan, and the plan.
type Tried = (Demand, Machine, Result<Outlook, Shortage>);

/// Tokens of context of a model that does not fit, where the user names none and it was not trained for fewer.
pub const SHORT_CONTEXT: u32 = 4096;

impl Plan {
    /// The plan for a file. `model` and `session` say what the user has decided.
    ///
    /// # Errors
    /// [`Error::Shortage`] where the least that is needed is more than may be used, and what a wrong option leads to.
    pub fn make(
        gguf: &Gguf,
        model: &ModelOptions,
        session: &SessionOptions,
        budget: &Budget,
        measure: Measure,
    ) -> Result<Plan, Error> {
        ggml::load_backends()?;
        let hparams = HyperParams::from_gguf(gguf)?;
        if let Some(slots) = &model.placement.expert_slots {
            slots.check(&hparams)?;
        }
        let mut survey = Survey::new(gguf, model, budget)?;
        let mut decided = decided(&hparams, gguf, model, session);
        let mut grain = grain(gguf, model, survey.kernels);
        let wanted = if session.n_ctx == 0 { hparams.n_ctx_train } else { session.n_ctx };
        let try_with = |survey: &Survey, decided: &Decided, grain, n_ctx, rates| -> Result<Tried, Error> {
            let demand = demand(&hparams, gguf, model, session, budget, survey, n_ctx)?;
            let machine = machine(survey, rates);
            let outlook = budget::plan(&demand, &machine, decided, grain);
            Ok((demand, machine, outlook))
        };
        let mut n_ctx = wanted;
        let (mut demand, mut machine, mut outlook) =
            try_with(&survey, &decided, grain, n_ctx, Rates::UNKNOWN)?;
        // Memory that a shorter context leaves is worth nothing to a pool whose size is given; that of a device may be.
        let is_pool_given = matches!(decided.streaming, Streaming::Always(Some(_)));
        while session.n_ctx == 0
            && n_ctx > SHORT_CONTEXT
            && !is_at_best(&demand, &machine, &outlook)
            && !(is_pool_given && machine.device.is_none() && outlook.is_ok())
        {
            n_ctx = (n_ctx / 2).max(SHORT_CONTEXT);
            (demand, machine, outlook) = try_with(&survey, &decided, grain, n_ctx, Rates::UNKNOWN)?;
        }
        // Our kernels multiply with streamed experts, and then with the rest.
        let is_streamed = outlook.as_ref().is_ok_and(|outlook| outlook.is_streamed);
        if is_streamed && survey.kernels != Kernels::Bruce {
            survey.kernels = Kernels::Bruce;
            grain = self::grain(gguf, model, survey.kernels);
            if decided.streaming == Streaming::AsNeeded {
                decided.streaming = Streaming::Always(None);
            }
            (demand, machine, outlook) = try_with(&survey, &decided, grain, n_ctx, Rates::UNKNOWN)?;
        }
        let needed = match measure {
            Measure::Always => true,
            Measure::AsNeeded => !is_at_best(&demand, &machine, &outlook),
            Measure::Never => false,
        };
        let mut is_file_rate_direct = false;
        if needed {
            let rates = Rates::measure(gguf, &hparams, model, session, &survey, &demand, is_streamed)?;
            is_file_rate_direct = rates.is_file_direct;
            (demand, machine, outlook) = try_with(&survey, &decided, grain, n_ctx, rates)?;
        }
        let outlook = outlook.map_err(|shortage| Error::Shortage {
            needed: Box::new(shortage.needed),
            available_bytes: shortage.available_bytes,
        })?;
        Ok(Plan {
            pool_bytes: outlook.pool_bytes(&machine, &decided),
            devices: survey.devices.iter().map(|device| device.name()).collect(),
            demand,
            machine,
            outlook,
            is_measured: needed,
            is_file_rate_direct,
            n_ctx,
            reduced_from: (n_ctx < wanted).then_some(wanted),
            pinned_device_bytes: survey.pinned_device_bytes,
            crossover: None,
            decided,
            grain,
        })
    }

    /// Whether all experts and dense weights are in the fastest memory there is.
    pub fn fits(&self) -> bool {
        is_at_best(&self.demand, &self.machine, &Ok(self.outlook.clone()))
    }

    /// Tokens per second with `extra_bytes` more on the devices and, second, with as much more memory; see
    /// [`budget::with_more`].
    pub fn with_more(&self, extra_bytes: u64) -> (Option<f64>, Option<f64>) {
        budget::with_more(&self.demand, &self.machine, &self.decided, self.grain, extra_bytes)
    }

    /// Tokens per second where the file gives `file_bytes_per_second`, and a share of `hits`, 0 to 1, of the experts that the
    /// host computes is found in memory: to tell, once that was measured, what of a plan's error is its own.
    pub fn tokens_per_second_with(&self, file_bytes_per_second: f64, hits: Option<f64>) -> f64 {
        let disk = Disk { bytes_per_second: file_bytes_per_second, ..self.machine.disk };
        let machine = Machine { disk, ..self.machine };
        1.0 / self.outlook.time_with(&self.demand, &machine, hits).total()
    }

    /// Whether devices have some of a layer's experts and not the others.
    pub fn has_slots(&self) -> bool {
        let layers = self.outlook.experts.chunks(self.demand.n_expert.max(1) as usize);
        let is_mixed = |layer: &[Home]| {
            let on_device = layer.iter().filter(|home| **home == Home::Device).count();
            on_device > 0 && on_device < layer.len()
        };
        layers.into_iter().any(is_mixed)
    }

    /// For each layer the experts on its device.
    fn device_experts(&self) -> Vec<Vec<u32>> {
        let layers = self.outlook.experts.chunks(self.demand.n_expert.max(1) as usize);
        let of_layer = |layer: &[Home]| {
            (0..).zip(layer).filter(|(_, home)| **home == Home::Device).map(|(expert, _)| expert).collect()
        };
        layers.map(of_layer).collect()
    }

    /// Makes the options do what is planned.
    pub fn apply(&self, model: &mut ModelOptions, session: &mut SessionOptions) {
        let placement = &mut model.placement;
        if self.machine.device.is_some() {
            placement.n_gpu_layers = GpuLayers::Count(self.outlook.n_gpu_layers);
            if placement.expert_slots.is_some() {
                // The user has said which experts go there.
            } else if self.has_slots() {
                placement.expert_slots = Some(ExpertSlots::Experts(self.device_experts()));
            } else if !placement.cpu_moe && self.demand.n_expert > 0 {
                placement.n_cpu_moe = self.outlook.n_host_expert_layers(&self.demand);
            }
        }
        // A device without weights would still be given large batches, and need memory for them.
        let is_unused = self.outlook.device.total_bytes() == 0 && self.pinned_device_bytes == 0;
        if is_unused && placement.expert_slots.is_none() {
            placement.devices = Some(Vec::new());
        }
        // A second copy of the weights in another layout is not in the plan.
        let spare = self.machine.memory.size_bytes.saturating_sub(self.outlook.memory.total_bytes());
        let copied = self.outlook.memory.dense_bytes.saturating_add(self.outlook.memory.expert_bytes);
        if placement.repack == Repack::Auto && copied > spare {
            placement.repack = Repack::Off;
        }
        if self.pool_bytes.is_some() {
            model.expert_pool_bytes = self.pool_bytes;
        }
        if self.reduced_from.is_some() {
            session.n_ctx = self.n_ctx;
        }
        if session.stage_experts == StageExperts::Auto && self.machine.device.is_some() {
            session.stage_experts = match (self.outlook.stages_experts(), &self.crossover) {
                (false, _) => StageExperts::Never,
                (true, None) => StageExperts::Auto,
                (true, Some(crossover)) => StageExperts::AutoFrom(crossover.n_tokens),
            };
        }
    }
}

/// Rows of quantized weights may be padded to 512 elements, and tensors be aligned to 256 bytes.
const PADDING_BYTES: u64 = 1024;

/// Whether nothing would be faster with more memory.
fn is_at_best(demand: &Demand, machine: &Machine, outlook: &Result<Outlook, Shortage>) -> bool {
    outlook.as_ref().is_ok_and(|outlook| match machine.device {
        Some(_) => {
            outlook.n_gpu_layers as usize == demand.dense_bytes.len()
                && outlook.count(Home::Device) == outlook.experts.len()
        }
        None => outlook.all_in_memory(),
    })
}

fn decided(hparams: &HyperParams, gguf: &Gguf, model: &ModelOptions, session: &SessionOptions) -> Decided {
    let placement = &model.placement;
    Decided {
        n_gpu_layers: match placement.n_gpu_layers {
            GpuLayers::Auto => None,
            GpuLayers::Count(n) => Some(n),
            GpuLayers::All => Some(hparams.n_layer + 1),
        },
        n_host_expert_layers: match placement.n_cpu_moe {
            _ if placement.cpu_moe => Some(hparams.n_layer),
            0 => None,
            n => Some(n.min(hparams.n_layer)),
        },
        slots: placement
            .expert_slots
            .as_ref()
            .map(|slots| (0..hparams.n_layer).map(|layer| slots.of_layer(layer, hparams.n_expert)).collect()),
        streaming: match model.expert_pool_bytes {
            Some(given) => Streaming::Always(Some(given)),
            None if can_stream(gguf, model) => Streaming::AsNeeded,
            None => Streaming::Never,
        },
        stages: match session.stage_experts {
            _ if !session.offload => Some(false),
            StageExperts::Auto | StageExperts::AutoFrom(_) => None,
            StageExperts::Never => Some(false),
            StageExperts::From(_) => Some(true),
        },
    }
}

/// Whether experts may be streamed: not where the user's flags ask for something that can't be had with it.
fn can_stream(gguf: &Gguf, model: &ModelOptions) -> bool {
    model.kernels != Some(Kernels::Ggml)
        && !model.mlock
        && model.placement.repack != Repack::On
        && !places_experts_by_name(gguf, model)
        && gguf.tensors().iter().filter(|t| is_expert(&t.name)).all(|t| quants::matmul::supports(t.ty))
}

fn is_expert(name: &str) -> bool {
    TensorId::parse(name).is_some_and(|id| id.is_expert())
}

fn places_experts_by_name(gguf: &Gguf, model: &ModelOptions) -> bool {
    let is_pinned = |name: &str| model.placement.overrides.iter().any(|(regex, _)| regex.is_match(name));
    gguf.tensors().iter().any(|t| is_expert(&t.name) && is_pinned(&t.name))
}

/// What is placed as one: experts, unless the user places some by layer or name, or ggml's kernels compute on the host,
/// which can't leave out those that a device has.
fn grain(gguf: &Gguf, model: &ModelOptions, kernels: Kernels) -> Grain {
    let by_layer = model.placement.cpu_moe || model.placement.n_cpu_moe > 0;
    let by_name = places_experts_by_name(gguf, model);
    if by_name || by_layer || kernels == Kernels::Ggml { Grain::Layer } else { Grain::Expert }
}

fn demand(
    hparams: &HyperParams,
    gguf: &Gguf,
    model: &ModelOptions,
    session: &SessionOptions,
    budget: &Budget,
    survey: &Survey,
    n_ctx: u32,
) -> Result<Demand, Error> {
    let n_used = model::experts_used(hparams, model.n_expert_used)?;
    let chance = |layer: u32, expert: u32| {
        budget.chances.get(layer as usize).and_then(|chances| chances.get(expert as usize).copied())
    };
    let n_cells = (n_ctx as usize).next_multiple_of(KV_STEP);
    let SessionOptions { n_batch, n_ubatch, .. } = batch::fitted(session, n_cells);
    let working = |is_fused| budget::compute_bytes(hparams, n_used, n_ubatch, n_cells as u32, is_fused);
    // Without flash attention every head's scores are there at once.
    let scores = if session.flash_attention {
        0
    } else {
        4 * u64::from(hparams.n_head) * n_cells as u64 * u64::from(n_ubatch)
    };
    let demand = Demand::new(hparams, &survey.tensors(gguf), n_used, chance);
    let n_devices = survey.devices.len();
    let least = session.stage_experts.least_tokens().unwrap_or(usize::MAX);
    let n_stacks = if n_batch as usize >= least { N_STACKS * n_devices } else { 0 };
    Ok(Demand {
        rows_bytes: (demand.table_bytes / u64::from(hparams.n_vocab.max(1)))
            .saturating_mul(u64::from(n_batch)),
        stack_bytes: n_stacks as u64 * stack_bytes(&demand),
        pinned_bytes: pinned_bytes(n_devices),
        cache_bytes: kv_cache::layer_bytes(hparams, n_cells, session)?,
        compute_bytes: working(survey.kernels == Kernels::Bruce && survey.devices.is_empty()) + scores,
        beside_bytes: working(true),
        waiting_bytes: budget::waiting_bytes(hparams, n_batch - n_ubatch, n_cells as u32),
        program_bytes: survey::program_bytes(hparams).saturating_add(survey.pinned_host_bytes),
        ..demand
    })
}

/// Bytes of a stack: the largest layer's experts, and what devices may pad each tensor with.
fn stack_bytes(demand: &Demand) -> u64 {
    match demand.layer_expert_bytes() {
        0 => 0,
        bytes => bytes + 3 * u64::from(demand.n_expert) * PADDING_BYTES,
    }
}

fn machine(survey: &Survey, rates: Rates) -> Machine {
    let store = |size_bytes, bytes_per_second| Store { size_bytes, bytes_per_second };
    Machine {
        device: (!survey.devices.is_empty()).then(|| store(survey.device_bytes, rates.device)),
        memory: store(survey.memory_bytes, rates.memory),
        disk: rates.disk,
        seconds_per_token: rates.seconds_per_token,
    }
}

/// What the least of a plan needs, in words: for errors.
pub fn in_words(usage: &Usage) -> Vec<(&'static str, u64)> {
    let parts = [
        ("weights that every token reads", usage.dense_bytes),
        ("experts", usage.expert_bytes),
        ("experts being read", usage.staging_bytes),
        ("KV cache", usage.cache_bytes),
        ("compute buffers", usage.compute_bytes),
        ("embeddings and program", usage.other_bytes),
    ];
    parts.into_iter().filter(|(_, bytes)| *bytes > 0).collect()
}
