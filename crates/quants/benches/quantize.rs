//! How fast rows become blocks: every type that `quants` can make, at every level of this processor, beside the linked
//! ggml's `ggml_quantize_chunk`, on one core, with and without importance.
//!
//! ```text
//! cargo bench -p quants -- [--runs N] [--rows N] [--columns N] [TYPE]...
//! ```
//!
//! Each run takes every level and ggml once, one after the other, so that a busy machine slows all of them alike, and
//! counts the processor time of the thread. What is printed is the median over the runs and, in brackets, the quartiles.
//! `x ggml` is the median of the runs' ratios. A tick is one of the time stamp counter, which runs at the processor's
//! nominal frequency.
#![allow(
    unsafe_code,
    reason = "calls ggml's C function, and reads a counter that the standard library does not have"
)]

mod timing;

use std::hint::black_box;
use std::time::Instant;

use quants::{Level, TensorType, can_quantize, quantize_at, quantize_weighted_at};
use timing::{Spread, thread_seconds};

struct Options {
    runs: usize,
    rows: usize,
    columns: usize,
    types: Vec<TensorType>,
}

fn main() {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}");
            std::process::exit(2);
        }
    };
    let tick = tick_seconds();
    println!("{} rows of {} weights, {} runs, one core", options.rows, options.columns, options.runs);
    println!(
        "{:8} {:10} {:8} {:>24} {:>14} {:>24}",
        "type", "importance", "level", "M weights/s", "ticks/weight", "x ggml"
    );
    let weights = normal(options.rows * options.columns);
    let importance: Vec<f32> = normal(options.columns).iter().map(|x| x * x * 2500.0).collect();
    for &ty in &options.types {
        for importance in [None, Some(&importance[..])] {
            measure(&options, ty, &weights, importance, tick);
        }
    }
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options { runs: 9, rows: 16, columns: 4096, types: Vec::new() };
    while let Some(arg) = args.next() {
        let mut number = || match args.next().map(|value| value.parse()) {
            Some(Ok(n)) if n > 0 => Ok(n),
            _ => Err(format!("{arg}: expected a number above 0")),
        };
        match arg.as_str() {
            // What cargo passes on its own.
            "--bench" => {}
            "--runs" => options.runs = number()?,
            "--rows" => options.rows = number()?,
            "--columns" => options.columns = number()?,
            name => {
                let ty = TensorType::from_name(name).filter(|&ty| can_quantize(ty));
                options.types.push(ty.ok_or(format!("{name}: expected a type that can be quantized"))?);
            }
        }
    }
    if !options.columns.is_multiple_of(256) {
        return Err(format!("--columns: found {}, expected a multiple of 256", options.columns));
    }
    if options.types.is_empty() {
        options.types = TensorType::ALL.iter().copied().filter(|&ty| can_quantize(ty)).collect();
    }
    Ok(options)
}

fn measure(options: &Options, ty: TensorType, weights: &[f32], importance: Option<&[f32]>, tick: f64) {
    let n_bytes = weights.len() / ty.block_len() * ty.block_bytes();
    let mut blocks = vec![0; n_bytes];
    let mut theirs = vec![0_u64; n_bytes.div_ceil(8)];
    let levels = Level::all_supported();
    // For each level, and ggml at the end: seconds of each run.
    let mut times = vec![Vec::new(); levels.len() + 1];
    for run in 0..=options.runs {
        for (i, times) in times.iter_mut().enumerate() {
            let start = thread_seconds();
            match levels.get(i) {
                Some(&level) => {
                    let done = match importance {
                        Some(importance) => {
                            quantize_weighted_at(level, ty, weights, importance, black_box(&mut blocks))
                        }
                        None => quantize_at(level, ty, weights, black_box(&mut blocks)),
                    };
                    if done.is_err() {
                        return;
                    }
                }
                None => ggml(ty, weights, options.columns, importance, black_box(&mut theirs)),
            }
            let elapsed = thread_seconds() - start;
            // The first run warms the caches.
            if run > 0 {
                times.push(elapsed);
            }
        }
        let same = theirs.iter().flat_map(|word| word.to_ne_bytes()).zip(&blocks).all(|(a, &b)| a == b);
        assert!(same, "{ty}: the blocks differ from ggml's");
    }

    let n = weights.len() as f64;
    let names = levels.iter().map(|level| level.name()).chain(["ggml"]);
    for (i, name) in names.enumerate() {
        let rates = Spread::of(times[i].iter().map(|seconds| n / seconds / 1e6));
        let ticks = Spread::of(times[i].iter().map(|seconds| seconds / tick / n));
        let ratios = Spread::of(times[i].iter().zip(&times[levels.len()]).map(|(ours, ggml)| ggml / ours));
        let importance = if importance.is_some() { "yes" } else { "no" };
        println!(
            "{:8} {importance:10} {name:8} {rates:>24.1} {:>14.2} {ratios:>24.1}",
            ty.name(),
            ticks.median
        );
    }
}

/// How long a tick takes; infinite where there is no counter.
fn tick_seconds() -> f64 {
    let (start, start_ticks) = (Instant::now(), ticks());
    std::thread::sleep(std::time::Duration::from_millis(50));
    start.elapsed().as_secs_f64() / (ticks() - start_ticks) as f64
}

/// The time stamp counter, which ticks at the processor's nominal frequency; 0 where there is none.
fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: every x86-64 processor has the instruction.
        unsafe { std::arch::x86_64::_rdtsc() }
    }
    #[cfg(not(target_arch = "x86_64"))]
    0
}

fn ggml(ty: TensorType, weights: &[f32], row_len: usize, importance: Option<&[f32]>, blocks: &mut [u64]) {
    assert!(blocks.len() * 8 >= weights.len() / ty.block_len() * ty.block_bytes());
    // SAFETY: the weights are whole rows of whole blocks, the blocks' buffer has the room that they take and is aligned
    // for any of ggml's block structures, and the importance is as long as a row.
    unsafe {
        ggml_sys::ggml_quantize_chunk(
            ty.id(),
            weights.as_ptr(),
            blocks.as_mut_ptr().cast(),
            0,
            (weights.len() / row_len) as i64,
            row_len as i64,
            importance.map_or(std::ptr::null(), <[f32]>::as_ptr),
        );
    }
}

/// Numbers that are close to normally distributed, with a standard deviation of 0.02, always the same.
fn normal(n: usize) -> Vec<f32> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..n).map(|_| ((0..12).map(|_| uniform()).sum::<f32>() - 6.0) * 0.02).collect()
}
