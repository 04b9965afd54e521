//! Which tensor of a file gets which type.
//!
//! The rules are llama-quantize's (llama.cpp, src/llama-quant.cpp, `llama_tensor_get_type`) for files of the Llama
//! architecture, so that a file made here equals one made there tensor by tensor. They rest on three ideas: attention
//! values and the down projections hurt most when rounded, the first and last eighth of the layers and every third
//! between deserve more bits, and a model with exactly eight experts can afford a large type for its few attention
//! weights. What a user asks for ([`Rules`]) goes before them.

pub(crate) mod budget;
mod experts;
mod rules;
pub(crate) mod sensitivity;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use model_spec::{FileType, FileType as Ft, HyperParams, TensorId, TensorKind, TensorRole};
use quants::TensorType;

pub use experts::ExpertTypes;
pub use rules::{RuleError, Rules, TypeRule, tensor_type};

use TensorType::*;

/// A tensor that waits for a type.
#[derive(Debug, Clone)]
pub struct Untyped {
    /// Which tensor it is.
    pub id: TensorId,
    /// Its shape, `ne[0]` contiguous.
    pub ne: Vec<u64>,
    /// The type it keeps where it is not to be quantized, though it could be.
    pub kept: TensorType,
}

/// Chooses the types of one file's tensors.
#[derive(Debug, Clone, Copy)]
pub struct Recipe<'a> {
    /// What most tensors follow.
    pub file_type: FileType,
    /// The model's numbers.
    pub hparams: &'a HyperParams,
    /// Whether the file has no output matrix, so that the embeddings do its work.
    pub tied: bool,
    /// Whether there are importances, with which smaller types are good enough here and there.
    pub has_importance: bool,
    /// What the user asks for.
    pub rules: &'a Rules,
    /// Types that were worked out for single tensors; they go before all rules but those for the embeddings and the output
    /// matrix.
    pub chosen: Option<&'a BTreeMap<TensorId, TensorType>>,
}

impl Recipe<'_> {
    /// The type of each tensor.
    ///
    /// llama.cpp counts the tensors of a kind that it chose a type for, and mostly takes the count for the layer. Where
    /// a rule has named one before, it is not counted; so the whole file is looked at, in llama.cpp's order.
    pub fn types(&self, tensors: &[Untyped]) -> Vec<TensorType> {
        let mut order: Vec<usize> = (0..tensors.len()).collect();
        order.sort_by_cached_key(|i| (tensors[*i].id.layer, tensors[*i].id.name()));
        let mut types = vec![F32; tensors.len()];
        let mut counts = Counts::default();
        for i in order {
            types[i] = self.tensor_type(&tensors[i], &mut counts);
        }
        types
    }

    fn tensor_type(&self, tensor: &Untyped, counts: &mut Counts) -> TensorType {
        let (id, n_cols) = (&tensor.id, tensor.ne[0]);
        if !is_quantizable(id, &tensor.ne) {
            return F32;
        }
        let rules = self.rules;
        let default = self.file_type.default_type();
        let by_role = match id.role {
            TensorRole::Output if rules.leave_output => return tensor.kept,
            TensorRole::Output => rules.output_type,
            TensorRole::TokenEmbd => rules.token_embedding_type,
            _ => None,
        };
        if let Some(ty) = by_role {
            return fit_to_row(ty, n_cols);
        }
        if let Some(ty) = self.chosen.and_then(|chosen| chosen.get(id)) {
            return fit_to_row(*ty, n_cols);
        }
        if !default.is_quantized() {
            return default;
        }
        let wanted = match rules.named(id) {
            Some(ty) => ty,
            None if rules.pure => default,
            None => self.preferred(id, default, n_cols, counts),
        };
        fit_to_row(wanted, n_cols)
    }

    /// The type by role and layer alone, before the row length is looked at.
    fn preferred(&self, id: &TensorId, default: TensorType, n_cols: u64, counts: &mut Counts) -> TensorType {
        let layer = id.layer.unwrap_or(0);
        let is_expert = self.hparams.n_expert > 1 && id.is_expert();
        // With experts, the layer comes from the tensor's name.
        let of_ffn = |count: &mut Count| {
            let counted = count.next(layer);
            if self.hparams.n_expert > 1 { (layer, counted) } else { (counted, counted) }
        };
        match id.role {
            TensorRole::Output => self.output(default, n_cols),
            TensorRole::TokenEmbd if self.tied => self.output(default, n_cols),
            _ if self.file_type == Ft::MXFP4_MOE => {
                if is_expert {
                    MXFP4
                } else {
                    Q8_0
                }
            }
            TensorRole::TokenEmbd => self.token_embedding(default),
            TensorRole::AttnV => self.attention_value(default, counts.attn_v.next(layer)),
            TensorRole::AttnK => self.attention_key(default),
            TensorRole::AttnQ => self.attention_query(default),
            TensorRole::AttnOutput => self.attention_output(default),
            TensorRole::FfnDown | TensorRole::FfnDownExps => {
                let (layer, counted) = of_ffn(&mut counts.ffn_down);
                self.ffn_down(default, layer, counted)
            }
            TensorRole::FfnGate | TensorRole::FfnGateExps => {
                self.ffn_gate_or_up(default, of_ffn(&mut counts.ffn_gate).0)
            }
            TensorRole::FfnUp | TensorRole::FfnUpExps => {
                self.ffn_gate_or_up(default, of_ffn(&mut counts.ffn_up).0)
            }
            _ => default,
        }
    }

    /// Files of about 2.8 bits and fewer, which have rules of their own.
    fn is_tiny(&self) -> bool {
        matches!(self.file_type, Ft::IQ2_XXS | Ft::IQ2_XS | Ft::IQ2_S | Ft::IQ2_M | Ft::IQ1_S | Ft::IQ1_M)
    }

    /// Query heads per value head.
    fn n_gqa(&self) -> u32 {
        self.hparams.n_head.checked_div(self.hparams.n_head_kv).unwrap_or(0)
    }

    fn output(&self, default: TensorType, n_cols: u64) -> TensorType {
        match default {
            _ if self.file_type == Ft::MXFP4_MOE => Q8_0,
            _ if !n_cols.is_multiple_of(default.block_len() as u64) => Q8_0,
            _ if self.is_tiny() || self.file_type == Ft::IQ3_XXS => Q5_K,
            TensorType::Q8_0 => Q8_0,
            _ => Q6_K,
        }
    }

    fn token_embedding(&self, default: TensorType) -> TensorType {
        match self.file_type {
            Ft::IQ2_XXS | Ft::IQ2_XS | Ft::IQ1_S | Ft::IQ1_M => Q2_K,
            Ft::IQ2_S | Ft::IQ2_M | Ft::IQ3_XXS => IQ3_S,
            Ft::TQ1_0 | Ft::TQ2_0 | Ft::Q2_0 => Q4_K,
            _ => default,
        }
    }

    fn attention_value(&self, default: TensorType, i: u32) -> TensorType {
        let h = self.hparams;
        // Only four or more query heads per value head count as few values.
        let few_values = self.n_gqa() >= 4;
        if self.is_tiny() {
            return match self.file_type {
                _ if few_values || h.n_expert >= 4 => Q4_K,
                Ft::IQ2_S | Ft::IQ2_M => IQ3_S,
                _ => Q2_K,
            };
        }
        let chosen = match self.file_type {
            Ft::Q2_K if few_values => Q4_K,
            Ft::Q2_K => Q3_K,
            Ft::Q2_K_S | Ft::IQ3_XXS | Ft::IQ3_XS | Ft::IQ3_S if few_values => Q4_K,
            Ft::IQ3_XXS if !self.has_importance => IQ3_S,
            Ft::IQ3_XXS => IQ3_XXS,
            Ft::IQ3_M => Q4_K,
            Ft::Q3_K_M if i < 2 => Q5_K,
            Ft::Q3_K_M => Q4_K,
            Ft::Q3_K_L => Q5_K,
            Ft::IQ4_NL | Ft::IQ4_XS if few_values => Q5_K,
            Ft::Q4_K_M | Ft::Q5_K_M if deserves_more_bits(i, h.n_layer) => Q6_K,
            Ft::Q4_K_S if i < 4 => Q5_K,
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

    fn attention_key(&self, default: TensorType) -> TensorType {
        match self.file_type {
            _ if self.hparams.n_expert == 8 => {
                if self.is_tiny() {
                    Q4_K
                } else {
                    Q8_0
                }
            }
            _ => self.attention_query(default),
        }
    }

    fn attention_query(&self, default: TensorType) -> TensorType {
        match self.file_type {
            Ft::IQ3_XS => IQ3_XXS,
            Ft::IQ3_XXS => IQ2_S,
            _ => default,
        }
    }

    fn attention_output(&self, default: TensorType) -> TensorType {
        let eight_experts = self.hparams.n_expert == 8;
        match self.file_type {
            _ if eight_experts && self.is_tiny() => Q5_K,
            Ft::IQ1_S | Ft::IQ1_M => IQ2_XXS,
            Ft::IQ2_S | Ft::IQ2_M => IQ3_S,
            Ft::Q2_K
            | Ft::IQ3_XS
            | Ft::IQ3_XXS
            | Ft::Q3_K_S
            | Ft::Q3_K_M
            | Ft::IQ4_NL
            | Ft::Q4_K_S
            | Ft::Q4_K_M
            | Ft::IQ3_S
            | Ft::IQ3_M
            | Ft::IQ4_XS
                if eight_experts =>
            {
                Q5_K
            }
            _ if eight_experts => default,
            Ft::Q2_K => Q3_K,
            Ft::IQ3_XXS => IQ3_S,
            Ft::Q3_K_M | Ft::IQ3_M => Q4_K,
            Ft::Q3_K_L => Q5_K,
            _ => default,
        }
    }

    /// `counted` is how many before this one were chosen a type for.
    fn ffn_down(&self, default: TensorType, layer: u32, counted: u32) -> TensorType {
        let (n_layer, n_expert) = (self.hparams.n_layer, self.hparams.n_expert);
        let is_early = layer < n_layer / 8;
        match self.file_type {
            _ if self.is_tiny() => match self.file_type {
                _ if counted >= n_layer / 8 => default,
                Ft::IQ2_S | Ft::IQ2_M => IQ3_S,
                _ => Q2_K,
            },
            Ft::Q2_K => Q3_K,
            Ft::Q2_K_S if is_early => Q4_K,
            Ft::IQ3_XXS if !self.has_importance => {
                if is_early {
                    Q4_K
                } else {
                    Q3_K
                }
            }
            Ft::Q3_K_M if layer < n_layer / 16 => Q5_K,
            Ft::Q3_K_M => Q4_K,
            Ft::IQ3_M if is_early || (n_expert == 8 && deserves_more_bits(layer, n_layer)) => Q4_K,
            Ft::Q3_K_L => Q5_K,
            Ft::Q4_K_M | Ft::Q5_K_M if deserves_more_bits(layer, n_layer) => Q6_K,
            Ft::IQ4_NL | Ft::IQ4_XS if is_early && !self.has_importance => Q5_K,
            Ft::Q4_K_S if is_early => Q5_K,
            // The first layers go wrong in these types even with importances, and with minima only with them.
            Ft::Q4_0 if is_early && self.has_importance => Q4_1,
            Ft::Q5_0 if is_early && self.has_importance => Q5_1,
            _ => default,
        }
    }

    fn ffn_gate_or_up(&self, default: TensorType, layer: u32) -> TensorType {
        let n_layer = self.hparams.n_layer;
        match self.file_type {
            Ft::IQ3_XS if (n_layer / 8..7 * n_layer / 8).contains(&layer) => IQ3_XXS,
            _ => default,
        }
    }
}

/// How many tensors of each kind were chosen a type for.
#[derive(Default)]
struct Counts {
    attn_v: Count,
    ffn_down: Count,
    ffn_gate: Count,
    ffn_up: Count,
}

/// Layers seen so far; the experts of a layer count once, so that both expert layouts give the same types.
#[derive(Default)]
struct Count {
    layers: u32,
    last: Option<u32>,
}

impl Count {
    /// How many layers came before this one.
    fn next(&mut self, layer: u32) -> u32 {
        if self.last.replace(layer) != Some(layer) {
            self.layers += 1;
        }
        self.layers - 1
    }
}

/// Whether a tensor follows the recipe; norms, biases, the router and other vectors stay in F32.
///
/// llama.cpp counts dimensions without trailing ones, so a matrix of one row is a vector to it.
pub(crate) fn is_quantizable(id: &TensorId, ne: &[u64]) -> bool {
    let is_matrix = ne.iter().skip(1).any(|n| *n > 1);
    is_matrix && id.kind == TensorKind::Weight && id.role != TensorRole::FfnGateInp && !id.role.is_norm()
}

/// Whether a tensor of this type comes out as garbage without importances (`tensor_requires_imatrix`).
pub(crate) fn requires_importance(id: &TensorId, ty: TensorType, file_type: FileType) -> bool {
    if matches!(id.role, TensorRole::TokenEmbd | TensorRole::Output) {
        // There is hardly ever any for these; but some types can't be made at all.
        return matches!(ty, IQ2_XXS | IQ2_XS | IQ1_S);
    }
    match ty {
        IQ3_XXS | IQ2_XXS | IQ2_XS | IQ2_S | IQ1_M | IQ1_S => true,
        Q2_K => file_type == Ft::Q2_K_S,
        _ => false,
    }
}

/// The first and last eighth of the layers, and every third between.
fn deserves_more_bits(layer: u32, n_layer: u32) -> bool {
    let eighth = n_layer / 8;
    layer < eighth || layer >= 7 * n_layer / 8 || (layer - eighth) % 3 == 2
}

/// `wanted`, or a type of about the same size whose blocks divide the row, or F16.
pub(crate) fn fit_to_row(wanted: TensorType, n_cols: u64) -> TensorType {
    let fits = |t: TensorType| n_cols.is_multiple_of(t.block_len() as u64);
    if fits(wanted) {
        return wanted;
    }
    let smaller_blocks = match wanted {
        IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S | IQ4_XS => IQ4_NL,
        Q2_0 | Q2_K | Q3_K | TQ1_0 | TQ2_0 => Q4_0,
        Q4_K => Q5_0,
        Q5_K => Q5_1,
        Q6_K => Q8_0,
        // llama.cpp has no way out for Q1_0; the nearest of its others is as good.
        Q1_0 => Q4_0,
        other => other,
    };
    if fits(smaller_blocks) { smaller_blocks } else { F16 }
}
