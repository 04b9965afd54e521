//! Checkpoints against what llama.cpp's converter made of them (tests/golden of the workspace).
//!
//! tiny-moe ships with the project; the others are made by `make models` and skipped where they are not.

use std::path::{Path, PathBuf};

use checkpoint::{Checkpoint, Special, TokenizerModel};
use model_spec::{TensorId, TensorRole};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The folder of a checkpoint, or a word about its absence.
fn folder(name: &str) -> Option<PathBuf> {
    if name == "tinymoe" {
        return Some(root().join("models/tiny-moe"));
    }
    let models = std::env::var_os("BRUCE_TEST_MODELS").map(PathBuf::from);
    let path = models.unwrap_or_else(|| root().join(".cache/test-models")).join(name);
    if !path.is_dir() {
        eprintln!("skipped: {} is not there (make models)", path.display());
        return None;
    }
    Some(path)
}

fn golden(name: &str) -> Value {
    let path = root().join("tests/golden").join(format!("{name}.kv.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// An array as Python's `json.dumps(value, ensure_ascii=False)` writes it.
fn dumps(items: impl Iterator<Item = Value>) -> String {
    let items: Vec<String> = items.map(|item| item.to_string()).collect();
    format!("[{}]", items.join(", "))
}

fn assert_array(golden: &Value, key: &str, items: Vec<Value>) {
    let facts = &golden[key]["value"];
    assert_eq!(facts["len"].as_u64(), Some(items.len() as u64), "{key}");
    let first = facts["first"].as_array().unwrap();
    assert_eq!(&items[..first.len()], first.as_slice(), "{key}: first");
    let last = facts["last"].as_array().unwrap();
    assert_eq!(&items[items.len() - last.len()..], last.as_slice(), "{key}: last");
    let hash: String =
        Sha256::digest(dumps(items.into_iter()).as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(facts["sha256"], Value::String(hash), "{key}");
}

fn check(name: &str, golden_name: &str) {
    let Some(path) = folder(name) else { return };
    let checkpoint = Checkpoint::open(&path).unwrap();
    let golden = golden(golden_name);
    let value = |key: &str| golden.get(key).map(|entry| entry["value"].clone());
    let number = |key: &str| value(key).and_then(|v| v.as_f64());

    let h = checkpoint.hparams();
    for (key, found) in [
        ("llama.block_count", h.n_layer),
        ("llama.context_length", h.n_ctx_train),
        ("llama.embedding_length", h.n_embd),
        ("llama.feed_forward_length", h.n_ff),
        ("llama.attention.head_count", h.n_head),
        ("llama.attention.head_count_kv", h.n_head_kv),
        ("llama.vocab_size", h.n_vocab),
        ("llama.rope.dimension_count", h.n_rot),
    ] {
        assert_eq!(number(key), Some(f64::from(found)), "{key}");
    }
    assert_eq!(number("llama.expert_count").unwrap_or(0.0), f64::from(h.n_expert));
    assert_eq!(number("llama.expert_used_count").unwrap_or(0.0), f64::from(h.n_expert_used));
    assert_eq!(number("llama.attention.layer_norm_rms_epsilon"), Some(f64::from(h.rms_eps)));
    assert_eq!(number("llama.rope.freq_base"), Some(f64::from(h.rope.freq_base)));
    assert_eq!(number("llama.attention.key_length").is_some(), h.head_dim_stated);
    assert_eq!(value("general.size_label"), Some(Value::String(checkpoint.card().size_label.clone())));

    let v = checkpoint.vocabulary();
    assert_eq!(value("tokenizer.ggml.model"), Some(v.model.ggml_name().into()));
    assert_eq!(value("tokenizer.ggml.pre"), Some(v.pre.as_str().into()));
    assert_array(&golden, "tokenizer.ggml.tokens", v.tokens.iter().map(|t| t.as_str().into()).collect());
    assert_array(&golden, "tokenizer.ggml.token_type", v.types.iter().map(|t| (*t as i32).into()).collect());
    match v.model {
        TokenizerModel::Spm => {
            assert_array(
                &golden,
                "tokenizer.ggml.scores",
                v.scores.iter().map(|s| f64::from(*s).into()).collect(),
            );
            assert!(v.merges.is_empty());
        }
        TokenizerModel::Bpe => {
            assert_array(
                &golden,
                "tokenizer.ggml.merges",
                v.merges.iter().map(|m| m.as_str().into()).collect(),
            );
            assert!(v.scores.is_empty());
        }
    }
    for (key, special) in [
        ("tokenizer.ggml.bos_token_id", Special::Bos),
        ("tokenizer.ggml.eos_token_id", Special::Eos),
        ("tokenizer.ggml.unknown_token_id", Special::Unk),
        ("tokenizer.ggml.padding_token_id", Special::Pad),
    ] {
        assert_eq!(value(key), v.special(special).map(Value::from), "{key}");
    }
    for (key, special) in
        [("tokenizer.ggml.add_bos_token", Special::Bos), ("tokenizer.ggml.add_eos_token", Special::Eos)]
    {
        assert_eq!(value(key), v.adds(special).map(Value::from), "{key}");
    }
    assert_eq!(value("tokenizer.ggml.add_space_prefix"), v.add_space_prefix.map(Value::from));
    assert_eq!(value("tokenizer.chat_template"), v.chat_template.as_deref().map(Value::from));
}

#[test]
fn tiny_moe_is_read_as_by_the_converter() {
    check("tinymoe", "tinymoe-BF16");
}

#[test]
fn synthetic_mixtrals_are_read_as_by_the_converter() {
    check("tiny4", "tiny4-BF16");
    check("tiny4f", "tiny4-BF16");
    check("tiny8", "tiny8-Q8_0");
    check("tiny3", "tiny3-Q4_K_M");
}

#[test]
fn a_dense_mistral_is_read_as_by_the_converter() {
    check("tinyd", "tinyd-Q6_K");
}

#[test]
fn a_byte_level_vocabulary_is_read_as_by_the_converter() {
    check("smol4x", "smol4x-BF16");
}

#[test]
fn nothing_is_odd_about_tiny_moe() {
    let checkpoint = Checkpoint::open(folder("tinymoe").unwrap()).unwrap();
    assert_eq!(checkpoint.warnings(), [] as [String; 0]);
    assert_eq!(checkpoint.card().name, "Tiny Moe");
    // 3 layers of 6 tensors, a router and 12 expert matrices; embedding, norm and output.
    assert_eq!(checkpoint.weights().len(), 3 * (6 + 1 + 12) + 3);
}

#[test]
fn weights_are_read_where_they_are() {
    let path = folder("tinymoe").unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let id = TensorId::of_expert(TensorRole::FfnDown, 1, 2);
    let weight = checkpoint.weight(&id).unwrap();
    assert_eq!(weight.source_name, "model.layers.1.block_sparse_moe.experts.2.w2.weight");
    assert_eq!((weight.rows, weight.cols, weight.size), (256, 256, 2 * 256 * 256));
    let whole = std::fs::read(path.join("model.safetensors")).unwrap();
    let mut row = vec![0; 512];
    checkpoint.read(weight, 512 * 100, &mut row).unwrap();
    let at = weight.offset as usize + 512 * 100;
    assert_eq!(row, &whole[at..at + 512]);
    let beyond = checkpoint.read(weight, weight.size - 511, &mut row).unwrap_err().to_string();
    assert!(beyond.contains("expected a range within 131072 bytes"), "{beyond}");
}

#[test]
fn both_expert_layouts_hold_the_same_weights() {
    let (Some(split), Some(fused)) = (folder("tiny4"), folder("tiny4f")) else { return };
    let (split, fused) = (Checkpoint::open(split).unwrap(), Checkpoint::open(fused).unwrap());
    assert_eq!(split.weights().len(), fused.weights().len());
    for (id, a) in split.weights() {
        let b = fused.weight(id).unwrap_or_else(|| panic!("{}", id.name()));
        assert_eq!((a.rows, a.cols, a.dtype), (b.rows, b.cols, b.dtype), "{}", id.name());
        let mut bytes = [vec![0; a.size as usize], vec![0; b.size as usize]];
        split.read(a, 0, &mut bytes[0]).unwrap();
        fused.read(b, 0, &mut bytes[1]).unwrap();
        assert!(bytes[0] == bytes[1], "{}", id.name());
    }
}
