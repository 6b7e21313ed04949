//! AMX: tiles of 16 planes x 64 columns meet 16 tiles of the copy as they are.
//!
//! Two tile rows and up to 32 planes go in steps of 64 columns, which wait for memory: the copy is asked for a step at a time, and
//! bounds of the two tile rows before are made between steps, so that requests never pause. Loops in C on two cores that read 31.7
//! GB/s plainly, 32 planes and some 120 cycles for a bound: 20.3 GB/s with bounds behind all steps, also with what comes next asked
//! for meanwhile 24.7 to 25, between steps 30.6 to 31.7. 64 planes in two groups: 33 to 34 where each step of both asks for its half
//! in eight pages, 24 to 29 as a stream or two, or from one group only; as four tiles by one tile row 22 to 25.
#![expect(unsafe_code, reason = "instructions without intrinsics, and calls of functions with target features")]

use std::arch::asm;

use super::avx512_vnni::{few, fine};
use super::bounds::{Job, Pair, Planes, Sums, TILE_COLS};
use super::layout::Tile;
use crate::AmxInt8;
use crate::ahead::{Ahead, Line, PAGE_LINES, Pages, STREAMS};
use crate::tiles::{STEPS_BETWEEN_STORES, TILE_ROWS, Tiles, tile_rows};

pub(super) fn run(proof: AmxInt8, job: Job<'_>, sums: &mut [Sums]) {
    let tiles = Tiles::new(proof, tile_rows(group_planes(job.planes().len())));
    // SAFETY: the token proves that AVX-512 VNNI exists, and what that proves.
    unsafe { pairs(&tiles, job, sums) }
}

/// Planes of a group, of near-equal ones that tiles hold.
fn group_planes(planes: usize) -> usize {
    planes.div_ceil(planes.div_ceil(2 * TILE_ROWS).max(1))
}

/// What multiplies: sums of two tile rows with the planes of one or two tiles are made step by step.
trait Multiply {
    /// Planes of the first and of the second tile, in every group.
    fn rows(&self) -> [usize; 2];

    /// Sums become zero.
    fn begin(&self);

    /// Adds the products of 64 columns.
    fn step(&self, w: [&StepTiles; 2], x: Strip<'_>);

    /// Writes the sums of each plane, for both tile rows.
    fn end(&self, sums: [&mut [Sums]; 2]);

    /// Stores something where sums will be: see [`STEPS_BETWEEN_STORES`].
    fn keep_awake(&self, sums: &mut [Sums]);
}

/// 64 columns of a tile row.
type StepTiles = [Tile; TILE_RUNS];

/// Planes of a group, from the first column of a step on.
#[derive(Clone, Copy)]
struct Strip<'a> {
    x: &'a [i8],
    stride: usize,
}

impl Strip<'_> {
    /// That 64 columns of so many planes are there.
    #[inline(always)]
    fn check(&self, rows: [usize; 2]) {
        let rows = rows[0] + rows[1];
        assert!(rows > 0 && self.x.len() >= (rows - 1) * self.stride + TILE_COLS, "planes hold all columns");
    }
}

/// All pairs of tile rows: of each its products, between whose steps bounds of the one before are made.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn pairs(unit: &impl Multiply, mut job: Job<'_>, sums: &mut [Sums]) {
    let planes = job.planes();
    let (mut now, mut before) = sums.split_at_mut(2 * planes.len());
    let mut asking = Asking::of(&job);
    let mut last: Option<Pair<'_>> = None;
    for first in job.firsts() {
        let pair = job.pair(first);
        products(unit, pair.tiles, planes, now, |step, steps| {
            asking.ask(steps);
            if let Some(last) = &mut last {
                job.bound(
                    last,
                    last.units() * step / steps,
                    before,
                    (&|w, x| few(w, x), &|w, x, sums| fine(w, x, sums)),
                );
            }
        });
        (now, before) = (before, now);
        last = Some(pair);
    }
    if let Some(last) = &mut last {
        job.bound(last, usize::MAX, before, (&|w, x| few(w, x), &|w, x, sums| fine(w, x, sums)));
    }
}

/// Sums of two tile rows with all planes, in groups; a last one that would be short begins earlier, and finds the same sums once
/// more. `each` is called behind each step, with the number of those done and of all.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn products(
    unit: &impl Multiply,
    w: [&[Tile]; 2],
    planes: Planes<'_>,
    sums: &mut [Sums],
    mut each: impl FnMut(usize, usize),
) {
    let (count, rows) = (planes.len(), unit.rows().iter().sum::<usize>());
    let (low, high) = sums.split_at_mut(count);
    let stride = planes.lines.len() / count;
    let w: [&[StepTiles]; 2] = [w[0].as_chunks().0, w[1].as_chunks().0];
    let steps = w[0].len();
    let (mut done, all) = (0_usize, count.div_ceil(rows) * steps);
    for start in (0..count).step_by(rows) {
        let from = start.min(count - rows);
        let x = &planes.lines[from * stride..];
        unit.begin();
        for step in 0..steps {
            unit.step([&w[0][step], &w[1][step]], Strip { x: &x[step * TILE_COLS..], stride });
            if done.is_multiple_of(STEPS_BETWEEN_STORES) {
                unit.keep_awake(&mut low[from..from + rows]);
            }
            done += 1;
            each(done, all);
        }
        unit.end([&mut low[from..from + rows], &mut high[from..from + rows]]);
    }
}

/// Requests for the copy, an even share of a pair in each step.
struct Asking<'a> {
    ahead: Ahead<Run<'a>>,
    /// Lines of a pair, and a step's share of those that are due.
    lines: usize,
    due: usize,
}

impl<'a> Asking<'a> {
    fn of(job: &Job<'a>) -> Self {
        let [left, then] = job.read();
        let pairs = job.firsts().count();
        let run = Run { left, then, last: left.as_ptr().cast() };
        Self { ahead: Ahead::new(run, NEAR_PAGES), lines: left.len().div_ceil(pairs * size_of::<Line>()), due: 0 }
    }

    /// What is due in one of so many steps.
    #[inline(always)]
    fn ask(&mut self, steps: usize) {
        self.due += self.lines;
        while self.due >= STREAMS * steps {
            self.due -= STREAMS * steps;
            self.ahead.ask::<STREAMS>();
        }
    }
}

/// Pages of the copy as they are read.
struct Run<'a> {
    left: &'a [u8],
    /// What is likely to be read afterwards.
    then: &'a [u8],
    last: *const Line,
}

impl Pages for Run<'_> {
    fn next(&mut self) -> *const Line {
        if self.left.is_empty() {
            self.left = std::mem::take(&mut self.then);
        }
        if !self.left.is_empty() {
            const PAGE: usize = PAGE_LINES * size_of::<Line>();
            let behind = self.left.as_ptr().addr() % PAGE;
            self.last = self.left.as_ptr().wrapping_sub(behind).cast();
            self.left = &self.left[(PAGE - behind).min(self.left.len())..];
        }
        self.last
    }
}

/// Tiles hold sums and operands from one call to the next: what is in them is no business of the compiler's, which has no
/// use for them without the target features that this crate enables nowhere.
impl Multiply for Tiles {
    fn rows(&self) -> [usize; 2] {
        self.rows()
    }

    #[inline(always)]
    fn begin(&self) {
        // SAFETY: tiles are configured, `new` had the proof that the instructions exist; they touch tiles only.
        unsafe { asm!("tilezero tmm0", "tilezero tmm1", options(nostack, nomem, preserves_flags)) };
        if self.rows()[1] > 0 {
            // SAFETY: as above.
            unsafe { asm!("tilezero tmm2", "tilezero tmm3", options(nostack, nomem, preserves_flags)) };
        }
    }

    #[inline(always)]
    fn step(&self, w: [&StepTiles; 2], strip: Strip<'_>) {
        strip.check(self.rows());
        let (low, high, x) = (w[0].as_ptr(), w[1].as_ptr(), strip.x.as_ptr());
        if self.rows()[1] == 0 {
            // SAFETY: `check` has seen that planes of the configured number are there; `new` had the proof that the instructions
            // exist. Memory is read only.
            unsafe {
                asm!(
                    "tileloadd tmm6, [{low} + {line}*1]",
                    "tileloadd tmm4, [{x} + {stride}*1]",
                    "tileloadd tmm7, [{high} + {line}*1]",
                    "tdpbsud tmm0, tmm4, tmm6",
                    "tdpbsud tmm1, tmm4, tmm7",
                    low = in(reg) low, high = in(reg) high, x = in(reg) x,
                    line = in(reg) size_of::<Tile>(), stride = in(reg) strip.stride,
                    options(nostack, readonly, preserves_flags),
                );
            }
            return;
        }
        // SAFETY: as above.
        unsafe {
            asm!(
                "tileloadd tmm6, [{low} + {line}*1]",
                "tileloadd tmm4, [{x} + {stride}*1]",
                "tileloadd tmm7, [{high} + {line}*1]",
                "tdpbsud tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{y} + {stride}*1]",
                "tdpbsud tmm1, tmm4, tmm7",
                "tdpbsud tmm2, tmm5, tmm6",
                "tdpbsud tmm3, tmm5, tmm7",
                low = in(reg) low, high = in(reg) high, x = in(reg) x,
                y = in(reg) x.wrapping_add(TILE_ROWS * strip.stride),
                line = in(reg) size_of::<Tile>(), stride = in(reg) strip.stride,
                options(nostack, readonly, preserves_flags),
            );
        }
    }

    #[inline(always)]
    fn end(&self, sums: [&mut [Sums]; 2]) {
        let rows = self.rows();
        assert!(sums.iter().all(|sums| sums.len() == rows[0] + rows[1]), "sums for each plane");
        let [low, high] = sums.map(<[Sums]>::as_mut_ptr);
        // SAFETY: there are sums for each row of the tiles; `new` had the proof that the instructions exist.
        unsafe {
            asm!("tilestored [{low} + {line}*1], tmm0", "tilestored [{high} + {line}*1], tmm1",
                 low = in(reg) low, high = in(reg) high, line = in(reg) size_of::<Sums>(),
                 options(nostack, preserves_flags));
        }
        if rows[1] > 0 {
            // SAFETY: as above; the second tile begins behind 16 rows.
            unsafe {
                asm!("tilestored [{low} + {line}*1 + 1024], tmm2", "tilestored [{high} + {line}*1 + 1024], tmm3",
                     low = in(reg) low, high = in(reg) high, line = in(reg) size_of::<Sums>(),
                     options(nostack, preserves_flags));
            }
        }
    }

    #[inline(always)]
    fn keep_awake(&self, sums: &mut [Sums]) {
        let to = sums.first_mut().expect("a group has planes");
        // SAFETY: all rows of the tile go to the 64 bytes of `to`; `new` had the proof that the instruction exists.
        unsafe {
            asm!("tilestored [{to} + {line}*1], tmm6", to = in(reg) &raw mut *to, line = in(reg) 0_usize,
                 options(nostack, preserves_flags));
        }
    }
}

// 1024 bytes are 16 rows of sums.
const _: () = assert!(size_of::<Tile>() == 64 && size_of::<Sums>() == 64 && TILE_RUNS == TILE_ROWS);

/// Tiles of the copy, four columns each, that make one here.
const TILE_RUNS: usize = TILE_COLS / 4;
/// So far ahead of their use pages are asked for, besides those that are asked for side by side.
const NEAR_PAGES: usize = 14;

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::super::activations::{Precision, ScreenRows, plane_stride, planes_len, split};
    use super::super::bounds::{ScreenInput, bounds};
    use super::super::layout::{GROUP_ROWS, ScreenMatrix, group_bytes, packed_bytes};
    use super::super::pack;
    use super::*;
    use crate::dense::{DenseKind, DenseMatrix};
    use crate::testing::Draw;
    use crate::tiles::emulated::Emulated;
    use crate::{Avx512Vnni, Isa};

    /// Tiles whose sums are here.
    struct Unit {
        tiles: Emulated,
        sums: RefCell<[[[i32; 16]; TILE_ROWS]; 4]>,
    }

    impl Multiply for Unit {
        fn rows(&self) -> [usize; 2] {
            [self.tiles.rows(4), self.tiles.rows(5)]
        }

        fn begin(&self) {
            self.sums.borrow_mut().fill([[0; 16]; TILE_ROWS]);
        }

        fn step(&self, w: [&StepTiles; 2], strip: Strip<'_>) {
            strip.check(self.rows());
            let x: Vec<u8> = strip.x.iter().map(|q| q.cast_unsigned()).collect();
            for half in (0..2).filter(|&half| self.rows()[half] > 0) {
                let a = self.tiles.load(4 + half, &x[half * TILE_ROWS * strip.stride..], strip.stride);
                for (side, w) in w.into_iter().enumerate() {
                    let b = self.tiles.load(6 + side, w.as_flattened(), size_of::<Tile>());
                    self.tiles.dot(&mut self.sums.borrow_mut()[2 * half + side], (4 + half, &a), (6 + side, &b));
                }
            }
        }

        fn end(&self, sums: [&mut [Sums]; 2]) {
            for (side, memory) in sums.into_iter().enumerate() {
                assert_eq!(memory.len(), self.rows().iter().sum(), "sums for each plane");
                for (row, memory) in memory.iter_mut().enumerate() {
                    *memory = self.sums.borrow()[row / TILE_ROWS * 2 + side][row % TILE_ROWS];
                }
            }
        }

        fn keep_awake(&self, sums: &mut [Sums]) {
            sums[0] = [77; 16];
        }
    }

    /// Order, groups, what is read of planes and bounds made in turn with products, with tiles that are emulated, so that they are
    /// tested where none exist.
    #[test]
    fn emulated_tiles_give_the_bounds_of_the_definition() {
        if Avx512Vnni::detect().is_none() {
            return;
        }
        let mut draw = Draw::new(8);
        for (at, n) in [5, 9, 15, 16, 17, 31, 32, 33, 40, 63, 64, 65, 97].into_iter().enumerate() {
            let (cols, height) = ([64, 192, 448][at % 3], [300, 128, 129, 145][at % 4]);
            let weights: Vec<u8> = draw.floats(height * cols, 1.0).iter().flat_map(|w| w.to_le_bytes()).collect();
            let w = DenseMatrix::new(DenseKind::F32, &weights, height, cols).unwrap();
            let (mut copy, groups) = (vec![0; packed_bytes(height, cols)], height.div_ceil(GROUP_ROWS));
            let (codes, greatest) = copy.split_at_mut(groups * group_bytes(cols));
            let weight_max = pack(Isa::Portable, w, 0..groups, codes, greatest);
            let w = ScreenMatrix::new(&copy, &w, weight_max).unwrap();
            let x = draw.floats(n * cols, 3.0);
            let mut values = vec![0; n * planes_len(cols)];
            let each = x.chunks(cols).zip(values.chunks_mut(planes_len(cols))).enumerate();
            let all = [Precision::Raced, Precision::Two, Precision::Refined, Precision::Outliers, Precision::One];
            let precision = |t: usize| all[(t + at) % all.len()];
            let rows: Vec<_> = each.map(|(t, (x, values))| split(Isa::Portable, x, precision(t), values)).collect();
            let x = ScreenRows { planes: &values, rows: &rows };
            let run = |emulated: bool| {
                let mut input = ScreenInput::new(n, cols);
                input.set(Isa::Portable, cols, x);
                let (mut out, mut greatest) = (vec![0.5; n * height], vec![0.5; n * groups]);
                if emulated {
                    input.lay_in_lines(cols, x);
                    let (job, sums) = input.job(w, (0..groups, 0), (&mut out, &mut greatest));
                    assert_eq!(job.planes().lines.len(), job.planes().len() * plane_stride(cols));
                    let rows = tile_rows(group_planes(job.planes().len()));
                    let unit = Unit { tiles: Emulated::new(rows), sums: RefCell::default() };
                    // SAFETY: they were detected.
                    unsafe { pairs(&unit, job, sums) };
                } else {
                    bounds(Isa::Portable, w, (0..groups, 0), &mut input, (&mut out, &mut greatest));
                }
                (out, greatest, (0..n).map(|t| input.least(t)).collect::<Vec<_>>())
            };
            assert_eq!(run(true), run(false), "{n} rows of {cols}");
        }
    }

    #[test]
    fn pages_are_those_of_the_run_and_of_what_follows() {
        let bytes = vec![0_u8; 10 * 4096];
        let start = bytes.as_ptr().addr().next_multiple_of(4096) - bytes.as_ptr().addr();
        let at = |page: usize| bytes[start + page * 4096..].as_ptr().cast();
        let mut run =
            Run { left: &bytes[start + 100..start + 2 * 4096 + 7], then: &bytes[start + 5 * 4096..], last: at(0) };
        for expected in [0, 1, 2, 5, 6, 7, 8] {
            assert_eq!(run.next(), at(expected));
        }
        let mut short = Run { left: &bytes[start..start + 4096], then: &[], last: at(9) };
        assert_eq!([short.next(), short.next(), short.next()], [at(0); 3]);
    }
}
