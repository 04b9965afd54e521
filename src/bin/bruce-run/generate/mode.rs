//! What a call means: an answer, a conversation, or the continuation of a text.

/// What to do with a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Continue it as text.
    Continue,
    /// Answer it as one turn of a conversation.
    Answer,
    /// Converse; the prompt, if any, is the first turn.
    Converse,
}

/// What the decision rests on.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    /// `-cnv`, `-no-cnv`, or nothing.
    pub conversation: Option<bool>,
    /// `-st`.
    pub single_turn: bool,
    /// Whether a prompt was given.
    pub has_prompt: bool,
    /// Whether there is a chat template.
    pub has_template: bool,
    /// Whether somebody sits at stdin.
    pub stdin_is_terminal: bool,
}

/// Why there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Impossible {
    /// A conversation needs a template.
    NoTemplate,
    /// There is nobody to ask for a prompt.
    NoPrompt,
}

/// Decides. Where the result is [`Mode::Continue`] or [`Mode::Answer`] and there is no prompt, it is read from stdin.
///
/// # Errors
/// [`Impossible`].
pub fn choose(c: Circumstances) -> Result<Mode, Impossible> {
    let wants_chat = c.conversation.unwrap_or(c.has_template);
    if !wants_chat {
        return if c.has_prompt || !c.stdin_is_terminal {
            Ok(Mode::Continue)
        } else {
            Err(Impossible::NoPrompt)
        };
    }
    if !c.has_template {
        return Err(Impossible::NoTemplate);
    }
    let alone = c.conversation.is_none() && (c.has_prompt || !c.stdin_is_terminal);
    // With -st but without a prompt the one turn is asked for.
    let single = c.single_turn && c.has_prompt;
    Ok(if alone || single { Mode::Answer } else { Mode::Converse })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Circumstances = Circumstances {
        conversation: None,
        single_turn: false,
        has_prompt: false,
        has_template: true,
        stdin_is_terminal: true,
    };

    #[test]
    fn a_template_makes_a_conversation() {
        assert_eq!(choose(HERE), Ok(Mode::Converse));
        assert_eq!(choose(Circumstances { has_prompt: true, ..HERE }), Ok(Mode::Answer));
        let forced = Circumstances { has_prompt: true, conversation: Some(true), ..HERE };
        assert_eq!(choose(forced), Ok(Mode::Converse));
        assert_eq!(choose(Circumstances { single_turn: true, ..forced }), Ok(Mode::Answer));
        assert_eq!(choose(Circumstances { single_turn: true, ..HERE }), Ok(Mode::Converse));
    }

    #[test]
    fn without_a_template_text_is_continued() {
        let plain = Circumstances { has_template: false, has_prompt: true, ..HERE };
        assert_eq!(choose(plain), Ok(Mode::Continue));
        assert_eq!(choose(Circumstances { has_prompt: false, ..plain }), Err(Impossible::NoPrompt));
        assert_eq!(choose(Circumstances { conversation: Some(true), ..plain }), Err(Impossible::NoTemplate));
        let raw = Circumstances { conversation: Some(false), has_prompt: true, ..HERE };
        assert_eq!(choose(raw), Ok(Mode::Continue));
    }

    #[test]
    fn a_pipe_is_a_prompt() {
        let piped = Circumstances { stdin_is_terminal: false, ..HERE };
        assert_eq!(choose(piped), Ok(Mode::Answer));
        assert_eq!(choose(Circumstances { has_template: false, ..piped }), Ok(Mode::Continue));
        assert_eq!(choose(Circumstances { conversation: Some(true), ..piped }), Ok(Mode::Converse));
    }
}
