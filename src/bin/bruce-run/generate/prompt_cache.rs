//! A file with what was computed before, of which a prompt may be the continuation.

use anyhow::Context;
use runtime::session::Session;
use runtime::tokenizer::TokenId;
use std::path::PathBuf;

/// A file and when it is written.
#[derive(Clone, Debug)]
pub struct PromptCache {
    /// The file.
    pub path: PathBuf,
    /// When it is written.
    pub written: Written,
}

/// When the file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// As soon as the first prompt is read.
    WithThePrompt,
    /// At the end, with all that was said.
    AtTheEnd,
    /// Not at all.
    Never,
}

impl PromptCache {
    /// Brings the session to where the file left off, and says how far that is; none where there is no file.
    ///
    /// # Errors
    /// Where there is a file that can't be used: it may be something else that was named by mistake.
    pub fn load(&self, session: &mut Session) -> Result<Vec<TokenId>, anyhow::Error> {
        let loaded = session.load_prompt(&self.path).map_err(|error| {
            let hint = "give another file with --prompt-cache, or remove this one";
            bruce::exit::with_hint(anyhow::Error::new(error), hint)
        })?;
        if loaded.is_none() && self.written == Written::Never {
            let name = bruce::terminal::neutral_line(&self.path.display().to_string());
            eprintln!("warning: {name}: there is no prompt cache");
        }
        Ok(loaded.unwrap_or_default())
    }

    /// Writes the file.
    ///
    /// # Errors
    /// Where that fails; the old one stays then.
    pub fn save(&self, session: &Session, tokens: &[TokenId]) -> Result<(), anyhow::Error> {
        session.save_prompt(&self.path, tokens).context("--prompt-cache: cannot save")
    }
}
