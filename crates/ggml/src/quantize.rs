//! Rows of weights to blocks and back, by ggml's own scalar code; for the types that nobody else here makes.
//!
//! ggml aborts on rows that are not whole blocks, on a missing importance matrix, and where sums overflow, for then no
//! point of a codebook is nearest. All three are checked first.

use crate::{Error, Type};
use ggml_sys as sys;

/// Largest magnitude of a weight that [`quantize`] takes, the largest of F16: scales are stored as F16.
pub const MAX_WEIGHT: f32 = 65504.0;
/// Largest importance that [`quantize`] takes. With it and [`MAX_WEIGHT`] the largest sum, of 256 products
/// of an importance and three weights, is below 1e35, which F32 holds.
pub const MAX_IMPORTANCE: f32 = 1e18;

/// Whether [`quantize`] makes blocks of this type.
pub fn can_quantize(ty: Type) -> bool {
    // The types in ggml_quantize_chunk (ggml.c) but those that the others stand in for.
    matches!(
        ty.id(),
        sys::GGML_TYPE_Q4_0
            | sys::GGML_TYPE_Q4_1
            | sys::GGML_TYPE_Q5_0
            | sys::GGML_TYPE_Q5_1
            | sys::GGML_TYPE_Q8_0
            | sys::GGML_TYPE_Q2_K
            | sys::GGML_TYPE_Q3_K
            | sys::GGML_TYPE_Q4_K
            | sys::GGML_TYPE_Q5_K
            | sys::GGML_TYPE_Q6_K
            | sys::GGML_TYPE_IQ1_S
            | sys::GGML_TYPE_IQ1_M
            | sys::GGML_TYPE_IQ2_XXS
            | sys::GGML_TYPE_IQ2_XS
            | sys::GGML_TYPE_IQ2_S
            | sys::GGML_TYPE_IQ3_XXS
            | sys::GGML_TYPE_IQ3_S
            | sys::GGML_TYPE_IQ4_NL
            | sys::GGML_TYPE_IQ4_XS
            | sys::GGML_TYPE_TQ1_0
            | sys::GGML_TYPE_TQ2_0
            | sys::GGML_TYPE_MXFP4
            | sys::GGML_TYPE_Q1_0
            | sys::GGML_TYPE_Q2_0
    )
}

/// Whether blocks of this type can be made only with an importance matrix (`ggml_quantize_requires_imatrix`).
pub fn needs_importance(ty: Type) -> bool {
    matches!(ty.id(), sys::GGML_TYPE_IQ2_XXS | sys::GGML_TYPE_IQ2_XS | sys::GGML_TYPE_IQ1_S)
}

/// Stores `rows`, whole rows of `n_cols` weights, as blocks of type `ty` in `blocks`, every byte of it. `importance`
/// says for each column how much its errors count.
///
/// # Errors
/// [`Error::Weight`] where a weight is not finite or above [`MAX_WEIGHT`], [`Error::Importance`] where an importance is
/// negative, not finite or above [`MAX_IMPORTANCE`]. Nothing has been written then.
///
/// # Panics
/// The type is none that [`can_quantize`], it [`needs_importance`] and there is none, or lengths do not match.
pub fn quantize(
    ty: Type,
    rows: &[f32],
    n_cols: usize,
    importance: Option<&[f32]>,
    blocks: &mut [u8],
) -> Result<(), Error> {
    assert!(can_quantize(ty), "type {} has no quantizer", ty.id());
    assert!(importance.is_some() || !needs_importance(ty), "type {} without importances", ty.id());
    assert!(n_cols > 0 && rows.len().is_multiple_of(n_cols), "{} weights in rows of {n_cols}", rows.len());
    let n_rows = rows.len() / n_cols;
    assert_eq!(blocks.len(), n_rows * ty.row_bytes(n_cols), "bytes for {n_rows} rows of {n_cols}");
    assert!(importance.is_none_or(|i| i.len() == n_cols), "importances of another number of columns");
    if let Some(index) = rows.iter().position(|x| !(-MAX_WEIGHT..=MAX_WEIGHT).contains(x)) {
        return Err(Error::Weight { index, value: rows[index] });
    }
    let bad = |i: &&[f32]| i.iter().position(|x| !(0.0..=MAX_IMPORTANCE).contains(x));
    if let Some(column) = importance.as_ref().and_then(bad) {
        return Err(Error::Importance { column, value: importance.unwrap_or_default()[column] });
    }
    if rows.is_empty() {
        return Ok(());
    }
    let mut aligned = vec![0u64; blocks.len().div_ceil(8)];
    // SAFETY: the source holds `n_rows` whole rows and the destination, aligned for any block structure, the blocks of
    // as many; the importances, if any, are one per column; the type is one with a quantizer, and values are such that
    // its asserts hold. ggml makes its tables under a lock of its own.
    let written = unsafe {
        sys::ggml_quantize_chunk(
            ty.id(),
            rows.as_ptr(),
            aligned.as_mut_ptr().cast(),
            0,
            n_rows as i64,
            n_cols as i64,
            importance.map_or(std::ptr::null(), <[f32]>::as_ptr),
        )
    };
    assert_eq!(written, blocks.len(), "ggml wrote another number of bytes");
    for (to, from) in blocks.chunks_mut(8).zip(aligned) {
        to.copy_from_slice(&from.to_ne_bytes()[..to.len()]);
    }
    Ok(())
}

/// Whether [`dequantize`] reads blocks of this type.
pub fn can_dequantize(ty: Type) -> bool {
    // SAFETY: the type exists, and entries of ggml's table live as long as the program.
    unsafe { (*sys::ggml_get_type_traits(ty.id())).to_float }.is_some()
}

/// Reads the weights of `blocks` into `weights`, every element of it.
///
/// # Panics
/// The type can't be read, or lengths do not match.
pub fn dequantize(ty: Type, blocks: &[u8], weights: &mut [f32]) {
    assert_eq!(blocks.len(), ty.row_bytes(weights.len()), "bytes for {} weights", weights.len());
    // SAFETY: the type exists, and entries of ggml's table live as long as the program.
    let to_float = unsafe { (*sys::ggml_get_type_traits(ty.id())).to_float };
    let to_float = to_float.unwrap_or_else(|| panic!("type {} can't be read", ty.id()));
    if weights.is_empty() {
        return;
    }
    let mut aligned = vec![0u64; blocks.len().div_ceil(8)];
    for (to, from) in aligned.iter_mut().zip(blocks.chunks(8)) {
        let mut word = [0; 8];
        word[..from.len()].copy_from_slice(from);
        *to = u64::from_ne_bytes(word);
    }
    // SAFETY: the blocks are whole and aligned, and there is room for the weights they hold.
    unsafe { to_float(aligned.as_ptr().cast(), weights.as_mut_ptr(), weights.len() as i64) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types() -> impl Iterator<Item = Type> {
        (0..sys::GGML_TYPE_COUNT).filter_map(|id| Type::from_id(id).ok()).filter(|ty| can_quantize(*ty))
    }

    /// Numbers in -1..1, the same for the same seed.
    fn noise(seed: u32, n: usize) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn blocks_come_near_to_the_weights() {
        let weights = noise(1, 1024);
        let importance: Vec<f32> = noise(2, 512).iter().map(|x| x * x + 0.01).collect();
        for ty in types() {
            let mut blocks = vec![0; ty.row_bytes(1024)];
            quantize(ty, &weights, 512, Some(&importance), &mut blocks).unwrap();
            let mut back = vec![0.0; 1024];
            dequantize(ty, &blocks, &mut back);
            let square = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>();
            let error: Vec<f32> = weights.iter().zip(&back).map(|(a, b)| a - b).collect();
            assert!(square(&error) < 0.6 * square(&weights), "type {}", ty.id());
        }
    }

    /// Whatever passes the checks must not end in one of ggml's asserts.
    #[test]
    fn extreme_values_do_not_abort() {
        let n = 512;
        let shapes: [fn(usize, f32) -> f32; 10] = [
            |_, _| 0.0,
            |_, x| x,
            |_, x| x * MAX_WEIGHT,
            |i, x| if i % 37 == 0 { MAX_WEIGHT.copysign(x) } else { x * 1e-6 },
            |_, x| x * 1e-20,
            |_, x| x * 1e-38,
            |_, x| MAX_WEIGHT.copysign(x),
            |_, _| -1.0,
            |i, x| if i / 32 % 2 == 0 { 0.0 } else { x },
            |i, _| if i % 256 == 7 { 1.0 } else { 0.0 },
        ];
        let importances: [fn(usize, f32) -> f32; 7] = [
            |_, _| 1.0,
            |_, _| 0.0,
            |_, _| MAX_IMPORTANCE,
            |_, x| x * x,
            |i, x| if i % 3 == 0 { x.abs() * MAX_IMPORTANCE } else { 0.0 },
            |i, x| if i / 32 % 2 == 0 { 0.0 } else { x.abs() * 1e-30 },
            |_, x| x.abs() * 1e-42,
        ];
        for ty in types() {
            for (s, shape) in shapes.iter().enumerate() {
                let weights: Vec<f32> =
                    noise(s as u32, n).into_iter().enumerate().map(|(i, x)| shape(i, x)).collect();
                let mut blocks = vec![0; ty.row_bytes(n)];
                if !needs_importance(ty) {
                    quantize(ty, &weights, n, None, &mut blocks).unwrap();
                }
                for (k, importance) in importances.iter().enumerate() {
                    let importance: Vec<f32> = noise(100 + k as u32, n)
                        .into_iter()
                        .enumerate()
                        .map(|(i, x)| importance(i, x))
                        .collect();
                    quantize(ty, &weights, n, Some(&importance), &mut blocks).unwrap();
                }
            }
        }
    }

    #[test]
    fn values_that_would_abort_are_refused() {
        let ty = Type::from_id(sys::GGML_TYPE_IQ2_XXS).unwrap();
        let (mut weights, mut importance) = (vec![1.0; 256], vec![1.0; 256]);
        let mut blocks = vec![0; ty.row_bytes(256)];
        for bad in [f32::NAN, f32::INFINITY, -65505.0, 1e30] {
            weights[9] = bad;
            let said = quantize(ty, &weights, 256, Some(&importance), &mut blocks).unwrap_err().to_string();
            assert!(said.starts_with("weight 9: found "), "{said}");
        }
        weights[9] = 1.0;
        for bad in [f32::NAN, f32::INFINITY, -1.0, 1e19] {
            importance[3] = bad;
            let said = quantize(ty, &weights, 256, Some(&importance), &mut blocks).unwrap_err().to_string();
            assert!(said.starts_with("importance of column 3: found "), "{said}");
        }
        assert!(blocks.iter().all(|byte| *byte == 0));
    }
}
