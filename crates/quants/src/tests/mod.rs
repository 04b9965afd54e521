//! The whole crate against the linked ggml: geometry exactly, quantizing byte for byte at every level that the processor
//! has, dequantizing bit for bit.
//!
//! `PROPTEST_CASES=100000` makes a soak of the properties.

mod oracle;
mod weights;

use proptest::collection::vec;
use proptest::prelude::*;

use crate::{
    Level, TensorType, can_dequantize, can_quantize, dequantize, dequantize_at, quantize, quantize_at,
    quantize_weighted_at, scalar,
};

#[test]
fn geometry_is_that_of_the_linked_ggml() {
    for id in 0..oracle::N_TYPES {
        let theirs = oracle::geometry(id);
        match TensorType::from_id(id) {
            Some(ty) => {
                let ours = oracle::Geometry {
                    name: ty.name().to_lowercase(),
                    block_len: ty.block_len(),
                    block_bytes: ty.block_bytes(),
                    is_quantized: ty.is_quantized(),
                };
                assert_eq!(ours, theirs, "id {id}");
            }
            None => assert_eq!(theirs.block_len, 0, "id {id} is {theirs:?}"),
        }
    }
    assert_eq!(TensorType::ALL.last().map(|ty| ty.id() + 1), Some(oracle::N_TYPES));
}

#[test]
fn every_half_precision_pattern_widens_as_in_ggml() {
    let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for ty in [TensorType::F16, TensorType::BF16] {
        assert_dequantizes_as_ggml(ty, &bytes);
    }
}

#[test]
fn values_around_every_tie_narrow_as_in_ggml() {
    for ty in [TensorType::F16, TensorType::BF16] {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut exact = vec![0.0; 1 << 16];
        dequantize(ty, &bytes, &mut exact).unwrap();
        // Half a step of the narrow type above a value, seen in F32's bits; denormal F16 steps are wider than that.
        let tie = if ty == TensorType::F16 { 1 << 12 } else { 1 << 15 };
        let mut around: Vec<f32> = exact
            .iter()
            .flat_map(|value| [0, 1, tie - 1, tie, tie + 1].map(|ulps| value.to_bits().wrapping_add(ulps)))
            .map(f32::from_bits)
            .collect();
        let denormal_ties = (0..2048).map(|i| i as f32 * 2.0_f32.powi(-25));
        around.extend(denormal_ties.flat_map(|tie| [tie.next_down(), tie, tie.next_up(), -tie]));
        assert_quantizes_as_ggml(ty, &around);
    }
}

#[test]
fn floats_of_every_magnitude_narrow_as_in_ggml() {
    // A prime stride reaches every exponent with a few thousand fractions, NaNs included.
    let all: Vec<f32> = (0..u32::MAX).step_by(4099).map(f32::from_bits).collect();
    for ty in [TensorType::F32, TensorType::F16, TensorType::BF16] {
        assert_quantizes_as_ggml(ty, &all);
    }
}

/// One test for each type, so that a failure names it, and one that no type with a kernel is left out.
macro_rules! stored_as_in_ggml {
    ($($test:ident: $ty:ident;)*) => {
        proptest! {
            $(#[test]
            fn $test(weights in weights::blocks()) {
                assert_quantizes_as_ggml(TensorType::$ty, &weights);
            })*
        }

        #[test]
        fn every_type_that_is_stored_is_tested() {
            let tested = [$(TensorType::$ty),*];
            for &ty in TensorType::ALL {
                assert_eq!(can_quantize(ty), tested.contains(&ty), "{ty}");
            }
        }
    };
}

macro_rules! weighted_as_in_ggml {
    ($($test:ident: $ty:ident;)*) => {
        proptest! {
            $(#[test]
            fn $test((weights, importance) in weights::rows_with_importance()) {
                assert_weighted_as_ggml(TensorType::$ty, &weights, &importance);
            })*
        }

        #[test]
        fn every_type_that_takes_importance_is_tested() {
            let tested = [$(TensorType::$ty),*];
            for &ty in TensorType::ALL {
                assert_eq!(scalar::weighted_quantizer(ty).is_some(), tested.contains(&ty), "{ty}");
            }
        }
    };
}

macro_rules! read_as_in_ggml {
    ($($test:ident: $ty:ident;)*) => {
        proptest! {
            $(#[test]
            fn $test(bytes in vec(any::<u8>(), TensorType::$ty.block_bytes() * 2)) {
                assert_dequantizes_as_ggml(TensorType::$ty, &bytes);
            })*
        }

        #[test]
        fn every_type_that_is_read_is_tested() {
            let tested = [$(TensorType::$ty),*];
            for &ty in TensorType::ALL {
                assert_eq!(can_dequantize(ty), tested.contains(&ty), "{ty}");
            }
        }
    };
}

stored_as_in_ggml! {
    f32_is_stored_as_in_ggml: F32;
    f16_is_stored_as_in_ggml: F16;
    bf16_is_stored_as_in_ggml: BF16;
    q4_0_is_stored_as_in_ggml: Q4_0;
    q4_1_is_stored_as_in_ggml: Q4_1;
    q5_0_is_stored_as_in_ggml: Q5_0;
    q5_1_is_stored_as_in_ggml: Q5_1;
    q8_0_is_stored_as_in_ggml: Q8_0;
    q2_k_is_stored_as_in_ggml: Q2_K;
    q3_k_is_stored_as_in_ggml: Q3_K;
    q4_k_is_stored_as_in_ggml: Q4_K;
    q5_k_is_stored_as_in_ggml: Q5_K;
    q6_k_is_stored_as_in_ggml: Q6_K;
    iq4_nl_is_stored_as_in_ggml: IQ4_NL;
    iq4_xs_is_stored_as_in_ggml: IQ4_XS;
}

weighted_as_in_ggml! {
    f32_is_weighted_as_in_ggml: F32;
    f16_is_weighted_as_in_ggml: F16;
    bf16_is_weighted_as_in_ggml: BF16;
    q4_0_is_weighted_as_in_ggml: Q4_0;
    q4_1_is_weighted_as_in_ggml: Q4_1;
    q5_0_is_weighted_as_in_ggml: Q5_0;
    q5_1_is_weighted_as_in_ggml: Q5_1;
    q8_0_is_weighted_as_in_ggml: Q8_0;
    q2_k_is_weighted_as_in_ggml: Q2_K;
    q4_k_is_weighted_as_in_ggml: Q4_K;
    q5_k_is_weighted_as_in_ggml: Q5_K;
    q3_k_is_weighted_as_in_ggml: Q3_K;
    q6_k_is_weighted_as_in_ggml: Q6_K;
    iq4_nl_is_weighted_as_in_ggml: IQ4_NL;
    iq4_xs_is_weighted_as_in_ggml: IQ4_XS;
}

read_as_in_ggml! {
    f32_is_read_as_in_ggml: F32;
    f16_is_read_as_in_ggml: F16;
    bf16_is_read_as_in_ggml: BF16;
    q4_0_is_read_as_in_ggml: Q4_0;
    q4_1_is_read_as_in_ggml: Q4_1;
    q5_0_is_read_as_in_ggml: Q5_0;
    q5_1_is_read_as_in_ggml: Q5_1;
    q8_0_is_read_as_in_ggml: Q8_0;
    q2_k_is_read_as_in_ggml: Q2_K;
    q3_k_is_read_as_in_ggml: Q3_K;
    q4_k_is_read_as_in_ggml: Q4_K;
    q5_k_is_read_as_in_ggml: Q5_K;
    q6_k_is_read_as_in_ggml: Q6_K;
    iq4_nl_is_read_as_in_ggml: IQ4_NL;
    iq4_xs_is_read_as_in_ggml: IQ4_XS;
}

/// The cases that need no luck to be hit, by name; the properties vary them.
fn awkward_rows() -> [(&'static str, [f32; 256]); 17] {
    let at_both_ends = |value: f32| {
        let mut row = [value / 3.0; 256];
        (row[0], row[17], row[255]) = (value, -value, value);
        row
    };
    let ramp = |step: f32| std::array::from_fn(|i| (i as f32 - 128.0) * step);
    // Beside weights of 1 the tiny sub-blocks' scales round to zero, and the quants of the search stay visible.
    let around_threshold = std::array::from_fn(|i| match (i / 16, i % 2) {
        (0, 0) => 1e-15_f32,
        (0, _) => -1e-15,
        (1, 0) => 1e-15_f32.next_down(),
        (1, _) => -1e-15_f32.next_down(),
        _ => 1.0,
    });
    [
        ("zeros", [0.0; 256]),
        ("negative zeros", [-0.0; 256]),
        ("alternating zeros", std::array::from_fn(|i| if i % 2 == 0 { 0.0 } else { -0.0 })),
        ("constant", [0.7; 256]),
        ("negative constant", [-0.7; 256]),
        ("smallest denormal", [f32::from_bits(1); 256]),
        ("denormal ramp", std::array::from_fn(|i| f32::from_bits(i as u32))),
        ("reciprocal just infinite", at_both_ends(f32::from_bits(1 << 21) * 8.0)),
        ("reciprocal just finite", at_both_ends(f32::from_bits((1 << 21) + 1) * 8.0)),
        ("below the threshold of Q6_K", at_both_ends(1e-15_f32.next_down())),
        ("around the threshold of Q6_K", around_threshold),
        ("scale just within F16", at_both_ends(65504.0 * 127.0)),
        ("scale beyond F16", at_both_ends(65520.0 * 127.0)),
        ("range beyond F32", at_both_ends(f32::MAX)),
        ("infinities", at_both_ends(f32::INFINITY)),
        ("ramp of whole steps", ramp(1.0)),
        ("ramp of half steps", ramp(0.5)),
    ]
}

#[test]
fn awkward_rows_are_stored_as_in_ggml() {
    for &ty in TensorType::ALL.iter().filter(|&&ty| can_quantize(ty)) {
        for (name, row) in &awkward_rows() {
            eprintln!("{ty}: {name}");
            assert_quantizes_as_ggml(ty, row);
        }
    }
}

#[test]
fn awkward_rows_are_weighted_as_in_ggml() {
    let importances: [(&str, [f32; 256]); 6] = [
        ("all alike", [1.0; 256]),
        ("zero", [0.0; 256]),
        ("every third zero", std::array::from_fn(|i| if i % 3 == 0 { 0.0 } else { i as f32 })),
        ("zero for half the row", std::array::from_fn(|i| if i < 128 { 0.0 } else { 1.0 })),
        ("one column", std::array::from_fn(|i| if i == 17 { 1.0 } else { 0.0 })),
        ("a huge range", std::array::from_fn(|i| 2.0_f32.powi(i as i32 % 64 * 3 - 96))),
    ];
    for &ty in TensorType::ALL.iter().filter(|&&ty| scalar::weighted_quantizer(ty).is_some()) {
        for (name, row) in &awkward_rows() {
            for (importance_name, importance) in &importances {
                eprintln!("{ty}: {name}, importance {importance_name}");
                assert_weighted_as_ggml(ty, row, importance);
            }
        }
    }
}

/// Kernels take several blocks at a time; none of them may see its neighbours, and no number of them may be left over.
#[test]
fn every_number_of_blocks_is_stored_as_in_ggml() {
    let all: Vec<f32> = awkward_rows().iter().flat_map(|(_, row)| *row).collect();
    let importance: Vec<f32> = (0..all.len()).map(|i| (i * 37 % 101) as f32).collect();
    for &ty in TensorType::ALL.iter().filter(|&&ty| can_quantize(ty)) {
        let unit = ty.block_len().max(32);
        for n in 1..=all.len().min(unit * 34) / unit {
            let row = &all[all.len() - n * unit..];
            assert_quantizes_as_ggml(ty, row);
            if scalar::weighted_quantizer(ty).is_some() {
                assert_weighted_as_ggml(ty, row, &importance[..n * unit]);
            }
        }
    }
}

#[test]
fn trained_weights_are_stored_as_in_ggml() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/tiny-moe/model.safetensors");
    let file = std::fs::read(path).unwrap();
    let header_len = u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
    let data = &file[8 + header_len..];
    // Eight rows of 512 from each of many places, as BF16, which is what the file holds.
    let (row_len, bytes) = (512, 8 * 512 * 2);
    let importance: Vec<f32> = (0..row_len).map(|i| ((i * 7919 % 1000) as f32 / 500.0).powi(4)).collect();
    for data in data.chunks_exact(bytes).step_by(data.len() / bytes / 16) {
        let mut weights = vec![0.0; 8 * row_len];
        dequantize(TensorType::BF16, data, &mut weights).unwrap();
        for &ty in TensorType::ALL.iter().filter(|&&ty| can_quantize(ty)) {
            assert_quantizes_as_ggml(ty, &weights);
            if scalar::weighted_quantizer(ty).is_some() {
                assert_weighted_as_ggml(ty, &weights, &importance);
            }
        }
    }
}

#[test]
fn nan_among_the_weights_neither_panics_nor_leaves_bytes_unwritten() {
    for &ty in TensorType::ALL.iter().filter(|&&ty| can_quantize(ty)) {
        let mut weights = [0.25; 512];
        (weights[3], weights[100], weights[255]) = (f32::NAN, -f32::NAN, f32::NAN);
        let size = 512 / ty.block_len() * ty.block_bytes();
        let [first, second] = [0x00, 0xFF].map(|fill| {
            let mut blocks = vec![fill; size];
            quantize(ty, &weights, &mut blocks).unwrap();
            blocks
        });
        assert_eq!(first, second, "{ty}");
        // The second super-block has no NaN in it.
        assert_eq!(first[size / 2..], oracle::quantize(ty, &weights[256..]), "{ty}");
    }
}

fn assert_quantizes_as_ggml(ty: TensorType, weights: &[f32]) {
    let weights = &weights[..weights.len() / ty.block_len() * ty.block_len()];
    let mut theirs = oracle::quantize(ty, weights);
    let mut reference = vec![0xA5; theirs.len()];
    quantize_at(Level::SCALAR, ty, weights, &mut reference).unwrap();
    settle_undefined(ty, weights, &reference, &mut theirs);
    for level in Level::all_supported() {
        let mut ours = vec![0xA5; theirs.len()];
        quantize_at(level, ty, weights, &mut ours).unwrap();
        assert_same_blocks(level, ty, weights, &ours, &theirs);
    }
}

fn assert_weighted_as_ggml(ty: TensorType, weights: &[f32], importance: &[f32]) {
    let mut theirs = oracle::quantize_weighted(ty, weights, importance);
    let mut reference = vec![0xA5; theirs.len()];
    quantize_weighted_at(Level::SCALAR, ty, weights, importance, &mut reference).unwrap();
    settle_undefined(ty, weights, &reference, &mut theirs);
    for level in Level::all_supported() {
        let mut ours = vec![0xA5; theirs.len()];
        quantize_weighted_at(level, ty, weights, importance, &mut ours).unwrap();
        assert_same_blocks(level, ty, weights, &ours, &theirs);
    }
}

/// Replaces those of ggml's blocks that it makes of floats beyond the range of an integer, as where the reciprocal of a
/// scale overflows. C leaves these to the processor; the reference has what x86-64 makes of them, on all machines.
fn settle_undefined(ty: TensorType, weights: &[f32], reference: &[u8], theirs: &mut [u8]) {
    use TensorType::{Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
    if cfg!(target_arch = "x86_64") || ![Q4_0, Q4_1, Q5_0, Q5_1, Q8_0].contains(&ty) {
        return;
    }
    let n = ty.block_bytes();
    let blocks = theirs.chunks_mut(n).zip(reference.chunks(n));
    for (weights, (theirs, reference)) in weights.chunks(ty.block_len()).zip(blocks) {
        let (low, high) =
            weights.iter().fold((f32::MAX, f32::MIN), |(low, high), &x| (x.min(low), x.max(high)));
        let spread = if ty == Q4_1 || ty == Q5_1 { high - low } else { high.max(-low) };
        if !spread.is_finite() || 0.0 < spread && spread < 2.0_f32.powi(-121) {
            theirs.copy_from_slice(reference);
        }
    }
}

fn assert_same_blocks(level: Level, ty: TensorType, weights: &[f32], ours: &[u8], theirs: &[u8]) {
    let n_blocks = weights.len() / ty.block_len();
    let blocks = weights.chunks(ty.block_len());
    let pairs = ours.chunks(ty.block_bytes()).zip(theirs.chunks(ty.block_bytes()));
    for (i, (weights, (ours, theirs))) in blocks.zip(pairs).enumerate() {
        assert_eq!(ours, theirs, "{} {ty} block {i} of {n_blocks}: {weights:?}", level.name());
    }
}

fn assert_dequantizes_as_ggml(ty: TensorType, bytes: &[u8]) {
    let n_weights = bytes.len() / ty.block_bytes() * ty.block_len();
    let theirs = oracle::dequantize(ty, bytes);
    for level in Level::all_supported() {
        let mut ours = vec![f32::NAN; n_weights];
        dequantize_at(level, ty, bytes, &mut ours).unwrap();
        for (i, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            // Where scale and minimum are both NaN, which of them the sum is depends on the compiler.
            let equal =
                ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan() && ty.is_quantized();
            let level = level.name();
            assert!(equal, "{level} {ty} weight {i} of {n_weights}: found {ours:e}, expected {theirs:e}");
        }
    }
}
