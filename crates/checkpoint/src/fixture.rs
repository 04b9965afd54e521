//! Small checkpoint directories for tests: 2 layers, width 4, a vocabulary of 265.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::vocabulary::testing;
use crate::{Checkpoint, Error, OpenOptions, Result};

pub(crate) const ROWS: u64 = 265;
const H: u64 = 4;
const F: u64 = 6;

/// A tensor to be written, all zeros.
#[derive(Debug, Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<u64>,
}

pub(crate) fn tensor(name: &str, shape: &[u64]) -> Tensor {
    Tensor { name: name.to_owned(), dtype: "F32", shape: shape.to_vec() }
}

impl Tensor {
    fn size(&self) -> u64 {
        let bytes = match self.dtype {
            "F64" | "I64" => 8,
            "F16" | "BF16" => 2,
            "I8" | "F8_E4M3" => 1,
            _ => 4,
        };
        self.shape.iter().product::<u64>() * bytes
    }
}

/// The bytes of a safetensors file with this header text and `data` zero bytes.
pub(crate) fn safetensors(header: &[u8], data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// The bytes of a safetensors file with these tensors.
pub(crate) fn shard(tensors: &[Tensor]) -> Vec<u8> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut end = 0;
    for t in tensors {
        let begin = end;
        end += t.size();
        header.insert(
            t.name.clone(),
            json!({"dtype": t.dtype, "shape": t.shape, "data_offsets": [begin, end]}),
        );
    }
    safetensors(Value::Object(header).to_string().as_bytes(), end as usize)
}

fn shared(layer: u64) -> Vec<Tensor> {
    let p = format!("model.layers.{layer}.");
    [
        ("input_layernorm", vec![H]),
        ("self_attn.q_proj", vec![H, H]),
        ("self_attn.k_proj", vec![2, H]),
        ("self_attn.v_proj", vec![2, H]),
        ("self_attn.o_proj", vec![H, H]),
        ("post_attention_layernorm", vec![H]),
    ]
    .into_iter()
    .map(|(name, shape)| tensor(&format!("{p}{name}.weight"), &shape))
    .collect()
}

fn outside() -> Vec<Tensor> {
    vec![
        tensor("model.embed_tokens.weight", &[ROWS, H]),
        tensor("model.norm.weight", &[H]),
        tensor("lm_head.weight", &[ROWS, H]),
    ]
}

/// Tensors of a Mixtral, one per expert and matrix.
pub(crate) fn split_experts(n_expert: u64) -> Vec<Tensor> {
    let mut tensors = outside();
    for layer in 0..2 {
        tensors.extend(shared(layer));
        let p = format!("model.layers.{layer}.block_sparse_moe.");
        tensors.push(tensor(&format!("{p}gate.weight"), &[n_expert, H]));
        for e in 0..n_expert {
            for (matrix, shape) in [("w1", [F, H]), ("w2", [H, F]), ("w3", [F, H])] {
                tensors.push(tensor(&format!("{p}experts.{e}.{matrix}.weight"), &shape));
            }
        }
    }
    tensors
}

/// Tensors of a Mixtral with fused experts.
pub(crate) fn fused_experts(n_expert: u64) -> Vec<Tensor> {
    let mut tensors = outside();
    for layer in 0..2 {
        tensors.extend(shared(layer));
        let p = format!("model.layers.{layer}.mlp.");
        tensors.push(tensor(&format!("{p}gate.weight"), &[n_expert, H]));
        tensors.push(tensor(&format!("{p}experts.gate_up_proj"), &[n_expert, 2 * F, H]));
        tensors.push(tensor(&format!("{p}experts.down_proj"), &[n_expert, H, F]));
    }
    tensors
}

/// Tensors of a Llama.
pub(crate) fn dense() -> Vec<Tensor> {
    let mut tensors = outside();
    for layer in 0..2 {
        tensors.extend(shared(layer));
        for (matrix, shape) in [("gate_proj", [F, H]), ("up_proj", [F, H]), ("down_proj", [H, F])] {
            tensors.push(tensor(&format!("model.layers.{layer}.mlp.{matrix}.weight"), &shape));
        }
    }
    tensors
}

/// A checkpoint directory that is removed in the end.
pub(crate) struct Fixture {
    folder: TempDir,
    pub(crate) config: Value,
}

impl Fixture {
    /// A Mixtral of 2 experts with a SentencePiece vocabulary and no weights yet.
    pub(crate) fn empty() -> Fixture {
        let config = json!({
            "architectures": ["MixtralForCausalLM"], "hidden_size": H, "intermediate_size": F,
            "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2, "num_local_experts": 2,
            "max_position_embeddings": 64, "vocab_size": ROWS, "bos_token_id": 1, "eos_token_id": 2,
        });
        let fixture = Fixture { folder: tempfile::tempdir().unwrap(), config };
        fixture.write("tokenizer.model", &testing::proto_of(&testing::small_pieces()));
        fixture
    }

    pub(crate) fn new(tensors: &[Tensor]) -> Fixture {
        let fixture = Fixture::empty();
        fixture.write("model.safetensors", &shard(tensors));
        fixture
    }

    pub(crate) fn mixtral() -> Fixture {
        Fixture::new(&split_experts(2))
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.file(name), bytes).unwrap();
    }

    pub(crate) fn write_json(&self, name: &str, value: &Value) {
        self.write(name, value.to_string().as_bytes());
    }

    pub(crate) fn set(&mut self, key: &str, value: Value) {
        self.config[key] = value;
    }

    pub(crate) fn open(&self) -> Result<Checkpoint> {
        self.open_with(&OpenOptions::default())
    }

    pub(crate) fn open_with(&self, options: &OpenOptions) -> Result<Checkpoint> {
        self.write_json("config.json", &self.config);
        Checkpoint::open_with(self.path(), options)
    }

    /// What is said about the checkpoint, with the folder's name taken out.
    pub(crate) fn error(&self) -> String {
        self.shorten(&self.open().map(|_| "no error").unwrap_err())
    }

    pub(crate) fn shorten(&self, error: &Error) -> String {
        error
            .to_string()
            .replace(&format!("{}/", self.path().display()), "")
            .replace(&self.path().display().to_string(), ".")
    }

    /// The warnings, with the folder's name taken out.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let checkpoint = self.open().unwrap_or_else(|e| panic!("{e}"));
        let folder = format!("{}/", self.path().display());
        checkpoint.warnings().iter().map(|w| w.replace(&folder, "")).collect()
    }
}
