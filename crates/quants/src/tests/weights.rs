//! Rows of weights that are hard to quantize, and some that are not: one table of cases for every kernel.

use proptest::collection::vec;
use proptest::prelude::*;

/// Weights that are made alike: the smallest number that shares a scale in any format, a sub-block of Q6_K.
const GROUP: usize = 16;
const SUPER_BLOCK: usize = 256;

/// One to three super-blocks, each of one kind throughout or with kinds changing every 16 weights.
pub(super) fn blocks() -> impl Strategy<Value = Vec<f32>> {
    vec(super_block(), 1..4).prop_map(|blocks| blocks.concat())
}

/// One to three rows of one or two super-blocks, and an importance for each column.
pub(super) fn rows_with_importance() -> impl Strategy<Value = (Vec<f32>, Vec<f32>)> {
    (1..3_usize, 1..4_usize).prop_flat_map(|(columns, rows)| {
        let weights = vec(super_block(), columns * rows).prop_map(|blocks| blocks.concat());
        (weights, importance(columns * SUPER_BLOCK))
    })
}

/// Mean squares of activations: a few of them large, some columns never used, sometimes all alike or all zero.
fn importance(len: usize) -> impl Strategy<Value = Vec<f32>> {
    let scale = || (-30_i32..20).prop_map(|exponent| 2.0_f32.powi(exponent));
    let spread = scale().prop_flat_map(move |scale| vec(normal().prop_map(move |x| x * x * scale), len));
    let tailed = vec(normal().prop_map(|x| (3.0 * x).exp()), len);
    let holed = vec(prop_oneof![3 => normal().prop_map(|x| x * x), 1 => Just(0.0)], len);
    let sparse = vec(prop_oneof![40 => Just(0.0), 1 => Just(1.0)], len);
    let any_magnitude = vec(finite().prop_map(f32::abs), len);
    prop_oneof![
        4 => spread,
        2 => tailed,
        2 => holed,
        1 => sparse,
        1 => any_magnitude,
        1 => scale().prop_map(move |scale| std::iter::repeat_n(scale, len).collect()),
        1 => Just(std::iter::repeat_n(0.0, len).collect()),
    ]
}

fn super_block() -> impl Strategy<Value = Vec<f32>> {
    let uniform = kind().prop_flat_map(|kind| vec(kind.element(), SUPER_BLOCK));
    let mixed = vec(kind().prop_flat_map(|kind| vec(kind.element(), GROUP)), SUPER_BLOCK / GROUP)
        .prop_map(|groups| groups.concat());
    prop_oneof![3 => uniform, 1 => mixed]
}

/// How the weights of a group are made.
#[derive(Clone, Debug)]
enum Kind {
    /// As in trained models.
    Normal { scale: f32 },
    /// As stored in most checkpoints: few significant bits, so that ties and repetitions are frequent.
    NormalBf16 { scale: f32 },
    /// A few weights dwarf the rest.
    HeavyTails { scale: f32 },
    /// All alike.
    Constant(f32),
    /// A hair's breadth around a value, the case of a range that is lost in rounding.
    Around { center: f32, ulps: u32 },
    /// Positive and negative zeros.
    Zeros,
    /// One weight in many is not zero.
    Sparse { value: f32 },
    /// Only one sign: the range must still hold zero.
    OneSign { scale: f32 },
    /// Multiples of a half step, from -`steps` to `steps`.
    Ties { steps: i16, step: f32 },
    /// Multiples of a step of which a fractional number, `top` and some tenths, makes up the largest weight: what the
    /// candidates of the searches look for.
    OffGrid { top: i16, tenths: i16 },
    /// Magnitudes of a decade or so around the given power of two.
    Magnitude { exponent: i16 },
    /// Every exponent, in one group.
    AnyFinite,
    /// The smallest magnitudes, where reciprocals overflow.
    Denormal { bits: u32 },
    /// Infinities among normal weights.
    Infinities { scale: f32 },
}

fn kind() -> impl Strategy<Value = Kind> {
    let scale = (-40_i32..12).prop_map(|exponent| 2.0_f32.powi(exponent));
    let value = prop_oneof![finite(), scale.clone(), scale.clone().prop_map(|x| -x)];
    let steps = prop_oneof![
        Just(3),
        Just(4),
        Just(7),
        Just(8),
        Just(15),
        Just(16),
        Just(31),
        Just(32),
        Just(127),
        Just(128),
        1..300_i16
    ];
    prop_oneof![
        4 => scale.clone().prop_map(|scale| Kind::Normal { scale }),
        4 => scale.clone().prop_map(|scale| Kind::NormalBf16 { scale }),
        2 => scale.clone().prop_map(|scale| Kind::HeavyTails { scale }),
        1 => value.clone().prop_map(Kind::Constant),
        1 => (value.clone(), 1..40_u32).prop_map(|(center, ulps)| Kind::Around { center, ulps }),
        1 => Just(Kind::Zeros),
        1 => value.prop_map(|value| Kind::Sparse { value }),
        1 => scale.clone().prop_map(|scale| Kind::OneSign { scale }),
        2 => (steps, scale.clone()).prop_map(|(steps, step)| Kind::Ties { steps, step }),
        2 => (prop_oneof![Just(3), Just(4), Just(8), Just(15), Just(31), Just(32)], -10..=10_i16)
            .prop_map(|(top, tenths)| Kind::OffGrid { top, tenths }),
        // Either end of F32, the thresholds of 1e-15, and scales beyond F16 lie on the way.
        4 => (-149..128_i16).prop_map(|exponent| Kind::Magnitude { exponent }),
        1 => Just(Kind::AnyFinite),
        2 => (1..24_u32).prop_map(|bits| Kind::Denormal { bits }),
        1 => scale.prop_map(|scale| Kind::Infinities { scale }),
    ]
}

impl Kind {
    fn element(&self) -> BoxedStrategy<f32> {
        match *self {
            Kind::Normal { scale } => normal().prop_map(move |x| x * scale).boxed(),
            Kind::NormalBf16 { scale } => {
                normal().prop_map(move |x| f32::from_bits((x * scale).to_bits() & 0xFFFF_0000)).boxed()
            }
            Kind::HeavyTails { scale } => {
                prop_oneof![15 => normal(), 1 => normal().prop_map(|x| x * x * x * 300.0)]
                    .prop_map(move |x| x * scale)
                    .boxed()
            }
            Kind::Constant(value) => Just(value).boxed(),
            Kind::Around { center, ulps } => {
                (0..=ulps).prop_map(move |ulps| finite_from_bits(center.to_bits().wrapping_add(ulps))).boxed()
            }
            Kind::Zeros => signed(Just(0.0)).boxed(),
            Kind::Sparse { value } => prop_oneof![20 => Just(0.0), 1 => signed(Just(value))].boxed(),
            Kind::OneSign { scale } => {
                let sign = scale.to_bits() >> 23 & 1;
                normal().prop_map(move |x| x.abs() * if sign == 0 { scale } else { -scale }).boxed()
            }
            Kind::Ties { steps, step } => {
                (-2 * steps..=2 * steps).prop_map(move |halves| f32::from(halves) * 0.5 * step).boxed()
            }
            Kind::OffGrid { top, tenths } => {
                let steps = f32::from(top) + 0.1 * f32::from(tenths);
                let multiple = (-top..=top).prop_map(move |q| f32::from(q) / steps);
                prop_oneof![15 => multiple, 1 => signed(Just(1.0))].boxed()
            }
            Kind::Magnitude { exponent } => {
                // In double precision, because 2^-149 times a fraction must not become zero on the way.
                let unit = 2.0_f64.powi(exponent.into());
                signed((0.0..4.0).prop_map(move |x| ((x * unit) as f32).min(f32::MAX))).boxed()
            }
            Kind::AnyFinite => finite().boxed(),
            Kind::Denormal { bits } => signed((0..1_u32 << bits).prop_map(f32::from_bits)).boxed(),
            Kind::Infinities { scale } => {
                prop_oneof![30 => normal().prop_map(move |x| x * scale), 1 => signed(Just(f32::INFINITY))]
                    .boxed()
            }
        }
    }
}

/// Close to a standard normal distribution: the sum of twelve uniform ones, here cut out of one random number each.
fn normal() -> impl Strategy<Value = f32> + Clone {
    any::<[u16; 12]>()
        .prop_map(|parts| parts.iter().map(|&part| f32::from(part) / 65536.0).sum::<f32>() - 6.0)
}

fn signed(magnitude: impl Strategy<Value = f32>) -> impl Strategy<Value = f32> {
    (magnitude, any::<bool>()).prop_map(|(x, negative)| if negative { -x } else { x })
}

fn finite() -> impl Strategy<Value = f32> + Clone {
    any::<u32>().prop_map(finite_from_bits)
}

/// The float with these bits; one of a lower exponent where they say infinity or NaN.
fn finite_from_bits(bits: u32) -> f32 {
    let value = f32::from_bits(bits);
    if value.is_finite() { value } else { f32::from_bits(bits & !0x4000_0000) }
}
