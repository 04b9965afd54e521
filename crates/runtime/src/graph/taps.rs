//! Where the inputs of matrix products can be looked at while a graph is computed.

use ggml::{Graph, Tensor};
use model_spec::{TensorId, TensorRole};

/// The input of one or several matrix products.
pub(crate) struct Tap {
    /// The node after which `x` and `ids` are in place.
    pub ready: Tensor,
    /// `[n_in, n_tokens]`, or `[n_in, n_used, n_tokens]` where each chosen expert has an input of its own; F32.
    pub x: Tensor,
    /// `[n_used, n_tokens]`, I32: the experts each token takes, where experts are multiplied with.
    pub ids: Option<Tensor>,
    /// The weights that are multiplied with it; all experts of a projection under the name of the stacked tensor.
    pub weights: Vec<String>,
}

/// The taps of a graph being built; none where nobody will look.
pub(super) struct Taps {
    list: Option<Vec<Tap>>,
    layer: u32,
}

impl Taps {
    /// No taps yet.
    pub fn new(wanted: bool) -> Taps {
        Taps { list: wanted.then(Vec::new), layer: 0 }
    }

    /// What follows belongs to this layer.
    pub fn enter(&mut self, layer: usize) {
        self.layer = layer as u32;
    }

    /// `x` is multiplied with these weights of the layer.
    pub fn layer_input(&mut self, x: &Tensor, roles: &[TensorRole]) {
        let name = |role: &TensorRole| TensorId::in_layer(*role, self.layer).name();
        let weights = roles.iter().map(name).collect();
        self.push(Tap { ready: x.clone(), x: x.clone(), ids: None, weights });
    }

    /// `x` is multiplied with the chosen experts of these stacked weights, as soon as `ready` is.
    pub fn expert_input(&mut self, ready: &Tensor, x: &Tensor, ids: &Tensor, roles: &[TensorRole]) {
        let name = |role: &TensorRole| TensorId::in_layer(*role, self.layer).name();
        let weights = roles.iter().map(name).collect();
        self.push(Tap { ready: ready.clone(), x: x.clone(), ids: Some(ids.clone()), weights });
    }

    /// `x` is multiplied with a weight outside of the layers.
    pub fn global_input(&mut self, x: &Tensor, role: TensorRole) {
        let weights = vec![TensorId::global(role).name()];
        self.push(Tap { ready: x.clone(), x: x.clone(), ids: None, weights });
    }

    /// The chosen experts in a place of their own, which they keep until the graph is computed; `None` where nobody will
    /// look. `ids: [n_used, n_tokens]` may be a view of more.
    pub fn keep_ids(&self, g: &Graph, ids: &Tensor) -> Option<Tensor> {
        self.list.as_ref()?;
        let kept = g.contiguous(ids);
        g.output(&kept);
        Some(kept)
    }

    fn push(&mut self, tap: Tap) {
        if let Some(list) = &mut self.list {
            list.push(tap);
        }
    }

    /// All taps.
    pub fn finish(self) -> Vec<Tap> {
        self.list.unwrap_or_default()
    }
}
