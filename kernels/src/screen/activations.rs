//! Activation rows as one or two planes of int8.

use super::layout::padded_cols;
use super::norms::{INFLATE, LANES, SMALLEST, greatest, length, nearest, norm, root};
use crate::Isa;
use crate::simd::{Kernel, Simd, dispatch};

/// What [`split`] found of an activation row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ScreenRow {
    /// 1 or 2.
    pub(super) planes: usize,
    /// Step and sum of each plane.
    pub(super) step: [f32; 2],
    pub(super) sum: [i32; 2],
    /// `X` and `D` of the module's proof; not finite where the row is not.
    pub(super) norm: f32,
    pub(super) rest: f32,
}

/// Activation rows: row `t` has its planes at `2 * t` and `2 * t + 1`, each [`plane_stride`] long.
#[derive(Clone, Copy, Debug)]
pub struct ScreenRows<'a> {
    pub planes: &'a [i8],
    pub rows: &'a [ScreenRow],
}

/// Distance of planes of `cols` columns: an odd number of cache lines, which spreads them over the sets of a cache.
#[must_use]
pub const fn plane_stride(cols: usize) -> usize {
    (padded_cols(cols).div_ceil(64) | 1) * 64
}

/// Splits `x` into `count` planes, 1 or 2, which `planes` has room for both of.
///
/// # Panics
/// Where `planes` is not two [`plane_stride`]s long or `count` is another.
#[must_use]
pub fn split(isa: Isa, x: &[f32], count: usize, planes: &mut [i8]) -> ScreenRow {
    assert_eq!(planes.len(), 2 * plane_stride(x.len()), "room for two planes");
    assert!(count == 1 || count == 2, "one or two planes");
    dispatch(isa, Split { x, count, planes })
}

struct Split<'a> {
    x: &'a [f32],
    count: usize,
    planes: &'a mut [i8],
}

impl Kernel for Split<'_> {
    type Output = ScreenRow;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> ScreenRow {
        let Self { x, count, planes } = self;
        planes.fill(0);
        let (first, second) = planes.split_at_mut(planes.len() / 2);
        let mut row = ScreenRow { planes: count, norm: norm(x), ..ScreenRow::default() };
        let greatest = greatest(x);
        row.step[0] = if greatest > SMALLEST { greatest / 127.0 } else { 0.0 };
        round(x, row.step[0], first);
        row.sum[0] = first.iter().map(|&q| i32::from(q)).sum();
        let mut used = length(first) * row.step[0];
        if count == 2 {
            // What the first plane leaves is at most half its step, and its rounding.
            row.step[1] = row.step[0] / 253.0;
            round_rest(x, row.step, first, second);
            row.sum[1] = second.iter().map(|&q| i32::from(q)).sum();
            used += length(second) * row.step[1];
        }
        row.rest = rest(x, row.step, first, second) * INFLATE + used * USED_SLACK;
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
fn round_rest(x: &[f32], step: [f32; 2], first: &[i8], second: &mut [i8]) {
    let inverse = inverse(step[1]);
    for ((q, &x), &first) in second.iter_mut().zip(x).zip(first) {
        *q = nearest((x - step[0] * f32::from(first)) * inverse);
    }
}

/// Norm of `x` less its planes.
#[inline(always)]
fn rest(x: &[f32], step: [f32; 2], first: &[i8], second: &[i8]) -> f32 {
    let mut squares = [0.0; LANES];
    for ((x, first), second) in x.chunks(LANES).zip(first.chunks(LANES)).zip(second.chunks(LANES)) {
        for (((square, &x), &first), &second) in squares.iter_mut().zip(x).zip(first).zip(second) {
            let left = (x - step[0] * f32::from(first)) - step[1] * f32::from(second);
            *square += left * left;
        }
    }
    root(&squares, x.len())
}

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
                for count in [1, 2] {
                    let mut first = None;
                    for isa in Isa::available() {
                        let mut planes = vec![99; 2 * plane_stride(cols)];
                        let row = split(isa, &x, count, &mut planes);
                        let want = first.get_or_insert_with(|| (row, planes.clone()));
                        assert_eq!((&row, &planes), (&want.0, &want.1), "{} {cols} {span}", isa.name());
                    }
                    let (row, planes) = first.unwrap();
                    let stride = plane_stride(cols);
                    let left = |k: usize| {
                        let plane = |p: usize| f64::from(row.step[p]) * f64::from(planes[p * stride + k]);
                        f64::from(x[k]) - plane(0) - plane(1)
                    };
                    let exact = (0..cols).map(|k| left(k).powi(2)).sum::<f64>().sqrt();
                    let whole = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
                    assert!(f64::from(row.rest) >= exact && f64::from(row.norm) >= whole, "{cols} {span} {count}");
                    if span >= 1.0 {
                        let part = if count == 2 { 1e-4 } else { 0.02 };
                        assert!(f64::from(row.rest) <= whole * part, "{cols} {span} {count}: {} {whole}", row.rest);
                    }
                }
            }
        }
    }

    #[test]
    fn rows_that_are_not_finite_have_no_finite_norm() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30] {
            let mut x = vec![1.0; 40];
            x[33] = bad;
            let mut planes = vec![0; 2 * plane_stride(x.len())];
            for isa in Isa::available() {
                assert!(!split(isa, &x, 2, &mut planes).norm.is_finite(), "{bad}");
            }
        }
    }
}
