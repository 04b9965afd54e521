//! Carries a plan out: reads each weight once, converts it, writes it to every output.
//!
//! Chunks are numbered in the order of the shards. Every thread takes the next number, reads the chunk, converts and
//! writes it, so that its bytes stay in that core's cache and all threads are busy to the end; the system is told early
//! what will be read. One more thread makes the outputs durable as they grow and notes it in the journal. Memory is one
//! chunk per thread, whatever the size of a tensor. Which thread does what does not matter to the result: every chunk has
//! its place in every output before anything begins.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gguf::{Layout, Overwrite, Writer};
use quants::TensorType;

use crate::chunk::{Bad, Chunk, Failure, Scratch};
use crate::journal::{self, Journal};
use crate::plan::{Destination, Plan, RowOrder, Source, Step};
use crate::{Error, Input};

/// Source bytes of a chunk as F32, unless its rows are longer.
const CHUNK_BYTES: u64 = 1 << 20;

/// Chunks that the system is asked to read before they are needed.
const CHUNKS_AHEAD: u64 = 32;

/// Chunks after which outputs are made durable.
const SYNC_CHUNKS: u64 = 128;

/// Time after which they are in any case: what an interruption costs at most.
const SYNC_INTERVAL: Duration = Duration::from_millis(500);

/// How a plan is carried out.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Threads that convert; 0 for one per core.
    pub threads: usize,
    /// What happens to existing files.
    pub overwrite: Overwrite,
    /// Let NaN and infinities in weights through, though not in norms and routers.
    pub allow_non_finite: bool,
    /// Go on where an interrupted run of the same plan came to, and leave what is needed for that behind when this one is
    /// interrupted or fails.
    pub resume: bool,
}

/// Hears how far the work is. Called from several threads.
pub trait Progress: Sync {
    /// Work begins; `input_bytes` will be read.
    fn begin(&self, input_bytes: u64) {
        let _ = input_bytes;
    }
    /// Types are being tried on `n` weights, each of which [`advance`](Self::advance)s by one; the work comes after it.
    fn begin_measuring(&self, n: u64) {
        let _ = n;
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
    /// Where it is; its parts add their numbers to this.
    pub path: PathBuf,
    /// Its size, of all parts.
    pub size_bytes: u64,
    /// The file, or its parts.
    pub files: Vec<PathBuf>,
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
/// A file appears under its final name only when it is complete. A run that is killed leaves hidden files beside the
/// outputs, from which another one goes on with [`Options::resume`]. After an error nothing is left of outputs that are
/// not complete, unless that option is set.
///
/// # Errors
/// Reading or writing fails, an existing file may not be overwritten, another run is writing the same file, or a weight is
/// not finite or too large for its type. The error is about the first bad weight in reading order, whatever the number of
/// threads.
pub fn execute(
    input: &dyn Input,
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
    let chunks = Chunks::of(plan);
    let what = format!("{CHUNK_BYTES} {}", options.allow_non_finite);
    let fingerprint = journal::fingerprint(input, plan, &what);
    let (mut journal, earlier) = Journal::open(&paths[0], fingerprint, options.resume)?;
    let earlier = earlier.filter(|n| options.resume && *n <= chunks.n);
    let (outputs, done) = writers(plan, paths, options, &mut journal, earlier, chunks.n)?;

    progress.begin(plan.input_bytes());
    let work = Work {
        input,
        plan,
        chunks: &chunks,
        writers: &outputs,
        journal: &journal,
        allow_non_finite: options.allow_non_finite,
        progress,
        next: AtomicU64::new(done),
        finished: Mutex::new(Finished { low: done, above: BTreeSet::new(), at_work: 0 }),
        came_further: Condvar::new(),
        failed: AtomicBool::new(false),
        failure: Mutex::new(None),
        input_bytes: AtomicU64::new(0),
    };
    work.skip(done);
    work.run(&pool);
    let input_bytes = work.input_bytes.load(Ordering::Relaxed);
    if let Some((_, error)) = work.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }

    let outputs = finish(plan, paths, outputs, journal, chunks.n, progress)?;
    Ok(Summary { outputs, input_bytes, elapsed: begun.elapsed() })
}

/// Writers of the outputs, `None` for one that has its name already, and how many chunks are done: those of an earlier run
/// where it goes on, else new ones.
fn writers(
    plan: &Plan,
    paths: &[PathBuf],
    options: &Options,
    journal: &mut Journal,
    earlier: Option<u64>,
    n_chunks: u64,
) -> Result<(Vec<Option<Writer>>, u64), Error> {
    if let Some(done) = earlier
        && let Some(outputs) = reopen(plan, paths, options, done == n_chunks)?
    {
        return Ok((outputs, done));
    }
    journal.restart()?;
    let mut outputs = Vec::new();
    for (output, path) in plan.outputs.iter().zip(paths) {
        let layout = output.layout.clone();
        let writer = Writer::create_resumable(path, layout, options.overwrite, options.resume)?;
        outputs.push(Some(writer));
    }
    Ok((outputs, 0))
}

/// Makes complete outputs durable, and gives them their names.
fn finish(
    plan: &Plan,
    paths: &[PathBuf],
    outputs: Vec<Option<Writer>>,
    journal: Journal,
    n_chunks: u64,
    progress: &dyn Progress,
) -> Result<Vec<OutputSummary>, Error> {
    for (writer, path) in outputs.iter().zip(paths) {
        progress.finishing(path);
        writer.as_ref().map_or(Ok(()), Writer::complete)?;
    }
    // From here on a run that goes on has names to give and nothing else.
    journal.record(n_chunks)?;
    journal.sync()?;
    let mut summaries = Vec::new();
    for ((writer, path), output) in outputs.into_iter().zip(paths).zip(&plan.outputs) {
        if let Some(writer) = writer {
            writer.give_names()?;
        }
        let (size_bytes, files) = (output.layout.total_size(), output.layout.file_names(path));
        summaries.push(OutputSummary { path: path.clone(), size_bytes, files });
    }
    journal.remove();
    Ok(summaries)
}

/// What an interrupted run left of its outputs: `None` where one of them is not there. With `complete`, when only names
/// were missing, an output may have its name already; it then has no writer.
fn reopen(
    plan: &Plan,
    paths: &[PathBuf],
    options: &Options,
    complete: bool,
) -> Result<Option<Vec<Option<Writer>>>, Error> {
    let mut writers = Vec::new();
    for (output, path) in plan.outputs.iter().zip(paths) {
        if complete && has_its_name(&output.layout, path) {
            writers.push(None);
            continue;
        }
        let layout = output.layout.clone();
        match Writer::reopen(path, layout, options.overwrite, options.resume)? {
            Some(writer) => writers.push(Some(writer)),
            None => return Ok(None),
        }
    }
    Ok(Some(writers))
}

/// Whether no hidden file is left of an output, and all of its files are there.
fn has_its_name(layout: &Layout, path: &Path) -> bool {
    let hidden = Writer::resumable_files(path, layout);
    let named = layout.file_names(path);
    let whole = |(part, file): (usize, &PathBuf)| {
        file.metadata().is_ok_and(|m| m.is_file() && m.len() == layout.part_size(part))
    };
    !hidden.iter().any(|file| file.exists()) && named.iter().enumerate().all(whole)
}

/// Outputs that an interrupted run of the same plan has finished already, by index; with [`Options::resume`] they are left
/// as they are.
pub fn finished_outputs(input: &dyn Input, plan: &Plan, paths: &[PathBuf], options: &Options) -> Vec<usize> {
    let Some(first) = paths.first().filter(|_| options.resume) else { return Vec::new() };
    let what = format!("{CHUNK_BYTES} {}", options.allow_non_finite);
    let done = journal::peek(first, &journal::fingerprint(input, plan, &what));
    if done != Some(Chunks::of(plan).n) {
        return Vec::new();
    }
    let outputs = plan.outputs.iter().zip(paths).enumerate();
    outputs.filter(|(_, (o, path))| has_its_name(&o.layout, path)).map(|(i, _)| i).collect()
}

/// All chunks of a plan, numbered in reading order.
struct Chunks {
    /// Number of the first chunk of each step.
    first: Vec<u64>,
    n: u64,
}

impl Chunks {
    fn of(plan: &Plan) -> Chunks {
        let (mut first, mut n) = (Vec::new(), 0);
        for step in &plan.steps {
            first.push(n);
            n += step.rows.div_ceil(rows_of_chunk(step));
        }
        Chunks { first, n }
    }

    /// Step, first row and number of rows of a chunk.
    fn place<'a>(&self, plan: &'a Plan, number: u64) -> (&'a Step, u64, u64) {
        let index = self.first.partition_point(|first| *first <= number) - 1;
        let step = &plan.steps[index];
        let rows = rows_of_chunk(step);
        let first_row = (number - self.first[index]) * rows;
        (step, first_row, rows.min(step.rows - first_row))
    }
}

/// Rows that have been read.
struct Job<'a> {
    step: &'a Step,
    /// First row; a whole number of groups into the step.
    first_row: u64,
    rows: u64,
    bytes: &'a [u8],
}

/// Which chunks are written in every output.
struct Finished {
    /// All below are.
    low: u64,
    /// And these.
    above: BTreeSet<u64>,
    /// Threads that may add to them.
    at_work: usize,
}

struct Work<'a> {
    input: &'a dyn Input,
    plan: &'a Plan,
    chunks: &'a Chunks,
    /// `None` for an output that is finished.
    writers: &'a [Option<Writer>],
    journal: &'a Journal,
    allow_non_finite: bool,
    progress: &'a dyn Progress,
    /// The chunk that the next free thread takes.
    next: AtomicU64,
    finished: Mutex<Finished>,
    /// Told when `finished` grows enough to be made durable, or nobody is at work any more.
    came_further: Condvar,
    failed: AtomicBool,
    /// The failure that comes first in reading order.
    failure: Mutex<Option<(u64, Error)>>,
    input_bytes: AtomicU64,
}

/// Signs a thread off, also when it panics: else nobody would end the thread that waits for all.
struct Leaving<'a>(&'a Work<'a>);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.finished().at_work -= 1;
        self.0.came_further.notify_one();
    }
}

impl Work<'_> {
    fn run(&self, pool: &rayon::ThreadPool) {
        self.finished().at_work = pool.current_num_threads();
        std::thread::scope(|scope| {
            scope.spawn(|| self.make_durable());
            pool.broadcast(|_| {
                let _leaving = Leaving(self);
                self.convert_all();
            });
        });
    }

    fn finished(&self) -> MutexGuard<'_, Finished> {
        self.finished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, number: u64, error: Error) {
        self.failed.store(true, Ordering::Relaxed);
        let mut first = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if first.as_ref().is_none_or(|(n, _)| number < *n) {
            *first = Some((number, error));
        }
    }

    /// Takes the first chunks for written, as an earlier run did it.
    fn skip(&self, done: u64) {
        for number in 0..done {
            let (step, first_row, rows) = self.chunks.place(self.plan, number);
            for d in &step.destinations {
                let row_bytes = d.ty.row_bytes(step.cols).unwrap_or(0);
                if let Some(writer) = &self.writers[d.output] {
                    writer.mark_written(d.tensor, d.offset + first_row * row_bytes, rows * row_bytes);
                }
            }
            if let Source::Weight(weight) = &step.source {
                self.progress.advance(weight.size / step.rows * rows);
            }
        }
    }

    /// Makes outputs durable while the work goes on, so that little is left to wait for at the end and to do again after
    /// an interruption.
    fn make_durable(&self) {
        let mut durable = self.finished().low;
        loop {
            let mut finished = self.finished();
            let begun = Instant::now();
            while finished.at_work > 0
                && finished.low < durable + SYNC_CHUNKS
                && (finished.low == durable || begun.elapsed() < SYNC_INTERVAL)
            {
                let waited = self.came_further.wait_timeout(finished, SYNC_INTERVAL);
                finished = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            let (low, at_work) = (finished.low, finished.at_work);
            drop(finished);
            // The end is made durable where the outputs are completed; a failed run needs it for another one to go on.
            if at_work == 0 && !self.failed.load(Ordering::Relaxed) {
                return;
            }
            let synced = self.writers.iter().flatten().try_for_each(Writer::sync_data);
            if let Err(error) = synced.map_err(Error::from).and_then(|()| self.journal.record(low)) {
                return self.fail(low, error);
            }
            durable = low;
            if at_work == 0 {
                return;
            }
        }
    }

    /// Reads, converts and writes chunks until there are no more, or one fails.
    fn convert_all(&self) {
        let mut scratch = Scratch::default();
        let mut bytes = Vec::new();
        let mut outs = vec![Vec::new(); self.plan.outputs.len()];
        let mut last_step: Option<&Step> = None;
        while !self.failed.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.chunks.n {
                return;
            }
            let (step, first_row, rows) = self.chunks.place(self.plan, number);
            if first_row == 0 || last_step.is_none() {
                self.progress.tensor(&step.id.name());
            }
            last_step = Some(step);
            self.read_ahead(number);
            let done = self.read(step, first_row, rows, &mut bytes).and_then(|()| {
                let job = Job { step, first_row, rows, bytes: &bytes };
                self.convert(&job, &mut outs, &mut scratch)
            });
            if let Err(error) = done {
                return self.fail(number, error);
            }
            self.finish(number);
            if let Source::Weight(_) = step.source {
                let n = bytes.len() as u64;
                self.input_bytes.fetch_add(n, Ordering::Relaxed);
                self.progress.advance(n);
            }
        }
    }

    fn finish(&self, number: u64) {
        let mut finished = self.finished();
        let before = finished.low;
        finished.above.insert(number);
        while let Some(low) = finished.above.first().copied().filter(|n| *n == finished.low) {
            finished.above.remove(&low);
            finished.low += 1;
        }
        if finished.low / SYNC_CHUNKS > before / SYNC_CHUNKS {
            self.came_further.notify_one();
        }
    }

    /// Tells the system which chunk will be wanted soon.
    fn read_ahead(&self, number: u64) {
        let number = number + CHUNKS_AHEAD;
        if number < self.chunks.n {
            let (step, first_row, rows) = self.chunks.place(self.plan, number);
            if let Source::Weight(weight) = &step.source {
                let row_bytes = weight.size / step.rows;
                self.input.read_soon(weight, first_row * row_bytes, rows * row_bytes);
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
                let row_bytes = weight.size / step.rows;
                bytes.resize((rows * row_bytes) as usize, 0);
                self.input.read(weight, first_row * row_bytes, bytes)?;
            }
        }
        Ok(())
    }

    fn convert(&self, job: &Job<'_>, outs: &mut [Vec<u8>], scratch: &mut Scratch) -> Result<(), Error> {
        let step = job.step;
        let dtype = match &step.source {
            Source::Weight(weight) => weight.dtype,
            Source::Computed(_) => TensorType::F32,
        };
        let chunk = Chunk {
            bytes: job.bytes,
            dtype,
            rows: job.rows as usize,
            cols: step.cols as usize,
            row_order: step.row_order,
            via: step.via,
            importance: step.importance.as_deref(),
        };
        // What stays as it is goes from the input's buffer to the output.
        let as_is = step.row_order == RowOrder::AsIs && step.via.is_none_or(|via| via == dtype);
        let (copied, converted): (Vec<&Destination>, Vec<&Destination>) =
            step.destinations.iter().partition(|d| as_is && d.ty == dtype);
        let types: Vec<TensorType> = converted.iter().map(|d| d.ty).collect();
        outs.iter_mut().for_each(Vec::clear);
        let check = step.must_be_finite || !self.allow_non_finite;
        chunk.convert(&types, outs, check, scratch).map_err(|failure| self.explain(job, failure))?;
        let converted = converted.into_iter().zip(outs.iter().map(Vec::as_slice));
        for (destination, bytes) in converted.chain(copied.into_iter().map(|d| (d, job.bytes))) {
            let at = destination.offset + bytes.len() as u64 / job.rows * job.first_row;
            if let Some(writer) = &self.writers[destination.output] {
                writer.write_at(destination.tensor, at, bytes)?;
            }
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
                let file = self.input.files().get(weight.shard).map_or(self.input.path(), |file| *file);
                (file.to_owned(), weight.source_name.as_str())
            }
            Source::Computed(_) => (self.input.path().join("config.json"), "rope scaling"),
        };
        // A GGUF file has the names of the output; a checkpoint's are told beside them.
        let name = job.step.id.name();
        let tensor = if source_name == name { name } else { format!("{source_name} ({name})") };
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
