//! What a check found, for people and as JSON.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use bruce::size;
use bruce::terminal::neutral_line;
use convert::{Compared, Comparison, Deviation, Totals, provenance};
use gguf::Gguf;
use serde_json::{Value, json};

/// The fingerprint of the source that a file names.
pub fn recorded_source(file: &Gguf) -> Option<String> {
    file.metadata().str(provenance::SOURCE).ok().flatten().map(str::to_owned)
}

/// What tensors that do the same are called together: `ffn_up`, whichever layout their experts are in.
fn role_name(tensor: &Compared) -> &'static str {
    tensor.role.map_or("other", |role| role.unstacked().unwrap_or(role).base_name())
}

/// Deviations by role, in the order of the file.
fn roles(found: &Comparison) -> Vec<(&'static str, usize, Totals, f64)> {
    let mut roles: Vec<(&'static str, usize, Totals, f64)> = Vec::new();
    for tensor in &found.tensors {
        let Some(deviation) = &tensor.deviation else { continue };
        let name = role_name(tensor);
        let at = match roles.iter().position(|row| row.0 == name) {
            Some(at) => at,
            None => {
                roles.push((name, 0, Totals::default(), 1.0));
                roles.len() - 1
            }
        };
        let row = &mut roles[at];
        row.1 += 1;
        row.2.merge(&tensor.totals);
        // A NaN is worse than any number.
        row.3 = if deviation.cosine >= row.3 { row.3 } else { deviation.cosine };
    }
    roles
}

/// Tensors by cosine, the farthest from their source first.
fn farthest(found: &Comparison) -> Vec<(&Compared, &Deviation)> {
    let mut all: Vec<(&Compared, &Deviation)> =
        found.tensors.iter().filter_map(|t| Some((t, t.deviation.as_ref()?))).collect();
    let rank = |d: &Deviation| if d.cosine.is_nan() { f64::NEG_INFINITY } else { d.cosine };
    all.sort_by(|a, b| rank(a.1).total_cmp(&rank(b.1)).then(b.1.relative_rmse.total_cmp(&a.1.relative_rmse)));
    all
}

/// Lines of columns; the first `n_left` are aligned to the left.
fn table(rows: &[Vec<String>], n_left: usize) -> String {
    let n_columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> =
        (0..n_columns).map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = match i < n_left {
                true => write!(line, "{cell:width$}  "),
                false => write!(line, "{cell:>width$}  "),
            };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

fn numbers(deviation: &Deviation) -> [String; 4] {
    let Deviation { rmse, relative_rmse, max, cosine } = deviation;
    [format!("{rmse:.3e}"), format!("{relative_rmse:.5}"), format!("{max:.3e}"), format!("{cosine:.6}")]
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

/// Error by role, and the tensors that are farthest from the source.
pub fn tables(found: &Comparison, n_worst: usize) -> String {
    let head = ["RMSE", "relative", "maximum", "cosine"];
    let mut by_role = vec![words(&[&["role", "tensors"], &head[..], &["least cosine"]].concat())];
    for (role, n, totals, least) in roles(found) {
        let mut row = vec![role.to_owned(), n.to_string()];
        row.extend(numbers(&totals.deviation()));
        row.push(format!("{least:.6}"));
        by_role.push(row);
    }
    let mut text = table(&by_role, 1);
    // What is the same as in the source is not among the worst of anything.
    let worst: Vec<_> = farthest(found).into_iter().filter(|(_, d)| d.rmse != 0.0).take(n_worst).collect();
    if !worst.is_empty() {
        let mut rows = vec![words(&[&["farthest", "expert", "type"], &head[..]].concat())];
        for (tensor, deviation) in worst {
            let expert = tensor.expert.map_or("-".to_owned(), |e| e.to_string());
            let mut row = vec![neutral_line(&tensor.tensor), expert, tensor.ty.name().to_owned()];
            row.extend(numbers(deviation));
            rows.push(row);
        }
        text.push('\n');
        text.push_str(&table(&rows, 3));
    }
    text.push('\n');
    text
}

/// Each problem on a line, or that there is none.
pub fn verdict(file: &Gguf, found: &Comparison, problems: &[String], elapsed: Duration) -> String {
    let mut text: String = problems.iter().map(|p| format!("{}\n", neutral_line(p))).collect();
    let (n, path) = (file.tensors().len(), neutral_line(&file.path().to_string_lossy()));
    let n_equal = found.tensors.iter().filter(|t| t.deviation.is_some_and(|d| d.rmse == 0.0)).count();
    let n_compared = found.tensors.iter().filter(|t| t.deviation.is_some()).count();
    let equal = match n_compared {
        0 => String::new(),
        all => format!(", {n_equal} of {all} equal to the source's"),
    };
    let verdict = match problems.len() {
        0 => "nothing is wrong".to_owned(),
        1 => "1 problem".to_owned(),
        n => format!("{n} problems"),
    };
    let seconds = elapsed.as_secs_f64();
    let speed = size::bytes((found.bytes as f64 / seconds.max(1e-9)) as u64);
    let (read, took) = (size::bytes(found.bytes), size::seconds(seconds));
    let _ = writeln!(text, "{path}: {n} tensors{equal}, {verdict} ({read} of weights in {took}, {speed}/s)");
    text
}

/// A number, or null for what JSON has none.
fn number(x: f64) -> Value {
    if x.is_finite() { json!(x) } else { Value::Null }
}

fn deviation_json(deviation: &Deviation) -> Value {
    json!({
        "rmse": number(deviation.rmse),
        "relative_rmse": number(deviation.relative_rmse),
        "max": number(deviation.max),
        "cosine": number(deviation.cosine),
    })
}

fn with(mut object: Value, more: Value) -> Value {
    if let (Some(object), Value::Object(mut more)) = (object.as_object_mut(), more) {
        object.append(&mut more);
    }
    object
}

/// Everything, as one object.
pub fn json(
    file: &Gguf,
    against: Option<&Path>,
    made_of_it: Option<bool>,
    found: &Comparison,
    problems: &[String],
) -> Value {
    let n_unchecked = found.unchecked.len();
    let mut report = json!({
        "file": file.path().display().to_string(),
        "n_tensors": file.tensors().len(),
        "n_tensors_checked": file.tensors().len() - n_unchecked,
        "unchecked_tensors": found.unchecked,
        "warnings": found.warnings,
        "problems": problems,
    });
    let Some(against) = against else { return report };
    let tensor = |(t, d): (&Compared, &Deviation)| {
        let name = json!({
            "tensor": t.tensor,
            "expert": t.expert,
            "role": role_name(t),
            "source": t.source,
            "type": t.ty.name(),
            "n_weights": t.n_weights,
        });
        with(name, deviation_json(d))
    };
    let role = |(name, n, totals, least): (&str, usize, Totals, f64)| {
        let head = json!({"role": name, "n_tensors": n, "n_weights": totals.n_weights()});
        let tail = json!({"min_cosine": number(least)});
        with(with(head, deviation_json(&totals.deviation())), tail)
    };
    let mut all = Totals::default();
    found.tensors.iter().filter(|t| t.deviation.is_some()).for_each(|t| all.merge(&t.totals));
    let comparison = json!({
        "against": against.display().to_string(),
        "source_is_recorded_one": made_of_it,
        "total": with(json!({"n_weights": all.n_weights()}), deviation_json(&all.deviation())),
        "roles": roles(found).into_iter().map(role).collect::<Vec<Value>>(),
        "tensors": farthest(found).into_iter().map(tensor).collect::<Vec<Value>>(),
    });
    report = with(report, comparison);
    report
}
