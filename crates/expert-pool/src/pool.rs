//! The pool itself: the state behind its lock, threads that read, and threads that wait.

use crate::Error;
use crate::buffer::{self, Bytes};
use crate::file::{Files, Window};
use crate::layout::{LayerSource, Layout, Projection};
use crate::pass::{Pass, Request};
use crate::reader::{self, Bell, Readers};
use crate::state::{Depth, State};
use crate::statistics::Statistics;
use memmap2::MmapMut;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

/// How a pool works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Memory for experts, in bytes.
    pub size_bytes: u64,
    /// Who reads.
    pub readers: Readers,
}

/// How often a thread that waits looks whether it should stop.
const STOP_INTERVAL: Duration = Duration::from_millis(50);

/// Experts in memory, and readers for the others.
pub struct Pool {
    shared: Arc<Shared>,
    readers: Readers,
    threads: Vec<JoinHandle<()>>,
    turn: Mutex<()>,
}

/// What those who compute and those who read have in common.
pub(crate) struct Shared {
    pub layout: Arc<Layout>,
    pub files: Files,
    state: Mutex<State>,
    /// Readers may have something to do.
    pub bell: Bell,
    /// A tile has arrived, or none will.
    pub ready: Condvar,
}

impl Shared {
    /// With this memory for tiles, each of [`Layout::slot_bytes`].
    pub fn new(files: Files, layout: Arc<Layout>, memory: Vec<MmapMut>, depth: Depth) -> Shared {
        let state = Mutex::new(State::new(Arc::clone(&layout), memory, depth));
        Shared { layout, files, state, bell: Bell::new(), ready: Condvar::new() }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Lets those who read come to an end.
    fn shut_down(&self) {
        self.lock().shutdown = true;
        self.bell.ring();
    }

    /// The pages that a tile lies in.
    pub fn window(&self, tile: usize) -> Window {
        let place = &self.layout.tiles[tile];
        Window::new(place.file, place.start, place.needed())
    }

    /// The name of the tensor that a tile belongs to.
    pub fn tensor(&self, tile: usize) -> &str {
        &self.layout.matrices[self.layout.tiles[tile].matrix].name
    }

    /// Fills the beginning of `memory` with the pages that a tile lies in, and says how many bytes that are.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Truncated`].
    pub fn read_tile(&self, tile: usize, memory: &mut [u8]) -> Result<usize, Error> {
        let mut window = self.window(tile);
        self.files.read(&mut window, memory, self.tensor(tile))?;
        Ok(window.len())
    }
}

impl Pool {
    /// A pool for these layers, whose matrices lie in `files`, with its readers at work.
    ///
    /// # Errors
    /// [`Error::TooSmall`], [`Error::Memory`], [`Error::Threads`]; [`Error::Uring`] where [`Readers::Uring`] can't be had.
    ///
    /// # Panics
    /// When a layer's projections don't match.
    pub fn new(files: Files, layers: &[LayerSource], options: Options) -> Result<Pool, Error> {
        let layout = Arc::new(Layout::new(layers));
        let n_readers = options.readers.n_least();
        let needed_bytes = least_bytes(&layout, n_readers);
        if options.size_bytes < needed_bytes {
            return Err(Error::TooSmall { found_bytes: options.size_bytes, needed_bytes });
        }
        let size_bytes = options.size_bytes.min(layout.all_bytes() as u64) as usize;
        let memory = buffer::slots(size_bytes / layout.slot_bytes, layout.slot_bytes)
            .map_err(|source| Error::Memory { size_bytes, source })?;
        let n_spare = memory.len().saturating_sub(layout.largest_group());
        let depth = Depth { wanted: n_readers, ahead: n_readers };
        let shared = Arc::new(Shared::new(files, layout, memory, depth));
        let started = reader::start(&shared, options.readers, n_spare);
        // Some may have started before another could not.
        let (readers, threads) = started.inspect_err(|_| shared.shut_down())?;
        Ok(Pool { shared, readers, threads, turn: Mutex::new(()) })
    }

    /// Who reads: threads or io_uring, and how many at once.
    pub fn readers(&self) -> Readers {
        self.readers
    }

    /// Whether files are read past the system's cache.
    pub fn is_direct(&self) -> bool {
        self.shared.files.are_plain()
    }

    /// Forgets what is in memory, but for what somebody holds.
    pub fn clear(&self) {
        self.shared.lock().clear();
        self.shared.bell.ring();
    }

    /// From now on readers with nothing else to do fill the memory that no pass has needed yet, in the order of the file.
    /// Experts [elsewhere](Self::set_elsewhere) must have been named before: they are left out.
    pub fn fill(&self) {
        self.shared.lock().fill();
        self.shared.bell.ring();
    }

    /// Bytes that a pool for these layers has at least.
    pub fn least_bytes(layers: &[LayerSource], readers: Readers) -> u64 {
        least_bytes(&Layout::new(layers), readers.n_least())
    }

    /// Bytes that a pool for all experts of these layers takes; more are never used.
    pub fn all_bytes(layers: &[LayerSource]) -> u64 {
        Layout::new(layers).all_bytes() as u64
    }

    /// Begins a computation, after the one that is under way on another thread if there is one. `stop` ends it early.
    pub fn begin(&self, stop: Arc<AtomicBool>) -> Turn<'_> {
        let turn = self.turn.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.shared.lock().begin(stop);
        Turn { pool: self, _turn: turn }
    }

    /// The work of a layer for the batch that is being computed, the same for every thread that asks. Reading begins.
    pub fn enter(&self, request: &Request<'_>) -> Arc<Pass> {
        let pass = self.shared.lock().enter(request);
        self.shared.bell.ring();
        pass
    }

    /// Notes what a layer took that somebody else computed for it, as [`enter`](Self::enter) does: so that what is in memory and
    /// popular stays. Nothing is read.
    ///
    /// # Panics
    /// When the layer has no such expert.
    pub fn learn(&self, layer: usize, experts: &[(usize, usize)], n_tokens: usize) {
        self.shared.lock().learn(layer, experts, n_tokens);
    }

    /// Share of a layer's tokens that took each expert lately, 0 to 1.
    pub fn shares(&self, layer: usize) -> Vec<f32> {
        self.shared.lock().shares(layer).to_vec()
    }

    /// Waits for the tiles of a group (gates and ups come first in the numbering, then downs). None where they won't
    /// come: the computation is stopped, or a file can't be read; [`Turn::finish`] then says why.
    ///
    /// The caller must hold no other lease.
    pub fn lease<'a>(&'a self, pass: &'a Pass, group: usize) -> Option<Lease<'a>> {
        let mut state = self.shared.lock();
        loop {
            if state.is_failed() {
                return None;
            }
            if let Some(tiles) = state.take(pass, group) {
                return Some(Lease { pool: self, pass, group, tiles, n_done: 0 });
            }
            if state.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed)) {
                state.is_stopped = true;
                self.shared.ready.notify_all();
                return None;
            }
            state.waiting.enter();
            // Readers may make more room for somebody who waits.
            self.shared.bell.ring();
            let woken = self.shared.ready.wait_timeout(state, STOP_INTERVAL);
            state = woken.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
            state.waiting.leave();
        }
    }

    /// Says which experts of a layer somebody else computes: true for those. Nothing of them is read before it is asked
    /// for, and what is in memory of them makes room first.
    ///
    /// # Panics
    /// When the layer has another number of experts.
    pub fn set_elsewhere(&self, layer: usize, experts: &[bool]) {
        self.shared.lock().set_elsewhere(layer, experts);
    }

    /// Lends the bytes of an expert's matrix to `use_bytes`, tile by tile with the offset in the matrix of each, until
    /// that breaks off. What is in memory or on its way comes from there, the rest from the file; it stays in memory that
    /// nobody has needed yet where `keep` asks for that, and nothing makes room for it. It may be called beside a computation.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Truncated`], [`Error::Memory`].
    pub fn read(
        &self,
        layer: usize,
        projection: Projection,
        expert: usize,
        keep: bool,
        use_bytes: &mut dyn FnMut(usize, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let layout = &self.shared.layout;
        let matrix = &layout.matrices[layout.layers[layer].matrix(projection, expert)];
        let size_bytes = layout.slot_bytes;
        let mut beside = None;
        let mut at = 0;
        for tile in matrix.tiles.clone() {
            let place = &layout.tiles[tile];
            let done = match self.held(tile, keep)? {
                Some(bytes) => {
                    let done = use_bytes(at, bytes.get());
                    drop(bytes);
                    // Meanwhile it could not make room.
                    self.shared.bell.ring();
                    done
                }
                None => {
                    let memory = match &mut beside {
                        Some(memory) => memory,
                        None => {
                            let new = buffer::allocate(size_bytes);
                            beside.insert(new.map_err(|source| Error::Memory { size_bytes, source })?)
                        }
                    };
                    self.read_beside(tile, memory)?;
                    use_bytes(at, &memory[place.skip..place.skip + place.len])
                }
            };
            if done.is_break() {
                break;
            }
            at += place.len;
        }
        Ok(())
    }

    /// A tile that is in memory, on its way, or goes into memory that is free; None for others.
    fn held(&self, tile: usize, keep: bool) -> Result<Option<Arc<Bytes>>, Error> {
        let mut state = self.shared.lock();
        // Nobody reads what somebody reads.
        while state.is_on_its_way(tile) {
            state = self.shared.ready.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        let Some(mut memory) = (if keep { state.keep(tile) } else { None }) else {
            return Ok(state.held(tile));
        };
        state.reading.enter();
        drop(state);
        let done = self.shared.read_tile(tile, &mut memory);
        let mut state = self.shared.lock();
        state.reading.leave();
        let done = match done {
            Ok(n_bytes) => {
                state.put(tile, memory, n_bytes);
                Ok(state.held(tile))
            }
            Err(error) => {
                state.give_up(tile, memory);
                Err(error)
            }
        };
        self.shared.ready.notify_all();
        done
    }

    /// Reads a tile that does not go into the pool.
    fn read_beside(&self, tile: usize, memory: &mut [u8]) -> Result<(), Error> {
        self.shared.lock().reading.enter();
        let done = self.shared.read_tile(tile, memory);
        let mut state = self.shared.lock();
        state.reading.leave();
        done.map(|n_bytes| state.note_read(n_bytes))
    }

    /// What happened so far.
    pub fn statistics(&self) -> Statistics {
        self.shared.lock().statistics()
    }
}

fn least_bytes(layout: &Layout, n_readers: usize) -> u64 {
    let tiles = (layout.largest_group() + n_readers) as u64;
    (tiles * layout.slot_bytes as u64).min(layout.all_bytes() as u64)
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.shut_down();
        for reader in self.threads.drain(..) {
            // A reader that panicked has said so.
            let _ = reader.join();
        }
    }
}

/// A computation that uses the pool; one at a time.
pub struct Turn<'a> {
    pool: &'a Pool,
    _turn: MutexGuard<'a, ()>,
}

impl Turn<'_> {
    /// Ends the computation.
    ///
    /// # Errors
    /// The first failure to read what it asked for, or [`Error::Stopped`]: then its results are not to be used.
    pub fn finish(self) -> Result<(), Error> {
        self.pool.shared.lock().finish()
    }
}

/// The tiles of a group, in memory until the lease is dropped.
pub struct Lease<'a> {
    pool: &'a Pool,
    pass: &'a Pass,
    group: usize,
    tiles: Vec<Arc<Bytes>>,
    n_done: usize,
}

impl Lease<'_> {
    /// Number of the group.
    pub fn group(&self) -> usize {
        self.group
    }

    /// Bytes of the `index`-th tile: gate and up, or the downs of the experts in their order.
    ///
    /// # Panics
    /// When there is none.
    pub fn tile(&self, index: usize) -> &[u8] {
        self.tiles[index].get()
    }

    /// Notes that a piece of the group's work is done.
    pub fn done(&mut self) {
        self.n_done += 1;
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.tiles.clear();
        let left = &self.pass.left[self.group];
        if self.n_done > 0 && left.fetch_sub(self.n_done, Ordering::AcqRel) == self.n_done {
            self.pool.shared.lock().used_up(self.pass, self.group);
            self.pool.shared.bell.ring();
        }
    }
}
