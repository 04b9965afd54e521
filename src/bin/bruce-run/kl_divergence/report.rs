//! The statistics as llama-perplexity prints them, and as JSON.

use super::statistics::{Measured, Percentiles, Statistics};
use serde_json::{Value, json};
use std::fmt::Write;

/// The percentiles shown: what they are called, which they are.
const HIGH: [(&str, f32); 4] = [("99.9%", 0.999), ("99.0%", 0.99), ("95.0%", 0.95), ("90.0%", 0.9)];
const LOW: [(&str, f32); 4] = [("10.0%", 0.1), (" 5.0%", 0.05), (" 1.0%", 0.01), (" 0.1%", 0.001)];

/// What stands above the lines of [`chunk`].
pub const HEADING: &str = "\
chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence              Δp RMS            Same top p
";

/// The statistics of all chunks up to this one, on a line.
pub fn chunk(number: usize, s: &Statistics) -> String {
    let (ppl, ratio, kld) = (s.perplexity(), s.ln_perplexity_ratio(), s.kld());
    let (rms, same) = (s.rms_delta_p(), s.same_top());
    format!(
        "{number:4}    {:9.4} ± {:9.4}    {:10.5} ± {:10.5}    {:10.5} ± {:10.5}    {:6.3} ± {:6.3} %    {:6.3} ± {:6.3} %\n",
        ppl.value,
        ppl.error,
        ratio.value,
        ratio.error,
        kld.value,
        kld.error,
        100.0 * rms.value,
        100.0 * rms.error,
        100.0 * same.value,
        100.0 * same.error,
    )
}

/// All statistics.
pub fn text(s: &Statistics) -> String {
    let mut text = "\n====== Perplexity statistics ======\n".to_owned();
    let line = |text: &mut String, name: &str, x: Measured| {
        let _ = writeln!(text, "{name:<30}: {:10.6} ± {:10.6}", x.value, x.error);
    };
    line(&mut text, "Mean PPL(Q)", s.perplexity());
    line(&mut text, "Mean PPL(base)", s.perplexity_base());
    let _ = writeln!(text, "Cor(ln(PPL(Q)), ln(PPL(base))): {:6.2}%", 100.0 * s.correlation());
    line(&mut text, "Mean ln(PPL(Q)/PPL(base))", s.ln_perplexity_ratio());
    line(&mut text, "Mean PPL(Q)/PPL(base)", s.perplexity_ratio());
    line(&mut text, "Mean PPL(Q)-PPL(base)", s.perplexity_difference());

    text.push_str("\n====== KL divergence statistics ======\n");
    let (kld, p) = (s.kld(), s.kld_percentiles());
    let _ = writeln!(text, "Mean    KLD: {:10.6} ± {:10.6}", kld.value, kld.error);
    let mut row = |name: &str, value: f32| {
        let _ = writeln!(text, "{name:<7} KLD: {value:10.6}");
    };
    row("Maximum", p.at(1.0));
    HIGH.iter().for_each(|(name, at)| row(name, p.at(*at)));
    row("Median", p.median());
    LOW.iter().for_each(|(name, at)| row(name, p.at(*at)));
    row("Minimum", p.at(0.0));

    text.push_str("\n====== Token probability statistics ======\n");
    let (mean, p) = (s.delta_p(), s.delta_p_percentiles());
    let _ = writeln!(text, "Mean    Δp: {:6.3} ± {:5.3} %", 100.0 * mean.value, 100.0 * mean.error);
    let mut row = |name: &str, value: f32| {
        let _ = writeln!(text, "{name:<7} Δp: {:6.3}%", 100.0 * value);
    };
    row("Maximum", p.at(1.0));
    HIGH.iter().for_each(|(name, at)| row(name, p.at(*at)));
    row("75.0%", p.at(0.75));
    row("Median", p.median());
    row("25.0%", p.at(0.25));
    LOW.iter().for_each(|(name, at)| row(name, p.at(*at)));
    row("Minimum", p.at(0.0));
    let (rms, same) = (s.rms_delta_p(), s.same_top());
    let _ = writeln!(text, "RMS Δp    : {:6.3} ± {:5.3} %", 100.0 * rms.value, 100.0 * rms.error);
    let _ = writeln!(text, "Same top p: {:6.3} ± {:5.3} %", 100.0 * same.value, 100.0 * same.error);
    text
}

/// All statistics as an object: values with errors, shares and probabilities as fractions of 1.
pub fn json(s: &Statistics) -> Value {
    let measured = |x: Measured| json!({"value": x.value, "error": x.error});
    json!({
        "n_scored": s.n_tokens(),
        "perplexity": measured(s.perplexity()),
        "perplexity_base": measured(s.perplexity_base()),
        "perplexity_correlation": s.correlation(),
        "ln_perplexity_ratio": measured(s.ln_perplexity_ratio()),
        "perplexity_ratio": measured(s.perplexity_ratio()),
        "perplexity_difference": measured(s.perplexity_difference()),
        "kld": measured(s.kld()),
        "kld_percentiles": percentiles(&s.kld_percentiles()),
        "delta_p": measured(s.delta_p()),
        "delta_p_percentiles": percentiles(&s.delta_p_percentiles()),
        "rms_delta_p": measured(s.rms_delta_p()),
        "same_top": measured(s.same_top()),
    })
}

fn percentiles(p: &Percentiles) -> Value {
    json!({
        "minimum": p.at(0.0),
        "0.1": p.at(0.001),
        "1": p.at(0.01),
        "5": p.at(0.05),
        "10": p.at(0.1),
        "25": p.at(0.25),
        "median": p.median(),
        "75": p.at(0.75),
        "90": p.at(0.9),
        "95": p.at(0.95),
        "99": p.at(0.99),
        "99.9": p.at(0.999),
        "maximum": p.at(1.0),
    })
}
