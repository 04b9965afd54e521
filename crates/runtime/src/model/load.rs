//! Puts the bytes of the weights where the placement wants them.

use super::bind::{Binder, Pending, Piece, Table};
use super::read_ahead::{Places, read_ahead};
use super::{LoadProgress, ModelOptions, Weights, stream};
use crate::Error;
use crate::embeddings::Embeddings;
use crate::memory::{self, Free};
use crate::residency::Placement;
use crate::slots::LayerSlots;
use expert_pool::{Files, Options, Pool};
use ggml::{Buffer, BufferType, Tensor};
use gguf::{Gguf, TensorInfo};
use model_spec::HyperParams;
use std::ops::Range;
use std::sync::Arc;

pub(super) struct Loaded {
    pub weights: Weights,
    /// Bytes of weights by kind of memory.
    pub sizes: Vec<(BufferType, u64)>,
    /// The layers that have slots.
    pub slots: Vec<Arc<LayerSlots>>,
    /// Where streamed experts come from.
    pub expert_pool: Option<Arc<Pool>>,
    /// Token embeddings that stay in the file.
    pub embeddings: Option<Embeddings>,
}

pub(super) fn load(
    gguf: &Gguf,
    hparams: &HyperParams,
    placement: &Placement,
    options: &ModelOptions,
    progress: &mut dyn LoadProgress,
) -> Result<Loaded, Error> {
    let mut binder = Binder::new(gguf, hparams, placement, options);
    let weights = binder.weights()?;
    let (mapped, copied): (Vec<&Pending<'_>>, Vec<&Pending<'_>>) =
        binder.pending.iter().partition(|p| p.in_place);
    lend(gguf, &mapped, options.mlock)?;
    let direct = options.expert_pool_bytes.map(|_| Files::open(gguf.parts())).transpose()?;
    copy(gguf, placement, direct.as_ref(), &copied, progress)?;
    fill_tables(&binder.tables)?;
    place_slot_tables(&binder.slots)?;

    let mut sizes: Vec<(BufferType, u64)> = Vec::new();
    for pending in &binder.pending {
        let bytes: u64 = pending.pieces.iter().map(|piece| piece.size as u64).sum();
        match sizes.iter_mut().find(|(place, _)| *place == pending.place) {
            Some((_, sum)) => *sum += bytes,
            None => sizes.push((pending.place, bytes)),
        }
    }
    let on_host = sizes.iter().filter(|(place, _)| *place == BufferType::cpu());
    let dense_bytes = on_host.map(|(_, bytes)| bytes).sum();
    let readers = options.expert_readers;
    let pool =
        |size_bytes| stream::pool(gguf, &binder.streamed, Options { size_bytes, readers }, dense_bytes);
    let expert_pool = options.expert_pool_bytes.filter(|_| !binder.streamed.is_empty());
    let expert_pool = expert_pool.map(pool).transpose()?;
    let slots = binder.slots.drain(..).map(|(_, slots)| slots).collect();
    let embeddings = binder.embeddings.map(|table| Embeddings::new(Files::open(gguf.parts())?, table));
    Ok(Loaded { weights, sizes, slots, expert_pool, embeddings: embeddings.transpose()? })
}

/// Bytes that are copied before the file's pages are let go of, so that weights are not in memory twice.
const WINDOW_BYTES: usize = 32 << 20;
/// Threads that copy weights, at most, and what each has to do at least.
const MAX_COPIERS: usize = 4;
const MIN_SHARE_BYTES: usize = 1 << 20;

/// Uses the mapped file itself as the buffer of the tensors that stay on the host, and has it read ahead.
///
/// # Errors
/// Where it is to be locked, and there is no room for it: the system would end the process for want of pages to take back.
fn lend(gguf: &Gguf, mapped: &[&Pending<'_>], mlock: bool) -> Result<(), Error> {
    if mlock {
        let has_mapped = |part: &usize| mapped.iter().any(|p| p.pieces[0].info.part == *part);
        let parts = (0..gguf.parts().len()).filter(has_mapped);
        let locked_bytes = parts.map(|part| gguf.mapping(part).len() as u64).sum();
        Free::now(&[]).check_lock(locked_bytes)?;
    }
    let mut files = Vec::new();
    for part in 0..gguf.parts().len() {
        let mut tensors = mapped.iter().filter(|p| p.pieces[0].info.part == part).peekable();
        if tensors.peek().is_none() {
            continue;
        }
        let map = gguf.mapping(part);
        if mlock {
            map.lock().map_err(|error| Error::Option {
                option: "--mlock",
                found: format!("{error} for {} bytes", map.len()),
                expected: "a limit of locked memory (ulimit -l) that holds the model".to_owned(),
            })?;
        }
        let mut places = Places { map: Arc::downgrade(&map), ranges: Vec::new() };
        let buffer = Buffer::from_mapping(map);
        buffer.set_weights();
        for pending in tensors {
            let TensorInfo { offset, size, .. } = pending.pieces[0].info;
            buffer.place(&pending.tensor, *offset as usize);
            places.ranges.push(*offset..offset + size);
        }
        files.push(places);
    }
    let bytes: u64 =
        files.iter().flat_map(|places| &places.ranges).map(|range| range.end - range.start).sum();
    // What has no room would only push out what was read before.
    if !mlock && memory::available_bytes().is_none_or(|available| bytes <= available) {
        read_ahead(files);
    }
    Ok(())
}

/// Allocates one buffer for each kind of memory and copies the file's bytes into it, past the page cache through `direct`
/// if that is given.
fn copy(
    gguf: &Gguf,
    placement: &Placement,
    direct: Option<&Files>,
    copied: &[&Pending<'_>],
    progress: &mut dyn LoadProgress,
) -> Result<(), Error> {
    let mut places: Vec<BufferType> = Vec::new();
    for pending in copied {
        if !places.contains(&pending.place) {
            places.push(pending.place);
        }
    }
    // Memory of the host is given out before there is any, and missed only when it is written to.
    let free = Free::now(placement.devices());
    for place in &places {
        let pieces = copied.iter().filter(|p| p.place == *place).flat_map(|p| &p.pieces);
        free.check_weights(*place, pieces.map(|piece| piece.size as u64).sum())?;
    }
    for place in places {
        let tensors: Vec<Tensor> =
            copied.iter().filter(|p| p.place == place).map(|p| p.tensor.clone()).collect();
        Buffer::allocate(place, &tensors, "weights")?.set_weights();
    }
    let total: u64 = copied.iter().flat_map(|p| &p.pieces).map(|piece| piece.size as u64).sum();
    let n_copiers = std::thread::available_parallelism().map_or(1, |n| n.get().min(MAX_COPIERS));
    let mut done = 0;
    for pending in copied {
        if let Some(files) = direct {
            let mut first = 0;
            for &Piece { info, start, size } in &pending.pieces {
                let mut write = |at: usize, bytes: &[u8]| pending.tensor.write(first + at, bytes);
                let offset = info.offset + start as u64;
                files.read_tensor(info.part, offset, size as u64, &info.name, &mut write)?;
                first += size;
            }
            done += first as u64;
            progress.bytes(done, total);
            continue;
        }
        let pieces: Vec<&[u8]> =
            pending.pieces.iter().map(|p| &gguf.data(p.info)[p.start..p.start + p.size]).collect();
        let is_repacked = placement.repacked().contains(&pending.place);
        let window_bytes = (!is_repacked).then_some(WINDOW_BYTES);
        let n_threads = if pending.place.is_host() { n_copiers } else { 1 };
        write_pieces(&pending.tensor, &pieces, window_bytes, n_threads, |number, window| {
            let piece = &pending.pieces[number];
            gguf.release(piece.info, (piece.start + window.start) as u64, window.len() as u64);
        });
        done += pending.pieces.iter().map(|piece| piece.size as u64).sum::<u64>();
        progress.bytes(done, total);
    }
    Ok(())
}

/// Fills `tensor` with the pieces, one behind the other, in windows of `window_bytes`; tells the number of the piece and the
/// window of it that is written. Without a limit all is written at once, as a layout of its own must be made from all bytes.
fn write_pieces(
    tensor: &Tensor,
    pieces: &[&[u8]],
    window_bytes: Option<usize>,
    n_threads: usize,
    mut written: impl FnMut(usize, Range<usize>),
) {
    let Some(window_bytes) = window_bytes else {
        match pieces {
            [one] => tensor.write(0, one),
            _ => tensor.write(0, &pieces.concat()),
        }
        pieces.iter().enumerate().for_each(|(number, piece)| written(number, 0..piece.len()));
        return;
    };
    let mut offset = 0;
    for (number, piece) in pieces.iter().enumerate() {
        for (index, window) in piece.chunks(window_bytes).enumerate() {
            let start = index * window_bytes;
            write(tensor, offset + start, window, n_threads);
            written(number, start..start + window.len());
        }
        offset += piece.len();
    }
}

/// Copies `bytes` to `tensor` from byte `offset` on, in so many threads: one alone does not use all of the memory's speed,
/// and waits for the system to clear fresh pages.
fn write(tensor: &Tensor, offset: usize, bytes: &[u8], n_threads: usize) {
    let share = bytes.len().div_ceil(n_threads).max(MIN_SHARE_BYTES);
    std::thread::scope(|scope| {
        for (number, share_bytes) in bytes.chunks(share).enumerate().skip(1) {
            scope.spawn(move || tensor.write(offset + number * share, share_bytes));
        }
        tensor.write(offset, &bytes[..share.min(bytes.len())]);
    });
}

/// Gives the tables of slots a place beside these. They are no weights: they change, and nothing is computed where they
/// are for their sake.
fn place_slot_tables(slots: &[(BufferType, Arc<LayerSlots>)]) -> Result<(), Error> {
    let mut places: Vec<BufferType> = Vec::new();
    for (place, _) in slots {
        if !places.contains(place) {
            places.push(*place);
        }
    }
    for place in places {
        let here = slots.iter().filter(|(at, _)| *at == place).map(|(_, slots)| slots);
        let tables: Vec<Tensor> = here.clone().flat_map(|slots| slots.tables()).collect();
        Buffer::allocate(place, &tables, "expert tables")?;
    }
    Ok(())
}

fn fill_tables(tables: &[Table]) -> Result<(), Error> {
    if tables.is_empty() {
        return Ok(());
    }
    let tensors: Vec<Tensor> = tables
        .iter()
        .map(|table| match table {
            Table::Ints(tensor, _) | Table::Floats(tensor, _) => tensor.clone(),
        })
        .collect();
    Buffer::allocate(BufferType::cpu(), &tensors, "expert tables")?.set_weights();
    for table in tables {
        match table {
            Table::Ints(tensor, values) => tensor.write_values(values),
            Table::Floats(tensor, values) => tensor.write_values(values),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::residency::{Repack, repacked_types};
    use ggml::{Context, Type};

    /// ggml aborts where a layout of its own is to be made from a part of a tensor.
    #[test]
    fn repacked_weights_are_written_at_once() {
        let places = repacked_types(Repack::On, &[]);
        let place = *places.first().expect("the CPU repacks");
        let ty = Type::from_id(quants::TensorType::Q4_K.id()).expect("a type");
        for n_pieces in [1, 2] {
            let context = Context::new(1);
            let tensor = context.tensor("blk.0.ffn_up.weight", ty, &[256, 16]);
            let buffer = Buffer::allocate(place, std::slice::from_ref(&tensor), "weights").expect("memory");
            buffer.set_weights();
            let bytes = vec![0u8; 16 * 144];
            let pieces: Vec<&[u8]> = bytes.chunks(bytes.len() / n_pieces).collect();
            let mut seen = Vec::new();
            write_pieces(&tensor, &pieces, None, 4, |number, window| seen.push((number, window.len())));
            assert_eq!(seen.iter().map(|(_, len)| len).sum::<usize>(), bytes.len());
            assert_eq!(seen.last().map(|(number, _)| *number), Some(n_pieces - 1));
        }
    }

    #[test]
    fn windows_and_threads_leave_nothing_out() {
        let context = Context::new(1);
        let ty = Type::from_id(quants::TensorType::F32.id()).expect("a type");
        let tensor = context.tensor("weights", ty, &[1000]);
        Buffer::allocate(BufferType::cpu(), std::slice::from_ref(&tensor), "weights").expect("memory");
        let values: Vec<f32> = (0..1000u16).map(f32::from).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let pieces = [&bytes[..1200], &bytes[1200..]];
        let mut windows = Vec::new();
        write_pieces(&tensor, &pieces, Some(1000), 2, |number, window| windows.push((number, window)));
        assert_eq!(windows, [(0, 0..1000), (0, 1000..1200), (1, 0..1000), (1, 1000..2000), (1, 2000..2800)]);
        let mut found = vec![0f32; 1000];
        tensor.read_values(0, &mut found);
        assert_eq!(found, values);
    }
}
