//! Keys and values of the tokens so far, one cell for each position.

use crate::Error;
use crate::residency::Placement;
use ggml::{Buffer, BufferType, Context, Tensor, Type};
use model_spec::HyperParams;

/// The cache of one session.
pub(crate) struct KvCache {
    /// For each layer keys `[head_dim_k, n_ctx, n_head_kv]` and values `[head_dim_v, n_ctx, n_head_kv]`: one token after
    /// the other, as attention reads them for each head.
    layers: Vec<(Tensor, Tensor)>,
}

impl KvCache {
    /// Bytes of host memory that `n_ctx` cells take.
    pub fn host_bytes(
        hparams: &HyperParams,
        placement: &Placement,
        n_ctx: usize,
        type_k: Type,
        type_v: Type,
    ) -> u64 {
        let (k, v) = widths(hparams);
        let cell = type_k.row_bytes(k) + type_v.row_bytes(v);
        let n_layers = (0..hparams.n_layer).filter(|layer| placement.place_cache(*layer).is_host()).count();
        cell as u64 * n_ctx as u64 * n_layers as u64
    }

    /// Allocates `n_ctx` cells, each layer's where its attention is computed.
    pub fn new(
        hparams: &HyperParams,
        placement: &Placement,
        n_ctx: usize,
        type_k: Type,
        type_v: Type,
    ) -> Result<Self, Error> {
        let (dim_k, dim_v) = (hparams.head_dim_k as usize, hparams.head_dim_v as usize);
        let n_head_kv = hparams.n_head_kv as usize;
        let context = Context::new(2 * hparams.n_layer as usize);
        let layers: Vec<(Tensor, Tensor)> = (0..hparams.n_layer)
            .map(|layer| {
                let keys = context.tensor(&format!("cache_k-{layer}"), type_k, &[dim_k, n_ctx, n_head_kv]);
                (keys, context.tensor(&format!("cache_v-{layer}"), type_v, &[dim_v, n_ctx, n_head_kv]))
            })
            .collect();
        let mut places: Vec<(BufferType, Vec<Tensor>)> = Vec::new();
        for (layer, (keys, values)) in (0..).zip(&layers) {
            let place = placement.place_cache(layer);
            let pair = [keys.clone(), values.clone()];
            match places.iter_mut().find(|(at, _)| *at == place) {
                Some((_, tensors)) => tensors.extend(pair),
                None => places.push((place, pair.to_vec())),
            }
        }
        for (place, tensors) in places {
            // Cells that no token has filled yet are masked by adding minus infinity to their scores, which only a
            // finite score survives.
            Buffer::allocate(place, &tensors, "the KV cache")?.clear(0);
        }
        Ok(KvCache { layers })
    }

    /// Keys and values of a layer.
    pub fn layer(&self, index: usize) -> (&Tensor, &Tensor) {
        let (keys, values) = &self.layers[index];
        (keys, values)
    }
}

fn widths(hparams: &HyperParams) -> (usize, usize) {
    let heads = hparams.n_head_kv as usize;
    (hparams.head_dim_k as usize * heads, hparams.head_dim_v as usize * heads)
}
