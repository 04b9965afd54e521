//! Experts in slots: copies on a device of those that are asked for most, while the host keeps all.
//!
//! A layer has a fixed number of slots, stacked by projection as `mul_mat_id` wants them, and tables that say which
//! expert is in which slot. Tables are operands of the graph, so that it stays the same while experts come and go. The
//! device computes the choices whose experts are in slots, the CPU the others, and the two sums are added.
//!
//! An expert [moves in](Popularity::swap) when it has been asked for clearly more often than one that is there. One
//! moves at a time: between two computations the table forgets the expert that has to leave, then a thread of its own
//! copies the new one into the slot while decoding goes on, and between two later computations the table learns it.
//! Nobody ever waits for a copy; meanwhile the CPU computes what either expert is asked.

mod layer;
mod popularity;
mod upload;

use gguf::Gguf;
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard};

pub(crate) use layer::{ExpertSource, GroupPlan, LayerSlots};
pub use popularity::{HALF_LIFE, MARGIN, Popularity, Swap};
use upload::{Upload, Uploader};

/// What the slots of a model have been good for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotStatistics {
    /// Choices computed by devices.
    pub hits: u64,
    /// Choices computed by the CPU.
    pub misses: u64,
    /// Experts that moved into a slot.
    pub promotions: u64,
    /// Bytes copied to devices for that.
    pub uploaded_bytes: u64,
}

impl SlotStatistics {
    /// What happened after an earlier look.
    pub fn since(&self, earlier: &SlotStatistics) -> SlotStatistics {
        SlotStatistics {
            hits: self.hits - earlier.hits,
            misses: self.misses - earlier.misses,
            promotions: self.promotions - earlier.promotions,
            uploaded_bytes: self.uploaded_bytes - earlier.uploaded_bytes,
        }
    }

    /// Share of the choices that devices computed; 0 where there were none.
    pub fn hit_rate(&self) -> f64 {
        self.hits as f64 / (self.hits + self.misses).max(1) as f64
    }
}

/// The slots of a model's layers, shared by its sessions.
pub struct SlotCache {
    layers: Vec<Arc<LayerSlots>>,
    n_used: usize,
    /// Held for reading while a graph computes with the tables, for writing while they change.
    running: RwLock<()>,
    state: Mutex<State>,
    /// `None` where experts stay where they are.
    uploader: Option<Uploader>,
    spares_the_cpu: bool,
}

struct State {
    /// As the layers.
    popularity: Vec<Popularity>,
    /// The expert in each slot by layer and group; `None` while one is moving in.
    occupants: Vec<Vec<Vec<Option<u32>>>>,
    moving: Option<Move>,
    statistics: SlotStatistics,
}

/// An expert on its way into a slot.
#[derive(Clone, Copy)]
struct Move {
    layer: usize,
    group: usize,
    slot: usize,
    expert: u32,
}

impl SlotCache {
    /// The slots as the model was loaded; `moves` lets experts change places. `layers` have their memory already.
    pub(crate) fn new(
        gguf: &Arc<Gguf>,
        layers: Vec<Arc<LayerSlots>>,
        n_used: usize,
        moves: bool,
        spares_the_cpu: bool,
    ) -> SlotCache {
        let occupants: Vec<Vec<Vec<Option<u32>>>> =
            layers.iter().map(|layer| layer.first_occupants()).collect();
        for (layer, occupants) in layers.iter().zip(&occupants) {
            layer.write_tables(occupants);
        }
        let popularity = layers.iter().map(|layer| Popularity::new(layer.n_expert())).collect();
        let state = State { popularity, occupants, moving: None, statistics: SlotStatistics::default() };
        SlotCache {
            layers,
            n_used,
            running: RwLock::new(()),
            state: Mutex::new(state),
            uploader: moves.then(|| Uploader::new(gguf)),
            spares_the_cpu,
        }
    }

    /// Whether the CPU leaves out what devices compute. ggml's kernels can't, nor is there another for every type: the
    /// CPU then computes every choice, and slots save no time.
    pub fn spares_the_cpu(&self) -> bool {
        self.spares_the_cpu
    }

    /// What happened so far.
    pub fn statistics(&self) -> SlotStatistics {
        self.state().statistics
    }

    /// How many slots there are in all layers.
    pub fn n_slots(&self) -> usize {
        self.state().occupants.iter().flatten().map(Vec::len).sum()
    }

    /// The experts in the slots of each layer that has some, by number of the layer; without the one that is moving in.
    pub fn experts(&self) -> Vec<(usize, Vec<u32>)> {
        let state = self.state();
        let of_layer = |groups: &Vec<Vec<Option<u32>>>| groups.iter().flatten().flatten().copied().collect();
        self.layers.iter().zip(&state.occupants).map(|(l, groups)| (l.layer(), of_layer(groups))).collect()
    }

    /// Waits until no expert is moving, for tests and measurements: decoding never does.
    pub fn settle(&self) {
        if let Some(uploader) = &self.uploader
            && self.state().moving.is_some()
        {
            uploader.wait();
            let running = self.running.write().unwrap_or_else(|p| p.into_inner());
            self.land(&mut self.state());
            drop(running);
        }
    }

    /// Lets what has arrived be used and the next expert move, then keeps the tables as they are until the result is
    /// dropped: for one computation.
    pub(crate) fn begin(&self) -> RwLockReadGuard<'_, ()> {
        // Where another session computes just now, there is a next time.
        if let (Some(uploader), Ok(_alone)) = (&self.uploader, self.running.try_write()) {
            let mut state = self.state();
            if state.moving.is_some() && uploader.is_idle() {
                self.land(&mut state);
            }
            if state.moving.is_none() {
                self.take_off(&mut state, uploader);
            }
        }
        self.running.read().unwrap_or_else(|p| p.into_inner())
    }

    /// Counts the experts that a computation's tokens took: `ids` is `[n_used, n_tokens]` of the `index`-th layer with
    /// slots. `served` where slots were used for it.
    pub(crate) fn observe(&self, index: usize, ids: &[i32], served: bool) {
        let mut state = self.state();
        let State { popularity, occupants, statistics, .. } = &mut *state;
        for taken in ids.chunks(self.n_used) {
            popularity[index].observe(taken.iter().map(|id| *id as u32));
        }
        if served {
            let hits = |id: &&i32| occupants[index].iter().flatten().any(|o| *o == Some(**id as u32));
            let n_hits = ids.iter().filter(hits).count() as u64;
            statistics.hits += n_hits;
            statistics.misses += ids.len() as u64 - n_hits;
        }
    }

    /// The expert that was moving is there.
    fn land(&self, state: &mut State) {
        if let Some(Move { layer, group, slot, expert }) = state.moving.take() {
            state.occupants[layer][group][slot] = Some(expert);
            self.layers[layer].write_tables(&state.occupants[layer]);
            state.statistics.promotions += 1;
            state.statistics.uploaded_bytes += self.layers[layer].expert_bytes(expert);
        }
    }

    /// Sends the expert on its way that gains most, if any gains enough.
    fn take_off(&self, state: &mut State, uploader: &Uploader) {
        let mut best: Option<(Swap, usize, usize)> = None;
        for (layer, slots) in self.layers.iter().enumerate() {
            for (group, occupants) in state.occupants[layer].iter().enumerate() {
                if !slots.may_move(group) {
                    continue;
                }
                let inside: Vec<u32> = occupants.iter().flatten().copied().collect();
                let swap = state.popularity[layer].swap(&inside, slots.candidates(group));
                if let Some(swap) = swap.filter(|s| best.is_none_or(|(other, ..)| s.gain > other.gain)) {
                    best = Some((swap, layer, group));
                }
            }
        }
        let Some((swap, layer, group)) = best else { return };
        let slots = &self.layers[layer];
        let occupants = &mut state.occupants[layer];
        let Some(slot) = occupants[group].iter().position(|o| *o == Some(swap.leaves)) else { return };
        occupants[group][slot] = None;
        slots.write_tables(occupants);
        let upload = Upload { slots: Arc::clone(slots), group, slot, expert: swap.enters };
        if uploader.start(upload) {
            state.moving = Some(Move { layer, group, slot, expert: swap.enters });
        } else {
            // Nobody copies any more: what was there is still there.
            occupants[group][slot] = Some(swap.leaves);
            slots.write_tables(occupants);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|p| p.into_inner())
    }
}
