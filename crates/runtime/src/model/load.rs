//! Puts the bytes of the weights where the placement wants them.

use super::bind::{Binder, Pending, Table};
use super::{LoadProgress, ModelOptions, Weights, stream};
use crate::Error;
use crate::residency::Placement;
use expert_pool::{Files, Pool};
use ggml::{Buffer, BufferType, Tensor};
use gguf::Gguf;
use model_spec::HyperParams;
use std::sync::Arc;

pub(super) struct Loaded {
    pub weights: Weights,
    /// Bytes of weights by kind of memory.
    pub sizes: Vec<(BufferType, u64)>,
    /// Where streamed experts come from.
    pub expert_pool: Option<Arc<Pool>>,
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
    copy(gguf, direct.as_ref(), &copied, progress)?;
    fill_tables(&binder.tables)?;

    let mut sizes: Vec<(BufferType, u64)> = Vec::new();
    for pending in &binder.pending {
        let bytes: u64 = pending.pieces.iter().map(|piece| piece.size).sum();
        match sizes.iter_mut().find(|(place, _)| *place == pending.place) {
            Some((_, sum)) => *sum += bytes,
            None => sizes.push((pending.place, bytes)),
        }
    }
    let dense_bytes = sizes.iter().map(|(_, bytes)| bytes).sum();
    let pool = |size_bytes| stream::pool(gguf, &binder.streamed, size_bytes, dense_bytes);
    let expert_pool = options.expert_pool_bytes.map(pool).transpose()?;
    Ok(Loaded { weights, sizes, expert_pool })
}

/// Uses the mapped file itself as the buffer of the tensors that stay on the host.
fn lend(gguf: &Gguf, mapped: &[&Pending<'_>], mlock: bool) -> Result<(), Error> {
    for part in 0..gguf.parts().len() {
        let mut tensors = mapped.iter().filter(|p| p.pieces[0].part == part).peekable();
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
        let buffer = Buffer::from_mapping(map);
        buffer.set_weights();
        for pending in tensors {
            buffer.place(&pending.tensor, pending.pieces[0].offset as usize);
        }
    }
    Ok(())
}

/// Allocates one buffer for each kind of memory and copies the file's bytes into it, past the page cache through `direct`
/// if that is given.
fn copy(
    gguf: &Gguf,
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
    for place in places {
        let tensors: Vec<Tensor> =
            copied.iter().filter(|p| p.place == place).map(|p| p.tensor.clone()).collect();
        Buffer::allocate(place, &tensors, "weights")?.set_weights();
    }
    let total: u64 = copied.iter().flat_map(|p| &p.pieces).map(|piece| piece.size).sum();
    let mut done = 0;
    for pending in copied {
        // Whole tensors: a layout of its own is made from all of the bytes at once.
        match (&pending.pieces[..], direct) {
            (&[piece], Some(files)) => {
                let mut write = |at: usize, bytes: &[u8]| pending.tensor.write(at, bytes);
                files.read_tensor(piece.part, piece.offset, piece.size, &piece.name, &mut write)?;
            }
            (&[piece], None) => pending.tensor.write(0, gguf.data(piece)),
            _ => {
                let stacked: Vec<&[u8]> = pending.pieces.iter().map(|piece| gguf.data(piece)).collect();
                pending.tensor.write(0, &stacked.concat());
            }
        }
        done += pending.pieces.iter().map(|piece| piece.size).sum::<u64>();
        progress.bytes(done, total);
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
