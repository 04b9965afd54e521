//! One answer: tokens chosen one by one, until something ends it.

use super::logprobs::LogProbs;
use super::lookup;
use super::prompt_cache::PromptCache;
use super::stop::StopWords;
use super::timings::Timings;
use runtime::sampler::Sampler;
use runtime::session::{Logits, Session};
use runtime::tokenizer::{TokenId, Tokenizer, Utf8Decoder};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A session and what was said in it.
pub struct Engine {
    session: Session,
    sampler: Sampler,
    /// The tokens in the session's cache, without those that are drafted.
    history: Vec<TokenId>,
    /// Tokens in the cache behind those, computed because the text may go on like this.
    drafted: VecDeque<TokenId>,
    /// Which of the session's rows of logits follows the last token of `history`.
    row: usize,
    cache: Option<PromptCache>,
    /// Whether the sampler has yet to hear of the tokens in `history`.
    unheard: bool,
    limits: Limits,
    timings: Timings,
}

/// What ends an answer, and what is noted meanwhile.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// Tokens at most.
    pub n_predict: Option<u64>,
    /// Words that end it.
    pub stop_words: Vec<String>,
    /// Whether a full context is shortened and the answer goes on.
    pub context_shift: bool,
    /// Tokens at the beginning that are kept then; `None` for the whole prompt.
    pub n_keep: Option<usize>,
    /// Log-probabilities of this many of the likeliest tokens; `None` for none at all.
    pub n_logprobs: Option<usize>,
    /// Control tokens are part of the text.
    pub show_control: bool,
    /// Tokens that are drafted at once from what the text said before; 0 for none.
    pub n_draft: usize,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The model chose a token that ends its turn.
    Eos,
    /// It has as many tokens as were asked for.
    Limit,
    /// The context is full.
    Context,
    /// A reverse prompt.
    Word,
    /// Ctrl-C.
    Interrupted,
}

impl Stop {
    /// As machines read it.
    pub fn name(self) -> &'static str {
        match self {
            Stop::Eos => "eos",
            Stop::Limit => "limit",
            Stop::Context => "context",
            Stop::Word => "word",
            Stop::Interrupted => "interrupted",
        }
    }
}

/// A chosen token.
pub struct Chosen {
    /// The token.
    pub id: TokenId,
    /// Its log-probability and its rivals', where asked for.
    pub logprobs: Option<LogProbs>,
}

/// A finished answer.
pub struct Answer {
    /// Its text, without the reverse prompt that ended it.
    pub text: String,
    /// Its tokens, with the one that ended it.
    pub tokens: Vec<Chosen>,
    /// Why it ended.
    pub stop: Stop,
}

impl Engine {
    /// Nothing was said yet.
    pub fn new(session: Session, sampler: Sampler, limits: Limits, timings: Timings) -> Self {
        let (history, drafted) = (Vec::new(), VecDeque::new());
        Engine { session, sampler, history, drafted, row: 0, cache: None, unheard: false, limits, timings }
    }

    /// Begins with what a file holds, and keeps there what is computed.
    ///
    /// # Errors
    /// Where the file can't be used.
    pub fn use_cache(&mut self, mut cache: PromptCache) -> Result<(), anyhow::Error> {
        self.history = cache.restore(&mut self.session)?;
        self.unheard = true;
        self.cache = Some(cache);
        Ok(())
    }

    /// Keeps everything that was said, where that is wanted.
    pub fn keep_all(&mut self) {
        if let Some(cache) = &mut self.cache {
            cache.keep_all(&self.session, &self.history);
        }
    }

    /// The session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// What was timed so far.
    pub fn timings(&self) -> &Timings {
        &self.timings
    }

    /// Forgets everything that was said.
    pub fn reset(&mut self) {
        self.forget_from(0);
        self.sampler.reset();
    }

    /// Reads `prompt`, which replaces what was said before, and answers. What both have in common at their beginning
    /// is not computed again. Text is given to `show` as it becomes certain.
    ///
    /// # Errors
    /// Where computing or showing fails, and where the prompt does not fit the context.
    pub fn answer(
        &mut self,
        prompt: &[TokenId],
        show: &mut dyn FnMut(&str) -> Result<(), anyhow::Error>,
    ) -> Result<Answer, anyhow::Error> {
        let mut answer = Answer { text: String::new(), tokens: Vec::new(), stop: Stop::Interrupted };
        if !self.read(prompt)? {
            return Ok(answer);
        }
        let n_keep = self.limits.n_keep.unwrap_or(prompt.len());
        let mut decoder = Utf8Decoder::default();
        let mut words = StopWords::new(&self.limits.stop_words);
        let mut emit = |answer: &mut Answer, text: &str| {
            answer.text.push_str(text);
            if text.is_empty() { Ok(()) } else { show(text) }
        };
        loop {
            if self.limits.n_predict.is_some_and(|n| answer.tokens.len() as u64 >= n) {
                answer.stop = Stop::Limit;
                break;
            }
            let id = self.choose(&mut answer)?;
            if self.tokenizer().is_end_of_generation(id) {
                answer.stop = Stop::Eos;
                break;
            }
            let hidden = self.tokenizer().is_control(id) && !self.limits.show_control;
            let piece = if hidden { String::new() } else { decoder.push(self.tokenizer().token_bytes(id)) };
            let seen = words.push(&piece);
            emit(&mut answer, &seen.text)?;
            if seen.stopped {
                answer.stop = Stop::Word;
                return Ok(answer);
            }
            // The last token of an answer with a limit is not computed: nothing follows from it.
            if self.limits.n_predict.is_some_and(|n| answer.tokens.len() as u64 >= n) {
                continue;
            }
            if self.history.len() == self.session.n_ctx() && !self.shift(n_keep)? {
                answer.stop = Stop::Context;
                break;
            }
            if !self.decode(id)? {
                break;
            }
        }
        let rest = words.push(&decoder.finish());
        emit(&mut answer, &rest.text)?;
        emit(&mut answer, &words.finish())?;
        Ok(answer)
    }

    fn tokenizer(&self) -> &Tokenizer {
        self.session.model().tokenizer()
    }

    /// Reads a prompt so that the cache holds it and nothing else. False where it was interrupted.
    fn read(&mut self, prompt: &[TokenId]) -> Result<bool, anyhow::Error> {
        self.check_prompt(prompt)?;
        let common = self.history.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // The last token is always computed: the answer begins from its logits.
        let common = common.min(prompt.len() - 1);
        self.forget_from(common);
        let rest = &prompt[common..];
        let heard = if std::mem::take(&mut self.unheard) { 0 } else { common };
        prompt[heard..].iter().for_each(|id| self.sampler.accept(*id));
        let done = self.compute(rest)?;
        if let Some(cache) = self.cache.as_mut().filter(|_| done) {
            cache.keep_prompt(&self.session, prompt);
        }
        Ok(done)
    }

    /// Checks that the context has room for a prompt.
    ///
    /// # Errors
    /// The prompt is empty or too long.
    pub fn check_prompt(&self, prompt: &[TokenId]) -> Result<(), anyhow::Error> {
        let n_ctx = self.session.n_ctx();
        if prompt.is_empty() {
            return Err(anyhow::anyhow!(
                "the prompt is empty, and the model has no token that begins a text"
            ));
        }
        if prompt.len() >= n_ctx {
            let error =
                anyhow::anyhow!("the prompt has {} tokens, and the context room for {n_ctx}", prompt.len());
            return Err(bruce::exit::with_hint(
                error,
                "make the context larger with -c, or the prompt shorter",
            ));
        }
        Ok(())
    }

    fn forget_from(&mut self, n: usize) {
        self.session.truncate(n);
        self.history.truncate(n);
        if let Some(cache) = &mut self.cache {
            cache.forgotten_from(n);
        }
        self.drafted.clear();
        self.row = 0;
    }

    /// Computes several tokens behind what is there. False where it was interrupted.
    fn compute(&mut self, tokens: &[TokenId]) -> Result<bool, anyhow::Error> {
        let start = Instant::now();
        let before = self.session.n_past();
        let done = self.session.decode(tokens, Logits::Last);
        let n_read = self.session.n_past() - before;
        self.history.extend_from_slice(&tokens[..n_read.min(tokens.len())]);
        self.timings.prompt.add(n_read, start.elapsed());
        went_through(done)
    }

    /// Computes one token of the answer, and with it those that may follow. False where it was interrupted.
    fn decode(&mut self, id: TokenId) -> Result<bool, anyhow::Error> {
        if self.drafted.front() == Some(&id) {
            self.drafted.pop_front();
            self.row += 1;
            self.history.push(id);
            self.timings.decode.add(1, Duration::ZERO);
            return Ok(!self.session.is_stopped());
        }
        let start = Instant::now();
        let n_past = self.history.len();
        self.forget_from(n_past);
        self.history.push(id);
        let n_room = self.session.n_ctx() - self.history.len();
        let draft = lookup::draft(&self.history, self.limits.n_draft.min(n_room));
        let batch: Vec<TokenId> = std::iter::once(id).chain(draft.iter().copied()).collect();
        let done = went_through(self.session.decode(&batch, Logits::All))?;
        if done {
            self.drafted = draft.into();
            self.timings.decode.add(1, start.elapsed());
        } else {
            self.forget_from(n_past);
        }
        // A stop between two tokens is seen here, not by ggml.
        Ok(done && !self.session.is_stopped())
    }

    fn choose(&mut self, answer: &mut Answer) -> Result<TokenId, anyhow::Error> {
        let logits = self.session.logits(self.row);
        let id = self.sampler.sample(logits)?;
        let logprobs = self.limits.n_logprobs.map(|n| LogProbs::new(logits, id, n));
        self.sampler.accept(id);
        answer.tokens.push(Chosen { id, logprobs });
        Ok(id)
    }

    /// Makes room in a full context: of what is not kept the older half is forgotten, and the rest read again, so that
    /// the model sees a text as it would have been without the gap. False where that is not wanted.
    fn shift(&mut self, n_keep: usize) -> Result<bool, anyhow::Error> {
        if !self.limits.context_shift {
            return Ok(false);
        }
        let n_keep = n_keep.max(usize::from(self.tokenizer().adds_bos()));
        let Some(n_left) = self.history.len().checked_sub(n_keep).filter(|n| *n >= 2) else {
            return Ok(false);
        };
        let tail = self.history[n_keep + n_left / 2..].to_vec();
        self.forget_from(n_keep);
        bruce::say!("\nthe context is full: {} tokens are forgotten", n_left / 2);
        self.compute(&tail)
    }
}

/// Whether a computation came to its end and was not stopped on the way.
fn went_through(result: Result<(), runtime::Error>) -> Result<bool, anyhow::Error> {
    match result {
        Ok(()) => Ok(true),
        Err(runtime::Error::Stopped) => Ok(false),
        Err(other) => Err(other.into()),
    }
}
