//! Q3_K: 256 weights in 16 sub-blocks of 16; each sub-block has a scale of 6 bits, relative to the super-block's F16
//! scale. Read only.
//!
//! ```text
//! weight = d * (scale[s] - 32) * (q - 4)        s: the weight's sub-block
//! ```
//!
//! | bytes    | content |
//! |----------|---------|
//! | 0..32    | byte i: bit 4 h + k is the upper bit of q of weight 32 k + i in half h of the super-block |
//! | 32..96   | lower 2 bits of q: byte 32 h + i holds weights i, i + 32, i + 64, i + 96 of half h, from the lowest bits up |
//! | 96..104  | byte i: lower 4 bits of scale\[i\], and above them those of scale\[i + 8\] |
//! | 104..108 | byte i: upper 2 bits of scale\[i\], \[i + 4\], \[i + 8\], \[i + 12\], from the lowest bits up |
//! | 108..110 | d, F16 |

use super::float::f32_from_f16;
use crate::TensorType;

const LEN: usize = 256;
const SUB_LEN: usize = 16;
const UPPER: usize = LEN / 8;
const LOWER: usize = LEN / 4;
const SCALES: usize = 12;
const Q3_K: usize = UPPER + LOWER + SCALES + 2;
const _: () = assert!(TensorType::Q3_K.block_len() == LEN && TensorType::Q3_K.block_bytes() == Q3_K);

pub(super) fn dequantize_q3_k(block: &[u8; Q3_K], weights: &mut [f32; LEN]) {
    let (upper, rest) = block.split_at(UPPER);
    let (lower, rest) = rest.split_at(LOWER);
    let (scales, d) = rest.split_at(SCALES);
    let d = f32_from_f16(u16::from_le_bytes([d[0], d[1]]));
    for (s, weights) in weights.as_chunks_mut::<SUB_LEN>().0.iter_mut().enumerate() {
        let nibble = scales[s % 8] >> (s / 8 * 4) & 15;
        let scale = nibble | (scales[8 + s % 4] >> (s / 4 * 2) & 3) << 4;
        let scale = d * (f32::from(scale) - 32.0);
        // Eight sub-blocks to a half, two to each of its quarters.
        let (quarter, column) = (s / 2, s % 2 * SUB_LEN);
        let upper = &upper[column..][..SUB_LEN];
        let lower = &lower[s / 8 * 32 + column..][..SUB_LEN];
        for ((weight, upper), lower) in weights.iter_mut().zip(upper).zip(lower) {
            let quant = lower >> (quarter % 4 * 2) & 3 | (upper >> quarter & 1) << 2;
            *weight = scale * (f32::from(quant) - 4.0);
        }
    }
}
