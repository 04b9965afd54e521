//! The pool against files that answer slowly, wrongly, or not at all.

use expert_pool::{
    Error, Files, LayerSource, MatrixSource, N_READERS, Options, Part, Pool, Projection, ReadAt, Readers,
    Request,
};
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

const N_LAYERS: usize = 3;
const N_EXPERTS: usize = 4;
/// A matrix is more than one tile, and the last tile is a smaller one.
const N_ROWS: usize = 1100;
const ROW_BYTES: usize = 2048;
const MATRIX_BYTES: usize = N_ROWS * ROW_BYTES;

/// The byte of the file at `offset`: the same for as many as make filling memory quick.
fn byte(offset: u64) -> u8 {
    ((offset / RUN).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

const RUN: u64 = 256;

/// A file with everything, written once.
fn everything() -> &'static Path {
    static PATH: LazyLock<PathBuf> = LazyLock::new(|| {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("every-expert");
        let end = matrix(N_LAYERS, 0, 0).offset;
        let bytes: Vec<u8> = (0..end.div_ceil(RUN)).flat_map(|run| [byte(run * RUN); RUN as usize]).collect();
        std::fs::write(&path, bytes).expect("written");
        path
    });
    &PATH
}

struct Disk {
    file: File,
    /// For reads that fail: it is not open for reading.
    broken: File,
    /// Reads that fail from this one on; 0 for none.
    fails_from: AtomicUsize,
    reads: AtomicUsize,
    failures: AtomicUsize,
    delay: Duration,
}

impl Disk {
    fn new(path: &Path, delay: Duration) -> Arc<Disk> {
        let file = File::open(path).expect("it is there");
        let broken = File::options().write(true).open(path).expect("it is there");
        let [fails_from, reads, failures] = Default::default();
        Arc::new(Disk { file, broken, fails_from, reads, failures, delay })
    }

    fn good() -> Arc<Disk> {
        Disk::new(everything(), Duration::ZERO)
    }

    /// From the `n`-th read on, counted from now, all fail.
    fn fail_after(&self, n: usize) {
        self.fails_from.store(self.reads.load(Ordering::Relaxed) + n, Ordering::Relaxed);
    }

    fn mend(&self) {
        self.fails_from.store(0, Ordering::Relaxed);
    }
}

struct Handle(Arc<Disk>);

impl ReadAt for Handle {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        assert!(offset.is_multiple_of(4096) && buffer.len().is_multiple_of(4096));
        self.file().expect("there is one").read_at(buffer, offset)
    }

    fn file(&self) -> Option<&File> {
        std::thread::sleep(self.0.delay);
        let number = self.0.reads.fetch_add(1, Ordering::Relaxed) + 1;
        let fails_from = self.0.fails_from.load(Ordering::Relaxed);
        let fails = fails_from != 0 && number >= fails_from;
        self.0.failures.fetch_add(usize::from(fails), Ordering::Relaxed);
        Some(if fails { &self.0.broken } else { &self.0.file })
    }
}

/// Everybody who may read here.
fn every_kind() -> Vec<Readers> {
    let mut kinds = vec![Readers::Threads(2)];
    let options = Options { size_bytes: u64::MAX, readers: Readers::Uring(1) };
    match Pool::new(files(&Disk::good()), &layers(), options) {
        Ok(_) => kinds.extend([Readers::Uring(2), Readers::Uring(6)]),
        Err(error) => eprintln!("skipped: {error}"),
    }
    kinds
}

/// The matrix of a layer's projection (0 gate, 1 up, 2 down) of an expert, at an odd place.
fn matrix(layer: usize, projection: usize, expert: usize) -> MatrixSource {
    let number = (layer * 3 + projection) * N_EXPERTS + expert;
    let offset = 32 + (number * MATRIX_BYTES) as u64;
    let name = format!("blk.{layer}.{projection}.{expert}");
    MatrixSource { name, file: 0, offset, row_bytes: ROW_BYTES, n_rows: N_ROWS }
}

fn layers() -> Vec<LayerSource> {
    let of = |layer: usize, projection: usize| (0..N_EXPERTS).map(|e| matrix(layer, projection, e)).collect();
    (0..N_LAYERS).map(|l| LayerSource { gate: of(l, 0), up: of(l, 1), down: of(l, 2) }).collect()
}

fn files(disk: &Arc<Disk>) -> Files {
    Files::new(vec![(PathBuf::from("disk"), Box::new(Handle(Arc::clone(disk))))])
}

fn pool(disk: &Arc<Disk>, readers: Readers, size_bytes: u64, fill: bool) -> Pool {
    let pool = Pool::new(files(disk), &layers(), Options { size_bytes, readers }).expect("large enough");
    assert_eq!(pool.readers(), readers);
    if fill {
        pool.fill();
    }
    pool
}

fn least(readers: Readers) -> u64 {
    Pool::least_bytes(&layers(), readers)
}

/// Rows of a piece of work.
const STEP: usize = 64;

/// Computes tokens: passes all layers on `n_threads` threads, each as often as there are parts; checks every byte. False where
/// tiles did not come.
fn compute(pool: &Pool, experts: &[usize], n_tokens: usize, n_threads: usize, n_parts: usize) -> bool {
    let taken: Vec<(usize, usize)> = experts.iter().map(|e| (*e, n_tokens)).collect();
    let complete = AtomicBool::new(true);
    let passes = (0..N_LAYERS).flat_map(|layer| (0..n_parts).map(move |index| (layer, index)));
    for (layer, index) in passes {
        let part = Part { index, count: n_parts };
        let next = [AtomicUsize::new(0), AtomicUsize::new(0)];
        for (phase, next) in next.iter().enumerate() {
            std::thread::scope(|scope| {
                for _ in 0..n_threads {
                    scope.spawn(|| {
                        let steps = [STEP; 2];
                        let asked = Request { layer, part, experts: &taken, n_tokens, steps, next: experts };
                        let pass = pool.enter(&asked);
                        let (first, groups, rows) = match phase {
                            0 => (0, pass.gate_up(), pass.gate_up_rows()),
                            _ => (pass.gate_up().len(), pass.down(), pass.down_rows()),
                        };
                        let mut held = None;
                        loop {
                            let index = next.fetch_add(1, Ordering::Relaxed);
                            let Some(group) = groups.get(index / rows.div_ceil(STEP)) else { break };
                            let row = group.rows.start + index % rows.div_ceil(STEP) * STEP;
                            if row >= group.rows.end {
                                continue;
                            }
                            let number = first + index / rows.div_ceil(STEP);
                            if held
                                .as_ref()
                                .is_none_or(|lease: &expert_pool::Lease<'_>| lease.group() != number)
                            {
                                drop(held.take());
                                held = pool.lease(&pass, number);
                            }
                            let Some(lease) = held.as_mut() else {
                                complete.store(false, Ordering::Relaxed);
                                continue;
                            };
                            let matrices: Vec<MatrixSource> = match phase {
                                0 => (0..2).map(|p| matrix(layer, p, group.expert)).collect(),
                                _ => experts.iter().map(|e| matrix(layer, 2, *e)).collect(),
                            };
                            for (tile, source) in matrices.iter().enumerate() {
                                let bytes = lease.tile(tile);
                                assert_eq!(bytes.len(), group.rows.len() * ROW_BYTES);
                                // The rows of this piece.
                                let piece =
                                    row - group.rows.start..group.rows.end.min(row + STEP) - group.rows.start;
                                let from = source.offset + (row * ROW_BYTES) as u64;
                                let bytes = &bytes[piece.start * ROW_BYTES..piece.end * ROW_BYTES];
                                let same = bytes.iter().zip(from..).step_by(97).all(|(b, at)| *b == byte(at));
                                assert!(same, "{} from row {row}", source.name);
                            }
                            lease.done();
                        }
                    });
                }
            });
        }
    }
    complete.into_inner()
}

fn turn(pool: &Pool, experts: &[usize], n_tokens: usize, n_threads: usize) -> Result<bool, Error> {
    let turn = pool.begin(Arc::default());
    let complete = compute(pool, experts, n_tokens, n_threads, 1);
    turn.finish().map(|()| complete)
}

#[test]
fn every_byte_arrives_whatever_the_size_of_the_pool() {
    let all = Pool::all_bytes(&layers());
    for readers in every_kind() {
        let least = least(readers);
        for size in [least, least + all / 10, all / 2, all, 2 * all] {
            for fill in [false, true] {
                let pool = pool(&Disk::good(), readers, size, fill);
                for token in 0..6usize {
                    let experts = [[0, 1], [1, 2], [0, 3]][token % 3];
                    let came = turn(&pool, &experts, 1, 1 + token % 3).expect("read");
                    assert!(came, "{readers}: {size} bytes");
                }
                assert!(turn(&pool, &[0, 1, 2, 3], 64, 2).expect("read"), "{readers}: {size} bytes");
            }
        }
    }
}

#[test]
fn every_byte_arrives_past_the_cache() {
    for readers in every_kind() {
        let files = Files::open(&[everything().to_owned()]).expect("it is there");
        let options = Options { size_bytes: Pool::all_bytes(&layers()) / 2, readers };
        let pool = match Pool::new(files, &layers(), options) {
            Err(Error::Uring(_)) => continue, // This file system can't leave the cache out.
            pool => pool.expect("large enough"),
        };
        for experts in [[0, 1], [1, 2], [0, 3]] {
            assert!(turn(&pool, &experts, 1, 2).expect("read"), "{readers}");
        }
        assert!(turn(&pool, &[0, 1, 2, 3], 64, 2).expect("read"), "{readers}");
    }
}

#[test]
fn a_pool_for_everything_reads_once() {
    for readers in every_kind() {
        let pool = pool(&Disk::good(), readers, u64::MAX, false);
        let everything = [0, 1, 2, 3];
        assert!(turn(&pool, &everything, 64, 1).expect("read"));
        let first = pool.statistics();
        for _ in 0..3 {
            assert!(turn(&pool, &everything, 64, 1).expect("read"));
        }
        let later = pool.statistics().since(&first);
        assert_eq!((later.needed_bytes(), later.read_bytes), (0, 0), "{readers}");
        assert_eq!(later.hit_bytes, 3 * (N_LAYERS * 3 * N_EXPERTS * MATRIX_BYTES) as u64);
    }
}

/// Four batches that pass layer by layer, and four one after the other: a sweep for all of them, or one for each.
#[test]
fn parts_of_a_sweep_read_what_one_would() {
    let everything: Vec<usize> = (0..N_EXPERTS).collect();
    let all = (N_LAYERS * 3 * N_EXPERTS * MATRIX_BYTES) as u64;
    for readers in every_kind() {
        for size in [least(readers), Pool::all_bytes(&layers()) / 2] {
            let read = |n_parts: usize| {
                let pool = pool(&Disk::good(), readers, size, false);
                assert!(turn(&pool, &everything, 64, 2).expect("read"));
                let before = pool.statistics();
                for _ in 0..4 / n_parts {
                    let turn = pool.begin(Arc::default());
                    assert!(compute(&pool, &everything, 64, 2, n_parts), "{readers}: {size} bytes");
                    turn.finish().expect("read");
                }
                let done = pool.statistics().since(&before);
                (done.read_bytes, done.asked_bytes())
            };
            let (apart, together) = (read(1), read(4));
            assert_eq!(apart.1, 4 * all);
            if size > least(readers) {
                // Reading ahead for the sweep that may follow is part of either.
                assert!(together.0 < apart.0 / 2, "{readers}: {together:?}, one by one {apart:?}");
                assert!(together.1 <= all + all / 8, "{readers}: {together:?}");
            } else {
                // No layer stays for its next part.
                assert!(together.0 < apart.0 + apart.0 / 10, "{readers}: {together:?}, {apart:?}");
            }
        }
    }
}

#[test]
fn what_is_forgotten_is_read_again_but_for_what_somebody_holds() {
    for readers in every_kind() {
        let pool = pool(&Disk::good(), readers, Pool::all_bytes(&layers()), false);
        let read = || {
            let before = pool.statistics();
            assert!(turn(&pool, &[0, 2], 1, 2).expect("read"));
            pool.statistics().since(&before).read_bytes
        };
        let (first, second) = (read(), read());
        pool.clear();
        assert!(first > 0 && second == 0 && read() == first, "{readers}: {first}, {second}");

        let begun = pool.begin(Arc::default());
        let pass = pool.enter(&Request::of_token(0, &[(0, 1)]));
        let lease = pool.lease(&pass, 0).expect("it is there");
        pool.clear();
        assert_eq!(lease.tile(0)[0], byte(matrix(0, 0, 0).offset));
        drop(lease);
        begun.finish().expect("nothing failed");
    }
}

/// Sweeping again and again over more than fits is what a list by last use can do nothing with.
#[test]
fn sweeps_find_what_the_pool_can_keep() {
    let all = Pool::all_bytes(&layers());
    for readers in every_kind() {
        let pool = pool(&Disk::good(), readers, all / 2, false);
        for _ in 0..3 {
            turn(&pool, &[0, 1, 2, 3], 64, 1).expect("read");
        }
        let before = pool.statistics();
        for _ in 0..4 {
            turn(&pool, &[0, 1, 2, 3], 64, 1).expect("read");
        }
        let done = pool.statistics().since(&before);
        assert!(done.hit_rate() > 0.2, "{readers}: {done:?}");
    }
}

#[test]
fn experts_that_are_taken_often_stay() {
    let all = Pool::all_bytes(&layers());
    for readers in every_kind() {
        let pool = pool(&Disk::good(), readers, all * 5 / 8, false);
        // Two experts that every token takes now and then give way to others.
        let experts = |token: usize| if token % 5 == 4 { [2, 3] } else { [0, 1] };
        for token in 0..20 {
            turn(&pool, &experts(token), 1, 1).expect("read");
        }
        let before = pool.statistics();
        for token in 20..40 {
            turn(&pool, &experts(token), 1, 1).expect("read");
        }
        let done = pool.statistics().since(&before);
        let in_time = (done.hit_bytes + done.ahead_bytes) as f64 / done.asked_bytes() as f64;
        assert!(in_time > 0.79 && done.hit_rate() > 0.75, "{readers}: {done:?}");
    }
}

/// As after a prompt that a device has read.
#[test]
fn experts_that_somebody_else_computed_often_stay() {
    let all = Pool::all_bytes(&layers());
    let hits = |learns: bool| {
        let pool = pool(&Disk::good(), Readers::Threads(2), all * 5 / 8, false);
        for experts in [[0, 1], [2, 3], [0, 1]] {
            turn(&pool, &experts, 1, 1).expect("read");
        }
        if learns {
            let before = (pool.statistics(), pool.shares(0));
            (0..N_LAYERS).for_each(|layer| pool.learn(layer, &[(0, 64), (1, 64)], 64));
            assert_eq!(pool.statistics().read_bytes, before.0.read_bytes);
            let shares = pool.shares(0);
            assert!(shares[0] > before.1[0] && shares[2] < before.1[2], "{shares:?}");
        }
        for _ in 0..3 {
            turn(&pool, &[2, 3], 1, 1).expect("read");
        }
        let before = pool.statistics();
        turn(&pool, &[0, 1], 1, 1).expect("read");
        pool.statistics().since(&before).hit_rate()
    };
    let [learned, not] = [true, false].map(hits);
    assert!(learned > 0.9 && not < 0.6, "{learned} and {not}");
}

#[test]
fn a_failing_disk_is_an_error_with_the_place_and_not_for_ever() {
    for readers in every_kind() {
        let disk = Disk::good();
        let pool = pool(&disk, readers, least(readers), false);
        disk.fail_after(5);
        let error = turn(&pool, &[0, 1], 1, 2).expect_err("reads fail");
        let text = error.to_string();
        let system = disk.broken.read_at(&mut [0; 4096], 0).expect_err("not open for reading");
        let Error::Read { tensor, offset, source, .. } = error else { panic!("{readers}: {text}") };
        assert_eq!(source.raw_os_error(), system.raw_os_error(), "{readers}: {text}");
        assert!(tensor.starts_with("blk.0.") && offset.is_multiple_of(4096), "{readers}: {text}");
        assert!(text.starts_with(&format!("disk: tensor {tensor}: ")), "{readers}: {text}");
        disk.mend();
        assert!(turn(&pool, &[0, 1], 1, 2).expect("the disk is well again"), "{readers}");
    }
}

#[test]
fn a_file_that_becomes_shorter_is_an_error() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("shrinks");
    for readers in every_kind() {
        std::fs::copy(everything(), &path).expect("copied");
        let pool = pool(&Disk::new(&path, Duration::ZERO), readers, least(readers), false);
        assert!(turn(&pool, &[0, 1], 1, 1).expect("all is there"));
        let len = matrix(1, 0, 0).offset + 1000;
        File::options().write(true).open(&path).and_then(|file| file.set_len(len)).expect("cut");
        let error = turn(&pool, &[0, 1], 1, 1).expect_err("layer 1 is gone");
        let Error::Truncated { tensor, .. } = &error else { panic!("{readers}: {error}") };
        assert!(tensor.starts_with("blk.1."), "{readers}: {error}");
    }
}

#[test]
fn a_failure_to_read_ahead_is_nobodys_error() {
    for readers in every_kind() {
        let disk = Disk::good();
        let pool = pool(&disk, readers, u64::MAX, false);
        disk.fail_after(1);
        pool.fill();
        while disk.failures.load(Ordering::Relaxed) == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        disk.mend();
        std::thread::sleep(Duration::from_millis(20));
        assert!(turn(&pool, &[0, 1], 1, 1).expect("read when it was wanted"), "{readers}");
    }
}

#[test]
fn a_stop_ends_the_waiting() {
    for readers in every_kind() {
        let pool = pool(&Disk::new(everything(), Duration::from_millis(400)), readers, least(readers), false);
        let stop = Arc::new(AtomicBool::new(false));
        let turn = pool.begin(Arc::clone(&stop));
        std::thread::scope(|scope| {
            let computed = scope.spawn(|| compute(&pool, &[0, 1], 1, 2, 1));
            std::thread::sleep(Duration::from_millis(50));
            stop.store(true, Ordering::Relaxed);
            let start = Instant::now();
            assert!(!computed.join().expect("no panic"));
            assert!(start.elapsed() < Duration::from_secs(2), "{readers}: {:?}", start.elapsed());
        });
        assert!(matches!(turn.finish(), Err(Error::Stopped)), "{readers}");
    }
}

#[test]
fn a_pool_can_be_dropped_at_any_time() {
    for readers in every_kind() {
        for _ in 0..10 {
            drop(pool(&Disk::good(), readers, u64::MAX, true));
        }
        let pool = pool(&Disk::good(), readers, u64::MAX, true);
        let turn = pool.begin(Arc::default());
        pool.enter(&Request { next: &[1], ..Request::of_token(0, &[(0, 1), (3, 1)]) });
        drop(turn);
    }
}

#[test]
fn too_small_a_pool_says_what_it_needs() {
    for readers in every_kind() {
        let least = least(readers);
        let options = |size_bytes| Options { size_bytes, readers };
        let error = Pool::new(files(&Disk::good()), &layers(), options(least - 1)).err();
        let error = error.expect("one byte is missing");
        assert!(matches!(error, Error::TooSmall { needed_bytes, .. } if needed_bytes == least), "{error}");
        assert!(Pool::new(files(&Disk::good()), &layers(), options(least)).is_ok());
    }
}

/// Something that answers with the right bytes and is no file.
struct NoFile;

impl ReadAt for NoFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let runs = buffer.chunks_mut(RUN as usize).zip((offset..).step_by(RUN as usize));
        runs.for_each(|(run, at)| run.fill(byte(at)));
        Ok(buffer.len())
    }
}

fn pool_of(source: impl ReadAt + 'static, readers: Readers) -> Result<Pool, Error> {
    let files = Files::new(vec![(PathBuf::from("source"), Box::new(source))]);
    Pool::new(files, &layers(), Options { size_bytes: u64::MAX, readers })
}

#[test]
fn what_is_no_file_is_read_by_threads() {
    let pool = pool_of(NoFile, Readers::Auto).expect("threads can always read");
    assert_eq!(pool.readers(), Readers::Threads(N_READERS));
    assert!(turn(&pool, &[0, 1], 1, 2).expect("read"));
    assert!(matches!(pool_of(NoFile, Readers::Uring(4)), Err(Error::Uring(_))));
}

struct Panics;

impl ReadAt for Panics {
    fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
        panic!("a defect")
    }
}

#[test]
fn nobody_waits_for_a_reader_that_panicked() {
    let pool = pool_of(Panics, Readers::Threads(1)).expect("nothing is read yet");
    for _ in 0..2 {
        assert!(matches!(turn(&pool, &[0, 1], 1, 2), Err(Error::Readers(_))));
    }
}

#[cfg(target_os = "linux")]
mod queue {
    use super::*;
    use rustix::event::{EventfdFlags, epoll, eventfd};
    use std::os::fd::OwnedFd;

    /// Says that it is some other file.
    struct Disguise {
        file: File,
        asked: Arc<AtomicUsize>,
    }

    impl ReadAt for Disguise {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            NoFile.read_at(buffer, offset)
        }

        fn file(&self) -> Option<&File> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            Some(&self.file)
        }
    }

    /// None where the system has no io_uring.
    fn queue_over(file: OwnedFd) -> Option<(Pool, Arc<AtomicUsize>)> {
        let asked = Arc::new(AtomicUsize::new(0));
        let disguise = Disguise { file: File::from(file), asked: Arc::clone(&asked) };
        match pool_of(disguise, Readers::Uring(4)) {
            Ok(pool) => Some((pool, asked)),
            Err(error) => {
                assert!(matches!(error, Error::Uring(_)), "{error}");
                eprintln!("skipped: {error}");
                None
            }
        }
    }

    #[test]
    fn dropping_waits_for_what_is_in_the_queue() {
        let (output, input) = io::pipe().expect("a pipe");
        // Reads wait there for somebody to write.
        let Some((pool, asked)) = queue_over(output.into()) else { return };
        let before = asked.load(Ordering::SeqCst);
        pool.fill();
        while asked.load(Ordering::SeqCst) == before {
            std::thread::yield_now();
        }
        let is_closed = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(50));
                is_closed.store(true, Ordering::SeqCst);
                // Now all reads end.
                drop(input);
            });
            drop(pool);
            assert!(is_closed.load(Ordering::SeqCst));
        });
    }

    #[test]
    fn what_the_queue_refuses_is_read_as_usual() {
        // It can't be read, and says so with the error of a file system that doesn't read directly.
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll");
        let ready = eventfd(1, EventfdFlags::CLOEXEC).expect("an event");
        epoll::add(&epoll, &ready, epoll::EventData::new_u64(0), epoll::EventFlags::IN).expect("added");
        let Some((pool, asked)) = queue_over(epoll) else { return };
        let before = asked.load(Ordering::SeqCst);
        assert!(turn(&pool, &[0, 1], 1, 2).expect("read"));
        assert!(asked.load(Ordering::SeqCst) > before);
    }
}

/// Reads all experts beside computing, on three threads, checks every byte, and says how many tiles there were.
fn read_all(pool: &Pool, keep: bool) -> Result<usize, Error> {
    let (next, n_tiles) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let read_some = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let (layer, rest) = (index / (3 * N_EXPERTS), index % (3 * N_EXPERTS));
            let (projection, expert) = (rest / N_EXPERTS, rest % N_EXPERTS);
            if layer >= N_LAYERS {
                return Ok(());
            }
            let start = matrix(layer, projection, expert).offset;
            let mut n_bytes = 0;
            pool.read(layer, Projection::ALL[projection], expert, keep, &mut |at, bytes| {
                assert_eq!(at, n_bytes);
                assert!(bytes.iter().zip(start + at as u64..).all(|(found, at)| *found == byte(at)));
                n_bytes += bytes.len();
                n_tiles.fetch_add(1, Ordering::Relaxed);
                ControlFlow::Continue(())
            })?;
            assert_eq!(n_bytes, MATRIX_BYTES);
        }
    };
    std::thread::scope(|scope| {
        let threads = [0; 3].map(|_| scope.spawn(read_some));
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })?;
    Ok(n_tiles.into_inner())
}

#[test]
fn what_is_read_beside_computing_is_read_once() {
    for fill in [false, true] {
        let disk = Disk::new(everything(), Duration::from_millis(1));
        let all = pool(&disk, Readers::Threads(2), u64::MAX, fill);
        // The pool's own readers are at it too.
        let n_tiles = read_all(&all, true).expect("a disk");
        assert_eq!(disk.reads.load(Ordering::Relaxed), n_tiles, "{fill}");
        read_all(&all, false).expect("memory");
        assert_eq!(disk.reads.load(Ordering::Relaxed), n_tiles, "{fill}");
        let read = all.statistics().read_bytes;
        let wanted = (N_LAYERS * 3 * N_EXPERTS * MATRIX_BYTES) as u64;
        assert!(read >= wanted && read <= wanted + 2 * 4096 * n_tiles as u64, "{read} of {wanted}");
    }
    for keep in [false, true] {
        let disk = Disk::good();
        let small = pool(&disk, Readers::Threads(2), least(Readers::Threads(2)), false);
        let n_tiles = read_all(&small, keep).expect("a disk");
        assert_eq!(disk.reads.load(Ordering::Relaxed), n_tiles);
        // What found free memory is there the next time, and the rest is read again.
        read_all(&small, keep).expect("a disk");
        let again = disk.reads.load(Ordering::Relaxed) - n_tiles;
        assert!(again > 0 && (again < n_tiles) == keep, "{again} of {n_tiles}");
        compute(&small, &[0, 3], 1, 2, 1);
    }
}

#[test]
fn reading_beside_a_failing_disk_is_an_error_and_not_for_ever() {
    for (keep, readers) in
        [false, true].into_iter().flat_map(|keep| every_kind().into_iter().map(move |r| (keep, r)))
    {
        let disk = Disk::good();
        let all = pool(&disk, readers, u64::MAX, false);
        disk.fail_after(5);
        let error = read_all(&all, keep).expect_err("a failing disk");
        assert!(matches!(error, Error::Read { .. }) && error.to_string().contains("blk."), "{error}");
        disk.mend();
        read_all(&all, keep).expect("it works again");
    }
}
