//! Experts in slots on a device, the others on the host.
//!
//! The stand-in computes with ggml's kernels. So with ggml's kernels on the host, every product is the same wherever it is
//! computed and they are summed in the same order: answers to single tokens equal those without a device bit by bit. In
//! batches ggml chooses a kernel for each expert by how many rows it multiplies, and a device also multiplies rows whose
//! experts it doesn't have; so they are equal within rounding. With our kernels on the host, products and attention differ
//! by rounding too; what is computed in one place only is equal.

use crate::fixture::*;
use convert::ExpertLayout::{Split, Stacked};
use runtime::residency::{ExpertSlots, GpuLayers, PlacementOptions, Repack};
use runtime::{Error, Kernels, Logits, Model, ModelOptions, Session, SessionOptions, StageExperts};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

fn device(bytes: usize) -> String {
    stand_in(bytes).name()
}

fn options(device: &str, kernels: Kernels, slots: ExpertSlots) -> ModelOptions {
    ModelOptions {
        kernels: Some(kernels),
        placement: PlacementOptions {
            devices: Some(vec![device.to_owned()]),
            n_gpu_layers: GpuLayers::All,
            repack: Repack::Off,
            expert_slots: Some(slots),
            fixed_experts: true,
            ..Default::default()
        },
        ..Default::default()
    }
}

/// Tokens are read one by one.
fn answers_of(path: &Path, options: &ModelOptions) -> Vec<Vec<f32>> {
    let model = load(path, options);
    answers_by_token(&model)
}

fn answers_by_token(model: &Arc<Model>) -> Vec<Vec<f32>> {
    let how = SessionOptions { n_ubatch: 1, ..session_options() };
    answers(model, &mut Session::new(model, &how).expect("a session"))
}

/// The same on the host alone.
fn host(kernels: Kernels) -> ModelOptions {
    ModelOptions { kernels: Some(kernels), ..plain() }
}

/// Logits after each of `n` tokens of the prompt, read one by one and over again; `between` runs after each.
fn token_by_token(model: &Arc<Model>, n: usize, between: impl Fn()) -> Vec<Vec<f32>> {
    let mut session = session(model);
    let prompt = prompt(model);
    let tokens = prompt.iter().cycle().take(n);
    tokens
        .map(|token| {
            session.decode(&[*token], Logits::Last).expect("read");
            between();
            session.logits(0).to_vec()
        })
        .collect()
}

#[test]
fn every_number_of_slots_gives_the_answer_without_slots() {
    let device = device(64 << 20);
    for layout in [Stacked, Split] {
        let file = tiny_moe("q4_k", layout);
        let expected = answers_of(&file.path, &host(Kernels::Ggml));
        for n in 0..=4 {
            let found = answers_of(&file.path, &options(&device, Kernels::Ggml, ExpertSlots::Uniform(n)));
            assert_eq!(difference(&expected, &found), 0.0, "{n} slots, {layout:?}");
        }
        let uneven = ExpertSlots::Experts(vec![vec![3, 1], vec![], vec![2]]);
        let found = answers_of(&file.path, &options(&device, Kernels::Ggml, uneven));
        assert_eq!(difference(&expected, &found), 0.0, "{layout:?}");
    }
}

#[test]
fn missing_experts_are_computed_by_our_kernels() {
    let device = device(64 << 20);
    for (file_type, bound) in [("f32", 0.02), ("q4_k", 0.5)] {
        for layout in [Stacked, Split] {
            let file = tiny_moe(file_type, layout);
            let expected = answers_of(&file.path, &host(Kernels::Bruce));
            let on = |slots| options(&device, Kernels::Bruce, slots);
            for n in 1..4 {
                let model = load(&file.path, &on(ExpertSlots::Uniform(n)));
                let found = answers_by_token(&model);
                let worst = difference(&expected, &found);
                assert!(worst < bound, "{file_type}, {layout:?}, {n} slots: a logit differs by {worst}");
                let statistics = model.slots().expect("slots").statistics();
                assert!(statistics.hits > 0 && statistics.misses > 0, "{n} slots: {statistics:?}");
                assert_eq!((statistics.promotions, statistics.uploaded_bytes), (0, 0));
                assert!(model.slots().expect("slots").spares_the_cpu());
            }
            // No slots and slots for all are the placements that there were before.
            let mut without = on(ExpertSlots::Uniform(0));
            let none = answers_of(&file.path, &without);
            without.placement.expert_slots = None;
            let all = answers_of(&file.path, &without);
            without.placement.cpu_moe = true;
            assert_eq!(difference(&none, &answers_of(&file.path, &without)), 0.0, "{layout:?}");
            let slots_for_all = answers_of(&file.path, &on(ExpertSlots::Uniform(4)));
            assert_eq!(difference(&all, &slots_for_all), 0.0, "{layout:?}");
        }
    }
}

#[test]
fn slots_hold_as_much_memory_as_their_experts() {
    let device = device(64 << 20);
    let file = tiny_moe("q8_0", Stacked);
    let sizes = |n| load(&file.path, &options(&device, Kernels::Bruce, ExpertSlots::Uniform(n))).sizes();
    let on_device = |n| sizes(n).iter().find(|(name, _)| *name == device).expect("something").1;
    let one = on_device(1) - on_device(0);
    assert_eq!(on_device(3) - on_device(0), 3 * one);
    assert_eq!(on_device(4) - on_device(0), 4 * one);
    let host = |n| sizes(n).iter().find(|(name, _)| name == "CPU").expect("something").1;
    assert_eq!((host(0), host(0) - host(4)), (host(3), 4 * one));
}

#[test]
fn experts_of_several_types_have_slots_of_their_own() {
    let device = device(64 << 20);
    let mixed = mixed_types();
    let by_kernels = [Kernels::Ggml, Kernels::Bruce].map(|k| (k, answers_of(&mixed.path, &host(k))));
    for slots in [ExpertSlots::Uniform(3), ExpertSlots::Experts(vec![vec![2], vec![3, 1, 0], vec![1, 2]])] {
        for (kernels, expected) in &by_kernels {
            let found = answers_of(&mixed.path, &options(&device, *kernels, slots.clone()));
            let worst = difference(expected, &found);
            let bound = if *kernels == Kernels::Ggml { 0.0 } else { 0.1 };
            assert!(worst <= bound, "{kernels:?}, {slots:?}: a logit differs by {worst}");
        }
    }
}

/// Batches of all sizes, those that the device takes over with the host's weights among them.
#[test]
fn batches_use_slots_or_none() {
    let device = device(64 << 20);
    let file = tiny_moe("q4_k", Stacked);
    let all = |options: &ModelOptions, n_ubatch, offload| {
        let model = load(&file.path, options);
        let how = SessionOptions { n_ubatch, offload, ..session_options() };
        let mut session = Session::new(&model, &how).expect("a session");
        let tokens: Vec<u32> = prompt(&model).into_iter().cycle().take(70).collect();
        session.decode(&tokens, Logits::All).expect("read");
        let hits = model.slots().map(|slots| slots.statistics().hits);
        ((0..70).map(|token| session.logits(token).to_vec()).collect::<Vec<_>>(), hits)
    };
    for n_ubatch in [5, 16] {
        for offload in [false, true] {
            let mut on = options(&device, Kernels::Ggml, ExpertSlots::Uniform(2));
            let (found, hits) = all(&on, n_ubatch, offload);
            on.placement.expert_slots = None;
            let expected = all(&on, n_ubatch, offload).0;
            let worst = difference(&expected, &found);
            let bound = if n_ubatch == 1 { 0.0 } else { 1e-4 };
            assert!(worst <= bound, "{n_ubatch}, {offload}: a logit differs by {worst}");
            assert_eq!(hits > Some(0), n_ubatch < 32 || !offload, "{n_ubatch}, {offload}: {hits:?}");
        }
    }
}

#[test]
fn experts_move_while_tokens_are_computed_and_change_nothing() {
    let device = device(64 << 20);
    for layout in [Stacked, Split] {
        let file = tiny_moe("q4_k", layout);
        let expected = token_by_token(&load(&file.path, &host(Kernels::Ggml)), 120, || ());
        for n in 1..4 {
            let mut on = options(&device, Kernels::Ggml, ExpertSlots::Uniform(n));
            on.placement.fixed_experts = false;
            let model = load(&file.path, &on);
            let slots = model.slots().expect("slots");
            let before = slots.experts();
            assert!(!slots.spares_the_cpu(), "ggml's kernels compute everything");
            let found = token_by_token(&model, 120, || ());
            assert_eq!(difference(&expected, &found), 0.0, "{n} slots, {layout:?}");
            slots.settle();
            let statistics = slots.statistics();
            assert!(statistics.promotions > 0, "{n} slots: {statistics:?}");
            assert_ne!(before, slots.experts());
            let one = statistics.uploaded_bytes / statistics.promotions;
            assert_eq!(one * statistics.promotions, statistics.uploaded_bytes);
        }
    }
}

#[test]
fn moving_experts_keeps_our_kernels_within_rounding_and_pays() {
    let device = device(64 << 20);
    let file = tiny_moe("f32", Stacked);
    let expected = token_by_token(&load(&file.path, &host(Kernels::Bruce)), 200, || ());
    let mut on = options(&device, Kernels::Bruce, ExpertSlots::Uniform(2));
    let fixed = load(&file.path, &on);
    token_by_token(&fixed, 200, || ());
    on.placement.fixed_experts = false;
    let model = load(&file.path, &on);
    let found = token_by_token(&model, 200, || model.slots().expect("slots").settle());
    let worst = difference(&expected, &found);
    assert!(worst < 0.02, "a logit differs by {worst}");
    let [moved, stayed] = [&model, &fixed].map(|m| m.slots().expect("slots").statistics());
    assert!(moved.promotions > 0 && stayed.promotions == 0);
    assert!(moved.hit_rate() > stayed.hit_rate(), "{moved:?} and {stayed:?}");
}

/// The device has been given its products, and nobody has waited for them, when the CPU begins with the others: once in
/// each layer.
#[test]
fn misses_are_computed_while_the_device_computes_hits() {
    let device = stand_in(64 << 20);
    for layout in [Stacked, Split] {
        let file = tiny_moe("f32", layout);
        let model = load(&file.path, &options(&device.name(), Kernels::Bruce, ExpertSlots::Uniform(2)));
        let before = ggml::stand_in::reads_beside_work(device);
        token_by_token(&model, 5, || ());
        assert_eq!(ggml::stand_in::reads_beside_work(device) - before, 5 * 3, "{layout:?}");
    }
}

/// Wherever in the computation it comes.
#[test]
fn a_stop_breaks_nothing() {
    let device = device(64 << 20);
    let file = tiny_moe("f32", Stacked);
    for pool in [None, Some(u64::MAX >> 1)] {
        let mut on = options(&device, Kernels::Bruce, ExpertSlots::Uniform(2));
        on.expert_pool_bytes = pool;
        let model = load(&file.path, &on);
        let how = SessionOptions { stage_experts: StageExperts::Never, ..session_options() };
        let mut session = Session::new(&model, &how).expect("a session");
        let stop = session.stop_flag();
        let expected = answers(&model, &mut session);
        let mut n_stopped = 0;
        for round in 0..200 {
            session.truncate(0);
            let tokens = vec![7; [1, 20, 40][round % 3]];
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_micros(round as u64 * 20));
                    stop.store(true, Ordering::Relaxed);
                });
                match session.decode(&tokens, Logits::Last) {
                    Err(Error::Stopped) => n_stopped += 1,
                    done => done.expect("read"),
                }
            });
            stop.store(false, Ordering::Relaxed);
        }
        assert!(n_stopped > 0);
        session.truncate(0);
        assert_eq!(difference(&expected, &answers(&model, &mut session)), 0.0);
    }
}

/// Two conversations with one model at once, each in a thread of its own.
#[test]
fn sessions_share_slots() {
    let device = device(64 << 20);
    let file = tiny_moe("q4_k", Stacked);
    let expected = token_by_token(&load(&file.path, &host(Kernels::Ggml)), 60, || ());
    let mut on = options(&device, Kernels::Ggml, ExpertSlots::Uniform(2));
    on.placement.fixed_experts = false;
    let model = load(&file.path, &on);
    std::thread::scope(|scope| {
        let both = [0, 1].map(|_| scope.spawn(|| token_by_token(&model, 60, || ())));
        for one in both {
            assert_eq!(difference(&expected, &one.join().expect("computed")), 0.0);
        }
    });
}

#[test]
fn slots_beyond_the_devices_memory_are_an_error_with_bytes() {
    let device = device(4 << 20);
    let file = tiny_moe("f32", Stacked);
    let Err(error) =
        Model::load(&file.path, &options(&device, Kernels::Bruce, ExpertSlots::Uniform(3)), &mut ())
    else {
        panic!("slots of 9 MB in a device of 4 MB")
    };
    let text = error.to_string();
    assert!(
        text.contains(&device) && text.contains("bytes are needed") && text.contains("4194304"),
        "{text}"
    );
}

#[test]
fn what_contradicts_itself_is_refused() {
    let device = device(64 << 20);
    let file = tiny_moe("q4_k", Stacked);
    let refused = |options: &ModelOptions| match Model::load(&file.path, options, &mut ()) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{:?}", options.placement),
    };
    let on = |slots| options(&device, Kernels::Bruce, slots);
    let text = refused(&on(ExpertSlots::PerLayer(vec![1, 2])));
    assert_eq!(text, "--expert-slots: found 2 numbers, expected one, or one for each of 3 layers");
    for slots in [ExpertSlots::Uniform(9), ExpertSlots::PerLayer(vec![1, 9, 2])] {
        let text = refused(&on(slots));
        assert_eq!(text, "--expert-slots: found 9, expected 0 to 4, the experts of a layer");
    }
    for experts in [vec![4], vec![1, 1]] {
        let text = refused(&on(ExpertSlots::Experts(vec![experts, vec![], vec![]])));
        assert!(text.contains("layer 0") && text.contains("0 to 3"), "{text}");
    }
    let mut both = on(ExpertSlots::Uniform(1));
    both.placement.n_cpu_moe = 1;
    assert!(refused(&both).contains("--n-cpu-moe"));
    let mut both = on(ExpertSlots::Uniform(1));
    both.placement.overrides = vec![(regex::Regex::new("ffn_up").expect("a regex"), "CPU".to_owned())];
    assert!(refused(&both).contains("blk.0.ffn_up_exps.weight"), "{}", refused(&both));
}
