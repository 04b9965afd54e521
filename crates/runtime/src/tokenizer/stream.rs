//! Text from bytes that arrive in pieces: characters cut by a token's end are held back until they are whole.

use super::{TokenId, Tokenizer};

/// Turns a stream of bytes into text. Bytes that can never become UTF-8 come out as U+FFFD.
#[derive(Clone, Debug, Default)]
pub struct Utf8Decoder {
    pending: Vec<u8>,
}

impl Utf8Decoder {
    /// The text that `bytes` complete; what is still incomplete at its end, at most three bytes, is kept.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::with_capacity(self.pending.len());
        let mut rest = &self.pending[..];
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    match error.error_len() {
                        Some(n) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            rest = &rest[n..];
                        }
                        None => break,
                    }
                }
            }
        }
        self.pending = rest.to_vec();
        text
    }

    /// The replacement for what stayed incomplete; empty when nothing did.
    pub fn finish(&mut self) -> String {
        let pending = std::mem::take(&mut self.pending);
        String::from_utf8_lossy(&pending).into_owned()
    }
}

/// Turns generated tokens into text, one at a time. Control tokens give nothing.
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    decoder: Utf8Decoder,
}

impl<'t> TextStream<'t> {
    /// A stream that continues a text, as a model's answer does: no leading space is taken away.
    pub fn new(tokenizer: &'t Tokenizer) -> Self {
        TextStream { tokenizer, decoder: Utf8Decoder::default() }
    }

    /// The text that `id` completes, which may be empty.
    pub fn push(&mut self, id: TokenId) -> String {
        if self.tokenizer.is_control(id) {
            return String::new();
        }
        self.decoder.push(self.tokenizer.token_bytes(id))
    }

    /// The replacement for what stayed incomplete; empty when nothing did.
    pub fn finish(&mut self) -> String {
        self.decoder.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::Utf8Decoder;

    #[test]
    fn any_cut_gives_the_same_text() {
        let text = "a é 中 🔥 e\u{301} \u{10ffff}";
        let bytes = text.as_bytes();
        for size in 1..6 {
            let mut decoder = Utf8Decoder::default();
            let mut out: String = bytes.chunks(size).map(|chunk| decoder.push(chunk)).collect();
            out += &decoder.finish();
            assert_eq!(out, text, "chunks of {size}");
        }
    }

    #[test]
    fn an_incomplete_character_is_held_back() {
        let mut decoder = Utf8Decoder::default();
        assert_eq!(decoder.push(b"a\xf0\x9f"), "a");
        assert_eq!(decoder.push(b"\x94"), "");
        assert_eq!(decoder.push(b"\xa5b"), "🔥b");
        assert_eq!(decoder.finish(), "");
    }

    #[test]
    fn what_is_not_utf8_is_replaced_at_once() {
        let mut decoder = Utf8Decoder::default();
        assert_eq!(decoder.push(b"\xffa\x80"), "\u{fffd}a\u{fffd}");
        assert_eq!(decoder.push(b"\xe4\xb8"), "");
        assert_eq!(decoder.push(b"x"), "\u{fffd}x");
        assert_eq!(decoder.push(b"\xe4\xb8"), "");
        assert_eq!(decoder.finish(), "\u{fffd}");
        assert_eq!(decoder.finish(), "");
    }
}
