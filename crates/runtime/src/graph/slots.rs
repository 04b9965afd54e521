//! The feed-forward network of experts of which a device holds some in slots, and the CPU computes the others.
//!
//! # Working at the same time
//! ggml's scheduler cuts the graph where the backend changes and goes through the pieces in order. A device's piece is
//! launched and not waited for; the CPU's piece runs on the calling threads. Between them the scheduler copies what the
//! next piece reads from another backend, and *there* it waits: for all that the backend it copies from has been given.
//! So the order of nodes decides whether both work at once:
//!
//! 1. device: attention, router, the choice of experts;
//! 2. CPU: a small piece that reads the activations, the choice and its weights (and where experts are streamed, what the
//!    next layer will likely choose), everything the CPU will want of the device. Here the CPU waits, when the device has nothing else to do;
//! 3. device: the products with experts in slots. All of its operands are on the device: launched at once;
//! 4. CPU: the products with the missing experts, from copies made in 2. What it reads of the device is the table of
//!    missing experts only. A graph's input is copied without waiting for what the device computes, and such the table
//!    is. (It must read something: before a piece that reads nothing of others, the scheduler waits for the piece before
//!    it.)
//! 5. device: both results are added. Here the CPU's is copied, and the device waited for.
//!
//! # Choices of others
//! `mul_mat_id` multiplies for every choice, so the device also does for experts that it doesn't have, with a slot that
//! is in use, and the results are multiplied by zero. That costs no time: it happens when the CPU computes that very
//! choice, which takes longer, as the device reads its memory faster by more than the number of choices. A token may so name a
//! slot twice, which many kernels of GPUs don't expect: for those each choice is a token of its own.

use super::feed_forward::{Chosen, by_choice, project, sum_of_used};
use crate::kernels::{self, Beside, Kernels, Stream};
use crate::model::ExpertBank;
use crate::slots::LayerSlots;
use ggml::{Graph, Tensor};

/// The experts that a micro-batch took in a layer with slots.
pub(crate) struct Choice {
    /// Number of the layer among those with slots.
    pub layer: usize,
    /// `[n_used, n_tokens]`, I32.
    pub ids: Tensor,
}

/// The choices of layers with slots, which are counted after the computation.
pub(super) struct Choices {
    pub by_slots: bool,
    /// In the order of the layers.
    pub kept: Vec<Choice>,
    /// Layers of which there are some.
    n_layers: usize,
    /// None of the layer that is being built is there yet.
    is_new: bool,
}

impl Choices {
    pub fn new(by_slots: bool) -> Choices {
        Choices { by_slots, kept: Vec::new(), is_new: true, n_layers: 0 }
    }

    /// What follows belongs to the next layer of the model.
    pub fn enter_layer(&mut self) {
        self.is_new = true;
    }

    /// The chosen experts, which keep their place until the graph is computed.
    pub fn keep(&mut self, g: &Graph, ids: &Tensor) -> Tensor {
        // A copy, because the scheduler only keeps results that are no views.
        let kept = g.contiguous(ids);
        g.output(&kept);
        self.n_layers += usize::from(std::mem::take(&mut self.is_new));
        self.kept.push(Choice { layer: self.n_layers - 1, ids: kept.clone() });
        kept
    }
}

/// The experts' part of a feed-forward network, `x: [n_embd, n_tokens]` to the same shape.
///
/// With our kernels, which alone read from a `stream`, the sum over experts in slots and that over the others are added. With ggml's, which can't leave
/// experts out, the host computes every choice, in the way and the order of a model without slots: not faster, but for
/// single tokens equal bits where the device's arithmetic is the host's. (In batches ggml chooses a kernel for each expert
/// by how many rows it multiplies, and choices of others count among these.)
pub(super) fn experts(
    g: &Graph,
    kernels: Kernels,
    banks: [&ExpertBank; 3],
    slots: &LayerSlots,
    x: &Tensor,
    chosen: &Chosen,
    stream: Option<&Stream>,
) -> Tensor {
    let mut hits = None;
    let mut launch = || {
        let products = products_of_slots(g, slots, x, &chosen.ids);
        let sum = sum_of_used(g, &g.mul(&products, &chosen.weights));
        g.expand(&sum);
        hits = Some(sum);
    };
    if kernels == Kernels::Bruce || stream.is_some() {
        let beside = Beside { missing: &slots.missing, launch: &mut launch };
        let misses = kernels::experts(g, banks, x, &chosen.ids, &chosen.weights, Some(beside), stream);
        if let (Some(hits), Some(misses)) = (hits, misses) {
            return g.add(&hits, &misses);
        }
    }
    assert!(stream.is_none(), "types were checked when the model was loaded");
    let [gate, up, down] = banks;
    let rows = by_choice(g, x);
    let hidden = g.swiglu(&project(g, gate, &rows, &chosen.ids), &project(g, up, &rows, &chosen.ids));
    let misses = project(g, down, &hidden, &chosen.ids);
    let misses = g.mul(&misses, &by_expert(g, &slots.missing, &chosen.ids));
    let products = g.add(&products_of_slots(g, slots, x, &chosen.ids), &misses);
    sum_of_used(g, &g.mul(&products, &chosen.weights))
}

/// `[n_embd, n_used, n_tokens]`: what the experts in slots make of each token's row, zero for those without a slot.
fn products_of_slots(g: &Graph, slots: &LayerSlots, x: &Tensor, ids: &Tensor) -> Tensor {
    let rows = by_choice(g, x);
    let products = slots.groups.iter().map(|group| {
        let [n_used, n_tokens, ..] = ids.ne();
        let slot = g.reshape(&by_expert(g, &group.slot, ids), &[n_used, n_tokens]);
        let [gate, up, down] = &group.stacks;
        let [gate, up] = [gate, up].map(|stack| g.mul_mat_id_repeated(stack, &rows, &slot));
        let hidden = g.swiglu(&gate, &up);
        g.mul(&g.mul_mat_id_repeated(down, &hidden, &slot), &by_expert(g, &group.mask, ids))
    });
    products.reduce(|sum, next| g.add(&sum, &next)).expect("a layer with slots has a group of them")
}

/// `table: [1, n_expert]` looked up for each choice: `[1, n_used, n_tokens]`.
fn by_expert(g: &Graph, table: &Tensor, ids: &Tensor) -> Tensor {
    let [n_used, n_tokens, ..] = ids.ne();
    g.reshape(&g.get_rows(table, &g.reshape(ids, &[n_used * n_tokens])), &[1, n_used, n_tokens])
}
