//! The feed-forward network of a layer's experts.

use super::activations::{quantized, quantized_along, quantized_by_expert};
use super::grouping::Grouping;
use super::matrix::{Matrix, served};
use super::projection::with_scratch;
use super::silu::silu_product;
use super::streamed::{self, Stream};
use crate::model::ExpertBank;
use ggml::{Graph, Output, Sources, Tensor, TileKernel, Tiles};
use quants::matmul::ActivationKind;
use std::ops::Range;
use std::sync::Arc;

/// One projection of all experts of a layer.
pub(super) struct Bank {
    /// By number of the expert: its matrix, and which operand of the node it takes.
    pub experts: Vec<(Matrix, usize)>,
}

impl Bank {
    /// None where an expert's weights are not [`served`]. Those that are `streamed` have no place. `kinds` are the
    /// activations that the node has for operands, from `first_operand` on; those that are missing are added.
    fn new(
        bank: &ExpertBank,
        first_operand: usize,
        kinds: &mut Vec<ActivationKind>,
        streamed: bool,
    ) -> Option<Bank> {
        if !streamed && !bank.groups.iter().all(|group| served(&group.weights)) {
            return None;
        }
        let n_expert = bank.groups.iter().map(|group| group.weights.ne()[2]).sum();
        let mut experts: Vec<Option<(Matrix, usize)>> = vec![None; n_expert];
        for group in &bank.groups {
            for index in 0..group.weights.ne()[2] {
                let matrix = Matrix::somewhere(&group.weights, index);
                let kind = matrix.activations();
                let operand = kinds.iter().position(|known| *known == kind).unwrap_or_else(|| {
                    kinds.push(kind);
                    kinds.len() - 1
                });
                let expert = group.members.get(index).map_or(index, |expert| *expert as usize);
                *experts.get_mut(expert)? = Some((matrix, first_operand + operand));
            }
        }
        Some(Bank { experts: experts.into_iter().collect::<Option<_>>()? })
    }

    fn anchor(&self) -> &Tensor {
        self.experts[0].0.tensor()
    }

    /// Rows in a tile for a batch of so many tokens and so many threads: as many as the widest rows among the experts
    /// allow.
    pub fn tile_rows(&self, n_tokens: usize, n_threads: usize) -> usize {
        self.experts
            .iter()
            .map(|(matrix, _)| matrix.tile_rows(n_tokens, n_threads))
            .min()
            .expect("a bank has experts")
    }

    pub fn n_rows(&self) -> usize {
        self.experts[0].0.n_rows
    }
}

/// The experts that are computed here, where others are computed elsewhere.
#[derive(Clone, Copy)]
pub(super) struct Ours {
    /// Operand with a number for each expert, 0 for those of others; `None` where all are ours.
    table: Option<usize>,
}

impl Ours {
    pub fn with<'a>(&self, sources: &'a Sources<'_>) -> impl Fn(usize) -> bool + 'a {
        let table: Option<&[f32]> = self.table.map(|operand| sources.values(operand));
        move |expert| table.is_none_or(|table| table[expert] != 0.0)
    }
}

/// Experts that a device computes at the same time.
pub(crate) struct Beside<'a> {
    /// `[1, n_expert]`, F32: 0 for those experts.
    pub missing: &'a Tensor,
    /// Adds the device's nodes to the graph.
    pub launch: &'a mut dyn FnMut(),
}

/// Hidden rows `[n_ff, n_choices]` in the order of the grouping: silu(gate) * up. Operands: ids, then the activations
/// that gates and ups take; a single row of activations is that of every choice. Zero for the experts of others.
struct GateUp {
    gate: Bank,
    up: Bank,
    ours: Ours,
}

impl TileKernel for GateUp {
    fn run(&self, sources: &Sources<'_>, tiles: &mut Tiles<'_>, output: &Output<'_>) {
        let n_ff = self.gate.n_rows();
        let n_tokens = sources.ne(0)[1];
        let n_threads = sources.n_threads();
        let step = self.gate.tile_rows(n_tokens, n_threads).min(self.up.tile_rows(n_tokens, n_threads));
        let n_tiles = n_ff.div_ceil(step);
        let is_ours = self.ours.with(sources);
        Grouping::with(sources.values(0), self.gate.experts.len(), |grouping| {
            with_scratch(|scratch| {
                while let Some(index) = tiles.take(grouping.active.len() * n_tiles) {
                    let expert = grouping.active[index / n_tiles] as usize;
                    let first = index % n_tiles * step;
                    let rows = first..(first + step).min(n_ff);
                    let choices = grouping.of(expert);
                    let n = choices.len() * rows.len();
                    let (gates, ups) = scratch.at_least(2 * n).split_at_mut(n);
                    if is_ours(expert) {
                        for (bank, out) in [(&self.gate, &mut *gates), (&self.up, &mut *ups)] {
                            let (matrix, operand) = &bank.experts[expert];
                            let activations = of_choices(sources, *operand, &choices);
                            matrix.multiply(sources, rows.clone(), activations, out);
                        }
                        silu_product(gates, ups);
                    } else {
                        gates.fill(0.0);
                    }
                    for (place, hidden) in choices.zip(gates.chunks_exact(rows.len())) {
                        output.write(place * n_ff + first, hidden);
                    }
                }
            });
        });
    }
}

/// The activations of these choices; a single row is that of every choice.
pub(super) fn of_choices<'s>(sources: &'s Sources<'_>, operand: usize, choices: &Range<usize>) -> &'s [u8] {
    let [row_bytes, n_rows, ..] = sources.ne(operand);
    let rows = if n_rows == 1 { 0..1 } else { choices.clone() };
    &sources.values::<u8>(operand)[rows.start * row_bytes..rows.end * row_bytes]
}

/// Adds an expert's `results` for the rows of a tile to the sums of the tokens that `choices` are made by.
pub(super) fn add_results(
    choices: &[u32],
    weights: &[f32],
    n_used: usize,
    n_rows: usize,
    results: &[f32],
    sums: &mut [f32],
) {
    for (choice, results) in choices.iter().zip(results.chunks_exact(n_rows)) {
        let token = *choice as usize / n_used;
        let weight = weights[*choice as usize];
        let sums = &mut sums[token * n_rows..(token + 1) * n_rows];
        for (sum, result) in sums.iter_mut().zip(results) {
            *sum += weight * result;
        }
    }
}

/// Each token's weighted sum `[n_embd, n_tokens]` over its experts. Operands: ids, the weights of the choices, then the
/// hidden rows as the downs take them, in the order of the grouping.
struct Down {
    down: Bank,
    ours: Ours,
}

impl TileKernel for Down {
    fn run(&self, sources: &Sources<'_>, tiles: &mut Tiles<'_>, output: &Output<'_>) {
        let n_embd = self.down.n_rows();
        let [n_used, n_tokens, ..] = sources.ne(0);
        let step = self.down.tile_rows(n_tokens, sources.n_threads());
        let weights: &[f32] = sources.values(1);
        let is_ours = self.ours.with(sources);
        Grouping::with(sources.values(0), self.down.experts.len(), |grouping| {
            with_scratch(|scratch| {
                while let Some(index) = tiles.take(n_embd.div_ceil(step)) {
                    let first = index * step;
                    let rows = first..(first + step).min(n_embd);
                    let n_rows = rows.len();
                    let most = grouping.active.iter().map(|e| grouping.of(*e as usize).len()).max();
                    let n_sums = n_tokens * n_rows;
                    let scratch = scratch.at_least(n_sums + most.unwrap_or(0) * n_rows);
                    let (sums, results) = scratch.split_at_mut(n_sums);
                    sums.fill(0.0);
                    for expert in grouping.active.iter().filter(|e| is_ours(**e as usize)) {
                        let choices = grouping.of(*expert as usize);
                        let (matrix, operand) = &self.down.experts[*expert as usize];
                        let row_bytes = sources.ne(*operand)[0];
                        let hidden: &[u8] = sources.values(*operand);
                        let hidden = &hidden[choices.start * row_bytes..choices.end * row_bytes];
                        matrix.multiply(sources, rows.clone(), hidden, results);
                        add_results(&grouping.choices[choices], weights, n_used, n_rows, results, sums);
                    }
                    for (token, sums) in sums.chunks_exact(n_rows).enumerate() {
                        output.write(token * n_embd + first, sums);
                    }
                }
            });
        });
    }
}

/// The experts' part of a feed-forward network: `x: [n_embd, n_tokens]`, `ids: [n_used, n_tokens]`,
/// `weights: [1, n_used, n_tokens]` to `[n_embd, n_tokens]`. None where there are no kernels for some of the weights.
///
/// With experts `beside`, the sum is that over the others. The order of the nodes then is: activations, which bring
/// everything to the host that the CPU will want; the device's nodes; the CPU's products.
pub(crate) fn experts(
    g: &Graph,
    banks: [&ExpertBank; 3],
    x: &Tensor,
    ids: &Tensor,
    weights: &Tensor,
    beside: Option<Beside<'_>>,
    stream: Option<&Stream>,
) -> Option<Tensor> {
    let [n_embd, n_tokens, ..] = x.ne();
    let (mut kinds, mut downs) = (Vec::new(), Vec::new());
    let gate = Bank::new(banks[0], 1, &mut kinds, stream.is_some())?;
    let up = Bank::new(banks[1], 1, &mut kinds, stream.is_some())?;
    let down = Bank::new(banks[2], 2, &mut downs, stream.is_some())?;
    let (n_expert, n_ff) = (gate.experts.len(), gate.n_rows());
    let anchor = stream.map_or_else(|| gate.anchor().clone(), |stream| stream.anchor.clone());
    let ids = &g.contiguous(ids);

    let early = stream.and_then(|stream| stream.early.as_ref());
    let mut along: Vec<&Tensor> = if beside.is_some() { vec![ids, weights] } else { Vec::new() };
    along.extend(early);
    let mut operands = vec![ids.clone()];
    operands.extend(kinds.iter().map(|kind| {
        if n_tokens == 1 {
            quantized_along(g, x, *kind, &anchor, &along)
        } else {
            quantized_by_expert(g, x, ids, n_expert, *kind, &anchor, &along)
        }
    }));
    let missing = beside.map(|beside| {
        operands[1..].iter().for_each(|rows| g.expand(rows));
        (beside.launch)();
        beside.missing.clone()
    });
    let early = early.map(|early| {
        operands.push(early.clone());
        operands.len() - 1
    });
    operands.push(anchor.clone());
    let ours = |n_operands: usize| Ours { table: missing.as_ref().map(|_| n_operands) };
    let ours = [ours(operands.len()), ours(3 + downs.len())];
    let (gate_up, down): (Arc<dyn TileKernel>, Arc<dyn TileKernel>) = match stream {
        Some(stream) => streamed::kernels(stream, [gate, up, down], n_tokens, early, ours),
        None => {
            let [of_hidden, of_down] = ours;
            (Arc::new(GateUp { gate, up, ours: of_hidden }), Arc::new(Down { down, ours: of_down }))
        }
    };
    operands.extend(missing.clone());
    let operands: Vec<&Tensor> = operands.iter().collect();
    let hidden = g.custom_tiles(&[n_ff, ids.n_elements()], &operands, gate_up);

    let mut operands = vec![ids.clone(), weights.clone()];
    operands.extend(downs.iter().map(|kind| quantized(g, &hidden, *kind, &anchor)));
    operands.push(anchor);
    operands.extend(missing.clone());
    let operands: Vec<&Tensor> = operands.iter().collect();
    Some(g.custom_tiles(&[n_embd, n_tokens], &operands, down))
}
