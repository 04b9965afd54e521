//! Fitted types on synthetic models, whose weights are computed where they are read.

use std::path::Path;

use super::*;
use checkpoint::Weight;
use gguf::Metadata;
use model_spec::{Architecture, HyperParams, Rope, RopeScaling, TensorRole};

use crate::{ExpertLayout, NoProgress, Origin, Rules, TypeRule};

/// A Mixtral with weights that are noise; the second expert's are coarser, so that rounding hurts them less.
struct Synthetic {
    hparams: HyperParams,
    weights: Vec<(TensorId, Weight)>,
}

impl Synthetic {
    fn new(n_layer: u32, n_expert: u32) -> Synthetic {
        let hparams = HyperParams {
            arch: Architecture::Llama,
            n_layer,
            n_embd: 256,
            n_ff: 1024,
            n_head: 4,
            n_head_kv: 1,
            head_dim_k: 64,
            head_dim_v: 64,
            head_dim_stated: false,
            n_rot: 64,
            n_vocab: 512,
            n_ctx_train: 512,
            n_expert,
            n_expert_used: 2,
            rms_eps: 1e-5,
            rope: Rope { freq_base: 10000.0, scaling: RopeScaling::None },
            sliding_window: None,
        };
        let mut ids: Vec<TensorId> = [TensorRole::TokenEmbd, TensorRole::OutputNorm, TensorRole::Output]
            .map(TensorId::global)
            .to_vec();
        for layer in 0..n_layer {
            for role in TensorRole::all().filter(|role| role.is_per_layer() && role.unstacked().is_none()) {
                match role.is_ffn_projection() {
                    true => ids.extend((0..n_expert).map(|expert| TensorId::of_expert(role, layer, expert))),
                    false => ids.push(TensorId::in_layer(role, layer)),
                }
            }
        }
        let mut offset = 0;
        let weight = |id: &TensorId| {
            let ne = id.ne(&hparams);
            let (cols, rows) = (ne[0], ne[1..].iter().product::<u64>());
            let weight = Weight {
                source_name: id.name(),
                shard: 0,
                dtype: BF16,
                rows,
                cols,
                offset,
                size: rows * cols * 2,
            };
            offset += weight.size;
            weight
        };
        let weights: Vec<Weight> = ids.iter().map(weight).collect();
        Synthetic { hparams, weights: ids.into_iter().zip(weights).collect() }
    }
}

impl Input for Synthetic {
    fn origin(&self) -> Origin {
        Origin::Checkpoint
    }
    fn path(&self) -> &Path {
        Path::new("synthetic")
    }
    fn files(&self) -> Vec<&Path> {
        vec![self.path()]
    }
    fn hparams(&self) -> &HyperParams {
        &self.hparams
    }
    fn weights(&self) -> Box<dyn Iterator<Item = (&TensorId, &Weight)> + '_> {
        Box::new(self.weights.iter().map(|(id, weight)| (id, weight)))
    }
    fn weight(&self, id: &TensorId) -> Option<&Weight> {
        self.weights.iter().find(|(other, _)| other == id).map(|(_, weight)| weight)
    }
    fn rope_freqs(&self) -> Option<&[f32]> {
        None
    }
    fn name(&self) -> &str {
        "synthetic"
    }
    fn file_type(&self) -> Option<FileType> {
        None
    }
    fn metadata(&self, file_type: FileType, _: &str, _: &Options) -> Metadata {
        let mut metadata = Metadata::new();
        metadata.set("general.file_type", file_type.id());
        metadata
    }
    /// Sums of uniform numbers, from a counter.
    fn read(&self, weight: &Weight, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let coarse = weight.source_name.contains(".1.weight");
        for (i, bytes) in buf.chunks_exact_mut(2).enumerate() {
            let mut x = (weight.offset + offset) / 2 + i as u64;
            x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) ^ (x >> 31);
            let sum: i32 = (0..4).map(|n| (x >> (16 * n) & 0xffff) as i32 - 0x8000).sum();
            let value = if coarse { (sum / 0x8000) as f32 } else { sum as f32 / 65536.0 };
            bytes.copy_from_slice(&value.to_bits().to_le_bytes()[2..]);
        }
        Ok(())
    }
}

fn fitted(input: &Synthetic, options: &Options, target: Target) -> Result<Fit, Error> {
    Ok(fit(input, options, &[target], 2, &NoProgress)?.remove(0))
}

fn plan_of(input: &Synthetic, options: &Options, fit: &Fit) -> Plan {
    let options =
        Options { file_types: vec![fit.file_type], chosen: vec![fit.types.clone()], ..options.clone() };
    Plan::new(input, &options).unwrap()
}

#[test]
fn files_keep_to_the_target_and_come_near_it() {
    let input = Synthetic::new(3, 4);
    for layout in [ExpertLayout::Stacked, ExpertLayout::Split] {
        let options = Options { expert_layout: layout, ..Options::default() };
        for bytes in [5_000_000, 6_000_000, 7_500_000, 10_000_000] {
            let fit = fitted(&input, &options, Target::Bytes(bytes)).unwrap();
            let found = plan_of(&input, &options, &fit).output_bytes();
            assert!(found <= bytes && found > bytes / 100 * 97, "{layout:?}: {found} bytes for {bytes}");
        }
        for bits in [3.5, 4.5, 6.0] {
            let fit = fitted(&input, &options, Target::BitsPerWeight(bits)).unwrap();
            let found = plan_of(&input, &options, &fit).outputs[0].bits_per_weight();
            assert!(found <= bits && found > bits * 0.97, "{layout:?}: {found} bits for {bits}");
        }
    }
}

#[test]
fn parts_are_counted_with_their_headers() {
    let input = Synthetic::new(3, 4);
    let options = Options { split: crate::Split::MaxBytes(500_000), ..Options::default() };
    let fit = fitted(&input, &options, Target::Bytes(6_000_000)).unwrap();
    let plan = plan_of(&input, &options, &fit);
    assert!(plan.outputs[0].layout.n_parts() > 5);
    assert!(plan.output_bytes() <= 6_000_000, "{} bytes", plan.output_bytes());
}

#[test]
fn the_least_possible_is_named_and_possible() {
    let input = Synthetic::new(2, 4);
    let options = Options::default();
    let error = fitted(&input, &options, Target::Bytes(1_000_000)).unwrap_err();
    let Error::TargetTooSmall { found, minimum, has_importance: false } = &error else { panic!("{error}") };
    assert_eq!(found, "1000000 bytes");
    let least: u64 = minimum.strip_suffix(" bytes").unwrap().parse().unwrap();
    let fit = fitted(&input, &options, Target::Bytes(least)).unwrap();
    assert_eq!(plan_of(&input, &options, &fit).output_bytes(), least);
    assert!(fitted(&input, &options, Target::Bytes(least - 1)).is_err());
    let error = fitted(&input, &options, Target::BitsPerWeight(1.0)).unwrap_err();
    let Error::TargetTooSmall { minimum, .. } = &error else { panic!("{error}") };
    assert!(fitted(&input, &options, Target::BitsPerWeight(minimum.parse().unwrap())).is_ok(), "{minimum}");
}

#[test]
fn a_large_target_keeps_every_bit() {
    let input = Synthetic::new(2, 4);
    let fit = fitted(&input, &Options::default(), Target::Bytes(1 << 40)).unwrap();
    assert_eq!(fit.file_type, FileType::BF16);
    assert!(fit.types.values().all(|ty| *ty == BF16));
}

#[test]
fn rules_are_kept_and_paid_for() {
    let input = Synthetic::new(2, 4);
    let rules = Rules {
        tensor_types: vec![TypeRule::parse("ffn_up=q8_0", "--tensor-type").unwrap()],
        output_type: Some(Q4_K),
        ..Rules::default()
    };
    let options = Options { rules, ..Options::default() };
    let fit = fitted(&input, &options, Target::Bytes(6_000_000)).unwrap();
    let plan = plan_of(&input, &options, &fit);
    for tensor in &plan.outputs[0].tensors {
        match tensor.id.role {
            TensorRole::FfnUpExps => assert_eq!(tensor.ty, Q8_0),
            TensorRole::Output => assert_eq!(tensor.ty, Q4_K),
            TensorRole::FfnGateInp => assert_eq!(tensor.ty, F32),
            _ => {}
        }
    }
    assert!(plan.output_bytes() <= 6_000_000);
}

#[test]
fn experts_that_stand_apart_get_types_of_their_own() {
    let input = Synthetic::new(2, 4);
    let options = Options { expert_layout: ExpertLayout::Split, ..Options::default() };
    let fit = fitted(&input, &options, Target::BitsPerWeight(5.0)).unwrap();
    let bits = |expert| {
        let size =
            |role, layer| fit.types[&TensorId::of_expert(role, layer, expert)].row_bytes(1024).unwrap();
        (0..2).map(|layer| size(TensorRole::FfnUp, layer) + size(TensorRole::FfnDown, layer)).sum::<u64>()
    };
    assert!(bits(1) < bits(0) && bits(1) < bits(2), "{} {} {} {}", bits(0), bits(1), bits(2), bits(3));
}

#[test]
fn the_same_types_come_of_any_number_of_threads() {
    let input = Synthetic::new(2, 3);
    let of = |threads| fit(&input, &Options::default(), &[Target::BitsPerWeight(4.6)], threads, &NoProgress);
    assert_eq!(of(1).unwrap(), of(5).unwrap());
}

#[test]
fn no_file_is_larger_than_by_llama_cpp_s_recipe() {
    for n_expert in [2, 3, 4, 8, 16] {
        let input = Synthetic::new(9, n_expert);
        let file_types =
            ["q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k", "iq4_xs"];
        let file_types: Vec<FileType> =
            file_types.iter().map(|name| FileType::from_name(name).unwrap()).collect();
        let targets: Vec<Target> = file_types.iter().copied().map(Target::Recipe).collect();
        let options = Options::default();
        let fits = fit(&input, &options, &targets, 0, &NoProgress).unwrap();
        let theirs = Plan::new(&input, &Options { file_types, ..options.clone() }).unwrap();
        for (fit, theirs) in fits.iter().zip(&theirs.outputs) {
            assert_eq!(fit.file_type, theirs.file_type);
            let (ours, theirs) = (plan_of(&input, &options, fit).output_bytes(), theirs.layout.total_size());
            let name = fit.file_type;
            assert!(ours <= theirs, "{name}, {n_expert} experts: {ours} bytes, not {theirs}");
            assert!(ours > theirs / 100 * 97, "{name}, {n_expert} experts: {ours} bytes, not {theirs}");
        }
    }
}

#[test]
fn a_choice_is_clearly_better_by_all_shares_or_it_is_llama_cpp_s() {
    let (mut n_kept, mut n_found) = (0, 0);
    for n_expert in [2, 4, 8] {
        let input = Synthetic::new(3, n_expert);
        let names = ["q3_k_m", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k", "iq4_xs", "q8_0"];
        let file_types: Vec<FileType> = names.iter().map(|name| FileType::from_name(name).unwrap()).collect();
        let options = Options { file_types: file_types.clone(), ..Options::default() };
        let plan = Plan::new(&input, &options).unwrap();
        let problem = Problem::new(&input, &plan, file_types.clone(), &options, 2, &NoProgress).unwrap();
        for (theirs, file_type) in plan.outputs.iter().zip(file_types) {
            let fit = problem.solve(&input, &options, Target::Recipe(file_type)).unwrap();
            let ours = plan_of(&input, &options, &fit);
            let (ours, theirs) = (&ours.outputs[0], problem.indices(theirs));
            let ours = problem.indices(ours);
            if fit.is_recipe {
                assert_eq!(ours, theirs, "{file_type}");
                n_kept += 1;
            } else {
                n_found += 1;
                for (ours, theirs) in problem.costs(&ours).into_iter().zip(problem.costs(&theirs)) {
                    assert!(
                        ours <= theirs * CLEARLY_LESS,
                        "{file_type}, {n_expert} experts: {ours}, {theirs}"
                    );
                }
            }
        }
    }
    assert!(n_kept > 0 && n_found > 0, "{n_kept} kept, {n_found} found");
}
