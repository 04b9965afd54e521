//! Rows to blocks of any type: by `quants` where it has a kernel, else by the linked ggml, which gives the same bytes.

use quants::TensorType;

/// Whether weights can be stored as blocks of this type.
pub(crate) fn can_quantize(ty: TensorType) -> bool {
    quants::can_quantize(ty) || of_ggml(ty).is_some_and(ggml::quantize::can_quantize)
}

/// Whether blocks of this type can be read: all but those of integers and of activations.
pub(crate) fn can_dequantize(ty: TensorType) -> bool {
    quants::can_dequantize(ty) || of_ggml(ty).is_some_and(ggml::quantize::can_dequantize)
}

fn of_ggml(ty: TensorType) -> Option<ggml::Type> {
    ggml::Type::from_id(ty.id()).ok()
}

/// Why rows were not converted.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A weight, by its position, that is not finite or that the type can't hold.
    Weight { index: usize, value: f32 },
    /// The arguments; a mistake of ours.
    Quants(quants::Error),
}

/// Stores whole rows of `n_cols` weights as blocks, with an importance for each column where there is one.
pub(crate) fn quantize(
    ty: TensorType,
    rows: &[f32],
    n_cols: usize,
    importance: Option<&[f32]>,
    blocks: &mut [u8],
) -> Result<(), Failure> {
    let done = match importance {
        Some(importance) => quants::quantize_weighted(ty, rows, importance, blocks),
        None => quants::quantize(ty, rows, blocks),
    };
    let Err(error) = done else { return Ok(()) };
    let quants::Error::CannotQuantize { .. } = error else { return Err(Failure::Quants(error)) };
    let Some(ggml_type) = of_ggml(ty).filter(|ty| ggml::quantize::can_quantize(*ty)) else {
        return Err(Failure::Quants(error));
    };
    match ggml::quantize::quantize(ggml_type, rows, n_cols, importance, blocks) {
        Err(ggml::Error::Weight { index, value }) => Err(Failure::Weight { index, value }),
        // Importances were checked when they were read.
        Err(other) => panic!("{other}"),
        Ok(()) => Ok(()),
    }
}

/// Reads the weights of blocks of any type that [`can_dequantize`].
pub(crate) fn dequantize(ty: TensorType, blocks: &[u8], weights: &mut [f32]) -> Result<(), quants::Error> {
    match (quants::dequantize(ty, blocks, weights), of_ggml(ty)) {
        (Err(quants::Error::CannotDequantize { .. }), Some(ty)) if ggml::quantize::can_dequantize(ty) => {
            ggml::quantize::dequantize(ty, blocks, weights);
            Ok(())
        }
        (done, _) => done,
    }
}
