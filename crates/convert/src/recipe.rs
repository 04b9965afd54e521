//! Which tensor of a file gets which type.
//!
//! The rules are llama-quantize's (llama.cpp, src/llama-quant.cpp, `llama_tensor_get_type`), for files of the
//! Llama architecture made without an importance matrix, so that a file made here equals one made there tensor
//! by tensor. They rest on three ideas: attention values and the down projections hurt most when rounded, the
//! first and last eighth of the layers and every third between deserve more bits, and a model with exactly
//! eight experts can afford a large type for its few attention weights.

use model_spec::{FileType, FileType as Ft, HyperParams, TensorId, TensorKind, TensorRole};
use quants::TensorType;

use TensorType::{F16, F32, IQ4_NL, Q3_K, Q4_0, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};

/// The file types whose rules are known here, in the order of their numbers.
pub fn file_types() -> impl Iterator<Item = FileType> {
    use FileType::*;
    FileType::all().filter(|t| {
        matches!(
            t,
            F32 | F16
                | BF16
                | Q4_0
                | Q4_1
                | Q5_0
                | Q5_1
                | Q8_0
                | Q2_K
                | Q3_K_S
                | Q3_K_M
                | Q3_K_L
                | Q4_K_S
                | Q4_K_M
                | Q5_K_S
                | Q5_K_M
                | Q6_K
                | IQ4_NL
                | IQ4_XS
        )
    })
}

/// Chooses the types of one file's tensors.
///
/// The choice for a tensor depends on the layer it is in and on the model's shape, never on tensors before it,
/// so tensors may be asked about in any order.
#[derive(Debug, Clone, Copy)]
pub struct Recipe<'a> {
    file_type: FileType,
    hparams: &'a HyperParams,
    /// Whether the file has no output matrix, so that the embeddings do its work.
    tied: bool,
}

impl<'a> Recipe<'a> {
    /// The rules of a file type for a model; `tied` where the model has no output matrix of its own.
    pub fn new(file_type: FileType, hparams: &'a HyperParams, tied: bool) -> Self {
        Recipe { file_type, hparams, tied }
    }

    /// The type of a tensor with shape `ne`.
    pub fn tensor_type(&self, id: &TensorId, ne: &[u64]) -> TensorType {
        if !is_quantizable(id, ne) {
            return F32;
        }
        let default = self.file_type.default_type();
        if !default.is_quantized() {
            return default;
        }
        fit_to_row(self.preferred(id, default, ne[0]), ne[0])
    }

    /// The type by role and layer alone, before the row length is looked at.
    fn preferred(&self, id: &TensorId, default: TensorType, n_cols: u64) -> TensorType {
        let layer = id.layer.unwrap_or(0);
        match id.role {
            TensorRole::Output => self.output(default, n_cols),
            TensorRole::TokenEmbd if self.tied => self.output(default, n_cols),
            TensorRole::AttnV => self.attention_value(default, layer),
            TensorRole::AttnK if self.hparams.n_expert == 8 => Q8_0,
            TensorRole::AttnOutput => self.attention_output(default),
            TensorRole::FfnDown | TensorRole::FfnDownExps => self.ffn_down(default, layer),
            _ => default,
        }
    }

    fn output(&self, default: TensorType, n_cols: u64) -> TensorType {
        match default {
            _ if !n_cols.is_multiple_of(default.block_len() as u64) => Q8_0,
            Q8_0 => Q8_0,
            _ => Q6_K,
        }
    }

    fn attention_value(&self, default: TensorType, layer: u32) -> TensorType {
        let h = self.hparams;
        // Only four or more query heads per value head count as few values.
        let few_values = h.n_head / h.n_head_kv >= 4;
        let chosen = match self.file_type {
            Ft::Q2_K if few_values => Q4_K,
            Ft::Q2_K => Q3_K,
            Ft::Q3_K_M if layer < 2 => Q5_K,
            Ft::Q3_K_M => Q4_K,
            Ft::Q3_K_L => Q5_K,
            Ft::IQ4_NL | Ft::IQ4_XS if few_values => Q5_K,
            Ft::Q4_K_M | Ft::Q5_K_M if deserves_more_bits(layer, h.n_layer) => Q6_K,
            Ft::Q4_K_S if layer < 4 => Q5_K,
            _ => default,
        };
        // llama.cpp tells the 70B models by their layer count; eight heads share one value head there.
        let is_70b = h.n_layer == 80 && h.n_head != h.n_head_kv;
        match chosen {
            _ if h.n_expert == 8 => Q8_0,
            TensorType::Q3_K | TensorType::Q4_K if is_70b => Q5_K,
            other => other,
        }
    }

    fn attention_output(&self, default: TensorType) -> TensorType {
        match self.file_type {
            Ft::Q2_K | Ft::Q3_K_S | Ft::Q3_K_M | Ft::IQ4_NL | Ft::IQ4_XS | Ft::Q4_K_S | Ft::Q4_K_M
                if self.hparams.n_expert == 8 =>
            {
                Q5_K
            }
            _ if self.hparams.n_expert == 8 => default,
            Ft::Q2_K => Q3_K,
            Ft::Q3_K_M => Q4_K,
            Ft::Q3_K_L => Q5_K,
            _ => default,
        }
    }

    fn ffn_down(&self, default: TensorType, layer: u32) -> TensorType {
        let n_layer = self.hparams.n_layer;
        match self.file_type {
            Ft::Q2_K => Q3_K,
            Ft::Q3_K_M if layer < n_layer / 16 => Q5_K,
            Ft::Q3_K_M => Q4_K,
            Ft::Q3_K_L => Q5_K,
            Ft::Q4_K_M | Ft::Q5_K_M if deserves_more_bits(layer, n_layer) => Q6_K,
            Ft::Q4_K_S | Ft::IQ4_NL | Ft::IQ4_XS if layer < n_layer / 8 => Q5_K,
            _ => default,
        }
    }
}

/// Whether a tensor follows the recipe; norms, biases, the router and other vectors stay in F32.
///
/// llama.cpp counts dimensions without trailing ones, so a matrix of one row is a vector to it.
pub(crate) fn is_quantizable(id: &TensorId, ne: &[u64]) -> bool {
    let is_matrix = ne.iter().skip(1).any(|n| *n > 1);
    is_matrix && id.kind == TensorKind::Weight && id.role != TensorRole::FfnGateInp && !id.role.is_norm()
}

/// The first and last eighth of the layers, and every third between.
fn deserves_more_bits(layer: u32, n_layer: u32) -> bool {
    let eighth = n_layer / 8;
    layer < eighth || layer >= 7 * n_layer / 8 || (layer - eighth) % 3 == 2
}

/// `wanted`, or a type of about the same size whose blocks divide the row, or F16.
fn fit_to_row(wanted: TensorType, n_cols: u64) -> TensorType {
    let fits = |t: TensorType| n_cols.is_multiple_of(t.block_len() as u64);
    if fits(wanted) {
        return wanted;
    }
    let smaller_blocks = match wanted {
        TensorType::IQ4_XS => IQ4_NL,
        TensorType::Q2_K | TensorType::Q3_K => Q4_0,
        TensorType::Q4_K => Q5_0,
        TensorType::Q5_K => Q5_1,
        TensorType::Q6_K => Q8_0,
        other => other,
    };
    if fits(smaller_blocks) { smaller_blocks } else { F16 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use TensorType::BF16;
    use model_spec::{Architecture, Rope, RopeScaling};

    fn model(n_layer: u32, n_expert: u32) -> HyperParams {
        HyperParams {
            arch: Architecture::Llama,
            n_layer,
            n_embd: 4096,
            n_ff: 14336,
            n_head: 32,
            n_head_kv: 8,
            head_dim_k: 128,
            head_dim_v: 128,
            head_dim_stated: false,
            n_rot: 128,
            n_vocab: 32000,
            n_ctx_train: 32768,
            n_expert,
            n_expert_used: n_expert.min(2),
            rms_eps: 1e-5,
            rope: Rope { freq_base: 10000.0, scaling: RopeScaling::None },
            sliding_window: None,
        }
    }

    fn layers_with(ty: TensorType, role: TensorRole, file_type: FileType, h: &HyperParams) -> Vec<u32> {
        let recipe = Recipe::new(file_type, h, false);
        let of = |layer: &u32| {
            let id = TensorId::in_layer(role, *layer);
            recipe.tensor_type(&id, &id.ne(h)) == ty
        };
        (0..h.n_layer).filter(of).collect()
    }

    /// The layers that published Q4_K_M files of 32-layer models have in Q6_K.
    const MORE_BITS_OF_32: &[u32] = &[0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31];

    #[test]
    fn a_third_of_the_layers_and_both_ends_get_more_bits() {
        let h = model(32, 4);
        for role in [TensorRole::AttnV, TensorRole::FfnDownExps] {
            assert_eq!(layers_with(Q6_K, role, FileType::Q4_K_M, &h), MORE_BITS_OF_32);
            assert_eq!(layers_with(Q6_K, role, FileType::Q5_K_M, &h), MORE_BITS_OF_32);
        }
        assert_eq!(layers_with(Q5_K, TensorRole::AttnV, FileType::Q4_K_S, &h), [0, 1, 2, 3]);
        assert_eq!(layers_with(Q5_K, TensorRole::FfnDownExps, FileType::Q4_K_S, &h), [0, 1, 2, 3]);
        assert!(layers_with(Q6_K, TensorRole::FfnUpExps, FileType::Q4_K_M, &h).is_empty());
    }

    #[test]
    fn exactly_eight_experts_change_attention() {
        let type_of = |n_expert: u32, role: TensorRole, ft: FileType| {
            let h = model(32, n_expert);
            let id = TensorId::in_layer(role, 5);
            Recipe::new(ft, &h, false).tensor_type(&id, &id.ne(&h))
        };
        for n in [0, 2, 3, 4, 6, 16] {
            assert_eq!(type_of(n, TensorRole::AttnV, FileType::Q4_K_M), Q4_K, "{n} experts");
            assert_eq!(type_of(n, TensorRole::AttnK, FileType::Q4_K_M), Q4_K, "{n} experts");
            assert_eq!(type_of(n, TensorRole::AttnOutput, FileType::Q4_K_M), Q4_K, "{n} experts");
        }
        assert_eq!(type_of(8, TensorRole::AttnV, FileType::Q4_K_M), Q8_0);
        assert_eq!(type_of(8, TensorRole::AttnK, FileType::Q4_K_M), Q8_0);
        assert_eq!(type_of(8, TensorRole::AttnOutput, FileType::Q4_K_M), Q5_K);
        assert_eq!(type_of(8, TensorRole::AttnQ, FileType::Q4_K_M), Q4_K);
        assert_eq!(type_of(8, TensorRole::AttnOutput, FileType::Q5_K_M), Q5_K);
        assert_eq!(type_of(8, TensorRole::AttnOutput, FileType::Q6_K), Q6_K);
    }

    #[test]
    fn the_output_matrix_or_the_tied_embeddings_get_q6_k() {
        let h = model(32, 4);
        let (output, embeddings) =
            (TensorId::global(TensorRole::Output), TensorId::global(TensorRole::TokenEmbd));
        let ne = output.ne(&h);
        for (ft, expected) in [(FileType::Q4_K_M, Q6_K), (FileType::Q4_0, Q6_K), (FileType::Q8_0, Q8_0)] {
            assert_eq!(Recipe::new(ft, &h, false).tensor_type(&output, &ne), expected);
            assert_eq!(Recipe::new(ft, &h, true).tensor_type(&embeddings, &ne), expected);
        }
        assert_eq!(Recipe::new(FileType::Q4_K_M, &h, false).tensor_type(&embeddings, &ne), Q4_K);
        assert_eq!(Recipe::new(FileType::BF16, &h, true).tensor_type(&embeddings, &ne), BF16);
    }

    #[test]
    fn rows_that_blocks_do_not_divide_fall_back() {
        assert_eq!(fit_to_row(Q4_K, 256), Q4_K);
        assert_eq!(fit_to_row(Q4_K, 96), Q5_0);
        assert_eq!(fit_to_row(Q5_K, 96), Q5_1);
        assert_eq!(fit_to_row(Q6_K, 96), Q8_0);
        assert_eq!(fit_to_row(Q3_K, 96), Q4_0);
        assert_eq!(fit_to_row(TensorType::Q2_K, 96), Q4_0);
        assert_eq!(fit_to_row(Q8_0, 100), F16);
        assert_eq!(fit_to_row(Q4_K, 100), F16);
        // An output matrix goes to Q8_0 at once, from any type whose blocks do not fit.
        let h = HyperParams { n_embd: 96, ..model(4, 0) };
        let id = TensorId::global(TensorRole::Output);
        assert_eq!(Recipe::new(FileType::Q4_K_M, &h, false).tensor_type(&id, &[96, 1000]), Q8_0);
    }

    #[test]
    fn vectors_and_the_router_stay_in_f32() {
        let h = model(4, 4);
        for ft in file_types() {
            let recipe = Recipe::new(ft, &h, false);
            for role in [TensorRole::AttnNorm, TensorRole::FfnNorm, TensorRole::FfnGateInp] {
                let id = TensorId::in_layer(role, 0);
                assert_eq!(recipe.tensor_type(&id, &id.ne(&h)), F32, "{ft}");
            }
            let bias = TensorId { kind: TensorKind::Bias, ..TensorId::in_layer(TensorRole::AttnQ, 0) };
            assert_eq!(recipe.tensor_type(&bias, &bias.ne(&h)), F32, "{ft}");
        }
    }
}
