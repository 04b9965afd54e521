//! The thread that copies experts into slots while others compute.

use super::layer::LayerSlots;
use gguf::Gguf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

/// Bytes copied at once: enough to keep a bus busy, few enough for the program to end soon.
const CHUNK: usize = 8 << 20;

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
    busy: Arc<Busy>,
    thread: Option<JoinHandle<()>>,
}

/// Whether the thread has something to do.
#[derive(Default)]
struct Busy {
    is: Mutex<bool>,
    changed: Condvar,
    /// The model is being dropped.
    stop: AtomicBool,
}

impl Busy {
    fn set(&self, busy: bool) {
        *self.is.lock().unwrap_or_else(|p| p.into_inner()) = busy;
        self.changed.notify_all();
    }
}

impl Uploader {
    /// A thread with nothing to do; where the system gives none, nothing will ever move.
    pub fn new(gguf: &Arc<Gguf>) -> Uploader {
        let (jobs, taken) = channel();
        let busy = Arc::new(Busy::default());
        let (file, state) = (Arc::clone(gguf), Arc::clone(&busy));
        let thread = std::thread::Builder::new().name("experts".to_owned());
        let thread = thread.spawn(move || run(&file, &taken, &state)).ok();
        Uploader { jobs: Some(jobs), busy, thread }
    }

    /// Begins to copy; false where nobody will. The one before must be through.
    pub fn start(&self, upload: Upload) -> bool {
        self.busy.set(true);
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(upload).is_ok());
        if !sent {
            self.busy.set(false);
        }
        sent
    }

    /// Whether everything started is there.
    pub fn is_idle(&self) -> bool {
        !*self.busy.is.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// Waits until it is.
    pub fn wait(&self) {
        let busy = self.busy.is.lock().unwrap_or_else(|p| p.into_inner());
        drop(self.busy.changed.wait_while(busy, |busy| *busy));
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        self.busy.stop.store(true, Ordering::Relaxed);
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(gguf: &Gguf, jobs: &Receiver<Upload>, busy: &Busy) {
    for Upload { slots, group, slot, expert } in jobs {
        for (stack, source) in slots.groups[group].stacks.iter().zip(slots.sources(expert)) {
            let map = gguf.mapping(source.part);
            let bytes = &map[source.offset..source.offset + source.size];
            for (index, chunk) in bytes.chunks(CHUNK).enumerate() {
                if busy.stop.load(Ordering::Relaxed) {
                    return;
                }
                stack.write(slot * source.size + index * CHUNK, chunk);
            }
        }
        busy.set(false);
    }
}
