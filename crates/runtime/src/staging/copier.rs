//! The threads that copy experts to stacks.

use super::layout::{Layer, Matrix};
use super::sweep::{Item, Job, Kept, N_PROJECTIONS, Outcome, Sweep};
use crate::Error;
use crate::slots::SlotCache;
use expert_pool::{Pool, Projection};
use ggml::{CopyStream, Tensor};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Bytes of pinned memory for each copier and device: enough to keep a bus busy, few enough to stop soon.
pub(crate) const CHUNK_BYTES: usize = 8 << 20;

/// What was done so far.
#[derive(Default)]
pub(super) struct Counted {
    pub n_layers: AtomicU64,
    pub host_bytes: AtomicU64,
    pub device_bytes: AtomicU64,
    pub kept_bytes: AtomicU64,
}

/// What copiers work with.
pub(super) struct Shared {
    pub sweep: Sweep,
    pub layers: Vec<Layer>,
    /// The stacks of each device, as bytes.
    pub stacks: Vec<Vec<Tensor>>,
    pub pool: Option<Arc<Pool>>,
    /// The session is asked to stop.
    pub stop: Arc<AtomicBool>,
    pub slots: Option<Arc<SlotCache>>,
    pub counted: Counted,
}

impl Shared {
    /// Tells the pool what a layer's tokens took, which is computed without it: `ids` is `[n_used, n_tokens]`.
    pub fn learn(&self, layer: usize, ids: &[i32], n_used: usize) {
        let layer = &self.layers[layer];
        let (Some(pool), Some(streamed)) = (&self.pool, layer.streamed) else { return };
        let mut n_taken = vec![0; layer.experts.len()];
        ids.iter().for_each(|id| n_taken[*id as usize] += 1);
        let taken: Vec<_> = n_taken.into_iter().enumerate().filter(|(_, n)| *n > 0).collect();
        pool.learn(streamed, &taken, ids.len() / n_used.max(1));
    }
}

/// Copies until the sweep is over, on a stream of its own for each device.
pub(super) fn run(shared: &Shared, mut streams: Vec<CopyStream>) {
    while let Some(job) = shared.sweep.take() {
        let done = catch_unwind(AssertUnwindSafe(|| match &job {
            Job::Copy(item) => copy(shared, &mut streams, *item),
            Job::Keep(kept) => {
                keep(shared, &mut streams, kept);
                Ok(())
            }
        }));
        let outcome = match done {
            Ok(Ok(())) => Outcome::Arrived,
            Ok(Err(error)) => Outcome::Failed(error),
            Err(panic) => Outcome::Panicked(panic),
        };
        match job {
            Job::Copy(item) => shared.sweep.done(item, outcome),
            Job::Keep(kept) => shared.sweep.kept(kept.layer, outcome),
        }
    }
}

/// Copies experts of a layer that deserve a slot there from its stack.
fn keep(shared: &Shared, streams: &mut [CopyStream], kept: &Kept) {
    let layer = &shared.layers[kept.layer];
    let (Some(cache), Some(slots)) = (&shared.slots, &layer.slots) else { return };
    let stack = &shared.stacks[layer.device][kept.stack];
    for harvested in cache.harvest(slots, &kept.ids, &kept.has) {
        let of_slots = &slots.groups[harvested.group].stacks;
        for (matrix, to) in layer.experts[harvested.expert as usize].iter().zip(of_slots) {
            let to = (to, harvested.slot * matrix.size);
            streams[layer.device].copy_within((stack, matrix.offset), to, matrix.size);
            shared.counted.kept_bytes.fetch_add(matrix.size as u64, Ordering::Relaxed);
        }
        cache.landed(harvested);
    }
}

fn copy(shared: &Shared, streams: &mut [CopyStream], item: Item) -> Result<(), Error> {
    let layer = &shared.layers[item.layer];
    let stack = &shared.stacks[layer.device][item.stack];
    let matrix = &layer.experts[item.expert][item.projection];
    let stream = &mut streams[layer.device];
    let slots = shared.slots.as_ref().zip(layer.slots.as_ref());
    let lent = slots.and_then(|(cache, slots)| Some((slots, cache.lend(slots, item.expert)?)));
    if let Some((slots, lent)) = lent {
        let of_slots = &slots.groups[lent.group].stacks[item.projection];
        let from = (of_slots, lent.slot * matrix.size);
        stream.copy_within(from, (stack, matrix.offset), matrix.size);
        shared.counted.device_bytes.fetch_add(matrix.size as u64, Ordering::Relaxed);
    } else {
        send(shared, stream, layer, matrix, stack, item)?;
        shared.counted.host_bytes.fetch_add(matrix.size as u64, Ordering::Relaxed);
    }
    if matrix.padding > 0 {
        stream.bytes()[..matrix.padding].fill(0);
        stream.send(matrix.padding, stack, matrix.offset + matrix.size);
    }
    stream.wait();
    Ok(())
}

/// Copies from the host.
fn send(
    shared: &Shared,
    stream: &mut CopyStream,
    layer: &Layer,
    matrix: &Matrix,
    stack: &Tensor,
    item: Item,
) -> Result<(), Error> {
    let stopped = || shared.stop.load(Ordering::Relaxed) || shared.sweep.is_over();
    if let Some((tensor, first)) = &matrix.source {
        for at in (0..matrix.size).step_by(CHUNK_BYTES) {
            if stopped() {
                return Err(Error::Stopped);
            }
            let n = CHUNK_BYTES.min(matrix.size - at);
            tensor.read(first + at, &mut stream.bytes()[..n]);
            stream.send(n, stack, matrix.offset + at);
        }
        return Ok(());
    }
    let (Some(pool), Some(streamed)) = (&shared.pool, layer.streamed) else {
        unreachable!("experts are in memory or streamed")
    };
    const PROJECTIONS: [Projection; N_PROJECTIONS] = Projection::ALL;
    let mut is_stopped = false;
    pool.read(streamed, PROJECTIONS[item.projection], item.expert, true, &mut |at, bytes| {
        let pieces = bytes.chunks(CHUNK_BYTES).enumerate();
        for (number, piece) in pieces {
            is_stopped = stopped();
            if is_stopped {
                return ControlFlow::Break(());
            }
            stream.bytes()[..piece.len()].copy_from_slice(piece);
            stream.send(piece.len(), stack, matrix.offset + at + number * CHUNK_BYTES);
        }
        ControlFlow::Continue(())
    })?;
    if is_stopped { Err(Error::Stopped) } else { Ok(()) }
}
