//! Which expert is copied when, and who waits for whom: decisions without threads and without copying.
//!
//! The layers of a device take its stacks in turns. Copiers fill the stacks in the order of the layers; the
//! [gates](Sweep::enter) of a computation are passed in that order too. When a gate is entered, the device has been
//! waited for, so that everything before that layer is computed: then the stack of the layer before it may be filled
//! anew. A gate lets its layer pass when every expert that was chosen there has arrived.
//!
//! Where another computation follows, its first layers are copied as soon as stacks are free, which is while the last
//! layers of this one are computed. Therefore a device with an odd number of layers takes its stacks the other way
//! round from one computation to the next: its first layer must not want the stack that the last one is computed with.
//!
//! When a layer has arrived, and before its stack is filled anew, experts of it may be [kept](Job::Keep): copied to slots.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};

/// Projections of an expert.
pub(super) const N_PROJECTIONS: usize = 3;

/// Stacks of a device: while one is computed with, the next layer is copied into the other.
pub(crate) const N_STACKS: usize = 2;

/// Which of its stacks a device's first layer takes, for each device; the others take turns after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Order(u64);

impl Order {
    /// The stack, of its device, that the layer numbered `turn` among that device's takes.
    pub fn stack(self, device: usize, turn: usize) -> usize {
        (turn + (self.0 >> device & 1) as usize) % N_STACKS
    }
}

/// What a copier does at a time.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// Fill a part of a stack.
    Copy(Item),
    /// Copy what deserves it from a layer's stack to slots.
    Keep(Kept),
}

/// What one copier copies to a stack at a time: one projection of one expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// Among the layers that are staged.
    pub layer: usize,
    /// Of the layer's device.
    pub stack: usize,
    pub expert: usize,
    /// 0 to 2: gate, up, down.
    pub projection: usize,
    /// For the computation after the one that is under way.
    pub is_ahead: bool,
}

impl Item {
    fn number(&self) -> usize {
        self.expert * N_PROJECTIONS + self.projection
    }
}

/// A layer that has arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// Among the layers that are staged.
    pub layer: usize,
    /// Of the layer's device.
    pub stack: usize,
    /// The experts that the batch's tokens took.
    pub ids: Vec<i32>,
    /// By number of the expert: whether all of it is there.
    pub has: Vec<bool>,
}

/// What became of an item.
pub(super) enum Outcome {
    Arrived,
    Failed(crate::Error),
    Panicked(Box<dyn Any + Send>),
}

/// One layer, as the sweep sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stop {
    /// Number of its device.
    pub device: usize,
    pub n_expert: usize,
    /// Whether experts may be left out that nobody chose.
    pub may_skip: bool,
    /// Whether experts of it may be kept.
    pub has_slots: bool,
}

/// The state that copiers and gates share.
pub(super) struct Sweep {
    stops: Vec<Stop>,
    /// For each layer how many of its device come before it.
    turns: Vec<usize>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Layers of the computation that is under way; 0 between computations.
    n_layers: usize,
    /// Another computation follows.
    goes_on: bool,
    /// Stacks of the computation that is under way, and of the next.
    orders: [Order; 2],
    /// Gates that were entered.
    n_entered: usize,
    /// The next item's layer and number in it. Layers of the next computation follow upon those of this one.
    next: (usize, usize),
    /// Items of each layer that are being copied.
    n_under_way: Vec<usize>,
    /// Experts of each layer that were chosen; `None` before its gate is entered.
    chosen: Vec<Option<Vec<bool>>>,
    /// What each device's stacks hold.
    contents: Vec<[Option<Contents>; N_STACKS]>,
    /// Layers of which experts may be kept now.
    arrived: VecDeque<Kept>,
    /// Layers of which experts are being kept.
    keeping: Vec<usize>,
    /// The first that went wrong.
    failure: Option<Outcome>,
    /// The computation ended before all gates were entered.
    is_abandoned: bool,
    shutdown: bool,
}

struct Contents {
    layer: usize,
    /// By number of the item.
    has: Vec<bool>,
}

impl Sweep {
    pub fn new(stops: Vec<Stop>) -> Sweep {
        let n_devices = stops.iter().map(|stop| stop.device + 1).max().unwrap_or(0);
        let before =
            |layer: usize| stops[..layer].iter().filter(|other| other.device == stops[layer].device).count();
        let state = State {
            n_layers: 0,
            goes_on: false,
            orders: [Order::default(); 2],
            n_entered: 0,
            next: (0, 0),
            n_under_way: vec![0; stops.len()],
            chosen: vec![None; stops.len()],
            contents: (0..n_devices).map(|_| [const { None }; N_STACKS]).collect(),
            arrived: VecDeque::new(),
            keeping: Vec::new(),
            failure: None,
            is_abandoned: false,
            shutdown: false,
        };
        Sweep {
            turns: (0..stops.len()).map(before).collect(),
            stops,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// How the next computation takes the stacks.
    pub fn order(&self) -> Order {
        self.lock().orders[0]
    }

    /// Begins to stage the first `n_layers` for a computation that takes the stacks in the present
    /// [order](Self::order); `goes_on` where another one follows. The one before was [finished](Self::finish).
    pub fn begin(&self, n_layers: usize, goes_on: bool) {
        let mut state = self.lock();
        state.n_layers = n_layers;
        state.goes_on = goes_on;
        state.orders[1] = self.order_after(state.orders[0], n_layers);
        state.n_entered = 0;
        state.next = (0, 0);
        state.chosen.fill(None);
        state.failure = None;
        state.is_abandoned = false;
        self.changed.notify_all();
    }

    /// The order after a computation of `n_layers`: that in which a device's first layer does not take the stack of its
    /// last. Where all of a device's layers have a stack of their own they stay.
    fn order_after(&self, Order(bits): Order, n_layers: usize) -> Order {
        let layers_of =
            |device: usize, n: usize| self.stops[..n].iter().filter(move |s| s.device == device).count();
        let is_turned = |device: &usize| {
            layers_of(*device, self.stops.len()) > N_STACKS && layers_of(*device, n_layers) % N_STACKS == 1
        };
        let n_devices = self.stops.iter().map(|stop| stop.device + 1).max().unwrap_or(0);
        Order((0..n_devices).filter(is_turned).fold(bits, |bits, device| bits ^ 1 << device))
    }

    /// The layer at a position of this computation and the next, and its stack.
    fn at(&self, state: &State, position: usize) -> (usize, usize) {
        let (layer, order) = match position.checked_sub(state.n_layers) {
            None => (position, state.orders[0]),
            Some(layer) => (layer, state.orders[1]),
        };
        (layer, order.stack(self.stops[layer].device, self.turns[layer]))
    }

    /// Whether the stack of the layer at this position may be filled: all that was to be done with it before is done.
    fn is_free(&self, state: &State, position: usize) -> bool {
        let place = |position: usize| {
            let (layer, stack) = self.at(state, position);
            (self.stops[layer].device, stack)
        };
        let Some(before) = (0..position).rev().find(|other| place(*other) == place(position)) else {
            return true;
        };
        // The gate after a layer waits for all that was computed with its stack.
        let is_kept =
            state.keeping.contains(&before) || state.arrived.iter().any(|kept| kept.layer == before);
        before < state.n_layers && state.n_entered > before + 1 && !is_kept
    }

    /// The next thing to do, as soon as there is some; `None` when the sweep is over for good.
    pub fn take(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.shutdown {
                return None;
            }
            if let Some(kept) = state.arrived.pop_front() {
                state.keeping.push(kept.layer);
                return Some(Job::Keep(kept));
            }
            let was = state.next.0;
            let item = self.advance(&mut state);
            if state.next.0 != was {
                // Layers of which the rest was left out may be ready by that.
                self.changed.notify_all();
            }
            if let Some(item) = item {
                state.n_under_way[item.layer] += 1;
                return Some(Job::Copy(item));
            }
            state = self.changed.wait(state).unwrap_or_else(|p| p.into_inner());
        }
    }

    /// Moves on to what has to be copied and may be.
    fn advance(&self, state: &mut State) -> Option<Item> {
        let n_ahead = if state.goes_on { self.stops.len() } else { 0 };
        while state.failure.is_none() && state.next.0 < state.n_layers + n_ahead {
            let (position, number) = state.next;
            if !self.is_free(state, position) {
                return None;
            }
            let (layer, stack) = self.at(state, position);
            let stop = self.stops[layer];
            if number == stop.n_expert * N_PROJECTIONS {
                state.next = (position + 1, 0);
                continue;
            }
            let contents = &mut state.contents[stop.device][stack];
            if contents.as_ref().is_none_or(|contents| contents.layer != layer) {
                *contents = Some(Contents { layer, has: vec![false; stop.n_expert * N_PROJECTIONS] });
            }
            let is_there = contents.as_ref().is_some_and(|contents| contents.has[number]);
            let (expert, projection) = (number / N_PROJECTIONS, number % N_PROJECTIONS);
            let is_ahead = position >= state.n_layers;
            let chosen = state.chosen[layer].as_ref().filter(|_| !is_ahead);
            let is_wanted = !stop.may_skip || chosen.is_none_or(|chosen| chosen[expert]);
            state.next.1 += 1;
            if !is_there && is_wanted {
                return Some(Item { layer, stack, expert, projection, is_ahead });
            }
        }
        None
    }

    /// An item that was taken is there, or does not come.
    pub fn done(&self, item: Item, outcome: Outcome) {
        let mut state = self.lock();
        state.n_under_way[item.layer] -= 1;
        match outcome {
            Outcome::Arrived => {
                if let Some(contents) = &mut state.contents[self.stops[item.layer].device][item.stack] {
                    contents.has[item.number()] = true;
                }
            }
            // Nobody has asked for it yet. Whoever does will copy it, or be told why that can't be.
            Outcome::Failed(_) if item.is_ahead => state.goes_on = false,
            failed => {
                state.failure.get_or_insert(failed);
            }
        }
        self.changed.notify_all();
    }

    /// What deserved it of a layer that has arrived was kept, unless that panicked.
    pub fn kept(&self, layer: usize, outcome: Outcome) {
        let mut state = self.lock();
        state.keeping.retain(|other| *other != layer);
        if !matches!(outcome, Outcome::Arrived) {
            state.failure.get_or_insert(outcome);
        }
        self.changed.notify_all();
    }

    /// Waits until the experts `ids` of a layer are in its stack, or something went wrong. The device must have computed
    /// all before that layer, or have failed: then ids may be any numbers. All threads of a node may enter; says to the first
    /// that all `ids` are experts.
    pub fn enter(&self, layer: usize, ids: &[i32]) -> bool {
        let mut state = self.lock();
        let is_first = state.n_entered <= layer;
        if is_first {
            state.n_entered = layer + 1;
            let mut chosen = vec![false; self.stops[layer].n_expert];
            let known = ids.iter().filter(|id| self.has_expert(layer, **id));
            known.for_each(|id| chosen[*id as usize] = true);
            state.chosen[layer] = Some(chosen);
            self.changed.notify_all();
        }
        let is_waiting = |state: &mut State| {
            let is_taken =
                state.next.0 > layer || state.next == (layer, self.stops[layer].n_expert * N_PROJECTIONS);
            let is_there = is_taken && state.n_under_way[layer] == 0;
            !is_there && state.failure.is_none() && layer < state.n_layers
        };
        let mut state = self.changed.wait_while(state, is_waiting).unwrap_or_else(|p| p.into_inner());
        let is_sound = is_first && ids.iter().all(|id| self.has_expert(layer, *id));
        if is_sound && self.stops[layer].has_slots && state.failure.is_none() && layer < state.n_layers {
            let stack = self.at(&state, layer).1;
            if let Some(contents) = &state.contents[self.stops[layer].device][stack] {
                let has = contents.has.chunks(N_PROJECTIONS).map(|all| all.iter().all(|has| *has)).collect();
                state.arrived.push_back(Kept { layer, stack, ids: ids.to_vec(), has });
                self.changed.notify_all();
            }
        }
        is_sound
    }

    /// Whether a layer has an expert of this number.
    pub fn has_expert(&self, layer: usize, id: i32) -> bool {
        usize::try_from(id).is_ok_and(|id| id < self.stops[layer].n_expert)
    }

    /// Whether copiers should break off.
    pub fn is_over(&self) -> bool {
        let state = self.lock();
        state.shutdown || state.failure.is_some() || state.is_abandoned
    }

    /// Ends a computation and waits until nothing is being copied.
    ///
    /// # Errors
    /// What went wrong first.
    ///
    /// # Panics
    /// Where a copier did.
    pub fn finish(&self) -> Result<(), crate::Error> {
        let mut state = self.lock();
        state.is_abandoned = state.n_entered < state.n_layers;
        state.n_layers = 0;
        state.goes_on = false;
        state.orders[0] = state.orders[1];
        state.next = (0, 0);
        if state.failure.is_some() {
            state.arrived.clear();
        }
        let is_busy = |state: &mut State| {
            let is_keeping = !state.arrived.is_empty() || !state.keeping.is_empty();
            is_keeping || state.n_under_way.iter().any(|n| *n > 0)
        };
        let mut state = self.changed.wait_while(state, is_busy).unwrap_or_else(|p| p.into_inner());
        match state.failure.take() {
            Some(Outcome::Failed(error)) => Err(error),
            Some(Outcome::Panicked(panic)) => {
                drop(state);
                std::panic::resume_unwind(panic)
            }
            Some(Outcome::Arrived) | None => Ok(()),
        }
    }

    /// Sends the copiers home.
    pub fn shut_down(&self) {
        self.lock().shutdown = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|p| p.into_inner())
    }
}

#[cfg(test)]
#[path = "sweep_tests.rs"]
mod tests;
