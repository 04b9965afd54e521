//! Chats as text, by a model's own template.
//!
//! A [`ChatTemplate`] renders messages into [`Piece`]s that say what the template wrote and what came from a message.
//! Only the former may name control tokens ([`crate::tokenizer::Special`]), so that nothing typed into a message can
//! end a turn or begin one. Templates are strangers' programs: they run on minijinja with bounded work and depth, and
//! reach nothing but the messages.
//!
//! A [`Conversation`] keeps the messages of a chat and gives for each turn only the text that the model has not read.

mod builtin;
mod clock;
mod conversation;
mod engine;
mod error;
mod marks;

pub use conversation::{Conversation, Turn};
pub use error::Error;

use crate::tokenizer::{Segment, Special, Tokenizer};
use engine::Engine;
use gguf::Metadata;
use model_spec::keys;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Whoever sets the stage.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The name that templates know.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said; never read as control tokens.
    pub content: String,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Message { role, content: content.into() }
    }
}

/// Where a piece of rendered text comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The template.
    Template,
    /// The message of this index.
    Message(usize),
}

/// A run of rendered text from one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The text.
    pub text: String,
    /// Where it comes from.
    pub source: Source,
}

impl Piece {
    /// The piece as a tokenizer takes it.
    pub fn segment(&self) -> Segment<'_> {
        let special = match self.source {
            Source::Template => Special::Parse,
            Source::Message(_) => Special::Literal,
        };
        Segment { text: &self.text, special }
    }
}

/// A chat template.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    engine: Engine,
    supports_system: bool,
}

impl ChatTemplate {
    /// The template `jinja`, for a model whose BOS and EOS tokens are written `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// [`Error::Syntax`] if it is not Jinja, [`Error::Endless`] if it does not end on a plain chat.
    pub fn new(jinja: &str, bos_token: &str, eos_token: &str) -> Result<Self, Error> {
        let engine = Engine::new(jinja, bos_token, eos_token)?;
        let supports_system = supports_system(&engine)?;
        Ok(ChatTemplate { engine, supports_system })
    }

    /// The template in `metadata`; None if there is none.
    ///
    /// # Errors
    /// [`Error::Syntax`] if it is not Jinja, [`Error::Metadata`] if it is not text.
    pub fn from_metadata(metadata: &Metadata, tokenizer: &Tokenizer) -> Result<Option<Self>, Error> {
        match metadata.str(keys::CHAT_TEMPLATE)? {
            Some(jinja) if !jinja.trim().is_empty() => Self::for_tokenizer(jinja, tokenizer).map(Some),
            _ => Ok(None),
        }
    }

    /// The template that a user asks for: the name of a built-in one, or Jinja.
    ///
    /// # Errors
    /// [`Error::UnknownName`] for a single word that is no name; [`Error::Syntax`] for broken Jinja.
    pub fn from_argument(name_or_jinja: &str, tokenizer: &Tokenizer) -> Result<Self, Error> {
        if let Some(jinja) = builtin::source(name_or_jinja.trim()) {
            return Self::for_tokenizer(jinja, tokenizer);
        }
        if !name_or_jinja.contains("{{") && !name_or_jinja.contains("{%") {
            return Err(Error::UnknownName {
                found: name_or_jinja.chars().take(64).collect(),
                expected: Self::names().join(", "),
            });
        }
        Self::for_tokenizer(name_or_jinja, tokenizer)
    }

    fn for_tokenizer(jinja: &str, tokenizer: &Tokenizer) -> Result<Self, Error> {
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).unwrap_or_default();
        Self::new(jinja, text(tokenizer.bos()), text(tokenizer.eos()))
    }

    /// The names of the built-in templates.
    pub fn names() -> Vec<&'static str> {
        builtin::names().collect()
    }

    /// Whether the template has a place for system text. Where it has none, [`ChatTemplate::render`] puts that text
    /// in front of the first message, on a line of its own, as llama.cpp does.
    pub fn supports_system(&self) -> bool {
        self.supports_system
    }

    /// The chat as text, with the beginning of the model's answer if `add_generation_prompt`. Indices in the pieces
    /// count `messages`; merged system text counts as the message it was merged with.
    ///
    /// # Errors
    /// [`Error::Refused`] if the template does not take these messages (many want user and assistant in turn),
    /// [`Error::Endless`] and [`Error::Render`] if it is broken.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Vec<Piece>, Error> {
        match messages {
            [first, rest @ ..] if first.role == Role::System && !self.supports_system => {
                let mut merged = rest.to_vec();
                if let Some(next) = merged.first_mut() {
                    next.content = format!("{}\n{}", first.content, next.content);
                }
                let mut pieces = marks::render(&self.engine, &merged, add_generation_prompt)?;
                for piece in &mut pieces {
                    if let Source::Message(i) = &mut piece.source {
                        *i += 1;
                    }
                }
                Ok(pieces)
            }
            _ => marks::render(&self.engine, messages, add_generation_prompt),
        }
    }
}

/// Whether system text arrives in the rendered text.
fn supports_system(engine: &Engine) -> Result<bool, Error> {
    const PROBE: &str = "b9c1f0 system probe";
    let messages = [Message::new(Role::System, PROBE), Message::new(Role::User, "Hello")];
    match engine.render(&messages, true) {
        Ok(text) => Ok(text.contains(PROBE)),
        Err(Error::Endless) => Err(Error::Endless),
        // A template may refuse the system text, or any other chat than the one to come.
        Err(_) => Ok(false),
    }
}

#[cfg(test)]
mod tests;
