//! What mergekit was asked to do: mergekit_moe_config.yml and mergekit_config.yml.

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
