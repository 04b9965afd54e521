use super::*;
use expert_pool::{Files, LayerSource, MatrixSource, Options, Pool, ReadAt, Readers};
use ggml::{Buffer, BufferType, Context, Tensor, Type};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

const N_COLS: usize = 32;
const N_ROWS: usize = 64;
const MATRIX_BYTES: usize = N_COLS * N_ROWS * 4;

/// Bytes that tell where they are, unless the disk fails.
struct Disk(Arc<AtomicBool>);

impl ReadAt for Disk {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if self.0.load(Ordering::Relaxed) {
            return Err(io::Error::other("the disk is on fire"));
        }
        buffer.iter_mut().zip(offset..).for_each(|(byte, at)| *byte = byte_at(at));
        Ok(buffer.len())
    }
}

fn byte_at(offset: u64) -> u8 {
    // Small numbers of F32, so that sums of them are defined.
    if offset % 4 == 3 { 0 } else { (offset / 4 % 251) as u8 }
}

/// Where the `projection`-th matrix of one of two experts begins.
fn offset(projection: usize, expert: usize) -> u64 {
    ((2 * projection + expert) * MATRIX_BYTES) as u64
}

/// One layer with one slot, expert 0 in it, whose host's experts are streamed; the stacks of the slot.
fn one_slot(fails: &Arc<AtomicBool>) -> (SlotCache, [Tensor; 3]) {
    ggml::load_backends().expect("a CPU");
    let matrix = |projection, expert| MatrixSource {
        name: format!("{projection} of {expert}"),
        file: 0,
        offset: offset(projection, expert),
        row_bytes: 4 * N_COLS,
        n_rows: N_ROWS,
    };
    let matrices = |projection| (0..2).map(|expert| matrix(projection, expert)).collect();
    let source = LayerSource { gate: matrices(0), up: matrices(1), down: matrices(2) };
    let files =
        Files::new(vec![(PathBuf::from("disk"), Box::new(Disk(Arc::clone(fails))) as Box<dyn ReadAt>)]);
    let options = Options { size_bytes: u64::MAX, readers: Readers::Threads(1) };
    let pool = Arc::new(Pool::new(files, &[source], options).expect("room for all"));

    let context = Context::new(16);
    let stacks = ["gate", "up", "down"].map(|name| context.tensor(name, Type::F32, &[N_COLS, N_ROWS, 1]));
    let group = GroupPlan { stacks: stacks.clone(), members: vec![0], candidates: vec![0, 1] };
    let piece = |projection, expert| ExpertSource {
        part: 0,
        offset: offset(projection, expert) as usize,
        size: MATRIX_BYTES,
    };
    let pieces = (0..2).map(|expert| [0, 1, 2].map(|projection| piece(projection, expert))).collect();
    let layer = LayerSlots::new(&context, 0, vec![group], pieces, Some(0));
    let tensors: Vec<Tensor> = layer.tables().chain(stacks.clone()).collect();
    let _placed = Buffer::allocate(BufferType::cpu(), &tensors, "slots").expect("memory");
    (SlotCache::new(Bytes::Streamed(pool), vec![Arc::new(layer)], 1, true, true), stacks)
}

#[test]
fn a_copy_that_can_not_be_read_leaves_the_slot_empty_until_it_can() {
    let fails = Arc::new(AtomicBool::new(true));
    let (slots, stacks) = one_slot(&fails);
    let missing = || {
        let mut values = [0f32; 2];
        slots.layers[0].missing.read_values(0, &mut values);
        values
    };
    assert_eq!((slots.experts(), missing()), (vec![(0, vec![0])], [0.0, 1.0]));
    slots.observe(0, &[1; 40], true);
    drop(slots.begin());
    slots.settle();
    let told = slots.statistics();
    assert_eq!((told.failures, told.promotions, told.misses), (1, 0, 40));
    // Nobody has an expert in a slot that was half written.
    assert_eq!((slots.experts(), missing()), (vec![(0, vec![])], [1.0, 1.0]));
    fails.store(false, Ordering::Relaxed);
    for _ in 0..REST {
        assert_eq!(slots.statistics().promotions, 0, "it rests");
        drop(slots.begin());
        slots.settle();
    }
    drop(slots.begin());
    slots.settle();
    let told = slots.statistics();
    assert_eq!((told.failures, told.promotions), (1, 1));
    assert_eq!(told.uploaded_bytes, 3 * MATRIX_BYTES as u64);
    assert_eq!((slots.experts(), missing()), (vec![(0, vec![1])], [1.0, 0.0]));
    for (projection, stack) in stacks.iter().enumerate() {
        let mut values = vec![0f32; N_COLS * N_ROWS];
        stack.read_values(0, &mut values);
        let expected = (0..values.len() as u64).map(|index| {
            let at = offset(projection, 1) + 4 * index;
            f32::from_le_bytes(std::array::from_fn(|i| byte_at(at + i as u64)))
        });
        assert!(values.iter().copied().eq(expected), "projection {projection}");
    }
}
