//! One weight of the input with all the places its rows go to.

use std::path::PathBuf;
use std::sync::Arc;

use checkpoint::Weight;
use model_spec::{TensorId, TensorKind, TensorRole};
use quants::TensorType;

use super::Via;
use crate::input::{Input, Origin};
use crate::{Error, recipe};

/// Which row of the source becomes which row of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// The same.
    AsIs,
    /// Within each head, row i of the first half and row i of the second half become neighbours.
    ///
    /// Checkpoints in Hugging Face layout keep the two components of a rotated pair half a head apart; GGUF
    /// files of this architecture keep them together.
    RotaryInterleave {
        /// Rows of one head.
        head_dim: u64,
    },
}

impl RowOrder {
    /// The source row that becomes output row `row`.
    pub fn source_row(self, row: u64) -> u64 {
        match self {
            RowOrder::AsIs => row,
            RowOrder::RotaryInterleave { head_dim } => {
                let (head, i) = (row / head_dim, row % head_dim);
                head * head_dim + (i % 2) * (head_dim / 2) + i / 2
            }
        }
    }

    /// Rows that change places only among themselves.
    pub fn group(self) -> u64 {
        match self {
            RowOrder::AsIs => 1,
            RowOrder::RotaryInterleave { head_dim } => head_dim,
        }
    }
}

/// Where the rows of a step come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// A weight of the input.
    Weight(Weight),
    /// Values computed from the configuration.
    Computed(Vec<f32>),
}

/// Where the rows of a step go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination {
    /// Index of the output.
    pub output: usize,
    /// Index of the tensor in it.
    pub tensor: usize,
    /// Byte of the tensor at which the step's first row begins.
    pub offset: u64,
    /// The type to write.
    pub ty: TensorType,
}

/// One source and all the places its rows go to.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Which tensor or part of a stacked tensor this is.
    pub id: TensorId,
    /// Where the rows come from.
    pub source: Source,
    /// Number of rows.
    pub rows: u64,
    /// Elements of a row.
    pub cols: u64,
    /// In which order rows are written.
    pub row_order: RowOrder,
    /// What values pass through before they are quantized.
    pub via: Option<TensorType>,
    /// Whether a NaN or infinity is an error even where others are let through: one in a norm or router
    /// spoils every token.
    pub must_be_finite: bool,
    /// How much each column counts, if that is known.
    pub importance: Option<Arc<[f32]>>,
    /// Where the rows go; one per output.
    pub destinations: Vec<Destination>,
}

impl Step {
    /// Bytes to be read for this step.
    pub fn input_bytes(&self) -> u64 {
        match &self.source {
            Source::Weight(weight) => weight.size,
            Source::Computed(_) => 0,
        }
    }
}

/// One step per weight of the input, in reading order, without destinations yet.
pub(crate) fn steps(input: &dyn Input, via: Via) -> Result<Vec<Step>, Error> {
    let hparams = input.hparams();
    let mut steps = Vec::new();
    if let Some(freqs) = input.rope_freqs() {
        steps.push(Step {
            id: TensorId::global(TensorRole::RopeFreqs),
            source: Source::Computed(freqs.to_vec()),
            rows: 1,
            cols: freqs.len() as u64,
            row_order: RowOrder::AsIs,
            via: None,
            must_be_finite: true,
            importance: None,
            destinations: Vec::new(),
        });
    }
    for (id, weight) in input.weights() {
        let ne = id.ne(hparams);
        let expected = vec![ne.iter().skip(1).product::<u64>(), ne[0]];
        let found = vec![weight.rows, weight.cols];
        if found != expected {
            let (file, tensor) = (file_of(input, weight), weight.source_name.clone());
            return Err(Error::Shape { file, tensor, found, expected });
        }
        let row_order = match id.role {
            TensorRole::AttnQ | TensorRole::AttnK if input.origin() == Origin::Checkpoint => {
                RowOrder::RotaryInterleave { head_dim: u64::from(hparams.head_dim_k) }
            }
            _ => RowOrder::AsIs,
        };
        // The elements of a bias belong to the rows of its matrix and move with them.
        let as_column = id.kind == TensorKind::Bias && row_order != RowOrder::AsIs;
        let (rows, cols) = if as_column { (weight.cols, 1) } else { (weight.rows, weight.cols) };
        let quantizable = recipe::is_quantizable(id, &ne);
        let via = match via {
            Via::Bf16 if quantizable => Some(TensorType::BF16),
            Via::F16 if quantizable => Some(TensorType::F16),
            _ => None,
        };
        steps.push(Step {
            id: *id,
            source: Source::Weight(weight.clone()),
            rows,
            cols,
            row_order,
            via,
            must_be_finite: id.role.is_norm() || id.role == TensorRole::FfnGateInp,
            importance: None,
            destinations: Vec::new(),
        });
    }
    // By place in the shard: a stable sort of what comes by name.
    steps.sort_by_key(|s| match &s.source {
        Source::Weight(weight) => (weight.shard, weight.offset),
        Source::Computed(_) => (0, 0),
    });
    Ok(steps)
}

/// The file that holds a weight.
pub(super) fn file_of(input: &dyn Input, weight: &Weight) -> PathBuf {
    input.files().get(weight.shard).map_or(input.path(), |file| *file).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotary_rows_interleave_within_each_head() {
        let order = RowOrder::RotaryInterleave { head_dim: 6 };
        let rows: Vec<u64> = (0..12).map(|r| order.source_row(r)).collect();
        assert_eq!(rows, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
        assert_eq!(RowOrder::AsIs.source_row(7), 7);
    }
}
