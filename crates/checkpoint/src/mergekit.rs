//! What mergekit was asked to do: mergekit_moe_config.yml and mergekit_config.yml.

use crate::directory::Directory;
use crate::front_matter::{self, Yaml};

/// Recipes have a few kilobytes; prompts can make them longer.
const MAX_SIZE: u64 = 4 << 20;

/// One expert of a merged model and where its weights came from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExpertSource {
    /// A Hub name or a path, as the configuration gives it.
    pub model: String,
    /// Texts that steer tokens to this expert.
    pub positive_prompts: Vec<String>,
}

/// The recipe of a merge.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Mergekit {
    /// The model that gave everything but the experts, or the base of the merge.
    pub base_model: Option<String>,
    /// The experts in order of their index; empty for merges without experts.
    pub experts: Vec<ExpertSource>,
    /// Every model that went in, each once, in the order of the file.
    pub models: Vec<String>,
    /// How the routers were made: `hidden`, `cheap_embed`, `random`.
    pub gate_mode: Option<String>,
}

/// The recipe in the directory, that of the experts first. One that cannot be read is only warned about.
pub(crate) fn read(dir: &Directory, warnings: &mut Vec<String>) -> Option<Mergekit> {
    for name in
        ["mergekit_moe_config.yml", "mergekit_moe_config.yaml", "mergekit_config.yml", "mergekit_config.yaml"]
    {
        let bytes = match dir.read(name, MAX_SIZE) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => continue,
            Err(e) => {
                warnings.push(format!("{e}; left out"));
                continue;
            }
        };
        match front_matter::parse(&String::from_utf8_lossy(&bytes)) {
            Ok(recipe @ Yaml::Map(_)) => return Some(interpret(&recipe)),
            Ok(_) => warnings.push(format!("{}: found no mapping; left out", dir.join(name).display())),
            Err(why) => warnings.push(format!("{}: {why}; left out", dir.join(name).display())),
        }
    }
    None
}

fn interpret(recipe: &Yaml) -> Mergekit {
    let owned = |value: Option<&Yaml>| value.and_then(Yaml::text).map(str::to_owned);
    let mut merge = Mergekit {
        base_model: owned(recipe.get("base_model")),
        gate_mode: owned(recipe.get("gate_mode")),
        ..Mergekit::default()
    };
    collect_models(recipe, &mut merge.models);
    for expert in recipe.get("experts").map_or(&[][..], Yaml::items) {
        merge.experts.push(ExpertSource {
            model: owned(expert.get("source_model")).unwrap_or_default(),
            positive_prompts: expert
                .get("positive_prompts")
                .map(|prompts| prompts.texts().map(str::to_owned).collect())
                .unwrap_or_default(),
        });
    }
    merge
}

/// Every model named anywhere, in the order of the file.
fn collect_models(value: &Yaml, models: &mut Vec<String>) {
    match value {
        Yaml::List(items) => items.iter().for_each(|item| collect_models(item, models)),
        Yaml::Map(entries) => {
            for (key, value) in entries {
                let names_model = matches!(key.as_str(), "base_model" | "model" | "source_model");
                match value {
                    Yaml::Text(name) if names_model => {
                        if !models.contains(name) {
                            models.push(name.clone());
                        }
                    }
                    other => collect_models(other, models),
                }
            }
        }
        Yaml::Null | Yaml::Text(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_one(name: &str, text: &str) -> (Option<Mergekit>, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(name), text).unwrap();
        let mut warnings = Vec::new();
        let merge = read(&Directory::open(folder.path()).unwrap(), &mut warnings);
        (merge, warnings)
    }

    #[test]
    fn experts_keep_their_order_and_prompts() {
        let (merge, warnings) = read_one(
            "mergekit_moe_config.yml",
            "base_model: mistralai/Mistral-7B\ngate_mode: hidden\ndtype: bfloat16\nexperts:\n  - source_model: org/chat\n    \
             positive_prompts:\n      - \"chat\"\n      - assistant: yes\n  - source_model: org/code\n    positive_prompts: [code, python]\n  \
             - source_model: org/chat\n",
        );
        let merge = merge.unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(merge.base_model.as_deref(), Some("mistralai/Mistral-7B"));
        assert_eq!(merge.gate_mode.as_deref(), Some("hidden"));
        let names: Vec<_> = merge.experts.iter().map(|e| e.model.as_str()).collect();
        assert_eq!(names, ["org/chat", "org/code", "org/chat"]);
        assert_eq!(merge.experts[1].positive_prompts, ["code", "python"]);
        assert_eq!(merge.models, ["mistralai/Mistral-7B", "org/chat", "org/code"]);
    }

    #[test]
    fn models_of_slices_and_lists() {
        let (merge, _) = read_one(
            "mergekit_config.yml",
            "slices:\n- sources:\n  - model: a/b\n    layer_range: [0, 32]\n  - model: c/d\n    layer_range: [0, 32]\nmerge_method: slerp\nbase_model: a/b\n",
        );
        let merge = merge.unwrap();
        assert_eq!(merge.models, ["a/b", "c/d"]);
        assert!(merge.experts.is_empty());
    }

    #[test]
    fn an_unreadable_recipe_is_a_warning() {
        let (merge, warnings) = read_one("mergekit_config.yml", "a: *b\n");
        assert_eq!(merge, None);
        assert!(warnings[0].contains("line 1"), "{warnings:?}");
    }
}
