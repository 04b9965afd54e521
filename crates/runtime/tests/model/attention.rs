//! Our attention at contexts of several blocks, and beside ggml's.

use crate::fixture::*;
use convert::ExpertLayout::Stacked;
use quants::TensorType;
use runtime::{Kernels, Logits, Model, ModelOptions, Session, SessionOptions};
use std::sync::Arc;

/// Longer than where ggml begins to split attention over threads.
const N_TOKENS: usize = 600;

fn with(kernels: Kernels) -> ModelOptions {
    ModelOptions { kernels: Some(kernels), ..plain() }
}

fn text(model: &Model) -> Vec<u32> {
    let ids = prompt(model);
    ids.iter().cycle().take(N_TOKENS).copied().collect()
}

/// Logits of the last nine tokens of a long text, these in batches of `n_batch`.
fn last_logits(model: &Arc<Model>, options: SessionOptions, n_batch: usize) -> Vec<Vec<f32>> {
    let mut session = Session::new(model, &SessionOptions { n_ctx: 768, ..options }).expect("a session");
    let ids = text(model);
    let (before, last) = ids.split_at(N_TOKENS - 9);
    session.decode(before, Logits::None).expect("read");
    let mut logits = Vec::new();
    for batch in last.chunks(n_batch) {
        session.decode(batch, Logits::All).expect("read");
        logits.extend((0..session.n_outputs()).map(|token| session.logits(token).to_vec()));
    }
    logits
}

#[test]
fn long_contexts_do_not_depend_on_batches_and_threads_either() {
    let file = tiny_moe("q4_k", Stacked);
    let model = load(&file.path, &with(Kernels::Bruce));
    for ty in [TensorType::F16, TensorType::Q8_0] {
        let options = |n_ubatch: u32, n: u32| SessionOptions {
            type_k: ty,
            type_v: ty,
            n_ubatch,
            n_threads: n,
            n_threads_batch: n,
            ..session_options()
        };
        let one_by_one = last_logits(&model, options(512, 1), 1);
        for (n_ubatch, n_threads, n_batch) in [(512, 1, 9), (100, 2, 4)] {
            let found = last_logits(&model, options(n_ubatch, n_threads), n_batch);
            let worst = difference(&one_by_one, &found);
            assert_eq!(worst, 0.0, "{}: batches of {n_batch}, {n_threads} threads", ty.name());
        }
    }
}

#[test]
fn attention_is_ggmls_but_for_rounding() {
    let file = tiny_moe("f32", Stacked);
    let windowed = rewrite(
        &file.path,
        |metadata| metadata.set(model_spec::keys::SLIDING_WINDOW, 70_u32),
        |_| Edit::Keep,
    );
    let f32 = TensorType::F32;
    let whole = |options: &SessionOptions| {
        let ours = last_logits(&load(&file.path, &with(Kernels::Bruce)), options.clone(), 9);
        let theirs = last_logits(&load(&file.path, &with(Kernels::Ggml)), options.clone(), 9);
        (difference(&ours, &theirs), ours)
    };
    let (worst, all) = whole(&SessionOptions { type_k: f32, type_v: f32, ..session_options() });
    assert!(worst < 1e-3, "a logit differs by {worst}");
    let (worst, _) = whole(&session_options());
    assert!(worst < 0.05, "F16: a logit differs by {worst}");

    let options = SessionOptions { type_k: f32, type_v: f32, ..session_options() };
    let ours = last_logits(&load(&windowed.path, &with(Kernels::Bruce)), options.clone(), 9);
    let theirs = last_logits(&load(&windowed.path, &with(Kernels::Ggml)), options, 9);
    let worst = difference(&ours, &theirs);
    assert!(worst < 1e-3, "with a window, a logit differs by {worst}");
    assert!(difference(&ours, &all) > 0.01, "the window hides nothing");
}
