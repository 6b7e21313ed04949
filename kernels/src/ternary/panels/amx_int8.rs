//! Panels on AMX: tiles of 16 activation rows x 64 columns meet tiles of 64 columns x 16 rows of W, which are unpacked three
//! steps before. A field of a row tile is a row of such a tile as it is, and four tiles of sums lie as [`Sums`] do.
//!
//! Every group of activation rows unpacks the weights for itself, into a ring that stays in the first-level cache: vector
//! units and stores are idle while tiles multiply, the packed weights of a pair take a quarter of the room that codes do, and
//! sums stay in tiles over all columns. Activations come from the second-level cache past the first one (`tileloaddt1`), which
//! they would fill only to be gone before the next pair wants them: a loop with the stores of a step takes 74 to 78 cycles for
//! one in place of 84 to 89.
#![expect(unsafe_code, reason = "instructions without intrinsics, and calls of functions with target features")]

use std::arch::asm;
use std::ops::Range;

use super::super::layout::Tile;
use super::ahead::{self, Pieces};
use super::avx512_vnni::{prefetch_to_write, unpack_both};
use super::{Codes, GROUP_ROWS_MAX, PAIR, PanelJob, RING_STEPS, Room, STEP_RUNS, Sums};
use crate::ahead::Ahead;
use crate::tiles::{STEPS_BETWEEN_STORES, TILE_ROWS, Tiles, tile_rows};
use crate::{AmxInt8, Avx512Bw};

pub(super) fn linear(proof: AmxInt8, job: &PanelJob<'_>, stride: usize, room: &mut Room<'_>) {
    let tiles = Tiles::new(proof, tile_rows(job.n()));
    // SAFETY: the token proves that AVX-512 VNNI exists, and what that proves.
    unsafe { pairs(proof.vnni().bw(), &tiles, job, stride, room) }
}

/// What multiplies. Sums of two row tiles with `N` tiles of activations, one or two, are made step by step, and each step in
/// four parts, so that codes can be unpacked in between.
trait Multiply {
    /// Sums become zero.
    fn begin<const N: usize>(&self);

    /// Part `PART` of a step.
    fn part<const N: usize, const PART: usize>(&self, codes: &StepCodes, x: Strip<'_>);

    /// Writes the sums, one for each row.
    fn end<const N: usize>(&self, sums: &mut [Sums]);

    /// Stores something where sums will be: see [`STEPS_BETWEEN_STORES`].
    fn keep_awake(&self, sums: &mut [Sums]);
}

/// Codes of 64 columns of a pair of row tiles.
type StepCodes = [Codes; STEP_RUNS];

/// Activation rows of a group, from the first column of a step on.
#[derive(Clone, Copy)]
struct Strip<'a> {
    x: &'a [i8],
    stride: usize,
    rows: [usize; 2],
}

impl Strip<'_> {
    /// That 64 columns of all rows are there.
    #[inline(always)]
    fn check<const N: usize>(&self) {
        let rows = self.rows[0] + self.rows[1];
        assert!(rows > 0 && (N == 2) == (self.rows[1] > 0), "one or two tiles");
        assert!(self.x.len() >= (rows - 1) * self.stride + TILE_COLS, "activations hold all rows");
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

/// Tiles in the order in which they are multiplied: all of a pair for each group, then those of the next pair. Behind the last
/// one they go on with that pair: what is unpacked then is not used.
struct Feed<'a, 'b> {
    job: &'b PanelJob<'a>,
    tiles: [&'a [StepTiles]; PAIR],
    pair: usize,
    group: usize,
    groups: usize,
    step: usize,
}

type StepTiles = [Tile; TILES];

impl<'a, 'b> Feed<'a, 'b> {
    fn new(job: &'b PanelJob<'a>, groups: usize) -> Self {
        Self { job, tiles: tiles_of(job, 0), pair: 0, group: 0, groups, step: 0 }
    }

    #[inline(always)]
    fn next(&mut self) -> [&'a StepTiles; PAIR] {
        let found = [&self.tiles[0][self.step], &self.tiles[1][self.step]];
        self.step += 1;
        if self.step == self.tiles[0].len() {
            (self.step, self.group) = (0, self.group + 1);
            if self.group == self.groups {
                (self.group, self.pair) = (0, (self.pair + 1).min(self.job.pairs() - 1));
                self.tiles = tiles_of(self.job, self.pair);
            }
        }
        found
    }
}

/// Both row tiles of a pair, in steps. Of a pair of one the other one is the same: what it gives is not looked at.
fn tiles_of<'a>(job: &PanelJob<'a>, pair: usize) -> [&'a [StepTiles]; PAIR] {
    let first = job.row_tile(pair, 0).expect("a pair has a row tile");
    [first.as_chunks().0, job.row_tile(pair, 1).unwrap_or(first).as_chunks().0]
}

/// Pairs, groups, steps. Meanwhile asks for weights to come, and for the lines of the output that the group's results go to: tiles
/// wait until codes are stored, and these for all stores before them.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn pairs(proof: Avx512Bw, unit: &impl Multiply, job: &PanelJob<'_>, stride: usize, room: &mut Room<'_>) {
    let count = job.n().div_ceil(GROUP_ROWS_MAX);
    let ring: &mut [StepCodes; RING_STEPS] = room.codes.as_chunks_mut().0.first_chunk_mut().expect("room for a ring");
    let mut ring = Ring { ring, at: 0, feed: Feed::new(job, count) };
    for slot in 0..AHEAD {
        let tiles = ring.feed.next();
        unpack_both([tiles[0], tiles[1]], &mut ring.ring[slot]);
    }
    let share = GROUP_ROWS_MAX.div_ceil(ring.feed.tiles[0].len().max(1));
    let mut ahead = ahead::of(job);
    for pair in 0..job.pairs() {
        for (index, group) in groups(job.n()).enumerate() {
            let rows = group.rows[0] + group.rows[1];
            let new = group.first + group.known..group.first + rows;
            let strip = Strip { x: &job.activations()[group.first * stride..], stride, rows: group.rows };
            let lines = Lines { job, pair, rows: new.clone(), share };
            let mut asking = Asking { ahead: &mut ahead, due: index, apart: count, lines };
            let sums = &mut room.sums[..rows];
            if group.rows[1] == 0 {
                multiply::<1>(unit, &mut ring, strip, &mut asking, sums);
            } else {
                multiply::<2>(unit, &mut ring, strip, &mut asking, sums);
            }
            job.finish(proof, pair, new.start, &sums[group.known..]);
        }
    }
}

/// What is asked for during the steps of a group.
struct Asking<'a, 'b> {
    /// Weights, of which each of so many groups asks for its share.
    ahead: &'b mut Ahead<Pieces<'a>>,
    /// The next step in which some are asked for, and how far apart they are.
    due: usize,
    apart: usize,
    lines: Lines<'a, 'b>,
}

impl Asking<'_, '_> {
    /// In each of the parts of a step.
    #[inline(always)]
    fn weights(&mut self, step: usize) {
        if step == self.due {
            self.ahead.ask::<{ PAIR * TILES / PARTS }>();
        }
    }

    /// Once all parts of a step have asked.
    #[inline(always)]
    fn lines(&mut self, step: usize) {
        self.lines.ask();
        if step == self.due {
            self.due += self.apart;
        }
    }
}

/// Lines of the output that a group writes, those of so many rows in each step.
struct Lines<'a, 'b> {
    job: &'b PanelJob<'a>,
    pair: usize,
    rows: Range<usize>,
    share: usize,
}

impl Lines<'_, '_> {
    #[inline(always)]
    fn ask(&mut self) {
        let next = self.rows.end.min(self.rows.start + self.share);
        self.job.for_each_line(self.pair, self.rows.start..next, prefetch_to_write);
        self.rows.start = next;
    }
}

/// Codes of the next steps.
struct Ring<'a, 'b, 'c> {
    ring: &'c mut [StepCodes; RING_STEPS],
    /// Steps so far.
    at: usize,
    feed: Feed<'a, 'b>,
}

/// All steps of a group.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn multiply<const N: usize>(
    unit: &impl Multiply,
    ring: &mut Ring<'_, '_, '_>,
    strip: Strip<'_>,
    asking: &mut Asking<'_, '_>,
    sums: &mut [Sums],
) {
    unit.begin::<N>();
    for step in 0..ring.feed.tiles[0].len() {
        let x = Strip { x: &strip.x[step * TILE_COLS..], ..strip };
        let (now, later, tiles) = (ring.at % RING_STEPS, (ring.at + AHEAD) % RING_STEPS, ring.feed.next());
        ring.at += 1;
        macro_rules! part {
            ($part:literal) => {
                unit.part::<N, $part>(&ring.ring[now], x);
                let codes = &mut ring.ring[later].as_chunks_mut::<4>().0[$part];
                unpack_both([&tiles[0][$part..=$part], &tiles[1][$part..=$part]], codes);
                asking.weights(step);
            };
        }
        part!(0);
        part!(1);
        part!(2);
        part!(3);
        asking.lines(step);
        if ring.at.is_multiple_of(STEPS_BETWEEN_STORES) {
            unit.keep_awake(sums);
        }
    }
    unit.end::<N>(sums);
}

/// Tiles hold sums and operands from one call to the next: what is in them is no business of the compiler's, which has no
/// use for them without the target features that this crate enables nowhere.
impl Multiply for Tiles {
    #[inline(always)]
    fn begin<const N: usize>(&self) {
        // SAFETY: tiles are configured, `new` had the proof that the instructions exist; they touch tiles only.
        unsafe { asm!("tilezero tmm0", "tilezero tmm1", options(nostack, nomem, preserves_flags)) };
        if N == 2 {
            // SAFETY: as above.
            unsafe { asm!("tilezero tmm2", "tilezero tmm3", options(nostack, nomem, preserves_flags)) };
        }
    }

    #[inline(always)]
    fn part<const N: usize, const PART: usize>(&self, codes: &StepCodes, strip: Strip<'_>) {
        assert!(strip.rows[0] == self.rows()[0] && (N == 1 || strip.rows[1] == self.rows()[1]), "tiles of this size");
        strip.check::<N>();
        let (codes, stride, x) = (codes.as_ptr(), strip.stride, strip.x.as_ptr());
        macro_rules! load {
            ($line:literal, $from:ident, $line_bytes:expr) => {
                // SAFETY: `check` has seen that rows of the configured size are there, and codes are as large as tiles; `new`
                // had the proof that the instruction exists. Memory is read only.
                unsafe {
                    asm!($line, from = in(reg) $from, line = in(reg) $line_bytes,
                         options(nostack, readonly, preserves_flags))
                }
            };
        }
        macro_rules! dot {
            ($line:literal) => {
                // SAFETY: the same proof; tiles are configured, and nothing else is touched.
                unsafe { asm!($line, options(nostack, nomem, preserves_flags)) }
            };
        }
        match PART {
            0 => {
                load!("tileloadd tmm6, [{from} + {line}*1]", codes, size_of::<Codes>());
                load!("tileloaddt1 tmm4, [{from} + {line}*1]", x, stride);
            }
            1 => {
                dot!("tdpbsud tmm0, tmm4, tmm6");
                load!("tileloadd tmm7, [{from} + {line}*1 + 64]", codes, size_of::<Codes>());
            }
            2 => {
                dot!("tdpbsud tmm1, tmm4, tmm7");
                if N == 2 {
                    let x = x.wrapping_add(TILE_ROWS * stride);
                    load!("tileloaddt1 tmm5, [{from} + {line}*1]", x, stride);
                }
            }
            _ if N == 2 => {
                dot!("tdpbsud tmm2, tmm5, tmm6");
                dot!("tdpbsud tmm3, tmm5, tmm7");
            }
            _ => {}
        }
    }

    #[inline(always)]
    fn end<const N: usize>(&self, sums: &mut [Sums]) {
        let rows: usize = self.rows()[..N].iter().sum();
        assert_eq!(sums.len(), rows, "sums for each row");
        let (to, line) = (sums.as_mut_ptr(), size_of::<Sums>());
        // SAFETY: `sums` has as many rows as the tiles; `new` had the proof that the instructions exist.
        unsafe {
            asm!("tilestored [{to} + {line}*1], tmm0", "tilestored [{to} + {line}*1 + 64], tmm1",
                 to = in(reg) to, line = in(reg) line, options(nostack, preserves_flags));
        }
        if N == 2 {
            // SAFETY: as above.
            unsafe {
                asm!("tilestored [{to} + {line}*1 + 2048], tmm2", "tilestored [{to} + {line}*1 + 2112], tmm3",
                     to = in(reg) to, line = in(reg) line, options(nostack, preserves_flags));
            }
        }
    }

    #[inline(always)]
    fn keep_awake(&self, sums: &mut [Sums]) {
        let to = sums.first_mut().expect("a group has rows");
        // SAFETY: all rows of the tile go to the first 64 bytes of `to`; `new` had the proof that the instruction exists.
        unsafe {
            asm!("tilestored [{to} + {line}*1], tmm6", to = in(reg) &raw mut *to, line = in(reg) 0_usize,
                 options(nostack, preserves_flags));
        }
    }
}

// `line` is the distance of rows of codes and of sums, a row tile of a pair half of it; 2048 bytes are 16 of them.
const _: () = assert!(size_of::<Codes>() == 128 && size_of::<Sums>() == 128 && STEP_RUNS == TILE_ROWS);
const _: () = assert!(TILES * 4 == STEP_RUNS && AHEAD < RING_STEPS);

/// Columns of a tile of activations, a byte each, and how many of a row tile's tiles have as many.
const TILE_COLS: usize = 64;
const TILES: usize = TILE_COLS / super::TILE_COLS;
/// Parts of a step, a tile of each row tile is unpacked in each.
const PARTS: usize = TILES;
/// Steps from the stores of codes to the loads of them as tiles, which wait until stores have reached the cache: one step took 1.7
/// times as long as two.
const AHEAD: usize = 3;

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::super::super::{TernaryMatrix, activation_stride, pack_codes, packed_bytes, padded_cols};
    use super::super::{Factored, Gating, PanelOrder, PanelScratch, Panels, Product, linear_panels};
    use super::*;
    use crate::tiles::emulated::Emulated;
    use crate::{Avx512Vnni, Columns, Isa};

    /// Tiles whose sums are here.
    struct Unit {
        tiles: Emulated,
        sums: RefCell<[[[i32; 16]; TILE_ROWS]; 4]>,
    }

    impl Multiply for Unit {
        fn begin<const N: usize>(&self) {
            self.sums.borrow_mut()[..2 * N].fill([[0; 16]; TILE_ROWS]);
        }

        fn part<const N: usize, const PART: usize>(&self, codes: &StepCodes, strip: Strip<'_>) {
            strip.check::<N>();
            if PART != 0 {
                return;
            }
            let x: Vec<u8> = strip.x.iter().map(|q| q.cast_unsigned()).collect();
            for half in 0..N {
                assert_eq!(strip.rows[half], self.tiles.rows(4 + half), "tiles of this size");
                let a = self.tiles.load(4 + half, &x[half * TILE_ROWS * strip.stride..], strip.stride);
                for side in 0..PAIR {
                    let codes = std::array::from_fn(|row| codes[row].0[side]);
                    self.tiles.dot(&mut self.sums.borrow_mut()[2 * half + side], (4 + half, &a), (6 + side, &codes));
                }
            }
        }

        fn end<const N: usize>(&self, sums: &mut [Sums]) {
            let rows: usize = (0..N).map(|half| self.tiles.rows(4 + half)).sum();
            assert_eq!(sums.len(), rows, "sums for each row");
            for (row, memory) in sums.iter_mut().enumerate() {
                for (side, memory) in memory.0.iter_mut().enumerate() {
                    *memory = self.sums.borrow()[row / TILE_ROWS * 2 + side][row % TILE_ROWS];
                }
            }
        }

        fn keep_awake(&self, _: &mut [Sums]) {}
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
        let shapes = [(16, 64), (37, 300), (160, 448), (33, 449), (70, 2048), (48, 128)];
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
                    let unit = Unit { tiles: Emulated::new(tile_rows(n)), sums: RefCell::default() };
                    // SAFETY: the token proves that these instructions exist.
                    unsafe { pairs(proof.bw(), &unit, &job, stride, &mut room) };
                    for (got, want) in got.iter().zip(&want) {
                        assert_eq!(got.get().to_bits(), want.get().to_bits(), "{rows}x{cols}, n {n}");
                    }
                }
            }
        }
    }
}
