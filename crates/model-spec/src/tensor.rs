//! Which tensor is meant: its role, its GGUF name, its shape.
//!
//! Shapes follow ggml: `ne[0]` is the contiguous axis, so a matrix that maps `n_in` values to `n_out`
//! has `ne = [n_in, n_out]`. Experts come in two layouts. Stacked, one tensor holds all of them with
//! `ne = [n_in, n_out, n_expert]` (`blk.N.ffn_up_exps.weight`); split, each expert is a tensor of its own
//! (`blk.N.ffn_up.E.weight`), as Mixtral files of early 2024 have it.

use crate::HyperParams;

/// What a tensor does in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TensorRole {
    /// Token embeddings, `[n_embd, n_vocab]`.
    TokenEmbd,
    /// Norm before the output matrix, `[n_embd]`.
    OutputNorm,
    /// Output matrix, `[n_embd, n_vocab]`; absent where it is tied to the embeddings.
    Output,
    /// Divisors of the rotary frequencies, `[n_rot / 2]` (Llama 3 scaling).
    RopeFreqs,
    /// Norm before attention, `[n_embd]`.
    AttnNorm,
    /// Query projection, `[n_embd, head_dim_k * n_head]`.
    AttnQ,
    /// Key projection, `[n_embd, head_dim_k * n_head_kv]`.
    AttnK,
    /// Value projection, `[n_embd, head_dim_v * n_head_kv]`.
    AttnV,
    /// Output projection of attention, `[head_dim_v * n_head, n_embd]`.
    AttnOutput,
    /// Norm before the feed-forward network, `[n_embd]`.
    FfnNorm,
    /// The router, `[n_embd, n_expert]`.
    FfnGateInp,
    /// Gate projection of the dense network or of one expert, `[n_embd, n_ff]`.
    FfnGate,
    /// Up projection of the dense network or of one expert, `[n_embd, n_ff]`.
    FfnUp,
    /// Down projection of the dense network or of one expert, `[n_ff, n_embd]`.
    FfnDown,
    /// Gate projections of all experts, `[n_embd, n_ff, n_expert]`.
    FfnGateExps,
    /// Up projections of all experts, `[n_embd, n_ff, n_expert]`.
    FfnUpExps,
    /// Down projections of all experts, `[n_ff, n_embd, n_expert]`.
    FfnDownExps,
}

use TensorRole::*;

/// Role, the middle of its GGUF name, and whether it occurs in every layer.
const NAMES: &[(TensorRole, &str, bool)] = &[
    (TokenEmbd, "token_embd", false),
    (OutputNorm, "output_norm", false),
    (Output, "output", false),
    (RopeFreqs, "rope_freqs", false),
    (AttnNorm, "attn_norm", true),
    (AttnQ, "attn_q", true),
    (AttnK, "attn_k", true),
    (AttnV, "attn_v", true),
    (AttnOutput, "attn_output", true),
    (FfnNorm, "ffn_norm", true),
    (FfnGateInp, "ffn_gate_inp", true),
    (FfnGate, "ffn_gate", true),
    (FfnUp, "ffn_up", true),
    (FfnDown, "ffn_down", true),
    (FfnGateExps, "ffn_gate_exps", true),
    (FfnUpExps, "ffn_up_exps", true),
    (FfnDownExps, "ffn_down_exps", true),
];

impl TensorRole {
    /// Every role, those outside the layers first.
    pub fn all() -> impl Iterator<Item = TensorRole> {
        NAMES.iter().map(|row| row.0)
    }

    /// The middle of the GGUF name: `attn_q`.
    pub fn base_name(self) -> &'static str {
        self.row().1
    }

    /// Whether there is one in every layer.
    pub fn is_per_layer(self) -> bool {
        self.row().2
    }

    /// Whether this is a norm; norms are vectors and stay in F32.
    pub fn is_norm(self) -> bool {
        matches!(self, OutputNorm | AttnNorm | FfnNorm)
    }

    /// Whether this is one of the three projections of a feed-forward network, of one expert where there
    /// are any.
    pub fn is_ffn_projection(self) -> bool {
        matches!(self, FfnGate | FfnUp | FfnDown)
    }

    /// The stacked tensor that holds this projection of every expert; `None` where there is none.
    pub fn stacked(self) -> Option<TensorRole> {
        match self {
            FfnGate => Some(FfnGateExps),
            FfnUp => Some(FfnUpExps),
            FfnDown => Some(FfnDownExps),
            _ => None,
        }
    }

    /// The projection of one expert that this stacked tensor holds; `None` where it is not stacked.
    pub fn unstacked(self) -> Option<TensorRole> {
        match self {
            FfnGateExps => Some(FfnGate),
            FfnUpExps => Some(FfnUp),
            FfnDownExps => Some(FfnDown),
            _ => None,
        }
    }

    fn row(self) -> &'static (TensorRole, &'static str, bool) {
        NAMES.iter().find(|row| row.0 == self).expect("every role is in the table")
    }
}

/// Weight or bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TensorKind {
    /// The matrix or, for norms, the vector of factors.
    Weight,
    /// The vector that is added.
    Bias,
}

/// Names one tensor of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId {
    /// What it does.
    pub role: TensorRole,
    /// Its layer, for roles that occur in every layer.
    pub layer: Option<u32>,
    /// Its expert, for one expert's projection.
    pub expert: Option<u32>,
    /// Weight or bias.
    pub kind: TensorKind,
}

impl TensorId {
    /// The weight of a role outside the layers.
    pub const fn global(role: TensorRole) -> Self {
        TensorId { role, layer: None, expert: None, kind: TensorKind::Weight }
    }

    /// The weight of a role in a layer.
    pub const fn in_layer(role: TensorRole, layer: u32) -> Self {
        TensorId { role, layer: Some(layer), expert: None, kind: TensorKind::Weight }
    }

    /// The weight of one expert's projection.
    pub const fn of_expert(role: TensorRole, layer: u32, expert: u32) -> Self {
        TensorId { role, layer: Some(layer), expert: Some(expert), kind: TensorKind::Weight }
    }

    /// The GGUF name: `output.weight`, `blk.3.attn_q.weight`, `blk.3.ffn_up.1.weight`.
    pub fn name(&self) -> String {
        let base = self.role.base_name();
        let suffix = match self.kind {
            TensorKind::Weight => "weight",
            TensorKind::Bias => "bias",
        };
        match (self.layer, self.expert) {
            (None, _) => format!("{base}.{suffix}"),
            (Some(layer), None) => format!("blk.{layer}.{base}.{suffix}"),
            (Some(layer), Some(expert)) => format!("blk.{layer}.{base}.{expert}.{suffix}"),
        }
    }

    /// Whether it holds a projection of experts: of one, or of all of a layer in a stack.
    pub fn is_expert(&self) -> bool {
        self.expert.is_some() || self.role.unstacked().is_some()
    }

    /// The tensor that a GGUF name means; `None` for names that are not of this architecture.
    ///
    /// Only the canonical spelling is taken (`blk.01.` is not), so `name` gives the same text back.
    pub fn parse(name: &str) -> Option<TensorId> {
        let parts: Vec<&str> = name.split('.').collect();
        let (layer, base, expert, suffix) = match parts[..] {
            [base, suffix] => (None, base, None, suffix),
            ["blk", layer, base, suffix] => (Some(index(layer)?), base, None, suffix),
            ["blk", layer, base, expert, suffix] => (Some(index(layer)?), base, Some(index(expert)?), suffix),
            _ => return None,
        };
        let kind = match suffix {
            "weight" => TensorKind::Weight,
            "bias" => TensorKind::Bias,
            _ => return None,
        };
        let &(role, _, per_layer) = NAMES.iter().find(|row| row.1 == base)?;
        let fits = per_layer == layer.is_some() && (expert.is_none() || role.is_ffn_projection());
        fits.then_some(TensorId { role, layer, expert, kind })
    }

    /// The shape this tensor has in such a model, `ne[0]` the contiguous axis.
    pub fn ne(&self, hparams: &HyperParams) -> Vec<u64> {
        let n = |v: u32| u64::from(v);
        let h = hparams;
        let (n_embd, n_ff, n_expert) = (n(h.n_embd), n(h.n_ff), n(h.n_expert));
        let weight = match self.role {
            TokenEmbd | Output => vec![n_embd, n(h.n_vocab)],
            OutputNorm | AttnNorm | FfnNorm => vec![n_embd],
            RopeFreqs => vec![n(h.n_rot) / 2],
            AttnQ => vec![n_embd, n(h.head_dim_k) * n(h.n_head)],
            AttnK => vec![n_embd, n(h.head_dim_k) * n(h.n_head_kv)],
            AttnV => vec![n_embd, n(h.head_dim_v) * n(h.n_head_kv)],
            AttnOutput => vec![n(h.head_dim_v) * n(h.n_head), n_embd],
            FfnGateInp => vec![n_embd, n_expert],
            FfnGate | FfnUp => vec![n_embd, n_ff],
            FfnDown => vec![n_ff, n_embd],
            FfnGateExps | FfnUpExps => vec![n_embd, n_ff, n_expert],
            FfnDownExps => vec![n_ff, n_embd, n_expert],
        };
        match self.kind {
            TensorKind::Weight => weight,
            TensorKind::Bias if weight.len() > 1 => weight[1..].to_vec(),
            TensorKind::Bias => weight,
        }
    }
}

/// A decimal index without sign or leading zeros.
fn index(text: &str) -> Option<u32> {
    let canonical = text == "0" || !text.starts_with('0');
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if canonical && digits { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways_for_every_role() {
        for role in TensorRole::all() {
            for kind in [TensorKind::Weight, TensorKind::Bias] {
                let layer = role.is_per_layer().then_some(17);
                let mut ids = vec![TensorId { role, layer, expert: None, kind }];
                if role.is_ffn_projection() {
                    ids.push(TensorId { role, layer, expert: Some(3), kind });
                }
                for id in ids {
                    assert_eq!(TensorId::parse(&id.name()), Some(id), "{}", id.name());
                }
            }
        }
    }

    #[test]
    fn names_are_those_of_llama_cpp() {
        assert_eq!(TensorId::global(Output).name(), "output.weight");
        assert_eq!(TensorId::in_layer(FfnDownExps, 31).name(), "blk.31.ffn_down_exps.weight");
        assert_eq!(TensorId::of_expert(FfnUp, 0, 7).name(), "blk.0.ffn_up.7.weight");
    }

    #[test]
    fn other_names_are_not_taken() {
        for name in [
            "",
            "output",
            "output.weights",
            "blk.0.output.weight",
            "attn_q.weight",
            "blk..attn_q.weight",
            "blk.01.attn_q.weight",
            "blk.+1.attn_q.weight",
            "blk.4294967296.attn_q.weight",
            "blk.0.attn_q.1.weight",
            "blk.0.ffn_up_exps.1.weight",
            "blk.0.ffn_up.1.2.weight",
        ] {
            assert_eq!(TensorId::parse(name), None, "{name}");
        }
    }
}
