//! What is written into the graph of a batch.

use crate::graph::BatchGraph;
use std::ops::Range;

/// Writes the inputs of a graph for tokens behind `n_past` others. `rows` are theirs among the embeddings, `window` how far back
/// each sees.
pub(super) fn fill(current: &BatchGraph, rows: &[i32], n_past: usize, window: Option<usize>) {
    let mut rest = rows;
    for (inputs, batch) in current.inputs.iter().zip(&current.shape.micro_batches) {
        let first = n_past + rows.len() - rest.len();
        let (rows, after) = rest.split_at(batch.n_tokens);
        rest = after;
        let positions = first..first + batch.n_tokens;
        inputs.tokens.write_values(rows);
        inputs.positions.write_values(&positions.clone().map(|p| p as i32).collect::<Vec<_>>());
        inputs.cells.write_values(&positions.clone().map(|p| p as i64).collect::<Vec<_>>());
        if let Some(mask) = &inputs.mask {
            mask.write_values(&causal_mask(positions, batch.n_kv, window));
        }
        if let Some(outputs) = &inputs.outputs {
            let first = batch.n_tokens - current.shape.n_outputs;
            outputs.write_values(&(first..batch.n_tokens).map(|i| i as i32).collect::<Vec<_>>());
        }
    }
}

const F16_ZERO: u16 = 0;
const F16_MINUS_INFINITY: u16 = 0xfc00;

/// `[n_kv, n_tokens]`: each token sees the cells up to its own position, and no further back than the window.
fn causal_mask(positions: Range<usize>, n_kv: usize, window: Option<usize>) -> Vec<u16> {
    let mut mask = vec![F16_MINUS_INFINITY; n_kv * positions.len()];
    for (row, position) in mask.chunks_exact_mut(n_kv).zip(positions) {
        let first = window.map_or(0, |w| (position + 1).saturating_sub(w));
        row[first..=position].fill(F16_ZERO);
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_sees_itself_and_what_came_before() {
        let (o, x) = (F16_ZERO, F16_MINUS_INFINITY);
        assert_eq!(causal_mask(1..3, 4, None), [o, o, x, x, o, o, o, x]);
        assert_eq!(causal_mask(0..1, 2, None), [o, x]);
    }

    #[test]
    fn a_window_hides_what_is_further_back() {
        let (o, x) = (F16_ZERO, F16_MINUS_INFINITY);
        assert_eq!(causal_mask(2..4, 4, Some(2)), [x, o, o, x, x, x, o, o]);
    }
}
