//! What made llama.cpp's tokenizer write beyond its buffers, and why it can't happen here: lengths are `usize` throughout,
//! tokens are lent as slices, and results grow as they are made; no caller hands in a buffer with a length.

use super::fixtures::*;
use crate::tokenizer::*;

const N: usize = 1 << 20;

/// CVE-2025-49847: the length of a token's text, cast to 32 bits with a sign, was compared with that of a fixed buffer, and
/// then as many bytes as the text has were copied.
#[test]
fn cve_2025_49847_a_token_longer_than_any_buffer_becomes_text() {
    let long = "x".repeat(3 * N);
    let control = format!("<{}>", "y".repeat(N));
    let tokenizer = Tokenizer::from_metadata(&spm_metadata(&[
        ("<unk>", 0.0, 2),
        ("<s>", 0.0, 3),
        ("</s>", 0.0, 3),
        (&long, -1.0, 1),
        (&control, 0.0, 3),
    ]))
    .expect("a vocabulary");
    assert_eq!(tokenizer.token_bytes(3).len(), long.len());
    assert!(tokenizer.decode(&[3, 3, 4], ControlText::Show).ends_with(&format!("{long}{long}{control}")));
    let mut decoder = Utf8Decoder::default();
    assert_eq!(decoder.push(tokenizer.token_bytes(3)), long);
    // A token that does not exist has no text.
    assert_eq!(tokenizer.token_text(5), None);
    assert_eq!(tokenizer.token_text(u32::MAX), None);
}

/// CVE-2025-52566: the number of tokens of a text was compared with the room for them as numbers with a sign, and where the
/// comparison failed more tokens were written than there was room for.
#[test]
fn cve_2025_52566_a_text_has_as_many_tokens_as_it_has() {
    let tokenizer = Tokenizer::from_metadata(&spm_metadata(&[
        ("<unk>", 0.0, 2),
        ("<s>", 0.0, 3),
        ("</s>", 0.0, 3),
        ("a", -1.0, 1),
        ("<c>", 0.0, 3),
    ]))
    .expect("a vocabulary");
    for n in [0, 1, 511, 512, 513, N] {
        let ids = tokenizer.encode(&"a".repeat(n), Special::Literal, AddBos::Never);
        assert_eq!(ids.iter().filter(|id| **id == 3).count(), n);
        let ids = tokenizer.encode(&"<c>".repeat(n), Special::Parse, AddBos::Never);
        assert_eq!(ids.iter().filter(|id| **id == 4).count(), n);
    }
}
