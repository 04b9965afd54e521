//! How fast a pool reads a file past the cache, and what of the processor that takes: threads and io_uring, by the number
//! of reads at once.
//!
//! ```text
//! cargo bench -p expert-pool -- FILE [--depths 1,2,4,8,16] [--runs N] [--experts N] [--rows N] [--row-bytes N]
//! ```
//!
//! Any file will do: it is cut into layers of such experts (as large as a 7B model's in Q4_K where nothing is said). Each
//! run takes everyone once, one after the other, over all experts of a layer, whose tiles are leased and given back; none
//! is found in memory. Medians and, in brackets, quartiles over the runs. Core time is that of the whole process, the system's work for it included.

use expert_pool::{Files, LayerSource, MatrixSource, Options, Pool, Readers, Request};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

struct Arguments {
    file: PathBuf,
    depths: Vec<usize>,
    runs: usize,
    n_expert: usize,
    n_rows: usize,
    row_bytes: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = parse(std::env::args().skip(1))?;
    let layers = layers(&arguments, std::fs::metadata(&arguments.file)?.len());
    if layers.len() < 2 {
        return Err(format!("{}: expected a file of at least two layers", arguments.file.display()).into());
    }
    let n_most = arguments.depths.iter().copied().max().unwrap_or(1);
    let size_bytes = Pool::least_bytes(&layers, Readers::Threads(n_most));
    let mut measured = Vec::new();
    for kind in [Readers::Threads, Readers::Uring] {
        for readers in arguments.depths.iter().map(|n| kind(*n)) {
            let files = Files::open(std::slice::from_ref(&arguments.file))?;
            match Pool::new(files, &layers, Options { size_bytes, readers }) {
                Ok(pool) => measured.push((pool, Vec::new())),
                Err(error) => eprintln!("{readers}: {error}"),
            }
        }
    }
    // The first run touches the memory.
    for run in 0..=arguments.runs {
        // A disk may remember what was read last: everyone comes after everyone else, and to other layers each time.
        measured.reverse();
        for (index, (pool, samples)) in measured.iter_mut().enumerate() {
            let sample = read(pool, (run + index) % layers.len(), arguments.n_expert)?;
            samples.extend((run > 0).then_some(sample));
        }
    }
    println!("{:28} {:>22} {:>22}", "readers", "GB/s", "core ms/GB");
    measured.sort_by_key(|(pool, _)| match pool.readers() {
        Readers::Uring(n) => (1, n),
        Readers::Threads(n) => (0, n),
        Readers::Auto => (0, 0),
    });
    for (pool, samples) in &measured {
        let rate = spread(samples.iter().map(|(rate, _)| *rate), 2);
        let core = spread(samples.iter().map(|(_, core)| *core), 1);
        println!("{:28} {rate:>22} {core:>22}", pool.readers().to_string());
    }
    Ok(())
}

/// Reads a layer: GB per second, and milliseconds of a core for each GB.
fn read(pool: &Pool, layer: usize, n_expert: usize) -> Result<(f64, f64), Box<dyn Error>> {
    let experts: Vec<(usize, usize)> = (0..n_expert).map(|expert| (expert, 1)).collect();
    let before = pool.statistics();
    let (start, core) = (Instant::now(), core_seconds());
    let turn = pool.begin(Arc::default());
    let pass = pool.enter(&Request::of_token(layer, &experts));
    for group in 0..pass.gate_up().len() + pass.down().len() {
        match pool.lease(&pass, group) {
            Some(mut lease) => lease.done(),
            None => break,
        }
    }
    turn.finish()?;
    let (seconds, core) = (start.elapsed().as_secs_f64(), core_seconds() - core);
    let gigabytes = pool.statistics().since(&before).read_bytes as f64 * 1e-9;
    Ok((gigabytes / seconds, core * 1e3 / gigabytes))
}

fn core_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Median and quartiles.
fn spread(values: impl Iterator<Item = f64>, precision: usize) -> String {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let at = |quarters: usize| values[(values.len() - 1) * quarters / 4];
    format!("{:.precision$} ({:.precision$}-{:.precision$})", at(2), at(1), at(3))
}

/// As many layers as the file has room for.
fn layers(arguments: &Arguments, file_bytes: u64) -> Vec<LayerSource> {
    let &Arguments { n_expert, n_rows, row_bytes, .. } = arguments;
    let matrix_bytes = (n_rows * row_bytes) as u64;
    let mut offsets = (0..file_bytes / matrix_bytes).map(|number| number * matrix_bytes);
    let mut bank = |name: &str| -> Vec<MatrixSource> {
        let matrix = |offset| MatrixSource { name: name.to_owned(), file: 0, offset, row_bytes, n_rows };
        offsets.by_ref().take(n_expert).map(matrix).collect()
    };
    let layers = std::iter::from_fn(|| {
        let layer = LayerSource { gate: bank("gate"), up: bank("up"), down: bank("down") };
        (layer.down.len() == n_expert).then_some(layer)
    });
    layers.collect()
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut parsed = Arguments {
        file: PathBuf::new(),
        depths: vec![1, 2, 4, 8, 16],
        runs: 9,
        n_expert: 4,
        n_rows: 14336,
        row_bytes: 2304,
    };
    while let Some(argument) = arguments.next() {
        let mut numbers = || {
            let value = arguments.next().unwrap_or_default();
            let numbers: Option<Vec<usize>> =
                value.split(',').map(|n| n.parse().ok().filter(|n| *n > 0)).collect();
            numbers.ok_or(format!("{argument}: expected numbers above 0, found \"{value}\""))
        };
        match argument.as_str() {
            // What cargo passes on its own.
            "--bench" => {}
            "--depths" => parsed.depths = numbers()?,
            "--runs" => parsed.runs = numbers()?[0],
            "--experts" => parsed.n_expert = numbers()?[0],
            "--rows" => parsed.n_rows = numbers()?[0],
            "--row-bytes" => parsed.row_bytes = numbers()?[0],
            name if name.starts_with('-') => return Err(format!("{name}: there is no such option")),
            file => parsed.file = Path::new(file).to_owned(),
        }
    }
    Ok(parsed)
}
