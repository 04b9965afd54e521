//! The graph of one micro-batch: from token ids to logits, in the roles of the architecture.
//!
//! Per layer: RMS norm, grouped-query attention with rotary embedding over the KV cache, residual, RMS norm, dense or
//! expert feed-forward network, residual. Where a weight lies is no concern of this module.

mod attention;
mod feed_forward;
mod routing;
mod slots;
mod taps;

use crate::kernels::{self, Kernels, Matrix, Stream};
use crate::kv_cache::KvCache;
use crate::model::{FeedForward, Layer, Linear, Model};
use crate::staging::{Order, Staging};
use feed_forward::Supply;
use ggml::{Graph, Tensor, Type};
use model_spec::TensorRole;
use std::sync::Arc;
use taps::Taps;

pub(crate) use taps::Tap;

pub(crate) use routing::RouterOutputs;

/// The extents a graph is built for; graphs of equal shape are interchangeable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchShape {
    /// Tokens in the micro-batch.
    pub n_tokens: usize,
    /// Cells of the KV cache that attention looks at, those of this batch included.
    pub n_kv: usize,
    /// Rows of logits wanted.
    pub n_outputs: usize,
    pub flash_attention: bool,
    pub kernels: Kernels,
    /// What the routers decide is wanted for every token.
    pub routing: bool,
    /// Whether the inputs of its matrix products will be looked at.
    pub tapped: bool,
    /// Devices compute the experts in their slots; otherwise all are computed from the host's copies.
    pub by_slots: bool,
    /// Devices compute with experts of the host that are copied in time, to stacks that they take in this order.
    pub staged: Option<Order>,
}

/// What the caller fills in before each computation. `None` where the graph has no use for it.
pub(crate) struct Inputs {
    /// `[n_tokens]`, I32: their rows among the embeddings.
    pub tokens: Tensor,
    /// `[n_tokens]`, I32.
    pub positions: Tensor,
    /// `[n_tokens]`, I64: the cache cell each token is stored in.
    pub cells: Tensor,
    /// `[n_kv, n_tokens]`, F16: 0 where a token sees a cell, minus infinity elsewhere. For ggml's attention only.
    pub mask: Option<Tensor>,
    /// `[n_outputs]`, I32: the tokens whose logits are wanted, when not all are.
    pub outputs: Option<Tensor>,
}

pub(crate) struct BatchGraph {
    pub graph: Graph,
    pub shape: BatchShape,
    pub inputs: Inputs,
    /// `[n_vocab, n_outputs]`; `None` when no logits are wanted.
    pub logits: Option<Tensor>,
    /// One for each layer with a router, where the shape asks for it.
    pub routing: Vec<RouterOutputs>,
    /// The inputs of all matrix products with weights, in the order of computation, where they will be looked at.
    pub taps: Vec<Tap>,
    /// `[n_used, n_tokens]`, I32: the experts taken in each layer with slots whose feed-forward network is computed.
    pub choices: Vec<Tensor>,
    /// Layers whose experts are staged, of those whose feed-forward network is computed.
    pub n_staged: usize,
}

/// An upper bound on the nodes of a graph of this model.
pub(crate) fn max_nodes(model: &Model) -> usize {
    let groups = |layer: &crate::model::Layer| match &layer.ffn {
        crate::model::FeedForward::Dense { .. } => 0,
        crate::model::FeedForward::Experts { gate, up, down, slots, .. } => {
            let slots = slots.as_ref().map_or(0, |slots| 2 + 2 * slots.groups.len());
            gate.groups.len() + up.groups.len() + down.groups.len() + slots
        }
    };
    let experts: usize = model.weights().layers.iter().map(|layer| 16 * groups(layer)).sum();
    let used = 2 * model.n_expert_used() as usize + 16;
    256 + model.weights().layers.len() * (72 + used) + experts
}

/// Builds the graph for `shape`; `staging` is what staged experts are copied by. `embeddings` has the rows that tokens are
/// numbers of, `[n_embd, n]`.
pub(crate) fn build(
    model: &Model,
    cache: &KvCache,
    shape: BatchShape,
    staging: Option<&Staging>,
    embeddings: &Tensor,
) -> BatchGraph {
    let graph = Graph::new(max_nodes(model));
    let g = &graph;
    let hparams = model.hparams();
    let weights = model.weights();
    let BatchShape { n_tokens, n_kv, n_outputs, kernels, .. } = shape;
    let mut taps = Taps::new(shape.tapped);
    let mut choices = slots::Choices::new(shape.by_slots);
    let staging = staging.zip(shape.staged);
    let mut n_staged = 0;

    // A batch without outputs only fills the cache: the last layer then ends with its keys and values.
    let only_cache = n_outputs == 0 && !shape.routing;
    let n_attending = weights.layers.len() - usize::from(only_cache);
    let needs_mask = (0..n_attending).any(|layer| attention::ours(cache, layer, shape).is_none());
    let inputs = Inputs {
        tokens: g.input("tokens", Type::I32, &[n_tokens]),
        positions: g.input("positions", Type::I32, &[n_tokens]),
        cells: g.input("cells", Type::I64, &[n_tokens]),
        mask: needs_mask.then(|| g.input("mask", Type::F16, &[n_kv, n_tokens])),
        outputs: (n_outputs > 0 && n_outputs < n_tokens).then(|| g.input("outputs", Type::I32, &[n_outputs])),
    };

    let mut x = g.get_rows(embeddings, &inputs.tokens); // [n_embd, n_tokens]
    let last = weights.layers.len() - 1;
    let mut watch = routing::Watch::new(kernels);
    for (index, layer) in weights.layers.iter().enumerate() {
        taps.enter(index);
        let normed = norm(g, &x, &layer.attn_norm, hparams.rms_eps);
        taps.layer_input(&normed, &[TensorRole::AttnQ, TensorRole::AttnK, TensorRole::AttnV]);
        let qkv = attention::project(g, kernels, model, layer, &normed, &inputs.positions);
        let ends_here = index == last && only_cache;
        attention::store(g, cache, index, &qkv, &inputs.cells, !ends_here);
        if ends_here {
            let (routing, taps, choices) = (watch.layers, taps.finish(), choices.kept);
            return BatchGraph { graph, shape, inputs, logits: None, routing, taps, choices, n_staged };
        }
        let gathered = attention::gather(g, model, cache, index, &qkv.q, &inputs, shape);
        taps.layer_input(&gathered, &[TensorRole::AttnOutput]);
        let mut attended = linear(g, kernels, &layer.o, &gathered);
        if shape.routing {
            let (residual, next) = (g.add(&attended, &x), weights.layers.get(index + 1));
            let used = model.n_expert_used() as usize;
            watch.layer(g, (index, layer), next, &residual, hparams.rms_eps, used);
            if index == last && n_outputs == 0 {
                let (routing, taps, choices) = (watch.layers, taps.finish(), choices.kept);
                return BatchGraph { graph, shape, inputs, logits: None, routing, taps, choices, n_staged };
            }
        }
        if let (true, Some(outputs)) = (index == last, &inputs.outputs) {
            attended = g.get_rows(&attended, outputs);
            x = g.get_rows(&x, outputs);
        }
        let residual = g.add(&attended, &x);
        let normed = norm(g, &residual, &layer.ffn_norm, hparams.rms_eps);
        let n_used = model.n_expert_used() as usize;
        let supply = match staging.filter(|(staging, _)| staging.has(index)) {
            Some((staging, order)) => {
                n_staged += 1;
                Supply::Staged(staging, index, order)
            }
            None => stream(g, model, kernels, index, &residual).map_or(Supply::Resident, Supply::Streamed),
        };
        let mut watched = feed_forward::Watched { taps: &mut taps, choices: &mut choices };
        let fed = feed_forward::feed_forward(g, kernels, &layer.ffn, &normed, n_used, &supply, &mut watched);
        x = g.add(&fed, &residual);
        g.name(&x, &format!("layer_out-{index}"));
    }
    let x = norm(g, &x, &weights.output_norm, hparams.rms_eps);
    taps.global_input(&x, TensorRole::Output);
    let logits = multiply(g, kernels, &weights.output, &x); // [n_vocab, n_outputs]
    g.name(&logits, "logits");
    g.output(&logits);
    let (routing, taps, choices) = (watch.layers, taps.finish(), choices.kept);
    BatchGraph { graph, shape, inputs, logits: Some(logits), routing, taps, choices, n_staged }
}

/// Batches from which on nearly all experts are taken, so that guessing which is idle.
const MAX_GUESSED_TOKENS: usize = 32;

/// Where the experts of the layer numbered `index` come from, when they are streamed.
fn stream(g: &Graph, model: &Model, kernels: Kernels, index: usize, residual: &Tensor) -> Option<Stream> {
    let layers = &model.weights().layers;
    let streamed = |layer: &Layer| match &layer.ffn {
        FeedForward::Experts { streamed, .. } => *streamed,
        FeedForward::Dense { .. } => None,
    };
    let (pool, layer) = (Arc::clone(model.expert_pool()?), streamed(&layers[index])?);
    let anchor = model.weights().anchor.clone()?;
    let (eps, n_used) = (model.hparams().rms_eps, model.n_expert_used() as usize);
    let next = layers.get(index + 1).filter(|next| streamed(next).is_some());
    let next = next.filter(|_| residual.ne()[1] < MAX_GUESSED_TOKENS);
    let early = next.and_then(|next| routing::guess(g, kernels, next, residual, eps, n_used));
    Some(Stream { pool, layer, anchor, early })
}

fn norm(g: &Graph, x: &Tensor, weight: &Tensor, eps: f32) -> Tensor {
    g.mul(&g.rms_norm(x, eps), weight)
}

/// `weight^T x` of a weight `[n_in, n_out]`.
pub(crate) fn multiply(g: &Graph, kernels: Kernels, weight: &Tensor, x: &Tensor) -> Tensor {
    if kernels == Kernels::Bruce && kernels::served(weight) {
        let [product] = kernels::project(g, [Matrix::new(weight, 0)], x);
        return product;
    }
    g.mul_mat(weight, x)
}

fn linear(g: &Graph, kernels: Kernels, linear: &Linear, x: &Tensor) -> Tensor {
    with_bias(g, linear, multiply(g, kernels, &linear.weight, x))
}

/// Several matrices times the same activations.
fn linears<const N: usize>(g: &Graph, kernels: Kernels, linears: [&Linear; N], x: &Tensor) -> [Tensor; N] {
    if kernels == Kernels::Bruce && linears.iter().all(|linear| kernels::served(&linear.weight)) {
        let products = kernels::project(g, linears.map(|linear| Matrix::new(&linear.weight, 0)), x);
        let mut biased = linears.iter().zip(products).map(|(linear, product)| with_bias(g, linear, product));
        return std::array::from_fn(|_| biased.next().expect("one for each matrix"));
    }
    linears.map(|one| linear(g, kernels, one, x))
}

fn with_bias(g: &Graph, linear: &Linear, product: Tensor) -> Tensor {
    match &linear.bias {
        Some(bias) => g.add(&product, bias),
        None => product,
    }
}
