//! What a token needs, and what a test reached of what the machine could do at best.

use super::Test;
use super::measure::Outcome;
use runtime::Model;

/// What a test reached of what there is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reached {
    /// Bytes of weights and of cached keys and values that a single token reads.
    pub bytes_per_token: f64,
    /// Billions of bytes a second, where tokens were computed one by one.
    pub gb_per_s: Option<f64>,
    /// Billions of multiplications and additions with weights a second.
    pub gop_per_s: f64,
    /// Billions of bytes a second that the machine was seen to read with as many threads.
    pub limit_gb_per_s: f64,
}

/// How far `outcome` of `test` came.
pub fn reached(test: &Test, outcome: &Outcome) -> Reached {
    let work = outcome.model.work_per_token();
    let rate = super::stats::median(&outcome.samples.rates());
    // The mean length of the context while single tokens are computed.
    let n_past = f64::from(test.n_depth) + f64::from(test.n_gen) / 2.0;
    let bytes_per_token = work.bytes as f64 + n_past * cell_bytes(&outcome.model, test);
    Reached {
        bytes_per_token,
        gb_per_s: (test.n_prompt == 0).then_some(bytes_per_token * rate / 1e9),
        gop_per_s: 2.0 * work.weights as f64 * rate / 1e9,
        limit_gb_per_s: outcome.read_rate / 1e9,
    }
}

/// Bytes of the keys and values of one token.
fn cell_bytes(model: &Model, test: &Test) -> f64 {
    let h = model.hparams();
    let row = |ty: quants::TensorType, dim: u32| ty.row_bytes(u64::from(dim)).unwrap_or(0) as f64;
    let heads = f64::from(h.n_head_kv) * f64::from(h.n_layer);
    heads * (row(test.type_k, h.head_dim_k) + row(test.type_v, h.head_dim_v))
}
