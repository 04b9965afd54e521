//! One test: what is computed, how often, and how long it took.

use super::stats::Samples;
use super::streaming::{Disk, Repetition, Streamed};
use super::tokens::Tokens;
use super::{Args, Load, Test};
use crate::plan::{self, BudgetArgs};
use anyhow::Context;
use bruce::size::bytes;
use runtime::bandwidth::Memory;
use runtime::model::{Model, ModelOptions};
use runtime::plan::{Measure, Plan};
use runtime::residency::{ExpertSlots, PlacementOptions};
use runtime::session::{Logits, Session, SessionOptions};
use runtime::slots::SlotStatistics;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Measures tests one after the other; a model stays loaded while the next test can use it.
pub struct Bench<'a> {
    args: &'a Args,
    loaded: Vec<Loaded>,
    memory: Option<Memory>,
}

struct Loaded {
    path: PathBuf,
    load: Load,
    model: Arc<Model>,
    /// How it was planned, where budgets are given and bandwidths were measured.
    plan: Option<Arc<Plan>>,
}

/// What a test brought.
pub struct Outcome {
    /// The model it ran on.
    pub model: Arc<Model>,
    /// Its repetitions.
    pub samples: Samples,
    /// Bytes of memory a second that the machine was seen to read meanwhile; 0 where nobody asked.
    pub read_rate: f64,
    /// Single tokens a second that the plan expects; `None` where no budget was given.
    pub expected: Option<f64>,
    /// What experts in slots did in the last of them; `None` where there are none.
    pub slots: Option<SlotStatistics>,
    /// What was read of experts; `None` where all are in memory.
    pub streamed: Option<Streamed>,
}

/// A test under way.
struct Run<'a> {
    test: &'a Test,
    session: Session,
    tokens: Tokens,
    outcome: Outcome,
    plan: Option<Arc<Plan>>,
    disk: Option<Disk>,
    repetitions: Vec<Repetition>,
}

impl<'a> Bench<'a> {
    /// Nothing is loaded yet.
    ///
    /// # Errors
    /// Where there is no memory to measure reading with.
    pub fn new(args: &'a Args) -> Result<Self, anyhow::Error> {
        let memory = (!args.kernels.is_empty()).then(Memory::new).transpose().context("memory test")?;
        Ok(Bench { args, loaded: Vec::new(), memory })
    }

    /// Runs tests on one file in turns: each once uncounted, then all as often as asked for.
    ///
    /// # Errors
    /// Where the model can't be loaded, its context does not fit, or computing fails.
    pub fn measure(&mut self, tests: &[Test]) -> Result<Vec<Outcome>, anyhow::Error> {
        // What is not needed any more goes before anything else needs the memory.
        self.loaded.retain(|known| tests.iter().any(|t| t.model == known.path && t.load == known.load));
        let mut runs = Vec::new();
        for test in tests {
            let mut options = SessionOptions {
                n_ctx: test.n_prompt + test.n_gen + test.n_depth,
                n_batch: test.n_batch,
                n_ubatch: test.n_ubatch.min(test.n_batch),
                n_threads: test.n_threads,
                n_threads_batch: test.n_threads,
                flash_attention: test.flash_attention.or_on(),
                type_k: test.type_k,
                type_v: test.type_v,
                ..SessionOptions::default()
            };
            let (model, plan) = self.model(&test.model, &test.load, &mut options)?;
            let session = Session::new(&model, &options).map_err(crate::advise)?;
            std::thread::sleep(Duration::from_secs(self.args.delay));
            let tokens = Tokens::new(self.args.file.as_deref(), &model)?;
            warn_of_repeated(&tokens, test, self.args.repetitions);
            let readers = self.args.expert_readers;
            let disk = model.expert_pool().map(|_| Disk::new(model.gguf(), readers)).transpose()?.flatten();
            let samples = Samples { n_tokens: test.n_prompt + test.n_gen, times: Vec::new() };
            let expected = plan.as_ref().map(|plan| plan.outlook.tokens_per_second());
            let (slots, streamed) = (statistics(&model), None);
            let outcome = Outcome { model, samples, read_rate: 0.0, expected, slots, streamed };
            let mut run = Run { test, session, tokens, outcome, plan, disk, repetitions: Vec::new() };
            if !self.args.no_warmup {
                run.prompt(test.n_prompt)?;
                run.generate(test.n_gen.min(1))?;
            }
            run.session.truncate(0);
            run.prompt(test.n_depth)?;
            runs.push(run);
        }
        for _ in 0..self.args.repetitions {
            for run in &mut runs {
                run.repeat()?;
                if let Some(memory) = &self.memory {
                    let rate = memory.read_rate(run.test.n_threads);
                    run.outcome.read_rate = run.outcome.read_rate.max(rate);
                }
            }
        }
        Ok(runs.into_iter().map(Run::finish).collect())
    }

    /// The model, and its plan where budgets are given.
    fn model(
        &mut self,
        path: &Path,
        load: &Load,
        session: &mut SessionOptions,
    ) -> Result<(Arc<Model>, Option<Arc<Plan>>), anyhow::Error> {
        if let Some(known) = self.loaded.iter().find(|known| known.path == path && known.load == *load) {
            return Ok((Arc::clone(&known.model), known.plan.clone()));
        }
        let mut options = ModelOptions {
            use_mmap: load.use_mmap,
            n_expert_used: self.args.experts,
            kernels: load.kernels,
            expert_pool_bytes: self.args.expert_pool,
            expert_readers: self.args.expert_readers,
            placement: PlacementOptions {
                n_gpu_layers: load.n_gpu_layers,
                n_cpu_moe: load.n_cpu_moe,
                expert_slots: load.expert_slots.map(ExpertSlots::Uniform),
                fixed_experts: self.args.fixed_experts,
                repack: crate::cli::model::repack(Some(load.repack)),
                overrides: self.args.override_tensor.concat(),
                devices: (!self.args.device.is_empty()).then(|| self.args.device.clone()),
                ..PlacementOptions::default()
            },
            ..ModelOptions::default()
        };
        let budget = BudgetArgs { vram: load.vram, ram: load.ram, trace: self.args.trace.clone() };
        let is_given = load.vram.is_some() || load.ram.is_some() || self.args.expert_pool.is_some();
        let measure = if is_given { Measure::Always } else { Measure::Never };
        let plan = plan::follow(path, &mut options, &budget, session, measure)?;
        let plan = plan.filter(|plan| plan.is_measured).map(Arc::new);
        let model = Model::load(path, &options, &mut ()).map_err(crate::advise)?;
        let (path, load) = (path.to_owned(), load.clone());
        self.loaded.push(Loaded { path, load, model: Arc::clone(&model), plan: plan.clone() });
        Ok((model, plan))
    }
}

impl Run<'_> {
    /// Does it once, and notes how long it took.
    fn repeat(&mut self) -> Result<(), anyhow::Error> {
        let model = Arc::clone(&self.outcome.model);
        self.session.truncate(self.test.n_depth as usize);
        self.sample_disk()?;
        let slots = statistics(&model);
        let streamed = model.expert_pool().map(|pool| pool.statistics());
        let start = Instant::now();
        self.prompt(self.test.n_prompt)?;
        self.generate(self.test.n_gen)?;
        let time = start.elapsed();
        self.outcome.samples.times.push(time);
        self.outcome.slots = statistics(&model).zip(slots).map(|(now, before)| now.since(&before));
        if let (Some(pool), Some(before)) = (model.expert_pool(), streamed) {
            let done = pool.statistics().since(&before);
            self.sample_disk()?;
            let n_tokens = self.outcome.samples.n_tokens;
            let disk = self.disk.as_ref().map_or(0.0, Disk::rate);
            let line = crate::streamed::line(&done, n_tokens as usize, time);
            bruce::say!(
                "{}: {line}; read by {}; {}/s by the disk before and after",
                self.test.name(),
                pool.readers(),
                bytes(disk as u64)
            );
            self.repetitions.push(Repetition { done, time, n_tokens, disk });
        }
        Ok(())
    }

    fn sample_disk(&mut self) -> Result<(), anyhow::Error> {
        Ok(self.disk.as_mut().map_or(Ok(()), Disk::sample)?)
    }

    fn finish(self) -> Outcome {
        let streamed = Streamed::of(&self.repetitions, self.plan.as_deref());
        Outcome { streamed, ..self.outcome }
    }

    /// Reads tokens in batches; a text begins with the BOS token where the model wants one.
    fn prompt(&mut self, n_tokens: u32) -> Result<(), runtime::Error> {
        let model = Arc::clone(self.session.model());
        let mut ids = self.tokens.take(n_tokens, model.hparams().n_vocab);
        if let (0, Some(first), Some(bos)) = (self.session.n_past(), ids.first_mut(), begins_with(&model)) {
            *first = bos;
        }
        let mut batches = ids.chunks(self.test.n_batch as usize);
        batches.try_for_each(|batch| self.session.decode(batch, Logits::Last))
    }

    /// Reads tokens one by one, with logits, as if each had been chosen.
    fn generate(&mut self, n_tokens: u32) -> Result<(), runtime::Error> {
        let ids = self.tokens.take(n_tokens, self.session.model().hparams().n_vocab);
        ids.iter().try_for_each(|id| self.session.decode(&[*id], Logits::Last))
    }
}

/// Says so where a text is too short for a test: what repeats itself is found in caches more often.
fn warn_of_repeated(tokens: &Tokens, test: &Test, n_repetitions: u32) {
    let each = u64::from(test.n_prompt + test.n_gen);
    let all = each * (u64::from(n_repetitions) + 1) + u64::from(test.n_depth);
    if let Some(period) = tokens.period().filter(|period| (*period as u64) < all) {
        bruce::say!(
            "note: {}: the text has {period} tokens and is read again after these, up to {all}",
            test.name()
        );
    }
}

fn statistics(model: &Model) -> Option<SlotStatistics> {
    model.slots().map(|slots| slots.statistics())
}

fn begins_with(model: &Model) -> Option<u32> {
    model.tokenizer().bos().filter(|_| model.tokenizer().adds_bos())
}
