//! Which tensor or expert of the file belongs to which of the source.

use std::collections::{HashMap, HashSet};

use gguf::{Gguf, Metadata, TensorInfo};
use model_spec::{HyperParams, TensorId, TensorKind, TensorRole};
use quants::TensorType;

use super::{CHUNK, dequantize, unstacked};
use crate::input::Input;
use crate::plan::{Source, Step};
use crate::{Error, block, provenance};

/// Rows of a tensor of the file, and what they were made of, if that is known.
#[derive(Debug, Clone)]
pub(super) struct Pair<'a> {
    pub tensor: &'a TensorInfo,
    /// Of the tensor or, of a stacked one, of the expert.
    pub id: Option<TensorId>,
    pub expert: Option<u32>,
    /// First byte in the tensor.
    pub offset: u64,
    /// Without a step, a row is a block.
    pub rows: u64,
    pub cols: u64,
    pub step: Option<&'a Step>,
}

/// All pairs of two models, and what does not fit.
#[derive(Default)]
pub(super) struct Pairs<'a> {
    pub pairs: Vec<Pair<'a>>,
    pub problems: Vec<String>,
    pub warnings: Vec<String>,
    pub unchecked: Vec<String>,
}

impl Pair<'_> {
    pub fn n_weights(&self) -> u64 {
        self.rows * self.cols
    }

    pub fn row_bytes(&self) -> u64 {
        let ty = self.tensor.ty;
        self.cols / ty.block_len() as u64 * ty.block_bytes() as u64
    }

    /// Bytes of so many rows, of both sides.
    pub fn bytes_of_rows(&self, rows: u64) -> u64 {
        let of_source = match self.step {
            Some(Step { source: Source::Weight(weight), rows: all, .. }) => weight.size / (*all).max(1),
            _ => 0,
        };
        rows * (self.row_bytes() + of_source)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes_of_rows(self.rows)
    }

    /// Rows to be looked at at once: whole groups of those that change places.
    pub fn rows_of_chunk(&self) -> u64 {
        let group = self.step.map_or(1, |step| step.row_order.group());
        (CHUNK / (group * self.cols).max(1)).max(1) * group
    }

    /// The tensor's name, with the expert.
    pub fn place(&self) -> String {
        match self.expert {
            Some(expert) => format!("tensor {} expert {expert}", self.tensor.name),
            None => format!("tensor {}", self.tensor.name),
        }
    }

    fn blocks<'f>(&self, file: &'f Gguf, first_row: u64, rows: u64) -> &'f [u8] {
        let (at, len) = (self.offset + first_row * self.row_bytes(), rows * self.row_bytes());
        &file.data(self.tensor)[at as usize..(at + len) as usize]
    }

    /// Fills `values` with some rows.
    pub fn decode(&self, file: &Gguf, first_row: u64, rows: u64, values: &mut Vec<f32>) -> Result<(), Error> {
        values.resize((rows * self.cols) as usize, 0.0);
        let (ty, name) = (self.tensor.ty, &self.tensor.name);
        dequantize(ty, name, self.blocks(file, first_row, rows), values)
    }

    /// The first weight among some rows whose scale is a NaN that decoding does not show: ggml reads an exponent of
    /// E8M0 that stands for NaN as a large number, a NaN of UE4M3 as zero.
    pub fn bad_scale(&self, file: &Gguf, first_row: u64, rows: u64) -> Option<u64> {
        let (scales, is_bad): (usize, fn(&u8) -> bool) = match self.tensor.ty {
            TensorType::MXFP4 => (1, |e| *e == 0xff),
            TensorType::NVFP4 => (4, |e| e & 0x7f == 0x7f),
            _ => return None,
        };
        let ty = self.tensor.ty;
        let mut blocks = self.blocks(file, first_row, rows).chunks_exact(ty.block_bytes());
        let block = blocks.position(|block| block[..scales].iter().any(is_bad))?;
        Some((block * ty.block_len()) as u64)
    }
}

/// Every tensor of the file as pairs, expert by expert.
pub(super) fn pair<'a>(file: &'a Gguf, source: Option<&dyn Input>, steps: &'a [Step]) -> Pairs<'a> {
    let mut found = Pairs::default();
    let hparams = source.map(|input| input.hparams());
    if let Some(hparams) = hparams {
        found.compare_numbers(file, hparams);
    }
    let by_id: HashMap<TensorId, &Step> = steps.iter().map(|step| (step.id, step)).collect();
    let mut there: HashSet<TensorId> = HashSet::new();
    for tensor in file.tensors() {
        if !block::can_dequantize(tensor.ty) {
            found.unchecked.push(tensor.name.clone());
            continue;
        }
        let id = TensorId::parse(&tensor.name);
        let experts = match id.filter(|id| id.role.unstacked().is_some()) {
            Some(_) if tensor.ne.len() == 3 => u32::try_from(tensor.ne[2]).unwrap_or(1),
            _ => 1,
        };
        let fits = match (id, hparams) {
            (Some(id), Some(hparams)) => found.shape_fits(tensor, &id, hparams),
            _ => false,
        };
        for expert in 0..experts {
            let stacked = id.and_then(|id| unstacked(id, expert));
            let own = stacked.or(id);
            let step = own.and_then(|id| by_id.get(&id).or_else(|| by_id.get(&tied(&id)?))).copied();
            there.extend(own);
            if hparams.is_some() && step.is_none() && expert == 0 {
                found
                    .problems
                    .push(format!("tensor {}: found one that the source does not have", tensor.name));
            }
            let expert_of = stacked.map(|_| expert).or(id.and_then(|id| id.expert));
            let size = tensor.size / u64::from(experts);
            let offset = size * u64::from(expert);
            let whole = Pair { tensor, id: own, expert: expert_of, offset, rows: 0, cols: 0, step: None };
            found.pairs.extend(parts(whole, size, step.filter(|_| fits)));
        }
    }
    found.add_missing(file, steps, &there);
    found
}

/// A pair with its step as far as that has rows; what is left of the tensor without.
fn parts<'a>(whole: Pair<'a>, size: u64, step: Option<&'a Step>) -> Vec<Pair<'a>> {
    let ty = whole.tensor.ty;
    let mut parts = Vec::new();
    let mut used = 0;
    if let Some(step) = step
        && step.cols.is_multiple_of(ty.block_len() as u64)
    {
        let mut pair = Pair { cols: step.cols, step: Some(step), ..whole.clone() };
        pair.rows = step.rows.min(size / pair.row_bytes());
        used = pair.rows * pair.row_bytes();
        parts.push(pair);
    }
    if used < size {
        let offset = whole.offset + used;
        let rows = (size - used) / ty.block_bytes() as u64;
        parts.push(Pair { offset, rows, cols: ty.block_len() as u64, ..whole });
    }
    parts
}

/// The tensor that stands in where the output matrix is the embeddings.
fn tied(id: &TensorId) -> Option<TensorId> {
    let is_output = id.role == TensorRole::Output && id.kind == TensorKind::Weight;
    is_output.then_some(TensorId { role: TensorRole::TokenEmbd, ..*id })
}

/// Extents without ones at the end, which do not count, as in ggml.
fn without_ones(ne: &[u64]) -> &[u64] {
    let n = ne.iter().rposition(|n| *n != 1).map_or(1, |last| last + 1);
    &ne[..n.min(ne.len())]
}

impl<'a> Pairs<'a> {
    /// Whether a tensor has the shape that the source has; a vocabulary padded to another size fits as far as it goes.
    fn shape_fits(&mut self, tensor: &TensorInfo, id: &TensorId, hparams: &HyperParams) -> bool {
        let expected = id.ne(hparams);
        let (found, wanted) = (without_ones(&tensor.ne), without_ones(&expected));
        if found == wanted {
            return true;
        }
        let name = &tensor.name;
        let by_vocabulary = matches!(id.role, TensorRole::TokenEmbd | TensorRole::Output);
        if by_vocabulary && found.len() == 2 && wanted.len() == 2 && found[0] == wanted[0] {
            if found[1] > wanted[1] {
                let n = found[1] - wanted[1];
                self.warnings.push(format!("tensor {name}: {n} rows more than the source has, as padding"));
            } else {
                let (found, wanted) = (found[1], wanted[1]);
                self.problems
                    .push(format!("tensor {name}: found {found} rows, expected the source's {wanted}"));
            }
            return true;
        }
        self.problems.push(format!("tensor {name}: found shape {found:?}, expected the source's {wanted:?}"));
        false
    }

    /// Notes tensors of the source that the file lacks. An output matrix that is not there is the embeddings.
    fn add_missing(&mut self, file: &'a Gguf, steps: &'a [Step], there: &HashSet<TensorId>) {
        for step in steps.iter().filter(|step| !there.contains(&step.id)) {
            let embeddings = tied(&step.id).and_then(|id| file.tensor(&id.name()));
            match embeddings.filter(|t| block::can_dequantize(t.ty)) {
                Some(tensor) => self.add_tied(tensor, step),
                None => {
                    let name = super::source_name(step);
                    self.problems
                        .push(format!("tensor {}: found none, expected one of {name}", step.id.name()));
                }
            }
        }
    }

    /// Adds a pair of the embeddings and an output matrix.
    fn add_tied(&mut self, tensor: &'a TensorInfo, step: &'a Step) {
        let whole = Pair { tensor, id: Some(step.id), expert: None, offset: 0, rows: 0, cols: 0, step: None };
        let of_step = parts(whole, tensor.size, Some(step));
        self.pairs.extend(of_step.into_iter().filter(|pair| pair.step.is_some()));
    }

    /// Notes hyperparameters that the file has otherwise than the source.
    fn compare_numbers(&mut self, file: &Gguf, source: &HyperParams) {
        let Ok(found) = HyperParams::from_gguf(file) else { return };
        let entries = |hparams: &HyperParams| {
            let mut metadata = Metadata::new();
            // A head's width counts whether or not it is stated.
            HyperParams { head_dim_stated: true, ..hparams.clone() }.write_metadata(&mut metadata);
            metadata
        };
        let (found, expected) = (entries(&found), entries(source));
        let keys: Vec<&str> = expected.iter().chain(found.iter()).map(|(key, _)| key).collect();
        let mut seen = HashSet::new();
        for key in keys {
            let (a, b) = (found.get(key), expected.get(key));
            // Rows of the embeddings say more about vocabularies of different sizes.
            if a == b || key == model_spec::keys::VOCAB_SIZE || !seen.insert(key) {
                continue;
            }
            let shown = |value: Option<&gguf::Value>| value.map_or("none".to_owned(), ToString::to_string);
            let what = format!("{key}: found {}, expected the source's {}", shown(a), shown(b));
            match is_overridden(file, key) {
                true => self.warnings.push(format!("{what}; it was set with --override-kv")),
                false => self.problems.push(what),
            }
        }
    }
}

/// Whether the file says that this key was set by hand: in the list of those, or, of older versions, in the command.
fn is_overridden(file: &Gguf, key: &str) -> bool {
    let command = file.metadata().str(provenance::COMMAND).ok().flatten().unwrap_or_default();
    provenance::overridden(file.metadata()).iter().any(|overridden| overridden == key)
        || command
            .split_whitespace()
            .any(|word| word.trim_start_matches('\'').starts_with(&format!("{key}=")))
}
