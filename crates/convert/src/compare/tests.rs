use super::*;

#[test]
fn limits_are_stricter_for_more_bits() {
    let types = [
        TensorType::TQ1_0,
        TensorType::IQ1_S,
        TensorType::Q2_K,
        TensorType::Q3_K,
        TensorType::Q4_K,
        TensorType::Q5_K,
        TensorType::Q6_K,
        TensorType::Q8_0,
    ];
    assert!(types.windows(2).all(|pair| min_cosine(pair[0]) < min_cosine(pair[1])));
    assert_eq!(min_cosine(TensorType::F32), min_cosine(TensorType::BF16));
}

/// Every type that can be made, on weights as models have them, with a few that stand out.
#[test]
fn what_quantizing_does_is_within_the_limits() {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let weights: Vec<f32> = (0..64 * 512)
        .map(|i| {
            let normal = (0..12).map(|_| uniform()).sum::<f32>() - 6.0;
            0.02 * if i % 3001 == 0 { 6.0 * normal } else { normal }
        })
        .collect();
    let importance: Vec<f32> = (0..512).map(|_| 0.1 + uniform() * uniform() * 4.0).collect();
    for ty in TensorType::ALL.iter().copied().filter(|ty| block::can_quantize(*ty)) {
        let mut blocks = vec![0; weights.len() / ty.block_len() * ty.block_bytes()];
        let mut again = vec![0.0; weights.len()];
        block::quantize(ty, &weights, 512, Some(&importance), &mut blocks).expect("good weights");
        dequantize(ty, "", &blocks, &mut again).expect("our own blocks");
        let mut sums = Sums::default();
        sums.add(&weights, &again);
        let found = sums.deviation();
        assert!(found.is_within(ty), "{ty}: {found:?}");
    }
}
