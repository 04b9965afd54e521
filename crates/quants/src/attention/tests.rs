use super::definition::exp;
use super::*;
use crate::quantize;

/// Numbers between -1 and 1 that follow no pattern.
fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(n).collect()
}

struct Case {
    ty_k: TensorType,
    ty_v: TensorType,
    dim_k: usize,
    dim_v: usize,
    n_heads: usize,
    n_cells: usize,
    keys: Vec<u8>,
    values: Vec<u8>,
    queries: Vec<f32>,
    visible: Vec<Range<usize>>,
}

impl Case {
    fn new(
        types: [TensorType; 2],
        dims: [usize; 2],
        n_heads: usize,
        n_cells: usize,
        visible: Vec<Range<usize>>,
    ) -> Self {
        let stored = |ty: TensorType, dim: usize, seed| {
            let values = noise(seed, dim * n_cells);
            let mut bytes = vec![0; values.len() / ty.block_len() * ty.block_bytes()];
            quantize(ty, &values, &mut bytes).expect("whole blocks");
            bytes
        };
        let queries = noise(3, visible.len() * n_heads * dims[0]).iter().map(|x| 8.0 * x).collect();
        Case {
            ty_k: types[0],
            ty_v: types[1],
            dim_k: dims[0],
            dim_v: dims[1],
            n_heads,
            n_cells,
            keys: stored(types[0], dims[0], 1),
            values: stored(types[1], dims[1], 2),
            queries,
            visible,
        }
    }

    fn run(&self, level: Level, tokens: Range<usize>) -> Vec<f32> {
        let keys = Cells::new(self.ty_k, &self.keys, self.dim_k).expect("whole rows");
        let values = Cells::new(self.ty_v, &self.values, self.dim_v).expect("whole rows");
        let width = self.n_heads * self.dim_k;
        let tokens: Vec<_> = tokens
            .map(|t| Token { queries: &self.queries[t * width..][..width], visible: self.visible[t].clone() })
            .collect();
        let mut out = vec![f32::NAN; tokens.len() * self.n_heads * self.dim_v];
        // What a workspace was used for before must not matter.
        let mut workspace = Workspace::default();
        if let Some(token) = tokens.last() {
            let mut small = vec![0.0; self.n_heads * self.dim_v];
            attend_at(level, keys, values, 3.0, std::slice::from_ref(token), &mut workspace, &mut small);
        }
        attend_at(level, keys, values, 0.125, &tokens, &mut workspace, &mut out);
        out
    }

    /// In double precision, all cells at once.
    fn expected(&self) -> Vec<f64> {
        let read = |ty: TensorType, bytes: &[u8], dim: usize| {
            let mut values = vec![0.0; self.n_cells * dim];
            crate::dequantize(ty, bytes, &mut values).expect("whole blocks");
            values
        };
        let keys = read(self.ty_k, &self.keys, self.dim_k);
        let values = read(self.ty_v, &self.values, self.dim_v);
        let mut out = Vec::new();
        for (row, query) in self.queries.chunks_exact(self.dim_k).enumerate() {
            let seen = self.visible[row / self.n_heads].clone();
            let dot = |cell: usize| -> f64 {
                let key = &keys[cell * self.dim_k..];
                query.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() * 0.125
            };
            let largest = seen.clone().map(dot).fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = seen.clone().map(|cell| (dot(cell) - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            for d in 0..self.dim_v {
                let of = |cell: usize| f64::from(values[cell * self.dim_v + d]);
                out.push(seen.clone().zip(&weights).map(|(cell, w)| w * of(cell)).sum::<f64>() / total);
            }
        }
        out
    }
}

fn causal(first: usize, n: usize) -> Vec<Range<usize>> {
    (first..first + n).map(|position| 0..position + 1).collect()
}

fn cases() -> Vec<Case> {
    use TensorType::*;
    let windowed = (90..113).map(|position: usize| position - 39..position + 1).collect();
    vec![
        Case::new([F16, F16], [128, 128], 4, 300, causal(280, 9)),
        Case::new([F16, F16], [128, 128], 4, 600, causal(599, 1)),
        Case::new([F16, F16], [64, 64], 3, 70, causal(0, 70)),
        Case::new([Q8_0, Q8_0], [128, 64], 4, 100, causal(60, 40)),
        Case::new([Q8_0, F16], [96, 80], 1, 65, causal(31, 34)),
        Case::new([BF16, F32], [40, 24], 2, 129, windowed),
        Case::new([F32, BF16], [16, 8], 5, 33, vec![32..33, 0..33, 7..8]),
        Case::new([F16, Q8_0], [20, 32], 8, 40, causal(39, 1)),
    ]
}

#[test]
fn all_levels_give_the_same_bits() {
    for (number, case) in cases().iter().enumerate() {
        let all = 0..case.visible.len();
        let expected = case.run(Level::SCALAR, all.clone());
        for level in Level::all_supported() {
            let found = case.run(level, all.clone());
            let differs = found.iter().zip(&expected).position(|(a, b)| a.to_bits() != b.to_bits());
            assert_eq!(differs, None, "case {number}, {}", level.name());
        }
    }
}

#[test]
fn a_tokens_result_does_not_depend_on_the_tokens_beside_it() {
    for (number, case) in cases().iter().enumerate() {
        for level in Level::all_supported() {
            let together = case.run(level, 0..case.visible.len());
            let width = case.n_heads * case.dim_v;
            for token in 0..case.visible.len() {
                let alone = case.run(level, token..token + 1);
                assert_eq!(alone, together[token * width..][..width], "case {number}, token {token}");
            }
        }
    }
}

#[test]
fn results_are_within_single_precision_of_the_formula() {
    for (number, case) in cases().iter().enumerate() {
        let found = case.run(Level::detect(), 0..case.visible.len());
        for (i, (found, expected)) in found.iter().zip(case.expected()).enumerate() {
            // Values are below 1; scores below 8 round by up to 2^-21 and go through exp.
            let error = (f64::from(*found) - expected).abs();
            assert!(error < 4e-6, "case {number}, element {i}: found {found}, expected {expected}");
        }
    }
}

#[test]
fn cells_that_nobody_sees_are_not_read() {
    // NaN behind the last visible cell, where a longer text has been.
    let mut case = Case::new([TensorType::F16; 2], [32, 32], 2, 64, causal(40, 3));
    let before = case.run(Level::detect(), 0..3);
    for bytes in [&mut case.keys, &mut case.values] {
        bytes[43 * 64..].as_chunks_mut::<2>().0.fill(0x7e00_u16.to_le_bytes());
    }
    assert_eq!(case.run(Level::detect(), 0..3), before);
    // A value that is not a number reaches the tokens that see it and no other.
    case.values[42 * 64..][..2].copy_from_slice(&0x7e00_u16.to_le_bytes());
    let after = case.run(Level::detect(), 0..3);
    assert_eq!(after[..2 * 64], before[..2 * 64]);
    assert!(after[2 * 64].is_nan() && after[2 * 64 + 1] == before[2 * 64 + 1]);
}

#[test]
fn exp_is_within_two_units_in_the_last_place() {
    for i in 0..=869_000 {
        let x = i as f32 * -1e-4;
        let expected = f64::from(x).exp();
        let unit = f64::from(f32::from_bits((expected as f32).to_bits() + 1)) - f64::from(expected as f32);
        let error = (f64::from(exp(x)) - expected).abs();
        assert!(error <= 2.0 * unit, "exp({x}): found {}, expected {expected}", exp(x));
    }
    assert_eq!((exp(0.0), exp(-100.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
    assert!(exp(f32::NAN).is_nan());
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let error = Cells::new(TensorType::Q4_K, &[0; 144], 256).unwrap_err();
    assert_eq!(error.to_string(), "attend: found type Q4_K, expected one of F32, F16, Q8_0, BF16");
    let error = Cells::new(TensorType::Q8_0, &[0; 34], 16).unwrap_err();
    assert_eq!(error, Error::PartialBlock { ty: TensorType::Q8_0, found: 16 });
    let error = Cells::new(TensorType::F16, &[0; 33], 16).unwrap_err();
    assert_eq!(error.to_string(), "F16: bytes of cells: found 33, expected a multiple of 32");
}

#[test]
#[should_panic(expected = "attention: cells 0..3 of 2")]
fn a_cell_that_is_not_there_is_a_mistake_of_the_caller() {
    let cells = Cells::new(TensorType::F32, &[0; 8], 1).expect("whole rows");
    let token = Token { queries: &[1.0], visible: 0..3 };
    attend(cells, cells, 1.0, &[token], &mut Workspace::default(), &mut [0.0]);
}
