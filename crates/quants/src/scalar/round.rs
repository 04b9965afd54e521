//! Conversions from float to integer, with the results that ggml's C gets on x86-64.

/// The integer nearest to `value`, ties to even, for magnitudes below 2^22.
///
/// The sum with 1.5 * 2^23 leaves the integer in the low bits of the fraction. Beyond that range, and for infinities,
/// those bits are no rounding of anything, but ggml uses them all the same, and searches over denormal blocks get there.
#[inline]
pub(super) fn nearest(value: f32) -> i32 {
    const MAGIC: f32 = 12_582_912.0;
    const FRACTION: u32 = (1 << 23) - 1;
    ((value + MAGIC).to_bits() & FRACTION) as i32 - (1 << 22)
}

/// The low byte of `value` cut to an integer: toward zero, and 0 for what does not fit an `i32`.
///
/// C leaves the conversion of a float that does not fit an 8-bit integer undefined. On x86-64 it goes through `i32`, where
/// everything too large becomes `i32::MIN`, and the low byte of that is 0. It happens where a block's scale is so small
/// that its reciprocal is infinite, or where a weight is.
#[inline]
pub(super) fn truncate(value: f32) -> u8 {
    const TOO_LARGE: f32 = 2_147_483_648.0;
    if value.abs() < TOO_LARGE { value as i32 as u8 } else { 0 }
}

/// The low byte of the integer nearest to `value`, ties away from zero; 0 for what does not fit an `i32`.
///
/// Equal to rounding with `roundf` and cutting, for every magnitude below 2^22: the number just under one half carries a
/// fraction of at least one half over the next integer and nothing less.
#[inline]
pub(super) fn round(value: f32) -> u8 {
    const ALMOST_HALF: f32 = 0.5_f32.next_down();
    truncate(value + ALMOST_HALF.copysign(value))
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
        for integer in -127_i32..=127 {
            let value = integer as f32;
            assert_eq!(round(value) as i8 as i32, integer);
            let away = integer + if integer < 0 { -1 } else { 1 };
            let tie = value + 0.5_f32.copysign(value);
            assert_eq!(round(tie) as i8, away as i8, "{tie}");
            let inside = if integer < 0 { tie.next_up() } else { tie.next_down() };
            assert_eq!(round(inside) as i8 as i32, integer, "{inside}");
        }
    }

    #[test]
    fn what_fits_no_integer_becomes_zero() {
        for value in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 3e9, -3e9] {
            assert_eq!(truncate(value), 0, "{value}");
            assert_eq!(round(value), 0, "{value}");
        }
        assert_eq!(truncate(2_147_483_520.0), 0x80);
        assert_eq!(truncate(-3.9), (-3_i8) as u8);
    }
}
