use super::*;

const GB: f64 = 1e9;

/// A 4x7B model, top 2, at Q4_K_M: 32 layers of 4 experts.
fn four_times_seven(working: f64) -> Demand {
    let item = |index: u32| ExpertItem {
        layer: index / 4,
        expert: index % 4,
        size_bytes: (13.65 * GB / 128.0) as u64,
        chance: 0.5,
    };
    let mut dense_bytes = vec![(0.77 * GB / 32.0) as u64; 32];
    dense_bytes.push((0.11 * GB) as u64);
    Demand {
        dense_bytes,
        table_bytes: (0.07 * GB) as u64,
        compute_bytes: (working * GB) as u64,
        experts: (0..128).map(item).collect(),
        n_expert: 4,
        n_used: 2,
        ..Demand::default()
    }
}

fn store(gigabytes: f64, gigabytes_per_second: f64) -> Store {
    Store { size_bytes: (gigabytes * GB) as u64, bytes_per_second: gigabytes_per_second * GB }
}

fn machine(device: Option<Store>, memory: Store) -> Machine {
    Machine { device, memory, disk: Disk::apart(3.0 * GB), seconds_per_token: 0.0 }
}

fn planned(demand: &Demand, machine: &Machine, grain: Grain) -> Outlook {
    let outlook = plan(demand, machine, &Decided::default(), grain).expect("it fits");
    assert!(outlook.device.total_bytes() <= machine.device.map_or(0, |device| device.size_bytes));
    assert!(outlook.memory.total_bytes() <= machine.memory.size_bytes);
    outlook
}

#[test]
fn speed_is_what_the_bandwidths_allow() {
    // 0.88 / device + 6.83 (1 - h) / memory, with h of the experts on the device, and where both of a layer's are there
    // 6.83 / device: the memory is slower than the device by more than the number of choices.
    for (device, memory, expected) in [(store(12.0, 360.0), 40.0, 15.1), (store(8.0, 272.0), 65.0, 13.9)] {
        let machine = machine(Some(device), store(32.0, memory));
        let outlook = planned(&four_times_seven(1.8), &machine, Grain::Expert);
        let h = outlook.count(Home::Device) as f64 / 128.0;
        let rate = device.bytes_per_second / GB;
        let of_layer =
            |layer: &[Home]| layer.iter().filter(|home| **home == Home::Device).count() as f64 / 4.0;
        let both = outlook.experts.chunks(4).map(|layer| of_layer(layer).powi(2)).sum::<f64>() / 32.0;
        let by_hand = 1.0 / ((0.88 + 6.825 * both) / rate + 6.825 * (1.0 - h) / memory);
        assert!((outlook.tokens_per_second() / by_hand - 1.0).abs() < 1e-3, "{outlook:?}");
        assert!((outlook.tokens_per_second() / expected - 1.0).abs() < 0.05, "{outlook:?}");
        assert!(outlook.all_in_memory());
    }
}

#[test]
fn budgets_are_kept_and_more_is_never_slower() {
    let demand = four_times_seven(0.5);
    for grain in [Grain::Layer, Grain::Expert] {
        let (mut before, mut was_streamed) = (0.0, false);
        for tenths in 20..200u32 {
            let size = f64::from(tenths) / 10.0;
            let machine = machine(Some(store(size / 2.0, 300.0)), store(size, 40.0));
            let outlook = planned(&demand, &machine, grain);
            let speed = outlook.tokens_per_second();
            // Where the host has room for what whole layers leave, it need not stream what single experts do: large batches
            // gain more by it than single tokens lose.
            let stops = was_streamed && !outlook.is_streamed;
            assert!(
                speed >= before * if stops { 0.95 } else { 1.0 },
                "{grain:?}, {size} GB: {speed} after {before}"
            );
            (before, was_streamed) = (speed, outlook.is_streamed);
        }
        let machine = machine(Some(store(6.0, 300.0)), store(6.0, 40.0));
        let now = planned(&demand, &machine, grain).tokens_per_second();
        let (device, memory) = with_more(&demand, &machine, &Decided::default(), grain, 1_000_000_000);
        assert!(device > Some(now) && memory > Some(now), "{now}: {device:?} {memory:?}");
    }
}

#[test]
fn the_experts_taken_most_often_come_first() {
    let mut demand = four_times_seven(0.0);
    demand.experts.iter_mut().for_each(|item| item.chance = if item.expert == 3 { 0.9 } else { 0.3 });
    let kept = |outlook: &Outlook, home: Home, expert: u32| {
        let items = demand.experts.iter().zip(&outlook.experts);
        items.filter(|(item, at)| item.expert == expert && **at == home).count()
    };
    let in_memory = planned(&demand, &machine(None, store(6.0, 40.0)), Grain::Layer);
    assert_eq!(kept(&in_memory, Home::Memory, 3), 32);
    assert!(kept(&in_memory, Home::Memory, 0) < 32 && in_memory.count(Home::Device) == 0);
    assert_eq!(in_memory.n_gpu_layers, 0);
    let on_device = planned(&demand, &machine(Some(store(5.0, 300.0)), store(20.0, 40.0)), Grain::Expert);
    assert_eq!(kept(&on_device, Home::Device, 3), 32);
    assert_eq!(on_device.n_gpu_layers, 33);
}

#[test]
fn by_layer_the_last_layers_experts_are_on_the_device() {
    let demand = four_times_seven(0.0);
    let outlook = planned(&demand, &machine(Some(store(5.0, 300.0)), store(20.0, 40.0)), Grain::Layer);
    // 4.12 GB are left for layers of 427 MB.
    assert_eq!((outlook.n_gpu_layers, outlook.count(Home::Device)), (33, 9 * 4));
    assert_eq!(outlook.n_host_expert_layers(&demand), 23);
    // Less than the dense weights: as many layers of those as fit, and no experts.
    let small = planned(&demand, &machine(Some(store(0.5, 300.0)), store(20.0, 40.0)), Grain::Layer);
    assert_eq!((small.n_gpu_layers, small.count(Home::Device)), (1 + 16, 0));
    assert_eq!(small.n_host_expert_layers(&demand), 32);
    let none = planned(&demand, &machine(Some(store(0.1, 300.0)), store(20.0, 40.0)), Grain::Layer);
    assert_eq!((none.n_gpu_layers, none.device), (0, Usage::default()));
    // Weights of the host are copied to the device for large batches, those that are there are not.
    let mut copied = four_times_seven(0.0);
    copied.largest_bytes = 500_000_000;
    let outlook = planned(&copied, &machine(Some(store(5.0, 300.0)), store(20.0, 40.0)), Grain::Layer);
    assert_eq!((outlook.count(Home::Device), outlook.device.compute_bytes), (8 * 4, 500_000_000));
    let all = planned(&copied, &machine(Some(store(14.6, 300.0)), store(20.0, 40.0)), Grain::Layer);
    assert_eq!((all.count(Home::Device), all.device.compute_bytes), (128, 0));
}

#[test]
fn by_expert_every_layer_has_its_share_and_the_host_a_copy() {
    let demand = four_times_seven(0.0);
    let device = Some(store(5.0, 300.0));
    let outlook = planned(&demand, &machine(device, store(20.0, 40.0)), Grain::Expert);
    let counts: Vec<usize> =
        outlook.experts.chunks(4).map(|l| l.iter().filter(|h| **h == Home::Device).count()).collect();
    assert_eq!(counts.iter().sum::<usize>(), 38);
    assert!(counts.iter().all(|n| *n == 1 || *n == 2), "{counts:?}");
    assert_eq!(outlook.memory.expert_bytes, demand.expert_bytes());
    // Without memory for copies whole layers are on the device.
    let small = planned(&demand, &machine(device, store(11.0, 40.0)), Grain::Expert);
    assert_eq!((small.count(Home::Device), small.n_host_expert_layers(&demand)), (36, 23));
    assert!(small.all_in_memory());
}

#[test]
fn what_the_user_decides_is_kept() {
    let demand = four_times_seven(0.0);
    let machine = machine(Some(store(5.0, 300.0)), store(20.0, 40.0));
    let with = |n_gpu_layers, n_host_expert_layers| {
        let decided = Decided { n_gpu_layers, n_host_expert_layers, ..Decided::default() };
        let outlook = plan(&demand, &machine, &decided, Grain::Layer).expect("it fits the host");
        (outlook.n_gpu_layers, outlook.count(Home::Device) / 4, outlook.device.total_bytes() <= 5_000_000_000)
    };
    assert_eq!(with(Some(5), None), (5, 4, true));
    assert_eq!(with(None, Some(30)), (33, 2, true));
    assert_eq!(with(Some(99), None), (33, 9, true));
    // Both: more than fits, if the user wants it so.
    assert_eq!(with(Some(33), Some(0)), (33, 32, false));
}

#[test]
fn a_tied_output_lies_on_the_host_once() {
    let mut demand = four_times_seven(0.0);
    demand.is_tied = true;
    demand.dense_bytes[32] = demand.table_bytes;
    let outlook = planned(&demand, &machine(None, store(20.0, 40.0)), Grain::Layer);
    let all = demand.dense_bytes[..32].iter().sum::<u64>() + demand.table_bytes + demand.expert_bytes();
    assert_eq!(outlook.memory.total_bytes(), all);
    // And stays there where experts are streamed.
    let streamed = planned(&demand, &machine(None, store(8.0, 40.0)), Grain::Layer);
    assert!(streamed.is_streamed && streamed.memory.other_bytes == demand.table_bytes, "{streamed:?}");
}

#[test]
fn where_experts_are_streamed_embeddings_stay_in_the_file() {
    let demand = Demand { rows_bytes: 1_000_000, ..four_times_seven(0.0) };
    let streamed = planned(&demand, &machine(None, store(8.0, 40.0)), Grain::Layer);
    assert!(streamed.is_streamed && streamed.memory.other_bytes == 1_000_000, "{streamed:?}");
    let mapped = planned(&demand, &machine(None, store(20.0, 40.0)), Grain::Layer);
    assert!(!mapped.is_streamed && mapped.memory.other_bytes == demand.table_bytes, "{mapped:?}");
    let never = Decided { streaming: Streaming::Never, ..Decided::default() };
    let cached = plan(&demand, &machine(None, store(8.0, 40.0)), &never, Grain::Layer).expect("it fits");
    assert_eq!(cached.memory.other_bytes, demand.table_bytes);
}

#[test]
fn what_can_not_fit_says_how_much_it_needs() {
    let demand = four_times_seven(0.5);
    let least = |size| plan(&demand, &machine(None, store(size, 40.0)), &Decided::default(), Grain::Layer);
    let error = least(1.0).expect_err("dense weights and buffers");
    assert!(error.needed.total_bytes() > 1_400_000_000 && error.available_bytes == 1_000_000_000, "{error}");
    assert!(error.to_string().contains("bytes of memory are needed"), "{error}");
    let exactly = least(15.1).expect("all of it");
    assert_eq!(exactly.count(Home::Memory), 128);
    let streamed = least(8.0).expect("a part of it");
    let pool = streamed.pool_bytes(&machine(None, store(8.0, 40.0)), &Decided::default());
    let pool = pool.expect("it is streamed");
    assert!(pool < demand.expert_bytes() && pool > 6_000_000_000, "{streamed:?}");
    // Half of the experts' 6.83 GB at 3 GB/s, less what is multiplied meanwhile at 40.
    assert!((1.0..1.6).contains(&streamed.time.file), "{streamed:?}");

    // With the disk at half of that, or as many hits as there may be.
    let machine = machine(None, store(8.0, 40.0));
    let with = |rate, hits| {
        let machine = Machine { disk: Disk::apart(rate), ..machine };
        streamed.time_with(&demand, &machine, hits)
    };
    let planned = streamed.time;
    assert!((with(3.0 * GB, None).total() - planned.total()).abs() < 1e-9, "{planned:?}");
    let slower = with(1.5 * GB, None);
    assert!((2.0..2.6).contains(&(slower.file / planned.file)), "{slower:?}");
    assert!(with(3.0 * GB, Some(0.7)).file < planned.file && with(3.0 * GB, Some(0.2)).file > planned.file);
    assert_eq!(with(3.0 * GB, Some(1.0)).file, 0.0);
    assert_eq!((slower.memory, slower.rest), (planned.memory, planned.rest));
}

#[test]
fn where_both_memories_are_short_single_experts_are_on_the_device_and_the_rest_is_streamed() {
    let demand = four_times_seven(0.5);
    let short = machine(Some(store(6.0, 336.0)), store(8.0, 40.0));
    let outlook = planned(&demand, &short, Grain::Expert);
    assert_eq!((outlook.n_gpu_layers, outlook.is_streamed), (33, true));
    // 4.6 GB of 107 MB each, in every layer; nothing is there twice.
    let n = outlook.count(Home::Device);
    assert!((42..44).contains(&n), "{n}");
    assert!(outlook.experts.chunks(4).all(|layer| layer.contains(&Home::Device)));
    let on_host = outlook.experts.iter().zip(&demand.experts).filter(|(home, _)| **home == Home::Memory);
    assert_eq!(outlook.memory.expert_bytes, on_host.map(|(_, item)| item.size_bytes).sum::<u64>());
    let found = outlook.chances;
    assert!((found.device - n as f64 / 128.0).abs() < 1e-9, "{found:?}");
    assert!((found.device + found.memory + found.file - 1.0).abs() < 1e-9 && found.file > 0.05, "{found:?}");
    let pool = outlook.pool_bytes(&short, &Decided::default()).expect("it is streamed");
    assert!(pool >= outlook.memory.expert_bytes + outlook.memory.staging_bytes, "{pool}");
    assert!(outlook.memory.total_bytes() <= 8_000_000_000);
    // Faster than without the device, and than what reading all misses takes.
    let without = planned(&demand, &machine(None, store(8.0, 40.0)), Grain::Expert);
    assert!(outlook.tokens_per_second() > 2.0 * without.tokens_per_second(), "{outlook:?}, {without:?}");
    assert!(outlook.time.file < 6.825 * found.file / (3.0 * 0.75), "{outlook:?}");

    // Through the page cache whole layers are mapped.
    let never = Decided { streaming: Streaming::Never, ..Decided::default() };
    let cached = plan(&demand, &short, &never, Grain::Expert).expect("it fits");
    assert!(!cached.is_streamed && cached.pool_bytes(&short, &never).is_none() && !cached.all_in_memory());
    assert!(
        cached
            .experts
            .chunks(4)
            .all(|l| l.iter().all(|home| (*home == Home::Device) == (l[0] == Home::Device)))
    );
}

#[test]
fn a_pool_of_the_users_size_is_planned_with() {
    let demand = four_times_seven(0.5);
    let decided = |bytes| Decided { streaming: Streaming::Always(Some(bytes)), ..Decided::default() };
    let large = machine(Some(store(6.0, 336.0)), store(32.0, 40.0));
    let outlook = plan(&demand, &large, &decided(3_000_000_000), Grain::Expert).expect("it fits");
    assert!(outlook.is_streamed && outlook.memory.expert_bytes < 3_000_000_000, "{outlook:?}");
    assert_eq!(outlook.pool_bytes(&large, &decided(3_000_000_000)), Some(3_000_000_000));
    let small = machine(Some(store(6.0, 336.0)), store(4.0, 40.0));
    let shortage = plan(&demand, &small, &decided(5_000_000_000), Grain::Expert).expect_err("it doesn't");
    assert!(shortage.needed.total_bytes() > 5_000_000_000, "{shortage}");
    // Where nothing is left to be streamed, nothing is.
    let all = machine(Some(store(16.0, 336.0)), store(4.0, 40.0));
    let outlook = plan(&demand, &all, &decided(5_000_000_000), Grain::Expert).expect("it fits");
    assert!(!outlook.is_streamed && outlook.count(Home::Device) == 128);
}

#[test]
fn slots_of_the_users_choice_take_their_room_before_layers_do() {
    let demand = four_times_seven(0.0);
    let slots = Some((0..32).map(|layer| if layer == 0 { vec![] } else { vec![3] }).collect());
    let decided = Decided { slots, ..Decided::default() };
    for (memory, is_streamed) in [(20.0, false), (8.0, true)] {
        let machine = machine(Some(store(3.0, 300.0)), store(memory, 40.0));
        let outlook = plan(&demand, &machine, &decided, Grain::Expert).expect("it fits");
        assert_eq!(outlook.is_streamed, is_streamed);
        // Layers of 24 MB with an expert of 107 MB each, and the output of 110 MB.
        assert_eq!((outlook.n_gpu_layers, outlook.count(Home::Device)), (1 + 22, 22));
        let there = outlook.experts.chunks(4).enumerate().filter(|(_, l)| l[3] == Home::Device);
        assert_eq!(there.map(|(layer, _)| layer).collect::<Vec<_>>(), (10..32).collect::<Vec<_>>());
        assert!(outlook.device.total_bytes() <= 3_000_000_000, "{outlook:?}");
    }
}
