//! Grouped-query attention over the KV cache.

use super::{BatchShape, linears};
use crate::kernels::Kernels;
use crate::kv_cache::KvCache;
use crate::model::{Layer, Model};
use ggml::{Graph, Tensor};

/// Queries, keys and values of the batch's own tokens.
pub(super) struct Qkv {
    /// `[head_dim_k, n_head, n_tokens]`, rotated.
    pub q: Tensor,
    /// `[head_dim_k * n_head_kv, n_tokens]`, rotated.
    pub k: Tensor,
    /// `[head_dim_v * n_head_kv, n_tokens]`.
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
    let rotate = |projected: &Tensor, heads: usize| {
        let head_bytes = projected.ty().row_bytes(head_dim);
        let by_head = g.view(projected, [head_dim, heads, n_tokens], [head_bytes, projected.nb()[1]], 0);
        g.rope(&by_head, positions, factors, model.rope())
    };
    let [q, k, v] = linears(g, kernels, [&layer.q, &layer.k, &layer.v], x);
    let (q, k) = (rotate(&q, n_head), rotate(&k, n_head_kv));
    Qkv { q, k: g.reshape(&k, &[head_dim * n_head_kv, n_tokens]), v }
}

/// Writes keys and values into the cache's cells.
pub(super) fn store(g: &Graph, cache: &KvCache, layer: usize, qkv: &Qkv, cells: &Tensor) {
    let (keys, values) = cache.layer(layer);
    g.expand(&g.set_rows(keys, &qkv.k, cells));
    g.expand(&g.set_rows(values, &qkv.v, cells));
}

/// What the tokens gather from the cache: `[head_dim_v * n_head, n_tokens]`, the input of the output projection.
pub(super) fn gather(
    g: &Graph,
    model: &Model,
    cache: &KvCache,
    index: usize,
    q: &Tensor,
    mask: &Tensor,
    shape: BatchShape,
) -> Tensor {
    let h = model.hparams();
    let (n_head, n_head_kv) = (h.n_head as usize, h.n_head_kv as usize);
    let (dim_k, dim_v) = (h.head_dim_k as usize, h.head_dim_v as usize);
    let BatchShape { n_tokens, n_kv, flash_attention, .. } = shape;
    let scale = 1.0 / (dim_k as f32).sqrt();
    let (keys, values) = cache.layer(index);
    let q = g.permute(q, [0, 2, 1, 3]); // [dim_k, n_tokens, n_head]
    let k = by_head(g, keys, dim_k, n_kv, n_head_kv);
    let v = by_head(g, values, dim_v, n_kv, n_head_kv);
    if flash_attention {
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

/// The first `n_kv` cells of `cache: [dim * n_head_kv, n_ctx]` as `[dim, n_kv, n_head_kv]`.
fn by_head(g: &Graph, cache: &Tensor, dim: usize, n_kv: usize, n_head_kv: usize) -> Tensor {
    let head_bytes = cache.ty().row_bytes(dim);
    g.view(cache, [dim, n_kv, n_head_kv], [cache.nb()[1], head_bytes], 0)
}
