//! A trace and its report as JSON: one object with `format`, the fields of [`Trace`], and `report`.
//!
//! Numbers of one layer are flat lists, `n_used` for each token in turn. Weights and shares are rounded to 4 digits, so that
//! a trace of a few thousand tokens stays a file that can be mailed.

use crate::cache::Policy;
use crate::error::Error;
use crate::report::{LayerReport, Report};
use crate::trace::{EarlyGuess, LayerTrace, Trace};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// What `format` holds.
const FORMAT: &str = "bruce-routing-trace-1";

#[derive(Serialize, Deserialize)]
struct Wire {
    format: String,
    model: String,
    n_expert: usize,
    n_used: usize,
    expert_names: Vec<String>,
    tokens: Vec<u32>,
    sequences: Vec<usize>,
    layers: Vec<WireLayer>,
    #[serde(default)]
    report: Value,
}

#[derive(Serialize, Deserialize)]
struct WireLayer {
    layer: usize,
    experts: Vec<u32>,
    weights: Vec<f64>,
    early: Option<Vec<u32>>,
}

impl Trace {
    /// The trace and a report on it as one line of JSON.
    pub fn to_json(&self, report: &Report) -> String {
        let layer = |layer: &LayerTrace| WireLayer {
            layer: layer.layer,
            experts: layer.experts.clone(),
            weights: layer.weights.iter().map(|w| round(f64::from(*w))).collect(),
            early: layer.early.as_ref().map(|guess| guess.0.clone()),
        };
        let wire = Wire {
            format: FORMAT.to_owned(),
            model: self.model.clone(),
            n_expert: self.n_expert,
            n_used: self.n_used,
            expert_names: self.expert_names.clone(),
            tokens: self.tokens.clone(),
            sequences: self.sequences.clone(),
            layers: self.layers.iter().map(layer).collect(),
            report: report.to_json(),
        };
        serde_json::to_string(&wire).expect("numbers and text")
    }

    /// Reads what [`to_json`](Self::to_json) wrote; the report is left aside, as it can be computed.
    ///
    /// # Errors
    /// [`Error`] where the text is no such trace.
    pub fn from_json(text: &str) -> Result<Trace, Error> {
        let wire: Wire =
            serde_json::from_str(text).map_err(|error| Error::Structure { reason: error.to_string() })?;
        if wire.format != FORMAT {
            let (found, expected) = (wire.format.escape_debug().to_string(), FORMAT.to_owned());
            return Err(Error::Field { field: "format".to_owned(), found, expected });
        }
        let layer = |layer: WireLayer| LayerTrace {
            layer: layer.layer,
            experts: layer.experts,
            weights: layer.weights.into_iter().map(|w| w as f32).collect(),
            early: layer.early.map(EarlyGuess),
        };
        let trace = Trace {
            model: wire.model,
            n_expert: wire.n_expert,
            n_used: wire.n_used,
            expert_names: wire.expert_names,
            tokens: wire.tokens,
            sequences: wire.sequences,
            layers: wire.layers.into_iter().map(layer).collect(),
        };
        trace.validate()?;
        Ok(trace)
    }
}

impl Report {
    /// The report as JSON.
    pub fn to_json(&self) -> Value {
        let layers: Vec<Value> = self.layers.iter().map(layer_json).collect();
        json!({
            "hit_rates": curves_json(&self.hit_rates),
            "stickiness": self.mean(|l| l.stickiness).map(round),
            "chance": self.mean(|l| Some(l.chance)).map(round),
            "early_top_1": self.mean(|l| l.early.map(|e| e.top_1)).map(round),
            "early_top_k": self.mean(|l| l.early.map(|e| e.top_k)).map(round),
            "layers": layers,
        })
    }
}

fn layer_json(layer: &LayerReport) -> Value {
    let early =
        layer.early.map(|e| json!({ "top_1": round(e.top_1), "top_k": round(e.top_k), "all": round(e.all) }));
    json!({
        "layer": layer.layer,
        "shares": rounded(&layer.shares),
        "weights": rounded(&layer.weights),
        "stickiness": layer.stickiness.map(round),
        "chance": round(layer.chance),
        "same_first": layer.same_first.map(round),
        "early": early,
        "hit_rates": curves_json(&layer.hit_rates),
    })
}

fn curves_json(curves: &[Vec<f64>; 4]) -> Value {
    let curves =
        Policy::ALL.iter().zip(curves).map(|(policy, curve)| (policy.name().to_owned(), rounded(curve)));
    Value::Object(curves.collect::<Map<String, Value>>())
}

fn rounded(values: &[f64]) -> Value {
    values.iter().map(|value| round(*value)).collect()
}

fn round(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace() -> Trace {
        let layer = |layer, early: Option<[u32; 4]>| LayerTrace {
            layer,
            experts: vec![0, 2, 1, 0],
            weights: vec![0.6543, 0.3457, 1.0, 0.0],
            early: early.map(|e| EarlyGuess(e.to_vec())),
        };
        Trace {
            model: "a \"merge\"".to_owned(),
            n_expert: 3,
            n_used: 2,
            expert_names: vec!["org/a".to_owned(), "b".to_owned(), "c".to_owned()],
            tokens: vec![1, 500],
            sequences: vec![2],
            layers: vec![layer(0, None), layer(1, Some([0, 1, 2, 0]))],
        }
    }

    #[test]
    fn a_trace_survives_the_file() {
        let text = trace().to_json(&Report::new(&trace()));
        assert_eq!(Trace::from_json(&text), Ok(trace()));
        let value: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["report"]["layers"][1]["early"]["top_k"], 0.5);
        assert_eq!(value["report"]["layers"][0]["shares"], json!([0.5, 0.25, 0.25]));
        assert_eq!(value["report"]["hit_rates"]["pinned"], json!([0.0, 0.5, 0.75, 1.0]));
    }

    #[test]
    fn what_is_no_trace_is_refused_with_a_reason() {
        let text = trace().to_json(&Report::new(&trace()));
        for (old, new, expected) in [
            ("\"n_used\":2", "\"n_used\":-2", "no routing trace: invalid value"),
            ("trace-1", "trace-9", "format: found bruce-routing-trace-9"),
            ("[0,2,1,0]", "[0,2,1,7]", "layers[0].experts: found 7, expected an expert below 3"),
            ("\"tokens\"", "\"token\"", "no routing trace: missing field `tokens`"),
        ] {
            let error = Trace::from_json(&text.replacen(old, new, 1)).expect_err(new).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        for cut in [0, 1, text.len() / 2, text.len() - 1] {
            assert!(Trace::from_json(&text[..cut]).is_err(), "the first {cut} bytes");
        }
    }
}
