//! A conversation with a model: its KV cache, and tokens going in, logits coming out.

use crate::Error;
use crate::batch::{Batches, MIN_OFFLOAD_TOKENS};
use crate::graph::{self, BatchGraph, BatchShape};
use crate::kernels::Kernels;
use crate::kv_cache::KvCache;
use crate::memory::Free;
use crate::model::Model;
use crate::routing::LayerRouting;
use crate::saved_context;
pub use crate::staging::StagingStatistics;
use crate::staging::{Planned, Staging};
use ggml::{Backend, Device, DeviceKind, Node, Scheduler, Tensor, ThreadPool, Type};
use model_spec::HyperParams;
use quants::TensorType;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How a session computes; llama.cpp's names and defaults.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Tokens the context holds; 0 for what the model was trained for.
    pub n_ctx: u32,
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

/// Which tokens' logits a call wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// None: the tokens only enter the cache.
    None,
    /// The last token's.
    Last,
    /// Every token's.
    All,
}

/// What a weight, or several, is multiplied with in one micro-batch.
pub struct MatrixInput<'a> {
    /// Names of the weights as in a model file; all experts of a projection under the name of the stacked tensor
    /// (`blk.0.ffn_up_exps.weight`), whichever way the file stores them.
    pub weights: &'a [String],
    /// `[n_in, n_rows]`.
    pub values: &'a [f32],
    /// Extent of a row.
    pub n_in: usize,
    /// For weights that are experts: which ones are multiplied with.
    pub experts: Option<ExpertRows<'a>>,
}

/// Which experts multiply with which rows of a [`MatrixInput`].
#[derive(Clone, Copy, Debug)]
pub struct ExpertRows<'a> {
    /// `[n_used, n_tokens]`: each token's experts, each below `n_expert`. There is a row for each of them, or one for
    /// each token that all its experts share.
    pub ids: &'a [i32],
    /// Experts that a token takes.
    pub n_used: usize,
    /// Experts that there are.
    pub n_expert: usize,
}

/// Called with every input of a matrix product while a batch is computed.
pub type Observer<'a> = &'a mut dyn FnMut(&MatrixInput<'_>);

/// One sequence of tokens being read and continued.
pub struct Session {
    /// Before the scheduler in order of dropping: the graph's buffers belong to the scheduler.
    current: Option<BatchGraph>,
    scheduler: Scheduler,
    cache: KvCache,
    /// `[n_embd, n]`: the rows of a micro-batch, or the whole table.
    embeddings: Tensor,
    model: Arc<Model>,
    staging: Result<Option<Staging>, Error>,
    options: SessionOptions,
    n_ctx: usize,
    n_past: usize,
    /// Tokens after those that devices are computing.
    n_under_way: usize,
    /// Micro-batches that were prepared meanwhile.
    n_prepared_ahead: usize,
    logits: Vec<f32>,
    /// What the routers decided, where that is recorded.
    routing: Option<Vec<LayerRouting>>,
    pool: Arc<ThreadPool>,
    pool_batch: Arc<ThreadPool>,
    stop: Arc<AtomicBool>,
}

/// Whether experts that lie on the host are copied to devices for large batches.
#[derive(Debug)]
pub enum ExpertStaging<'a> {
    /// Not asked for, or no layer on a device has its experts on the host.
    None,
    /// It is; what was copied so far.
    Ready(StagingStatistics),
    /// It can't be, and the CPU computes with them instead.
    Failed(&'a Error),
}

/// Logits of so many bytes are copied to the host right behind the computation, to memory that is set aside for that; more
/// are read when it is done.
const MOST_FETCHED_BYTES: usize = 4 << 20;

/// Contexts grow in steps of this many cells, and so does what attention looks at; a graph serves until the next step.
pub(crate) const KV_STEP: usize = 256;

/// The stacks, where there are any.
fn ready(staging: &Result<Option<Staging>, Error>) -> Option<&Staging> {
    staging.as_ref().ok().and_then(Option::as_ref)
}

impl Session {
    /// An empty context for `model`.
    ///
    /// # Errors
    /// [`Error::Option`] where an option does not fit the model, [`Error::ContextMemory`] where the memory is short, and what
    /// is in the way of staging where it must be.
    pub fn new(model: &Arc<Model>, options: &SessionOptions) -> Result<Session, Error> {
        let hparams = model.hparams();
        let (type_k, type_v) = cache_types(hparams, options)?;
        let n_ctx = if options.n_ctx == 0 { hparams.n_ctx_train } else { options.n_ctx };
        let n_ctx = (n_ctx as usize).next_multiple_of(KV_STEP);
        let caches = KvCache::sizes(hparams, model.placement(), n_ctx, type_k, type_v);
        let free = Free::now(model.placement().devices());
        free.check_context(n_ctx, &caches, &[])?;

        let pool = new_pool(options.n_threads)?;
        let pool_batch = match options.n_threads_batch {
            n if n == 0 || n as usize == pool.n_threads() => Arc::clone(&pool),
            n => new_pool(n)?,
        };

        let stop = Arc::new(AtomicBool::new(false));
        let mut backends = Vec::new();
        for device in model.placement().devices() {
            backends.push(Backend::new(*device)?);
        }
        let cpu =
            Device::find(DeviceKind::Cpu).ok_or(ggml::Error::NoCpuBackend { searched: String::new() })?;
        backends.push(Backend::new(cpu)?);
        for backend in &mut backends {
            backend.set_abort(Arc::clone(&stop));
            backend.set_threads(&pool);
        }
        let mut scheduler = Scheduler::new(backends, graph::max_nodes(model), options.offload);

        let cache = KvCache::new(hparams, model.placement(), n_ctx, type_k, type_v)?;
        let n_ubatch = (options.n_ubatch as usize).clamp(1, n_ctx);
        let embeddings = match model.embeddings() {
            Some(table) => table.rows(n_ubatch)?,
            None => model.weights().token_embd.clone(),
        };
        let graph_of = |n_tokens: usize, staging: Option<&Staging>| {
            let batches = Batches { model, options, has_staging: staging.is_some() };
            let shape = BatchShape {
                n_tokens,
                n_kv: n_ctx,
                n_outputs: 1,
                flash_attention: options.flash_attention,
                kernels: batches.kernels(n_tokens),
                routing: false,
                tapped: false,
                by_slots: batches.use_slots(n_tokens),
                staged: batches.are_staged(n_tokens).then(Default::default),
            };
            graph::build(model, &cache, shape, staging, &embeddings).graph
        };
        let staged_from = options.stage_experts.least_tokens().filter(|n| options.offload && *n <= n_ubatch);
        let planned = staged_from.and_then(|_| Planned::new(model));
        let stacks = planned.as_ref().map(Planned::bytes).unwrap_or_default();
        let mut staging = planned.map(|planned| planned.start(model, Arc::clone(&stop))).transpose();
        if let Ok(Some(ready)) = &staging
            && let Err(error) =
                free.check_staging(&stacks, &caches, &scheduler.measure(graph_of(n_ubatch, Some(ready))))
        {
            staging = Err(error);
        }
        if matches!(options.stage_experts, StageExperts::From(_)) {
            staging = Ok(staging?);
        }
        let ready = ready(&staging);
        // With staging, smaller batches are computed elsewhere.
        let smaller = staged_from.filter(|from| ready.is_some() && *from > 1).map(|from| from - 1);
        for n_tokens in [n_ubatch].into_iter().chain(smaller) {
            free.check_context(n_ctx, &caches, &scheduler.measure(graph_of(n_tokens, ready)))?;
            scheduler.reserve(graph_of(n_tokens, ready))?;
        }
        Ok(Session {
            current: None,
            scheduler,
            cache,
            embeddings,
            model: Arc::clone(model),
            staging,
            options: SessionOptions { n_ubatch: n_ubatch as u32, ..options.clone() },
            n_ctx,
            n_past: 0,
            n_under_way: 0,
            n_prepared_ahead: 0,
            logits: Vec::new(),
            routing: None,
            pool,
            pool_batch,
            stop,
        })
    }

    /// Reads `tokens` after those already there.
    ///
    /// # Errors
    /// [`Error::ContextFull`] and [`Error::Token`] before anything is computed; [`Error::Stopped`] when the stop flag
    /// was set meanwhile, in which case [`n_past`](Self::n_past) tells how many were read.
    pub fn decode(&mut self, tokens: &[u32], logits: Logits) -> Result<(), Error> {
        self.read(tokens, logits, None)
    }

    /// As [`decode`](Self::decode), showing `observer` what every weight is multiplied with on the way.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn decode_observed(
        &mut self,
        tokens: &[u32],
        logits: Logits,
        observer: Observer<'_>,
    ) -> Result<(), Error> {
        self.read(tokens, logits, Some(observer))
    }

    fn read(&mut self, tokens: &[u32], logits: Logits, observer: Option<Observer<'_>>) -> Result<(), Error> {
        let n_vocab = self.n_vocab();
        if let Some(id) = tokens.iter().find(|id| **id as usize >= n_vocab) {
            return Err(Error::Token { id: *id, n_vocab: n_vocab as u32 });
        }
        if tokens.len() > self.n_ctx - self.n_past {
            return Err(Error::ContextFull {
                n_past: self.n_past as u32,
                n_tokens: tokens.len() as u32,
                n_ctx: self.n_ctx as u32,
            });
        }
        self.logits.clear();
        let done = self.read_batches(tokens, logits, observer);
        // Where one could not be begun, the one before may still be under way.
        done.and(self.settle())
    }

    fn read_batches(
        &mut self,
        tokens: &[u32],
        logits: Logits,
        mut observer: Option<Observer<'_>>,
    ) -> Result<(), Error> {
        let mut rest = tokens;
        while !rest.is_empty() {
            let (batch, after) = rest.split_at(rest.len().min(self.options.n_ubatch as usize));
            let n_outputs = match logits {
                Logits::None => 0,
                Logits::Last => usize::from(after.is_empty()),
                Logits::All => batch.len(),
            };
            // A new borrow for each batch.
            let observer = observer.as_mut().map(|observer| &mut **observer as Observer<'_>);
            self.compute(batch, after.len(), n_outputs, observer)?;
            rest = after;
        }
        Ok(())
    }

    /// Waits for the micro-batch that is under way, if there is one.
    fn settle(&mut self) -> Result<(), Error> {
        let n_tokens = std::mem::take(&mut self.n_under_way);
        if n_tokens > 0 {
            self.scheduler.wait().map_err(stopped)?;
            self.n_past += n_tokens;
        }
        Ok(())
    }

    /// Computes one micro-batch and appends the logits of its last `n_outputs` tokens; `n_after` are read after it. Where
    /// nothing is to be done with its results, it is only begun, and the next one prepared meanwhile.
    fn compute(
        &mut self,
        tokens: &[u32],
        n_after: usize,
        n_outputs: usize,
        observer: Option<Observer<'_>>,
    ) -> Result<(), Error> {
        let n_tokens = tokens.len();
        let shape = self.shape(n_tokens, n_outputs, observer.is_some())?;
        let goes_on = self.batches().are_staged(n_after.min(self.options.n_ubatch as usize));
        let current = self.graph_of(shape)?;
        // Only now may anything be written that is computed with.
        self.n_prepared_ahead += usize::from(self.n_under_way > 0);
        self.settle()?;
        let pool = if tokens.len() == 1 { &self.pool } else { &self.pool_batch };
        for backend in self.scheduler.backends_mut() {
            backend.set_threads(pool);
        }
        let rows = match self.model.embeddings() {
            Some(table) => table.read(tokens, &self.embeddings)?,
            None => tokens.iter().map(|id| *id as i32).collect(),
        };
        let model = Arc::clone(&self.model);
        // Whoever waits for another session's turn must not keep experts from moving meanwhile.
        let turn = model.expert_pool().map(|pool| pool.begin(Arc::clone(&self.stop)));
        let slots = model.slots().map(|slots| (slots, slots.begin(shape.by_slots)));
        let staging = ready(&self.staging).filter(|_| shape.staged.is_some());
        if let Some(staging) = staging {
            staging.begin(current.n_staged, goes_on);
        }
        self.fill_inputs(&current, &rows);
        let has_results = current.logits.is_some() || shape.routing || shape.tapped || slots.is_some();
        let is_on_devices = !model.placement().devices().is_empty() && turn.is_none() && staging.is_none();
        if n_after > 0 && is_on_devices && !has_results {
            self.scheduler.start(&current.graph).map_err(stopped)?;
            self.n_under_way = n_tokens;
            self.current = Some(current);
            return Ok(());
        }
        let results: Vec<Tensor> = current.choices.iter().chain(fetched_logits(&current)).cloned().collect();
        let done = match observer {
            None => self.scheduler.compute_and_fetch(&current.graph, &results),
            Some(observer) => {
                let n_expert = self.model.hparams().n_expert as usize;
                let watched: Vec<_> = current.taps.iter().map(|tap| tap.ready.clone()).collect();
                self.scheduler.compute_watched(&current.graph, &results, &watched, &mut |index| {
                    show(&current.taps[index], n_expert, observer);
                })
            }
        };
        // A failure to read comes first: what was computed after it is nothing.
        let copied = staging.map_or(Ok(()), Staging::finish);
        turn.map_or(Ok(()), |turn| turn.finish())?;
        copied?;
        done.map_err(stopped)?;
        self.n_past += n_tokens;
        self.keep_results(&current);
        if let Some((slots, running)) = slots {
            for index in 0..current.choices.len() {
                slots.observe(index, self.scheduler.result(index), shape.by_slots);
            }
            drop(running);
        }
        self.current = Some(current);
        Ok(())
    }

    /// What decides how batches are computed.
    fn batches(&self) -> Batches<'_> {
        Batches { model: &self.model, options: &self.options, has_staging: self.staging().is_some() }
    }

    /// The shape of the graph for the next `n_tokens`.
    ///
    /// # Errors
    /// [`Error::Option`] where inputs of products are to be `tapped` and experts are streamed.
    fn shape(&self, n_tokens: usize, n_outputs: usize, tapped: bool) -> Result<BatchShape, Error> {
        if tapped && self.model.expert_pool().is_some() {
            return Err(Error::Option {
                option: "--expert-pool",
                found: "a run that looks at the inputs of all matrix products".to_owned(),
                expected: "a model in memory: ggml's kernels compute then".to_owned(),
            });
        }
        let batches = self.batches();
        let n_cells = self.n_past + self.n_under_way + n_tokens;
        let staging = self.staging().filter(|_| !tapped && batches.are_staged(n_tokens));
        Ok(BatchShape {
            n_tokens,
            n_kv: n_cells.next_multiple_of(KV_STEP).min(self.n_ctx),
            n_outputs,
            flash_attention: self.options.flash_attention,
            // Inputs of products that are fused into one node would never be seen.
            kernels: if tapped { Kernels::Ggml } else { batches.kernels(n_tokens) },
            routing: self.routing.is_some(),
            tapped,
            by_slots: !tapped && batches.use_slots(n_tokens),
            staged: staging.map(Staging::order),
        })
    }

    /// The graph of the last micro-batch where it has this shape, else a new one that has its memory.
    fn graph_of(&mut self, shape: BatchShape) -> Result<BatchGraph, Error> {
        if let Some(current) = self.current.take().filter(|current| current.shape == shape) {
            return Ok(current);
        }
        let built = graph::build(&self.model, &self.cache, shape, self.staging(), &self.embeddings);
        self.scheduler.allocate(&built.graph)?;
        Ok(built)
    }

    /// Appends the logits that were computed, and what the routers decided.
    fn keep_results(&mut self, current: &BatchGraph) {
        if fetched_logits(current).is_some() {
            self.logits.extend_from_slice(self.scheduler.result(current.choices.len()));
        } else if let Some(logits) = &current.logits {
            let start = self.logits.len();
            self.logits.resize(start + logits.n_elements(), 0.0);
            logits.read_values(0, &mut self.logits[start..]);
        }
        if let Some(record) = &mut self.routing {
            record.extend(current.routing.iter().map(LayerRouting::read));
        }
    }

    fn staging(&self) -> Option<&Staging> {
        ready(&self.staging)
    }

    /// Whether large batches take the host's experts through stacks on devices.
    pub fn expert_staging(&self) -> ExpertStaging<'_> {
        match &self.staging {
            Ok(None) => ExpertStaging::None,
            Ok(Some(staging)) => ExpertStaging::Ready(staging.statistics()),
            Err(error) => ExpertStaging::Failed(error),
        }
    }

    /// Records from now on what the routers decide for every token, or no longer.
    pub fn record_routing(&mut self, wanted: bool) {
        self.routing = wanted.then(Vec::new);
    }

    /// What was recorded since the last call: every layer with a router, micro-batch after micro-batch.
    pub fn take_routing(&mut self) -> Vec<LayerRouting> {
        self.routing.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// `rows` are those of the tokens among the embeddings.
    fn fill_inputs(&self, current: &BatchGraph, rows: &[i32]) {
        let inputs = &current.inputs;
        let n_tokens = rows.len();
        let positions = self.n_past..self.n_past + n_tokens;
        inputs.tokens.write_values(rows);
        inputs.positions.write_values(&positions.clone().map(|p| p as i32).collect::<Vec<_>>());
        inputs.cells.write_values(&positions.clone().map(|p| p as i64).collect::<Vec<_>>());
        if let Some(mask) = &inputs.mask {
            let window = self.model.hparams().sliding_window.map(|w| w as usize);
            mask.write_values(&causal_mask(positions, current.shape.n_kv, window));
        }
        if let Some(outputs) = &inputs.outputs {
            let first = n_tokens - current.shape.n_outputs;
            outputs.write_values(&(first..n_tokens).map(|i| i as i32).collect::<Vec<_>>());
        }
    }

    /// Logits of the `index`-th token that the last [`decode`](Self::decode) was asked for: one for each entry of the
    /// vocabulary.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn logits(&self, index: usize) -> &[f32] {
        let n_vocab = self.n_vocab();
        &self.logits[index * n_vocab..(index + 1) * n_vocab]
    }

    /// Logits of the first `n` of these tokens, one after the other.
    ///
    /// # Panics
    /// When there are not so many.
    pub fn all_logits(&self, n: usize) -> &[f32] {
        &self.logits[..n * self.n_vocab()]
    }

    /// How many tokens' logits the last call gave.
    pub fn n_outputs(&self) -> usize {
        self.logits.len() / self.n_vocab()
    }

    fn n_vocab(&self) -> usize {
        self.model.hparams().n_vocab as usize
    }

    /// Tokens in the context.
    pub fn n_past(&self) -> usize {
        self.n_past
    }

    /// Tokens the context holds at most.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// Forgets every token from position `n_past` on.
    pub fn truncate(&mut self, n_past: usize) {
        self.n_past = self.n_past.min(n_past);
    }

    /// Writes the beginning of the context to a file: `tokens`, which are those it holds, with their keys and values.
    ///
    /// # Errors
    /// [`Error::Gguf`] where the file can't be written; one that was there is then still there.
    ///
    /// # Panics
    /// When the context holds fewer tokens.
    pub fn save(&self, tokens: &[u32], path: &Path) -> Result<(), Error> {
        assert!(tokens.len() <= self.n_past, "{} tokens of {}", tokens.len(), self.n_past);
        saved_context::write(&self.model, &self.cache, tokens, path)
    }

    /// Replaces the context by the one in a file that [`save`](Self::save) wrote, as far as there is room, and gives its
    /// tokens. There are no logits until more is read.
    ///
    /// # Errors
    /// [`Error::Gguf`] where the file can't be read, [`Error::SavedContext`] where it is damaged or was written with
    /// another model, other types of the KV cache or other settings of the model. The context is empty then.
    pub fn restore(&mut self, path: &Path) -> Result<Vec<u32>, Error> {
        self.logits.clear();
        self.n_past = 0;
        let tokens = saved_context::read(&self.model, &self.cache, self.n_ctx, path)?;
        self.n_past = tokens.len();
        Ok(tokens)
    }

    /// Set from another thread, it ends a running [`decode`](Self::decode) with [`Error::Stopped`]; clear it before
    /// the next call.
    pub fn stop_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stop)
    }

    /// Computes one token and forgets it, so that pages are in memory and threads awake when timing starts.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn warm_up(&mut self) -> Result<(), Error> {
        let n_past = self.n_past;
        if n_past < self.n_ctx {
            let done = self.decode(&[0], Logits::Last);
            self.n_past = n_past;
            self.logits.clear();
            done?;
        }
        Ok(())
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Threads for single tokens.
    pub fn n_threads(&self) -> usize {
        self.pool.n_threads()
    }

    /// Whether a stop was asked for.
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Bytes of compute buffers by kind of memory.
    pub fn compute_bytes(&self) -> Vec<(String, usize)> {
        self.scheduler.buffer_sizes().into_iter().map(|(buffer, bytes)| (buffer.name(), bytes)).collect()
    }

    /// The operations of the last graph in their order, for tests of what devices make of them; none before the first.
    pub fn graph_nodes(&self) -> Vec<Node> {
        self.current.as_ref().map(|current| current.graph.nodes()).unwrap_or_default()
    }

    /// How many micro-batches were prepared while devices computed the one before.
    pub fn n_prepared_ahead(&self) -> usize {
        self.n_prepared_ahead
    }

    /// Into how many pieces the last graph was split over the devices.
    pub fn n_splits(&self) -> usize {
        self.scheduler.n_splits()
    }
}

/// The logits, where they are few enough to be fetched behind the computation.
fn fetched_logits(current: &BatchGraph) -> Option<&Tensor> {
    current.logits.as_ref().filter(|logits| logits.n_bytes() <= MOST_FETCHED_BYTES)
}

/// What an error of ggml's means here.
fn stopped(error: ggml::Error) -> Error {
    match error {
        ggml::Error::Aborted => Error::Stopped,
        other => other.into(),
    }
}

/// Copies the input of a matrix product to the host and shows it.
fn show(tap: &graph::Tap, n_expert: usize, observer: Observer<'_>) {
    let mut values = vec![0f32; tap.x.n_elements()];
    tap.x.read_values(0, &mut values);
    let mut ids = vec![0i32; tap.ids.as_ref().map_or(0, |ids| ids.n_elements())];
    if let Some(tensor) = &tap.ids {
        tensor.read_values(0, &mut ids);
    }
    let n_used = tap.ids.as_ref().map_or(0, |ids| ids.ne()[0]);
    observer(&MatrixInput {
        weights: &tap.weights,
        values: &values,
        n_in: tap.x.ne()[0],
        experts: tap.ids.as_ref().map(|_| ExpertRows { ids: &ids, n_used, n_expert }),
    });
}

const F16_ZERO: u16 = 0;
const F16_MINUS_INFINITY: u16 = 0xfc00;

/// `[n_kv, n_tokens]`: each token sees the cells up to its own position, and no further back than the window.
fn causal_mask(positions: std::ops::Range<usize>, n_kv: usize, window: Option<usize>) -> Vec<u16> {
    let mut mask = vec![F16_MINUS_INFINITY; n_kv * positions.len()];
    for (row, position) in mask.chunks_exact_mut(n_kv).zip(positions) {
        let first = window.map_or(0, |w| (position + 1).saturating_sub(w));
        row[first..=position].fill(F16_ZERO);
    }
    mask
}

/// One thread for each core: hyper-threads share the units that multiply.
fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// So many threads, or one for each core where the number is 0.
pub(crate) fn new_pool(wanted: u32) -> Result<Arc<ThreadPool>, Error> {
    let n_threads = if wanted == 0 { default_threads() } else { wanted as usize };
    ThreadPool::new(n_threads).map(Arc::new).ok_or_else(|| Error::Option {
        option: "--threads",
        found: n_threads.to_string(),
        expected: "as many threads as the system can start".to_owned(),
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_sees_itself_and_what_came_before() {
        let (o, x) = (F16_ZERO, F16_MINUS_INFINITY);
        assert_eq!(causal_mask(1..3, 4, None), [o, o, x, x, o, o, o, x]);
        assert_eq!(causal_mask(0..1, 2, None), [o, x]);
    }

    #[test]
    fn a_window_hides_what_is_further_back() {
        let (o, x) = (F16_ZERO, F16_MINUS_INFINITY);
        assert_eq!(causal_mask(2..4, 4, Some(2)), [x, o, o, x, x, x, o, o]);
    }
}
