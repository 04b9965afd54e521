//! A look at what weights are multiplied with, while a batch is computed.

use crate::graph::Tap;

/// What a weight, or several, is multiplied with in one micro-batch.
pub struct MatrixInput<'a> {
    /// Names of the weights as in a model file; all experts of a projection under the name of the stacked tensor
    /// (`blk.0.ffn_up_exps.weight`), whichever way the file stores them.
    pub weights: &'a [String],
    /// `[n_in, n_rows]`.
    pub values: &'a [f32],
    /// Extent of a row.
    pub n_in: usize,
    /// For weights that are experts: which ones are multiplied with.
    pub experts: Option<ExpertRows<'a>>,
}

/// Which experts multiply with which rows of a [`MatrixInput`].
#[derive(Clone, Copy, Debug)]
pub struct ExpertRows<'a> {
    /// `[n_used, n_tokens]`: each token's experts, each below `n_expert`. There is a row for each of them, or one for
    /// each token that all its experts share.
    pub ids: &'a [i32],
    /// Experts that a token takes.
    pub n_used: usize,
    /// Experts that there are.
    pub n_expert: usize,
}

/// Called with every input of a matrix product while a batch is computed.
pub type Observer<'a> = &'a mut dyn FnMut(&MatrixInput<'_>);

/// Copies the input of a matrix product to the host and shows it.
pub(super) fn show(tap: &Tap, n_expert: usize, observer: Observer<'_>) {
    let mut values = vec![0f32; tap.x.n_elements()];
    tap.x.read_values(0, &mut values);
    let mut ids = vec![0i32; tap.ids.as_ref().map_or(0, |ids| ids.n_elements())];
    if let Some(tensor) = &tap.ids {
        tensor.read_values(0, &mut ids);
    }
    let n_used = tap.ids.as_ref().map_or(0, |ids| ids.ne()[0]);
    observer(&MatrixInput {
        weights: &tap.weights,
        values: &values,
        n_in: tap.x.ne()[0],
        experts: tap.ids.as_ref().map(|_| ExpertRows { ids: &ids, n_used, n_expert }),
    });
}
