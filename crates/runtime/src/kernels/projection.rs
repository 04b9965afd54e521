//! One or several matrices times the same activations.

use super::matrix::Matrix;
use super::quantized;
use ggml::{Graph, Output, Sources, Tensor, TileKernel, Tiles};
use quants::matmul::ActivationKind;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

/// Multiplies its operands, rows of activations, with matrices; the results of one token lie one behind the other.
struct Projection {
    /// Each matrix and the operand it takes.
    matrices: Vec<(Matrix, usize)>,
    /// Pieces of work: number of the matrix, its rows, and where their results lie among a token's.
    tiles: Vec<(usize, Range<usize>, usize)>,
    /// Results of a token.
    n_out: usize,
}

impl Projection {
    fn new(matrices: Vec<(Matrix, usize)>, n_tokens: usize) -> Projection {
        let mut tiles = Vec::new();
        let mut n_out = 0;
        for (number, (matrix, _)) in matrices.iter().enumerate() {
            let step = matrix.tile_rows(n_tokens);
            for first in (0..matrix.n_rows).step_by(step) {
                let rows = first..(first + step).min(matrix.n_rows);
                tiles.push((number, rows, n_out + first));
            }
            n_out += matrix.n_rows;
        }
        Projection { matrices, tiles, n_out }
    }
}

impl TileKernel for Projection {
    fn run(&self, sources: &Sources<'_>, tiles: &mut Tiles<'_>, output: &Output<'_>) {
        let n_tokens = output.n_elements() / self.n_out;
        with_scratch(|scratch| {
            while let Some(index) = tiles.take(self.tiles.len()) {
                let (number, rows, place) = &self.tiles[index];
                let (matrix, operand) = &self.matrices[*number];
                let results = scratch.at_least(n_tokens * rows.len());
                matrix.multiply(sources, rows.clone(), sources.values(*operand), results);
                for (token, results) in results.chunks_exact(rows.len()).take(n_tokens).enumerate() {
                    output.write(token * self.n_out + place, results);
                }
            }
        });
    }
}

/// The products of each matrix with `x: [n_cols, n_tokens]`: `[n_rows, n_tokens]`, views of one result.
pub(crate) fn project<const N: usize>(g: &Graph, matrices: [Matrix; N], x: &Tensor) -> [Tensor; N] {
    let anchor = &matrices[0].tensor().clone();
    let mut kinds: Vec<(ActivationKind, Tensor)> = Vec::new();
    let mut with_operand = Vec::new();
    for matrix in &matrices {
        let kind = matrix.activations();
        let operand = kinds.iter().position(|(known, _)| *known == kind).unwrap_or_else(|| {
            kinds.push((kind, quantized(g, x, kind, anchor)));
            kinds.len() - 1
        });
        with_operand.push((matrix.clone(), operand));
    }
    let n_tokens = x.ne()[1];
    let kernel = Projection::new(with_operand, n_tokens);
    let n_out = kernel.n_out;
    let mut sources: Vec<&Tensor> = kinds.iter().map(|(_, rows)| rows).collect();
    sources.push(anchor);
    let all = g.custom_tiles(&[n_out, n_tokens], &sources, Arc::new(kernel));
    let row = all.nb()[1];
    let mut first = 0;
    matrices.map(|matrix| {
        if N == 1 {
            return all.clone();
        }
        let view =
            g.view(&all, [matrix.n_rows, n_tokens, 1], [row, row * n_tokens], first * size_of::<f32>());
        first += matrix.n_rows;
        view
    })
}

/// Memory of one thread for results on their way.
#[derive(Default)]
pub(super) struct Scratch {
    values: Vec<f32>,
}

impl Scratch {
    /// `n` numbers, whatever they are.
    pub fn at_least(&mut self, n: usize) -> &mut [f32] {
        if self.values.len() < n {
            self.values.resize(n, 0.0);
        }
        &mut self.values[..n]
    }
}

/// Lends a thread its scratch memory.
pub(super) fn with_scratch<R>(work: impl FnOnce(&mut Scratch) -> R) -> R {
    thread_local! {
        static SCRATCH: RefCell<Scratch> = RefCell::default();
    }
    SCRATCH.with_borrow_mut(work)
}
