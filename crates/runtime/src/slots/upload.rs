//! The thread that copies experts into slots while others compute.

use super::layer::LayerSlots;
use expert_pool::{Pool, Projection};
use gguf::Gguf;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

/// Bytes copied at once: enough to keep a bus busy, few enough for the program to end soon.
const CHUNK: usize = 8 << 20;

/// Takes bytes of an expert: which projection, where they begin there, and the bytes.
type UseBytes<'a> = &'a mut dyn FnMut(usize, usize, &[u8]) -> ControlFlow<()>;

/// Where the bytes of experts come from.
#[derive(Clone)]
pub(crate) enum Bytes {
    /// The mapped file.
    Mapped(Arc<Gguf>),
    /// The pool, or past the page cache the file.
    Streamed(Arc<Pool>),
}

impl Bytes {
    /// The pool, if it is one.
    pub fn pool(&self) -> Option<&Pool> {
        match self {
            Bytes::Mapped(_) => None,
            Bytes::Streamed(pool) => Some(pool),
        }
    }

    /// Lends an expert's bytes (gate, up, down) to `use_bytes` in pieces, until that breaks off.
    fn lend(
        &self,
        slots: &LayerSlots,
        expert: u32,
        use_bytes: UseBytes<'_>,
    ) -> Result<(), expert_pool::Error> {
        for (index, (source, projection)) in slots.sources(expert).iter().zip(Projection::ALL).enumerate() {
            match (self, slots.streamed) {
                (Bytes::Streamed(pool), Some(layer)) => {
                    let mut use_tile = |at: usize, bytes: &[u8]| use_bytes(index, at, bytes);
                    pool.read(layer, projection, expert as usize, false, &mut use_tile)?;
                }
                (Bytes::Mapped(gguf), _) => {
                    let bytes = &gguf.mapping(source.part)[source.offset..source.offset + source.size];
                    for (number, chunk) in bytes.chunks(CHUNK).enumerate() {
                        if use_bytes(index, number * CHUNK, chunk).is_break() {
                            return Ok(());
                        }
                    }
                }
                (Bytes::Streamed(_), None) => unreachable!("layers with slots are streamed, or none is"),
            }
        }
        Ok(())
    }
}

/// What became of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is there.
    Copied,
    /// The file can't be read. The slot holds no expert.
    Failed,
}

/// An expert and its slot, which nobody uses meanwhile.
pub(super) struct Upload {
    pub slots: Arc<LayerSlots>,
    pub group: usize,
    pub slot: usize,
    pub expert: u32,
}

/// Copies one expert at a time.
///
/// `Tensor::write` returns when the bytes are on the device. ggml's backends do that beside what the device computes:
/// CUDA copies on the calling thread's own stream, Metal shares memory with the host, Vulkan has a queue for transfers.
pub(super) struct Uploader {
    /// `None` while the thread is being ended.
    jobs: Option<Sender<Upload>>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread tells.
struct Shared {
    /// Of the last copy; `None` while it is under way.
    outcome: Mutex<Option<Outcome>>,
    changed: Condvar,
    /// The model is being dropped.
    stop: AtomicBool,
}

impl Shared {
    fn set(&self, outcome: Option<Outcome>) {
        *self.outcome.lock().unwrap_or_else(|p| p.into_inner()) = outcome;
        self.changed.notify_all();
    }
}

impl Uploader {
    /// A thread with nothing to do; where the system gives none, nothing will ever move.
    pub fn new(bytes: Bytes) -> Uploader {
        let (jobs, taken) = channel();
        let outcome = Mutex::new(Some(Outcome::Copied));
        let shared = Arc::new(Shared { outcome, changed: Condvar::new(), stop: AtomicBool::new(false) });
        let told = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("experts".to_owned());
        let thread = thread.spawn(move || run(&bytes, &taken, &told)).ok();
        Uploader { jobs: Some(jobs), shared, thread }
    }

    /// Begins to copy; false where nobody will. The one before must be through.
    pub fn start(&self, upload: Upload) -> bool {
        self.shared.set(None);
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(upload).is_ok());
        if !sent {
            self.shared.set(Some(Outcome::Failed));
        }
        sent
    }

    /// What became of the last copy; `None` while it is under way.
    pub fn outcome(&self) -> Option<Outcome> {
        *self.shared.outcome.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// Waits for it.
    pub fn wait(&self) -> Outcome {
        let outcome = self.shared.outcome.lock().unwrap_or_else(|p| p.into_inner());
        let outcome = self.shared.changed.wait_while(outcome, |outcome| outcome.is_none());
        outcome.unwrap_or_else(|p| p.into_inner()).unwrap_or(Outcome::Failed)
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(bytes: &Bytes, jobs: &Receiver<Upload>, shared: &Shared) {
    for Upload { slots, group, slot, expert } in jobs {
        let (stacks, sources) = (&slots.groups[group].stacks, slots.sources(expert));
        let done = bytes.lend(&slots, expert, &mut |projection, at, bytes| {
            if shared.stop.load(Ordering::Relaxed) {
                return ControlFlow::Break(());
            }
            stacks[projection].write(slot * sources[projection].size + at, bytes);
            ControlFlow::Continue(())
        });
        shared.set(Some(if done.is_ok() { Outcome::Copied } else { Outcome::Failed }));
    }
}
