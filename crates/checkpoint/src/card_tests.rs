use serde_json::json;

use crate::fixture::{Fixture, dense};

#[test]
fn a_card_as_mergekit_writes_it() {
    let fixture = Fixture::mixtral();
    fixture.write(
        "README.md",
        b"---\nbase_model:\n- mistralai/Mistral-7B-Instruct-v0.2\n- https://huggingface.co/org/other-chat\n- https://example.org/x\n\
          license: [apache-2.0, mit]\nlicense_link: https://l\ntags:\n- merge\n- moe\npipeline_tag: text-generation\nlanguage: en\n\
          datasets: org/data-v2\nmodel_creator: Somebody\n---\n# Bruce\n",
    );
    let checkpoint = fixture.open().unwrap();
    let card = checkpoint.card();
    assert_eq!(card.license.as_deref(), Some("apache-2.0,mit"));
    assert_eq!(card.license_link.as_deref(), Some("https://l"));
    assert_eq!(card.tags, ["merge", "moe", "text-generation"]);
    assert_eq!(card.languages, ["en"]);
    assert_eq!(card.author.as_deref(), Some("Somebody"));
    let [first, second, third] = &card.base_models[..] else { panic!("{:?}", card.base_models) };
    assert_eq!(first.name.as_deref(), Some("Mistral 7B Instruct v0.2"));
    assert_eq!(first.organization.as_deref(), Some("Mistralai"));
    assert_eq!(first.version.as_deref(), Some("v0.2"));
    assert_eq!(first.repo_url.as_deref(), Some("https://huggingface.co/mistralai/Mistral-7B-Instruct-v0.2"));
    assert_eq!((second.name.as_deref(), second.organization.as_deref()), (Some("Other Chat"), Some("Org")));
    assert_eq!((third.name.as_deref(), third.repo_url.as_deref()), (None, Some("https://example.org/x")));
    assert_eq!(card.datasets[0].version.as_deref(), Some("v2"));
    assert_eq!(checkpoint.warnings(), [] as [String; 0]);
}

#[test]
fn base_models_from_the_recipe_where_the_card_has_none() {
    let fixture = Fixture::mixtral();
    fixture.write(
        "mergekit_moe_config.yml",
        b"base_model: org/base\nexperts:\n- source_model: org/chat\n- source_model: /home/me/secret\n- source_model: org/base\n",
    );
    let checkpoint = fixture.open().unwrap();
    let names: Vec<_> = checkpoint.card().base_models.iter().map(|b| b.name.as_deref().unwrap()).collect();
    assert_eq!(names, ["Base", "Chat"]);
    assert_eq!(checkpoint.mergekit().unwrap().experts.len(), 3);
}

#[test]
fn a_card_that_cannot_be_read_is_a_warning() {
    let fixture = Fixture::mixtral();
    fixture.write("README.md", b"---\nlicense: &a mit\n---\n");
    assert!(fixture.warnings()[0].contains("README.md: front matter: line 1"), "{:?}", fixture.warnings());
    fixture.write("README.md", b"# Only text\n");
    assert_eq!(fixture.warnings(), [] as [String; 0]);
}

#[test]
fn names_from_card_then_configuration_then_directory() {
    let mut fixture = Fixture::mixtral();
    let folder = fixture.path().file_name().unwrap().to_string_lossy().into_owned();
    assert_eq!(fixture.open().unwrap().card().name.to_lowercase(), folder.to_lowercase());
    fixture.set("_name_or_path", json!("org/BurningBruce-004"));
    let checkpoint = fixture.open().unwrap();
    let card = checkpoint.card();
    assert_eq!(card.name, "BurningBruce 004");
    assert_eq!((card.version.as_deref(), card.organization.as_deref()), (Some("004"), Some("Org")));
    fixture.set("_name_or_path", json!("/home/me/deep/path"));
    assert_eq!(fixture.open().unwrap().card().organization, None);
    fixture.write("README.md", b"---\nmodel_name: Bruce\nname: The Bruce\n---\n");
    assert_eq!(fixture.open().unwrap().card().name, "The Bruce");
}

#[test]
fn size_labels_count_one_expert() {
    // 265 * 4 * 2 + 4, and per layer 56 without experts, 8 for the router, 72 for one expert.
    let label = |fixture: &Fixture| fixture.open().unwrap().card().size_label.clone();
    assert_eq!(label(&Fixture::mixtral()), "2x2.4K");
    let mut fixture = Fixture::new(&dense());
    fixture.set("architectures", json!(["LlamaForCausalLM"]));
    assert_eq!(label(&fixture), "2.4K");
}

#[test]
fn recommended_sampling() {
    let fixture = Fixture::mixtral();
    fixture.write_json(
        "generation_config.json",
        &json!({"temperature": 0.6, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.1, "min_p": "x"}),
    );
    let sampling = fixture.open().unwrap().card().sampling.clone();
    assert_eq!((sampling.temp, sampling.top_k, sampling.top_p), (Some(0.6), Some(40), Some(0.95)));
    assert_eq!((sampling.penalty_repeat, sampling.min_p), (Some(1.1), None));
}
