//! Graph operations against naive computations: the shapes and the order of axes that the wrappers document are those
//! that ggml computes.

mod support;

use ggml::{Graph, Rope, RopeStyle, Type};
use support::{Data, assert_close, cpu_weight, dot, numbers, on_cpu};

#[test]
fn mul_mat_is_a_dot_product_of_rows() {
    let (n_in, n_out, n_tokens) = (48, 5, 3);
    let (w, x) = (numbers(n_in * n_out, 1), numbers(n_in * n_tokens, 2));
    let graph = Graph::new(8);
    let input = graph.input("x", Type::F32, &[n_in, n_tokens]);
    let result = graph.mul_mat(&cpu_weight("w", &[n_in, n_out], &w), &input);
    assert_eq!(result.ne(), [n_out, n_tokens, 1, 1]);
    let expected: Vec<f64> = x.chunks(n_in).flat_map(|x| w.chunks(n_in).map(move |w| dot(w, x))).collect();
    assert_close(&on_cpu(&graph, &[Data::F32(&input, &x)], &result), &expected, 1e-5);
}

#[test]
fn mul_mat_shares_a_matrix_among_neighbouring_heads() {
    let (n, n_out, n_tokens, n_kv_heads, n_heads) = (16, 4, 2, 2, 6);
    let (w, x) = (numbers(n * n_out * n_kv_heads, 3), numbers(n * n_tokens * n_heads, 4));
    let graph = Graph::new(8);
    let input = graph.input("x", Type::F32, &[n, n_tokens, n_heads]);
    let result = graph.mul_mat(&cpu_weight("w", &[n, n_out, n_kv_heads], &w), &input);
    let mut expected = Vec::new();
    for head in 0..n_heads {
        let shared = head / (n_heads / n_kv_heads);
        for token in 0..n_tokens {
            let x = &x[(head * n_tokens + token) * n..][..n];
            expected.extend((0..n_out).map(|row| dot(&w[(shared * n_out + row) * n..][..n], x)));
        }
    }
    assert_close(&on_cpu(&graph, &[Data::F32(&input, &x)], &result), &expected, 1e-5);
}

#[test]
fn mul_mat_reads_quantized_weights() {
    let q8_0 = Type::from_id(8).expect("Q8_0");
    let (n_in, n_out, n_tokens) = (256, 8, 4);
    let (w, x) = (numbers(n_in * n_out, 5), numbers(n_in * n_tokens, 6));
    let graph = Graph::new(8);
    let input = graph.input("x", Type::F32, &[n_in, n_tokens]);
    let quantized = graph.cast(&cpu_weight("w", &[n_in, n_out], &w), q8_0);
    assert_eq!(quantized.n_bytes(), n_in / 32 * 34 * n_out);
    let result = graph.mul_mat(&quantized, &input);
    let expected: Vec<f64> = x.chunks(n_in).flat_map(|x| w.chunks(n_in).map(move |w| dot(w, x))).collect();
    let found = on_cpu(&graph, &[Data::F32(&input, &x)], &result);
    // Both factors are rounded to 8 bits: an error of about 256^0.5 * 2 * 0.3 / 127.
    assert_close(&found, &expected, 0.1);
    assert!(
        found.iter().zip(&expected).any(|(f, e)| (f64::from(*f) - e).abs() > 1e-4),
        "not quantized at all"
    );
}

/// One expert's product per (slot, token), with `x` shared by the slots or one row for each.
fn experts_case(x_per_slot: bool) {
    let (n_in, n_out, n_expert, k, n_tokens) = (32, 6, 4, 2, 3);
    let slots = if x_per_slot { k } else { 1 };
    let (w, x) = (numbers(n_in * n_out * n_expert, 7), numbers(n_in * slots * n_tokens, 8));
    let ids = [3, 0, 1, 2, 0, 1];
    let graph = Graph::new(8);
    let input = graph.input("x", Type::F32, &[n_in, slots, n_tokens]);
    let chosen = graph.input("ids", Type::I32, &[k, n_tokens]);
    let result = graph.mul_mat_id(&cpu_weight("experts", &[n_in, n_out, n_expert], &w), &input, &chosen);
    assert_eq!(result.ne(), [n_out, k, n_tokens, 1]);
    let mut expected = Vec::new();
    for token in 0..n_tokens {
        for slot in 0..k {
            let expert = ids[token * k + slot] as usize;
            let x = &x[(token * slots + slot % slots) * n_in..][..n_in];
            expected.extend((0..n_out).map(|row| dot(&w[(expert * n_out + row) * n_in..][..n_in], x)));
        }
    }
    let inputs = [Data::F32(&input, &x), Data::I32(&chosen, &ids)];
    assert_close(&on_cpu(&graph, &inputs, &result), &expected, 1e-5);
}

#[test]
fn mul_mat_id_multiplies_a_token_with_each_of_its_experts() {
    experts_case(false);
}

#[test]
fn mul_mat_id_takes_a_row_for_each_slot() {
    experts_case(true);
}

#[test]
fn get_rows_looks_up_embeddings() {
    let (n, n_rows) = (24, 10);
    let table = numbers(n * n_rows, 9);
    let graph = Graph::new(8);
    let rows = graph.input("rows", Type::I32, &[4]);
    let result = graph.get_rows(&cpu_weight("table", &[n, n_rows], &table), &rows);
    assert_eq!(result.ne(), [n, 4, 1, 1]);
    let ids = [7, 0, 9, 7];
    let found = on_cpu(&graph, &[Data::I32(&rows, &ids)], &result);
    let expected: Vec<f32> = ids.iter().flat_map(|i| table[*i as usize * n..][..n].to_vec()).collect();
    assert_eq!(found, expected);
}

#[test]
fn set_rows_writes_where_the_indices_say() {
    let (n, n_rows) = (32, 6);
    let cache = cpu_weight("cache", &[n, n_rows], &vec![0.5; n * n_rows]);
    let new = numbers(n * 2, 10);
    let graph = Graph::new(8);
    let source = graph.input("new", Type::F32, &[n, 2]);
    let rows = graph.input("rows", Type::I64, &[2]);
    let written = graph.set_rows(&cache, &source, &rows);
    // The cache itself is read afterwards, as attention reads it.
    let inputs = [Data::F32(&source, &new), Data::I64(&rows, &[4, 1])];
    let found = on_cpu(&graph, &inputs, &graph.contiguous(&written));
    let mut expected = vec![0.5; n * n_rows];
    expected[4 * n..5 * n].copy_from_slice(&new[..n]);
    expected[n..2 * n].copy_from_slice(&new[n..]);
    assert_eq!(found, expected);
    let mut stored = vec![0.0; n * n_rows];
    cache.read_values(0, &mut stored);
    assert_eq!(stored, expected);
}

/// Rotates each pair of each head by position * base^(-2 i / n_dims) / factor.
fn naive_rope(
    x: &[f32],
    head_dim: usize,
    n_heads: usize,
    positions: &[i32],
    rope: &Rope,
    factors: &[f32],
) -> Vec<f64> {
    let mut out: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
    for (token, position) in positions.iter().enumerate() {
        for head in out[token * n_heads * head_dim..][..n_heads * head_dim].chunks_mut(head_dim) {
            for (i, factor) in factors.iter().enumerate().take(rope.n_dims / 2) {
                let exponent = -2.0 * i as f64 / rope.n_dims as f64;
                let angle = f64::from(*position)
                    * f64::from(rope.freq_scale)
                    * f64::from(rope.freq_base).powf(exponent)
                    / f64::from(*factor);
                let (a, b) = match rope.style {
                    RopeStyle::Interleaved => (2 * i, 2 * i + 1),
                    RopeStyle::Halves => (i, i + rope.n_dims / 2),
                };
                let (x, y) = (head[a], head[b]);
                (head[a], head[b]) = (x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos());
            }
        }
    }
    out
}

fn rope_case(style: RopeStyle, n_dims: usize, freq_scale: f32, factors: Option<Vec<f32>>) {
    let (head_dim, n_heads, positions) = (16, 3, [0, 1, 5, 300]);
    let rope = Rope {
        n_dims,
        style,
        n_ctx_orig: 512,
        freq_base: 10000.0,
        freq_scale,
        ext_factor: 0.0,
        attn_factor: 1.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
    };
    let x = numbers(head_dim * n_heads * positions.len(), 11);
    let graph = Graph::new(8);
    let input = graph.input("x", Type::F32, &[head_dim, n_heads, positions.len()]);
    let at = graph.input("positions", Type::I32, &[positions.len()]);
    let tensor = factors.as_ref().map(|f| cpu_weight("factors", &[f.len()], f));
    let result = graph.rope(&input, &at, tensor.as_ref(), &rope);
    let inputs = [Data::F32(&input, &x), Data::I32(&at, &positions)];
    let found = on_cpu(&graph, &inputs, &result);
    let factors = factors.unwrap_or_else(|| vec![1.0; n_dims / 2]);
    assert_close(&found, &naive_rope(&x, head_dim, n_heads, &positions, &rope, &factors), 2e-4);
}

#[test]
fn rope_rotates_neighbours() {
    rope_case(RopeStyle::Interleaved, 16, 1.0, None);
}

#[test]
fn rope_rotates_halves() {
    rope_case(RopeStyle::Halves, 16, 1.0, None);
}

#[test]
fn rope_leaves_the_rest_of_a_head_alone() {
    rope_case(RopeStyle::Interleaved, 8, 1.0, None);
}

#[test]
fn rope_scales_positions_and_divides_frequencies() {
    let factors = vec![1.0, 1.5, 2.0, 2.5, 4.0, 4.0, 8.0, 8.0];
    rope_case(RopeStyle::Interleaved, 16, 0.25, Some(factors));
}

/// Softmax over the visible keys, by the definition.
fn naive_attention(q: &[f32], k: &[f32], v: &[f32], visible: &[bool], scale: f32) -> Vec<f64> {
    let n = q.len();
    let scores: Vec<f64> = k.chunks(n).map(|k| dot(q, k) * f64::from(scale)).collect();
    let weights: Vec<f64> =
        scores.iter().zip(visible).map(|(s, seen)| if *seen { s.exp() } else { 0.0 }).collect();
    let sum: f64 = weights.iter().sum();
    let value = |i: usize| -> f64 { v.chunks(n).zip(&weights).map(|(v, w)| f64::from(v[i]) * w / sum).sum() };
    (0..n).map(value).collect()
}

#[test]
fn flash_attention_is_masked_softmax_over_grouped_heads() {
    let (n, n_tokens, n_kv, n_heads, n_kv_heads) = (64, 3, 40, 4, 2);
    let scale = 1.0 / (n as f32).sqrt();
    let q = numbers(n * n_tokens * n_heads, 12);
    let (k, v) = (numbers(n * n_kv * n_kv_heads, 13), numbers(n * n_kv * n_kv_heads, 14));
    let visible = |token: usize, position: usize| position <= 20 + token * 4 && position != 7;
    let minus_infinity = 0xfc00;
    let mask_bits: Vec<u16> =
        (0..n_tokens * n_kv).map(|i| if visible(i / n_kv, i % n_kv) { 0 } else { minus_infinity }).collect();

    let graph = Graph::new(16);
    let input = graph.input("q", Type::F32, &[n, n_tokens, n_heads]);
    let mask = graph.input("mask", Type::F16, &[n_kv, n_tokens]);
    let keys = graph.cast(&cpu_weight("k", &[n, n_kv, n_kv_heads], &k), Type::F16);
    let values = graph.cast(&cpu_weight("v", &[n, n_kv, n_kv_heads], &v), Type::F16);
    let result = graph.flash_attention(&input, &keys, &values, &mask, scale);
    assert_eq!(result.ne(), [n, n_heads, n_tokens, 1]);

    let mut expected = Vec::new();
    for token in 0..n_tokens {
        let seen: Vec<bool> = (0..n_kv).map(|position| visible(token, position)).collect();
        for head in 0..n_heads {
            let shared = head / (n_heads / n_kv_heads) * n_kv * n;
            let q = &q[(head * n_tokens + token) * n..][..n];
            expected.extend(naive_attention(
                q,
                &k[shared..][..n_kv * n],
                &v[shared..][..n_kv * n],
                &seen,
                scale,
            ));
        }
    }
    let inputs = [Data::F32(&input, &q), Data::F16(&mask, &mask_bits)];
    // Keys, values and the query are rounded to F16.
    assert_close(&on_cpu(&graph, &inputs, &result), &expected, 2e-3);
}

#[test]
fn attention_by_parts_equals_its_definition() {
    let (n, n_tokens, n_kv) = (32, 2, 12);
    let scale = 0.2;
    let (q, k, v) = (numbers(n * n_tokens, 15), numbers(n * n_kv, 16), numbers(n * n_kv, 17));
    let visible = |token: usize, position: usize| position <= 5 + token;
    let mask_values: Vec<f32> = (0..n_tokens * n_kv)
        .map(|i| if visible(i / n_kv, i % n_kv) { 0.0 } else { f32::NEG_INFINITY })
        .collect();
    let graph = Graph::new(16);
    let input = graph.input("q", Type::F32, &[n, n_tokens]);
    let mask = graph.input("mask", Type::F32, &[n_kv, n_tokens]);
    let scores = graph.mul_mat(&cpu_weight("k", &[n, n_kv], &k), &input);
    let weights = graph.soft_max_masked(&scores, &mask, scale);
    let turned = graph.contiguous(&graph.permute(&cpu_weight("v", &[n, n_kv], &v), [1, 0, 2, 3]));
    let result = graph.mul_mat(&turned, &weights);
    let mut expected = Vec::new();
    for (token, q) in q.chunks(n).enumerate() {
        let seen: Vec<bool> = (0..n_kv).map(|position| visible(token, position)).collect();
        expected.extend(naive_attention(q, &k, &v, &seen, scale));
    }
    let inputs = [Data::F32(&input, &q), Data::F32(&mask, &mask_values)];
    assert_close(&on_cpu(&graph, &inputs, &result), &expected, 1e-5);
}

#[test]
fn a_router_picks_the_largest_and_renormalises() {
    let (n_expert, n_tokens, k) = (6, 2, 3);
    let logits = [0.1, 2.0, -1.0, 1.5, 0.0, 1.9, -3.0, 0.5, 0.25, 4.0, -0.5, 0.75];
    let graph = Graph::new(32);
    let input = graph.input("logits", Type::F32, &[n_expert, n_tokens]);
    let shares = graph.soft_max(&input);
    let chosen = graph.top_k(&shares, k);
    let by_expert = graph.reshape(&shares, &[1, n_expert, n_tokens]);
    let picked = graph.reshape(&graph.get_rows(&by_expert, &chosen), &[k, n_tokens]);
    let result = graph.div(&picked, &graph.sum_rows(&picked));
    // What `top_k` returns is a window on all indices in order.
    let listed = graph.contiguous(&chosen);
    graph.output(&listed);
    let found = on_cpu(&graph, &[Data::F32(&input, &logits)], &result);
    let mut ids = vec![0i32; k * n_tokens];
    listed.read_values(0, &mut ids);
    assert_eq!(ids, [1, 5, 3, 3, 5, 1]);
    let mut expected = Vec::new();
    for (logits, ids) in logits.chunks(n_expert).zip(ids.chunks(k)) {
        let picked: Vec<f64> = ids.iter().map(|i| f64::from(logits[*i as usize]).exp()).collect();
        let sum: f64 = picked.iter().sum();
        expected.extend(picked.iter().map(|p| p / sum));
    }
    assert_close(&found, &expected, 1e-5);
}

#[test]
fn norm_activation_and_sums_follow_their_formulas() {
    let (n, n_tokens, eps) = (40, 3, 1e-5);
    let (x, gain) = (numbers(n * n_tokens, 18), numbers(n, 19));
    let graph = Graph::new(16);
    let input = graph.input("x", Type::F32, &[n, n_tokens]);
    let gain_tensor = cpu_weight("gain", &[n], &gain);
    let normed = graph.mul(&graph.rms_norm(&input, eps), &gain_tensor);
    let gated = graph.swiglu(&normed, &input);
    let result = graph.add(&graph.clamp(&gated, -0.5, 0.5), &input);
    let found = on_cpu(&graph, &[Data::F32(&input, &x)], &result);
    let mut expected = Vec::new();
    for x in x.chunks(n) {
        let scale = 1.0 / (dot(x, x) / n as f64 + f64::from(eps)).sqrt();
        expected.extend(x.iter().zip(&gain).map(|(x, gain)| {
            let x = f64::from(*x);
            let normed = x * scale * f64::from(*gain);
            (normed / (1.0 + (-normed).exp()) * x).clamp(-0.5, 0.5) + x
        }));
    }
    assert_close(&found, &expected, 1e-5);
}

#[test]
fn a_view_starts_at_its_offset() {
    let (n, n_rows) = (8, 6);
    let values = numbers(n * n_rows, 20);
    let graph = Graph::new(8);
    let whole = cpu_weight("whole", &[n, n_rows], &values);
    let window = graph.view(&whole, [4, 2, 1], [3 * n * 4, 0], (n + 2) * 4);
    let found = on_cpu(&graph, &[], &graph.contiguous(&window));
    let expected = [&values[n + 2..n + 6], &values[4 * n + 2..4 * n + 6]].concat();
    assert_eq!(found, expected);
}
