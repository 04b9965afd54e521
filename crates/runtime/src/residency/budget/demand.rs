//! What a model asks for.

use gguf::TensorInfo;
use model_spec::{HyperParams, TensorId, TensorRole};

/// One expert of one layer: all of its projections.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertItem {
    /// Index of the layer.
    pub layer: u32,
    /// Index of the expert.
    pub expert: u32,
    /// Its weights.
    pub size_bytes: u64,
    /// Chance that a token takes it, 0 to 1. Without a trace that of a rank: the first of a layer stands for the likeliest,
    /// whichever that is, as what keeps some experts of a layer finds out which ones are popular.
    pub chance: f64,
}

/// What a model asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Demand {
    /// Weights that every token reads: those of each layer, and last the output's.
    pub dense_bytes: Vec<u64>,
    /// KV cache of each layer; it lies where the layer's dense weights do.
    pub cache_bytes: u64,
    /// Compute buffers, where a whole micro-batch is computed.
    pub compute_bytes: u64,
    /// What the other micro-batches of a batch keep meanwhile, where they pass layer by layer: of the host, and of devices.
    pub waiting_bytes: [u64; 2],
    /// Compute buffers of the host where it computes experts of a whole micro-batch beside devices.
    pub beside_bytes: u64,
    /// The largest tensor. Devices take over products of large batches with weights of the host, and need room for a copy.
    pub largest_bytes: u64,
    /// The largest that is no expert: streamed experts are not taken over.
    pub largest_dense_bytes: u64,
    /// Stacks on devices that a layer's experts are copied to for large batches, where that is wanted: all of them together.
    pub stack_bytes: u64,
    /// Memory of the host that they are copied through.
    pub pinned_bytes: u64,
    /// Embeddings, of which a token reads one row. They stay on the host, or in the file where experts are streamed and they
    /// are not the output matrix too.
    pub table_bytes: u64,
    /// Their rows for a batch, where they stay in the file.
    pub rows_bytes: u64,
    /// Whether the output matrix is that table, in a copy where it is on a device.
    pub is_tied: bool,
    /// What the program takes of the host's memory besides: vocabulary, graphs, code.
    pub program_bytes: u64,
    /// In the order of layers and experts.
    pub experts: Vec<ExpertItem>,
    /// Experts of a layer.
    pub n_expert: u32,
    /// Experts that a token takes in each layer.
    pub n_used: u32,
}

/// Tiles of experts take so much at most.
const TILE_BYTES: u64 = 2 << 20;
/// So many are being read, besides those that are multiplied together.
const TILES_BEING_READ: u64 = 8;

/// By how much the likeliest of a layer's experts is taken more often than on average, where half of them are taken; the least
/// likely as much less. Of the models traced for BENCHMARKS.md ("Routing"), a router trained for balance prefers half of that, a
/// merge's router that was never trained a third more.
const PREFERENCE: f64 = 0.4;

/// Chance that a token takes the expert of a layer that is the `rank`-th likeliest (from 0), where nothing is known of the
/// router: chances fall evenly around their average, and less the closer a token comes to taking all or none.
fn chance_of_rank(rank: u32, n_used: u32, n_expert: u32) -> f64 {
    let even = f64::from(n_used) / f64::from(n_expert.max(1));
    let from_middle = 1.0 - 2.0 * f64::from(rank) / f64::from(n_expert.max(2) - 1);
    even * (1.0 + 2.0 * (1.0 - even) * PREFERENCE * from_middle)
}

impl Demand {
    /// The weights of a file's tensors; what is needed besides is left at 0. `chance` tells how likely a token takes an
    /// expert of a layer, as a trace has it; where it doesn't, chances are [those of ranks](chance_of_rank).
    pub fn new(
        hparams: &HyperParams,
        tensors: &[TensorInfo],
        n_used: u32,
        chance: impl Fn(u32, u32) -> Option<f64>,
    ) -> Demand {
        let n_expert = hparams.n_expert;
        let experts = (0..hparams.n_layer).flat_map(|layer| (0..n_expert).map(move |expert| (layer, expert)));
        let experts = experts.map(|(layer, expert)| ExpertItem {
            layer,
            expert,
            size_bytes: 0,
            chance: chance(layer, expert)
                .unwrap_or_else(|| chance_of_rank(expert, n_used, n_expert))
                .clamp(0.0, 1.0),
        });
        let output = hparams.n_layer as usize;
        let mut demand = Demand {
            dense_bytes: vec![0; output + 1],
            is_tied: !tensors.iter().any(|t| t.name == TensorId::global(TensorRole::Output).name()),
            n_expert,
            n_used,
            experts: experts.collect(),
            ..Demand::default()
        };
        for tensor in tensors {
            demand.largest_bytes = demand.largest_bytes.max(tensor.size);
            let Some(id) = TensorId::parse(&tensor.name) else { continue };
            if id.expert.is_none() && id.role.unstacked().is_none() && id.role != TensorRole::TokenEmbd {
                demand.largest_dense_bytes = demand.largest_dense_bytes.max(tensor.size);
            }
            let layer = id.layer.filter(|layer| *layer < hparams.n_layer);
            let first = layer.map(|layer| layer * n_expert);
            match (first, id.expert) {
                (Some(first), Some(expert)) if expert < n_expert => {
                    demand.experts[(first + expert) as usize].size_bytes += tensor.size;
                }
                (Some(first), None) if id.role.unstacked().is_some() && n_expert > 0 => {
                    for item in &mut demand.experts[first as usize..(first + n_expert) as usize] {
                        item.size_bytes += tensor.size / u64::from(n_expert);
                    }
                }
                _ if id.role == TensorRole::TokenEmbd => demand.table_bytes += tensor.size,
                _ => demand.dense_bytes[layer.map_or(output, |layer| layer as usize)] += tensor.size,
            }
        }
        if demand.is_tied {
            demand.dense_bytes[output] += demand.table_bytes;
        }
        demand
    }

    /// Number of layers.
    pub fn n_layer(&self) -> u32 {
        self.dense_bytes.len().saturating_sub(1) as u32
    }

    /// All experts together.
    pub fn expert_bytes(&self) -> u64 {
        self.experts.iter().map(|item| item.size_bytes).sum()
    }

    /// Weights that a token reads, on average.
    pub fn bytes_per_token(&self) -> f64 {
        let experts: f64 = self.experts.iter().map(|item| item.chance * item.size_bytes as f64).sum();
        self.dense_bytes.iter().sum::<u64>() as f64 + experts
    }

    /// Bytes of the largest layer's experts.
    pub fn layer_expert_bytes(&self) -> u64 {
        let layers = self.experts.chunks(self.n_expert.max(1) as usize);
        layers.map(|layer| layer.iter().map(|item| item.size_bytes).sum()).max().unwrap_or(0)
    }

    /// Memory that experts pass through when they live in the file: tiles of them that are being read or multiplied.
    pub fn staging_bytes(&self) -> u64 {
        let largest = self.experts.iter().map(|item| item.size_bytes).max().unwrap_or(0);
        let n_tiles = u64::from(self.n_expert.max(2)) + TILES_BEING_READ;
        (n_tiles * TILE_BYTES).min(2 * u64::from(self.n_used) * largest)
    }
}

/// Bytes of compute buffers, about: the larger intermediate results of a micro-batch, and the mask. Measured figures are
/// up to a quarter below. `is_fused` tells whether our kernels compute the feed-forward network as one.
pub fn compute_bytes(hparams: &HyperParams, n_used: u32, n_ubatch: u32, n_ctx: u32, is_fused: bool) -> u64 {
    let (n_embd, n_ff) = (u64::from(hparams.n_embd), u64::from(hparams.n_ff));
    let n_used = u64::from(n_used.max(1));
    // Fused: hidden rows in F32 and quantized. Otherwise gate and up, then every expert's own result.
    let hidden = if is_fused { n_used * n_ff * 21 / 4 } else { n_used * (2 * n_ff + n_embd) * 5 };
    let of_token = hidden + 4 * n_embd * 4 + 2 * u64::from(n_ctx);
    let logits = u64::from(hparams.n_vocab) * 4;
    u64::from(n_ubatch.min(n_ctx.max(1))) * of_token + logits
}

/// What micro-batches of `n_tokens` tokens in all keep between layers, while others are computed: on the host their state, on
/// devices the input of the feed-forward network too, as a layer's experts are waited for by all of them, and their masks.
pub fn waiting_bytes(hparams: &HyperParams, n_tokens: u32, n_ctx: u32) -> [u64; 2] {
    let state = 4 * u64::from(hparams.n_embd);
    [state, 2 * state + 2 * u64::from(n_ctx)].map(|of_token| u64::from(n_tokens) * of_token)
}

#[cfg(test)]
mod tests {
    use super::chance_of_rank;

    #[test]
    fn chances_of_ranks_add_up_and_fall() {
        for (n_used, n_expert) in
            [(2, 4), (1, 4), (3, 4), (4, 4), (2, 2), (1, 2), (2, 8), (8, 64), (1, 1), (6, 160)]
        {
            let chances: Vec<f64> =
                (0..n_expert).map(|rank| chance_of_rank(rank, n_used, n_expert)).collect();
            let sum: f64 = chances.iter().sum();
            let case = format!("{n_used} of {n_expert}: {chances:?}");
            assert!((sum - f64::from(n_used)).abs() < 1e-9, "{case}");
            assert!(chances.iter().all(|chance| (0.0..=1.0).contains(chance)), "{case}");
            assert!(chances.windows(2).all(|pair| pair[0] > pair[1] || n_used == n_expert), "{case}");
        }
        // Requests that one, two and three slots of four meet: between those of tiny-moe's router and of smol4x's.
        let met: Vec<f64> =
            (1..4).map(|n| (0..n).map(|rank| chance_of_rank(rank, 2, 4) / 2.0).sum()).collect();
        for (met, (even, uneven)) in met.iter().zip([(0.296, 0.383), (0.576, 0.678), (0.796, 0.879)]) {
            assert!((even..uneven).contains(met), "{met}: {even} to {uneven}");
        }
    }
}
