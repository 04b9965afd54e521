//! One test: what is computed, how often, and how long it took.

use super::stats::Samples;
use super::{Args, Load, Test};
use crate::plan::{self, BudgetArgs};
use anyhow::Context;
use runtime::bandwidth::Memory;
use runtime::model::{Model, ModelOptions};
use runtime::plan::Measure;
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
    tokens: RandomTokens,
}

struct Loaded {
    path: PathBuf,
    load: Load,
    model: Arc<Model>,
    /// Single tokens a second that its plan expects.
    expected: Option<f64>,
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
}

impl<'a> Bench<'a> {
    /// Nothing is loaded yet.
    ///
    /// # Errors
    /// Where there is no memory to measure reading with.
    pub fn new(args: &'a Args) -> Result<Self, anyhow::Error> {
        let memory = (!args.kernels.is_empty()).then(Memory::new).transpose().context("memory test")?;
        Ok(Bench { args, loaded: Vec::new(), memory, tokens: RandomTokens(0x9e37_79b9_7f4a_7c15) })
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
                n_ubatch: test.n_ubatch.min(test.n_batch),
                n_threads: test.n_threads,
                n_threads_batch: test.n_threads,
                flash_attention: test.flash_attention.or_on(),
                type_k: test.type_k,
                type_v: test.type_v,
                ..SessionOptions::default()
            };
            let (model, expected) = self.model(&test.model, &test.load, &mut options)?;
            let mut session = Session::new(&model, &options).map_err(crate::advise)?;
            std::thread::sleep(Duration::from_secs(self.args.delay));
            if !self.args.no_warmup {
                self.prompt(&mut session, test.n_prompt, test.n_batch)?;
                self.generate(&mut session, test.n_gen.min(1))?;
            }
            session.truncate(0);
            self.prompt(&mut session, test.n_depth, test.n_batch)?;
            let samples = Samples { n_tokens: test.n_prompt + test.n_gen, times: Vec::new() };
            let slots = statistics(&model);
            runs.push((test, session, Outcome { model, samples, read_rate: 0.0, expected, slots }));
        }
        for _ in 0..self.args.repetitions {
            for (test, session, outcome) in &mut runs {
                session.truncate(test.n_depth as usize);
                let before = statistics(&outcome.model);
                let streamed = outcome.model.expert_pool().map(|pool| pool.statistics());
                let start = Instant::now();
                self.prompt(session, test.n_prompt, test.n_batch)?;
                self.generate(session, test.n_gen)?;
                outcome.samples.times.push(start.elapsed());
                if let (Some(pool), Some(before)) = (outcome.model.expert_pool(), streamed) {
                    let done = pool.statistics().since(&before);
                    let time = *outcome.samples.times.last().expect("just measured");
                    let n_tokens = outcome.samples.n_tokens as usize;
                    let line = crate::streamed::line(&done, n_tokens, time);
                    eprintln!("{}: {line}; read by {}", test.name(), pool.readers());
                }
                outcome.slots =
                    statistics(&outcome.model).zip(before).map(|(now, before)| now.since(&before));
                if let Some(memory) = &self.memory {
                    outcome.read_rate = outcome.read_rate.max(memory.read_rate(test.n_threads));
                }
            }
        }
        Ok(runs.into_iter().map(|(_, _, outcome)| outcome).collect())
    }

    /// The model, and the speed that its plan expects where budgets are given.
    fn model(
        &mut self,
        path: &Path,
        load: &Load,
        session: &mut SessionOptions,
    ) -> Result<(Arc<Model>, Option<f64>), anyhow::Error> {
        if let Some(known) = self.loaded.iter().find(|known| known.path == path && known.load == *load) {
            return Ok((Arc::clone(&known.model), known.expected));
        }
        let mut options = ModelOptions {
            use_mmap: load.use_mmap,
            n_expert_used: self.args.experts,
            kernels: Some(load.kernels),
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
        let budget = BudgetArgs { vram: load.vram, ram: load.ram, trace: None };
        let is_given = load.vram.is_some() || load.ram.is_some();
        let measure = if is_given { Measure::Always } else { Measure::Never };
        let plan = plan::follow(path, &mut options, &budget, session, measure)?;
        let expected = plan.filter(|plan| plan.is_measured).map(|plan| plan.outlook.tokens_per_second());
        let model = Model::load(path, &options, &mut ()).map_err(crate::advise)?;
        let (path, load) = (path.to_owned(), load.clone());
        self.loaded.push(Loaded { path, load, model: Arc::clone(&model), expected });
        Ok((model, expected))
    }

    /// Reads random tokens in batches; a text begins with the BOS token where the model wants one.
    fn prompt(&mut self, session: &mut Session, n_tokens: u32, n_batch: u32) -> Result<(), runtime::Error> {
        let model = Arc::clone(session.model());
        let mut ids: Vec<u32> = self.tokens.take(model.hparams().n_vocab).take(n_tokens as usize).collect();
        if let (0, Some(first), Some(bos)) = (session.n_past(), ids.first_mut(), begins_with(&model)) {
            *first = bos;
        }
        ids.chunks(n_batch as usize).try_for_each(|batch| session.decode(batch, Logits::Last))
    }

    /// Reads random tokens one by one, with logits, as if each had been chosen.
    fn generate(&mut self, session: &mut Session, n_tokens: u32) -> Result<(), runtime::Error> {
        let n_vocab = session.model().hparams().n_vocab;
        self.tokens
            .take(n_vocab)
            .take(n_tokens as usize)
            .try_for_each(|id| session.decode(&[id], Logits::Last))
    }
}

fn statistics(model: &Model) -> Option<SlotStatistics> {
    model.slots().map(|slots| slots.statistics())
}

fn begins_with(model: &Model) -> Option<u32> {
    model.tokenizer().bos().filter(|_| model.tokenizer().adds_bos())
}

/// Token ids that follow no pattern, the same in each run (xorshift64*). Which ids they are matters where experts are
/// chosen by them: repeated tokens would flatter every cache.
struct RandomTokens(u64);

impl RandomTokens {
    fn take(&mut self, n_vocab: u32) -> impl Iterator<Item = u32> + '_ {
        std::iter::repeat_with(move || {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
            (high % u64::from(n_vocab.max(1))) as u32
        })
    }
}

#[cfg(test)]
mod tests {
    use super::RandomTokens;

    #[test]
    fn tokens_stay_in_the_vocabulary_and_differ() {
        let tokens: Vec<u32> = RandomTokens(1).take(1000).take(500).collect();
        assert!(tokens.iter().all(|id| *id < 1000));
        let mut distinct = tokens.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert!(distinct.len() > 300, "{} distinct", distinct.len());
    }
}
