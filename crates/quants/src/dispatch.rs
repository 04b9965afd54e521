//! Which function converts a chunk of weights: checks the lengths once, chooses a kernel once, runs it over all blocks.

use crate::arch::{self, Chunk};
use crate::{Error, Level, TensorType, scalar};

/// Converts weights to whole blocks. The lengths match: whoever calls it has checked them.
pub(crate) type Quantize = fn(&[f32], &mut [u8]);
/// Converts whole rows of weights to blocks, with an importance for each column. The lengths match.
pub(crate) type QuantizeWeighted = fn(&[f32], &[f32], &mut [u8]);
/// Converts whole blocks to weights. The lengths match: whoever calls it has checked them.
pub(crate) type Dequantize = fn(&[u8], &mut [f32]);

/// The kernel that reads blocks of this type, on this processor.
fn dequantizer(ty: TensorType) -> Option<Dequantize> {
    scalar::dequantizer(ty)
}

/// Whether [`quantize`] makes blocks of this type.
pub fn can_quantize(ty: TensorType) -> bool {
    scalar::quantizer(ty).is_some()
}

/// Whether [`dequantize`] reads blocks of this type.
pub fn can_dequantize(ty: TensorType) -> bool {
    dequantizer(ty).is_some()
}

/// Stores `weights` as blocks of type `ty` in `blocks`: whole blocks, one or many rows of them, every byte of `blocks`
/// written. Floating-point types are rounded to nearest, ties to even.
///
/// # Errors
///
/// [`Error::CannotQuantize`] for a type without a quantizer, [`Error::PartialBlock`] where `weights` does not fill its
/// last block, [`Error::Size`] where `blocks` is not exactly as long as the blocks.
pub fn quantize(ty: TensorType, weights: &[f32], blocks: &mut [u8]) -> Result<(), Error> {
    quantize_at(Level::detect(), ty, weights, blocks)
}

/// As [`quantize`], with kernels of no more than this level.
///
/// # Errors
///
/// As [`quantize`].
pub fn quantize_at(level: Level, ty: TensorType, weights: &[f32], blocks: &mut [u8]) -> Result<(), Error> {
    let reference = scalar::quantizer(ty).ok_or(Error::CannotQuantize { found: ty })?;
    check_lengths(ty, weights.len(), blocks.len())?;
    let chunk = Chunk { weights, importance: None, blocks };
    if let Err(chunk) = arch::quantize(level, ty, chunk) {
        reference(chunk.weights, chunk.blocks);
    }
    Ok(())
}

/// Stores the rows `weights` as blocks of type `ty` in `blocks`, every byte of it, choosing scales and quants so that
/// errors in columns of large importance become small. `importance` has one number for each column, usually the mean
/// square of what the column gets multiplied with; its length is the row length. Types whose scales leave nothing to
/// choose take no notice of it.
///
/// # Errors
///
/// [`Error::CannotQuantize`] for a type without a quantizer, [`Error::PartialBlock`] where a row does not fill its last
/// block, [`Error::PartialRow`] where `weights` does not fill its last row, [`Error::Size`] where `blocks` is not exactly
/// as long as the blocks.
pub fn quantize_weighted(
    ty: TensorType,
    weights: &[f32],
    importance: &[f32],
    blocks: &mut [u8],
) -> Result<(), Error> {
    quantize_weighted_at(Level::detect(), ty, weights, importance, blocks)
}

/// As [`quantize_weighted`], with kernels of no more than this level.
///
/// # Errors
///
/// As [`quantize_weighted`].
pub fn quantize_weighted_at(
    level: Level,
    ty: TensorType,
    weights: &[f32],
    importance: &[f32],
    blocks: &mut [u8],
) -> Result<(), Error> {
    let reference = scalar::weighted_quantizer(ty).ok_or(Error::CannotQuantize { found: ty })?;
    let row_len = importance.len();
    if !row_len.is_multiple_of(ty.block_len()) {
        return Err(Error::PartialBlock { ty, found: row_len });
    }
    if !weights.len().is_multiple_of(row_len) {
        return Err(Error::PartialRow { ty, found: weights.len(), row_len });
    }
    check_lengths(ty, weights.len(), blocks.len())?;
    let chunk = Chunk { weights, importance: Some(importance), blocks };
    if let Err(chunk) = arch::quantize(level, ty, chunk) {
        reference(chunk.weights, importance, chunk.blocks);
    }
    Ok(())
}

/// Reads the weights of the blocks `src` of type `ty` into `dst`, every element of it.
///
/// # Errors
///
/// [`Error::CannotDequantize`] for a type that is not read here, [`Error::PartialBlock`] where `dst` is not a whole
/// number of blocks long, [`Error::Size`] where `src` does not hold exactly that many blocks.
pub fn dequantize(ty: TensorType, src: &[u8], dst: &mut [f32]) -> Result<(), Error> {
    let kernel = dequantizer(ty).ok_or(Error::CannotDequantize { found: ty })?;
    check_lengths(ty, dst.len(), src.len())?;
    kernel(src, dst);
    Ok(())
}

fn check_lengths(ty: TensorType, weights: usize, found: usize) -> Result<(), Error> {
    if !weights.is_multiple_of(ty.block_len()) {
        return Err(Error::PartialBlock { ty, found: weights });
    }
    // A slice of f32 is at most isize::MAX bytes, and no type takes more than eight bytes for a weight.
    let expected = weights / ty.block_len() * ty.block_bytes();
    if found != expected {
        return Err(Error::Size { ty, weights, found, expected });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_without_a_kernel_is_named_with_the_ones_that_have_one() {
        let error = quantize(TensorType::IQ1_S, &[0.0; 256], &mut [0; 50]).unwrap_err();
        assert_eq!(error, Error::CannotQuantize { found: TensorType::IQ1_S });
        let text = error.to_string();
        assert!(text.starts_with("quantize: found type IQ1_S, expected one of F32, F16, Q4_0"), "{text}");

        let error = dequantize(TensorType::I32, &[0; 4], &mut [0.0]).unwrap_err();
        assert_eq!(error, Error::CannotDequantize { found: TensorType::I32 });
    }

    #[test]
    fn lengths_that_do_not_match_are_refused_and_nothing_is_written() {
        for &ty in TensorType::ALL.iter().filter(|&&ty| can_quantize(ty)) {
            let (len, bytes) = (ty.block_len() * 2, ty.block_bytes() * 2);
            let src = vec![1.0; len];
            for wrong in [0, 1, bytes / 2, bytes - 1, bytes + 1, bytes * 2] {
                let mut dst = vec![0xAA; wrong];
                let error = quantize(ty, &src, &mut dst).unwrap_err();
                assert_eq!(error, Error::Size { ty, weights: len, found: wrong, expected: bytes });
                assert!(dst.iter().all(|&byte| byte == 0xAA));
            }
            let error = quantize(ty, &src[1..], &mut vec![0; bytes]).unwrap_err();
            match ty.is_quantized() {
                true => assert_eq!(error, Error::PartialBlock { ty, found: len - 1 }),
                false => assert!(matches!(error, Error::Size { weights: 1, .. })),
            }
        }
        for &ty in TensorType::ALL.iter().filter(|&&ty| can_dequantize(ty)) {
            let (len, bytes) = (ty.block_len() * 2, ty.block_bytes() * 2);
            let mut dst = vec![7.0; len];
            let error = dequantize(ty, &vec![0; bytes - 1], &mut dst).unwrap_err();
            assert_eq!(error, Error::Size { ty, weights: len, found: bytes - 1, expected: bytes });
            assert!(dst.iter().all(|&weight| weight == 7.0));
        }
        let error = quantize(TensorType::Q4_K, &[0.0; 255], &mut [0; 144]).unwrap_err();
        assert_eq!(error.to_string(), "Q4_K: number of weights: found 255, expected a multiple of 256");
        let error = dequantize(TensorType::Q8_0, &[0; 33], &mut [0.0; 32]).unwrap_err();
        assert_eq!(error.to_string(), "Q8_0: bytes for 32 weights: found 33, expected 34");
    }

    #[test]
    fn rows_that_do_not_match_the_importance_are_refused_and_nothing_is_written() {
        let ty = TensorType::Q8_0;
        let mut blocks = [0xAA; 102];
        let error = quantize_weighted(ty, &[1.0; 96], &[1.0; 64], &mut blocks).unwrap_err();
        assert_eq!(error, Error::PartialRow { ty, found: 96, row_len: 64 });
        assert_eq!(
            error.to_string(),
            "Q8_0: number of weights: found 96, expected a multiple of the row length 64"
        );
        let error = quantize_weighted(ty, &[1.0; 96], &[1.0; 48], &mut blocks).unwrap_err();
        assert_eq!(error, Error::PartialBlock { ty, found: 48 });
        let error = quantize_weighted(ty, &[1.0; 96], &[], &mut blocks).unwrap_err();
        assert_eq!(error, Error::PartialRow { ty, found: 96, row_len: 0 });
        let error = quantize_weighted(ty, &[1.0; 96], &[1.0; 96], &mut blocks[1..]).unwrap_err();
        assert_eq!(error, Error::Size { ty, weights: 96, found: 101, expected: 102 });
        assert_eq!(blocks, [0xAA; 102]);
    }

    #[test]
    fn no_weights_are_no_bytes() {
        assert_eq!(quantize(TensorType::Q6_K, &[], &mut []), Ok(()));
        assert_eq!(quantize_weighted(TensorType::Q8_0, &[], &[], &mut []), Ok(()));
        assert_eq!(dequantize(TensorType::Q6_K, &[], &mut []), Ok(()));
    }
}
