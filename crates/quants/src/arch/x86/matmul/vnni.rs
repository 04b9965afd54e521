//! Steps over unpacked tiles with VNNI, which adds products of four bytes in 32 bits: AVX-VNNI with eight weight rows to
//! a vector, AVX-512 VNNI with sixteen.

use std::arch::x86_64::*;

use super::blocks::traits;
use super::tiles::{AVX_VNNI, AVX512_VNNI, DOTS, LongTile, ShortTile, Starts, excess, scale_at};
use crate::arch::cursor::Cursor;
use crate::matmul::{LONG, SHORT};

/// The two steps for one length of vectors, whose names follow.
macro_rules! steps {
    (
        $isa:ident, $features:literal, $long:ident, $short:ident, $vector:ident,
        $set1:ident, $add:ident, $mullo:ident, $dpbusd:ident, $dpwssd:ident,
        $set1_ps:ident, $mul_ps:ident, $fmadd:ident, $fnmadd:ident, $to_ps:ident, $load:ident, $store:ident
    ) => {
        /// Adds one super-block's part to the dot products of a tile's weight rows with `N` rows of activations.
        ///
        /// # Safety
        ///
        /// The activations must be within their shape, and `dots` readable (after the first block) and writable for `N`
        /// rows.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $long<const TY: u32, const N: usize>(
            tile: &LongTile,
            activations: Cursor<'_>,
            starts: &Starts,
            dots: *mut f32,
        ) {
            let traits = const { traits(TY) };
            let vectors = tile.quants.as_ptr().cast::<$vector>();
            let scales = tile.scales.as_ptr().cast::<$vector>();
            let mins = tile.mins.as_ptr().cast::<$vector>();
            let mut isums = [$set1(0); N];
            // SAFETY: all offsets lie within the tile and the rows.
            unsafe {
                let columns = activations.block * LONG;
                let rows: [*const i32; N] = std::array::from_fn(|n| activations.row(n).add(columns).cast());
                for i in 0..LONG / traits.sub_len {
                    let at = scale_at(i, traits.sub_len);
                    let scale = *scales.add(at);
                    let mut sums: [$vector; N] = std::array::from_fn(|n| {
                        $set1(if const { excess(TY, $isa) != 0 } { starts[n][at] } else { 0 })
                    });
                    for q in i * traits.sub_len / 4..(i + 1) * traits.sub_len / 4 {
                        let weights = *vectors.add(q);
                        for n in 0..N {
                            sums[n] = $dpbusd(sums[n], weights, $set1(rows[n].add(q).read_unaligned()));
                        }
                    }
                    for n in 0..N {
                        isums[n] = if traits.sub_sums_fit_16_bits() {
                            $dpwssd(isums[n], sums[n], scale)
                        } else {
                            $add(isums[n], $mullo(sums[n], scale))
                        };
                    }
                }
                for n in 0..N {
                    let scale = $set1_ps(activations.scale(n, 0));
                    let at = dots.add(n * DOTS);
                    let dot = if activations.block == 0 { $set1_ps(0.0) } else { $load(at) };
                    let d = $mul_ps($load(tile.d.as_ptr().cast()), scale);
                    let mut dot = $fmadd(d, $to_ps(isums[n]), dot);
                    if traits.minima {
                        let mut msum = $set1(0);
                        let sums = activations.long_sums(n, traits.sub_len).cast::<i32>();
                        for k in 0..LONG / traits.sub_len / 2 {
                            msum = $dpwssd(msum, *mins.add(k), $set1(sums.add(k).read_unaligned()));
                        }
                        let dmin = $mul_ps($load(tile.dmin.as_ptr().cast()), scale);
                        dot = $fnmadd(dmin, $to_ps(msum), dot);
                    }
                    $store(at, dot);
                }
            }
        }

        /// Adds `n_blocks` blocks' part to the dot products of a tile's weight rows with `N` rows of activations.
        ///
        /// # Safety
        ///
        /// So many blocks must be in the tile, the activations be within their shape, and `dots` readable (after the
        /// first block) and writable for `N` rows.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $short<const TY: u32, const N: usize>(
            tile: *const ShortTile,
            activations: Cursor<'_>,
            starts: &Starts,
            n_blocks: usize,
            dots: *mut f32,
        ) {
            let traits = const { traits(TY) };
            // SAFETY: all offsets lie within the tile and the rows.
            unsafe {
                let vectors = (&raw const (*tile).quants).cast::<$vector>();
                let d = (&raw const (*tile).d).cast::<$vector>();
                let m = (&raw const (*tile).m).cast::<$vector>();
                let columns = activations.block * SHORT;
                let rows: [*const i32; N] = std::array::from_fn(|n| activations.row(n).add(columns).cast());
                let mut sums = [$set1_ps(0.0); N];
                if activations.block > 0 {
                    sums = std::array::from_fn(|n| $load(dots.add(n * DOTS)));
                }
                for b in 0..n_blocks {
                    let mut isums: [$vector; N] = std::array::from_fn(|n| {
                        $set1(if const { excess(TY, $isa) != 0 } { starts[n][b] } else { 0 })
                    });
                    for q in 8 * b..8 * (b + 1) {
                        let weights = *vectors.add(q);
                        for n in 0..N {
                            isums[n] = $dpbusd(isums[n], weights, $set1(rows[n].add(q).read_unaligned()));
                        }
                    }
                    let d = $load(d.add(b).cast());
                    let m = if traits.minima { $load(m.add(b).cast()) } else { d };
                    for n in 0..N {
                        let scale = $set1_ps(activations.scale(n, b));
                        sums[n] = $fmadd($mul_ps(d, scale), $to_ps(isums[n]), sums[n]);
                        if traits.minima {
                            let sum = $set1_ps(activations.short_sum(n, b));
                            sums[n] = $fmadd($mul_ps(m, scale), sum, sums[n]);
                        }
                    }
                }
                for n in 0..N {
                    $store(dots.add(n * DOTS), sums[n]);
                }
            }
        }
    };
}

steps!(
    AVX_VNNI,
    "avx2,fma,avxvnni",
    long_256,
    short_256,
    __m256i,
    _mm256_set1_epi32,
    _mm256_add_epi32,
    _mm256_mullo_epi32,
    _mm256_dpbusd_avx_epi32,
    _mm256_dpwssd_avx_epi32,
    _mm256_set1_ps,
    _mm256_mul_ps,
    _mm256_fmadd_ps,
    _mm256_fnmadd_ps,
    _mm256_cvtepi32_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps
);
steps!(
    AVX512_VNNI,
    "avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni",
    long_512,
    short_512,
    __m512i,
    _mm512_set1_epi32,
    _mm512_add_epi32,
    _mm512_mullo_epi32,
    _mm512_dpbusd_epi32,
    _mm512_dpwssd_epi32,
    _mm512_set1_ps,
    _mm512_mul_ps,
    _mm512_fmadd_ps,
    _mm512_fnmadd_ps,
    _mm512_cvtepi32_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps
);
