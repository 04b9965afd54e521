//! Sessions: batches, the cache, and what ends them.

use crate::fixture::*;
use convert::ExpertLayout::Stacked;
use quants::TensorType;
use runtime::{Error, Logits, Session, SessionOptions};
use std::sync::atomic::Ordering;

#[test]
fn the_size_of_micro_batches_does_not_matter() {
    let file = tiny_moe("f32", Stacked);
    let model = load(&file.path, &plain());
    let expected = answers(&model, &mut session(&model));
    for n_ubatch in [1, 5] {
        let mut session =
            Session::new(&model, &SessionOptions { n_ubatch, ..session_options() }).expect("a session");
        let worst = difference(&expected, &answers(&model, &mut session));
        assert!(worst < 0.02, "micro-batches of {n_ubatch} moved a logit by {worst}");
    }
}

#[test]
fn all_logits_are_those_of_each_prefix() {
    let file = tiny_moe("f32", Stacked);
    let model = load(&file.path, &plain());
    let ids = prompt(&model);
    let mut whole = session(&model);
    whole.decode(&ids, Logits::All).expect("read");
    assert_eq!(whole.n_outputs(), ids.len());
    let mut step = session(&model);
    for (position, id) in ids.iter().enumerate() {
        step.decode(&[*id], Logits::Last).expect("read");
        let worst = difference(&[whole.logits(position).to_vec()], &[step.logits(0).to_vec()]);
        assert!(worst < 0.02, "position {position}: {worst}");
    }
}

#[test]
fn tokens_read_without_logits_are_remembered() {
    let file = tiny_moe("q8_0", Stacked);
    let model = load(&file.path, &plain());
    let ids = prompt(&model);
    let (last, before) = ids.split_last().expect("a prompt");
    let (mut silent, mut loud) = (session(&model), session(&model));
    silent.decode(before, Logits::None).expect("read");
    assert_eq!(silent.n_outputs(), 0);
    loud.decode(before, Logits::Last).expect("read");
    silent.decode(&[*last], Logits::Last).expect("read");
    loud.decode(&[*last], Logits::Last).expect("read");
    assert_eq!(difference(&[silent.logits(0).to_vec()], &[loud.logits(0).to_vec()]), 0.0);
}

#[test]
fn what_is_truncated_leaves_no_trace() {
    let file = tiny_moe("q4_k", Stacked);
    let model = load(&file.path, &plain());
    let mut session = session(&model);
    let first = answers(&model, &mut session);
    session.decode(&[5, 6, 7], Logits::None).expect("read");
    session.truncate(0);
    assert_eq!(session.n_past(), 0);
    assert_eq!(difference(&first, &answers(&model, &mut session)), 0.0);
}

#[test]
fn attention_is_the_same_in_one_pass_or_in_steps_and_close_with_a_smaller_cache() {
    let file = tiny_moe("f32", Stacked);
    let model = load(&file.path, &plain());
    let expected = answers(&model, &mut session(&model));
    let with = |options: SessionOptions| {
        let mut session = Session::new(&model, &options).expect("a session");
        difference(&expected, &answers(&model, &mut session))
    };
    let f32 = TensorType::F32;
    assert!(with(SessionOptions { flash_attention: false, ..session_options() }) < 0.05);
    assert!(with(SessionOptions { type_k: f32, type_v: f32, ..session_options() }) < 0.05);
    let q8 = TensorType::Q8_0;
    let worst = with(SessionOptions { type_k: q8, type_v: q8, ..session_options() });
    assert!(worst > 0.0 && worst < 0.5, "{worst}");
}

#[test]
fn a_context_that_is_full_says_so_and_stays_usable() {
    let file = tiny_moe("q4_k", Stacked);
    let model = load(&file.path, &plain());
    let mut session = session(&model);
    let n_ctx = session.n_ctx();
    session.decode(&vec![3; n_ctx], Logits::Last).expect("exactly full");
    let error = session.decode(&[3], Logits::Last).expect_err("no room");
    assert!(matches!(error, Error::ContextFull { n_tokens: 1, .. }), "{error}");
    session.truncate(n_ctx - 1);
    session.decode(&[3], Logits::Last).expect("room again");
}

#[test]
fn a_token_outside_the_vocabulary_is_refused() {
    let file = tiny_moe("q4_k", Stacked);
    let model = load(&file.path, &plain());
    let mut session = session(&model);
    let error = session.decode(&[1, 2048], Logits::Last).expect_err("2048 entries");
    assert_eq!(error.to_string(), "token 2048 is outside the vocabulary of 2048");
    assert_eq!(session.n_past(), 0);
}

#[test]
fn a_stop_ends_the_computation_and_the_session_goes_on() {
    let file = tiny_moe("q4_k", Stacked);
    let model = load(&file.path, &plain());
    let mut session = session(&model);
    let stop = session.stop_flag();
    stop.store(true, Ordering::Relaxed);
    let error = session.decode(&prompt(&model), Logits::Last).expect_err("stopped");
    assert!(matches!(error, Error::Stopped), "{error}");
    stop.store(false, Ordering::Relaxed);
    let found = answers(&model, &mut session);
    assert_eq!(difference(&found, &answers(&model, &mut self::session(&model))), 0.0);
}

#[test]
fn an_absurd_context_is_an_error_that_says_what_it_needs() {
    let file = tiny_moe("q4_k", Stacked);
    let model = load(&file.path, &plain());
    let options = SessionOptions { n_ctx: 1 << 30, ..session_options() };
    let Err(error) = Session::new(&model, &options) else { panic!("a terabyte of cache") };
    let text = error.to_string();
    assert!(matches!(error, Error::ContextMemory { .. }) && text.contains("bytes"), "{text}");
}

#[test]
fn a_cache_type_that_does_not_fit_is_refused() {
    let file = tiny_moe("q4_k", Stacked);
    let model = load(&file.path, &plain());
    for (type_v, flash_attention) in [(TensorType::Q4_K, true), (TensorType::Q8_0, false)] {
        let options = SessionOptions { type_v, flash_attention, ..session_options() };
        let Err(error) = Session::new(&model, &options) else { panic!("{type_v:?}") };
        assert!(error.to_string().starts_with("--cache-type-v: found"), "{error}");
    }
}

#[test]
fn a_record_of_the_routing_changes_no_answer_and_covers_every_token() {
    let file = tiny_moe("q4_k", Stacked);
    let model = load(&file.path, &plain());
    let n_layers = model.hparams().n_layer as usize;
    let ids = prompt(&model);
    let mut silent = session(&model);
    silent.decode(&ids, Logits::Last).expect("read");
    let options = SessionOptions { n_ubatch: 5, ..session_options() };
    let mut whole = Session::new(&model, &session_options()).expect("a session");
    let mut pieces = Session::new(&model, &options).expect("a session");
    for session in [&mut whole, &mut pieces] {
        session.record_routing(true);
        session.decode(&ids, Logits::None).expect("read");
    }
    let (routing, in_pieces) = (whole.take_routing(), pieces.take_routing());
    assert!(whole.take_routing().is_empty(), "taken");
    assert_eq!(routing.len(), n_layers);
    assert_eq!(in_pieces.len(), n_layers * ids.len().div_ceil(5));
    for (index, layer) in routing.iter().enumerate() {
        assert_eq!((layer.layer, layer.n_tokens, layer.experts.len()), (index, ids.len(), 2 * ids.len()));
        assert_eq!(layer.early.is_some(), index > 0);
        for (token, (p, taken)) in layer.probabilities.chunks(4).zip(layer.experts.chunks(2)).enumerate() {
            assert!((p.iter().sum::<f32>() - 1.0).abs() < 1e-5, "layer {index}, token {token}: {p:?}");
            let mut order: Vec<u32> = (0..4).collect();
            order.sort_by(|a, b| p[*b as usize].total_cmp(&p[*a as usize]));
            assert_eq!(taken, &order[..2], "layer {index}, token {token}");
        }
        let same = in_pieces.iter().filter(|piece| piece.layer == index);
        let pieced: Vec<u32> = same.flat_map(|piece| piece.experts.clone()).collect();
        let moved = pieced.iter().zip(&layer.experts).filter(|(a, b)| a != b).count();
        assert!(moved <= 2, "layer {index}: {moved} choices differ between micro-batches");
    }
    // The same answer after a record as without one.
    whole.truncate(0);
    whole.decode(&ids, Logits::Last).expect("read");
    assert_eq!(difference(&[silent.logits(0).to_vec()], &[whole.logits(0).to_vec()]), 0.0);
    whole.record_routing(false);
    whole.truncate(0);
    whole.decode(&ids, Logits::Last).expect("read");
    assert_eq!(difference(&[silent.logits(0).to_vec()], &[whole.logits(0).to_vec()]), 0.0);
    assert!(whole.take_routing().is_empty());
}
