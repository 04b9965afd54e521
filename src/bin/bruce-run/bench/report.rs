//! Results in llama-bench's formats, with its columns and fields.

use super::calendar::utc;
use super::limits::{Reached, reached};
use super::measure::Outcome;
use super::stats::{deviation, mean, median};
use super::streaming::Streamed;
use super::{Switch, Test};
use clap::ValueEnum;
use quants::TensorType;
use runtime::Kernels;
use runtime::residency::GpuLayers;
use runtime::slots::SlotStatistics;
use serde_json::{Map, Value, json};

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A Markdown table
    Md,
    /// A list of objects
    Json,
    /// An object a line
    Jsonl,
    /// Comma-separated values
    Csv,
    /// Statements that make and fill a table
    Sql,
}

/// Writes rows in one format. Every method gives text for stdout.
pub struct Report {
    format: Format,
    columns: Vec<Column>,
    n_rows: usize,
}

/// Which columns a table has besides those that its tests ask for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Columns {
    /// What was reached of the machine's limits.
    pub limits: bool,
    /// What a pool of experts did, whatever the budgets.
    pub pool: bool,
}

/// A column of the Markdown table: heading, least width (negative: to the left), and what it shows.
struct Column(&'static str, i32, fn(&Test, &Outcome) -> String);

impl Report {
    /// A report on these tests: columns that never differ from the default are left out of a table.
    pub fn new(format: Format, tests: &[Test], besides: Columns) -> Self {
        Report { format, columns: columns(tests, besides), n_rows: 0 }
    }

    /// What comes before the first row.
    fn head(&self) -> String {
        match self.format {
            Format::Md => {
                let heads: String = self.columns.iter().map(|c| cell(c.0, c.1)).collect();
                let rule = |c: &Column| {
                    let line = "-".repeat(c.1.unsigned_abs() as usize - 1);
                    if c.1 > 0 { format!(" {line}: |") } else { format!(" {line}- |") }
                };
                let rules: String = self.columns.iter().map(rule).collect();
                format!("|{heads}\n|{rules}\n")
            }
            Format::Json => "[\n".to_owned(),
            Format::Csv => format!("{}\n", field_names().join(",")),
            Format::Sql => {
                let fields: Vec<String> =
                    FIELDS.iter().map(|(name, kind)| format!("  {name} {}", kind.sql())).collect();
                format!("CREATE TABLE IF NOT EXISTS llama_bench (\n{}\n);\n\n", fields.join(",\n"))
            }
            Format::Jsonl => String::new(),
        }
    }

    /// Whether there are results.
    pub fn has_rows(&self) -> bool {
        self.n_rows > 0
    }

    /// One result. The head comes with the first, so that a model that can't be loaded leaves none behind.
    pub fn row(&mut self, test: &Test, outcome: &Outcome) -> String {
        let head = if self.has_rows() { String::new() } else { self.head() };
        let row = self.text_of(test, outcome);
        self.n_rows += 1;
        head + &row
    }

    fn text_of(&self, test: &Test, outcome: &Outcome) -> String {
        match self.format {
            Format::Md => {
                let cells: String = self.columns.iter().map(|c| cell(&(c.2)(test, outcome), c.1)).collect();
                format!("|{cells}\n")
            }
            Format::Json => {
                let object = serde_json::to_string_pretty(&object(test, outcome)).unwrap_or_default();
                let comma = if self.has_rows() { ",\n" } else { "" };
                format!("{comma}{object}")
            }
            Format::Jsonl => format!("{}\n", object(test, outcome)),
            Format::Csv => {
                let quoted = |text: String| format!("\"{}\"", text.replace('"', "\"\""));
                let values: Vec<String> = texts(test, outcome).into_iter().map(quoted).collect();
                format!("{}\n", values.join(","))
            }
            Format::Sql => {
                let quoted = |text: String| format!("'{}'", text.replace('\'', "''"));
                let values: Vec<String> = texts(test, outcome).into_iter().map(quoted).collect();
                let names = field_names().join(", ");
                format!("INSERT INTO llama_bench ({names}) VALUES ({});\n", values.join(", "))
            }
        }
    }

    /// What comes behind the last row; with the head where there was none.
    pub fn end(&self) -> String {
        let head = if self.has_rows() { String::new() } else { self.head() };
        let foot = match self.format {
            Format::Md => {
                let level = quants::matmul::Level::current().name();
                format!("\nbuild: {}, kernel level: {level}\n", env!("BRUCE_VERSION"))
            }
            Format::Json => "\n]\n".to_owned(),
            _ => String::new(),
        };
        head + &foot
    }
}

fn cell(text: &str, width: i32) -> String {
    let w = width.unsigned_abs() as usize;
    if width < 0 { format!(" {text:<w$} |") } else { format!(" {text:>w$} |") }
}

/// The columns that say something: those of every table, and those whose values differ or are not the default.
fn columns(tests: &[Test], besides: Columns) -> Vec<Column> {
    let columns = asked(tests, besides).into_iter().chain(found(tests, besides));
    columns.filter_map(|(is_wanted, column)| is_wanted.then_some(column)).collect()
}

/// The columns of what was asked for, and whether they say something.
fn asked(tests: &[Test], besides: Columns) -> Vec<(bool, Column)> {
    let any = |differs: fn(&Test) -> bool| tests.iter().any(differs);
    vec![
        (true, Column("model", -30, |_, o| o.model.description())),
        (true, Column("size", 10, |_, o| binary_size(o.model.size_bytes()))),
        (true, Column("params", 10, |_, o| count(o.model.n_params()))),
        (true, Column("backend", -10, |_, _| backends())),
        (backends() != "CPU", Column("ngl", 3, |t, _| layers(t.load.n_gpu_layers).to_string())),
        (any(|t| t.load.n_cpu_moe != 0), Column("n_cpu_moe", 10, |t, _| t.load.n_cpu_moe.to_string())),
        (any(|t| t.load.vram.is_some()), Column("vram", 8, |t, _| budget(t.load.vram))),
        (any(|t| t.load.ram.is_some()), Column("ram", 8, |t, _| budget(t.load.ram))),
        (
            any(|t| t.load.expert_slots.is_some()),
            Column("slots", 5, |t, _| or_dash(t.load.expert_slots, |n| n.to_string())),
        ),
        (true, Column("threads", 7, |t, _| t.n_threads.to_string())),
        (any(|t| t.n_batch != 2048), Column("n_batch", 7, |t, _| t.n_batch.to_string())),
        (any(|t| t.n_ubatch != 512), Column("n_ubatch", 8, |t, _| t.n_ubatch.to_string())),
        (any(|t| t.type_k != TensorType::F16), Column("type_k", 6, |t, _| lower(t.type_k))),
        (any(|t| t.type_v != TensorType::F16), Column("type_v", 6, |t, _| lower(t.type_v))),
        (
            any(|t| t.flash_attention != Switch::Auto),
            Column("fa", 3, |t, _| switch_number(t.flash_attention).to_string()),
        ),
        (any(|t| !t.load.use_mmap), Column("lm", 10, |t, _| load_mode(t).to_owned())),
        (
            any(|t| t.load.repack != Switch::Auto),
            Column("rpk", 3, |t, _| switch_number(t.load.repack).to_string()),
        ),
        (besides.limits, Column("kernels", 7, |_, o| kernels(o).to_owned())),
        (true, Column("test", 15, |t, _| t.name())),
    ]
}

/// The columns of what was found, and whether they say something.
fn found(tests: &[Test], besides: Columns) -> Vec<(bool, Column)> {
    let any = |asks: fn(&Test) -> bool| tests.iter().any(asks);
    let is_streamed = besides.pool || any(|t| t.load.ram.is_some());
    let is_planned = is_streamed || any(|t| t.load.vram.is_some());
    let has_slots = any(|t| t.load.expert_slots.is_some());
    vec![
        (true, Column("t/s", 20, |_, o| with_deviation(&o.samples.rates()))),
        (is_planned, Column("expected tg t/s", 15, |_, o| speed(o.expected))),
        (is_streamed, Column("with disk", 9, |_, o| of_stream(o, |s| speed(s.expected_with_disk)))),
        (is_streamed, Column("and hits", 8, |_, o| of_stream(o, |s| speed(s.expected_with_both)))),
        (
            is_streamed,
            Column("in memory", 9, |_, o| of_stream(o, |s| format!("{:.1} %", 100.0 * s.hit_rate))),
        ),
        (
            is_streamed,
            Column("of disk's", 9, |_, o| of_stream(o, |s| format!("{:.0} %", 100.0 * s.of_limit))),
        ),
        (has_slots, Column("hits", 7, |_, o| of_slots(o, |s| format!("{:.1} %", 100.0 * s.hit_rate())))),
        (has_slots, Column("moved", 5, |_, o| of_slots(o, |s| s.promotions.to_string()))),
        (besides.limits, Column("median t/s", 10, |_, o| format!("{:.2}", median(&o.samples.rates())))),
        (besides.limits, Column("GOP/s", 8, |t, o| format!("{:.1}", reached(t, o).gop_per_s))),
        (besides.limits, Column("MB/token", 8, |t, o| format!("{:.1}", reached(t, o).bytes_per_token / 1e6))),
        (
            besides.limits,
            Column("GB/s", 6, |t, o| or_dash(reached(t, o).gb_per_s, |rate| format!("{rate:.2}"))),
        ),
        (besides.limits, Column("of memory's", 14, |t, o| of_memory(&reached(t, o)))),
    ]
}

/// Mean and standard deviation.
fn with_deviation(rates: &[f64]) -> String {
    format!("{:.2} ± {:.2}", mean(rates), deviation(rates))
}

/// The memory's rate, and what share of it was reached.
fn of_memory(reached: &Reached) -> String {
    let limit = reached.limit_gb_per_s;
    format!("{limit:.2} {}", or_dash(reached.gb_per_s, |rate| format!("{:.0} %", 100.0 * rate / limit)))
}

/// What `show` makes of a value, or a dash without one.
fn or_dash<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or("-".to_owned(), show)
}

fn speed(tokens_per_second: Option<f64>) -> String {
    or_dash(tokens_per_second, |speed| format!("{speed:.2}"))
}

fn of_stream(outcome: &Outcome, show: fn(&Streamed) -> String) -> String {
    or_dash(outcome.streamed.as_ref(), show)
}

fn of_slots(outcome: &Outcome, show: fn(&SlotStatistics) -> String) -> String {
    or_dash(outcome.slots.as_ref(), show)
}

/// What a field holds, as far as the formats care.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Int,
    Float,
    Bool,
}

impl Kind {
    fn sql(self) -> &'static str {
        match self {
            Kind::Text => "TEXT",
            Kind::Int | Kind::Bool => "INTEGER",
            Kind::Float => "REAL",
        }
    }
}

/// llama-bench's fields, in its order, and ours behind them, so that its scripts read our results.
const FIELDS: &[(&str, Kind)] = &[
    ("build_commit", Kind::Text),
    ("build_number", Kind::Int),
    ("cpu_info", Kind::Text),
    ("gpu_info", Kind::Text),
    ("backends", Kind::Text),
    ("model_filename", Kind::Text),
    ("model_type", Kind::Text),
    ("model_size", Kind::Int),
    ("model_n_params", Kind::Int),
    ("n_batch", Kind::Int),
    ("n_ubatch", Kind::Int),
    ("n_threads", Kind::Int),
    ("cpu_mask", Kind::Text),
    ("cpu_strict", Kind::Bool),
    ("poll", Kind::Int),
    ("type_k", Kind::Text),
    ("type_v", Kind::Text),
    ("n_gpu_layers", Kind::Int),
    ("n_cpu_moe", Kind::Int),
    ("split_mode", Kind::Text),
    ("main_gpu", Kind::Int),
    ("no_kv_offload", Kind::Bool),
    ("flash_attn", Kind::Int),
    ("load_mode", Kind::Text),
    ("embeddings", Kind::Bool),
    ("no_op_offload", Kind::Int),
    ("no_host", Kind::Bool),
    ("repack", Kind::Int),
    ("n_prompt", Kind::Int),
    ("n_gen", Kind::Int),
    ("n_depth", Kind::Int),
    ("test_time", Kind::Text),
    ("avg_ns", Kind::Int),
    ("stddev_ns", Kind::Int),
    ("avg_ts", Kind::Float),
    ("stddev_ts", Kind::Float),
    // Ours.
    ("kernels", Kind::Text),
    ("expert_slots", Kind::Int),
    ("expert_hits", Kind::Int),
    ("expert_misses", Kind::Int),
    ("experts_moved", Kind::Int),
    ("expert_bytes_uploaded", Kind::Int),
];

fn field_names() -> Vec<&'static str> {
    FIELDS.iter().map(|(name, _)| *name).collect()
}

fn value(field: &str, test: &Test, outcome: &Outcome) -> Value {
    let times: Vec<f64> = outcome.samples.nanoseconds().into_iter().map(|ns| ns as f64).collect();
    let rates = outcome.samples.rates();
    let slots = outcome.slots.unwrap_or_default();
    match field {
        "build_commit" => json!(env!("BRUCE_VERSION")),
        "cpu_info" => json!(devices(|kind| kind == ggml::DeviceKind::Cpu)),
        "gpu_info" => json!(devices(|kind| kind != ggml::DeviceKind::Cpu)),
        "backends" => json!(backends()),
        "model_filename" => json!(test.model.display().to_string()),
        "model_type" => json!(outcome.model.description()),
        "model_size" => json!(outcome.model.size_bytes()),
        "model_n_params" => json!(outcome.model.n_params()),
        "n_batch" => json!(test.n_batch),
        "n_ubatch" => json!(test.n_ubatch),
        "n_threads" => json!(test.n_threads),
        "type_k" => json!(lower(test.type_k)),
        "type_v" => json!(lower(test.type_v)),
        "n_gpu_layers" => json!(layers(test.load.n_gpu_layers)),
        "n_cpu_moe" => json!(test.load.n_cpu_moe),
        "flash_attn" => json!(switch_number(test.flash_attention)),
        "repack" => json!(switch_number(test.load.repack)),
        "load_mode" => json!(load_mode(test)),
        "kernels" => json!(kernels(outcome)),
        "expert_slots" => json!(test.load.expert_slots.unwrap_or(0)),
        "expert_hits" => json!(slots.hits),
        "expert_misses" => json!(slots.misses),
        "experts_moved" => json!(slots.promotions),
        "expert_bytes_uploaded" => json!(slots.uploaded_bytes),
        "n_prompt" => json!(test.n_prompt),
        "n_gen" => json!(test.n_gen),
        "n_depth" => json!(test.n_depth),
        "test_time" => json!(now()),
        "avg_ns" => json!(mean(&times) as u64),
        "stddev_ns" => json!(deviation(&times) as u64),
        "avg_ts" => json!(mean(&rates)),
        "stddev_ts" => json!(deviation(&rates)),
        // What llama-bench can vary and this program can't, at llama-bench's default.
        "cpu_mask" => json!("0x0"),
        "poll" => json!(50),
        "split_mode" => json!("layer"),
        "build_number" | "main_gpu" | "no_op_offload" => json!(0),
        _ => json!(false),
    }
}

fn object(test: &Test, outcome: &Outcome) -> Value {
    let mut object: Map<String, Value> =
        FIELDS.iter().map(|(name, _)| ((*name).to_owned(), value(name, test, outcome))).collect();
    object.insert("samples_ns".to_owned(), json!(outcome.samples.nanoseconds()));
    object.insert("samples_ts".to_owned(), json!(outcome.samples.rates()));
    if let Some(expected) = outcome.expected {
        object.insert("vram_budget_bytes".to_owned(), json!(test.load.vram));
        object.insert("ram_budget_bytes".to_owned(), json!(test.load.ram));
        object.insert("expected_ts".to_owned(), json!(expected));
    }
    if let Some(streamed) = &outcome.streamed {
        object.insert("expected_with_disk_ts".to_owned(), json!(streamed.expected_with_disk));
        object.insert("expected_with_disk_and_hits_ts".to_owned(), json!(streamed.expected_with_both));
        object.insert("streamed_hit_rate".to_owned(), json!(streamed.hit_rate));
        object.insert("streamed_bytes_per_token".to_owned(), json!(streamed.bytes_per_token));
        object.insert("streamed_bytes_per_second".to_owned(), json!(streamed.read_rate));
        object.insert("streamed_of_disk_limit".to_owned(), json!(streamed.of_limit));
        object.insert("disk_bytes_per_second".to_owned(), json!(streamed.disk_rate));
    }
    if outcome.read_rate > 0.0 {
        let reached = reached(test, outcome);
        object.insert("bytes_per_token".to_owned(), json!(reached.bytes_per_token));
        object.insert("gb_per_s".to_owned(), json!(reached.gb_per_s));
        object.insert("gop_per_s".to_owned(), json!(reached.gop_per_s));
        object.insert("read_limit_gb_per_s".to_owned(), json!(reached.limit_gb_per_s));
    }
    Value::Object(object)
}

/// Every field as text without quotes; booleans as 0 and 1.
fn texts(test: &Test, outcome: &Outcome) -> Vec<String> {
    let text = |value: Value| match value {
        Value::String(text) => text,
        Value::Bool(on) => u8::from(on).to_string(),
        other => other.to_string(),
    };
    FIELDS.iter().map(|(name, _)| text(value(name, test, outcome))).collect()
}

fn now() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    utc(now.as_secs())
}

fn devices(wanted: fn(ggml::DeviceKind) -> bool) -> String {
    let all = ggml::devices().into_iter().filter(|device| wanted(device.kind()));
    all.map(|device| device.description()).collect::<Vec<_>>().join(", ")
}

/// Backends other than the CPU's, or `CPU` where there is none.
fn backends() -> String {
    let mut names: Vec<String> = ggml::devices()
        .into_iter()
        .filter(|device| device.kind() != ggml::DeviceKind::Cpu)
        .map(|device| device.name().trim_end_matches(|c: char| c.is_ascii_digit()).to_owned())
        .collect();
    names.dedup();
    if names.is_empty() { "CPU".to_owned() } else { names.join(",") }
}

fn budget(bytes: Option<u64>) -> String {
    or_dash(bytes, bruce::size::bytes)
}

fn lower(ty: TensorType) -> String {
    ty.name().to_ascii_lowercase()
}

/// As llama.cpp numbers them: -1 automatic, -2 all.
fn layers(n: GpuLayers) -> i64 {
    match n {
        GpuLayers::Auto => -1,
        GpuLayers::All => -2,
        GpuLayers::Count(n) => i64::from(n),
    }
}

fn switch_number(switch: Switch) -> i32 {
    match switch {
        Switch::Auto => -1,
        Switch::Off => 0,
        Switch::On => 1,
    }
}

fn kernels(outcome: &Outcome) -> &'static str {
    match outcome.model.kernels() {
        Kernels::Bruce => "bruce",
        Kernels::Ggml => "ggml",
    }
}

fn load_mode(test: &Test) -> &'static str {
    if test.load.use_mmap { "mmap" } else { "none" }
}

/// Binary units, as llama-bench shows a model's size.
fn binary_size(bytes: u64) -> String {
    let mib = bytes as f64 / 1024.0 / 1024.0;
    if mib < 1024.0 { format!("{mib:.2} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}

fn count(n: u64) -> String {
    if n < 1_000_000_000 { format!("{:.2} M", n as f64 / 1e6) } else { format!("{:.2} B", n as f64 / 1e9) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_llama_benchs() {
        assert_eq!(binary_size(354_600_000), "338.17 MiB");
        assert_eq!(binary_size(14_600_000_000), "13.60 GiB");
        assert_eq!(count(551_000_000), "551.00 M");
        assert_eq!(count(24_150_000_000), "24.15 B");
    }

    #[test]
    fn cells_are_aligned() {
        assert_eq!(cell("ab", 5), "    ab |");
        assert_eq!(cell("ab", -5), " ab    |");
        assert_eq!(cell("long", 2), " long |");
    }

    #[test]
    fn a_table_has_a_rule_that_shows_the_sides() {
        let header = Report::new(Format::Md, &[], Columns::default()).head();
        let lines: Vec<&str> = header.lines().collect();
        assert!(
            lines[0].starts_with("| model                          |       size |     params | backend    |")
        );
        assert!(
            lines[1].starts_with("| ------------------------------ | ---------: | ---------: | ---------- |")
        );
        assert!(lines[1].ends_with("| -------------------: |"), "{}", lines[1]);
    }

    #[test]
    fn a_table_in_sql_names_every_field_once() {
        let header = Report::new(Format::Sql, &[], Columns::default()).head();
        assert_eq!(header.matches("\n  ").count(), FIELDS.len());
        assert!(header.contains("  avg_ts REAL,\n  stddev_ts REAL,\n  kernels TEXT,\n"));
        let last = FIELDS.last().expect("fields").0;
        let end = header.rsplit_once("\n  ").expect("lines of fields").1;
        assert!(end.starts_with(&format!("{last} ")) && end.trim_end().ends_with("\n);"), "{end}");
    }
}
