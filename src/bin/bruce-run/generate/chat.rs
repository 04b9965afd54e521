//! A conversation: turns typed and turns answered.

use super::answer::{Engine, Stop};
use super::args::Config;
use super::dialogue::Dialogue;
use super::screen::Screen;
use crate::Ended;
use crate::cli::values::unescape;
use crate::interrupt::Stoppable;
use runtime::tokenizer::TokenId;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use std::io::{BufRead, IsTerminal};

const HELP: &str = "\
/regen  answer the last question again
/clear  forget the conversation
/exit   leave (Ctrl-D does it too)
Ctrl-C stops an answer, and leaves at the prompt.";

/// Where a user's turns come from.
pub enum Input {
    /// Somebody who types, with editing and a history.
    Terminal(Box<DefaultEditor>),
    /// A pipe: a line, a turn.
    Pipe,
}

/// What came from there.
enum Turn {
    Text(String),
    End,
    Interrupted,
}

impl Input {
    /// Stdin of this process.
    ///
    /// # Errors
    /// Where the terminal can't be set up.
    pub fn new() -> Result<Self, anyhow::Error> {
        if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
            return Ok(Input::Terminal(Box::new(DefaultEditor::new()?)));
        }
        Ok(Input::Pipe)
    }

    fn next(&mut self) -> Result<Turn, anyhow::Error> {
        match self {
            Input::Terminal(editor) => match editor.readline("> ") {
                Ok(line) => {
                    // A line that can't be remembered is still a turn.
                    let _ = editor.add_history_entry(line.as_str());
                    Ok(Turn::Text(line))
                }
                Err(ReadlineError::Eof) => Ok(Turn::End),
                Err(ReadlineError::Interrupted) => Ok(Turn::Interrupted),
                Err(error) => Err(error.into()),
            },
            Input::Pipe => {
                let mut line = String::new();
                match std::io::stdin().lock().read_line(&mut line)? {
                    0 => Ok(Turn::End),
                    _ => Ok(Turn::Text(line.trim_end_matches(['\n', '\r']).to_owned())),
                }
            }
        }
    }
}

/// Answers turn after turn, until there is none.
///
/// # Errors
/// Where computing, reading or showing fails.
pub fn converse(
    config: &Config,
    engine: &mut Engine,
    dialogue: &mut Dialogue,
) -> Result<Ended, anyhow::Error> {
    let mut input = Input::new()?;
    if matches!(input, Input::Terminal(_)) {
        bruce::say!("/help lists the commands");
    }
    let mut next = config.prompt.clone().map(Turn::Text);
    loop {
        let text = match next.take().map_or_else(|| input.next(), Ok)? {
            Turn::Text(text) => text,
            Turn::End => return Ok(Ended::Done),
            Turn::Interrupted => return Ok(Ended::Interrupted),
        };
        match text.trim() {
            "" => continue,
            "/exit" | "/quit" => return Ok(Ended::Done),
            "/help" => {
                bruce::say!("{HELP}");
                continue;
            }
            "/clear" => {
                dialogue.clear();
                engine.reset();
                continue;
            }
            "/regen" => {
                if !dialogue.ask_again()? {
                    bruce::say!("there is no answer yet");
                    continue;
                }
            }
            _ if config.escape => dialogue.ask(&unescape(&text))?,
            _ => dialogue.ask(&text)?,
        }
        answer(engine, dialogue)?;
        if config.single_turn {
            return Ok(Ended::Done);
        }
    }
}

/// Answers the last question. An answer that is stopped stays in the conversation as far as it came.
fn answer(engine: &mut Engine, dialogue: &mut Dialogue) -> Result<(), anyhow::Error> {
    let prompt = fitting_prompt(engine, dialogue)?;
    let stoppable = Stoppable::new(&engine.session().stop_flag());
    let mut screen = Screen::new();
    let answer = engine.answer(&prompt, &mut |text| screen.show(text))?;
    drop(stoppable);
    screen.end_line()?;
    super::say_why(answer.stop, engine);
    if answer.stop == Stop::Interrupted {
        bruce::say!("(stopped)");
    }
    dialogue.answered(prompt, &answer, engine.session().model().tokenizer());
    Ok(())
}

/// The conversation as tokens, without its oldest turns where all of them do not leave room for an answer.
pub fn fitting_prompt(engine: &Engine, dialogue: &mut Dialogue) -> Result<Vec<TokenId>, anyhow::Error> {
    let n_ctx = engine.session().n_ctx();
    // An answer should have some room: an eighth of the context, at most 256 tokens.
    let n_most = n_ctx - (n_ctx / 8).min(256);
    loop {
        let prompt = dialogue.prompt(engine.session().model().tokenizer());
        if prompt.len() <= n_most || !dialogue.forget_oldest()? {
            return Ok(prompt);
        }
        bruce::say!(
            "the context of {n_ctx} tokens is full: the oldest question and its answer are forgotten"
        );
    }
}
