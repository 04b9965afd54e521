//! Types for a file of a given size: of each tensor, or of each expert where experts are stored apart, the one that does
//! least harm for its bytes.
//!
//! Every type that a tensor may have is tried on a sample of it ([`measure`]); what its error there does to the model's
//! output is for [`sensitivity`] to say, as far as other models tell; and [`budget`] chooses so that the sum over all tensors
//! is smallest. Types that the user's rules fix stay, and are paid from the same budget.

use std::collections::BTreeMap;

use model_spec::{FileType, TensorId};
use quants::TensorType;

use crate::measure::{self, Errors};
use crate::plan::{self, Options, OutputPlan, Plan, PlannedTensor, Source, Step, target};
use crate::recipe::budget::{self, Choice, TooSmall};
use crate::recipe::sensitivity::{self, MEASURED, N_MEASURED};
use crate::recipe::{fit_to_row, is_quantizable, requires_importance};
use crate::{Error, Input, Progress, block};

use TensorType::*;

/// How large a file is to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// At most so many bytes, header and metadata included, and the headers of all parts.
    Bytes(u64),
    /// At most so many bits per weight, over the tensors alone.
    BitsPerWeight(f64),
    /// At most as large as the file that llama.cpp's recipe makes.
    Recipe(FileType),
}

/// The types found for one target.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// What `general.file_type` is to say: of the file types whose files would be of about this size, the nearest.
    pub file_type: FileType,
    /// The type of each tensor that can be quantized.
    pub types: BTreeMap<TensorId, TensorType>,
    /// Whether these are the types of llama.cpp's recipe, as none were found that are clearly better.
    pub is_recipe: bool,
}

/// File types that a fitted file may be called by.
const FILE_TYPES: &[FileType] = &[
    FileType::BF16,
    FileType::Q2_K,
    FileType::Q3_K_S,
    FileType::Q3_K_M,
    FileType::Q3_K_L,
    FileType::Q4_K_S,
    FileType::Q4_K_M,
    FileType::Q5_K_S,
    FileType::Q5_K_M,
    FileType::Q6_K,
    FileType::Q8_0,
];

/// The same for files with an importance matrix, which may be smaller.
const SMALL_FILE_TYPES: &[FileType] = &[
    FileType::IQ1_S,
    FileType::IQ1_M,
    FileType::IQ2_XXS,
    FileType::IQ2_XS,
    FileType::IQ2_S,
    FileType::IQ2_M,
    FileType::IQ3_XXS,
];

/// Types that are tried, the smallest first. Those that need importances are tried where there are any.
const CANDIDATES: &[TensorType] =
    &[IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, Q2_K, IQ3_XXS, Q3_K, IQ4_XS, IQ4_NL, Q4_K, Q5_K, Q6_K, Q8_0];

/// Steps from the shares of one measured model to those of the other.
const MIXTURES: u32 = 8;

/// What costs less than this part is clearly better: predictions were up to a quarter from what was measured.
const CLEARLY_LESS: f64 = 0.8;

/// Types for each of `targets`. What `options` say of file types and of types already chosen is not looked at; the user's
/// rules are. The model is sampled once, on `threads` threads (0: one per core).
///
/// # Errors
/// As for [`Plan::new`]; a target is smaller than all smallest types together; weights cannot be read.
pub fn fit(
    input: &dyn Input,
    options: &Options,
    targets: &[Target],
    threads: usize,
    progress: &dyn Progress,
) -> Result<Vec<Fit>, Error> {
    let mut known = FILE_TYPES.to_vec();
    for target in targets {
        match target {
            Target::Recipe(file_type) if !known.contains(file_type) => known.push(*file_type),
            _ => {}
        }
    }
    let by_recipe = |file_types: Vec<FileType>| {
        Plan::new(input, &Options { file_types, chosen: Vec::new(), keep_types: false, ..options.clone() })
    };
    let plan = match options.importance.is_some() {
        // Importances may be there for a part of the weights only.
        true => match by_recipe([&known[..], SMALL_FILE_TYPES].concat()) {
            Err(Error::NeedsImportance { .. }) => by_recipe(known),
            all => all,
        },
        false => by_recipe(known),
    }?;
    let recipes = targets.iter().filter_map(|target| match target {
        Target::Recipe(file_type) => Some(*file_type),
        _ => None,
    });
    let problem = Problem::new(input, &plan, recipes.collect(), options, threads, progress)?;
    targets.iter().map(|target| problem.solve(input, options, *target)).collect()
}

/// What a type takes of the file, and what it does to the output by the shares of each measured model.
struct Price {
    bytes: u64,
    costs: [f64; N_MEASURED],
}

/// What can be chosen, and what it costs.
struct Problem<'a> {
    /// Files by llama.cpp's recipes.
    known: &'a [OutputPlan],
    /// The tensors of a file, with what each may be.
    tensors: Vec<(&'a PlannedTensor, Vec<TensorType>)>,
    /// For each tensor, what each of its types takes and does.
    prices: Vec<Vec<Price>>,
    /// Bytes of the file that are no tensor's.
    overhead: u64,
    n_weights: u64,
}

impl<'a> Problem<'a> {
    fn new(
        input: &dyn Input,
        plan: &'a Plan,
        recipes: Vec<FileType>,
        options: &Options,
        threads: usize,
        progress: &dyn Progress,
    ) -> Result<Problem<'a>, Error> {
        let (hparams, output) = (input.hparams(), &plan.outputs[0]);
        let mut steps: BTreeMap<TensorId, Vec<&Step>> = BTreeMap::new();
        for step in &plan.steps {
            steps.entry(target(&step.id, options.expert_layout)).or_default().push(step);
        }
        let mut tensors: Vec<(&PlannedTensor, Vec<TensorType>)> = output
            .tensors
            .iter()
            .map(|tensor| (tensor, candidates(tensor, &steps[&tensor.id], options)))
            .collect();
        // What they are compared with is to be measured too.
        for theirs in plan.outputs.iter().filter(|output| recipes.contains(&output.file_type)) {
            let types: BTreeMap<TensorId, TensorType> = theirs.tensors.iter().map(|t| (t.id, t.ty)).collect();
            for (tensor, candidates) in &mut tensors {
                let ty = types[&tensor.id];
                if candidates.len() > 1 && !candidates.contains(&ty) {
                    candidates.push(ty);
                }
            }
        }
        let mut work: Vec<(&Step, Vec<TensorType>)> = Vec::new();
        for (tensor, types) in tensors.iter().filter(|(_, types)| types.len() > 1) {
            work.extend(steps[&tensor.id].iter().map(|step| (*step, types.clone())));
        }
        let errors = measure::errors(input, &work, threads, progress)?;

        let tied = !output.tensors.iter().any(|tensor| tensor.id.role == model_spec::TensorRole::Output);
        let alignment = u64::from(plan::alignment(&output.metadata)?);
        let padded = |tensor: &PlannedTensor, ty: TensorType| {
            let bytes = ty.row_bytes(tensor.ne[0]).unwrap_or(u64::MAX >> 16);
            bytes.saturating_mul(tensor.ne[1..].iter().product()).next_multiple_of(alignment)
        };
        let mut prices = Vec::new();
        let mut in_tensors = 0;
        for (tensor, types) in &tensors {
            in_tensors += padded(tensor, tensor.ty);
            let shares = MEASURED.map(|model| model.of(&tensor.id, hparams, tied));
            let price = |ty: &TensorType| {
                let error = match types.len() {
                    1 => 0.0,
                    _ => mean_error(*ty, &steps[&tensor.id], &errors),
                };
                let error = error + sensitivity::input_error(*ty);
                Price { bytes: padded(tensor, *ty), costs: shares.map(|share| share * error) }
            };
            prices.push(types.iter().map(price).collect());
        }
        let overhead = output.layout.total_size().saturating_sub(in_tensors);
        Ok(Problem { known: &plan.outputs, tensors, prices, overhead, n_weights: output.n_weights() })
    }

    fn solve(&self, input: &dyn Input, options: &Options, target: Target) -> Result<Fit, Error> {
        let of_recipe = |file_type| self.known.iter().find(|output| output.file_type == file_type);
        let max_bytes = match target {
            Target::Bytes(bytes) => bytes,
            Target::BitsPerWeight(bits) => {
                ((bits * self.n_weights as f64 / 8.0) as u64).saturating_add(self.overhead)
            }
            Target::Recipe(file_type) => of_recipe(file_type).map_or(0, |output| output.layout.total_size()),
        };
        let theirs = match target {
            Target::Recipe(file_type) => of_recipe(file_type).map(|output| self.indices(output)),
            _ => None,
        };
        let mut budget = max_bytes.saturating_sub(self.overhead);
        loop {
            let (chosen, is_recipe) = match self.choose(budget, target, theirs.as_deref()) {
                Ok(chosen) if max_bytes >= self.overhead => chosen,
                Ok(_) | Err(TooSmall { .. }) => return Err(self.too_small(target, options)),
            };
            let types = self.tensors.iter().zip(&chosen).map(|((tensor, types), i)| (tensor, types[*i]));
            let types = types.filter(|(tensor, _)| is_quantizable(&tensor.id, &tensor.ne));
            let types: BTreeMap<TensorId, TensorType> = types.map(|(tensor, ty)| (tensor.id, ty)).collect();
            let mut fit = Fit { file_type: FileType::BF16, types, is_recipe };
            let (size, file_type) = self.measure_file(input, options, &fit)?;
            fit.file_type = match target {
                Target::Recipe(file_type) => file_type,
                _ => file_type,
            };
            // More parts have more headers.
            match size.saturating_sub(max_bytes) {
                0 => return Ok(fit),
                excess => budget = budget.saturating_sub(excess),
            }
        }
    }

    /// Which candidate each tensor has in a file.
    fn indices(&self, output: &OutputPlan) -> Vec<usize> {
        let types: BTreeMap<TensorId, TensorType> = output.tensors.iter().map(|t| (t.id, t.ty)).collect();
        let index = |(tensor, candidates): &(&PlannedTensor, Vec<TensorType>)| {
            candidates.iter().position(|ty| *ty == types[&tensor.id]).unwrap_or(0)
        };
        self.tensors.iter().map(index).collect()
    }

    /// What a choice does, by the shares of each measured model.
    fn costs(&self, chosen: &[usize]) -> [f64; N_MEASURED] {
        let mut sums = [0.0; N_MEASURED];
        for (prices, i) in self.prices.iter().zip(chosen) {
            sums.iter_mut().zip(prices[*i].costs).for_each(|(sum, cost)| *sum += cost);
        }
        sums
    }

    /// The candidates of least cost within a budget, by the shares of each measured model times its weight.
    fn cheapest(
        &self,
        budget: u64,
        target: Target,
        weights: [f64; N_MEASURED],
    ) -> Result<Vec<usize>, TooSmall> {
        let of_tensor = |((_, types), prices): (&(_, Vec<TensorType>), &Vec<Price>)| -> Vec<Choice> {
            // A file that is called by a quantized type has no matrices that are not, if it can.
            let all = !matches!(target, Target::Recipe(_)) || !types.iter().any(|ty| ty.is_quantized());
            let choice = |(ty, price): (&TensorType, &Price)| {
                let cost = price.costs.iter().zip(weights).map(|(cost, weight)| cost * weight).sum();
                Choice { bytes: price.bytes, cost: if all || ty.is_quantized() { cost } else { f64::MAX } }
            };
            types.iter().zip(prices).map(choice).collect()
        };
        let choices: Vec<Vec<Choice>> = self.tensors.iter().zip(&self.prices).map(of_tensor).collect();
        budget::choose(&choices, budget)
    }

    /// A candidate for each tensor within a budget, and whether they are `theirs`: llama.cpp's, where a file is to be of the
    /// size of one.
    ///
    /// Which shares a model has is known only after measuring it. So the choice is the one whose cost, in parts of a
    /// reference, is least by those shares that speak against it most. The reference is what llama.cpp's types cost; where
    /// there are none, the least that is possible by the same shares. What is not clearly better than llama.cpp's
    /// choice by all shares is given up for that.
    fn choose(
        &self,
        budget: u64,
        target: Target,
        theirs: Option<&[usize]>,
    ) -> Result<(Vec<usize>, bool), TooSmall> {
        let mut reference = [0.0; N_MEASURED];
        for (model, reference) in reference.iter_mut().enumerate() {
            let mut weights = [0.0; N_MEASURED];
            weights[model] = 1.0;
            let cost = match theirs {
                Some(theirs) => self.costs(theirs)[model],
                None => self.costs(&self.cheapest(budget, target, weights)?)[model],
            };
            *reference = if cost > 0.0 { cost } else { 1.0 };
        }
        let worst = |chosen: &[usize]| {
            self.costs(chosen).iter().zip(reference).map(|(cost, of)| cost / of).fold(0.0, f64::max)
        };
        let mut best: Option<(f64, Vec<usize>)> = None;
        for step in 0..=MIXTURES {
            let part = f64::from(step) / f64::from(MIXTURES);
            let chosen = self.cheapest(budget, target, [(1.0 - part) / reference[0], part / reference[1]])?;
            let found = worst(&chosen);
            if best.as_ref().is_none_or(|(least, _)| found < *least) {
                best = Some((found, chosen));
            }
        }
        Ok(match (best, theirs) {
            (Some((ratio, _)), Some(theirs)) if ratio > CLEARLY_LESS => (theirs.to_vec(), true),
            (Some((_, chosen)), _) => (chosen, false),
            (None, _) => unreachable!("there is one mixture at least"),
        })
    }
}

impl Problem<'_> {
    /// The size of the file with these types, and the file type whose file by llama.cpp's recipe is nearest to that.
    fn measure_file(
        &self,
        input: &dyn Input,
        options: &Options,
        fit: &Fit,
    ) -> Result<(u64, FileType), Error> {
        let options = Options {
            file_types: vec![fit.file_type],
            chosen: vec![fit.types.clone()],
            keep_types: false,
            ..options.clone()
        };
        let size = Plan::new(input, &options)?.output_bytes();
        let distance = |output: &&OutputPlan| output.layout.total_size().abs_diff(size);
        let nearest = self.known.iter().min_by_key(distance).map(|output| output.file_type);
        Ok((size, nearest.unwrap_or(fit.file_type)))
    }

    fn too_small(&self, target: Target, options: &Options) -> Error {
        let smallest = |prices: &Vec<Price>| prices.iter().map(|p| p.bytes).min().unwrap_or(0);
        let tensors: u64 = self.prices.iter().map(smallest).sum();
        let has_importance = options.importance.is_some();
        let (found, minimum) = match target {
            Target::BitsPerWeight(bits) => {
                let minimum = tensors as f64 * 8.0 / self.n_weights as f64;
                // Rounded up, so that what is named is enough.
                (format!("{bits} bits per weight"), format!("{:.3}", (minimum * 1000.0).ceil() / 1000.0))
            }
            Target::Bytes(bytes) => (format!("{bytes} bytes"), format!("{} bytes", tensors + self.overhead)),
            Target::Recipe(file_type) => {
                (file_type.name().to_owned(), format!("{} bytes", tensors + self.overhead))
            }
        };
        Error::TargetTooSmall { found, minimum, has_importance }
    }
}

/// The types that a tensor may have, at least one: what a rule says, or all that its rows and importances allow.
fn candidates(tensor: &PlannedTensor, steps: &[&Step], options: &Options) -> Vec<TensorType> {
    let (id, n_cols) = (&tensor.id, tensor.ne[0]);
    if !is_quantizable(id, &tensor.ne) || options.rules.by_role(id) {
        return vec![tensor.ty];
    }
    if let Some(ty) = options.rules.named(id) {
        return vec![fit_to_row(ty, n_cols)];
    }
    let sources = || {
        steps.iter().filter_map(|step| match &step.source {
            Source::Weight(weight) => Some(step.via.unwrap_or(weight.dtype)),
            Source::Computed(_) => None,
        })
    };
    let weighed = steps.iter().all(|step| step.importance.is_some());
    let source = sources().next().filter(|first| sources().all(|ty| ty == *first));
    // What the weights have is as good as it gets; of F32 only the first 16 bits are ever worth their bytes.
    let best = source.filter(|ty| !matches!(ty, F32) && block::can_quantize(*ty)).unwrap_or(BF16);
    let mut types = vec![best];
    let size = |ty: TensorType| ty.row_bytes(n_cols).unwrap_or(u64::MAX);
    for ty in CANDIDATES {
        let ty = fit_to_row(*ty, n_cols);
        let allowed = weighed || !requires_importance(id, ty, FileType::Q2_K);
        // A codebook takes long to search, and without importances it is no better than a grid.
        let worth_it = weighed || quants::can_quantize(ty);
        if allowed && worth_it && block::can_quantize(ty) && size(ty) < size(best) && !types.contains(&ty) {
            types.push(ty);
        }
    }
    types
}

/// The error of a tensor that these weights make up; what a type can't hold is never chosen.
fn mean_error(ty: TensorType, steps: &[&Step], errors: &BTreeMap<TensorId, Errors>) -> f64 {
    /// Worse than storing nothing at all.
    const UNUSABLE: f64 = 1e9;
    let error = |step: &&Step| errors.get(&step.id).and_then(|errors| errors.get(&ty)).copied();
    let sum: f64 = steps.iter().map(|step| error(step).unwrap_or(UNUSABLE)).sum();
    sum / steps.len().max(1) as f64
}

#[cfg(test)]
#[path = "fit_tests.rs"]
mod tests;
