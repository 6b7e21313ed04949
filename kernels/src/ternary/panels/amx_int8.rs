//! Panels on AMX: tiles of 16 activation rows x 64 columns meet tiles of 64 columns x 16 rows of W, which are unpacked a
//! block at a time. A field of a row tile is a row of such a tile as it is, and four tiles of sums lie as [`Sums`] do.
#![expect(unsafe_code, reason = "instructions without intrinsics, and calls of functions with target features")]

use std::arch::asm;

use super::avx512_vnni::{prefetch_tiles, prefetch_to_write, unpack_pair};
use super::{BLOCK_PAIRS, BLOCK_TILES_MIN, Codes, GROUP_ROWS_MAX, PanelJob, Room, Sums, parts};
use crate::tiles::{TILE_ROWS, Tiles, tile_rows};
use crate::{AmxInt8, Avx512Bw};

pub(super) fn linear(proof: AmxInt8, job: &PanelJob<'_>, stride: usize, room: &mut Room<'_>) {
    let tiles = Tiles::new(proof, tile_rows(job.n()));
    // SAFETY: the token proves that AVX-512 VNNI exists, and what that proves.
    unsafe { blocks(proof.vnni().bw(), &tiles, job, stride, room) }
}

/// What multiplies.
trait Multiply {
    fn multiply(&self, block: Block<'_>);
}

/// Some columns of a pair of row tiles and of a group of activation rows.
struct Block<'a> {
    codes: &'a [Codes],
    /// From the first column of the first row on.
    x: &'a [i8],
    stride: usize,
    rows: [usize; 2],
    /// For each row; they begin at zero with the `first` block.
    sums: &'a mut [Sums],
    first: bool,
}

impl Block<'_> {
    /// Pairs of tiles, each 64 columns.
    fn steps(&self) -> usize {
        let steps = self.codes.len() / TILE_RUNS;
        let rows = self.rows[0] + self.rows[1];
        assert!(steps > 0 && self.codes.len().is_multiple_of(TILE_RUNS), "whole tiles");
        assert!(self.rows[0] > 0 && self.sums.len() == rows, "sums for each row");
        assert!(self.x.len() >= (rows - 1) * self.stride + steps * TILE_COLS, "activations hold all rows");
        steps
    }
}

/// Activation rows that are multiplied together.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    first: usize,
    rows: [usize; 2],
    /// So many of the first ones were rows of the group before, whose tiles must be whole: results are made of the others.
    known: usize,
}

/// All of `n` rows. One configuration of the tiles serves all groups: where the last one would be short, it begins earlier.
fn groups(n: usize) -> impl ExactSizeIterator<Item = Group> {
    (0..n.div_ceil(GROUP_ROWS_MAX)).map(move |index| {
        let (first, left) = (index * GROUP_ROWS_MAX, n - index * GROUP_ROWS_MAX);
        if index == 0 || left >= GROUP_ROWS_MAX {
            return Group { first, rows: tile_rows(left), known: 0 };
        }
        let count = left.next_multiple_of(TILE_ROWS);
        Group { first: n - count, rows: tile_rows(count), known: count - left }
    })
}

/// Blocks of row tiles, blocks of columns, pairs, groups, so that codes stay in the first-level cache while the activations of
/// these columns pass by from the second-level one. A single group has nothing to pass by: pair after pair there, and what
/// is read ahead is a whole pair away.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn blocks(proof: Avx512Bw, unit: &impl Multiply, job: &PanelJob<'_>, stride: usize, room: &mut Room<'_>) {
    let steps = job.tiles_per_row() / TILES;
    let (blocks, group_count) = (job.tiles_per_row().div_ceil(BLOCK_TILES_MIN), job.n().div_ceil(GROUP_ROWS_MAX));
    let block_columns = |block: usize| TILES * (block * steps / blocks)..TILES * ((block + 1) * steps / blocks);
    let pairs_max = if group_count == 1 { 1 } else { BLOCK_PAIRS };
    for first in (0..job.pairs()).step_by(pairs_max) {
        let pairs = first..(first + pairs_max).min(job.pairs());
        for block in 0..blocks {
            let (columns, last) = (block_columns(block), block + 1 == blocks);
            let codes = &mut room.codes[..4 * columns.len()];
            for (i, pair) in pairs.clone().enumerate() {
                unpack_pair(job, pair, columns.clone(), codes);
                let (next, ahead) = match (pair + 1 < pairs.end, last) {
                    _ if group_count == 1 => (pair + 1, columns.clone()),
                    (true, _) => (pair + 1, columns.clone()),
                    (false, false) => (first, block_columns(block + 1)),
                    (false, true) => (pairs.end, block_columns(0)),
                };
                for (index, (group, ahead)) in groups(job.n()).zip(parts(ahead, group_count)).enumerate() {
                    prefetch_tiles(job, next, ahead);
                    let count = group.rows[0] + group.rows[1];
                    let place = if blocks == 1 { 0 } else { (i * group_count + index) * GROUP_ROWS_MAX };
                    let sums = &mut room.sums[place..place + count];
                    let x = &job.activations()[group.first * stride + columns.start * COLS..];
                    let new = group.first + group.known..group.first + count;
                    let lines = new.start + block * new.len() / blocks..new.start + (block + 1) * new.len() / blocks;
                    job.for_each_line(pair, lines, prefetch_to_write);
                    unit.multiply(Block { codes, x, stride, rows: group.rows, sums, first: block == 0 });
                    if last {
                        job.finish(proof, pair, new.start, &sums[group.known..]);
                    }
                }
            }
        }
    }
}

impl Multiply for Tiles {
    /// Tiles hold nothing between calls: what is in them is no business of the compiler's.
    fn multiply(&self, block: Block<'_>) {
        let steps = block.steps();
        assert!(
            block.rows[0] == self.rows()[0] && (block.rows[1] == 0 || block.rows[1] == self.rows()[1]),
            "tiles of this size"
        );
        let (codes, x, sums) = (block.codes.as_ptr(), block.x.as_ptr(), block.sums.as_mut_ptr());
        if block.rows[1] == 0 {
            // SAFETY: as below, with one tile of activations.
            unsafe { one_tile((codes.cast(), x), block.stride, sums.cast(), steps, block.first) }
        } else {
            // SAFETY: `steps` has checked that the slices hold what tiles of the configured size read and write in so many
            // steps; `new` had the proof that the instructions exist, and configured them.
            unsafe { two_tiles((codes.cast(), x), block.stride, sums.cast(), steps, block.first) }
        }
    }
}

/// Adds the products of two tiles of activations, the second 16 rows behind the first, with both row tiles.
///
/// # Safety
/// Tiles are configured, and `steps`, at least 1, times what they read and write is there.
#[inline]
unsafe fn two_tiles((codes, x): (*const u8, *const i8), stride: usize, sums: *mut u8, steps: usize, first: bool) {
    // SAFETY: as the caller says; flags and tiles are clobbered, memory is written at `sums` only.
    unsafe {
        asm!(
            "test {first}, {first}",
            "jz 2f",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "jmp 3f",
            "2:",
            "tileloadd tmm0, [{sums} + {line}*1]",
            "tileloadd tmm1, [{sums} + {line}*1 + 64]",
            "tileloadd tmm2, [{sums} + {line}*1 + 2048]",
            "tileloadd tmm3, [{sums} + {line}*1 + 2112]",
            "3:",
            "tileloadd tmm6, [{codes} + {line}*1]",
            "tileloadd tmm4, [{x} + {stride}*1]",
            "tileloadd tmm7, [{codes} + {line}*1 + 64]",
            "tdpbsud tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{y} + {stride}*1]",
            "tdpbsud tmm1, tmm4, tmm7",
            "tdpbsud tmm2, tmm5, tmm6",
            "tdpbsud tmm3, tmm5, tmm7",
            "add {x}, 64",
            "add {y}, 64",
            "add {codes}, 2048",
            "dec {steps}",
            "jnz 3b",
            "tilestored [{sums} + {line}*1], tmm0",
            "tilestored [{sums} + {line}*1 + 64], tmm1",
            "tilestored [{sums} + {line}*1 + 2048], tmm2",
            "tilestored [{sums} + {line}*1 + 2112], tmm3",
            first = in(reg) usize::from(first),
            sums = in(reg) sums,
            line = in(reg) size_of::<Codes>(),
            stride = in(reg) stride,
            codes = inout(reg) codes => _,
            x = inout(reg) x => _,
            y = inout(reg) x.wrapping_add(TILE_ROWS * stride) => _,
            steps = inout(reg) steps => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// The same for one tile of activations.
///
/// # Safety
/// As [`two_tiles`].
#[inline]
unsafe fn one_tile((codes, x): (*const u8, *const i8), stride: usize, sums: *mut u8, steps: usize, first: bool) {
    // SAFETY: as the caller says; flags and tiles are clobbered, memory is written at `sums` only.
    unsafe {
        asm!(
            "test {first}, {first}",
            "jz 2f",
            "tilezero tmm0",
            "tilezero tmm1",
            "jmp 3f",
            "2:",
            "tileloadd tmm0, [{sums} + {line}*1]",
            "tileloadd tmm1, [{sums} + {line}*1 + 64]",
            "3:",
            "tileloadd tmm6, [{codes} + {line}*1]",
            "tileloadd tmm4, [{x} + {stride}*1]",
            "tileloadd tmm7, [{codes} + {line}*1 + 64]",
            "tdpbsud tmm0, tmm4, tmm6",
            "tdpbsud tmm1, tmm4, tmm7",
            "add {x}, 64",
            "add {codes}, 2048",
            "dec {steps}",
            "jnz 3b",
            "tilestored [{sums} + {line}*1], tmm0",
            "tilestored [{sums} + {line}*1 + 64], tmm1",
            first = in(reg) usize::from(first),
            sums = in(reg) sums,
            line = in(reg) size_of::<Codes>(),
            stride = in(reg) stride,
            codes = inout(reg) codes => _,
            x = inout(reg) x => _,
            steps = inout(reg) steps => _,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

// `line` is the distance of rows of codes and of sums, a row tile of a pair half of it; 2048 bytes are 16 of them.
const _: () = assert!(size_of::<Codes>() == 128 && size_of::<Sums>() == 128 && TILE_RUNS == TILE_ROWS);

/// Columns of a tile of activations, a byte each, and the runs of four that a tile of codes has of them.
const TILE_COLS: usize = 64;
const TILE_RUNS: usize = TILE_COLS / 4;
/// Columns of a row tile's tile, and how many of these make one here.
const COLS: usize = super::TILE_COLS;
const TILES: usize = TILE_COLS / COLS;

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::super::super::{TernaryMatrix, activation_stride, pack_codes, packed_bytes, padded_cols};
    use super::super::{Factored, Gating, PanelOrder, PanelScratch, Panels, Product, linear_panels};
    use super::*;
    use crate::tiles::emulated::Emulated;
    use crate::{Avx512Vnni, Columns, Isa};

    impl Multiply for Emulated {
        fn multiply(&self, block: Block<'_>) {
            let steps = block.steps();
            let x: Vec<u8> = block.x.iter().map(|q| q.cast_unsigned()).collect();
            for (half, tiles) in [(0, [0, 1]), (1, [2, 3])].into_iter().take(if block.rows[1] == 0 { 1 } else { 2 }) {
                assert_eq!(block.rows[half], self.rows(tiles[0]), "tiles of this size");
                let own = half * TILE_ROWS;
                for (side, &tile) in tiles.iter().enumerate() {
                    let mut sums = [[0; 16]; TILE_ROWS];
                    if !block.first {
                        for (sums, before) in sums.iter_mut().zip(&block.sums[own..]) {
                            *sums = before.0[side];
                        }
                    }
                    for step in 0..steps {
                        let a = self.load(4 + half, &x[own * block.stride + step * TILE_COLS..], block.stride);
                        let mut codes = [[0; 64]; TILE_ROWS];
                        for (row, codes) in codes.iter_mut().enumerate() {
                            *codes = block.codes[step * TILE_RUNS + row].0[side];
                        }
                        self.dot(&mut sums, (4 + half, &a), (6 + side, &codes));
                    }
                    for (memory, sums) in block.sums[own..].iter_mut().zip(sums).take(self.rows(tile)) {
                        memory.0[side] = sums;
                    }
                }
            }
        }
    }

    #[test]
    fn groups_hold_every_row_once_and_fit_one_configuration() {
        for n in 1..200 {
            let mut next = 0;
            for group in groups(n) {
                assert_eq!(group.first + group.known, next, "{n}");
                next = group.first + group.rows[0] + group.rows[1];
                assert_eq!(group.rows[0], tile_rows(n)[0], "{n}");
                assert!(group.rows[1] == 0 || group.rows[1] == tile_rows(n)[1], "{n}");
            }
            assert_eq!(next, n);
        }
    }

    /// Packing, order, blocks and groups, with tiles that are emulated, so that they are tested where none exist.
    #[test]
    fn emulated_tiles_give_the_bits_of_the_definition() {
        let Some(proof) = Avx512Vnni::detect() else { return };
        let shapes = [(16, 64), (37, 300), (160, 448), (33, 449), (70, 2048)];
        for (at, n) in [1, 2, 15, 16, 17, 31, 32, 33, 40, 48, 49, 64, 70, 97].into_iter().enumerate() {
            for (rows, cols) in [shapes[at % shapes.len()], shapes[(at + 2) % shapes.len()]] {
                let noise = |i: usize| (i.wrapping_mul(0x9e37_79b9) >> 16) as u8;
                let codes: Vec<u8> = (0..rows * cols).map(|i| noise(i) % 3).collect();
                let mut packed = vec![0; packed_bytes(rows, cols)];
                pack_codes(&codes, cols, &mut packed).unwrap();
                let matrix = TernaryMatrix::new(&packed, rows, cols, 0.37).unwrap();
                let (stride, padded) = (activation_stride(cols), padded_cols(cols));
                // Not a byte more than is asked for.
                let mut q = vec![0_i8; (n - 1) * stride + padded];
                for (t, row) in q.chunks_mut(stride).enumerate() {
                    row[..cols].iter_mut().enumerate().for_each(|(i, q)| *q = noise(i + 7 * t).cast_signed());
                }
                let sum: Vec<i32> =
                    q.chunks(stride).map(|row| row[..cols].iter().map(|&q| i32::from(q)).sum()).collect();
                let scale: Vec<f32> = (0..n).map(|t| 1.0 + t as f32).collect();
                let x = Panels { q: &q, order: PanelOrder::Rows { stride }, scale: &scale, sum: &sum };
                let w = Factored { matrix, factor: 1.7 };
                let silu = Product::Gated { gate: w, up: w, gating: Gating::Silu };
                for product in [Product::Plain(w), Product::Added(w), silu] {
                    let (want, got) = (vec![Cell::new(9.5_f32); n * rows], vec![Cell::new(9.5_f32); n * rows]);
                    let mut scratch = PanelScratch::new(cols, n);
                    let out = |cells| Columns { cells, stride: rows };
                    linear_panels(Isa::Portable, product, 0..rows, 0, x, out(&want), &mut scratch);
                    let job = PanelJob::new(Isa::Portable, product, (0..rows, 0), x, out(&got));
                    let mut room = Room { codes: &mut scratch.codes, sums: &mut scratch.sums };
                    let unit = Emulated::new(tile_rows(n));
                    // SAFETY: the token proves that these instructions exist.
                    unsafe { blocks(proof.bw(), &unit, &job, stride, &mut room) };
                    for (got, want) in got.iter().zip(&want) {
                        assert_eq!(got.get().to_bits(), want.get().to_bits(), "{rows}x{cols}, n {n}");
                    }
                }
            }
        }
    }
}
