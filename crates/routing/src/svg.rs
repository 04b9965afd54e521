//! A picture of a trace for a model card: a heat map of experts by layers, two strips of how predictable each layer is,
//! and the hit rates of caches. Self-contained SVG on a light card, so that it shows on dark pages as well.

use crate::cache::Policy;
use crate::report::Report;
use crate::trace::Trace;
use std::fmt::Write;

const MARGIN: f64 = 24.0;
/// Height of the title block.
const HEAD: f64 = 64.0;
const STRIP: f64 = 22.0;
const CHART: f64 = 170.0;
/// Width of a character of the labels, on average.
const CHARACTER: f64 = 6.6;
/// Of the map, so that titles and the chart's legend have room.
const MIN_WIDTH: f64 = 480.0;
const LEGEND: f64 = 190.0;
const MAX_LABEL: usize = 36;

/// From no use to the most: cream, amber, orange, red, wine.
const HEAT: [[f64; 3]; 5] = [
    [253.0, 246.0, 233.0],
    [247.0, 205.0, 122.0],
    [236.0, 138.0, 47.0],
    [185.0, 58.0, 28.0],
    [77.0, 15.0, 20.0],
];
/// From 0 to 1: white, sky, navy.
const COOL: [[f64; 3]; 3] = [[244.0, 248.0, 251.0], [120.0, 175.0, 205.0], [16.0, 62.0, 104.0]];
/// Lines of the policies, in the order of [`Policy::ALL`].
const LINES: [&str; 4] = ["#8a8f98", "#ec8a2f", "#b93a1c", "#103e68"];
const POLICIES: [&str; 4] =
    ["least recently used", "pinned by frequency", "decayed frequency", "optimum (sees the future)"];

/// The picture.
///
/// # Panics
/// When the trace is not [valid](Trace::validate) or the report is another trace's.
pub fn heat_map(trace: &Trace, report: &Report) -> String {
    let n_layers = report.layers.len().max(1);
    let labels: Vec<String> = (0..trace.n_expert).map(|e| shortened(&trace.expert_name(e))).collect();
    let longest = labels.iter().map(|l| l.chars().count()).max().unwrap_or(0).max(26);
    let gutter = MARGIN + longest as f64 * CHARACTER + 12.0;
    let cell_width = (760.0 / n_layers as f64).clamp(8.0, 72.0);
    let cell_height = (560.0 / trace.n_expert as f64).clamp(4.0, 34.0);
    let map_width = (cell_width * n_layers as f64).max(MIN_WIDTH);
    let map_height = cell_height * trace.n_expert as f64;
    let frame = Frame { gutter, cell_width, cell_height, n_layers };

    let strips_top = HEAD + map_height + 30.0;
    let chart_top = strips_top + 2.0 * (STRIP + 4.0) + 44.0;
    let (width, height) = (gutter + map_width + MARGIN, chart_top + CHART + 54.0);
    let mut svg = String::new();
    let _ = write!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0} {height:.0}" width="{width:.0}" height="{height:.0}" font-family="Inter, 'Helvetica Neue', Helvetica, Arial, sans-serif" font-size="12" fill="#2b2b2b">
<rect width="100%" height="100%" rx="10" fill="#fffdf9"/>
"##
    );
    title(&mut svg, trace, gutter + map_width);
    heat(&mut svg, &frame, report, &labels);
    strips(&mut svg, &frame, report, strips_top);
    chart(&mut svg, trace, report, [gutter, chart_top, map_width.min(760.0) - LEGEND]);
    svg.push_str("</svg>\n");
    svg
}

struct Frame {
    gutter: f64,
    cell_width: f64,
    cell_height: f64,
    n_layers: usize,
}

impl Frame {
    fn x(&self, layer: usize) -> f64 {
        self.gutter + layer as f64 * self.cell_width
    }
}

fn title(svg: &mut String, trace: &Trace, right: f64) {
    let name = if trace.model.is_empty() { "Routing" } else { &trace.model };
    let fits = ((right - MARGIN - 220.0) / 9.5) as usize;
    let name: String = name.chars().take(fits).collect();
    text(svg, [MARGIN, 30.0], "start", r#" font-size="17" font-weight="600""#, &name);
    let line = format!(
        "share of each expert in all choices, by layer · {} of {} experts a token · {} tokens",
        trace.n_used,
        trace.n_expert,
        trace.n_tokens()
    );
    text(svg, [MARGIN, 50.0], "start", GREY, &line);
    // The scale, from 0 to twice an even share or more.
    let (left, steps) = (right - 160.0, 24);
    for step in 0..steps {
        let x = left + 120.0 / f64::from(steps) * f64::from(step);
        rect(svg, [x, 20.0, 120.0 / f64::from(steps) + 0.5, 10.0], &colour(&HEAT, f64::from(step) / 23.0));
    }
}

/// The share that has the darkest colour: the largest, or twice an even one.
fn darkest(report: &Report, n_expert: usize) -> f64 {
    let largest = report.layers.iter().flat_map(|l| &l.shares).copied().fold(0.0, f64::max);
    largest.max((2.0 / n_expert as f64).min(1.0))
}

fn heat(svg: &mut String, frame: &Frame, report: &Report, labels: &[String]) {
    let top = darkest(report, labels.len());
    let right = frame.x(frame.n_layers).max(frame.gutter + MIN_WIDTH);
    text(svg, [right - 166.0, 29.5], "end", SMALL, "0 %");
    text(svg, [right, 29.5], "end", SMALL, &format!("{:.0} %", top * 100.0));
    for (expert, label) in labels.iter().enumerate() {
        let y = HEAD + expert as f64 * frame.cell_height;
        if frame.cell_height >= 11.0 {
            text(svg, [frame.gutter - 10.0, y + frame.cell_height / 2.0 + 4.0], "end", "", label);
        }
        for (layer, about) in report.layers.iter().enumerate() {
            let share = about.shares[expert];
            let at = [frame.x(layer), y, frame.cell_width - 1.0, frame.cell_height - 1.0];
            cell(
                svg,
                at,
                &colour(&HEAT, share / top),
                &format!("layer {}, {label}: {:.1} %", about.layer, share * 100.0),
            );
            if frame.cell_width >= 22.0 && frame.cell_height >= 14.0 {
                value(svg, frame, layer, y + frame.cell_height / 2.0 + 4.0, share, share / top > 0.6);
            }
        }
    }
    let y = HEAD + labels.len() as f64 * frame.cell_height + 14.0;
    text(svg, [frame.gutter - 10.0, y], "end", SMALL, "layer");
    let every = (24.0 / frame.cell_width).ceil() as usize;
    for (layer, about) in report.layers.iter().enumerate().step_by(every) {
        text(svg, [frame.x(layer) + frame.cell_width / 2.0, y], "middle", SMALL, &about.layer.to_string());
    }
}

fn strips(svg: &mut String, frame: &Frame, report: &Report, top: f64) {
    let rows: [(&str, Vec<Option<f64>>); 2] = [
        ("kept by the next token", report.layers.iter().map(|l| l.stickiness).collect()),
        ("foreseen a layer early", report.layers.iter().map(|l| l.early.map(|e| e.top_k)).collect()),
    ];
    for (row, (label, values)) in rows.iter().enumerate() {
        let y = top + row as f64 * (STRIP + 4.0);
        text(svg, [frame.gutter - 10.0, y + 15.0], "end", "", label);
        for (layer, share) in values.iter().enumerate() {
            let at = [frame.x(layer), y, frame.cell_width - 1.0, STRIP];
            let Some(share) = share else {
                cell(svg, at, "#f1eee8", "none");
                continue;
            };
            cell(svg, at, &colour(&COOL, *share), &format!("{label}: {:.1} %", share * 100.0));
            if frame.cell_width >= 22.0 {
                value(svg, frame, layer, y + 15.0, *share, *share > 0.55);
            }
        }
    }
}

/// A share in percent in the middle of a cell.
fn value(svg: &mut String, frame: &Frame, layer: usize, y: f64, share: f64, is_dark: bool) {
    let style =
        if is_dark { r##" font-size="10.5" fill="#fff""## } else { r##" font-size="10.5" fill="#4a4036""## };
    let x = frame.x(layer) + (frame.cell_width - 1.0) / 2.0;
    text(svg, [x, y], "middle", style, &format!("{:.0}", share * 100.0));
}

fn chart(svg: &mut String, trace: &Trace, report: &Report, [left, top, width]: [f64; 3]) {
    let x = |slots: f64| left + width * slots / trace.n_expert as f64;
    let y = |rate: f64| top + CHART * (1.0 - rate);
    text(
        svg,
        [left, top - 14.0],
        "start",
        r#" font-weight="600""#,
        "Share of requests that a cache would serve",
    );
    for quarter in 0..=4 {
        let rate = f64::from(quarter) / 4.0;
        line(svg, [x(0.0), y(rate), x(trace.n_expert as f64), y(rate)], "#e4dfd6", "");
        text(svg, [left - 10.0, y(rate) + 4.0], "end", SMALL, &format!("{:.0} %", rate * 100.0));
    }
    line(svg, [x(0.0), y(0.0), x(trace.n_expert as f64), y(1.0)], "#b9b2a6", r#" stroke-dasharray="3 4""#);
    let every = trace.n_expert.div_ceil(16).max(1);
    for slots in (0..=trace.n_expert).step_by(every) {
        text(svg, [x(slots as f64), top + CHART + 18.0], "middle", SMALL, &slots.to_string());
    }
    let below = [left + width / 2.0, top + CHART + 36.0];
    text(svg, below, "middle", SMALL, "experts of each layer in fast memory");
    for (policy, curve) in report.hit_rates.iter().enumerate() {
        let points: Vec<String> = curve
            .iter()
            .enumerate()
            .map(|(slots, rate)| format!("{:.1},{:.1}", x(slots as f64), y(*rate)))
            .collect();
        let _ = writeln!(
            svg,
            r#"<polyline points="{}" fill="none" stroke="{}" stroke-width="2"/>"#,
            points.join(" "),
            LINES[policy]
        );
        // The legend, beside the chart.
        let row = top + 14.0 + policy as f64 * 19.0;
        let right = left + width + LEGEND;
        line(svg, [right - 176.0, row, right - 156.0, row], LINES[policy], r#" stroke-width="2""#);
        text(svg, [right - 150.0, row + 4.0], "start", SMALL, POLICIES[policy]);
    }
    let (row, right) = (top + 14.0 + Policy::ALL.len() as f64 * 19.0, left + width + LEGEND);
    line(svg, [right - 176.0, row, right - 156.0, row], "#b9b2a6", r#" stroke-dasharray="3 4""#);
    text(svg, [right - 150.0, row + 4.0], "start", SMALL, "even routing");
}

const SMALL: &str = r##" font-size="11" fill="#6f675c""##;
const GREY: &str = r##" fill="#6f675c""##;

fn text(svg: &mut String, [x, y]: [f64; 2], anchor: &str, style: &str, text: &str) {
    let _ = writeln!(
        svg,
        r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}"{style}>{}</text>"#,
        escaped(text)
    );
}

fn rect(svg: &mut String, [x, y, width, height]: [f64; 4], fill: &str) {
    let _ = writeln!(
        svg,
        r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{fill}"/>"#
    );
}

/// A rectangle that says what it stands for when pointed at.
fn cell(svg: &mut String, [x, y, width, height]: [f64; 4], fill: &str, about: &str) {
    let about = escaped(about);
    let _ = writeln!(
        svg,
        r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" rx="1.5" fill="{fill}"><title>{about}</title></rect>"#
    );
}

fn line(svg: &mut String, [x1, y1, x2, y2]: [f64; 4], stroke: &str, style: &str) {
    let _ = writeln!(
        svg,
        r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{stroke}"{style}/>"#
    );
}

/// The colour at `position` (0 to 1) between stops at equal distances.
fn colour(stops: &[[f64; 3]], position: f64) -> String {
    let scaled = position.clamp(0.0, 1.0) * (stops.len() - 1) as f64;
    let below = (scaled.floor() as usize).min(stops.len() - 2);
    let part = scaled - below as f64;
    let channel = |i: usize| (stops[below][i] + (stops[below + 1][i] - stops[below][i]) * part).round() as u8;
    format!("#{:02x}{:02x}{:02x}", channel(0), channel(1), channel(2))
}

/// The end of a long name says more than its beginning: the organisation goes first.
fn shortened(name: &str) -> String {
    let name = match name.rsplit_once('/') {
        Some((_, last)) if name.chars().count() > MAX_LABEL && !last.is_empty() => last,
        _ => name,
    };
    if name.chars().count() <= MAX_LABEL {
        return name.to_owned();
    }
    name.chars().take(MAX_LABEL - 1).chain(['…']).collect()
}

/// Text for XML: markup escaped, what XML has no place for left out.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::LayerTrace;

    fn trace(n_layers: usize, n_expert: usize) -> Trace {
        let layer = |layer| LayerTrace {
            layer,
            experts: vec![0, 1, 1, 0],
            weights: vec![0.6, 0.4, 0.9, 0.1],
            early: None,
        };
        Trace {
            model: "A <b>merge</b> & \u{1b}more".to_owned(),
            n_expert,
            n_used: 2,
            expert_names: (0..n_expert).map(|e| format!("organisation/{}-{e}", "long".repeat(20))).collect(),
            tokens: vec![1, 2],
            sequences: vec![2],
            layers: (0..n_layers).map(layer).collect(),
        }
    }

    #[test]
    fn every_expert_of_every_layer_has_a_cell() {
        for (n_layers, n_expert) in [(1, 2), (4, 4), (32, 8), (61, 256), (0, 4)] {
            let trace = trace(n_layers, n_expert);
            let svg = heat_map(&trace, &Report::new(&trace));
            assert_eq!(svg.matches("<title>layer ").count(), n_layers * n_expert);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{n_layers} layers");
        }
    }

    #[test]
    fn names_of_strangers_are_text() {
        let trace = trace(1, 2);
        let svg = heat_map(&trace, &Report::new(&trace));
        assert!(svg.contains("A &lt;b&gt;merge&lt;/b&gt; &amp; more"));
        assert!(svg.contains('…') && !svg.contains('\u{1b}') && !svg.contains("<b>"));
    }

    #[test]
    fn colours_run_from_stop_to_stop() {
        assert_eq!(colour(&COOL, 0.0), "#f4f8fb");
        assert_eq!(colour(&COOL, 0.5), "#78afcd");
        assert_eq!(colour(&COOL, 7.0), "#103e68");
        assert_eq!(colour(&HEAT, f64::NAN), "#000000");
    }
}
