//! What was measured about files: the JSON of `bruce-run perplexity` and `kl-divergence`.

use std::path::PathBuf;

use anyhow::{Context, bail};
use serde_json::{Deserializer, Value};

use super::facts::FileFacts;

/// Far more than any list of measurements.
const MAX_BYTES: u64 = 16 << 20;

/// A number with its standard error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Number {
    pub value: f64,
    pub error: Option<f64>,
}

/// What was measured about one file.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The file's name.
    pub model: String,
    /// What it was compared with.
    pub base: Option<String>,
    pub perplexity: Option<Number>,
    /// Mean Kullback-Leibler divergence from the base, in nats.
    pub kld: Option<Number>,
    /// Share of tokens whose most probable successor is the base's, 0 to 1.
    pub same_top: Option<Number>,
}

impl Measured {
    /// Whether this is about that file, by the name of any of its parts.
    pub fn is_of(&self, file: &FileFacts) -> bool {
        file.parts.iter().any(|(name, _, _)| *name == self.model)
    }
}

/// All measurements in these files, one object after the other or in lists.
///
/// # Errors
/// A file can't be read, is no JSON, or does not say what was measured.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Measured>, anyhow::Error> {
    let mut found = Vec::new();
    for path in paths {
        let shown = path.display();
        let meta = path.metadata().with_context(|| format!("{shown}: cannot open"))?;
        if !meta.is_file() || meta.len() > MAX_BYTES {
            bail!("{shown}: found something else, expected a file of measurements");
        }
        let text = std::fs::read_to_string(path).with_context(|| format!("{shown}: cannot read"))?;
        let before = found.len();
        for value in Deserializer::from_str(&text).into_iter::<Value>() {
            let value = value.with_context(|| format!("{shown}: cannot read JSON"))?;
            let one = std::slice::from_ref(&value);
            for object in value.as_array().map_or(one, Vec::as_slice) {
                match measured(object) {
                    Ok(measured) => found.push(measured),
                    Err(field) => bail!(
                        "{shown}: {field}: found none, expected what bruce-run perplexity --json or kl-divergence --json \
                         prints"
                    ),
                }
            }
        }
        if found.len() == before {
            bail!("{shown}: found no measurement, expected one at least");
        }
    }
    Ok(found)
}

/// The measurement of an object, or the field that it lacks.
fn measured(object: &Value) -> Result<Measured, &'static str> {
    // A number, alone or with its error in an object.
    let number = |key: &str| match &object[key] {
        Value::Number(n) => Some(Number { value: n.as_f64()?, error: object["error"].as_f64() }),
        other => Some(Number { value: other["value"].as_f64()?, error: other["error"].as_f64() }),
    };
    let name = |key: &str| {
        let text = object[key].as_str()?;
        text.rsplit(['/', '\\']).next().filter(|name| !name.is_empty()).map(str::to_owned)
    };
    let measured = Measured {
        model: name("model").ok_or("model")?,
        base: name("base"),
        perplexity: number("perplexity"),
        kld: number("kld"),
        same_top: number("same_top"),
    };
    if measured.perplexity.is_none() && measured.kld.is_none() {
        return Err("perplexity");
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_programs_are_understood() {
        let perplexity = measured(&json!({"model": "a/m.gguf", "perplexity": 5.5, "error": 0.1})).unwrap();
        assert_eq!(perplexity.perplexity, Some(Number { value: 5.5, error: Some(0.1) }));
        assert_eq!((perplexity.model.as_str(), perplexity.kld), ("m.gguf", None));
        let kld = json!({"model": "m.gguf", "base": "b.logits", "kld": {"value": 0.02, "error": 0.001},
            "perplexity": {"value": 6, "error": null}, "same_top": {"value": 0.9, "error": 0.01}});
        let kld = measured(&kld).unwrap();
        assert_eq!(kld.kld.map(|n| n.value), Some(0.02));
        assert_eq!(kld.perplexity, Some(Number { value: 6.0, error: None }));
        assert_eq!(measured(&json!({"perplexity": 1.0})), Err("model"));
        assert_eq!(measured(&json!({"model": "m"})), Err("perplexity"));
        assert_eq!(measured(&json!(7)), Err("model"));
    }
}
