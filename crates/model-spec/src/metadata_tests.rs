//! A model that is right, and every way one number of it can be wrong.

use super::*;
use crate::RopeScaling;

/// Metadata of a small Mixtral.
fn mixtral() -> Metadata {
    let mut m = Metadata::new();
    m.insert(keys::GENERAL_ARCHITECTURE, "llama");
    m.insert(keys::BLOCK_COUNT, 4u32);
    m.insert(keys::CONTEXT_LENGTH, 32768u32);
    m.insert(keys::EMBEDDING_LENGTH, 512u32);
    m.insert(keys::FEED_FORWARD_LENGTH, 1024u32);
    m.insert(keys::HEAD_COUNT, 8u32);
    m.insert(keys::HEAD_COUNT_KV, 2u32);
    m.insert(keys::ROPE_FREQ_BASE, 1e6f32);
    m.insert(keys::LAYER_NORM_RMS_EPSILON, 1e-5f32);
    m.insert(keys::EXPERT_COUNT, 4u32);
    m.insert(keys::EXPERT_USED_COUNT, 2u32);
    m.insert(keys::VOCAB_SIZE, 3u32);
    m.insert(keys::ROPE_DIMENSION_COUNT, 64u32);
    m.insert(keys::TOKENIZER_TOKENS, vec!["<unk>".to_owned(), "a".to_owned(), "b".to_owned()]);
    m.insert(keys::TOKENIZER_SCORES, vec![0f32; 3]);
    m.insert(keys::TOKENIZER_TOKEN_TYPE, vec![1i32; 3]);
    m.insert(keys::TOKENIZER_BOS_ID, 1u32);
    m
}

/// The message for `mixtral` with one value changed.
fn message(key: &str, value: impl Into<Value>) -> String {
    let mut m = mixtral();
    m.insert(key, value.into());
    HyperParams::from_metadata(&m).expect_err(key).to_string()
}

#[test]
fn a_sound_model_is_read_whole_and_written_back() {
    let h = HyperParams::from_metadata(&mixtral()).unwrap();
    assert_eq!((h.n_layer, h.n_embd, h.n_ff, h.n_vocab), (4, 512, 1024, 3));
    assert_eq!((h.n_head, h.n_head_kv, h.head_dim_k, h.head_dim_v, h.n_rot), (8, 2, 64, 64, 64));
    assert_eq!((h.n_expert, h.n_expert_used, h.n_ctx_train), (4, 2, 32768));
    assert_eq!(h.rope, Rope { freq_base: 1e6, scaling: RopeScaling::None });
    assert!(h.is_moe() && !h.head_dim_stated);

    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        orig_ctx: 8192,
        ext_factor: 0.5,
        attn_factor: 1.0,
        beta_fast: 16.0,
        beta_slow: 1.0,
    };
    for scaling in [RopeScaling::None, RopeScaling::Linear { factor: 2.0 }, yarn] {
        let varied = HyperParams {
            rope: Rope { freq_base: 5e5, scaling },
            sliding_window: Some(4096),
            head_dim_stated: true,
            ..h.clone()
        };
        let mut m = Metadata::new();
        m.insert(keys::GENERAL_ARCHITECTURE, "llama");
        varied.write_metadata(&mut m);
        assert_eq!(HyperParams::from_metadata(&m).unwrap(), varied);
    }
}

#[test]
fn what_may_be_left_out_has_the_usual_value() {
    let mut m = mixtral();
    for key in [
        keys::HEAD_COUNT_KV,
        keys::ROPE_FREQ_BASE,
        keys::EXPERT_COUNT,
        keys::EXPERT_USED_COUNT,
        keys::VOCAB_SIZE,
        keys::ROPE_DIMENSION_COUNT,
    ] {
        m.remove(key);
    }
    let h = HyperParams::from_metadata(&m).unwrap();
    assert_eq!((h.n_head_kv, h.n_expert, h.n_expert_used, h.n_vocab, h.n_rot), (8, 0, 0, 3, 64));
    assert_eq!(h.rope.freq_base, 10000.0);
}

#[test]
fn missing_keys_are_named() {
    for key in [
        keys::GENERAL_ARCHITECTURE,
        keys::BLOCK_COUNT,
        keys::CONTEXT_LENGTH,
        keys::EMBEDDING_LENGTH,
        keys::FEED_FORWARD_LENGTH,
        keys::HEAD_COUNT,
        keys::LAYER_NORM_RMS_EPSILON,
    ] {
        let mut m = mixtral();
        m.remove(key);
        let text = HyperParams::from_metadata(&m).unwrap_err().to_string();
        assert!(text.starts_with(key), "{text}");
    }
    let mut m = mixtral();
    m.remove(keys::VOCAB_SIZE);
    m.remove(keys::TOKENIZER_TOKENS);
    assert!(HyperParams::from_metadata(&m).unwrap_err().to_string().starts_with(keys::VOCAB_SIZE));
}

#[test]
fn errors_name_the_file() {
    let text = HyperParams::from_metadata(&Metadata::new()).unwrap_err().in_file("a.gguf").to_string();
    assert!(text.starts_with("a.gguf: general.architecture: found "), "{text}");
}

#[test]
fn unknown_architecture() {
    let text = message(keys::GENERAL_ARCHITECTURE, "qwen2");
    assert!(text.contains("\"qwen2\"") && text.contains("\"llama\""), "{text}");
}

#[test]
fn keys_of_a_wrong_type() {
    for key in [keys::BLOCK_COUNT, keys::EXPERT_COUNT, keys::ROPE_FREQ_BASE, keys::LAYER_NORM_RMS_EPSILON] {
        let text = message(key, "4");
        assert!(text.contains(key), "{text}");
    }
    assert!(message(keys::GENERAL_ARCHITECTURE, 1u32).contains(keys::GENERAL_ARCHITECTURE));
    assert!(message(keys::BLOCK_COUNT, -1i32).contains(keys::BLOCK_COUNT));
    assert!(message(keys::TOKENIZER_TOKENS, 1u32).contains(keys::TOKENIZER_TOKENS));
    assert!(message(keys::TOKENIZER_BOS_ID, "1").contains(keys::TOKENIZER_BOS_ID));
}

#[test]
fn heads_zero_or_not_dividing_the_width() {
    for n in [0u32, 7, 513, u32::MAX] {
        assert!(message(keys::HEAD_COUNT, n).starts_with("llama.attention.head_count: found "), "{n}");
    }
    for n in [0u32, 3, 16, u32::MAX] {
        assert!(message(keys::HEAD_COUNT_KV, n).starts_with("llama.attention.head_count_kv: found "), "{n}");
    }
    assert!(message(keys::KEY_LENGTH, 0u32).starts_with("llama.attention.key_length: found 0"));
    assert!(message(keys::VALUE_LENGTH, u32::MAX).starts_with("llama.attention.value_length"));
    for n in [0u32, 3, 66, u32::MAX] {
        assert!(message(keys::ROPE_DIMENSION_COUNT, n).starts_with("llama.rope.dimension_count"), "{n}");
    }
}

#[test]
fn block_count_zero_or_all_ones() {
    assert!(message(keys::BLOCK_COUNT, 0u32).starts_with("llama.block_count: found 0, expected 1 to 512"));
    assert!(message(keys::BLOCK_COUNT, u32::MAX).starts_with("llama.block_count: found 4294967295"));
}

#[test]
fn widths_zero_or_all_ones() {
    for key in [keys::EMBEDDING_LENGTH, keys::FEED_FORWARD_LENGTH, keys::CONTEXT_LENGTH] {
        for n in [0u32, u32::MAX] {
            assert!(message(key, n).starts_with("llama."), "{key} {n}");
        }
    }
}

#[test]
fn experts_zero_or_1025_or_fewer_than_used() {
    assert!(message(keys::EXPERT_COUNT, 0u32).starts_with("llama.expert_used_count: found 2, expected 0"));
    assert!(message(keys::EXPERT_COUNT, 1025u32).starts_with("llama.expert_count: found 1025"));
    assert!(message(keys::EXPERT_COUNT, u32::MAX).starts_with("llama.expert_count: found "));
    assert!(message(keys::EXPERT_COUNT, 1u32).starts_with("llama.expert_used_count: found 2, expected 1 to"));
    assert!(message(keys::EXPERT_USED_COUNT, 5u32).starts_with("llama.expert_used_count: found 5"));
    assert!(message(keys::EXPERT_USED_COUNT, 0u32).starts_with("llama.expert_used_count: found 0"));
}

#[test]
fn epsilon_or_rope_base_zero_negative_or_not_a_number() {
    for value in [0.0f32, -1.0, f32::NAN, f32::INFINITY] {
        let text = message(keys::LAYER_NORM_RMS_EPSILON, value);
        assert!(text.starts_with("llama.attention.layer_norm_rms_epsilon: found "), "{text}");
        let text = message(keys::ROPE_FREQ_BASE, value);
        assert!(text.starts_with("llama.rope.freq_base: found "), "{text}");
    }
}

#[test]
fn rope_scaling_that_cannot_be() {
    for value in [-1.0f32, f32::NAN, f32::INFINITY] {
        assert!(
            message(keys::ROPE_SCALING_FACTOR, value).starts_with("llama.rope.scaling.factor"),
            "{value}"
        );
    }
    let mut m = mixtral();
    m.insert(keys::ROPE_SCALING_FACTOR, 2.0f32);
    m.insert(keys::ROPE_SCALING_TYPE, "longrope");
    let text = HyperParams::from_metadata(&m).unwrap_err().to_string();
    assert!(text.starts_with("llama.rope.scaling.type: found \"longrope\""), "{text}");
}

#[test]
fn special_token_id_at_or_beyond_the_vocabulary() {
    for key in
        [keys::TOKENIZER_BOS_ID, keys::TOKENIZER_EOS_ID, keys::TOKENIZER_EOT_ID, keys::TOKENIZER_PAD_ID]
    {
        for id in [3u32, u32::MAX] {
            assert!(message(key, id).starts_with(&format!("{key}: found {id}")), "{key}");
        }
    }
}

#[test]
fn vocabulary_arrays_of_different_lengths() {
    for n in [0usize, 2, 4] {
        let text = message(keys::TOKENIZER_SCORES, vec![0f32; n]);
        assert!(text.starts_with(&format!("tokenizer.ggml.scores: found {n} entries, expected 3")), "{text}");
        let text = message(keys::TOKENIZER_TOKEN_TYPE, vec![1i32; n]);
        assert!(text.starts_with(&format!("tokenizer.ggml.token_type: found {n} entries")), "{text}");
    }
    assert!(message(keys::TOKENIZER_TOKENS, vec!["a".to_owned()]).starts_with("tokenizer.ggml.scores"));
}
