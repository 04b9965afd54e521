use serde_json::json;

use super::*;

fn read_text(text: &str) -> Result<TokenizerJson> {
    let file = Path::new("tokenizer.json");
    read(file, crate::json::parse_object(file, text.as_bytes())?)
}

fn read_json(value: Value) -> Result<TokenizerJson> {
    read_text(&value.to_string())
}

fn error(value: Value) -> String {
    read_json(value).unwrap_err().to_string()
}

fn model(vocab: Value, merges: Value) -> Value {
    json!({"model": {"type": "BPE", "vocab": vocab, "merges": merges}})
}

fn with_added(added: Value) -> Value {
    let mut value = model(json!({"a": 0, "b": 1, "ab": 2}), json!(["a b"]));
    value["added_tokens"] = added;
    value
}

#[test]
fn merges_old_and_new() {
    let vocab = json!({"a": 0, "b c": 1, "ab c": 2, "b": 3, "ab": 4});
    let new = read_json(model(vocab.clone(), json!([["a", "b c"], ["a", "b"]]))).unwrap();
    assert_eq!(new.merges, [("a".into(), "b c".into()), ("a".into(), "b".into())]);
    let old = read_json(model(vocab, json!(["a b"]))).unwrap();
    assert_eq!(old.merges, [("a".into(), "b".into())]);
}

#[test]
fn duplicate_token_texts() {
    let text = r#"{"model": {"type": "BPE", "vocab": {"a": 0, "a": 1}, "merges": []}}"#;
    assert!(read_text(text).unwrap_err().to_string().contains("duplicate key \"a\""));
}

#[test]
fn duplicate_token_ids() {
    let text = error(model(json!({"a": 0, "b": 0}), json!([])));
    assert_eq!(
        text,
        "tokenizer.json: model.vocab: \"b\": found id 0, which \"a\" has too, expected an id of its own"
    );
}

#[test]
fn huge_negative_and_fractional_ids() {
    for id in ["4294967296", "16777216", "-1", "1.5", "\"7\"", "null"] {
        let text = format!(r#"{{"model": {{"type": "BPE", "vocab": {{"a": {id}}}, "merges": []}}}}"#);
        let text = read_text(&text).unwrap_err().to_string();
        assert!(text.contains("model.vocab: \"a\": found id"), "{text}");
        let text =
            error(with_added(json!([{"id": serde_json::from_str::<Value>(id).unwrap(), "content": "x"}])));
        assert!(text.contains("added_tokens[0]: \"x\": found id"), "{text}");
    }
}

#[test]
fn merges_that_name_unknown_tokens() {
    let vocab = json!({"a": 0, "b": 1, "ab": 2});
    for (merge, unknown) in [("a c", "\"c\""), ("c a", "\"c\""), ("b a", "\"ba\"")] {
        let text = error(model(vocab.clone(), json!(["a b", merge])));
        assert_eq!(
            text,
            format!(
                "tokenizer.json: model.merges: merge 1: found {unknown}, expected a token of the vocabulary"
            )
        );
    }
}

#[test]
fn merges_that_are_none() {
    let vocab = json!({"a": 0, "b": 1, "ab": 2});
    for merge in
        [json!("ab"), json!("a b c"), json!(" b"), json!("a "), json!(["a"]), json!(["a", 1]), json!(3)]
    {
        let text = error(model(vocab.clone(), json!([merge])));
        assert!(text.contains("merge 0: found") && text.contains("expected two tokens"), "{merge}: {text}");
    }
    assert!(error(model(vocab, json!("a b"))).contains("model.merges: found \"a b\", expected an array"));
}

#[test]
fn added_tokens_with_ids_of_others() {
    for (added, part) in [
        (json!([{"id": 0, "content": "x"}]), "found id 0 for \"x\", which \"a\" has"),
        (json!([{"id": 9, "content": "a"}]), "found \"a\" with id 9, which has id 0 already"),
        (
            json!([{"id": 9, "content": "x"}, {"id": 9, "content": "y"}]),
            "found id 9 for \"y\", which \"x\" has",
        ),
        (
            json!([{"id": 8, "content": "x"}, {"id": 9, "content": "x"}]),
            "found \"x\" with id 9, which has id 8 already",
        ),
        (json!([{"id": 9, "content": ""}]), "added_tokens[0]: found \"\", expected a text"),
        (json!([{"id": 9}]), "added_tokens[0]: found no content"),
        (json!({}), "added_tokens: found an object of 0"),
    ] {
        let text = error(with_added(added));
        assert!(text.contains(part), "{text}");
    }
    let same =
        read_json(with_added(json!([{"id": 0, "content": "a", "special": true}, {"id": 0, "content": "a"}])));
    assert_eq!(same.unwrap().added, [AddedToken { id: 0, text: "a".into(), special: true }]);
}

#[test]
fn models_other_than_bpe() {
    assert!(
        error(json!({"model": {"type": "Unigram", "vocab": []}})).contains("model.type: found \"Unigram\"")
    );
    assert!(error(json!({"model": {"vocab": {}}})).contains("model.type: found no such key"));
    assert!(error(json!({})).contains("model: found no such object"));
    assert!(error(model(json!({}), json!([]))).contains("model.vocab: found no tokens"));
    let prefixed =
        json!({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "continuing_subword_prefix": "##"}});
    assert!(error(prefixed).contains("continuing_subword_prefix: found \"##\""));
}
