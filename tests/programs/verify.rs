//! `bruce-quant verify` on good files and damaged ones.

use crate::support::{bruce_quant, quantized, refused, run, succeed};
use serde_json::Value;
use std::fs;

#[test]
fn what_bruce_quant_writes_is_right() {
    for file_type in ["F32", "Q8_0", "Q4_K_M"] {
        let Some(model) = quantized("tinymoe", file_type) else { return };
        let text = succeed(bruce_quant().arg("verify").arg(&model));
        assert!(text.contains("nothing is wrong"), "{text}");
    }
}

#[test]
fn a_damaged_scale_is_found_with_its_expert() {
    let Some(model) = quantized("tinymoe", "Q8_0") else { return };
    let mut bytes = fs::read(&model).expect("a file");
    let name = "blk.1.ffn_up_exps.weight";
    let at = {
        let file = gguf::Gguf::open(&model).expect("a model");
        let tensor = file.tensor(name).expect("experts");
        (tensor.offset + tensor.size / 4 * 2) as usize
    };
    bytes[at..at + 2].copy_from_slice(&0x7e00u16.to_le_bytes());
    let folder = tempfile::tempdir().expect("a folder");
    let damaged = folder.path().join("damaged.gguf");
    fs::write(&damaged, bytes).expect("a file");
    refused(&run(bruce_quant().arg("verify").arg(&damaged)), 1, &["damaged.gguf", name, "NaN", "expert 2"]);
    let output = run(bruce_quant().args(["verify", "--json"]).arg(&damaged));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["problems"].as_array().map(Vec::len), Some(1), "{report}");
    refused(&run(bruce_quant().arg("verify")), 2, &["FILE"]);
}
