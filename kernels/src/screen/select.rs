//! Which rows could be among the best, given lower bounds of all.

use super::activations::ScreenRow;
use super::layout::{GROUP_ROWS, ScreenMatrix};
use crate::Isa;
use crate::simd::{Kernel, Simd, dispatch};

/// What a row must reach to matter: to be among the `count` best, or within `distance` of the last of them. `also` are
/// rows whose results are about to be changed: they matter whatever they are, and count for nobody's rank.
#[derive(Clone, Copy, Debug)]
pub struct Sought<'a> {
    pub count: usize,
    pub distance: f32,
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
    dispatch(isa, Greatest { lower, greatest: &mut scratch.greatest });
    let least = rank(sought.count, scratch)?;
    let bar = (least - sought.distance) - (least.abs() + sought.distance) * (4.0 * f32::EPSILON);
    if !bar.is_finite() {
        return None;
    }
    dispatch(isa, Passing { w, x, bar, lower, greatest: &scratch.greatest, found, count })
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

struct Passing<'a> {
    w: ScreenMatrix<'a>,
    x: &'a ScreenRow,
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
        let groups = self.lower.chunks_mut(GROUP_ROWS).zip(self.greatest).enumerate();
        for (group, (lower, greatest)) in groups {
            let (spread, length) = self.w.greatest(group);
            if upper(*greatest, spread, length, self.x) >= self.bar {
                let facts = self.w.facts(group);
                for (i, lower) in lower.iter().enumerate() {
                    let (spread, length) = (f32::from_le_bytes(facts[1][i]), f32::from_le_bytes(facts[2][i]));
                    if upper(*lower, spread, length, self.x) >= self.bar {
                        *self.found.get_mut(self.count)? = u32::try_from(group * GROUP_ROWS + i).ok()?;
                        self.count += 1;
                    }
                }
            }
            lower.fill(f32::NEG_INFINITY);
        }
        Some(self.count)
    }
}

#[inline(always)]
fn upper(lower: f32, spread: f32, length: f32, x: &ScreenRow) -> f32 {
    lower + 2.0 * (spread * x.norm + length * x.rest)
}
