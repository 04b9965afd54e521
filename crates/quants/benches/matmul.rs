//! How fast rows of weights are multiplied: every type, level and batch, beside the linked ggml's `mul_mat` and the
//! memory's speed, on one core.
//!
//! ```text
//! cargo bench -p quants --bench matmul -- [--runs N] [--rows N] [--columns N] [--batches 1,8] [--megabytes N] [TYPE]...
//! ```
//!
//! The weights are copied until they take `--megabytes`, and each run goes on to the next copy, so that with a batch of
//! one they come from memory. Each run takes every level, ggml and a plain read of the same bytes once, one after the
//! other, so that a busy machine slows all of them alike; time is that of the core, not of the clock on the wall. All
//! times hold the quantizing of activations. What is printed
//! is the median over the runs and, in brackets, the quartiles; `x ggml` is the median of the runs' ratios, `of read` the
//! same against the plain read.

mod peer;
mod timing;

use ggml::{Buffer, BufferType, Context, Graph, Tensor, Type};
use peer::Peer;
use quants::TensorType;
use quants::matmul::{Level, activation_kind, multiply_at, supports};
use std::hint::black_box;
use timing::{Spread, thread_seconds};

struct Options {
    runs: usize,
    rows: usize,
    columns: usize,
    batches: Vec<usize>,
    bytes: usize,
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
    ggml::load_backends().expect("a CPU backend");
    println!(
        "{} rows of {} weights in {} MB, {} runs, one core",
        options.rows,
        options.columns,
        options.bytes >> 20,
        options.runs
    );
    println!(
        "{:8} {:>5} {:12} {:>22} {:>8} {:>20} {:>20}",
        "type", "batch", "level", "GB/s of weights", "GOP/s", "x ggml", "of read"
    );
    for &ty in &options.types {
        let weights = weights(ty, options.rows * options.columns / ty.block_len());
        let n_copies = options.bytes.div_ceil(weights.len());
        let copies: Vec<Tensor> = (0..n_copies).map(|_| tensor(&options, ty, &weights)).collect();
        let weights: Vec<Vec<u8>> = (0..n_copies).map(|_| weights.clone()).collect();
        for &batch in &options.batches {
            measure(&options, ty, batch, &weights, &copies);
        }
    }
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        runs: 9,
        rows: 4096,
        columns: 14336,
        batches: vec![1, 4, 8, 32, 512],
        bytes: 256 << 20,
        types: Vec::new(),
    };
    while let Some(arg) = args.next() {
        let mut numbers = || {
            let value = args.next().unwrap_or_default();
            let numbers: Option<Vec<usize>> = value.split(',').map(|n| n.parse().ok()).collect();
            numbers.filter(|all| !all.contains(&0)).ok_or(format!("{arg}: expected a number above 0"))
        };
        match arg.as_str() {
            // What cargo passes on its own.
            "--bench" => {}
            "--runs" => options.runs = numbers()?[0],
            "--rows" => options.rows = numbers()?[0],
            "--columns" => options.columns = numbers()?[0],
            "--megabytes" => options.bytes = numbers()?[0] << 20,
            "--batches" => options.batches = numbers()?,
            name => {
                let ty = TensorType::from_name(name).filter(|&ty| supports(ty));
                options.types.push(ty.ok_or(format!("{name}: expected a type that can be multiplied"))?);
            }
        }
    }
    if !options.columns.is_multiple_of(256) {
        return Err(format!("--columns: found {}, expected a multiple of 256", options.columns));
    }
    if options.types.is_empty() {
        options.types = TensorType::ALL.iter().copied().filter(|&ty| supports(ty)).collect();
    }
    Ok(options)
}

fn measure(options: &Options, ty: TensorType, batch: usize, weights: &[Vec<u8>], tensors: &[Tensor]) {
    let (rows, columns) = (options.rows, options.columns);
    let kind = activation_kind(ty);
    let activations: Vec<f32> = numbers(batch * columns).collect();
    let mut quantized = vec![0; batch * kind.row_bytes(columns)];
    let mut ours = vec![0.0; batch * rows];
    let mut peers: Vec<_> = tensors.iter().map(|tensor| peer(tensor, &activations, columns)).collect();
    // The scalar level is for correctness; it would take up all of the time.
    let levels: Vec<Level> = Level::all_supported().into_iter().filter(|&l| l != Level::SCALAR).collect();
    // For each level, ggml and the plain read: the seconds of each run.
    let mut times = vec![Vec::new(); levels.len() + 2];
    for run in 0..=options.runs {
        for (i, times) in times.iter_mut().enumerate() {
            // Whoever comes later in a run must not find what the one before has fetched.
            let copy = (run * (levels.len() + 2) + i) % weights.len();
            let start = thread_seconds();
            match levels.get(i) {
                Some(&level) => {
                    let rows_of_both = activations.chunks_exact(columns);
                    for (row, out) in rows_of_both.zip(quantized.chunks_exact_mut(kind.row_bytes(columns))) {
                        kind.quantize(row, out);
                    }
                    multiply_at(level, ty, &weights[copy], columns, &quantized, &mut ours, rows)
                        .expect("sizes that match");
                }
                None if i == levels.len() => peers[copy].compute(),
                None => {
                    black_box(read(&weights[copy]));
                }
            }
            // The first run warms up.
            if run > 0 {
                times.push(thread_seconds() - start);
            }
        }
        peers[0].compare(&ours);
    }

    let names = levels.iter().map(|level| level.name()).chain(["ggml", "read"]);
    let bytes = weights[0].len() as f64;
    let operations = 2.0 * (rows * columns * batch) as f64;
    for (i, name) in names.enumerate() {
        let rates = Spread::of(times[i].iter().map(|seconds| bytes / seconds / 1e9));
        let ops = Spread::of(times[i].iter().map(|seconds| operations / seconds / 1e9)).median;
        let against = |peer: usize| {
            let ratios = times[i].iter().zip(&times[peer]).map(|(ours, theirs)| theirs / ours);
            format!("{:.2}", Spread::of(ratios))
        };
        let (ops, ggml) = match name {
            "read" => (String::new(), String::new()),
            _ => (format!("{ops:.1}"), against(levels.len())),
        };
        let read = against(levels.len() + 1);
        println!("{:8} {batch:5} {name:12} {rates:>22.2} {ops:>8} {ggml:>20} {read:>20}", ty.name());
    }
}

/// ggml's products, on one thread.
fn peer(weights: &Tensor, activations: &[f32], columns: usize) -> Peer {
    let graph = Graph::new(4);
    let input = graph.input("x", Type::F32, &[columns, activations.len() / columns]);
    let result = graph.mul_mat(weights, &input);
    let peer = Peer::new(graph, result);
    input.write_values(activations);
    peer
}

fn tensor(options: &Options, ty: TensorType, bytes: &[u8]) -> Tensor {
    let ty = Type::from_id(ty.id()).expect("a type of ggml's");
    let tensor = Context::new(1).tensor("w", ty, &[options.columns, options.rows]);
    let buffer =
        Buffer::allocate(BufferType::cpu(), std::slice::from_ref(&tensor), "weights").expect("memory");
    buffer.set_weights();
    tensor.write(0, bytes);
    tensor
}

/// The sum of all words: as fast as one core can read.
fn read(bytes: &[u8]) -> u64 {
    let mut sums = [0_u64; 16];
    for words in bytes.as_chunks::<128>().0 {
        for (sum, word) in sums.iter_mut().zip(words.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_le_bytes(*word));
        }
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}

/// Random blocks of weights with ordinary scales, always the same.
fn weights(ty: TensorType, n_blocks: usize) -> Vec<u8> {
    let mut random = random();
    let mut bytes: Vec<u8> = (0..n_blocks * ty.block_bytes()).map(|_| random() as u8).collect();
    let scales: &[usize] = match ty {
        TensorType::Q2_K => &[80, 82],
        TensorType::Q3_K => &[108],
        TensorType::Q4_K | TensorType::Q5_K | TensorType::Q4_1 | TensorType::Q5_1 => &[0, 2],
        TensorType::Q6_K => &[208],
        _ => &[0],
    };
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        match ty {
            TensorType::F32 => block[3] = block[3] & 0x80 | 0x3D,
            TensorType::BF16 => block[1] = block[1] & 0x80 | 0x3D,
            // An exponent between 2^-8 and 2^-4.
            TensorType::F16 => block[1] = block[1] & 0x8F | 0x20,
            _ => scales.iter().for_each(|at| block[at + 1] = 0x20),
        }
    }
    bytes
}

fn random() -> impl FnMut() -> u32 {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u32
    }
}

/// Numbers between -1 and 1, always the same.
fn numbers(n: usize) -> impl Iterator<Item = f32> {
    let mut random = random();
    (0..n).map(move |_| random() as i32 as f32 / 2_147_483_648.0)
}
