//! What a session is made of: threads, scheduler, stacks for experts, and memory for the largest graphs.

use super::{SessionOptions, StageExperts, ready};
use crate::Error;
use crate::batch::Batches;
use crate::graph;
use crate::kv_cache::KvCache;
use crate::memory::Free;
use crate::model::Model;
use crate::staging::{Planned, Staging};
use ggml::{Backend, BufferType, Device, DeviceKind, Graph, Scheduler, Tensor, ThreadPool};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Threads for single tokens, and for batches.
pub(super) fn pools(options: &SessionOptions) -> Result<[Arc<ThreadPool>; 2], Error> {
    let single = new_pool(options.n_threads)?;
    let batch = match options.n_threads_batch {
        n if n == 0 || n as usize == single.n_threads() => Arc::clone(&single),
        n => new_pool(n)?,
    };
    Ok([single, batch])
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

/// One thread for each core: hyper-threads share the units that multiply.
fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// A scheduler over the model's devices and the CPU, for batches as `options`, which [fit](crate::batch::fitted), have them.
pub(super) fn scheduler(
    model: &Model,
    options: &SessionOptions,
    pool: &Arc<ThreadPool>,
    stop: &Arc<AtomicBool>,
) -> Result<Scheduler, Error> {
    let cpu = Device::find(DeviceKind::Cpu).ok_or(ggml::Error::NoCpuBackend { searched: String::new() })?;
    let devices = model.placement().devices().iter().copied().chain([cpu]);
    let mut backends = devices.map(Backend::new).collect::<Result<Vec<_>, _>>()?;
    for backend in &mut backends {
        backend.set_abort(Arc::clone(stop));
        backend.set_threads(pool);
    }
    let n_micro_batches = options.n_batch.div_ceil(options.n_ubatch) as usize;
    Ok(Scheduler::new(backends, graph::max_nodes(model, n_micro_batches), options.offload))
}

/// A context that still lacks memory to compute in.
pub(super) struct Setup<'a> {
    pub model: &'a Arc<Model>,
    /// With batches that [fit](crate::batch::fitted).
    pub options: &'a SessionOptions,
    pub n_ctx: usize,
    pub cache: &'a KvCache,
    pub embeddings: &'a Tensor,
    /// Before the cache was allocated, whose sizes by kind of memory these are.
    pub free: &'a Free,
    pub caches: &'a [(BufferType, u64)],
}

impl Setup<'_> {
    /// The graph of the largest batch of no more than `n_tokens`, in a full context.
    fn graph(&self, n_tokens: usize, staging: Option<&Staging>) -> Graph {
        let Setup { model, options, n_ctx, .. } = *self;
        let batches = Batches { model, options, has_staging: staging.is_some() };
        let n_tokens = batches.together(n_tokens, true);
        let shape = batches.shape(n_tokens, 1, |_| n_ctx, staging);
        graph::build(model, self.cache, shape, staging, self.embeddings).graph
    }

    /// From how many tokens on a batch would have experts staged; `None` where no batch is so large.
    fn staged_from(&self) -> Option<usize> {
        let SessionOptions { stage_experts, offload, n_batch, .. } = self.options;
        stage_experts.least_tokens().filter(|n| *offload && *n <= *n_batch as usize)
    }

    /// Stacks on devices, where there are batches for them; inside, why there can't be any.
    ///
    /// # Errors
    /// The same, where they must be.
    pub fn staging(
        &self,
        scheduler: &mut Scheduler,
        stop: &Arc<AtomicBool>,
    ) -> Result<Result<Option<Staging>, Error>, Error> {
        let planned = self.staged_from().and_then(|_| Planned::new(self.model));
        let stacks = planned.as_ref().map(Planned::bytes).unwrap_or_default();
        let mut staging = planned.map(|planned| planned.start(self.model, Arc::clone(stop))).transpose();
        if let Ok(Some(ready)) = &staging {
            let buffers = scheduler.measure(self.graph(self.options.n_batch as usize, Some(ready)));
            if let Err(error) = self.free.check_staging(&stacks, self.caches, &buffers) {
                staging = Err(error);
            }
        }
        match self.options.stage_experts {
            StageExperts::From(_) => staging.map(Ok),
            _ => Ok(staging),
        }
    }

    /// Takes memory for the largest graphs.
    ///
    /// # Errors
    /// [`Error::ContextMemory`] where it is short.
    pub fn reserve(
        &self,
        scheduler: &mut Scheduler,
        staging: &Result<Option<Staging>, Error>,
    ) -> Result<(), Error> {
        let staging = ready(staging);
        // With staging, smaller batches are computed elsewhere.
        let smaller = self.staged_from().filter(|from| staging.is_some() && *from > 1).map(|from| from - 1);
        for n_tokens in [self.options.n_batch as usize].into_iter().chain(smaller) {
            let buffers = scheduler.measure(self.graph(n_tokens, staging));
            self.free.check_context(self.n_ctx, self.caches, &buffers)?;
            scheduler.reserve(self.graph(n_tokens, staging))?;
        }
        Ok(())
    }
}
