//! What people call the model, who made it and from what: the `general.*` metadata.
//!
//! From README.md's front matter first, then from the name in config.json, then from the directory's name, as
//! llama.cpp's converter does; base models also from mergekit's recipe. Nothing here can make a checkpoint
//! unusable: what cannot be read is left out with a warning.

use model_spec::TensorId;
use serde_json::{Map, Value};

use crate::Weight;
use crate::config::Config;
use crate::directory::Directory;
use crate::front_matter::{self, Yaml};
use crate::mergekit::Mergekit;
use crate::naming::{self, NameParts};

/// Model cards are long at times, and their pictures are elsewhere.
const MAX_CARD: u64 = 16 << 20;

/// A model or dataset that this one was made from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Source {
    /// As people read it: `Mistral 7B Instruct v0.2`.
    pub name: Option<String>,
    /// Version, where the name carries one: `v0.2`.
    pub version: Option<String>,
    /// Who made it.
    pub organization: Option<String>,
    /// Where it is: `https://huggingface.co/mistralai/Mistral-7B-Instruct-v0.2`.
    pub repo_url: Option<String>,
}

/// Sampling parameters that the makers recommend (generation_config.json).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sampling {
    /// `general.sampling.top_k`.
    pub top_k: Option<i32>,
    /// `general.sampling.top_p`.
    pub top_p: Option<f32>,
    /// `general.sampling.min_p`.
    pub min_p: Option<f32>,
    /// `general.sampling.temp`.
    pub temp: Option<f32>,
    /// `general.sampling.penalty_repeat`.
    pub penalty_repeat: Option<f32>,
}

/// The facts of `general.*`; each `None` or empty where no file says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ModelCard {
    /// `general.sampling.*`.
    pub sampling: Sampling,
    /// `general.name`; always there, from the directory's name if from nowhere else.
    pub name: String,
    /// `general.author`.
    pub author: Option<String>,
    /// `general.version`.
    pub version: Option<String>,
    /// `general.organization`.
    pub organization: Option<String>,
    /// `general.finetune`.
    pub finetune: Option<String>,
    /// `general.basename`.
    pub basename: Option<String>,
    /// `general.description`.
    pub description: Option<String>,
    /// `general.size_label`: from the name, or counted: `4x7B`.
    pub size_label: String,
    /// `general.license`, several joined by commas.
    pub license: Option<String>,
    /// `general.license.name`.
    pub license_name: Option<String>,
    /// `general.license.link`.
    pub license_link: Option<String>,
    /// `general.source.url`.
    pub source_url: Option<String>,
    /// `general.source.repo_url`.
    pub source_repo_url: Option<String>,
    /// `general.base_model.*`.
    pub base_models: Vec<Source>,
    /// `general.dataset.*`.
    pub datasets: Vec<Source>,
    /// `general.tags`.
    pub tags: Vec<String>,
    /// `general.languages`.
    pub languages: Vec<String>,
}

/// The facts that the files of a checkpoint state.
pub(crate) fn read(
    dir: &Directory,
    config: &Config,
    mergekit: Option<&Mergekit>,
    weights: &[(TensorId, Weight)],
    warnings: &mut Vec<String>,
) -> ModelCard {
    let count = WeightCount::of(config, weights);
    let mut card = ModelCard { sampling: read_sampling(dir), ..ModelCard::default() };
    let yaml = read_front_matter(dir, warnings);
    card.apply_front_matter(&yaml, count.total);
    if card.base_models.is_empty() {
        // A card that names no parents, or none at all; the recipe knows them. Paths on the maker's machine say
        // nothing to others.
        let named = |model: &&String| model.matches('/').count() <= 1 && !model.starts_with(['.', '/', '~']);
        let models = mergekit.map_or(&[][..], |m| &m.models);
        card.base_models = models.iter().filter(named).map(|id| source(id, count.total)).collect();
    }
    let mut size_label = yaml_text(&yaml, &["size_label", "model_size_label"]);
    let mut name = yaml_text(&yaml, &["name", "model_name"]);
    let path_name =
        config.name_or_path.as_deref().filter(|name| name.matches('/').count() <= 1 && !name.is_empty());
    let directory_name = directory_name(dir);
    for id in path_name.into_iter().chain([directory_name.as_str()]) {
        let parts = naming::parse(id, count.total);
        name = name.or_else(|| parts.full_name.as_deref().map(naming::title));
        card.fill(&parts);
        size_label = size_label.or(parts.size_label);
    }
    card.name = name.filter(|name| !name.is_empty()).unwrap_or(directory_name);
    card.size_label = size_label
        .unwrap_or_else(|| naming::size_label(config.hparams.n_expert, count.shared + count.one_expert));
    card
}

impl ModelCard {
    fn apply_front_matter(&mut self, yaml: &Yaml, total_weights: u64) {
        let text = |keys: &[&str]| yaml_text(yaml, keys);
        self.author = text(&["author", "model_author", "model_creator"]);
        self.version = text(&["version", "model_version"]);
        self.organization = text(&["organization", "model_organization"]);
        self.description = text(&["description", "model_description"]);
        self.finetune = text(&["finetune", "model_finetune"]);
        self.basename = text(&["basename", "model_basename", "model_type"]);
        self.source_url = text(&["url", "model_url"]);
        self.source_repo_url = text(&["repo_url", "model_repo_url"]);
        self.license_name = text(&["license_name"]);
        self.license_link = text(&["license_link"]);
        let licenses: Vec<&str> = yaml.get("license").map(|l| l.texts().collect()).unwrap_or_default();
        self.license = (!licenses.is_empty()).then(|| licenses.join(","));
        let sources = |keys: [&str; 3]| -> Vec<Source> {
            let value = keys.iter().find_map(|key| yaml.get(key));
            value
                .map(|v| v.items().iter().filter_map(|item| stated_source(item, total_weights)).collect())
                .unwrap_or_default()
        };
        self.base_models = sources(["base_model", "base_models", "base_model_sources"]);
        self.datasets = sources(["datasets", "dataset", "dataset_sources"]);
        let texts = |keys: [&str; 2]| -> Vec<String> {
            let values = keys.iter().filter_map(|key| yaml.get(key));
            values.flat_map(|v| v.texts().map(str::to_owned).collect::<Vec<_>>()).collect()
        };
        self.tags = texts(["tags", "pipeline_tag"]);
        self.languages = texts(["languages", "language"]);
    }

    /// Takes from a name what nothing said before.
    fn fill(&mut self, parts: &NameParts) {
        let organization = parts.organization.as_deref().map(naming::title);
        for (field, value) in [
            (&mut self.organization, organization.as_ref()),
            (&mut self.basename, parts.basename.as_ref()),
            (&mut self.finetune, parts.finetune.as_ref()),
            (&mut self.version, parts.version.as_ref()),
        ] {
            if field.is_none() {
                *field = value.cloned();
            }
        }
    }
}

/// How many weights there are: outside the experts, in one expert of every layer, and in all.
struct WeightCount {
    shared: u64,
    one_expert: u64,
    total: u64,
}

impl WeightCount {
    fn of(config: &Config, weights: &[(TensorId, Weight)]) -> WeightCount {
        // The converter counts the tensor of Llama 3's frequencies too.
        let freqs = config.rope_freqs.as_ref().map_or(0, Vec::len) as u64;
        let mut count = WeightCount { shared: freqs, one_expert: 0, total: freqs };
        for (id, weight) in weights {
            let n = weight.rows * weight.cols;
            count.total += n;
            match id.expert {
                None => count.shared += n,
                Some(0) => count.one_expert += n,
                Some(_) => {}
            }
        }
        count
    }
}

fn read_front_matter(dir: &Directory, warnings: &mut Vec<String>) -> Yaml {
    let bytes = match dir.read("README.md", MAX_CARD) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Yaml::Null,
        Err(e) => {
            warnings.push(format!("{e}; left out"));
            return Yaml::Null;
        }
    };
    let text = String::from_utf8_lossy(&bytes);
    let Some(matter) = front_matter::front_matter(&text) else { return Yaml::Null };
    front_matter::parse(matter).unwrap_or_else(|why| {
        warnings.push(format!(
            "{}: front matter: {why}; licence and base models are left out",
            dir.join("README.md").display()
        ));
        Yaml::Null
    })
}

fn yaml_text(yaml: &Yaml, keys: &[&str]) -> Option<String> {
    keys.iter().find_map(|key| yaml.get(key)?.text()).map(str::to_owned)
}

fn directory_name(dir: &Directory) -> String {
    let given = dir.path().file_name().map(|name| name.to_string_lossy().into_owned());
    let real = || Some(dir.real().file_name()?.to_string_lossy().into_owned());
    dir.hub_name().or(given).or_else(real).unwrap_or_else(|| "model".into())
}

/// A source by Hub name, by address, or with its parts stated.
fn stated_source(item: &Yaml, total_weights: u64) -> Option<Source> {
    match item {
        Yaml::Text(id) => Some(source(id, total_weights)),
        Yaml::Map(_) => Some(Source {
            name: yaml_text(item, &["name"]),
            version: yaml_text(item, &["version"]),
            organization: yaml_text(item, &["organization"]),
            repo_url: yaml_text(item, &["repo_url"]),
        }),
        _ => None,
    }
}

fn source(id: &str, total_weights: u64) -> Source {
    const HUB: &str = "https://huggingface.co/";
    let from_name = |id: &str| {
        let parts = naming::parse(id, total_weights);
        Source {
            name: parts.full_name.as_deref().map(naming::title),
            version: parts.version,
            organization: parts.organization.as_deref().map(naming::title),
            repo_url: parts.organization.zip(parts.full_name).map(|(org, name)| format!("{HUB}{org}/{name}")),
        }
    };
    if ["http://", "https://", "ssh://"].iter().any(|scheme| id.starts_with(scheme)) {
        let hub = id.strip_prefix(HUB).or_else(|| id.strip_prefix("http://huggingface.co/"));
        let named = hub.filter(|rest| rest.matches('/').count() == 1 && !rest.ends_with('/'));
        let parts = named.map(from_name).unwrap_or_default();
        return Source { repo_url: Some(id.to_owned()), ..parts };
    }
    from_name(id)
}

/// Recommended sampling; a file that cannot be read recommends nothing (the vocabulary warns about it).
fn read_sampling(dir: &Directory) -> Sampling {
    let map: Map<String, Value> =
        dir.read_json("generation_config.json", MAX_CARD).ok().flatten().unwrap_or_default();
    let number = |key: &str| map.get(key).and_then(Value::as_f64).map(|f| f as f32).filter(|f| f.is_finite());
    Sampling {
        top_k: map.get("top_k").and_then(Value::as_i64).and_then(|k| i32::try_from(k).ok()),
        top_p: number("top_p"),
        min_p: number("min_p"),
        temp: number("temperature"),
        penalty_repeat: number("penalty_repeat").or_else(|| number("repetition_penalty")),
    }
}

#[cfg(test)]
#[path = "card_tests.rs"]
mod tests;
