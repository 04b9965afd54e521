//! How much the error of a tensor counts in the model's output.
//!
//! A share is the part of the mean KL divergence from the unquantized model that is a role's doing when all tensors have the
//! same relative error (see [`measure`](crate::measure)). Measured on two models of four experts, two of them used: smol4x
//! (`make-smol-moe.py`; 30 layers) and models/tiny-moe (3 layers), one role at a time in IQ4_NL, whose relative error is 0.006
//! to 0.008 everywhere, the others in Q8_0; the divergence of the file in Q8_0 is subtracted and the rest divided by the error.
//! On smol4x output and embeddings were in Q4_K instead, and ffn_up is what gate and down leave of all three.
//! On smol4x the sum of the roles of attention is within a tenth of what they do together, so costs may be added.
//!
//! | role | smol4x | tiny-moe | taken |
//! |---|---|---|---|
//! | token_embd | 0.03 | 0.21 | 0.05 |
//! | output | 0.25 | 0.15 | 0.21 |
//! | attn_q, attn_k, attn_v, attn_output | 0.07, 0.06, 0.27, 0.06 | 0.05, 0.07, 0.05, 0.03 | 0.06, 0.07, 0.15, 0.05 |
//! | ffn_gate, ffn_up, ffn_down | 0.08, 0.14, 0.23 | 0.14, 0.12, 0.18 | 0.09, 0.13, 0.21 |
//!
//! What is taken is the geometric mean, in which smol4x, the one with the size and training of a language model, counts
//! twice: the shares of other models are not known, and so none is far from what was seen.

use model_spec::{HyperParams, TensorId, TensorRole};
use quants::TensorType;

/// The share of a tensor; 0 for what is not multiplied with.
///
/// A layer's share falls with the number of layers, among which the work is divided. An expert is used by a part of the
/// tokens, and in the sum over all experts of a layer every token is counted once, however many there are; errors of the
/// experts that a token uses are independent, so that of their sum falls with their number. A matrix that does the work
/// of two has the sensitivity of both.
pub(crate) fn of(id: &TensorId, hparams: &HyperParams, tied: bool) -> f64 {
    let used = f64::from(hparams.n_expert_used.max(1));
    let role = match id.role {
        TensorRole::Output => return OUTPUT,
        TensorRole::TokenEmbd => return TOKEN_EMBD + if tied { OUTPUT } else { 0.0 },
        TensorRole::AttnQ => ATTN_Q,
        TensorRole::AttnK => ATTN_K,
        TensorRole::AttnV => ATTN_V,
        TensorRole::AttnOutput => ATTN_OUTPUT,
        TensorRole::FfnGate | TensorRole::FfnGateExps => FFN_GATE * MEASURED_USED / used,
        TensorRole::FfnUp | TensorRole::FfnUpExps => FFN_UP * MEASURED_USED / used,
        TensorRole::FfnDown | TensorRole::FfnDownExps => FFN_DOWN * MEASURED_USED / used,
        _ => return 0.0,
    };
    let (layer, n_layer) = (id.layer.unwrap_or(0), hparams.n_layer.max(1));
    let of_layer = role * depth(layer, n_layer) / f64::from(n_layer);
    if id.expert.is_some() { of_layer / f64::from(hparams.n_expert.max(1)) } else { of_layer }
}

const TOKEN_EMBD: f64 = 0.05;
const OUTPUT: f64 = 0.21;
const ATTN_Q: f64 = 0.06;
const ATTN_K: f64 = 0.07;
const ATTN_V: f64 = 0.15;
const ATTN_OUTPUT: f64 = 0.05;
const FFN_GATE: f64 = 0.09;
const FFN_UP: f64 = 0.13;
const FFN_DOWN: f64 = 0.21;

/// Experts that each token used in the model that was measured.
const MEASURED_USED: f64 = 2.0;

/// The factor of a layer; 1 on the average over all. In smol4x a layer of the first tenth counted 1.3 times, one of the last
/// 2.5 times as much as the average, and those between differed little; tiny-moe's three layers were alike.
fn depth(layer: u32, n_layer: u32) -> f64 {
    const FIRST: f64 = 1.5;
    const LAST: f64 = 2.5;
    let tenth = n_layer / 10;
    let between = f64::from(n_layer - 2 * tenth);
    let average = (f64::from(tenth) * (FIRST + LAST) + between) / f64::from(n_layer);
    let factor = match layer {
        _ if layer + tenth >= n_layer => LAST,
        _ if layer < tenth => FIRST,
        _ => 1.0,
    };
    factor / average
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
            assert!((sum - ATTN_V).abs() < 1e-9, "{n_layer} layers: {sum}");
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
