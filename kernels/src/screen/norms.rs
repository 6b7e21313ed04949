//! Norms that are never too small, and rounding, for weights and activations alike. Bodies are `#[inline(always)]`: they
//! get their instructions from the kernel around them.

/// Lanes of a sum of squares.
pub(super) const LANES: usize = 16;

/// Norm of `x`, not less than it is; not finite where `x` is not, or its squares are not.
#[inline(always)]
pub(super) fn norm(x: &[f32]) -> f32 {
    let mut squares = [0.0; LANES];
    for x in x.chunks(LANES) {
        for (square, &x) in squares.iter_mut().zip(x) {
            *square += x * x;
        }
    }
    root(&squares, x.len())
}

/// Root of the sum of lanes that hold `terms` squares together, not less than the exact one: each square went through
/// `terms / 16 + 6` roundings at most, and twice that many are added.
#[inline(always)]
pub(super) fn root(squares: &[f32; LANES], terms: usize) -> f32 {
    let sum = squares.iter().sum::<f32>();
    let slack = 1.0 + (terms / LANES + 24) as f32 * f32::EPSILON;
    (sum * slack).sqrt() * INFLATE + TINY
}

/// Norm of integers.
#[inline(always)]
pub(super) fn length(q: &[i8]) -> f32 {
    let squares: i32 = q.iter().map(|&q| i32::from(q) * i32::from(q)).sum();
    (squares as f32).sqrt() * INFLATE
}

/// The greatest magnitude; NaN is passed over.
#[inline(always)]
pub(super) fn greatest(x: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    for x in x.chunks(LANES) {
        for (lane, x) in lanes.iter_mut().zip(x) {
            *lane = if x.abs() > *lane { x.abs() } else { *lane };
        }
    }
    lanes.into_iter().fold(0.0, f32::max)
}

/// The nearest integer, halves to even, kept in -127 ..= 127; some integer for NaN.
#[inline(always)]
pub(super) fn nearest(x: f32) -> i8 {
    // Adding it leaves the integer in the low bits.
    const SHIFTER: f32 = 12_582_912.0;
    let x = if x > 127.0 { 127.0 } else { x };
    let x = if x < -127.0 { -127.0 } else { x };
    let [low, ..] = (x + SHIFTER).to_bits().to_le_bytes();
    low.cast_signed()
}

/// Rows whose greatest element is below this have the step 0: all of them is in what is left.
pub(super) const SMALLEST: f32 = 1e-30;
/// Far more than the roundings of a handful of operations.
pub(super) const INFLATE: f32 = 1.0 + 1.0 / 65536.0;
/// More than what squares lose that underflow: `sqrt(COLS_MAX * 2^-149)` is 1e-20. Its square is more than what subnormal
/// sums lose.
pub(super) const TINY: f32 = 1e-18;
