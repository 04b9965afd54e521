//! The threads that copy experts to stacks.

use super::layout::{Layer, Matrix};
use super::sweep::{Item, N_PROJECTIONS, Outcome, Sweep};
use crate::Error;
use expert_pool::{Pool, Projection};
use ggml::{CopyStream, Tensor};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Bytes of pinned memory for each copier and device: enough to keep a bus busy, few enough to stop soon.
pub(crate) const CHUNK_BYTES: usize = 8 << 20;

/// Where an expert has a slot: group and number.
pub(super) type Place = Option<(usize, usize)>;

/// What was done so far.
#[derive(Default)]
pub(super) struct Counted {
    pub n_layers: AtomicU64,
    pub host_bytes: AtomicU64,
    pub device_bytes: AtomicU64,
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
    /// Slots of each layer's experts, which stay as they are during a computation.
    pub slots: Mutex<Vec<Vec<Place>>>,
    pub counted: Counted,
}

/// Copies until the sweep is over, on a stream of its own for each device.
pub(super) fn run(shared: &Shared, mut streams: Vec<CopyStream>) {
    while let Some(item) = shared.sweep.take() {
        let done = catch_unwind(AssertUnwindSafe(|| copy(shared, &mut streams, item)));
        let outcome = match done {
            Ok(Ok(())) => Outcome::Arrived,
            Ok(Err(error)) => Outcome::Failed(error),
            Err(panic) => Outcome::Panicked(panic),
        };
        shared.sweep.done(item, outcome);
    }
}

fn copy(shared: &Shared, streams: &mut [CopyStream], item: Item) -> Result<(), Error> {
    let layer = &shared.layers[item.layer];
    let stack = &shared.stacks[layer.device][layer.stack];
    let matrix = &layer.experts[item.expert][item.projection];
    let stream = &mut streams[layer.device];
    let place = {
        let slots = shared.slots.lock().unwrap_or_else(|p| p.into_inner());
        slots.get(item.layer).and_then(|places| places[item.expert])
    };
    if let (Some((group, slot)), Some(slots)) = (place, &layer.slots) {
        let of_slots = &slots.groups[group].stacks[item.projection];
        let from = (of_slots, slot * matrix.size);
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
    pool.read(streamed, PROJECTIONS[item.projection], item.expert, &mut |at, bytes| {
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
