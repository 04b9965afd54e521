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
    /// Results of a token.
    n_out: usize,
}

/// A piece of work: some rows of a matrix.
struct Tile<'a> {
    matrix: &'a Matrix,
    operand: usize,
    rows: Range<usize>,
    /// Where their results lie among a token's.
    place: usize,
}

impl Projection {
    /// How many pieces of work there are.
    fn n_tiles(&self, n_tokens: usize, n_threads: usize) -> usize {
        self.matrices.iter().map(|(matrix, _)| n_tiles(matrix, n_tokens, n_threads)).sum()
    }

    /// The `index`-th of them.
    fn tile(&self, mut index: usize, n_tokens: usize, n_threads: usize) -> Option<Tile<'_>> {
        let mut before = 0;
        for (matrix, operand) in &self.matrices {
            let n = n_tiles(matrix, n_tokens, n_threads);
            if index < n {
                let step = matrix.tile_rows(n_tokens, n_threads);
                let rows = index * step..((index + 1) * step).min(matrix.n_rows);
                return Some(Tile { matrix, operand: *operand, place: before + rows.start, rows });
            }
            index -= n;
            before += matrix.n_rows;
        }
        None
    }
}

fn n_tiles(matrix: &Matrix, n_tokens: usize, n_threads: usize) -> usize {
    matrix.n_rows.div_ceil(matrix.tile_rows(n_tokens, n_threads))
}

impl TileKernel for Projection {
    fn run(&self, sources: &Sources<'_>, tiles: &mut Tiles<'_>, output: &Output<'_>) {
        let n_tokens = output.n_elements() / self.n_out;
        let n_threads = sources.n_threads();
        let n_tiles = self.n_tiles(n_tokens, n_threads);
        with_scratch(|scratch| {
            while let Some(tile) = tiles.take(n_tiles).and_then(|i| self.tile(i, n_tokens, n_threads)) {
                let n_rows = tile.rows.len();
                let results = scratch.at_least(n_tokens * n_rows);
                tile.matrix.multiply(sources, tile.rows, sources.values(tile.operand), results);
                for (token, results) in results.chunks_exact(n_rows).take(n_tokens).enumerate() {
                    output.write(token * self.n_out + tile.place, results);
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
    let n_out = matrices.iter().map(|matrix| matrix.n_rows).sum();
    let kernel = Projection { matrices: with_operand, n_out };
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
