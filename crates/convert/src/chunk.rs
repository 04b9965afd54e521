//! A few rows on their way from the source's type to the outputs' types.
//!
//! Pure: bytes in, bytes out. A chunk is worked through in strips that fit in a core's cache: decoded to F32, checked,
//! and rounded to each wanted type. Where the wanted type is the source's own, bytes are copied.

use quants::TensorType;

use crate::block;
use crate::plan::RowOrder;

/// Elements of a strip; 128 KiB of F32.
const STRIP: usize = 32 * 1024;

/// Rows of one source tensor.
pub(crate) struct Chunk<'a> {
    /// The rows, in the order of the source.
    pub bytes: &'a [u8],
    /// F32, F16, BF16, or a quantized type.
    pub dtype: TensorType,
    /// Number of rows; whole groups of the row order.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
    /// In which order rows are written.
    pub row_order: RowOrder,
    /// What values pass through before they are quantized.
    pub via: Option<TensorType>,
    /// How much each column counts, if that is known.
    pub importance: Option<&'a [f32]>,
}

/// An element that cannot be written, by row (in the order of the source) and column within the chunk.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bad {
    /// NaN or an infinity.
    NonFinite { row: usize, col: usize, value: f32 },
    /// Too large for the type, which becomes an infinity or spoils its block.
    TooLarge { row: usize, col: usize, value: f32, ty: TensorType },
}

/// Memory that is used again from chunk to chunk.
#[derive(Default)]
pub(crate) struct Scratch {
    strip: Vec<f32>,
    again: Vec<f32>,
    via: Vec<u8>,
}

impl Chunk<'_> {
    /// Appends the rows to each of `outs`, in its type.
    ///
    /// With `check`, stops at the first element that is not finite or that a type cannot hold. What has been
    /// appended until then is of no use.
    pub fn convert(
        &self,
        types: &[TensorType],
        outs: &mut [Vec<u8>],
        check: bool,
        scratch: &mut Scratch,
    ) -> Result<(), Failure> {
        if let Some((i, value)) = first_non_finite(self.dtype, self.bytes).filter(|_| check) {
            let (row, col) = (i / self.cols, i % self.cols);
            return Err(Failure::Bad(Bad::NonFinite { row, col, value }));
        }
        let strip_rows = (STRIP / self.cols).max(1);
        let mut first = 0;
        while first < self.rows {
            let rows = first..(first + strip_rows).min(self.rows);
            first = rows.end;
            let mut decoded = false;
            for (ty, out) in types.iter().zip(outs.iter_mut()) {
                if *ty == self.dtype && self.via.is_none_or(|via| via == *ty) {
                    for row in rows.clone() {
                        out.extend_from_slice(self.source_row(row));
                    }
                    continue;
                }
                if !decoded {
                    self.decode(rows.clone(), scratch)?;
                    if check && self.dtype.is_quantized() {
                        self.check_decoded(rows.start, &scratch.strip)?;
                    }
                    decoded = true;
                }
                let start = out.len();
                let n_blocks = scratch.strip.len() / ty.block_len();
                out.resize(start + n_blocks * ty.block_bytes(), 0);
                block::quantize(*ty, &scratch.strip, self.cols, self.importance, &mut out[start..])
                    .map_err(|failure| self.blame(*ty, failure, rows.start))?;
                if check {
                    self.check_held(*ty, &out[start..], rows.start, scratch)?;
                }
            }
        }
        Ok(())
    }

    /// The values of some rows, in the order in which they are written. They stay in `scratch`.
    pub fn values<'s>(
        &self,
        rows: std::ops::Range<usize>,
        scratch: &'s mut Scratch,
    ) -> Result<&'s [f32], Failure> {
        self.decode(rows, scratch)?;
        Ok(&scratch.strip)
    }

    fn row_bytes(&self) -> usize {
        self.cols / self.dtype.block_len() * self.dtype.block_bytes()
    }

    /// The bytes of what becomes row `row`.
    fn source_row(&self, row: usize) -> &[u8] {
        let size = self.row_bytes();
        let at = self.row_order.source_row(row as u64) as usize * size;
        &self.bytes[at..at + size]
    }

    /// Fills the strip with the values of these rows, as they are after the detour, if there is one.
    fn decode(&self, rows: std::ops::Range<usize>, scratch: &mut Scratch) -> Result<(), Failure> {
        let Scratch { strip, via, .. } = scratch;
        strip.resize(rows.len() * self.cols, 0.0);
        if self.row_order == RowOrder::AsIs {
            let size = self.row_bytes();
            block::dequantize(self.dtype, &self.bytes[rows.start * size..rows.end * size], strip)?;
        } else {
            for (row, values) in rows.zip(strip.chunks_exact_mut(self.cols)) {
                block::dequantize(self.dtype, self.source_row(row), values)?;
            }
        }
        if let Some(ty) = self.via.filter(|ty| *ty != self.dtype) {
            via.resize(strip.len() * ty.block_bytes(), 0);
            quants::quantize(ty, strip, via)?;
            quants::dequantize(ty, via, strip)?;
        }
        Ok(())
    }

    /// The failure of a strip that begins with this row, with the weight's place in the source.
    fn blame(&self, ty: TensorType, failure: block::Failure, first_row: usize) -> Failure {
        let (index, value) = match failure {
            block::Failure::Weight { index, value } => (index, value),
            block::Failure::Quants(error) => return Failure::Quants(error),
        };
        let row = self.row_order.source_row((first_row + index / self.cols) as u64) as usize;
        let col = index % self.cols;
        Failure::Bad(match value.is_finite() {
            true => Bad::TooLarge { row, col, value, ty },
            false => Bad::NonFinite { row, col, value },
        })
    }

    /// Checks what blocks were decoded to; a NaN or infinity among their scales shows only then.
    fn check_decoded(&self, first_row: usize, strip: &[f32]) -> Result<(), Failure> {
        if strip.iter().fold(false, |bad, x| bad | !x.is_finite())
            && let Some(i) = strip.iter().position(|x| !x.is_finite())
        {
            let row = self.row_order.source_row((first_row + i / self.cols) as u64) as usize;
            return Err(Failure::Bad(Bad::NonFinite { row, col: i % self.cols, value: strip[i] }));
        }
        Ok(())
    }

    /// Checks that blocks made of large values decode to finite ones.
    ///
    /// F16 ends at 65504, and so do the scales of quantized blocks; smaller values need no look.
    fn check_held(
        &self,
        ty: TensorType,
        blocks: &[u8],
        first_row: usize,
        scratch: &mut Scratch,
    ) -> Result<(), Failure> {
        const LARGEST_F16: f32 = 65504.0;
        // Negated, so that an infinity or NaN born in the detour counts as well.
        let small = |x: &f32| x.abs() <= LARGEST_F16;
        if matches!(ty, TensorType::F32 | TensorType::BF16) || scratch.strip.iter().all(small) {
            return Ok(());
        }
        let Scratch { strip, again, .. } = scratch;
        again.resize(strip.len(), 0.0);
        block::dequantize(ty, blocks, again)?;
        let Some(bad) = again.iter().position(|x| !x.is_finite()) else { return Ok(()) };
        // The block's largest value is to blame, wherever in the block the first bad one stands.
        let block = bad / ty.block_len() * ty.block_len();
        let values = &strip[block..block + ty.block_len()];
        let largest = (0..values.len()).max_by(|a, b| values[*a].abs().total_cmp(&values[*b].abs()));
        let i = block + largest.unwrap_or(0);
        let row = self.row_order.source_row((first_row + i / self.cols) as u64) as usize;
        Err(Failure::Bad(Bad::TooLarge { row, col: i % self.cols, value: strip[i], ty }))
    }
}

/// Why a chunk cannot be converted.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The data.
    Bad(Bad),
    /// The arguments; a mistake of ours.
    Quants(quants::Error),
}

impl From<quants::Error> for Failure {
    fn from(error: quants::Error) -> Self {
        Failure::Quants(error)
    }
}

/// The first NaN or infinity among elements of a float type, with its index.
fn first_non_finite(dtype: TensorType, bytes: &[u8]) -> Option<(usize, f32)> {
    // All ones in the exponent. The scan over a block has no early exit, so that it runs in vectors.
    fn scan<const N: usize>(bytes: &[u8], bad: impl Fn([u8; N]) -> bool) -> Option<usize> {
        let elements = |part: &[u8]| part.as_chunks::<N>().0.iter().any(|e| bad(*e));
        let block = 4096 * N;
        let start = bytes
            .chunks(block)
            .position(|part| part.as_chunks::<N>().0.iter().fold(false, |any, e| any | bad(*e)))?;
        debug_assert!(elements(&bytes[start * block..]));
        let within = bytes[start * block..].as_chunks::<N>().0.iter().position(|e| bad(*e))?;
        Some(start * 4096 + within)
    }
    let i = match dtype {
        TensorType::F32 => scan::<4>(bytes, |e| u32::from_le_bytes(e) & 0x7f80_0000 == 0x7f80_0000),
        TensorType::F16 => scan::<2>(bytes, |e| u16::from_le_bytes(e) & 0x7c00 == 0x7c00),
        TensorType::BF16 => scan::<2>(bytes, |e| u16::from_le_bytes(e) & 0x7f80 == 0x7f80),
        // Blocks are looked at where they are decoded.
        _ => None,
    }?;
    let size = dtype.block_bytes();
    let mut value = [0f32];
    quants::dequantize(dtype, &bytes[i * size..(i + 1) * size], &mut value).ok()?;
    Some((i, value[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f32_bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn chunk(bytes: &[u8], rows: usize, cols: usize) -> Chunk<'_> {
        Chunk {
            bytes,
            dtype: TensorType::F32,
            rows,
            cols,
            row_order: RowOrder::AsIs,
            via: None,
            importance: None,
        }
    }

    fn convert(chunk: &Chunk<'_>, ty: TensorType, check: bool) -> Result<Vec<u8>, Bad> {
        let mut outs = [Vec::new()];
        match chunk.convert(&[ty], &mut outs, check, &mut Scratch::default()) {
            Ok(()) => Ok(outs[0].clone()),
            Err(Failure::Bad(bad)) => Err(bad),
            Err(Failure::Quants(e)) => panic!("{e}"),
        }
    }

    #[test]
    fn rows_move_whole() {
        let bytes = f32_bytes(&[0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]);
        let order = RowOrder::RotaryInterleave { head_dim: 4 };
        let chunk = Chunk { row_order: order, ..chunk(&bytes, 4, 2) };
        let expected = f32_bytes(&[0.0, 0.5, 2.0, 2.5, 1.0, 1.5, 3.0, 3.5]);
        assert_eq!(convert(&chunk, TensorType::F32, true).unwrap(), expected);
        // Decoded and rounded on the way, the order is the same.
        let f16 = convert(&chunk, TensorType::F16, true).unwrap();
        let mut back = [0f32; 8];
        quants::dequantize(TensorType::F16, &f16, &mut back).unwrap();
        assert_eq!(f32_bytes(&back), expected);
    }

    #[test]
    fn the_first_nan_or_infinity_is_found_with_its_place() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 5, 4095, 4096, 9998] {
                let mut values = vec![1.0; 10_000];
                values[at] = bad;
                values[9_999] = f32::NAN;
                let bytes = f32_bytes(&values);
                let found = convert(&chunk(&bytes, 100, 100), TensorType::F16, true);
                let Err(Bad::NonFinite { row, col, value }) = found else { panic!("{bad} not found") };
                assert_eq!((row, col), (at / 100, at % 100));
                assert_eq!(value.is_nan(), bad.is_nan());
            }
        }
    }

    #[test]
    fn values_a_type_cannot_hold_are_found() {
        let mut values = vec![1.0; 64];
        values[40] = -70_000.0;
        let bytes = f32_bytes(&values);
        let bad = convert(&chunk(&bytes, 2, 32), TensorType::F16, true).unwrap_err();
        assert_eq!(bad, Bad::TooLarge { row: 1, col: 8, value: -70_000.0, ty: TensorType::F16 });
        // Divided by 127 it is a scale that F16 holds.
        assert!(convert(&chunk(&bytes, 2, 32), TensorType::Q8_0, true).is_ok());
        assert!(convert(&chunk(&bytes, 2, 32), TensorType::BF16, true).is_ok());
        values[40] = 1e8;
        let bytes = f32_bytes(&values);
        let bad = convert(&chunk(&bytes, 2, 32), TensorType::Q8_0, true).unwrap_err();
        assert_eq!(bad, Bad::TooLarge { row: 1, col: 8, value: 1e8, ty: TensorType::Q8_0 });
        assert!(convert(&chunk(&bytes, 2, 32), TensorType::Q8_0, false).is_ok());
    }

    #[test]
    fn a_detour_rounds_on_the_way() {
        let bytes = f32_bytes(&[1.000_001; 4]);
        let via = Chunk { via: Some(TensorType::BF16), ..chunk(&bytes, 1, 4) };
        assert_eq!(convert(&via, TensorType::F32, true).unwrap(), f32_bytes(&[1.0; 4]));
    }
}
