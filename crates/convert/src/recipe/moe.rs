//! A recipe for models with experts, at the size of llama.cpp's.
//!
//! llama.cpp raises the attention of a model with exactly eight experts. But in any such model every token goes through
//! all of attention and only some of the experts, and attention is a small part of the file. So here attention gets
//! [`ATTENTION`] whatever the number of experts; the bits come from the experts' down projections, which get the file's
//! own type, as llama.cpp gives them more of. What is left is given back to the down projections, the outermost layers
//! first; what is missing is taken from the gate and up projections, the innermost layers first.

use model_spec::TensorRole;
use quants::TensorType;

use super::{Recipe, Untyped, fit_to_row, is_quantizable};

/// What attention gets.
const ATTENTION: TensorType = TensorType::Q8_0;

/// Types by size, each with the next smaller one that experts bear.
const SMALLER: &[(TensorType, TensorType)] = &[
    (TensorType::Q8_0, TensorType::Q6_K),
    (TensorType::Q6_K, TensorType::Q5_K),
    (TensorType::Q5_K, TensorType::Q4_K),
    (TensorType::Q4_K, TensorType::IQ4_XS),
    (TensorType::IQ4_XS, TensorType::Q3_K),
];

impl Recipe<'_> {
    /// `types`, which llama.cpp's rules chose, shifted from experts to attention without growing the file, except where
    /// a rule of the user's says otherwise. Models without experts and files that are not quantized stay as they are.
    pub(super) fn favour_shared(&self, tensors: &[Untyped], types: &mut [TensorType]) {
        let default = self.file_type.default_type();
        if self.hparams.n_expert < 2 || !default.is_quantized() {
            return;
        }
        let size = |i: usize, ty: TensorType| {
            let (row, ne) = (tensors[i].ne[0], &tensors[i].ne);
            ty.row_bytes(row).unwrap_or(u64::MAX / 4).saturating_mul(ne[1..].iter().product())
        };
        let is_free = |i: &usize| {
            let id = &tensors[*i].id;
            is_quantizable(id, &tensors[*i].ne)
                && !self.rules.chosen.contains_key(id)
                && self.rules.named(id).is_none()
        };
        let theirs = types.to_vec();
        let free: Vec<usize> = (0..tensors.len()).filter(is_free).collect();
        for &i in &free {
            let n_cols = tensors[i].ne[0];
            match tensors[i].id.role {
                TensorRole::AttnQ | TensorRole::AttnK | TensorRole::AttnV | TensorRole::AttnOutput => {
                    let wanted = fit_to_row(ATTENTION, n_cols);
                    if size(i, wanted) > size(i, types[i]) {
                        types[i] = wanted;
                    }
                }
                TensorRole::FfnDown | TensorRole::FfnDownExps => {
                    let wanted = fit_to_row(default, n_cols);
                    if size(i, wanted) < size(i, types[i]) {
                        types[i] = wanted;
                    }
                }
                _ => {}
            }
        }
        let total = |types: &[TensorType]| types.iter().enumerate().map(|(i, ty)| size(i, *ty)).sum::<u64>();
        let (budget, mut now) = (total(&theirs), total(types));

        // How far from the ends of the model a layer is.
        let depth = |i: usize| {
            let layer = tensors[i].id.layer.unwrap_or(0);
            layer.min(self.hparams.n_layer.saturating_sub(1 + layer))
        };
        let of_role = |roles: &[TensorRole]| -> Vec<usize> {
            free.iter().copied().filter(|i| roles.contains(&tensors[*i].id.role)).collect()
        };
        let mut downs = of_role(&[TensorRole::FfnDown, TensorRole::FfnDownExps]);
        let mut others = of_role(&[
            TensorRole::FfnGate,
            TensorRole::FfnUp,
            TensorRole::FfnGateExps,
            TensorRole::FfnUpExps,
        ]);
        downs.sort_by_key(|i| depth(*i));
        others.sort_by_key(|i| std::cmp::Reverse(depth(*i)));
        for i in downs {
            let more = size(i, theirs[i]).saturating_sub(size(i, types[i]));
            if now + more <= budget {
                types[i] = if more > 0 { theirs[i] } else { types[i] };
                now += more;
            }
        }
        for i in others {
            if now <= budget {
                break;
            }
            let Some((_, smaller)) = SMALLER.iter().find(|(ty, _)| *ty == types[i]) else { continue };
            let smaller = fit_to_row(*smaller, tensors[i].ne[0]);
            let less = size(i, types[i]).saturating_sub(size(i, smaller));
            if less > 0 {
                types[i] = smaller;
                now -= less;
            }
        }
        // Where the experts' type can't be lowered, attention takes what there is room for.
        let mut attention =
            of_role(&[TensorRole::AttnQ, TensorRole::AttnK, TensorRole::AttnV, TensorRole::AttnOutput]);
        attention.sort_by_key(|i| std::cmp::Reverse((size(*i, types[*i]), depth(*i))));
        for i in attention {
            if now <= budget {
                break;
            }
            now -= size(i, types[i]).saturating_sub(size(i, theirs[i]));
            types[i] = theirs[i];
        }
    }
}
