//! One thread that keeps many reads in the system's queue: begins what is wanted as it becomes known, and hands on what
//! arrives.

use super::uring::{Ended, Ring};
use crate::Error;
use crate::file::Window;
use crate::pool::Shared;
use memmap2::MmapMut;
use std::io;

/// A tile on its way.
pub(super) struct OnTheWay {
    tile: usize,
    window: Window,
}

/// A tile that is there, of so many bytes in all, or can't be.
struct Done {
    tile: usize,
    memory: MmapMut,
    result: Result<usize, Error>,
}

/// Reads as long as there is a pool; what is in the queue then is left to the ring, which waits for it.
///
/// # Errors
/// Where the system takes no more reads and gives none back.
pub(super) fn run<'f>(shared: &'f Shared, ring: &mut Ring<'f, OnTheWay>) -> io::Result<()> {
    let (mut jobs, mut ended, mut done) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        let mut state = shared.lock();
        let has_news = !done.is_empty();
        for Done { tile, memory, result } in done.drain(..) {
            match result {
                Ok(read_bytes) => state.publish(tile, memory, read_bytes),
                Err(error) => state.fail(tile, memory, error),
            }
        }
        if state.shutdown {
            return Ok(());
        }
        jobs.extend(std::iter::from_fn(|| state.next_job()));
        if !state.is_deep_enough() {
            shared.bell.listen();
        }
        drop(state);
        if has_news {
            shared.ready.notify_all();
        }
        for job in jobs.drain(..) {
            let on_the_way = OnTheWay { tile: job.tile, window: shared.window(job.tile) };
            done.extend(go_on(shared, ring, on_the_way, job.memory));
        }
        if done.is_empty() {
            ring.wait(&mut ended)?;
        }
        for Ended { memory, what, result } in ended.drain(..) {
            done.extend(note(shared, ring, what, memory, result));
        }
    }
}

/// Begins the next read of a tile, where one is left.
fn go_on<'f>(
    shared: &'f Shared,
    ring: &mut Ring<'f, OnTheWay>,
    on_the_way: OnTheWay,
    memory: MmapMut,
) -> Option<Done> {
    let OnTheWay { tile, window } = &on_the_way;
    let Some(from) = window.next() else {
        return Some(Done { tile: *tile, memory, result: Ok(window.len()) });
    };
    match shared.files.file(window.file) {
        Some(file) => {
            let (offset, range) = (window.start + from as u64, from..window.len());
            ring.begin(file, offset, memory, range, on_the_way);
            None
        }
        None => Some(finish(shared, on_the_way, memory)),
    }
}

/// Takes note of what a read gave, and goes on where that was not all.
fn note<'f>(
    shared: &'f Shared,
    ring: &mut Ring<'f, OnTheWay>,
    mut on_the_way: OnTheWay,
    memory: MmapMut,
    result: io::Result<usize>,
) -> Option<Done> {
    if result.as_ref().is_err_and(is_refusal) {
        return Some(finish(shared, on_the_way, memory));
    }
    let OnTheWay { tile, window } = &mut on_the_way;
    match window.note(&shared.files, shared.tensor(*tile), result) {
        Ok(()) => go_on(shared, ring, on_the_way, memory),
        Err(error) => Some(Done { tile: *tile, memory, result: Err(error) }),
    }
}

/// What a file system says that can't read directly here, or not from a queue: a usual read may still do it.
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidInput | io::ErrorKind::WouldBlock | io::ErrorKind::Unsupported
    )
}

/// Reads the rest of a tile as a thread would. What else is in the queue arrives meanwhile.
fn finish(shared: &Shared, mut on_the_way: OnTheWay, mut memory: MmapMut) -> Done {
    let OnTheWay { tile, window } = &mut on_the_way;
    let read = shared.files.read(window, &mut memory, shared.tensor(*tile));
    Done { tile: *tile, result: read.map(|()| window.len()), memory }
}
