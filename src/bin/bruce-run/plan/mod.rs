//! What lives where: decided from budgets before a model is loaded, shown, and followed.

mod chances;
mod report;

use crate::cli::model::{LoadArgs, PlacementArgs};
use crate::print;
use anyhow::Context;
use bruce::exit::with_hint;
use bruce::size::{bytes, bytes_at_least};
use clap::ValueEnum;
use gguf::Gguf;
use model_spec::HyperParams;
use runtime::model::{Model, ModelOptions};
use runtime::plan::{Budget, Measure, Plan, SHORT_CONTEXT};
use runtime::residency::{GpuLayers, PlacementOptions};
use runtime::session::{SessionOptions, StageExperts};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What may be used.
#[derive(Debug, Default, clap::Args)]
pub struct BudgetArgs {
    /// Memory of the GPUs that may be used, such as 8G or 7500M; 0: no GPU [default: what is free]
    ///
    /// What -ngl, -ncmoe and -ot decide stays; the rest is planned within the budget
    #[arg(long, value_name = "SIZE", value_parser = crate::cli::values::size)]
    pub vram: Option<u64>,

    /// Memory of the host that may be used, such as 12G [default: what is free, control groups considered]
    #[arg(long, value_name = "SIZE", value_parser = crate::cli::values::size)]
    pub ram: Option<u64>,

    /// How often experts are taken, from `bruce-run trace -o FILE`; without it the router is taken to prefer some a little
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
}

/// How the plan is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DryRun {
    /// As text
    Text,
    /// As one JSON object
    Json,
}

/// Prints the plan for a file, with bandwidths measured.
///
/// # Errors
/// Where the file can't be read, the budget is too small for it, or stdout can't be written.
pub fn show(
    path: &Path,
    load: &LoadArgs,
    placement: &PlacementArgs,
    session: &SessionOptions,
    how: DryRun,
) -> Result<(), anyhow::Error> {
    let gguf = open(path)?;
    let budget = budget(&gguf, &placement.budget)?;
    let options = load.options(placement);
    let mut plan = Plan::make(&gguf, &options, session, &budget, Measure::Always).map_err(crate::advise)?;
    plan.measure_crossover(&gguf, &options, session).map_err(crate::advise)?;
    warn(&gguf, &plan, &placement.budget, &options.placement, session.stage_experts);
    match how {
        DryRun::Text => print(&report::text(&plan, path)),
        DryRun::Json => print(&format!("{}\n", report::json(&plan))),
    }
}

/// Loads a model as planned, and makes the context what is planned.
///
/// # Errors
/// As [`Model::load`]; where a budget is given that the model can't be run in.
pub fn load(
    path: &Path,
    load: &LoadArgs,
    placement: &PlacementArgs,
    session: &mut SessionOptions,
    verbose: bool,
) -> Result<Arc<Model>, anyhow::Error> {
    let mut options = load.options(placement);
    let measure = if verbose { Measure::AsNeeded } else { Measure::Never };
    let plan = follow(path, &mut options, &placement.budget, session, measure)?;
    if let Some(plan) = plan.filter(|plan| plan.is_measured) {
        bruce::terminal::tell(report::text(&plan, path));
    }
    Model::load(path, &options, &mut ()).map_err(crate::advise)
}

/// Plans, and changes the options accordingly; the plan, where there is one that can be followed.
///
/// # Errors
/// Where the file can't be read, or a budget is given that the model can't be run in.
pub fn follow(
    path: &Path,
    options: &mut ModelOptions,
    args: &BudgetArgs,
    session: &mut SessionOptions,
    measure: Measure,
) -> Result<Option<Plan>, anyhow::Error> {
    let gguf = open(path)?;
    let budget = budget(&gguf, args)?;
    match Plan::make(&gguf, options, session, &budget, measure) {
        Ok(mut plan) => {
            warn(&gguf, &plan, args, &options.placement, session.stage_experts);
            if session.stage_experts == StageExperts::Auto {
                plan.measure_crossover(&gguf, options, session).map_err(crate::advise)?;
            }
            plan.apply(options, session);
            Ok(Some(plan))
        }
        // Nobody asked for a budget: the system may still make room, by reading the file again and again.
        Err(runtime::Error::Shortage { needed, available_bytes }) if args.ram.is_none() => {
            let (needed, free) = (bytes_at_least(needed.total_bytes()), bytes(available_bytes));
            bruce::say!("warning: the model needs {needed} of memory at least, and {free} are free");
            // The least memory is that of the shortest context that is planned.
            if session.n_ctx == 0 {
                session.n_ctx = header(&gguf)?.n_ctx_train.min(SHORT_CONTEXT);
            }
            Ok(None)
        }
        Err(error) => Err(crate::advise(error)),
    }
}

/// ggml's backends must be there when devices are looked for; a file that is none must be said before that.
fn open(path: &Path) -> Result<Gguf, anyhow::Error> {
    Ok(Gguf::open(path).map_err(runtime::Error::from)?)
}

/// The hyperparameters in a file's header.
///
/// # Errors
/// Where the file can't be read, or has none.
pub fn hyper_params(path: &Path) -> Result<HyperParams, anyhow::Error> {
    header(&open(path)?)
}

fn header(gguf: &Gguf) -> Result<HyperParams, anyhow::Error> {
    Ok(HyperParams::from_gguf(gguf).map_err(runtime::Error::from)?)
}

fn budget(gguf: &Gguf, args: &BudgetArgs) -> Result<Budget, anyhow::Error> {
    let mut budget = Budget { vram_bytes: args.vram, ram_bytes: args.ram, chances: Vec::new() };
    if let Some(path) = &args.trace {
        let hparams = HyperParams::from_gguf(gguf).map_err(runtime::Error::from)?;
        budget.chances = chances::of_file(path, hparams.n_layer, hparams.n_expert)
            .with_context(|| path.display().to_string())
            .map_err(|error| with_hint(error, "bruce-run trace MODEL -f TEXT -o FILE writes such a file"))?;
    }
    Ok(budget)
}

/// What the user should know about it before anything is loaded.
fn warn(gguf: &Gguf, plan: &Plan, args: &BudgetArgs, placement: &PlacementOptions, staged: StageExperts) {
    if let Some(wanted) = plan.reduced_from {
        bruce::say!(
            "note: a context of {} tokens instead of {wanted}, as memory is short; -c sets another",
            plan.n_ctx
        );
    }
    if let Some(device) = plan.machine.device {
        let used = plan.outlook.device.total_bytes();
        if used > device.size_bytes {
            bruce::say!(
                "warning: the layers asked for take {} of the devices' memory, and {} may be used",
                bytes(used),
                bytes(device.size_bytes)
            );
        }
    } else {
        if args.vram.is_some_and(|vram| vram > 0) {
            bruce::say!("warning: --vram: there is no GPU");
        }
        if !matches!(placement.n_gpu_layers, GpuLayers::Auto | GpuLayers::Count(0)) {
            bruce::say!("warning: --n-gpu-layers: there is no GPU");
        }
        if matches!(staged, StageExperts::From(_)) {
            bruce::say!("warning: --stage-experts: there is no GPU");
        }
    }
    for (regex, buffer) in &placement.overrides {
        if !gguf.tensors().iter().any(|tensor| regex.is_match(&tensor.name)) {
            let rule = bruce::terminal::neutral_line(&format!("{}={buffer}", regex.as_str()));
            bruce::say!("warning: --override-tensor {rule}: fits no tensor");
        }
    }
}
