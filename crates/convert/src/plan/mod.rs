//! What will be written where, decided from headers alone.
//!
//! A plan holds the outputs (metadata, tensors in file order, layout) and the steps that fill them. A step is one
//! source weight with all the places its rows go to. Steps come in the order in which the shards hold the weights,
//! so that reading runs through each shard once from front to back.

mod checks;
mod options;
mod order;
mod output;
mod step;

use std::collections::HashMap;

use gguf::{Layout, Metadata, TensorSpec};
use model_spec::{FileType, HyperParams, TensorId, TensorRole};
use quants::TensorType;

use crate::importance::Importance;
use crate::input::{Input, Origin};
use crate::recipe::{self, Recipe, Untyped};
use crate::{Error, provenance};

pub use options::{ExpertLayout, Options, Split, Via};
pub(crate) use order::target;
pub(crate) use output::alignment;
pub use output::{OutputPlan, PlannedTensor};
pub(crate) use step::steps;
pub use step::{Destination, RowOrder, Source, Step};

use checks::{check_conversions, check_overridden, check_rules, check_types, kept_types};
use order::{file_order, order_by_part};

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
        check_rules(&mut plan, &options.rules, options.expert_layout, input.hparams())?;
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
        check_types(&self.steps, chosen, file_type, options.expert_layout)?;
        let mut tensors: Vec<PlannedTensor> = Vec::new();
        let mut place_of: HashMap<TensorId, usize> = HashMap::new();
        for (Untyped { id, ne, .. }, ty) in untyped.into_iter().zip(types) {
            place_of.insert(id, tensors.len());
            tensors.push(PlannedTensor { id, name: id.name(), ne, ty, size_bytes: 0, sources: Vec::new() });
        }

        let metadata = self.metadata(input, file_type, options)?;
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

        self.aim(&mut tensors, &place_of, options.expert_layout, hparams);
        self.outputs.push(OutputPlan { file_type, metadata, tensors, layout });
        Ok(())
    }
}

impl Plan {
    /// What an output says about itself.
    fn metadata(&self, input: &dyn Input, file_type: FileType, options: &Options) -> Result<Metadata, Error> {
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
        if !options.overrides.is_empty() {
            provenance::note_overrides(&options.overrides, &mut metadata);
        }
        Ok(metadata)
    }

    /// Gives each step its place in the next output, whose tensors these are.
    fn aim(
        &mut self,
        tensors: &mut [PlannedTensor],
        place_of: &HashMap<TensorId, usize>,
        layout: ExpertLayout,
        hparams: &HyperParams,
    ) {
        let output = self.outputs.len();
        for step in &mut self.steps {
            let target = target(&step.id, layout);
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
}
