//! Carries a plan out: reads each weight once, converts it, writes it to every output.
//!
//! One thread reads ahead, in the order of the shards, into a small number of buffers; a pool of threads takes
//! them, converts and writes. Memory is the buffers, whatever the size of a tensor. Which thread does what does not
//! matter to the result: every chunk has its place in every output before anything begins.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use checkpoint::Checkpoint;
use gguf::{Overwrite, Writer};
use quants::TensorType;

use crate::Error;
use crate::chunk::{Bad, Chunk, Failure, Scratch};
use crate::plan::{Plan, Source, Step};

/// Source bytes of a chunk, unless its rows are longer.
const CHUNK_BYTES: u64 = 1 << 20;

/// How a plan is carried out.
#[derive(Debug, Clone)]
pub struct Options {
    /// Threads that convert; 0 for one per core.
    pub threads: usize,
    /// What happens to existing files.
    pub overwrite: Overwrite,
    /// Let NaN and infinities in weights through, though not in norms and routers.
    pub allow_non_finite: bool,
}

/// Hears how far the work is. Called from several threads.
pub trait Progress: Sync {
    /// Work begins; `input_bytes` will be read.
    fn begin(&self, input_bytes: u64) {
        let _ = input_bytes;
    }
    /// A tensor is being read.
    fn tensor(&self, name: &str) {
        let _ = name;
    }
    /// So many more bytes of input have been converted and written.
    fn advance(&self, input_bytes: u64) {
        let _ = input_bytes;
    }
    /// Everything is written; the file is being made durable.
    fn finishing(&self, path: &Path) {
        let _ = path;
    }
}

/// Tells nobody.
#[derive(Debug, Clone, Copy)]
pub struct NoProgress;

impl Progress for NoProgress {}

/// One file that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputSummary {
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub size_bytes: u64,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The files, in the order of the plan.
    pub outputs: Vec<OutputSummary>,
    /// Bytes of weights read.
    pub input_bytes: u64,
    /// From the first read to the last file made durable.
    pub elapsed: Duration,
}

/// Carries out `plan`, writing its outputs to `paths`.
///
/// A file appears under its final name only when it is complete; on an error nothing is left of those that
/// are not.
///
/// # Errors
/// Reading or writing fails, an existing file may not be overwritten, or a weight is not finite or too large
/// for its type. The error is about the first bad weight in reading order, whatever the number of threads.
pub fn execute(
    checkpoint: &Checkpoint,
    plan: &Plan,
    paths: &[PathBuf],
    options: &Options,
    progress: &dyn Progress,
) -> Result<Summary, Error> {
    let begun = Instant::now();
    if paths.len() != plan.outputs.len() {
        let expected = format!("{} paths, one per output", plan.outputs.len());
        return Err(Error::Outputs { found: paths.len(), expected });
    }
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(options.threads)
        .thread_name(|i| format!("convert-{i}"))
        .build()
        .map_err(|e| Error::Threads { threads: options.threads, reason: e.to_string() })?;
    let mut writers = Vec::new();
    for (output, path) in plan.outputs.iter().zip(paths) {
        writers.push(Writer::create(path, output.layout.clone(), options.overwrite)?);
    }

    progress.begin(plan.input_bytes());
    let work = Work {
        checkpoint,
        plan,
        writers: &writers,
        allow_non_finite: options.allow_non_finite,
        progress,
        failed: AtomicBool::new(false),
        failure: Mutex::new(None),
        input_bytes: AtomicU64::new(0),
    };
    work.run(&pool);
    let input_bytes = work.input_bytes.load(Ordering::Relaxed);
    if let Some((_, error)) = work.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }

    let mut outputs = Vec::new();
    for (writer, path) in writers.into_iter().zip(paths) {
        progress.finishing(path);
        outputs.push(OutputSummary { path: path.clone(), size_bytes: writer.finish()? });
    }
    Ok(Summary { outputs, input_bytes, elapsed: begun.elapsed() })
}

/// Rows that have been read and wait to be converted.
struct Job<'a> {
    /// Position in reading order.
    number: u64,
    step: &'a Step,
    /// First row; a whole number of groups into the step.
    first_row: u64,
    rows: u64,
    bytes: Vec<u8>,
}

struct Work<'a> {
    checkpoint: &'a Checkpoint,
    plan: &'a Plan,
    writers: &'a [Writer],
    allow_non_finite: bool,
    progress: &'a dyn Progress,
    failed: AtomicBool,
    /// The failure that comes first in reading order.
    failure: Mutex<Option<(u64, Error)>>,
    input_bytes: AtomicU64,
}

impl Work<'_> {
    fn run(&self, pool: &rayon::ThreadPool) {
        let n_threads = pool.current_num_threads();
        // While every thread converts one chunk, the next one for each is read.
        let (full_sender, full) = sync_channel::<Job<'_>>(n_threads);
        let (empty_sender, empty) = channel::<Vec<u8>>();
        let full = Mutex::new(full);
        std::thread::scope(|scope| {
            scope.spawn(move || self.read_all(full_sender, &empty));
            pool.broadcast(|_| self.convert_all(&full, empty_sender.clone()));
            // A reader that waits for room learns from this that nobody takes its chunks any more.
            drop(full);
        });
    }

    fn fail(&self, number: u64, error: Error) {
        self.failed.store(true, Ordering::Relaxed);
        let mut first = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if first.as_ref().is_none_or(|(n, _)| number < *n) {
            *first = Some((number, error));
        }
    }

    /// Reads everything, chunk by chunk, until told to stop.
    fn read_all<'s>(&'s self, full: SyncSender<Job<'s>>, empty: &Receiver<Vec<u8>>) {
        let mut number = 0;
        for step in &self.plan.steps {
            self.progress.tensor(&step.id.name());
            let mut first_row = 0;
            while first_row < step.rows {
                if self.failed.load(Ordering::Relaxed) {
                    return;
                }
                let rows = rows_of_chunk(step).min(step.rows - first_row);
                let mut bytes = empty.try_recv().unwrap_or_default();
                if let Err(error) = self.read(step, first_row, rows, &mut bytes) {
                    return self.fail(number, error);
                }
                if full.send(Job { number, step, first_row, rows, bytes }).is_err() {
                    return;
                }
                number += 1;
                first_row += rows;
            }
        }
    }

    fn read(&self, step: &Step, first_row: u64, rows: u64, bytes: &mut Vec<u8>) -> Result<(), Error> {
        match &step.source {
            Source::Computed(values) => {
                bytes.clear();
                bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            }
            Source::Weight(weight) => {
                let row_bytes = step.cols * weight.dtype.block_bytes() as u64;
                bytes.resize((rows * row_bytes) as usize, 0);
                self.checkpoint.read(weight, first_row * row_bytes, bytes)?;
            }
        }
        Ok(())
    }

    /// Converts and writes chunks until there are no more, or one fails.
    fn convert_all(&self, full: &Mutex<Receiver<Job<'_>>>, empty: Sender<Vec<u8>>) {
        let mut scratch = Scratch::default();
        let mut outs = vec![Vec::new(); self.plan.outputs.len()];
        loop {
            let job = full.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(job) = job else { return };
            if let Err(error) = self.convert(&job, &mut outs, &mut scratch) {
                self.fail(job.number, error);
            }
            if let Source::Weight(_) = job.step.source {
                let n = job.bytes.len() as u64;
                self.input_bytes.fetch_add(n, Ordering::Relaxed);
                self.progress.advance(n);
            }
            // The reader may be gone already.
            let _ = empty.send(job.bytes);
        }
    }

    fn convert(&self, job: &Job<'_>, outs: &mut [Vec<u8>], scratch: &mut Scratch) -> Result<(), Error> {
        let step = job.step;
        let dtype = match &step.source {
            Source::Weight(weight) => weight.dtype,
            Source::Computed(_) => TensorType::F32,
        };
        let chunk = Chunk {
            bytes: &job.bytes,
            dtype,
            rows: job.rows as usize,
            cols: step.cols as usize,
            row_order: step.row_order,
            via: step.via,
            importance: step.importance.as_deref(),
        };
        let types: Vec<TensorType> = step.destinations.iter().map(|d| d.ty).collect();
        outs.iter_mut().for_each(Vec::clear);
        let check = step.must_be_finite || !self.allow_non_finite;
        chunk.convert(&types, outs, check, scratch).map_err(|failure| self.explain(job, failure))?;
        for (destination, out) in step.destinations.iter().zip(outs.iter()) {
            let at = destination.offset + out.len() as u64 / job.rows * job.first_row;
            self.writers[destination.output].write_at(destination.tensor, at, out)?;
        }
        Ok(())
    }

    fn explain(&self, job: &Job<'_>, failure: Failure) -> Error {
        let bad = match failure {
            Failure::Bad(bad) => bad,
            Failure::Quants(error) => return Error::Quants { tensor: job.step.id.name(), source: error },
        };
        let (file, source_name) = match &job.step.source {
            Source::Weight(weight) => {
                let shard = self.checkpoint.shards().nth(weight.shard);
                (shard.unwrap_or(self.checkpoint.dir()).to_owned(), weight.source_name.as_str())
            }
            Source::Computed(_) => (self.checkpoint.dir().join("config.json"), "rope scaling"),
        };
        let tensor = format!("{source_name} ({})", job.step.id.name());
        match bad {
            Bad::NonFinite { row, col, value } => {
                let (row, col) = job.place(row, col);
                Error::NonFinite { file, tensor, row, col, value }
            }
            Bad::TooLarge { row, col, value, ty } => {
                let (row, col) = job.place(row, col);
                Error::TooLarge { file, tensor, row, col, value, ty: ty.name() }
            }
        }
    }
}

impl Job<'_> {
    /// Row and column in the source of an element of this chunk.
    fn place(&self, row: usize, col: usize) -> (u64, u64) {
        (self.first_row + row as u64, col as u64)
    }
}

/// Rows to be read at once: about [`CHUNK_BYTES`], and whole groups of rows that change places.
fn rows_of_chunk(step: &Step) -> u64 {
    let group_bytes = step.row_order.group() * step.cols * 4;
    (CHUNK_BYTES / group_bytes.max(1)).max(1) * step.row_order.group()
}
