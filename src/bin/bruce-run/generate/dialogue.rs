//! A conversation as tokens: what the model has read, and what comes next.

use super::answer::{Answer, Stop};
use runtime::chat::{ChatTemplate, Conversation, Error, Message, Piece, Role, Turn};
use runtime::tokenizer::{AddBos, Segment, Special, TokenId, Tokenizer};

/// The turns so far, and the tokens they became.
pub struct Dialogue {
    template: ChatTemplate,
    system: Option<String>,
    conversation: Conversation,
    /// What the next prompt adds.
    turn: Option<Turn>,
    /// Everything up to the end of the last answer's words.
    read: Vec<TokenId>,
}

impl Dialogue {
    /// Nothing was said yet but the system prompt.
    pub fn new(template: ChatTemplate, system: Option<String>) -> Self {
        let conversation = Conversation::new(template.clone(), system.as_deref());
        Dialogue { template, system, conversation, turn: None, read: Vec::new() }
    }

    /// Says something to the model.
    ///
    /// # Errors
    /// Where the template fails or refuses; nothing was said then.
    pub fn ask(&mut self, text: &str) -> Result<(), Error> {
        self.turn = Some(self.conversation.user(text)?);
        Ok(())
    }

    /// Takes the last answer back, so that the question before it can be answered again. False where there is none.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn ask_again(&mut self) -> Result<bool, Error> {
        let question = self.conversation.messages().iter().rfind(|m| m.role == Role::User);
        let Some(question) = question.map(|m| m.content.clone()) else { return Ok(false) };
        self.conversation.undo();
        self.ask(&question)?;
        Ok(true)
    }

    /// Forgets everything but the system prompt.
    pub fn clear(&mut self) {
        *self = Dialogue::new(self.template.clone(), self.system.take());
    }

    /// The whole conversation up to where the next answer begins.
    pub fn prompt(&self, tokenizer: &Tokenizer) -> Vec<TokenId> {
        let Some(turn) = &self.turn else { return Vec::new() };
        let segments: Vec<Segment<'_>> = turn.pieces.iter().map(Piece::segment).collect();
        if !turn.continues {
            return tokenizer.encode_segments(&segments, AddBos::Auto);
        }
        let mut ids = self.read.clone();
        ids.extend(tokenizer.encode_segments(&segments, AddBos::Continue));
        ids
    }

    /// Notes the answer that was given to `prompt`.
    pub fn answered(&mut self, prompt: Vec<TokenId>, answer: &Answer, tokenizer: &Tokenizer) {
        self.read = prompt;
        let chosen = answer.tokens.iter().map(|chosen| chosen.id);
        match answer.stop {
            // The tokens say more than the answer does.
            Stop::Word => {
                self.read.extend(tokenizer.encode(&answer.text, Special::Literal, AddBos::Continue))
            }
            _ => self.read.extend(chosen.filter(|id| !tokenizer.is_end_of_generation(*id))),
        }
        self.conversation.assistant(&answer.text);
        self.turn = None;
    }

    /// Forgets the oldest question and its answer; the question to be answered next stays. False where that is the
    /// only one.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn forget_oldest(&mut self) -> Result<bool, Error> {
        let messages = self.conversation.messages().to_vec();
        let mut questions = messages.iter().enumerate().filter(|(_, m)| m.role == Role::User).map(|(i, _)| i);
        let (Some(_), Some(second)) = (questions.next(), questions.next()) else { return Ok(false) };
        self.clear();
        for message in &messages[second..] {
            self.say(message)?;
        }
        Ok(true)
    }

    fn say(&mut self, message: &Message) -> Result<(), Error> {
        match message.role {
            Role::User => self.ask(&message.content),
            Role::Assistant => {
                self.conversation.assistant(&message.content);
                Ok(())
            }
            Role::System => Ok(()),
        }
    }
}
