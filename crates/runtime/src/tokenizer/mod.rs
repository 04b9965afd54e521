//! Text to token ids and back, from a GGUF's metadata alone.
//!
//! Two kinds: SentencePiece's byte-pair encoding (`tokenizer.ggml.model` = `llama`), implemented here, and byte-level
//! BPE (`gpt2`), merged by the `tokenizers` crate. Both give the ids of the tokenizer the model was trained with.
//!
//! **Control tokens.** Text comes in [`Segment`]s: what a template wrote ([`Special::Parse`]) may name control tokens,
//! what a user typed ([`Special::Literal`]) never becomes one, however it is spelled, nor together with template text
//! around it. Segments are encoded as one text, so that their borders leave no trace in the ids.
//!
//! Where the original tokenizers and llama.cpp differ, this follows: the originals in what text can spell (a typed
//! `</s>` is five characters); llama.cpp in how text goes on after a control token (SentencePiece vocabularies get a
//! space in front there too) and in which tokens end a generation.

mod bpe;
mod error;
mod matcher;
mod pre;
mod spm;
mod stream;
mod vocab;

pub use error::Error;
pub use stream::{TextStream, Utf8Decoder};
pub use vocab::{Kind, TokenType};

use bpe::{ByteAlphabet, ByteLevel};
use gguf::Metadata;
use matcher::Matcher;
use pre::PreTokenizer;
use spm::Spm;
use vocab::Vocab;

/// Index of a token in the vocabulary.
pub type TokenId = u32;

/// Whether a text may name control tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// No: user text. User-defined tokens, which are text, are still kept whole.
    Literal,
    /// Yes: template text.
    Parse,
}

/// What stands before a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddBos {
    /// The BOS token if the metadata asks for one; likewise the EOS token behind the text.
    Auto,
    /// Nothing; the text is still the beginning of one.
    Never,
    /// The BOS token, if there is one.
    Always,
    /// Other text, so that no space is put in front.
    Continue,
}

/// Whether control tokens show in decoded text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlText {
    /// They leave nothing.
    Hide,
    /// They show as they are written in templates.
    Show,
}

/// A run of text from one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'t> {
    /// The text.
    pub text: &'t str,
    /// Whether it may name control tokens.
    pub special: Special,
}

enum Encoder {
    Spm(Box<Spm>),
    ByteLevel(Box<ByteLevel>),
}

/// The tokenizer of one model.
pub struct Tokenizer {
    vocab: Vocab,
    encoder: Encoder,
    /// Tokens that are found in the text before it is encoded.
    whole: Matcher,
    add_bos: bool,
    /// The bytes of all tokens, one after the other, and where each token's end.
    bytes: Vec<u8>,
    byte_ends: Vec<usize>,
}

impl Tokenizer {
    /// The tokenizer that `metadata` describes.
    ///
    /// # Errors
    /// See [`Error`]; every value is checked before it is used.
    pub fn from_metadata(metadata: &Metadata) -> Result<Tokenizer, Error> {
        let mut vocab = Vocab::from_metadata(metadata)?;
        let (encoder, add_bos) = match vocab.kind {
            Kind::SentencePiece => (Encoder::Spm(Box::new(Spm::new(&vocab))), true),
            Kind::ByteLevel => {
                let mut pre = PreTokenizer::named(&vocab.pre);
                vocab.warnings.extend(pre.warning.take());
                let add_bos = pre.add_bos;
                (Encoder::ByteLevel(Box::new(ByteLevel::new(&vocab, pre)?)), add_bos)
            }
        };
        let whole = Matcher::new(
            vocab
                .texts
                .iter()
                .zip(0..)
                .filter(|(_, id)| {
                    vocab.is_guarded(*id) || vocab.types[*id as usize] == TokenType::UserDefined
                })
                .map(|(text, id)| (text.as_str(), id)),
        );
        let add_bos = vocab.add_bos.unwrap_or(add_bos);
        if add_bos && vocab.bos.is_none() {
            vocab
                .warnings
                .push("a BOS token is asked for but none is named; texts begin without one".to_owned());
        }
        let (bytes, byte_ends) = spell_out(&vocab);
        Ok(Tokenizer { vocab, encoder, whole, add_bos, bytes, byte_ends })
    }

    /// The ids of `text`.
    pub fn encode(&self, text: &str, special: Special, add_bos: AddBos) -> Vec<TokenId> {
        let mut ids = Vec::new();
        self.begin(add_bos, &mut ids);
        self.encode_into(&[Segment { text, special }], add_bos, &mut ids);
        self.end(add_bos, &mut ids);
        ids
    }

    /// The ids of `segments` as one text. With [`AddBos::Auto`] a BOS token that the text itself begins with is not
    /// doubled, nor an EOS token that it ends with.
    pub fn encode_segments(&self, segments: &[Segment<'_>], add_bos: AddBos) -> Vec<TokenId> {
        let mut body = Vec::new();
        self.encode_into(segments, add_bos, &mut body);
        let mut ids = Vec::with_capacity(body.len() + 1);
        self.begin(add_bos, &mut ids);
        if ids.last() == body.first() {
            ids.clear();
        }
        ids.append(&mut body);
        if self.vocab.eos.is_none() || ids.last().copied() != self.vocab.eos {
            self.end(add_bos, &mut ids);
        }
        ids
    }

    fn begin(&self, add_bos: AddBos, ids: &mut Vec<TokenId>) {
        match add_bos {
            AddBos::Auto if self.add_bos => ids.extend(self.vocab.bos),
            AddBos::Always => ids.extend(self.vocab.bos),
            _ => {}
        }
    }

    fn end(&self, add_bos: AddBos, ids: &mut Vec<TokenId>) {
        if add_bos == AddBos::Auto && self.vocab.add_eos {
            ids.extend(self.vocab.eos);
        }
    }

    fn encode_into(&self, segments: &[Segment<'_>], add_bos: AddBos, ids: &mut Vec<TokenId>) {
        let text: String = segments.iter().map(|segment| segment.text).collect();
        let mut after_token = add_bos != AddBos::Continue;
        let mut done = 0;
        let mut at = 0;
        // Where the template text that `at` lies in ends; `at` itself inside user text.
        let mut spans = parsed_spans(segments).into_iter().peekable();
        while at < text.len() {
            while spans.next_if(|span| span.end <= at).is_some() {}
            let parse_end = match spans.peek() {
                Some(span) if span.start <= at => span.end,
                _ => at,
            };
            let found = self.whole.longest(&text.as_bytes()[at..], |id, len| {
                at + len <= parse_end || !self.vocab.is_guarded(id)
            });
            match found {
                Some((id, len)) => {
                    self.encode_text(&text[done..at], &mut after_token, ids);
                    ids.push(id);
                    after_token = true;
                    at += len;
                    done = at;
                }
                None => at += 1,
            }
        }
        self.encode_text(&text[done..], &mut after_token, ids);
    }

    /// Encodes text without whole tokens in it.
    fn encode_text(&self, text: &str, after_token: &mut bool, ids: &mut Vec<TokenId>) {
        if text.is_empty() {
            return;
        }
        match &self.encoder {
            Encoder::Spm(spm) => {
                let prefix = if self.vocab.add_space_prefix && *after_token { " " } else { "" };
                let escaped = [prefix, text].concat().replace(' ', "▁");
                spm.encode(&escaped, ids);
            }
            Encoder::ByteLevel(bpe) => bpe.encode(text, ids),
        }
        *after_token = false;
    }

    /// The bytes of a token as it stands in a text, possibly a part of a character; those of a control token are its
    /// name in templates. Empty for ids outside the vocabulary.
    pub fn token_bytes(&self, id: TokenId) -> &[u8] {
        let i = id as usize;
        let start = match i.checked_sub(1) {
            None => 0,
            Some(before) => self.byte_ends.get(before).copied().unwrap_or(self.bytes.len()),
        };
        let end = self.byte_ends.get(i).copied().unwrap_or(start);
        &self.bytes[start..end]
    }

    /// The text of `ids` as the beginning of a text: the space that encoding puts in front is taken away, also behind
    /// a BOS token. What is not UTF-8 becomes U+FFFD.
    pub fn decode(&self, ids: &[TokenId], control: ControlText) -> String {
        let mut bytes = Vec::new();
        let mut at_start = self.vocab.add_space_prefix;
        for (i, &id) in ids.iter().enumerate() {
            let piece = self.token_bytes(id);
            if self.is_control(id) {
                if control == ControlText::Show {
                    bytes.extend_from_slice(piece);
                }
                at_start &= i == 0;
                continue;
            }
            bytes.extend_from_slice(piece.strip_prefix(b" ").filter(|_| at_start).unwrap_or(piece));
            at_start = false;
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Number of tokens; ids are below it.
    pub fn n_vocab(&self) -> usize {
        self.vocab.texts.len()
    }

    /// How text becomes tokens.
    pub fn kind(&self) -> Kind {
        self.vocab.kind
    }

    /// The token's text as the file has it (with `▁` or `Ġ` for a space).
    pub fn token_text(&self, id: TokenId) -> Option<&str> {
        self.vocab.texts.get(id as usize).map(String::as_str)
    }

    /// What the token is.
    pub fn token_type(&self, id: TokenId) -> Option<TokenType> {
        self.vocab.types.get(id as usize).copied()
    }

    /// Whether the token is structure and not text.
    pub fn is_control(&self, id: TokenId) -> bool {
        matches!(self.token_type(id), Some(TokenType::Control | TokenType::Unknown))
    }

    /// Whether the model is done when it chooses this token. As llama.cpp decides: the end-of-text and end-of-turn
    /// tokens of the metadata, and control tokens of well-known text (`<|im_end|>`, `<|eot_id|>`, `</s>`, ...).
    pub fn is_end_of_generation(&self, id: TokenId) -> bool {
        self.vocab.ends.binary_search(&id).is_ok()
    }

    /// All tokens that end a generation, ascending.
    pub fn end_of_generation(&self) -> &[TokenId] {
        &self.vocab.ends
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<TokenId> {
        self.vocab.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<TokenId> {
        self.vocab.eos
    }

    /// The token that ends a turn.
    pub fn eot(&self) -> Option<TokenId> {
        self.vocab.eot
    }

    /// The token for what no other can write.
    pub fn unk(&self) -> Option<TokenId> {
        self.vocab.unk
    }

    /// The token that fills unused places of a batch.
    pub fn pad(&self) -> Option<TokenId> {
        self.vocab.pad
    }

    /// Whether [`AddBos::Auto`] begins a text with the BOS token.
    pub fn adds_bos(&self) -> bool {
        self.add_bos && self.vocab.bos.is_some()
    }

    /// Whether [`AddBos::Auto`] ends a text with the EOS token.
    pub fn adds_eos(&self) -> bool {
        self.vocab.add_eos && self.vocab.eos.is_some()
    }

    /// What is odd about the vocabulary, for the user to know.
    pub fn warnings(&self) -> &[String] {
        &self.vocab.warnings
    }
}

/// The byte ranges of the joined text that only template segments cover, neighbours joined.
fn parsed_spans(segments: &[Segment<'_>]) -> Vec<std::ops::Range<usize>> {
    let mut spans: Vec<std::ops::Range<usize>> = Vec::new();
    let mut start = 0;
    for segment in segments {
        let end = start + segment.text.len();
        if segment.special == Special::Parse && end > start {
            match spans.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => spans.push(start..end),
            }
        }
        start = end;
    }
    spans
}

/// The bytes of all tokens in a row, and where each token's end.
fn spell_out(vocab: &Vocab) -> (Vec<u8>, Vec<usize>) {
    let alphabet = ByteAlphabet::new();
    let mut bytes = Vec::new();
    let ends = vocab
        .texts
        .iter()
        .zip(&vocab.types)
        .zip(0..)
        .map(|((text, ty), id)| {
            match (ty, vocab.kind) {
                _ if vocab.raw.contains_key(&id) => bytes.extend_from_slice(&vocab.raw[&id]),
                (TokenType::Control | TokenType::Unknown | TokenType::UserDefined, _) => {
                    bytes.extend_from_slice(text.as_bytes());
                }
                (TokenType::Normal, Kind::SentencePiece) => {
                    bytes.extend_from_slice(text.replace(spm::SPACE, " ").as_bytes());
                }
                (TokenType::Normal, Kind::ByteLevel) => bytes.extend(alphabet.decode(text)),
                (TokenType::Byte, _) => bytes.extend(vocab::byte_of(text)),
                // A place that training left empty says nothing.
                (TokenType::Unused, _) => {}
            }
            bytes.len()
        })
        .collect();
    (bytes, ends)
}

#[cfg(test)]
mod tests;
