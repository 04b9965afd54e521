//! The feed-forward network of a layer's experts.

use super::activations::{quantized, quantized_by_expert};
use super::grouping::Grouping;
use super::matrix::{Matrix, served};
use super::projection::with_scratch;
use super::silu::silu_product;
use crate::model::ExpertBank;
use ggml::{Graph, Output, Sources, Tensor, TileKernel, Tiles};
use quants::matmul::ActivationKind;
use std::sync::Arc;

/// One projection of all experts of a layer.
struct Bank {
    /// By number of the expert: its matrix, and which operand of the node it takes.
    experts: Vec<(Matrix, usize)>,
    /// Which activations the node needs, in the order of its operands.
    kinds: Vec<ActivationKind>,
}

impl Bank {
    /// None where an expert's weights are not [`served`].
    fn new(bank: &ExpertBank, first_operand: usize) -> Option<Bank> {
        if !bank.groups.iter().all(|group| served(&group.weights)) {
            return None;
        }
        let n_expert = bank.groups.iter().map(|group| group.weights.ne()[2]).sum();
        let mut experts: Vec<Option<(Matrix, usize)>> = vec![None; n_expert];
        let mut kinds = Vec::new();
        for group in &bank.groups {
            for index in 0..group.weights.ne()[2] {
                let matrix = Matrix::new(&group.weights, index);
                let kind = matrix.activations();
                let operand = kinds.iter().position(|known| *known == kind).unwrap_or_else(|| {
                    kinds.push(kind);
                    kinds.len() - 1
                });
                let expert = group.members.get(index).map_or(index, |expert| *expert as usize);
                *experts.get_mut(expert)? = Some((matrix, first_operand + operand));
            }
        }
        Some(Bank { experts: experts.into_iter().collect::<Option<_>>()?, kinds })
    }

    fn anchor(&self) -> &Tensor {
        self.experts[0].0.tensor()
    }

    /// Rows in a tile for a batch of so many tokens: as many as the widest rows among the experts allow.
    fn tile_rows(&self, n_tokens: usize) -> usize {
        self.experts.iter().map(|(matrix, _)| matrix.tile_rows(n_tokens)).min().expect("a bank has experts")
    }

    fn n_rows(&self) -> usize {
        self.experts[0].0.n_rows
    }
}

/// Hidden rows `[n_ff, n_choices]` in the order of the grouping: silu(gate) * up. Operands: ids, then the activations
/// that the gates take, then those of the ups; a single row of activations is that of every choice.
struct GateUp {
    gate: Bank,
    up: Bank,
}

impl TileKernel for GateUp {
    fn run(&self, sources: &Sources<'_>, tiles: &mut Tiles<'_>, output: &Output<'_>) {
        let n_ff = self.gate.n_rows();
        let n_tokens = sources.ne(0)[1];
        let step = self.gate.tile_rows(n_tokens).min(self.up.tile_rows(n_tokens));
        let n_tiles = n_ff.div_ceil(step);
        let of_choices = |operand: usize, choices: &std::ops::Range<usize>| {
            let [row_bytes, n_rows, ..] = sources.ne(operand);
            let rows = if n_rows == 1 { 0..1 } else { choices.clone() };
            &sources.values::<u8>(operand)[rows.start * row_bytes..rows.end * row_bytes]
        };
        Grouping::with(sources.values(0), self.gate.experts.len(), |grouping| {
            with_scratch(|scratch| {
                while let Some(index) = tiles.take(grouping.active.len() * n_tiles) {
                    let expert = grouping.active[index / n_tiles] as usize;
                    let first = index % n_tiles * step;
                    let rows = first..(first + step).min(n_ff);
                    let choices = grouping.of(expert);
                    let n = choices.len() * rows.len();
                    let (gates, ups) = scratch.at_least(2 * n).split_at_mut(n);
                    for (bank, out) in [(&self.gate, &mut *gates), (&self.up, &mut *ups)] {
                        let (matrix, operand) = &bank.experts[expert];
                        matrix.multiply(sources, rows.clone(), of_choices(*operand, &choices), out);
                    }
                    silu_product(gates, ups);
                    for (place, hidden) in choices.zip(gates.chunks_exact(rows.len())) {
                        output.write(place * n_ff + first, hidden);
                    }
                }
            });
        });
    }
}

/// Each token's weighted sum `[n_embd, n_tokens]` over its experts. Operands: ids, the weights of the choices, then the
/// hidden rows as the downs take them, in the order of the grouping.
struct Down {
    down: Bank,
}

impl TileKernel for Down {
    fn run(&self, sources: &Sources<'_>, tiles: &mut Tiles<'_>, output: &Output<'_>) {
        let n_embd = self.down.n_rows();
        let [n_used, n_tokens, ..] = sources.ne(0);
        let step = self.down.tile_rows(n_tokens);
        let weights: &[f32] = sources.values(1);
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
                    for expert in &grouping.active {
                        let choices = grouping.of(*expert as usize);
                        let (matrix, operand) = &self.down.experts[*expert as usize];
                        let row_bytes = sources.ne(*operand)[0];
                        let hidden: &[u8] = sources.values(*operand);
                        let hidden = &hidden[choices.start * row_bytes..choices.end * row_bytes];
                        matrix.multiply(sources, rows.clone(), hidden, results);
                        for (choice, results) in
                            grouping.choices[choices].iter().zip(results.chunks_exact(n_rows))
                        {
                            let token = *choice as usize / n_used;
                            let weight = weights[*choice as usize];
                            let sums = &mut sums[token * n_rows..(token + 1) * n_rows];
                            for (sum, result) in sums.iter_mut().zip(results) {
                                *sum += weight * result;
                            }
                        }
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
pub(crate) fn experts(
    g: &Graph,
    banks: [&ExpertBank; 3],
    x: &Tensor,
    ids: &Tensor,
    weights: &Tensor,
) -> Option<Tensor> {
    let [n_embd, n_tokens, ..] = x.ne();
    let gate = Bank::new(banks[0], 1)?;
    let up = Bank::new(banks[1], 1 + gate.kinds.len())?;
    let down = Bank::new(banks[2], 2)?;
    let (n_expert, n_ff) = (gate.experts.len(), gate.n_rows());
    let anchor = gate.anchor().clone();
    let ids = &g.contiguous(ids);

    let mut made: Vec<(ActivationKind, Tensor)> = Vec::new();
    let mut operands = vec![ids.clone()];
    for kind in gate.kinds.iter().chain(&up.kinds) {
        let known = made.iter().find(|(known, _)| known == kind).map(|(_, rows)| rows.clone());
        operands.push(known.unwrap_or_else(|| {
            let rows = if n_tokens == 1 {
                quantized(g, x, *kind, &anchor)
            } else {
                quantized_by_expert(g, x, ids, n_expert, *kind, &anchor)
            };
            made.push((*kind, rows.clone()));
            rows
        }));
    }
    operands.push(anchor.clone());
    let operands: Vec<&Tensor> = operands.iter().collect();
    let hidden = g.custom_tiles(&[n_ff, ids.n_elements()], &operands, Arc::new(GateUp { gate, up }));

    let mut operands = vec![ids.clone(), weights.clone()];
    operands.extend(down.kinds.iter().map(|kind| quantized(g, &hidden, *kind, &anchor)));
    operands.push(anchor);
    let operands: Vec<&Tensor> = operands.iter().collect();
    Some(g.custom_tiles(&[n_embd, n_tokens], &operands, Arc::new(Down { down })))
}
