//! Q2_K: 256 weights in 16 sub-blocks of 16; each sub-block has a scale and a minimum of 4 bits, relative to the
//! super-block's two F16 scales. Read only.
//!
//! ```text
//! weight = d * scale[s] * q - dmin * min[s]        s: the weight's sub-block
//! ```
//!
//! | bytes  | content |
//! |--------|---------|
//! | 0..16  | byte s: scale\[s\], and above it min\[s\] |
//! | 16..80 | q: in half h of the super-block, byte 32 h + i holds weights i, i + 32, i + 64, i + 96, from the lowest bits up |
//! | 80..82 | d, F16 |
//! | 82..84 | dmin, F16 |

use super::float::f32_from_f16;
use crate::TensorType;

const LEN: usize = 256;
const SUB_LEN: usize = 16;
const N_SUB: usize = LEN / SUB_LEN;
const QUANTS: usize = LEN / 4;
const Q2_K: usize = N_SUB + QUANTS + 2 + 2;
const _: () = assert!(TensorType::Q2_K.block_len() == LEN && TensorType::Q2_K.block_bytes() == Q2_K);

pub(super) fn dequantize_q2_k(block: &[u8; Q2_K], weights: &mut [f32; LEN]) {
    let (scales, rest) = block.split_at(N_SUB);
    let (quants, rest) = rest.split_at(QUANTS);
    let d = f32_from_f16(u16::from_le_bytes([rest[0], rest[1]]));
    let dmin = f32_from_f16(u16::from_le_bytes([rest[2], rest[3]]));
    for (s, weights) in weights.as_chunks_mut::<SUB_LEN>().0.iter_mut().enumerate() {
        let scale = d * f32::from(scales[s] & 15);
        let min = dmin * f32::from(scales[s] >> 4);
        // Eight sub-blocks to a half, two to each of its quarters.
        let (quants, shift) = (&quants[s / 8 * 32 + s % 2 * SUB_LEN..][..SUB_LEN], s % 8 / 2 * 2);
        for (weight, quant) in weights.iter_mut().zip(quants) {
            *weight = scale * f32::from(quant >> shift & 3) - min;
        }
    }
}
