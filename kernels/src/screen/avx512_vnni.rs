//! AVX-512 VNNI: one `vpdpbusd` for 16 rows x 4 columns of one plane.
#![expect(unsafe_code, reason = "loads, stores, prefetches and calls of functions with target features")]

use std::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_si512,
    _mm512_storeu_si512,
};

use super::bounds::{FINE_MAX, Job, Outliers, PLANES_MAX, Part, Planes, Sums, word};
use super::layout::Tile;
use crate::Avx512Vnni;
use crate::ahead::ask_far;

pub(super) fn run(_: Avx512Vnni, job: Job<'_>, sums: &mut [Sums]) {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn body(job: Job<'_>, sums: &mut [Sums]) {
        job.run(
            sums,
            |w, planes, sums| products(w, planes, sums),
            |w, outliers| few(w, outliers),
            |w, planes, sums| fine(w, planes, sums),
        );
    }
    // SAFETY: the token proves that these instructions exist.
    unsafe { body(job, sums) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn products(w: [&[Tile]; 2], planes: Planes<'_>, sums: &mut [Sums]) {
    // The two tile rows behind these, in even parts over all that is done meanwhile.
    let line_bytes = size_of_val(w[0]) * 2 / (planes.len().div_ceil(PLANES_MAX) * w[0].len());
    let mut ahead = size_of_val(w[0]) * 2;
    for part in planes.parts(PLANES_MAX) {
        macro_rules! by_len {
            ($($n:literal),*) => {
                match part.len {
                    $($n => dot::<$n>(w, part, planes.len(), (ahead, line_bytes), sums),)*
                    _ => unreachable!("parts have at most PLANES_MAX planes"),
                }
            };
        }
        by_len!(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12);
        ahead += line_bytes * w[0].len();
    }
}

/// Sums of both tile rows with the planes of `part`. Meanwhile asks for what lies `ahead` bytes behind the first tile, and
/// `step` bytes further for every tile: the two tile rows that come next, in the order of their addresses; each is too
/// short a stream to run ahead of itself.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn dot<const N: usize>(
    w: [&[Tile]; 2],
    part: Part<'_>,
    planes: usize,
    (ahead, step): (usize, usize),
    sums: &mut [Sums],
) {
    let tiles = w[0].len();
    let w = [&w[0][..tiles], &w[1][..tiles]];
    let x = &part.dwords.as_chunks::<N>().0[..tiles];
    let mut acc = [[_mm512_setzero_si512(); N]; 2];
    for i in 0..tiles {
        let codes = [load(&w[0][i]), load(&w[1][i])];
        prefetch(&w[0][0], ahead + i * step);
        if step > size_of::<Tile>() {
            prefetch(&w[0][0], ahead + i * step + size_of::<Tile>());
        }
        for t in 0..N {
            let q = _mm512_set1_epi32(word(x[i][t]));
            for r in 0..2 {
                acc[r][t] = _mm512_dpbusd_epi32(acc[r][t], codes[r], q);
            }
        }
    }
    for (r, acc) in acc.into_iter().enumerate() {
        for (t, acc) in acc.into_iter().enumerate() {
            store(acc, &mut sums[r * planes + part.start + t]);
        }
    }
}

/// Sums of both tile rows with a plane of outliers, four in turn, so that none waits for itself.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
pub(super) fn few(w: [&[Tile]; 2], outliers: &Outliers) -> [Sums; 2] {
    let mut acc = [[_mm512_setzero_si512(); 4]; 2];
    for (tiles, dwords) in outliers.fours() {
        for i in 0..4 {
            let q = _mm512_set1_epi32(word(dwords[i]));
            for r in 0..2 {
                acc[r][i] = _mm512_dpbusd_epi32(acc[r][i], load(&w[r][tiles[i] as usize]), q);
            }
        }
    }
    let mut sums = [[0; 16]; 2];
    for r in 0..2 {
        let [a, b, c, d] = acc[r];
        store(_mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d)), &mut sums[r]);
    }
    sums
}

/// Sums of a tile row with third planes.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn fine(w: &[Tile], planes: &[&[[i8; 4]]], sums: &mut [Sums]) {
    macro_rules! by_len {
        ($($n:literal),*) => {
            match planes.len() {
                $($n => fine_dot::<$n>(
                    w,
                    planes.first_chunk().expect("as matched"),
                    sums.first_chunk_mut().expect("sums for each plane"),
                ),)*
                _ => unreachable!("at most FINE_MAX planes"),
            }
        };
    }
    by_len!(1, 2, 3, 4, 5, 6, 7, 8);
}

const _: () = assert!(FINE_MAX == 8);

/// Two sums in turn for each plane, so that none waits for itself.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline(never)]
fn fine_dot<const N: usize>(w: &[Tile], planes: &[&[[i8; 4]]; N], sums: &mut [Sums; N]) {
    let pairs = w.len() / 2;
    let w = &w.as_chunks::<2>().0[..pairs];
    let mut x = [&[][..]; N];
    for (x, plane) in x.iter_mut().zip(planes) {
        *x = &plane.as_chunks::<2>().0[..pairs];
    }
    let mut acc = [[_mm512_setzero_si512(); 2]; N];
    for i in 0..pairs {
        for side in 0..2 {
            let codes = load(&w[i][side]);
            for t in 0..N {
                acc[t][side] = _mm512_dpbusd_epi32(acc[t][side], codes, _mm512_set1_epi32(word(x[t][i][side])));
            }
        }
    }
    for t in 0..N {
        store(_mm512_add_epi32(acc[t][0], acc[t][1]), &mut sums[t]);
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load(tile: &Tile) -> __m512i {
    // SAFETY: a tile is 64 readable bytes; the load has no alignment requirement.
    unsafe { _mm512_loadu_si512(tile.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(v: __m512i, sums: &mut Sums) {
    // SAFETY: 64 writable bytes; the store has no alignment requirement.
    unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), v) }
}

#[inline(always)]
fn prefetch(tile: &Tile, ahead: usize) {
    ask_far(tile.as_ptr().wrapping_add(ahead));
}
