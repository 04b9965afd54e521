//! What a user asks for about types, in llama-quantize's words.

use std::path::Path;

use fancy_regex::Regex;
use model_spec::{TensorId, TensorRole};
use quants::TensorType;

use super::ExpertTypes;

/// Types that the user decides. Nothing set is llama.cpp's recipe.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Every tensor that can be quantized gets the file type's own type (`--pure`).
    pub pure: bool,
    /// The output matrix stays as it is (`--leave-output-tensor`).
    pub leave_output: bool,
    /// The output matrix's type (`--output-tensor-type`).
    pub output_type: Option<TensorType>,
    /// The token embeddings' type (`--token-embedding-type`).
    pub token_embedding_type: Option<TensorType>,
    /// Types by name; the first that fits decides (`--tensor-type`).
    pub tensor_types: Vec<TypeRule>,
    /// Types by layer and expert, for what no type by name fits.
    pub expert_types: Option<ExpertTypes>,
}

impl Rules {
    /// Whether a rule about the embeddings or the output matrix says what becomes of a tensor.
    pub(crate) fn by_role(&self, id: &TensorId) -> bool {
        match id.role {
            TensorRole::Output => self.leave_output || self.output_type.is_some(),
            TensorRole::TokenEmbd => self.token_embedding_type.is_some(),
            _ => false,
        }
    }

    /// The type that a rule by name or by expert gives a tensor.
    pub(crate) fn named(&self, id: &TensorId) -> Option<TensorType> {
        let name = id.name();
        let by_name = self.tensor_types.iter().find(|rule| rule.fits(&name)).map(|rule| rule.ty);
        by_name.or_else(|| self.expert_types.as_ref()?.of(id))
    }

    /// The rules that fit none of the tensors, as the user wrote them.
    pub(crate) fn unused(&self, ids: impl Iterator<Item = TensorId>) -> Vec<&str> {
        let names: Vec<String> = ids.map(|id| id.name()).collect();
        let unused = |rule: &&TypeRule| !names.iter().any(|name| rule.fits(name));
        self.tensor_types.iter().filter(unused).map(|rule| rule.text.as_str()).collect()
    }
}

/// A type for all tensors whose names a pattern is found in.
#[derive(Debug, Clone)]
pub struct TypeRule {
    text: String,
    pattern: Regex,
    ty: TensorType,
}

/// A rule that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: found {found}, expected {expected}")]
pub struct RuleError {
    /// The option, or file and line.
    pub place: String,
    /// What stands there.
    pub found: String,
    /// What would be accepted.
    pub expected: String,
}

impl RuleError {
    pub(crate) fn new(place: &str, found: &str, expected: impl Into<String>) -> RuleError {
        let found = found.chars().take(64).map(|c| if c.is_control() { '?' } else { c }).collect();
        RuleError { place: place.to_owned(), found, expected: expected.into() }
    }
}

impl TypeRule {
    /// The rule of `PATTERN=TYPE`. The pattern is a regular expression that is searched for anywhere in a name, without
    /// regard to case, as llama-quantize does; the type is one tensor's (`q6_k`), not a file's (`q4_k_m`).
    ///
    /// # Errors
    /// There is no `=`, a side of it is empty, the pattern is no regular expression, or nothing has such a type.
    pub fn parse(text: &str, place: &str) -> Result<TypeRule, RuleError> {
        let malformed = || RuleError::new(place, text, "PATTERN=TYPE, such as attn_v=q8_0");
        let (pattern, ty) = text.split_once('=').ok_or_else(malformed)?;
        if pattern.is_empty() || ty.is_empty() {
            return Err(malformed());
        }
        // Names are in lower case, and llama-quantize takes patterns to it.
        let pattern = Regex::new(&pattern.to_ascii_lowercase())
            .map_err(|e| RuleError::new(place, pattern, format!("a regular expression ({e})")))?;
        Ok(TypeRule { text: text.to_owned(), pattern, ty: tensor_type(ty, place)? })
    }

    /// The rules of a file: as many as there are words in it.
    ///
    /// # Errors
    /// As for one rule; the error names the line.
    pub fn parse_file(path: &Path, text: &str) -> Result<Vec<TypeRule>, RuleError> {
        let mut rules = Vec::new();
        for (i, line) in text.lines().enumerate() {
            for word in line.split_whitespace() {
                rules.push(TypeRule::parse(word, &format!("{}:{}", path.display(), i + 1))?);
            }
        }
        Ok(rules)
    }

    fn fits(&self, name: &str) -> bool {
        // An error means that the search gave up on a pattern that tries too many ways.
        self.pattern.is_match(name).unwrap_or(false)
    }
}

/// The type of a name, if weights can be stored in it.
///
/// # Errors
/// There is no such type, or no weights have it.
pub fn tensor_type(name: &str, place: &str) -> Result<TensorType, RuleError> {
    let can = |ty: &TensorType| crate::block::can_quantize(*ty);
    TensorType::from_name(name).filter(can).ok_or_else(|| {
        let names: Vec<String> =
            TensorType::ALL.iter().filter(|ty| can(ty)).map(|ty| ty.name().to_lowercase()).collect();
        RuleError::new(place, name, format!("the type of a tensor: {}", names.join(", ")))
    })
}
