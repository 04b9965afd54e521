//! What a tensor is that is not what it should be, and experts in each other's places.

use std::collections::BTreeMap;

use gguf::Gguf;
use model_spec::{TensorId, TensorRole};
use rayon::prelude::*;

use super::pairs::Pair;
use super::sums::{Deviation, Sums};
use super::{decode_source, min_cosine, source_name};
use crate::Error;
use crate::chunk::Scratch;
use crate::input::Input;
use crate::plan::{RowOrder, Step};

/// Tensors for which the source is searched for what they are; the rest of a thoroughly wrong file needs no explanation.
pub(super) const MAX_NAMED: usize = 16;

/// Standard errors by which an expert must be nearer to another one than chance explains.
const SIGNIFICANT: f64 = 6.0;

/// The two models.
pub(super) struct Sides<'a> {
    pub file: &'a Gguf,
    pub source: Option<&'a dyn Input>,
    pub steps: &'a [Step],
}

/// The problem of a tensor that is too far from its source.
pub(super) fn too_far(pair: &Pair<'_>, deviation: &Deviation, fits: Option<String>) -> String {
    let (ty, place) = (pair.tensor.ty, pair.place());
    let name = pair.step.map(source_name).unwrap_or_default();
    let fits = fits.map(|what| format!("; it fits {what}")).unwrap_or_default();
    let (cosine, least) = (deviation.cosine, min_cosine(ty));
    format!("{place}: found a cosine of {cosine:.4} to {name}, expected at least {least} for {ty}{fits}")
}

impl Sides<'_> {
    /// The tensor of the source that this one's first rows fit, or the order of rows in which they fit.
    pub fn what_fits(&self, pair: &Pair<'_>) -> Result<Option<String>, Error> {
        let (Some(input), Some(own)) = (self.source, pair.step) else { return Ok(None) };
        let alike = self.steps.iter().filter(|s| (s.rows, s.cols) == (own.rows, own.cols));
        let (mut output, mut bytes, mut scratch) = (Vec::new(), Vec::new(), Scratch::default());
        let mut best = (min_cosine(pair.tensor.ty), None);
        for step in alike {
            for order in orders(step, input) {
                let trial = Step { row_order: order, destinations: Vec::new(), ..step.clone() };
                let rows = sample_rows(pair, &trial);
                pair.decode(self.file, 0, rows, &mut output)?;
                let values = decode_source(input, &trial, 0, rows, &mut bytes, &mut scratch)?;
                let mut sums = Sums::default();
                sums.add(values, &output);
                let cosine = sums.deviation().cosine;
                if cosine > best.0 {
                    let name = source_name(step);
                    let what = match (step.id == own.id, order == step.row_order) {
                        (true, true) => continue,
                        (_, true) => name,
                        (true, false) => format!("it with its rows in {}", described(order)),
                        (false, false) => format!("{name} with its rows in {}", described(order)),
                    };
                    best = (cosine, Some(what));
                }
            }
        }
        Ok(best.1)
    }

    /// Experts of the file that are nearer to another expert of the source than to their own.
    ///
    /// For every layer and projection a sample of each expert is held against the same sample of all of the source's. That
    /// one is nearer is taken for certain where the difference is [`SIGNIFICANT`] times what rounding would
    /// give by chance: errors of N weights with the sum of squares E, projected on the difference D of two experts, have a
    /// standard deviation of sqrt(E / N) |D|.
    pub fn exchanged_experts(
        &self,
        pool: &rayon::ThreadPool,
        pairs: &[Pair<'_>],
    ) -> Result<Vec<String>, Error> {
        let Some(input) = self.source else { return Ok(Vec::new()) };
        let mut groups: BTreeMap<(u32, TensorRole), Vec<&Pair<'_>>> = BTreeMap::new();
        for pair in pairs.iter().filter(|pair| pair.step.is_some()) {
            if let Some(TensorId { role, layer: Some(layer), expert: Some(_), .. }) = pair.id {
                groups.entry((layer, role)).or_default().push(pair);
            }
        }
        let groups: Vec<Vec<&Pair<'_>>> = groups.into_values().filter(|group| group.len() > 1).collect();
        let found: Result<Vec<Vec<String>>, Error> =
            pool.install(|| groups.par_iter().map(|group| self.exchanged(input, group)).collect());
        Ok(found?.concat())
    }

    fn exchanged(&self, input: &dyn Input, group: &[&Pair<'_>]) -> Result<Vec<String>, Error> {
        let mut sources: Vec<Vec<f32>> = Vec::new();
        let (mut bytes, mut scratch) = (Vec::new(), Scratch::default());
        for step in group.iter().filter_map(|pair| pair.step) {
            let rows = sample_rows(group[0], step);
            sources.push(decode_source(input, step, 0, rows, &mut bytes, &mut scratch)?.to_vec());
        }
        let distance = |a: &[f32], b: &[f32]| {
            let mut sums = Sums::default();
            sums.add(a, b);
            sums.squared_error()
        };
        let mut problems = Vec::new();
        let mut output = Vec::new();
        for (i, pair) in group.iter().enumerate() {
            pair.decode(
                self.file,
                0,
                sample_rows(pair, group[i].step.unwrap_or(&self.steps[0])),
                &mut output,
            )?;
            let distances: Vec<f64> = sources.iter().map(|values| distance(values, &output)).collect();
            let nearest = (0..distances.len()).min_by(|a, b| distances[*a].total_cmp(&distances[*b]));
            let Some(nearest) = nearest.filter(|n| distances[*n] < distances[i]) else { continue };
            let between = distance(&sources[nearest], &sources[i]);
            let chance = (distances[nearest] / output.len() as f64 * between).sqrt();
            if distances[i] - distances[nearest] > SIGNIFICANT * chance {
                let name = group[nearest].step.map(source_name).unwrap_or_default();
                let own = group[i].step.map(source_name).unwrap_or_default();
                let norm = distance(&vec![0.0; output.len()], &output).sqrt();
                let (far, near) = (distances[i].sqrt() / norm, distances[nearest].sqrt() / norm);
                problems.push(format!(
                    "{}: found it nearer to {name} (relative error {near:.4}), expected {own} ({far:.4})",
                    pair.place()
                ));
            }
        }
        Ok(problems)
    }
}

/// Rows of a sample: one chunk.
fn sample_rows(pair: &Pair<'_>, step: &Step) -> u64 {
    let group = step.row_order.group();
    let rows = pair.rows_of_chunk().div_ceil(group) * group;
    rows.min(pair.rows)
}

/// The orders in which rows may be, by right or by mistake.
fn orders(step: &Step, input: &dyn Input) -> Vec<RowOrder> {
    let is_rotary = matches!(step.id.role, TensorRole::AttnQ | TensorRole::AttnK);
    let head_dim = u64::from(input.hparams().head_dim_k);
    let mut orders = vec![step.row_order];
    if is_rotary && step.rows.is_multiple_of(head_dim) {
        let interleave = RowOrder::RotaryInterleave { head_dim };
        orders.extend([RowOrder::AsIs, interleave].into_iter().filter(|order| *order != step.row_order));
    }
    orders
}

fn described(order: RowOrder) -> &'static str {
    match order {
        RowOrder::AsIs => "the source's order (rotary halves not interleaved)",
        RowOrder::RotaryInterleave { .. } => "another order (rotary halves interleaved once more)",
    }
}
