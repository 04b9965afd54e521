//! Reads through Linux's io_uring: the crate's only unsafe code.
//!
//! From when a read is handed to the system until its completion has been taken, the system may write to the read's memory
//! at any time. For just so long the memory belongs to the [`Ring`]'s table, where nobody can get at it: [`Ring::begin`]
//! takes it by value, and [`Ring::wait`] gives it back with the completion. A ring that is dropped, be it by a panic, waits
//! for all completions first; where it can't, it never frees that memory.
#![allow(unsafe_code)] // An entry of the queue is an address; see above for who keeps it valid.

use io_uring::{IoUring, Probe, opcode, squeue, types};
use memmap2::MmapMut;
use rustix::event::{EventfdFlags, eventfd};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

/// Something that a thread which waits for completions can be woken by.
pub(super) struct Event(OwnedFd);

impl Event {
    pub fn new() -> io::Result<Event> {
        Ok(Event(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Ends a [`Ring::wait`], the present one or the next.
    pub fn signal(&self) {
        // It fails only where the count is full, and then it is signalled.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    fn clear(&self) {
        // It fails only where it is not signalled.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

/// The number by which the system knows the event; reads have the index in the table.
const EVENT: u64 = u64::MAX;

/// Most bytes of one entry, in whole pages; the rest is left to further reads.
const MAX_READ_BYTES: usize = 1 << 30;

/// A read in the system's hands.
struct Read<T> {
    memory: MmapMut,
    what: T,
}

/// A read that has ended.
pub(super) struct Ended<T> {
    /// What it was to fill.
    pub memory: MmapMut,
    /// What it was for.
    pub what: T,
    /// Bytes read; 0 at the end of the file.
    pub result: io::Result<usize>,
}

/// Reads under way, each for a `T`, and the memory that they go to. Files stay open as long as the ring is there.
pub(super) struct Ring<'f, T> {
    ring: IoUring,
    reads: Vec<Option<Read<T>>>,
    n_reads: usize,
    event: &'f Event,
    is_event_awaited: bool,
}

impl<'f, T> Ring<'f, T> {
    /// A ring for `depth` reads at once, whose waiting also `event` ends. It is for one thread, the one that makes it.
    ///
    /// # Errors
    /// Where the system has no io_uring, an old one (before Linux 5.6), or doesn't allow it.
    pub fn new(depth: usize, event: &'f Event) -> io::Result<Ring<'f, T>> {
        // Beside the reads there is the event.
        let n_entries = u32::try_from(depth + 1).map_err(io::Error::other)?;
        let ring = set_up(n_entries)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if ![opcode::Read::CODE, opcode::PollAdd::CODE].iter().all(|code| probe.is_supported(*code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let reads = std::iter::repeat_with(|| None).take(depth).collect();
        Ok(Ring { ring, reads, n_reads: 0, event, is_event_awaited: false })
    }

    /// Begins to read from `offset` of the file into this range of `memory`. The system hears of it with the next
    /// [`wait`](Self::wait).
    ///
    /// # Panics
    /// With more reads than the ring is for; where there is no such range.
    pub fn begin(&mut self, file: &'f File, offset: u64, mut memory: MmapMut, range: Range<usize>, what: T) {
        let index = self.reads.iter().position(Option::is_none).expect("no more reads than the ring is for");
        let target = &mut memory[range];
        let len = target.len().min(MAX_READ_BYTES) as u32;
        let entry = opcode::Read::new(types::Fd(file.as_raw_fd()), target.as_mut_ptr(), len);
        let entry = entry.offset(offset).build().user_data(index as u64);
        // SAFETY: the entry has `len` bytes of `memory`, which nobody else has and which from the next line on is kept in
        // the table until the completion with this index has been taken. Moving it there moves no byte of the mapping.
        unsafe { push(&mut self.ring, &entry) };
        self.reads[index] = Some(Read { memory, what });
        self.n_reads += 1;
    }

    /// Waits until a read has ended, or the event has been signalled, and adds all that have ended.
    ///
    /// # Errors
    /// As the system has it; the reads stay in the ring.
    pub fn wait(&mut self, ended: &mut Vec<Ended<T>>) -> io::Result<()> {
        if !self.is_event_awaited {
            let entry = opcode::PollAdd::new(types::Fd(self.event.0.as_raw_fd()), libc::POLLIN as u32);
            // SAFETY: the entry has no memory.
            unsafe { push(&mut self.ring, &entry.build().user_data(EVENT)) };
            self.is_event_awaited = true;
        }
        self.enter()?;
        self.take(ended);
        Ok(())
    }

    /// Hands all entries to the system and waits for a completion.
    fn enter(&mut self) -> io::Result<()> {
        loop {
            let Err(error) = self.ring.submit_and_wait(1) else { return Ok(()) };
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                // The system is short of memory, or of room for completions.
                Some(libc::EAGAIN | libc::EBUSY) if self.ring.completion().is_empty() => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Some(libc::EAGAIN | libc::EBUSY) => return Ok(()),
                _ => return Err(error),
            }
        }
    }

    /// Takes the completions that are there.
    fn take(&mut self, ended: &mut Vec<Ended<T>>) {
        for completion in self.ring.completion() {
            if completion.user_data() == EVENT {
                self.event.clear();
                self.is_event_awaited = false;
                continue;
            }
            let read = self.reads.get_mut(completion.user_data() as usize).and_then(Option::take);
            let Read { memory, what } = read.expect("a completion is of a read that was begun");
            self.n_reads -= 1;
            let n = completion.result();
            let result = usize::try_from(n).map_err(|_| io::Error::from_raw_os_error(-n));
            ended.push(Ended { memory, what, result });
        }
    }
}

impl<T> Drop for Ring<'_, T> {
    fn drop(&mut self) {
        let mut ended = Vec::new();
        while self.n_reads > 0 && self.enter().is_ok() {
            self.take(&mut ended);
        }
        // Where there is no waiting, the system may write there at any time.
        self.reads.drain(..).flatten().for_each(|read| std::mem::forget(read.memory));
    }
}

/// The system's side of a ring.
fn set_up(n_entries: u32) -> io::Result<IoUring> {
    // Since Linux 6.1: completions are worked on where they are waited for, not in between.
    let mut builder = IoUring::builder();
    builder.setup_single_issuer().setup_defer_taskrun();
    match builder.build(n_entries) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => IoUring::new(n_entries),
        done => done,
    }
}

/// Adds an entry.
///
/// # Safety
/// The memory that the entry names must be valid, and nobody else's, until the entry's completion has been taken.
///
/// # Panics
/// When all entries are taken.
unsafe fn push(ring: &mut IoUring, entry: &squeue::Entry) {
    // SAFETY: as the caller says.
    unsafe { ring.submission().push(entry) }.expect("there are entries for all reads and the event");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn memory() -> MmapMut {
        MmapMut::map_anon(8192).expect("memory")
    }

    /// None where the system that the tests run on has no io_uring.
    fn ring<'f, T>(depth: usize, event: &'f Event) -> Option<Ring<'f, T>> {
        Ring::new(depth, event).inspect_err(|error| eprintln!("skipped: io_uring: {error}")).ok()
    }

    fn wait<T>(ring: &mut Ring<'_, T>) -> Vec<Ended<T>> {
        let mut ended = Vec::new();
        while ended.is_empty() {
            ring.wait(&mut ended).expect("waited for");
        }
        ended
    }

    #[test]
    fn reads_end_with_bytes_or_the_systems_error() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        std::fs::write(&path, [7; 5000]).expect("written");
        let file = File::open(&path).expect("it is there");
        let unreadable = File::options().write(true).open(&path).expect("it is there");
        let event = Event::new().expect("an event");
        let Some(mut ring) = ring(2, &event) else { return };

        ring.begin(&file, 4096, memory(), 4096..8192, "tail");
        ring.begin(&unreadable, 0, memory(), 0..8192, "unreadable");
        let mut ended = wait(&mut ring);
        while ended.len() < 2 {
            ended.extend(wait(&mut ring));
        }
        for Ended { memory, what, result } in ended {
            match what {
                "tail" => {
                    assert_eq!(result.expect("read"), 904);
                    let expected = |at: usize| if (4096..5000).contains(&at) { 7 } else { 0 };
                    assert!(memory.iter().enumerate().all(|(at, byte)| *byte == expected(at)));
                }
                _ => assert_eq!(result.expect_err("not for reading").raw_os_error(), Some(libc::EBADF)),
            }
        }
        ring.begin(&file, 8192, memory(), 0..8192, "behind the end");
        assert_eq!(wait(&mut ring)[0].result.as_ref().expect("read"), &0);
    }

    #[test]
    fn an_event_ends_the_waiting() {
        let event = Event::new().expect("an event");
        let Some(mut ring) = ring::<()>(1, &event) else { return };
        let mut ended = Vec::new();
        for _ in 0..3 {
            // Twice counts once, and before the waiting as much as in it.
            event.signal();
            event.signal();
            ring.wait(&mut ended).expect("waited for");
            std::thread::scope(|scope| {
                scope.spawn(|| event.signal());
                ring.wait(&mut ended).expect("waited for");
            });
        }
        assert!(ended.is_empty());
    }

    /// A pipe's read ends when somebody writes.
    #[test]
    fn a_ring_waits_for_its_reads_when_it_is_dropped() {
        let (output, mut input) = std::io::pipe().expect("a pipe");
        let output = File::from(OwnedFd::from(output));
        let event = Event::new().expect("an event");
        let Some(mut ring) = ring(1, &event) else { return };
        ring.begin(&output, 0, memory(), 0..4096, ());
        let is_written = AtomicBool::new(false);
        std::thread::scope(|scope| {
            event.signal();
            ring.wait(&mut Vec::new()).expect("the system has the read now");
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(50));
                is_written.store(true, Ordering::SeqCst);
                input.write_all(&[1]).expect("written");
            });
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
                let _ring = ring;
                panic!("as a reader might");
            }));
            assert!(panicked.is_err() && is_written.load(Ordering::SeqCst));
        });
    }

    #[test]
    #[should_panic(expected = "no more reads")]
    fn a_ring_takes_no_more_than_its_depth() {
        let event = Event::new().expect("an event");
        let file = File::open("/dev/zero").expect("it is there");
        let Some(mut ring) = ring(0, &event) else { panic!("no more reads: there is no io_uring") };
        ring.begin(&file, 0, memory(), 0..4096, ());
    }
}
