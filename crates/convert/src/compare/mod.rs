//! How far the weights of a GGUF file are from those it was made of, and whether they are numbers at all.
//!
//! Every weight of the file is decoded. With a source (a checkpoint or another GGUF file) each is held against the source's
//! own value: tensors are paired as the [`Plan`](crate::Plan) pairs them, expert by expert whichever layouts the two have,
//! rows in the order in which a conversion writes them. Sums are in F64, by chunks of fixed size that are added in
//! the order of the file, so that the report does not depend on the number of threads.
//!
//! What is taken for wrong:
//! - a tensor of the source that is not there, one more than it has, or one of another shape;
//! - hyperparameters that differ from the source's;
//! - weights that are NaN or infinite;
//! - a cosine below [`min_cosine`] of the type, which leaves room for about three times the error that rounding gives.
//!   A permuted, shifted or exchanged tensor has a cosine near 0;
//! - an expert that is nearer to another expert of the source than to its own. Experts of a merge are often so much alike
//!   (cosines of 0.99) that an exchange does not show in the cosine.

mod diagnose;
mod pairs;
mod sums;

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use gguf::Gguf;
use model_spec::{TensorId, TensorRole};
use quants::TensorType;

use crate::chunk::{Chunk, Failure, Scratch};
use crate::execute::Progress;
use crate::input::Input;
use crate::plan::{Source, Step, Via, steps};
use crate::{Error, block};

use pairs::{Pair, Pairs};
use sums::Sums;
pub use sums::{Deviation, Totals};

/// Weights of a chunk, which is what one thread holds decoded at a time.
const CHUNK: u64 = 1 << 17;

/// Chunks that the system is asked to read before they are needed.
const CHUNKS_AHEAD: usize = 64;

/// One tensor of the file, or one expert of a stacked one.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    /// The tensor's name in the file.
    pub tensor: String,
    /// What it does; `None` for tensors of other models.
    pub role: Option<TensorRole>,
    /// Which expert, where there are several.
    pub expert: Option<u32>,
    /// Its type.
    pub ty: TensorType,
    /// Number of its weights.
    pub n_weights: u64,
    /// The source's name for it; `None` where there is nothing to compare it with.
    pub source: Option<String>,
    /// How far it is from the source.
    pub deviation: Option<Deviation>,
    /// The sums behind that, which add up over tensors.
    pub totals: Totals,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Comparison {
    /// Every tensor and expert, in the order of the file.
    pub tensors: Vec<Compared>,
    /// What is wrong, each with its place.
    pub problems: Vec<String>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// Tensors whose type holds no weights (integers), which were not looked at.
    pub unchecked: Vec<String>,
    /// Bytes of weights that were read, of both sides.
    pub bytes: u64,
}

/// Reads every weight of `file` and, where there is a `source`, compares it. `threads` of 0 is one per core.
///
/// # Errors
/// The source's shapes contradict its numbers, it cannot be read, or threads cannot be started. What is wrong with
/// `file` is no error but a problem in the report.
pub fn compare(
    file: &Gguf,
    source: Option<&dyn Input>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Comparison, Error> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("compare-{i}"))
        .build()
        .map_err(|e| Error::Threads { threads, reason: e.to_string() })?;
    let steps = source.map(|input| steps(input, Via::Source)).transpose()?.unwrap_or_default();
    let mut found = Comparison::default();
    let Pairs { pairs, problems, warnings, unchecked } = pairs::pair(file, source, &steps);
    (found.problems, found.warnings, found.unchecked) = (problems, warnings, unchecked);
    found.bytes = pairs.iter().map(Pair::bytes).sum();
    progress.begin(found.bytes);

    let work = Work::new(file, source, &pairs, progress);
    let results = work.run(&pool)?;
    let sides = diagnose::Sides { file, source, steps: &steps };
    let mut n_named = 0;
    for (pair, result) in pairs.iter().zip(&results) {
        let deviation = pair.step.map(|_| result.sums.deviation());
        if let Some(bad) = &result.bad {
            found.problems.push(bad.describe(pair));
        } else if let Some(deviation) = &deviation
            && !deviation.is_within(pair.tensor.ty)
        {
            n_named += 1;
            let fits = if n_named <= diagnose::MAX_NAMED { sides.what_fits(pair)? } else { None };
            found.problems.push(diagnose::too_far(pair, deviation, fits));
        }
        found.tensors.push(Compared {
            tensor: pair.tensor.name.clone(),
            role: pair.id.map(|id| id.role),
            expert: pair.expert,
            ty: pair.tensor.ty,
            n_weights: pair.n_weights(),
            source: pair.step.map(source_name),
            deviation,
            totals: result.sums.totals(),
        });
    }
    found.problems.extend(sides.exchanged_experts(&pool, &pairs)?);
    Ok(found)
}

/// The least cosine between weights and what they become in a type that is not taken for a mistake.
///
/// Rounding normally distributed weights leaves 1 - cosine of about 1e-5 (Q8_0), 1.5e-4 (Q6_K), 5e-4 (Q5_K), 0.002 to 0.004
/// (4 bits), 0.01 (3 bits), 0.04 to 0.07 (2 bits), 0.15 (IQ1); the limits are about eight times as far away, and no less
/// strict than a permutation needs, which leaves a cosine near 0. Ternary types are made for models that were trained
/// for them, and of others hardly the direction is left.
pub fn min_cosine(ty: TensorType) -> f64 {
    use TensorType::*;
    match ty {
        Q6_K => 0.995,
        Q5_0 | Q5_1 | Q5_K => 0.99,
        Q4_0 | Q4_1 | Q4_K | IQ4_NL | IQ4_XS | MXFP4 | NVFP4 => 0.96,
        Q3_K | IQ3_S | IQ3_XXS => 0.9,
        Q2_K | IQ2_S | IQ2_XS | IQ2_XXS => 0.7,
        IQ1_S | IQ1_M | Q1_0 | Q2_0 => 0.4,
        TQ1_0 | TQ2_0 => 0.1,
        _ => 0.999,
    }
}

fn source_name(step: &Step) -> String {
    match &step.source {
        Source::Weight(weight) => weight.source_name.clone(),
        Source::Computed(_) => "rope scaling of config.json".to_owned(),
    }
}

/// A weight that is no number.
#[derive(Debug, Clone, Copy)]
struct Bad {
    /// Its index in the tensor or expert.
    index: u64,
    value: f32,
    /// Whether it is the source's.
    of_source: bool,
}

impl Bad {
    fn describe(&self, pair: &Pair<'_>) -> String {
        let Bad { index, value, of_source } = *self;
        let place = pair.place();
        if of_source {
            return format!(
                "{place}: found {value} in the source at weight {index}, expected finite weights"
            );
        }
        let ty = pair.tensor.ty;
        let block = if ty.is_quantized() {
            format!("block {}", index / ty.block_len() as u64)
        } else {
            format!("weight {index}")
        };
        format!("{place}: found {value} in {block}, expected finite weights")
    }
}

/// What was found out about a pair.
#[derive(Debug, Clone, Copy, Default)]
struct Found {
    sums: Sums,
    bad: Option<Bad>,
}

/// The pass over all chunks of all pairs.
struct Work<'a> {
    file: &'a Gguf,
    source: Option<&'a dyn Input>,
    pairs: &'a [Pair<'a>],
    /// Pair and first row of each chunk.
    chunks: Vec<(usize, u64)>,
    progress: &'a dyn Progress,
    next: AtomicUsize,
    failed: AtomicBool,
    done: Mutex<Vec<(usize, Found)>>,
    failure: Mutex<Option<(usize, Error)>>,
}

/// Memory of one thread.
#[derive(Default)]
struct Buffers {
    bytes: Vec<u8>,
    source: Scratch,
    output: Vec<f32>,
}

impl<'a> Work<'a> {
    fn new(
        file: &'a Gguf,
        source: Option<&'a dyn Input>,
        pairs: &'a [Pair<'a>],
        progress: &'a dyn Progress,
    ) -> Work<'a> {
        let mut chunks = Vec::new();
        for (i, pair) in pairs.iter().enumerate() {
            chunks
                .extend((0..pair.rows.div_ceil(pair.rows_of_chunk())).map(|n| (i, n * pair.rows_of_chunk())));
        }
        Work {
            file,
            source,
            pairs,
            chunks,
            progress,
            next: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            done: Mutex::default(),
            failure: Mutex::default(),
        }
    }

    /// What was found about each pair.
    fn run(self, pool: &rayon::ThreadPool) -> Result<Vec<Found>, Error> {
        pool.broadcast(|_| self.compare_chunks());
        if let Some((_, error)) = self.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let mut done = self.done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_by_key(|(number, _)| *number);
        let mut results = vec![Found::default(); self.pairs.len()];
        for (number, found) in done {
            let result = &mut results[self.chunks[number].0];
            result.sums.merge(&found.sums);
            result.bad = result.bad.or(found.bad);
        }
        Ok(results)
    }

    fn compare_chunks(&self) {
        let mut buffers = Buffers::default();
        let mut found = Vec::new();
        while !self.failed.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(&(index, first_row)) = self.chunks.get(number) else { break };
            let pair = &self.pairs[index];
            if first_row == 0 {
                self.progress.tensor(&pair.tensor.name);
            }
            self.read_ahead(number);
            let rows = pair.rows_of_chunk().min(pair.rows - first_row);
            match self.chunk(pair, first_row, rows, &mut buffers) {
                Ok(result) => found.push((number, result)),
                Err(error) => {
                    self.failed.store(true, Ordering::Relaxed);
                    let mut first = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
                    if first.as_ref().is_none_or(|(n, _)| number < *n) {
                        *first = Some((number, error));
                    }
                    break;
                }
            }
            self.progress.advance(pair.bytes_of_rows(rows));
        }
        self.done.lock().unwrap_or_else(PoisonError::into_inner).append(&mut found);
    }

    /// Tells the system which chunk will be wanted soon.
    fn read_ahead(&self, number: usize) {
        let Some(&(index, first_row)) = self.chunks.get(number + CHUNKS_AHEAD) else { return };
        let pair = &self.pairs[index];
        let rows = pair.rows_of_chunk().min(pair.rows - first_row);
        let (at, len) = (first_row * pair.row_bytes(), rows * pair.row_bytes());
        self.file.prefetch_part(pair.tensor, pair.offset + at, len);
        if let (Some(input), Some(Step { source: Source::Weight(weight), .. })) = (self.source, pair.step) {
            let row_bytes = weight.size / (weight.rows * weight.cols / pair.cols).max(1);
            input.read_soon(weight, first_row * row_bytes, rows * row_bytes);
        }
    }

    fn chunk(
        &self,
        pair: &Pair<'_>,
        first_row: u64,
        rows: u64,
        buffers: &mut Buffers,
    ) -> Result<Found, Error> {
        let Buffers { bytes, source, output } = buffers;
        let at = first_row * pair.cols;
        let mut found = Found::default();
        pair.decode(self.file, first_row, rows, output)?;
        if let Some(i) = pair.bad_scale(self.file, first_row, rows) {
            found.bad = Some(Bad { index: at + i, value: f32::NAN, of_source: false });
        }
        let (Some(input), Some(step)) = (self.source, pair.step) else {
            if found.bad.is_none() && output.iter().fold(false, |bad, x| bad | !x.is_finite()) {
                found.bad = first_bad(output, at, false);
            }
            return Ok(found);
        };
        let values = decode_source(input, step, first_row, rows, bytes, source)?;
        found.sums.add(values, output);
        if found.bad.is_none() && !found.sums.is_finite() {
            found.bad = first_bad(output, at, false).or_else(|| first_bad(values, at, true));
        }
        Ok(found)
    }
}

fn first_bad(values: &[f32], at: u64, of_source: bool) -> Option<Bad> {
    let i = values.iter().position(|x| !x.is_finite())?;
    Some(Bad { index: at + i as u64, value: values[i], of_source })
}

/// The source's values of some rows of a step, in the order in which they are written.
fn decode_source<'s>(
    input: &dyn Input,
    step: &Step,
    first_row: u64,
    rows: u64,
    bytes: &mut Vec<u8>,
    scratch: &'s mut Scratch,
) -> Result<&'s [f32], Error> {
    let dtype = match &step.source {
        Source::Weight(weight) => {
            let row_bytes = weight.size / step.rows;
            bytes.resize((rows * row_bytes) as usize, 0);
            input.read(weight, first_row * row_bytes, bytes)?;
            weight.dtype
        }
        Source::Computed(values) => {
            bytes.clear();
            bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            TensorType::F32
        }
    };
    let chunk = Chunk {
        bytes,
        dtype,
        rows: rows as usize,
        cols: step.cols as usize,
        row_order: step.row_order,
        via: None,
        importance: None,
    };
    chunk.values(0..rows as usize, scratch).map_err(|failure| unreadable(step, failure))
}

fn unreadable(step: &Step, failure: Failure) -> Error {
    match failure {
        Failure::Quants(source) => Error::Quants { tensor: step.id.name(), source },
        // Only conversions check values.
        Failure::Bad(bad) => unreachable!("{bad:?}"),
    }
}

/// Decodes blocks of any type that has weights.
fn dequantize(ty: TensorType, name: &str, blocks: &[u8], weights: &mut [f32]) -> Result<(), Error> {
    block::dequantize(ty, blocks, weights).map_err(|source| Error::Quants { tensor: name.to_owned(), source })
}

/// One expert's tensor by its own name, whichever layout it is in.
fn unstacked(id: TensorId, expert: u32) -> Option<TensorId> {
    Some(TensorId { role: id.role.unstacked()?, expert: Some(expert), ..id })
}

#[cfg(test)]
mod tests;
