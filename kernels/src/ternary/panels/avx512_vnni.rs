//! Panels on AVX-512 VNNI: a loop of loads, broadcasts and `vpdpbusd`, nothing else.
#![expect(unsafe_code, reason = "loads, stores, prefetches and calls of functions with target features")]

use std::arch::x86_64::{
    __m512i, _MM_HINT_T1, _mm_prefetch, _mm512_and_si512, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_set1_epi8,
    _mm512_set1_epi32, _mm512_setzero_si512, _mm512_srli_epi32, _mm512_storeu_si512,
};
use std::cell::Cell;
use std::ops::Range;

use super::super::avx512_vnni::{load, merge, prefetch};
use super::super::layout::{TILE_ROWS, Tile};
use super::{
    BLOCK_PAIRS, BLOCK_TILES, Codes, DIRECT_ROWS_MAX, PAIR, PanelJob, PanelScratch, Sums, panel_count, panel_rows,
};
use crate::{Avx512Bw, Avx512Vnni};

pub(super) fn linear(proof: Avx512Vnni, job: &PanelJob<'_>, scratch: &mut PanelScratch) {
    if job.n() <= DIRECT_ROWS_MAX {
        // SAFETY: the token proves that these instructions exist.
        unsafe { direct(proof.bw(), job, scratch) }
    } else {
        // SAFETY: as above.
        unsafe { blocks(proof.bw(), job, scratch) }
    }
}

/// Pairs, panels: all columns of a pair at once, unpacked in registers. The first panel asks for the pair that comes
/// next, whole: two rows of tiles are too short streams to run ahead of themselves.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn direct(proof: Avx512Bw, job: &PanelJob<'_>, scratch: &mut PanelScratch) {
    for pair in 0..job.pairs() {
        let first = job.row_tile(pair, 0).expect("a pair has a row tile");
        // A pair of one only: what the other one gives is not looked at.
        let tiles = [first, job.row_tile(pair, 1).unwrap_or(first)];
        let mut next = [0, 1].map(|side| job.upcoming(pair + 1, side).unwrap_or(tiles[side]));
        for index in 0..panel_count(job.n()) {
            let rows = panel_rows(job.n(), index);
            let (x, sums) = (job.panel(&rows), &mut scratch.sums[..rows.len()]);
            job.for_each_line(pair, rows.clone(), prefetch_cell);
            multiply_direct(tiles, next, x, sums);
            job.finish(proof, pair, rows.start, sums);
            next = tiles;
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn multiply_direct(tiles: [&[Tile]; PAIR], next: [&[Tile]; PAIR], x: &[[i8; 4]], sums: &mut [Sums]) {
    macro_rules! by_len {
        ($($n:literal x $split:literal),*) => {
            match sums.len() {
                $($n => {
                    let sums = sums.first_chunk_mut().expect("as matched");
                    direct_dot::<$n, $split>(tiles, next, x.as_chunks().0, sums);
                })*
                _ => unreachable!("a direct panel has 1 to 12 rows"),
            }
        };
    }
    by_len!(1 x 4, 2 x 4, 3 x 4, 4 x 2, 5 x 2, 6 x 2, 7 x 1, 8 x 1, 9 x 1, 10 x 1, 11 x 1, 12 x 1);
}

/// The products of a pair of row tiles with N activation rows; `next` is asked for meanwhile.
///
/// `SPLIT` fields have sums of their own, see [`merge`]: few rows would wait for their sums, and it saves shifts. On a core
/// of 17.5 GB/s and 817 GOPS (6912 x 2560, beside one row tile at a time from rows of activations): 4 rows 14.7 GB/s
/// against 13.4, 6 rows 13.7 and 10.8, 8 rows 10.6 and 8.8, 12 rows 7.4 and 6.6. GFNI in place of masks and shifts gives
/// another 4 % from 7 rows on, which is not worth a second set of kernels.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline(never)]
fn direct_dot<const N: usize, const SPLIT: usize>(
    w: [&[Tile]; PAIR],
    next: [&[Tile]; PAIR],
    x: &[[[i8; 4]; N]],
    sums: &mut [Sums; N],
) {
    let tiles = w[0].len();
    let (w, next) = ([&w[0][..tiles], &w[1][..tiles]], [&next[0][..tiles], &next[1][..tiles]]);
    let x = &x.as_chunks::<4>().0[..tiles];
    let mut acc = [[[_mm512_setzero_si512(); SPLIT]; PAIR]; N];
    for i in 0..tiles {
        prefetch::<_MM_HINT_T1>(&next[0][i], 0);
        prefetch::<_MM_HINT_T1>(&next[1][i], 0);
        let mut fields = [load(&w[0][i]), load(&w[1][i])];
        for s in 0..4 {
            let mut codes = [_mm512_setzero_si512(); PAIR];
            for side in 0..PAIR {
                codes[side] = _mm512_and_si512(fields[side], _mm512_set1_epi8(3 << (2 * (s % SPLIT))));
                if SPLIT == 1 {
                    fields[side] = _mm512_srli_epi32::<2>(fields[side]);
                } else if SPLIT == 2 && s == 1 {
                    fields[side] = _mm512_srli_epi32::<4>(fields[side]);
                }
            }
            for t in 0..N {
                let q = _mm512_set1_epi32(word(x[i][s][t]));
                for side in 0..PAIR {
                    let acc = &mut acc[t][side][s % SPLIT];
                    *acc = _mm512_dpbusd_epi32(*acc, codes[side], q);
                }
            }
        }
    }
    for t in 0..N {
        store_sums(merge(acc[t][0]), &mut sums[t].0[0]);
        store_sums(merge(acc[t][1]), &mut sums[t].0[1]);
    }
}

/// Blocks of row tiles, blocks of columns, pairs, panels: a pair's codes stay in the first-level cache while those
/// columns of all panels pass by from the second-level one.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn blocks(proof: Avx512Bw, job: &PanelJob<'_>, scratch: &mut PanelScratch) {
    let (n, tiles) = (job.n(), job.tiles_per_row());
    let (parts, panels) = (tiles.div_ceil(BLOCK_TILES), panel_count(n));
    let columns = |part: usize| part * tiles / parts..(part + 1) * tiles / parts;
    for first in (0..job.pairs()).step_by(BLOCK_PAIRS) {
        let pairs = first..(first + BLOCK_PAIRS).min(job.pairs());
        for part in 0..parts {
            let codes = &mut scratch.codes[..4 * columns(part).len()];
            for (i, pair) in pairs.clone().enumerate() {
                unpack_pair(job, pair, columns(part), codes);
                let next = match (pair + 1 < pairs.end, part + 1 < parts) {
                    (true, _) => (pair + 1, columns(part)),
                    (false, true) => (first, columns(part + 1)),
                    (false, false) => (pairs.end, columns(0)),
                };
                for index in 0..panels {
                    prefetch_part(job, &next, index, panels);
                    let rows = panel_rows(n, index);
                    let x = &job.panel(&rows)[4 * columns(part).start * rows.len()..][..codes.len() * rows.len()];
                    let place = if parts == 1 { 0 } else { i * n + rows.start };
                    let sums = &mut scratch.sums[place..][..rows.len()];
                    let lines = rows.start + part * rows.len() / parts..rows.start + (part + 1) * rows.len() / parts;
                    job.for_each_line(pair, lines, prefetch_cell);
                    multiply(codes, x, sums, part == 0);
                    if part + 1 == parts {
                        job.finish(proof, pair, rows.start, sums);
                    }
                }
            }
        }
    }
}

/// Asks for part `index` of `count` of the tiles that are unpacked next: while others multiply, memory is idle.
#[inline(always)]
fn prefetch_part(job: &PanelJob<'_>, (pair, columns): &(usize, Range<usize>), index: usize, count: usize) {
    let part = columns.start + index * columns.len() / count..columns.start + (index + 1) * columns.len() / count;
    for side in 0..PAIR {
        if let Some(tiles) = job.upcoming(*pair, side) {
            for tile in &tiles[part.clone()] {
                prefetch::<_MM_HINT_T1>(tile, 0);
            }
        }
    }
}

/// Asks for a line of the output, into L2: it takes long to come, and is needed when the sums are complete.
#[inline(always)]
fn prefetch_cell(line: &Cell<f32>) {
    // SAFETY: a prefetch reads nothing that a program can see and never faults.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) }
}

/// Codes of the tiles `columns` of a pair; zeros for a tile that it lacks.
#[target_feature(enable = "avx512f,avx512bw")]
fn unpack_pair(job: &PanelJob<'_>, pair: usize, columns: Range<usize>, codes: &mut [Codes]) {
    for side in 0..PAIR {
        match job.row_tile(pair, side) {
            Some(tiles) => unpack(&tiles[columns.clone()], side, codes),
            None => codes.iter_mut().for_each(|codes| codes.0[side] = [0; 4 * TILE_ROWS]),
        }
    }
}

/// Codes of a row tile, a byte each.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn unpack(tiles: &[Tile], side: usize, codes: &mut [Codes]) {
    let mask = _mm512_set1_epi8(3);
    for (tile, codes) in tiles.iter().zip(codes.as_chunks_mut::<4>().0) {
        let mut fields = load(tile);
        for codes in codes {
            store(_mm512_and_si512(fields, mask), &mut codes.0[side]);
            fields = _mm512_srli_epi32::<2>(fields);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn multiply(codes: &[Codes], x: &[[i8; 4]], sums: &mut [Sums], first: bool) {
    macro_rules! by_len {
        ($($n:literal),*) => {
            match sums.len() {
                $($n => dot::<$n>(codes, x.as_chunks().0, sums.first_chunk_mut().expect("as matched"), first),)*
                _ => unreachable!("a panel has 1 to 14 rows"),
            }
        };
    }
    by_len!(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14);
}

/// Adds the products of a pair of row tiles with N activation rows; `first` starts from zero.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline(never)]
fn dot<const N: usize>(codes: &[Codes], x: &[[[i8; 4]; N]], sums: &mut [Sums; N], first: bool) {
    let mut acc = [[_mm512_setzero_si512(); PAIR]; N];
    if !first {
        for t in 0..N {
            acc[t] = [load_sums(&sums[t].0[0]), load_sums(&sums[t].0[1])];
        }
    }
    for (codes, x) in codes.iter().zip(x) {
        let (first, second) = (load(&codes.0[0]), load(&codes.0[1]));
        for t in 0..N {
            let q = _mm512_set1_epi32(word(x[t]));
            acc[t][0] = _mm512_dpbusd_epi32(acc[t][0], first, q);
            acc[t][1] = _mm512_dpbusd_epi32(acc[t][1], second, q);
        }
    }
    for t in 0..N {
        store_sums(acc[t][0], &mut sums[t].0[0]);
        store_sums(acc[t][1], &mut sums[t].0[1]);
    }
}

/// A plain expression, for the reason that `layout::word` gives.
#[inline(always)]
fn word(x: [i8; 4]) -> i32 {
    i32::from_ne_bytes([x[0].cast_unsigned(), x[1].cast_unsigned(), x[2].cast_unsigned(), x[3].cast_unsigned()])
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(v: __m512i, out: &mut [u8; 4 * TILE_ROWS]) {
    // SAFETY: 64 writable bytes; the store has no alignment requirement.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), v) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load_sums(sums: &[i32; TILE_ROWS]) -> __m512i {
    // SAFETY: 64 readable bytes; the load has no alignment requirement.
    unsafe { _mm512_loadu_si512(sums.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store_sums(v: __m512i, sums: &mut [i32; TILE_ROWS]) {
    // SAFETY: 64 writable bytes; the store has no alignment requirement.
    unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), v) }
}
