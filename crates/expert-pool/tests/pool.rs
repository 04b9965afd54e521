//! The pool against files that answer slowly, wrongly, or not at all.

use expert_pool::{Error, Files, LayerSource, MatrixSource, Options, Pool, Projection, ReadAt};
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
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

#[derive(Default)]
struct Disk {
    /// Reads that fail from this one on; 0 for none.
    fails_from: AtomicUsize,
    /// The file ends here; 0 for where it should.
    ends_at: AtomicU64,
    reads: AtomicUsize,
    delay: Duration,
}

struct Handle(Arc<Disk>);

impl ReadAt for Handle {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        assert!(offset.is_multiple_of(4096) && buffer.len().is_multiple_of(4096));
        std::thread::sleep(self.0.delay);
        let number = self.0.reads.fetch_add(1, Ordering::Relaxed) + 1;
        let fails_from = self.0.fails_from.load(Ordering::Relaxed);
        if fails_from != 0 && number >= fails_from {
            return Err(io::Error::other("the disk is on fire"));
        }
        let end = Some(self.0.ends_at.load(Ordering::Relaxed)).filter(|end| *end > 0).unwrap_or(u64::MAX);
        let n = (buffer.len() as u64).min(end.saturating_sub(offset)) as usize;
        let runs = buffer[..n].chunks_mut(RUN as usize).zip((offset..).step_by(RUN as usize));
        runs.for_each(|(run, at)| run.fill(byte(at)));
        Ok(n)
    }
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

fn pool(disk: &Arc<Disk>, size_bytes: u64, fill: bool) -> Pool {
    let files = Files::new(vec![(PathBuf::from("disk"), Box::new(Handle(Arc::clone(disk))))]);
    let pool = Pool::new(files, &layers(), Options { size_bytes, n_readers: 2 }).expect("large enough");
    if fill {
        pool.fill();
    }
    pool
}

fn least() -> u64 {
    Pool::least_bytes(&layers(), 2)
}

/// Rows of a piece of work.
const STEP: usize = 64;

/// Computes a token: passes all layers on `n_threads` threads, checks every byte. False where tiles did not come.
fn compute(pool: &Pool, experts: &[usize], n_tokens: usize, n_threads: usize) -> bool {
    let taken: Vec<(usize, usize)> = experts.iter().map(|e| (*e, n_tokens)).collect();
    let complete = AtomicBool::new(true);
    for layer in 0..N_LAYERS {
        let next = [AtomicUsize::new(0), AtomicUsize::new(0)];
        for (phase, next) in next.iter().enumerate() {
            std::thread::scope(|scope| {
                for _ in 0..n_threads {
                    scope.spawn(|| {
                        let pass = pool.enter(layer, &taken, n_tokens, [STEP; 2], experts);
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
                                let from = source.offset + (group.rows.start * ROW_BYTES) as u64;
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
    let complete = compute(pool, experts, n_tokens, n_threads);
    turn.finish().map(|()| complete)
}

#[test]
fn every_byte_arrives_whatever_the_size_of_the_pool() {
    let all = Pool::all_bytes(&layers());
    for size in [least(), least() + all / 10, all / 2, all, 2 * all] {
        for fill in [false, true] {
            let disk = Arc::new(Disk::default());
            let pool = pool(&disk, size, fill);
            for token in 0..6usize {
                let experts = [[0, 1], [1, 2], [0, 3]][token % 3];
                assert!(turn(&pool, &experts, 1, 1 + token % 3).expect("read"), "{size} bytes");
            }
            assert!(turn(&pool, &[0, 1, 2, 3], 64, 2).expect("read"), "{size} bytes");
        }
    }
}

#[test]
fn a_pool_for_everything_reads_once() {
    let disk = Arc::new(Disk::default());
    let pool = pool(&disk, u64::MAX, false);
    let everything = [0, 1, 2, 3];
    assert!(turn(&pool, &everything, 64, 1).expect("read"));
    let first = pool.statistics();
    for _ in 0..3 {
        assert!(turn(&pool, &everything, 64, 1).expect("read"));
    }
    let later = pool.statistics().since(&first);
    assert_eq!((later.missed_bytes, later.read_bytes), (0, 0));
    assert_eq!(later.hit_bytes, 3 * (N_LAYERS * 3 * N_EXPERTS * MATRIX_BYTES) as u64);
}

/// Sweeping again and again over more than fits is what a list by last use can do nothing with.
#[test]
fn sweeps_find_what_the_pool_can_keep() {
    let all = Pool::all_bytes(&layers());
    let disk = Arc::new(Disk::default());
    let pool = pool(&disk, all / 2, false);
    for _ in 0..3 {
        turn(&pool, &[0, 1, 2, 3], 64, 1).expect("read");
    }
    let before = pool.statistics();
    for _ in 0..4 {
        turn(&pool, &[0, 1, 2, 3], 64, 1).expect("read");
    }
    let done = pool.statistics().since(&before);
    assert!(done.hit_rate() > 0.2, "{done:?}");
}

#[test]
fn experts_that_are_taken_often_stay() {
    let all = Pool::all_bytes(&layers());
    let disk = Arc::new(Disk::default());
    let pool = pool(&disk, all * 5 / 8, false);
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
    assert!(done.hit_rate() > 0.79, "{done:?}");
}

#[test]
fn a_failing_disk_is_an_error_with_the_place_and_not_for_ever() {
    let disk = Arc::new(Disk::default());
    let pool = pool(&disk, least(), false);
    disk.fails_from.store(5, Ordering::Relaxed);
    let error = turn(&pool, &[0, 1], 1, 2).expect_err("reads fail");
    let text = error.to_string();
    assert!(matches!(error, Error::Read { .. }) && text.contains("on fire"), "{text}");
    assert!(text.starts_with("disk: tensor blk.0."), "{text}");
    disk.fails_from.store(0, Ordering::Relaxed);
    assert!(turn(&pool, &[0, 1], 1, 2).expect("the disk is well again"));
}

#[test]
fn a_file_that_became_shorter_is_an_error() {
    let disk = Arc::new(Disk::default());
    let pool = pool(&disk, least(), false);
    disk.ends_at.store(matrix(1, 0, 0).offset + 1000, Ordering::Relaxed);
    let error = turn(&pool, &[0, 1], 1, 1).expect_err("layer 1 is gone");
    assert!(matches!(&error, Error::Truncated { tensor, .. } if tensor.starts_with("blk.1.")), "{error:?}");
}

#[test]
fn a_failure_to_read_ahead_is_nobodys_error() {
    let disk = Arc::new(Disk::default());
    disk.fails_from.store(1, Ordering::Relaxed);
    let pool = pool(&disk, u64::MAX, true);
    while disk.reads.load(Ordering::Relaxed) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    disk.fails_from.store(0, Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(20));
    assert!(turn(&pool, &[0, 1], 1, 1).expect("read when it was wanted"));
}

#[test]
fn a_stop_ends_the_waiting() {
    let disk = Arc::new(Disk { delay: Duration::from_millis(400), ..Disk::default() });
    let pool = pool(&disk, least(), false);
    let stop = Arc::new(AtomicBool::new(false));
    let turn = pool.begin(Arc::clone(&stop));
    std::thread::scope(|scope| {
        let computed = scope.spawn(|| compute(&pool, &[0, 1], 1, 2));
        std::thread::sleep(Duration::from_millis(50));
        stop.store(true, Ordering::Relaxed);
        let start = Instant::now();
        assert!(!computed.join().expect("no panic"));
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    });
    assert!(matches!(turn.finish(), Err(Error::Stopped)));
}

#[test]
fn too_small_a_pool_says_what_it_needs() {
    let files =
        || Files::new(vec![(PathBuf::from("disk"), Box::new(Handle(Arc::default())) as Box<dyn ReadAt>)]);
    let options = |size_bytes| Options { size_bytes, n_readers: 2 };
    let error = Pool::new(files(), &layers(), options(least() - 1)).err().expect("one byte is missing");
    assert!(matches!(error, Error::TooSmall { needed_bytes, .. } if needed_bytes == least()), "{error}");
    assert!(Pool::new(files(), &layers(), options(least())).is_ok());
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
        let disk = Arc::new(Disk { delay: Duration::from_millis(1), ..Disk::default() });
        let all = pool(&disk, u64::MAX, fill);
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
        let disk = Arc::new(Disk::default());
        let small = pool(&disk, least(), false);
        let n_tiles = read_all(&small, keep).expect("a disk");
        assert_eq!(disk.reads.load(Ordering::Relaxed), n_tiles);
        // What found free memory is there the next time, and the rest is read again.
        read_all(&small, keep).expect("a disk");
        let again = disk.reads.load(Ordering::Relaxed) - n_tiles;
        assert!(again > 0 && (again < n_tiles) == keep, "{again} of {n_tiles}");
        compute(&small, &[0, 3], 1, 2);
    }
}

#[test]
fn reading_beside_a_failing_disk_is_an_error_and_not_for_ever() {
    for keep in [false, true] {
        let disk = Arc::new(Disk { fails_from: AtomicUsize::new(5), ..Disk::default() });
        let all = pool(&disk, u64::MAX, false);
        let error = read_all(&all, keep).expect_err("a failing disk");
        assert!(matches!(error, Error::Read { .. }) && error.to_string().contains("blk."), "{error}");
        disk.fails_from.store(0, Ordering::Relaxed);
        read_all(&all, keep).expect("it works again");
    }
}
