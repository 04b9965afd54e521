//! Files that are GGUF but no model that can be run.

use crate::fixture::*;
use convert::ExpertLayout::{Split, Stacked};
use gguf::Metadata;
use quants::TensorType;
use runtime::{Model, ModelOptions};
use std::path::Path;

fn error_of(path: &Path) -> String {
    match Model::load(path, &plain(), &mut ()) {
        Ok(_) => panic!("{} was loaded", path.display()),
        Err(error) => error.to_string(),
    }
}

fn keep(_: &str) -> Edit {
    Edit::Keep
}

fn edited(original: &Fixture, tensor: &'static str, edit: fn() -> Edit) -> String {
    let file = rewrite(&original.path, |_| {}, |name| if name == tensor { edit() } else { Edit::Keep });
    let error = error_of(&file.path);
    assert!(error.contains("model.gguf") && error.contains(tensor), "names file and tensor: {error}");
    error
}

#[test]
fn a_missing_tensor_is_named() {
    let (stacked, split) = (tiny_moe("q8_0", Stacked), tiny_moe("q8_0", Split));
    for tensor in [
        "token_embd.weight",
        "output_norm.weight",
        "blk.2.attn_k.weight",
        "blk.0.ffn_gate_inp.weight",
        "blk.1.ffn_up_exps.weight",
    ] {
        let error = edited(&stacked, tensor, || Edit::Drop);
        assert!(error.contains("missing"), "{error}");
    }
    edited(&split, "blk.1.ffn_down.2.weight", || Edit::Drop);
}

#[test]
fn a_missing_output_is_the_embeddings() {
    let file = tiny_moe("q8_0", Stacked);
    let tied =
        rewrite(&file.path, |_| {}, |name| if name == "output.weight" { Edit::Drop } else { Edit::Keep });
    let model = load(&tied.path, &ModelOptions::default());
    answers(&model, &mut session(&model));
}

#[test]
fn a_wrong_shape_is_shown_beside_the_right_one() {
    let file = tiny_moe("f32", Stacked);
    let error = edited(&file, "blk.1.attn_q.weight", || Edit::Reshape(vec![512, 128]));
    assert!(error.contains("[512, 128]") && error.contains("[256, 256]"), "{error}");
    edited(&file, "blk.0.ffn_down_exps.weight", || Edit::Reshape(vec![256, 512, 2]));
    edited(&file, "output_norm.weight", || Edit::Reshape(vec![128, 2]));
}

#[test]
fn a_norm_that_is_not_f32_is_refused() {
    let file = tiny_moe("f32", Stacked);
    let error = edited(&file, "blk.1.ffn_norm.weight", || Edit::Retype(TensorType::F16));
    assert!(error.contains("found type F16, expected F32"), "{error}");
}

#[test]
fn metadata_that_contradicts_the_tensors_is_refused() {
    let file = tiny_moe("q8_0", Stacked);
    type Change = fn(&mut Metadata);
    let changes: [(&str, Change); 6] = [
        ("general.architecture", |m| drop(m.insert("general.architecture", "gpt2"))),
        ("llama.block_count", |m| drop(m.remove("llama.block_count"))),
        ("llama.expert_used_count", |m| drop(m.insert("llama.expert_used_count", 9u32))),
        ("llama.attention.head_count_kv", |m| drop(m.insert("llama.attention.head_count_kv", 3u32))),
        ("tensor", |m| drop(m.insert("llama.block_count", 4u32))),
        ("tensor", |m| drop(m.insert("llama.feed_forward_length", 512u32))),
    ];
    for (named, change) in changes {
        let error = error_of(&rewrite(&file.path, change, keep).path);
        assert!(error.contains(named) && error.contains("model.gguf"), "{error}");
    }
}

#[test]
fn a_damaged_tensor_is_found_when_asked_for() {
    let file = tiny_moe("f32", Stacked);
    let mut bytes = std::fs::read(&file.path).expect("read");
    let info =
        gguf::Gguf::open(&file.path).expect("valid").tensor("blk.1.attn_v.weight").expect("there").clone();
    let at = info.offset as usize + 4 * 300;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&file.path, bytes).expect("written");
    let options = ModelOptions { check_tensors: true, ..plain() };
    let Err(error) = Model::load(&file.path, &options, &mut ()) else { panic!("a NaN went unseen") };
    let text = error.to_string();
    assert!(text.contains("blk.1.attn_v.weight: element 300"), "{text}");
}
