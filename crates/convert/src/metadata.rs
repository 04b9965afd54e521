//! What a file says about itself: the metadata of an output.
//!
//! Keys, values and their order are those that llama.cpp's converter writes and llama-quantize leaves, with these
//! differences, each for a reason:
//! - `general.file_type` stands at the end in every file. llama.cpp has it there in quantized files and among the
//!   hyperparameters in others; readers look keys up by name.
//! - `general.quantized_by` is set where the caller names a program, so that a file tells where it comes from.
//! - `general.base_model.*` is filled from mergekit's configuration where the model card names no base models: a
//!   merge without them would not say what it was made of.
//! - `llama.attention.sliding_window` is kept; see [`HyperParams::write_metadata`](model_spec::HyperParams).

use checkpoint::{Checkpoint, ModelCard, Source, Special, Vocabulary};
use gguf::Metadata;
use model_spec::{Architecture, FileType, keys};

use crate::plan::Options;

/// Version of the block layouts, `GGML_QNT_VERSION` of ggml.h.
const QUANTIZATION_VERSION: u32 = 2;

/// The model's name.
pub(crate) fn name(checkpoint: &Checkpoint, options: &Options) -> String {
    options.name.clone().unwrap_or_else(|| checkpoint.card().name.clone())
}

/// The metadata of the output of one file type.
pub(crate) fn for_output(
    checkpoint: &Checkpoint,
    file_type: FileType,
    name: &str,
    options: &Options,
) -> Metadata {
    let mut metadata = Metadata::new();
    metadata.insert(keys::GENERAL_ARCHITECTURE, Architecture::Llama.name());
    metadata.insert(keys::GENERAL_TYPE, "model");
    add_card(&mut metadata, checkpoint, name, options);
    checkpoint.hparams().write_metadata(&mut metadata);
    add_vocabulary(&mut metadata, checkpoint.vocabulary());
    metadata.insert(keys::GENERAL_QUANTIZATION_VERSION, QUANTIZATION_VERSION);
    metadata.insert(keys::GENERAL_FILE_TYPE, file_type.id());
    for (key, value) in &options.overrides {
        metadata.insert(key, value.clone());
    }
    if let Some(importance) = &options.importance {
        importance.write_metadata(&mut metadata);
    }
    metadata
}

fn add_card(metadata: &mut Metadata, checkpoint: &Checkpoint, name: &str, options: &Options) {
    let card = checkpoint.card();
    add_sampling(metadata, card);
    metadata.insert(keys::GENERAL_NAME, name);
    let mut text = |key: &str, value: Option<&str>| {
        if let Some(value) = value {
            metadata.insert(key, value);
        }
    };
    text(keys::GENERAL_AUTHOR, card.author.as_deref());
    text(keys::GENERAL_VERSION, card.version.as_deref());
    text(keys::GENERAL_ORGANIZATION, card.organization.as_deref());
    text(keys::GENERAL_FINETUNE, card.finetune.as_deref());
    text(keys::GENERAL_BASENAME, card.basename.as_deref());
    text(keys::GENERAL_DESCRIPTION, card.description.as_deref());
    text(keys::GENERAL_QUANTIZED_BY, options.quantized_by.as_deref());
    text(keys::GENERAL_SIZE_LABEL, Some(&card.size_label));
    text(keys::GENERAL_LICENSE, card.license.as_deref());
    text(keys::GENERAL_LICENSE_NAME, card.license_name.as_deref());
    text(keys::GENERAL_LICENSE_LINK, card.license_link.as_deref());
    text(keys::GENERAL_SOURCE_URL, card.source_url.as_deref());
    text(keys::GENERAL_SOURCE_REPO_URL, card.source_repo_url.as_deref());

    let merged: Vec<Source>;
    let base_models = match checkpoint.mergekit() {
        Some(merge) if card.base_models.is_empty() => {
            merged = merge.models.iter().map(|model| merged_model(model)).collect();
            &merged
        }
        _ => &card.base_models,
    };
    add_sources(metadata, keys::GENERAL_BASE_MODEL_COUNT, "general.base_model", base_models);
    add_sources(metadata, keys::GENERAL_DATASET_COUNT, "general.dataset", &card.datasets);
    if !card.tags.is_empty() {
        metadata.insert(keys::GENERAL_TAGS, card.tags.clone());
    }
    if !card.languages.is_empty() {
        metadata.insert(keys::GENERAL_LANGUAGES, card.languages.clone());
    }
}

fn add_sampling(metadata: &mut Metadata, card: &ModelCard) {
    let sampling = &card.sampling;
    if let Some(top_k) = sampling.top_k {
        metadata.insert("general.sampling.top_k", top_k);
    }
    for (key, value) in [
        ("general.sampling.top_p", sampling.top_p),
        ("general.sampling.min_p", sampling.min_p),
        ("general.sampling.temp", sampling.temp),
        ("general.sampling.penalty_repeat", sampling.penalty_repeat),
    ] {
        if let Some(value) = value {
            metadata.insert(key, value);
        }
    }
}

/// A model that mergekit names: a Hub id, or a path of which the last part says most.
fn merged_model(model: &str) -> Source {
    let is_path =
        model.starts_with(['/', '.', '~']) || model.contains('\\') || model.matches('/').count() > 1;
    match model.split_once('/') {
        Some((organization, name)) if !is_path => Source {
            name: Some(name.to_owned()),
            organization: Some(organization.to_owned()),
            repo_url: Some(format!("https://huggingface.co/{model}")),
            version: None,
        },
        _ => {
            let last = model.rsplit(['/', '\\']).find(|part| !part.is_empty()).unwrap_or(model);
            Source { name: Some(last.to_owned()), ..Source::default() }
        }
    }
}

fn add_sources(metadata: &mut Metadata, count_key: &str, prefix: &str, sources: &[Source]) {
    if sources.is_empty() {
        return;
    }
    metadata.insert(count_key, sources.len() as u32);
    for (i, source) in sources.iter().enumerate() {
        for (field, value) in [
            ("name", &source.name),
            ("version", &source.version),
            ("organization", &source.organization),
            ("repo_url", &source.repo_url),
        ] {
            if let Some(value) = value {
                metadata.insert(&format!("{prefix}.{i}.{field}"), value.as_str());
            }
        }
    }
}

fn add_vocabulary(metadata: &mut Metadata, vocabulary: &Vocabulary) {
    if let Some(add) = vocabulary.add_space_prefix {
        metadata.insert(keys::TOKENIZER_ADD_SPACE_PREFIX, add);
    }
    metadata.insert(keys::TOKENIZER_MODEL, vocabulary.model.ggml_name());
    metadata.insert(keys::TOKENIZER_PRE, vocabulary.pre.as_str());
    metadata.insert(keys::TOKENIZER_TOKENS, vocabulary.tokens.clone());
    if !vocabulary.scores.is_empty() {
        metadata.insert(keys::TOKENIZER_SCORES, vocabulary.scores.clone());
    }
    let types: Vec<i32> = vocabulary.types.iter().map(|t| *t as i32).collect();
    metadata.insert(keys::TOKENIZER_TOKEN_TYPE, types);
    if !vocabulary.merges.is_empty() {
        metadata.insert(keys::TOKENIZER_MERGES, vocabulary.merges.clone());
    }
    for (special, id) in &vocabulary.special_ids {
        metadata.insert(&format!("tokenizer.ggml.{}_token_id", key_name(*special)), *id);
    }
    for (special, add) in &vocabulary.add_special {
        let name = match special {
            Special::Bos => "bos",
            Special::Eos => "eos",
            Special::Sep => "sep",
            _ => continue,
        };
        metadata.insert(&format!("tokenizer.ggml.add_{name}_token"), *add);
    }
    if !vocabulary.named_templates.is_empty() {
        let names: Vec<String> = vocabulary.named_templates.iter().map(|t| t.0.clone()).collect();
        metadata.insert(keys::CHAT_TEMPLATES, names);
        for (name, template) in &vocabulary.named_templates {
            metadata.insert(&format!("{}.{name}", keys::CHAT_TEMPLATE), template.as_str());
        }
    }
    if let Some(template) = &vocabulary.chat_template {
        metadata.insert(keys::CHAT_TEMPLATE, template.as_str());
    }
}

/// A special token's part of its key.
fn key_name(special: Special) -> &'static str {
    match special {
        Special::Bos => "bos",
        Special::Eos => "eos",
        Special::Unk => "unknown",
        // As GGUF spells it.
        Special::Sep => "seperator",
        Special::Pad => "padding",
        Special::Cls => "cls",
        Special::Mask => "mask",
        Special::Eot => "eot",
        Special::Eom => "eom",
        Special::Prefix => "prefix",
        Special::Suffix => "suffix",
        Special::Middle => "middle",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_ids_of_a_merge_become_links_and_paths_do_not() {
        let hub = merged_model("mistralai/Mistral-7B-v0.1");
        assert_eq!(hub.repo_url.as_deref(), Some("https://huggingface.co/mistralai/Mistral-7B-v0.1"));
        for path in ["/home/me/models/story", "./story", "../a/story/", "C:\\models\\story", "story"] {
            let local = merged_model(path);
            assert_eq!(local.name.as_deref(), Some("story"), "{path}");
            assert_eq!((local.organization, local.repo_url), (None, None), "{path}");
        }
    }
}
