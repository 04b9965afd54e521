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
//!
//! Where the host has no memory for all experts, it computes with those of an [`expert_pool::Pool`], and copies come from
//! there or from the file. The pool is told which experts have slots, and keeps and reads others.

mod layer;
mod popularity;
#[cfg(test)]
mod tests;
mod upload;

use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard};

pub(crate) use layer::{ExpertSource, GroupPlan, LayerSlots};
pub use popularity::{HALF_LIFE, MARGIN, Popularity, Swap};
pub(crate) use upload::Bytes;
use upload::{Outcome, Upload, Uploader};

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
    /// Copies that failed because the file could not be read.
    pub failures: u64,
}

impl SlotStatistics {
    /// What happened after an earlier look.
    pub fn since(&self, earlier: &SlotStatistics) -> SlotStatistics {
        SlotStatistics {
            hits: self.hits - earlier.hits,
            misses: self.misses - earlier.misses,
            promotions: self.promotions - earlier.promotions,
            uploaded_bytes: self.uploaded_bytes - earlier.uploaded_bytes,
            failures: self.failures - earlier.failures,
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
    /// Where experts are copied from, and the host's come from if they are streamed.
    bytes: Bytes,
    /// `None` where experts stay where they are.
    uploader: Option<Uploader>,
    spares_the_cpu: bool,
}

struct State {
    /// As the layers.
    popularity: Vec<Popularity>,
    /// The expert in each slot by layer and group; `None` while one is moving in, and after that failed.
    occupants: Vec<Vec<Vec<Option<u32>>>>,
    moving: Option<Move>,
    /// Computations until the next attempt after one that failed.
    rest: u32,
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

/// Computations for which nothing moves after a file could not be read.
const REST: u32 = 64;

impl SlotCache {
    /// The slots as the model was loaded; `moves` lets experts change places. `layers` have their memory already.
    pub(crate) fn new(
        bytes: Bytes,
        layers: Vec<Arc<LayerSlots>>,
        n_used: usize,
        moves: bool,
        spares_the_cpu: bool,
    ) -> SlotCache {
        let occupants: Vec<Vec<Vec<Option<u32>>>> =
            layers.iter().map(|layer| layer.first_occupants()).collect();
        for (layer, occupants) in layers.iter().zip(&occupants) {
            layer.write_tables(occupants, bytes.pool());
        }
        let popularity = layers.iter().map(|layer| Popularity::new(layer.n_expert())).collect();
        let uploader = moves.then(|| Uploader::new(bytes.clone()));
        let statistics = SlotStatistics::default();
        let state = State { popularity, occupants, moving: None, rest: 0, statistics };
        SlotCache {
            layers,
            n_used,
            running: RwLock::new(()),
            state: Mutex::new(state),
            bytes,
            uploader,
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

    /// For each expert of a layer its group and slot there; `None` for those that have none.
    pub(crate) fn places(&self, slots: &LayerSlots) -> Vec<Option<(usize, usize)>> {
        let mut places = vec![None; slots.n_expert()];
        let state = self.state();
        let of_layer = self.layers.iter().position(|layer| layer.layer() == slots.layer());
        for (group, occupants) in state.occupants[of_layer.expect("a layer with slots")].iter().enumerate() {
            for (slot, expert) in occupants.iter().enumerate() {
                if let Some(expert) = expert {
                    places[*expert as usize] = Some((group, slot));
                }
            }
        }
        places
    }

    /// Waits until no expert is moving, for tests and measurements: decoding never does.
    pub fn settle(&self) {
        if let Some(uploader) = &self.uploader
            && self.state().moving.is_some()
        {
            let outcome = uploader.wait();
            let running = self.running.write().unwrap_or_else(|p| p.into_inner());
            self.land(&mut self.state(), outcome);
            drop(running);
        }
    }

    /// Lets what has arrived be used and the next expert move, then keeps the tables as they are until the result is
    /// dropped: for one computation.
    pub(crate) fn begin(&self) -> RwLockReadGuard<'_, ()> {
        // Where another session computes just now, there is a next time.
        if let (Some(uploader), Ok(_alone)) = (&self.uploader, self.running.try_write()) {
            let mut state = self.state();
            if state.moving.is_some()
                && let Some(outcome) = uploader.outcome()
            {
                self.land(&mut state, outcome);
            }
            if state.moving.is_none() && state.rest == 0 {
                self.take_off(&mut state, uploader);
            }
            state.rest = state.rest.saturating_sub(1);
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

    /// The expert that was moving is there, or does not come.
    fn land(&self, state: &mut State, outcome: Outcome) {
        let Some(Move { layer, group, slot, expert }) = state.moving.take() else { return };
        match outcome {
            Outcome::Copied => {
                state.occupants[layer][group][slot] = Some(expert);
                self.write_tables(state, layer);
                state.statistics.promotions += 1;
                state.statistics.uploaded_bytes += self.layers[layer].expert_bytes(expert);
            }
            // Nobody asked for it. Where the file is gone, whoever asks for an expert will be told.
            Outcome::Failed => {
                state.statistics.failures += 1;
                state.rest = REST;
            }
        }
    }

    /// Sends an expert on its way: one into an empty slot, or the one that gains most, if any gains enough.
    fn take_off(&self, state: &mut State, uploader: &Uploader) {
        let Some(chosen) = self.vacancy(state).or_else(|| self.best_swap(state)) else { return };
        let Move { layer, group, slot, expert } = chosen;
        let before = state.occupants[layer][group][slot].take();
        if before.is_some() {
            self.write_tables(state, layer);
        }
        let upload = Upload { slots: Arc::clone(&self.layers[layer]), group, slot, expert };
        if uploader.start(upload) {
            state.moving = Some(chosen);
        } else if before.is_some() {
            // Nobody copies any more: what was there is still there.
            state.occupants[layer][group][slot] = before;
            self.write_tables(state, layer);
        }
    }

    /// The most popular expert for a slot that has none.
    fn vacancy(&self, state: &State) -> Option<Move> {
        for (layer, groups) in state.occupants.iter().enumerate() {
            for (group, occupants) in groups.iter().enumerate() {
                let Some(slot) = occupants.iter().position(Option::is_none) else { continue };
                let inside: Vec<u32> = occupants.iter().flatten().copied().collect();
                let best = state.popularity[layer].best(&inside, self.layers[layer].candidates(group));
                return best.map(|expert| Move { layer, group, slot, expert });
            }
        }
        None
    }

    /// The change of places that gains most.
    fn best_swap(&self, state: &State) -> Option<Move> {
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
        let (swap, layer, group) = best?;
        let slot = state.occupants[layer][group].iter().position(|o| *o == Some(swap.leaves))?;
        Some(Move { layer, group, slot, expert: swap.enters })
    }

    fn write_tables(&self, state: &State, layer: usize) {
        self.layers[layer].write_tables(&state.occupants[layer], self.bytes.pool());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|p| p.into_inner())
    }
}
