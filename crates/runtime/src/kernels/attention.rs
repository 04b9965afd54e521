//! Attention over the KV cache: each token's result is the same whatever the batch and the threads.

use super::projection::with_scratch;
use ggml::{Graph, Output, Sources, Tensor, TileKernel, Tiles};
use quants::TensorType;
use quants::attention::{self, Cells, Token, Workspace};
use std::cell::RefCell;
use std::sync::Arc;

/// Queries that one piece of work takes at most: enough to pay for widening the cells, few enough for the second level of
/// cache.
const TILE_QUERIES: usize = 128;
/// Fewer than so many queries are taken only where there is not enough work for all threads.
const MIN_TILE_QUERIES: usize = 32;
/// Pieces of work for each thread that let them end together.
const TILES_PER_THREAD: usize = 4;

/// What all tokens `[dim_v, n_head, n_tokens]` gather. Operands: queries `[dim_k, n_head, n_tokens]`, positions `[n_tokens]`,
/// keys `[dim_k, n_ctx, n_head_kv]` and values `[dim_v, n_ctx, n_head_kv]`. A token at position p sees the cells up to p,
/// and no more of them than the window is long.
struct Attention {
    types: [TensorType; 2],
    scale: f32,
    window: Option<usize>,
}

impl TileKernel for Attention {
    fn run(&self, sources: &Sources<'_>, tiles: &mut Tiles<'_>, output: &Output<'_>) {
        let [dim_k, n_head, n_tokens, _] = sources.ne(0);
        let (queries, positions): (&[f32], &[i32]) = (sources.values(0), sources.values(1));
        let [_, n_ctx, n_head_kv, _] = sources.ne(2);
        let dim_v = sources.ne(3)[0];
        let group = n_head / n_head_kv;
        let n_pieces = (TILES_PER_THREAD * sources.n_threads()).div_ceil(n_head_kv);
        let n_together = (n_tokens * group).div_ceil(n_pieces).clamp(MIN_TILE_QUERIES, TILE_QUERIES) / group;
        let n_together = n_together.clamp(1, n_tokens);
        let n_batches = n_tokens.div_ceil(n_together);
        // Where there are fewer heads of keys than threads, heads of queries are taken apart.
        let n_parts = divisors(group).find(|parts| parts * n_head_kv * n_batches >= sources.n_threads());
        let n_heads = group / n_parts.unwrap_or(group);
        let n_tiles = n_head / n_heads;
        let cells = |operand: usize, ty: TensorType, dim: usize, head: usize| {
            let bytes = sources.bytes(operand);
            let size = bytes.len() / n_head_kv;
            let cells = Cells::new(ty, &bytes[head * size..(head + 1) * size], dim);
            cells.expect("callers ask for the types first, and rows are whole")
        };
        with_workspace(|workspace| {
            with_scratch(|scratch| {
                while let Some(index) = tiles.take(n_batches * n_tiles) {
                    // The last tokens see the most, and what takes longest begins first.
                    let first = (n_batches - 1 - index / n_tiles) * n_together;
                    let head = index % n_tiles * n_heads;
                    let batch: Vec<Token<'_>> = (first..(first + n_together).min(n_tokens))
                        .map(|token| {
                            let end = positions[token] as usize + 1;
                            let start = self.window.map_or(0, |window| end.saturating_sub(window));
                            let at = (token * n_head + head) * dim_k;
                            Token { queries: &queries[at..at + n_heads * dim_k], visible: start..end }
                        })
                        .collect();
                    assert!(batch.iter().all(|token| token.visible.end <= n_ctx), "a cell behind the cache");
                    let width = n_heads * dim_v;
                    let out = scratch.at_least(batch.len() * width);
                    let keys = cells(2, self.types[0], dim_k, head / group);
                    let values = cells(3, self.types[1], dim_v, head / group);
                    attention::attend(keys, values, self.scale, &batch, workspace, out);
                    for (token, gathered) in (first..).zip(out.chunks_exact(width)) {
                        output.write((token * n_head + head) * dim_v, gathered);
                    }
                }
            });
        });
    }
}

/// What `q: [dim_k, n_head, n_tokens]`, rotated, gathers from the cache: `[dim_v * n_head, n_tokens]`.
///
/// # Panics
/// When the cache is not one that [`attends`] to.
pub(crate) fn attention(
    g: &Graph,
    q: &Tensor,
    positions: &Tensor,
    (keys, values): (&Tensor, &Tensor),
    window: Option<usize>,
) -> Tensor {
    let [dim_k, n_head, n_tokens, _] = q.ne();
    let types = [keys, values].map(|cells| served_type(cells).expect("callers ask first"));
    let kernel = Attention { types, scale: 1.0 / (dim_k as f32).sqrt(), window };
    let ne = [values.ne()[0] * n_head, n_tokens];
    g.custom_tiles(&ne, &[q, positions, keys, values], Arc::new(kernel))
}

/// Whether keys and values can be read where they lie.
pub(crate) fn attends(keys: &Tensor, values: &Tensor) -> bool {
    served_type(keys).is_some() && served_type(values).is_some()
}

fn served_type(cells: &Tensor) -> Option<TensorType> {
    let ty = TensorType::from_id(cells.ty().id()).filter(|ty| attention::supports(*ty))?;
    cells.is_host().then_some(ty)
}

/// The numbers that divide `n`, the smallest first.
fn divisors(n: usize) -> impl Iterator<Item = usize> {
    (1..=n).filter(move |d| n.is_multiple_of(*d))
}

/// Lends a thread its memory for attention.
fn with_workspace<R>(work: impl FnOnce(&mut Workspace) -> R) -> R {
    thread_local! {
        static WORKSPACE: RefCell<Workspace> = RefCell::default();
    }
    WORKSPACE.with_borrow_mut(work)
}
