//! Activation rows that look for the best row of the matrix while it passes by. Rows of the matrix that the first planes of a
//! refined one do not rule out meet its third plane, while they are in the caches.

use std::ops::Range;

use super::activations::ScreenRow;
use super::bounds::{FINE_MAX, Sums, add_plane};
use super::layout::{CODE_ZERO, GROUP_ROWS, ScreenMatrix, TILE_ROWS, Tile};
use super::select::{bar, score_slack};
use crate::draw::{self, Draw};

/// What a row that races is up to: the scores `factor * result + noise` within a distance of the best one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Race {
    draw: Option<Draw>,
    distance: f32,
    /// The greatest lower bound of a score so far.
    pub(super) least: f32,
    slack: f32,
    /// Scores below it do not matter.
    bar: f32,
    /// Where the row's third plane begins.
    fine: usize,
    noise: [f32; GROUP_ROWS],
}

impl Race {
    pub(super) fn new(fine: usize) -> Self {
        let (least, noise) = (f32::NEG_INFINITY, [0.0; GROUP_ROWS]);
        Self { draw: None, distance: 0.0, least, slack: 0.0, bar: least, fine, noise }
    }

    pub(super) fn seek(&mut self, draw: Option<Draw>, distance: f32) {
        (self.draw, self.distance) = (draw, distance);
    }

    /// Begins with rows of `w`.
    pub(super) fn enter(&mut self, w: &ScreenMatrix<'_>, x: &ScreenRow) {
        if !x.precision.races() {
            return;
        }
        self.slack = self.draw.map_or(0.0, |draw| score_slack(draw.factor * w.bound_max(x)));
        self.bar = if w.admits(x.norm, x.coarse_rest) { self.bar_of(self.least) } else { f32::INFINITY };
    }

    fn bar_of(&self, least: f32) -> f32 {
        bar(least, self.distance, self.slack)
    }

    fn factor(&self) -> f32 {
        self.draw.map_or(1.0, |draw| draw.factor)
    }
}

/// A refined row that has not ruled a tile row out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    row: usize,
    /// Products with the first two planes, and upper bounds of the scores.
    product: [f32; TILE_ROWS],
    upper: [f32; TILE_ROWS],
}

/// The tile row that is looked at.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Numbers {
    pub(super) group: usize,
    /// Its first row in the group, and how many of its rows are rows of the matrix.
    pub(super) at: usize,
    pub(super) live: usize,
    /// Scales, `A` and `V`.
    pub(super) numbers: [[f32; TILE_ROWS]; 3],
}

/// All lanes in every case, those past the rows of the matrix too: a slice of so many would be looked at one by one.
impl Numbers {
    #[inline(always)]
    fn reaches(&self, upper: &[f32; TILE_ROWS], bar: f32) -> bool {
        let mut any = false;
        for (l, upper) in upper.iter().enumerate() {
            any |= (l < self.live) & (*upper >= bar);
        }
        any
    }

    #[inline(always)]
    fn greatest(&self, values: &[f32; TILE_ROWS]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; TILE_ROWS];
        for l in 0..TILE_ROWS {
            lanes[l] = if l < self.live { values[l] } else { lanes[l] };
        }
        for half in [8, 4, 2, 1] {
            for l in 0..half {
                lanes[l] = if lanes[l + half] > lanes[l] { lanes[l + half] } else { lanes[l] };
            }
        }
        lanes[0]
    }
}

/// What the refined rows of a call share.
pub(super) struct Refining<'a> {
    pub(super) fine: &'a [[i8; 4]],
    /// Dwords of a plane.
    pub(super) tiles: usize,
    pub(super) races: &'a mut [Race],
    pub(super) waiting: &'a mut Vec<Waiting>,
    /// Groups of the call, and the greatest bound of each for each row.
    pub(super) groups: Range<usize>,
    pub(super) greatest: &'a mut [f32],
}

impl Refining<'_> {
    /// The first tile row of a group is about to meet activation row `t`.
    #[inline(always)]
    fn enter(&mut self, here: &Numbers, t: usize) {
        if here.at == 0 {
            self.greatest[t * self.groups.len() + here.group - self.groups.start] = f32::NEG_INFINITY;
            let race = &mut self.races[t];
            if let (Some(draw), Ok(group)) = (&race.draw, u32::try_from(here.group)) {
                race.noise = draw::noise(draw, group);
            }
        }
    }

    /// Bounds by both planes of activation row `t`.
    #[inline(always)]
    pub(super) fn race(
        &mut self,
        here: &Numbers,
        (t, x): (usize, &ScreenRow),
        sums: &[Sums; 2],
        (out, start): (&mut [f32], usize),
    ) {
        self.enter(here, t);
        let race = &mut self.races[t];
        let (lower, upper) = scores(here, race, two_planes(x, sums), (x.norm, x.rest));
        if here.reaches(&upper, race.bar) {
            let greatest = &mut self.greatest[t * self.groups.len() + here.group - self.groups.start];
            tell(here, race, (&lower, &upper), greatest, (out, start));
        }
    }

    /// Bounds by the first two planes of activation row `t`.
    #[inline(always)]
    pub(super) fn look(&mut self, here: &Numbers, (t, x): (usize, &ScreenRow), sums: &[Sums; 2]) {
        self.enter(here, t);
        let (race, product) = (&self.races[t], two_planes(x, sums));
        let (_, upper) = scores(here, race, &product, (x.norm, x.coarse_rest));
        if here.reaches(&upper, race.bar) {
            let mut products = [0.0; TILE_ROWS];
            for (l, value) in products.iter_mut().enumerate() {
                *value = product(l);
            }
            self.waiting.push(Waiting { row: t, product: products, upper });
        }
    }

    /// Bounds of all that wait, by all planes.
    #[inline(always)]
    pub(super) fn refine(
        &mut self,
        here: &Numbers,
        tiles: &[Tile],
        x: &[ScreenRow],
        (out, width, start): (&mut [f32], usize, usize),
        fine: &impl Fn(&[Tile], &[&[[i8; 4]]], &mut [Sums]),
    ) {
        let mut sums = [[0; TILE_ROWS]; FINE_MAX];
        for waiting in self.waiting.chunks(FINE_MAX) {
            let mut planes = [&[][..]; FINE_MAX];
            for (plane, waiting) in planes.iter_mut().zip(waiting) {
                *plane = &self.fine[self.races[waiting.row].fine..][..self.tiles];
            }
            fine(tiles, &planes[..waiting.len()], &mut sums[..waiting.len()]);
            for (waiting, sums) in waiting.iter().zip(&sums) {
                let (t, x, race) = (waiting.row, &x[waiting.row], &mut self.races[waiting.row]);
                let mut product = waiting.product;
                add_plane(x, 2, sums, &mut product);
                let (lower, mut upper) = scores(here, race, |l| product[l], (x.norm, x.rest));
                for (upper, coarse) in upper.iter_mut().zip(waiting.upper) {
                    *upper = if coarse < *upper { coarse } else { *upper };
                }
                let greatest = &mut self.greatest[t * self.groups.len() + here.group - self.groups.start];
                let out = &mut out[t * width..(t + 1) * width];
                tell(here, race, (&lower, &upper), greatest, (out, start));
            }
        }
        self.waiting.clear();
    }
}

/// Bounds of a tile row that may matter: what they say of the best row, and the upper ones to their place, which the first ones of
/// a group prepare.
#[inline(never)]
fn tell(
    here: &Numbers,
    race: &mut Race,
    (lower, upper): (&[f32; TILE_ROWS], &[f32; TILE_ROWS]),
    greatest: &mut f32,
    (out, start): (&mut [f32], usize),
) {
    let least = here.greatest(lower);
    if least > race.least {
        (race.least, race.bar) = (least, race.bar_of(least));
    }
    if *greatest == f32::NEG_INFINITY {
        let group = start - here.at;
        let end = out.len().min(group + GROUP_ROWS);
        out[group..end].fill(f32::NEG_INFINITY);
    }
    *greatest = greatest.max(here.greatest(upper));
    out[start..][..here.live].copy_from_slice(&upper[..here.live]);
}

/// The products with two planes of `x`, by lanes.
#[inline(always)]
fn two_planes(x: &ScreenRow, sums: &[Sums; 2]) -> impl Fn(usize) -> f32 {
    let zero = [i32::from(CODE_ZERO) * x.sum[0], i32::from(CODE_ZERO) * x.sum[1]];
    move |l| x.step[0] * (sums[0][l] - zero[0]) as f32 + x.step[1] * (sums[1][l] - zero[1]) as f32
}

/// Lower and upper bounds of the scores, given the products with some planes, by lanes, and what these leave of the activations.
/// All in one loop, which compilers make vectors of.
#[inline(always)]
fn scores(
    here: &Numbers,
    race: &Race,
    product: impl Fn(usize) -> f32,
    (norm, rest): (f32, f32),
) -> ([f32; TILE_ROWS], [f32; TILE_ROWS]) {
    let ([scale, spread, length], factor) = (&here.numbers, race.factor());
    let noise: &[f32; TILE_ROWS] = race.noise[here.at..].first_chunk().expect("a group is whole tile rows");
    let (mut lower, mut upper) = ([0.0; TILE_ROWS], [0.0; TILE_ROWS]);
    for l in 0..TILE_ROWS {
        let half = spread[l] * norm + length[l] * rest;
        lower[l] = (product(l) * scale[l] - half) * factor + noise[l];
        upper[l] = lower[l] + 2.0 * factor * half;
    }
    (lower, upper)
}
