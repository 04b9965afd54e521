//! Log-probabilities of tiny-moe, against those that Hugging Face transformers computes in float32
//! (`tests/golden/hf-tiny-moe.json`, written by `tools/make-hf-fixture.py`).

use crate::answer::{ask, ids};
use crate::support::{golden, quantized};
use serde_json::Value;

const N_TOP: usize = 8;

/// Follows the fixture's greedy continuations; every log-probability of the likeliest tokens within `tolerance`.
fn compare(file_type: &str, tolerance: f64) {
    let Some(model) = quantized("tinymoe", file_type) else { return };
    let fixture: Value = serde_json::from_str(&golden("hf-tiny-moe.json")).expect("JSON");
    for prompt in fixture["prompts"].as_array().expect("a list") {
        let text = prompt["text"].as_str().expect("a text");
        let (prompt_ids, generated) = (ids(&prompt["ids"]), ids(&prompt["generated"]));
        let flags = ["-ctk", "f32", "-ctv", "f32"];
        let ours = ask(&model, text, generated.len(), 2 * N_TOP, &flags);
        assert_eq!(ours.prompt, prompt_ids, "{text:?}");
        for (i, step) in ours.steps.iter().enumerate() {
            // The logits after token k say what token k + 1 is.
            let theirs = &prompt["positions"][prompt_ids.len() - 1 + i];
            let logsumexp = theirs["logsumexp"].as_f64().expect("a number");
            for pair in theirs["top"].as_array().expect("a list") {
                let id = pair[0].as_u64().expect("an id");
                let expected = pair[1].as_f64().expect("a number") - logsumexp;
                let found = step.top.iter().find(|(other, _)| *other == id).map(|(_, logprob)| *logprob);
                let near = found.is_some_and(|found| (found - expected).abs() <= tolerance);
                assert!(
                    near,
                    "{file_type}: {text:?}: token {i}: id {id}: found {found:?}, expected {expected:.5}"
                );
            }
            assert_eq!(step.id, generated[i], "{file_type}: {text:?}: token {i}");
        }
    }
}

#[test]
fn f32_is_exact_but_for_the_order_of_sums() {
    compare("F32", 2e-3);
}

#[test]
fn bf16_is_off_by_the_rounding_of_activations() {
    compare("BF16", 0.1);
}
