//! What will be written where, decided from headers alone.
//!
//! A plan holds the outputs (metadata, tensors in file order, layout) and the steps that fill them. A step is one
//! source weight with all the places its rows go to. Steps come in the order in which the shards hold the weights,
//! so that reading runs through each shard once from front to back.
//!
//! Order of tensors in a file: files of unquantized types follow llama.cpp's converter (tensors in the order of
//! shards and, within one, of source names; experts where their last part appears, gate, down, up), quantized files
//! follow llama-quantize (by layer, then by name), and so does everything made from a GGUF file.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use checkpoint::Weight;
use gguf::{Layout, Metadata, TensorSpec, Value};
use model_spec::{FileType, HyperParams, TensorId, TensorKind, TensorRole, keys};
use quants::TensorType;

use crate::importance::Importance;
use crate::input::{Input, Origin};
use crate::provenance::Provenance;
use crate::recipe::{self, Recipe, RuleError, Rules, Untyped};
use crate::{Error, block};

/// How the experts of a layer are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExpertLayout {
    /// One tensor per projection holds all experts; what llama.cpp loads.
    #[default]
    Stacked,
    /// One tensor per projection and expert, as in Mixtral files of early 2024.
    Split,
}

/// How an output is divided into files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Split {
    /// Not at all.
    #[default]
    None,
    /// A part ends before its data exceeds so many bytes.
    MaxBytes(u64),
    /// As the input is, if it is a GGUF file in parts.
    AsInput,
}

/// A type that weights pass through before they are quantized.
///
/// llama.cpp's way has two steps, a converter that writes 16-bit floats and a quantizer that reads them. For
/// checkpoints of the same 16-bit type nothing is lost on that way; others come out as there only if they take it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Via {
    /// None: quantize what the checkpoint holds.
    #[default]
    Source,
    /// As after `--outtype bf16`.
    Bf16,
    /// As after `--outtype f16`.
    F16,
}

/// What the caller decides.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The outputs, one per file type.
    pub file_types: Vec<FileType>,
    /// How experts are stored.
    pub expert_layout: ExpertLayout,
    /// What weights pass through.
    pub via: Via,
    /// `general.name` instead of the checkpoint's.
    pub name: Option<String>,
    /// `general.quantized_by`; what a GGUF file says is left as it is.
    pub quantized_by: Option<String>,
    /// What the user asks for about types.
    pub rules: Rules,
    /// Types that were worked out for the tensors of each output, in the order of `file_types`; outputs beyond the end
    /// follow their recipe.
    pub chosen: Vec<BTreeMap<TensorId, TensorType>>,
    /// How much each column of a weight counts.
    pub importance: Option<Importance>,
    /// Metadata to set, whatever the checkpoint says.
    pub overrides: Vec<(String, Value)>,
    /// Every tensor keeps its type, and the output the file type of the input, which is a GGUF file; `file_types`
    /// is not looked at.
    pub keep_types: bool,
    /// Whether quantized weights may be quantized again.
    pub allow_requantize: bool,
    /// Into which parts an output is divided.
    pub split: Split,
    /// Where the outputs come from, to be recorded in them.
    pub provenance: Option<Provenance>,
}

/// Which row of the source becomes which row of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// The same.
    AsIs,
    /// Within each head, row i of the first half and row i of the second half become neighbours.
    ///
    /// Checkpoints in Hugging Face layout keep the two components of a rotated pair half a head apart; GGUF
    /// files of this architecture keep them together.
    RotaryInterleave {
        /// Rows of one head.
        head_dim: u64,
    },
}

impl RowOrder {
    /// The source row that becomes output row `row`.
    pub fn source_row(self, row: u64) -> u64 {
        match self {
            RowOrder::AsIs => row,
            RowOrder::RotaryInterleave { head_dim } => {
                let (head, i) = (row / head_dim, row % head_dim);
                head * head_dim + (i % 2) * (head_dim / 2) + i / 2
            }
        }
    }

    /// Rows that change places only among themselves.
    pub fn group(self) -> u64 {
        match self {
            RowOrder::AsIs => 1,
            RowOrder::RotaryInterleave { head_dim } => head_dim,
        }
    }
}

/// One tensor of one output.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedTensor {
    /// Which tensor it is.
    pub id: TensorId,
    /// Its name in the file.
    pub name: String,
    /// Its shape, `ne[0]` contiguous.
    pub ne: Vec<u64>,
    /// Its type.
    pub ty: TensorType,
    /// Its size.
    pub size_bytes: u64,
    /// The source tensors it is made of, in order, each once.
    pub sources: Vec<String>,
}

/// One file to be written.
#[derive(Debug)]
pub struct OutputPlan {
    /// The recipe its types follow.
    pub file_type: FileType,
    /// Its metadata.
    pub metadata: Metadata,
    /// Its tensors, in file order.
    pub tensors: Vec<PlannedTensor>,
    /// Where everything lies in it.
    pub layout: Layout,
}

impl OutputPlan {
    /// Number of weights in the file.
    pub fn n_weights(&self) -> u64 {
        self.tensors.iter().map(|t| t.ne.iter().product::<u64>()).sum()
    }

    /// Bits per weight, over the tensors alone.
    pub fn bits_per_weight(&self) -> f64 {
        let bytes: u64 = self.tensors.iter().map(|t| t.size_bytes).sum();
        bytes as f64 * 8.0 / self.n_weights() as f64
    }

    /// Each type in use with the number of its tensors and bytes, the largest first.
    pub fn types(&self) -> Vec<(TensorType, usize, u64)> {
        let mut types: Vec<(TensorType, usize, u64)> = Vec::new();
        for t in &self.tensors {
            match types.iter_mut().find(|row| row.0 == t.ty) {
                Some(row) => {
                    row.1 += 1;
                    row.2 += t.size_bytes;
                }
                None => types.push((t.ty, 1, t.size_bytes)),
            }
        }
        types.sort_by_key(|row| (std::cmp::Reverse(row.2), row.0.id()));
        types
    }
}

/// Where the rows of a step come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// A weight of the input.
    Weight(Weight),
    /// Values computed from the configuration.
    Computed(Vec<f32>),
}

/// Where the rows of a step go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination {
    /// Index of the output.
    pub output: usize,
    /// Index of the tensor in it.
    pub tensor: usize,
    /// Byte of the tensor at which the step's first row begins.
    pub offset: u64,
    /// The type to write.
    pub ty: TensorType,
}

/// One source and all the places its rows go to.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Which tensor or part of a stacked tensor this is.
    pub id: TensorId,
    /// Where the rows come from.
    pub source: Source,
    /// Number of rows.
    pub rows: u64,
    /// Elements of a row.
    pub cols: u64,
    /// In which order rows are written.
    pub row_order: RowOrder,
    /// What values pass through before they are quantized.
    pub via: Option<TensorType>,
    /// Whether a NaN or infinity is an error even where others are let through: one in a norm or router
    /// spoils every token.
    pub must_be_finite: bool,
    /// How much each column counts, if that is known.
    pub importance: Option<Arc<[f32]>>,
    /// Where the rows go; one per output.
    pub destinations: Vec<Destination>,
}

/// Everything a conversion will do.
#[derive(Debug)]
pub struct Plan {
    /// The model's name, `general.name`.
    pub name: String,
    /// The files.
    pub outputs: Vec<OutputPlan>,
    /// What fills them, in the order of reading.
    pub steps: Vec<Step>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

impl Plan {
    /// The plan for a checkpoint or a GGUF file; reads no weights.
    ///
    /// # Errors
    /// A recipe asks for a type that cannot be made, a weight is missing, has another shape than the model's
    /// numbers say, or a type that cannot or may not be converted, or a file cannot be laid out.
    pub fn new(input: &dyn Input, options: &Options) -> Result<Plan, Error> {
        let file_types = match (options.keep_types, input.file_type()) {
            (false, _) => options.file_types.clone(),
            (true, Some(file_type)) => vec![file_type],
            (true, None) => return Err(Error::NoTypesToKeep { path: input.path().to_owned() }),
        };
        if file_types.is_empty() {
            return Err(Error::Outputs { found: 0, expected: "at least one file type".to_owned() });
        }
        let steps = steps(input, if options.keep_types { Via::Source } else { options.via })?;
        let name = options.name.clone().unwrap_or_else(|| input.name().to_owned());
        let mut plan = Plan { name, outputs: Vec::new(), steps, warnings: Vec::new() };
        if let Some(importance) = &options.importance {
            plan.weigh(importance, input.hparams())?;
        }
        plan.check_rules(&options.rules, options.expert_layout, input.hparams())?;
        for file_type in file_types {
            plan.add_output(input, file_type, options)?;
        }
        check_conversions(input, &plan.steps, options)?;
        Ok(plan)
    }

    /// Bytes to be read.
    pub fn input_bytes(&self) -> u64 {
        self.steps.iter().map(|s| s.input_bytes()).sum()
    }

    /// Bytes to be written, over all outputs.
    pub fn output_bytes(&self) -> u64 {
        self.outputs.iter().map(|o| o.layout.total_size()).sum()
    }

    fn add_output(&mut self, input: &dyn Input, file_type: FileType, options: &Options) -> Result<(), Error> {
        let hparams = input.hparams();
        let kept = kept_types(input, &self.steps, options)?;
        let tied = input.weight(&TensorId::global(TensorRole::Output)).is_none();
        let has_importance = options.importance.is_some();
        let chosen = options.chosen.get(self.outputs.len());
        let recipe = Recipe { file_type, hparams, tied, has_importance, rules: &options.rules, chosen };

        let mut order = file_order(input.origin(), &self.steps, file_type, options.expert_layout);
        let input_parts = (options.split == Split::AsInput && input.origin() == Origin::Gguf)
            .then(|| order_by_part(&self.steps, options.expert_layout, &mut order));
        let untyped = self.untyped(order, options.expert_layout, hparams);
        let mut types = recipe.types(&untyped);
        for (tensor, ty) in untyped.iter().zip(&mut types) {
            *ty = kept.get(&tensor.id).copied().unwrap_or(*ty);
        }
        let chosen = untyped.iter().zip(&types).filter(|(tensor, _)| !kept.contains_key(&tensor.id));
        self.check_types(chosen, file_type, options.expert_layout)?;
        let mut tensors: Vec<PlannedTensor> = Vec::new();
        let mut place_of: HashMap<TensorId, usize> = HashMap::new();
        for (Untyped { id, ne, .. }, ty) in untyped.into_iter().zip(types) {
            place_of.insert(id, tensors.len());
            tensors.push(PlannedTensor { id, name: id.name(), ne, ty, size_bytes: 0, sources: Vec::new() });
        }

        let mut metadata = input.metadata(file_type, &self.name, options);
        for (key, value) in &options.overrides {
            metadata.insert(key, value.clone());
        }
        if !options.overrides.is_empty() {
            check_overridden(input.hparams(), &metadata)?;
        }
        if let Some(importance) = &options.importance {
            importance.write_metadata(&mut metadata);
        }
        if let Some(provenance) = &options.provenance {
            provenance.write_metadata(file_type.name(), &mut metadata);
        }
        let specs: Vec<TensorSpec> =
            tensors.iter().map(|t| TensorSpec { name: t.name.clone(), ne: t.ne.clone(), ty: t.ty }).collect();
        let alignment = alignment(&metadata)?;
        let parts = match (options.split, input_parts) {
            (Split::MaxBytes(max), _) => gguf::parts_of_size(&specs, max),
            (_, Some(parts)) => parts,
            _ => vec![0; specs.len()],
        };
        let layout = Layout::in_parts(&metadata, &specs, alignment, &parts)?;
        for (i, tensor) in tensors.iter_mut().enumerate() {
            let range = layout.tensor_range(i);
            tensor.size_bytes = range.end - range.start;
        }

        let output = self.outputs.len();
        for step in &mut self.steps {
            let target = target(&step.id, options.expert_layout);
            let tensor = place_of[&target];
            let planned = &mut tensors[tensor];
            // Experts lie one after the other, each of the same size.
            let n_parts = if target == step.id { 1 } else { u64::from(hparams.n_expert) };
            let part = if target == step.id { 0 } else { u64::from(step.id.expert.unwrap_or(0)) };
            let offset = planned.size_bytes / n_parts * part;
            if let Source::Weight(weight) = &step.source {
                planned.add_source(&weight.source_name);
            }
            step.destinations.push(Destination { output, tensor, offset, ty: planned.ty });
        }
        self.outputs.push(OutputPlan { file_type, metadata, tensors, layout });
        Ok(())
    }
}

impl Plan {
    /// Checks that rules fit the model.
    fn check_rules(
        &mut self,
        rules: &Rules,
        layout: ExpertLayout,
        hparams: &HyperParams,
    ) -> Result<(), Error> {
        if let Some(table) = &rules.expert_types {
            table.check(hparams)?;
            if layout == ExpertLayout::Stacked {
                return Err(RuleError::new(
                    "types by expert",
                    "all experts of a layer in one tensor, which has one type",
                    "the expert layout split",
                )
                .into());
            }
        }
        let ids: HashSet<TensorId> = self.steps.iter().map(|step| target(&step.id, layout)).collect();
        for rule in rules.unused(ids.into_iter()) {
            self.warnings.push(format!("--tensor-type {rule}: fits no tensor"));
        }
        Ok(())
    }

    /// Gives each step its importances.
    fn weigh(&mut self, importance: &Importance, hparams: &HyperParams) -> Result<(), Error> {
        let mut missing = Vec::new();
        for step in &mut self.steps {
            if recipe::is_quantizable(&step.id, &step.id.ne(hparams)) {
                step.importance = importance.of(&step.id, hparams)?;
                if step.importance.is_none() {
                    missing.push(step.id);
                }
            }
        }
        self.warnings.extend(importance.warnings(&missing));
        Ok(())
    }

    /// The tensors of an output, in file order, as the recipe wants to see them.
    fn untyped(&self, order: Vec<TensorId>, layout: ExpertLayout, hparams: &HyperParams) -> Vec<Untyped> {
        let mut kept: HashMap<TensorId, TensorType> = HashMap::new();
        for step in &self.steps {
            if let Source::Weight(weight) = &step.source {
                kept.insert(target(&step.id, layout), step.via.unwrap_or(weight.dtype));
            }
        }
        let untyped = |id: TensorId| {
            let kept = kept.get(&id).copied().unwrap_or(TensorType::F32);
            Untyped { id, ne: id.ne(hparams), kept }
        };
        order.into_iter().map(untyped).collect()
    }

    /// Checks that the types chosen for tensors can be made of what there is.
    fn check_types<'a>(
        &self,
        chosen: impl Iterator<Item = (&'a Untyped, &'a TensorType)>,
        file_type: FileType,
        layout: ExpertLayout,
    ) -> Result<(), Error> {
        let without: HashSet<TensorId> = self
            .steps
            .iter()
            .filter(|step| step.importance.is_none())
            .map(|step| target(&step.id, layout))
            .collect();
        for (Untyped { id, .. }, ty) in chosen {
            if !block::can_quantize(*ty) {
                let (tensor, ty, file_type) = (id.name(), ty.name(), file_type.name());
                return Err(Error::CannotQuantize { tensor, ty, file_type });
            }
            if recipe::requires_importance(id, *ty, file_type) && without.contains(id) {
                return Err(Error::NeedsImportance { tensor: id.name(), ty: ty.name() });
            }
        }
        Ok(())
    }
}

/// Alignment of tensor data; GGUF's default, and what llama.cpp writes.
const ALIGNMENT: u32 = 32;

/// The alignment of a file with this metadata.
pub(crate) fn alignment(metadata: &Metadata) -> Result<u32, Error> {
    Ok(metadata.u32(keys::GENERAL_ALIGNMENT)?.unwrap_or(ALIGNMENT))
}

impl PlannedTensor {
    fn add_source(&mut self, name: &str) {
        if !self.sources.iter().any(|s| s == name) {
            self.sources.push(name.to_owned());
        }
    }
}

impl Step {
    /// Bytes to be read for this step.
    pub fn input_bytes(&self) -> u64 {
        match &self.source {
            Source::Weight(weight) => weight.size,
            Source::Computed(_) => 0,
        }
    }
}

/// One step per weight of the input, in reading order, without destinations yet.
pub(crate) fn steps(input: &dyn Input, via: Via) -> Result<Vec<Step>, Error> {
    let hparams = input.hparams();
    let mut steps = Vec::new();
    if let Some(freqs) = input.rope_freqs() {
        steps.push(Step {
            id: TensorId::global(TensorRole::RopeFreqs),
            source: Source::Computed(freqs.to_vec()),
            rows: 1,
            cols: freqs.len() as u64,
            row_order: RowOrder::AsIs,
            via: None,
            must_be_finite: true,
            importance: None,
            destinations: Vec::new(),
        });
    }
    for (id, weight) in input.weights() {
        let ne = id.ne(hparams);
        let expected = vec![ne.iter().skip(1).product::<u64>(), ne[0]];
        let found = vec![weight.rows, weight.cols];
        if found != expected {
            let (file, tensor) = (file_of(input, weight), weight.source_name.clone());
            return Err(Error::Shape { file, tensor, found, expected });
        }
        let row_order = match id.role {
            TensorRole::AttnQ | TensorRole::AttnK if input.origin() == Origin::Checkpoint => {
                RowOrder::RotaryInterleave { head_dim: u64::from(hparams.head_dim_k) }
            }
            _ => RowOrder::AsIs,
        };
        // The elements of a bias belong to the rows of its matrix and move with them.
        let as_column = id.kind == TensorKind::Bias && row_order != RowOrder::AsIs;
        let (rows, cols) = if as_column { (weight.cols, 1) } else { (weight.rows, weight.cols) };
        let quantizable = recipe::is_quantizable(id, &ne);
        let via = match via {
            Via::Bf16 if quantizable => Some(TensorType::BF16),
            Via::F16 if quantizable => Some(TensorType::F16),
            _ => None,
        };
        steps.push(Step {
            id: *id,
            source: Source::Weight(weight.clone()),
            rows,
            cols,
            row_order,
            via,
            must_be_finite: id.role.is_norm() || id.role == TensorRole::FfnGateInp,
            importance: None,
            destinations: Vec::new(),
        });
    }
    // By place in the shard: a stable sort of what comes by name.
    steps.sort_by_key(|s| match &s.source {
        Source::Weight(weight) => (weight.shard, weight.offset),
        Source::Computed(_) => (0, 0),
    });
    Ok(steps)
}

/// The file that holds a weight.
pub(crate) fn file_of(input: &dyn Input, weight: &Weight) -> PathBuf {
    input.files().get(weight.shard).map_or(input.path(), |file| *file).to_owned()
}

/// The types that are not the recipe's to choose, by output tensor: all where types are kept, else those of a GGUF file's
/// norms, biases and routers, which stay as they are.
fn kept_types(
    input: &dyn Input,
    steps: &[Step],
    options: &Options,
) -> Result<HashMap<TensorId, TensorType>, Error> {
    let mut kept = HashMap::new();
    if input.origin() != Origin::Gguf {
        return Ok(kept);
    }
    for step in steps {
        let Source::Weight(weight) = &step.source else { continue };
        let id = target(&step.id, options.expert_layout);
        if !options.keep_types && recipe::is_quantizable(&id, &id.ne(input.hparams())) {
            continue;
        }
        let first = *kept.entry(id).or_insert(weight.dtype);
        if first != weight.dtype {
            let (file, tensor) = (file_of(input, weight), id.name());
            let (first, second) = (first.name(), weight.dtype.name());
            return Err(Error::MixedExperts { file, tensor, first, second });
        }
    }
    Ok(kept)
}

/// Checks that metadata that was set by hand still describes a model, and one with tensors of these shapes.
fn check_overridden(hparams: &HyperParams, metadata: &Metadata) -> Result<(), Error> {
    let found = HyperParams::from_metadata(metadata)?;
    let shapes = |h: &HyperParams| {
        [
            (keys::BLOCK_COUNT, h.n_layer),
            (keys::EMBEDDING_LENGTH, h.n_embd),
            (keys::FEED_FORWARD_LENGTH, h.n_ff),
            (keys::HEAD_COUNT, h.n_head),
            (keys::HEAD_COUNT_KV, h.n_head_kv),
            (keys::KEY_LENGTH, h.head_dim_k),
            (keys::VALUE_LENGTH, h.head_dim_v),
            (keys::EXPERT_COUNT, h.n_expert),
        ]
    };
    for ((key, found), (_, expected)) in shapes(&found).into_iter().zip(shapes(hparams)) {
        if found != expected {
            let (found, expected) =
                (found.to_string(), format!("{expected}, as the model's tensors have it"));
            return Err(RuleError { place: format!("--override-kv {key}"), found, expected }.into());
        }
    }
    Ok(())
}

/// Checks that every weight that changes its type can be read, and is not quantized where that is not allowed.
fn check_conversions(input: &dyn Input, steps: &[Step], options: &Options) -> Result<(), Error> {
    for step in steps {
        let Source::Weight(weight) = &step.source else { continue };
        let ty = weight.dtype;
        if step.via.is_none_or(|via| via == ty) && step.destinations.iter().all(|d| d.ty == ty) {
            continue;
        }
        let (tensor, name) = (weight.source_name.clone(), ty.name());
        if ty.is_quantized() && !options.allow_requantize {
            return Err(Error::Requantize { file: file_of(input, weight), tensor, ty: name });
        }
        if !quants::can_dequantize(ty) {
            return Err(Error::CannotDequantize { file: file_of(input, weight), tensor, ty: name });
        }
    }
    Ok(())
}

/// The output tensor that a source weight belongs to.
pub(crate) fn target(id: &TensorId, layout: ExpertLayout) -> TensorId {
    match (layout, id.expert, id.role.stacked()) {
        (ExpertLayout::Stacked, Some(_), Some(role)) => TensorId { role, expert: None, ..*id },
        _ => *id,
    }
}

/// Sorts output tensors by their place in the input's parts and returns the part of each; parts are counted without those
/// that have no tensors. A tensor of several sources goes where the first of them is.
fn order_by_part(steps: &[Step], layout: ExpertLayout, order: &mut [TensorId]) -> Vec<usize> {
    let mut places: HashMap<TensorId, (usize, u64)> = HashMap::new();
    for step in steps {
        if let Source::Weight(weight) = &step.source {
            let place = (weight.shard, weight.offset);
            let known = places.entry(target(&step.id, layout)).or_insert(place);
            *known = (*known).min(place);
        }
    }
    order.sort_by_key(|id| places.get(id).copied().unwrap_or_default());
    let mut parts = Vec::new();
    let (mut part, mut last) = (0, None);
    for id in order.iter() {
        let shard = places.get(id).map_or(0, |place| place.0);
        part += usize::from(last.is_some_and(|last| last != shard));
        last = Some(shard);
        parts.push(part);
    }
    parts
}

/// The output tensors in file order.
fn file_order(origin: Origin, steps: &[Step], file_type: FileType, layout: ExpertLayout) -> Vec<TensorId> {
    // Position of a tensor in the converter's output: where the last of its sources stands.
    let mut order: HashMap<TensorId, (usize, &str, u8)> = HashMap::new();
    for step in steps {
        let id = target(&step.id, layout);
        let key = match &step.source {
            Source::Computed(_) => (0, "", 0),
            Source::Weight(w) => (w.shard + 1, w.source_name.as_str(), 0),
        };
        let entry = order.entry(id).or_insert(key);
        *entry = (*entry).max(key);
    }
    // The converter emits the three stacked tensors of a layer together, when the layer's last expert has come.
    let mut complete: HashMap<Option<u32>, (usize, &str, u8)> = HashMap::new();
    for (id, key) in order.iter().filter(|(id, _)| id.role.unstacked().is_some()) {
        let entry = complete.entry(id.layer).or_insert(*key);
        *entry = (*entry).max(*key);
    }
    for (id, key) in &mut order {
        let rank = match id.role {
            TensorRole::FfnGateExps => 0,
            TensorRole::FfnDownExps => 1,
            TensorRole::FfnUpExps => 2,
            _ => continue,
        };
        let (shard, name, _) = complete[&id.layer];
        *key = (shard, name, rank);
    }

    let mut ids: Vec<TensorId> = order.keys().copied().collect();
    if origin == Origin::Gguf || file_type.default_type().is_quantized() {
        // Tensors outside the layers come first, as llama-quantize takes them for layer -1.
        ids.sort_by_cached_key(|id| (id.layer, id.name()));
    } else {
        ids.sort_by_cached_key(|id| (order[id], id.name()));
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotary_rows_interleave_within_each_head() {
        let order = RowOrder::RotaryInterleave { head_dim: 6 };
        let rows: Vec<u64> = (0..12).map(|r| order.source_row(r)).collect();
        assert_eq!(rows, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
        assert_eq!(RowOrder::AsIs.source_row(7), 7);
    }

    #[test]
    fn experts_belong_to_the_stacked_tensor_of_their_layer() {
        let id = TensorId::of_expert(TensorRole::FfnUp, 3, 2);
        assert_eq!(target(&id, ExpertLayout::Stacked), TensorId::in_layer(TensorRole::FfnUpExps, 3));
        assert_eq!(target(&id, ExpertLayout::Split), id);
        let dense = TensorId::in_layer(TensorRole::FfnUp, 3);
        assert_eq!(target(&dense, ExpertLayout::Stacked), dense);
    }
}
