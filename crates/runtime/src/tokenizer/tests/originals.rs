//! The same ids as the libraries that the models were trained with.

use super::fixtures::*;
use crate::tokenizer::*;

fn check(tokenizer: &Tokenizer, cases: &[Golden], special: Special) {
    assert!(cases.len() >= 40, "only {} cases", cases.len());
    for case in cases {
        let ids = tokenizer.encode(&case.text, special, AddBos::Never);
        assert_eq!(ids, case.ids, "{:?}", case.text);
    }
}

/// Ids from the sentencepiece library for the model in the project.
#[test]
fn tiny_moe_equals_sentencepiece() {
    let tokenizer = tiny_moe();
    let cases = golden("crates/runtime/src/tokenizer/tests/tokens-tiny-moe.jsonl");
    check(&tokenizer, &cases, Special::Literal);
    for case in &cases {
        assert_eq!(tokenizer.decode(&case.ids, ControlText::Show), case.text);
    }
}

#[test]
fn mistral_equals_sentencepiece() {
    let Some(file) = in_test_models("tiny4/tokenizer.model") else { return };
    let tokenizer = Tokenizer::from_metadata(&of_sentencepiece(&file)).unwrap();
    let cases = golden("tests/golden/tokens-mistral-v1.jsonl");
    check(&tokenizer, &cases, Special::Literal);
    for case in &cases {
        // A typed U+2581 is how SentencePiece writes a space, and comes back as one.
        assert_eq!(tokenizer.decode(&case.ids, ControlText::Show), case.text.replace('▁', " "));
    }
}

#[test]
fn smollm2_equals_tokenizers() {
    let Some(file) = in_test_models("smol4x/tokenizer.json") else { return };
    let tokenizer = Tokenizer::from_metadata(&of_tokenizer_json(&file, "smollm")).unwrap();
    let cases = golden("tests/golden/tokens-smollm2.jsonl");
    check(&tokenizer, &cases, Special::Parse);
    for case in &cases {
        assert_eq!(tokenizer.decode(&case.ids, ControlText::Show), case.text);
    }
    assert!(tokenizer.warnings().is_empty(), "{:?}", tokenizer.warnings());
}

#[test]
fn ends_of_generation_are_llama_cpps() {
    let tokenizer = tiny_moe();
    assert_eq!(tokenizer.end_of_generation(), [2]);
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.unk()), (Some(1), Some(2), Some(0)));
    let Some(file) = in_test_models("smol4x/tokenizer.json") else { return };
    let tokenizer = Tokenizer::from_metadata(&of_tokenizer_json(&file, "smollm")).unwrap();
    // <|endoftext|>, <|im_end|>, <reponame>, <file_sep> is none of llama.cpp's texts.
    assert_eq!(tokenizer.end_of_generation(), [0, 2, 4]);
    assert!(!tokenizer.is_end_of_generation(1));
}
