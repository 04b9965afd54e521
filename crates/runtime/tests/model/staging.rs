//! Experts of the host that are copied to stacks on a device for large batches.
//!
//! The stand-in computes with ggml's kernels and not before it is waited for. So answers are, bit by bit, those with all
//! weights on the device; and a stack that is filled anew too early, or computed with before all has arrived, gives others:
//! the small model has three layers and a device two stacks.

use crate::fixture::*;
use crate::streaming::least_pool;
use convert::ExpertLayout::{Split, Stacked};
use runtime::residency::{ExpertSlots, PlacementOptions};
use runtime::slots::Popularity;
use runtime::{ExpertStaging, Logits, Model, ModelOptions, Session, SessionOptions, StageExperts};
use std::path::Path;
use std::sync::Arc;

fn on_host(placement: &mut PlacementOptions) {
    placement.cpu_moe = true;
}

fn staged(n_ubatch: u32, from: Option<u32>) -> SessionOptions {
    let stage_experts = from.map_or(StageExperts::Never, StageExperts::From);
    SessionOptions { n_ubatch, stage_experts, ..session_options() }
}

const N_TOKENS: usize = 70;

/// Logits of all tokens, read in batches.
fn all_logits(session: &mut Session) -> Vec<Vec<f32>> {
    let model = Arc::clone(session.model());
    let tokens: Vec<u32> = prompt(&model).into_iter().cycle().take(N_TOKENS).collect();
    session.truncate(0);
    session.decode(&tokens, Logits::All).expect("read");
    (0..N_TOKENS).map(|token| session.logits(token).to_vec()).collect()
}

/// The same, and layers, bytes from the host and bytes from slots that were staged.
fn answers_of(model: &Arc<Model>, how: &SessionOptions) -> (Vec<Vec<f32>>, [u64; 3]) {
    let mut session = Session::new(model, how).expect("a session");
    let found = all_logits(&mut session);
    let ExpertStaging::Ready(statistics) = session.expert_staging() else {
        panic!("not staged: {:?}", session.expert_staging())
    };
    (found, [statistics.n_layers, statistics.host_bytes, statistics.device_bytes])
}

fn resident(path: &Path, device: ggml::Device, n_ubatch: u32) -> Vec<Vec<f32>> {
    let model = load(path, &on_device(device, |_| ()));
    let mut session = Session::new(&model, &staged(n_ubatch, None)).expect("a session");
    assert!(matches!(session.expert_staging(), ExpertStaging::None));
    all_logits(&mut session)
}

/// Bytes of all experts.
fn expert_bytes(model: &Model) -> u64 {
    let is_expert = |name: &str| name.contains("ffn_") && !name.contains("norm") && !name.contains("inp");
    model.gguf().tensors().iter().filter(|t| is_expert(&t.name)).map(|t| t.size).sum()
}

#[test]
fn answers_are_those_with_all_weights_on_the_device() {
    let device = stand_in(64 << 20);
    for (file_type, layout) in [("q4_k", Stacked), ("q4_k", Split), ("f32", Stacked)] {
        let file = tiny_moe(file_type, layout);
        for n_ubatch in [70, 35, 10] {
            let expected = resident(&file.path, device, n_ubatch);
            let model = load(&file.path, &on_device(device, on_host));
            let (found, [n_layers, host_bytes, device_bytes]) =
                answers_of(&model, &staged(n_ubatch, Some(10)));
            assert!(
                found == expected,
                "{file_type}, {layout:?}, {n_ubatch}: {}",
                difference(&expected, &found)
            );
            let n_batches = N_TOKENS as u64 / u64::from(n_ubatch);
            assert_eq!((n_layers, device_bytes), (3 * n_batches, 0));
            // With two stacks, one layer of three is still there.
            assert!(host_bytes <= n_batches * expert_bytes(&model), "{host_bytes} bytes");
        }
    }
}

/// Prompts of several micro-batches, of which the last token's logits depend on all before it.
#[test]
fn prompts_pass_layer_by_layer() {
    let device = stand_in(64 << 20);
    let last_logits = |model: &Arc<Model>, how: &SessionOptions| {
        let mut session = Session::new(model, how).expect("a session");
        let text: Vec<u32> = prompt(model).into_iter().cycle().take(2 * N_TOKENS).collect();
        let of_prompts = text.chunks(N_TOKENS).map(|tokens| {
            session.decode(tokens, Logits::Last).expect("read");
            session.logits(0).to_vec()
        });
        let found: Vec<Vec<f32>> = of_prompts.collect();
        let staged = match session.expert_staging() {
            ExpertStaging::Ready(statistics) => (statistics.n_layers, statistics.host_bytes),
            ExpertStaging::None => (0, 0),
            failed => panic!("{failed:?}"),
        };
        (found, staged)
    };
    for (file_type, layout) in [("q4_k", Stacked), ("q4_k", Split), ("f32", Stacked)] {
        let file = tiny_moe(file_type, layout);
        let expected = last_logits(&load(&file.path, &on_device(device, |_| ())), &staged(10, None)).0;
        let model = load(&file.path, &on_device(device, on_host));
        for n_batch in [10, 30, 2048] {
            let how = SessionOptions { n_batch, ..staged(10, Some(10)) };
            let (found, (n_layers, host_bytes)) = last_logits(&model, &how);
            assert_eq!(difference(&expected, &found), 0.0, "{file_type}, {layout:?}, {n_batch}");
            let n_sweeps = 2 * N_TOKENS.div_ceil(n_batch as usize) as u64;
            assert!(n_layers <= 3 * n_sweeps && n_layers >= 2 * n_sweeps, "{n_batch}: {n_layers} layers");
            assert!(host_bytes <= n_sweeps * expert_bytes(&model), "{n_batch}: {host_bytes} bytes");
        }
        // What a micro-batch alone would leave to the CPU.
        let how = SessionOptions { n_batch: 2048, ..staged(10, Some(60)) };
        let (found, (n_layers, _)) = last_logits(&model, &how);
        assert_eq!((difference(&expected, &found), n_layers), (0.0, 6), "{file_type}, {layout:?}");
    }
}

/// With stacks of another kind for each group, and layers whose types differ.
#[test]
fn experts_of_several_types_are_staged() {
    let device = stand_in(64 << 20);
    let mixed = mixed_types();
    let expected = resident(&mixed.path, device, 35);
    let model = load(&mixed.path, &on_device(device, on_host));
    for _ in 0..2 {
        assert_eq!(difference(&expected, &answers_of(&model, &staged(35, Some(1))).0), 0.0);
    }
}

#[test]
fn layers_on_two_devices_have_stacks_on_both() {
    let devices = ggml::stand_in::register(2, 64 << 20).expect("registered");
    let file = tiny_moe("q4_k", Stacked);
    let on_both = |place: fn(&mut PlacementOptions)| {
        on_device(devices[0], |placement| {
            placement.devices = Some(devices.iter().map(|device| device.name()).collect());
            place(placement);
        })
    };
    let mut session =
        Session::new(&load(&file.path, &on_both(|_| ())), &staged(35, None)).expect("a session");
    let expected = all_logits(&mut session);
    let model = load(&file.path, &on_both(on_host));
    let (found, [n_layers, host_bytes, _]) = answers_of(&model, &staged(35, Some(32)));
    assert_eq!((difference(&expected, &found), n_layers), (0.0, 6));
    // No stack has more than two layers, so that all stay where they are.
    assert_eq!(host_bytes, expert_bytes(&model));
}

#[test]
fn experts_in_slots_are_copied_on_the_device() {
    let device = stand_in(64 << 20);
    for layout in [Stacked, Split] {
        let file = tiny_moe("q4_k", layout);
        let expected = resident(&file.path, device, 35);
        let uneven = ExpertSlots::Experts(vec![vec![3, 1], vec![], vec![2]]);
        for moves in [false, true] {
            let slots = |placement: &mut PlacementOptions| {
                placement.expert_slots = Some(uneven.clone());
                placement.fixed_experts = !moves;
            };
            let model = load(&file.path, &on_device(device, slots));
            let mut session = Session::new(&model, &staged(35, Some(32))).expect("a session");
            for round in 0..4 {
                assert_eq!(
                    difference(&expected, &all_logits(&mut session)),
                    0.0,
                    "{layout:?}, {moves}, {round}"
                );
                // Single tokens let experts move.
                (0..6).for_each(|token| session.decode(&[token], Logits::None).expect("read"));
            }
            let ExpertStaging::Ready(found) = session.expert_staging() else { panic!("not staged") };
            assert!(found.device_bytes > 0 && found.host_bytes > found.device_bytes, "{found:?}");
            let promotions = model.slots().expect("slots").statistics().promotions;
            assert_eq!(promotions > 0, moves, "{promotions}");
        }
    }
}

#[test]
fn streamed_experts_are_staged_from_the_pool_or_the_file() {
    let device = stand_in(64 << 20);
    for (file_type, layout) in [("q4_k", Stacked), ("q4_k", Split)] {
        let file = tiny_moe(file_type, layout);
        let expected = resident(&file.path, device, 35);
        for pool in [least_pool(&file.path), u64::MAX >> 1] {
            for n_slots in [0, 2] {
                let slots = |placement: &mut PlacementOptions| {
                    placement.expert_slots = Some(ExpertSlots::Uniform(n_slots));
                };
                let streamed = ModelOptions { expert_pool_bytes: Some(pool), ..on_device(device, slots) };
                let model = load(&file.path, &streamed);
                let (found, [n_layers, _, device_bytes]) = answers_of(&model, &staged(35, Some(32)));
                assert_eq!(difference(&expected, &found), 0.0, "{layout:?}, pool of {pool}, {n_slots} slots");
                assert_eq!((n_layers, device_bytes > 0), (6, n_slots > 0));
                // Two micro-batches, each of which reads a tile once at most; what finds room is read once for both.
                let n_sweeps = if pool > 1 << 40 { 1 } else { 2 };
                let in_pages = expert_bytes(&model) + 36 * 2 * 4096;
                let read_bytes = model.expert_pool().expect("it is streamed").statistics().read_bytes;
                assert!(read_bytes <= n_sweeps * in_pages, "{read_bytes} bytes, {n_sweeps} times {in_pages}");
            }
        }
    }
}

/// The pool knows what a prompt took that was staged past it, so that decoding finds that in memory.
#[test]
fn the_pool_learns_from_prompts_that_are_staged() {
    let device = stand_in(64 << 20);
    let file = tiny_moe("q4_k", Stacked);
    let streamed = ModelOptions { expert_pool_bytes: Some(u64::MAX >> 1), ..on_device(device, on_host) };
    let shares = |from: Option<u32>| {
        let model = load(&file.path, &streamed);
        let mut session = Session::new(&model, &staged(35, from)).expect("a session");
        all_logits(&mut session);
        let pool = model.expert_pool().expect("it is streamed");
        (0..3).map(|layer| pool.shares(layer)).collect::<Vec<_>>()
    };
    let (learned, computed) = (shares(Some(32)), shares(None));
    assert!(difference(&learned, &computed) < 0.05, "{learned:?} and {computed:?}");
    for of_layer in &learned {
        assert!((1.4..2.0).contains(&of_layer.iter().sum::<f32>()), "{learned:?}");
    }
}

/// The rest of a batch that is too small, and one token, are computed as without staging.
#[test]
fn smaller_batches_are_computed_beside() {
    let device = stand_in(64 << 20);
    let file = tiny_moe("q4_k", Stacked);
    let model = load(&file.path, &on_device(device, on_host));
    let (_, [n_layers, ..]) = answers_of(&model, &staged(64, Some(48)));
    assert_eq!(n_layers, 3, "64 tokens are staged, 6 are not");
    let small = SessionOptions { n_batch: 32, ..staged(32, Some(48)) };
    let mut never = Session::new(&model, &small).expect("a session");
    all_logits(&mut never);
    assert!(matches!(never.expert_staging(), ExpertStaging::None), "no batch is large enough");
}

#[test]
fn without_memory_for_stacks_the_cpu_computes() {
    let file = tiny_moe("f32", Stacked);
    let n_bytes = expert_bytes(&load(&file.path, &plain())) as usize;
    // Room for the other weights and the context, but not for two layers of three.
    let device = stand_in(n_bytes / 3 + (4 << 20));
    let model = load(&file.path, &on_device(device, on_host));
    let must = Session::new(&model, &staged(35, Some(32))).err().expect("no room for stacks").to_string();
    let may = SessionOptions { stage_experts: StageExperts::AutoFrom(32), ..staged(35, None) };
    let mut session = Session::new(&model, &may).expect("a session");
    let ExpertStaging::Failed(error) = session.expert_staging() else { panic!("room for stacks") };
    let text = error.to_string();
    assert!(text.contains(&device.name()) && text.contains("staging"), "{text}");
    assert_eq!(text, must);
    let expected = {
        let model = load(&file.path, &plain());
        all_logits(&mut Session::new(&model, &staged(35, None)).expect("a session"))
    };
    let worst = difference(&expected, &all_logits(&mut session));
    assert!(worst < 0.02, "a logit differs by {worst}");
}

#[test]
fn a_file_that_ends_early_is_an_error_and_no_answer() {
    let device = stand_in(64 << 20);
    let file = tiny_moe("q4_k", Stacked);
    let streamed =
        ModelOptions { expert_pool_bytes: Some(least_pool(&file.path)), ..on_device(device, on_host) };
    let model = load(&file.path, &streamed);
    let mut session = Session::new(&model, &staged(35, Some(32))).expect("a session");
    let bytes = std::fs::read(&file.path).expect("a file");
    std::fs::OpenOptions::new()
        .write(true)
        .open(&file.path)
        .and_then(|file| file.set_len(bytes.len() as u64 / 2))
        .expect("truncated");
    let tokens: Vec<u32> = prompt(&model).into_iter().cycle().take(35).collect();
    let text = session.decode(&tokens, Logits::Last).expect_err("half of the file").to_string();
    assert!(text.contains("model.gguf") && text.contains("blk."), "{text}");
    // What is there again is read again.
    std::fs::OpenOptions::new()
        .write(true)
        .open(&file.path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, &bytes))
        .expect("written");
    session.truncate(0);
    session.decode(&tokens, Logits::All).expect("the whole file");
    let expected = resident(&file.path, device, 35);
    let found: Vec<_> = (0..35).map(|token| session.logits(token).to_vec()).collect();
    assert_eq!(difference(&expected[..35], &found), 0.0);
}

#[test]
fn a_session_that_is_stopped_stops_copying() {
    let device = stand_in(64 << 20);
    let file = tiny_moe("q4_k", Stacked);
    let model = load(&file.path, &on_device(device, on_host));
    let mut session = Session::new(&model, &staged(35, Some(32))).expect("a session");
    let tokens: Vec<u32> = prompt(&model).into_iter().cycle().take(35).collect();
    let stop = session.stop_flag();
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let error = session.decode(&tokens, Logits::Last).expect_err("stopped");
    assert!(matches!(error, runtime::Error::Stopped), "{error}");
    stop.store(false, std::sync::atomic::Ordering::Relaxed);
    let expected = resident(&file.path, device, 35);
    assert_eq!(difference(&expected, &all_logits(&mut session)), 0.0);
}

/// Each has stacks of its own.
#[test]
fn sessions_stage_at_once() {
    let device = stand_in(64 << 20);
    let file = tiny_moe("q4_k", Stacked);
    let expected = resident(&file.path, device, 35);
    let model = load(&file.path, &on_device(device, |p| p.expert_slots = Some(ExpertSlots::Uniform(1))));
    std::thread::scope(|scope| {
        let both = [0, 1].map(|_| scope.spawn(|| answers_of(&model, &staged(35, Some(32))).0));
        for one in both {
            assert_eq!(difference(&expected, &one.join().expect("computed")), 0.0);
        }
    });
}

/// Micro-batches whose logits nobody wants leave the last layer out, so that stacks change their order.
#[test]
fn a_long_prompt_is_read_by_micro_batches_of_several_shapes() {
    let device = stand_in(64 << 20);
    let file = tiny_moe("q4_k", Stacked);
    let read = |session: &mut Session| {
        let tokens: Vec<u32> = prompt(session.model()).into_iter().cycle().take(N_TOKENS).collect();
        let mut found = Vec::new();
        for (part, wanted) in [(0..40, Logits::None), (40..65, Logits::Last), (65..N_TOKENS, Logits::All)] {
            session.decode(&tokens[part], wanted).expect("read");
            found.extend((0..session.n_outputs()).map(|token| session.logits(token).to_vec()));
        }
        found
    };
    let model = load(&file.path, &on_device(device, |_| ()));
    let expected = read(&mut Session::new(&model, &staged(10, None)).expect("a session"));
    let model = load(&file.path, &on_device(device, on_host));
    let mut session = Session::new(&model, &staged(10, Some(1))).expect("a session");
    for round in 0..3 {
        session.truncate(0);
        assert_eq!(difference(&expected, &read(&mut session)), 0.0, "round {round}");
    }
}

/// By the policy that moves single experts, and without a byte from the host.
#[test]
fn slots_hold_what_a_prompt_used_most_when_it_is_read() {
    let device = stand_in(64 << 20);
    for layout in [Stacked, Split] {
        let file = tiny_moe("q4_k", layout);
        let expected = resident(&file.path, device, 35);
        let all_on_device = load(&file.path, &on_device(device, |_| ()));
        let mut watched = Session::new(&all_on_device, &staged(35, None)).expect("a session");
        watched.record_routing(true);
        all_logits(&mut watched);
        let mut popularity = vec![Popularity::new(4); 3];
        for layer in watched.take_routing() {
            layer.experts.chunks(2).for_each(|taken| popularity[layer.layer].observe(taken.iter().copied()));
        }
        // The worst that there are.
        let worst = |layer: &Popularity, n: usize| -> Vec<u32> {
            let mut best: Vec<u32> = Vec::new();
            while let Some(next) = layer.best(&best, &[0, 1, 2, 3]) {
                best.push(next);
            }
            best.split_off(4 - n)
        };
        let first: Vec<Vec<u32>> = popularity.iter().zip([2, 1, 2]).map(|(p, n)| worst(p, n)).collect();
        for pool in [None, Some(least_pool(&file.path))] {
            let slots = |placement: &mut PlacementOptions| {
                placement.expert_slots = Some(ExpertSlots::Experts(first.clone()));
                placement.fixed_experts = false;
            };
            let model =
                load(&file.path, &ModelOptions { expert_pool_bytes: pool, ..on_device(device, slots) });
            let mut session = Session::new(&model, &staged(35, Some(32))).expect("a session");
            assert_eq!(difference(&expected, &all_logits(&mut session)), 0.0, "{layout:?}, {pool:?}");
            let slots = model.slots().expect("slots");
            let moved = slots.statistics();
            assert!(moved.harvested > 0 && moved.promotions == moved.harvested, "{moved:?}");
            assert_eq!(moved.uploaded_bytes, 0);
            let ExpertStaging::Ready(copied) = session.expert_staging() else { panic!("not staged") };
            assert!(copied.kept_bytes > 0, "{copied:?}");
            for ((layer, inside), first) in slots.experts().into_iter().zip(&first) {
                assert_eq!(
                    popularity[layer].swap(&inside, &[0, 1, 2, 3]),
                    None,
                    "{inside:?} in layer {layer}"
                );
                assert_eq!(inside.len(), first.len());
            }
            // What is in slots now is what the tables say, for batches and single tokens.
            assert_eq!(difference(&expected, &all_logits(&mut session)), 0.0, "{layout:?}, {pool:?}");
            let by_tables = |session: &mut Session| {
                session.truncate(0);
                let tokens: Vec<u32> = prompt(session.model());
                session.decode(&tokens[..4], Logits::All).expect("read");
                (0..4).map(|token| session.logits(token).to_vec()).collect::<Vec<_>>()
            };
            let (found, whole) = (by_tables(&mut session), by_tables(&mut watched));
            let worst = difference(&whole, &found);
            assert!(worst < 0.5, "a logit differs by {worst}");
            assert!(slots.statistics().hits > 0);
        }
    }
}

/// Stopped at any moment, it says so or was through; and what it computes afterwards is right.
#[test]
fn a_stop_while_experts_are_copied_breaks_nothing() {
    let device = stand_in(64 << 20);
    let file = tiny_moe("f32", Stacked);
    let expected = resident(&file.path, device, 10);
    for pool in [None, Some(least_pool(&file.path))] {
        let model = load(&file.path, &ModelOptions { expert_pool_bytes: pool, ..on_device(device, on_host) });
        let mut session = Session::new(&model, &staged(10, Some(10))).expect("a session");
        let tokens: Vec<u32> = prompt(&model).into_iter().cycle().take(N_TOKENS).collect();
        let stop = session.stop_flag();
        let mut n_stopped = 0;
        for delay in 0..12 {
            session.truncate(0);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(std::time::Duration::from_millis(3 * delay));
                    stop.store(true, std::sync::atomic::Ordering::Relaxed);
                });
                match session.decode(&tokens, Logits::All) {
                    Ok(()) => {}
                    Err(runtime::Error::Stopped) => n_stopped += 1,
                    Err(other) => panic!("{other}"),
                }
            });
            stop.store(false, std::sync::atomic::Ordering::Relaxed);
        }
        assert!(n_stopped > 0, "it stops at once where the flag is set before");
        assert_eq!(difference(&expected, &all_logits(&mut session)), 0.0, "{pool:?}");
    }
}
