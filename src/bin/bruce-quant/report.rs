//! What is printed: the plan of a dry run, the summary of a real one.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use bruce::size;
use bruce::terminal::neutral_line;
use convert::{OutputPlan, Plan, Summary};

use crate::output::Room;

/// Every tensor of every output with its type, shape, bytes and source, the totals, and the room on the disk.
pub fn plan(plan: &Plan, paths: &[PathBuf], rooms: &[Room]) -> String {
    let mut text = String::new();
    for (output, path) in plan.outputs.iter().zip(paths) {
        let _ = writeln!(text, "{}", shown(path));
        let rows: Vec<[String; 4]> = output
            .tensors
            .iter()
            .map(|t| {
                let shape: Vec<String> = t.ne.iter().map(u64::to_string).collect();
                [t.name.clone(), t.ty.name().to_owned(), shape.join(" x "), t.size_bytes.to_string()]
            })
            .collect();
        let width = |i: usize| rows.iter().map(|row| row[i].len()).max().unwrap_or(0);
        let (name, ty, shape, bytes) = (width(0), width(1), width(2), width(3));
        for (row, tensor) in rows.iter().zip(&output.tensors) {
            let source = neutral_line(&sources(&tensor.sources));
            let [n, t, s, b] = row;
            let _ = writeln!(text, "  {n:name$}  {t:ty$}  {s:shape$}  {b:>bytes$}  {source}");
        }
        let _ = writeln!(text, "  {}", totals(output));
    }
    for room in rooms {
        let verdict = if room.is_enough() { "enough" } else { "NOT enough" };
        let (free, needed) = (size::bytes(room.free), size::bytes(room.needed));
        let _ = writeln!(text, "{}: {free} free, {needed} needed: {verdict}", shown(&room.dir));
    }
    text
}

/// Size, bits per weight, types and time of what was written.
pub fn summary(plan: &Plan, summary: &Summary) -> String {
    let mut text = String::new();
    for (output, written) in plan.outputs.iter().zip(&summary.outputs) {
        let parts = written.files.len();
        let first = shown(written.files.first().unwrap_or(&written.path));
        let others = if parts > 1 { format!(" and {} more", parts - 1) } else { String::new() };
        let _ = writeln!(text, "{first}{others}: {}", totals(output));
    }
    let seconds = summary.elapsed.as_secs_f64();
    let speed = size::bytes((summary.input_bytes as f64 / seconds.max(1e-9)) as u64);
    let read = size::bytes(summary.input_bytes);
    let _ = writeln!(text, "{read} of weights in {} ({speed}/s)", size::seconds(seconds));
    text
}

fn totals(output: &OutputPlan) -> String {
    let types: Vec<String> = output
        .types()
        .iter()
        .map(|(ty, n, bytes)| format!("{n} {} ({})", ty.name(), size::bytes(*bytes)))
        .collect();
    let total = output.layout.total_size();
    format!(
        "{} ({total} bytes), {:.2} bits per weight, {} tensors: {}",
        size::bytes(total),
        output.bits_per_weight(),
        output.tensors.len(),
        types.join(", ")
    )
}

fn shown(path: &Path) -> String {
    neutral_line(&path.to_string_lossy())
}

/// The source tensors of an output tensor; what several have in common is written once:
/// `model.layers.0.mlp.experts.{0,1,2,3}.w1.weight`.
fn sources(names: &[String]) -> String {
    let [first, rest @ ..] = names else { return "(computed)".to_owned() };
    if rest.is_empty() {
        return first.clone();
    }
    let parts: Vec<Vec<&str>> = names.iter().map(|n| n.split('.').collect()).collect();
    let shortest = parts.iter().map(Vec::len).min().unwrap_or(0);
    let same = |i: usize| parts.iter().all(|p| p[i] == parts[0][i]);
    let same_from_end =
        |i: usize| parts.iter().all(|p| p[p.len() - 1 - i] == parts[0][parts[0].len() - 1 - i]);
    let head = (0..shortest).take_while(|i| same(*i)).count();
    let tail = (0..shortest - head).take_while(|i| same_from_end(*i)).count();
    let middles: Vec<String> = parts.iter().map(|p| p[head..p.len() - tail].join(".")).collect();
    let mut pieces: Vec<String> = parts[0][..head].iter().map(|p| (*p).to_owned()).collect();
    pieces.push(format!("{{{}}}", middles.join(",")));
    pieces.extend(parts[0][parts[0].len() - tail..].iter().map(|p| (*p).to_owned()));
    pieces.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_parts_of_sources_are_written_once() {
        let names = |list: &[&str]| sources(&list.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
        assert_eq!(names(&["a.b.weight"]), "a.b.weight");
        assert_eq!(names(&["a.e.0.w1.weight", "a.e.10.w1.weight"]), "a.e.{0,10}.w1.weight");
        assert_eq!(names(&["a", "b"]), "{a,b}");
        assert_eq!(names(&[]), "(computed)");
    }
}
