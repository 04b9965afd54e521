//! How likely a token takes each expert, from a trace of real text.

use anyhow::{Context, anyhow};
use routing::Trace;
use std::path::Path;

/// For each layer the chance of each expert; empty for layers that the trace has nothing about.
///
/// # Errors
/// Where the file can't be read, is no trace, or is one of another model.
pub fn of_file(path: &Path, n_layer: u32, n_expert: u32) -> Result<Vec<Vec<f64>>, anyhow::Error> {
    let text = std::fs::read_to_string(path).context("cannot read")?;
    let trace = Trace::from_json(&text)?;
    if trace.n_expert != n_expert as usize {
        return Err(anyhow!("n_expert: found {}, expected {n_expert}, as in the model", trace.n_expert));
    }
    if let Some(layer) = trace.layers.iter().find(|layer| layer.layer >= n_layer as usize) {
        return Err(anyhow!("layer: found {}, expected one of the model's {n_layer}", layer.layer));
    }
    Ok(of_trace(&trace, n_layer as usize))
}

fn of_trace(trace: &Trace, n_layer: usize) -> Vec<Vec<f64>> {
    let mut chances = vec![Vec::new(); n_layer];
    for layer in &trace.layers {
        let mut counts = vec![0u64; trace.n_expert];
        layer.experts.iter().for_each(|expert| counts[*expert as usize] += 1);
        let n_tokens = trace.n_tokens().max(1) as f64;
        chances[layer.layer] = counts.iter().map(|n| *n as f64 / n_tokens).collect();
    }
    chances
}

#[cfg(test)]
mod tests {
    use super::*;
    use routing::{LayerTrace, Report};

    fn trace() -> Trace {
        Trace {
            n_expert: 3,
            n_used: 2,
            tokens: vec![1, 2],
            sequences: vec![2],
            layers: vec![LayerTrace {
                layer: 1,
                experts: vec![0, 2, 2, 1],
                weights: vec![0.5; 4],
                early: None,
            }],
            ..Trace::default()
        }
    }

    #[test]
    fn chances_are_tokens_that_take_an_expert() {
        assert_eq!(of_trace(&trace(), 2), [vec![], vec![0.5, 0.5, 1.0]]);
    }

    #[test]
    fn a_trace_of_another_model_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), trace().to_json(&Report::new(&trace()))).expect("written");
        assert!(of_file(file.path(), 2, 3).is_ok());
        let refused =
            |n_layer, n_expert| of_file(file.path(), n_layer, n_expert).expect_err("refused").to_string();
        assert!(refused(2, 4).starts_with("n_expert: found 3, expected 4"));
        assert!(refused(1, 3).starts_with("layer: found 1"));
    }
}
