//! The reference: one weight at a time, in safe Rust, in ggml's order of operations.
//!
//! Each format is a module with its layout at the top and two functions over one block; here they become functions over
//! chunks. Every arithmetic step is rounded on its own; rewriting `a * b + c` as `mul_add`, or a running sum as
//! several, changes bytes.

mod affine_k;
mod float;
mod legacy;
mod q2_k;
mod q3_k;
mod q6_k;
mod round;
mod search;

use crate::TensorType;
use crate::dispatch::{Dequantize, Quantize, QuantizeWeighted};

/// The scalar function that makes blocks of this type.
pub(crate) fn quantizer(ty: TensorType) -> Option<Quantize> {
    Some(match ty {
        TensorType::F32 => |src, dst| each_quantized(src, dst, float::store_f32),
        TensorType::F16 => |src, dst| each_quantized(src, dst, float::store_f16),
        TensorType::BF16 => |src, dst| each_quantized(src, dst, float::store_bf16),
        TensorType::Q4_0 => |src, dst| each_quantized(src, dst, legacy::quantize_q4_0),
        TensorType::Q4_1 => |src, dst| each_quantized(src, dst, legacy::quantize_q4_1),
        TensorType::Q5_0 => |src, dst| each_quantized(src, dst, legacy::quantize_q5_0),
        TensorType::Q5_1 => |src, dst| each_quantized(src, dst, legacy::quantize_q5_1),
        TensorType::Q8_0 => |src, dst| each_quantized(src, dst, legacy::quantize_q8_0),
        TensorType::Q4_K => |src, dst| each_quantized(src, dst, affine_k::quantize_q4_k),
        TensorType::Q5_K => |src, dst| each_quantized(src, dst, affine_k::quantize_q5_k),
        TensorType::Q6_K => |src, dst| each_quantized(src, dst, q6_k::quantize_q6_k),
        _ => return None,
    })
}

/// The scalar function that makes blocks of this type with an importance for each column.
pub(crate) fn weighted_quantizer(ty: TensorType) -> Option<QuantizeWeighted> {
    Some(match ty {
        TensorType::F32 => |src, _, dst| each_quantized(src, dst, float::store_f32),
        TensorType::F16 => |src, _, dst| each_quantized(src, dst, float::store_f16),
        TensorType::BF16 => |src, _, dst| each_quantized(src, dst, float::store_bf16),
        TensorType::Q8_0 => |src, _, dst| each_quantized(src, dst, legacy::quantize_q8_0),
        _ => return None,
    })
}

/// The scalar function that reads blocks of this type.
pub(crate) fn dequantizer(ty: TensorType) -> Option<Dequantize> {
    Some(match ty {
        TensorType::F32 => |src, dst| each_dequantized(src, dst, float::load_f32),
        TensorType::F16 => |src, dst| each_dequantized(src, dst, float::load_f16),
        TensorType::BF16 => |src, dst| each_dequantized(src, dst, float::load_bf16),
        TensorType::Q4_0 => |src, dst| each_dequantized(src, dst, legacy::dequantize_q4_0),
        TensorType::Q4_1 => |src, dst| each_dequantized(src, dst, legacy::dequantize_q4_1),
        TensorType::Q5_0 => |src, dst| each_dequantized(src, dst, legacy::dequantize_q5_0),
        TensorType::Q5_1 => |src, dst| each_dequantized(src, dst, legacy::dequantize_q5_1),
        TensorType::Q8_0 => |src, dst| each_dequantized(src, dst, legacy::dequantize_q8_0),
        TensorType::Q2_K => |src, dst| each_dequantized(src, dst, q2_k::dequantize_q2_k),
        TensorType::Q3_K => |src, dst| each_dequantized(src, dst, q3_k::dequantize_q3_k),
        TensorType::Q4_K => |src, dst| each_dequantized(src, dst, affine_k::dequantize_q4_k),
        TensorType::Q5_K => |src, dst| each_dequantized(src, dst, affine_k::dequantize_q5_k),
        TensorType::Q6_K => |src, dst| each_dequantized(src, dst, q6_k::dequantize_q6_k),
        _ => return None,
    })
}

fn each_quantized<const LEN: usize, const BYTES: usize>(
    src: &[f32],
    dst: &mut [u8],
    quantize_block: impl Fn(&[f32; LEN], &mut [u8; BYTES]),
) {
    let (src, _) = src.as_chunks();
    let (dst, _) = dst.as_chunks_mut();
    for (weights, block) in src.iter().zip(dst) {
        quantize_block(weights, block);
    }
}

fn each_dequantized<const LEN: usize, const BYTES: usize>(
    src: &[u8],
    dst: &mut [f32],
    dequantize_block: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    let (src, _) = src.as_chunks();
    let (dst, _) = dst.as_chunks_mut();
    for (block, weights) in src.iter().zip(dst) {
        dequantize_block(block, weights);
    }
}
