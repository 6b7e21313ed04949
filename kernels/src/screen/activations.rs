//! Activation rows as planes of int8.

use super::layout::{padded_cols, tiles_per_row};
use super::norms::{INFLATE, LANES, SMALLEST, greatest, length, nearest, norm, root};
use crate::Isa;
use crate::simd::{Kernel, Simd, dispatch};

/// How an activation row becomes int8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// One plane, whose step is as wide as the greatest value makes it.
    #[default]
    One,
    /// A second plane holds what rounding to the first one left.
    Two,
    /// One plane with the step of all but few values; the second one is zero but where these are, and costs nearly
    /// nothing.
    Outliers,
    /// The same, and a third plane of what these left, which only those rows of the matrix meet that the others do not
    /// rule out.
    Refined,
    /// As [`Two`](Self::Two), but of the rows of the matrix only those are told that the best one so far does not rule out.
    Raced,
}

impl Precision {
    /// Whether rows of this kind look for the best one only, and know what it reaches while the matrix passes by.
    #[must_use]
    pub fn races(self) -> bool {
        matches!(self, Self::Refined | Self::Raced)
    }

    /// Whether there are two whole planes.
    fn is_double(self) -> bool {
        matches!(self, Self::Two | Self::Raced)
    }
}

/// What [`split`] found of an activation row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ScreenRow {
    pub(super) precision: Precision,
    /// Step and sum of each plane.
    pub(super) step: [f32; PLANES],
    pub(super) sum: [i32; PLANES],
    /// `X` and `D` of the module's proof; not finite where the row is not.
    pub(super) norm: f32,
    pub(super) rest: f32,
    /// `D` without the third plane.
    pub(super) coarse_rest: f32,
}

/// Activation rows: row `t` has its planes at `PLANES * t` and the following, each [`plane_stride`] long.
#[derive(Clone, Copy, Debug)]
pub struct ScreenRows<'a> {
    pub planes: &'a [i8],
    pub rows: &'a [ScreenRow],
}

/// Distance of planes of `cols` columns: an odd number of cache lines, which spreads them over the sets of a cache.
#[must_use]
pub(super) const fn plane_stride(cols: usize) -> usize {
    (padded_cols(cols).div_ceil(64) | 1) * 64
}

/// Bytes of the planes of a row of `cols` columns.
#[must_use]
pub const fn planes_len(cols: usize) -> usize {
    PLANES * plane_stride(cols)
}

impl ScreenRow {
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Planes that are multiplied as a whole.
    pub(super) fn whole_planes(&self) -> usize {
        if self.precision.is_double() { 2 } else { 1 }
    }
}

/// Splits `x` into planes.
///
/// # Panics
/// Where `planes` is not [`planes_len`] long.
#[must_use]
pub fn split(isa: Isa, x: &[f32], precision: Precision, planes: &mut [i8]) -> ScreenRow {
    assert_eq!(planes.len(), planes_len(x.len()), "room for all planes");
    dispatch(isa, Split { x, precision, planes })
}

struct Split<'a> {
    x: &'a [f32],
    precision: Precision,
    planes: &'a mut [i8],
}

impl Kernel for Split<'_> {
    type Output = ScreenRow;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> ScreenRow {
        let Self { x, precision, planes } = self;
        planes.fill(0);
        let (first, others) = planes.split_at_mut(planes.len() / PLANES);
        let (second, third) = others.split_at_mut(first.len());
        let mut row = ScreenRow { precision, norm: norm(x), ..ScreenRow::default() };
        let apart = matches!(precision, Precision::Outliers | Precision::Refined);
        let greatest = if apart { greatest_inlier(x) } else { greatest(x) };
        row.step[0] = if greatest > SMALLEST { greatest / 127.0 } else { 0.0 };
        round(x, row.step[0], first);
        row.sum[0] = first.iter().map(|&q| i32::from(q)).sum();
        let mut used = length(first) * row.step[0];
        if precision != Precision::One {
            if precision.is_double() {
                // What the first plane leaves is at most half its step, and its rounding.
                row.step[1] = row.step[0] / 253.0;
                round_rest(x, row.step, first, second);
            } else {
                row.step[1] = round_outliers(x, (greatest, row.step[0]), first, second);
            }
            row.sum[1] = second.iter().map(|&q| i32::from(q)).sum();
            used += length(second) * row.step[1];
        }
        row.coarse_rest = rest(x, row.step, [first, second, third]) * INFLATE + used * USED_SLACK;
        row.rest = row.coarse_rest;
        if precision == Precision::Refined {
            row.step[2] = round_left(x, row.step, [first, second], third);
            row.sum[2] = third.iter().map(|&q| i32::from(q)).sum();
            used += length(third) * row.step[2];
            row.rest = rest(x, row.step, [first, second, third]) * INFLATE + used * USED_SLACK;
        }
        row
    }
}

#[inline(always)]
fn inverse(step: f32) -> f32 {
    if step > 0.0 { 1.0 / step } else { 0.0 }
}

#[inline(always)]
fn round(x: &[f32], step: f32, q: &mut [i8]) {
    let inverse = inverse(step);
    for (q, &x) in q.iter_mut().zip(x) {
        *q = nearest(x * inverse);
    }
}

#[inline(always)]
fn round_rest(x: &[f32], step: [f32; PLANES], first: &[i8], second: &mut [i8]) {
    let inverse = inverse(step[1]);
    for ((q, &x), &first) in second.iter_mut().zip(x).zip(first) {
        *q = nearest((x - step[0] * f32::from(first)) * inverse);
    }
}

/// The greatest magnitude of all but [`outlier_tiles`] tiles' columns.
#[inline(always)]
fn greatest_inlier(x: &[f32]) -> f32 {
    let count = outlier_tiles(x.len());
    let mut most = [0.0; OUTLIER_TILES_MAX + 1];
    let most = &mut most[..=count];
    let (tiles, rest) = x.as_chunks::<4>();
    let mut take = |mut value: f32| {
        if value > most[count] {
            for place in most.iter_mut() {
                if value > *place {
                    std::mem::swap(&mut value, place);
                }
            }
        }
    };
    for tile in tiles {
        // Four values by themselves: sixteen lanes for a tile would take longer than all else.
        take(tile.iter().fold(0.0, |most, x| if x.abs() > most { x.abs() } else { most }));
    }
    take(greatest(rest));
    most[count]
}

/// Puts what the first plane leaves of the tiles with values above `greatest` into the second one; its step.
#[inline(always)]
fn round_outliers(x: &[f32], (greatest, step): (f32, f32), first: &[i8], second: &mut [i8]) -> f32 {
    let outside = |tile: &[f32]| tile.iter().any(|x| x.abs() > greatest);
    let mut left = 0.0_f32;
    for (x, first) in x.chunks(4).zip(first.chunks(4)).filter(|(x, _)| outside(x)) {
        for (&x, &first) in x.iter().zip(first) {
            let rest = (x - step * f32::from(first)).abs();
            left = if rest > left { rest } else { left };
        }
    }
    let second_step = if left > SMALLEST { left / 127.0 } else { 0.0 };
    let inverse = inverse(second_step);
    let tiles = x.chunks(4).zip(first.chunks(4)).zip(second.chunks_mut(4));
    for ((x, first), second) in tiles.filter(|((x, _), _)| outside(x)) {
        for ((q, &x), &first) in second.iter_mut().zip(x).zip(first) {
            *q = nearest((x - step * f32::from(first)) * inverse);
        }
    }
    second_step
}

/// Puts what two planes leave into a third one; its step.
#[inline(always)]
fn round_left(x: &[f32], step: [f32; PLANES], [first, second]: [&[i8]; 2], third: &mut [i8]) -> f32 {
    let mut most = 0.0_f32;
    for ((&x, &first), &second) in x.iter().zip(first).zip(second) {
        let left = ((x - step[0] * f32::from(first)) - step[1] * f32::from(second)).abs();
        most = if left > most { left } else { most };
    }
    let third_step = if most > SMALLEST { most / 127.0 } else { 0.0 };
    let inverse = inverse(third_step);
    for (((q, &x), &first), &second) in third.iter_mut().zip(x).zip(first).zip(second) {
        *q = nearest(((x - step[0] * f32::from(first)) - step[1] * f32::from(second)) * inverse);
    }
    third_step
}

/// Most tiles that hold outliers.
pub(super) const fn outlier_tiles(cols: usize) -> usize {
    let count = tiles_per_row(cols) / TILES_PER_OUTLIER;
    if count < OUTLIER_TILES_MAX { count } else { OUTLIER_TILES_MAX }
}

/// Norm of `x` less its planes.
#[inline(always)]
fn rest(x: &[f32], step: [f32; PLANES], [first, second, third]: [&[i8]; PLANES]) -> f32 {
    let mut squares = [0.0; LANES];
    let planes = first.chunks(LANES).zip(second.chunks(LANES)).zip(third.chunks(LANES));
    for (x, ((first, second), third)) in x.chunks(LANES).zip(planes) {
        let planes = first.iter().zip(second).zip(third);
        for ((square, &x), ((&first, &second), &third)) in squares.iter_mut().zip(x).zip(planes) {
            let left = (x - step[0] * f32::from(first)) - step[1] * f32::from(second);
            let left = left - step[2] * f32::from(third);
            *square += left * left;
        }
    }
    root(&squares, x.len())
}

/// Most planes of a row.
pub(super) const PLANES: usize = 3;
/// Of 2560 columns, 16 tiles of 4: the second plane then costs a twentieth of the first one.
const TILES_PER_OUTLIER: usize = 40;
pub(super) const OUTLIER_TILES_MAX: usize = 64;
/// 2^-19, see the module's proof.
const USED_SLACK: f32 = 1.0 / 524_288.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Draw;

    #[test]
    fn every_isa_splits_alike_and_the_rest_is_no_less_than_it_is() {
        let mut draw = Draw::new(5);
        for cols in [1, 15, 16, 17, 64, 100, 2560] {
            for span in [1e-33, 1e-20, 1.0, 1e12] {
                let x = draw.floats(cols, span);
                let all = [Precision::One, Precision::Two, Precision::Outliers, Precision::Refined, Precision::Raced];
                for precision in all {
                    let mut first = None;
                    for isa in Isa::available() {
                        let mut planes = vec![99; planes_len(cols)];
                        let row = split(isa, &x, precision, &mut planes);
                        let want = first.get_or_insert_with(|| (row, planes.clone()));
                        assert_eq!((&row, &planes), (&want.0, &want.1), "{} {cols} {span}", isa.name());
                    }
                    let (row, planes) = first.unwrap();
                    let stride = plane_stride(cols);
                    let left = |k: usize| {
                        let plane = |p: usize| f64::from(row.step[p]) * f64::from(planes[p * stride + k]);
                        f64::from(x[k]) - plane(0) - plane(1) - plane(2)
                    };
                    let exact = (0..cols).map(|k| left(k).powi(2)).sum::<f64>().sqrt();
                    let whole = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
                    assert!(
                        f64::from(row.rest) >= exact && f64::from(row.norm) >= whole,
                        "{cols} {span} {precision:?}"
                    );
                    if span >= 1.0 {
                        let fine = matches!(precision, Precision::Two | Precision::Refined | Precision::Raced);
                        let part = if fine { 1e-4 } else { 0.02 };
                        assert!(row.coarse_rest <= whole as f32 * 0.02, "{cols} {span} {precision:?}");
                        assert!(
                            f64::from(row.rest) <= whole * part,
                            "{cols} {span} {precision:?}: {} {whole}",
                            row.rest
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn outliers_do_not_widen_the_step_and_lie_in_few_tiles() {
        let mut draw = Draw::new(6);
        let mut x = draw.floats(2560, 1.0);
        let count = outlier_tiles(x.len());
        assert_eq!(count, 16);
        for at in 0..count {
            x[at * 160 + 3] = 40.0 + at as f32;
        }
        let mut planes = vec![0; planes_len(x.len())];
        let row = split(Isa::detect(), &x, Precision::Outliers, &mut planes);
        assert!(row.step[0] <= 1.0 / 127.0);
        let second = planes[plane_stride(x.len())..2 * plane_stride(x.len())].chunks(4);
        assert_eq!(second.filter(|tile| tile.iter().any(|q| *q != 0)).count(), count);
        // One more, and the step is as wide as that.
        x[81] = 30.0;
        assert!(split(Isa::detect(), &x, Precision::Outliers, &mut planes).step[0] > 0.2);
    }

    #[test]
    fn rows_that_are_not_finite_have_no_finite_norm() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30] {
            let mut x = vec![1.0; 40];
            x[33] = bad;
            let mut planes = vec![0; planes_len(x.len())];
            for isa in Isa::available() {
                assert!(!split(isa, &x, Precision::Two, &mut planes).norm.is_finite(), "{bad}");
            }
        }
    }
}
