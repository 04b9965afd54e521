//! Conversions of the checkpoint that ships with the project, whole and damaged.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use checkpoint::Checkpoint;
use convert::{Error, ExecuteOptions, ExpertLayout, NoProgress, Options, Plan, Source, execute};
use gguf::{Gguf, Overwrite};
use model_spec::{FileType, TensorId, TensorRole};

fn tiny_moe() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-moe")
}

fn options(file_types: &[FileType], expert_layout: ExpertLayout) -> Options {
    Options { file_types: file_types.to_vec(), expert_layout, ..Options::default() }
}

/// Converts `model` into `folder`, one file per type.
fn convert(
    model: &Path,
    options: &Options,
    folder: &Path,
    allow_non_finite: bool,
) -> Result<Vec<PathBuf>, Error> {
    let checkpoint = Checkpoint::open(model)?;
    let plan = Plan::new(&checkpoint, options)?;
    let paths: Vec<PathBuf> =
        plan.outputs.iter().map(|o| folder.join(format!("{}.gguf", o.file_type))).collect();
    let how = ExecuteOptions { threads: 2, overwrite: Overwrite::Refuse, allow_non_finite, resume: false };
    execute(&checkpoint, &plan, &paths, &how, &NoProgress)?;
    Ok(paths)
}

#[test]
fn split_experts_are_the_slices_of_stacked_ones() {
    let (stacked, split) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let types = [FileType::Q4_K_M, FileType::BF16];
    let stacked =
        convert(&tiny_moe(), &options(&types, ExpertLayout::Stacked), stacked.path(), false).unwrap();
    let split = convert(&tiny_moe(), &options(&types, ExpertLayout::Split), split.path(), false).unwrap();
    for (stacked, split) in stacked.iter().zip(&split) {
        let (stacked, split) = (Gguf::open(stacked).unwrap(), Gguf::open(split).unwrap());
        let mut n_slices = 0;
        for tensor in split.tensors() {
            let id = TensorId::parse(&tensor.name).expect("a name of ours");
            let Some(expert) = id.expert else {
                let same = stacked.tensor(&tensor.name).expect("the same tensor");
                assert_eq!(stacked.data(same), split.data(tensor), "{}", tensor.name);
                continue;
            };
            let all = TensorId { role: id.role.stacked().unwrap(), expert: None, ..id };
            let all = stacked.tensor(&all.name()).expect("the stacked tensor");
            assert_eq!(all.ty, tensor.ty, "{}", tensor.name);
            let size = tensor.size as usize;
            let slice = &stacked.data(all)[expert as usize * size..][..size];
            assert_eq!(slice, split.data(tensor), "{}", tensor.name);
            n_slices += 1;
        }
        assert_eq!(n_slices, 3 * 3 * 4);
    }
}

#[test]
fn several_outputs_equal_single_ones() {
    let (together, alone) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let types = [FileType::Q4_K_S, FileType::F16, FileType::Q8_0];
    let together =
        convert(&tiny_moe(), &options(&types, ExpertLayout::Stacked), together.path(), false).unwrap();
    for (ty, path) in types.iter().zip(&together) {
        let single =
            convert(&tiny_moe(), &options(&[*ty], ExpertLayout::Stacked), alone.path(), false).unwrap();
        assert!(fs::read(path).unwrap() == fs::read(&single[0]).unwrap(), "{ty} differs");
    }
}

#[test]
fn a_plan_reads_every_weight_once_in_file_order() {
    let checkpoint = Checkpoint::open(tiny_moe()).unwrap();
    let types = [FileType::Q4_K_M, FileType::Q8_0];
    let plan = Plan::new(&checkpoint, &options(&types, ExpertLayout::Stacked)).unwrap();
    let offsets: Vec<u64> = plan
        .steps
        .iter()
        .filter_map(|step| match &step.source {
            Source::Weight(weight) => Some(weight.offset),
            Source::Computed(_) => None,
        })
        .collect();
    assert_eq!(offsets.len(), checkpoint.weights().len());
    assert!(offsets.is_sorted());
    for output in &plan.outputs {
        assert_eq!(output.n_weights(), plan.outputs[0].n_weights());
        let parts = output.tensors.iter().find(|t| t.id.role == TensorRole::FfnUpExps).unwrap();
        assert_eq!(parts.sources.len(), 4, "{:?}", parts.sources);
    }
    assert!(plan.steps.iter().all(|step| step.destinations.len() == 2));
}

/// A copy of the checkpoint with one element overwritten by `value` (BF16 bits).
fn damaged(id: TensorId, row: u64, col: u64, value: u16) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(tiny_moe()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    let checkpoint = Checkpoint::open(copy.path()).unwrap();
    let weight = checkpoint.weight(&id).expect("a weight of the model");
    let shard = checkpoint.shards().nth(weight.shard).unwrap();
    let file = fs::OpenOptions::new().write(true).open(shard).unwrap();
    file.write_all_at(&value.to_le_bytes(), weight.offset + (row * weight.cols + col) * 2).unwrap();
    copy
}

const NAN: u16 = 0x7fc0;
const MINUS_INFINITY: u16 = 0xff80;

fn convert_damaged(id: TensorId, row: u64, col: u64, value: u16, allow: bool) -> Result<(), Error> {
    let model = damaged(id, row, col, value);
    let out = tempfile::tempdir().unwrap();
    let types = [FileType::Q4_K_M, FileType::BF16];
    let done = convert(model.path(), &options(&types, ExpertLayout::Stacked), out.path(), allow);
    let left = fs::read_dir(out.path()).unwrap().count();
    assert_eq!(left, if done.is_ok() { 2 } else { 0 }, "files in the output folder");
    done.map(|_| ())
}

#[test]
fn nan_or_infinity_in_a_weight_is_named_with_its_place() {
    // Rows of a query projection change places on the way; the place is that in the shard.
    for (id, name) in [
        (TensorId::in_layer(TensorRole::AttnQ, 1), "model.layers.1.self_attn.q_proj.weight"),
        (TensorId::of_expert(TensorRole::FfnDown, 2, 3), "experts.3."),
    ] {
        for (value, word) in [(NAN, "NaN"), (MINUS_INFINITY, "-inf")] {
            let error = convert_damaged(id, 77, 200, value, false).unwrap_err();
            assert!(matches!(error, Error::NonFinite { row: 77, col: 200, .. }), "{error}");
            let text = error.to_string();
            for part in [name, &id.name(), "[77, 200]", word, "model.safetensors: "] {
                assert!(text.contains(part), "{part:?} is not in: {text}");
            }
            convert_damaged(id, 77, 200, value, true).expect("let through when asked for");
        }
    }
}

#[test]
fn nan_in_a_router_or_norm_is_never_let_through() {
    for id in [
        TensorId::in_layer(TensorRole::FfnGateInp, 0),
        TensorId::in_layer(TensorRole::AttnNorm, 2),
        TensorId::global(TensorRole::OutputNorm),
    ] {
        for allow in [false, true] {
            let error = convert_damaged(id, 0, 9, NAN, allow).unwrap_err();
            assert!(matches!(error, Error::NonFinite { row: 0, col: 9, .. }), "{error}");
        }
    }
}

#[test]
fn no_file_type_or_too_few_paths_are_errors() {
    let checkpoint = Checkpoint::open(tiny_moe()).unwrap();
    assert!(matches!(Plan::new(&checkpoint, &Options::default()), Err(Error::Outputs { found: 0, .. })));
    let plan = Plan::new(&checkpoint, &options(&[FileType::Q8_0], ExpertLayout::Stacked)).unwrap();
    let how = ExecuteOptions { threads: 1, ..Default::default() };
    assert!(matches!(execute(&checkpoint, &plan, &[], &how, &NoProgress), Err(Error::Outputs { .. })));
}
