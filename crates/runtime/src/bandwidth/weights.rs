//! How fast a device multiplies weights with the activations of one token, as decoding does.
//!
//! That is bound by reading on most machines, but not on all, and not for all types: so it is measured with the kernels
//! that will run, on weights of the file, and where possible on those very pages that will be read.

use super::cache::last_level_bytes;
use crate::Error;
use crate::graph;
use crate::kernels::Kernels;
use ggml::{
    Backend, Buffer, BufferType, Context, Device, DeviceKind, Graph, Scheduler, Tensor, ThreadPool, Type,
};
use gguf::{Gguf, TensorInfo};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How much is multiplied with in a round, at least and at most: between, it is a multiple of what caches hold.
const MIN_ROUND_BYTES: u64 = 192 << 20;
const MAX_ROUND_BYTES: u64 = 1 << 30;
/// Bytes of a matrix that is made of the file's rows. A pass over it takes about a millisecond.
const COPY_BYTES: u64 = 12 << 20;
/// How long is measured, and how long a file may take to come into memory before.
const TIME: Duration = Duration::from_millis(150);
const MAX_FIRST_TIME: Duration = Duration::from_secs(2);

/// What multiplies.
pub struct Multiplier {
    device: Device,
    kernels: Kernels,
    pool: Arc<ThreadPool>,
    room_bytes: u64,
    token_bytes: u64,
    n_tokens: usize,
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
        Ok(Multiplier { device, kernels, pool, room_bytes, token_bytes, n_tokens: 1 })
    }

    /// For batches: rates are then bytes of weights times tokens.
    pub fn with_tokens(self, n_tokens: usize) -> Multiplier {
        Multiplier { n_tokens: n_tokens.max(1), ..self }
    }

    /// Bytes of weights a second in the best round over `tensors`, of one type and mapped by the host; `None` without room
    /// or tensors.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn rate_in_place(&self, gguf: &Gguf, tensors: &[&TensorInfo]) -> Result<Option<f64>, Error> {
        let context = Context::new(tensors.len());
        let mut weights = Vec::new();
        let mut n_bytes = 0;
        for info in tensors {
            if n_bytes + info.size > self.round_bytes().max(info.size) {
                break;
            }
            let n_rows: u64 = info.ne[1..].iter().product();
            let ne = [info.ne[0] as usize, n_rows as usize];
            let tensor = context.tensor(&info.name, Type::from_id(info.ty.id())?, &ne);
            let buffer = Buffer::from_mapping(gguf.mapping(info.part));
            buffer.set_weights();
            buffer.place(&tensor, info.offset as usize);
            weights.push(tensor);
            n_bytes += info.size;
        }
        self.rate(&weights)
    }

    /// Bytes of weights a second in the best round over copies of the rows of `info`, which lie in the first of the
    /// `layouts` that the device multiplies them from, or else in its usual one; `None` where there is no room to measure.
    ///
    /// # Errors
    /// Where memory is short after all, or the device fails.
    pub fn rate_of_copies(
        &self,
        gguf: &Gguf,
        info: &TensorInfo,
        layouts: &[BufferType],
    ) -> Result<Option<f64>, Error> {
        self.rate(&self.copies(gguf, info, layouts)?)
    }

    /// Does `work` on another thread while it multiplies with copies of the rows of `info`. Comes back with what `work` did,
    /// and which share of its rate multiplying has beside it, 0 to 1; 1 where there is no room to measure.
    ///
    /// # Errors
    /// Where memory is short after all, or the device fails.
    pub fn beside<T: Send>(
        &self,
        gguf: &Gguf,
        info: &TensorInfo,
        work: impl FnOnce() -> T + Send,
    ) -> Result<(T, f64), Error> {
        let weights = self.copies(gguf, info, &[])?;
        let Some(alone) = self.rate(&weights)? else { return Ok((work(), 1.0)) };
        let n_bytes: usize = weights.iter().map(Tensor::n_bytes).sum();
        let mut scheduler = self.scheduler()?;
        std::thread::scope(|scope| {
            let working = scope.spawn(work);
            let (start, mut n_multiplied) = (Instant::now(), 0);
            while !working.is_finished() || n_multiplied == 0 {
                for weights in &weights {
                    self.multiply(&mut scheduler, weights)?;
                }
                n_multiplied += n_bytes * self.n_tokens;
            }
            let beside = n_multiplied as f64 / start.elapsed().as_secs_f64().max(1e-9);
            let done = working.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok((done, (beside / alone).min(1.0)))
        })
    }

    /// Copies of the rows of `info`, as many as a round takes; none where there is no room.
    fn copies(&self, gguf: &Gguf, info: &TensorInfo, layouts: &[BufferType]) -> Result<Vec<Tensor>, Error> {
        let row_bytes = info.ty.row_bytes(info.ne[0]).unwrap_or(0).max(1);
        let n_tensors = (self.round_bytes() / COPY_BYTES).max(1);
        // One more while they are put in place.
        let n_rows = COPY_BYTES.min(self.token_bytes).min(self.room_bytes / (n_tensors + 1)) / row_bytes;
        let rows = &gguf.data(info)[..((info.size / row_bytes).min(n_rows) * row_bytes) as usize];
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let context = Context::new(n_tensors as usize);
        let (ty, ne) = (Type::from_id(info.ty.id())?, [info.ne[0] as usize, n_rows as usize]);
        let weights: Vec<Tensor> =
            (0..n_tensors).map(|i| context.tensor(&format!("copy{i}"), ty, &ne)).collect();
        let mut layouts = layouts.iter().copied();
        let layout = layouts.find(|layout| self.device.multiplies_from(*layout, &weights[0], false));
        let layout = layout.unwrap_or_else(|| self.device.buffer_type());
        Buffer::allocate(layout, &weights, "a measurement")?.set_weights();
        let n_bytes = (n_rows * row_bytes) as usize;
        let repeated: Vec<u8> = rows.iter().copied().cycle().take(n_bytes).collect();
        weights.iter().for_each(|weights| weights.write(0, &repeated));
        Ok(weights)
    }

    /// Bytes of a round: several times what caches hold, but no more than a token needs.
    fn round_bytes(&self) -> u64 {
        let cached = last_level_bytes().unwrap_or(0);
        (2 * cached).clamp(MIN_ROUND_BYTES, MAX_ROUND_BYTES).min(self.token_bytes).min(self.room_bytes)
    }

    /// Bytes of weights a second in the best round over `weights`, after one that finds memory and threads asleep.
    fn rate(&self, weights: &[Tensor]) -> Result<Option<f64>, Error> {
        let mut scheduler = self.scheduler()?;
        let start = Instant::now();
        let mut n_ready = 0;
        for weights in weights {
            self.multiply(&mut scheduler, weights)?;
            n_ready += 1;
            if start.elapsed() > MAX_FIRST_TIME {
                break;
            }
        }
        let weights = &weights[..n_ready];
        let n_bytes: usize = weights.iter().map(Tensor::n_bytes).sum();
        if n_bytes == 0 {
            return Ok(None);
        }
        let mut best = Duration::MAX;
        let start = Instant::now();
        while best == Duration::MAX || start.elapsed() < TIME {
            let start = Instant::now();
            for weights in weights {
                self.multiply(&mut scheduler, weights)?;
            }
            best = best.min(start.elapsed());
        }
        Ok(Some((n_bytes * self.n_tokens) as f64 / best.as_secs_f64().max(1e-9)))
    }

    /// One product, waited for.
    fn multiply(&self, scheduler: &mut Scheduler, weights: &Tensor) -> Result<(), Error> {
        let n_cols = weights.ne()[0];
        let values: Vec<f32> = (0..n_cols * self.n_tokens).map(|i| 1.0 - (i % 3) as f32).collect();
        let graph = Graph::new(16);
        let x = graph.input("x", Type::F32, &[n_cols, self.n_tokens]);
        let product = graph::multiply(&graph, self.kernels, weights, &x);
        graph.output(&product);
        graph.expand(&product);
        scheduler.allocate(&graph)?;
        x.write_values(&values);
        scheduler.compute(&graph)?;
        product.read_values(0, &mut [0.0]);
        Ok(())
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
    use gguf::{Layout, Metadata, Overwrite, TensorSpec, Writer};
    use quants::TensorType;

    #[test]
    fn host_and_device_have_a_rate_with_either_kernels() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("weights.gguf");
        let spec = |name: &str| TensorSpec { name: name.into(), ne: vec![256, 8, 4], ty: TensorType::Q8_0 };
        let specs = [spec("a"), spec("b")];
        let layout = Layout::new(&Metadata::default(), &specs, 32).expect("a layout");
        let writer = Writer::create(&path, layout, Overwrite::Refuse).expect("a file");
        for number in 0..2 {
            writer.write_at(number, 0, &[0; 32 * 8 * 34]).expect("written");
        }
        writer.finish().expect("finished");
        let gguf = Gguf::open(&path).expect("a file of ours");
        let tensors: Vec<&TensorInfo> = gguf.tensors().iter().collect();

        ggml::load_backends().expect("a CPU");
        let cpu = Device::find(DeviceKind::Cpu).expect("a CPU");
        let device = ggml::stand_in::register(1, 16 << 20).expect("registered")[0];
        let room_bytes = 8 << 20;
        for (device, kernels) in [(cpu, Kernels::Bruce), (cpu, Kernels::Ggml), (device, Kernels::Bruce)] {
            let multiplier = Multiplier::new(device, kernels, 1, room_bytes, 1 << 20).expect("threads");
            let copied = multiplier.rate_of_copies(&gguf, tensors[0], &[]).expect("measured");
            let mut rates = vec![copied.expect("room")];
            if device == cpu {
                let mapped = multiplier.rate_in_place(&gguf, &tensors).expect("measured");
                rates.push(mapped.expect("tensors"));
                assert_eq!(multiplier.rate_in_place(&gguf, &[]).expect("nothing to do"), None);
            }
            for rate in rates {
                assert!(rate > 1e6 && rate < 1e13, "{device:?} {kernels:?}: {rate}");
            }
        }
        let no_room = Multiplier::new(cpu, Kernels::Bruce, 1, 0, 1 << 20).expect("threads");
        assert_eq!(no_room.rate_of_copies(&gguf, tensors[0], &[]).expect("nothing to do"), None);
    }
}
