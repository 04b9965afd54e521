//! A chat over several turns, of which the model reads every text once.

use super::marks::text_of;
use super::{ChatTemplate, Error, Message, Piece, Role, Source};

/// What the model must read next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The text, up to where the answer begins.
    pub pieces: Vec<Piece>,
    /// Whether the text goes on from what the model has read (up to and including its own answer's words, without the
    /// token that ended it). If not, the template has rewritten the past, or this is the first turn: the model must
    /// forget everything and read `pieces` as the whole chat.
    pub continues: bool,
}

/// The messages of a chat.
#[derive(Clone, Debug)]
pub struct Conversation {
    template: ChatTemplate,
    messages: Vec<Message>,
    /// The whole text up to the last answer, once a turn has been asked for.
    read: Option<String>,
}

impl Conversation {
    /// A chat that begins with `system`, if there is any.
    pub fn new(template: ChatTemplate, system: Option<&str>) -> Self {
        let messages = system.map(|text| Message::new(Role::System, text)).into_iter().collect();
        Conversation { template, messages, read: None }
    }

    /// The messages so far.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Says `text` to the model.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::render`]; the chat is then as before.
    pub fn user(&mut self, text: &str) -> Result<Turn, Error> {
        self.messages.push(Message::new(Role::User, text));
        let whole = match self.template.render(&self.messages, true) {
            Ok(whole) => whole,
            Err(error) => {
                self.messages.pop();
                return Err(error);
            }
        };
        let rest = self.read.as_deref().and_then(|read| self.unread(read, &whole));
        self.read = Some(text_of(&whole));
        Ok(match rest {
            Some(pieces) => Turn { pieces, continues: true },
            None => Turn { pieces: whole, continues: false },
        })
    }

    /// Notes the model's answer, as it was generated.
    pub fn assistant(&mut self, text: &str) {
        self.messages.push(Message::new(Role::Assistant, text));
    }

    /// Takes back the last question, and its answer if there is one; the next turn starts afresh.
    pub fn undo(&mut self) {
        if let Some(i) = self.messages.iter().rposition(|message| message.role == Role::User) {
            self.messages.truncate(i);
        }
        self.read = None;
    }

    /// What follows the last answer in `whole`. None if what stands before that answer is not what was read: only
    /// white space in front of an answer may differ, as models write it themselves or templates do.
    fn unread(&self, read: &str, whole: &[Piece]) -> Option<Vec<Piece>> {
        let answer = self.messages.len().checked_sub(2)?;
        if self.messages[answer].role != Role::Assistant {
            return None;
        }
        let of_answer = |piece: &Piece| piece.source == Source::Message(answer);
        let first = whole.iter().position(of_answer)?;
        let last = whole.iter().rposition(of_answer)?;
        // An answer in parts was cut by the template; one that differs was changed.
        let answered = self.messages[answer].content.trim();
        if first != last || whole[first].text.trim() != answered {
            return None;
        }
        if text_of(&whole[..first]).trim_end() != read.trim_end() {
            return None;
        }
        Some(whole[last + 1..].to_vec())
    }
}
