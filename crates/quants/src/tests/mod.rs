//! The whole crate against the linked ggml: geometry exactly, quantizing byte for byte, dequantizing bit for bit.
//!
//! `PROPTEST_CASES=100000` makes a soak of the properties.

mod oracle;
mod weights;

use proptest::prelude::*;

use crate::{TensorType, can_dequantize, can_quantize, dequantize, quantize};

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
        let mut ours = vec![0.0; 1 << 16];
        dequantize(ty, &bytes, &mut ours).unwrap();
        for (pattern, (ours, theirs)) in ours.iter().zip(oracle::dequantize(ty, &bytes)).enumerate() {
            assert_eq!(ours.to_bits(), theirs.to_bits(), "{ty} {pattern:#06x}");
        }
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

/// One pair of tests for each type, so that a failure names it.
macro_rules! against_ggml {
    ($($quantizes:ident, $dequantizes:ident: $ty:ident;)*) => {
        proptest! {
            $(
                #[test]
                fn $quantizes(weights in weights::blocks()) {
                    assert_quantizes_as_ggml(TensorType::$ty, &weights);
                }

                #[test]
                fn $dequantizes(bytes in proptest::collection::vec(any::<u8>(), 1..4 * 292)) {
                    let ty = TensorType::$ty;
                    let mut bytes = bytes.repeat(ty.block_bytes().div_ceil(bytes.len()));
                    bytes.truncate(bytes.len() / ty.block_bytes() * ty.block_bytes());
                    assert_dequantizes_as_ggml(ty, &bytes);
                }
            )*
        }

        #[test]
        fn every_type_with_a_kernel_is_tested() {
            let tested = [$(TensorType::$ty),*];
            for &ty in TensorType::ALL {
                assert_eq!(can_quantize(ty), tested.contains(&ty), "{ty}");
                assert!(can_dequantize(ty) || !can_quantize(ty), "{ty}");
            }
        }
    };
}

against_ggml! {
    f32_is_stored_as_in_ggml, f32_is_read_as_in_ggml: F32;
    f16_is_stored_as_in_ggml, f16_is_read_as_in_ggml: F16;
    bf16_is_stored_as_in_ggml, bf16_is_read_as_in_ggml: BF16;
    q4_0_is_stored_as_in_ggml, q4_0_is_read_as_in_ggml: Q4_0;
    q4_1_is_stored_as_in_ggml, q4_1_is_read_as_in_ggml: Q4_1;
    q5_0_is_stored_as_in_ggml, q5_0_is_read_as_in_ggml: Q5_0;
    q5_1_is_stored_as_in_ggml, q5_1_is_read_as_in_ggml: Q5_1;
    q8_0_is_stored_as_in_ggml, q8_0_is_read_as_in_ggml: Q8_0;
    q4_k_is_stored_as_in_ggml, q4_k_is_read_as_in_ggml: Q4_K;
    q5_k_is_stored_as_in_ggml, q5_k_is_read_as_in_ggml: Q5_K;
    q6_k_is_stored_as_in_ggml, q6_k_is_read_as_in_ggml: Q6_K;
}

fn assert_quantizes_as_ggml(ty: TensorType, weights: &[f32]) {
    let weights = &weights[..weights.len() / ty.block_len() * ty.block_len()];
    let n_blocks = weights.len() / ty.block_len();
    let mut ours = vec![0xA5; n_blocks * ty.block_bytes()];
    quantize(ty, weights, &mut ours).unwrap();
    let theirs = oracle::quantize(ty, weights);
    let blocks = weights.chunks(ty.block_len());
    let pairs = ours.chunks(ty.block_bytes()).zip(theirs.chunks(ty.block_bytes()));
    for (i, (weights, (ours, theirs))) in blocks.zip(pairs).enumerate() {
        assert_eq!(ours, theirs, "{ty} block {i} of {n_blocks}: {weights:?}");
    }
}

fn assert_dequantizes_as_ggml(ty: TensorType, bytes: &[u8]) {
    let n_weights = bytes.len() / ty.block_bytes() * ty.block_len();
    let mut ours = vec![f32::NAN; n_weights];
    dequantize(ty, bytes, &mut ours).unwrap();
    for (i, (ours, theirs)) in ours.iter().zip(oracle::dequantize(ty, bytes)).enumerate() {
        // Where scale and minimum are both NaN, which of them the sum is depends on the compiler.
        let equal = ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan();
        assert!(equal, "{ty} weight {i} of {n_weights}: found {ours:e}, expected {theirs:e}");
    }
}
