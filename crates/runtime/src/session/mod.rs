//! A conversation with a model: its KV cache, and tokens going in, logits coming out.

mod inputs;
mod observer;
mod options;
mod setup;

use crate::Error;
use crate::batch::{self, Batches};
use crate::graph::{self, BatchGraph, BatchShape};
use crate::kernels::Kernels;
use crate::kv_cache::KvCache;
use crate::memory::Free;
use crate::model::Model;
use crate::routing::LayerRouting;
use crate::saved_context;
use crate::staging::Staging;
pub use crate::staging::StagingStatistics;
use ggml::{Node, Scheduler, Tensor, ThreadPool};
use observer::show;
pub use observer::{ExpertRows, MatrixInput, Observer};
pub(crate) use options::cache_types;
pub use options::{SessionOptions, StageExperts};
use setup::Setup;
pub(crate) use setup::new_pool;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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

/// One sequence of tokens being read and continued.
pub struct Session {
    /// Before the scheduler in order of dropping: the graph's buffers belong to the scheduler.
    current: Option<BatchGraph>,
    scheduler: Scheduler,
    cache: KvCache,
    /// `[n_embd, n]`: the rows of a batch, or the whole table.
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

        let [pool, pool_batch] = setup::pools(options)?;
        let stop = Arc::new(AtomicBool::new(false));
        let options = &batch::fitted(options, n_ctx);
        let mut scheduler = setup::scheduler(model, options, &pool, &stop)?;
        let cache = KvCache::new(hparams, model.placement(), n_ctx, type_k, type_v)?;
        let embeddings = match model.embeddings() {
            Some(table) => table.rows(options.n_batch as usize)?,
            None => model.weights().token_embd.clone(),
        };
        let setup = Setup {
            model,
            options,
            n_ctx,
            cache: &cache,
            embeddings: &embeddings,
            free: &free,
            caches: &caches,
        };
        let staging = setup.staging(&mut scheduler, &stop)?;
        setup.reserve(&mut scheduler, &staging)?;
        Ok(Session {
            current: None,
            scheduler,
            cache,
            embeddings,
            model: Arc::clone(model),
            staging,
            options: options.clone(),
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
        // What is looked at on the way, or kept for every token, is that of one micro-batch at a time.
        let may_sweep = observer.is_none() && self.routing.is_none() && logits != Logits::All;
        let mut rest = tokens;
        while !rest.is_empty() {
            let (batch, after) = rest.split_at(self.batches().together(rest.len(), may_sweep));
            let n_outputs = match logits {
                Logits::None => 0,
                Logits::Last => usize::from(after.is_empty()),
                Logits::All => batch.len(),
            };
            // A new borrow for each batch.
            let observer = observer.as_mut().map(|observer| &mut **observer as Observer<'_>);
            let n_next = self.batches().together(after.len(), may_sweep);
            self.compute(batch, n_next, n_outputs, observer)?;
            rest = after;
        }
        Ok(())
    }

    /// Waits for the batch that is under way, if there is one.
    fn settle(&mut self) -> Result<(), Error> {
        let n_tokens = std::mem::take(&mut self.n_under_way);
        if n_tokens > 0 {
            self.scheduler.wait().map_err(stopped)?;
            self.n_past += n_tokens;
        }
        Ok(())
    }

    /// Computes tokens [together](Batches::together) and appends the logits of the last `n_outputs` of them; `n_next` are computed
    /// after them. Where nothing is to be done with the results, they are only begun, and the next ones prepared meanwhile.
    fn compute(
        &mut self,
        tokens: &[u32],
        n_next: usize,
        n_outputs: usize,
        observer: Option<Observer<'_>>,
    ) -> Result<(), Error> {
        let n_tokens = tokens.len();
        let shape = self.shape(n_tokens, n_outputs, observer.is_some())?;
        let goes_on = self.batches().are_staged(n_next);
        let current = self.graph_of(shape)?;
        let shape = &current.shape;
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
        let window = model.hparams().sliding_window.map(|w| w as usize);
        inputs::fill(&current, &rows, self.n_past, window);
        let has_results = current.logits.is_some() || shape.routing || shape.tapped || slots.is_some();
        let is_on_devices = !model.placement().devices().is_empty() && turn.is_none() && staging.is_none();
        if n_next > 0 && is_on_devices && !has_results {
            self.scheduler.start(&current.graph).map_err(stopped)?;
            self.n_under_way = n_tokens;
            self.current = Some(current);
            return Ok(());
        }
        let choices = current.choices.iter().map(|choice| &choice.ids);
        let results: Vec<Tensor> = choices.chain(fetched_logits(&current)).cloned().collect();
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
            for (index, choice) in current.choices.iter().enumerate() {
                slots.observe(choice.layer, self.scheduler.result(index), shape.by_slots);
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
        let n_past = self.n_past + self.n_under_way;
        let n_kv = |n_tokens: usize| (n_past + n_tokens).next_multiple_of(KV_STEP).min(self.n_ctx);
        let shape = batches.shape(n_tokens, n_outputs, n_kv, self.staging());
        let shape = BatchShape { routing: self.routing.is_some(), ..shape };
        if !tapped {
            return Ok(shape);
        }
        // Inputs of products that are fused into one node, or computed from slots or stacks, would never be seen.
        Ok(BatchShape { tapped, kernels: Kernels::Ggml, by_slots: false, staged: None, ..shape })
    }

    /// The graph of the last batch where it has this shape, else a new one that has its memory.
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
