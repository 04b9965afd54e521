//! What is in memory, what is wanted, and who makes room: decisions without threads and without reading.

use crate::Error;
use crate::buffer::Bytes;
use crate::layout::{Layer, Layout};
use crate::pass::{Group, Pass, Request};
use crate::statistics::{Busy, Statistics};
use memmap2::MmapMut;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};

/// Tokens after which having been taken counts half: what traces of routers suggest, as `routing::cache` has it.
const HALF_LIFE: f32 = 32.0;
/// By how much an expert must be likelier than what is in memory to take its place for longer than a pass.
const HYSTERESIS: f32 = 0.1;
/// Tokens from which on a batch counts as a sweep over all experts.
const SWEEP_TOKENS: usize = 32;
/// How far reading runs ahead of need, at most.
const MAX_WINDOW_BYTES: usize = 256 << 20;
/// Position of a tile that the present pass doesn't want (any more).
const NONE: usize = usize::MAX;

#[derive(Debug)]
enum Data {
    Absent,
    Reading,
    Ready(Arc<Bytes>),
}

#[derive(Debug)]
struct Slot {
    data: Data,
    /// Where in the present pass it is multiplied with.
    position: usize,
    /// The next layer will likely want it.
    hinted: bool,
    /// Read for this pass or the next layer's, and not used yet.
    staged: bool,
    /// Not found in memory by any pass since it was read.
    fresh: bool,
    /// The turn that used it last.
    used: u64,
}

/// Something to be read.
#[derive(Debug)]
pub(crate) struct Job {
    pub tile: usize,
    /// Where to.
    pub memory: MmapMut,
}

/// How many reads may be under way at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Depth {
    /// At most.
    pub wanted: usize,
    /// Reads ahead of need begin only while there are fewer than this: what is wanted next would have to share the disk
    /// with them.
    pub ahead: usize,
}

/// What room is needed for.
#[derive(Clone, Copy)]
enum Need {
    /// The tile at this position of the pass.
    Wanted(usize),
    /// A tile of the next layer.
    Hinted,
}

/// Everything behind the lock.
pub(crate) struct State {
    pub layout: Arc<Layout>,
    slots: Vec<Slot>,
    /// Tiles of each matrix that are ready.
    n_ready: Vec<u32>,
    /// Share of the tokens that took each expert lately, 0 to 1.
    scores: Vec<f32>,
    /// As the scores: experts that somebody else computes.
    elsewhere: Vec<bool>,
    /// Memory for tiles that holds none.
    free: Vec<MmapMut>,
    /// Tiles of the pass by position.
    sequence: Vec<usize>,
    cursor: usize,
    hints: Vec<usize>,
    hint_cursor: usize,
    /// Free memory is filled from here on; None where that is not wanted.
    fill_cursor: Option<usize>,
    pass: Option<Arc<Pass>>,
    is_sweep: bool,
    /// How many tiles are staged, and how many may be without need.
    n_staged: usize,
    window: usize,
    turn: u64,
    pub depth: Depth,
    /// Jobs that have begun and not ended.
    n_jobs: usize,
    pub stop: Option<Arc<AtomicBool>>,
    pub is_stopped: bool,
    pub failure: Option<Error>,
    /// Why nobody reads any more.
    pub broken: Option<String>,
    pub shutdown: bool,
    pub waiting: Busy,
    pub reading: Busy,
    hit_bytes: u64,
    ahead_bytes: u64,
    missed_bytes: u64,
    read_bytes: u64,
}

impl State {
    /// With this memory for tiles, each of [`Layout::slot_bytes`].
    pub fn new(layout: Arc<Layout>, memory: Vec<MmapMut>, depth: Depth) -> State {
        let slot = || Slot {
            data: Data::Absent,
            position: NONE,
            hinted: false,
            staged: false,
            fresh: true,
            used: 0,
        };
        State {
            slots: std::iter::repeat_with(slot).take(layout.tiles.len()).collect(),
            n_ready: vec![0; layout.matrices.len()],
            scores: vec![0.0; layout.n_scores],
            elsewhere: vec![false; layout.n_scores],
            window: (memory.len() / 8).min(MAX_WINDOW_BYTES / layout.slot_bytes).max(2),
            free: memory,
            sequence: Vec::new(),
            cursor: 0,
            hints: Vec::new(),
            hint_cursor: 0,
            fill_cursor: None,
            pass: None,
            is_sweep: false,
            n_staged: 0,
            turn: 0,
            depth,
            n_jobs: 0,
            stop: None,
            is_stopped: false,
            failure: None,
            broken: None,
            shutdown: false,
            waiting: Busy::default(),
            reading: Busy::default(),
            hit_bytes: 0,
            ahead_bytes: 0,
            missed_bytes: 0,
            read_bytes: 0,
            layout,
        }
    }

    /// As [`Pool::fill`](crate::Pool::fill).
    pub fn fill(&mut self) {
        self.fill_cursor = Some(0);
    }

    /// Begins a computation that `stop` ends early.
    pub fn begin(&mut self, stop: Arc<AtomicBool>) {
        self.forget_pass();
        self.turn += 1;
        self.pass = None;
        self.stop = Some(stop);
        self.is_stopped = false;
        self.failure = None;
    }

    /// Ends it, and says whether everything was there.
    pub fn finish(&mut self) -> Result<(), Error> {
        self.forget_pass();
        match (self.failure.take(), &self.broken, self.is_stopped) {
            (Some(error), ..) => Err(error),
            (None, Some(why), _) => Err(Error::Readers(why.clone())),
            (None, None, true) => Err(Error::Stopped),
            (None, None, false) => Ok(()),
        }
    }

    pub fn is_failed(&self) -> bool {
        self.failure.is_some() || self.broken.is_some() || self.is_stopped
    }

    fn forget_pass(&mut self) {
        for tile in std::mem::take(&mut self.sequence) {
            self.slots[tile].position = NONE;
            self.unstage(tile);
        }
        for tile in std::mem::take(&mut self.hints) {
            self.slots[tile].hinted = false;
            self.unstage(tile);
        }
    }

    /// The work of a layer; made by the first thread that asks in a computation, and then the same for all.
    pub fn enter(&mut self, request: &Request<'_>) -> Arc<Pass> {
        let is_same = |pass: &&Arc<Pass>| (pass.layer, pass.part) == (request.layer, request.part);
        if let Some(pass) = self.pass.as_ref().filter(is_same) {
            return Arc::clone(pass);
        }
        let layout = Arc::clone(&self.layout);
        let layer = &layout.layers[request.layer];
        let mut groups = self.gate_up_groups(layer, request);
        let n_gate_up = groups.len();
        groups.extend(self.down_groups(layer, request));

        // What was read ahead for this layer stays staged until it is used.
        let hints = std::mem::take(&mut self.hints);
        self.forget_pass();
        for group in &groups {
            for &tile in &group.tiles {
                self.slots[tile].position = self.sequence.len();
                self.sequence.push(tile);
                let len = self.layout.tiles[tile].len as u64;
                match self.slots[tile].data {
                    // Read, or found, for the part before.
                    Data::Ready(_) if request.part.index > 0 => {}
                    Data::Ready(_) if self.slots[tile].staged => self.ahead_bytes += len,
                    Data::Ready(_) => self.hit_bytes += len,
                    Data::Absent | Data::Reading => self.missed_bytes += len,
                }
            }
        }
        hints.iter().for_each(|tile| self.slots[*tile].hinted = false);
        self.cursor = 0;
        self.is_sweep = request.part.count > 1 || request.n_tokens >= SWEEP_TOKENS;
        self.learn(request.layer, request.experts, request.n_tokens);
        self.hint(request);
        for tile in hints {
            // What the next layer still wants is ahead of need as before.
            if self.slots[tile].position == NONE && !self.slots[tile].hinted {
                self.unstage(tile);
            }
        }
        let left = |group: &Group| {
            let step = request.steps[usize::from(group.expert == NONE)];
            AtomicUsize::new(group.rows.len().div_ceil(step.max(1)))
        };
        let pass = Arc::new(Pass {
            layer: request.layer,
            part: request.part,
            left: groups.iter().map(left).collect(),
            groups,
            n_gate_up,
            tile_rows: layer.tile_rows,
        });
        self.pass = Some(Arc::clone(&pass));
        pass
    }

    fn gate_up_groups(&self, layer: &Layer, request: &Request<'_>) -> Vec<Group> {
        let mut groups = Vec::new();
        for &(expert, _) in request.experts {
            let [gate, up] = [layer.gate[expert], layer.up[expert]].map(|m| &self.layout.matrices[m].tiles);
            for (index, tiles) in gate.clone().zip(up.clone()).enumerate() {
                let rows = rows_of(index, layer.tile_rows[0], layer.n_rows[0]);
                groups.push(Group { expert, rows, tiles: vec![tiles.0, tiles.1] });
            }
        }
        groups.sort_by_key(|group| self.distance(group));
        groups
    }

    fn down_groups(&self, layer: &Layer, request: &Request<'_>) -> Vec<Group> {
        let n_tiles = layer.n_rows[1].div_ceil(layer.tile_rows[1]);
        let first = |expert: usize| self.layout.matrices[layer.down[expert]].tiles.start;
        let mut groups: Vec<Group> = (0..n_tiles)
            .map(|index| Group {
                expert: NONE,
                rows: rows_of(index, layer.tile_rows[1], layer.n_rows[1]),
                tiles: request.experts.iter().map(|(expert, _)| first(*expert) + index).collect(),
            })
            .collect();
        groups.sort_by_key(|group| self.distance(group));
        groups
    }

    /// 0 for a group that is in memory, 1 where the rest is on its way, 2 otherwise.
    fn distance(&self, group: &Group) -> u8 {
        let of_tile = |tile: &usize| match self.slots[*tile].data {
            Data::Ready(_) => 0,
            Data::Reading => 1,
            Data::Absent => 2,
        };
        group.tiles.iter().map(of_tile).max().unwrap_or(0)
    }

    /// As [`Pool::learn`](crate::Pool::learn).
    pub fn learn(&mut self, layer: usize, experts: &[(usize, usize)], n_tokens: usize) {
        let layer = &self.layout.layers[layer];
        let kept = 0.5f32.powf(n_tokens as f32 / HALF_LIFE);
        let scores = &mut self.scores[layer.scores()];
        scores.iter_mut().for_each(|score| *score *= kept);
        for &(expert, n) in experts {
            scores[expert] += (1.0 - kept) * n as f32 / n_tokens.max(1) as f32;
        }
    }

    /// As [`Pool::shares`](crate::Pool::shares).
    pub fn shares(&self, layer: usize) -> &[f32] {
        &self.scores[self.layout.layers[layer].scores()]
    }

    /// Notes what will be wanted after this pass: in a sweep all of the next layer, after the last one the first again.
    fn hint(&mut self, request: &Request<'_>) {
        self.hint_cursor = 0;
        let mut next = request.layer + 1;
        if self.is_sweep {
            next %= self.layout.layers.len();
        }
        let layout = Arc::clone(&self.layout);
        let Some(layer) = layout.layers.get(next).filter(|_| next != request.layer) else { return };
        let experts: Vec<usize> =
            if self.is_sweep { (0..layer.n_expert()).collect() } else { request.next.to_vec() };
        // What a guess names may be any number.
        let is_ours =
            |expert: &usize| *expert < layer.n_expert() && !self.elsewhere[layer.first_score + expert];
        let experts: Vec<usize> = experts.into_iter().filter(is_ours).collect();
        let tiles = |matrix: usize| layout.matrices[matrix].tiles.clone();
        for &expert in &experts {
            let pairs = tiles(layer.gate[expert]).zip(tiles(layer.up[expert]));
            self.hints.extend(pairs.flat_map(|(gate, up)| [gate, up]));
        }
        for &expert in &experts {
            self.hints.extend(tiles(layer.down[expert]));
        }
        for &tile in &self.hints {
            self.slots[tile].hinted = true;
        }
    }

    /// As [`Pool::set_elsewhere`](crate::Pool::set_elsewhere).
    pub fn set_elsewhere(&mut self, layer: usize, experts: &[bool]) {
        let scores = self.layout.layers[layer].scores();
        assert_eq!(experts.len(), scores.len());
        self.elsewhere[scores].copy_from_slice(experts);
    }

    /// A tile, where it is in memory.
    pub fn held(&self, tile: usize) -> Option<Arc<Bytes>> {
        match &self.slots[tile].data {
            Data::Ready(bytes) => Some(Arc::clone(bytes)),
            Data::Absent | Data::Reading => None,
        }
    }

    /// Whether somebody is reading a tile, and will come to an end.
    pub fn is_on_its_way(&self, tile: usize) -> bool {
        matches!(self.slots[tile].data, Data::Reading) && self.broken.is_none()
    }

    /// Free memory to read a tile into that is not there; None where all is in use.
    pub fn keep(&mut self, tile: usize) -> Option<MmapMut> {
        if !matches!(self.slots[tile].data, Data::Absent) {
            return None;
        }
        let memory = self.free.pop()?;
        self.slots[tile].data = Data::Reading;
        Some(memory)
    }

    /// Takes the memory back of a tile that could not be read.
    pub fn give_up(&mut self, tile: usize, memory: MmapMut) {
        self.free.push(memory);
        self.unstage(tile);
        self.slots[tile].data = Data::Absent;
    }

    /// Notes bytes that were read beside the pool.
    pub fn note_read(&mut self, n_bytes: usize) {
        self.read_bytes += n_bytes as u64;
    }

    fn is_elsewhere(&self, tile: usize) -> bool {
        self.elsewhere[self.layout.matrices[self.layout.tiles[tile].matrix].score]
    }

    /// The tiles of a group, once all are in memory.
    pub fn take(&self, pass: &Pass, group: usize) -> Option<Vec<Arc<Bytes>>> {
        // No copies before it is sure that all are there: a tile that somebody holds makes no room.
        let tiles = &pass.groups[group].tiles;
        let all = tiles.iter().all(|tile| matches!(self.slots[*tile].data, Data::Ready(_)));
        all.then(|| tiles.iter().filter_map(|tile| self.held(*tile)).collect())
    }

    /// Notes that a group is used up.
    pub fn used_up(&mut self, pass: &Pass, group: usize) {
        let is_again = pass.part.index > 0;
        for &tile in &pass.groups[group].tiles {
            let was_staged = self.slots[tile].staged;
            self.unstage(tile);
            let slot = &mut self.slots[tile];
            slot.position = NONE;
            slot.used = self.turn;
            slot.fresh &= was_staged || is_again;
        }
    }

    fn unstage(&mut self, tile: usize) {
        if std::mem::take(&mut self.slots[tile].staged) {
            self.n_staged -= 1;
        }
    }

    /// What a reader should do next, until [`publish`](Self::publish) or [`fail`](Self::fail) ends it. None where there is
    /// nothing, no room until something is used up, or enough under way.
    pub fn next_job(&mut self) -> Option<Job> {
        if self.is_failed() || self.is_deep_enough() {
            return None;
        }
        let job = self.choose_job()?;
        self.n_jobs += 1;
        self.reading.enter();
        Some(job)
    }

    /// Whether there is no more to do before a job ends, whatever anybody wants.
    pub fn is_deep_enough(&self) -> bool {
        self.n_jobs >= self.depth.wanted
    }

    fn choose_job(&mut self) -> Option<Job> {
        let absent = |slot: &Slot| matches!(slot.data, Data::Absent);
        while let Some(&tile) = self.sequence.get(self.cursor) {
            if self.slots[tile].position == self.cursor && absent(&self.slots[tile]) {
                return self.start(tile, Need::Wanted(self.cursor));
            }
            self.cursor += 1;
        }
        if self.n_jobs >= self.depth.ahead {
            return None;
        }
        while let Some(&tile) = self.hints.get(self.hint_cursor) {
            if absent(&self.slots[tile]) {
                let job = self.start(tile, Need::Hinted);
                self.hint_cursor += usize::from(job.is_some());
                return job;
            }
            self.hint_cursor += 1;
        }
        while let Some(tile) = self.fill_cursor.filter(|tile| *tile < self.slots.len()) {
            if self.free.is_empty() {
                self.fill_cursor = None;
                break;
            }
            self.fill_cursor = Some(tile + 1);
            if absent(&self.slots[tile]) && !self.is_elsewhere(tile) {
                self.slots[tile].data = Data::Reading;
                return self.free.pop().map(|memory| Job { tile, memory });
            }
        }
        None
    }

    fn start(&mut self, tile: usize, need: Need) -> Option<Job> {
        if self.free.is_empty() {
            let victim = self.victim(need)?;
            self.evict(victim);
        }
        let memory = self.free.pop()?;
        let slot = &mut self.slots[tile];
        slot.data = Data::Reading;
        slot.staged = true;
        self.n_staged += 1;
        Some(Job { tile, memory })
    }

    /// Scores of the experts of the layer that is being passed, where it will be passed again before the next.
    fn repeated(&self) -> Range<usize> {
        let followed = self.pass.as_ref().filter(|pass| pass.part.is_followed());
        followed.map_or(0..0, |pass| self.layout.layers[pass.layer].scores())
    }

    /// The tile in memory that is worth least.
    fn victim(&self, need: Need) -> Option<usize> {
        let within_window = self.n_staged < self.window;
        let may_disturb = match need {
            Need::Wanted(_) => !self.is_sweep || self.waiting.is_busy() || within_window,
            Need::Hinted => within_window,
        };
        let repeated = self.repeated();
        let mut least: Option<((u8, f32), usize)> = None;
        for (matrix, _) in self.layout.matrices.iter().zip(&self.n_ready).filter(|(_, n)| **n > 0) {
            for tile in matrix.tiles.clone().rev() {
                let slot = &self.slots[tile];
                let Data::Ready(bytes) = &slot.data else { continue };
                if Arc::strong_count(bytes) > 1 {
                    continue;
                }
                let worth = self.scores[matrix.score] - if slot.fresh { HYSTERESIS } else { 0.0 };
                let is_repeated = repeated.contains(&matrix.score);
                let was_swept = self.is_sweep && slot.used == self.turn && !is_repeated;
                let rank = match (need, slot.position) {
                    (Need::Wanted(at), later) if later != NONE && later > at => (4, -(later as f32)),
                    (_, wanted) if wanted != NONE => continue,
                    (Need::Wanted(_), _) if slot.hinted => (3, worth),
                    (Need::Hinted, _) if slot.hinted || is_repeated => continue,
                    _ if self.elsewhere[matrix.score] => (0, -1.0),
                    _ if was_swept && slot.fresh => (0, worth),
                    _ if !may_disturb => continue,
                    _ if is_repeated => (3, worth),
                    _ if was_swept => (1, worth),
                    _ => (2, worth),
                };
                if least.is_none_or(|(rank_so_far, _)| rank < rank_so_far) {
                    least = Some((rank, tile));
                }
            }
        }
        least.map(|(_, tile)| tile)
    }

    fn evict(&mut self, tile: usize) {
        self.unstage(tile);
        let slot = &mut self.slots[tile];
        let data = std::mem::replace(&mut slot.data, Data::Absent);
        slot.fresh = true;
        if slot.position != NONE {
            self.cursor = self.cursor.min(slot.position);
        }
        self.n_ready[self.layout.tiles[tile].matrix] -= 1;
        if let Data::Ready(bytes) = data {
            let bytes = Arc::into_inner(bytes).expect("nobody holds it, and copies are made under the lock");
            self.free.push(bytes.memory);
        }
    }

    /// As [`Pool::clear`](crate::Pool::clear).
    pub fn clear(&mut self) {
        for tile in 0..self.slots.len() {
            if matches!(&self.slots[tile].data, Data::Ready(bytes) if Arc::strong_count(bytes) == 1) {
                self.evict(tile);
            }
        }
    }

    fn end_job(&mut self) {
        self.n_jobs -= 1;
        self.reading.leave();
    }

    /// Takes over what was read, of `read_bytes` in all.
    pub fn publish(&mut self, tile: usize, memory: MmapMut, read_bytes: usize) {
        self.end_job();
        self.put(tile, memory, read_bytes);
    }

    /// As [`publish`](Self::publish), of what was read by somebody else than the readers.
    pub fn put(&mut self, tile: usize, memory: MmapMut, read_bytes: usize) {
        let place = &self.layout.tiles[tile];
        self.slots[tile].data = Data::Ready(Arc::new(Bytes { memory, skip: place.skip, len: place.len }));
        self.n_ready[place.matrix] += 1;
        self.read_bytes += read_bytes as u64;
    }

    /// Takes note of what could not be read. `memory` is what was to hold it.
    pub fn fail(&mut self, tile: usize, memory: MmapMut, error: Error) {
        self.end_job();
        self.give_up(tile, memory);
        if self.slots[tile].position != NONE {
            self.failure.get_or_insert(error);
            return;
        }
        // Nobody waits for it. When somebody does, the error will be theirs.
        self.hint_cursor = self.hints.len();
        self.fill_cursor = None;
    }

    pub fn statistics(&self) -> Statistics {
        Statistics {
            hit_bytes: self.hit_bytes,
            ahead_bytes: self.ahead_bytes,
            missed_bytes: self.missed_bytes,
            read_bytes: self.read_bytes,
            reading: self.reading.total(),
            waiting: self.waiting.total(),
        }
    }
}

fn rows_of(index: usize, tile_rows: usize, n_rows: usize) -> std::ops::Range<usize> {
    index * tile_rows..((index + 1) * tile_rows).min(n_rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Part;
    use crate::layout::{LayerSource, MatrixSource};

    /// Two layers of three experts, each matrix a tile: gates are tiles 0 to 2 and 9 to 11, then ups, then downs.
    fn state(depth: Depth) -> State {
        let bank = |first: u64| -> Vec<MatrixSource> {
            let matrix = |number| MatrixSource {
                name: format!("matrix {number}"),
                file: 0,
                offset: number * 4096,
                row_bytes: 64,
                n_rows: 64,
            };
            (first..first + 3).map(matrix).collect()
        };
        let layer = |first| LayerSource { gate: bank(first), up: bank(first + 3), down: bank(first + 6) };
        let layout = Layout::new(&[layer(0), layer(9)]);
        let memory = crate::buffer::slots(layout.tiles.len(), layout.slot_bytes).expect("memory");
        State::new(Arc::new(layout), memory, depth)
    }

    fn enter(state: &mut State, layer: usize, expert: usize, next: &[usize]) {
        let experts = &[(expert, 1)];
        state.enter(&Request { layer, part: Part::WHOLE, experts, n_tokens: 1, steps: [64; 2], next });
    }

    fn jobs(state: &mut State) -> Vec<Job> {
        std::iter::from_fn(|| state.next_job()).collect()
    }

    fn tiles(jobs: &[Job]) -> Vec<usize> {
        jobs.iter().map(|job| job.tile).collect()
    }

    fn publish(state: &mut State, jobs: Vec<Job>) {
        jobs.into_iter().for_each(|Job { tile, memory }| state.publish(tile, memory, 0));
    }

    #[test]
    fn what_is_wanted_is_read_before_anything_ahead_of_need() {
        let mut state = state(Depth { wanted: 6, ahead: 2 });
        enter(&mut state, 0, 0, &[0, 1]);
        let wanted = jobs(&mut state);
        assert_eq!(tiles(&wanted), [0, 3, 6], "nothing ahead beside so much that is wanted");
        publish(&mut state, wanted);
        let mut ahead = jobs(&mut state);
        assert_eq!(tiles(&ahead), [9, 12], "as many ahead as may be");
        publish(&mut state, vec![ahead.remove(0)]);
        ahead.extend(jobs(&mut state));
        assert_eq!(tiles(&ahead), [12, 10]);
        // The next layer takes another expert than was thought: its tiles don't wait for those.
        enter(&mut state, 1, 2, &[]);
        let wanted = jobs(&mut state);
        assert_eq!(tiles(&wanted), [11, 14, 17]);
        publish(&mut state, ahead);
        publish(&mut state, wanted);
        assert!(jobs(&mut state).is_empty());
    }

    #[test]
    fn a_guess_may_name_what_is_not_there() {
        let mut state = state(Depth { wanted: 6, ahead: 6 });
        enter(&mut state, 0, 0, &[7, usize::MAX, 1]);
        assert_eq!(tiles(&jobs(&mut state)), [0, 3, 6, 10, 13, 16]);
    }

    #[test]
    fn no_more_is_under_way_than_there_may_be() {
        let mut state = state(Depth { wanted: 2, ahead: 1 });
        enter(&mut state, 0, 1, &[1]);
        let mut wanted = jobs(&mut state);
        assert_eq!(tiles(&wanted), [1, 4]);
        assert!(state.is_deep_enough());
        let Job { tile, memory } = wanted.remove(0);
        state.fail(tile, memory, Error::Stopped);
        assert!(!state.is_deep_enough() && jobs(&mut state).is_empty(), "a failure ends the computation");
    }
}
