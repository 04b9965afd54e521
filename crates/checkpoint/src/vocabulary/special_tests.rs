use serde_json::json;

use super::*;
use crate::Checkpoint;
use crate::fixture::Fixture;
use crate::vocabulary::Special::{Bos, Eos, Eot, Mask, Pad, Sep};

fn special(text: &str) -> Value {
    json!({"SpecialToken": {"id": text, "type_id": 0}})
}

fn template(single: &[&str], pair: &[&str]) -> Value {
    let item = |text: &&str| match *text {
        "A" | "B" => json!({"Sequence": {"id": text, "type_id": 0}}),
        text => special(text),
    };
    json!({
        "type": "TemplateProcessing",
        "single": single.iter().map(item).collect::<Vec<_>>(),
        "pair": pair.iter().map(item).collect::<Vec<_>>(),
    })
}

/// Ids and additions by these files, for a vocabulary of 10.
fn read_case(post_processor: Value, tokenizer_config: Value) -> Specials {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokenizer.json");
    let map = json!({
        "model": {"type": "BPE", "vocab": {"<unk>": 0}, "merges": []},
        "added_tokens": [
            {"id": 1, "content": "<s>"}, {"id": 2, "content": "</s>"}, {"id": 3, "content": "<eot>"},
            {"id": 4, "content": "<pad>"}, {"id": 5, "content": "<sep>"},
        ],
        "post_processor": post_processor,
    });
    let Value::Object(map) = map else { unreachable!() };
    let tokenizer = super::super::tokenizer_json::read(&file, map).unwrap();
    std::fs::write(folder.path().join("tokenizer_config.json"), tokenizer_config.to_string()).unwrap();
    let config = json!({"bos_token_id": 1, "eos_token_id": 2});
    let dir = Directory::open(folder.path()).unwrap();
    let mut warnings = Vec::new();
    let companions = Companions::read(&dir, config.as_object().unwrap(), &mut warnings).unwrap();
    read(&companions, Some(&tokenizer), &vec![String::new(); 10], &mut warnings).unwrap()
}

#[test]
fn post_processors_mean_what_they_mean_to_the_converter() {
    let llama = json!({"bos_token": "<s>", "eos_token": "</s>"});
    // Expected values from gguf-py's SpecialVocab on the same files.
    for (processor, config, ids, adds) in [
        (
            template(&["<s>", "A"], &["<s>", "A", "<s>", "B"]),
            llama.clone(),
            vec![(Bos, 1), (Eos, 2)],
            vec![(Bos, true), (Sep, false)],
        ),
        (
            template(&["<s>", "A", "</s>"], &["<s>", "A", "</s>", "B", "</s>"]),
            llama.clone(),
            vec![(Bos, 1), (Eos, 2)],
            vec![(Bos, true), (Eos, true), (Sep, false)],
        ),
        (
            template(&["<s>", "A", "</s>"], &["<s>", "A", "</s>", "</s>", "B", "</s>"]),
            llama.clone(),
            vec![(Bos, 1), (Eos, 2), (Sep, 2)],
            vec![(Bos, true), (Eos, true), (Sep, true)],
        ),
        (
            template(&["<s>", "A", "</s>"], &[]),
            json!({"bos_token": "<s>", "eos_token": "<eot>"}),
            vec![(Bos, 1), (Eos, 2), (Eot, 3)],
            vec![(Bos, true), (Eos, true)],
        ),
        (
            template(&["A", "<eot>"], &[]),
            json!({"bos_token": "<s>"}),
            vec![(Bos, 1), (Eos, 3)],
            vec![(Eos, true)],
        ),
        (
            template(&["<other>", "A"], &[]),
            json!({"bos_token": "<s>", "cls_token": "<s>"}),
            vec![(Bos, 1), (Eos, 2)],
            vec![(Bos, false)],
        ),
        (
            json!({"type": "Sequence", "processors": [
                {"type": "ByteLevel"}, template(&["<s>", "A"], &["<s>", "A", "<s>", "B"]),
            ]}),
            json!({"bos_token": "<s>", "eos_token": "</s>", "pad_token": {"content": "<pad>"}}),
            vec![(Bos, 1), (Eos, 2), (Pad, 4)],
            vec![(Bos, true), (Eos, false), (Sep, false)],
        ),
        (
            json!({"type": "ByteLevel"}),
            json!({"bos_token": "<s>", "add_bos_token": true}),
            vec![(Bos, 1), (Eos, 2)],
            vec![(Bos, false), (Eos, false)],
        ),
        (
            json!({"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]}),
            llama.clone(),
            vec![(Bos, 1), (Eos, 2), (Sep, 2)],
            vec![(Bos, true), (Eos, true), (Sep, true)],
        ),
        (
            Value::Null,
            json!({"cls_token": "<s>", "sep_token": "<sep>", "add_bos_token": true, "add_eos_token": false}),
            vec![(Bos, 1), (Eos, 5), (Sep, 5)],
            vec![(Bos, true), (Eos, false)],
        ),
        (
            template(&["<s>", "A"], &["<s>", "A", "<sep>", "B"]),
            json!({"bos_token": "<s>", "eos_token": "</s>", "sep_token": "<sep>"}),
            vec![(Bos, 1), (Eos, 2), (Sep, 5)],
            vec![(Bos, true), (Sep, true)],
        ),
        (
            Value::Null,
            json!({"bos_token": "<s>", "eos_token": "<eot>", "mask_token": "<pad>"}),
            vec![(Bos, 1), (Eos, 3), (Mask, 4)],
            vec![],
        ),
    ] {
        let found = read_case(processor.clone(), config.clone());
        assert_eq!(found.ids, ids, "{processor} {config}");
        assert_eq!(found.adds, adds, "{processor} {config}");
    }
}

fn open(fixture: &Fixture) -> Checkpoint {
    fixture.open().unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn special_ids_out_of_range_are_left_out_with_a_word() {
    let mut fixture = Fixture::mixtral();
    fixture.set("pad_token_id", json!(265));
    fixture.set("unk_token_id", json!(-1));
    fixture.set("eos_token_id", json!([]));
    let vocabulary = open(&fixture).vocabulary().clone();
    assert_eq!((vocabulary.special(Pad), vocabulary.special(Eos)), (None, None));
    let warnings = fixture.warnings();
    assert!(
        warnings.iter().any(|w| w.contains("pad_token_id: found 265, expected an id below the 265 tokens")),
        "{warnings:?}"
    );
    assert!(warnings.iter().any(|w| w.contains("unk_token_id: found -1, taken as none")), "{warnings:?}");
    assert!(warnings.iter().any(|w| w.contains("end token: found none")), "{warnings:?}");
    fixture.set("eos_token_id", json!("</s>"));
    assert!(fixture.error().contains("config.json: eos_token_id: found \"</s>\""), "{}", fixture.error());
}

#[test]
fn of_several_end_tokens_the_stated_one_is_written_or_the_first() {
    let mut fixture = Fixture::mixtral();
    fixture.set("eos_token_id", json!([5, 2]));
    assert_eq!(open(&fixture).vocabulary().special(Eos), Some(5));
    fixture.write_json("tokenizer_config.json", &json!({"eos_token": "</s>"}));
    assert_eq!(open(&fixture).vocabulary().special(Eos), Some(2));
    assert_eq!(fixture.warnings(), [""; 0]);
    fixture.set("eos_token_id", json!([900]));
    assert_eq!(open(&fixture).vocabulary().special(Eos), None);
    assert!(fixture.warnings()[0].contains("eos_token_id: found 900"), "{:?}", fixture.warnings());
}

#[test]
fn files_that_name_another_end_token_are_said() {
    let fixture = Fixture::mixtral();
    fixture.write_json(
        "tokenizer_config.json",
        &json!({"eos_token": "<|im_end|>", "bos_token": {"content": "<s>"}}),
    );
    fixture.write_json("special_tokens_map.json", &json!({"eos_token": {"content": "</s>"}}));
    fixture.write_json("generation_config.json", &json!({"eos_token_id": [32000, 7]}));
    assert_eq!(
        fixture.warnings(),
        [
            "tokenizer_config.json: eos_token: found \"<|im_end|>\", but id 2 is used, which is \"</s>\"",
            "generation_config.json: eos_token_id: found [32000, 7], but id 2 is used",
        ]
    );
}

#[test]
fn a_broken_generation_config_is_left_out() {
    let fixture = Fixture::mixtral();
    fixture.write("generation_config.json", b"{");
    assert!(fixture.warnings()[0].contains("generation_config.json: JSON"), "{:?}", fixture.warnings());
}

#[test]
fn templates_as_text_list_and_files() {
    let fixture = Fixture::mixtral();
    let templates = |fixture: &Fixture| {
        let v = open(fixture).vocabulary().clone();
        (v.chat_template, v.named_templates)
    };
    assert_eq!(templates(&fixture), (None, vec![]));
    fixture.write_json("chat_template.json", &json!({"chat_template": "json"}));
    assert_eq!(templates(&fixture).0.as_deref(), Some("json"));
    fixture.write("chat_template.jinja", b"file");
    std::fs::create_dir(fixture.file("additional_chat_templates")).unwrap();
    fixture.write("additional_chat_templates/tool-use.jinja", b"tools");
    assert_eq!(templates(&fixture), (Some("file".into()), vec![("tool_use".into(), "tools".into())]));
    fixture.write_json("tokenizer_config.json", &json!({"chat_template": "stated"}));
    assert_eq!(templates(&fixture), (Some("stated".into()), vec![]));
    assert!(fixture.warnings()[0].contains("differs from chat_template.jinja"), "{:?}", fixture.warnings());
    fixture.write_json(
        "tokenizer_config.json",
        &json!({"chat_template": [
            {"name": "default", "template": "d"}, {"name": "rag 2", "template": "r"}, {"name": "", "template": "x"}, {"name": "y"}, 3,
        ]}),
    );
    assert_eq!(templates(&fixture), (Some("d".into()), vec![("rag_2".into(), "r".into())]));
}

#[test]
fn a_template_is_text_whatever_it_would_do() {
    let fixture = Fixture::mixtral();
    for hostile in [
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ ''.__class__.__mro__ }}",
        "{% include 'self' %}",
        "{{",
    ] {
        fixture.write_json("tokenizer_config.json", &json!({"chat_template": hostile}));
        assert_eq!(open(&fixture).vocabulary().chat_template.as_deref(), Some(hostile));
    }
    fixture.write_json("tokenizer_config.json", &json!({"chat_template": {"a": 1}}));
    assert!(
        fixture.warnings()[0].contains("chat_template: found an object of 1"),
        "{:?}",
        fixture.warnings()
    );
    std::fs::remove_file(fixture.file("tokenizer_config.json")).unwrap();
    fixture.write("chat_template.jinja", &vec![b'x'; (1 << 20) + 1]);
    assert!(
        fixture.error().contains("chat_template.jinja: size: found 1048577 bytes"),
        "{}",
        fixture.error()
    );
}
