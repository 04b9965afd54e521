//! What the linked ggml makes of the same input.
#![allow(unsafe_code, reason = "calls ggml's C functions, in tests only")]

use std::ffi::CStr;

use crate::TensorType;

/// One more than the largest type id that ggml knows.
pub(super) const N_TYPES: u32 = ggml_sys::GGML_TYPE_COUNT;

/// ggml's idea of a type.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) name: String,
    pub(super) block_len: usize,
    pub(super) block_bytes: usize,
    pub(super) is_quantized: bool,
}

fn traits(id: u32) -> &'static ggml_sys::ggml_type_traits {
    assert!(id < N_TYPES);
    // SAFETY: the id is within ggml's table, whose entries live as long as the program.
    unsafe { &*ggml_sys::ggml_get_type_traits(id) }
}

pub(super) fn geometry(id: u32) -> Geometry {
    let traits = traits(id);
    // SAFETY: every entry of the table, those of withdrawn ids too, has either no name or a constant C string.
    let name = (!traits.type_name.is_null()).then(|| unsafe { CStr::from_ptr(traits.type_name) });
    Geometry {
        name: name.map(|name| name.to_str().unwrap().to_lowercase()).unwrap_or_default(),
        block_len: traits.blck_size.try_into().unwrap(),
        block_bytes: traits.type_size,
        is_quantized: traits.is_quantized,
    }
}

/// The blocks that ggml makes of the weights, as one row without an importance matrix.
pub(super) fn quantize(ty: TensorType, weights: &[f32]) -> Vec<u8> {
    quantize_chunk(ty, weights, weights.len(), None)
}

/// The blocks that ggml makes of the rows `weights` with this importance for their columns.
pub(super) fn quantize_weighted(ty: TensorType, weights: &[f32], importance: &[f32]) -> Vec<u8> {
    quantize_chunk(ty, weights, importance.len(), Some(importance))
}

fn quantize_chunk(ty: TensorType, weights: &[f32], row_len: usize, importance: Option<&[f32]>) -> Vec<u8> {
    if weights.is_empty() {
        return Vec::new();
    }
    assert!(weights.len().is_multiple_of(row_len) && row_len.is_multiple_of(ty.block_len()));
    let size = weights.len() / ty.block_len() * ty.block_bytes();
    let mut blocks = aligned(size);
    // SAFETY: the weights are whole rows of whole blocks, the blocks' buffer has the length that they take and is aligned
    // for any of ggml's block structures, the importance is as long as a row, and the type is one that needs none.
    let written = unsafe {
        ggml_sys::ggml_quantize_chunk(
            ty.id(),
            weights.as_ptr(),
            blocks.as_mut_ptr().cast(),
            0,
            (weights.len() / row_len) as i64,
            row_len as i64,
            importance.map_or(std::ptr::null(), <[f32]>::as_ptr),
        )
    };
    assert_eq!(written, size);
    let mut bytes: Vec<u8> = blocks.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.truncate(size);
    bytes
}

/// The weights that ggml reads out of the blocks.
pub(super) fn dequantize(ty: TensorType, bytes: &[u8]) -> Vec<f32> {
    let mut weights = vec![0.0; bytes.len() / ty.block_bytes() * ty.block_len()];
    let Some(to_float) = traits(ty.id()).to_float else {
        assert_eq!(ty, TensorType::F32, "the one type that ggml needs no conversion for");
        return bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    };
    let mut blocks = aligned(bytes.len());
    for (word, chunk) in blocks.iter_mut().zip(bytes.chunks(8)) {
        let mut padded = [0; 8];
        padded[..chunk.len()].copy_from_slice(chunk);
        *word = u64::from_ne_bytes(padded);
    }
    // SAFETY: the blocks are whole and aligned, and the weights' buffer has the length that they hold.
    unsafe { to_float(blocks.as_ptr().cast(), weights.as_mut_ptr(), weights.len() as i64) };
    weights
}

/// Room for `size` bytes, aligned for any block structure.
fn aligned(size: usize) -> Vec<u64> {
    vec![0; size.div_ceil(8)]
}
