//! What people call the model, who made it and from what: the `general.*` metadata.

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
