//! The gate's nonlinearity, for many numbers at once.

/// `gate[i] = silu(gate[i]) * up[i]`, where silu(x) = x / (1 + exp(-x)).
pub(super) fn silu_product(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp(-*gate)) * up;
    }
}

/// exp(x) within 2 units in the last place where the result is a normal number; 0 below and infinity above. Only
/// operations that compilers turn into vectors: x = n ln 2 + r with |r| <= ln 2 / 2, exp(r) by its Taylor polynomial of
/// degree 7, whose remainder is below 2^-28.
fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, the first with so few bits that its multiples are exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5 * 2^23 rounds to a whole number.
    const ROUNDER: f32 = 12_582_912.0;
    let clamped = x.clamp(-104.0, 89.0);
    let n = (clamped * LOG2_E + ROUNDER) - ROUNDER;
    let r = (clamped - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut p = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + coefficient;
    }
    // 2^n as two factors, each of which is a normal number.
    let half = n as i32 >> 1;
    let power = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
    p * power(half) * power(n as i32 - half)
}

#[cfg(test)]
mod tests {
    use super::{exp, silu_product};

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for i in -870_000..=880_000 {
            let x = i as f32 * 1e-4;
            let expected = f64::from(x).exp();
            let unit =
                f64::from(f32::from_bits((expected as f32).to_bits() + 1)) - f64::from(expected as f32);
            let error = (f64::from(exp(x)) - expected).abs();
            assert!(error <= 2.0 * unit, "exp({x}): found {}, expected {expected}", exp(x));
        }
    }

    #[test]
    fn extremes_keep_their_meaning() {
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
        let mut gate = [-200.0, 0.0, 200.0, f32::NAN];
        silu_product(&mut gate, &[3.0; 4]);
        assert!(gate[0].abs() < 1e-30 && gate[1] == 0.0 && gate[2] == 600.0 && gate[3].is_nan(), "{gate:?}");
    }
}
