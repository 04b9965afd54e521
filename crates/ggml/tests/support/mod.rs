//! What the tests of ggml share: numbers that look random, tensors with data, and running a graph.
#![allow(dead_code)] // each test program uses its own part

use ggml::{Backend, Buffer, BufferType, Context, Device, DeviceKind, Graph, Scheduler, Tensor, Type};

/// Numbers between -1 and 1 that depend on `seed` only.
pub fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// A tensor of F32 weights in `buffer_type`, held by a context of its own.
pub fn weight(name: &str, ne: &[usize], values: &[f32], buffer_type: BufferType) -> Tensor {
    let tensor = Context::new(1).tensor(name, Type::F32, ne);
    let buffer = Buffer::allocate(buffer_type, std::slice::from_ref(&tensor), name).expect("memory");
    buffer.set_weights();
    tensor.write_values(values);
    tensor
}

/// As [`weight`], in host memory.
pub fn cpu_weight(name: &str, ne: &[usize], values: &[f32]) -> Tensor {
    weight(name, ne, values, BufferType::cpu())
}

/// The CPU's device.
pub fn cpu() -> Device {
    ggml::load_backends().expect("a CPU backend");
    Device::find(DeviceKind::Cpu).expect("a CPU backend")
}

/// A scheduler over these devices and the CPU.
pub fn scheduler(devices: &[Device], offload: bool) -> Scheduler {
    let all = devices.iter().copied().chain([cpu()]);
    Scheduler::new(all.map(|d| Backend::new(d).expect("a stream")).collect(), 256, offload)
}

/// What the inputs of a graph hold.
pub enum Data<'a> {
    F32(&'a Tensor, &'a [f32]),
    F16(&'a Tensor, &'a [u16]),
    I32(&'a Tensor, &'a [i32]),
    I64(&'a Tensor, &'a [i64]),
}

/// Computes the graph with the given inputs and returns the F32 values of `result`.
pub fn compute(scheduler: &mut Scheduler, graph: &Graph, inputs: &[Data<'_>], result: &Tensor) -> Vec<f32> {
    graph.output(result);
    scheduler.allocate(graph).expect("memory for the graph");
    for input in inputs {
        match input {
            Data::F32(tensor, values) => tensor.write_values(values),
            Data::F16(tensor, values) => tensor.write_values(values),
            Data::I32(tensor, values) => tensor.write_values(values),
            Data::I64(tensor, values) => tensor.write_values(values),
        }
    }
    scheduler.compute(graph).expect("computes");
    let mut values = vec![0.0; result.n_elements()];
    result.read_values(0, &mut values);
    values
}

/// As [`compute`], on the CPU alone.
pub fn on_cpu(graph: &Graph, inputs: &[Data<'_>], result: &Tensor) -> Vec<f32> {
    compute(&mut scheduler(&[], false), graph, inputs, result)
}

/// Panics unless every pair differs by at most `bound`, absolutely or relative to the expected size.
#[track_caller]
pub fn assert_close(found: &[f32], expected: &[f64], bound: f64) {
    assert_eq!(found.len(), expected.len());
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let difference = (f64::from(found) - expected).abs();
        assert!(
            difference <= bound * expected.abs().max(1.0),
            "element {i}: found {found}, expected {expected}"
        );
    }
}

/// `sum(a[i] * b[i])`.
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}
