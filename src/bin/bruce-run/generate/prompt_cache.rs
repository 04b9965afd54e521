//! What was computed for a prompt, kept in a file for the next run.

use anyhow::Context;
use clap::Args;
use gguf::{NewFile, Overwrite};
use runtime::Session;
use runtime::tokenizer::TokenId;
use std::path::PathBuf;

/// Flags, with llama.cpp's names.
#[derive(Debug, Args)]
pub struct PromptCacheArgs {
    /// Keep what is computed for the prompt in FILE, and begin with what is there already; whatever two prompts have in
    /// common at their beginning is computed once
    #[arg(long, value_name = "FILE")]
    prompt_cache: Option<PathBuf>,

    /// With --prompt-cache: keep the answers too, so that a conversation can go on later
    #[arg(long, requires = "prompt_cache")]
    prompt_cache_all: bool,

    /// With --prompt-cache: read the file and leave it as it is
    #[arg(long, requires = "prompt_cache", conflicts_with = "prompt_cache_all")]
    prompt_cache_ro: bool,
}

impl PromptCacheArgs {
    /// The cache asked for, if any. A place that can't be written to is found here, before anything is computed.
    ///
    /// # Errors
    /// Where the file's folder can't be written to, or a file that is only to be read is not there.
    pub fn open(&self) -> Result<Option<PromptCache>, anyhow::Error> {
        let Some(path) = self.prompt_cache.clone() else { return Ok(None) };
        if self.prompt_cache_ro {
            std::fs::metadata(&path).with_context(|| format!("{}: cannot open", path.display()))?;
        } else {
            drop(NewFile::create(&path, Overwrite::Replace)?);
        }
        Ok(Some(PromptCache {
            path,
            all: self.prompt_cache_all,
            read_only: self.prompt_cache_ro,
            n_saved: 0,
        }))
    }
}

/// The file, and how much of the context is in it.
#[derive(Debug)]
pub struct PromptCache {
    path: PathBuf,
    all: bool,
    read_only: bool,
    /// Tokens at the beginning of the context that the file holds.
    n_saved: usize,
}

impl PromptCache {
    /// Fills the session's context with what the file holds, and gives its tokens; none where there is no file yet, or an empty one.
    ///
    /// # Errors
    /// Where the file is damaged, or was written with another model or other settings.
    pub fn restore(&mut self, session: &mut Session) -> Result<Vec<TokenId>, anyhow::Error> {
        // An empty file is a new one too, as mktemp makes them.
        if self.path.metadata().is_ok_and(|m| m.len() == 0) || !self.path.exists() {
            return Ok(Vec::new());
        }
        let tokens = session.restore(&self.path).map_err(|error| {
            let hint = "remove the file, or name another one with --prompt-cache";
            bruce::exit::with_hint(anyhow::Error::new(error), hint)
        })?;
        self.n_saved = tokens.len();
        Ok(tokens)
    }

    /// Notes that what follows the first `n` tokens of the context is no longer what the file holds.
    pub fn forgotten_from(&mut self, n: usize) {
        self.n_saved = self.n_saved.min(n);
    }

    /// Keeps a prompt that was read, unless the file holds it already. A failure is a warning: the answer is worth more.
    pub fn keep_prompt(&mut self, session: &Session, tokens: &[TokenId]) {
        if self.n_saved < tokens.len() {
            self.save(session, tokens);
        }
    }

    /// Keeps everything, where that is wanted.
    pub fn keep_all(&mut self, session: &Session, tokens: &[TokenId]) {
        if self.all && self.n_saved != tokens.len() {
            self.save(session, tokens);
        }
    }

    fn save(&mut self, session: &Session, tokens: &[TokenId]) {
        if self.read_only {
            return;
        }
        match session.save(tokens, &self.path) {
            Ok(()) => self.n_saved = tokens.len(),
            Err(error) => bruce::say!("warning: the prompt cache is not written: {error}"),
        }
    }
}
