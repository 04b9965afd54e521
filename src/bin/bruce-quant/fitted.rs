//! Types that are worked out from samples of the weights.

use convert::{Fit, Input, Target};
use model_spec::FileType;
use quants::TensorType;

use crate::config::{self, Config, Fitted};
use crate::progress;

/// Fills in what the configuration leaves to samples of the weights: the types of all tensors, and for a target size the
/// file type as well.
pub fn choose(config: &mut Config, input: &dyn Input) -> Result<(), anyhow::Error> {
    let (targets, file_types): (Vec<Target>, Vec<FileType>) = match &config.fitted {
        Fitted::No => return Ok(()),
        Fitted::ToTarget(target, _) => (vec![*target], Vec::new()),
        Fitted::ToRecipe => {
            let of_types = config.plan.file_types.iter().copied();
            let (fitted, others): (Vec<FileType>, Vec<FileType>) =
                of_types.partition(|ty| has_room(*ty, input));
            for file_type in others.iter().filter(|_| !config.quiet) {
                let why = match input.hparams().n_expert {
                    0 | 1 => "the model has no experts",
                    _ => "it has no types to be shifted",
                };
                bruce::say!("note: --recipe moe: {file_type} keeps llama.cpp's types: {why}");
            }
            (fitted.iter().copied().map(Target::Recipe).collect(), fitted)
        }
    };
    if targets.is_empty() {
        return Ok(());
    }
    let drawn = progress::draw(config.quiet);
    let found = convert::fit(input, &config.plan, &targets, config.execute.threads, drawn.as_ref());
    drop(drawn);
    let found = found.map_err(config::advise)?;
    if !config.quiet {
        for fit in found.iter().filter(|fit| fit.is_recipe) {
            let name = fit.file_type;
            bruce::say!(
                "note: --recipe moe: {name} keeps llama.cpp's types: found none that are clearly better"
            );
        }
    }
    if file_types.is_empty() {
        config.plan.file_types = found.iter().map(|fit| fit.file_type).collect();
    }
    let of = |ty: &FileType| found.iter().find(|fit: &&Fit| fit.file_type == *ty);
    config.plan.chosen = config
        .plan
        .file_types
        .iter()
        .map(|ty| of(ty).map(|fit| fit.types.clone()).unwrap_or_default())
        .collect();
    Ok(())
}

/// Whether a file of this type has types to be shifted: some of a model with experts, in the ladder of K-quants.
fn has_room(file_type: FileType, input: &dyn Input) -> bool {
    use TensorType::{IQ4_NL, IQ4_XS, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K};
    input.hparams().n_expert > 1
        && [Q2_K, Q3_K, IQ4_XS, IQ4_NL, Q4_K, Q5_K, Q6_K].contains(&file_type.default_type())
}
