//! How fast experts are read from a file: as a pool reads them, one after the other, with none in memory.
//!
//! So whatever decides that in decoding does so here: who reads, the size of reads and how many are under way, pages that they
//! are read into, the gap between one expert and the next, and, where it is measured beside multiplication, what the processor
//! and its memory leave for reading. Disks of virtual machines change from second to second: short samples are taken
//! between other measurements, and their median counts.

use crate::Error;
use crate::model::expert_sources;
use expert_pool::{Files, LayerSource, MatrixSource, Options, Pool, Readers, Request};
use gguf::{Gguf, TensorInfo};
use model_spec::TensorId;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long is read for a sample, and how long at most where a disk is so slow that one expert takes longer.
const TIME: Duration = Duration::from_millis(120);
const MAX_TIME: Duration = Duration::from_millis(500);
/// Experts that are read one after the other lie so many apart in the file: they don't ride on one another.
const STRIDE: usize = 5;
/// Memory that is read into, besides the least that a pool has: room for as many reads at once as the pool of a model has, and
/// no more than makes it all the same where it lies.
const MIN_BYTES: u64 = 16 << 20;
const MAX_BYTES: u64 = 128 << 20;

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FileRate {
    /// Read in a second.
    pub bytes_per_second: f64,
    /// Whether the page cache was left out. Some file systems can't, and then the figure may be the memory's.
    pub is_direct: bool,
}

/// Samples of how fast experts are read from a file.
pub struct FileMeter {
    pool: Pool,
    n_experts: usize,
    next: usize,
    /// Bytes per second.
    samples: Vec<f64>,
}

impl FileMeter {
    /// A meter for the experts of a model, read by `readers`, which has taken a first sample; `None` where it has none.
    /// It takes some 30 MiB of memory, and up to five times as much of `room_bytes`: a few large pages were seen to be read into
    /// at 2.0 to 2.6 GB/s from one start of the program to the next, 140 MiB always at 2.4 to 2.6.
    ///
    /// # Errors
    /// [`Error::ExpertPool`] where they can't be read, or there is no memory for a few MiB of them.
    pub fn of_model(gguf: &Gguf, readers: Readers, room_bytes: u64) -> Result<Option<FileMeter>, Error> {
        let experts = experts(gguf);
        if experts.is_empty() {
            return Ok(None);
        }
        let more_bytes = room_bytes.clamp(MIN_BYTES, MAX_BYTES);
        let size_bytes = Pool::least_bytes(&experts, readers) + more_bytes;
        let pool = Pool::new(Files::open(gguf.parts())?, &experts, Options { size_bytes, readers })?;
        let mut meter = FileMeter { pool, n_experts: experts.len(), next: 0, samples: Vec::new() };
        // In the first sample memory is touched for the first time.
        meter.sample()?;
        meter.keep_last(0);
        meter.sample()?;
        Ok(Some(meter))
    }

    /// Forgets all samples but the last `n`.
    pub fn keep_last(&mut self, n: usize) {
        self.samples.drain(..self.samples.len().saturating_sub(n));
    }

    /// Takes one more sample.
    ///
    /// # Errors
    /// [`Error::ExpertPool`] where the file can't be read.
    pub fn sample(&mut self) -> Result<(), Error> {
        let before = self.pool.statistics().read_bytes;
        let start = Instant::now();
        while start.elapsed() < TIME {
            self.read_one(start)?;
        }
        let n_bytes = self.pool.statistics().read_bytes - before;
        self.samples.push(n_bytes as f64 / start.elapsed().as_secs_f64());
        Ok(())
    }

    /// Reads the next expert, or as much of it as arrives in time.
    fn read_one(&mut self, start: Instant) -> Result<(), Error> {
        self.pool.clear();
        let turn = self.pool.begin(Arc::default());
        let pass = self.pool.enter(&Request::of_token(self.next, &[(0, 1)]));
        for group in 0..pass.gate_up().len() + pass.down().len() {
            match self.pool.lease(&pass, group) {
                Some(mut lease) if start.elapsed() < MAX_TIME => lease.done(),
                _ => break,
            }
        }
        turn.finish()?;
        self.next = (self.next + STRIDE) % self.n_experts;
        Ok(())
    }

    /// The median of the samples.
    pub fn rate(&self) -> FileRate {
        FileRate { bytes_per_second: median(&self.samples), is_direct: self.pool.is_direct() }
    }
}

/// What is read as experts: all matrices of the largest kind that experts have, by threes. Files are not checked yet when a plan
/// is made, so what can't be such a matrix is left out.
fn experts(gguf: &Gguf) -> Vec<LayerSource> {
    let is_expert = |tensor: &&TensorInfo| TensorId::parse(&tensor.name).is_some_and(|id| id.is_expert());
    let n_experts = |tensor: &TensorInfo| tensor.ne.get(2).copied().unwrap_or(1);
    let shape = |tensor: &TensorInfo| (tensor.ty, tensor.ne.get(..2).map(<[u64]>::to_vec));
    let has_rows = |tensor: &&TensorInfo| {
        tensor.size > 0 && tensor.ne.len() >= 2 && tensor.ne.iter().all(|extent| *extent > 0)
    };
    let all: Vec<&TensorInfo> = gguf.tensors().iter().filter(is_expert).filter(has_rows).collect();
    let Some(largest) = all.iter().max_by_key(|tensor| tensor.size / n_experts(tensor)) else {
        return Vec::new();
    };
    let alike = all.iter().filter(|tensor| shape(tensor) == shape(largest));
    let matrices: Vec<MatrixSource> =
        alike.flat_map(|tensor| expert_sources(&[tensor], n_experts(tensor) as usize)).collect();
    let expert = |three: &[MatrixSource]| {
        let [gate, up, down] = [0, 1, 2].map(|index| vec![three[index % three.len()].clone()]);
        LayerSource { gate, up, down }
    };
    matrices.chunks(3).map(expert).collect()
}

/// The middle one, or the mean of the two in the middle; 0 of none.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = |index: usize| sorted.get(index).copied().unwrap_or(0.0);
    (middle(sorted.len() / 2) + middle(sorted.len().saturating_sub(1) / 2)) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use gguf::{Layout, Metadata, Overwrite, TensorSpec, Writer};
    use quants::TensorType;
    use std::path::Path;

    /// A file with matrices of these shapes.
    fn file(path: &Path, tensors: &[(&str, &[u64])]) -> Gguf {
        let spec = |(name, ne): &(&str, &[u64])| TensorSpec {
            name: (*name).into(),
            ne: ne.to_vec(),
            ty: TensorType::Q8_0,
        };
        let specs: Vec<TensorSpec> = tensors.iter().map(spec).collect();
        let layout = Layout::new(&Metadata::default(), &specs, 32).expect("a layout");
        let writer = Writer::create(path, layout, Overwrite::Refuse).expect("a file");
        for (number, (_, ne)) in tensors.iter().enumerate() {
            let n_bytes = ne.iter().product::<u64>() / 32 * 34;
            writer.write_at(number, 0, &vec![1; n_bytes as usize]).expect("written");
        }
        writer.finish().expect("finished");
        Gguf::open(path).expect("a file of ours")
    }

    #[test]
    fn experts_have_a_rate_however_few_and_small_they_are() {
        let directory = tempfile::tempdir().expect("a directory");
        let one = file(&directory.path().join("one"), &[("blk.0.ffn_up.7.weight", &[32, 1])]);
        let both: [(&str, &[u64]); 2] =
            [("blk.0.ffn_gate_exps.weight", &[256, 512, 4]), ("blk.0.ffn_down_exps.weight", &[512, 256, 4])];
        let both = file(&directory.path().join("both"), &both);
        for (gguf, n_experts) in [(&one, 1), (&both, 2)] {
            let meter = FileMeter::of_model(gguf, Readers::Auto, 0).expect("it can be read");
            let mut meter = meter.expect("it has experts");
            assert_eq!(meter.n_experts, n_experts);
            meter.sample().expect("read again");
            assert!(meter.samples.len() == 2 && meter.rate().bytes_per_second > 1e3, "{:?}", meter.samples);
            meter.keep_last(1);
            assert_eq!(meter.rate().bytes_per_second, meter.samples[0]);
        }
        let dense = file(&directory.path().join("dense"), &[("blk.0.ffn_up.weight", &[32, 4])]);
        assert!(FileMeter::of_model(&dense, Readers::Auto, 0).expect("nothing to read").is_none());
    }

    #[test]
    fn a_file_that_has_become_shorter_is_an_error() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        let gguf = file(&path, &[("blk.0.ffn_up_exps.weight", &[256, 512, 4])]);
        std::fs::File::options().write(true).open(&path).and_then(|file| file.set_len(8192)).expect("cut");
        let error =
            FileMeter::of_model(&gguf, Readers::Auto, 0).err().expect("it ends too early").to_string();
        assert!(error.contains("blk.0.ffn_up_exps.weight") && error.contains("truncated"), "{error}");
    }

    #[test]
    fn one_sample_that_is_far_off_changes_little() {
        assert_eq!(median(&[2.0, 9.0, 1.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), 3.0);
        assert_eq!((median(&[5.0]), median(&[])), (5.0, 0.0));
    }
}
