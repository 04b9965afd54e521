//! Large batches computed by devices with experts that lie on the host: copied in time, beside what is computed.
//!
//! In a large batch nearly every expert of a layer is chosen, so that copying all of a layer to its device pays. A device
//! has two stacks, each with room for the experts of one layer, which its layers take in turns: while the device computes with
//! one, copiers fill the other through pinned memory on streams of their own. Experts that have a slot are copied on the
//! device, others from the host's memory or from the pool that they are streamed through.
//!
//! In the graph a layer's products take their operands from its stack, and the choice of experts from a gate: a node on
//! the CPU that gives on what the router chose as soon as all that was chosen is there. ggml's scheduler waits for the
//! device before it copies the choice to the gate, and launches the products after it; so when a gate is reached, all before it is
//! computed, and the stack of the layer before may be filled anew. A layer takes the longer of copying and computing, and the
//! first layer of a batch is copied during the last of the one before.
//!
//! What has arrived may be worth more than the experts in the device's slots: before a stack is filled anew, such experts
//! are copied to slots from there, without a byte from the host. The pool that others are streamed through learns at
//! the gates what was taken, so that decoding finds that in memory.
//!
//! Stacks belong to a session: with several of one model, each takes memory for its own and copies for itself. (The programs
//! have one at a time.) Where that is too much, [`StageExperts::Never`](crate::StageExperts::Never) leaves a session without.

mod copier;
mod layout;
mod sweep;

use crate::Error;
use crate::model::{ExpertBank, Model};
pub(crate) use copier::CHUNK_BYTES;
use copier::{Counted, Shared};
use ggml::{BufferType, CopyStream, Graph, RowKernel, Rows, Sources, Tensor};
use layout::Layout;
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use sweep::Sweep;
pub(crate) use sweep::{N_STACKS, Order};

/// Threads that copy. One alone does not use all of a bus, as it also copies into pinned memory; and reads from a file
/// want to be several.
pub(crate) const N_COPIERS: usize = 3;

/// Micro-batches whose choices a gate takes: operands of one node.
pub(crate) const MOST_GATED: usize = 8;

/// Bytes of pinned memory that experts pass through on their way to so many devices.
pub(crate) fn pinned_bytes(n_devices: usize) -> u64 {
    (n_devices * N_COPIERS * CHUNK_BYTES) as u64
}

/// What a model's experts could be staged through; nothing is allocated yet.
pub(crate) struct Planned(Layout);

impl Planned {
    /// `None` where nothing is to be staged: no layer on a device has its experts on the host.
    pub fn new(model: &Model) -> Option<Planned> {
        Some(Layout::new(model)).filter(|layout| !layout.layers.is_empty()).map(Planned)
    }

    /// Bytes of the stacks by kind of memory.
    pub fn bytes(&self) -> Vec<(BufferType, u64)> {
        self.0.bytes()
    }

    /// Takes the memory and starts the copiers, which break off when `stop` becomes true.
    ///
    /// # Errors
    /// [`Error::Ggml`] where memory is short or the device has no second stream, [`Error::Option`] where the system gives
    /// no threads.
    pub fn start(self, model: &Model, stop: Arc<AtomicBool>) -> Result<Staging, Error> {
        let Planned(layout) = self;
        let stacks = layout.allocate()?;
        let sweep = Sweep::new(layout.stops());
        let Layout { layers, staged, devices, .. } = layout;
        let pool = model.expert_pool().cloned();
        let slots = model.slots().cloned();
        let counted = Counted::default();
        let shared = Arc::new(Shared { sweep, layers, stacks, pool, stop, slots, counted });
        let mut staging = Staging { shared, staged, copiers: Vec::new() };
        for number in 0..N_COPIERS {
            let streams = devices.iter().map(|device| CopyStream::new(*device, CHUNK_BYTES));
            let streams = streams.collect::<Result<Vec<_>, _>>()?;
            let shared = Arc::clone(&staging.shared);
            let thread = std::thread::Builder::new().name(format!("staging{number}"));
            let thread = thread.spawn(move || copier::run(&shared, streams));
            staging.copiers.push(thread.map_err(|error| Error::Option {
                option: "--stage-experts",
                found: format!("no threads for copies to a GPU: {error}"),
                expected: "a system that can start them, or off".to_owned(),
            })?);
        }
        Ok(staging)
    }
}

/// What was copied to stacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StagingStatistics {
    /// Bytes of the stacks, on all devices.
    pub stack_bytes: u64,
    /// Layers that were copied to them, counted once for each computation.
    pub n_layers: u64,
    /// Bytes copied from the host.
    pub host_bytes: u64,
    /// Bytes copied from slots on the device.
    pub device_bytes: u64,
    /// Bytes copied to slots, from the stacks.
    pub kept_bytes: u64,
}

/// The stacks of a session and the threads that fill them.
pub(crate) struct Staging {
    shared: Arc<Shared>,
    /// By number of the layer in the model.
    staged: Vec<Option<usize>>,
    copiers: Vec<JoinHandle<()>>,
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.shared.sweep.shut_down();
        for copier in self.copiers.drain(..) {
            let _ = copier.join();
        }
    }
}

impl Staging {
    /// Whether a layer's experts are staged.
    pub fn has(&self, layer: usize) -> bool {
        self.staged[layer].is_some()
    }

    /// The order in which the next computation takes the stacks.
    pub fn order(&self) -> Order {
        self.shared.sweep.order()
    }

    /// Gate, up and down of a layer in its stack by `order`, and the experts `ids: [n_used, n_tokens]` that were chosen there by
    /// each micro-batch, which become known when all of them have arrived.
    ///
    /// # Panics
    /// When the layer is not staged, or there are more than [`MOST_GATED`] micro-batches.
    pub fn layer(
        &self,
        g: &Graph,
        layer: usize,
        order: Order,
        ids: &[Tensor],
    ) -> ([&ExpertBank; 3], Vec<Tensor>) {
        let index = self.staged[layer].unwrap_or_else(|| panic!("layer {layer} is not staged"));
        assert!(matches!(ids.len(), 1..=MOST_GATED), "{} micro-batches", ids.len());
        let gate = Gate { shared: Arc::clone(&self.shared), layer: index, n_batches: ids.len() };
        let n_used = ids[0].ne()[0];
        let n_tokens: Vec<usize> = ids.iter().map(|ids| ids.ne()[1]).collect();
        let sources: Vec<&Tensor> = ids.iter().collect();
        let all = g.custom_ints(&[n_used, n_tokens.iter().sum()], &sources, Arc::new(gate));
        g.name(&all, &format!("staged-{layer}"));
        let [gate, up, down] = self.shared.layers[index].banks(order);
        let mut first = 0;
        let mut of_batch = |n_tokens: &usize| {
            let offset = first * all.nb()[1];
            first += n_tokens;
            g.view(&all, [n_used, *n_tokens, 1], [all.nb()[1], all.nb()[1] * n_tokens], offset)
        };
        let ids = match &n_tokens[..] {
            [_] => vec![all],
            several => several.iter().map(&mut of_batch).collect(),
        };
        ([gate, up, down], ids)
    }

    /// Begins to copy for a computation that passes the gates of the first `n_layers` staged layers, with stacks in the
    /// present [order](Self::order); `goes_on` where another such computation follows.
    pub fn begin(&self, n_layers: usize, goes_on: bool) {
        self.shared.counted.n_layers.fetch_add(n_layers as u64, Ordering::Relaxed);
        self.shared.sweep.begin(n_layers, goes_on);
    }

    /// What was copied so far.
    pub fn statistics(&self) -> StagingStatistics {
        let counted = &self.shared.counted;
        let stacks = self.shared.stacks.iter().flatten();
        StagingStatistics {
            stack_bytes: stacks.map(|stack| stack.n_bytes() as u64).sum(),
            n_layers: counted.n_layers.load(Ordering::Relaxed),
            host_bytes: counted.host_bytes.load(Ordering::Relaxed),
            device_bytes: counted.device_bytes.load(Ordering::Relaxed),
            kept_bytes: counted.kept_bytes.load(Ordering::Relaxed),
        }
    }

    /// Ends what [`begin`](Self::begin) began.
    ///
    /// # Errors
    /// [`Error::ExpertPool`] where experts could not be read, [`Error::Stopped`].
    pub fn finish(&self) -> Result<(), Error> {
        self.shared.sweep.finish()
    }
}

/// Gives the choice of experts on when they are there, those of all micro-batches one behind the other.
struct Gate {
    shared: Arc<Shared>,
    layer: usize,
    n_batches: usize,
}

impl RowKernel for Gate {
    fn run(&self, sources: &Sources<'_>, rows: &mut Rows<'_>) {
        let n_used = sources.ne(0)[0];
        let batches: Vec<&[i32]> = (0..self.n_batches).map(|number| sources.values(number)).collect();
        let ids = match &batches[..] {
            [only] => Cow::Borrowed(*only),
            several => Cow::Owned(several.concat()),
        };
        if self.shared.sweep.enter(self.layer, &ids) {
            self.shared.learn(self.layer, &ids, n_used);
        }
        while let Some((index, row)) = rows.take() {
            let ids = &ids[index * n_used..(index + 1) * n_used];
            for (bytes, id) in row.chunks_exact_mut(4).zip(ids) {
                // A device that failed leaves any numbers. Nobody wants what follows, but it must be experts.
                let id = if self.shared.sweep.has_expert(self.layer, *id) { *id } else { 0 };
                bytes.copy_from_slice(&id.to_ne_bytes());
            }
        }
    }
}
