//! Which tokens of a prompt are computed together, and by whom.

use crate::graph::{BatchShape, MicroBatch};
use crate::kernels::Kernels;
use crate::model::Model;
use crate::session::SessionOptions;
use crate::staging::{MOST_GATED, Staging};

/// Batches from which on devices compute with weights that lie on the host; ggml's own bound.
pub(crate) const MIN_OFFLOAD_TOKENS: usize = 32;

/// What decides.
#[derive(Clone, Copy)]
pub(crate) struct Batches<'a> {
    pub model: &'a Model,
    pub options: &'a SessionOptions,
    /// Whether there are stacks for experts on devices.
    pub has_staging: bool,
}

/// `options` with batches that a context of `n_ctx` tokens holds and a graph can have.
pub(crate) fn fitted(options: &SessionOptions, n_ctx: usize) -> SessionOptions {
    let n_ctx = u32::try_from(n_ctx).unwrap_or(u32::MAX);
    let n_batch = options.n_batch.clamp(1, n_ctx);
    let n_ubatch = options.n_ubatch.clamp(1, n_batch);
    let n_batch = n_batch.min(n_ubatch.saturating_mul(MOST_GATED as u32));
    SessionOptions { n_batch, n_ubatch, ..options.clone() }
}

impl Batches<'_> {
    /// How many of the next `n_tokens` are computed by one graph: a micro-batch, or as many as a batch has where experts are
    /// brought for it, so that they are brought once. `may_sweep` says whether the latter may be.
    pub fn together(&self, n_tokens: usize, may_sweep: bool) -> usize {
        let all = n_tokens.min(self.options.n_batch as usize);
        let are_brought = self.model.expert_pool().is_some() || self.are_staged(all);
        if may_sweep && are_brought { all } else { n_tokens.min(self.options.n_ubatch as usize) }
    }

    /// The shape of the graph for `n_tokens` [together](Self::together), of which the last `n_outputs` have logits. `n_kv` tells
    /// what the first of them, so many, look at; `staging` are the stacks.
    pub fn shape(
        &self,
        n_tokens: usize,
        n_outputs: usize,
        n_kv: impl Fn(usize) -> usize,
        staging: Option<&Staging>,
    ) -> BatchShape {
        let n_ubatch = self.options.n_ubatch as usize;
        let micro_batch = |start: usize| {
            let end = (start + n_ubatch).min(n_tokens);
            MicroBatch { n_tokens: end - start, n_kv: n_kv(end) }
        };
        BatchShape {
            micro_batches: (0..n_tokens).step_by(n_ubatch).map(micro_batch).collect(),
            n_outputs,
            flash_attention: self.options.flash_attention,
            kernels: self.kernels(n_tokens),
            routing: false,
            tapped: false,
            by_slots: self.use_slots(n_tokens),
            staged: staging.filter(|_| self.are_staged(n_tokens)).map(Staging::order),
        }
    }

    /// Whether experts of the host are copied to devices in time.
    pub fn are_staged(&self, n_tokens: usize) -> bool {
        self.has_staging && self.options.stage_experts.least_tokens().is_some_and(|from| n_tokens >= from)
    }

    /// Whether devices take over what they can with the weights that lie on the host.
    fn are_offloaded(&self, n_tokens: usize) -> bool {
        // Smaller batches than those that are staged were found to be the CPU's. (What ggml's kernels would compute is taken
        // over in any case.)
        let is_large = if self.has_staging && self.model.kernels() == Kernels::Bruce {
            self.are_staged(n_tokens)
        } else {
            n_tokens >= MIN_OFFLOAD_TOKENS || self.are_staged(n_tokens)
        };
        self.options.offload && is_large && !self.model.placement().devices().is_empty()
    }

    /// The kernels: devices can't take over what ours compute. (Streamed experts that are not staged are ours to compute in
    /// any case.)
    fn kernels(&self, n_tokens: usize) -> Kernels {
        if self.are_offloaded(n_tokens) { Kernels::Ggml } else { self.model.kernels() }
    }

    /// Whether experts in slots are computed there. In large batches nearly every expert is asked for, and what devices take
    /// over is copied to them in any case; streamed experts are not taken over unless they are staged.
    fn use_slots(&self, n_tokens: usize) -> bool {
        let is_streamed = self.model.expert_pool().is_some() && !self.are_staged(n_tokens);
        self.model.slots().is_some() && (is_streamed || !self.are_offloaded(n_tokens))
    }
}
