//! Experts that are read while they are used: the answers of a model in memory, bit by bit.

use crate::fixture::*;
use convert::ExpertLayout::{Split, Stacked};
use quants::TensorType;
use runtime::{Kernels, Logits, Model, ModelOptions, Session, SessionOptions};
use std::path::Path;
use std::sync::Arc;

fn resident(path: &Path) -> Arc<Model> {
    load(path, &ModelOptions { kernels: Some(Kernels::Bruce), ..plain() })
}

fn streaming(pool_bytes: u64) -> ModelOptions {
    ModelOptions { expert_pool_bytes: Some(pool_bytes), ..plain() }
}

/// The least pool that the model runs with, as the error about a smaller one says.
pub fn least_pool(path: &Path) -> u64 {
    match Model::load(path, &streaming(1), &mut ()).err() {
        Some(runtime::Error::ExpertPool(expert_pool::Error::TooSmall { needed_bytes, found_bytes: 1 })) => {
            needed_bytes
        }
        other => panic!("a pool of one byte: {other:?}"),
    }
}

/// Logits of every token of a prompt, read in micro-batches of `n_ubatch` by `n_threads` threads, and of four more.
fn logits(model: &Arc<Model>, n_ubatch: u32, n_threads: u32) -> Vec<Vec<f32>> {
    let options = SessionOptions { n_ubatch, n_threads, n_threads_batch: n_threads, ..session_options() };
    let mut session = Session::new(model, &options).expect("a session");
    let mut all = Vec::new();
    // Longer than a batch that counts as a sweep.
    let text = prompt(model).repeat(1 + 34 / prompt(model).len());
    for (tokens, wanted) in [(&text[..], Logits::All), (&text[..1], Logits::Last), (&text[3..6], Logits::All)]
    {
        session.decode(tokens, wanted).expect("read");
        all.extend((0..session.n_outputs()).map(|token| session.logits(token).to_vec()));
    }
    all
}

fn assert_same(path: &Path, what: &str) {
    const SHAPES: [(u32, u32); 3] = [(512, 1), (1, 1), (7, 2)];
    let model = resident(path);
    let expected = SHAPES.map(|(n_ubatch, n_threads)| logits(&model, n_ubatch, n_threads));
    let least = least_pool(path);
    let all = std::fs::metadata(path).expect("it is there").len();
    for pool in [least, least + (all - least.min(all)) / 3, all] {
        let model = load(path, &streaming(pool));
        for ((n_ubatch, n_threads), expected) in SHAPES.iter().zip(&expected) {
            let found = logits(&model, *n_ubatch, *n_threads);
            assert!(
                found == *expected,
                "{what}: {pool} bytes, micro-batches of {n_ubatch}, {n_threads} threads"
            );
        }
        let statistics = model.expert_pool().expect("it is streamed").statistics();
        assert!(statistics.asked_bytes() > 0 && statistics.read_bytes > 0, "{statistics:?}");
        if pool == least && least < all / 2 {
            assert!(statistics.needed_bytes() > statistics.hit_bytes, "{statistics:?}");
        }
    }
}

#[test]
fn streamed_experts_change_no_bit() {
    for (file_type, layout) in [("q4_k", Stacked), ("q4_k", Split), ("f32", Stacked), ("q8_0", Split)] {
        let file = tiny_moe(file_type, layout);
        assert_same(&file.path, &format!("{file_type}, {layout:?}"));
    }
}

/// Prompts of several micro-batches: the last token's logits, which depend on all before it.
fn last_logits(model: &Arc<Model>, n_batch: u32) -> Vec<Vec<f32>> {
    let options = SessionOptions { n_batch, n_ubatch: 10, ..session_options() };
    let mut session = Session::new(model, &options).expect("a session");
    let text: Vec<u32> = prompt(model).into_iter().cycle().take(145).collect();
    let (first, second) = text.split_at(63);
    let of_prompts = [first, second, &text[..1]].map(|tokens| {
        session.decode(tokens, Logits::Last).expect("read");
        session.logits(0).to_vec()
    });
    of_prompts.to_vec()
}

#[test]
fn prompts_that_pass_layer_by_layer_change_no_bit_and_are_read_once() {
    for (file_type, layout) in [("q4_k", Stacked), ("f32", Split)] {
        let file = tiny_moe(file_type, layout);
        let expected = last_logits(&resident(&file.path), 2048);
        let least = least_pool(&file.path);
        let all = std::fs::metadata(&file.path).expect("it is there").len();
        for pool in [least, least + all / 3, all] {
            let read = [10, 40, 2048].map(|n_batch| {
                let model = load(&file.path, &streaming(pool));
                let found = last_logits(&model, n_batch);
                assert!(found == expected, "{file_type}: {pool} bytes, batches of {n_batch}");
                model.expert_pool().expect("it is streamed").statistics().needed_bytes()
            });
            let [by_ten, _, together] = read;
            assert!(read.iter().all(|bytes| pool < all || *bytes <= all), "{file_type}: {read:?}");
            assert!(pool == all || by_ten * 2 > together * 3, "{file_type}: {pool} bytes: {read:?}");
        }
    }
}

#[test]
fn experts_of_mixed_types_are_streamed() {
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
    assert_same(&mixed.path, "mixed types");
}

#[test]
fn a_file_truncated_while_it_is_used_is_an_error_that_names_it() {
    let file = tiny_moe("f32", Stacked);
    let model = load(&file.path, &streaming(least_pool(&file.path)));
    let mut session = session(&model);
    session.decode(&prompt(&model), Logits::Last).expect("read");
    let whole = std::fs::read(&file.path).expect("it is there");
    let cut = std::fs::OpenOptions::new().write(true).open(&file.path).expect("it is there");
    cut.set_len(whole.len() as u64 / 4).expect("cut");
    let n_past = session.n_past();
    let error = session.decode(&prompt(&model), Logits::Last).expect_err("most experts are gone").to_string();
    assert!(error.contains(&file.path.display().to_string()) && error.contains("truncated"), "{error}");
    // Embeddings are read first.
    assert!(error.contains("token_embd.weight") || error.contains("ffn_"), "{error}");
    assert_eq!(session.n_past(), n_past);

    // Nothing is broken for good.
    std::fs::write(&file.path, whole).expect("written");
    session.decode(&prompt(&model), Logits::Last).expect("read again");
}

#[test]
fn a_stopped_session_says_so_and_goes_on() {
    let file = tiny_moe("q4_k", Stacked);
    let model = load(&file.path, &streaming(least_pool(&file.path)));
    let mut session = session(&model);
    session.stop_flag().store(true, std::sync::atomic::Ordering::Relaxed);
    let stopped = session.decode(&prompt(&model), Logits::Last);
    assert!(matches!(stopped, Err(runtime::Error::Stopped)), "{stopped:?}");
    session.stop_flag().store(false, std::sync::atomic::Ordering::Relaxed);
    session.decode(&prompt(&model), Logits::Last).expect("read");
}

#[test]
fn what_can_not_be_streamed_is_refused() {
    let file = tiny_moe("q4_k", Stacked);
    let error = Model::load(&file.path, &streaming(1), &mut ()).err().expect("too small").to_string();
    assert!(
        error.contains("--expert-pool") && error.contains("found 1 bytes") && error.contains("at least"),
        "{error}"
    );
    let ggml = ModelOptions { kernels: Some(Kernels::Ggml), ..streaming(1 << 30) };
    let error = Model::load(&file.path, &ggml, &mut ()).err().expect("ggml's kernels").to_string();
    assert!(error.contains("--kernels bruce"), "{error}");

    let split = tiny_moe("f32", Split);
    let unknown = rewrite(
        &split.path,
        |_| {},
        |name| {
            if name.contains("ffn_up.1.") { Edit::Retype(TensorType::Q4_1) } else { Edit::Keep }
        },
    );
    if !quants::matmul::supports(TensorType::Q4_1) {
        let error = Model::load(&unknown.path, &streaming(1 << 30), &mut ()).err().expect("no kernel");
        let error = error.to_string();
        assert!(error.contains("ffn_up.1") && error.contains("Q4_1"), "{error}");
    }
    let model = load(&file.path, &streaming(1 << 30));
    let mut session = session(&model);
    let error = session.decode_observed(&[1], Logits::None, &mut |_| ()).expect_err("ggml's kernels");
    assert!(error.to_string().contains("--expert-pool"), "{error}");
}
