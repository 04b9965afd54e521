//! Rounding floats to integers the way ggml does.

/// The integer nearest to `value`, ties to even, for magnitudes below 2^22.
///
/// The sum with 1.5 * 2^23 leaves the integer in the low bits of the fraction. Beyond that range, and for infinities,
/// those bits are no rounding of anything, but ggml uses them all the same, and searches over denormal blocks get there.
#[inline(always)]
pub(crate) fn nearest(value: f32) -> i32 {
    const MAGIC: f32 = 12_582_912.0;
    const FRACTION: u32 = (1 << 23) - 1;
    ((value + MAGIC).to_bits() & FRACTION) as i32 - (1 << 22)
}

/// The integer nearest to `value`, ties away from zero, like C's `roundf`; 0 for NaN, an end of the range beyond it.
///
/// Cutting after adding the number just under one half is exact: the sum reaches the next integer if and only if the
/// fraction is at least one half.
#[inline]
pub(super) fn round(value: f32) -> i8 {
    const ALMOST_HALF: f32 = 0.5_f32.next_down();
    (value + ALMOST_HALF.copysign(value)) as i8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_takes_ties_to_even() {
        let table = [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (-2.5, -2), (-0.0, 0), (1e-40, 0)];
        for (value, expected) in table {
            assert_eq!(nearest(value), expected, "{value}");
        }
        assert_eq!(nearest(0.5_f32.next_up()), 1);
        assert_eq!(nearest(4_194_303.0), 4_194_303);
        assert_eq!(nearest(-4_194_303.0), -4_194_303);
    }

    #[test]
    fn round_takes_ties_away_from_zero() {
        for integer in -126_i8..=126 {
            let value = f32::from(integer);
            assert_eq!(round(value), integer);
            let away = integer + if value.is_sign_negative() { -1 } else { 1 };
            let tie = value + 0.5_f32.copysign(value);
            assert_eq!(round(tie), away, "{tie}");
            let inside = if value.is_sign_negative() { tie.next_up() } else { tie.next_down() };
            assert_eq!(round(inside), integer, "{inside}");
        }
        assert_eq!(round(-0.5), -1);
        assert_eq!(round(-0.5_f32.next_down()), 0);
        assert_eq!(round(f32::NAN), 0);
    }
}
