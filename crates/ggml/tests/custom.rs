//! Custom nodes: how work is shared, how results are stored, and what becomes of a panic.

mod support;

use ggml::{
    Backend, Graph, Output, RowKernel, Rows, Scheduler, Sources, ThreadPool, TileKernel, Tiles, Type,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::{cpu, cpu_weight, numbers};

/// Row `i` of bytes is filled with `i`.
struct Numbered;

impl RowKernel for Numbered {
    fn run(&self, _: &Sources<'_>, rows: &mut Rows<'_>) {
        while let Some((index, row)) = rows.take() {
            row.fill(index as u8);
        }
    }
}

/// Each element of the first operand (bytes) plus the weight's; `done` counts the tiles.
struct Add {
    weight: ggml::Tensor,
    done: Arc<AtomicUsize>,
}

const TILE: usize = 7;

impl TileKernel for Add {
    fn run(&self, sources: &Sources<'_>, tiles: &mut Tiles<'_>, output: &Output<'_>) {
        let bytes: &[u8] = sources.values(0);
        let floats = sources.weight(&self.weight).as_chunks::<4>().0;
        while let Some(tile) = tiles.take(bytes.len().div_ceil(TILE)) {
            self.done.fetch_add(1, Ordering::Relaxed);
            let first = tile * TILE;
            let last = (first + TILE).min(bytes.len());
            let sums: Vec<f32> =
                (first..last).map(|i| f32::from(bytes[i]) + f32::from_le_bytes(floats[i])).collect();
            output.write(first, &sums);
        }
    }
}

fn scheduler(n_threads: usize) -> Scheduler {
    let mut backend = Backend::new(cpu()).expect("a backend");
    backend.set_threads(&Arc::new(ThreadPool::new(n_threads).expect("threads")));
    Scheduler::new(vec![backend], 64, false)
}

#[test]
fn every_piece_of_work_is_done_once_by_any_number_of_threads() {
    let (row, n_rows) = (24, 50);
    let values = numbers(row * n_rows, 3);
    let weight = cpu_weight("w", &[row, n_rows], &values);
    for n_threads in [1, 2, 5] {
        let graph = Graph::new(8);
        let done = Arc::new(AtomicUsize::new(0));
        let bytes = graph.custom_rows(row, n_rows, &[&weight], Arc::new(Numbered));
        let kernel = Add { weight: weight.clone(), done: Arc::clone(&done) };
        let sum = graph.custom_tiles(&[row, n_rows], &[&bytes, &weight], Arc::new(kernel));
        graph.output(&sum);
        let mut scheduler = scheduler(n_threads);
        scheduler.allocate(&graph).expect("memory");
        // Counters must be back at zero for the second time.
        for time in 1..=2 {
            scheduler.compute(&graph).expect("computes");
            let mut found = vec![0.0f32; row * n_rows];
            sum.read_values(0, &mut found);
            for (i, (found, value)) in found.iter().zip(&values).enumerate() {
                assert_eq!(*found, (i / row) as f32 + value, "element {i}, {n_threads} threads");
            }
            assert_eq!(done.load(Ordering::Relaxed), time * (row * n_rows).div_ceil(TILE));
        }
    }
}

struct Broken;

impl TileKernel for Broken {
    fn run(&self, sources: &Sources<'_>, tiles: &mut Tiles<'_>, _: &Output<'_>) {
        while let Some(tile) = tiles.take(9) {
            assert!(tile != 4, "tile 4 is broken ({} threads)", sources.n_threads());
        }
    }
}

#[test]
fn a_panic_on_any_thread_reaches_the_caller_and_leaves_the_scheduler_usable() {
    let weight = cpu_weight("w", &[4], &[0.0; 4]);
    let graph = Graph::new(4);
    let broken = graph.custom_tiles(&[4], &[&weight], Arc::new(Broken));
    graph.output(&broken);
    let mut scheduler = scheduler(3);
    scheduler.allocate(&graph).expect("memory");
    for _ in 0..2 {
        let compute = std::panic::AssertUnwindSafe(|| scheduler.compute(&graph));
        let panic = std::panic::catch_unwind(compute).expect_err("it panics");
        let text = panic.downcast_ref::<String>().expect("a message");
        assert_eq!(text, "tile 4 is broken (3 threads)");
    }
}

/// Each call does what it must not.
struct Careless(fn(&Sources<'_>, &Output<'_>));

impl TileKernel for Careless {
    fn run(&self, sources: &Sources<'_>, _: &mut Tiles<'_>, output: &Output<'_>) {
        (self.0)(sources, output);
    }
}

#[test]
fn access_outside_of_operands_and_result_is_refused() {
    let weight = cpu_weight("w", &[4], &[0.0; 4]);
    type Call = fn(&Sources<'_>, &Output<'_>);
    let careless: [(&str, Call); 4] = [
        ("no operand 5", |sources, _| assert_eq!(sources.ne(5), [0; 4])),
        ("operand 0: type", |sources, _| assert_eq!(sources.values::<i32>(0), [0])),
        ("leave a result of 4", |_, output| output.write(3, &[1.0, 2.0])),
        ("leave a result of 4", |_, output| output.write(usize::MAX, &[1.0])),
    ];
    for (expected, call) in careless {
        let graph = Graph::new(4);
        let node = graph.custom_tiles(&[4], &[&weight], Arc::new(Careless(call)));
        graph.output(&node);
        let mut scheduler = scheduler(1);
        scheduler.allocate(&graph).expect("memory");
        let compute = std::panic::AssertUnwindSafe(|| scheduler.compute(&graph));
        let panic = std::panic::catch_unwind(compute).expect_err("it panics");
        let text = panic.downcast_ref::<String>().expect("a message");
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn only_weights_in_host_memory_are_lent() {
    assert!(cpu_weight("w", &[4], &[0.0; 4]).is_host_weight());
    let context = ggml::Context::new(1);
    let tensor = context.tensor("x", Type::F32, &[4]);
    assert!(!tensor.is_host_weight(), "it has no place");
    ggml::Buffer::allocate(ggml::BufferType::cpu(), std::slice::from_ref(&tensor), "x").expect("memory");
    assert!(!tensor.is_host_weight(), "it is no weight");
}
