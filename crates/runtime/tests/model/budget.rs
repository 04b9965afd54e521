//! Plans are kept when models are loaded by them, and what does not fit is an error that says how much.

use crate::fixture::*;
use convert::ExpertLayout::{Split, Stacked};
use gguf::Gguf;
use runtime::plan::{Budget, Measure, Plan};
use runtime::residency::budget::Home;
use runtime::residency::{ExpertSlots, GpuLayers, PlacementOptions};
use runtime::{Error, Kernels, Model, ModelOptions, Session, SessionOptions};

const MIB: u64 = 1 << 20;

fn device(size_bytes: u64) -> ggml::Device {
    ggml::stand_in::register(1, size_bytes as usize).expect("registered")[0]
}

fn on(device: ggml::Device) -> ModelOptions {
    let placement = PlacementOptions { devices: Some(vec![device.name()]), ..plain().placement };
    // The stand-in computes with ggml's kernels, as the host must then too.
    ModelOptions { placement, kernels: Some(Kernels::Ggml), ..plain() }
}

/// From nothing to everything on the device: what is taken there is what was planned, or a little less, and answers stay.
#[test]
fn what_is_planned_is_what_a_device_holds() {
    let mut before = 0;
    let mut seen = Vec::new();
    let mut n_with_slots = 0;
    for (layout, kernels) in [(Stacked, Kernels::Ggml), (Split, Kernels::Ggml), (Stacked, Kernels::Bruce)] {
        let file = tiny_moe("q8_0", layout);
        let gguf = Gguf::open(&file.path).expect("a file of ours");
        let kernels = Some(kernels);
        let model = load(&file.path, &ModelOptions { kernels, ..plain() });
        let expected = answers(&model, &mut session(&model));
        let weights = model.size_bytes();
        let budgets = (0..=14).map(|n| n * weights / 4).chain([64 * MIB]);
        for budget in budgets {
            let device = device(128 * MIB);
            let (mut options, mut session) = (ModelOptions { kernels, ..on(device) }, session_options());
            let budget = Budget { vram_bytes: Some(budget), ..Budget::default() };
            let plan = Plan::make(&gguf, &options, &session, &budget, Measure::Never).expect("a plan");
            plan.apply(&mut options, &mut session);
            let model = load(&file.path, &options);
            let mut session = Session::new(&model, &session).expect("a session");
            let used = 128 * MIB - device.memory().0 as u64;
            let planned = plan.outlook.device.total_bytes();
            assert!(used <= planned && used * 2 >= planned, "{used} of {planned} planned, of {budget:?}");
            assert!(planned <= budget.vram_bytes.expect("given"), "{planned}");
            // The stand-in rounds activations as ggml does, not as our kernels.
            let bound = if kernels == Some(Kernels::Bruce) { f32::INFINITY } else { 0.0 };
            assert!(difference(&expected, &answers(&model, &mut session)) <= bound, "{budget:?}");
            n_with_slots += usize::from(plan.has_slots());
            seen.push((plan.outlook.n_gpu_layers, plan.outlook.count(Home::Device)));
            before = before.max(planned);
        }
    }
    assert!(before > MIB && n_with_slots > 0);
    assert!(seen.contains(&(0, 0)) && seen.contains(&(4, 12)), "{seen:?}");
    assert!(seen.iter().any(|(_, experts)| (1..12).contains(experts)), "{seen:?}");
}

#[test]
fn flags_decide_before_the_plan_does() {
    let file = tiny_moe("q8_0", Stacked);
    let gguf = Gguf::open(&file.path).expect("a file of ours");
    let device = device(128 * MIB);
    let planned = |change: &dyn Fn(&mut PlacementOptions)| {
        let (mut options, mut session) = (on(device), session_options());
        change(&mut options.placement);
        let plan = Plan::make(&gguf, &options, &session, &Budget::default(), Measure::Never).expect("a plan");
        plan.apply(&mut options, &mut session);
        (options.placement.n_gpu_layers, options.placement.n_cpu_moe)
    };
    assert_eq!(planned(&|_| ()), (GpuLayers::Count(4), 0));
    assert_eq!(planned(&|p| p.n_gpu_layers = GpuLayers::Count(2)), (GpuLayers::Count(2), 2));
    assert_eq!(planned(&|p| p.n_cpu_moe = 2), (GpuLayers::Count(4), 2));
    assert_eq!(planned(&|p| p.cpu_moe = true), (GpuLayers::Count(4), 0));
}

#[test]
fn speeds_are_measured_where_they_are_asked_for() {
    let file = tiny_moe("q4_k", Stacked);
    let gguf = Gguf::open(&file.path).expect("a file of ours");
    let plan = |measure| {
        let options = SessionOptions { n_threads: 1, ..session_options() };
        Plan::make(&gguf, &on(device(64 * MIB)), &options, &Budget::default(), measure).expect("a plan")
    };
    assert!(!plan(Measure::AsNeeded).is_measured, "everything fits");
    let measured = plan(Measure::Always);
    assert!(measured.is_measured);
    let speed = measured.outlook.tokens_per_second();
    assert!(speed > 1.0 && speed < 1e6, "{speed}");
}

#[test]
fn a_budget_that_is_too_small_says_what_is_needed() {
    let file = tiny_moe("q8_0", Stacked);
    let gguf = Gguf::open(&file.path).expect("a file of ours");
    let budget = Budget { ram_bytes: Some(4 * MIB), ..Budget::default() };
    let error = Plan::make(&gguf, &plain(), &session_options(), &budget, Measure::Never).expect_err("4 MiB");
    let text = error.to_string();
    assert!(matches!(error, Error::Shortage { .. }) && text.contains("4194304 may be used"), "{text}");
}

/// A header that says so of its model's context.
fn trained_with(n_ctx: u32) -> Gguf {
    let file = rewrite(
        &tiny_moe("q8_0", Stacked).path,
        |metadata| metadata.set("llama.context_length", gguf::Value::U32(n_ctx)),
        |_| Edit::Keep,
    );
    Gguf::open(&file.path).expect("a file of ours")
}

#[test]
fn a_context_is_shorter_only_where_memory_is_short() {
    let gguf = trained_with(1 << 20);
    let plan = |n_ctx, ram: u64| {
        let budget = Budget { ram_bytes: Some(ram), ..Budget::default() };
        let options = SessionOptions { n_ctx, ..session_options() };
        Plan::make(&gguf, &plain(), &options, &budget, Measure::Never)
    };
    let short = plan(0, 256 * MIB).expect("a plan");
    assert_eq!((short.reduced_from, short.outlook.all_in_memory()), (Some(1 << 20), true));
    assert!((4096..1 << 20).contains(&short.n_ctx), "{}", short.n_ctx);
    assert!(plan(1 << 20, 256 * MIB).is_err(), "the user's own word stands");
    assert_eq!(plan(512, 256 * MIB).expect("a plan").reduced_from, None);
}

/// A shorter context leaves memory, which a pool whose size is given has no use for.
#[test]
fn a_context_is_not_shorter_for_a_pool_of_a_given_size() {
    let gguf = trained_with(1 << 14);
    let plan = |ram: u64| {
        let budget = Budget { ram_bytes: Some(ram), ..Budget::default() };
        let model = ModelOptions { expert_pool_bytes: Some(2 * MIB), ..plain() };
        let options = SessionOptions { n_ctx: 0, ..session_options() };
        Plan::make(&gguf, &model, &options, &budget, Measure::Never).expect("a plan")
    };
    let with_room = plan(1024 * MIB);
    assert_eq!((with_room.n_ctx, with_room.reduced_from), (1 << 14, None));
    assert_eq!(with_room.pool_bytes, Some(2 * MIB));
    let without = plan(with_room.outlook.memory.total_bytes() - 1);
    assert_eq!((without.n_ctx, without.reduced_from), (1 << 13, Some(1 << 14)));
}

/// Weights fit, cache and buffers don't: an error with sizes from both, and the memory is free again.
#[test]
fn a_context_that_a_device_can_not_hold_is_an_error() {
    let file = tiny_moe("q8_0", Stacked);
    let weights = load(&file.path, &plain()).size_bytes();
    let device = device(weights + MIB);
    let mut options = on(device);
    options.placement.n_gpu_layers = GpuLayers::All;
    let model = load(&file.path, &options);
    let free = device.memory().0;
    for n_ctx in [65536, 512] {
        let options = SessionOptions { n_ctx, n_ubatch: 512, ..session_options() };
        let Err(error) = Session::new(&model, &options) else { panic!("{n_ctx} tokens in {free} bytes") };
        let text = error.to_string();
        let Error::ContextMemory { place, needed_bytes, available_bytes, .. } = error else {
            panic!("{text}")
        };
        assert_eq!((place, available_bytes), (device.name(), free as u64));
        assert!(needed_bytes > available_bytes, "{text}");
        assert_eq!(device.memory().0, free);
    }
    let small = SessionOptions { n_ctx: 256, n_ubatch: 1, ..session_options() };
    Session::new(&model, &small).expect("a small context fits");
}

#[test]
fn weights_that_a_device_can_not_hold_are_an_error() {
    let file = tiny_moe("f32", Stacked);
    let device = device(MIB);
    let mut options = on(device);
    options.placement.n_gpu_layers = GpuLayers::All;
    let Err(error) = Model::load(&file.path, &options, &mut ()) else { panic!("16 MB in a device of 1 MB") };
    let text = error.to_string();
    assert!(matches!(error, Error::WeightMemory { .. }), "{text}");
    assert!(text.contains(&device.name()) && text.contains("1048576 are free"), "{text}");
}

/// Room for everything but two thirds of the experts on the device, and in memory for some of the others. Micro-batches are
/// small, as buffers would be larger than the experts of this model.
#[test]
fn where_both_memories_are_short_experts_are_streamed_beside_the_device() {
    let file = tiny_moe("q8_0", Stacked);
    let gguf = Gguf::open(&file.path).expect("a file of ours");
    let host = load(&file.path, &ModelOptions { kernels: Some(Kernels::Bruce), ..plain() });
    let expected = answers(&host, &mut session(&host));
    let unlimited = device(128 * MIB);
    let small = SessionOptions { n_batch: 64, n_ubatch: 32, ..session_options() };
    let free = |device| ModelOptions { kernels: None, ..on(device) };
    let plan = |options: &ModelOptions, budget: &Budget| {
        Plan::make(&gguf, options, &small, budget, Measure::Never).expect("a plan")
    };
    let all = plan(&free(unlimited), &Budget::default());
    let (there, demand) = (all.outlook.device, &all.demand);
    assert!(all.fits());
    let least = there.total_bytes() - there.expert_bytes * 2 / 3 + demand.waiting_bytes[1];
    let of_layer = demand.dense_bytes[0] + demand.cache_bytes;
    let memory = all.outlook.memory.other_bytes + demand.beside_bytes + demand.staging_bytes() + of_layer;
    let budget = Budget {
        vram_bytes: Some(least * 16 / 15 + 1),
        ram_bytes: Some(memory + demand.expert_bytes() / 8),
        ..Budget::default()
    };
    let cases: [&dyn Fn(&mut PlacementOptions); 4] = [
        &|_| (),
        &|p| p.expert_slots = Some(ExpertSlots::Uniform(1)),
        &|p| p.n_gpu_layers = GpuLayers::Count(3),
        &|p| p.n_cpu_moe = 2,
    ];
    for (case, change) in cases.iter().enumerate() {
        let device = device(128 * MIB);
        let (mut options, mut how) = (free(device), small.clone());
        change(&mut options.placement);
        let plan = plan(&options, &budget);
        assert!(plan.outlook.is_streamed && plan.pool_bytes.is_some(), "{case}: {plan:?}");
        assert!(plan.outlook.count(Home::Device) > 0, "{case}: {plan:?}");
        plan.apply(&mut options, &mut how);
        let model = load(&file.path, &options);
        assert_eq!(model.kernels(), Kernels::Bruce);
        assert!(model.expert_pool().is_some(), "{case}");
        assert_eq!(model.slots().is_some(), case != 3, "{case}");
        let mut session = Session::new(&model, &how).expect("a session");
        let (used, planned) = (128 * MIB - device.memory().0 as u64, plan.outlook.device.total_bytes());
        assert!(used <= planned && used * 2 >= planned, "{case}: {used} of {planned} planned");
        assert!(planned <= budget.vram_bytes.expect("given"), "{case}: {planned}");
        let host_bytes: u64 = model.sizes().iter().filter(|(name, _)| name == "CPU").map(|(_, n)| n).sum();
        let dense = plan.outlook.memory.dense_bytes + plan.demand.table_bytes;
        assert!(host_bytes <= dense, "{case}: {host_bytes} of {dense}");
        let worst = difference(&expected, &answers(&model, &mut session));
        assert!(worst < 0.5, "{case}: a logit differs by {worst}");
    }
    // ggml's kernels can't stream; whole layers are then on the device, and the rest is mapped.
    let mapped = plan(&on(unlimited), &budget);
    assert!(!mapped.outlook.is_streamed && mapped.pool_bytes.is_none() && !mapped.has_slots());
}
