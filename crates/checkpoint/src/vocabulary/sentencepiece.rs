//! tokenizer.model: a SentencePiece `ModelProto`, read without a protobuf library.
//!
//! Fields used (sentencepiece_model.proto): ModelProto 1 = pieces, repeated {1 text, 2 score f32, 3 type};
//! 2 = trainer_spec {3 model_type, 35 byte_fallback}; 3 = normalizer_spec {3 add_dummy_prefix}. Others are
//! skipped. The library's own rules are applied: no empty and no repeated piece, exactly one unknown piece.

use std::collections::HashMap;
use std::path::Path;

use crate::error::{Error, Result, quoted};

/// What a piece is, with the numbers of the proto.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PieceKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) score: f32,
    pub(super) kind: PieceKind,
}

/// How the pieces were trained to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Training {
    Unigram,
    Bpe,
    Word,
    Char,
}

#[derive(Debug)]
pub(super) struct SentencePiece {
    /// Index = token id.
    pub(super) pieces: Vec<Piece>,
    pub(super) training: Training,
    pub(super) adds_space: bool,
}

/// The model in the bytes of a tokenizer.model.
pub(super) fn parse(file: &Path, bytes: &[u8]) -> Result<SentencePiece> {
    if let Some(found) = recognise_other(bytes) {
        return Err(Error::malformed(file, "content", found, "a SentencePiece model"));
    }
    let model = read_model(bytes)
        .map_err(|Broken(what)| Error::malformed(file, "protobuf", what, "a SentencePiece model"))?;
    check(file, &model)?;
    Ok(model)
}

fn recognise_other(bytes: &[u8]) -> Option<&'static str> {
    if bytes.is_empty() {
        Some("an empty file")
    } else if bytes.starts_with(b"version https://git-lfs") {
        Some("a git-lfs pointer (run `git lfs pull`, or download the file itself)")
    } else if bytes.starts_with(b"IQ== 0\n") {
        Some("a tiktoken vocabulary (Llama 3's original format; tokenizer.json is the one to use)")
    } else if bytes.trim_ascii_start().starts_with(b"<") || bytes.starts_with(b"{") {
        Some("a text file")
    } else {
        None
    }
}

/// What does not parse.
#[derive(Debug)]
struct Broken(String);

/// A value on the wire.
enum Wire<'a> {
    Varint(u64),
    Fixed32([u8; 4]),
    Fixed64,
    Bytes(&'a [u8]),
}

/// Goes through the fields of one message.
struct Message<'a> {
    rest: &'a [u8],
}

impl<'a> Message<'a> {
    fn varint(&mut self) -> Result<u64, Broken> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let Some((&byte, rest)) = self.rest.split_first() else { break };
            self.rest = rest;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Broken("a broken number".into()))
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8], Broken> {
        let split = usize::try_from(n).ok().and_then(|n| self.rest.split_at_checked(n));
        let (taken, rest) = split
            .ok_or_else(|| Broken(format!("a field of {n} bytes where {} are left", self.rest.len())))?;
        self.rest = rest;
        Ok(taken)
    }

    /// The next field's number and value; `None` at the end.
    fn field(&mut self) -> Result<Option<(u64, Wire<'a>)>, Broken> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Wire::Fixed64
            }
            2 => {
                let length = self.varint()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                let mut bytes = [0; 4];
                bytes.copy_from_slice(self.take(4)?);
                Wire::Fixed32(bytes)
            }
            other => return Err(Broken(format!("wire type {other}"))),
        };
        Ok(Some((key >> 3, value)))
    }
}

fn read_model(bytes: &[u8]) -> Result<SentencePiece, Broken> {
    let mut model = SentencePiece { pieces: Vec::new(), training: Training::Unigram, adds_space: true };
    let mut message = Message { rest: bytes };
    while let Some((number, value)) = message.field()? {
        match (number, value) {
            (1, Wire::Bytes(piece)) => {
                let id = model.pieces.len();
                let piece =
                    read_piece(piece).map_err(|Broken(what)| Broken(format!("{what} in piece {id}")))?;
                model.pieces.push(piece);
            }
            (2, Wire::Bytes(trainer)) => {
                let mut trainer = Message { rest: trainer };
                while let Some((number, value)) = trainer.field()? {
                    if let (3, Wire::Varint(kind)) = (number, value) {
                        model.training = match kind {
                            1 => Training::Unigram,
                            2 => Training::Bpe,
                            3 => Training::Word,
                            4 => Training::Char,
                            _ => return Err(Broken(format!("model type {kind}"))),
                        };
                    }
                }
            }
            (3, Wire::Bytes(normalizer)) => {
                let mut normalizer = Message { rest: normalizer };
                while let Some((number, value)) = normalizer.field()? {
                    if let (3, Wire::Varint(adds)) = (number, value) {
                        model.adds_space = adds != 0;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(model)
}

fn read_piece(bytes: &[u8]) -> Result<Piece, Broken> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: PieceKind::Normal };
    let mut message = Message { rest: bytes };
    while let Some((number, value)) = message.field()? {
        match (number, value) {
            (1, Wire::Bytes(text)) => {
                let text = std::str::from_utf8(text).map_err(|_| Broken("text that is not UTF-8".into()))?;
                piece.text = text.to_owned();
            }
            (2, Wire::Fixed32(score)) => piece.score = f32::from_le_bytes(score),
            (3, Wire::Varint(kind)) => {
                piece.kind = match kind {
                    1 => PieceKind::Normal,
                    2 => PieceKind::Unknown,
                    3 => PieceKind::Control,
                    4 => PieceKind::UserDefined,
                    5 => PieceKind::Unused,
                    6 => PieceKind::Byte,
                    _ => return Err(Broken(format!("piece type {kind}"))),
                }
            }
            _ => {}
        }
    }
    Ok(piece)
}

fn check(file: &Path, model: &SentencePiece) -> Result<()> {
    let bad =
        |what: String, found: String, expected: &str| Err(Error::malformed(file, what, found, expected));
    if model.pieces.is_empty() {
        return bad("pieces".into(), "none".into(), "at least one");
    }
    let mut ids = HashMap::with_capacity(model.pieces.len());
    let mut unknown = Vec::new();
    let mut bytes = [None; 256];
    for (id, piece) in model.pieces.iter().enumerate() {
        if piece.text.is_empty() {
            return bad(format!("piece {id}"), "an empty text".into(), "a text");
        }
        if !piece.score.is_finite() {
            return bad(format!("piece {id}: score"), piece.score.to_string(), "a finite number");
        }
        if let Some(first) = ids.insert(piece.text.as_str(), id) {
            let found = format!("{}, which is piece {first} too", quoted(&piece.text));
            return bad(format!("piece {id}"), found, "a text of its own");
        }
        match piece.kind {
            PieceKind::Unknown => unknown.push(id),
            PieceKind::Byte => match byte_value(&piece.text) {
                Some(value) => bytes[usize::from(value)] = Some(id),
                None => {
                    return bad(format!("byte piece {id}"), quoted(&piece.text), "\"<0x00>\" to \"<0xFF>\"");
                }
            },
            _ => {}
        }
    }
    if unknown.len() != 1 {
        return bad("unknown pieces".into(), format!("{unknown:?}"), "exactly one");
    }
    let missing = bytes.iter().filter(|id| id.is_none()).count();
    if missing > 0 && missing < 256 {
        return bad("byte pieces".into(), format!("{} of 256", 256 - missing), "all or none");
    }
    Ok(())
}

/// The byte that `<0x41>` stands for; two hexadecimal digits of either case.
pub(super) fn byte_value(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let hexadecimal = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    if hexadecimal { u8::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn field(number: u8, bytes: &[u8], out: &mut Vec<u8>) {
        out.push(number << 3 | 2);
        let mut length = bytes.len();
        while length >= 0x80 {
            out.push(length as u8 | 0x80);
            length >>= 7;
        }
        out.push(length as u8);
        out.extend(bytes);
    }

    /// A ModelProto (BPE) of these pieces.
    pub(crate) fn proto(pieces: &[(&str, f32, u8)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (text, score, kind) in pieces {
            let mut piece = Vec::new();
            field(1, text.as_bytes(), &mut piece);
            piece.push(2 << 3 | 5);
            piece.extend(score.to_le_bytes());
            piece.extend([3 << 3, *kind]);
            field(1, &piece, &mut out);
        }
        field(2, &[3 << 3, 2, 0x98, 2, 1], &mut out);
        field(3, &[3 << 3, 1], &mut out);
        out
    }

    /// Unknown, begin, end, all bytes, and some text.
    pub(crate) fn small_pieces() -> Vec<(String, f32, u8)> {
        let mut pieces = vec![("<unk>".into(), 0.0, 2), ("<s>".into(), 0.0, 3), ("</s>".into(), 0.0, 3)];
        pieces.extend((0..256).map(|b| (format!("<0x{b:02X}>"), 0.0, 6)));
        for (n, text) in ["▁a", "ab", "▁ab", "▁", "a", "b"].into_iter().enumerate() {
            pieces.push((text.into(), -(n as f32), 1));
        }
        pieces
    }

    pub(crate) fn proto_of(pieces: &[(String, f32, u8)]) -> Vec<u8> {
        let pieces: Vec<_> = pieces.iter().map(|(t, s, k)| (t.as_str(), *s, *k)).collect();
        proto(&pieces)
    }

    fn message(bytes: &[u8]) -> String {
        parse(Path::new("tokenizer.model"), bytes).unwrap_err().to_string()
    }

    #[test]
    fn pieces_scores_and_types_are_read() {
        let model = parse(Path::new("x"), &proto_of(&small_pieces())).unwrap();
        assert_eq!(model.pieces.len(), 265);
        assert_eq!(model.training, Training::Bpe);
        assert!(model.adds_space);
        assert_eq!(model.pieces[0].kind, PieceKind::Unknown);
        assert_eq!(model.pieces[3], Piece { text: "<0x00>".into(), score: 0.0, kind: PieceKind::Byte });
        assert_eq!(model.pieces[261], Piece { text: "▁ab".into(), score: -2.0, kind: PieceKind::Normal });
    }

    #[test]
    fn unknown_fields_are_skipped() {
        let mut bytes = proto(&[("<unk>", 0.0, 2)]);
        bytes.extend([9 << 3, 0xff, 1]); // a number
        bytes.extend([10 << 3 | 1, 1, 2, 3, 4, 5, 6, 7, 8]); // 64 bits
        assert_eq!(parse(Path::new("x"), &bytes).unwrap().pieces.len(), 1);
    }

    #[test]
    fn duplicate_pieces_are_refused() {
        let text = message(&proto(&[("<unk>", 0.0, 2), ("a", 0.0, 1), ("a", -1.0, 1)]));
        assert_eq!(
            text,
            "tokenizer.model: piece 2: found \"a\", which is piece 1 too, expected a text of its own"
        );
    }

    #[test]
    fn broken_byte_pieces_are_refused() {
        assert!(message(&proto(&[("<unk>", 0.0, 2), ("<0xG0>", 0.0, 6)])).contains("byte piece 1"));
        let text = message(&proto(&[("<unk>", 0.0, 2), ("<0x00>", 0.0, 6), ("<0x01>", 0.0, 6)]));
        assert!(text.contains("found 2 of 256"), "{text}");
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(message(&proto(&[("a", 0.0, 1)])).contains("exactly one"));
        assert!(message(&proto(&[("<unk>", 0.0, 2), ("", 0.0, 1)])).contains("empty text"));
        assert!(message(&proto(&[("<unk>", f32::NAN, 2)])).contains("score: found NaN"));
        assert!(message(&proto(&[("<unk>", 0.0, 9)])).contains("piece type 9"));
        assert!(message(b"").contains("an empty file"));
        assert!(message(b"IQ== 0\nIg== 1\n").contains("tiktoken"));
        assert!(message(b"version https://git-lfs.github.com/spec/v1\n").contains("git-lfs"));
        assert!(message(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]).contains("bytes where 0 are left"));
        assert!(message(&[0xff; 32]).contains("broken number"));
    }

    #[test]
    fn every_prefix_and_bit_flip_is_an_error_or_a_model() {
        let bytes = proto_of(&small_pieces());
        for end in 0..bytes.len() {
            let _ = parse(Path::new("x"), &bytes[..end]);
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Ok(model) = parse(Path::new("x"), &flipped) {
                assert!(!model.pieces.is_empty());
            }
        }
    }

    #[test]
    fn byte_values() {
        assert_eq!(byte_value("<0x0A>"), Some(10));
        assert_eq!(byte_value("<0xff>"), Some(255));
        for text in ["<0x>", "<0x100>", "<0x+1>", "0x0A", "<0x0A"] {
            assert_eq!(byte_value(text), None, "{text}");
        }
    }
}
