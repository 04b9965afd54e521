//! Keys and values of the tokens so far, one cell for each position.
//!
//! Where the CPU computes attention, a layer's cells lie head by head, as our kernel reads them. On a device they lie token
//! by token, as in llama.cpp: ggml's back ends write keys there as they rotate them, and their kernels are tuned for it.

use crate::Error;
use crate::residency::Placement;
use crate::session::{SessionOptions, cache_types};
use ggml::{Buffer, BufferType, Context, Graph, Tensor, Type};
use model_spec::HyperParams;

/// The cache of one session.
pub(crate) struct KvCache {
    layers: Vec<LayerCache>,
    buffers: Vec<Buffer>,
}

/// What one layer's attention looks at.
pub(crate) struct LayerCache {
    pub keys: Cells,
    pub values: Cells,
    /// Whether attention can be computed in one pass where the cells are.
    pub in_one_pass: bool,
}

impl LayerCache {
    fn both(&self) -> [&Cells; 2] {
        [&self.keys, &self.values]
    }
}

/// Keys or values of one layer: for each cell a row of `head_dim` numbers in each of `n_head_kv` heads.
pub(crate) struct Cells {
    /// `[head_dim, n_ctx, n_head_kv]` head by head, `[head_dim * n_head_kv, n_ctx]` token by token.
    tensor: Tensor,
    order: Order,
    head_dim: usize,
    n_head_kv: usize,
}

/// What lies together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// A head's rows of all cells.
    ByHead,
    /// A cell's rows of all heads.
    ByToken,
}

/// How much is read or written at once, about.
const PIECE_BYTES: usize = 4 << 20;

impl Cells {
    fn new(
        context: &Context,
        name: &str,
        ty: Type,
        (head_dim, n_head_kv): (usize, usize),
        n_ctx: usize,
        order: Order,
    ) -> Self {
        let tensor = match order {
            Order::ByHead => context.tensor(name, ty, &[head_dim, n_ctx, n_head_kv]),
            Order::ByToken => context.tensor(name, ty, &[head_dim * n_head_kv, n_ctx]),
        };
        Cells { tensor, order, head_dim, n_head_kv }
    }

    /// The type of the numbers.
    pub fn ty(&self) -> Type {
        self.tensor.ty()
    }

    /// Bytes of one cell, all of its heads.
    pub fn cell_bytes(&self) -> usize {
        self.row_bytes() * self.n_head_kv
    }

    fn row_bytes(&self) -> usize {
        self.ty().row_bytes(self.head_dim)
    }

    /// Writes `rows: [head_dim, n_head_kv, n_tokens]`, a token's heads one behind the other, to the cells numbered
    /// `cells: [n_tokens]`.
    pub fn store(&self, g: &Graph, rows: &Tensor, cells: &Tensor) {
        let rows = match self.order {
            Order::ByHead => g.permute(rows, [0, 2, 1, 3]), // [head_dim, n_tokens, n_head_kv]
            Order::ByToken => {
                let ([head_dim, n_head_kv, n_tokens, _], nb) = (rows.ne(), rows.nb());
                g.view(rows, [head_dim * n_head_kv, n_tokens, 1], [nb[2], nb[2] * n_tokens], 0)
            }
        };
        g.expand(&g.set_rows(&self.tensor, &rows, cells));
    }

    /// The first `n_kv` cells: `[head_dim, n_kv, n_head_kv]`.
    pub fn first(&self, g: &Graph, n_kv: usize) -> Tensor {
        let nb = self.tensor.nb();
        let distances = match self.order {
            Order::ByHead => [nb[1], nb[2]],
            Order::ByToken => [nb[1], self.row_bytes()],
        };
        g.view(&self.tensor, [self.head_dim, n_kv, self.n_head_kv], distances, 0)
    }

    /// All cells as `[head_dim, n_ctx, n_head_kv]`, where they lie so in memory that the CPU reads.
    pub fn on_host(&self) -> Option<&Tensor> {
        (self.order == Order::ByHead && self.tensor.is_host()).then_some(&self.tensor)
    }

    /// Hands the first `n_cells` to `write` in pieces, head by head.
    ///
    /// # Errors
    /// What `write` gives.
    pub fn save<E>(&self, n_cells: usize, mut write: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let (row, size) = (self.row_bytes(), self.row_bytes() * n_cells);
        let mut cells = vec![0; self.by_token_bytes(n_cells)];
        self.tensor.read(0, &mut cells);
        let mut piece = vec![0; size.min(self.piece_bytes())];
        for head in 0..self.n_head_kv {
            for start in (0..size).step_by(self.piece_bytes()) {
                let piece = &mut piece[..(size - start).min(self.piece_bytes())];
                match self.order {
                    Order::ByHead => self.tensor.read(head * self.tensor.nb()[2] + start, piece),
                    Order::ByToken => {
                        let of_head = self.rows(head, start / row, cells.len());
                        piece
                            .chunks_exact_mut(row)
                            .zip(of_head)
                            .for_each(|(to, at)| to.copy_from_slice(&cells[at..at + row]));
                    }
                }
                write(piece)?;
            }
        }
        Ok(())
    }

    /// Has `fill` give `n_cells` in pieces, as [`save`](Self::save) handed them over, and keeps the first `n_kept`.
    ///
    /// # Errors
    /// What `fill` gives.
    pub fn restore<E>(
        &self,
        n_cells: usize,
        n_kept: usize,
        mut fill: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (row, size) = (self.row_bytes(), self.row_bytes() * n_cells);
        let mut cells = vec![0; self.by_token_bytes(n_kept)];
        let mut piece = vec![0; size.min(self.piece_bytes())];
        for head in 0..self.n_head_kv {
            for start in (0..size).step_by(self.piece_bytes()) {
                let piece = &mut piece[..(size - start).min(self.piece_bytes())];
                fill(piece)?;
                let kept = &piece[..piece.len().min((row * n_kept).saturating_sub(start))];
                match self.order {
                    _ if kept.is_empty() => {}
                    Order::ByHead => self.tensor.write(head * self.tensor.nb()[2] + start, kept),
                    Order::ByToken => {
                        let of_head = self.rows(head, start / row, cells.len());
                        kept.chunks_exact(row)
                            .zip(of_head)
                            .for_each(|(from, at)| cells[at..at + row].copy_from_slice(from));
                    }
                }
            }
        }
        self.tensor.write(0, &cells);
        Ok(())
    }

    /// Whole rows that are read or written at once.
    fn piece_bytes(&self) -> usize {
        (PIECE_BYTES / self.row_bytes()).max(1) * self.row_bytes()
    }

    /// What is copied at once where cells lie token by token: all of these, as their device hands out no rows.
    fn by_token_bytes(&self, n_cells: usize) -> usize {
        if self.order == Order::ByToken { self.cell_bytes() * n_cells } else { 0 }
    }

    /// Where a head's rows are in the first `size_bytes` bytes of cells that lie token by token, from cell `first` on.
    fn rows(&self, head: usize, first: usize, size_bytes: usize) -> impl Iterator<Item = usize> + use<> {
        (first * self.cell_bytes() + head * self.row_bytes()..size_bytes).step_by(self.cell_bytes())
    }
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
        let layers: Vec<LayerCache> = (0..hparams.n_layer)
            .map(|layer| {
                let place = placement.place_cache(layer);
                let order = if place.is_host() { Order::ByHead } else { Order::ByToken };
                let cells = |kind: char, ty: Type, dim: usize| {
                    let name = format!("cache_{kind}-{layer}");
                    Cells::new(&context, &name, ty, (dim, n_head_kv), n_ctx, order)
                };
                let (keys, values) = (cells('k', type_k, dim_k), cells('v', type_v, dim_v));
                LayerCache {
                    in_one_pass: attends_in_one_pass(hparams, placement, &keys, &values, place),
                    keys,
                    values,
                }
            })
            .collect();
        let mut places: Vec<(BufferType, Vec<Tensor>)> = Vec::new();
        for (layer, cache) in (0..).zip(&layers) {
            let place = placement.place_cache(layer);
            let pair = cache.both().map(|cells| cells.tensor.clone());
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
    pub fn cells(&self) -> impl Iterator<Item = &Cells> {
        self.layers.iter().flat_map(LayerCache::both)
    }

    /// Zeros in all cells, as in a new cache.
    pub fn clear(&self) {
        self.buffers.iter().for_each(|buffer| buffer.clear(0));
    }

    /// Keys and values of a layer.
    pub fn layer(&self, index: usize) -> &LayerCache {
        &self.layers[index]
    }
}

/// Whether the device with memory `place`, or else the CPU, has a kernel for attention in one pass. Values in blocks have to
/// be, as they can't be turned for the products of the other way.
fn attends_in_one_pass(
    hparams: &HyperParams,
    placement: &Placement,
    keys: &Cells,
    values: &Cells,
    place: BufferType,
) -> bool {
    let (n_head, n_head_kv) = (hparams.n_head as usize, hparams.n_head_kv as usize);
    let [k, v] = [keys, values].map(|cells| (cells.ty(), cells.head_dim));
    let device = placement.devices().iter().find(|device| device.buffer_type() == place);
    device.is_none_or(|device| v.0.is_quantized() || device.flash_attends(n_head, n_head_kv, k, v))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// More than is read or written at once, and not all of it kept.
    #[test]
    fn cells_go_from_either_order_to_the_other() {
        const DIM: usize = 64;
        let (n_heads, n_cells, n_kept) = (2, 20_000, 18_000);
        let device = ggml::stand_in::register(1, 64 << 20).expect("registered")[0];
        let context = Context::new(3);
        let make = |order: Order, place: BufferType| {
            let cells = Cells::new(&context, "cells", Type::F32, (DIM, n_heads), n_cells, order);
            let tensors = std::slice::from_ref(&cells.tensor);
            Buffer::allocate(place, tensors, "a test").expect("room").clear(0);
            cells
        };
        let saved = |cells: &Cells, n: usize| {
            let mut bytes = Vec::new();
            let append = |piece: &[u8]| {
                bytes.extend_from_slice(piece);
                Ok::<(), ()>(())
            };
            cells.save(n, append).expect("nothing fails");
            bytes
        };
        let restore = |cells: &Cells, bytes: &[u8], n: usize, n_kept: usize| {
            let mut rest = bytes;
            let fill = |piece: &mut [u8]| {
                let (now, later) = rest.split_at(piece.len());
                piece.copy_from_slice(now);
                rest = later;
                Ok::<(), ()>(())
            };
            cells.restore(n, n_kept, fill).expect("nothing fails");
            assert!(rest.is_empty(), "all is read");
        };
        let number = |cell: usize, head: usize, at: usize| ((cell * n_heads + head) * DIM + at) as f32;
        let on_device = make(Order::ByToken, device.buffer_type());
        let all = (0..n_cells * n_heads * DIM).map(|i| i as f32);
        on_device.tensor.write_values(&all.collect::<Vec<f32>>());

        let on_host = make(Order::ByHead, BufferType::cpu());
        restore(&on_host, &saved(&on_device, n_cells), n_cells, n_kept);
        let mut found = vec![0f32; n_cells * n_heads * DIM];
        on_host.tensor.read_values(0, &mut found);
        for (index, row) in found.chunks_exact(DIM).enumerate() {
            let (head, cell) = (index / n_cells, index % n_cells);
            let expected = |at| if cell < n_kept { number(cell, head, at) } else { 0.0 };
            assert!(row.iter().enumerate().all(|(at, x)| *x == expected(at)), "head {head}, cell {cell}");
        }
        let again = make(Order::ByToken, device.buffer_type());
        restore(&again, &saved(&on_host, n_kept), n_kept, n_kept);
        assert!(saved(&again, n_kept) == saved(&on_host, n_kept));
    }
}
