//! Types by layer and expert, from a table in a text file.
//!
//! Each line has three or four columns, separated by spaces: layers, experts, optionally a projection, and a type.
//! Layers and experts are numbers and ranges joined by commas (`0,4-7`), or `*` for all; a projection is `gate`, `up`,
//! `down` or `*`. The first line that fits decides; an expert that none fits follows the rest of the rules. Empty
//! lines are skipped, and so is everything after a `#`.
//!
//! ```text
//! # layers  experts  projection  type
//! 0-3       2        *           q8_0
//! *         2        down        q6_k
//! *         0,1                  iq3_s
//! ```

use std::path::Path;

use model_spec::{HyperParams, TensorId, TensorRole};
use quants::TensorType;

use super::rules::{RuleError, tensor_type};

/// Types for single experts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExpertTypes {
    rows: Vec<Row>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    place: String,
    layers: Numbers,
    experts: Numbers,
    projection: Option<TensorRole>,
    ty: TensorType,
}

impl ExpertTypes {
    /// The table in a file's text; `path` is for messages.
    ///
    /// # Errors
    /// A line has another number of columns, or a column is not what it must be. The error names the line.
    pub fn parse(path: &Path, text: &str) -> Result<ExpertTypes, RuleError> {
        let mut rows = Vec::new();
        for (i, line) in text.lines().enumerate() {
            let place = format!("{}:{}", path.display(), i + 1);
            let content = line.split('#').next().unwrap_or_default();
            let columns: Vec<&str> = content.split_whitespace().collect();
            let (layers, experts, projection, ty) = match columns[..] {
                [] => continue,
                [layers, experts, ty] => (layers, experts, "*", ty),
                [layers, experts, projection, ty] => (layers, experts, projection, ty),
                _ => {
                    return Err(RuleError::new(&place, line.trim(), "LAYERS EXPERTS [PROJECTION] TYPE"));
                }
            };
            let projection = match projection {
                "*" => None,
                "gate" => Some(TensorRole::FfnGate),
                "up" => Some(TensorRole::FfnUp),
                "down" => Some(TensorRole::FfnDown),
                other => return Err(RuleError::new(&place, other, "gate, up, down or *")),
            };
            let ty = tensor_type(ty, &place)?;
            let (layers, experts) = (Numbers::parse(layers, &place)?, Numbers::parse(experts, &place)?);
            rows.push(Row { place, layers, experts, projection, ty });
        }
        Ok(ExpertTypes { rows })
    }

    /// Whether the table has no line that says anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The type of one expert's projection; `None` for other tensors and where no line fits.
    pub(super) fn of(&self, id: &TensorId) -> Option<TensorType> {
        let (layer, expert) = (id.layer?, id.expert?);
        let fits = |row: &&Row| {
            row.layers.hold(layer)
                && row.experts.hold(expert)
                && row.projection.is_none_or(|role| role == id.role)
        };
        self.rows.iter().find(fits).map(|row| row.ty)
    }

    /// Checks that the model has the layers and experts that the table names.
    ///
    /// # Errors
    /// It has not; the error names the line.
    pub(crate) fn check(&self, hparams: &HyperParams) -> Result<(), RuleError> {
        for row in &self.rows {
            for (what, numbers, n) in
                [("layer", &row.layers, hparams.n_layer), ("expert", &row.experts, hparams.n_expert)]
            {
                if let Some(bad) = numbers.largest().filter(|largest| *largest >= n) {
                    let expected = format!("less than {n}, as many as the model has");
                    return Err(RuleError::new(&row.place, &format!("{what} {bad}"), expected));
                }
            }
        }
        Ok(())
    }
}

/// Some numbers, or all (`None`).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Numbers(Option<Vec<std::ops::RangeInclusive<u32>>>);

impl Numbers {
    fn parse(text: &str, place: &str) -> Result<Numbers, RuleError> {
        if text == "*" {
            return Ok(Numbers(None));
        }
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (first.parse().ok()?, last.parse().ok()?);
            (first <= last).then_some(first..=last)
        };
        let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
        match ranges {
            Some(ranges) => Ok(Numbers(Some(ranges))),
            None => Err(RuleError::new(place, text, "numbers such as 0,4-7, or *")),
        }
    }

    fn hold(&self, n: u32) -> bool {
        self.0.as_ref().is_none_or(|ranges| ranges.iter().any(|range| range.contains(&n)))
    }

    fn largest(&self) -> Option<u32> {
        self.0.as_ref()?.iter().map(|range| *range.end()).max()
    }
}
