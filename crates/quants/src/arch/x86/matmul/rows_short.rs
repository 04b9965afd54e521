//! Few rows of activations, and weights in blocks of 32: as in [`super::rows`], with a block of a weight row to a vector.

use std::arch::x86_64::*;

use super::Isa;
use super::blocks::{WIDE_OFFSET, float_scales, load, prefetch, short_quants, traits};
use super::rows::{GROUP, Group, ahead, sums_across};
use super::tiles;
use crate::matmul::{SHORT, Shape};

/// One, two or three rows of activations times all rows of weights, in blocks of 32.
///
/// # Safety
///
/// The processor must have the instruction set, and `weights`, `activations` and `out` be as large as the shape says.
pub(super) unsafe fn multiply<const TY: u32>(
    isa: Isa,
    weights: *const u8,
    activations: *const u8,
    shape: &Shape,
    out: *mut f32,
) {
    macro_rules! kernel {
        ($kernel:ident) => {
            match shape.n_acts {
                1 => $kernel::<TY, 1>(weights, activations, shape, out),
                2 => $kernel::<TY, 2>(weights, activations, shape, out),
                3 => $kernel::<TY, 3>(weights, activations, shape, out),
                n => unreachable!("{n} rows of activations"),
            }
        };
    }
    // SAFETY: as promised by the caller.
    unsafe {
        match isa {
            Isa::Avx2 => kernel!(avx2),
            #[cfg(avx512)]
            Isa::AvxVnni => kernel!(avx_vnni),
            #[cfg(avx512)]
            Isa::Avx512Vnni | Isa::Amx => kernel!(avx512_vnni),
        }
    }
}

/// [`short`] with the instructions of a set.
macro_rules! kernel {
    ($name:ident, $isa:expr, $features:literal) => {
        /// # Safety
        ///
        /// That of [`short`].
        #[target_feature(enable = $features)]
        unsafe fn $name<const TY: u32, const N: usize>(
            weights: *const u8,
            activations: *const u8,
            shape: &Shape,
            out: *mut f32,
        ) {
            // SAFETY: as promised by the caller.
            unsafe { short::<TY, { $isa }, N>(weights, activations, shape, out) }
        }
    };
}

kernel!(avx2, tiles::AVX2, "avx2,fma,f16c");
#[cfg(avx512)]
kernel!(avx_vnni, tiles::AVX_VNNI, "avx2,fma,f16c,avxvnni");
#[cfg(avx512)]
kernel!(avx512_vnni, tiles::AVX512_VNNI, "avx2,fma,f16c,avx512f,avx512vl,avx512vnni");

/// 32 activations of a row, as they are multiplied with several blocks of weights.
#[derive(Clone, Copy)]
struct Columns {
    bytes: __m256i,
    /// What takes the offset of unsigned weights off the sums: of four columns in 32 bits or, without VNNI, of two in 16.
    correction: __m256i,
}

impl Columns {
    /// # Safety
    ///
    /// The processor must have what `ISA` stands for.
    #[inline(always)]
    unsafe fn new<const TY: u32, const ISA: u32>(bytes: __m256i) -> Self {
        // SAFETY: as promised by the caller.
        unsafe {
            let zero = _mm256_setzero_si256();
            let offset = match const { offset::<TY, ISA>() } {
                0 => return Self { bytes, correction: zero },
                offset => _mm256_set1_epi8(offset as u8 as i8),
            };
            let correction = if const { tiles::has_vnni(ISA) } {
                _mm256_sub_epi32(zero, fours::<ISA>(zero, offset, bytes))
            } else {
                _mm256_sub_epi16(zero, _mm256_maddubs_epi16(offset, bytes))
            };
            Self { bytes, correction }
        }
    }

    /// The sums of products with a block's quants, four columns each.
    ///
    /// # Safety
    ///
    /// The processor must have what `ISA` stands for.
    #[inline(always)]
    unsafe fn times<const TY: u32, const ISA: u32>(self, quants: __m256i) -> __m256i {
        let wide = const { traits(TY).wide() };
        // SAFETY: as promised by the caller.
        unsafe {
            if const { tiles::has_vnni(ISA) } {
                let quants = tiles::for_products::<TY, ISA>(quants);
                return fours::<ISA>(self.correction, quants, self.bytes);
            }
            let pairs = if wide {
                _mm256_maddubs_epi16(_mm256_abs_epi8(quants), _mm256_sign_epi8(self.bytes, quants))
            } else {
                _mm256_add_epi16(_mm256_maddubs_epi16(quants, self.bytes), self.correction)
            };
            _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
        }
    }
}

/// What unsigned quants are too high by, as they are multiplied.
const fn offset<const TY: u32, const ISA: u32>() -> i16 {
    if tiles::has_vnni(ISA) && traits(TY).wide() { WIDE_OFFSET } else { traits(TY).offset }
}

/// The sums, and four products of an unsigned byte with a signed one in each.
///
/// # Safety
///
/// The processor must have what `ISA` stands for, which is one of VNNI's.
#[inline(always)]
#[allow(unused_variables, reason = "without AVX-512")]
unsafe fn fours<const ISA: u32>(sums: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i {
    // SAFETY: as promised by the caller.
    unsafe {
        match ISA {
            #[cfg(avx512)]
            tiles::AVX_VNNI => _mm256_dpbusd_avx_epi32(sums, unsigned, signed),
            #[cfg(avx512)]
            tiles::AVX512_VNNI => _mm256_dpbusd_epi32(sums, unsigned, signed),
            _ => unreachable!("no VNNI"),
        }
    }
}

/// `N` rows of activations times all rows of weights, in blocks of 32.
///
/// # Safety
///
/// The processor must have AVX2, FMA, F16C and what `ISA` stands for, and `weights`, `activations` and `out` be as large
/// as the shape says, for `N` rows of activations.
#[inline(always)]
unsafe fn short<const TY: u32, const ISA: u32, const N: usize>(
    weights: *const u8,
    activations: *const u8,
    shape: &Shape,
    out: *mut f32,
) {
    let traits = const { traits(TY) };
    let (n_blocks, ahead) = (shape.n_cols / SHORT, ahead());
    // SAFETY: all offsets lie within rows of the shape.
    unsafe {
        let zero = _mm256_setzero_si256();
        for group in Group::of(shape.n_rows) {
            let mut blocks = group.starts(weights, shape.row_bytes);
            let mut dots = [_mm256_setzero_ps(); N];
            for b in 0..n_blocks {
                let mut columns = [Columns { bytes: zero, correction: zero }; N];
                for n in 0..N {
                    let row = activations.add(n * shape.layout.row_bytes);
                    columns[n] = Columns::new::<TY, ISA>(load(row.add(b * SHORT)));
                }
                let mut isums = [[zero; GROUP]; N];
                for r in 0..GROUP {
                    prefetch(blocks[r].wrapping_add(ahead), traits.block_bytes);
                    let quants = short_quants::<TY>(blocks[r]);
                    for n in 0..N {
                        isums[n][r] = columns[n].times::<TY, ISA>(quants);
                    }
                }
                let (d, m) = float_scales::<TY>(&blocks);
                for n in 0..N {
                    let row = activations.add(n * shape.layout.row_bytes);
                    let scale = row.add(shape.layout.scales).cast::<f32>().add(b).read_unaligned();
                    let scale = _mm256_set1_ps(scale);
                    let isum = _mm256_cvtepi32_ps(sums_across(&isums[n]));
                    dots[n] = _mm256_fmadd_ps(_mm256_mul_ps(d, scale), isum, dots[n]);
                    if traits.minima {
                        let sum = row.add(shape.layout.sums).cast::<i16>().add(b).read_unaligned();
                        let m = _mm256_mul_ps(m, scale);
                        dots[n] = _mm256_fmadd_ps(m, _mm256_set1_ps(f32::from(sum)), dots[n]);
                    }
                }
                for block in &mut blocks {
                    *block = block.wrapping_add(traits.block_bytes);
                }
            }
            for n in 0..N {
                group.store(out.add(n * shape.out_stride), dots[n]);
            }
        }
    }
}
