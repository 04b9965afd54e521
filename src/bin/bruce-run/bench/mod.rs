//! `bruce-run bench`: tokens per second, measured and reported as llama-bench does.

mod calendar;
mod limits;
mod measure;
mod report;
mod stats;
mod streaming;
mod tokens;

use crate::cli::context::{Switch, switch_parser};
use crate::cli::model::{Overrides, gpu_layers, kernels_parser, tensor_overrides};
use crate::cli::values::{cache_type, int_list, int_pair, size};
use crate::print;
use bruce::exit::{UsageError, with_hint};
use measure::Bench;
use quants::TensorType;
use report::{Columns, Format, Report};
use runtime::Kernels;
use runtime::residency::GpuLayers;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  bruce-run bench model.gguf
      512 tokens of prompt, then 128 single tokens, each five times
  bruce-run bench model.gguf -p 128,512 -n 0 -t 1-8*2 -o csv
      two prompt sizes at 1, 2, 4 and 8 threads
  bruce-run bench a.gguf b.gguf -pg 512,128 -r 10 -o json
  bruce-run bench model.gguf --vram 4G,6G,8G --kernels bruce
      each budget, with the speed that the plan for it expects
  bruce-run bench model.gguf --ram 8G -p 0 -f text.txt -o json
      experts that are read from the file: hits, bytes, the disk, and what a plan with these figures expects
  bruce-run bench model.gguf --kernels bruce,ggml
      both in turns, with what each reaches of the machine's limits";

/// Flags of `bruce-run bench`. Those with a list take commas, ranges (1-8, 1-8+2, 1-8*2) and repetition.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// GGUF files
    #[arg(value_name = "MODEL")]
    model_files: Vec<PathBuf>,

    /// GGUF files, as llama-bench takes them
    #[arg(short = 'm', long = "model", value_name = "MODEL", value_delimiter = ',')]
    models: Vec<PathBuf>,

    /// Sizes of prompts; 0: no such test [default: 512]
    #[arg(short = 'p', long, value_name = "LIST", value_parser = int_list)]
    n_prompt: Vec<IntList>,

    /// Numbers of single tokens; 0: no such test [default: 128]
    #[arg(short = 'n', long, value_name = "LIST", value_parser = int_list)]
    n_gen: Vec<IntList>,

    /// A prompt and then single tokens, together [-pg]
    #[arg(long, value_name = "PP,TG", value_parser = int_pair)]
    pg: Vec<(u32, u32)>,

    /// Tokens that are in the context already [default: 0]
    #[arg(short = 'd', long, value_name = "LIST", value_parser = int_list)]
    n_depth: Vec<IntList>,

    /// Tokens given to the model at once; those of a prompt share what is read from the file [default: 2048]
    #[arg(short = 'b', long, value_name = "LIST", value_parser = int_list)]
    batch_size: Vec<IntList>,

    /// Tokens computed at once [-ub, default: 512]
    #[arg(long, alias = "ub", value_name = "LIST", value_parser = int_list)]
    ubatch_size: Vec<IntList>,

    /// Threads [default: one per core]
    #[arg(short = 't', long, value_name = "LIST", value_parser = int_list)]
    threads: Vec<IntList>,

    /// Types of the cached keys [-ctk, default: f16]
    #[arg(long, alias = "ctk", value_name = "TYPES", value_delimiter = ',', value_parser = cache_type)]
    cache_type_k: Vec<TensorType>,

    /// Types of the cached values [-ctv, default: f16]
    #[arg(long, alias = "ctv", value_name = "TYPES", value_delimiter = ',', value_parser = cache_type)]
    cache_type_v: Vec<TensorType>,

    /// Flash attention: on, off, auto [-fa, default: auto]
    #[arg(long, alias = "fa", value_name = "LIST", value_delimiter = ',', value_parser = switch_parser())]
    flash_attn: Vec<Switch>,

    /// Layers on GPUs: numbers, auto, all [-ngl, default: auto]
    #[arg(long, aliases = ["ngl", "gpu-layers"], value_name = "LIST", value_delimiter = ',', value_parser = gpu_layers)]
    n_gpu_layers: Vec<GpuLayers>,

    /// Layers whose experts stay on the CPU [-ncmoe, default: 0]
    #[arg(long, alias = "ncmoe", value_name = "LIST", value_parser = int_list)]
    n_cpu_moe: Vec<IntList>,

    /// Experts of each layer that have copies on GPUs, while the CPU keeps all and computes the others
    #[arg(long, value_name = "LIST", value_parser = int_list)]
    expert_slots: Vec<IntList>,

    /// Leave the experts that are on GPUs there, whichever are asked for
    #[arg(long)]
    fixed_experts: bool,

    /// Put tensors whose name matches into a buffer [-ot]
    #[arg(long, alias = "ot", value_name = "REGEX=BUFFER", value_parser = tensor_overrides)]
    override_tensor: Vec<Overrides>,

    /// GPUs to use, by name, or none [-dev]
    #[arg(long, alias = "dev", value_name = "NAME[,NAME]", value_delimiter = ',')]
    device: Vec<String>,

    /// Memory of the GPUs that may be used, such as 4G,6G,8G: each is planned for and measured [default: what is free]
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = size)]
    vram: Vec<u64>,

    /// Memory of the host that may be used; each is planned for and measured [default: what is free]
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = size)]
    ram: Vec<u64>,

    /// How often experts are taken, from `bruce-run trace -o FILE`: budgets are planned with it
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,

    /// Map the file (1) or copy it into memory (0) [-mmp, default: 1]
    #[arg(long, alias = "mmp", value_name = "0|1", value_delimiter = ',', value_parser = clap::builder::BoolishValueParser::new())]
    mmap: Vec<bool>,

    /// Keep weights in a layout that the CPU multiplies faster: 0, 1, auto [default: auto]
    #[arg(long, alias = "rpk", value_name = "LIST", value_delimiter = ',', value_parser = switch_parser())]
    repack: Vec<Switch>,

    /// Whose code multiplies on the CPU: bruce, ggml; both are measured in turns [default: bruce]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = kernels_parser())]
    kernels: Vec<Kernels>,

    /// Keep no more than so much of the experts that are not on GPUs in memory and read the others when tokens take them;
    /// what was read is told on stderr
    #[arg(long, value_name = "SIZE", value_parser = crate::cli::values::size)]
    expert_pool: Option<u64>,

    /// Compute the tokens of this text instead of random ones, for tests in which it matters which experts are taken
    #[arg(short = 'f', long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Who reads experts: auto, threads, threads:N, io_uring:N
    #[arg(long, hide = true, value_name = "WHO", env = "BRUCE_EXPERT_READERS", default_value = "auto", value_parser = crate::cli::values::readers)]
    expert_readers: runtime::StreamReaders,

    /// How many experts each token takes, instead of what the file says
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    experts: Option<u32>,

    /// How often each test is run
    #[arg(short = 'r', long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    repetitions: u32,

    /// How the results are written
    #[arg(short = 'o', long, value_enum, value_name = "FORMAT", default_value_t = Format::Md)]
    output: Format,

    /// Seconds of rest before each test
    #[arg(long, value_name = "N", default_value_t = 0)]
    delay: u64,

    /// Skip the run that is not counted
    #[arg(long)]
    no_warmup: bool,

    /// Say on stderr what is being measured
    #[arg(long)]
    progress: bool,
}

/// One list as typed.
type IntList = Vec<u32>;

/// One line of the result.
#[derive(Clone, Debug, PartialEq)]
pub struct Test {
    model: PathBuf,
    n_prompt: u32,
    n_gen: u32,
    n_depth: u32,
    n_batch: u32,
    n_ubatch: u32,
    n_threads: u32,
    type_k: TensorType,
    type_v: TensorType,
    flash_attention: Switch,
    load: Load,
}

/// What a loaded model depends on besides its file.
#[derive(Clone, Debug, PartialEq)]
struct Load {
    n_gpu_layers: GpuLayers,
    n_cpu_moe: u32,
    expert_slots: Option<u32>,
    use_mmap: bool,
    repack: Switch,
    vram: Option<u64>,
    ram: Option<u64>,
    /// Those named; else as the model has them, which depends on whether it is streamed.
    kernels: Option<Kernels>,
}

/// Runs every test and prints the results as they come.
///
/// # Errors
/// Where a model can't be loaded or run, or stdout can't be written.
pub fn run(args: &Args) -> Result<(), anyhow::Error> {
    let tests = tests(args)?;
    ggml::load_backends()?;
    let columns = Columns { limits: !args.kernels.is_empty(), pool: args.expert_pool.is_some() };
    let mut report = Report::new(args.output, &tests, columns);
    let measured = print_rows(args, &tests, &mut report);
    // What was measured before an error is a whole table too.
    if measured.is_ok() || report.has_rows() {
        print(&report.end())?;
    }
    measured
}

/// Measures every test and prints its row.
fn print_rows(args: &Args, tests: &[Test], report: &mut Report) -> Result<(), anyhow::Error> {
    let mut bench = Bench::new(args)?;
    for (i, tests) in tests.chunk_by(Test::differ_in_kernels_only).enumerate() {
        if args.progress {
            bruce::say!("bench {}: {}", i + 1, tests[0].name());
        }
        for (test, outcome) in tests.iter().zip(bench.measure(tests)?) {
            print(&report.row(test, &outcome))?;
        }
    }
    Ok(())
}

impl Test {
    /// Whether two tests are one with other kernels.
    fn differ_in_kernels_only(&self, other: &Test) -> bool {
        let alike = Load { kernels: self.load.kernels, ..other.load.clone() };
        self.load.kernels != other.load.kernels && *self == Test { load: alike, ..other.clone() }
    }

    /// As llama-bench names it: `pp512`, `tg128`, `pp512+tg128 @ d4096`.
    fn name(&self) -> String {
        let mut name = match (self.n_prompt, self.n_gen) {
            (p, 0) => format!("pp{p}"),
            (0, g) => format!("tg{g}"),
            (p, g) => format!("pp{p}+tg{g}"),
        };
        if self.n_depth > 0 {
            name += &format!(" @ d{}", self.n_depth);
        }
        name
    }
}

/// Every combination, in an order that loads each model as seldom as possible.
fn tests(args: &Args) -> Result<Vec<Test>, anyhow::Error> {
    let models: Vec<&PathBuf> = args.model_files.iter().chain(&args.models).collect();
    if models.is_empty() {
        let usage = UsageError("no model is named".to_owned());
        return Err(with_hint(usage, "bruce-run bench MODEL.gguf; bruce-run bench --help shows examples"));
    }
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let lists = [
        or_default(args.n_prompt.concat(), 512),
        or_default(args.n_gen.concat(), 128),
        or_default(args.n_depth.concat(), 0),
        or_default(args.batch_size.concat(), 2048),
        or_default(args.ubatch_size.concat(), 512),
        or_default(args.threads.concat(), cores),
        or_default(args.n_cpu_moe.concat(), 0),
    ];
    let [n_prompt, n_gen, n_depth, n_batch, n_ubatch, n_threads, n_cpu_moe] = lists;
    for (flag, list) in [("-b", &n_batch), ("-ub", &n_ubatch), ("-t", &n_threads)] {
        if list.contains(&0) {
            return Err(UsageError(format!("{flag}: found 0, expected 1 or more")).into());
        }
    }
    let pairs: Vec<(u32, u32)> = (n_prompt.iter().map(|p| (*p, 0)))
        .chain(n_gen.iter().map(|g| (0, *g)))
        .chain(args.pg.iter().copied())
        .filter(|pair| *pair != (0, 0))
        .collect();
    if pairs.is_empty() {
        let usage = UsageError("-p, -n: found 0 tokens of both, expected something to measure".to_owned());
        return Err(with_hint(usage, "-p 0 leaves prompts out, -n 0 decoding"));
    }
    let type_k = or_default(args.cache_type_k.clone(), TensorType::F16);
    let type_v = or_default(args.cache_type_v.clone(), TensorType::F16);
    let flash_attn = or_default(args.flash_attn.clone(), Switch::Auto);

    let mut tests = Vec::new();
    for model in models {
        for load in loads(args, &n_cpu_moe) {
            let all = product(&n_batch, &n_ubatch);
            for ((n_batch, n_ubatch), (type_k, type_v)) in product(&all, &product(&type_k, &type_v)) {
                for (flash_attention, n_threads) in product(&flash_attn, &n_threads) {
                    for (n_depth, (n_prompt, n_gen)) in product(&n_depth, &pairs) {
                        for kernels in or_default(args.kernels.iter().copied().map(Some).collect(), None) {
                            let (model, load) = (model.clone(), Load { kernels, ..load.clone() });
                            tests.push(Test {
                                model,
                                n_prompt,
                                n_gen,
                                n_depth,
                                n_batch,
                                n_ubatch,
                                n_threads,
                                type_k,
                                type_v,
                                flash_attention,
                                load,
                            });
                        }
                    }
                }
            }
        }
    }
    Ok(tests)
}

/// Every way of loading a model.
fn loads(args: &Args, n_cpu_moe: &[u32]) -> Vec<Load> {
    let expert_slots = or_default(args.expert_slots.concat().into_iter().map(Some).collect(), None);
    let mut loads = Vec::new();
    for n_gpu_layers in or_default(args.n_gpu_layers.clone(), GpuLayers::Auto) {
        for (n_cpu_moe, expert_slots) in product(n_cpu_moe, &expert_slots) {
            for use_mmap in or_default(args.mmap.clone(), true) {
                for repack in or_default(args.repack.clone(), Switch::Auto) {
                    for (vram, ram) in product(&budgets(&args.vram), &budgets(&args.ram)) {
                        // The kernels come last: those of one test are measured in turns.
                        let kernels = None;
                        loads.push(Load {
                            n_gpu_layers,
                            n_cpu_moe,
                            expert_slots,
                            use_mmap,
                            repack,
                            vram,
                            ram,
                            kernels,
                        });
                    }
                }
            }
        }
    }
    loads
}

fn or_default<T>(list: Vec<T>, default: T) -> Vec<T> {
    if list.is_empty() { vec![default] } else { list }
}

/// Each budget; one test without where none is given.
fn budgets(list: &[u64]) -> Vec<Option<u64>> {
    or_default(list.iter().copied().map(Some).collect(), None)
}

fn product<A: Copy, B: Copy>(a: &[A], b: &[B]) -> Vec<(A, B)> {
    a.iter().flat_map(|a| b.iter().map(move |b| (*a, *b))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn names(line: &[&str]) -> Vec<String> {
        let line = std::iter::once("bench").chain(line.iter().copied());
        let args = Line::try_parse_from(line).expect("a command line").args;
        super::tests(&args).expect("tests").iter().map(Test::name).collect()
    }

    #[test]
    fn the_default_is_llama_benchs() {
        assert_eq!(names(&["m.gguf"]), ["pp512", "tg128"]);
    }

    #[test]
    fn lists_multiply() {
        assert_eq!(names(&["m", "-p", "1,2", "-n", "0", "-t", "1,2"]), ["pp1", "pp2", "pp1", "pp2"]);
        assert_eq!(
            names(&["m", "-n", "8", "-p", "0", "--pg", "4,2", "-d", "0,9"]),
            ["tg8", "pp4+tg2", "tg8 @ d9", "pp4+tg2 @ d9"]
        );
        assert_eq!(names(&["a", "b", "-p", "1", "-n", "0"]).len(), 2);
    }

    #[test]
    fn nothing_to_run_on_or_with_is_refused() {
        for line in [&["x"][..], &["x", "m", "-t", "0"]] {
            let args = Line::try_parse_from(line).expect("a command line").args;
            assert!(super::tests(&args).is_err());
        }
    }
}
