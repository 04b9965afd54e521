//! What is looked at in a file, and what is wrong with it.

use gguf::{Gguf, TensorInfo};
use model_spec::HyperParams;
use runtime::chat::{ChatTemplate, Message, Role};
use runtime::tokenizer::{AddBos, Special, Tokenizer};

/// What a check found.
pub struct Findings {
    /// What is wrong, each with the place.
    pub problems: Vec<String>,
    /// Tensors whose values were looked at.
    pub n_checked: usize,
    /// Names of tensors whose type can't be decoded here.
    pub unchecked: Vec<String>,
}

/// Looks at the whole file.
pub fn all(file: &Gguf) -> Findings {
    let mut findings = Findings { problems: Vec::new(), n_checked: 0, unchecked: Vec::new() };
    if let Err(error) = HyperParams::from_gguf(file) {
        findings.problems.push(error.to_string());
    }
    for tensor in file.tensors() {
        if !quants::can_dequantize(tensor.ty) {
            findings.unchecked.push(tensor.name.clone());
            continue;
        }
        findings.n_checked += 1;
        findings.problems.extend(not_finite(file, tensor));
    }
    match Tokenizer::from_metadata(file.metadata()) {
        Ok(tokenizer) => {
            findings.problems.extend(round_trips(&tokenizer));
            findings.problems.extend(chat(file, &tokenizer));
        }
        Err(error) => findings.problems.push(format!("tokenizer: {error}")),
    }
    findings
}

/// Weights decoded at once.
const CHUNK: usize = 1 << 16;

/// The first weight that is NaN or infinite, with its block and its expert: that of a scale makes all of its block so.
fn not_finite(file: &Gguf, tensor: &TensorInfo) -> Option<String> {
    let (len, bytes) = (tensor.ty.block_len(), tensor.ty.block_bytes());
    let blocks_at_once = CHUNK / len;
    let mut values = vec![0f32; CHUNK];
    for (i, data) in file.data(tensor).chunks(blocks_at_once * bytes).enumerate() {
        let values = &mut values[..data.len() / bytes * len];
        if let Err(error) = quants::dequantize(tensor.ty, data, values) {
            return Some(format!("tensor {}: {error}", tensor.name));
        }
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let index = i * blocks_at_once * len + at;
            let matrix = tensor.ne.iter().take(2).product::<u64>().max(1) as usize;
            let expert = match tensor.ne.get(2) {
                Some(n) if *n > 1 => format!(" of expert {}", index / matrix),
                _ => String::new(),
            };
            let (name, value, block) = (&tensor.name, values[at], index / len);
            return Some(format!(
                "tensor {name}: found {value} in block {block}{expert}, expected finite weights"
            ));
        }
    }
    None
}

const TEXTS: [&str; 4] = [
    "The quick brown fox jumps over the lazy dog.",
    "Zwölf Boxkämpfer — 12,345.67 €, naïve café",
    "fn main() {\n    println!(\"{}\", 1 << 3);\n}\n",
    "日本語 русский 🦀",
];

/// Texts that don't come back from their tokens, and end tokens that there are none of.
fn round_trips(tokenizer: &Tokenizer) -> Vec<String> {
    let mut problems = Vec::new();
    for text in TEXTS {
        let ids = tokenizer.encode(text, Special::Literal, AddBos::Never);
        let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id).to_vec()).collect();
        // SentencePiece puts a space before a text.
        if bytes.strip_prefix(b" ").unwrap_or(&bytes) != text.as_bytes() && bytes != text.as_bytes() {
            let found = String::from_utf8_lossy(&bytes).into_owned();
            problems.push(format!("tokenizer: found {found:?} after a round trip, expected {text:?}"));
        }
    }
    if tokenizer.end_of_generation().is_empty() {
        problems.push("tokenizer: found no token that ends an answer, expected one".to_owned());
    }
    problems
}

/// Whether the chat template renders a short chat, and keeps what is said in it.
fn chat(file: &Gguf, tokenizer: &Tokenizer) -> Option<String> {
    let template = match ChatTemplate::from_metadata(file.metadata(), tokenizer) {
        Ok(template) => template?,
        Err(error) => return Some(format!("chat template: {error}")),
    };
    let question = Message::new(Role::User, "What is a router?");
    let chat = [question, Message::new(Role::Assistant, "It chooses."), Message::new(Role::User, "Whom?")];
    match template.render(&chat, true) {
        Err(error) => Some(format!("chat template: {error}")),
        Ok(pieces) => {
            let text: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
            let lost = chat.iter().find(|message| !text.contains(message.content.as_str()));
            lost.map(|message| {
                format!("chat template: found no {:?} in the chat, expected it", message.content)
            })
        }
    }
}
