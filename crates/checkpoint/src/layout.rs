//! Tensor names and expert layouts of Hugging Face checkpoints, turned into one weight per logical tensor.
//!
//! Two layouts of experts exist (E experts, width F, model width H; shapes outermost axis first):
//! - one tensor per matrix: `model.layers.N.block_sparse_moe.{gate, experts.E.w1 | w2 | w3}.weight`, w1 gate,
//!   w2 down, w3 up;
//! - fused: `model.layers.N.mlp.gate.weight`, `mlp.experts.gate_up_proj` [E, 2F, H] with the gate's rows
//!   first, and `mlp.experts.down_proj` [E, H, F].
//!
//! Slices of fused tensors are contiguous, so both give the same kind of [`Weight`].

use std::collections::{HashMap, HashSet};
use std::path::Path;

use model_spec::{HyperParams, TensorId, TensorKind, TensorRole};
use quants::TensorType;

use crate::Weight;
use crate::config::Config;
use crate::error::{Error, MAX_MISSING_NAMES, Result, list, quoted};
use crate::safetensors::Entry;
use crate::shards::Shard;

const EMBEDDING: &str = "model.embed_tokens.weight";

/// Names that old checkpoints carry although they are computed; what they end in.
const HARMLESS: &[&str] =
    &["rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached", ".masked_bias"];

/// Where a tensor of the checkpoint goes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Target {
    /// It is this one.
    One(TensorId),
    /// It holds the gate and up projections of every expert of this layer.
    GateUp(u32),
    /// It holds the down projections of every expert of this layer.
    Down(u32),
    /// It can be left out.
    Harmless,
    Unknown,
}

/// Which names the experts have; decides how missing ones are called.
#[derive(Debug, Clone, Copy, PartialEq)]
enum ExpertLayout {
    Split,
    Fused,
}

/// Number of rows of the token embedding, which is the size of the vocabulary.
pub(crate) fn embedding_rows(shards: &[Shard], config_file: &Path) -> Result<u32> {
    let entry =
        shards.iter().flat_map(|s| s.entries.iter().map(move |e| (s, e))).find(|(_, e)| e.name == EMBEDDING);
    let Some((shard, entry)) = entry else {
        let dir = config_file.parent().unwrap_or(config_file);
        return Err(Error::MissingTensors {
            dir: dir.to_owned(),
            names: vec![EMBEDDING.into()],
            missing: 1,
            expected: 1,
        });
    };
    match entry.shape[..] {
        [rows, _] if (1..=i32::MAX as u64).contains(&rows) => Ok(rows as u32),
        _ => Err(bad_shape(shard, entry, "[vocab_size, hidden_size]")),
    }
}

/// Every logical tensor of the model, by shard and source name; slices of one tensor by expert.
///
/// `config.hparams.n_vocab` must be the number of embedding rows.
pub(crate) fn map(
    dir: &Path,
    config: &Config,
    shards: &[Shard],
    ignore_unknown: bool,
    warnings: &mut Vec<String>,
) -> Result<Vec<(TensorId, Weight)>> {
    let mut found = Found::default();
    let mut unknown = Vec::new();
    for (i, shard) in shards.iter().enumerate() {
        for entry in &shard.entries {
            match target(&entry.name, config) {
                Target::One(id) => found.add_whole(&config.hparams, id, shard, i, entry)?,
                Target::GateUp(layer) => found.add_fused(&config.hparams, layer, true, shard, i, entry)?,
                Target::Down(layer) => found.add_fused(&config.hparams, layer, false, shard, i, entry)?,
                Target::Harmless => {}
                Target::Unknown => unknown.push(entry.name.clone()),
            }
        }
    }
    found.check_counts(dir, &config.hparams)?;
    if !unknown.is_empty() && !ignore_unknown {
        let architecture = config.family.name().to_owned();
        return Err(Error::UnknownTensors { dir: dir.to_owned(), names: unknown, architecture });
    }
    found.check_complete(dir, config)?;
    check_dtype(dir, config, &found.weights, warnings);
    if !unknown.is_empty() {
        let (n, names) = (unknown.len(), list(&unknown, 16));
        warnings.push(format!("{}: {n} unknown tensors left out: {names}", dir.display()));
    }
    Ok(found.weights)
}

/// The shards decide; a configuration that says otherwise was not written for them.
fn check_dtype(dir: &Path, config: &Config, weights: &[(TensorId, Weight)], warnings: &mut Vec<String>) {
    let Some(stated) = config.dtype.as_deref() else { return };
    let expected = match stated {
        "float32" => TensorType::F32,
        "float16" => TensorType::F16,
        "bfloat16" => TensorType::BF16,
        _ => return,
    };
    if weights.iter().any(|(_, w)| w.dtype == expected) {
        return;
    }
    if let Some((_, other)) = weights.first() {
        let file = dir.join("config.json");
        let found = other.dtype.name();
        warnings.push(format!(
            "{}: dtype: found {stated}, expected {found}, which the weights are",
            file.display()
        ));
    }
}

#[derive(Default)]
struct Found {
    weights: Vec<(TensorId, Weight)>,
    /// Name of the tensor that gave each id.
    sources: HashMap<TensorId, String>,
    fused: bool,
    /// Highest layer and expert with the tensor that names it.
    highest_layer: Option<(u32, String)>,
    highest_expert: Option<(u32, String)>,
}

impl Found {
    fn add_whole(
        &mut self,
        h: &HyperParams,
        id: TensorId,
        shard: &Shard,
        i: usize,
        entry: &Entry,
    ) -> Result<()> {
        note(&mut self.highest_layer, id.layer, &entry.name);
        note(&mut self.highest_expert, id.expert, &entry.name);
        let mut expected = id.ne(h);
        expected.reverse();
        if entry.shape != expected {
            return Err(bad_shape(shard, entry, &format!("{expected:?} by config.json")));
        }
        let (rows, cols) = if let [rows, cols] = expected[..] { (rows, cols) } else { (1, expected[0]) };
        self.add(id, shard, i, entry, rows, cols, 0)
    }

    fn add_fused(
        &mut self,
        h: &HyperParams,
        layer: u32,
        gate_up: bool,
        shard: &Shard,
        i: usize,
        entry: &Entry,
    ) -> Result<()> {
        note(&mut self.highest_layer, Some(layer), &entry.name);
        self.fused = true;
        let (n_embd, n_ff) = (u64::from(h.n_embd), u64::from(h.n_ff));
        let n_expert = u64::from(h.n_expert);
        let expected = if gate_up { [n_expert, 2 * n_ff, n_embd] } else { [n_expert, n_embd, n_ff] };
        if entry.shape != expected {
            return Err(bad_shape(shard, entry, &format!("{expected:?} by config.json")));
        }
        for expert in 0..h.n_expert {
            let first = u64::from(expert) * expected[1];
            if gate_up {
                let id = TensorId::of_expert(TensorRole::FfnGate, layer, expert);
                self.add(id, shard, i, entry, n_ff, n_embd, first)?;
                let id = TensorId::of_expert(TensorRole::FfnUp, layer, expert);
                self.add(id, shard, i, entry, n_ff, n_embd, first + n_ff)?;
            } else {
                let id = TensorId::of_expert(TensorRole::FfnDown, layer, expert);
                self.add(id, shard, i, entry, n_embd, n_ff, first)?;
            }
        }
        Ok(())
    }

    /// Adds rows of an entry whose shape is known to be right, so that products of it fit.
    #[expect(clippy::too_many_arguments, reason = "one place, one row range")]
    fn add(
        &mut self,
        id: TensorId,
        shard: &Shard,
        i: usize,
        entry: &Entry,
        rows: u64,
        cols: u64,
        first_row: u64,
    ) -> Result<()> {
        let Some(dtype) = entry.dtype.weight_type() else {
            let what = format!("tensor {}: dtype", quoted(&entry.name));
            return Err(Error::malformed(&shard.path, what, entry.dtype.name, "F32, F16 or BF16"));
        };
        if let Some(other) = self.sources.insert(id, entry.name.clone()) {
            let what = format!("tensor {}", quoted(&entry.name));
            let found = format!("the weights that {} holds too", quoted(&other));
            return Err(Error::malformed(&shard.path, what, found, "one expert layout"));
        }
        let row_bytes = cols * element_bytes(dtype);
        let weight = Weight {
            source_name: entry.name.clone(),
            shard: i,
            dtype,
            rows,
            cols,
            offset: entry.offset + first_row * row_bytes,
            size: rows * row_bytes,
        };
        self.weights.push((id, weight));
        Ok(())
    }

    /// Layers and experts beyond what the configuration counts would be silently lost.
    fn check_counts(&self, dir: &Path, h: &HyperParams) -> Result<()> {
        let counts = [
            ("num_hidden_layers", h.n_layer, "layer", &self.highest_layer),
            ("num_local_experts", h.n_expert, "expert", &self.highest_expert),
        ];
        for (key, count, what, highest) in counts {
            if let Some((index, name)) = highest.as_ref().filter(|(index, _)| *index >= count) {
                let expected = format!("more than {index}, as tensor {} names that {what}", quoted(name));
                return Err(Error::malformed(dir.join("config.json"), key, count.to_string(), expected));
            }
        }
        Ok(())
    }

    fn check_complete(&self, dir: &Path, config: &Config) -> Result<()> {
        let layout = if self.fused { ExpertLayout::Fused } else { ExpertLayout::Split };
        let mut expected = 0;
        let mut missing = 0;
        let mut names: Vec<String> = Vec::new();
        // A fused tensor stands for several ids, which come one after the other.
        let mut seen = HashSet::new();
        for id in expected_ids(config) {
            expected += 1;
            if self.sources.contains_key(&id) {
                continue;
            }
            missing += 1;
            if names.len() < MAX_MISSING_NAMES {
                let name = source_name(&id, config, layout);
                if seen.insert(name.clone()) {
                    names.push(name);
                }
            }
        }
        match missing {
            0 => Ok(()),
            _ => {
                let missing = if self.fused { names.len() } else { missing };
                Err(Error::MissingTensors { dir: dir.to_owned(), names, missing, expected })
            }
        }
    }
}

fn note(highest: &mut Option<(u32, String)>, index: Option<u32>, name: &str) {
    if let Some(index) = index.filter(|i| highest.as_ref().is_none_or(|(h, _)| i > h)) {
        *highest = Some((index, name.to_owned()));
    }
}

fn bad_shape(shard: &Shard, entry: &Entry, expected: &str) -> Error {
    let what = format!("tensor {}: shape", quoted(&entry.name));
    Error::malformed(&shard.path, what, format!("{:?}", entry.shape), expected)
}

fn element_bytes(dtype: TensorType) -> u64 {
    dtype.block_bytes() as u64
}

/// Where a tensor goes by its name. Layers and experts are not limited here, so that too high ones can be
/// told from unknown names.
fn target(name: &str, config: &Config) -> Target {
    if HARMLESS.iter().any(|end| name.ends_with(end)) {
        return Target::Harmless;
    }
    let moe = config.hparams.is_moe();
    let known = match name {
        EMBEDDING => Some(Target::One(TensorId::global(TensorRole::TokenEmbd))),
        "model.norm.weight" => Some(Target::One(TensorId::global(TensorRole::OutputNorm))),
        "lm_head.weight" => Some(Target::One(TensorId::global(TensorRole::Output))),
        _ => in_layer(name, moe, config),
    };
    known.unwrap_or(Target::Unknown)
}

fn in_layer(name: &str, moe: bool, config: &Config) -> Option<Target> {
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let layer = index(layer)?;
    if moe {
        match rest {
            "mlp.experts.gate_up_proj" | "mlp.experts.gate_up_proj.weight" => {
                return Some(Target::GateUp(layer));
            }
            "mlp.experts.down_proj" | "mlp.experts.down_proj.weight" => return Some(Target::Down(layer)),
            _ => {}
        }
    }
    let (path, suffix) = rest.rsplit_once('.')?;
    let kind = match suffix {
        "weight" => TensorKind::Weight,
        "bias" => TensorKind::Bias,
        _ => return None,
    };
    if let Some(expert) =
        path.strip_prefix("block_sparse_moe.experts.").or_else(|| path.strip_prefix("mlp.experts."))
    {
        let (expert, matrix) = expert.split_once('.')?;
        let (_, role) = EXPERT_MATRICES.iter().find(|(names, _)| names.contains(&matrix))?;
        let fits = moe && kind == TensorKind::Weight;
        return fits.then_some(Target::One(TensorId::of_expert(*role, layer, index(expert)?)));
    }
    let (_, role, part) = LAYER_NAMES.iter().find(|(name, ..)| *name == path)?;
    let exists = match part {
        Part::Norm => kind == TensorKind::Weight,
        Part::Attention => kind == TensorKind::Weight || config.attention_bias,
        Part::Dense => !moe && (kind == TensorKind::Weight || config.mlp_bias),
        Part::Router => moe && kind == TensorKind::Weight,
    };
    exists.then_some(Target::One(TensorId { role: *role, layer: Some(layer), expert: None, kind }))
}

#[derive(Clone, Copy, PartialEq)]
enum Part {
    Norm,
    Attention,
    Dense,
    Router,
}

/// Names within a layer. Where two name one role the first is what missing tensors are called.
const LAYER_NAMES: &[(&str, TensorRole, Part)] = &[
    ("input_layernorm", TensorRole::AttnNorm, Part::Norm),
    ("self_attn.q_proj", TensorRole::AttnQ, Part::Attention),
    ("self_attn.k_proj", TensorRole::AttnK, Part::Attention),
    ("self_attn.v_proj", TensorRole::AttnV, Part::Attention),
    ("self_attn.o_proj", TensorRole::AttnOutput, Part::Attention),
    ("post_attention_layernorm", TensorRole::FfnNorm, Part::Norm),
    ("mlp.gate_proj", TensorRole::FfnGate, Part::Dense),
    ("mlp.up_proj", TensorRole::FfnUp, Part::Dense),
    ("mlp.down_proj", TensorRole::FfnDown, Part::Dense),
    ("block_sparse_moe.gate", TensorRole::FfnGateInp, Part::Router),
    ("mlp.gate", TensorRole::FfnGateInp, Part::Router),
];

const EXPERT_MATRICES: &[(&[&str], TensorRole)] = &[
    (&["w1", "gate_proj"], TensorRole::FfnGate),
    (&["w2", "down_proj"], TensorRole::FfnDown),
    (&["w3", "up_proj"], TensorRole::FfnUp),
];

/// Every tensor that the configuration asks for, one at a time: there may be a million.
fn expected_ids(config: &Config) -> impl Iterator<Item = TensorId> {
    let h = &config.hparams;
    let globals = [TensorRole::TokenEmbd, TensorRole::OutputNorm, TensorRole::Output];
    let n_globals = if config.tied_embeddings { 2 } else { 3 };
    let globals = globals.into_iter().take(n_globals).map(TensorId::global);
    let layers = (0..h.n_layer).flat_map(move |layer| {
        let named = LAYER_NAMES.iter().flat_map(move |(name, role, part)| {
            let (weight, bias) = match part {
                Part::Norm => (true, false),
                Part::Attention => (true, config.attention_bias),
                Part::Dense => (!h.is_moe(), !h.is_moe() && config.mlp_bias),
                Part::Router => (h.is_moe() && *name != "mlp.gate", false),
            };
            let id = TensorId::in_layer(*role, layer);
            let bias = bias.then_some(TensorId { kind: TensorKind::Bias, ..id });
            weight.then_some(id).into_iter().chain(bias)
        });
        let experts = (0..h.n_expert).flat_map(move |expert| {
            EXPERT_MATRICES.iter().map(move |(_, role)| TensorId::of_expert(*role, layer, expert))
        });
        named.chain(experts)
    });
    globals.chain(layers)
}

/// The name that a missing tensor would have had.
fn source_name(id: &TensorId, config: &Config, layout: ExpertLayout) -> String {
    let Some(layer) = id.layer else {
        let name = match id.role {
            TensorRole::TokenEmbd => EMBEDDING,
            TensorRole::OutputNorm => "model.norm.weight",
            _ => "lm_head.weight",
        };
        return name.to_owned();
    };
    let suffix = if id.kind == TensorKind::Bias { "bias" } else { "weight" };
    if let Some(expert) = id.expert {
        let fused = if id.role == TensorRole::FfnDown { "down_proj" } else { "gate_up_proj" };
        if layout == ExpertLayout::Fused {
            return format!("model.layers.{layer}.mlp.experts.{fused}");
        }
        let row = EXPERT_MATRICES.iter().find(|(_, role)| *role == id.role);
        let matrix = row.map_or("?", |(names, _)| names[0]);
        return format!("model.layers.{layer}.block_sparse_moe.experts.{expert}.{matrix}.weight");
    }
    let fused_router = layout == ExpertLayout::Fused && config.hparams.is_moe();
    let mut names = LAYER_NAMES.iter().filter(|(_, role, _)| *role == id.role);
    let row = if fused_router { names.next_back() } else { names.next() };
    format!("model.layers.{layer}.{}.{suffix}", row.map_or("?", |(name, ..)| *name))
}

/// A decimal index without sign or leading zeros.
fn index(text: &str) -> Option<u32> {
    let canonical = text == "0" || !text.starts_with('0');
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if canonical && digits { text.parse().ok() } else { None }
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
