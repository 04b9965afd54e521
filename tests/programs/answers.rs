//! Greedy answers of `bruce-run`, against those that llama.cpp gave (`tests/golden`).

use crate::answer::{Answer, N_TOP, Step, Tolerance, agree, ask, ask_with, ids, tokenize};
use crate::support::{bruce_run, golden_lines, quantized, root, succeed};

/// Follows the golden answers of smol4x until the two part at a near tie.
fn compare(file_type: &str, tolerance: Tolerance) {
    let Some(model) = quantized("smol4x", file_type) else { return };
    let mut n_compared = 0;
    for golden in golden_lines(&format!("greedy-smol4x-{file_type}.jsonl")) {
        let prompt = golden["prompt"].as_str().expect("a prompt");
        let n = golden["tokens"].as_array().expect("a list").len();
        let ours = ask(&model, prompt, n, N_TOP, &[]);
        for (i, (ours, theirs)) in
            ours.steps.iter().zip(golden["probs"].as_array().expect("a list")).enumerate()
        {
            let theirs = Step::from_json(theirs);
            agree(ours, &theirs, tolerance)
                .unwrap_or_else(|e| panic!("{file_type}: {prompt:?}: token {i}: {e}"));
            n_compared += 1;
            if ours.id != theirs.id {
                break;
            }
        }
    }
    assert!(n_compared > 64, "only {n_compared} tokens were compared");
}

#[test]
fn bf16_answers_as_llama_cpp_does() {
    compare("BF16", Tolerance { lead: 1e-3, probability: 0.02 });
}

#[test]
fn q4_k_m_answers_as_llama_cpp_does() {
    compare("Q4_K_M", Tolerance { lead: 1e-3, probability: 0.02 });
}

#[test]
fn the_capital_of_france_is_paris() {
    let Some(model) = quantized("smol4x", "Q4_K_M") else { return };
    let answer = succeed(bruce_run().arg(&model).args([
        "-p",
        "What is the capital of France?",
        "-n",
        "32",
        "--temp",
        "0",
    ]));
    assert!(answer.contains("Paris"), "{answer}");
}

#[test]
fn the_same_seed_gives_the_same_text_and_another_seed_another() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let say = |seed: &str| {
        succeed(bruce_run().arg(&model).args([
            "-p",
            "In the beginning",
            "-n",
            "32",
            "--temp",
            "1.5",
            "-s",
            seed,
        ]))
    };
    assert_eq!(say("7"), say("7"));
    assert_ne!(say("7"), say("8"));
}

#[test]
fn token_ids_are_those_of_the_original_tokenizers() {
    // The Mistral ids were made with control tokens as plain text, the others with control tokens recognised.
    for (model, golden, special) in
        [("tiny4", "tokens-mistral-v1.jsonl", false), ("smol4x", "tokens-smollm2.jsonl", true)]
    {
        let Some(file) = quantized(model, "Q8_0") else { continue };
        for line in golden_lines(golden) {
            let text = line["text"].as_str().expect("a text");
            assert_eq!(tokenize(&file, text, special), ids(&line["ids"]), "{model}: {text:?}");
        }
    }
}

#[test]
fn perplexity_is_llama_perplexitys() {
    // Those of `llama-perplexity -c 256`, as tests/golden/README.md says.
    for (file_type, expected) in [("BF16", 37.493), ("Q8_0", 37.468), ("Q4_K_M", 37.727)] {
        let Some(model) = quantized("tinymoe", file_type) else { return };
        // Our own kernels round otherwise: within a tenth of a percent.
        for (kernels, bound) in [("ggml", 0.02), ("bruce", 0.037)] {
            let mut command = bruce_run();
            command.arg("perplexity").arg(&model).arg("-f").arg(root().join("models/tiny-moe/heldout.txt"));
            command.args(["-c", "256", "--json", "--kernels", kernels]);
            let report: serde_json::Value = serde_json::from_str(&succeed(&mut command)).expect("JSON");
            let found = report["perplexity"].as_f64().expect("a number");
            let difference = (found - expected).abs();
            assert!(difference < bound, "{file_type}, {kernels}: found {found:.4}, expected {expected}");
        }
    }
}

/// Drafts from the text so far are only taken where the model would have said the same.
#[test]
fn look_up_changes_no_token() {
    let Some(model) = quantized("tinymoe", "Q4_K_M") else { return };
    let prompt = "And God said, Let there be light: and there was light. And God said, Let there be";
    for flags in [&[][..], &["--ubatch-size", "3"]] {
        let plain = ask_with("bruce", &model, prompt, 120, N_TOP, flags);
        let drafted = ask_with("bruce", &model, prompt, 120, N_TOP, &[flags, &["--lookup"]].concat());
        let ids = |answer: &Answer| answer.steps.iter().map(|step| step.id).collect::<Vec<_>>();
        assert_eq!(ids(&plain), ids(&drafted));
    }
}

/// As above, where the context is so long that ggml's attention would depend on the batch.
#[test]
fn look_up_changes_no_token_in_a_long_context() {
    let Some(model) = quantized("tinymoe", "Q4_K_M") else { return };
    let text = std::fs::read_to_string(root().join("models/tiny-moe/heldout.txt")).expect("a text");
    let prompt: String = text.chars().take(2600).collect();
    for cache in ["f16", "q8_0"] {
        let flags = ["-c", "2048", "-t", "2", "--ignore-eos", "-ctk", cache, "-ctv", cache];
        let plain = ask_with("bruce", &model, &prompt, 48, N_TOP, &flags);
        let drafted = ask_with("bruce", &model, &prompt, 48, N_TOP, &[&flags[..], &["--lookup"]].concat());
        assert!(plain.prompt.len() > 512, "only {} tokens", plain.prompt.len());
        let ids = |answer: &Answer| answer.steps.iter().map(|step| step.id).collect::<Vec<_>>();
        assert_eq!(ids(&plain), ids(&drafted), "{cache}");
    }
}
