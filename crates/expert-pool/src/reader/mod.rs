//! Who reads tiles: one thread that keeps many reads in the system's queue, or several threads with one read each.

mod queue;
mod threads;
#[cfg_attr(
    not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))),
    path = "no_uring.rs"
)]
mod uring;

use crate::Error;
use crate::pool::Shared;
use crate::state::{Depth, State};
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, MutexGuard, mpsc};
use std::thread::JoinHandle;

/// Threads that read, where no queue does. Measured on a disk of 1.5 GB/s: two to eight reads of 1 or 2 MiB at once gave
/// the same.
pub const N_READERS: usize = 4;

/// Bytes in the queue at once, at most, and of reads ahead of need.
const DEPTH_BYTES: usize = 16 << 20;
const AHEAD_BYTES: usize = 4 << 20;
/// Reads in the queue at once, however small they are.
const MAX_DEPTH: usize = 64;

/// Who reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Readers {
    /// What is best here: Linux's io_uring, with a depth that suits the tiles; [`N_READERS`] threads where there is none,
    /// or where files can't be read past the system's cache.
    #[default]
    Auto,
    /// So many threads, each with one read at a time.
    Threads(usize),
    /// One thread with so many reads at once, through io_uring.
    Uring(usize),
}

impl Readers {
    /// As many threads as read where there is no queue.
    pub const THREADS: Readers = Readers::Threads(N_READERS);

    /// Reads at once that a pool has room for, however small it is.
    pub(crate) fn n_least(self) -> usize {
        match self {
            Readers::Auto => N_READERS,
            Readers::Threads(n) | Readers::Uring(n) => n.max(1),
        }
    }

    /// What this comes to with io_uring, in a pool with room for `n_spare` reads of `slot_bytes`.
    fn queued(self, slot_bytes: usize, n_spare: usize) -> Depth {
        let least = self.n_least();
        let deep = |bytes: usize| (bytes / slot_bytes).clamp(least, MAX_DEPTH.max(least));
        let wanted = match self {
            Readers::Auto => deep(DEPTH_BYTES).min(n_spare).max(least),
            Readers::Threads(_) | Readers::Uring(_) => least,
        };
        Depth { wanted, ahead: deep(AHEAD_BYTES).min(wanted) }
    }
}

/// As `4 threads`, or `io_uring, 8 reads at once`.
impl fmt::Display for Readers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Readers::Auto => f.write_str("auto"),
            Readers::Threads(n) => write!(f, "{n} threads"),
            Readers::Uring(n) => write!(f, "io_uring, {n} reads at once"),
        }
    }
}

/// Wakes readers that have nothing to do.
pub(crate) struct Bell {
    sleepers: Condvar,
    /// For the thread with the queue, which sleeps in the system.
    event: Option<uring::Event>,
    /// That thread wants to hear it.
    is_heard: AtomicBool,
}

impl Bell {
    pub fn new() -> Bell {
        Bell { sleepers: Condvar::new(), event: uring::Event::new().ok(), is_heard: AtomicBool::new(false) }
    }

    /// Until it rings: for threads with nothing in the system's queue.
    pub fn sleep<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.sleepers.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// For the thread with the queue: the next ring is to end its waiting. To be called under the lock under which it found
    /// nothing more to do.
    pub fn listen(&self) {
        self.is_heard.store(true, Ordering::Release);
    }

    /// To be called after what there is to do has changed.
    pub fn ring(&self) {
        self.sleepers.notify_all();
        if let Some(event) = self.event.as_ref().filter(|_| self.is_heard.swap(false, Ordering::AcqRel)) {
            event.signal();
        }
    }
}

/// Starts those that read for a pool, with room for `n_spare` reads besides what is being computed with. Comes back with
/// who they are and their threads.
///
/// # Errors
/// [`Error::Threads`]; [`Error::Uring`] where nothing else was to do.
pub(crate) fn start(
    shared: &Arc<Shared>,
    readers: Readers,
    n_spare: usize,
) -> Result<(Readers, Vec<JoinHandle<()>>), Error> {
    start_with(shared, readers, n_spare, |depth, event| uring::Ring::new(depth, event))
}

/// Makes a ring for so many reads at once.
type MakeRing = for<'f> fn(usize, &'f uring::Event) -> io::Result<uring::Ring<'f, queue::OnTheWay>>;

fn start_with(
    shared: &Arc<Shared>,
    readers: Readers,
    n_spare: usize,
    make_ring: MakeRing,
) -> Result<(Readers, Vec<JoinHandle<()>>), Error> {
    let n_threads = readers.n_least();
    if !matches!(readers, Readers::Threads(_)) {
        let depth = readers.queued(shared.layout.slot_bytes, n_spare);
        match start_queue(shared, depth, make_ring)? {
            Ok(thread) => return Ok((Readers::Uring(depth.wanted), vec![thread])),
            Err(source) if readers != Readers::Auto => return Err(Error::Uring(source)),
            Err(_) => {}
        }
    }
    shared.lock().depth = Depth { wanted: n_threads, ahead: n_threads };
    let start = |number| {
        spawn(shared, format!("expert reader {number}"), |shared| {
            threads::run(shared);
            Ok(())
        })
    };
    let threads = (0..n_threads).map(start).collect::<io::Result<_>>().map_err(Error::Threads)?;
    Ok((Readers::Threads(n_threads), threads))
}

/// Starts the thread with a queue; the system's error where there can be none.
fn start_queue(
    shared: &Arc<Shared>,
    depth: Depth,
    make_ring: MakeRing,
) -> Result<io::Result<JoinHandle<()>>, Error> {
    if !shared.files.are_plain() {
        return Ok(Err(io::ErrorKind::Unsupported.into()));
    }
    shared.lock().depth = depth;
    let (tell, told) = mpsc::sync_channel(1);
    let run = move |shared: &Shared| {
        let ring = shared.bell.event.as_ref().ok_or(io::ErrorKind::Unsupported.into());
        match ring.and_then(|event| make_ring(depth.wanted, event)) {
            Ok(mut ring) => {
                let _ = tell.send(Ok(()));
                queue::run(shared, &mut ring)
            }
            Err(error) => {
                let _ = tell.send(Err(error));
                Ok(())
            }
        }
    };
    let thread = spawn(shared, "expert reader".to_owned(), run).map_err(Error::Threads)?;
    let begun = told.recv().unwrap_or_else(|_| Err(io::Error::other("the thread that reads has ended")));
    Ok(begun.map(|()| thread))
}

/// A thread that reads; where it can't go on, nobody is left waiting.
fn spawn(
    shared: &Arc<Shared>,
    name: String,
    run: impl FnOnce(&Shared) -> io::Result<()> + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    std::thread::Builder::new().name(name).spawn(move || {
        let why = match catch_unwind(AssertUnwindSafe(|| run(&shared))) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "a thread that reads has panicked".to_owned(),
        };
        shared.lock().broken = Some(why);
        shared.ready.notify_all();
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;
    use crate::{Files, ReadAt};
    use std::fs::File;

    #[test]
    fn the_queue_is_as_deep_as_bytes_and_room_allow() {
        let depth = |wanted, ahead| Depth { wanted, ahead };
        assert_eq!(Readers::Auto.queued(2 << 20, 100), depth(8, 4));
        assert_eq!(Readers::Auto.queued(1 << 20, 100), depth(16, 4));
        assert_eq!(Readers::Auto.queued(256 << 10, 100), depth(64, 16));
        assert_eq!(Readers::Auto.queued(4096, 100), depth(64, 64));
        assert_eq!(Readers::Auto.queued(64 << 20, 100), depth(4, 4));
        // Room for the four that there are threads for is always there.
        assert_eq!(Readers::Auto.queued(1 << 20, 6), depth(6, 4));
        assert_eq!(Readers::Auto.queued(1 << 20, 0), depth(4, 4));
        assert_eq!(Readers::Uring(0).queued(1 << 20, 100), depth(1, 1));
        assert_eq!(Readers::Uring(100).queued(1 << 20, 100), depth(100, 100));
        assert_eq!(Readers::Uring(12).queued(256 << 10, 100), depth(12, 12));
    }

    /// What a container says that doesn't allow io_uring.
    #[test]
    fn threads_read_where_the_system_refuses_a_queue() {
        struct Plain(File);
        impl ReadAt for Plain {
            fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
                Ok(0)
            }

            fn file(&self) -> Option<&File> {
                Some(&self.0)
            }
        }
        let shared = || {
            let plain = Plain(tempfile::tempfile().expect("a file"));
            let files = Files::new(vec![("plain".into(), Box::new(plain))]);
            let layout = Arc::new(Layout { slot_bytes: 1 << 20, ..Layout::default() });
            Arc::new(Shared::new(files, layout, Vec::new(), Depth { wanted: 1, ahead: 1 }))
        };
        let refuse: MakeRing = |_, _| Err(io::Error::from_raw_os_error(libc::EPERM));
        let auto = shared();
        let (readers, threads) = start_with(&auto, Readers::Auto, 100, refuse).expect("threads can be had");
        assert_eq!((readers, threads.len()), (Readers::Threads(N_READERS), N_READERS));
        assert_eq!(auto.lock().depth, Depth { wanted: N_READERS, ahead: N_READERS });
        auto.lock().shutdown = true;
        auto.bell.ring();
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        let refused =
            start_with(&shared(), Readers::Uring(8), 100, refuse).expect_err("nothing else will do");
        assert!(matches!(refused, Error::Uring(_)), "{refused}");
    }

    #[test]
    fn readers_say_who_they_are() {
        assert_eq!(Readers::Threads(4).to_string(), "4 threads");
        assert_eq!(Readers::Uring(8).to_string(), "io_uring, 8 reads at once");
    }
}
