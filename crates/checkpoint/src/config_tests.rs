use super::*;

fn read(text: &str) -> Result<Config> {
    let file = Path::new("config.json");
    Config::read(file, crate::json::parse_object(file, text.as_bytes())?, &mut Vec::new())
}

fn with(changes: &[(&str, &str)]) -> String {
    let mut members = vec![
        ("architectures", r#"["MixtralForCausalLM"]"#),
        ("hidden_size", "512"),
        ("intermediate_size", "1024"),
        ("num_attention_heads", "8"),
        ("num_hidden_layers", "4"),
        ("num_key_value_heads", "2"),
        ("num_local_experts", "4"),
        ("vocab_size", "32000"),
    ];
    for change in changes {
        members.retain(|m| m.0 != change.0);
        if !change.1.is_empty() {
            members.push(*change);
        }
    }
    let members: Vec<String> = members.iter().map(|(k, v)| format!("\"{k}\": {v}")).collect();
    format!("{{{}}}", members.join(", "))
}

fn message(changes: &[(&str, &str)]) -> String {
    read(&with(changes)).unwrap_err().to_string()
}

#[test]
fn mixtral_defaults_are_those_of_transformers() {
    let config = read(&with(&[("num_key_value_heads", "")])).unwrap();
    let h = &config.hparams;
    assert_eq!((h.n_expert, h.n_expert_used), (4, 2));
    assert_eq!((h.n_head_kv, h.head_dim_k, h.n_rot, h.head_dim_stated), (8, 64, 64, false));
    assert_eq!((h.n_ctx_train, h.rms_eps, h.rope.freq_base), (131_072, 1e-5, 1e6));
    assert_eq!(h.sliding_window, None);
    h.validate().unwrap();
}

#[test]
fn dense_families_have_no_experts_and_state_head_dim() {
    for (name, n_ctx, window) in
        [("LlamaForCausalLM", 2048, None), ("MistralForCausalLM", 131_072, Some(4096))]
    {
        let config = read(&with(&[("architectures", &format!("[\"{name}\"]"))])).unwrap();
        let h = &config.hparams;
        assert_eq!((h.n_expert, h.n_expert_used, h.head_dim_stated), (0, 0, true), "{name}");
        assert_eq!((h.n_ctx_train, h.sliding_window, h.rms_eps), (n_ctx, window, 1e-6), "{name}");
    }
}

#[test]
fn every_expert_count_in_use_is_taken_under_both_names() {
    for n in [2, 3, 4, 6, 8, 16] {
        let n_text = n.to_string();
        for key in ["num_local_experts", "num_experts"] {
            let config = read(&with(&[("num_local_experts", ""), (key, &n_text)])).unwrap();
            assert_eq!(config.hparams.n_expert, n);
        }
    }
    // One expert of which two would be used is what no key says; the default follows the count.
    assert_eq!(read(&with(&[("num_local_experts", "1")])).unwrap().hparams.n_expert_used, 1);
}

#[test]
fn dtype_under_both_names() {
    for key in ["dtype", "torch_dtype"] {
        assert_eq!(read(&with(&[(key, "\"bfloat16\"")])).unwrap().dtype.as_deref(), Some("bfloat16"));
    }
}

#[test]
fn null_means_as_usual() {
    let config = read(&with(&[
        ("head_dim", "null"),
        ("sliding_window", "null"),
        ("rope_scaling", "null"),
        ("num_key_value_heads", "null"),
        ("architectures", r#"["MistralForCausalLM"]"#),
    ]))
    .unwrap();
    assert_eq!(config.hparams.head_dim_k, 64);
    assert_eq!(config.hparams.sliding_window, None);
    assert_eq!(config.hparams.n_head_kv, 8);
}

#[test]
fn model_type_stands_in_for_missing_architectures() {
    let config = read(&with(&[("architectures", ""), ("model_type", "\"mixtral\"")])).unwrap();
    assert_eq!(config.family, Family::Mixtral);
}

#[test]
fn another_architecture_lists_the_supported() {
    let text = message(&[("architectures", r#"["Qwen2MoeForCausalLM"]"#)]);
    assert!(text.contains("Qwen2MoeForCausalLM") && text.contains("MixtralForCausalLM"), "{text}");
    let text = message(&[("architectures", ""), ("model_type", "\"gemma\"")]);
    assert!(text.contains("gemma") && text.contains("mixtral"), "{text}");
}

#[test]
fn strings_for_numbers_are_refused() {
    let text = message(&[("hidden_size", "\"512\"")]);
    assert_eq!(text, "config.json: hidden_size: found \"512\", expected a whole number from 1 to 16777216");
}

#[test]
fn numbers_out_of_range_are_refused() {
    for (key, value) in [
        ("hidden_size", "-1"),
        ("hidden_size", "0"),
        ("hidden_size", "512.5"),
        ("num_hidden_layers", "4294967295"),
        ("num_hidden_layers", "18446744073709551616"),
        ("num_local_experts", "1025"),
        ("num_experts_per_tok", "5"),
        ("num_attention_heads", "7"),
        ("num_key_value_heads", "3"),
        ("num_key_value_heads", "16"),
        ("head_dim", "63"),
        ("rms_norm_eps", "0"),
        ("rms_norm_eps", "-1e-5"),
        ("rms_norm_eps", "1e300"),
        ("max_position_embeddings", "0"),
        ("vocab_size", "-32000"),
        ("tie_word_embeddings", "\"yes\""),
        ("hidden_act", "\"gelu\""),
        ("quantization_config", r#"{"quant_method": "gptq"}"#),
    ] {
        let text = message(&[(key, value)]);
        assert!(text.starts_with(&format!("config.json: {key}: found ")), "{key} = {value}: {text}");
    }
}

#[test]
fn a_number_beyond_f64_is_refused() {
    let text = message(&[("rms_norm_eps", "1e400")]);
    assert!(text.contains("out of range"), "{text}");
}

#[test]
fn missing_keys_are_named() {
    for key in
        ["hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_local_experts"]
    {
        let text = message(&[(key, "")]);
        assert!(text.contains(&format!("{key}: found no such key")), "{text}");
    }
}

#[test]
fn a_malformed_config_is_located() {
    let text = read("{\"hidden_size\": 5,}").unwrap_err().to_string();
    assert!(text.contains("line 1 column 19"), "{text}");
    let text = read("[]").unwrap_err().to_string();
    assert!(text.contains("expected an object"), "{text}");
}
