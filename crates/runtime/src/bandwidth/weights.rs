//! How fast a device multiplies weights with the activations of one token, as decoding does.
//!
//! That is bound by reading on most machines, but not on all, and not for all types: so it is measured with the kernels
//! that will run, on weights of the file.

use crate::Error;
use crate::graph;
use crate::kernels::Kernels;
use ggml::{
    Backend, Buffer, BufferType, Context, Device, DeviceKind, Graph, Scheduler, Tensor, ThreadPool, Type,
};
use quants::TensorType;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Matrices that are multiplied in turns, together more than caches hold for long, and bytes of each where there is room.
/// A pass takes about a millisecond, so that among many some are not held up by whatever else runs.
const MAX_TENSORS: usize = 16;
const TENSOR_BYTES: u64 = 12 << 20;
/// How long is measured.
const TIME: Duration = Duration::from_millis(120);
/// Each matrix is multiplied so often at least; the first time finds memory and threads asleep.
const MIN_ROUNDS: usize = 3;

/// Rows of a tensor of the file.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// Their type.
    pub ty: TensorType,
    /// Weights of a row.
    pub n_cols: u64,
    /// Whole rows.
    pub bytes: &'a [u8],
}

/// What multiplies.
pub struct Multiplier {
    device: Device,
    kernels: Kernels,
    pool: Arc<ThreadPool>,
    room_bytes: u64,
    token_bytes: u64,
}

impl Multiplier {
    /// `device`, using at most `room_bytes` of its memory; `n_threads` are the CPU's. A token of the model reads
    /// `token_bytes`: the weights of a small one stay in caches.
    ///
    /// # Errors
    /// [`Error::Option`] where so many threads can't be started.
    pub fn new(
        device: Device,
        kernels: Kernels,
        n_threads: u32,
        room_bytes: u64,
        token_bytes: u64,
    ) -> Result<Multiplier, Error> {
        let kernels = if device.kind() == DeviceKind::Cpu { kernels } else { Kernels::Ggml };
        let pool = crate::session::new_pool(n_threads)?;
        Ok(Multiplier { device, kernels, pool, room_bytes, token_bytes })
    }

    /// Bytes of weights a second in the best pass, where they lie in the first of the `layouts` that the device multiplies them from, or
    /// else in its usual one; `None` where there is no room to measure.
    ///
    /// # Errors
    /// Where memory is short after all, or the device fails.
    pub fn rate(&self, sample: Sample<'_>, layouts: &[BufferType]) -> Result<Option<f64>, Error> {
        let row_bytes = sample.ty.row_bytes(sample.n_cols).unwrap_or(0);
        let whole_rows = sample.bytes.len() as u64 / row_bytes.max(1);
        let n_tensors = (self.token_bytes.div_ceil(TENSOR_BYTES) as usize).clamp(1, MAX_TENSORS);
        // One more while they are put in place.
        let n_bytes = TENSOR_BYTES.min(self.token_bytes).min(self.room_bytes / (n_tensors as u64 + 1));
        let n_rows = n_bytes / row_bytes.max(1);
        if whole_rows == 0 || n_rows == 0 {
            return Ok(None);
        }
        let ty = Type::from_id(sample.ty.id())?;
        let context = Context::new(n_tensors);
        let ne = [sample.n_cols as usize, n_rows as usize];
        let tensor = |i: usize| context.tensor(&format!("sample{i}"), ty, &ne);
        let weights: Vec<Tensor> = (0..n_tensors).map(tensor).collect();
        let mut layouts = layouts.iter().copied();
        let layout = layouts.find(|layout| self.device.multiplies_from(*layout, &weights[0], false));
        let layout = layout.unwrap_or_else(|| self.device.buffer_type());
        Buffer::allocate(layout, &weights, "a measurement")?.set_weights();
        let rows = &sample.bytes[..(whole_rows * row_bytes) as usize];
        let n_bytes = (n_rows * row_bytes) as usize;
        let repeated: Vec<u8> = rows.iter().copied().cycle().take(n_bytes).collect();
        weights.iter().for_each(|weights| weights.write(0, &repeated));

        let mut scheduler = self.scheduler()?;
        let values: Vec<f32> = (0..ne[0]).map(|i| 1.0 - (i % 3) as f32).collect();
        let mut best = 0f64;
        let start = Instant::now();
        for (pass, weights) in weights.iter().cycle().enumerate() {
            if pass >= MIN_ROUNDS * n_tensors && start.elapsed() > TIME {
                break;
            }
            let graph = Graph::new(16);
            let x = graph.input("x", Type::F32, &[ne[0], 1]);
            let product = graph::multiply(&graph, self.kernels, weights, &x);
            graph.output(&product);
            graph.expand(&product);
            scheduler.allocate(&graph)?;
            x.write_values(&values);
            let start = Instant::now();
            scheduler.compute(&graph)?;
            product.read_values(0, &mut [0.0]); // waits for the device
            if pass >= n_tensors {
                best = best.max(n_bytes as f64 / start.elapsed().as_secs_f64().max(1e-9));
            }
        }
        Ok(Some(best))
    }

    fn scheduler(&self) -> Result<Scheduler, Error> {
        let cpu =
            Device::find(DeviceKind::Cpu).ok_or(ggml::Error::NoCpuBackend { searched: String::new() })?;
        let mut backends = Vec::new();
        if self.device != cpu {
            backends.push(Backend::new(self.device)?);
        }
        backends.push(Backend::new(cpu)?);
        for backend in &mut backends {
            backend.set_threads(&self.pool);
        }
        Ok(Scheduler::new(backends, 16, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(device: Device, kernels: Kernels, room_bytes: u64) -> Option<f64> {
        let multiplier = Multiplier::new(device, kernels, 1, room_bytes, 1 << 20).expect("threads");
        let bytes = vec![0; 34 * 8 * 3];
        let sample = Sample { ty: TensorType::Q8_0, n_cols: 256, bytes: &bytes };
        multiplier.rate(sample, &[]).expect("measured")
    }

    #[test]
    fn host_and_device_have_a_rate_with_either_kernels() {
        ggml::load_backends().expect("a CPU");
        let cpu = Device::find(DeviceKind::Cpu).expect("a CPU");
        let device = ggml::stand_in::register(1, 16 << 20).expect("registered")[0];
        for (device, kernels) in [(cpu, Kernels::Bruce), (cpu, Kernels::Ggml), (device, Kernels::Bruce)] {
            let rate = rates(device, kernels, 8 << 20).expect("room");
            assert!(rate > 1e6 && rate < 1e13, "{device:?} {kernels:?}: {rate}");
        }
        assert_eq!(rates(cpu, Kernels::Bruce, 0), None);
    }
}
