//! The report for people.

use bruce::terminal::neutral_line;
use routing::cache::Policy;
use routing::{LayerReport, Report, Trace};
use std::fmt::Write;

/// With more experts, only the busiest and the idlest are shown.
const MAX_SHOWN: usize = 8;
/// With more sizes of a cache, only every second, fourth, ... is shown.
const MAX_SIZES: usize = 16;

/// Experts with their names, a line for each layer, and the hit rates of caches.
pub fn text(trace: &Trace, report: &Report) -> String {
    let mut out = String::new();
    let (n, n_used, n_tokens) = (trace.n_expert, trace.n_used, trace.n_tokens());
    let _ =
        writeln!(out, "{n_tokens} tokens in {} chunks, {n_used} of {n} experts each", trace.sequences.len());
    if !trace.expert_names.is_empty() {
        out.push('\n');
        for (expert, name) in trace.expert_names.iter().enumerate() {
            let share = report.mean(|layer| Some(layer.shares[expert])).unwrap_or(0.0);
            let _ = writeln!(out, "  expert {expert:<3} {:>5}  {}", percent(Some(share)), neutral_line(name));
        }
    }
    out.push('\n');
    layers(&mut out, trace, report);
    out.push('\n');
    caches(&mut out, trace, report);
    out
}

fn layers(out: &mut String, trace: &Trace, report: &Report) {
    let all_shown = trace.n_expert <= MAX_SHOWN;
    let shares_head = if all_shown {
        (0..trace.n_expert).map(|expert| format!("{expert:>6}")).collect()
    } else {
        format!("{:>8}{:>8}{:>8}", "busiest", "median", "idlest")
    };
    let _ = writeln!(
        out,
        "layer {shares_head}  |  {:>5} {:>7} {:>6}  |  {:>6} {:>6} {:>5}",
        "kept", "chance", "first", "top-1", "top-k", "all"
    );
    for layer in &report.layers {
        let _ = writeln!(out, "{:>5} {}", layer.layer, layer_line(layer, all_shown));
    }
    let mean = |value: &dyn Fn(&LayerReport) -> Option<f64>| percent(report.mean(value));
    let shares: String = if all_shown {
        (0..trace.n_expert).map(|e| format!("{:>6}", mean(&|l| Some(l.shares[e])))).collect()
    } else {
        [0, trace.n_expert / 2, trace.n_expert - 1]
            .iter()
            .map(|rank| format!("{:>8}", mean(&|l| Some(ranked(&l.shares)[*rank]))))
            .collect()
    };
    let _ = writeln!(
        out,
        " mean {shares}  |  {:>5} {:>7} {:>6}  |  {:>6} {:>6} {:>5}",
        mean(&|l| l.stickiness),
        mean(&|l| Some(l.chance)),
        mean(&|l| l.same_first),
        mean(&|l| l.early.map(|e| e.top_1)),
        mean(&|l| l.early.map(|e| e.top_k)),
        mean(&|l| l.early.map(|e| e.all)),
    );
    out.push_str(
        "\nShares in % of all choices. kept: experts that the next token takes too; chance: the same if tokens chose\n\
         independently; first: likeliest expert as before. top-1, top-k, all: the likeliest expert, the experts taken, and\n\
         whole choices that the router foresees one layer early.\n",
    );
}

fn layer_line(layer: &LayerReport, all_shown: bool) -> String {
    let shares: String = if all_shown {
        layer.shares.iter().map(|share| format!("{:>6}", percent(Some(*share)))).collect()
    } else {
        let sorted = ranked(&layer.shares);
        let shown = [sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1]];
        shown.iter().map(|share| format!("{:>8}", percent(Some(*share)))).collect()
    };
    format!(
        "{shares}  |  {:>5} {:>7} {:>6}  |  {:>6} {:>6} {:>5}",
        percent(layer.stickiness),
        percent(Some(layer.chance)),
        percent(layer.same_first),
        percent(layer.early.map(|e| e.top_1)),
        percent(layer.early.map(|e| e.top_k)),
        percent(layer.early.map(|e| e.all)),
    )
}

/// Largest first.
fn ranked(shares: &[f64]) -> Vec<f64> {
    let mut sorted = shares.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    sorted
}

fn caches(out: &mut String, trace: &Trace, report: &Report) {
    let _ = writeln!(
        out,
        "Requests served in % with N experts of each layer in fast memory, mean of all layers:"
    );
    let _ = write!(out, "    N    even");
    for policy in Policy::ALL {
        let _ = write!(out, " {:>8}", policy.name());
    }
    out.push('\n');
    let every = trace.n_expert.div_ceil(MAX_SIZES).max(1);
    for slots in (1..=trace.n_expert).filter(|slots| slots % every == 0 || *slots == trace.n_expert) {
        let even = slots as f64 / trace.n_expert as f64;
        let _ = write!(out, "{slots:>5} {:>7}", percent(Some(even)));
        for curve in &report.hit_rates {
            let _ = write!(out, " {:>8}", percent(Some(curve[slots])));
        }
        out.push('\n');
    }
}

/// Without the sign; `-` where there is no value.
fn percent(share: Option<f64>) -> String {
    share.map_or("-".to_owned(), |share| format!("{:.1}", share * 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use routing::LayerTrace;

    fn trace(n_expert: usize) -> Trace {
        Trace {
            n_expert,
            n_used: 1,
            expert_names: (0..n_expert).map(|e| format!("model \x1b{e}")).collect(),
            tokens: vec![1, 2, 3, 4],
            sequences: vec![4],
            layers: vec![LayerTrace {
                layer: 5,
                experts: vec![0, 0, 1, 0],
                weights: vec![1.0; 4],
                early: None,
            }],
            ..Trace::default()
        }
    }

    #[test]
    fn a_line_for_each_layer_and_size() {
        let trace = trace(2);
        let text = text(&trace, &Report::new(&trace));
        let line = |start: &str| {
            let found = text.lines().find(|line| line.trim_start().starts_with(start));
            found
                .unwrap_or_else(|| panic!("{start} is not in:\n{text}"))
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(line("5 "), "5 75.0 25.0 | 33.3 62.5 33.3 | - - -");
        assert_eq!(line("1  "), "1 50.0 50.0 75.0 75.0 75.0");
        assert!(text.contains("model \\u{1b}1"), "{text}");
    }

    #[test]
    fn many_experts_are_summed_up() {
        let trace = trace(64);
        let text = text(&trace, &Report::new(&trace));
        assert!(text.contains("busiest"), "{text}");
        assert_eq!(text.lines().skip_while(|line| !line.starts_with("    N")).count(), 17);
    }
}
