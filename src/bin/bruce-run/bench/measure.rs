//! One test: what is computed, how often, and how long it took.

use super::stats::Samples;
use super::{Args, Load, Test};
use runtime::model::{Model, ModelOptions};
use runtime::residency::PlacementOptions;
use runtime::session::{Logits, Session, SessionOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Measures tests one after the other; a model stays loaded while the next test can use it.
pub struct Bench<'a> {
    args: &'a Args,
    loaded: Option<(PathBuf, Load, Arc<Model>)>,
    tokens: RandomTokens,
}

/// What a test brought.
pub struct Outcome {
    /// The model it ran on.
    pub model: Arc<Model>,
    /// Its repetitions.
    pub samples: Samples,
}

impl<'a> Bench<'a> {
    /// Nothing is loaded yet.
    pub fn new(args: &'a Args) -> Self {
        Bench { args, loaded: None, tokens: RandomTokens(0x9e37_79b9_7f4a_7c15) }
    }

    /// Runs one test: once uncounted, then as often as asked for.
    ///
    /// # Errors
    /// Where the model can't be loaded, its context does not fit, or computing fails.
    pub fn measure(&mut self, test: &Test) -> Result<Outcome, anyhow::Error> {
        let model = self.model(&test.model, &test.load)?;
        let mut session = Session::new(
            &model,
            &SessionOptions {
                n_ctx: test.n_prompt + test.n_gen + test.n_depth,
                n_ubatch: test.n_ubatch.min(test.n_batch),
                n_threads: test.n_threads,
                n_threads_batch: test.n_threads,
                flash_attention: test.flash_attention.or_on(),
                type_k: test.type_k,
                type_v: test.type_v,
                ..SessionOptions::default()
            },
        )?;
        std::thread::sleep(Duration::from_secs(self.args.delay));
        if !self.args.no_warmup {
            self.prompt(&mut session, test.n_prompt, test.n_batch)?;
            self.generate(&mut session, test.n_gen.min(1))?;
        }
        let mut samples = Samples { n_tokens: test.n_prompt + test.n_gen, times: Vec::new() };
        session.truncate(0);
        self.prompt(&mut session, test.n_depth, test.n_batch)?;
        for _ in 0..self.args.repetitions {
            session.truncate(test.n_depth as usize);
            let start = Instant::now();
            self.prompt(&mut session, test.n_prompt, test.n_batch)?;
            self.generate(&mut session, test.n_gen)?;
            samples.times.push(start.elapsed());
        }
        Ok(Outcome { model, samples })
    }

    fn model(&mut self, path: &Path, load: &Load) -> Result<Arc<Model>, anyhow::Error> {
        if let Some((loaded_path, loaded_so, model)) = &self.loaded
            && loaded_path == path
            && loaded_so == load
        {
            return Ok(Arc::clone(model));
        }
        // The old model goes before the new one needs the memory.
        self.loaded = None;
        let options = ModelOptions {
            use_mmap: load.use_mmap,
            n_expert_used: self.args.experts,
            placement: PlacementOptions {
                n_gpu_layers: load.n_gpu_layers,
                n_cpu_moe: load.n_cpu_moe,
                repack: crate::cli::model::repack(Some(load.repack)),
                overrides: self.args.override_tensor.concat(),
                devices: (!self.args.device.is_empty()).then(|| self.args.device.clone()),
                ..PlacementOptions::default()
            },
            ..ModelOptions::default()
        };
        let model = Model::load(path, &options, &mut ())?;
        self.loaded = Some((path.to_owned(), load.clone(), Arc::clone(&model)));
        Ok(model)
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
