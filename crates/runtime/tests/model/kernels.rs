//! The kernels of this program beside ggml's, and beside themselves under other threads and batches.

use crate::fixture::*;
use convert::ExpertLayout::{Split, Stacked};
use quants::TensorType;
use runtime::residency::{PlacementOptions, Repack};
use runtime::{Kernels, Logits, Model, ModelOptions, Session, SessionOptions};
use std::path::Path;
use std::sync::Arc;

fn with(path: &Path, kernels: Kernels) -> Arc<Model> {
    load(path, &ModelOptions { kernels: Some(kernels), ..plain() })
}

/// A cache of F32, with which ggml's attention does not round queries and probabilities to F16.
fn exact_session(model: &Arc<Model>) -> Session {
    let (type_k, type_v) = (TensorType::F32, TensorType::F32);
    Session::new(model, &SessionOptions { type_k, type_v, ..session_options() }).expect("a session")
}

/// Logits of every token of the prompt, read in micro-batches of `n_ubatch` by `n_threads` threads.
fn all_logits(model: &Arc<Model>, n_ubatch: u32, n_threads: u32) -> Vec<Vec<f32>> {
    let options = SessionOptions { n_ubatch, n_threads, n_threads_batch: n_threads, ..session_options() };
    let mut session = Session::new(model, &options).expect("a session");
    session.decode(&prompt(model), Logits::All).expect("read");
    (0..session.n_outputs()).map(|token| session.logits(token).to_vec()).collect()
}

#[test]
fn both_kernels_compute_the_same_but_for_rounding() {
    for (file_type, bound) in [("f32", 1e-3), ("f16", 0.05), ("q8_0", 0.3), ("q4_k", 0.5), ("q6_k", 0.3)] {
        for layout in [Stacked, Split] {
            let file = tiny_moe(file_type, layout);
            let model = with(&file.path, Kernels::Bruce);
            let ours = answers(&model, &mut exact_session(&model));
            let model = with(&file.path, Kernels::Ggml);
            let worst = difference(&ours, &answers(&model, &mut exact_session(&model)));
            assert!(worst < bound, "{file_type}, {layout:?}: a logit differs by {worst}");
            assert!(worst > 0.0, "{file_type}, {layout:?}: ours were not used");
        }
    }
}

/// Speculation without loss, and answers that don't depend on the machine, rest on this.
#[test]
fn threads_and_batches_change_no_bit() {
    for file_type in ["q4_k", "f32"] {
        let file = tiny_moe(file_type, Stacked);
        let model = with(&file.path, Kernels::Bruce);
        let one_by_one = all_logits(&model, 1, 1);
        for (n_ubatch, n_threads) in [(1, 2), (1, 3), (2, 1), (3, 2), (7, 1), (512, 1), (512, 3)] {
            let found = all_logits(&model, n_ubatch, n_threads);
            let worst = difference(&one_by_one, &found);
            assert_eq!(worst, 0.0, "{file_type}: micro-batches of {n_ubatch}, {n_threads} threads");
        }
    }
}

#[test]
fn experts_that_take_other_activations_share_a_layer() {
    let split = tiny_moe("f32", Split);
    let mixed = rewrite(
        &split.path,
        |_| {},
        |name| {
            let q8_0 =
                name.contains("ffn_up.1.") || name.contains("ffn_down.2.") || name.contains("ffn_gate.0.");
            if q8_0 { Edit::Retype(TensorType::Q8_0) } else { Edit::Keep }
        },
    );
    let model = with(&mixed.path, Kernels::Bruce);
    let ours = answers(&model, &mut session(&model));
    let model = with(&mixed.path, Kernels::Ggml);
    let worst = difference(&ours, &answers(&model, &mut session(&model)));
    assert!(worst > 0.0 && worst < 0.1, "a logit differs by {worst}");
}

/// One expert for each token, all of them, and a number between.
#[test]
fn any_number_of_experts_is_summed_up() {
    let file = tiny_moe("f32", Stacked);
    for n in [1, 3, 4] {
        let on = |kernels| {
            let options = ModelOptions { kernels: Some(kernels), n_expert_used: Some(n), ..plain() };
            let model = load(&file.path, &options);
            answers(&model, &mut exact_session(&model))
        };
        let worst = difference(&on(Kernels::Bruce), &on(Kernels::Ggml));
        assert!(worst < 1e-3, "{n} experts: a logit differs by {worst}");
    }
}

#[test]
fn weights_that_ours_read_are_not_copied_to_be_repacked() {
    let file = tiny_moe("q4_k", Stacked);
    let automatic = |kernels| {
        let placement = PlacementOptions { repack: Repack::Auto, ..Default::default() };
        load(&file.path, &ModelOptions { kernels: Some(kernels), placement, ..Default::default() })
    };
    let model = automatic(Kernels::Bruce);
    assert_eq!(model.sizes(), [("CPU".to_owned(), model.size_bytes())]);
    let asked_for = PlacementOptions { repack: Repack::On, ..Default::default() };
    let model = load(&file.path, &ModelOptions { placement: asked_for, ..Default::default() });
    assert!(model.sizes().len() > 1, "{:?}", model.sizes());
}

#[test]
fn small_models_keep_the_kernels_of_llama_cpp() {
    let file = tiny_moe("q4_k", Stacked);
    assert_eq!(load(&file.path, &ModelOptions::default()).kernels(), Kernels::Ggml);
    assert_eq!(Kernels::for_weights((128 << 20) - 1), Kernels::Ggml);
    assert_eq!(Kernels::for_weights(128 << 20), Kernels::Bruce);
}
