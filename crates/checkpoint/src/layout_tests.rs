use model_spec::{TensorId, TensorKind, TensorRole};
use serde_json::json;

use crate::OpenOptions;
use crate::fixture::{Fixture, ROWS, Tensor, dense, fused_experts, split_experts, tensor};

fn without(mut tensors: Vec<Tensor>, names: &[&str]) -> Fixture {
    tensors.retain(|t| !names.contains(&t.name.as_str()));
    Fixture::new(&tensors)
}

fn with(tensor: Tensor) -> Fixture {
    let mut tensors = split_experts(2);
    tensors.push(tensor);
    Fixture::new(&tensors)
}

fn changed(name: &str, change: impl FnOnce(&mut Tensor)) -> Fixture {
    let mut tensors = split_experts(2);
    change(tensors.iter_mut().find(|t| t.name == name).unwrap());
    Fixture::new(&tensors)
}

#[test]
fn any_number_of_experts_in_both_layouts() {
    for n in [2, 3, 4, 6, 8, 16] {
        let mut split = Fixture::new(&split_experts(n));
        let mut fused = Fixture::new(&fused_experts(n));
        split.set("num_local_experts", json!(n));
        fused.set("num_local_experts", json!(n));
        let (split, fused) = (split.open().unwrap(), fused.open().unwrap());
        assert_eq!(split.weights().len() as u64, 3 + 2 * (7 + 3 * n));
        for (id, weight) in split.weights() {
            let other = fused.weight(id).unwrap();
            assert_eq!((weight.rows, weight.cols, weight.size), (other.rows, other.cols, other.size));
        }
        assert_eq!(split.weights().len(), fused.weights().len());
    }
}

#[test]
fn fused_slices_are_gate_rows_then_up_rows_of_each_expert() {
    let checkpoint = Fixture::new(&fused_experts(2)).open().unwrap();
    let at = |role, expert| checkpoint.weight(&TensorId::of_expert(role, 1, expert)).unwrap();
    // 6 rows of 4 floats each.
    let gate = at(TensorRole::FfnGate, 0).offset;
    assert_eq!(at(TensorRole::FfnUp, 0).offset, gate + 96);
    assert_eq!(at(TensorRole::FfnGate, 1).offset, gate + 192);
    assert_eq!(at(TensorRole::FfnUp, 1).offset, gate + 288);
    let down = at(TensorRole::FfnDown, 0);
    assert_eq!((down.rows, down.cols, down.size), (4, 6, 96));
    assert_eq!(at(TensorRole::FfnDown, 1).offset, down.offset + 96);
    assert_eq!(down.source_name, "model.layers.1.mlp.experts.down_proj");
}

#[test]
fn weights_come_by_shard_and_source_name() {
    let checkpoint = Fixture::new(&fused_experts(2)).open().unwrap();
    let names: Vec<&str> = checkpoint.weights().map(|(_, w)| w.source_name.as_str()).collect();
    assert_eq!(&names[..2], ["lm_head.weight", "model.embed_tokens.weight"]);
    assert!(names.is_sorted());
}

#[test]
fn a_dense_llama() {
    let mut fixture = Fixture::new(&dense());
    fixture.set("architectures", json!(["LlamaForCausalLM"]));
    let checkpoint = fixture.open().unwrap();
    assert_eq!(checkpoint.hparams().n_expert, 0);
    let up = checkpoint.weight(&TensorId::in_layer(TensorRole::FfnUp, 0)).unwrap();
    assert_eq!((up.rows, up.cols), (6, 4));
    let norm = checkpoint.weight(&TensorId::global(TensorRole::OutputNorm)).unwrap();
    assert_eq!((norm.rows, norm.cols, norm.size), (1, 4, 16));
}

#[test]
fn tied_embeddings_need_no_output_matrix() {
    let mut fixture = without(split_experts(2), &["lm_head.weight"]);
    assert!(fixture.error().contains("missing \"lm_head.weight\""), "{}", fixture.error());
    fixture.set("tie_word_embeddings", json!(true));
    assert!(fixture.open().unwrap().weight(&TensorId::global(TensorRole::Output)).is_none());
}

#[test]
fn attention_biases_where_the_configuration_has_them() {
    let mut tensors = split_experts(2);
    for layer in 0..2 {
        for (name, rows) in [("q", 4), ("k", 2), ("v", 2), ("o", 4)] {
            tensors.push(tensor(&format!("model.layers.{layer}.self_attn.{name}_proj.bias"), &[rows]));
        }
    }
    let mut fixture = Fixture::new(&tensors);
    assert!(fixture.error().contains("8 unknown tensors"), "{}", fixture.error());
    fixture.set("attention_bias", json!(true));
    let checkpoint = fixture.open().unwrap();
    let id = TensorId { kind: TensorKind::Bias, ..TensorId::in_layer(TensorRole::AttnK, 1) };
    assert_eq!(checkpoint.weight(&id).unwrap().cols, 2);
    let mut without = Fixture::new(&split_experts(2));
    without.set("attention_bias", json!(true));
    assert!(without.error().contains("model.layers.0.self_attn.q_proj.bias"), "{}", without.error());
}

#[test]
fn one_expert_of_one_layer_missing() {
    let p = "model.layers.1.block_sparse_moe.experts.1.";
    let names = [format!("{p}w1.weight"), format!("{p}w2.weight"), format!("{p}w3.weight")];
    let fixture = without(split_experts(2), &names.each_ref().map(String::as_str));
    let text = fixture.error();
    assert_eq!(
        text,
        format!(".: 3 of 29 tensors: missing \"{p}w1.weight\", \"{p}w2.weight\", \"{p}w3.weight\"")
    );
}

#[test]
fn a_fused_tensor_missing_is_named_once() {
    let fixture = without(
        fused_experts(2),
        &["model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.gate.weight"],
    );
    let text = fixture.error();
    assert!(
        text.contains(
            "missing \"model.layers.0.mlp.gate.weight\", \"model.layers.0.mlp.experts.gate_up_proj\""
        ),
        "{text}"
    );
}

#[test]
fn everything_missing_is_bounded() {
    let mut fixture = without(split_experts(2), &[]);
    fixture.set("num_hidden_layers", json!(512));
    fixture.set("num_local_experts", json!(1024));
    fixture.write(
        "model.safetensors",
        &crate::fixture::shard(&[tensor("model.embed_tokens.weight", &[ROWS, 4])]),
    );
    let text = fixture.error();
    assert!(text.contains("and 1576434 more") && text.len() < 2000, "{text}");
}

#[test]
fn shape_against_config() {
    let name = "model.layers.0.self_attn.k_proj.weight";
    let text = changed(name, |t| t.shape = vec![4, 4]).error();
    assert_eq!(
        text,
        format!("model.safetensors: tensor \"{name}\": shape: found [4, 4], expected [2, 4] by config.json")
    );
    // The same number of elements is not the same shape.
    for shape in [vec![6, 4, 1], vec![4, 6], vec![24]] {
        let name = "model.layers.0.block_sparse_moe.experts.0.w1.weight";
        assert!(changed(name, |t| t.shape = shape).error().contains("expected [6, 4]"));
    }
    let mut transposed = fused_experts(2);
    transposed.iter_mut().filter(|t| t.name.ends_with("gate_up_proj")).for_each(|t| t.shape.swap(1, 2));
    assert!(Fixture::new(&transposed).error().contains("found [2, 4, 12], expected [2, 12, 4]"));
}

#[test]
fn unusable_dtypes_are_named() {
    for dtype in ["F64", "I8", "F8_E4M3"] {
        let text = changed("model.layers.0.self_attn.q_proj.weight", |t| t.dtype = dtype).error();
        assert!(
            text.contains(&format!("q_proj.weight\": dtype: found {dtype}, expected F32, F16 or BF16")),
            "{text}"
        );
    }
}

#[test]
fn every_float_type_is_taken_and_a_wrong_dtype_said() {
    for (dtype, stated) in [("F32", "bfloat16"), ("F16", "float32"), ("BF16", "float16")] {
        let mut tensors = split_experts(2);
        tensors.iter_mut().for_each(|t| t.dtype = dtype);
        let mut fixture = Fixture::new(&tensors);
        assert_eq!(fixture.open().unwrap().weights().next().unwrap().1.dtype.name(), dtype);
        fixture.set("torch_dtype", json!(stated));
        assert!(fixture.warnings()[0].contains(&format!("dtype: found {stated}, expected {dtype}")));
    }
}

#[test]
fn an_unknown_extra_tensor() {
    let name = "model.layers.0.self_attn.q_norm.weight";
    let fixture = with(tensor(name, &[2]));
    let text = fixture.error();
    assert_eq!(text, format!(".: 1 unknown tensors: found \"{name}\", expected only those of a Mixtral"));
    let options = OpenOptions { ignore_unknown_tensors: true, ..OpenOptions::default() };
    let checkpoint = fixture.open_with(&options).unwrap();
    assert!(checkpoint.warnings()[0].contains(name), "{:?}", checkpoint.warnings());
}

#[test]
fn harmless_extra_tensors_are_left_out() {
    let fixture = with(tensor("model.layers.0.self_attn.rotary_emb.inv_freq", &[1]));
    assert_eq!(fixture.open().unwrap().warnings(), [] as [String; 0]);
}

#[test]
fn more_experts_than_the_configuration_counts() {
    let fixture = Fixture::new(&split_experts(3));
    // The router tells first where its shape does not fit.
    assert!(
        fixture.error().contains("block_sparse_moe.gate.weight\": shape: found [3, 4]"),
        "{}",
        fixture.error()
    );
    let extra = "model.layers.0.block_sparse_moe.experts.2.w1.weight";
    let text = with(tensor(extra, &[6, 4])).error();
    assert!(text.contains("config.json: num_local_experts: found 2, expected more than 2"), "{text}");
}

#[test]
fn more_layers_than_the_configuration_counts() {
    let mut fixture = Fixture::mixtral();
    fixture.set("num_hidden_layers", json!(1));
    let text = fixture.error();
    assert!(text.contains("config.json: num_hidden_layers: found 1, expected more than 1"), "{text}");
}

#[test]
fn both_layouts_at_once() {
    let text = with(tensor("model.layers.0.mlp.experts.down_proj", &[2, 4, 6])).error();
    assert!(text.contains("found the weights that"), "{text}");
}

#[test]
fn expert_numbers_are_canonical() {
    for expert in ["01", "+1", "4294967296", "-1", ""] {
        let text =
            with(tensor(&format!("model.layers.0.block_sparse_moe.experts.{expert}.w1.weight"), &[6, 4]))
                .error();
        assert!(text.contains("unknown tensors"), "{text}");
    }
}

#[test]
fn an_embedding_that_is_none() {
    for shape in [vec![], vec![265], vec![0, 4], vec![265, 4, 1]] {
        let text = changed("model.embed_tokens.weight", |t| t.shape = shape).error();
        assert!(text.contains("expected [vocab_size, hidden_size]"), "{text}");
    }
}
