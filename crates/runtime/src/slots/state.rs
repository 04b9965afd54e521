//! Which expert is in which slot, and who moves: decisions without copying.

use super::SlotStatistics;
use super::layer::LayerSlots;
use super::popularity::{Popularity, Swap};
use expert_pool::Pool;
use std::sync::Arc;

/// What is in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// Nothing of use: a copy failed.
    Empty,
    /// An expert is being copied there.
    Coming(u32),
    /// An expert.
    Holds(u32),
}

impl Slot {
    /// The expert that is there.
    pub fn holds(self) -> Option<u32> {
        match self {
            Slot::Holds(expert) => Some(expert),
            Slot::Empty | Slot::Coming(_) => None,
        }
    }
}

/// An expert on its way into a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Move {
    /// Among the layers with slots.
    pub layer: usize,
    /// Number of the layer's group.
    pub group: usize,
    /// Number of the group's slot.
    pub slot: usize,
    /// The expert.
    pub expert: u32,
}

/// Everything behind the lock; vectors are by layer.
pub(super) struct State {
    pub popularity: Vec<Popularity>,
    /// By group.
    pub slots: Vec<Vec<Vec<Slot>>>,
    /// Layers whose tables don't say yet what is in the slots.
    is_stale: Vec<bool>,
    /// Computations with the tables that are under way.
    pub n_running: usize,
    /// Copies out of slots that are under way.
    pub n_lent: Vec<usize>,
    /// What is being uploaded.
    pub moving: Option<Move>,
    /// Computations until the next attempt after one that failed.
    pub rest: u32,
    pub statistics: SlotStatistics,
}

impl State {
    /// As the model was loaded.
    pub fn new(layers: &[Arc<LayerSlots>]) -> State {
        State {
            popularity: layers.iter().map(|layer| Popularity::new(layer.n_expert())).collect(),
            slots: layers.iter().map(|layer| layer.first_occupants()).collect(),
            is_stale: vec![true; layers.len()],
            n_running: 0,
            n_lent: vec![0; layers.len()],
            moving: None,
            rest: 0,
            statistics: SlotStatistics::default(),
        }
    }

    /// Writes the tables that are behind. Nobody may be computing with them.
    pub fn write_tables(&mut self, layers: &[Arc<LayerSlots>], pool: Option<&Pool>) {
        for (index, layer) in layers.iter().enumerate() {
            if std::mem::take(&mut self.is_stale[index]) {
                layer.write_tables(&self.slots[index], pool);
            }
        }
    }

    /// Changes what is in the slot of a move, and says what was there.
    pub fn set(&mut self, moved: Move, now: Slot) -> Slot {
        self.is_stale[moved.layer] = true;
        std::mem::replace(&mut self.slots[moved.layer][moved.group][moved.slot], now)
    }

    /// Group and slot of an expert of a layer.
    pub fn place(&self, layer: usize, expert: u32) -> Option<(usize, usize)> {
        let at = |slots: &Vec<Slot>| slots.iter().position(|slot| *slot == Slot::Holds(expert));
        self.slots[layer].iter().enumerate().find_map(|(group, slots)| Some((group, at(slots)?)))
    }

    /// Whether slots of a layer may be taken from the experts they hold.
    fn may_forget(&self, layer: usize) -> bool {
        self.n_running == 0 && self.n_lent[layer] == 0
    }

    /// The most popular expert for a slot that has none.
    pub fn vacancy(&self, layers: &[Arc<LayerSlots>]) -> Option<Move> {
        let into = |layer: usize, group: usize| {
            self.fill_empty(layer, group, &self.popularity[layer], layers[layer].candidates(group))
        };
        (0..layers.len()).find_map(|layer| (0..self.slots[layer].len()).find_map(|group| into(layer, group)))
    }

    fn fill_empty(
        &self,
        layer: usize,
        group: usize,
        popularity: &Popularity,
        candidates: &[u32],
    ) -> Option<Move> {
        let slots = &self.slots[layer][group];
        let slot = slots.iter().position(|slot| *slot == Slot::Empty)?;
        let expert = popularity.best(&holders(slots), &outside(slots, candidates))?;
        Some(Move { layer, group, slot, expert })
    }

    /// The change of places that gains most.
    pub fn best_swap(&self, layers: &[Arc<LayerSlots>]) -> Option<Move> {
        let mut best: Option<(Swap, Move)> = None;
        for (layer, slots) in layers.iter().enumerate() {
            for group in 0..self.slots[layer].len() {
                let found = self.swap(slots, layer, group, &self.popularity[layer], slots.candidates(group));
                if let Some(found) = found
                    && best.as_ref().is_none_or(|(other, _)| found.0.gain > other.gain)
                {
                    best = Some(found);
                }
            }
        }
        best.map(|(_, moved)| moved)
    }

    fn swap(
        &self,
        of_layer: &LayerSlots,
        layer: usize,
        group: usize,
        popularity: &Popularity,
        candidates: &[u32],
    ) -> Option<(Swap, Move)> {
        if !of_layer.may_move(group) || !self.may_forget(layer) {
            return None;
        }
        let slots = &self.slots[layer][group];
        let swap = popularity.swap(&holders(slots), &outside(slots, candidates))?;
        let slot = slots.iter().position(|slot| *slot == Slot::Holds(swap.leaves))?;
        Some((swap, Move { layer, group, slot, expert: swap.enters }))
    }

    /// All moves of a layer that `popularity` suggests among the experts that can be `had`, begun.
    pub fn harvest(
        &mut self,
        layers: &[Arc<LayerSlots>],
        layer: usize,
        popularity: &Popularity,
        had: &[bool],
    ) -> Vec<Move> {
        let mut moves = Vec::new();
        for group in 0..self.slots[layer].len() {
            let candidates = layers[layer].candidates(group).iter().copied();
            let candidates: Vec<u32> = candidates.filter(|expert| had[*expert as usize]).collect();
            while let Some(next) = self.fill_empty(layer, group, popularity, &candidates).or_else(|| {
                self.swap(&layers[layer], layer, group, popularity, &candidates).map(|(_, moved)| moved)
            }) {
                self.set(next, Slot::Coming(next.expert));
                moves.push(next);
            }
        }
        moves
    }
}

/// The experts in these slots.
fn holders(slots: &[Slot]) -> Vec<u32> {
    slots.iter().filter_map(|slot| slot.holds()).collect()
}

/// Candidates that are not on their way into these slots.
fn outside(slots: &[Slot], candidates: &[u32]) -> Vec<u32> {
    candidates.iter().copied().filter(|expert| !slots.contains(&Slot::Coming(*expert))).collect()
}
