//! What the handles promise: operands outlive their handles, mistakes are panics, and a scheduler takes one graph after
//! another.

mod support;

use ggml::{Buffer, BufferType, Context, Error, Graph, Rope, RopeStyle, Tensor, ThreadPool, Type};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use support::{Data, assert_close, cpu_weight, dot, numbers, scheduler};

#[test]
fn a_graph_keeps_weights_alive_whose_handles_are_gone() {
    let (n, n_out) = (64, 16);
    let (w, x) = (numbers(n * n_out, 1), numbers(n, 2));
    let graph = Graph::new(8);
    let input = graph.input("x", Type::F32, &[n]);
    let result = {
        let context = Context::new(1);
        let weight = context.tensor("w", Type::F32, &[n, n_out]);
        let buffer =
            Buffer::allocate(BufferType::cpu(), std::slice::from_ref(&weight), "test").expect("memory");
        weight.write_values(&w);
        drop((context, buffer));
        graph.mul_mat(&weight, &input)
    };
    // Memory that was freed would be taken again by these.
    let others: Vec<Tensor> =
        (0..8).map(|_| cpu_weight("other", &[n, n_out], &vec![9.0; n * n_out])).collect();
    let expected: Vec<f64> = w.chunks(n).map(|w| dot(w, &x)).collect();
    assert_close(&support::on_cpu(&graph, &[Data::F32(&input, &x)], &result), &expected, 1e-5);
    drop(others);
}

#[test]
fn a_tensor_outlives_its_context_and_buffer() {
    let tensor = cpu_weight("t", &[4], &[1.0, 2.0, 3.0, 4.0]);
    let mut values = [0.0f32; 2];
    tensor.read_values(2, &mut values);
    assert_eq!(values, [3.0, 4.0]);
}

#[test]
fn one_scheduler_computes_graphs_of_any_size_in_turn() {
    let n = 96;
    let weights: Vec<Vec<f32>> = (0..3).map(|i| numbers(n * n, 10 + i)).collect();
    let tensors: Vec<Tensor> = weights.iter().map(|w| cpu_weight("w", &[n, n], w)).collect();
    let mut scheduler = scheduler(&[], false);
    for (n_tokens, depth) in [(1, 1), (64, 3), (2, 3), (7, 1), (128, 2), (1, 3)] {
        let x = numbers(n * n_tokens, n_tokens as u64);
        let graph = Graph::new(32);
        let input = graph.input("x", Type::F32, &[n, n_tokens]);
        let mut out = graph.mul_mat(&tensors[0], &input);
        let mut expected = x.clone();
        for (i, tensor) in tensors.iter().enumerate().take(depth) {
            if i > 0 {
                out = graph.mul_mat(tensor, &out);
            }
            let product = |x: &[f32]| weights[i].chunks(n).map(|w| dot(w, x) as f32).collect::<Vec<_>>();
            expected = expected.chunks(n).flat_map(product).collect();
        }
        let found = support::compute(&mut scheduler, &graph, &[Data::F32(&input, &x)], &out);
        let expected: Vec<f64> = expected.iter().map(|v| f64::from(*v)).collect();
        assert_close(&found, &expected, 1e-4);
    }
}

#[test]
fn measuring_a_graph_leaves_the_scheduler_usable() {
    let weight = cpu_weight("w", &[32, 32], &numbers(1024, 5));
    let mut scheduler = scheduler(&[], false);
    let build = |n_tokens: usize| {
        let graph = Graph::new(8);
        let input = graph.input("x", Type::F32, &[32, n_tokens]);
        let result = graph.mul_mat(&weight, &input);
        graph.output(&result);
        (graph, input, result)
    };
    let sizes = scheduler.measure(build(64).0);
    assert!(sizes.len() == 1 && sizes[0].1 >= 64 * 32 * 4, "{sizes:?}");
    scheduler.reserve(build(64).0).expect("memory");
    let (graph, input, result) = build(3);
    let found = support::compute(&mut scheduler, &graph, &[Data::F32(&input, &[0.0; 96])], &result);
    assert_eq!(found, [0.0; 96]);
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let weight = cpu_weight("w", &[256, 64], &numbers(256 * 64, 6));
    let x = numbers(256 * 8, 7);
    let run = |n_threads: usize| {
        let mut scheduler = scheduler(&[], false);
        let pool = Arc::new(ThreadPool::new(n_threads).expect("threads"));
        scheduler.backends_mut()[0].set_threads(&pool);
        let graph = Graph::new(8);
        let input = graph.input("x", Type::F32, &[256, 8]);
        let result = graph.mul_mat(&weight, &input);
        support::compute(&mut scheduler, &graph, &[Data::F32(&input, &x)], &result)
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn a_raised_flag_stops_the_computation() {
    let weight = cpu_weight("w", &[32, 32], &numbers(1024, 8));
    let mut scheduler = scheduler(&[], false);
    scheduler.backends_mut()[0].set_abort(Arc::new(AtomicBool::new(true)));
    let graph = Graph::new(8);
    let input = graph.input("x", Type::F32, &[32]);
    graph.output(&graph.mul_mat(&weight, &input));
    scheduler.allocate(&graph).expect("memory");
    assert!(matches!(scheduler.compute(&graph), Err(Error::Aborted)));
}

#[test]
fn an_allocation_no_machine_can_serve_is_an_error() {
    // Within the address space, beyond any machine's memory.
    let tensor = Context::new(1).tensor("huge", Type::F32, &[1 << 40, 1 << 10]);
    let error =
        Buffer::allocate(BufferType::cpu(), &[tensor], "a huge tensor").err().expect("no such memory");
    let Error::OutOfMemory { size_bytes, what, .. } = error else { panic!("{error}") };
    assert_eq!((size_bytes, what.as_str()), (1 << 52, "a huge tensor"));
}

/// Two tensors that fit no operation together.
fn mismatched(graph: &Graph) -> (Tensor, Tensor) {
    (graph.input("a", Type::F32, &[8, 3]), graph.input("b", Type::F32, &[7, 2]))
}

#[test]
#[should_panic(expected = "mul_mat")]
fn mul_mat_of_different_widths_panics() {
    let graph = Graph::new(8);
    let (a, b) = mismatched(&graph);
    graph.mul_mat(&a, &b);
}

#[test]
#[should_panic(expected = "add")]
fn adding_what_does_not_repeat_panics() {
    let graph = Graph::new(8);
    let (a, b) = mismatched(&graph);
    graph.add(&a, &b);
}

#[test]
#[should_panic(expected = "swiglu")]
fn gating_with_another_shape_panics() {
    let graph = Graph::new(8);
    let (a, b) = mismatched(&graph);
    graph.swiglu(&a, &b);
}

#[test]
#[should_panic(expected = "mul_mat_id: ids")]
fn expert_ids_of_another_type_panic() {
    let graph = Graph::new(8);
    let experts = graph.input("experts", Type::F32, &[8, 4, 2]);
    let x = graph.input("x", Type::F32, &[8, 1, 3]);
    graph.mul_mat_id(&experts, &x, &graph.input("ids", Type::F32, &[1, 3]));
}

#[test]
#[should_panic(expected = "get_rows")]
fn rows_by_floats_panic() {
    let graph = Graph::new(8);
    let (a, _) = mismatched(&graph);
    graph.get_rows(&a, &graph.input("rows", Type::F32, &[2]));
}

#[test]
#[should_panic(expected = "set_rows")]
fn setting_rows_of_another_width_panics() {
    let graph = Graph::new(8);
    let (a, b) = mismatched(&graph);
    graph.set_rows(&a, &b, &graph.input("rows", Type::I64, &[2]));
}

#[test]
#[should_panic(expected = "top_k")]
fn more_experts_than_there_are_panics() {
    let graph = Graph::new(8);
    let (a, _) = mismatched(&graph);
    graph.top_k(&a, 9);
}

#[test]
#[should_panic(expected = "reshape")]
fn reshaping_to_another_size_panics() {
    let graph = Graph::new(8);
    let (a, _) = mismatched(&graph);
    graph.reshape(&a, &[5, 5]);
}

#[test]
#[should_panic(expected = "view")]
fn a_view_beyond_its_tensor_panics() {
    let graph = Graph::new(8);
    let (a, _) = mismatched(&graph);
    graph.view(&a, [8, 3, 1], [32, 96], 4);
}

#[test]
#[should_panic(expected = "permute")]
fn a_permutation_that_is_none_panics() {
    let graph = Graph::new(8);
    let (a, _) = mismatched(&graph);
    graph.permute(&a, [0, 0, 2, 3]);
}

#[test]
#[should_panic(expected = "rope")]
fn rotating_more_than_a_head_panics() {
    let graph = Graph::new(8);
    let a = graph.input("a", Type::F32, &[8, 2, 3]);
    let positions = graph.input("positions", Type::I32, &[3]);
    let rope = Rope {
        n_dims: 10,
        style: RopeStyle::Interleaved,
        n_ctx_orig: 1,
        freq_base: 1.0,
        freq_scale: 1.0,
        ext_factor: 0.0,
        attn_factor: 1.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
    };
    graph.rope(&a, &positions, None, &rope);
}

#[test]
#[should_panic(expected = "attention")]
fn attention_with_a_short_mask_panics() {
    let graph = Graph::new(8);
    let q = graph.input("q", Type::F32, &[64, 2, 4]);
    let kv = graph.input("kv", Type::F16, &[64, 32, 2]);
    let mask = graph.input("mask", Type::F16, &[31, 2]);
    graph.flash_attention(&q, &kv, &kv, &mask, 1.0);
}

#[test]
#[should_panic(expected = "blocks")]
fn rows_that_are_no_whole_blocks_panic() {
    Context::new(1).tensor("q", Type::from_id(8).expect("Q8_0"), &[33, 2]);
}

#[test]
#[should_panic(expected = "overflow")]
fn a_size_beyond_memory_panics() {
    Context::new(1).tensor("t", Type::F32, &[1 << 40, 1 << 40]);
}

#[test]
#[should_panic(expected = "no place")]
fn writing_to_a_tensor_without_a_place_panics() {
    Context::new(1).tensor("t", Type::F32, &[4]).write_values(&[1.0f32]);
}

#[test]
#[should_panic(expected = "leave tensor")]
fn writing_past_the_end_panics() {
    cpu_weight("t", &[4], &[0.0; 4]).write(8, &[0; 9]);
}

#[test]
#[should_panic(expected = "leaves a buffer")]
fn placing_a_tensor_past_the_buffer_panics() {
    let context = Context::new(2);
    let small = context.tensor("small", Type::F32, &[4]);
    let buffer = Buffer::allocate(BufferType::cpu(), std::slice::from_ref(&small), "test").expect("memory");
    buffer.place(&context.tensor("large", Type::F32, &[1024]), 0);
}
