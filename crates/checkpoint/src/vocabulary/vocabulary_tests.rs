use std::collections::HashMap;
use std::path::PathBuf;

use serde_json::json;

use super::*;
use crate::fixture::Fixture;
use crate::{Checkpoint, OpenOptions};

fn vocabulary(fixture: &Fixture) -> Vocabulary {
    fixture.open().unwrap_or_else(|e| panic!("{e}")).vocabulary().clone()
}

/// The fixture with as many SentencePiece pieces as given, its embedding keeping 265 rows.
fn with_pieces(pieces: &[(String, f32, u8)]) -> Fixture {
    let fixture = Fixture::mixtral();
    fixture.write("tokenizer.model", &testing::proto_of(pieces));
    fixture
}

/// GPT-2's alphabet.
fn byte_characters() -> Vec<char> {
    let own = |b: &u32| matches!(*b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    (0..256).filter(own).chain(0x100..0x144).map(|c| char::from_u32(c).unwrap()).collect()
}

/// A byte-level tokenizer.json with 256 bytes, "he", "hel", and 3 added tokens: 261 tokens.
fn byte_level() -> Value {
    let mut vocab = Map::new();
    for (id, c) in byte_characters().into_iter().enumerate() {
        vocab.insert(c.to_string(), id.into());
    }
    for (id, text) in [(256, "he"), (257, "hel"), (258, "<|end|>")] {
        vocab.insert(text.into(), id.into());
    }
    json!({
        "model": {"type": "BPE", "vocab": vocab, "merges": ["h e", "he l"]},
        "added_tokens": [
            {"id": 258, "content": "<|end|>", "special": true},
            {"id": 259, "content": "<|looks|>", "special": false},
            {"id": 260, "content": "▁plain", "special": false},
        ],
        "pre_tokenizer": {"type": "ByteLevel", "use_regex": true},
        "decoder": {"type": "ByteLevel"},
    })
}

fn with_json(tokenizer: &Value) -> Fixture {
    let fixture = Fixture::mixtral();
    std::fs::remove_file(fixture.file("tokenizer.model")).unwrap();
    fixture.write_json("tokenizer.json", tokenizer);
    fixture
}

#[test]
fn a_sentencepiece_model_becomes_tokens_scores_and_types() {
    let fixture = Fixture::mixtral();
    fixture.write_json("tokenizer_config.json", &json!({"add_bos_token": true, "add_prefix_space": true}));
    let v = vocabulary(&fixture);
    assert_eq!((v.model, v.pre.as_str(), v.len()), (TokenizerModel::Spm, "default", 265));
    assert_eq!(&v.types[..4], [TokenType::Unknown, TokenType::Control, TokenType::Control, TokenType::Byte]);
    assert_eq!((v.tokens[261].as_str(), v.scores[261], v.types[261]), ("▁ab", -2.0, TokenType::Normal));
    assert_eq!((v.special(Special::Bos), v.special(Special::Eos)), (Some(1), Some(2)));
    assert_eq!((v.adds(Special::Bos), v.adds(Special::Eos)), (Some(true), None));
    assert_eq!(v.add_space_prefix, Some(true));
}

#[test]
fn added_tokens_replace_and_extend() {
    let fixture = with_pieces(&testing::small_pieces()[..262]);
    fixture.write_json("added_tokens.json", &json!({"<|im_start|>": 262, "word": 263}));
    fixture.write_json(
        "tokenizer_config.json",
        &json!({"added_tokens_decoder": {
            "0": {"content": "<unk>", "special": true},
            "261": {"content": "▁new", "special": false},
            "262": {"content": "<|im_start|>", "special": false},
            "264": {"content": "<end>", "special": true},
        }}),
    );
    let v = vocabulary(&fixture);
    assert_eq!(v.tokens[261..], [" new", "<|im_start|>", "word", "<end>"]);
    use TokenType::{Control, UserDefined};
    assert_eq!(v.types[261..], [UserDefined, Control, UserDefined, Control]);
    assert_eq!(v.types[0], Control);
    assert_eq!(v.scores[261..], [-1000.0; 4]);
    assert_eq!(
        fixture.warnings(),
        [
            "tokenizer_config.json: added_tokens_decoder: found \"▁new\" for id 261, which was \"▁ab\"; replaced"
        ]
    );
}

#[test]
fn fewer_tokens_than_embedding_rows() {
    let fixture = with_pieces(&testing::small_pieces()[..260]);
    let v = vocabulary(&fixture);
    assert_eq!(
        (v.tokens[260].as_str(), v.scores[264], v.types[264]),
        ("[PAD260]", -10000.0, TokenType::Unused)
    );
    let warnings = fixture.warnings();
    assert!(
        warnings[0].contains("found 260 tokens, expected 265, the rows of the embedding"),
        "{warnings:?}"
    );
    assert!(warnings[0].contains("5 ids from 260 to 264"), "{warnings:?}");
}

#[test]
fn more_tokens_than_embedding_rows() {
    let mut pieces = testing::small_pieces();
    pieces.push(("extra".into(), -9.0, 1));
    let fixture = with_pieces(&pieces);
    fixture.write_json("added_tokens.json", &json!({"<|far|>": 4_294_967_296_u64}));
    assert_eq!(vocabulary(&fixture).len(), 265);
    assert_eq!(
        fixture.warnings(),
        [
            "tokenizer.model: vocabulary: found 267 tokens, expected 265, the rows of the embedding; left out: \
          \"265 extra\", \"4294967296 <|far|>\""
        ]
    );
}

#[test]
fn vocab_size_other_than_the_embedding_rows() {
    let mut fixture = Fixture::mixtral();
    fixture.set("vocab_size", json!(32000));
    assert_eq!(vocabulary(&fixture).len(), 265);
    assert_eq!(
        fixture.warnings(),
        ["config.json: vocab_size: found 32000, expected 265, the rows of the embedding, which are used"]
    );
}

#[test]
fn duplicate_tokens_across_files() {
    let fixture = with_pieces(&testing::small_pieces()[..264]);
    fixture.write_json("added_tokens.json", &json!({"▁ab": 264}));
    assert_eq!(
        fixture.error(),
        "added_tokens.json: token 264: found \"▁ab\", which token 261 is too, expected a text of its own"
    );
}

#[test]
fn id_gaps_become_unused_tokens() {
    let fixture = with_pieces(&testing::small_pieces()[..262]);
    fixture.write_json("added_tokens.json", &json!({"far": 264}));
    let v = vocabulary(&fixture);
    assert_eq!(v.tokens[261..], ["▁ab", "[PAD262]", "[PAD263]", "far"]);
    assert!(fixture.warnings()[0].contains("2 ids from 262 to 263"), "{:?}", fixture.warnings());
}

#[test]
fn broken_added_tokens() {
    let fixture = Fixture::mixtral();
    fixture.write_json("added_tokens.json", &json!({"x": -5}));
    assert!(fixture.error().contains("added_tokens.json: token \"x\": found id -5"), "{}", fixture.error());
    fixture.write_json("added_tokens.json", &json!({}));
    for (decoder, part) in [
        (json!([]), "added_tokens_decoder: found an array of 0"),
        (json!({"x": {"content": "a"}}), "found key \"x\", expected a token id"),
        (json!({"3": {"text": "a"}}), "added_tokens_decoder: 3: found an object of 1"),
    ] {
        fixture.write_json("tokenizer_config.json", &json!({"added_tokens_decoder": decoder}));
        assert!(fixture.error().contains(part), "{}", fixture.error());
    }
}

#[test]
fn tokenizer_files_that_disagree() {
    let fixture = Fixture::mixtral();
    let pieces = testing::small_pieces();
    let mut vocab: Map<String, Value> =
        pieces.iter().enumerate().map(|(id, (text, ..))| (text.clone(), id.into())).collect();
    let tokenizer = |vocab: &Map<String, Value>| {
        json!({"model": {"type": "BPE", "vocab": vocab, "merges": []},
               "added_tokens": [{"id": 1, "content": "<s>"}, {"id": 300, "content": "<|im_end|>"}]})
    };
    fixture.write_json("tokenizer.json", &tokenizer(&vocab));
    assert_eq!(
        fixture.warnings(),
        ["tokenizer.json: added token 300: found \"<|im_end|>\", expected no token by tokenizer.model, \
          added_tokens.json and tokenizer_config.json, which are used"]
    );
    vocab.remove("▁ab");
    vocab.insert("▁AB".into(), 261.into());
    fixture.write_json("tokenizer.json", &tokenizer(&vocab));
    let warnings = fixture.warnings();
    assert!(warnings[0].contains("different ids: \"261 is ▁AB there and ▁ab here\""), "{warnings:?}");
    fixture.write("tokenizer.json", b"{");
    let warnings = fixture.warnings();
    assert!(warnings[0].contains("tokenizer.json: JSON") && warnings[0].contains("left out"), "{warnings:?}");
}

#[test]
fn no_tokenizer_at_all() {
    let fixture = Fixture::mixtral();
    std::fs::remove_file(fixture.file("tokenizer.model")).unwrap();
    assert!(fixture.error().contains("tokenizer: found none, expected tokenizer.model or tokenizer.json"));
    fixture.write("tekken.json", b"{}");
    assert!(fixture.error().contains("found only tekken.json"));
}

#[test]
fn a_sentencepiece_model_that_puts_no_space_in_front() {
    let fixture = Fixture::mixtral();
    let mut bytes = testing::proto_of(&testing::small_pieces());
    bytes.extend([3 << 3 | 2, 2, 3 << 3, 0]); // normalizer_spec: add_dummy_prefix = false
    fixture.write("tokenizer.model", &bytes);
    assert_eq!(vocabulary(&fixture).add_space_prefix, Some(false));
    assert!(fixture.warnings()[0].contains("puts no space in front of text"), "{:?}", fixture.warnings());
}

#[test]
fn byte_level_bpe_becomes_tokens_types_and_merges() {
    let fixture = with_json(&byte_level());
    let v = vocabulary(&fixture);
    assert_eq!((v.model, v.pre.as_str(), v.len()), (TokenizerModel::Bpe, "gpt-2", 265));
    assert_eq!(v.merges, ["h e", "he l"]);
    assert!(v.scores.is_empty());
    assert_eq!(v.tokens[256..262], ["he", "hel", "<|end|>", "<|looks|>", " plain", "[PAD261]"]);
    use TokenType::{Control, Normal, Unused, UserDefined};
    assert_eq!(v.types[256..262], [Normal, Normal, Control, Control, UserDefined, Unused]);
}

#[test]
fn spaces_within_merges_are_written_as_in_the_vocabulary() {
    let mut tokenizer = byte_level();
    tokenizer["model"]["vocab"]["x "] = json!(261);
    tokenizer["model"]["vocab"]["x x "] = json!(262);
    tokenizer["model"]["vocab"]["x x x "] = json!(263);
    tokenizer["model"]["merges"] = json!([["x ", "x "]]);
    let fixture = with_json(&tokenizer);
    assert_eq!(vocabulary(&fixture).merges, ["xĠ xĠ"]);
    assert!(
        fixture.warnings()[0]
            .contains("found 3 tokens with characters that stand for no byte, such as \"x \"")
    );
}

#[test]
fn an_unknown_pre_tokenizer_is_named_and_can_be_chosen() {
    let mut tokenizer = byte_level();
    tokenizer["pre_tokenizer"] = json!({"type": "Whitespace"});
    let fixture = with_json(&tokenizer);
    let text = fixture.error();
    assert!(
        text.contains("pre_tokenizer: found") && text.contains("Whitespace") && text.contains("llama-bpe"),
        "{text}"
    );
    let options = OpenOptions { pre_tokenizer: Some("starcoder".into()), ..OpenOptions::default() };
    assert_eq!(fixture.open_with(&options).unwrap().vocabulary().pre, "starcoder");
    let fixture = with_json(&byte_level());
    let checkpoint = fixture.open_with(&options).unwrap();
    assert_eq!(checkpoint.vocabulary().pre, "starcoder");
    assert!(
        checkpoint.warnings().iter().any(|w| w.contains("found \"gpt-2\", but \"starcoder\" was asked for"))
    );
}

#[test]
fn byte_level_tokens_beyond_the_embedding() {
    let mut tokenizer = byte_level();
    tokenizer["model"]["vocab"]["hell"] = json!(265);
    assert_eq!(
        with_json(&tokenizer).error(),
        "tokenizer.json: model.vocab: \"hell\": found id 265, expected an id below 265, the rows of the embedding"
    );
    let mut tokenizer = byte_level();
    tokenizer["added_tokens"][2]["id"] = json!(99999);
    let warnings = with_json(&tokenizer).warnings();
    assert!(warnings.iter().any(|w| w.contains("left out: \"99999  plain\"")), "{warnings:?}");
}

#[test]
fn tokens_that_only_tokenizer_config_adds() {
    let fixture = with_json(&byte_level());
    fixture.write_json(
        "tokenizer_config.json",
        &json!({"added_tokens_decoder": {
            "258": {"content": "<|END|>", "special": true}, "261": {"content": "<pad>", "special": true},
        }}),
    );
    let v = vocabulary(&fixture);
    assert_eq!((v.tokens[261].as_str(), v.types[261]), ("<pad>", TokenType::Control));
    assert_eq!(v.tokens[258], "<|end|>");
    assert!(
        fixture.warnings()[0].contains("found \"<|END|>\" for id 258, expected \"<|end|>\""),
        "{:?}",
        fixture.warnings()
    );
}

#[test]
fn a_normalizer_without_a_key_is_said() {
    let mut tokenizer = byte_level();
    tokenizer["normalizer"] = json!({"type": "NFC"});
    let quiet = with_json(&tokenizer).warnings();
    assert!(!quiet.iter().any(|w| w.contains("normalizer")), "{quiet:?}");
    tokenizer["normalizer"] = json!({"type": "Lowercase"});
    let warnings = with_json(&tokenizer).warnings();
    assert!(warnings[0].contains("normalizer: found \"Lowercase\""), "{warnings:?}");
}

/// tokenizer.json of a SentencePiece vocabulary, with merges in the order that transformers writes them.
fn as_tokenizer_json(pieces: &[(String, f32)]) -> Value {
    let ids: HashMap<&str, usize> =
        pieces.iter().enumerate().map(|(id, (text, _))| (text.as_str(), id)).collect();
    let mut merges = Vec::new();
    for (text, score) in pieces {
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if let (Some(l), Some(r)) = (ids.get(left), ids.get(right)) {
                merges.push((*score, *l, *r, json!([left, right])));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
    let merges: Vec<Value> = merges.into_iter().map(|m| m.3).collect();
    let vocab: Map<String, Value> =
        pieces.iter().enumerate().map(|(id, (text, _))| (text.clone(), id.into())).collect();
    json!({
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "byte_fallback": true, "unk_token": "<unk>"},
        "added_tokens": [
            {"id": 0, "content": "<unk>", "special": true}, {"id": 1, "content": "<s>", "special": true},
            {"id": 2, "content": "</s>", "special": true},
        ],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "decoder": {"type": "Sequence", "decoders": []},
    })
}

#[test]
fn sentencepiece_as_tokenizer_json_keeps_the_order_of_merging() {
    let original = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-moe");
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer_config.json"] {
        std::fs::copy(original.join(name), folder.path().join(name)).unwrap();
    }
    let original = Checkpoint::open(&original).unwrap();
    let original = original.vocabulary();
    let pieces: Vec<(String, f32)> =
        original.tokens.iter().cloned().zip(original.scores.iter().copied()).collect();
    std::fs::write(folder.path().join("tokenizer.json"), as_tokenizer_json(&pieces).to_string()).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let v = checkpoint.vocabulary();
    assert_eq!((v.model, v.pre.as_str()), (TokenizerModel::Spm, "default"));
    assert_eq!(v.tokens, original.tokens);
    // The converter calls the unknown token a control token here; the rest is the same.
    assert_eq!(v.types[0], TokenType::Control);
    assert_eq!(v.types[1..], original.types[1..]);
    assert_eq!(v.special_ids, [(Special::Bos, 1), (Special::Eos, 2), (Special::Unk, 0)]);
    assert_eq!(v.add_space_prefix, None);
    // Tokens that merging makes come in the same order.
    let merged: Vec<usize> = (0..v.len()).filter(|id| v.tokens[*id].chars().count() > 1).collect();
    let merged: Vec<usize> = merged.into_iter().filter(|id| v.types[*id] == TokenType::Normal).collect();
    assert!(merged.len() > 1000);
    let order = |scores: &[f32]| {
        let mut ids = merged.clone();
        ids.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        ids
    };
    assert_eq!(order(&v.scores), order(&original.scores));
}

#[test]
fn sentencepiece_as_tokenizer_json_without_bytes() {
    let pieces: Vec<(String, f32)> = testing::small_pieces().into_iter().map(|(t, s, _)| (t, s)).collect();
    assert_eq!(vocabulary(&with_json(&as_tokenizer_json(&pieces))).len(), 265);
    let mut broken = pieces.clone();
    broken[100].0 = "<0xZZ>".into();
    assert!(with_json(&as_tokenizer_json(&broken)).error().contains("found 255 of 256"));
}

#[test]
fn sentencepiece_as_tokenizer_json_with_added_tokens() {
    let pieces: Vec<(String, f32)> =
        testing::small_pieces()[..262].iter().map(|(t, s, _)| (t.clone(), *s)).collect();
    let mut tokenizer = as_tokenizer_json(&pieces);
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    added.push(json!({"id": 262, "content": "<|im_end|>", "special": true}));
    added.push(json!({"id": 263, "content": "word", "special": false}));
    let fixture = with_json(&tokenizer);
    fixture.write_json("tokenizer_config.json", &json!({"eos_token": "<|im_end|>"}));
    let v = vocabulary(&fixture);
    use TokenType::{Control, Unused, UserDefined};
    assert_eq!(v.types[262..], [Control, UserDefined, Unused]);
    assert_eq!(v.special(Special::Eos), Some(262));
}

#[test]
fn sizes_that_the_converter_knows() {
    let mut v = vocabulary(&Fixture::mixtral());
    v.add_special = vec![(Special::Bos, true)];
    apply_size_rules(&mut v, 49152);
    assert_eq!(v.add_special, [(Special::Bos, false)]);
    apply_size_rules(&mut v, 32016);
    assert_eq!(v.special(Special::Eot), Some(32010));
}
