//! How fast attention is at some depth: every level, beside the linked ggml's `flash_attn_ext`, on one core.
//!
//! ```text
//! cargo bench -p quants --bench attention -- [--runs N] [--depths 512,8192] [--batches 1,512] [--heads N] [--kv-heads N]
//!                                            [--dim N] [TYPE]...
//! ```
//!
//! A batch of tokens is read behind so many others, with a causal mask. Time is that of the core, each run takes everyone
//! once, one after the other; medians and, in brackets, quartiles over the runs. GB/s counts keys and values once for each
//! batch, GFLOP/s what the mask leaves.

mod peer;
mod timing;

use ggml::{Buffer, BufferType, Context, Graph, Type};
use peer::Peer;
use quants::TensorType;
use quants::attention::{Cells, Token, Workspace, attend_at, supports};
use quants::matmul::Level;
use timing::{Spread, thread_seconds};

struct Options {
    runs: usize,
    depths: Vec<usize>,
    batches: Vec<usize>,
    n_head: usize,
    n_head_kv: usize,
    dim: usize,
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
    println!("{} heads of {}, {} of keys and values", options.n_head, options.dim, options.n_head_kv);
    println!(
        "{:6} {:>6} {:>6} {:12} {:>24} {:>8} {:>8} {:>20}",
        "type", "depth", "batch", "level", "ms", "GB/s", "GFLOP/s", "x ggml"
    );
    for &ty in &options.types {
        for &depth in &options.depths {
            for &batch in &options.batches {
                measure(&options, ty, depth, batch);
            }
        }
    }
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        runs: 7,
        depths: vec![512, 8192],
        batches: vec![1, 512],
        n_head: 32,
        n_head_kv: 8,
        dim: 128,
        types: Vec::new(),
    };
    while let Some(arg) = args.next() {
        let mut numbers = || {
            let value = args.next().unwrap_or_default();
            let numbers: Option<Vec<usize>> = value.split(',').map(|n| n.parse().ok()).collect();
            numbers.ok_or(format!("{arg}: expected numbers"))
        };
        match arg.as_str() {
            // What cargo passes on its own.
            "--bench" => {}
            "--runs" => options.runs = numbers()?[0].max(1),
            "--depths" => options.depths = numbers()?,
            "--batches" => options.batches = numbers()?.into_iter().filter(|n| *n > 0).collect(),
            "--heads" => options.n_head = numbers()?[0].max(1),
            "--kv-heads" => options.n_head_kv = numbers()?[0].max(1),
            "--dim" => options.dim = numbers()?[0].max(32),
            name => {
                let ty = TensorType::from_name(name).filter(|&ty| supports(ty));
                options.types.push(ty.ok_or(format!("{name}: expected a type of keys and values"))?);
            }
        }
    }
    if !options.n_head.is_multiple_of(options.n_head_kv) || !options.dim.is_multiple_of(32) {
        return Err("expected heads that share heads of keys evenly, of a multiple of 32".to_owned());
    }
    if options.types.is_empty() {
        options.types = vec![TensorType::F16, TensorType::Q8_0];
    }
    Ok(options)
}

fn measure(options: &Options, ty: TensorType, depth: usize, batch: usize) {
    let &Options { n_head, n_head_kv, dim, .. } = options;
    let n_cells = depth + batch;
    let scale = 1.0 / (dim as f32).sqrt();
    let stored = |seed: u32| {
        let values: Vec<f32> = numbers(seed, n_head_kv * n_cells * dim).collect();
        let mut bytes = vec![0; values.len() / ty.block_len() * ty.block_bytes()];
        quants::quantize(ty, &values, &mut bytes).expect("whole blocks");
        bytes
    };
    let (keys, values) = (stored(1), stored(2));
    let queries: Vec<f32> = numbers(3, batch * n_head * dim).collect();
    let mut peer = peer(options, ty, batch, [&keys, &values], &queries, scale);
    let mut ours = vec![0.0; queries.len()];
    let mut workspace = Workspace::default();
    let levels: Vec<Level> = Level::all_supported().into_iter().filter(|&l| l != Level::SCALAR).collect();
    let mut times = vec![Vec::new(); levels.len() + 1];
    let head_bytes = keys.len() / n_head_kv;
    let group = n_head / n_head_kv;
    // As many queries at a time as the runtime takes.
    let n_together = (128 / group).max(1);
    let mut gathered = vec![0.0; n_together * group * dim];
    for run in 0..=options.runs {
        for (i, times) in times.iter_mut().enumerate() {
            let start = thread_seconds();
            match levels.get(i) {
                None => peer.compute(),
                Some(&level) => {
                    for head in 0..n_head_kv {
                        let range = head * head_bytes..(head + 1) * head_bytes;
                        let keys = Cells::new(ty, &keys[range.clone()], dim).expect("whole rows");
                        let values = Cells::new(ty, &values[range], dim).expect("whole rows");
                        for first in (0..batch).step_by(n_together) {
                            let tokens: Vec<_> = (first..(first + n_together).min(batch))
                                .map(|token| Token {
                                    queries: &queries[(token * n_head + head * group) * dim..][..group * dim],
                                    visible: 0..depth + token + 1,
                                })
                                .collect();
                            let out = &mut gathered[..tokens.len() * group * dim];
                            attend_at(level, keys, values, scale, &tokens, &mut workspace, out);
                            for (token, row) in (first..).zip(out.chunks_exact(group * dim)) {
                                ours[(token * n_head + head * group) * dim..][..group * dim]
                                    .copy_from_slice(row);
                            }
                        }
                    }
                }
            }
            // The first run warms up.
            if run > 0 {
                times.push(thread_seconds() - start);
            }
        }
        peer.compare(&ours);
    }
    let bytes = 2.0 * keys.len() as f64;
    let seen: usize = (depth + 1..=n_cells).sum();
    let operations = 4.0 * (seen * n_head * dim) as f64;
    for (i, name) in levels.iter().map(|level| level.name()).chain(["ggml"]).enumerate() {
        let time = Spread::of(times[i].iter().map(|seconds| seconds * 1e3));
        let ratio = Spread::of(times[i].iter().zip(&times[levels.len()]).map(|(ours, theirs)| theirs / ours));
        println!(
            "{:6} {depth:6} {batch:6} {name:12} {time:>24.2} {:>8.2} {:>8.1} {ratio:>20.2}",
            ty.name(),
            bytes / time.median / 1e6,
            operations / time.median / 1e6,
        );
    }
}

/// ggml's attention, on one thread.
fn peer(
    options: &Options,
    ty: TensorType,
    batch: usize,
    cells: [&[u8]; 2],
    queries: &[f32],
    scale: f32,
) -> Peer {
    let &Options { n_head, n_head_kv, dim, .. } = options;
    let ty = Type::from_id(ty.id()).expect("a type of ggml's");
    let n_cells = cells[0].len() / n_head_kv / ty.row_bytes(dim);
    let context = Context::new(2);
    let tensors = ["k", "v"].map(|name| context.tensor(name, ty, &[dim, n_cells, n_head_kv]));
    Buffer::allocate(BufferType::cpu(), &tensors, "cells").expect("memory").clear(0);
    for (tensor, bytes) in tensors.iter().zip(cells) {
        tensor.write(0, bytes);
    }
    let graph = Graph::new(16);
    let q = graph.input("q", Type::F32, &[dim, n_head, batch]);
    let mask = graph.input("mask", Type::F16, &[n_cells, batch]);
    let by_head = graph.permute(&q, [0, 2, 1, 3]);
    let result = graph.flash_attention(&by_head, &tensors[0], &tensors[1], &mask, scale);
    let peer = Peer::new(graph, result);
    q.write_values(queries);
    let hidden: Vec<u16> = (0..batch)
        .flat_map(|token| {
            (0..n_cells).map(move |cell| if cell <= n_cells - batch + token { 0 } else { 0xfc00 })
        })
        .collect();
    mask.write_values(&hidden);
    peer
}

/// Numbers between -1 and 1, always the same.
fn numbers(seed: u32, n: usize) -> impl Iterator<Item = f32> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64 ^ u64::from(seed) << 32;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as i32 as f32 / 2_147_483_648.0
    })
    .take(n)
}
