//! Tells in a rendered chat which text the template wrote and which came from a message.
//!
//! The messages are rendered with marks around their text: characters of Unicode's private-use planes that neither
//! template nor messages contain, chosen for each rendering, so that nobody can type them. White space at the ends of
//! a message stays outside its marks, so that templates that trim it still do.
//!
//! A template that looks into a message may do other things when marks are there. So the result counts only if it
//! differs from the plain rendering in the marks alone. Otherwise every character of every message is marked, which
//! survives any cutting and joining; such a template then sees text that it does not recognise, and text stays text.

use super::engine::Engine;
use super::{Error, Message, Piece, Source};
use std::collections::HashSet;

/// Characters that mean nothing to anybody: planes 15 and 16, without their last two code points.
fn private_use() -> impl Iterator<Item = char> {
    ('\u{f0000}'..='\u{ffffd}').chain('\u{100000}'..='\u{10fffd}')
}

/// The rendered chat in pieces, none of them empty; neighbours differ in their source.
pub(super) fn render(
    engine: &Engine,
    messages: &[Message],
    add_generation_prompt: bool,
) -> Result<Vec<Piece>, Error> {
    let plain = engine.render(messages, add_generation_prompt)?;
    let used: HashSet<char> = messages
        .iter()
        .flat_map(|m| m.content.chars())
        .chain(engine.source().chars())
        .chain(plain.chars())
        .collect();
    let mut free = private_use().filter(|c| !used.contains(c));
    let close = free.next();
    let open: Vec<char> = free.take(messages.len()).collect();
    let (Some(close), true) = (close, open.len() == messages.len()) else {
        return Err(Error::Marks { n_messages: messages.len() });
    };
    let around: Vec<Message> =
        messages.iter().zip(&open).map(|(message, &open)| mark_around(message, open, close)).collect();
    // A template may fail on marked text that it cannot make sense of; so this one may fail, too.
    if let Ok(marked) = engine.render(&around, add_generation_prompt)
        && let Some(pieces) = split_around(&marked, &open, close)
        && text_of(&pieces) == plain
    {
        return Ok(pieces);
    }
    let each: Vec<Message> =
        messages.iter().zip(&open).map(|(message, &open)| mark_each(message, open)).collect();
    Ok(split_each(&engine.render(&each, add_generation_prompt)?, &open))
}

/// All pieces as one text.
pub(super) fn text_of(pieces: &[Piece]) -> String {
    pieces.iter().map(|piece| piece.text.as_str()).collect()
}

/// The message whose mark `c` is.
fn marked_by(c: char, open: &[char]) -> Option<usize> {
    if c < '\u{f0000}' { None } else { open.iter().position(|&mark| mark == c) }
}

fn mark_around(message: &Message, open: char, close: char) -> Message {
    let core = message.content.trim();
    let content = if core.is_empty() {
        message.content.clone()
    } else {
        let start = message.content.len() - message.content.trim_start().len();
        let (before, after) = (&message.content[..start], &message.content[start + core.len()..]);
        format!("{before}{open}{core}{close}{after}")
    };
    Message { role: message.role, content }
}

/// None if the marks are not in pairs.
fn split_around(marked: &str, open: &[char], close: char) -> Option<Vec<Piece>> {
    let mut pieces = Pieces::default();
    let mut inside = None;
    for c in marked.chars() {
        if c == close {
            inside.take()?;
        } else if let Some(i) = marked_by(c, open) {
            if inside.replace(Source::Message(i)).is_some() {
                return None;
            }
        } else {
            pieces.push(c, inside.unwrap_or(Source::Template));
        }
    }
    inside.is_none().then_some(pieces.0)
}

fn mark_each(message: &Message, open: char) -> Message {
    let mut content = String::with_capacity(2 * message.content.len());
    for c in message.content.chars() {
        if !c.is_whitespace() {
            content.push(open);
        }
        content.push(c);
    }
    Message { role: message.role, content }
}

fn split_each(marked: &str, open: &[char]) -> Vec<Piece> {
    let mut pieces = Pieces::default();
    let mut next = Source::Template;
    for c in marked.chars() {
        match marked_by(c, open) {
            Some(i) => next = Source::Message(i),
            None => pieces.push(c, std::mem::replace(&mut next, Source::Template)),
        }
    }
    // White space carries no mark; between two characters of one message it is that message's.
    let mut joined = Pieces::default();
    let pieces = pieces.0;
    for (i, piece) in pieces.iter().enumerate() {
        let neighbours = (i.checked_sub(1).and_then(|i| pieces.get(i)), pieces.get(i + 1));
        let source = match neighbours {
            (Some(before), Some(after)) if before.source == after.source && piece.text.trim().is_empty() => {
                before.source
            }
            _ => piece.source,
        };
        piece.text.chars().for_each(|c| joined.push(c, source));
    }
    joined.0
}

/// Collects characters into pieces.
#[derive(Default)]
struct Pieces(Vec<Piece>);

impl Pieces {
    fn push(&mut self, c: char, source: Source) {
        match self.0.last_mut() {
            Some(last) if last.source == source => last.text.push(c),
            _ => self.0.push(Piece { text: c.to_string(), source }),
        }
    }
}
