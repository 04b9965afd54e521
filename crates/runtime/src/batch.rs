//! Who computes a batch, by its size.

use crate::kernels::Kernels;
use crate::model::Model;
use crate::session::SessionOptions;

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

impl Batches<'_> {
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
    pub fn kernels(&self, n_tokens: usize) -> Kernels {
        if self.are_offloaded(n_tokens) { Kernels::Ggml } else { self.model.kernels() }
    }

    /// Whether experts in slots are computed there. In large batches nearly every expert is asked for, and what devices take
    /// over is copied to them in any case; streamed experts are not taken over unless they are staged.
    pub fn use_slots(&self, n_tokens: usize) -> bool {
        let is_streamed = self.model.expert_pool().is_some() && !self.are_staged(n_tokens);
        self.model.slots().is_some() && (is_streamed || !self.are_offloaded(n_tokens))
    }
}
