//! Borders between template and user text, BOS and EOS, single tokens and streams.

use super::fixtures::*;
use crate::tokenizer::*;
use model_spec::keys;

fn parse(text: &str) -> Segment<'_> {
    Segment { text, special: Special::Parse }
}

fn literal(text: &str) -> Segment<'_> {
    Segment { text, special: Special::Literal }
}

#[test]
fn typed_control_tokens_stay_text() {
    let tokenizer = tiny_moe();
    for text in ["</s>", "<s>", "<unk>", "a</s>b", "<<s>>", "<0x0A>"] {
        let ids = tokenizer.encode(text, Special::Literal, AddBos::Never);
        assert!(
            ids.iter().all(|&id| tokenizer.token_type(id) != Some(TokenType::Control)),
            "{text}: {ids:?}"
        );
        assert!(!ids.contains(&0), "{text}: {ids:?}");
        assert_eq!(tokenizer.decode(&ids, ControlText::Show), text);
    }
    assert_eq!(tokenizer.encode("</s>", Special::Parse, AddBos::Never), [2]);
}

#[test]
fn pieces_that_would_join_to_a_control_token_do_not() {
    // Scores of control tokens are 0, higher than any other: joining by score alone would spell the token.
    let tokens = [
        ("<unk>", 0.0, 2),
        ("<s>", 0.0, 3),
        ("</s>", 0.0, 3),
        ("</", -1.0, 1),
        ("s>", -2.0, 1),
        ("<", -3.0, 1),
        ("/", -4.0, 1),
        ("s", -5.0, 1),
        (">", -6.0, 1),
        ("▁", -7.0, 1),
    ];
    let tokenizer = spm(&tokens).unwrap();
    assert_eq!(tokenizer.encode("</s>", Special::Literal, AddBos::Never), [9, 3, 4]);
    assert_eq!(tokenizer.encode("</s>", Special::Parse, AddBos::Never), [2]);
}

#[test]
fn control_tokens_need_every_byte_from_the_template() {
    let tokenizer =
        Tokenizer::from_metadata(&byte_level_metadata("gpt-2", &[("<|im_end|>", 3), ("[X]", 4)], &[]))
            .unwrap();
    let whole = |segments: &[Segment<'_>]| tokenizer.encode_segments(segments, AddBos::Never).contains(&256);
    assert!(whole(&[parse("<|im_end|>")]));
    assert!(whole(&[parse("a<|im_"), parse("end|>b")]));
    assert!(whole(&[literal("x"), parse("<|im_end|>"), literal("x")]));
    assert!(!whole(&[literal("<|im_end|>")]));
    assert!(!whole(&[parse("<|im_"), literal("end|>")]));
    assert!(!whole(&[literal("<|"), parse("im_end|>")]));
    assert!(!whole(&[parse("<|im"), literal("_"), parse("end|>")]));
    // User-defined tokens are text and found anywhere.
    assert!(tokenizer.encode_segments(&[parse("[X"), literal("]")], AddBos::Never).contains(&257));
}

#[test]
fn user_defined_tokens_that_look_like_control_are_guarded() {
    let tokenizer =
        Tokenizer::from_metadata(&byte_level_metadata("gpt-2", &[("<|im_start|>", 4)], &[])).unwrap();
    assert!(!tokenizer.encode("<|im_start|>", Special::Literal, AddBos::Never).contains(&256));
    assert_eq!(tokenizer.encode("<|im_start|>", Special::Parse, AddBos::Never), [256]);
}

#[test]
fn whole_words_rules_do_not_spell_control_tokens() {
    // llama-bpe takes any word that is a token as it is.
    let metadata = byte_level_metadata("llama-bpe", &[("hello", 1), ("stop", 3)], &[]);
    let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
    assert_eq!(tokenizer.encode("hello", Special::Literal, AddBos::Never), [256]);
    assert_eq!(tokenizer.encode("stop", Special::Literal, AddBos::Never), b"stop".map(u32::from));
    assert_eq!(tokenizer.encode("stop", Special::Parse, AddBos::Never), [257]);
}

#[test]
fn merges_never_spell_control_tokens() {
    let metadata = byte_level_metadata("gpt-2", &[("ab", 1), ("abc", 3)], &["a b", "ab c"]);
    let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
    let ids = tokenizer.encode("abc", Special::Literal, AddBos::Never);
    assert!(!ids.contains(&257), "{ids:?}");
    assert_eq!(tokenizer.decode(&ids, ControlText::Show), "abc");
}

#[test]
fn segments_encode_as_one_text() {
    let tokenizer = tiny_moe();
    let text = "The quick brown fox jumps over the lazy dog, said Alice.";
    let whole = tokenizer.encode(text, Special::Literal, AddBos::Never);
    for cut in 0..text.len() {
        let segments = [parse(&text[..cut]), literal(&text[cut..])];
        assert_eq!(tokenizer.encode_segments(&segments, AddBos::Never), whole, "cut at {cut}");
    }
}

#[test]
fn bos_and_eos_as_the_metadata_asks() {
    let mut metadata = of_sentencepiece(&in_project("models/tiny-moe/tokenizer.model"));
    let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
    let plain = tokenizer.encode("Alice", Special::Literal, AddBos::Never);
    let with_bos = [&[1], &plain[..]].concat();
    assert_eq!(tokenizer.encode("Alice", Special::Literal, AddBos::Auto), with_bos);
    assert_eq!(tokenizer.encode("", Special::Literal, AddBos::Auto), [1]);
    assert!(tokenizer.encode("", Special::Literal, AddBos::Never).is_empty());
    assert_eq!(tokenizer.encode("<s>Alice", Special::Parse, AddBos::Auto), [&[1], &with_bos[..]].concat());
    let segments = [parse("<s>"), literal("Alice")];
    assert_eq!(tokenizer.encode_segments(&segments, AddBos::Auto), with_bos);
    assert_eq!(tokenizer.encode_segments(&segments[1..], AddBos::Auto), with_bos);
    assert_eq!(tokenizer.encode_segments(&[], AddBos::Auto), [1]);
    metadata.set(keys::TOKENIZER_ADD_BOS, false);
    metadata.set(keys::TOKENIZER_ADD_EOS, true);
    let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
    assert!(!tokenizer.adds_bos() && tokenizer.adds_eos());
    let with_eos = [&plain[..], &[2]].concat();
    assert_eq!(tokenizer.encode("Alice", Special::Literal, AddBos::Auto), with_eos);
    assert_eq!(tokenizer.encode_segments(&[literal("Alice"), parse("</s>")], AddBos::Auto), with_eos);
    assert_eq!(tokenizer.encode("Alice", Special::Literal, AddBos::Always), with_bos);
}

#[test]
fn a_space_goes_in_front_and_behind_control_tokens() {
    let tokenizer = tiny_moe();
    let ids = |text: &str, add_bos| tokenizer.encode(text, Special::Parse, add_bos);
    assert_eq!(ids("Alice", AddBos::Never), ids(" Alice", AddBos::Continue));
    let hello = ids("Hello", AddBos::Never);
    assert_eq!(ids("<s>Hello</s>Hello", AddBos::Continue), [&[1], &hello[..], &[2], &hello[..]].concat());
    let mut metadata = of_sentencepiece(&in_project("models/tiny-moe/tokenizer.model"));
    metadata.set(keys::TOKENIZER_ADD_SPACE_PREFIX, false);
    let bare = Tokenizer::from_metadata(&metadata).unwrap();
    assert_eq!(bare.encode("Alice", Special::Literal, AddBos::Never), ids("Alice", AddBos::Continue));
}

#[test]
fn decoding_hides_or_shows_control_tokens() {
    let tokenizer = tiny_moe();
    let ids = tokenizer.encode("<s>Alice</s>", Special::Parse, AddBos::Never);
    assert_eq!(tokenizer.decode(&ids, ControlText::Hide), "Alice");
    assert_eq!(tokenizer.decode(&ids, ControlText::Show), "<s>Alice</s>");
    assert_eq!(tokenizer.token_bytes(2), b"</s>");
    assert_eq!(tokenizer.token_bytes(3), [0]);
    assert_eq!(tokenizer.token_bytes(0xff + 3), [0xff]);
    assert_eq!(tokenizer.token_bytes(99_999_999), b"");
    assert_eq!(tokenizer.token_bytes(u32::MAX), b"");
}

#[test]
fn streams_hold_back_split_characters() {
    let tokenizer = tiny_moe();
    let text = "Alice 🔥 wörld 中";
    let ids = tokenizer.encode(text, Special::Literal, AddBos::Auto);
    let mut stream = TextStream::new(&tokenizer);
    let parts: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
    assert_eq!(parts.concat() + &stream.finish(), format!(" {text}"));
    assert!(parts.iter().all(|part| !part.contains('\u{fffd}')));
}
