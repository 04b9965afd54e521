//! Both memories short: a device holds what it can, and the CPU computes the other experts from a pool.
//!
//! Kernels and placement are those of a model whose host experts are mapped; so answers to single tokens are equal bit by
//! bit to that one's.

use crate::fixture::*;
use crate::streaming::least_pool;
use convert::ExpertLayout::{Split, Stacked};
use runtime::residency::{ExpertSlots, GpuLayers, PlacementOptions};
use runtime::{Error, Kernels, Logits, Model, ModelOptions, Session, SessionOptions, StageExperts};
use std::path::Path;
use std::sync::Arc;

fn streamed(options: &ModelOptions, pool_bytes: u64) -> ModelOptions {
    ModelOptions { expert_pool_bytes: Some(pool_bytes), ..options.clone() }
}

fn slots(n: u32) -> impl Fn(&mut PlacementOptions) {
    move |placement| placement.expert_slots = Some(ExpertSlots::Uniform(n))
}

/// Logits after each of `n` tokens of the prompt, read one by one and over again.
fn token_by_token(model: &Arc<Model>, n: usize, between: impl Fn()) -> Vec<Vec<f32>> {
    let mut session = session(model);
    let prompt = prompt(model);
    let of_token = |token: &u32| {
        session.decode(&[*token], Logits::Last).expect("read");
        between();
        session.logits(0).to_vec()
    };
    prompt.iter().cycle().take(n).map(of_token).collect()
}

/// Bytes of an expert, where all have one type.
fn expert_bytes(model: &Model) -> u64 {
    let experts =
        model.gguf().tensors().iter().filter(|t| t.name.contains("ffn_") && !t.name.contains("norm"));
    let experts = experts.filter(|t| !t.name.contains("ffn_gate_inp"));
    experts.map(|t| t.size).sum::<u64>() / 12
}

#[test]
fn answers_are_those_with_all_experts_in_memory() {
    let device = stand_in(64 << 20);
    for (file_type, layout) in [("q4_k", Stacked), ("q4_k", Split), ("f32", Stacked)] {
        let file = tiny_moe(file_type, layout);
        let least = least_pool(&file.path);
        for n in 0..=4 {
            let mapped = on_device(device, slots(n));
            let expected = token_by_token(&load(&file.path, &mapped), 12, || ());
            for pool in [least, 2 * least, u64::MAX >> 1] {
                let model = load(&file.path, &streamed(&mapped, pool));
                let found = token_by_token(&model, 12, || ());
                assert!(found == expected, "{file_type}, {layout:?}, {n} slots, pool of {pool}");
                assert_eq!(model.expert_pool().is_some(), n < 4, "all are on the device");
                if let Some(slots) = model.slots() {
                    let statistics = slots.statistics();
                    assert!(statistics.hits > 0 && statistics.misses > 0, "{n} slots: {statistics:?}");
                    assert!(slots.spares_the_cpu());
                }
            }
        }
    }
}

#[test]
fn experts_of_several_types_are_streamed_beside_their_slots() {
    let device = stand_in(64 << 20);
    let mixed = mixed_types();
    let uneven = ExpertSlots::Experts(vec![vec![2], vec![3, 1, 0], vec![1, 2]]);
    let mapped = on_device(device, |placement| placement.expert_slots = Some(uneven.clone()));
    let expected = token_by_token(&load(&mixed.path, &mapped), 12, || ());
    let model = load(&mixed.path, &streamed(&mapped, least_pool(&mixed.path)));
    assert!(token_by_token(&model, 12, || ()) == expected);
}

/// Whole layers on the device, and the experts of the others in the pool.
#[test]
fn layers_that_the_device_has_are_not_streamed() {
    let device = stand_in(64 << 20);
    let file = tiny_moe("q8_0", Stacked);
    for change in [
        (|p| p.n_cpu_moe = 1) as fn(&mut PlacementOptions),
        |p| p.cpu_moe = true,
        |p| p.n_gpu_layers = GpuLayers::Count(2),
        |p| p.n_gpu_layers = GpuLayers::Count(0),
    ] {
        let mapped = on_device(device, change);
        let expected = token_by_token(&load(&file.path, &mapped), 12, || ());
        let model = load(&file.path, &streamed(&mapped, u64::MAX >> 1));
        assert!(token_by_token(&model, 12, || ()) == expected, "{:?}", mapped.placement);
        let asked = model.expert_pool().expect("some are streamed").statistics();
        let n_layers = match (mapped.placement.n_cpu_moe, mapped.placement.n_gpu_layers) {
            (1, _) => 1,
            (_, GpuLayers::Count(2)) => 2,
            _ => 3,
        };
        assert_eq!(asked.asked_bytes(), 12 * 2 * n_layers * expert_bytes(&model));
    }
}

#[test]
fn nothing_is_read_for_hits() {
    let device = stand_in(64 << 20);
    let file = tiny_moe("q8_0", Stacked);
    let mapped = on_device(device, slots(3));
    // Room for everything, which the readers fill while they have nothing else to do.
    let model = load(&file.path, &streamed(&mapped, u64::MAX >> 1));
    let pool = model.expert_pool().expect("it is streamed");
    let (slots, one) = (model.slots().expect("slots"), expert_bytes(&model));
    token_by_token(&model, 40, || ());
    let (asked, taken) = (pool.statistics(), slots.statistics());
    assert_eq!(taken.hits + taken.misses, 40 * 2 * 3);
    assert_eq!(asked.asked_bytes(), taken.misses * one, "{taken:?}");
    // A batch takes nearly all, and readers run ahead of it.
    let how = SessionOptions { stage_experts: StageExperts::Never, ..session_options() };
    let mut session = Session::new(&model, &how).expect("a session");
    let tokens: Vec<u32> = prompt(&model).into_iter().cycle().take(64).collect();
    session.decode(&tokens, Logits::Last).expect("read");
    std::thread::sleep(std::time::Duration::from_millis(100));
    // One of four in each of three layers, in whole pages for each tile.
    let read = pool.statistics().read_bytes;
    assert!(read <= 3 * one + 3 * 3 * 8192, "{read} bytes, and {} are not on the device", 3 * one);
}

#[test]
fn experts_that_move_come_from_the_pool_or_the_file() {
    let device = stand_in(64 << 20);
    for layout in [Stacked, Split] {
        let file = tiny_moe("f32", layout);
        let host = load(&file.path, &ModelOptions { kernels: Some(Kernels::Bruce), ..plain() });
        let expected = token_by_token(&host, 200, || ());
        for pool in [least_pool(&file.path), u64::MAX >> 1] {
            let mut options = streamed(&on_device(device, slots(2)), pool);
            options.placement.fixed_experts = false;
            let model = load(&file.path, &options);
            let slots = model.slots().expect("slots");
            let before = slots.experts();
            let found = token_by_token(&model, 200, || slots.settle());
            let worst = difference(&expected, &found);
            assert!(worst < 0.02, "{layout:?}, {pool} bytes: a logit differs by {worst}");
            let statistics = slots.statistics();
            assert!(statistics.promotions > 0 && statistics.failures == 0, "{statistics:?}");
            assert_eq!(statistics.uploaded_bytes, statistics.promotions * expert_bytes(&model));
            assert_ne!(before, slots.experts());
            // Without waiting for them too.
            let model = load(&file.path, &options);
            let worst = difference(&expected, &token_by_token(&model, 200, || ()));
            assert!(worst < 0.02, "{layout:?}, {pool} bytes: a logit differs by {worst}");
        }
    }
}

/// Also batches that devices would take over with weights of the host: those of experts are not there to be taken.
#[test]
fn batches_find_their_experts_on_the_device_and_in_the_pool() {
    let device = stand_in(64 << 20);
    let file = tiny_moe("f32", Stacked);
    let all = |options: &ModelOptions, n_ubatch| {
        let model = load(&file.path, options);
        let stage_experts = StageExperts::Never;
        let how = SessionOptions { n_ubatch, stage_experts, ..session_options() };
        let mut session = Session::new(&model, &how).expect("a session");
        let tokens: Vec<u32> = prompt(&model).into_iter().cycle().take(70).collect();
        session.decode(&tokens, Logits::All).expect("read");
        let hits = model.slots().map_or(0, |slots| slots.statistics().hits);
        ((0..70).map(|token| session.logits(token).to_vec()).collect::<Vec<_>>(), hits)
    };
    let expected = all(&ModelOptions { kernels: Some(Kernels::Bruce), ..plain() }, 70).0;
    for n_gpu_layers in [GpuLayers::All, GpuLayers::Count(2)] {
        for n_ubatch in [1, 5, 33, 70] {
            let mut options = on_device(device, slots(2));
            options.placement.n_gpu_layers = n_gpu_layers;
            let (found, hits) = all(&streamed(&options, least_pool(&file.path)), n_ubatch);
            let worst = difference(&expected, &found);
            assert!(worst < 0.02, "{n_ubatch}, {n_gpu_layers:?}: a logit differs by {worst}");
            assert!(hits > 0, "{n_ubatch}, {n_gpu_layers:?}");
        }
    }
}

/// The device has its products, and nobody has waited for them, when the CPU begins to wait for the disk.
#[test]
fn misses_are_read_and_computed_while_the_device_computes_hits() {
    let device = stand_in(64 << 20);
    let file = tiny_moe("f32", Stacked);
    let model = load(&file.path, &streamed(&on_device(device, slots(2)), least_pool(&file.path)));
    let before = ggml::stand_in::reads_beside_work(device);
    token_by_token(&model, 5, || ());
    assert_eq!(ggml::stand_in::reads_beside_work(device) - before, 5 * 3);
}

/// Two conversations with one model at once: they take turns, and experts move between these.
#[test]
fn sessions_share_slots_and_pool() {
    let device = stand_in(64 << 20);
    let file = tiny_moe("f32", Stacked);
    let host = load(&file.path, &ModelOptions { kernels: Some(Kernels::Bruce), ..plain() });
    let expected = token_by_token(&host, 80, || ());
    let mut options = streamed(&on_device(device, slots(2)), least_pool(&file.path));
    options.placement.fixed_experts = false;
    let model = load(&file.path, &options);
    std::thread::scope(|scope| {
        let both = [0, 1].map(|_| scope.spawn(|| token_by_token(&model, 80, || ())));
        for one in both {
            let worst = difference(&expected, &one.join().expect("computed"));
            assert!(worst < 0.02, "a logit differs by {worst}");
        }
    });
    let statistics = model.slots().expect("slots").statistics();
    assert!(statistics.promotions > 0, "{statistics:?}");
}

#[test]
fn a_file_truncated_while_it_is_used_is_an_error_and_not_for_ever() {
    let device = stand_in(64 << 20);
    let file = tiny_moe("f32", Stacked);
    let mut options = streamed(&on_device(device, slots(1)), least_pool(&file.path));
    options.placement.fixed_experts = false;
    let model = load(&file.path, &options);
    let mut session = session(&model);
    session.decode(&prompt(&model), Logits::Last).expect("read");
    let whole = std::fs::read(&file.path).expect("it is there");
    let cut = std::fs::OpenOptions::new().write(true).open(&file.path).expect("it is there");
    cut.set_len(whole.len() as u64 / 4).expect("cut");
    let n_past = session.n_past();
    for _ in 0..3 {
        let error = session.decode(&prompt(&model), Logits::Last).expect_err("most experts are gone");
        let text = error.to_string();
        assert!(matches!(error, Error::ExpertPool(_)) && text.contains("truncated"), "{text}");
        assert!(text.contains(&file.path.display().to_string()), "{text}");
        assert!(text.contains("token_embd.weight") || text.contains("blk."), "{text}");
        assert_eq!(session.n_past(), n_past);
    }
    std::fs::write(&file.path, &whole).expect("written");
    session.truncate(0);
    session.decode(&prompt(&model), Logits::Last).expect("read again");
    let found = vec![session.logits(0).to_vec()];
    let host = load(&file.path, &ModelOptions { kernels: Some(Kernels::Bruce), ..plain() });
    let mut alone = crate::fixture::session(&host);
    alone.decode(&prompt(&host), Logits::Last).expect("read");
    let worst = difference(&[alone.logits(0).to_vec()], &found);
    assert!(worst < 0.02, "a logit differs by {worst}");
}

#[test]
fn a_stopped_session_says_so_and_goes_on() {
    let device = stand_in(64 << 20);
    let file = tiny_moe("q4_k", Stacked);
    let model = load(&file.path, &streamed(&on_device(device, slots(1)), least_pool(&file.path)));
    let mut session = session(&model);
    let stop = session.stop_flag();
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let stopped = session.decode(&prompt(&model), Logits::Last);
    assert!(matches!(stopped, Err(Error::Stopped)), "{stopped:?}");
    stop.store(false, std::sync::atomic::Ordering::Relaxed);
    session.decode(&prompt(&model), Logits::Last).expect("read");
}

#[test]
fn what_can_not_be_is_refused_with_what_is_needed() {
    let file = tiny_moe("f32", Stacked);
    let refused = |path: &Path, options: &ModelOptions| match Model::load(path, options, &mut ()) {
        Err(error) => error,
        Ok(_) => panic!("{:?}", options.placement),
    };
    let small = stand_in(4 << 20);
    let error = refused(&file.path, &streamed(&on_device(small, slots(3)), least_pool(&file.path)));
    let text = error.to_string();
    assert!(matches!(error, Error::WeightMemory { .. }), "{text}");
    assert!(text.contains(&small.name()) && text.contains("4194304 are free"), "{text}");

    let device = stand_in(64 << 20);
    let error = refused(&file.path, &streamed(&on_device(device, slots(3)), 1)).to_string();
    assert!(
        error.contains("--expert-pool") && error.contains("found 1 bytes") && error.contains("at least"),
        "{error}"
    );
    let rule = regex::Regex::new(r"blk\.1\.ffn_down").expect("a regex");
    let apart = on_device(device, |p| {
        p.cpu_moe = true;
        p.overrides = vec![(rule.clone(), device.name())];
    });
    let error = refused(&file.path, &streamed(&apart, 1 << 30)).to_string();
    assert!(error.starts_with("--expert-pool: found rules that put experts of layer 1"), "{error}");
}
