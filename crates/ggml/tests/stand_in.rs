//! The device that stands in for a GPU: placement, copies, budgets.

mod support;

use ggml::{Buffer, Context, Device, DeviceKind, Error, Graph, Tensor, ThreadPool, Type, stand_in};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use support::{Data, cpu, numbers, scheduler, weight};

const N: usize = 64;

fn devices(n: usize, bytes_each: usize) -> Vec<Device> {
    stand_in::register(n, bytes_each).expect("a CPU backend")
}

/// A chain of `places.len()` matrices, each on its device, with a norm and a residual between them.
fn chain(graph: &Graph, places: &[Device], n_tokens: usize) -> (Tensor, Tensor) {
    let input = graph.input("x", Type::F32, &[N, n_tokens]);
    let mut out = graph.rms_norm(&input, 1e-5);
    for (i, device) in places.iter().enumerate() {
        let values = numbers(N * N, 100 + i as u64);
        let matrix = weight("w", &[N, N], &values, device.buffer_type());
        out = graph.add(&graph.rms_norm(&graph.mul_mat(&matrix, &out), 1e-5), &out);
    }
    (input, out)
}

fn run_chain(used: &[Device], places: &[Device], n_tokens: usize, offload: bool) -> (Vec<f32>, usize) {
    let mut scheduler = scheduler(used, offload);
    let graph = Graph::new(128);
    let (input, result) = chain(&graph, places, n_tokens);
    let x = numbers(N * n_tokens, 1);
    let values = support::compute(&mut scheduler, &graph, &[Data::F32(&input, &x)], &result);
    (values, scheduler.n_splits())
}

#[test]
fn it_presents_itself_as_a_gpu_with_memory_of_its_own() {
    let both = devices(2, 1 << 20);
    assert_eq!(both.len(), 2);
    for device in &both {
        assert_eq!(device.kind(), DeviceKind::Gpu);
        assert!(device.name().starts_with("STANDIN"), "{device:?}");
        assert_eq!(device.buffer_type().name(), device.name());
        assert!(!device.buffer_type().is_host());
        assert_eq!(device.memory(), (1 << 20, 1 << 20));
        assert!(ggml::devices().contains(device));
    }
    assert_ne!(both[0].name(), both[1].name());
}

#[test]
fn weights_on_several_devices_give_the_cpus_result() {
    let both = devices(2, 8 << 20);
    let (first, second) = (both[0], both[1]);
    let (expected, n_splits) = run_chain(&[], &[cpu(); 4], 5, false);
    assert_eq!(n_splits, 1);
    // Splits: the device's, the CPU's and the other's, each entered once or twice.
    let (found, n_splits) = run_chain(&both, &[first, cpu(), second, first], 5, false);
    assert_eq!(found, expected);
    assert!(n_splits >= 4, "{n_splits}");
    let (found, n_splits) = run_chain(&both, &[first; 4], 5, false);
    assert_eq!(found, expected);
    assert!(n_splits <= 2, "{n_splits}");
}

#[test]
fn what_the_host_computes_lies_where_the_device_fetches_it() {
    let device = devices(1, 8 << 20);
    let place_of_input = |used: &[Device]| {
        let mut scheduler = scheduler(used, false);
        let graph = Graph::new(128);
        let (input, result) = chain(&graph, &[cpu(), used.first().copied().unwrap_or_else(cpu), cpu()], 5);
        graph.output(&result);
        scheduler.allocate(&graph).expect("memory");
        input.place().expect("a place").name()
    };
    assert_eq!(place_of_input(&[]), "CPU");
    assert_eq!(place_of_input(&device), "STANDIN_HOST");
}

#[test]
fn large_batches_are_computed_there_with_the_hosts_weights() {
    let device = devices(1, 8 << 20);
    let places = [cpu(); 3];
    for (n_tokens, splits) in [(4, 1..=1), (32, 2..=100)] {
        let (expected, _) = run_chain(&[], &places, n_tokens, false);
        let (found, n_splits) = run_chain(&device, &places, n_tokens, true);
        assert_eq!(found, expected);
        assert!(splits.contains(&n_splits), "{n_tokens} tokens: {n_splits} splits");
    }
}

#[test]
fn a_cache_on_the_device_is_written_and_read_there() {
    let device = devices(1, 8 << 20);
    let (n, n_kv, n_heads) = (64, 32, 2);
    let run = |used: &[Device], place: Device| {
        let contexts = Context::new(2);
        let caches = [0, 1].map(|_| contexts.tensor("cache", Type::F16, &[n * n_heads, n_kv]));
        let buffer = Buffer::allocate(place.buffer_type(), &caches, "cache").expect("memory");
        buffer.clear(0);
        let graph = Graph::new(64);
        let new = graph.input("new", Type::F32, &[n * n_heads, 4]);
        let rows = graph.input("rows", Type::I64, &[4]);
        let mask = graph.input("mask", Type::F16, &[n_kv, 4]);
        let [k, v] = caches.map(|cache| {
            let written = graph.set_rows(&cache, &new, &rows);
            graph.permute(&graph.reshape(&written, &[n, n_heads, n_kv]), [0, 2, 1, 3])
        });
        let q = graph.permute(&graph.reshape(&new, &[n, n_heads, 4]), [0, 2, 1, 3]);
        let result = graph.flash_attention(&q, &k, &v, &mask, 0.125);
        let (x, bits) = (numbers(n * n_heads * 4, 2), vec![0u16; n_kv * 4]);
        let inputs = [Data::F32(&new, &x), Data::I64(&rows, &[5, 0, 31, 6]), Data::F16(&mask, &bits)];
        let mut scheduler = scheduler(used, false);
        let values = support::compute(&mut scheduler, &graph, &inputs, &result);
        let on_device = scheduler.buffer_sizes()[0].1;
        (values, on_device)
    };
    let (expected, _) = run(&[], cpu());
    let (found, on_device) = run(&device, device[0]);
    assert_eq!(found, expected);
    assert!(expected.iter().any(|v| *v != 0.0));
    assert!(on_device > 0, "nothing was computed on the device");
}

#[test]
fn memory_beyond_the_budget_is_refused_and_comes_back() {
    let device = devices(1, 1 << 20)[0];
    let place = |n_bytes: usize| {
        let tensor = Context::new(1).tensor("t", Type::F32, &[n_bytes / 4]);
        Buffer::allocate(device.buffer_type(), &[tensor], "a test")
    };
    let first = place(768 << 10).expect("fits");
    assert_eq!(device.memory(), (256 << 10, 1 << 20));
    let error = place(257 << 10).err().expect("does not fit beside it");
    let Error::OutOfMemory { buffer_type, size_bytes, .. } = error else { panic!("{error}") };
    assert_eq!((buffer_type, size_bytes), (device.name(), 257 << 10));
    place(256 << 10).expect("fits exactly");
    drop(first);
    assert_eq!(device.memory().0, 1 << 20);
    place(1 << 20).expect("all of it");
}

#[test]
fn a_graph_beyond_the_budget_is_an_error_and_a_smaller_one_still_runs() {
    let device = devices(1, 128 << 10)[0];
    let values = numbers(N * N, 3);
    let matrix = weight("w", &[N, N], &values, device.buffer_type());
    let mut scheduler = scheduler(&[device], false);
    let build = |n_tokens: usize| {
        let graph = Graph::new(16);
        let input = graph.input("x", Type::F32, &[N, n_tokens]);
        let result = graph.mul_mat(&matrix, &input);
        graph.output(&result);
        (graph, input, result)
    };
    let (large, ..) = build(4096);
    assert!(matches!(scheduler.allocate(&large), Err(Error::GraphAllocation { .. })));
    assert!(matches!(scheduler.reserve(large), Err(Error::GraphAllocation { .. })));
    let (graph, input, result) = build(2);
    let found = support::compute(&mut scheduler, &graph, &[Data::F32(&input, &[0.0; 2 * N])], &result);
    assert_eq!(found, [0.0; 2 * N]);
}

#[test]
fn quantized_rows_are_padded_as_on_cuda() {
    let device = devices(1, 1 << 20)[0];
    let q8_0 = Type::from_id(8).expect("Q8_0");
    let context = Context::new(2);
    let tensors = [context.tensor("short", q8_0, &[64, 2]), context.tensor("full", q8_0, &[512, 2])];
    let size = |i: usize| {
        let buffer = Buffer::allocate(device.buffer_type(), &tensors[i..=i], "test").expect("memory");
        buffer.size()
    };
    assert_eq!(size(0), 2 * 64 / 32 * 34 + (512 - 64) / 32 * 34);
    assert_eq!(size(1), 2 * 512 / 32 * 34);
}

#[test]
fn data_moves_in_and_out_by_copies() {
    let device = devices(1, 1 << 20)[0];
    let tensor = weight("t", &[4, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], device.buffer_type());
    tensor.write(8, &0.5f32.to_le_bytes());
    let mut values = [0.0f32; 3];
    tensor.read_values(1, &mut values);
    assert_eq!(values, [2.0, 0.5, 4.0]);
}

#[test]
fn threads_reach_the_cpu_inside_and_a_stop_does_not() {
    let device = devices(1, 1 << 20)[0];
    let matrix = weight("w", &[N, N], &numbers(N * N, 4), device.buffer_type());
    let mut scheduler = scheduler(&[device], false);
    let pool = Arc::new(ThreadPool::new(2).expect("threads"));
    for backend in scheduler.backends_mut() {
        backend.set_threads(&pool);
    }
    let build_on = |matrix: &Tensor| {
        let graph = Graph::new(16);
        let input = graph.input("x", Type::F32, &[N, 3]);
        let result = graph.mul_mat(matrix, &input);
        graph.output(&result);
        (graph, input, result)
    };
    let build = || build_on(&matrix);
    let (graph, input, result) = build();
    let first = support::compute(&mut scheduler, &graph, &[Data::F32(&input, &[1.0; 3 * N])], &result);
    scheduler.backends_mut()[0].set_abort(Arc::new(AtomicBool::new(true)));
    let (graph, input, result) = build();
    let again = support::compute(&mut scheduler, &graph, &[Data::F32(&input, &[1.0; 3 * N])], &result);
    assert_eq!(first, again, "GPUs compute what they were given");
    scheduler.backends_mut()[1].set_abort(Arc::new(AtomicBool::new(true)));
    let (graph, ..) = build_on(&support::cpu_weight("w", &[N, N], &numbers(N * N, 4)));
    scheduler.allocate(&graph).expect("memory");
    assert!(matches!(scheduler.compute(&graph), Err(Error::Aborted)));
}

/// From the device and from the host, in any number, and none of them before it is computed.
#[test]
fn results_are_fetched_behind_the_computation() {
    let device = devices(1, 1 << 20)[0];
    let there = weight("there", &[N, N], &numbers(N * N, 5), device.buffer_type());
    let here = support::cpu_weight("here", &[N, 3], &numbers(N * 3, 6));
    let mut scheduler = scheduler(&[device], false);
    let graph = Graph::new(16);
    let x = graph.input("x", Type::F32, &[N, 1]);
    let (first, second) = (graph.mul_mat(&there, &x), graph.mul_mat(&here, &x));
    let third = graph.top_k(&first, 2);
    let third = graph.contiguous(&third);
    [&first, &second, &third].into_iter().for_each(|result| graph.output(result));
    scheduler.allocate(&graph).expect("memory");
    for seed in 20..23 {
        x.write_values(&numbers(N, seed));
        let results = [second.clone(), first.clone(), third.clone()];
        let beside = stand_in::reads_beside_work(device);
        scheduler.compute_and_fetch(&graph, &results).expect("computes");
        let (mut of_host, mut of_device, mut best) = ([0f32; 3], [0f32; N], [0i32; 2]);
        second.read_values(0, &mut of_host);
        first.read_values(0, &mut of_device);
        third.read_values(0, &mut best);
        assert_eq!(scheduler.result::<f32>(0), of_host);
        assert_eq!(scheduler.result::<f32>(1), of_device);
        assert_eq!(scheduler.result::<i32>(2), best);
        assert!(of_device.iter().any(|value| *value != 0.0));
        assert_eq!(stand_in::reads_beside_work(device), beside);
    }
    scheduler.compute_and_fetch(&graph, &[]).expect("computes");
}

/// The graph that was begun may go, and the next one be given its place, before the device has computed anything of it.
#[test]
fn a_graph_is_allocated_while_the_device_computes_another() {
    let device = devices(1, 1 << 20)[0];
    let cache = Context::new(1).tensor("cache", Type::F32, &[N, 4]);
    Buffer::allocate(device.buffer_type(), std::slice::from_ref(&cache), "cache").expect("memory").clear(0);
    let square = weight("w", &[N, N], &numbers(N * N, 5), device.buffer_type());
    let mut scheduler = scheduler(&[device], false);
    let x = numbers(N, 30);
    let mut expected = None;
    for row in 0..4i64 {
        let graph = Graph::new(16);
        let (input, rows) = (graph.input("x", Type::F32, &[N, 1]), graph.input("rows", Type::I64, &[1]));
        let written = graph.set_rows(&cache, &graph.mul_mat(&square, &input), &rows);
        graph.output(&written);
        scheduler.allocate(&graph).expect("memory");
        scheduler.wait().expect("computed");
        input.write_values(&x);
        rows.write_values(&[row]);
        scheduler.start(&graph).expect("begun");
        drop(graph);
        let mut values = vec![0f32; N];
        cache.read_values(row as usize * N, &mut values);
        assert_eq!(values, [0.0; N], "the device has not been waited for");
    }
    scheduler.wait().expect("computed");
    for row in 0..4 {
        let mut values = vec![0f32; N];
        cache.read_values(row * N, &mut values);
        assert!(values.iter().any(|value| *value != 0.0));
        assert_eq!(*expected.get_or_insert_with(|| values.clone()), values);
    }
    // What is under way is ended before its memory goes.
    let graph = Graph::new(16);
    let input = graph.input("x", Type::F32, &[N, 1]);
    graph.output(&graph.mul_mat(&square, &input));
    scheduler.allocate(&graph).expect("memory");
    scheduler.start(&graph).expect("begun");
    drop((graph, square, scheduler));
}

/// Kernels of GPUs look for each expert among the choices of a token and take the first they find: for batches, and for
/// weights that are not quantized always.
#[test]
fn an_expert_that_a_token_names_twice_is_an_error_where_gpus_compute_it_once() {
    let device = devices(1, 1 << 20)[0];
    let run = |used: &[Device], is_quantized: bool, repeated: bool, ids: &[i32]| {
        let place = used.first().copied().unwrap_or_else(cpu).buffer_type();
        let ty = if is_quantized { Type::from_id(8).expect("Q8_0") } else { Type::F32 };
        let experts = Context::new(1).tensor("experts", ty, &[N, N, 3]);
        Buffer::allocate(place, std::slice::from_ref(&experts), "experts").expect("memory").set_weights();
        let values = numbers(N * N * 3, 9);
        if is_quantized {
            let mut bytes = vec![0; experts.n_bytes()];
            for (block, values) in bytes.chunks_exact_mut(34).zip(values.chunks_exact(32)) {
                block[..2].copy_from_slice(&0x2000u16.to_le_bytes());
                block[2..].iter_mut().zip(values).for_each(|(q, v)| *q = (*v * 127.0) as i8 as u8);
            }
            experts.write(0, &bytes);
        } else {
            experts.write_values(&values);
        }
        let n_tokens = ids.len() / 2;
        let graph = Graph::new(16);
        let x = graph.input("x", Type::F32, &[N, 1, n_tokens]);
        let chosen = graph.input("ids", Type::I32, &[2, n_tokens]);
        let result = if repeated {
            graph.mul_mat_id_repeated(&experts, &x, &chosen)
        } else {
            graph.mul_mat_id(&experts, &x, &chosen)
        };
        graph.output(&result);
        let mut scheduler = scheduler(used, false);
        scheduler.allocate(&graph).expect("memory");
        x.write_values(&numbers(N * n_tokens, 10));
        chosen.write_values(ids);
        let mut values = vec![0.0; result.n_elements()];
        scheduler.compute(&graph).map(|()| {
            result.read_values(0, &mut values);
            values
        })
    };
    for (is_quantized, ids, is_sound) in [
        (true, &[2, 2][..], true),
        (false, &[2, 2], false),
        (true, &[0, 1, 2, 0], true),
        (true, &[0, 1, 2, 2], false),
        (false, &[0, 1, 2, 2], false),
    ] {
        let what = format!("quantized: {is_quantized}, {ids:?}");
        let expected = run(&[], is_quantized, false, ids).expect("the CPU takes any");
        match run(&[device], is_quantized, false, ids) {
            Ok(found) => assert!(is_sound && found == expected, "{what}"),
            Err(error) => assert!(!is_sound && matches!(error, Error::RepeatedExpert), "{what}: {error}"),
        }
        assert_eq!(run(&[device], is_quantized, true, ids).expect(&what), expected, "{what}");
    }
}

/// A CPU node that reads nothing of the device but a table runs while the device has work; one that reads what the device
/// computes does not. What is pending shows in the count of reads.
#[test]
fn the_host_computes_beside_it_what_needs_nothing_of_it() {
    let device = devices(1, 1 << 20)[0];
    let there = weight("there", &[N, N], &numbers(N * N, 5), device.buffer_type());
    let here = support::cpu_weight("here", &[N, N], &numbers(N * N, 6));
    let table = Context::new(1).table("table", Type::F32, &[N]);
    Buffer::allocate(device.buffer_type(), std::slice::from_ref(&table), "a table").expect("memory");
    table.write_values(&numbers(N, 7));
    let run = |used: &[Device], by_table: bool, there: &Tensor, table: &Tensor| {
        let mut scheduler = scheduler(used, false);
        let graph = Graph::new(16);
        let x = graph.input("x", Type::F32, &[N, 1]);
        let on_device = graph.mul_mat(there, &x);
        graph.expand(&on_device);
        let read = if by_table { table.clone() } else { graph.reshape(&on_device, &[N]) };
        let on_host = graph.mul_mat(&here, &read);
        graph.expand(&on_host);
        let result = graph.add(&on_device, &on_host);
        let before = used.first().map_or(0, |d| stand_in::reads_beside_work(*d));
        let values = support::compute(&mut scheduler, &graph, &[Data::F32(&x, &numbers(N, 8))], &result);
        (values, used.first().map_or(0, |d| stand_in::reads_beside_work(*d)) - before)
    };
    let on_host = |tensor: &Tensor| {
        let mut values = vec![0.0; tensor.n_elements()];
        tensor.read_values(0, &mut values);
        let ne = tensor.ne();
        support::cpu_weight("copy", if ne[1] == 1 { &ne[..1] } else { &ne[..2] }, &values)
    };
    for by_table in [true, false] {
        let (expected, _) = run(&[], by_table, &on_host(&there), &on_host(&table));
        let (found, beside) = run(&[device], by_table, &there, &table);
        assert_eq!(found, expected);
        assert_eq!(beside, usize::from(by_table), "reads beside work");
    }
    assert_eq!(stand_in::reads_beside_work(cpu()), 0);
}

/// What the child processes of the tests below do; a test only because the test program is all there is to run.
#[test]
fn child_reports_devices_from_the_environment() {
    if std::env::var_os(stand_in::VARIABLE).is_none() {
        return; // run by the tests below
    }
    match ggml::load_backends() {
        Ok(()) => assert!(stand_in::register_from_env().expect("a further call").is_empty()),
        Err(error) => println!("{error}"),
    }
    for device in ggml::devices().into_iter().filter(|d| d.kind() == DeviceKind::Gpu) {
        println!("{} {}", device.name(), device.memory().1);
    }
}

fn child(setting: &str) -> String {
    let output = std::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "child_reports_devices_from_the_environment", "--nocapture"])
        .env(stand_in::VARIABLE, setting)
        .output()
        .expect("runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn the_environment_sets_devices_up() {
    let output = child("64M, 4096");
    assert!(output.contains("STANDIN0 67108864\n") && output.contains("STANDIN1 4096\n"), "{output}");
    assert!(!output.contains("STANDIN2"), "{output}");
}

#[test]
fn an_environment_that_is_no_list_of_sizes_is_an_error() {
    let output = child("64M,much");
    assert!(
        output.contains(r#"BRUCE_STAND_IN_DEVICES: found "64M,much", expected sizes such as"#),
        "{output}"
    );
    assert!(!output.contains("STANDIN0"), "{output}");
}
