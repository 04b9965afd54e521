//! The linked ggml, beside which the benchmark programs measure.

use std::sync::Arc;

use ggml::{Backend, Device, DeviceKind, Graph, Scheduler, Tensor, ThreadPool};

/// A graph of ggml's with one result, computed on one thread.
pub struct Peer {
    scheduler: Scheduler,
    graph: Graph,
    result: Tensor,
}

impl Peer {
    /// A graph with memory for all of its nodes; its inputs are yet to be written.
    pub fn new(graph: Graph, result: Tensor) -> Self {
        let device = Device::find(DeviceKind::Cpu).expect("a CPU backend");
        let mut backend = Backend::new(device).expect("a stream");
        backend.set_threads(&Arc::new(ThreadPool::new(1).expect("a thread")));
        let mut scheduler = Scheduler::new(vec![backend], 16, false);
        graph.output(&result);
        scheduler.allocate(&graph).expect("memory for the graph");
        Self { scheduler, graph, result }
    }

    pub fn compute(&mut self) {
        self.scheduler.compute(&self.graph).expect("computes");
    }

    /// Panics unless `ours` is the same up to ggml's rounding of what it multiplies with.
    pub fn compare(&mut self, ours: &[f32]) {
        self.compute();
        let mut theirs = vec![0.0; ours.len()];
        self.result.read_values(0, &mut theirs);
        let square = |x: f32| f64::from(x) * f64::from(x);
        let size: f64 = theirs.iter().map(|&x| square(x)).sum();
        let difference: f64 = theirs.iter().zip(ours).map(|(a, b)| square(a - b)).sum();
        assert!(difference <= size * 1e-3, "results differ by {difference} of {size}");
    }
}
