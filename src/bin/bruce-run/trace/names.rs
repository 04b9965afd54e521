//! Where the experts of a merge came from.

use gguf::Metadata;
use model_spec::keys;

/// A name for each of the `n_expert` experts; empty where the file does not tell.
///
/// `mergekit.experts` lists them; bruce-quant writes it from mergekit's configuration. Files of other programs have the
/// base models, which mean the experts where there are as many, or one more, which is then the one that gave the rest.
pub fn of_experts(metadata: &Metadata, n_expert: usize) -> Vec<String> {
    if let Ok(Some(names)) = metadata.strings(keys::MERGEKIT_EXPERTS)
        && names.len() == n_expert
    {
        return names.to_vec();
    }
    let count = metadata.u32(keys::GENERAL_BASE_MODEL_COUNT).ok().flatten().unwrap_or(0) as usize;
    let first = match count.checked_sub(n_expert) {
        Some(first @ (0 | 1)) => first,
        _ => return Vec::new(),
    };
    (first..count).map(|i| base_model(metadata, i)).collect::<Option<_>>().unwrap_or_default()
}

/// `organization/name` as on the Hub, or as much as is there.
fn base_model(metadata: &Metadata, index: usize) -> Option<String> {
    let part = |field: &str| metadata.str(&format!("general.base_model.{index}.{field}")).ok().flatten();
    if let Some(id) = part("repo_url").and_then(|url| url.strip_prefix("https://huggingface.co/")) {
        return Some(id.to_owned());
    }
    match (part("organization"), part("name")?) {
        (Some(organization), name) => Some(format!("{organization}/{name}")),
        (None, name) => Some(name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(n_base_models: u32) -> Metadata {
        let mut metadata = Metadata::new();
        metadata.insert(keys::GENERAL_BASE_MODEL_COUNT, n_base_models);
        for i in 0..n_base_models {
            metadata.insert(&format!("general.base_model.{i}.name"), format!("Model {i}"));
        }
        metadata.insert("general.base_model.1.organization", "Org");
        metadata.insert("general.base_model.2.repo_url", "https://huggingface.co/org/model-2");
        metadata
    }

    #[test]
    fn the_list_of_experts_comes_first() {
        let mut metadata = file(2);
        metadata.insert(keys::MERGEKIT_EXPERTS, vec!["a".to_owned(), "b".to_owned()]);
        assert_eq!(of_experts(&metadata, 2), ["a", "b"]);
        assert_eq!(of_experts(&metadata, 3), [""; 0], "a list of another length");
    }

    #[test]
    fn base_models_are_experts_where_their_number_says_so() {
        assert_eq!(of_experts(&file(3), 3), ["Model 0", "Org/Model 1", "org/model-2"]);
        assert_eq!(of_experts(&file(3), 2), ["Org/Model 1", "org/model-2"]);
        assert_eq!(of_experts(&file(3), 4), [""; 0]);
        assert_eq!(of_experts(&file(3), 1), [""; 0]);
        let mut nameless = file(3);
        nameless.remove("general.base_model.1.name");
        assert_eq!(of_experts(&nameless, 3), [""; 0]);
    }
}
