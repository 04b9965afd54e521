//! What is looked at in a file beside its weights, and what is wrong with it.

use gguf::Gguf;
use model_spec::HyperParams;
use runtime::chat::{ChatTemplate, Message, Role};
use runtime::tokenizer::{AddBos, Special, Tokenizer};

/// What is wrong with a file beside its weights: hyperparameters, tokenizer, end tokens, chat template.
pub fn metadata(file: &Gguf) -> Vec<String> {
    let mut problems = Vec::new();
    if let Err(error) = HyperParams::from_gguf(file) {
        // Every problem is said of the file, so it is named once.
        let (error, path) = (error.to_string(), format!("{}: ", file.path().display()));
        problems.push(error.strip_prefix(&path).unwrap_or(&error).to_owned());
    }
    match Tokenizer::from_metadata(file.metadata()) {
        Ok(tokenizer) => {
            problems.extend(round_trips(&tokenizer));
            problems.extend(chat(file, &tokenizer));
        }
        Err(error) => problems.push(format!("tokenizer: {error}")),
    }
    problems
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
