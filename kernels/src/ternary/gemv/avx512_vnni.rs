//! One row of activations on AVX-512 VNNI: whole row tiles, chosen rows, chosen columns.
#![expect(unsafe_code, reason = "loads and calls of functions with target features")]

use std::arch::x86_64::{
    __m512i, _MM_HINT_T0, _mm512_add_epi32, _mm512_and_si512, _mm512_dpbusd_epi32, _mm512_loadu_si512,
    _mm512_reduce_add_epi32, _mm512_rol_epi32, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_setzero_si512,
    _mm512_srai_epi32, _mm512_srli_epi32, _mm512_ternarylogic_epi32,
};

use super::super::avx512_vnni::{lanes, load, merge, prefetch};
use super::super::layout::{TILE_ROWS, Tile, word};
use super::super::linear::{Finish, Job};
use super::columns::{ColumnMatrix, LINE_ROWS, LiveColumns};
use super::rows::{RowActivations, RowMatrix};
use crate::Avx512Vnni;
use crate::ahead::ask_far;
use crate::isa::is_amd;

/// Whole row tiles, with groups of at most [`FEW_MAX`] activation rows.
pub(in super::super) fn linear<F: Finish>(_: Avx512Vnni, job: Job<'_>, finish: F, out: &mut [F::Out]) {
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn few<F: Finish, const N: usize, const SPLIT: usize>(
        job: Job<'_>,
        finish: F,
        out: &mut [F::Out],
        tiles: std::ops::Range<usize>,
        start: usize,
    ) {
        // Built by a closure on purpose: filled by a loop, the array costs address arithmetic in the hot loop.
        let x: [_; N] = std::array::from_fn(|t| job.x_row(start + t));
        for index in tiles {
            let sums = few_dot::<N, SPLIT>(job.row_tile(index), x);
            for (t, sums) in sums.into_iter().enumerate() {
                job.store(finish, out, index, start + t, lanes(sums));
            }
        }
    }
    for (tiles, tokens) in job.blocks(FEW_MAX) {
        macro_rules! by_len {
            ($($n:literal x $split:literal),*) => {
                match tokens.len() {
                    // SAFETY: the token proves that these instructions exist.
                    $($n => unsafe { few::<F, $n, $split>(job, finish, out, tiles, tokens.start) },)*
                    n => assert!(n == 0, "few rows"),
                }
            };
        }
        by_len!(1 x 4, 2 x 4, 3 x 4, 4 x 4);
    }
}

/// Sums of `code * q` of one row tile with each activation row.
///
/// `SPLIT` fields have sums of their own, see [`merge`]: that saves shifts, and one activation row then takes turns
/// between two sets of sums, so that none waits for itself.
///
/// Prefetches into the second level run far ahead, those into the first bring what is near. On a core of 17.5 GB/s
/// with 147 ns of latency (whole passes over 768 MiB, 2560 columns), one row: 16.0 GB/s with both; 15.1 with the far
/// ones alone, 13.6 with 2 KiB ahead into the first level, 9.6 without; 11.8 with every other far one. Four rows: 13.9
/// against 12.2 with two row tiles at once. On a Zen 5 core of 42 GB/s one row
/// 34 GB/s with both, 41 with the far ones alone (8 KiB ahead; 39, 40, 40 and 37 with 4, 6, 12 and 16), 42 with these into the
/// first level. Five trits a byte (a table for four, compares for the fifth): 15.3 GB/s,
/// which is 1.19 times the weights of 16.0, for half as much memory again beside the tiles that more rows need.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn few_dot<const N: usize, const SPLIT: usize>(w: &[Tile], x: [&[[i8; 16]]; N]) -> [__m512i; N] {
    let x: [_; N] = std::array::from_fn(|t| &x[t][..w.len()]);
    let mut acc = [[[_mm512_setzero_si512(); SPLIT]; N]; 2];
    // Two tiles at a time: sums that a number chooses would lie in memory, 30 GB/s where registers give 41 (Zen 5).
    let (pairs, last) = w.as_chunks::<2>();
    for (i, pair) in pairs.iter().enumerate() {
        for side in 0..2 {
            let acc = &mut acc[if N == 1 { side } else { 0 }];
            add_products(&pair[side], std::array::from_fn(|t| &x[t][2 * i + side]), acc);
        }
    }
    if let [tile] = last {
        add_products(tile, x.map(|x| &x[w.len() - 1]), &mut acc[0]);
    }
    let mut sums = [_mm512_setzero_si512(); N];
    for (t, sum) in sums.iter_mut().enumerate() {
        *sum = _mm512_add_epi32(merge(acc[0][t]), merge(acc[1][t]));
    }
    sums
}

/// Adds the products of a tile with its part of each activation row; asks for tiles behind it.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn add_products<const N: usize, const SPLIT: usize>(tile: &Tile, x: [&[i8; 16]; N], acc: &mut [[__m512i; SPLIT]; N]) {
    ask_far(tile.as_ptr().wrapping_add(FAR_BYTES));
    if !is_amd() {
        prefetch::<_MM_HINT_T0>(tile, NEAR_BYTES);
    }
    let mut fields = load(tile);
    for s in 0..4 {
        let codes = _mm512_and_si512(fields, field_mask(s % SPLIT));
        if SPLIT == 2 && s == 1 {
            fields = _mm512_srli_epi32::<4>(fields);
        }
        for t in 0..N {
            acc[t][s % SPLIT] = _mm512_dpbusd_epi32(acc[t][s % SPLIT], codes, _mm512_set1_epi32(word(x[t], s)));
        }
    }
}

pub(super) fn rows<F: Finish>(
    _: Avx512Vnni,
    w: RowMatrix<'_>,
    first: usize,
    live: &[u32],
    x: RowActivations<'_>,
    finish: F,
    out: &mut [F::Out],
) {
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn body<F: Finish>(
        w: RowMatrix<'_>,
        first: usize,
        live: &[u32],
        x: RowActivations<'_>,
        finish: F,
        out: &mut [F::Out],
    ) {
        let ahead = (FAR_BYTES / (w.lines_per_row() * size_of::<Tile>())).next_multiple_of(ROWS_AT_ONCE);
        let (fours, rest) = live.as_chunks::<ROWS_AT_ONCE>();
        for (i, four) in fours.iter().enumerate() {
            let mut rows: [&[Tile]; ROWS_AT_ONCE] = [&[]; ROWS_AT_ONCE];
            let mut next: [&[Tile]; ROWS_AT_ONCE] = [&[]; ROWS_AT_ONCE];
            for r in 0..ROWS_AT_ONCE {
                rows[r] = w.row(first + four[r] as usize);
                let later = (i * ROWS_AT_ONCE + ahead + r).min(live.len() - 1);
                next[r] = w.row(first + live[later] as usize);
            }
            let sums = rows_dot(rows, next, x.q.as_chunks().0);
            for r in 0..ROWS_AT_ONCE {
                out[four[r] as usize] = finish.finish(sums[r].wrapping_sub(x.sum), x.scale);
            }
        }
        for &row in rest {
            let this = w.row(first + row as usize);
            let [sum] = rows_dot([this], [this], x.q.as_chunks().0);
            out[row as usize] = finish.finish(sum.wrapping_sub(x.sum), x.scale);
        }
    }
    // SAFETY: the token proves that these instructions exist.
    unsafe { body(w, first, live, x, finish, out) }
}

/// Sums of `code * q` of `R` rows, `next` asked for meanwhile.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn rows_dot<const R: usize>(rows: [&[Tile]; R], next: [&[Tile]; R], x: &[[i8; 64]]) -> [i32; R] {
    let mut acc = [[_mm512_setzero_si512(); 4]; R];
    for (i, x) in x.as_chunks::<4>().0.iter().enumerate() {
        let mut fields = [_mm512_setzero_si512(); R];
        for r in 0..R {
            ask_far(&raw const next[r][i]);
            fields[r] = load(&rows[r][i]);
        }
        for s in 0..4 {
            let q = load_q(&x[s]);
            for r in 0..R {
                let codes = _mm512_and_si512(fields[r], field_mask(s));
                acc[r][s] = _mm512_dpbusd_epi32(acc[r][s], codes, q);
            }
        }
    }
    let mut sums = [0; R];
    for r in 0..R {
        sums[r] = _mm512_reduce_add_epi32(merge(acc[r]));
    }
    sums
}

pub(super) fn columns<F: Finish>(
    _: Avx512Vnni,
    w: ColumnMatrix<'_>,
    first: usize,
    live: &LiveColumns,
    (scale, sum): (f32, i32),
    finish: F,
    out: &mut [F::Out],
) {
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn body<F: Finish>(
        w: ColumnMatrix<'_>,
        first: usize,
        live: &LiveColumns,
        (scale, sum): (f32, i32),
        finish: F,
        out: &mut [F::Out],
    ) {
        for (i, out) in out.chunks_mut(w.block_rows()).enumerate() {
            let block = w.block(first + i);
            for (line, out) in out.chunks_mut(LINE_ROWS).enumerate() {
                let acc = columns_dot(&block[line..], w.lines(), live);
                for (out, acc) in out.chunks_mut(TILE_ROWS).zip(acc) {
                    for (out, acc) in out.iter_mut().zip(lanes(acc)) {
                        *out = finish.finish(acc.wrapping_sub(sum), scale);
                    }
                }
            }
        }
    }
    // SAFETY: the token proves that these instructions exist.
    unsafe { body(w, first, live, (scale, sum), finish, out) }
}

/// Sums of `code * q` of 256 rows, whose line of column `c` is `block[c * lines]`.
///
/// Four columns at a time: turned against each other and selected byte by byte, their dwords become four that hold the
/// same rows of all four columns (see [`ColumnMatrix`]).
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn columns_dot(block: &[Tile], lines: usize, live: &LiveColumns) -> [__m512i; 16] {
    let even = _mm512_set1_epi32(0x00ff_00ff);
    let low = _mm512_set1_epi32(0x0000_ffff);
    let middle = _mm512_set1_epi32(0x00ff_ff00);
    let columns = live.columns();
    let mut acc = [_mm512_setzero_si512(); 16];
    for (i, (four, q)) in columns.iter().zip(live.words()).enumerate() {
        let next = &columns[(i + COLUMN_WORDS_AHEAD).min(columns.len() - 1)];
        let mut v = [_mm512_setzero_si512(); 4];
        for j in 0..4 {
            ask_far(&raw const block[next[j] as usize * lines]);
            v[j] = load(&block[four[j] as usize * lines]);
        }
        v[1] = _mm512_rol_epi32::<8>(v[1]);
        v[2] = _mm512_rol_epi32::<16>(v[2]);
        v[3] = _mm512_rol_epi32::<24>(v[3]);
        let (even01, odd01) = (select(even, v[0], v[1]), select(even, v[1], v[0]));
        let (even23, odd23) = (select(even, v[2], v[3]), select(even, v[3], v[2]));
        let groups = [
            select(low, even01, even23),
            select(middle, odd01, odd23),
            select(low, even23, even01),
            select(middle, odd23, odd01),
        ];
        let q0 = _mm512_set1_epi32(i32::from_ne_bytes(q.map(i8::cast_unsigned)));
        let q = [q0, _mm512_rol_epi32::<8>(q0), _mm512_rol_epi32::<16>(q0), _mm512_rol_epi32::<24>(q0)];
        for g in 0..4 {
            for s in 0..4 {
                let codes = _mm512_and_si512(groups[g], field_mask(s));
                acc[4 * g + s] = _mm512_dpbusd_epi32(acc[4 * g + s], codes, q[g]);
            }
        }
    }
    for g in 0..4 {
        acc[4 * g + 1] = _mm512_srai_epi32::<2>(acc[4 * g + 1]);
        acc[4 * g + 2] = _mm512_srai_epi32::<4>(acc[4 * g + 2]);
        acc[4 * g + 3] = _mm512_srai_epi32::<6>(acc[4 * g + 3]);
    }
    acc
}

/// Bits of `a` where `mask` has ones, of `b` where it has zeros.
#[target_feature(enable = "avx512f")]
#[inline]
fn select(mask: __m512i, a: __m512i, b: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<0xca>(mask, a, b)
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn field_mask(s: usize) -> __m512i {
    _mm512_set1_epi8(3 << (2 * s))
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load_q(q: &[i8; 64]) -> __m512i {
    // SAFETY: 64 readable bytes; the load has no alignment requirement.
    unsafe { _mm512_loadu_si512(q.as_ptr().cast()) }
}

/// Activation rows that share a pass over the weights. A forward pass puts two and more in panels.
const FEW_MAX: usize = 4;
/// What prefetches run ahead by, into the second level and the first.
const FAR_BYTES: usize = 8192;
const NEAR_BYTES: usize = 1024;
/// Rows that share the loads of activations.
const ROWS_AT_ONCE: usize = 4;
/// Prefetch distance in words of four columns, a line each: 4 KiB.
const COLUMN_WORDS_AHEAD: usize = 16;
