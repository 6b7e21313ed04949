//! Rotary position embedding: cosines and sines built once per model, applied to one head at a time.

use crate::Isa;
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// Which values of a head form the pairs that are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeKind {
    /// Value i with value i + `rot_dims` / 2 (bitnet, bitnet-b1.58, qwen3, gemma3).
    Neox,
    /// Value 2i with value 2i + 1 (llama).
    Norm,
}

/// Cosines and sines of all positions, `positions_max * rot_dims` floats.
///
/// The angle of pair i at position p is `p * freq_scale * freq_base^(-2i / rot_dims) / freq_factors[i]`, in f32 and by
/// repeated multiplication, as `ggml_rope_cache_init` does it: angles in f64 are nearer to the formula, but flip F16
/// keys and later int8 activations against the reference (3.5e-3 instead of 1.4e-7 in the logits after 13 tokens).
#[derive(Clone, Debug)]
pub struct RopeTable {
    head_dim: usize,
    half: usize,
    /// Per position `half` cosines, then `half` sines.
    values: Vec<f32>,
}

impl RopeTable {
    /// `rot_dims` is even and at most `head_dim`; `freq_scale` is 1 or the reciprocal of a linear scaling factor;
    /// `freq_factors` has `rot_dims / 2` divisors (`rope_freqs.weight`).
    ///
    /// # Panics
    /// If the sizes contradict each other.
    #[must_use]
    pub fn new(
        head_dim: usize,
        rot_dims: usize,
        freq_base: f32,
        freq_scale: f32,
        freq_factors: Option<&[f32]>,
        positions_max: usize,
    ) -> Self {
        assert!(rot_dims.is_multiple_of(2) && rot_dims <= head_dim, "{rot_dims} of {head_dim} dimensions rotated");
        let half = rot_dims / 2;
        assert!(freq_factors.is_none_or(|f| f.len() == half), "one frequency factor per pair");
        let ratio = libm::pow(f64::from(freq_base), -2.0 / rot_dims as f64) as f32;
        let mut values = vec![0.0; positions_max * rot_dims];
        for (position, row) in values.chunks_exact_mut(rot_dims.max(1)).enumerate() {
            let (cos, sin) = row.split_at_mut(half);
            let mut angle = position as f32;
            for (i, (cos, sin)) in cos.iter_mut().zip(sin).enumerate() {
                let scaled = f64::from(freq_scale * (angle / freq_factors.map_or(1.0, |f| f[i])));
                (*cos, *sin) = (libm::cos(scaled) as f32, libm::sin(scaled) as f32);
                angle *= ratio;
            }
        }
        Self { head_dim, half, values }
    }

    /// Positions that this table covers.
    #[must_use]
    pub fn positions_max(&self) -> usize {
        self.values.len().checked_div(2 * self.half).unwrap_or(usize::MAX)
    }

    /// Of each position its cosines, then its sines.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Cosines and sines of one position.
    fn at(&self, position: usize) -> (&[f32], &[f32]) {
        self.values[position * 2 * self.half..][..2 * self.half].split_at(self.half)
    }
}

/// Rotates one head (`head_dim` values, of which the first `rot_dims` change) to `position`.
///
/// Pair (a, b) becomes (a cos - b sin, a sin + b cos): the second product of each rounded, the first fused to it, as C
/// compilers usually contract such a line.
///
/// # Panics
/// If `x` is not one head or the position is past the table.
pub fn apply(isa: Isa, table: &RopeTable, kind: RopeKind, position: usize, x: &mut [f32]) {
    assert_eq!(x.len(), table.head_dim, "one head");
    let (cos, sin) = table.at(position);
    let rotated = &mut x[..2 * table.half];
    match kind {
        RopeKind::Neox => dispatch(isa, Halves { cos, sin, x: rotated }),
        RopeKind::Norm => dispatch(isa, Pairs { cos, sin, x: rotated }),
    }
}

struct Halves<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    x: &'a mut [f32],
}

impl Kernel for Halves<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (low, high) = self.x.split_at_mut(self.cos.len());
        let (lows, low) = low.as_chunks_mut::<LANES>();
        let (highs, high) = high.as_chunks_mut::<LANES>();
        let ((cosines, cos), (sines, sin)) = (self.cos.as_chunks::<LANES>(), self.sin.as_chunks::<LANES>());
        for ((a, b), (cos, sin)) in lows.iter_mut().zip(highs).zip(cosines.iter().zip(sines)) {
            let turned = turn(s, [s.load(a), s.load(b)], [s.load(cos), s.load(sin)]);
            s.store(turned[0], a);
            s.store(turned[1], b);
        }
        if !low.is_empty() {
            let (cos, sin) = (s.load_part(cos, 0.0), s.load_part(sin, 0.0));
            let turned = turn(s, [s.load_part(low, 0.0), s.load_part(high, 0.0)], [cos, sin]);
            s.store_part(turned[0], low);
            s.store_part(turned[1], high);
        }
    }
}

#[inline(always)]
fn turn<S: Simd>(s: S, [a, b]: [S::F; 2], [cos, sin]: [S::F; 2]) -> [S::F; 2] {
    let minus_b = s.mul(b, s.splat(-1.0));
    [s.fma(a, cos, s.mul(minus_b, sin)), s.fma(a, sin, s.mul(b, cos))]
}

struct Pairs<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    x: &'a mut [f32],
}

impl Kernel for Pairs<'_> {
    type Output = ();

    /// Scalar source: the pairs do not interact, so the compiler vectorises it and the bits stay.
    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        for ([a, b], (cos, sin)) in self.x.as_chunks_mut::<2>().0.iter_mut().zip(self.cos.iter().zip(self.sin)) {
            (*a, *b) = (a.mul_add(*cos, -*b * sin), a.mul_add(*sin, *b * cos));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Draw, same_bits};

    const HEADS: [(usize, usize); 7] = [(64, 64), (128, 128), (100, 100), (80, 32), (256, 256), (6, 2), (16, 0)];

    #[test]
    fn every_isa_gives_the_same_bits() {
        let mut draw = Draw::new(1);
        for (head_dim, rot_dims) in HEADS {
            let table = RopeTable::new(head_dim, rot_dims, 5e5, 1.0, None, 100);
            for kind in [RopeKind::Neox, RopeKind::Norm] {
                for position in [0, 1, 37, 99] {
                    let x = draw.floats(head_dim, 10.0);
                    let mut expected = x.clone();
                    apply(Isa::Portable, &table, kind, position, &mut expected);
                    for isa in Isa::available() {
                        let mut got = x.clone();
                        apply(isa, &table, kind, position, &mut got);
                        same_bits(&got, &expected, isa.name());
                    }
                }
            }
        }
    }

    #[test]
    fn rotation_is_near_the_f64_formula() {
        let mut draw = Draw::new(2);
        for (head_dim, rot_dims) in HEADS {
            let half = rot_dims / 2;
            let factors: Vec<f32> = (0..half).map(|i| 1.0 + i as f32 / 8.0).collect();
            let table = RopeTable::new(head_dim, rot_dims, 1e4, 0.25, Some(&factors), 4097);
            for (kind, position) in [(RopeKind::Neox, 4096usize), (RopeKind::Norm, 4096), (RopeKind::Neox, 3)] {
                let x = draw.floats(head_dim, 4.0);
                let mut got = x.clone();
                apply(Isa::detect(), &table, kind, position, &mut got);
                for (i, factor) in factors.iter().enumerate() {
                    let (ia, ib) = if kind == RopeKind::Neox { (i, i + half) } else { (2 * i, 2 * i + 1) };
                    let frequency = 1e4f64.powf(-2.0 * i as f64 / rot_dims as f64) * 0.25 / f64::from(*factor);
                    let angle = position as f64 * frequency;
                    let (sin, cos) = angle.sin_cos();
                    let (a, b) = (f64::from(x[ia]), f64::from(x[ib]));
                    // Each multiplication of the angle, and the ratio in it, is off by half a unit in the last place.
                    let bound = 1e-6 + 8.0 * angle * (i + 2) as f64 * f64::from(f32::EPSILON);
                    assert!((f64::from(got[ia]) - (a * cos - b * sin)).abs() < bound, "{kind:?} pair {i}");
                    assert!((f64::from(got[ib]) - (a * sin + b * cos)).abs() < bound, "{kind:?} pair {i}");
                }
                same_bits(&got[rot_dims..], &x[rot_dims..], "dimensions that are not rotated");
            }
        }
    }

    #[test]
    fn angles_are_products_of_f32() {
        let table = RopeTable::new(64, 64, 5e5, 1.0, None, 1000);
        let ratio = 5e5f64.powf(-2.0 / 64.0) as f32;
        let angle = 999.0f32 * ratio * ratio * ratio;
        let (cos, sin) = table.at(999);
        assert_eq!((cos[3], sin[3]), (f64::from(angle).cos() as f32, f64::from(angle).sin() as f32));
    }

    #[test]
    fn position_zero_changes_nothing() {
        let table = RopeTable::new(64, 64, 1e4, 1.0, None, 1);
        let x = Draw::new(5).floats(64, 1.0);
        let mut got = x.clone();
        apply(Isa::detect(), &table, RopeKind::Norm, 0, &mut got);
        assert_eq!(got, x);
        assert_eq!(table.positions_max(), 1);
    }
}
