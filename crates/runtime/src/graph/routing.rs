//! What the routers decide, as results of their own beside the graph that computes.
//!
//! The routers are computed a second time for the record: they are the smallest matrices of a model, and the graph that
//! runs without a record stays as it is.

use super::{multiply, norm};
use crate::kernels::Kernels;
use crate::model::{FeedForward, Layer};
use ggml::{Graph, Tensor};

/// The record of one layer, read after the computation.
pub(crate) struct RouterOutputs {
    /// Index of the layer in the model.
    pub layer: usize,
    /// `[n_expert, n_tokens]`, F32: each expert's probability.
    pub probabilities: Tensor,
    /// `[n_used, n_tokens]`, I32: the experts taken, the likeliest first.
    pub ids: Tensor,
    /// As `ids`, one layer early; `None` where no router comes before.
    pub early: Option<Tensor>,
}

/// Watches the routers of a graph as it is built.
pub(super) struct Watch {
    pub layers: Vec<RouterOutputs>,
    early: Option<Tensor>,
    /// Those that the graph itself computes with, so that near ties are recorded as they are decided.
    kernels: Kernels,
}

impl Watch {
    /// Nothing yet of a graph that computes with these kernels.
    pub fn new(kernels: Kernels) -> Watch {
        Watch { layers: Vec::new(), early: None, kernels }
    }

    /// Records the choice of the layer numbered `index`, which routes by `residual: [n_embd, n_tokens]`, and what the router
    /// of the layer after it would choose by the same state.
    pub fn layer(
        &mut self,
        g: &Graph,
        (index, layer): (usize, &Layer),
        next: Option<&Layer>,
        residual: &Tensor,
        eps: f32,
        n_used: usize,
    ) {
        let early = self.early.take();
        let Some((probabilities, ids)) = self.choice(g, layer, residual, eps, n_used) else { return };
        g.output(&probabilities);
        self.layers.push(RouterOutputs { layer: index, probabilities, ids, early });
        self.early = next.and_then(|next| self.choice(g, next, residual, eps, n_used)).map(|(_, ids)| ids);
    }

    /// Probabilities and experts taken; `None` for a dense layer.
    fn choice(
        &self,
        g: &Graph,
        layer: &Layer,
        residual: &Tensor,
        eps: f32,
        n_used: usize,
    ) -> Option<(Tensor, Tensor)> {
        let probabilities = g.soft_max(&logits(g, self.kernels, layer, residual, eps)?);
        // A copy, because the scheduler only keeps results that are no views.
        let ids = g.contiguous(&g.top_k(&probabilities, n_used));
        g.output(&ids);
        Some((probabilities, ids))
    }
}

/// What a layer's router says to `residual: [n_embd, n_tokens]`: `[n_expert, n_tokens]`; `None` for a dense layer.
fn logits(g: &Graph, kernels: Kernels, layer: &Layer, residual: &Tensor, eps: f32) -> Option<Tensor> {
    let FeedForward::Experts { router, .. } = &layer.ffn else { return None };
    Some(multiply(g, kernels, router, &norm(g, residual, &layer.ffn_norm, eps)))
}

/// What a layer will likely choose, by the state that the layer before it routes by: `[n_used, n_tokens]`, I32.
pub(super) fn guess(
    g: &Graph,
    kernels: Kernels,
    layer: &Layer,
    residual: &Tensor,
    eps: f32,
    n_used: usize,
) -> Option<Tensor> {
    let logits = logits(g, kernels, layer, residual, eps)?;
    Some(g.contiguous(&g.top_k(&logits, n_used)))
}
