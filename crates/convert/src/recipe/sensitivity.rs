//! How much the error of a tensor counts in the model's output, as two models show it.
//!
//! A share is the part of the mean KL divergence from the unquantized model that is a role's doing when all tensors have the
//! same relative error (see [`measure`](crate::measure)). Measured on two models of four experts, two of them used: smol4x
//! (`make-smol-moe.py`; 30 layers) after `dither-checkpoint.py`, which takes its weights off the grid of the file that it was
//! made from, and models/tiny-moe (3 layers), one role at a time in IQ4_NL, the others in Q8_0; the divergence of
//! the file in Q8_0 is subtracted and the rest divided by the role's own error, 0.0056 to 0.0079. The texts are not those that
//! results are scored on. BENCHMARKS.md has the figures.
//!
//! The two differ up to five times (embeddings, values of attention), and another model may differ as much. So none is
//! taken for the truth: a choice must do well by both. That costs may be added was tested on smol4x: the sum over the
//! roles of attention is within a tenth of what they do together.

use model_spec::{HyperParams, TensorId, TensorRole};
use quants::TensorType;

/// Shares of the roles in one model's divergence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Shares {
    token_embd: f64,
    output: f64,
    attn_q: f64,
    attn_k: f64,
    attn_v: f64,
    attn_output: f64,
    ffn_gate: f64,
    ffn_up: f64,
    ffn_down: f64,
    /// How often a layer of the first tenth counts.
    first_layers: f64,
    /// How often a layer of the last tenth counts.
    last_layers: f64,
}

/// Number of models that were measured.
pub(crate) const N_MEASURED: usize = 2;

/// Of each model that was measured.
pub(crate) const MEASURED: [Shares; N_MEASURED] = [
    // smol4x. A layer of the first tenth counted 1.3 times, one of the last 2.5 times as much as the average, and those
    // between differed little.
    Shares {
        token_embd: 0.05,
        output: 0.20,
        attn_q: 0.07,
        attn_k: 0.06,
        attn_v: 0.26,
        attn_output: 0.07,
        ffn_gate: 0.05,
        ffn_up: 0.09,
        ffn_down: 0.15,
        first_layers: 1.5,
        last_layers: 2.5,
    },
    // tiny-moe, whose layers were alike.
    Shares {
        token_embd: 0.20,
        output: 0.18,
        attn_q: 0.03,
        attn_k: 0.04,
        attn_v: 0.08,
        attn_output: 0.06,
        ffn_gate: 0.13,
        ffn_up: 0.13,
        ffn_down: 0.15,
        first_layers: 1.0,
        last_layers: 1.0,
    },
];

/// Experts that each token used in the models that were measured.
const MEASURED_USED: f64 = 2.0;

impl Shares {
    /// The share of a tensor; 0 for what is not multiplied with.
    ///
    /// A layer's share falls with the number of layers, among which the work is divided. An expert is used by a part of the
    /// tokens, and in the sum over all experts of a layer every token is counted once, however many there are; errors of
    /// the experts that a token uses are independent, so that of their sum falls with their number. A matrix that does the
    /// work of two has the sensitivity of both.
    pub(crate) fn of(&self, id: &TensorId, hparams: &HyperParams, tied: bool) -> f64 {
        let used = f64::from(hparams.n_expert_used.max(1));
        let role = match id.role {
            TensorRole::Output => return self.output,
            TensorRole::TokenEmbd => return self.token_embd + if tied { self.output } else { 0.0 },
            TensorRole::AttnQ => self.attn_q,
            TensorRole::AttnK => self.attn_k,
            TensorRole::AttnV => self.attn_v,
            TensorRole::AttnOutput => self.attn_output,
            TensorRole::FfnGate | TensorRole::FfnGateExps => self.ffn_gate * MEASURED_USED / used,
            TensorRole::FfnUp | TensorRole::FfnUpExps => self.ffn_up * MEASURED_USED / used,
            TensorRole::FfnDown | TensorRole::FfnDownExps => self.ffn_down * MEASURED_USED / used,
            _ => return 0.0,
        };
        let (layer, n_layer) = (id.layer.unwrap_or(0), hparams.n_layer.max(1));
        let of_layer = role * self.depth(layer, n_layer) / f64::from(n_layer);
        if id.expert.is_some() { of_layer / f64::from(hparams.n_expert.max(1)) } else { of_layer }
    }

    /// The factor of a layer; 1 on the average over all.
    fn depth(&self, layer: u32, n_layer: u32) -> f64 {
        let tenth = n_layer / 10;
        let between = f64::from(n_layer - 2 * tenth);
        let average =
            (f64::from(tenth) * (self.first_layers + self.last_layers) + between) / f64::from(n_layer);
        let factor = match layer {
            _ if layer + tenth >= n_layer => self.last_layers,
            _ if layer < tenth => self.first_layers,
            _ => 1.0,
        };
        factor / average
    }
}

/// What the inputs' rounding on CPUs costs, as a relative error of the weights that does the same.
///
/// Kernels round inputs to 8 bits in blocks of 256 or 32 as the type of the weights has it; inputs with a few large elements
/// lose more in the larger blocks. Measured like the shares: attention, experts and the output matrix of smol4x in Q6_K, less
/// what the weights' own error explains, gave 0.0005, 0.0003 and 0.0005, all of tiny-moe 0.0002; smol4x in Q8_0 0.00007.
pub(crate) fn input_error(ty: TensorType) -> f64 {
    match ty.block_len() {
        256 => 3e-4,
        32 => 7e-5,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model_spec::{Architecture, Rope, RopeScaling};

    fn of(id: &TensorId, hparams: &HyperParams, tied: bool) -> f64 {
        MEASURED[0].of(id, hparams, tied)
    }

    fn model(n_layer: u32, n_expert: u32, n_expert_used: u32) -> HyperParams {
        HyperParams {
            arch: Architecture::Llama,
            n_layer,
            n_embd: 64,
            n_ff: 128,
            n_head: 4,
            n_head_kv: 2,
            head_dim_k: 16,
            head_dim_v: 16,
            head_dim_stated: false,
            n_rot: 16,
            n_vocab: 100,
            n_ctx_train: 512,
            n_expert,
            n_expert_used,
            rms_eps: 1e-5,
            rope: Rope { freq_base: 10000.0, scaling: RopeScaling::None },
            sliding_window: None,
        }
    }

    #[test]
    fn both_layouts_and_all_numbers_of_experts_count_alike() {
        for n_expert in [2, 3, 4, 8, 16] {
            let h = model(8, n_expert, 2);
            let stacked = of(&TensorId::in_layer(TensorRole::FfnUpExps, 3), &h, false);
            let each = |expert| of(&TensorId::of_expert(TensorRole::FfnUp, 3, expert), &h, false);
            let split: f64 = (0..n_expert).map(each).sum();
            assert!((stacked - split).abs() < 1e-12, "{n_expert} experts: {stacked}, not {split}");
            let four = of(&TensorId::in_layer(TensorRole::FfnUpExps, 3), &model(8, 4, 2), false);
            assert!((stacked - four).abs() < 1e-12);
        }
        let dense = of(&TensorId::in_layer(TensorRole::FfnUp, 3), &model(8, 0, 0), false);
        let moe = of(&TensorId::in_layer(TensorRole::FfnUpExps, 3), &model(8, 4, 2), false);
        assert!((dense - 2.0 * moe).abs() < 1e-12);
    }

    #[test]
    fn a_role_counts_the_same_in_models_of_any_depth() {
        for n_layer in [1, 3, 32, 80] {
            let h = model(n_layer, 4, 2);
            let sum: f64 =
                (0..n_layer).map(|l| of(&TensorId::in_layer(TensorRole::AttnV, l), &h, false)).sum();
            assert!((sum - MEASURED[0].attn_v).abs() < 1e-9, "{n_layer} layers: {sum}");
        }
    }

    #[test]
    fn tied_embeddings_do_the_work_of_both() {
        let (h, embeddings) = (model(8, 4, 2), TensorId::global(TensorRole::TokenEmbd));
        let output = of(&TensorId::global(TensorRole::Output), &h, false);
        assert_eq!(of(&embeddings, &h, true), of(&embeddings, &h, false) + output);
        assert_eq!(of(&TensorId::in_layer(TensorRole::AttnNorm, 0), &h, false), 0.0);
    }
}
