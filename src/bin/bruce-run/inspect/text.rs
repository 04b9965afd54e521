//! The report for people.

use super::View;
use super::totals::{by_type, title, total};
use bruce::size::bytes;
use bruce::terminal::neutral_line;
use gguf::{Array, Gguf, Value};
use std::fmt::Write;

/// Characters of a text, and elements of an array, that are shown unless all are wanted.
const TEXT_SHOWN: usize = 72;
const ELEMENTS_SHOWN: usize = 6;

/// Everything that `view` asks for, as lines.
pub fn report(gguf: &Gguf, view: View) -> String {
    let mut out = String::new();
    summary(&mut out, gguf);
    if view.metadata {
        metadata(&mut out, gguf, view.full);
    }
    if view.tensors {
        tensors(&mut out, gguf);
        types(&mut out, gguf);
    }
    out
}

// Writing to a String cannot fail, so the results of `writeln!` are dropped below.

fn summary(out: &mut String, gguf: &Gguf) {
    let total = total(gguf);
    let parts = match gguf.parts().len() {
        1 => String::new(),
        n => format!(", {n} parts"),
    };
    let _ =
        writeln!(out, "{}: {}", neutral_line(&gguf.path().display().to_string()), neutral_line(&title(gguf)));
    let _ = writeln!(
        out,
        "GGUF version {}, {}{parts}, alignment {}, {} metadata entries, {} tensors",
        gguf.version(),
        bytes(gguf.file_size()),
        gguf.alignment(),
        gguf.metadata().len(),
        gguf.tensors().len(),
    );
    let _ = writeln!(
        out,
        "{} weights in {}, {:.3} bits per weight",
        weights(total.n_weights),
        bytes(total.size_bytes),
        total.bits_per_weight(),
    );
}

fn metadata(out: &mut String, gguf: &Gguf, full: bool) {
    let entries: Vec<(String, String, &Value)> =
        gguf.metadata().iter().map(|(key, value)| (neutral_line(key), type_of(value), value)).collect();
    let width = entries.iter().map(|(key, _, _)| key.chars().count()).max().unwrap_or(0).min(60);
    let type_width = entries.iter().map(|(_, ty, _)| ty.len()).max().unwrap_or(0);
    out.push_str("\nMetadata\n");
    for (key, ty, value) in entries {
        let _ = writeln!(out, "  {key:<width$}  {ty:<type_width$}  {}", shown(value, full));
    }
}

fn type_of(value: &Value) -> String {
    match value {
        Value::Array(array) => format!("{}[{}]", array.type_name(), array.len()),
        other => other.type_name().to_owned(),
    }
}

fn shown(value: &Value, full: bool) -> String {
    let text_shown = if full { usize::MAX } else { TEXT_SHOWN };
    match value {
        Value::Array(array) => elements(array, full),
        Value::String(text) => cut(text, text_shown),
        number => number.to_string(),
    }
}

fn elements(array: &Array, full: bool) -> String {
    let n_shown = if full { array.len() } else { array.len().min(ELEMENTS_SHOWN) };
    let list: Vec<String> = (0..n_shown)
        .filter_map(|i| array.get(i))
        .map(|element| match element {
            Value::String(text) => format!("\"{}\"", cut(&text, if full { usize::MAX } else { 24 })),
            number => number.to_string(),
        })
        .collect();
    let more = if n_shown < array.len() { ", ..." } else { "" };
    format!("[{}{more}]", list.join(", "))
}

/// At most `n` characters of a text, on one line and safe to show.
fn cut(text: &str, n: usize) -> String {
    let start: String = text.chars().take(n).collect();
    let more = if start.len() < text.len() { format!("... ({} bytes)", text.len()) } else { String::new() };
    neutral_line(&start) + &more
}

fn tensors(out: &mut String, gguf: &Gguf) {
    let rows: Vec<[String; 4]> = gguf
        .tensors()
        .iter()
        .map(|t| {
            let shape: Vec<String> = t.ne.iter().map(u64::to_string).collect();
            [neutral_line(&t.name), t.ty.name().to_owned(), shape.join(" x "), bytes(t.size)]
        })
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (name_width, type_width, shape_width) = (width(0), width(1), width(2));
    out.push_str("\nTensors (name, type, shape with the contiguous axis first, size)\n");
    for [name, ty, shape, size] in &rows {
        let _ = writeln!(out, "  {name:<name_width$}  {ty:<type_width$}  {shape:<shape_width$}  {size:>9}");
    }
}

fn types(out: &mut String, gguf: &Gguf) {
    let whole = total(gguf).size_bytes.max(1) as f64;
    out.push_str("\nTypes (tensors, weights, size, share of the bytes)\n");
    for (ty, total) in by_type(gguf) {
        let share = total.size_bytes as f64 * 100.0 / whole;
        let _ = writeln!(
            out,
            "  {:<8} {:>6}  {:>9}  {:>9}  {share:5.1} %",
            ty.name(),
            total.n_tensors,
            weights(total.n_weights),
            bytes(total.size_bytes),
        );
    }
}

fn weights(n: u64) -> String {
    match n {
        0..1_000_000 => n.to_string(),
        1_000_000..1_000_000_000 => format!("{:.2} M", n as f64 / 1e6),
        _ => format!("{:.2} G", n as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_and_made_safe() {
        assert_eq!(cut("ab\x1b[2Jc\n", 99), "ab\\u{1b}[2Jc\\n");
        assert_eq!(cut("äöü", 2), "äö... (6 bytes)");
    }

    #[test]
    fn arrays_show_their_beginning() {
        let value = Value::from((0..9u32).collect::<Vec<_>>());
        assert_eq!(
            (type_of(&value).as_str(), shown(&value, false).as_str()),
            ("u32[9]", "[0, 1, 2, 3, 4, 5, ...]")
        );
        assert_eq!(shown(&value, true), "[0, 1, 2, 3, 4, 5, 6, 7, 8]");
        assert_eq!(shown(&Value::from(vec!["a".to_owned()]), false), "[\"a\"]");
    }
}
