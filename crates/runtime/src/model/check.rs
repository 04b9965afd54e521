//! `--check-tensors`: every value of every tensor is a finite number.

use super::LoadProgress;
use crate::Error;
use gguf::Gguf;

/// Elements looked at at once.
const CHUNK: usize = 1 << 16;

/// Reads all tensors whose type can be decoded.
///
/// # Errors
/// [`Error::NotFinite`] names the first tensor and element that is NaN or infinite.
pub(super) fn finite(gguf: &Gguf, progress: &mut dyn LoadProgress) -> Result<(), Error> {
    let total: u64 = gguf.tensors().iter().map(|t| t.size).sum();
    let mut done = 0;
    let mut values = vec![0.0f32; CHUNK];
    for tensor in gguf.tensors() {
        if quants::can_dequantize(tensor.ty) {
            let (len, bytes) = (tensor.ty.block_len(), tensor.ty.block_bytes());
            let blocks_at_once = CHUNK / len;
            for (chunk, data) in gguf.data(tensor).chunks(blocks_at_once * bytes).enumerate() {
                let n = data.len() / bytes * len;
                let decoded = quants::dequantize(tensor.ty, data, &mut values[..n]);
                let bad = values[..n].iter().position(|v| !v.is_finite());
                if let (Ok(()), Some(at)) = (decoded, bad) {
                    return Err(Error::NotFinite {
                        path: gguf.parts()[tensor.part].clone(),
                        name: tensor.name.clone(),
                        index: (chunk * blocks_at_once * len + at) as u64,
                    });
                }
            }
        }
        done += tensor.size;
        progress.bytes(done, total);
    }
    Ok(())
}
