//! Panels on AVX-512 VNNI: a loop of loads, broadcasts and `vpdpbusd`, nothing else.
#![expect(unsafe_code, reason = "loads, stores, prefetches and calls of functions with target features")]

use std::arch::asm;
use std::arch::x86_64::{
    __m512i, _MM_HINT_T0, _MM_HINT_T1, _mm_prefetch, _mm512_add_epi32, _mm512_and_si512, _mm512_dpbusd_epi32,
    _mm512_loadu_si512, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_srai_epi32,
    _mm512_srli_epi32, _mm512_storeu_si512,
};
use std::cell::Cell;
use std::ops::Range;

use super::super::avx512_vnni::{load, merge, prefetch};
use super::super::layout::{TILE_ROWS, Tile};
use super::{BLOCK_PAIRS, BLOCK_TILES, Codes, PAIR, PanelJob, Room, Runs, Sums, panel_count, panel_rows, parts};
use crate::{Avx512Bw, Avx512Vnni};

pub(super) fn linear(proof: Avx512Vnni, job: &PanelJob<'_>, room: &mut Room<'_>) {
    if job.is_direct() {
        // SAFETY: the token proves that these instructions exist.
        unsafe { direct(proof.bw(), job, room) }
    } else {
        // SAFETY: as above.
        unsafe { blocks(proof.bw(), job, room) }
    }
}

/// Pairs, panels: all columns of a pair at once, unpacked in registers. The first panel asks for the pair that comes
/// next, whole: two rows of tiles are too short streams to run ahead of themselves.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn direct(proof: Avx512Bw, job: &PanelJob<'_>, room: &mut Room<'_>) {
    for pair in 0..job.pairs() {
        let first = job.row_tile(pair, 0).expect("a pair has a row tile");
        // A pair of one only: what the other one gives is not looked at.
        let tiles = [first, job.row_tile(pair, 1).unwrap_or(first)];
        let mut next = [upcoming(job, pair + 1, 0, tiles[0]), upcoming(job, pair + 1, 1, tiles[1])];
        for rows in parts(0..job.n(), panel_count(job.n())) {
            let (x, sums) = (job.panel(&rows), &mut room.sums[..rows.len()]);
            job.for_each_line(pair, rows.clone(), prefetch_to_write);
            match job.by_fields() {
                Some(runs) => multiply_fields(runs, tiles, next, x, sums),
                None => multiply_direct(tiles, next, x, sums),
            }
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
                _ => unreachable!("a direct panel has 1 to 14 rows"),
            }
        };
    }
    by_len!(1 x 4, 2 x 4, 3 x 4, 4 x 2, 5 x 2, 6 x 2, 7 x 1, 8 x 1, 9 x 1, 10 x 1, 11 x 1, 12 x 1, 13 x 1, 14 x 1);
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

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn multiply_fields(runs: Runs, tiles: [&[Tile]; PAIR], next: [&[Tile]; PAIR], x: &[[i8; 4]], sums: &mut [Sums]) {
    macro_rules! by_len {
        ($($n:literal),*) => {
            match sums.len() {
                $($n => {
                    let x = x.as_chunks::<$n>().0;
                    let sums = sums.first_chunk_mut::<$n>().expect("as matched");
                    for block in runs.blocks() {
                        let (w, next) = (fours(tiles, &block), fours(next, &block));
                        let x = x[4 * block.start..4 * block.end].as_chunks::<4>().0;
                        fields_dot::<$n>(w, next, x, sums, block.start == 0);
                    }
                })*
                _ => unreachable!("a panel by fields has 6 to 14 rows"),
            }
        };
    }
    by_len!(6, 7, 8, 9, 10, 11, 12, 13, 14);
}

/// The tiles of a block of a pair, four at a time.
fn fours<'a>(tiles: [&'a [Tile]; PAIR], block: &Range<usize>) -> [&'a [[Tile; 4]]; PAIR] {
    [tiles[0][block.clone()].as_chunks().0, tiles[1][block.clone()].as_chunks().0]
}

/// The products of a block of a pair of row tiles, four tiles at a time, field by field from the last one on; `next` is
/// asked for meanwhile, a line of each for four tiles. Sums begin at zero with the `first` block.
///
/// A mask is all that unpacks a field. Beside shifts, in a loop of its own: 8 rows of 2560 columns 632 GOPS against 591, 16
/// rows 667 and 606, 24 rows 676 and 645, of 766; 8 rows of 6912 columns as one block 10 % less than as two. Beside codes that
/// are unpacked once, weights that no cache holds, of int8: 28 rows 88.5 % and 88.1, 32 rows 87.1 and 89.1, 42 rows 89.2 and
/// 91.0. One row tile with 16 or 24 rows instead of a pair is bound by loads: 638 and 661 in that loop, pairs with 8 and 12
/// rows 674 and 692.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline(never)]
fn fields_dot<const N: usize>(
    w: [&[[Tile; 4]]; PAIR],
    next: [&[[Tile; 4]]; PAIR],
    x: &[[[[i8; 4]; N]; 4]],
    sums: &mut [Sums; N],
    first: bool,
) {
    let fours = w[0].len();
    let (w, next) = ([w[0], &w[1][..fours]], [next[0].as_flattened(), next[1].as_flattened()]);
    let mut acc = [[_mm512_setzero_si512(); PAIR]; N];
    for field in 0..4 {
        let mask = _mm512_set1_epi8((0xc0_u8 >> (2 * field)).cast_signed());
        if field > 0 {
            for acc in &mut acc {
                *acc = [_mm512_srai_epi32::<2>(acc[0]), _mm512_srai_epi32::<2>(acc[1])];
            }
        }
        let x = &x[field * fours..][..fours];
        let next = [&next[0][field * fours..][..fours], &next[1][field * fours..][..fours]];
        for i in 0..fours {
            prefetch::<_MM_HINT_T1>(&next[0][i], 0);
            prefetch::<_MM_HINT_T1>(&next[1][i], 0);
            for tile in 0..4 {
                let codes =
                    [_mm512_and_si512(load(&w[0][i][tile]), mask), _mm512_and_si512(load(&w[1][i][tile]), mask)];
                for t in 0..N {
                    let q = _mm512_set1_epi32(word(x[i][tile][t]));
                    for side in 0..PAIR {
                        acc[t][side] = _mm512_dpbusd_epi32(acc[t][side], codes[side], q);
                    }
                }
            }
        }
    }
    for (acc, sums) in acc.iter().zip(sums) {
        for (acc, sums) in acc.iter().zip(&mut sums.0) {
            let before = if first { _mm512_setzero_si512() } else { load_sums(sums) };
            store_sums(_mm512_add_epi32(*acc, before), sums);
        }
    }
}

/// Blocks of row tiles, blocks of columns, pairs, panels: a pair's codes stay in a cache while those columns of all panels
/// pass by from the second-level one. What doesn't fit there is asked for a panel ahead: 512 rows of 2560 and 6912 columns
/// 683 and 688 GOPS against 669 and 682, 128 rows of 2560 none to half a percent less, so not for these.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn blocks(proof: Avx512Bw, job: &PanelJob<'_>, room: &mut Room<'_>) {
    let (n, tiles) = (job.n(), job.tiles_per_row());
    let (blocks, panels, far) = (tiles.div_ceil(BLOCK_TILES), panel_count(n), job.is_far());
    let block_columns = |block: usize| block * tiles / blocks..(block + 1) * tiles / blocks;
    for first in (0..job.pairs()).step_by(BLOCK_PAIRS) {
        let pairs = first..(first + BLOCK_PAIRS).min(job.pairs());
        for block in 0..blocks {
            let (columns, last) = (block_columns(block), block + 1 == blocks);
            let codes = &mut room.codes[..4 * columns.len()];
            for (i, pair) in pairs.clone().enumerate() {
                let mut packed = None;
                if let Some([first, second]) = job.both(pair) {
                    packed = Some([&first[columns.clone()], &second[columns.clone()]]);
                } else {
                    unpack_pair(job, pair, columns.clone(), codes);
                }
                let (next, ahead) = match (pair + 1 < pairs.end, last) {
                    (true, _) => (pair + 1, columns.clone()),
                    (false, false) => (first, block_columns(block + 1)),
                    (false, true) => (pairs.end, block_columns(0)),
                };
                let mut coming = parts(0..n, panels).skip(1);
                let next_column = ahead.start;
                let following = [upcoming(job, next, 0, &[]), upcoming(job, next, 1, &[])];
                // In even parts over the panels: while they multiply, memory is idle.
                for (rows, ahead) in parts(0..n, panels).zip(parts(ahead, panels)) {
                    let x = &job.panel(&rows)[4 * columns.start * rows.len()..][..codes.len() * rows.len()];
                    let (coming, column) = match coming.next() {
                        Some(rows) => (rows, columns.start),
                        None => (panel_rows(n, 0), next_column),
                    };
                    let coming = if far { &job.panel(&coming)[4 * column * coming.len()..] } else { &x[..0] };
                    let place = if blocks == 1 { 0 } else { i * n + rows.start };
                    let (sums, behind) = room.sums[place..].split_at_mut(rows.len());
                    let lines = if last { rows.clone() } else { rows.start..rows.start };
                    let [first, second] = following;
                    let tiles = [part(first, &ahead), part(second, &ahead)];
                    let ahead = Ahead { job, pair, lines, sums: if block > 0 { behind } else { &[] }, tiles };
                    match packed.take() {
                        Some(tiles) => multiply_packed((tiles, codes), x, sums, block == 0, &ahead),
                        None => multiply(codes, (x, coming), sums, block == 0, &ahead),
                    }
                    if last {
                        job.finish(proof, pair, rows.start, sums);
                    }
                }
            }
        }
    }
}

/// What is worth reading ahead, or `else_these`. No closure of a library function's in these loops: the array that it fills is read
/// before its stores are done, which waits for all stores before them, lines of the output that no cache holds among them.
fn upcoming<'a>(job: &PanelJob<'a>, pair: usize, side: usize, else_these: &'a [Tile]) -> &'a [Tile] {
    job.upcoming(pair, side).unwrap_or(else_these)
}

/// Some tiles, none where there are not as many.
fn part<'a>(tiles: &'a [Tile], range: &Range<usize>) -> &'a [Tile] {
    tiles.get(range.clone()).unwrap_or_default()
}

/// What is wanted when the products of a panel are done: its lines of the output, if it is then complete, and the sums that
/// the next panel goes on with (with 512 rows they lie in L2). Asked for all at once before the products, it would fill the
/// queues of the first-level cache and hold them up.
struct Ahead<'a> {
    job: &'a PanelJob<'a>,
    pair: usize,
    /// Activation rows.
    lines: Range<usize>,
    sums: &'a [Sums],
    /// Of what is unpacked next: memory has the time of the panel to bring them.
    tiles: [&'a [Tile]; PAIR],
}

impl Ahead<'_> {
    /// Asks for what belongs to row `t` of `n` of the panel.
    #[inline(always)]
    fn ask(&self, t: usize, n: usize) {
        for tiles in self.tiles {
            let share = tiles.len().div_ceil(n);
            for tile in tiles.iter().skip(t * share).take(share) {
                prefetch::<_MM_HINT_T1>(tile, 0);
            }
        }
        if let Some(sums) = self.sums.get(t) {
            for side in &sums.0 {
                // SAFETY: a prefetch reads nothing that a program can see and never faults.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(side.as_ptr().cast()) }
            }
        }
        if t < self.lines.len() {
            let row = self.lines.start + t;
            self.job.for_each_line(self.pair, row..row + 1, prefetch_to_write);
        }
    }
}

/// Asks for a line of the output, to write it: it takes long to come, and is needed when the sums are complete. Asked for to
/// read, it would come as a copy where another worker wrote it before, and the first store would wait for it once more.
#[inline(always)]
pub(super) fn prefetch_to_write(line: &Cell<f32>) {
    // SAFETY: a prefetch changes nothing that a program can see and never faults; where the instruction does not exist,
    // every 64-bit processor takes it for none.
    unsafe { asm!("prefetchw [{}]", in(reg) line.as_ptr(), options(nostack, preserves_flags, readonly)) }
}

/// Codes of the tiles `columns` of a pair; zeros for a tile that it lacks.
#[target_feature(enable = "avx512f,avx512bw")]
fn unpack_pair(job: &PanelJob<'_>, pair: usize, columns: Range<usize>, codes: &mut [Codes]) {
    if let (Some(first), Some(second)) = (job.row_tile(pair, 0), job.row_tile(pair, 1)) {
        return unpack_both([&first[columns.clone()], &second[columns]], codes);
    }
    for side in 0..PAIR {
        match job.row_tile(pair, side) {
            Some(tiles) => unpack(&tiles[columns.clone()], side, codes),
            None => codes.iter_mut().for_each(|codes| codes.0[side] = [0; 4 * TILE_ROWS]),
        }
    }
}

/// Codes of both row tiles of a pair, a byte each. One after the other takes 1.3 times as long.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn unpack_both(tiles: [&[Tile]; PAIR], codes: &mut [Codes]) {
    let mask = _mm512_set1_epi8(3);
    for ((first, second), codes) in tiles[0].iter().zip(tiles[1]).zip(codes.as_chunks_mut::<4>().0) {
        let (mut first, mut second) = (load(first), load(second));
        for codes in codes {
            store(_mm512_and_si512(first, mask), &mut codes.0[0]);
            store(_mm512_and_si512(second, mask), &mut codes.0[1]);
            (first, second) = (_mm512_srli_epi32::<2>(first), _mm512_srli_epi32::<2>(second));
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
fn multiply(codes: &[Codes], (x, coming): (&[[i8; 4]], &[[i8; 4]]), sums: &mut [Sums], first: bool, ahead: &Ahead<'_>) {
    macro_rules! by_len {
        ($($n:literal),*) => {
            match sums.len() {
                $($n => {
                    let sums = sums.first_chunk_mut().expect("as matched");
                    dot::<$n>(codes, (x.as_chunks().0, coming), sums, first, ahead);
                })*
                _ => unreachable!("a panel has 1 to 14 rows"),
            }
        };
    }
    by_len!(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14);
}

/// Adds the products of a pair of row tiles with N activation rows; `first` starts from zero. Meanwhile asks for what is
/// `ahead`, row by row, and for as many activations of `coming`, if any: the machine's own prefetching begins anew with
/// every panel.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline(never)]
fn dot<const N: usize>(
    codes: &[Codes],
    (x, coming): (&[[[i8; 4]; N]], &[[i8; 4]]),
    sums: &mut [Sums; N],
    first: bool,
    ahead: &Ahead<'_>,
) {
    let mut acc = [[_mm512_setzero_si512(); PAIR]; N];
    if !first {
        for t in 0..N {
            acc[t] = [load_sums(&sums[t].0[0]), load_sums(&sums[t].0[1])];
        }
    }
    let (step, mut coming) = (if coming.is_empty() { 0 } else { N }, coming.as_ptr());
    let share = codes.len().div_ceil(N).max(1);
    for (row, (codes, x)) in codes.chunks(share).zip(x.chunks(share)).enumerate() {
        ahead.ask(row, N);
        for (codes, x) in codes.iter().zip(x) {
            let (first, second) = (load(&codes.0[0]), load(&codes.0[1]));
            _mm_prefetch::<_MM_HINT_T1>(coming.cast());
            coming = coming.wrapping_add(step);
            for t in 0..N {
                let q = _mm512_set1_epi32(word(x[t]));
                acc[t][0] = _mm512_dpbusd_epi32(acc[t][0], first, q);
                acc[t][1] = _mm512_dpbusd_epi32(acc[t][1], second, q);
            }
        }
    }
    for t in 0..N {
        store_sums(acc[t][0], &mut sums[t].0[0]);
        store_sums(acc[t][1], &mut sums[t].0[1]);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
fn multiply_packed(
    (tiles, codes): ([&[Tile]; PAIR], &mut [Codes]),
    x: &[[i8; 4]],
    sums: &mut [Sums],
    first: bool,
    ahead: &Ahead<'_>,
) {
    macro_rules! by_len {
        ($($n:literal),*) => {
            match sums.len() {
                $($n => {
                    let sums = sums.first_chunk_mut().expect("as matched");
                    packed_dot::<$n>((tiles, codes), x.as_chunks().0, sums, first, ahead);
                })*
                _ => unreachable!("a first panel of several has 9 to 14 rows"),
            }
        };
    }
    by_len!(9, 10, 11, 12, 13, 14);
}

/// [`dot`] for the first panel, which unpacks the codes for all of them, a tile ahead of its products: their stores, one a
/// cycle, hide behind these.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline(never)]
fn packed_dot<const N: usize>(
    (tiles, codes): ([&[Tile]; PAIR], &mut [Codes]),
    x: &[[[i8; 4]; N]],
    sums: &mut [Sums; N],
    first: bool,
    ahead: &Ahead<'_>,
) {
    let mut acc = [[_mm512_setzero_si512(); PAIR]; N];
    if !first {
        for t in 0..N {
            acc[t] = [load_sums(&sums[t].0[0]), load_sums(&sums[t].0[1])];
        }
    }
    let (codes, x) = (codes.as_chunks_mut::<4>().0, x.as_chunks::<4>().0);
    let (tiles, count) = ([&tiles[0][..codes.len()], &tiles[1][..codes.len()]], codes.len());
    let (share, mut row) = (count.div_ceil(N).max(1), 0);
    unpack_both([&tiles[0][..1], &tiles[1][..1]], &mut codes[0]);
    for i in 0..count {
        if i == row * share {
            ahead.ask(row, N);
            row += 1;
        }
        if i + 1 < count {
            unpack_both([&tiles[0][i + 1..i + 2], &tiles[1][i + 1..i + 2]], &mut codes[i + 1]);
        }
        for (codes, x) in codes[i].iter().zip(&x[i]) {
            let (first, second) = (load(&codes.0[0]), load(&codes.0[1]));
            for t in 0..N {
                let q = _mm512_set1_epi32(word(x[t]));
                acc[t][0] = _mm512_dpbusd_epi32(acc[t][0], first, q);
                acc[t][1] = _mm512_dpbusd_epi32(acc[t][1], second, q);
            }
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
