//! `y = scale * W x` for rows of int8 activations: checks, dispatch, and what becomes of an integer sum.

use std::ops::Range;

use super::layout::{TILE_ROWS, TernaryMatrix, Tile, padded_cols};
use super::portable;
use crate::Isa;

/// Quantised rows: `n` rows of `stride` int8 values, and for each row its scale and sum (see
/// [`Quantized`](super::Quantized)). The first `padded_cols(cols)` values of each row are read; those from `cols` on
/// must be 0. [`activation_stride`] is a good stride.
#[derive(Clone, Copy, Debug)]
pub struct Activations<'a> {
    pub q: &'a [i8],
    pub stride: usize,
    pub scale: &'a [f32],
    pub sum: &'a [i32],
}

/// A stride for rows of `cols` activations that spreads rows over the sets of the first-level cache: an odd number of
/// cache lines.
#[must_use]
pub const fn activation_stride(cols: usize) -> usize {
    ((padded_cols(cols) / 64) | 1) * 64
}

/// `out[t][r] = ((acc - sum[t]) as f32) / scale[t] * w.scale` with `acc` the exact sum of `code * q`, for all rows `t`
/// of `x` and the rows `rows` of `w`; `out` is `n x rows.len()`. Every ISA gives the same bits.
///
/// # Panics
/// Where `rows` does not start at a multiple of 16 or leaves the matrix, or a slice of `x` or `out` has a length that
/// does not fit.
pub fn linear(isa: Isa, w: TernaryMatrix<'_>, rows: Range<usize>, x: Activations<'_>, out: &mut [f32]) {
    dispatch(isa, Job::new(w, rows, x, out.len()), Scaled(w.scale()), out);
}

/// The integers behind [`linear`]: `out[t][r] = acc - sum[t]`, the exact sum of `w * q`.
///
/// # Panics
/// As [`linear`].
pub fn linear_raw(isa: Isa, w: TernaryMatrix<'_>, rows: Range<usize>, x: Activations<'_>, out: &mut [i32]) {
    dispatch(isa, Job::new(w, rows, x, out.len()), Raw, out);
}

fn dispatch<F: Finish>(isa: Isa, job: Job<'_>, finish: F, out: &mut [F::Out]) {
    if job.rows == 0 {
        return;
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(proof) => super::avx2::linear(proof, job, finish, out),
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni(proof) => super::avx_vnni::linear(proof, job, finish, out),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bw(proof) => super::avx512_bw::linear(proof, job, finish, out),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni(proof) => super::gemv::avx512_vnni::linear(proof, job, finish, out),
        #[cfg(target_arch = "x86_64")]
        Isa::AmxInt8(proof) => super::gemv::avx512_vnni::linear(proof.vnni(), job, finish, out),
        #[cfg(target_arch = "aarch64")]
        Isa::NeonDotprod(proof) => super::neon_dotprod::linear(proof, job, finish, out),
        #[cfg(target_arch = "aarch64")]
        Isa::NeonI8mm(proof) => super::neon_dotprod::linear(proof.dotprod(), job, finish, out),
        Isa::Portable => portable::linear(job, finish, out),
        _ => unreachable!("no proof exists on this machine"),
    }
}

/// A checked call: the row tiles of a row range against all activations.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    tiles: &'a [Tile],
    tiles_per_row: usize,
    /// Rows of the output; the last row tile may be short.
    pub(super) rows: usize,
    x: Activations<'a>,
}

impl<'a> Job<'a> {
    fn new(w: TernaryMatrix<'a>, rows: Range<usize>, x: Activations<'a>, out_len: usize) -> Self {
        assert!(rows.start.is_multiple_of(TILE_ROWS), "rows start at a row tile");
        assert!(rows.start <= rows.end && rows.end <= w.rows(), "rows lie in the matrix");
        let (n, k) = (x.scale.len(), padded_cols(w.cols()));
        assert_eq!(x.sum.len(), n, "a sum for each scale");
        assert!(x.stride >= k && (n == 0 || x.q.len() >= (n - 1) * x.stride + k), "activations hold all rows");
        assert_eq!(out_len, n * rows.len(), "output length");
        let tiles = w.row_tiles(rows.start / TILE_ROWS..rows.end.div_ceil(TILE_ROWS));
        Self { tiles, tiles_per_row: w.tiles_per_row(), rows: rows.len(), x }
    }

    /// Rows of activations.
    pub(super) fn n(&self) -> usize {
        self.x.scale.len()
    }

    /// Bytes of a row tile.
    pub(super) fn row_tile_bytes(&self) -> usize {
        self.tiles_per_row * size_of::<Tile>()
    }

    pub(super) fn row_tiles(&self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }

    /// The work in blocks of row tiles that stay in the second-level cache while all activation rows pass by, in
    /// near-equal groups of at most `tokens_max`.
    pub(super) fn blocks(&self, tokens_max: usize) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + use<> {
        let (n, row_tiles) = (self.n(), self.row_tiles());
        let block = (ROW_BLOCK_BYTES / self.row_tile_bytes()).max(1).next_multiple_of(2);
        let groups = n.div_ceil(tokens_max);
        (0..row_tiles).step_by(block).flat_map(move |first| {
            let tiles = first..(first + block).min(row_tiles);
            (0..groups).map(move |group| (tiles.clone(), group * n / groups..(group + 1) * n / groups))
        })
    }

    #[inline(always)]
    pub(super) fn row_tile(&self, index: usize) -> &'a [Tile] {
        &self.tiles[index * self.tiles_per_row..(index + 1) * self.tiles_per_row]
    }

    /// Row `t` of the activations in groups of one tile's columns.
    #[inline(always)]
    pub(super) fn x_row(&self, t: usize) -> &'a [[i8; 16]] {
        &self.x.q[t * self.x.stride..].as_chunks().0[..self.tiles_per_row]
    }

    /// Writes the sums of row tile `index` against activation row `t`.
    #[inline(always)]
    pub(super) fn store<F: Finish>(
        &self,
        finish: F,
        out: &mut [F::Out],
        index: usize,
        t: usize,
        acc: [i32; TILE_ROWS],
    ) {
        let (sum, scale) = (self.x.sum[t], self.x.scale[t]);
        let first = index * TILE_ROWS;
        let out = &mut out[t * self.rows..(t + 1) * self.rows][first..];
        if let Some(out) = out.first_chunk_mut::<TILE_ROWS>() {
            for l in 0..TILE_ROWS {
                out[l] = finish.finish(acc[l].wrapping_sub(sum), scale);
            }
        } else {
            for (out, acc) in out.iter_mut().zip(acc) {
                *out = finish.finish(acc.wrapping_sub(sum), scale);
            }
        }
    }
}

/// Half of a second-level cache of 512 KiB.
const ROW_BLOCK_BYTES: usize = 256 << 10;

/// What becomes of the exact sum of `w * q`.
pub(super) trait Finish: Copy {
    type Out: Copy;
    fn finish(self, sum: i32, scale: f32) -> Self::Out;
}

#[derive(Clone, Copy)]
pub(super) struct Scaled(pub(super) f32);

impl Finish for Scaled {
    type Out = f32;
    #[inline(always)]
    fn finish(self, sum: i32, scale: f32) -> f32 {
        sum as f32 / scale * self.0
    }
}

#[derive(Clone, Copy)]
struct Raw;

impl Finish for Raw {
    type Out = i32;
    #[inline(always)]
    fn finish(self, sum: i32, _scale: f32) -> i32 {
        sum
    }
}
