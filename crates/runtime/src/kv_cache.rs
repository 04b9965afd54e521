//! Keys and values of the tokens so far, one cell for each position.

use crate::Error;
use crate::residency::Placement;
use crate::session::{SessionOptions, cache_types};
use ggml::{Buffer, BufferType, Context, Tensor, Type};
use model_spec::HyperParams;

/// The cache of one session.
pub(crate) struct KvCache {
    /// For each layer keys `[head_dim_k, n_ctx, n_head_kv]` and values `[head_dim_v, n_ctx, n_head_kv]`: one token after
    /// the other, as attention reads them for each head.
    layers: Vec<(Tensor, Tensor)>,
    buffers: Vec<Buffer>,
}

impl KvCache {
    /// Bytes that `n_ctx` cells take, by kind of memory.
    pub fn sizes(
        hparams: &HyperParams,
        placement: &Placement,
        n_ctx: usize,
        type_k: Type,
        type_v: Type,
    ) -> Vec<(BufferType, u64)> {
        let (k, v) = widths(hparams);
        let of_layer = (type_k.row_bytes(k) + type_v.row_bytes(v)) as u64 * n_ctx as u64;
        let mut sizes: Vec<(BufferType, u64)> = Vec::new();
        for layer in 0..hparams.n_layer {
            let place = placement.place_cache(layer);
            match sizes.iter_mut().find(|(at, _)| *at == place) {
                Some((_, sum)) => *sum += of_layer,
                None => sizes.push((place, of_layer)),
            }
        }
        sizes
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
        let buffers = places.into_iter().map(|(at, tensors)| Buffer::allocate(at, &tensors, "the KV cache"));
        let cache = KvCache { layers, buffers: buffers.collect::<Result<_, _>>()? };
        // Cells that no token has filled yet are masked by adding minus infinity to their scores, which only a finite
        // score survives.
        cache.clear();
        Ok(cache)
    }

    /// Keys and values of all layers: `k, v, k, v, ...`.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.layers.iter().flat_map(|(keys, values)| [keys, values])
    }

    /// Zeros in all cells, as in a new cache.
    pub fn clear(&self) {
        self.buffers.iter().for_each(|buffer| buffer.clear(0));
    }

    /// Keys and values of a layer.
    pub fn layer(&self, index: usize) -> (&Tensor, &Tensor) {
        let (keys, values) = &self.layers[index];
        (keys, values)
    }
}

/// Bytes of one layer's `n_ctx` cells.
///
/// # Errors
/// [`Error::Option`] where the cache can't have these types.
pub(crate) fn layer_bytes(
    hparams: &HyperParams,
    n_ctx: usize,
    options: &SessionOptions,
) -> Result<u64, Error> {
    let (type_k, type_v) = cache_types(hparams, options)?;
    let (k, v) = widths(hparams);
    Ok((type_k.row_bytes(k) + type_v.row_bytes(v)) as u64 * n_ctx as u64)
}

fn widths(hparams: &HyperParams) -> (usize, usize) {
    let heads = hparams.n_head_kv as usize;
    (hparams.head_dim_k as usize * heads, hparams.head_dim_v as usize * heads)
}
