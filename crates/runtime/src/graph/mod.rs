//! The graph of a micro-batch, or of several layer by layer: from token ids to logits, in the roles of the architecture.
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
use expert_pool::Part;
use ggml::{Graph, Tensor, Type};
use model_spec::TensorRole;
use std::sync::Arc;
use taps::Taps;

pub(crate) use routing::RouterOutputs;
pub(crate) use slots::Choice;
pub(crate) use taps::Tap;

/// Tokens that are computed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MicroBatch {
    pub n_tokens: usize,
    /// Cells of the KV cache that attention looks at, those of these tokens included.
    pub n_kv: usize,
}

/// The extents a graph is built for; graphs of equal shape are interchangeable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BatchShape {
    /// One behind the other in the context. Several are computed layer by layer: all of them pass a layer before any of them
    /// enters the next, so that experts that are not where they are computed are brought there once. Not with `routing` or `tapped`.
    pub micro_batches: Vec<MicroBatch>,
    /// Rows of logits wanted, of the last micro-batch.
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

/// What the caller fills in before each computation, for a micro-batch. `None` where the graph has no use for it.
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
    /// For each micro-batch.
    pub inputs: Vec<Inputs>,
    /// `[n_vocab, n_outputs]`; `None` when no logits are wanted.
    pub logits: Option<Tensor>,
    /// One for each layer with a router, where the shape asks for it.
    pub routing: Vec<RouterOutputs>,
    /// The inputs of all matrix products with weights, in the order of computation, where they will be looked at.
    pub taps: Vec<Tap>,
    /// The experts taken in each layer with slots whose feed-forward network is computed.
    pub choices: Vec<Choice>,
    /// Layers whose experts are staged, of those whose feed-forward network is computed.
    pub n_staged: usize,
}

/// An upper bound on the nodes of a graph of this model for so many micro-batches.
pub(crate) fn max_nodes(model: &Model, n_micro_batches: usize) -> usize {
    let groups = |layer: &crate::model::Layer| match &layer.ffn {
        crate::model::FeedForward::Dense { .. } => 0,
        crate::model::FeedForward::Experts { gate, up, down, slots, .. } => {
            let slots = slots.as_ref().map_or(0, |slots| 2 + 2 * slots.groups.len());
            gate.groups.len() + up.groups.len() + down.groups.len() + slots
        }
    };
    let experts: usize = model.weights().layers.iter().map(|layer| 16 * groups(layer)).sum();
    let used = 2 * model.n_expert_used() as usize + 16;
    256 + n_micro_batches * (model.weights().layers.len() * (72 + used) + experts)
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
    let graph = Graph::new(max_nodes(model, shape.micro_batches.len()));
    let builder = Builder {
        g: &graph,
        model,
        cache,
        shape: &shape,
        taps: Taps::new(shape.tapped),
        choices: slots::Choices::new(shape.by_slots),
        watch: routing::Watch::new(shape.kernels),
        n_staged: 0,
    };
    let Built { inputs, logits, routing, taps, choices, n_staged } = builder.build(staging, embeddings);
    BatchGraph { graph, shape, inputs, logits, routing, taps, choices, n_staged }
}

/// What a builder makes beside the graph; as in [`BatchGraph`].
struct Built {
    inputs: Vec<Inputs>,
    logits: Option<Tensor>,
    routing: Vec<RouterOutputs>,
    taps: Vec<Tap>,
    choices: Vec<Choice>,
    n_staged: usize,
}

/// A micro-batch on its way through the layers.
struct Lane {
    inputs: Inputs,
    n_kv: usize,
    n_outputs: usize,
    /// `[n_embd, n_tokens]`: what the next layer takes.
    x: Tensor,
}

/// What attention leaves to a feed-forward network.
struct Attended {
    /// `[n_embd, n_tokens]`: the state that its result is added to.
    residual: Tensor,
    /// `[n_embd, n_tokens]`: its input.
    normed: Tensor,
}

struct Builder<'a> {
    g: &'a Graph,
    model: &'a Model,
    cache: &'a KvCache,
    shape: &'a BatchShape,
    taps: Taps,
    choices: slots::Choices,
    watch: routing::Watch,
    n_staged: usize,
}

impl Builder<'_> {
    fn build(mut self, staging: Option<&Staging>, embeddings: &Tensor) -> Built {
        let n_lanes = self.shape.micro_batches.len();
        let mut lanes: Vec<Lane> = (0..n_lanes).map(|number| self.lane(number, embeddings)).collect();
        let staging = staging.zip(self.shape.staged);
        for (index, layer) in self.model.weights().layers.iter().enumerate() {
            self.taps.enter(index);
            self.choices.enter_layer();
            match staging.filter(|(staging, _)| staging.has(index)) {
                None => {
                    for (number, lane) in lanes.iter_mut().enumerate() {
                        if let Some(attended) = self.attend(index, layer, lane) {
                            lane.x =
                                self.feed(index, layer, &attended, Part { index: number, count: n_lanes });
                        }
                    }
                }
                Some(staged) => self.stage(index, layer, &mut lanes, staged),
            }
        }
        let last = lanes.last().filter(|lane| lane.n_outputs > 0);
        let logits = last.map(|lane| self.logits(&lane.x));
        Built {
            inputs: lanes.into_iter().map(|lane| lane.inputs).collect(),
            logits,
            routing: self.watch.layers,
            taps: self.taps.finish(),
            choices: self.choices.kept,
            n_staged: self.n_staged,
        }
    }

    /// A micro-batch before the first layer.
    fn lane(&self, number: usize, embeddings: &Tensor) -> Lane {
        let (g, shape) = (self.g, self.shape);
        let MicroBatch { n_tokens, n_kv } = shape.micro_batches[number];
        let n_outputs = if number + 1 == shape.micro_batches.len() { shape.n_outputs } else { 0 };
        let n_attending = self.model.weights().layers.len() - usize::from(self.only_fills_cache(n_outputs));
        let needs_mask = (0..n_attending).any(|layer| attention::ours(self.cache, layer, shape).is_none());
        let inputs = Inputs {
            tokens: g.input("tokens", Type::I32, &[n_tokens]),
            positions: g.input("positions", Type::I32, &[n_tokens]),
            cells: g.input("cells", Type::I64, &[n_tokens]),
            mask: needs_mask.then(|| g.input("mask", Type::F16, &[n_kv, n_tokens])),
            outputs: (n_outputs > 0 && n_outputs < n_tokens)
                .then(|| g.input("outputs", Type::I32, &[n_outputs])),
        };
        let x = g.get_rows(embeddings, &inputs.tokens);
        Lane { inputs, n_kv, n_outputs, x }
    }

    /// A micro-batch without outputs only fills the cache: the last layer then ends with its keys and values.
    fn only_fills_cache(&self, n_outputs: usize) -> bool {
        n_outputs == 0 && !self.shape.routing
    }

    /// Attention of a layer; `None` where the micro-batch ends with it.
    fn attend(&mut self, index: usize, layer: &Layer, lane: &Lane) -> Option<Attended> {
        let (g, model, shape) = (self.g, self.model, self.shape);
        let (layers, eps) = (&model.weights().layers, model.hparams().rms_eps);
        let is_last = index + 1 == layers.len();
        let normed = norm(g, &lane.x, &layer.attn_norm, eps);
        self.taps.layer_input(&normed, &[TensorRole::AttnQ, TensorRole::AttnK, TensorRole::AttnV]);
        let qkv = attention::project(g, shape.kernels, model, layer, &normed, &lane.inputs.positions);
        let ends_here = is_last && self.only_fills_cache(lane.n_outputs);
        attention::store(g, self.cache, index, &qkv, &lane.inputs.cells, !ends_here);
        if ends_here {
            return None;
        }
        let gathered = attention::gather(g, model, self.cache, index, &qkv.q, lane, shape);
        self.taps.layer_input(&gathered, &[TensorRole::AttnOutput]);
        let mut attended = linear(g, shape.kernels, &layer.o, &gathered);
        if shape.routing {
            let (residual, next) = (g.add(&attended, &lane.x), layers.get(index + 1));
            let used = model.n_expert_used() as usize;
            self.watch.layer(g, (index, layer), next, &residual, eps, used);
            if is_last && lane.n_outputs == 0 {
                return None;
            }
        }
        let mut x = lane.x.clone();
        if let (true, Some(outputs)) = (is_last, &lane.inputs.outputs) {
            attended = g.get_rows(&attended, outputs);
            x = g.get_rows(&x, outputs);
        }
        let residual = g.add(&attended, &x);
        let normed = norm(g, &residual, &layer.ffn_norm, eps);
        Some(Attended { residual, normed })
    }

    /// The feed-forward network of a layer for one of the micro-batches that pass it.
    fn feed(&mut self, index: usize, layer: &Layer, attended: &Attended, part: Part) -> Tensor {
        let (g, kernels) = (self.g, self.shape.kernels);
        let stream = stream(g, self.model, kernels, index, &attended.residual, part);
        let mut watched = feed_forward::Watched { taps: &mut self.taps, choices: &mut self.choices };
        let n_used = self.model.n_expert_used() as usize;
        let ffn = &layer.ffn;
        let fed = feed_forward::feed_forward(
            g,
            kernels,
            ffn,
            &attended.normed,
            n_used,
            stream.as_ref(),
            &mut watched,
        );
        self.add(index, &fed, &attended.residual)
    }

    /// A layer whose experts are staged: its gate comes when the choice of all micro-batches is known.
    fn stage(
        &mut self,
        index: usize,
        layer: &Layer,
        lanes: &mut [Lane],
        (staging, order): (&Staging, Order),
    ) {
        let (going_on, attended): (Vec<&mut Lane>, Vec<Attended>) = lanes
            .iter_mut()
            .filter_map(|lane| {
                let attended = self.attend(index, layer, lane)?;
                Some((lane, attended))
            })
            .unzip();
        if attended.is_empty() {
            return;
        }
        self.n_staged += 1;
        let (g, kernels) = (self.g, self.shape.kernels);
        let mut watched = feed_forward::Watched { taps: &mut self.taps, choices: &mut self.choices };
        let n_used = self.model.n_expert_used() as usize;
        let normed: Vec<&Tensor> = attended.iter().map(|attended| &attended.normed).collect();
        let gate = |ids: &[Tensor]| staging.layer(g, index, order, ids);
        let fed = feed_forward::staged(g, kernels, &layer.ffn, &normed, n_used, gate, &mut watched);
        for ((lane, attended), fed) in going_on.into_iter().zip(&attended).zip(&fed) {
            lane.x = self.add(index, fed, &attended.residual);
        }
    }

    /// What a layer gives to the next.
    fn add(&self, index: usize, fed: &Tensor, residual: &Tensor) -> Tensor {
        let x = self.g.add(fed, residual);
        self.g.name(&x, &format!("layer_out-{index}"));
        if self.shape.micro_batches.len() > 1 {
            // Before any node of the next layer.
            self.g.expand(&x);
        }
        x
    }

    fn logits(&mut self, x: &Tensor) -> Tensor {
        let (g, weights) = (self.g, self.model.weights());
        let x = norm(g, x, &weights.output_norm, self.model.hparams().rms_eps);
        self.taps.global_input(&x, TensorRole::Output);
        let logits = multiply(g, self.shape.kernels, &weights.output, &x); // [n_vocab, n_outputs]
        g.name(&logits, "logits");
        g.output(&logits);
        logits
    }
}

/// Batches from which on nearly all experts are taken, so that guessing which is idle.
const MAX_GUESSED_TOKENS: usize = 32;

/// Where the experts of the layer numbered `index` come from, when they are streamed.
fn stream(
    g: &Graph,
    model: &Model,
    kernels: Kernels,
    index: usize,
    residual: &Tensor,
    part: Part,
) -> Option<Stream> {
    let layers = &model.weights().layers;
    let streamed = |layer: &Layer| match &layer.ffn {
        FeedForward::Experts { streamed, .. } => *streamed,
        FeedForward::Dense { .. } => None,
    };
    let (pool, layer) = (Arc::clone(model.expert_pool()?), streamed(&layers[index])?);
    let anchor = model.weights().anchor.clone()?;
    let (eps, n_used) = (model.hparams().rms_eps, model.n_expert_used() as usize);
    let next = layers.get(index + 1).filter(|next| streamed(next).is_some());
    let next = next.filter(|_| part.count == 1 && residual.ne()[1] < MAX_GUESSED_TOKENS);
    let early = next.and_then(|next| routing::guess(g, kernels, next, residual, eps, n_used));
    Some(Stream { pool, layer, part, anchor, early })
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
