//! Grouped-query attention over the KV cache.

use super::{BatchShape, Lane, linears};
use crate::kernels::{self, Kernels};
use crate::kv_cache::KvCache;
use crate::model::{Layer, Model};
use ggml::{Graph, Tensor};

/// Queries, keys and values of the batch's own tokens.
pub(super) struct Qkv {
    /// `[head_dim_k, n_head, n_tokens]`, rotated.
    pub q: Tensor,
    /// `[head_dim_k, n_head_kv, n_tokens]`, rotated.
    pub k: Tensor,
    /// `[head_dim_v, n_head_kv, n_tokens]`.
    pub v: Tensor,
}

/// Projects `x: [n_embd, n_tokens]` and rotates queries and keys by their positions.
pub(super) fn project(
    g: &Graph,
    kernels: Kernels,
    model: &Model,
    layer: &Layer,
    x: &Tensor,
    positions: &Tensor,
) -> Qkv {
    let h = model.hparams();
    let n_tokens = x.ne()[1];
    let (head_dim, n_head, n_head_kv) = (h.head_dim_k as usize, h.n_head as usize, h.n_head_kv as usize);
    let factors = model.weights().rope_freqs.as_ref();
    let by_head = |projected: &Tensor, head_dim: usize, heads: usize| {
        let head_bytes = projected.ty().row_bytes(head_dim);
        g.view(projected, [head_dim, heads, n_tokens], [head_bytes, projected.nb()[1]], 0)
    };
    let rotate = |projected: &Tensor, heads: usize| {
        g.rope(&by_head(projected, head_dim, heads), positions, factors, model.rope())
    };
    let [q, k, v] = linears(g, kernels, [&layer.q, &layer.k, &layer.v], x);
    Qkv { q: rotate(&q, n_head), k: rotate(&k, n_head_kv), v: by_head(&v, h.head_dim_v as usize, n_head_kv) }
}

/// Writes keys and values into the cache's cells.
///
/// Queries come first where they are wanted, and the rotation of keys last: back ends write keys to their cells in the
/// kernel that rotates them, if nothing is between.
pub(super) fn store(g: &Graph, cache: &KvCache, layer: usize, qkv: &Qkv, cells: &Tensor, attends: bool) {
    if attends {
        g.expand(&qkv.q);
    }
    g.expand(&qkv.v);
    g.expand(&qkv.k);
    let cache = cache.layer(layer);
    cache.keys.store(g, &qkv.k, cells);
    cache.values.store(g, &qkv.v, cells);
}

/// What the tokens gather from the cache: `[head_dim_v * n_head, n_tokens]`, the input of the output projection.
pub(super) fn gather(
    g: &Graph,
    model: &Model,
    cache: &KvCache,
    index: usize,
    q: &Tensor,
    lane: &Lane,
    shape: &BatchShape,
) -> Tensor {
    let h = model.hparams();
    let n_head = h.n_head as usize;
    let (dim_k, dim_v) = (h.head_dim_k as usize, h.head_dim_v as usize);
    let Lane { inputs, n_kv, .. } = lane;
    let n_tokens = q.ne()[2];
    let scale = 1.0 / (dim_k as f32).sqrt();
    if let Some(cells) = ours(cache, index, shape) {
        let window = h.sliding_window.map(|window| window as usize);
        return kernels::attention(g, q, &inputs.positions, cells, window);
    }
    let mask = inputs.mask.as_ref().expect("made for layers that are not ours");
    let cache = cache.layer(index);
    let q = g.permute(q, [0, 2, 1, 3]); // [dim_k, n_tokens, n_head]
    let k = cache.keys.first(g, *n_kv);
    let v = cache.values.first(g, *n_kv);
    if shape.flash_attention && cache.in_one_pass {
        let gathered = g.flash_attention(&q, &k, &v, mask, scale); // [dim_v, n_head, n_tokens]
        g.reshape(&gathered, &[dim_v * n_head, n_tokens])
    } else {
        let scores = g.mul_mat_f32(&k, &q); // [n_kv, n_tokens, n_head]
        let weights = g.soft_max_masked(&scores, mask, scale);
        let v = g.contiguous(&g.permute(&v, [1, 0, 2, 3])); // [n_kv, dim_v, n_head_kv]
        let gathered = g.mul_mat(&v, &weights); // [dim_v, n_tokens, n_head]
        let gathered = g.contiguous(&g.permute(&gathered, [0, 2, 1, 3]));
        g.reshape(&gathered, &[dim_v * n_head, n_tokens])
    }
}

/// A layer's keys and values, where its attention is computed by our kernel, which needs no mask.
pub(super) fn ours<'a>(
    cache: &'a KvCache,
    index: usize,
    shape: &BatchShape,
) -> Option<(&'a Tensor, &'a Tensor)> {
    let layer = cache.layer(index);
    let (keys, values) = (layer.keys.on_host()?, layer.values.on_host()?);
    let is_ours = shape.kernels == Kernels::Bruce && shape.flash_attention;
    (is_ours && kernels::attends(keys, values)).then_some((keys, values))
}
