//! Makes the int8 copy of a dense matrix.

use std::ops::Range;

use super::layout::{CODE_ZERO, COLS_MAX, Facts, GROUP_ROWS, TILE_ROWS, Tile, group_bytes, tiles_per_row};
use super::norms::{INFLATE, LANES, SMALLEST, greatest, nearest, root};
use crate::Isa;
use crate::dense::{DenseMatrix, dequantize_row};
use crate::simd::{Kernel, Simd, dispatch};

/// Writes the copies of the groups `groups` of `w` to `out`, and the greatest `A` and `V` of each to `greatest`: the
/// parts of [`packed_bytes`](super::packed_bytes) before and behind `rows.div_ceil(GROUP_ROWS) * group_bytes`. The
/// answer is the greatest norm of a row; infinite where the matrix can't have a copy.
///
/// # Panics
/// Where the groups are not in the matrix or the slices have other lengths.
pub fn pack(isa: Isa, w: DenseMatrix<'_>, groups: Range<usize>, out: &mut [u8], greatest: &mut [u8]) -> f32 {
    assert!(groups.end <= w.rows().div_ceil(GROUP_ROWS), "groups lie in the matrix");
    if w.cols() > COLS_MAX {
        return f32::INFINITY;
    }
    let bytes = group_bytes(w.cols());
    assert_eq!((out.len(), greatest.len()), (groups.len() * bytes, groups.len() * 8), "output length");
    let mut row = vec![0.0; w.cols()];
    let mut codes = vec![0; w.cols()];
    let mut weight_max = 0.0_f32;
    let outs = out.chunks_exact_mut(bytes).zip(greatest.as_chunks_mut::<8>().0);
    for (group, (out, greatest)) in groups.zip(outs) {
        let rows = group * GROUP_ROWS..w.rows().min((group + 1) * GROUP_ROWS);
        let (tiles, facts) = out.split_at_mut(bytes - size_of::<Facts>());
        let facts = facts.as_chunks_mut::<4>().0;
        facts.fill([0; 4]);
        tiles.fill(CODE_ZERO);
        let (mut spread_max, mut length_max) = (0.0_f32, 0.0_f32);
        for (i, index) in rows.enumerate() {
            dequantize_row(isa, w, index, &mut row);
            let found = dispatch(isa, Row { row: &row, codes: &mut codes });
            store(&codes, tiles, i);
            let total = found.spread + found.length;
            // NaN must not pass for a number.
            weight_max = if total <= f32::MAX { weight_max.max(total) } else { f32::INFINITY };
            (spread_max, length_max) = (spread_max.max(found.spread), length_max.max(found.length));
            for (j, number) in [found.scale, found.spread, found.length].into_iter().enumerate() {
                facts[j * GROUP_ROWS + i] = number.to_le_bytes();
            }
            if weight_max == f32::INFINITY {
                return weight_max;
            }
        }
        greatest[..4].copy_from_slice(&spread_max.to_le_bytes());
        greatest[4..].copy_from_slice(&length_max.to_le_bytes());
    }
    weight_max
}

/// Puts the codes of a row into the tiles of its group, as row `index` there.
fn store(codes: &[u8], tiles: &mut [u8], index: usize) {
    let per_row = tiles_per_row(codes.len());
    let tiles: &mut [Tile] = &mut tiles.as_chunks_mut().0[index / TILE_ROWS * per_row..][..per_row];
    for (tile, codes) in tiles.iter_mut().zip(codes.chunks(4)) {
        tile[index % TILE_ROWS * 4..][..codes.len()].copy_from_slice(codes);
    }
}

struct Found {
    scale: f32,
    /// `A` of the module's proof.
    spread: f32,
    /// `V`.
    length: f32,
}

struct Row<'a> {
    row: &'a [f32],
    codes: &'a mut [u8],
}

impl Kernel for Row<'_> {
    type Output = Found;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Found {
        let Self { row, codes } = self;
        let greatest = greatest(row);
        let scale = if greatest > SMALLEST { greatest / 127.0 } else { 0.0 };
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let (mut left, mut squares) = ([0.0; LANES], [0_i32; LANES]);
        for (row, codes) in row.chunks(LANES).zip(codes.chunks_mut(LANES)) {
            let lanes = left.iter_mut().zip(&mut squares);
            for ((code, &w), (left, square)) in codes.iter_mut().zip(row).zip(lanes) {
                let q = nearest(w * inverse);
                *code = q.cast_unsigned().wrapping_add(CODE_ZERO);
                let (q, rest) = (i32::from(q), w - scale * f32::from(q));
                *left += rest * rest;
                *square += q * q;
            }
        }
        let error = root(&left, row.len());
        let length = (squares.iter().sum::<i32>() as f32).sqrt() * scale * INFLATE;
        // Twice `u` for each rounding on the way to a full result, and for the product and difference above.
        let roundings = (row.len().div_ceil(LANES) + 32) as f32 * f32::EPSILON;
        Found { scale, spread: (error + roundings * (error + length)) * INFLATE, length: length * INFLATE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dense::DenseKind;
    use crate::screen::{ScreenMatrix, packed_bytes};
    use crate::testing::Draw;

    fn pack_all(isa: Isa, w: DenseMatrix<'_>) -> (Vec<u8>, f32) {
        let mut bytes = vec![7; packed_bytes(w.rows(), w.cols())];
        let groups = w.rows().div_ceil(GROUP_ROWS);
        let (out, greatest) = bytes.split_at_mut(groups * group_bytes(w.cols()));
        let weight_max = pack(isa, w, 0..groups, out, greatest);
        (bytes, weight_max)
    }

    #[test]
    fn every_isa_packs_alike_and_the_facts_bound_the_rows() {
        let mut draw = Draw::new(3);
        for (rows, cols) in [(1, 1), (63, 5), (64, 16), (65, 33), (130, 100)] {
            let span = 10_f32.powi(i32::try_from(draw.below(12)).unwrap() - 6);
            let weights = draw.floats(rows * cols, span);
            let bytes: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
            let w = DenseMatrix::new(DenseKind::F32, &bytes, rows, cols).unwrap();
            let packed = pack_all(Isa::Portable, w);
            for isa in Isa::available() {
                assert!(pack_all(isa, w) == packed, "{} {rows} x {cols}", isa.name());
            }
            let screen = ScreenMatrix::new(&packed.0, &w, packed.1).unwrap();
            for (r, row) in weights.chunks(cols).enumerate() {
                let number = |j: usize| f64::from(f32::from_le_bytes(screen.facts(r / GROUP_ROWS)[j][r % GROUP_ROWS]));
                let code = |k: usize| screen.tile_row(r / TILE_ROWS)[k / 4][r % TILE_ROWS * 4 + k % 4];
                let near = |k: usize| number(0) * (f64::from(code(k)) - 128.0);
                let error = (0..cols).map(|k| (f64::from(row[k]) - near(k)).powi(2)).sum::<f64>().sqrt();
                let length = (0..cols).map(|k| near(k).powi(2)).sum::<f64>().sqrt();
                assert!(number(1) >= error && number(2) >= length, "row {r} of {rows} x {cols}");
                assert!(number(1) <= 0.02 * length + 1e-17, "row {r} of {rows} x {cols}");
                let (spread, length) = screen.greatest(r / GROUP_ROWS);
                assert!(f64::from(spread) >= number(1) && f64::from(length) >= number(2));
            }
        }
    }

    #[test]
    fn a_matrix_with_a_row_that_is_not_finite_has_no_copy() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut weights = vec![1.0_f32; 70 * 3];
            weights[65 * 3 + 1] = bad;
            let bytes: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
            let w = DenseMatrix::new(DenseKind::F32, &bytes, 70, 3).unwrap();
            for isa in Isa::available() {
                let (packed, weight_max) = pack_all(isa, w);
                assert!(ScreenMatrix::new(&packed, &w, weight_max).is_none(), "{bad}");
            }
        }
    }
}
