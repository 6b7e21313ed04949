//! Which rows could be among the best, given lower bounds of all.

use super::activations::ScreenRow;
use super::layout::{GROUP_ROWS, ScreenMatrix};
use crate::Isa;
use crate::draw::{self, Draw, NOISE_MAX};
use crate::simd::{Kernel, Simd, dispatch};

/// What a row must reach to matter: to be among the `count` best, or within `distance` of the last of them; with a `draw`,
/// to be among those by the draw's scores, not by the results alone. `also` are rows whose results are about to be
/// changed: they matter whatever they are, and count for nobody's rank.
#[derive(Clone, Copy, Debug)]
pub struct Sought<'a> {
    pub count: usize,
    pub distance: f32,
    pub draw: Option<Draw>,
    pub also: &'a [u32],
}

/// Working memory of [`select`].
#[derive(Clone, Debug)]
pub struct SelectScratch {
    greatest: Vec<f32>,
    ordered: Vec<f32>,
}

impl SelectScratch {
    /// For matrices of `rows` rows: nothing is allocated later.
    #[must_use]
    pub fn new(rows: usize) -> Self {
        let groups = rows.div_ceil(GROUP_ROWS);
        Self { greatest: vec![0.0; groups], ordered: vec![0.0; groups] }
    }
}

/// Writes the rows that could matter to `found`, those of `also` first, and says how many they are; `lower` is filled
/// with minus infinity then. `None` where the screen does not decide: the activation row isn't finite or too long, more
/// rows are sought than there are groups, or more rows matter than `found` holds; `lower` holds anything then.
///
/// # Panics
/// Where `lower` has not one number a row, or the scratch is for another number of rows.
pub fn select(
    isa: Isa,
    w: ScreenMatrix<'_>,
    x: &ScreenRow,
    sought: Sought<'_>,
    lower: &mut [f32],
    found: &mut [u32],
    scratch: &mut SelectScratch,
) -> Option<usize> {
    assert_eq!(lower.len(), w.rows(), "a bound for each row");
    assert_eq!(scratch.greatest.len(), w.rows().div_ceil(GROUP_ROWS), "scratch of these rows");
    if !w.admits(x.norm, x.rest) {
        return None;
    }
    let mut count = 0;
    for &row in sought.also {
        match lower.get_mut(row as usize) {
            // Bounds are finite: minus infinity is a row that was met before.
            Some(bound) if *bound > f32::NEG_INFINITY => {
                *bound = f32::NEG_INFINITY;
                *found.get_mut(count)? = row;
                count += 1;
            }
            _ => {}
        }
    }
    match &sought.draw {
        Some(draw) => dispatch(isa, GreatestDrawn { draw, lower, greatest: &mut scratch.greatest }),
        None => dispatch(isa, Greatest { lower, greatest: &mut scratch.greatest }),
    }
    let least = rank(sought.count, scratch)?;
    let slack = sought.draw.map_or(0.0, |draw| score_slack(draw.factor * w.bound_max(x)));
    let bar = bar(least, sought.distance, slack);
    if !bar.is_finite() {
        return None;
    }
    dispatch(isa, Passing { w, x, draw: sought.draw.as_ref(), bar, lower, greatest: &scratch.greatest, found, count })
}

/// Of an activation row that races the row of the matrix with the greatest upper bound, the first of equal ones: its result
/// says more of what the best one reaches than bounds do. `upper` and `greatest` are as [`bounds`](super::bounds) left them;
/// `None` where all rows are ruled out.
#[must_use]
pub fn likeliest(upper: &[f32], greatest: &[f32]) -> Option<u32> {
    let (mut most, mut likeliest) = (f32::NEG_INFINITY, None);
    for (group, (upper, greatest)) in (0_u32..).zip(upper.chunks(GROUP_ROWS).zip(greatest)) {
        if *greatest > most {
            most = *greatest;
            likeliest =
                (0_u32..).zip(upper).find(|(_, upper)| **upper == most).map(|(i, _)| group * GROUP_ROWS_U32 + i);
        }
    }
    likeliest
}

/// The score of row `row`, whose result is `value`, as bounds are made: what the best one is known to reach.
#[must_use]
pub fn score(draw: Option<Draw>, row: u32, value: f32) -> f32 {
    let Some(draw) = draw else { return value };
    let noise = draw::noise(&draw, row / GROUP_ROWS_U32);
    value * draw.factor + noise[(row % GROUP_ROWS_U32) as usize]
}

/// Of an activation row that races, for which [`bounds`](super::bounds) left `upper` and the `greatest` of each group: writes
/// the rows whose scores could be within `distance` of the best one to `found`, ascending, and says how many they are. `least` is
/// what the best one is known to reach, by bounds or by a [`score`]. `None` as [`select`].
///
/// # Panics
/// Where `upper` or `greatest` is of another length than `w` has rows and groups, or the row does not race.
#[must_use]
pub fn select_raced(
    w: ScreenMatrix<'_>,
    x: &ScreenRow,
    (draw, distance, least): (Option<Draw>, f32, f32),
    (upper, greatest): (&[f32], &[f32]),
    found: &mut [u32],
) -> Option<usize> {
    assert!(x.precision.races(), "a row that races");
    assert_eq!(upper.len(), w.rows(), "a bound for each row");
    assert_eq!(greatest.len(), w.rows().div_ceil(GROUP_ROWS), "a number for each group");
    if !w.admits(x.norm, x.coarse_rest) {
        return None;
    }
    let bar = bar(least, distance, draw.map_or(0.0, |draw| score_slack(draw.factor * w.bound_max(x))));
    if !bar.is_finite() {
        return None;
    }
    let mut count = 0;
    for (group, (upper, greatest)) in (0_u32..).zip(upper.chunks(GROUP_ROWS).zip(greatest)) {
        if *greatest >= bar {
            for (i, upper) in (0_u32..).zip(upper.iter()) {
                if *upper >= bar {
                    *found.get_mut(count)? = group * GROUP_ROWS_U32 + i;
                    count += 1;
                }
            }
        }
    }
    Some(count)
}

/// What scores must reach to be within `distance` of one that is `least` or more.
pub(super) fn bar(least: f32, distance: f32, slack: f32) -> f32 {
    (least - distance) - (least.abs() + distance) * (4.0 * f32::EPSILON) - slack
}

/// More than what separates scores made of bounds in f32 from exact ones, on both sides of a comparison, where no bound
/// times the factor is above `greatest`: each goes through at most six roundings of numbers below `greatest + NOISE_MAX`,
/// `2^-24` of them each, and 16 are allowed for.
pub(super) fn score_slack(greatest: f32) -> f32 {
    (greatest + NOISE_MAX) * (1.0 / 1_048_576.0)
}

/// The `count`-th greatest of the groups' maxima.
fn rank(count: usize, scratch: &mut SelectScratch) -> Option<f32> {
    if count == 1 {
        return scratch.greatest.iter().copied().reduce(f32::max);
    }
    if count == 0 || count > scratch.greatest.len() {
        return None;
    }
    scratch.ordered.copy_from_slice(&scratch.greatest);
    let (_, at, _) = scratch.ordered.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
    Some(*at)
}

struct Greatest<'a> {
    lower: &'a [f32],
    greatest: &'a mut [f32],
}

impl Kernel for Greatest<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (lower, greatest) in self.lower.chunks(GROUP_ROWS).zip(self.greatest) {
            let mut lanes = simd.splat(f32::NEG_INFINITY);
            for lower in lower.chunks(16) {
                lanes = simd.max(lanes, simd.load_part(lower, f32::NEG_INFINITY));
            }
            *greatest = simd.greatest(lanes);
        }
    }
}

/// The same of the scores of a draw.
struct GreatestDrawn<'a> {
    draw: &'a Draw,
    lower: &'a [f32],
    greatest: &'a mut [f32],
}

impl Kernel for GreatestDrawn<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for ((group, lower), greatest) in (0_u32..).zip(self.lower.chunks(GROUP_ROWS)).zip(self.greatest) {
            let scores = scores(self.draw, group, lower);
            let mut lanes = simd.splat(f32::NEG_INFINITY);
            for scores in scores.as_chunks().0 {
                lanes = simd.max(lanes, simd.load(scores));
            }
            *greatest = simd.greatest(lanes);
        }
    }
}

/// Scores of a draw, by lower bounds of the rows of a group; minus infinity past them.
#[inline(always)]
fn scores(draw: &Draw, group: u32, lower: &[f32]) -> [f32; GROUP_ROWS] {
    let noise = draw::noise(draw, group);
    let mut scores = [f32::NEG_INFINITY; GROUP_ROWS];
    for ((score, lower), noise) in scores.iter_mut().zip(lower).zip(noise) {
        *score = lower * draw.factor + noise;
    }
    scores
}

struct Passing<'a> {
    w: ScreenMatrix<'a>,
    x: &'a ScreenRow,
    draw: Option<&'a Draw>,
    bar: f32,
    lower: &'a mut [f32],
    greatest: &'a [f32],
    found: &'a mut [u32],
    count: usize,
}

impl Kernel for Passing<'_> {
    type Output = Option<usize>;

    #[inline(always)]
    fn run<S: Simd>(mut self, _: S) -> Option<usize> {
        let factor = self.draw.map_or(1.0, |draw| draw.factor);
        let upper =
            |lower: f32, spread: f32, length: f32| lower + 2.0 * factor * (spread * self.x.norm + length * self.x.rest);
        let groups = self.lower.chunks_mut(GROUP_ROWS).zip(self.greatest);
        for (group, (lower, greatest)) in (0_u32..).zip(groups) {
            let (spread, length) = self.w.greatest(group as usize);
            if upper(*greatest, spread, length) >= self.bar {
                if let Some(draw) = self.draw {
                    let scores = scores(draw, group, lower);
                    lower.copy_from_slice(&scores[..lower.len()]);
                }
                let facts = self.w.facts(group as usize);
                for (i, lower) in (0_u32..).zip(lower.iter()) {
                    let facts = [facts[1][i as usize], facts[2][i as usize]].map(f32::from_le_bytes);
                    if upper(*lower, facts[0], facts[1]) >= self.bar {
                        *self.found.get_mut(self.count)? = group * GROUP_ROWS_U32 + i;
                        self.count += 1;
                    }
                }
            }
            lower.fill(f32::NEG_INFINITY);
        }
        Some(self.count)
    }
}

const GROUP_ROWS_U32: u32 = 64;
const _: () = assert!(GROUP_ROWS_U32 as usize == GROUP_ROWS && GROUP_ROWS == draw::BLOCK);
