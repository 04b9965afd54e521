//! In which order layers are staged, who waits for whom, and what is in the stacks: without threads or devices of its own.
//!
//! A device has up to two stacks, which its layers take in turns. Copiers fill the stacks in the order of the layers;
//! the [gates](Sweep::enter) of a computation are passed in that order too. When a gate is entered, the device has been
//! waited for, so that everything before that layer is computed: then the stack of the layer before it may be filled
//! anew. A gate lets its layer pass when every expert that was chosen there has arrived.

use std::any::Any;
use std::sync::{Condvar, Mutex, MutexGuard};

/// Projections of an expert.
pub(super) const N_PROJECTIONS: usize = 3;

/// What one copier copies at a time: one projection of one expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// Among the layers that are staged.
    pub layer: usize,
    pub expert: usize,
    /// 0 to 2: gate, up, down.
    pub projection: usize,
}

impl Item {
    fn number(&self) -> usize {
        self.expert * N_PROJECTIONS + self.projection
    }
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
    /// Number of its stack, over all devices.
    pub stack: usize,
    pub n_expert: usize,
    /// Whether experts may be left out that nobody chose.
    pub may_skip: bool,
}

/// The state that copiers and gates share.
pub(super) struct Sweep {
    stops: Vec<Stop>,
    /// For each layer the one that had its stack before in the same computation.
    before: Vec<Option<usize>>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Layers of the computation that is under way; 0 between computations.
    n_layers: usize,
    /// Gates that were entered.
    n_entered: usize,
    /// The next item's layer and number in it.
    next: (usize, usize),
    /// Items of each layer that are being copied.
    n_under_way: Vec<usize>,
    /// Experts of each layer that were chosen; `None` before its gate is entered.
    chosen: Vec<Option<Vec<bool>>>,
    /// What each stack holds.
    contents: Vec<Option<Contents>>,
    /// The first that went wrong.
    failure: Option<Outcome>,
    shutdown: bool,
}

struct Contents {
    layer: usize,
    /// By number of the item.
    has: Vec<bool>,
}

impl Sweep {
    pub fn new(stops: Vec<Stop>) -> Sweep {
        let n_stacks = stops.iter().map(|stop| stop.stack + 1).max().unwrap_or(0);
        let before = |layer: usize| (0..layer).rev().find(|other| stops[*other].stack == stops[layer].stack);
        let state = State {
            n_layers: 0,
            n_entered: 0,
            next: (0, 0),
            n_under_way: vec![0; stops.len()],
            chosen: vec![None; stops.len()],
            contents: (0..n_stacks).map(|_| None).collect(),
            failure: None,
            shutdown: false,
        };
        Sweep {
            before: (0..stops.len()).map(before).collect(),
            stops,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Begins to stage the first `n_layers` for a computation. The one before was [finished](Self::finish).
    pub fn begin(&self, n_layers: usize) {
        let mut state = self.lock();
        state.n_layers = n_layers;
        state.n_entered = 0;
        state.next = (0, 0);
        state.chosen.fill(None);
        state.failure = None;
        self.changed.notify_all();
    }

    /// The next thing to copy, as soon as there is some; `None` when the sweep is over for good.
    pub fn take(&self) -> Option<Item> {
        let mut state = self.lock();
        loop {
            if state.shutdown {
                return None;
            }
            let was = state.next.0;
            let item = self.advance(&mut state);
            if state.next.0 != was {
                // Layers of which the rest was left out may be ready by that.
                self.changed.notify_all();
            }
            if let Some(item) = item {
                state.n_under_way[item.layer] += 1;
                return Some(item);
            }
            state = self.changed.wait(state).unwrap_or_else(|p| p.into_inner());
        }
    }

    /// Moves on to what has to be copied and may be.
    fn advance(&self, state: &mut State) -> Option<Item> {
        while state.failure.is_none() && state.next.0 < state.n_layers {
            let (layer, number) = state.next;
            let stop = self.stops[layer];
            // The gate after a layer waits for all that was computed with its stack.
            let is_free = self.before[layer].is_none_or(|before| state.n_entered > before + 1);
            if !is_free {
                return None;
            }
            if number == stop.n_expert * N_PROJECTIONS {
                state.next = (layer + 1, 0);
                continue;
            }
            let contents = &mut state.contents[stop.stack];
            if contents.as_ref().is_none_or(|contents| contents.layer != layer) {
                *contents = Some(Contents { layer, has: vec![false; stop.n_expert * N_PROJECTIONS] });
            }
            let is_there = contents.as_ref().is_some_and(|contents| contents.has[number]);
            let (expert, projection) = (number / N_PROJECTIONS, number % N_PROJECTIONS);
            let chosen = state.chosen[layer].as_ref();
            let is_wanted = !stop.may_skip || chosen.is_none_or(|chosen| chosen[expert]);
            state.next.1 += 1;
            if !is_there && is_wanted {
                return Some(Item { layer, expert, projection });
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
                if let Some(contents) = &mut state.contents[self.stops[item.layer].stack] {
                    contents.has[item.number()] = true;
                }
            }
            failed => {
                state.failure.get_or_insert(failed);
            }
        }
        self.changed.notify_all();
    }

    /// Waits until the experts `ids` of a layer are in its stack, or something went wrong. The device must have computed
    /// all before that layer. All threads of a node may enter.
    ///
    /// # Panics
    /// When an id is not below the number of experts.
    pub fn enter(&self, layer: usize, ids: &[i32]) {
        let mut state = self.lock();
        if state.n_entered <= layer {
            state.n_entered = layer + 1;
            let mut chosen = vec![false; self.stops[layer].n_expert];
            ids.iter().for_each(|id| chosen[*id as usize] = true);
            state.chosen[layer] = Some(chosen);
            self.changed.notify_all();
        }
        let is_waiting = |state: &mut State| {
            let is_taken =
                state.next.0 > layer || state.next == (layer, self.stops[layer].n_expert * N_PROJECTIONS);
            let is_there = is_taken && state.n_under_way[layer] == 0;
            !is_there && state.failure.is_none() && layer < state.n_layers
        };
        drop(self.changed.wait_while(state, is_waiting).unwrap_or_else(|p| p.into_inner()));
    }

    /// Whether copiers should break off.
    pub fn is_over(&self) -> bool {
        let state = self.lock();
        state.shutdown || state.failure.is_some() || state.n_layers == 0
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
        state.n_layers = 0;
        let is_busy = |state: &mut State| state.n_under_way.iter().any(|n| *n > 0);
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
mod tests {
    use super::*;

    const STOP: Stop = Stop { stack: 0, n_expert: 2, may_skip: true };

    /// Four layers in two stacks.
    fn four() -> Sweep {
        Sweep::new((0..4).map(|layer| Stop { stack: layer % 2, ..STOP }).collect())
    }

    /// All that may be copied now.
    fn items(sweep: &Sweep) -> Vec<(usize, usize)> {
        let next = || {
            let mut state = sweep.lock();
            let item = sweep.advance(&mut state)?;
            state.n_under_way[item.layer] += 1;
            Some(item)
        };
        let mut found = Vec::new();
        while let Some(item) = next() {
            found.push((item.layer, item.expert));
            sweep.done(item, Outcome::Arrived);
        }
        sweep.changed.notify_all();
        found.dedup();
        found
    }

    #[test]
    fn a_stack_is_filled_anew_when_the_gate_after_its_layer_is_entered() {
        let sweep = four();
        assert_eq!(items(&sweep), [], "nothing is computed");
        sweep.begin(4);
        assert_eq!(items(&sweep), [(0, 0), (0, 1), (1, 0), (1, 1)]);
        sweep.enter(0, &[0, 1]);
        assert_eq!(items(&sweep), [], "layer 0 is being computed");
        sweep.enter(1, &[0, 1]);
        assert_eq!(items(&sweep), [(2, 0), (2, 1)]);
        sweep.enter(2, &[0, 1]);
        assert_eq!(items(&sweep), [(3, 0), (3, 1)]);
        sweep.enter(3, &[0, 1]);
        assert_eq!(items(&sweep), []);
        sweep.finish().expect("nothing failed");
        // Layers 2 and 3 are there now.
        sweep.begin(4);
        assert_eq!(items(&sweep), [(0, 0), (0, 1), (1, 0), (1, 1)]);
    }

    #[test]
    fn what_is_there_stays_there() {
        let sweep = Sweep::new(vec![STOP, Stop { stack: 1, ..STOP }]);
        sweep.begin(2);
        assert_eq!(items(&sweep).len(), 4);
        sweep.finish().expect("nothing failed");
        sweep.begin(2);
        assert_eq!(items(&sweep), []);
        sweep.enter(0, &[0, 1]);
        sweep.enter(1, &[1, 0]);
    }

    #[test]
    fn experts_that_nobody_chose_are_left_out_once_that_is_known() {
        for may_skip in [true, false] {
            let stop = Stop { may_skip, n_expert: 4, ..STOP };
            let sweep = Sweep::new(vec![stop; 2]);
            sweep.begin(2);
            let first = sweep.take().expect("there is something to do");
            assert_eq!(first, Item { layer: 0, expert: 0, projection: 0 });
            std::thread::scope(|scope| {
                let gate = scope.spawn(|| sweep.enter(0, &[2, 2]));
                while sweep.lock().n_entered == 0 {
                    std::thread::yield_now();
                }
                sweep.done(first, Outcome::Arrived);
                assert!(!gate.is_finished(), "expert 2 is not there");
                let found = items(&sweep);
                let expected: &[_] = if may_skip { &[(0, 2)] } else { &[(0, 0), (0, 1), (0, 2), (0, 3)] };
                assert_eq!(found, expected);
            });
        }
    }

    #[test]
    fn a_failure_opens_all_gates_and_is_told_once() {
        let sweep = four();
        sweep.begin(4);
        let item = sweep.take().expect("there is something to do");
        std::thread::scope(|scope| {
            scope.spawn(|| (0..4).for_each(|layer| sweep.enter(layer, &[0])));
            sweep.done(item, Outcome::Failed(crate::Error::Stopped));
        });
        assert!(sweep.is_over());
        assert!(matches!(sweep.finish(), Err(crate::Error::Stopped)));
        // What did not arrive is copied again.
        sweep.begin(4);
        assert_eq!(sweep.take(), Some(item));
        sweep.done(item, Outcome::Arrived);
        sweep.finish().expect("it is there now");
    }

    #[test]
    fn whoever_finishes_waits_for_what_is_being_copied() {
        let sweep = four();
        sweep.begin(1);
        let item = sweep.take().expect("there is something to do");
        std::thread::scope(|scope| {
            let end = scope.spawn(|| sweep.finish());
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(!end.is_finished());
            sweep.done(item, Outcome::Arrived);
            end.join().expect("no panic").expect("nothing failed");
        });
        sweep.shut_down();
        assert_eq!(sweep.take(), None);
    }
}
