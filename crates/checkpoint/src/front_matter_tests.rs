use super::*;

fn text(s: &str) -> Yaml {
    Yaml::Text(s.to_owned())
}

fn texts(value: &Yaml, key: &str) -> Vec<String> {
    value.get(key).map(|v| v.texts().map(str::to_owned).collect()).unwrap_or_default()
}

#[test]
fn a_model_card_as_mergekit_writes_it() {
    let card = "---\nbase_model:\n- mistralai/Mistral-7B-v0.1\n- \"org/with: colon\"\nlibrary_name: transformers\n\
                tags:\n  - mergekit # by hand\n  - merge\nlicense: apache-2.0\nlanguage: [en, no]\nmodel-index:\n\
                - name: X\n  results:\n  - task:\n      type: text-generation\n    metrics: [{name: acc, value: 0.5}]\n\
                ---\n# Title\nkey: not part of it\n";
    let value = parse(front_matter(card).unwrap()).unwrap();
    assert_eq!(texts(&value, "base_model"), ["mistralai/Mistral-7B-v0.1", "org/with: colon"]);
    assert_eq!(texts(&value, "tags"), ["mergekit", "merge"]);
    assert_eq!(texts(&value, "language"), ["en", "no"]);
    assert_eq!(texts(&value, "license"), ["apache-2.0"]);
    let index = &value.get("model-index").unwrap().items()[0];
    assert_eq!(index.get("name"), Some(&text("X")));
    let metrics = index.get("results").unwrap().items()[0].get("metrics").unwrap().items();
    assert_eq!(metrics[0].get("value"), Some(&text("0.5")));
}

#[test]
fn scalars_of_every_kind() {
    let value = parse(
        "plain: a b # c\nsingle: 'it''s'\ndouble: \"a\\tb\\u00e9\"\nnothing:\nnull_too: ~\nlong: one\n  two\nurl: https://x.y/z#w\n\
         literal: |\n  a\n   b\n\nfolded: >-\n  a\n  b\nlast: \"over\n  lines\"\n",
    )
    .unwrap();
    assert_eq!(value.get("plain"), Some(&text("a b")));
    assert_eq!(value.get("single"), Some(&text("it's")));
    assert_eq!(value.get("double"), Some(&text("a\tbé")));
    assert_eq!(value.get("nothing"), None);
    assert_eq!(value.get("null_too"), None);
    assert_eq!(value.get("long"), Some(&text("one two")));
    assert_eq!(value.get("url"), Some(&text("https://x.y/z#w")));
    assert_eq!(value.get("literal"), Some(&text("a\n b\n")));
    assert_eq!(value.get("folded"), Some(&text("a b")));
    assert_eq!(value.get("last"), Some(&text("over lines")));
}

#[test]
fn lists_of_mappings_as_in_a_merge_recipe() {
    let value = parse(
        "slices:\n  - sources:\n      - model: a/b\n        layer_range: [0, 32]\n      -   model: c/d\n          layer_range:\n          - 0\n          - 32\n",
    )
    .unwrap();
    let sources = value.get("slices").unwrap().items()[0].get("sources").unwrap().items();
    assert_eq!(sources.len(), 2);
    assert_eq!(sources[1].get("model"), Some(&text("c/d")));
    assert_eq!(texts(&sources[1], "layer_range"), ["0", "32"]);
}

#[test]
fn what_is_not_understood_is_an_error_with_its_line() {
    for (document, part) in [
        ("a: &x 1\n", "line 1"),
        ("a: 1\nb\n", "line 2"),
        ("a: [1, 2\n", "end of the file"),
        ("a: 1\na: 2\n", "second time"),
        ("a: \"b\" c\n", "behind the end"),
    ] {
        let why = parse(document).unwrap_err();
        assert!(why.contains(part), "{document:?}: {why}");
    }
}

#[test]
fn deep_nesting_is_refused_without_a_stack_overflow() {
    assert!(parse(&format!("a: {}", "[".repeat(100_000))).unwrap_err().contains("nested deeper"));
    assert!(parse(&"- ".repeat(100_000)).unwrap_err().contains("nested deeper"));
}

#[test]
fn files_without_front_matter_have_none() {
    assert_eq!(front_matter("# Title\n---\n"), None);
    assert_eq!(front_matter(""), None);
    assert_eq!(front_matter("---\r\na: 1\r\n---\r\nrest"), Some("a: 1\r\n"));
}
