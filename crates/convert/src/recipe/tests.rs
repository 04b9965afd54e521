//! The recipes against what llama.cpp is known to choose, and the rules that go before them.

use std::collections::HashMap;

use super::*;
use model_spec::{Architecture, Rope, RopeScaling};

fn model(n_layer: u32, n_expert: u32) -> HyperParams {
    HyperParams {
        arch: Architecture::Llama,
        n_layer,
        n_embd: 4096,
        n_ff: 14336,
        n_head: 32,
        n_head_kv: 8,
        head_dim_k: 128,
        head_dim_v: 128,
        head_dim_stated: false,
        n_rot: 128,
        n_vocab: 32000,
        n_ctx_train: 32768,
        n_expert,
        n_expert_used: n_expert.min(2),
        rms_eps: 1e-5,
        rope: Rope { freq_base: 10000.0, scaling: RopeScaling::None },
        sliding_window: None,
    }
}

/// The types of all tensors of such a model with stacked experts.
fn types_with(
    file_type: FileType,
    h: &HyperParams,
    tied: bool,
    rules: &Rules,
) -> HashMap<TensorId, TensorType> {
    let in_layers = |role: TensorRole| (0..h.n_layer).map(move |layer| TensorId::in_layer(role, layer));
    let belongs = |role: &TensorRole| match h.n_expert {
        0 => role.unstacked().is_none() && *role != TensorRole::FfnGateInp,
        _ => !role.is_ffn_projection(),
    };
    let ids = TensorRole::all().filter(belongs).flat_map(|role| match role.is_per_layer() {
        true => in_layers(role).collect(),
        false => vec![TensorId::global(role)],
    });
    let tensors: Vec<Untyped> = ids
        .filter(|id| !(tied && id.role == TensorRole::Output))
        .map(|id| Untyped { id, ne: id.ne(h), kept: BF16 })
        .collect();
    let recipe = Recipe { file_type, hparams: h, tied, has_importance: false, rules, chosen: None };
    let types = recipe.types(&tensors);
    tensors.into_iter().map(|tensor| tensor.id).zip(types).collect()
}

fn types(file_type: FileType, h: &HyperParams) -> HashMap<TensorId, TensorType> {
    types_with(file_type, h, false, &Rules::default())
}

fn layers_with(ty: TensorType, role: TensorRole, file_type: FileType, h: &HyperParams) -> Vec<u32> {
    let types = types(file_type, h);
    (0..h.n_layer).filter(|layer| types[&TensorId::in_layer(role, *layer)] == ty).collect()
}

/// The layers that published Q4_K_M files of 32-layer models have in Q6_K.
const MORE_BITS_OF_32: &[u32] = &[0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31];

#[test]
fn a_third_of_the_layers_and_both_ends_get_more_bits() {
    let h = model(32, 4);
    for role in [TensorRole::AttnV, TensorRole::FfnDownExps] {
        assert_eq!(layers_with(Q6_K, role, FileType::Q4_K_M, &h), MORE_BITS_OF_32);
        assert_eq!(layers_with(Q6_K, role, FileType::Q5_K_M, &h), MORE_BITS_OF_32);
    }
    assert_eq!(layers_with(Q5_K, TensorRole::AttnV, FileType::Q4_K_S, &h), [0, 1, 2, 3]);
    assert_eq!(layers_with(Q5_K, TensorRole::FfnDownExps, FileType::Q4_K_S, &h), [0, 1, 2, 3]);
    assert!(layers_with(Q6_K, TensorRole::FfnUpExps, FileType::Q4_K_M, &h).is_empty());
}

#[test]
fn exactly_eight_experts_change_attention() {
    let type_of = |n_expert: u32, role: TensorRole, ft: FileType| {
        types(ft, &model(32, n_expert))[&TensorId::in_layer(role, 5)]
    };
    for n in [0, 2, 3, 4, 6, 16] {
        assert_eq!(type_of(n, TensorRole::AttnV, FileType::Q4_K_M), Q4_K, "{n} experts");
        assert_eq!(type_of(n, TensorRole::AttnK, FileType::Q4_K_M), Q4_K, "{n} experts");
        assert_eq!(type_of(n, TensorRole::AttnOutput, FileType::Q4_K_M), Q4_K, "{n} experts");
    }
    assert_eq!(type_of(8, TensorRole::AttnV, FileType::Q4_K_M), Q8_0);
    assert_eq!(type_of(8, TensorRole::AttnK, FileType::Q4_K_M), Q8_0);
    assert_eq!(type_of(8, TensorRole::AttnOutput, FileType::Q4_K_M), Q5_K);
    assert_eq!(type_of(8, TensorRole::AttnQ, FileType::Q4_K_M), Q4_K);
    assert_eq!(type_of(8, TensorRole::AttnOutput, FileType::Q5_K_M), Q5_K);
    assert_eq!(type_of(8, TensorRole::AttnOutput, FileType::Q6_K), Q6_K);
}

#[test]
fn the_output_matrix_or_the_tied_embeddings_get_q6_k() {
    let h = model(32, 4);
    let (output, embeddings) =
        (TensorId::global(TensorRole::Output), TensorId::global(TensorRole::TokenEmbd));
    let tied = |ft| types_with(ft, &h, true, &Rules::default())[&embeddings];
    for (ft, expected) in [(FileType::Q4_K_M, Q6_K), (FileType::Q4_0, Q6_K), (FileType::Q8_0, Q8_0)] {
        assert_eq!(types(ft, &h)[&output], expected);
        assert_eq!(tied(ft), expected);
    }
    assert_eq!(types(FileType::Q4_K_M, &h)[&embeddings], Q4_K);
    assert_eq!(tied(FileType::BF16), BF16);
}

#[test]
fn rows_that_blocks_do_not_divide_fall_back() {
    assert_eq!(fit_to_row(Q4_K, 256), Q4_K);
    assert_eq!(fit_to_row(Q4_K, 96), Q5_0);
    assert_eq!(fit_to_row(Q5_K, 96), Q5_1);
    assert_eq!(fit_to_row(Q6_K, 96), Q8_0);
    assert_eq!(fit_to_row(Q3_K, 96), Q4_0);
    assert_eq!(fit_to_row(Q2_K, 96), Q4_0);
    assert_eq!(fit_to_row(Q8_0, 100), F16);
    assert_eq!(fit_to_row(Q4_K, 100), F16);
    assert_eq!(fit_to_row(IQ2_XXS, 96), IQ4_NL);
    assert_eq!(fit_to_row(TQ1_0, 96), Q4_0);
    assert_eq!(fit_to_row(MXFP4, 48), F16);
    // An output matrix goes to Q8_0 at once, from any type whose blocks do not fit.
    let h = HyperParams { n_embd: 96, ..model(4, 0) };
    assert_eq!(types(FileType::Q4_K_M, &h)[&TensorId::global(TensorRole::Output)], Q8_0);
}

#[test]
fn vectors_and_the_router_stay_in_f32() {
    let h = model(4, 4);
    for ft in FileType::all() {
        let types = types(ft, &h);
        for role in [TensorRole::AttnNorm, TensorRole::FfnNorm, TensorRole::FfnGateInp] {
            assert_eq!(types[&TensorId::in_layer(role, 0)], F32, "{ft}");
        }
    }
    let bias = TensorId { kind: TensorKind::Bias, ..TensorId::in_layer(TensorRole::AttnQ, 0) };
    assert!(!is_quantizable(&bias, &bias.ne(&h)));
}

fn rule(text: &str) -> TypeRule {
    TypeRule::parse(text, "--tensor-type").unwrap()
}

#[test]
fn the_first_pattern_found_in_a_name_decides() {
    let h = model(32, 4);
    let rules = Rules {
        tensor_types: vec![rule("ATTN_V=q8_0"), rule("blk\\.(?!0\\.).*attn_=iq4_xs"), rule("attn_q=f16")],
        output_type: Some(Q4_K),
        ..Rules::default()
    };
    let types = types_with(FileType::Q4_K_M, &h, false, &rules);
    let of = |role, layer| types[&TensorId::in_layer(role, layer)];
    assert_eq!(of(TensorRole::AttnV, 9), Q8_0);
    assert_eq!((of(TensorRole::AttnQ, 0), of(TensorRole::AttnQ, 1)), (F16, IQ4_XS));
    assert_eq!(of(TensorRole::AttnK, 0), Q4_K);
    assert_eq!(types[&TensorId::global(TensorRole::Output)], Q4_K);
    let names = types.keys().copied();
    assert!(rules.unused(names).is_empty());
    let other = Rules { tensor_types: vec![rule("ffn_up\\.3=q8_0")], ..Rules::default() };
    assert_eq!(other.unused(types.keys().copied()), ["ffn_up\\.3=q8_0"]);
}

#[test]
fn a_tensor_that_a_rule_names_is_not_counted_among_the_layers() {
    // So llama.cpp does: with the first layer's taken away, the count of values is one behind.
    let h = model(32, 4);
    let rules = Rules { tensor_types: vec![rule("blk.0.attn_v=q8_0")], ..Rules::default() };
    let types = types_with(FileType::Q4_K_S, &h, false, &rules);
    let larger = |layer: &u32| types[&TensorId::in_layer(TensorRole::AttnV, *layer)] == Q5_K;
    assert_eq!((0..32).filter(larger).collect::<Vec<_>>(), [1, 2, 3, 4]);
}

#[test]
fn pure_files_have_one_type() {
    let rules = Rules { pure: true, leave_output: true, ..Rules::default() };
    let types = types_with(FileType::Q4_K_M, &model(32, 8), false, &rules);
    assert_eq!(types[&TensorId::global(TensorRole::Output)], BF16);
    let others = types.iter().filter(|(id, _)| id.role != TensorRole::Output);
    assert!(others.clone().all(|(_, ty)| [Q4_K, F32].contains(ty)));
}

#[test]
fn rules_that_make_no_sense_are_refused() {
    for (text, said) in [
        ("attn_v", "--tensor-type: found attn_v, expected PATTERN=TYPE"),
        ("=q8_0", "--tensor-type: found =q8_0, expected PATTERN=TYPE"),
        ("a=", "--tensor-type: found a=, expected PATTERN=TYPE"),
        ("a(=q8_0", "--tensor-type: found a(, expected a regular expression"),
        ("a=q4_k_m", "--tensor-type: found q4_k_m, expected the type of a tensor: f32"),
        ("a=q8_1", "--tensor-type: found q8_1, expected the type of a tensor"),
    ] {
        let error = TypeRule::parse(text, "--tensor-type").unwrap_err().to_string();
        assert!(error.starts_with(said), "{error}");
    }
    let path = std::path::Path::new("types.txt");
    assert_eq!(TypeRule::parse_file(path, "a=q8_0 b=q6_k\n\nc=f32\n").unwrap().len(), 3);
    let error = TypeRule::parse_file(path, "a=q8_0\nb\n").unwrap_err().to_string();
    assert!(error.starts_with("types.txt:2: found b, "), "{error}");
}

#[test]
fn the_table_of_experts_names_layers_experts_and_projections() {
    let path = std::path::Path::new("experts.txt");
    let table = "# a comment\n0-1,3 2 down q8_0\n* 0,2 q6_K # both\n\n* * up iq4_xs\n";
    let table = ExpertTypes::parse(path, table).unwrap();
    let of = |role, layer, expert| table.of(&TensorId::of_expert(role, layer, expert));
    assert_eq!(of(TensorRole::FfnDown, 1, 2), Some(Q8_0));
    assert_eq!(of(TensorRole::FfnDown, 2, 2), Some(Q6_K));
    assert_eq!(of(TensorRole::FfnUp, 3, 2), Some(Q6_K));
    assert_eq!(of(TensorRole::FfnUp, 3, 1), Some(IQ4_XS));
    assert_eq!(of(TensorRole::FfnGate, 3, 1), None);
    assert_eq!(table.of(&TensorId::in_layer(TensorRole::AttnQ, 0)), None);
    table.check(&model(4, 4)).unwrap();
    let said = table.check(&model(3, 4)).unwrap_err().to_string();
    assert_eq!(said, "experts.txt:2: found layer 3, expected less than 3, as many as the model has");
    for (text, said) in [
        ("1 2", "experts.txt:1: found 1 2, expected LAYERS EXPERTS [PROJECTION] TYPE"),
        ("1 2 q4", "experts.txt:1: found q4, expected the type of a tensor"),
        ("3-1 2 q8_0", "experts.txt:1: found 3-1, expected numbers"),
        ("\n1 x q8_0", "experts.txt:2: found x, expected numbers"),
        ("1 1 side q8_0", "experts.txt:1: found side, expected gate, up, down or *"),
    ] {
        let error = ExpertTypes::parse(path, text).unwrap_err().to_string();
        assert!(error.starts_with(said), "{error}");
    }
}
