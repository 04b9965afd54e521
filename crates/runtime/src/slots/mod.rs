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
//! Experts that are [staged](crate::staging) for a large batch are on the device already. Those of them that deserve a slot
//! are [harvested](SlotCache::harvest): copied there from the stack while the batch is computed, as many as there are. A
//! batch that is staged reads no tables and no slots; so slots change meanwhile, unless another computation uses them, and
//! tables are written before the next one that does.
//!
//! Where the host has no memory for all experts, it computes with those of an [`expert_pool::Pool`], and copies come from
//! there or from the file. The pool is told which experts have slots, and keeps and reads others.

mod layer;
mod popularity;
mod state;
#[cfg(test)]
mod tests;
mod upload;

use std::sync::{Arc, Mutex, MutexGuard};

pub(crate) use layer::{ExpertSource, GroupPlan, LayerSlots};
pub use popularity::{HALF_LIFE, MARGIN, Popularity, Swap};
pub(crate) use state::Move;
use state::{Slot, State};
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
    /// Those of them that a large batch had brought to the device.
    pub harvested: u64,
    /// Bytes copied to devices for the others.
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
            harvested: self.harvested - earlier.harvested,
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
    state: Mutex<State>,
    /// Where experts are copied from, and the host's come from if they are streamed.
    bytes: Bytes,
    /// `None` where experts stay where they are.
    uploader: Option<Uploader>,
    spares_the_cpu: bool,
}

/// Computations for which nothing moves after a file could not be read.
const REST: u32 = 64;

/// A computation with the tables, which stay as they are until this is dropped.
pub(crate) struct Running<'a>(&'a SlotCache);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.state().n_running -= 1;
    }
}

/// A slot that is copied from, and holds its expert until this is dropped.
pub(crate) struct Lent<'a> {
    cache: &'a SlotCache,
    index: usize,
    /// Number of the layer's group.
    pub group: usize,
    /// Number of the group's slot.
    pub slot: usize,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.cache.state().n_lent[self.index] -= 1;
    }
}

impl SlotCache {
    /// The slots as the model was loaded; `moves` lets experts change places. `layers` have their memory already.
    pub(crate) fn new(
        bytes: Bytes,
        layers: Vec<Arc<LayerSlots>>,
        n_used: usize,
        moves: bool,
        spares_the_cpu: bool,
    ) -> SlotCache {
        let uploader = moves.then(|| Uploader::new(bytes.clone()));
        let mut state = State::new(&layers);
        state.write_tables(&layers, bytes.pool());
        SlotCache { layers, n_used, state: Mutex::new(state), bytes, uploader, spares_the_cpu }
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
        self.state().slots.iter().flatten().map(Vec::len).sum()
    }

    /// The experts in the slots of each layer that has some, by number of the layer; without those that are moving in.
    pub fn experts(&self) -> Vec<(usize, Vec<u32>)> {
        let state = self.state();
        let of_layer =
            |groups: &Vec<Vec<Slot>>| groups.iter().flatten().filter_map(|slot| slot.holds()).collect();
        self.layers.iter().zip(&state.slots).map(|(l, groups)| (l.layer(), of_layer(groups))).collect()
    }

    /// Waits until no expert is moving, for tests and measurements: decoding never does.
    pub fn settle(&self) {
        if let Some(uploader) = &self.uploader
            && self.state().moving.is_some()
        {
            let outcome = uploader.wait();
            self.land(&mut self.state(), outcome);
        }
        self.write_tables(&mut self.state());
    }

    /// Lets what has arrived be used and the next expert move. For one computation, which keeps the result where it goes by
    /// the tables: these then stay as they are.
    pub(crate) fn begin(&self, by_tables: bool) -> Option<Running<'_>> {
        let mut state = self.state();
        // Where another session computes just now, there is a next time.
        if let (Some(uploader), 0) = (&self.uploader, state.n_running) {
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
        self.write_tables(&mut state);
        state.n_running += usize::from(by_tables);
        by_tables.then(|| Running(self))
    }

    /// Counts the experts that a computation's tokens took: `ids` is `[n_used, n_tokens]` of the `index`-th layer with
    /// slots. `served` where slots were used for it.
    pub(crate) fn observe(&self, index: usize, ids: &[i32], served: bool) {
        let mut state = self.state();
        let State { popularity, slots, statistics, .. } = &mut *state;
        popularity[index].observe_batch(ids, self.n_used);
        if served {
            let is_hit =
                |id: &&i32| slots[index].iter().flatten().any(|slot| slot.holds() == Some(**id as u32));
            let n_hits = ids.iter().filter(is_hit).count() as u64;
            statistics.hits += n_hits;
            statistics.misses += ids.len() as u64 - n_hits;
        }
    }

    /// The slot that holds an expert, to copy from.
    pub(crate) fn lend(&self, slots: &LayerSlots, expert: usize) -> Option<Lent<'_>> {
        let (index, mut state) = (self.index(slots), self.state());
        let (group, slot) = state.place(index, expert as u32)?;
        state.n_lent[index] += 1;
        Some(Lent { cache: self, index, group, slot })
    }

    /// Experts of a layer that deserve a slot, of those that the device `has` elsewhere, when a batch has taken `ids:
    /// [n_used, n_tokens]`. The caller copies them there and [tells](Self::landed) of each; nobody uses their slots
    /// meanwhile.
    pub(crate) fn harvest(&self, slots: &LayerSlots, ids: &[i32], has: &[bool]) -> Vec<Move> {
        if self.uploader.is_none() {
            return Vec::new();
        }
        let (index, mut state) = (self.index(slots), self.state());
        let mut popularity = state.popularity[index].clone();
        popularity.observe_batch(ids, self.n_used);
        state.harvest(&self.layers, index, &popularity, has)
    }

    /// A harvested expert is in its slot.
    pub(crate) fn landed(&self, harvested: Move) {
        let mut state = self.state();
        state.set(harvested, Slot::Holds(harvested.expert));
        state.statistics.promotions += 1;
        state.statistics.harvested += 1;
    }

    /// The expert that was moving is there, or does not come.
    fn land(&self, state: &mut State, outcome: Outcome) {
        let Some(moved) = state.moving.take() else { return };
        match outcome {
            Outcome::Copied => {
                state.set(moved, Slot::Holds(moved.expert));
                state.statistics.promotions += 1;
                state.statistics.uploaded_bytes += self.layers[moved.layer].expert_bytes(moved.expert);
            }
            // Nobody asked for it. Where the file is gone, whoever asks for an expert will be told.
            Outcome::Failed => {
                state.set(moved, Slot::Empty);
                state.statistics.failures += 1;
                state.rest = REST;
            }
        }
    }

    /// Sends an expert on its way: one into an empty slot, or the one that gains most, if any gains enough.
    fn take_off(&self, state: &mut State, uploader: &Uploader) {
        let Some(chosen) = state.vacancy(&self.layers).or_else(|| state.best_swap(&self.layers)) else {
            return;
        };
        let Move { layer, group, slot, expert } = chosen;
        let before = state.set(chosen, Slot::Coming(expert));
        self.write_tables(state);
        let upload = Upload { slots: Arc::clone(&self.layers[layer]), group, slot, expert };
        if uploader.start(upload) {
            state.moving = Some(chosen);
        } else {
            // Nobody copies any more: what was there is still there.
            state.set(chosen, before);
        }
    }

    /// Writes the tables that are behind, unless somebody computes with them.
    fn write_tables(&self, state: &mut State) {
        if state.n_running == 0 {
            state.write_tables(&self.layers, self.bytes.pool());
        }
    }

    fn index(&self, slots: &LayerSlots) -> usize {
        let index = self.layers.iter().position(|layer| layer.layer() == slots.layer());
        index.expect("a layer with slots")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|p| p.into_inner())
    }
}
