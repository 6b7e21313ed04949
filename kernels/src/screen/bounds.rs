//! Bounds of the results of all rows: int8 products, then the bound of the module's proof.

use std::ops::Range;

use super::activations::{OUTLIER_TILES_MAX, PLANES, Precision, ScreenRow, ScreenRows, outlier_tiles, plane_stride};
use super::layout::{CODE_ZERO, GROUP_ROWS, ScreenMatrix, TILE_ROWS, TILE_ROWS_PER_GROUP, Tile, tiles_per_row};
use super::portable;
use super::refine::{Numbers, Race, Refining, Waiting};
use crate::Isa;
use crate::draw::Draw;

/// Activation rows as [`bounds`] takes them, and its working memory; grows to the most rows seen and stays.
#[derive(Clone, Debug, Default)]
pub struct ScreenInput {
    cols: usize,
    rows: Vec<ScreenRow>,
    /// Planes that are multiplied as a whole.
    planes: usize,
    /// What the rows with outliers have beside these.
    outliers: Vec<Outliers>,
    /// Whole planes in near-equal groups of at most [`PLANES_MAX`], one group after another; in each for every tile one dword of
    /// every plane, so that the hot loop follows one stream.
    dwords: Vec<[i8; 4]>,
    /// The same one after another, [`plane_stride`] apart, where tiles take them so; else none.
    lines: Vec<i8>,
    /// Integer sums of two tile rows, each with all planes, twice, and of both with the outliers of each row.
    sums: Vec<Sums>,
    few: Vec<[Sums; 2]>,
    /// The third plane of each refined row, where it begins for each row, and what the row is up to.
    fine: Vec<[i8; 4]>,
    races: Vec<Race>,
    waiting: Vec<Waiting>,
}

/// Sums of 16 rows with one plane.
pub(super) type Sums = [i32; TILE_ROWS];

/// The tiles in which a plane is not zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outliers {
    count: usize,
    tiles: [u32; OUTLIER_TILES_MAX],
    dwords: [[i8; 4]; OUTLIER_TILES_MAX],
}

impl Outliers {
    const NONE: Self = Self { count: 0, tiles: [0; OUTLIER_TILES_MAX], dwords: [[0; 4]; OUTLIER_TILES_MAX] };

    fn of(plane: &[[i8; 4]], most: usize) -> Self {
        let mut found = Self::NONE;
        for (tile, dword) in (0_u32..).zip(plane).filter(|(_, dword)| **dword != [0; 4]) {
            assert!(found.count < most, "few tiles have outliers");
            (found.tiles[found.count], found.dwords[found.count]) = (tile, *dword);
            found.count += 1;
        }
        found
    }

    /// Indices of the tiles and their dwords, four at a time: what fills the last four up is zero.
    #[inline(always)]
    pub(super) fn fours(&self) -> impl Iterator<Item = (&[u32; 4], &[[i8; 4]; 4])> {
        let tiles = self.tiles.as_chunks::<4>().0.iter().zip(self.dwords.as_chunks::<4>().0);
        tiles.take(self.count.div_ceil(4))
    }
}

impl ScreenInput {
    /// For at most `n_max` activation rows of `cols` columns: these do not allocate.
    #[must_use]
    pub fn new(n_max: usize, cols: usize) -> Self {
        Self {
            rows: Vec::with_capacity(n_max),
            outliers: Vec::with_capacity(n_max),
            dwords: Vec::with_capacity(2 * n_max * tiles_per_row(cols)),
            lines: Vec::with_capacity(2 * n_max * plane_stride(cols)),
            sums: Vec::with_capacity(2 * 2 * 2 * n_max),
            few: Vec::with_capacity(n_max),
            fine: Vec::with_capacity(n_max * tiles_per_row(cols)),
            races: Vec::with_capacity(n_max),
            waiting: Vec::with_capacity(n_max),
            ..Self::default()
        }
    }

    /// Takes the rows of `x`, each of `cols` columns, for `isa`; other sets may read them all the same.
    ///
    /// # Panics
    /// Where `x` has not room for all planes of each row.
    pub fn set(&mut self, isa: Isa, cols: usize, x: ScreenRows<'_>) {
        let (stride, tiles) = (plane_stride(cols), tiles_per_row(cols));
        assert_eq!(x.planes.len(), x.rows.len() * PLANES * stride, "room for all planes of each row");
        let plane = |t: usize, p: usize| &x.planes[(PLANES * t + p) * stride..].as_chunks().0[..tiles];
        self.cols = cols;
        self.rows.clear();
        self.rows.extend_from_slice(x.rows);
        self.planes = x.rows.iter().map(ScreenRow::whole_planes).sum();
        self.outliers.clear();
        self.outliers.extend(x.rows.iter().enumerate().map(|(t, row)| match row.precision {
            Precision::Outliers | Precision::Refined => Outliers::of(plane(t, 1), outlier_tiles(cols)),
            Precision::One | Precision::Two | Precision::Raced => Outliers::NONE,
        }));
        self.sums.resize(2 * 2 * self.planes, [0; TILE_ROWS]);
        self.few.resize(x.rows.len(), [[0; TILE_ROWS]; 2]);
        self.dwords.resize(self.planes * tiles, [0; 4]);
        let rows = x.rows.iter().enumerate();
        let mut planes = rows.flat_map(|(t, row)| (0..row.whole_planes()).map(move |p| plane(t, p)));
        let mut dwords = self.dwords.as_mut_slice();
        for group in groups(self.planes) {
            let (own, rest) = dwords.split_at_mut(group.len() * tiles);
            dwords = rest;
            for (at, plane) in planes.by_ref().take(group.len()).enumerate() {
                for (out, dword) in own[at..].iter_mut().step_by(group.len()).zip(plane) {
                    *out = *dword;
                }
            }
        }
        self.lines.clear();
        if matches!(isa, Isa::AmxInt8(_)) && self.planes >= TILES_FROM_PLANES && in_tiles(cols) {
            self.lay_in_lines(cols, x);
        }
        self.fine.clear();
        self.races.clear();
        for (t, row) in x.rows.iter().enumerate() {
            self.races.push(Race::new(self.fine.len()));
            if row.precision == Precision::Refined {
                self.fine.extend_from_slice(plane(t, 2));
            }
        }
    }

    /// Puts whole planes one after another.
    pub(super) fn lay_in_lines(&mut self, cols: usize, x: ScreenRows<'_>) {
        let stride = plane_stride(cols);
        let rows = x.rows.iter().enumerate();
        for (t, p) in rows.flat_map(|(t, row)| (0..row.whole_planes()).map(move |p| (t, p))) {
            self.lines.extend_from_slice(&x.planes[(PLANES * t + p) * stride..][..stride]);
        }
    }

    /// A call of [`bounds`], and room for its sums.
    pub(super) fn job<'a>(
        &'a mut self,
        w: ScreenMatrix<'a>,
        (groups, next): (Range<usize>, usize),
        (out, greatest): (&'a mut [f32], &'a mut [f32]),
    ) -> (Job<'a>, &'a mut [Sums]) {
        let all = w.rows().div_ceil(GROUP_ROWS);
        let rows = groups.start * GROUP_ROWS..w.rows().min(groups.end * GROUP_ROWS);
        assert!(!rows.is_empty() && groups.end <= all, "groups lie in the matrix");
        assert_eq!(self.cols, w.cols(), "columns of the matrix");
        assert_eq!(out.len(), self.rows.len() * rows.len(), "output length");
        assert_eq!(greatest.len(), self.rows.len() * groups.len(), "a number for each row and group");
        for (race, x) in self.races.iter_mut().zip(&self.rows) {
            race.enter(&w, x);
        }
        let planes = Planes {
            dwords: &self.dwords,
            #[cfg(target_arch = "x86_64")]
            lines: &self.lines,
            count: self.planes,
            tiles: tiles_per_row(self.cols),
        };
        let (races, waiting) = (&mut self.races, &mut self.waiting);
        let refining = Refining { fine: &self.fine, tiles: planes.tiles, races, waiting, groups, greatest };
        let following = next.min(all)..all.min(next.saturating_add(1));
        let (x, outliers, few) = (&self.rows, &self.outliers, &mut self.few);
        (Job { w, rows, following, x, outliers, few, planes, refining, out }, &mut self.sums)
    }

    /// Says that what matters of row `t`, which races, are the results within `distance` of the best one, by the scores of the
    /// draw where there is one.
    pub fn seek(&mut self, t: usize, draw: Option<Draw>, distance: f32) {
        self.races[t].seek(draw, distance);
    }

    /// The greatest score that some result of row `t`, which races, is known to reach.
    #[must_use]
    pub fn least(&self, t: usize) -> f32 {
        self.races[t].least
    }

    /// Takes in what others know of row `t`, which races.
    pub fn learn(&mut self, t: usize, least: f32) {
        self.races[t].least = self.races[t].least.max(least);
    }
}

/// Whether tiles take rows of so many columns: whole ones.
pub(super) fn in_tiles(cols: usize) -> bool {
    cols.is_multiple_of(TILE_COLS)
}

/// Near-equal groups of at most [`PLANES_MAX`] planes.
#[inline(always)]
fn groups(planes: usize) -> impl Iterator<Item = Range<usize>> {
    let count = planes.div_ceil(PLANES_MAX);
    (0..count).map(move |group| group * planes / count..(group + 1) * planes / count)
}

/// `out[t][r]` becomes a lower bound of what [`dense::linear`](crate::dense::linear) gives for the rows of the groups
/// `groups` and each row of `x`; `out` has for each of them as many columns as these groups have rows.
///
/// For a row that [races](Precision::races) it becomes an upper bound of the score, or minus infinity where what is known of
/// the best one rules the row out, and `greatest[t][g]` the greatest of group `g`, or minus infinity, where nothing is written
/// to `out`; what is known of the best one grows meanwhile. For other rows `greatest` is left as it is.
///
/// The group `next`, where there is one, is likely to be read afterwards: some of it is asked for.
///
/// # Panics
/// Where the groups are not in the matrix, or `x`, `out` or `greatest` are of another shape.
pub fn bounds(
    isa: Isa,
    w: ScreenMatrix<'_>,
    (groups, next): (Range<usize>, usize),
    x: &mut ScreenInput,
    (out, greatest): (&mut [f32], &mut [f32]),
) {
    let (job, sums) = x.job(w, (groups, next), (out, greatest));
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(proof) => super::avx2::run(proof, job, sums),
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni(proof) => super::avx_vnni::run(proof, job, sums),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bw(proof) => super::avx512_bw::run(proof, job, sums),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(proof) => super::avx512_vnni::run(proof, job, sums),
        #[cfg(target_arch = "x86_64")]
        Isa::AmxInt8(proof) if !job.planes().lines.is_empty() => super::amx_int8::run(proof, job, sums),
        #[cfg(target_arch = "x86_64")]
        Isa::AmxInt8(proof) => super::avx512_vnni::run(proof.vnni(), job, sums),
        #[cfg(target_arch = "aarch64")]
        Isa::NeonDotprod(proof) => super::neon::run_dotprod(proof, job, sums),
        #[cfg(target_arch = "aarch64")]
        Isa::NeonI8mm(proof) => super::neon::run_i8mm(proof, job, sums),
        Isa::Portable => job.run(sums, portable::products, few_products, fine_products),
        _ => unreachable!("no proof exists on this machine"),
    }
}

/// The planes that a call multiplies with.
#[derive(Clone, Copy)]
pub(super) struct Planes<'a> {
    dwords: &'a [[i8; 4]],
    /// One plane after another, [`plane_stride`] apart, or none.
    #[cfg(target_arch = "x86_64")]
    pub(super) lines: &'a [i8],
    count: usize,
    tiles: usize,
}

/// Some planes of a group.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    /// Index of the first one among all planes, and how many they are.
    pub(super) start: usize,
    pub(super) len: usize,
    /// Dwords of all planes of the group, from the first of these on; tiles are `stride` apart.
    pub(super) dwords: &'a [[i8; 4]],
    pub(super) stride: usize,
}

impl<'a> Planes<'a> {
    #[inline(always)]
    pub(super) fn len(self) -> usize {
        self.count
    }

    /// All planes in parts of at most `most`, none of which lies in two groups.
    #[inline(always)]
    pub(super) fn parts(self, most: usize) -> impl Iterator<Item = Part<'a>> {
        groups(self.count).flat_map(move |group| {
            let stride = group.len();
            let dwords = &self.dwords[group.start * self.tiles..group.end * self.tiles];
            (0..stride).step_by(most).map(move |first| Part {
                start: group.start + first,
                len: most.min(stride - first),
                dwords: &dwords[first..],
                stride,
            })
        })
    }
}

/// The four activations of a dword, as a register takes them.
#[inline(always)]
pub(super) fn word(dword: [i8; 4]) -> i32 {
    let [a, b, c, d] = dword;
    i32::from_ne_bytes([a.cast_unsigned(), b.cast_unsigned(), c.cast_unsigned(), d.cast_unsigned()])
}

/// A checked call.
pub(super) struct Job<'a> {
    w: ScreenMatrix<'a>,
    rows: Range<usize>,
    /// Groups that are likely to be read afterwards.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "tiles ask for some of them"))]
    following: Range<usize>,
    x: &'a [ScreenRow],
    outliers: &'a [Outliers],
    few: &'a mut [[Sums; 2]],
    planes: Planes<'a>,
    refining: Refining<'a>,
    out: &'a mut [f32],
}

impl<'a> Job<'a> {
    #[cfg(target_arch = "x86_64")]
    pub(super) fn planes(&self) -> Planes<'a> {
        self.planes
    }

    /// The first tile rows of pairs, which a group has whole ones of.
    #[inline(always)]
    pub(super) fn firsts(&self) -> impl Iterator<Item = usize> + use<> {
        (self.rows.start / TILE_ROWS..self.rows.end.div_ceil(TILE_ROWS)).step_by(2)
    }

    /// What is read, as bytes: the groups of this call, then some that follow.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn read(&self) -> [&'a [u8]; 2] {
        [self.refining.groups.clone(), self.following.clone()].map(|groups| self.w.bytes(groups))
    }

    /// Goes through the tile rows two at a time. `products` fills the sums of two tile rows: those of the first with all
    /// whole planes, then those of the second. `few` gives those of both with a plane of outliers, `fine` those of one with
    /// the third planes of up to [`FINE_MAX`] rows.
    #[inline(always)]
    pub(super) fn run(
        mut self,
        sums: &mut [Sums],
        products: impl Fn([&[Tile]; 2], Planes<'_>, &mut [Sums]),
        few: impl Fn([&[Tile]; 2], &Outliers) -> [Sums; 2],
        fine: impl Fn(&[Tile], &[&[[i8; 4]]], &mut [Sums]),
    ) {
        let sums = &mut sums[..2 * self.planes.len()];
        for first in self.firsts() {
            let mut pair = self.pair(first);
            products(pair.tiles, self.planes, sums);
            self.bound(&mut pair, usize::MAX, sums, (&few, &fine));
        }
    }

    /// The pair that begins with a tile row.
    #[inline(always)]
    pub(super) fn pair(&self, first: usize) -> Pair<'a> {
        let tiles = [self.w.tile_row(first), self.w.tile_row(first + 1)];
        let sides = if (first + 1) * TILE_ROWS < self.rows.end { 2 } else { 1 };
        Pair { tiles, first, units: sides * self.x.len(), done: 0, plane: 0, here: Numbers::default() }
    }

    /// Makes bounds of `pair` until `end` of them are made: of its tile rows, each with one activation row after the other.
    #[inline(always)]
    pub(super) fn bound(
        &mut self,
        pair: &mut Pair<'_>,
        end: usize,
        sums: &[Sums],
        (few, fine): (&impl Fn([&[Tile]; 2], &Outliers) -> [Sums; 2], &impl Fn(&[Tile], &[&[[i8; 4]]], &mut [Sums])),
    ) {
        let n = self.x.len();
        while pair.done < end.min(pair.units) {
            let (side, t) = if pair.done < n { (0, pair.done) } else { (1, pair.done - n) };
            if t == 0 {
                (pair.plane, pair.here) = (0, self.numbers(pair.first + side));
            }
            if side == 0 && self.outliers[t].count > 0 {
                self.few[t] = few(pair.tiles, &self.outliers[t]);
            }
            let from = side * self.planes.len() + pair.plane;
            let whole = &sums[from..from + self.x[t].whole_planes()];
            pair.plane += whole.len();
            let start = (pair.first + side) * TILE_ROWS - self.rows.start;
            self.bound_row(t, &pair.here, (whole, side), start);
            pair.done += 1;
            if t + 1 == n {
                let place = (&mut *self.out, self.rows.len(), start);
                self.refining.refine(&pair.here, pair.tiles[side], self.x, place, fine);
            }
        }
    }

    /// What is known of a tile row.
    #[inline(always)]
    fn numbers(&self, tile_row: usize) -> Numbers {
        let (group, at) = (tile_row / TILE_ROWS_PER_GROUP, tile_row % TILE_ROWS_PER_GROUP * TILE_ROWS);
        let live = TILE_ROWS.min(self.rows.end - tile_row * TILE_ROWS);
        let mut here = Numbers { group, at, live, ..Numbers::default() };
        for (numbers, facts) in here.numbers.iter_mut().zip(self.w.facts(group)) {
            for (number, bytes) in numbers.iter_mut().zip(&facts[at..]) {
                *number = f32::from_le_bytes(*bytes);
            }
        }
        here
    }

    /// Bounds of the tile row `here`, whose first row is `start` behind that of the call, with activation row `t`.
    #[inline(always)]
    fn bound_row(&mut self, t: usize, here: &Numbers, (whole, side): (&[Sums], usize), start: usize) {
        let (x, width) = (&self.x[t], self.rows.len());
        let out = &mut self.out[t * width..(t + 1) * width];
        let lower = match x.precision {
            Precision::Refined => return self.refining.look(here, (t, x), &[whole[0], self.few[t][side]]),
            Precision::Raced => return self.refining.race(here, (t, x), &[whole[0], whole[1]], (out, start)),
            Precision::Outliers => lower_bounds(x, &here.numbers, &[whole[0], self.few[t][side]]),
            Precision::One | Precision::Two => lower_bounds(x, &here.numbers, whole),
        };
        let out = &mut out[start..];
        if let Some(out) = out.first_chunk_mut() {
            *out = lower;
        } else {
            out.copy_from_slice(&lower[..out.len()]);
        }
    }
}

/// Two tile rows whose bounds are made.
pub(super) struct Pair<'a> {
    pub(super) tiles: [&'a [Tile]; 2],
    first: usize,
    /// Bounds to be made, and those that are; sums of planes used so far of the tile row that is looked at.
    units: usize,
    done: usize,
    plane: usize,
    here: Numbers,
}

impl Pair<'_> {
    /// How many bounds are to be made.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn units(&self) -> usize {
        self.units
    }
}

/// Sums of one tile row with whole planes, in plain code.
#[inline(always)]
pub(super) fn fine_products(w: &[Tile], planes: &[&[[i8; 4]]], sums: &mut [Sums]) {
    for (plane, sums) in planes.iter().zip(sums) {
        *sums = [0; TILE_ROWS];
        for (tile, q) in w.iter().zip(*plane) {
            for (sum, codes) in sums.iter_mut().zip(tile.as_chunks::<4>().0) {
                for (&code, &q) in codes.iter().zip(q) {
                    *sum += i32::from(code) * i32::from(q);
                }
            }
        }
    }
}

/// Sums of both tile rows with a plane of outliers, in plain code.
#[inline(always)]
pub(super) fn few_products(w: [&[Tile]; 2], outliers: &Outliers) -> [Sums; 2] {
    let mut sums = [[0; TILE_ROWS]; 2];
    for (tiles, dwords) in outliers.fours() {
        for (&tile, q) in tiles.iter().zip(dwords) {
            for (w, sums) in w.iter().zip(&mut sums) {
                for (sum, codes) in sums.iter_mut().zip(w[tile as usize].as_chunks::<4>().0) {
                    for (&code, &q) in codes.iter().zip(q) {
                        *sum += i32::from(code) * i32::from(q);
                    }
                }
            }
        }
    }
    sums
}

/// Adds the products with plane `plane` of `x`.
#[inline(always)]
pub(super) fn add_plane(x: &ScreenRow, plane: usize, sums: &Sums, product: &mut [f32; TILE_ROWS]) {
    // The codes are `q + CODE_ZERO`.
    let (step, zero) = (x.step[plane], i32::from(CODE_ZERO) * x.sum[plane]);
    for (product, sum) in product.iter_mut().zip(sums) {
        *product += step * (sum - zero) as f32;
    }
}

#[inline(always)]
fn lower_bounds(x: &ScreenRow, [scale, spread, length]: &[[f32; TILE_ROWS]; 3], sums: &[Sums]) -> [f32; TILE_ROWS] {
    let mut product = [0.0; TILE_ROWS];
    for (plane, sums) in sums.iter().enumerate() {
        add_plane(x, plane, sums, &mut product);
    }
    let mut lower = [0.0; TILE_ROWS];
    for l in 0..TILE_ROWS {
        lower[l] = product[l] * scale[l] - (spread[l] * x.norm + length[l] * x.rest);
    }
    lower
}

/// Third planes that a tile row meets at a time.
pub(super) const FINE_MAX: usize = 8;
/// From so many planes on tiles are faster (16 workers, 16384 rows of 2560: 8 planes 223 us either way, 16 planes 231 and 290, 64
/// planes 658 and 985); they are whole tiles of so many columns.
const TILES_FROM_PLANES: usize = 9;
pub(super) const TILE_COLS: usize = 64;
/// Planes of a group: 2 tile rows x 12 sums leave 8 of 32 registers for codes and dwords.
pub(super) const PLANES_MAX: usize = 12;
