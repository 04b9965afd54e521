//! Asking `bruce-run` for tokens with probabilities, and comparing them with what another program says.

use crate::support::{bruce_run, succeed};
use serde_json::Value;
use std::io::{Seek, Write};
use std::path::Path;

/// Number of likeliest tokens looked at in each step.
pub const N_TOP: usize = 5;

/// A continuation, token by token.
pub struct Answer {
    /// What the prompt became.
    pub prompt: Vec<u64>,
    /// The tokens chosen, in order.
    pub steps: Vec<Step>,
}

/// One token, and what else it could have been.
pub struct Step {
    /// The token chosen.
    pub id: u64,
    /// The likeliest tokens with natural log-probabilities, best first.
    pub top: Vec<(u64, f64)>,
}

impl Step {
    /// A step as the golden files, `bruce-run` and the oracle write it.
    pub fn from_json(step: &Value) -> Step {
        let top = step["top"].as_array().expect("a list").iter();
        Step {
            id: step["id"].as_u64().expect("an id"),
            top: top
                .map(|pair| (pair[0].as_u64().expect("an id"), pair[1].as_f64().expect("a number")))
                .collect(),
        }
    }

    /// The probability of a token, where it is among the likeliest.
    pub fn probability(&self, id: u64) -> Option<f64> {
        self.top.iter().find(|(other, _)| *other == id).map(|(_, logprob)| logprob.exp())
    }

    /// How much likelier the best token is than the second.
    pub fn lead(&self) -> f64 {
        self.top[0].1.exp() - self.top[1].1.exp()
    }
}

/// A JSON list of token ids.
pub fn ids(list: &Value) -> Vec<u64> {
    list.as_array().expect("a list").iter().map(|id| id.as_u64().expect("an id")).collect()
}

/// The tokens of a text as `bruce-run tokenize` gives them, without BOS.
pub fn tokenize(model: &Path, text: &str, special: bool) -> Vec<u64> {
    let mut command = bruce_run();
    command.arg("tokenize").arg(model).args(["--ids", "--no-bos", "--no-escape", "--stdin"]);
    if !special {
        command.arg("--no-parse-special");
    }
    let mut input = tempfile::tempfile().expect("a temporary file");
    input.write_all(text.as_bytes()).and_then(|()| input.rewind()).expect("the text");
    ids(&serde_json::from_str(&succeed(command.stdin(input))).expect("a list"))
}

/// The greedy continuation of a prompt by at most `n` tokens; control tokens in the prompt are recognised, and no chat
/// template is applied.
///
/// ggml's kernels compute it: they round as llama.cpp does.
pub fn ask(model: &Path, prompt: &str, n: usize, n_top: usize, flags: &[&str]) -> Answer {
    ask_with("ggml", model, prompt, n, n_top, flags)
}

/// As [`ask`], with the kernels of this name.
pub fn ask_with(kernels: &str, model: &Path, prompt: &str, n: usize, n_top: usize, flags: &[&str]) -> Answer {
    let mut command = bruce_run();
    command.arg(model).args([
        "-p",
        prompt,
        "-no-cnv",
        "--no-escape",
        "--parse-special",
        "--temp",
        "0",
        "--output",
        "json",
        "--kernels",
        kernels,
    ]);
    command.args(["-n", &n.to_string(), "--logprobs", &n_top.to_string()]).args(flags);
    let answer: Value = serde_json::from_str(&succeed(&mut command)).expect("JSON");
    let steps = answer["tokens"].as_array().expect("a list");
    assert!(!steps.is_empty() && steps.len() <= n, "{} tokens instead of {n}", steps.len());
    let last = steps[steps.len() - 1]["id"].clone();
    assert!(steps.len() == n || answer["stop"] == "eos", "stopped early at {last}: {}", answer["stop"]);
    Answer { prompt: ids(&answer["prompt_tokens"]), steps: steps.iter().map(Step::from_json).collect() }
}

/// How far two programs may be apart.
#[derive(Clone, Copy)]
pub struct Tolerance {
    /// Where the best token leads by no more than this, either may be chosen.
    pub lead: f64,
    /// Largest difference of a probability.
    pub probability: f64,
}

/// Checks one step against a step of another program after the same tokens.
///
/// # Errors
/// What differs.
pub fn agree(ours: &Step, theirs: &Step, tolerance: Tolerance) -> Result<(), String> {
    if ours.id != theirs.top[0].0 && theirs.lead() > tolerance.lead {
        let (best, lead) = (theirs.top[0].0, theirs.lead());
        return Err(format!("found token {}, expected {best}, which leads by {lead:.4}", ours.id));
    }
    // Tokens at the end of one list may be just past the end of the other, so only the first two are looked up.
    for (id, logprob) in &theirs.top[..2] {
        let found = ours.probability(*id).unwrap_or(0.0);
        let difference = (found - logprob.exp()).abs();
        if difference > tolerance.probability {
            return Err(format!("token {id}: found probability {found:.5}, expected {:.5}", logprob.exp()));
        }
    }
    Ok(())
}
