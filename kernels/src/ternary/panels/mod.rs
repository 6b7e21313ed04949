//! Many activation rows at once: activations in panels, weights unpacked once for all of them, and results written
//! where they belong, added, or gated on the way.

#[cfg(target_arch = "x86_64")]
mod ahead;
#[cfg(target_arch = "x86_64")]
mod amx_int8;
#[cfg(target_arch = "x86_64")]
mod avx512_vnni;
mod interleave;
#[cfg(target_arch = "aarch64")]
mod neon;

pub use interleave::interleave;

use std::cell::Cell;
use std::ops::Range;

use super::layout::{TILE_COLS, TILE_ROWS, TernaryMatrix, Tile, padded_cols};
use crate::activation::{relu2_lanes, silu_lanes};
use crate::simd::{Kernel, LANES, QUOTIENT_DIVISORS, Simd, dispatch};
use crate::zeros::{Zeroed, Zeros};
use crate::{Columns, Isa};

/// Most activation rows of one panel: with a pair of row tiles, 28 sums leave 4 registers for codes and activations.
pub const PANEL_ROWS_MAX: usize = 14;
/// Most rows of W whose sums are kept at a time; a good size for a unit of work.
pub const PANEL_UNIT_ROWS: usize = BLOCK_PAIRS * PAIR * TILE_ROWS;

/// Row tiles that are multiplied together.
pub(super) const PAIR: usize = 2;
/// Pairs of row tiles that pass over the same columns of the activations one after another.
pub(super) const BLOCK_PAIRS: usize = 4;
/// Tiles of a row tile that are unpacked at a time: 80 KiB of codes, which every panel reads from a second-level cache as
/// fast as from a first-level one, so that the sums of 2560 columns stay in registers.
const BLOCK_TILES: usize = 160;
/// Most tiles of a row tile that every kernel of this architecture takes in one block, so that no sums wait for the next.
#[cfg(target_arch = "aarch64")]
const ONE_BLOCK_TILES: usize = neon::BLOCK_TILES;
#[cfg(not(target_arch = "aarch64"))]
const ONE_BLOCK_TILES: usize = BLOCK_TILES;
/// Steps of 64 columns whose codes AMX's tiles have at a time: 8 KiB beside a pair's packed weights and what passes by of the
/// activations.
pub(super) const RING_STEPS: usize = 4;
/// Codes of a step.
pub(super) const STEP_RUNS: usize = 16;

/// Most activation rows that tiles multiply at a time: two of 16.
pub(super) const GROUP_ROWS_MAX: usize = 32;

/// Unpacked codes of 4 columns of a pair of row tiles.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Codes(pub(super) [[u8; 4 * TILE_ROWS]; PAIR]);

/// Sums of a pair of row tiles against one activation row.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Sums(pub(super) [[i32; TILE_ROWS]; PAIR]);

#[expect(unsafe_code, reason = "zeros are numbers")]
// SAFETY: nothing but numbers, in cache lines.
unsafe impl Zeroed for Codes {}
#[expect(unsafe_code, reason = "zeros are numbers")]
// SAFETY: as above.
unsafe impl Zeroed for Sums {}

/// How many panels `n` rows make.
#[must_use]
pub const fn panel_count(n: usize) -> usize {
    n.div_ceil(PANEL_ROWS_MAX)
}

/// The rows of panel `index` of `n` rows; panels are near-equal.
#[must_use]
pub const fn panel_rows(n: usize, index: usize) -> Range<usize> {
    let count = panel_count(n);
    index * n / count..(index + 1) * n / count
}

/// `all` in `count` near-equal parts, as [`panel_rows`] cuts them; no division for each, which takes as long as a dozen
/// products.
#[inline(always)]
pub(super) fn parts(all: Range<usize>, count: usize) -> impl Iterator<Item = Range<usize>> {
    let (whole, rest) = (all.len() / count, all.len() % count);
    let (mut end, mut over) = (all.start, 0);
    (0..count).map(move |_| {
        let start = end;
        over += rest;
        end += whole + usize::from(over >= count);
        over -= if over >= count { count } else { 0 };
        start..end
    })
}

/// In which order a panel holds the runs of 4 columns: run `r` is what meets field `r % 4` of tile `r / 4`.
///
/// One after another, or by blocks of tiles: in each the runs of the last field of all its tiles, then those of the field
/// before, and so on. So fields need no shift: each counts four times what the one before counts, and sums are divided by
/// four from field to field.
#[derive(Clone, Copy, Debug)]
pub(super) struct Runs {
    tiles: usize,
    by_fields: bool,
}

impl Runs {
    /// For `isa`, of `n` activation rows in all and so many tiles.
    pub(super) fn of(isa: Isa, n: usize, tiles: usize) -> Self {
        // NEON's codes are signed, so the last field must be shifted.
        let unsigned = !matches!(isa, Isa::NeonDotprod(_) | Isa::NeonI8mm(_));
        let by_fields = unsigned && FIELDS_ROWS.contains(&n) && tiles >= FIELDS_TILES_MIN && tiles.is_multiple_of(4);
        Self { tiles, by_fields }
    }

    /// Blocks of tiles, whole fours each; what is left of them is in none.
    #[inline(always)]
    pub(super) fn blocks(self) -> impl Iterator<Item = Range<usize>> {
        let count = if self.by_fields { self.tiles.div_ceil(FIELDS_BLOCK_TILES) } else { 1 };
        parts(0..self.tiles / 4, count).map(|fours| 4 * fours.start..4 * fours.end)
    }

    /// Where a run is.
    pub(super) fn place(self, run: usize) -> usize {
        if !self.by_fields {
            return run;
        }
        let block = self.blocks().find(|block| block.contains(&(run / 4))).expect("blocks hold all tiles");
        self.places(&block, run / 4).0[run % 4]
    }

    /// Where the four runs of tile `first` of a block are, and how far behind each those of the next tile.
    #[inline(always)]
    pub(super) fn places(self, block: &Range<usize>, first: usize) -> ([usize; 4], usize) {
        if self.by_fields {
            let (last, len) = (3 * block.start + first, block.len());
            ([last + 3 * len, last + 2 * len, last + len, last], 1)
        } else {
            ([4 * first, 4 * first + 1, 4 * first + 2, 4 * first + 3], 4)
        }
    }
}

/// Whether `isa` multiplies `n` rows faster in panels. It is exact either way.
#[must_use]
pub fn prefers_panels(isa: Isa, n: usize) -> bool {
    match isa {
        Isa::Avx512Vnni(_) | Isa::AmxInt8(_) => n >= PANELS_FROM_ROWS,
        Isa::NeonDotprod(_) | Isa::NeonI8mm(_) => n >= NEON_PANELS_FROM_ROWS,
        _ => false,
    }
}

/// Whether `isa` multiplies `n` rows of `cols` columns faster as [`PanelOrder::Rows`] than interleaved. It is exact either way.
#[must_use]
pub fn prefers_rows(isa: Isa, n: usize, cols: usize) -> bool {
    let from = if cols < LONG_COLS { TILES_FROM_ROWS } else { TILES_FROM_LONG_ROWS };
    matches!(isa, Isa::AmxInt8(_)) && n >= from
}

/// How many of `n` activation rows of `cols` columns are best multiplied with all weights before the next ones: as many as stay in
/// a second-level cache, near-equal parts of all, or all of them where they are read faster than they are multiplied.
#[must_use]
pub fn rows_at_once(isa: Isa, n: usize, cols: usize) -> usize {
    if !prefers_rows(isa, n, cols) {
        return n;
    }
    let most =
        (AT_ONCE_BYTES / padded_cols(cols)).clamp(2 * GROUP_ROWS_MAX, AT_ONCE_ROWS) / GROUP_ROWS_MAX * GROUP_ROWS_MAX;
    n.div_ceil(n.div_ceil(most)).next_multiple_of(GROUP_ROWS_MAX).min(n)
}

/// Quantised rows, and for each row its scale and sum (see [`Quantized`](super::Quantized)).
#[derive(Clone, Copy, Debug)]
pub struct Panels<'a> {
    pub q: &'a [i8],
    pub order: PanelOrder,
    pub scale: &'a [f32],
    pub sum: &'a [i32],
}

impl Panels<'_> {
    /// Some of the rows.
    ///
    /// # Panics
    /// Where they are not all of them and lie interleaved.
    #[must_use]
    pub fn part(self, rows: Range<usize>) -> Self {
        let q = match self.order {
            PanelOrder::Interleaved => {
                assert_eq!(rows, 0..self.scale.len(), "panels are taken whole");
                self.q
            }
            PanelOrder::Rows { stride } => &self.q[rows.start * stride..],
        };
        Self { q, scale: &self.scale[rows.clone()], sum: &self.sum[rows], ..self }
    }
}

/// How quantised rows lie one beside another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanelOrder {
    /// Panel `p` takes the bytes `padded_cols(cols) * panel_rows(n, p)`: for each run of 4 columns, those 4 values of each
    /// of its rows, in the order in which a pass over the columns reads them. [`interleave`] makes it, for one [`Isa`].
    Interleaved,
    /// As [`Activations`](super::Activations) have them. Each should begin with a cache line: tiles take 3.5 times as long where
    /// what they load begins in one line and ends in the next.
    Rows { stride: usize },
}

/// A matrix and a factor of its results, 1 where there is none.
#[derive(Clone, Copy, Debug)]
pub struct Factored<'a> {
    pub matrix: TernaryMatrix<'a>,
    pub factor: f32,
}

/// What is computed of activations x.
#[derive(Clone, Copy, Debug)]
pub enum Product<'a> {
    /// W x.
    Plain(Factored<'a>),
    /// W x, added to what the output holds.
    Added(Factored<'a>),
    /// The activation of (gate x), times (up x).
    Gated { gate: Factored<'a>, up: Factored<'a>, gating: Gating },
}

/// The activation of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gating {
    /// `gate^2` where it is positive, else 0, as [`relu2_mul`](crate::activation::relu2_mul).
    SquaredRelu,
    /// `gate / (1 + exp(-gate))`, as [`silu_mul`](crate::activation::silu_mul).
    Silu,
}

/// Working memory of [`linear_panels`], for one thread; nothing is allocated after it.
#[derive(Debug)]
pub struct PanelScratch {
    pub(super) codes: Zeros<Codes>,
    pub(super) sums: Zeros<Sums>,
    /// One over the scale of each activation row.
    inverses: Vec<f32>,
}

impl PanelScratch {
    /// For matrices of up to `cols_max` columns and up to `n_max` activation rows.
    #[must_use]
    pub fn new(cols_max: usize, n_max: usize) -> Self {
        let tiles = padded_cols(cols_max) / TILE_COLS;
        let rows = n_max.max(1).next_multiple_of(GROUP_ROWS_MAX);
        let sums = if tiles > ONE_BLOCK_TILES { rows * BLOCK_PAIRS } else { GROUP_ROWS_MAX };
        Self {
            codes: Zeros::new((4 * tiles.min(BLOCK_TILES)).max(RING_STEPS * STEP_RUNS)),
            sums: Zeros::new(sums),
            inverses: vec![0.0; n_max],
        }
    }
}

/// Computes `product` for the rows `rows` of its matrices and all rows of `x`; the result of row `r` and activation
/// row `t` goes to `out` at `t * stride + r - rows.start`. Weights from row `next` on, where this thread is likely to go on,
/// are asked for at the end; any number that is no row asks for nothing. The bits are those of [`linear`](super::linear), the factor,
/// and the function of [`activation`](crate::activation), one after the other.
///
/// # Panics
/// Where `rows` does not start at a multiple of 16 or leaves a matrix, two matrices differ in shape, or a slice or the
/// scratch is too short.
pub fn linear_panels(
    isa: Isa,
    product: Product<'_>,
    rows: Range<usize>,
    next: usize,
    x: Panels<'_>,
    out: Columns<'_>,
    scratch: &mut PanelScratch,
) {
    let mut job = PanelJob::new(isa, product, (rows, next), x, out);
    if job.rows == 0 || job.n() == 0 {
        return;
    }
    let PanelScratch { codes, sums, inverses } = scratch;
    if x.scale.iter().all(|scale| QUOTIENT_DIVISORS.contains(scale)) {
        let inverses = &mut inverses[..x.scale.len()];
        inverses.iter_mut().zip(x.scale).for_each(|(inverse, scale)| *inverse = 1.0 / scale);
        job.inverses = Some(inverses);
    }
    let mut room = Room { codes, sums };
    match (isa, x.order) {
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512Vnni(proof), PanelOrder::Interleaved) => avx512_vnni::linear(proof, &job, &mut room),
        #[cfg(target_arch = "x86_64")]
        (Isa::AmxInt8(proof), PanelOrder::Interleaved) => avx512_vnni::linear(proof.vnni(), &job, &mut room),
        #[cfg(target_arch = "x86_64")]
        (Isa::AmxInt8(proof), PanelOrder::Rows { stride }) => amx_int8::linear(proof, &job, stride, &mut room),
        #[cfg(target_arch = "aarch64")]
        (Isa::NeonDotprod(proof), PanelOrder::Interleaved) => neon::linear(proof, &job, &mut room),
        #[cfg(target_arch = "aarch64")]
        (Isa::NeonI8mm(proof), PanelOrder::Interleaved) => neon::linear(proof, &job, &mut room),
        _ => dispatch(isa, Plain { job: &job, room }),
    }
}

/// What of a [`PanelScratch`] is written while a job runs.
pub(super) struct Room<'a> {
    pub(super) codes: &'a mut [Codes],
    pub(super) sums: &'a mut [Sums],
}

/// A checked call.
pub(super) struct PanelJob<'a> {
    product: Product<'a>,
    tiles: [&'a [Tile]; PAIR],
    /// Row tiles from the pair on that this thread is likely to go on with; empty if none.
    following: [&'a [Tile]; PAIR],
    tiles_per_row: usize,
    runs: Runs,
    rows: usize,
    x: Panels<'a>,
    /// One over each scale, where [`Simd::quotient`] takes all of them.
    inverses: Option<&'a [f32]>,
    out: Columns<'a>,
}

impl<'a> PanelJob<'a> {
    fn new(
        isa: Isa,
        product: Product<'a>,
        (rows, next): (Range<usize>, usize),
        x: Panels<'a>,
        out: Columns<'a>,
    ) -> Self {
        let (first, second) = match product {
            Product::Plain(w) | Product::Added(w) => (w.matrix, w.matrix),
            Product::Gated { gate, up, .. } => (gate.matrix, up.matrix),
        };
        assert!(first.rows() == second.rows() && first.cols() == second.cols(), "matrices of one shape");
        assert!(rows.start.is_multiple_of(TILE_ROWS), "rows start at a row tile");
        assert!(rows.start <= rows.end && rows.end <= first.rows(), "rows lie in the matrix");
        let (n, width) = (x.scale.len(), rows.len());
        assert_eq!(x.sum.len(), n, "a sum for each scale");
        let padded = padded_cols(first.cols());
        let (stride, last) = match x.order {
            PanelOrder::Interleaved => (padded, padded),
            PanelOrder::Rows { stride } => (stride, padded),
        };
        assert!(stride >= padded, "rows of activations do not overlap");
        assert!(n == 0 || x.q.len() >= (n - 1) * stride + last, "activations hold all rows");
        assert!(out.stride >= width, "rows of the output do not overlap");
        assert!(n == 0 || out.cells.len() >= (n - 1) * out.stride + width, "the output holds all rows");
        let range = rows.start / TILE_ROWS..rows.end.div_ceil(TILE_ROWS);
        let tiles = [first.row_tiles(range.clone()), second.row_tiles(range)];
        let (next, step) = (next / TILE_ROWS, usize::from(!matches!(product, Product::Gated { .. })));
        let behind = |w: TernaryMatrix<'a>, tile: usize| -> &'a [Tile] {
            let end = w.rows().div_ceil(TILE_ROWS);
            w.row_tiles(tile.min(end)..end)
        };
        let following = [behind(first, next), behind(second, next.saturating_add(step))];
        let tiles_per_row = first.tiles_per_row();
        let runs = Runs::of(isa, n, tiles_per_row);
        Self { product, tiles, following, tiles_per_row, runs, rows: width, x, inverses: None, out }
    }

    /// Rows of activations.
    pub(super) fn n(&self) -> usize {
        self.x.scale.len()
    }

    pub(super) fn tiles_per_row(&self) -> usize {
        self.tiles_per_row
    }

    /// Whether every panel unpacks the weights for itself, in registers: that hides behind the products, codes that are
    /// written and read again do not. With shifts it is so up to 24 rows.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn is_direct(&self) -> bool {
        self.runs.by_fields || self.n() <= SHIFTED_ROWS_MAX
    }

    /// Whether the activations are too many for caches to be read as they are wanted.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn is_far(&self) -> bool {
        self.n() * self.tiles_per_row * TILE_COLS >= FAR_BYTES
    }

    /// The order of the activations; `None` where runs come one after another.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn by_fields(&self) -> Option<Runs> {
        Some(self.runs).filter(|runs| runs.by_fields)
    }

    fn gated(&self) -> bool {
        matches!(self.product, Product::Gated { .. })
    }

    /// Pairs of row tiles: two neighbours, or one of the gate and one of up.
    pub(super) fn pairs(&self) -> usize {
        let row_tiles = self.rows.div_ceil(TILE_ROWS);
        if self.gated() { row_tiles } else { row_tiles.div_ceil(PAIR) }
    }

    /// Row tile `side` of pair `index`; the last pair may have one only.
    pub(super) fn row_tile(&self, index: usize, side: usize) -> Option<&'a [Tile]> {
        let tile = if self.gated() { index } else { index * PAIR + side };
        self.tiles[side].get(tile * self.tiles_per_row..(tile + 1) * self.tiles_per_row)
    }

    /// Both row tiles of pair `index`, where it has two.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn both(&self, index: usize) -> Option<[&'a [Tile]; PAIR]> {
        Some([self.row_tile(index, 0)?, self.row_tile(index, 1)?])
    }

    /// A row tile of a pair, or of the pair behind the last one what this thread is likely to go on with; what is worth reading ahead.
    pub(super) fn upcoming(&self, index: usize, side: usize) -> Option<&'a [Tile]> {
        let behind = || self.following[side].get(..self.tiles_per_row);
        if index < self.pairs() { self.row_tile(index, side) } else { behind() }
    }

    /// Runs of activation row `t` of the panel `rows`, how far apart they are and in which order.
    fn runs_of(&self, rows: &Range<usize>, t: usize) -> (&'a [[i8; 4]], usize, Runs) {
        match self.x.order {
            PanelOrder::Interleaved => (&self.panel(rows)[t - rows.start..], rows.len(), self.runs),
            PanelOrder::Rows { stride } => {
                let row = &self.x.q[t * stride..][..self.tiles_per_row * TILE_COLS];
                (row.as_chunks().0, 1, Runs { by_fields: false, ..self.runs })
            }
        }
    }

    /// All activations, as they lie.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn activations(&self) -> &'a [i8] {
        self.x.q
    }

    /// The activations of panel rows `rows`, run after run.
    pub(super) fn panel(&self, rows: &Range<usize>) -> &'a [[i8; 4]] {
        let row_bytes = self.tiles_per_row * TILE_COLS;
        self.x.q[rows.start * row_bytes..rows.end * row_bytes].as_chunks().0
    }

    /// The first cell of each run of 16 results of pair `index` and the activation rows `rows`.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) fn for_each_line(&self, index: usize, rows: Range<usize>, mut each: impl FnMut(&Cell<f32>)) {
        let tiles = if self.gated() { index..index + 1 } else { index * PAIR..(index + 1) * PAIR };
        for t in rows {
            for tile in tiles.clone() {
                if let Some(cell) = self.out.cells.get(t * self.out.stride + tile * TILE_ROWS) {
                    each(cell);
                }
            }
        }
    }

    /// Makes results of the sums of pair `index` against the activation rows from `first` on.
    ///
    /// No closures below: one that the compiler leaves out of line lacks the target features of the kernel, and every
    /// instruction in it becomes a call (a gated unit with SiLU took 2.6 times as long).
    #[inline(always)]
    pub(super) fn finish<S: Simd>(&self, s: S, index: usize, first: usize, sums: &[Sums]) {
        let rows = first..first + sums.len();
        let (scales, offsets) = (&self.x.scale[rows.clone()], &self.x.sum[rows.clone()]);
        // Where there are none they are not looked at.
        let inverses = &self.inverses.unwrap_or(self.x.scale)[rows];
        let places = self.out.cells[first * self.out.stride..].chunks(self.out.stride);
        let whole = scales.iter().zip(offsets).zip(inverses).zip(sums).zip(places);
        match self.product {
            Product::Plain(w) | Product::Added(w) => {
                let added = matches!(self.product, Product::Added(_));
                let (w, row) = (factors(s, w), index * PAIR * TILE_ROWS);
                for ((((&scale, &offset), &inverse), sums), place) in whole {
                    let x = Row { scale: s.splat(scale), inverse: s.splat(inverse), offset };
                    let place = &place[row..self.rows];
                    put(s, place, self.value(s, w, &x, &sums.0[0]), added);
                    if let Some(place) = place.get(TILE_ROWS..) {
                        put(s, place, self.value(s, w, &x, &sums.0[1]), added);
                    }
                }
            }
            Product::Gated { gate, up, gating } => {
                let (gate, up) = (factors(s, gate), factors(s, up));
                for ((((&scale, &offset), &inverse), sums), place) in whole {
                    let x = Row { scale: s.splat(scale), inverse: s.splat(inverse), offset };
                    let (gate, up) = (self.value(s, gate, &x, &sums.0[0]), self.value(s, up, &x, &sums.0[1]));
                    let value = match gating {
                        Gating::SquaredRelu => relu2_lanes(s, gate, up),
                        Gating::Silu => silu_lanes(s, gate, up),
                    };
                    put(s, &place[index * TILE_ROWS..self.rows], value, false);
                }
            }
        }
    }

    /// What becomes of the sums of `code * q`.
    #[inline(always)]
    fn value<S: Simd>(&self, s: S, [scale, factor]: [S::F; 2], x: &Row<S::F>, sums: &[i32; TILE_ROWS]) -> S::F {
        let mut exact = [0.0; LANES];
        for l in 0..LANES {
            exact[l] = sums[l].wrapping_sub(x.offset) as f32;
        }
        let exact = s.load(&exact);
        let quotient = match self.inverses {
            Some(_) => s.quotient(exact, x.scale, x.inverse),
            None => s.div(exact, x.scale),
        };
        s.mul(s.mul(quotient, scale), factor)
    }
}

/// An activation row in each lane: its scale, one over it, and what it adds to every sum.
struct Row<F> {
    scale: F,
    inverse: F,
    offset: i32,
}

/// Scale and factor of a matrix.
#[inline(always)]
fn factors<S: Simd>(s: S, w: Factored<'_>) -> [S::F; 2] {
    [s.splat(w.matrix.scale()), s.splat(w.factor)]
}

/// Puts values in their places, the first of `cells`, or adds them to what is there.
#[inline(always)]
fn put<S: Simd>(s: S, cells: &[Cell<f32>], value: S::F, added: bool) {
    if let Some(cells) = cells.first_chunk() {
        return s.store_cells(if added { s.add(s.load_cells(cells), value) } else { value }, cells);
    }
    let mut lanes = [0.0; LANES];
    if added {
        for (lane, cell) in lanes.iter_mut().zip(cells) {
            *lane = cell.get();
        }
    }
    s.store(if added { s.add(s.load(&lanes), value) } else { value }, &mut lanes);
    for (lane, cell) in lanes.iter().zip(cells) {
        cell.set(*lane);
    }
}

/// The definition, one row tile and one activation row at a time.
struct Plain<'a> {
    job: &'a PanelJob<'a>,
    room: Room<'a>,
}

impl Kernel for Plain<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let job = self.job;
        for pair in 0..job.pairs() {
            for index in 0..panel_count(job.n()) {
                let rows = panel_rows(job.n(), index);
                let sums = &mut self.room.sums[..rows.len()];
                for (t, sums) in rows.clone().zip(sums.iter_mut()) {
                    let (x, step, runs) = job.runs_of(&rows, t);
                    for (side, sums) in sums.0.iter_mut().enumerate() {
                        *sums = plain_sums(job.row_tile(pair, side).unwrap_or_default(), runs, x, step);
                    }
                }
                job.finish(s, pair, rows.start, sums);
            }
        }
    }
}

/// Sums of `code * q` of a row tile against one activation row, whose runs of 4 columns lie `step` runs apart.
#[inline(always)]
fn plain_sums(tiles: &[Tile], runs: Runs, x: &[[i8; 4]], step: usize) -> [i32; TILE_ROWS] {
    let mut sums = [0_i32; TILE_ROWS];
    for (index, tile) in tiles.iter().enumerate() {
        let mut four = [[0; 4]; 4];
        for (s, x_of_field) in four.iter_mut().enumerate() {
            *x_of_field = x[runs.place(4 * index + s) * step];
        }
        for (sum, bytes) in sums.iter_mut().zip(tile.as_chunks::<4>().0) {
            for (s, x) in four.iter().enumerate() {
                for (byte, x) in bytes.iter().zip(x) {
                    *sum = sum.wrapping_add(i32::from((byte >> (2 * s)) & 3) * i32::from(*x));
                }
            }
        }
    }
    sums
}

/// From so many rows on. One row has kernels of its own, which read weights as they come.
const PANELS_FROM_ROWS: usize = 2;
/// Up to 5 rows unpack in registers. 6 rows of a tile take 96 `sdot` and twice 24 instructions to unpack so, in panels
/// once 24 and loads and stores. Never measured.
const NEON_PANELS_FROM_ROWS: usize = 6;
/// From so many rows on tiles are worth their unpacked codes: a product takes them as long for one row as for 16. Tiles beside
/// panels, a model of 256 and 768 columns that lies in caches: steps of 4 rows 0.101 and 0.088 ms, of 6 0.130 and 0.123, of 8
/// the same.
const TILES_FROM_ROWS: usize = 9;
/// The same where pairs of row tiles are long and mostly come from memory, which few rows wait for. One core, weights that no cache
/// holds, us of gate and up: 3 rows 555 and 600, 4 rows 567 and 645, 6 rows 575 and 737, 8 rows 607 and 890.
const TILES_FROM_LONG_ROWS: usize = 4;
const LONG_COLS: usize = 1024;
/// What tiles read of activations at a time, of a second-level cache of 2 MiB.
const AT_ONCE_BYTES: usize = 900 << 10;
/// More rows are slower all the same, 256 of 2560 columns by 6 to 15 %: results pass through that cache too.
const AT_ONCE_ROWS: usize = 128;
/// Rows that go by fields, up to two panels; fewer have fields with sums of their own. Short rows of tiles begin too often.
const FIELDS_ROWS: std::ops::RangeInclusive<usize> = 6..=2 * PANEL_ROWS_MAX;
const FIELDS_TILES_MIN: usize = 64;
/// Tiles that are passed over four times: 27 KiB of a pair, in a first-level cache beside the activations.
const FIELDS_BLOCK_TILES: usize = 216;
/// Most rows whose panels unpack by shifts.
#[cfg(target_arch = "x86_64")]
const SHIFTED_ROWS_MAX: usize = 24;
/// Activations from so many bytes on are asked for a panel ahead: fewer stay where they are.
#[cfg(target_arch = "x86_64")]
const FAR_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_cut_as_panels_are() {
        for n in 1..300 {
            let rows: Vec<_> = (0..panel_count(n)).map(|index| panel_rows(n, index)).collect();
            assert_eq!(parts(0..n, panel_count(n)).collect::<Vec<_>>(), rows);
            assert!(rows.iter().all(|rows| !rows.is_empty() && rows.len() <= PANEL_ROWS_MAX));
        }
        assert_eq!(parts(5..7, 4).collect::<Vec<_>>(), [5..5, 5..6, 6..6, 6..7]);
    }
}
