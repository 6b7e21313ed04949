//! One row of activations on 256-bit registers, with VNNI and without: chosen rows, chosen columns.
#![expect(unsafe_code, reason = "loads, prefetches and calls of functions with target features")]

use std::arch::x86_64::{
    __m128i, __m256i, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm_unpackhi_epi8, _mm_unpackhi_epi16,
    _mm_unpacklo_epi8, _mm_unpacklo_epi16, _mm256_add_epi32, _mm256_and_si256, _mm256_dpbusd_avx_epi32,
    _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_set_m128i, _mm256_set1_epi8, _mm256_set1_epi16,
    _mm256_set1_epi32, _mm256_setzero_si256, _mm256_srli_epi16, _mm256_storeu_si256,
};

use super::super::layout::{TILE_BYTES, Tile};
use super::super::linear::Finish;
use super::columns::{ColumnMatrix, LINE_ROWS, LiveColumns};
use super::rows::{LINE_COLS, RowActivations, RowMatrix};

/// The kernels of one instruction set, whose `$dot` adds the products of 32 codes and activations, four to a sum.
macro_rules! kernels {
    ($name:ident, $proof:ident, $features:tt, $dot:ident) => {
        pub(super) mod $name {
            use super::*;
            use crate::$proof;

            pub(in super::super) fn rows<F: Finish>(
                _: $proof,
                w: RowMatrix<'_>,
                first: usize,
                live: &[u32],
                x: RowActivations<'_>,
                finish: F,
                out: &mut [F::Out],
            ) {
                for (i, &row) in live.iter().enumerate() {
                    let next = live[(i + ROWS_AHEAD).min(live.len() - 1)];
                    let (this, next) = (w.row(first + row as usize), w.row(first + next as usize));
                    // SAFETY: the token proves that these instructions exist.
                    let sum = unsafe { row_dot(this, next, x.q.as_chunks().0) };
                    out[row as usize] = finish.finish(sum.wrapping_sub(x.sum), x.scale);
                }
            }

            /// Sum of `code * q` of a row; `next` is asked for meanwhile.
            #[target_feature(enable = $features)]
            fn row_dot(row: &[Tile], next: &[Tile], q: &[[i8; LINE_COLS]]) -> i32 {
                let next = &next[..row.len()];
                let mut acc = [_mm256_setzero_si256(); 4];
                for ((line, next), q) in row.iter().zip(next).zip(q) {
                    prefetch(next);
                    let q = q.as_chunks::<32>().0;
                    for half in 0..2 {
                        let mut fields = load(&line.as_chunks().0[half]);
                        for s in 0..4 {
                            let codes = _mm256_and_si256(fields, _mm256_set1_epi8(3));
                            fields = _mm256_srli_epi16::<2>(fields);
                            acc[s] = $dot(acc[s], codes, load_q(&q[2 * s + half]));
                        }
                    }
                }
                let sum = _mm256_add_epi32(_mm256_add_epi32(acc[0], acc[1]), _mm256_add_epi32(acc[2], acc[3]));
                lanes(sum).into_iter().fold(0, i32::wrapping_add)
            }

            pub(in super::super) fn columns<F: Finish>(
                _: $proof,
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
                        let mut acc = [0; LINE_ROWS];
                        for part in 0..PARTS {
                            // SAFETY: the token proves that these instructions exist.
                            unsafe { part_dot(&block[line..], w.lines(), live, part, &mut acc) }
                        }
                        for (out, acc) in out.iter_mut().zip(acc) {
                            *out = finish.finish(acc.wrapping_sub(sum), scale);
                        }
                    }
                }
            }

            /// Sums of `code * q` of the rows in bytes `16 * part ..+ 16` of the lines, whose line of column `c` is
            /// `block[c * lines]`. Interleaved, the bytes of four columns become dwords of a row each.
            #[target_feature(enable = $features)]
            fn part_dot(block: &[Tile], lines: usize, live: &LiveColumns, part: usize, sums: &mut [i32; LINE_ROWS]) {
                let columns = live.columns();
                let mut acc = [[_mm256_setzero_si256(); 4]; 2];
                for (i, (four, q)) in columns.iter().zip(live.words()).enumerate() {
                    let line = |j: usize| &block[four[j] as usize * lines];
                    if part == 0 {
                        let next = &columns[(i + COLUMN_WORDS_AHEAD).min(columns.len() - 1)];
                        next.iter().for_each(|&column| prefetch(&block[column as usize * lines]));
                    }
                    let v = [
                        load_part(line(0), part),
                        load_part(line(1), part),
                        load_part(line(2), part),
                        load_part(line(3), part),
                    ];
                    let (first, second) = (_mm_unpacklo_epi8(v[0], v[1]), _mm_unpacklo_epi8(v[2], v[3]));
                    let low = _mm256_set_m128i(_mm_unpackhi_epi16(first, second), _mm_unpacklo_epi16(first, second));
                    let (first, second) = (_mm_unpackhi_epi8(v[0], v[1]), _mm_unpackhi_epi8(v[2], v[3]));
                    let high = _mm256_set_m128i(_mm_unpackhi_epi16(first, second), _mm_unpacklo_epi16(first, second));
                    let q = _mm256_set1_epi32(i32::from_ne_bytes(q.map(i8::cast_unsigned)));
                    let mut fields = [low, high];
                    for s in 0..4 {
                        for half in 0..2 {
                            let codes = _mm256_and_si256(fields[half], _mm256_set1_epi8(3));
                            fields[half] = _mm256_srli_epi16::<2>(fields[half]);
                            acc[half][s] = $dot(acc[half][s], codes, q);
                        }
                    }
                }
                for (half, acc) in acc.into_iter().enumerate() {
                    for (s, acc) in acc.into_iter().enumerate() {
                        for (d, sum) in lanes(acc).into_iter().enumerate() {
                            let byte = TILE_BYTES / PARTS * part + 8 * half + d;
                            sums[64 * (byte % 4) + 16 * s + byte / 4] = sum;
                        }
                    }
                }
            }
        }
    };
}

kernels!(avx2, Avx2, "avx2", dot_avx2);
kernels!(avx_vnni, AvxVnni, "avx2,avxvnni", dot_vnni);

/// Products of codes up to 2 and activations in pairs are below 2^10.
#[target_feature(enable = "avx2")]
#[inline]
fn dot_avx2(acc: __m256i, codes: __m256i, q: __m256i) -> __m256i {
    _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, q), _mm256_set1_epi16(1)))
}

#[target_feature(enable = "avx2,avxvnni")]
#[inline]
fn dot_vnni(acc: __m256i, codes: __m256i, q: __m256i) -> __m256i {
    _mm256_dpbusd_avx_epi32(acc, codes, q)
}

#[target_feature(enable = "avx2")]
#[inline]
fn load(half: &[u8; 32]) -> __m256i {
    // SAFETY: 32 readable bytes; the load has no alignment requirement.
    unsafe { _mm256_loadu_si256(half.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn load_q(q: &[i8; 32]) -> __m256i {
    // SAFETY: 32 readable bytes; the load has no alignment requirement.
    unsafe { _mm256_loadu_si256(q.as_ptr().cast()) }
}

#[inline(always)]
fn load_part(line: &Tile, part: usize) -> __m128i {
    let bytes: &[u8; TILE_BYTES / PARTS] = &line.as_chunks().0[part];
    // SAFETY: 16 readable bytes; the load has no alignment requirement, and SSE2 is part of x86-64.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn lanes(v: __m256i) -> [i32; 8] {
    let mut lanes = [0; 8];
    // SAFETY: 32 writable bytes; the store has no alignment requirement.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), v) }
    lanes
}

#[inline(always)]
fn prefetch(line: &Tile) {
    // SAFETY: a prefetch reads nothing that a program can see and never faults.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
}

/// Parts of a line that make two registers of dwords each.
const PARTS: usize = 4;
const ROWS_AHEAD: usize = 8;
const COLUMN_WORDS_AHEAD: usize = 16;
