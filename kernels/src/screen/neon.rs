//! NEON: products of bytes without sign where there are such, else of codes that are made signed on the way.
#![expect(unsafe_code, reason = "calls of functions with target features")]

use std::arch::aarch64::{
    int8x16_t, int32x4_t, vdupq_n_s8, vdupq_n_s32, vdupq_n_u8, veorq_u8, vreinterpretq_s8_s32, vreinterpretq_s8_u8,
    vsubq_s32,
};

use super::bounds::{Job, Part, Planes, Sums, few_products, fine_products, word};
use super::layout::{CODE_ZERO, Tile};
use crate::neon::{dot, dot_unsigned, load, prefetch, store_sums};
use crate::{NeonDotprod, NeonI8mm};

pub(super) fn run_dotprod(_: NeonDotprod, job: Job<'_>, sums: &mut [Sums]) {
    let products = |w: [&[Tile]; 2], planes: Planes<'_>, sums: &mut [Sums]| {
        // SAFETY: the token proves that these instructions exist.
        unsafe { dotprod::products(w, planes, sums) }
    };
    job.run(sums, products, few_products, fine_products);
}

pub(super) fn run_i8mm(_: NeonI8mm, job: Job<'_>, sums: &mut [Sums]) {
    let products = |w: [&[Tile]; 2], planes: Planes<'_>, sums: &mut [Sums]| {
        // SAFETY: the token proves that these instructions exist.
        unsafe { i8mm::products(w, planes, sums) }
    };
    job.run(sums, products, few_products, fine_products);
}

/// The kernels of one instruction set: `$dot` adds the products of 4 rows x 4 columns, `$rest` what of them is too
/// much, the same for all rows.
macro_rules! kernels {
    ($name:ident, $features:tt, |$sum:ident, $codes:ident, $q:ident| $dot:expr, $rest:expr) => {
        mod $name {
            use super::*;

            /// All planes in parts of at most 3.
            #[target_feature(enable = $features)]
            pub(super) fn products(w: [&[Tile]; 2], planes: Planes<'_>, sums: &mut [Sums]) {
                let (first, second) = sums.split_at_mut(planes.len());
                for part in planes.parts(3) {
                    let sums = [&mut first[part.start..], &mut second[part.start..]];
                    match part.len {
                        1 => dots::<1>(w, part, sums),
                        2 => dots::<2>(w, part, sums),
                        _ => dots::<3>(w, part, sums),
                    }
                }
            }

            /// Sums of two tile rows with the planes of `part`; quarters are 4 rows each.
            #[target_feature(enable = $features)]
            #[inline]
            fn dots<const N: usize>(w: [&[Tile]; 2], part: Part<'_>, sums: [&mut [Sums]; 2]) {
                let mut acc = [[[vdupq_n_s32(0); 4]; 2]; N];
                let mut rest = [vdupq_n_s32(0); N];
                for (i, tiles) in w[0].iter().zip(w[1]).enumerate() {
                    let x: &[_; N] = part.dwords[i * part.stride..].first_chunk().expect("a dword of each plane");
                    let mut q = [vdupq_n_s8(0); N];
                    for t in 0..N {
                        q[t] = vreinterpretq_s8_s32(vdupq_n_s32(word(x[t])));
                        rest[t] = $rest(rest[t], q[t]);
                    }
                    for (side, tile) in [tiles.0, tiles.1].into_iter().enumerate() {
                        prefetch(tile, PREFETCH_BYTES);
                        for (quarter, bytes) in tile.as_chunks::<16>().0.iter().enumerate() {
                            let $codes = load(bytes);
                            for t in 0..N {
                                let ($sum, $q) = (acc[t][side][quarter], q[t]);
                                acc[t][side][quarter] = $dot;
                            }
                        }
                    }
                }
                for (side, sums) in sums.into_iter().enumerate() {
                    for (t, sums) in sums[..N].iter_mut().enumerate() {
                        for (quarter, sums) in sums.as_chunks_mut().0.iter_mut().enumerate() {
                            store_sums(vsubq_s32(acc[t][side][quarter], rest[t]), sums);
                        }
                    }
                }
            }
        }
    };
}

// Taking the sign for a part of the number, a code loses 128: CODE_ZERO.
kernels!(
    dotprod,
    "neon,dotprod",
    |sum, codes, q| dot(sum, vreinterpretq_s8_u8(veorq_u8(codes, vdupq_n_u8(CODE_ZERO))), q),
    zeros
);
kernels!(i8mm, "neon,i8mm", |sum, codes, q| dot_unsigned(sum, codes, q), nothing);

/// What the sums have too much: the activations times minus `CODE_ZERO`, which is a signed byte as that is not.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn zeros(rest: int32x4_t, q: int8x16_t) -> int32x4_t {
    dot(rest, vdupq_n_s8(i8::MIN), q)
}

#[target_feature(enable = "neon")]
#[inline]
fn nothing(rest: int32x4_t, _q: int8x16_t) -> int32x4_t {
    rest
}

const _: () = assert!(-(i8::MIN as i32) == CODE_ZERO as i32);

const PREFETCH_BYTES: usize = 2048;
