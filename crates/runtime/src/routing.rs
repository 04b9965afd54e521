//! What the routers of a session decided, token by token.

use crate::graph::RouterOutputs;

/// One layer's decisions for the tokens of one micro-batch.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerRouting {
    /// Index of the layer in the model.
    pub layer: usize,
    /// Tokens of the micro-batch.
    pub n_tokens: usize,
    /// `[n_tokens][n_expert]`: the probability of each expert; they sum to 1 for each token.
    pub probabilities: Vec<f32>,
    /// `[n_tokens][n_used]`: the experts taken, the likeliest first.
    pub experts: Vec<u32>,
    /// `[n_tokens][n_used]`: the experts this layer's norm and router choose from the state that the router before it sees.
    /// `None` for the first layer.
    pub early: Option<Vec<u32>>,
}

impl LayerRouting {
    /// Reads the outputs of a computed graph.
    pub(crate) fn read(outputs: &RouterOutputs) -> LayerRouting {
        let ids = |tensor: &ggml::Tensor| {
            let mut ids = vec![0i32; tensor.n_elements()];
            tensor.read_values(0, &mut ids);
            // A NaN among the probabilities sorts somewhere, but never leaves the range of indices.
            ids.into_iter().map(|id| id as u32).collect::<Vec<u32>>()
        };
        let mut probabilities = vec![0.0; outputs.probabilities.n_elements()];
        outputs.probabilities.read_values(0, &mut probabilities);
        LayerRouting {
            layer: outputs.layer,
            n_tokens: outputs.probabilities.ne()[1],
            probabilities,
            experts: ids(&outputs.ids),
            early: outputs.early.as_ref().map(ids),
        }
    }

    /// `[n_tokens][n_used]`: the weights that the experts taken are added up with, which sum to 1 for each token.
    pub fn weights(&self) -> Vec<f32> {
        let n_expert = self.probabilities.len() / self.n_tokens;
        let n_used = self.experts.len() / self.n_tokens;
        let tokens = self.probabilities.chunks_exact(n_expert).zip(self.experts.chunks_exact(n_used));
        let mut weights = Vec::with_capacity(self.experts.len());
        for (probabilities, experts) in tokens {
            let taken = experts.iter().map(|expert| probabilities[*expert as usize]);
            let sum = taken.clone().sum::<f32>().max(f32::MIN_POSITIVE);
            weights.extend(taken.map(|p| p / sum));
        }
        weights
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_the_experts_taken_sum_to_one() {
        let routing = LayerRouting {
            layer: 0,
            n_tokens: 2,
            probabilities: vec![0.125, 0.5, 0.25, 0.125, 0.0, 0.0, 0.0, 1.0],
            experts: vec![1, 2, 3, 0],
            early: None,
        };
        assert_eq!(routing.weights(), [0.5 / 0.75, 0.25 / 0.75, 1.0, 0.0]);
    }
}
