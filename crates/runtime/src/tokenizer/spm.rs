//! SentencePiece's byte-pair encoding: of all neighbouring pieces whose joined text is a token, the pair with the
//! highest score joins first, of equal ones the leftmost, until none is left (Kudo and Richardson 2018; the rules for
//! unused pieces, unknown characters and bytes are those of SentencePiece's `bpe_model.cc`).
//!
//! Control, unknown and byte tokens take no part in joining, so that no text can spell one.

use super::TokenId;
use super::vocab::{TokenType, Vocab, byte_of};
use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

/// What a space is written as inside tokens.
pub(super) const SPACE: char = '▁';

/// Longest run of text whose tokens are kept for when it comes again.
const MAX_CACHED_LEN: usize = 64;

/// The encoder of one vocabulary.
pub(super) struct Spm {
    pieces: HashMap<Box<str>, Piece>,
    longest: usize,
    bytes: [Option<TokenId>; 256],
    unk: Option<TokenId>,
    /// No piece has a space behind another character, so that every word can be encoded alone.
    words_are_independent: bool,
}

#[derive(Clone, Copy)]
struct Piece {
    id: TokenId,
    score: f32,
    unused: bool,
}

/// A run of the text; a length of 0 marks one that its left neighbour has taken in.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    len: usize,
    prev: Option<usize>,
    next: Option<usize>,
}

/// A possible join of two neighbours. `len` tells whether it still fits them.
struct Join {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Ord for Join {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}
impl PartialOrd for Join {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Join {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Join {}

/// Memory that one call reuses from word to word.
#[derive(Default)]
struct Work {
    symbols: Vec<Symbol>,
    joins: BinaryHeap<Join>,
    /// The halves of every unused piece that a join made.
    halves: HashMap<Box<str>, usize>,
    last_was_unknown: bool,
}

impl Spm {
    pub(super) fn new(vocab: &Vocab) -> Self {
        let mut pieces = HashMap::with_capacity(vocab.texts.len());
        let mut bytes = [None; 256];
        let mut longest = 0;
        let mut words_are_independent = true;
        for (id, (text, ty)) in vocab.texts.iter().zip(&vocab.types).enumerate() {
            let id = id as TokenId;
            if let Some(byte) = byte_of(text) {
                bytes[usize::from(byte)] = Some(id);
            }
            let unused = match ty {
                TokenType::Control | TokenType::Unknown | TokenType::Byte => continue,
                TokenType::Unused => true,
                TokenType::Normal | TokenType::UserDefined => false,
            };
            pieces.insert(text.as_str().into(), Piece { id, score: vocab.scores[id as usize], unused });
            longest = longest.max(text.len());
            words_are_independent &= !text.trim_start_matches(SPACE).contains(SPACE);
        }
        Spm { pieces, longest, bytes, unk: vocab.unk, words_are_independent }
    }

    /// Appends the tokens of `text` to `out`. Spaces must be escaped already.
    pub(super) fn encode(&self, text: &str, out: &mut Vec<TokenId>) {
        let mut work = Work::default();
        if !self.words_are_independent {
            self.encode_word(text, &mut work, out);
            return;
        }
        let mut seen: HashMap<&str, std::ops::Range<usize>> = HashMap::new();
        for word in words(text) {
            if let Some(range) = seen.get(word) {
                out.extend_from_within(range.clone());
                continue;
            }
            let start = out.len();
            let after_unknown = work.last_was_unknown;
            self.encode_word(word, &mut work, out);
            // Tokens around an unknown character depend on the neighbours.
            if word.len() <= MAX_CACHED_LEN && !after_unknown && !work.last_was_unknown {
                seen.insert(word, start..out.len());
            }
        }
    }

    fn encode_word(&self, text: &str, work: &mut Work, out: &mut Vec<TokenId>) {
        work.symbols.clear();
        work.joins.clear();
        work.halves.clear();
        for (start, c) in text.char_indices() {
            let i = work.symbols.len();
            work.symbols.push(Symbol {
                start,
                len: c.len_utf8(),
                prev: i.checked_sub(1),
                next: (start + c.len_utf8() < text.len()).then_some(i + 1),
            });
        }
        for right in 1..work.symbols.len() {
            self.propose(text, work, right - 1, right);
        }
        while let Some(join) = work.joins.pop() {
            let (left, right) = (work.symbols[join.left], work.symbols[join.right]);
            if left.len == 0 || right.len == 0 || left.len + right.len != join.len {
                continue;
            }
            work.symbols[join.left].len = join.len;
            work.symbols[join.left].next = right.next;
            work.symbols[join.right].len = 0;
            if let Some(next) = right.next {
                work.symbols[next].prev = Some(join.left);
                self.propose(text, work, join.left, next);
            }
            if let Some(prev) = left.prev {
                self.propose(text, work, prev, join.left);
            }
        }
        let mut at = (!work.symbols.is_empty()).then_some(0);
        while let Some(i) = at {
            let symbol = work.symbols[i];
            self.emit(&text[symbol.start..symbol.start + symbol.len], work, out);
            at = symbol.next;
        }
    }

    /// Queues the join of two neighbours if their joined text is a piece.
    fn propose(&self, text: &str, work: &mut Work, left: usize, right: usize) {
        let (l, r) = (work.symbols[left], work.symbols[right]);
        let len = l.len + r.len;
        if len > self.longest {
            return;
        }
        let joined = &text[l.start..l.start + len];
        if let Some(piece) = self.pieces.get(joined) {
            work.joins.push(Join { score: piece.score, left, right, len });
            if piece.unused {
                work.halves.insert(joined.into(), l.len);
            }
        }
    }

    /// Appends what stands for one finished symbol: its piece, the halves of an unused piece, its bytes, or the
    /// unknown token, once for a run of unknown characters.
    fn emit(&self, symbol: &str, work: &mut Work, out: &mut Vec<TokenId>) {
        // Halves are shorter than the whole, so that this ends; a stack, as an unused piece may be long.
        let mut stack = vec![symbol];
        while let Some(text) = stack.pop() {
            let piece = self.pieces.get(text);
            if let Some(piece) = piece.filter(|piece| !piece.unused) {
                out.push(piece.id);
                work.last_was_unknown = false;
            } else if let Some(&left_len) = work.halves.get(text) {
                let (left, right) = text.split_at(left_len);
                stack.push(right);
                stack.push(left);
            } else if let Some(piece) = piece {
                out.push(piece.id);
                work.last_was_unknown = false;
            } else if text.bytes().all(|b| self.bytes[usize::from(b)].is_some()) {
                out.extend(text.bytes().filter_map(|b| self.bytes[usize::from(b)]));
                work.last_was_unknown = false;
            } else if let Some(unk) = self.unk {
                if !work.last_was_unknown {
                    out.push(unk);
                }
                work.last_was_unknown = true;
            }
        }
    }
}

/// Cuts before every space that does not follow a space.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let spaces = rest.len() - rest.trim_start_matches(SPACE).len();
        let end = rest[spaces..].find(SPACE).map_or(rest.len(), |i| spaces + i);
        let (word, after) = rest.split_at(end);
        rest = after;
        (!word.is_empty()).then_some(word)
    })
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn words_keep_their_leading_spaces() {
        assert_eq!(words("▁▁a▁b▁▁").collect::<Vec<_>>(), ["▁▁a", "▁b", "▁▁"]);
        assert_eq!(words("a").collect::<Vec<_>>(), ["a"]);
        assert_eq!(words("").count(), 0);
    }
}
