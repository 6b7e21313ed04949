//! A cheap look at all rows of a dense matrix that proves which rows cannot be among the best, so that only the others
//! need their exact product.
//!
//! # What is kept
//!
//! Beside a dense matrix `w` stands a copy of it in int8: row `r` is about `s_r q_r` with `q_r` in -127 ..= 127, and with
//! it two numbers that bound what the copy leaves out (below). An activation row `x` becomes int8 planes:
//! `x` is about `S_0 h_0 + S_1 h_1 + S_2 h_2`, where `h_1` holds what rounding to `h_0` left, or only what it left of the few
//! greatest values, which then do not widen the step of the others, and `h_2` what both left.
//!
//! # Why nothing is lost
//!
//! Let `u = 2^-24`, all norms Euclidean, and `f` the result that [`dense::linear`](crate::dense::linear) gives for row
//! `r`. With `E = |w_r - s_r q_r|`, `V = |s_r q_r|`, `d = x - sum S_p h_p`, `D = |d|`, `X = |x|`, `H = sum S_p |h_p|` and
//! the integers `J_p = q_r . h_p`, which are exact in i32 up to [`COLS_MAX`]:
//!
//! 1. `w_r . x = s_r sum S_p J_p + s_r q_r . d + (w_r - s_r q_r) . x`, so by Cauchy and Schwarz the exact product differs
//!    from `a* = s_r sum S_p J_p` by at most `V D + E X`.
//! 2. `f` differs from `w_r . x` by its own rounding: each product goes through at most `m = ceil(cols / 16) + 4`
//!    roundings (the fused multiply-adds of its lane, then the tree), so by at most `g sum |w_k x_k| <= g (E + V) X`
//!    with `g = m u / (1 - m u)`. Sums so small that they are subnormal add at most `(cols + 15) 2^-150`.
//! 3. `a`, computed in f32, differs from `a*` by at most `5 u V H`: conversion, two products and two sums for a
//!    plane at most, and `|J_p| s_r S_p <= V S_p |h_p|`.
//!
//! So `|f - a| <= A X + V (D + 5 u H) + tiny`, with `A = E + g (E + V)`. Stored are `A` and `V`, inflated by 2^-16: far
//! more than the roundings of the few products and sums that follow, and of the norms themselves, which are sums of
//! `cols` squares in 16 lanes and get a slack of their own for each term of a lane. `D` is inflated the same way and by
//! `2^-19 H = 32 u H`, six times what 3. needs: the rest covers the rounding of `x - S_0 h_0` and of what follows (at most
//! `3 u (H + D)`) and of `lower = a - (A X + V D)` and `lower + 2 (A X + V D)` themselves. The same roundings of `w_r -
//! s_r q_r` are counted in `g`. Squares and sums that underflow are covered by adding `TINY` to `E`, `X` and `D`. Norms far
//! from overflow (`ScreenMatrix::admits`) keep every partial sum of `f` and of the screen finite; an activation row that
//! is not (infinite, NaN) is not admitted.
//!
//! Let `T` be at most the `k`-th greatest lower bound of some rows. Those `k` rows have `f >= T`, so a row whose upper
//! bound is below `T` is not among the `k` best of them, and not equal to the last of these either: ties stay whole, and
//! choosing by value, then by index, gives what it gives on all rows. [`select`] takes for `T` the `k`-th greatest of
//! the maxima of whole groups of rows: `k` groups with such a maximum hold `k` such rows.
//!
//! A draw (`kernels::draw`) takes the greatest of `factor * f + noise`, so the same holds of these scores; `score_slack`
//! covers that they are made of bounds in f32 and of results in f64.
//!
//! A row that races looks for the best one, or those within a distance of it. While the matrix passes by, the greatest lower
//! bound so far is such a `T`, so a row of the matrix whose upper bound is below it is done with. Of a refined row that is the
//! bound by a plane and outliers; those that it leaves meet the third plane while they are in the caches. The best lower bound by all planes is found whatever the order, and
//! what is kept for a row, the lesser of its upper bounds, doesn't depend on it either: nor does what is found. At last the
//! result of the row with the greatest upper bound is such a `T` too: bounds were at most its own half width below.
//!
//! Integer sums are exact and float steps are single IEEE operations in a fixed order, so that every ISA selects the
//! same rows.

mod activations;
#[cfg(target_arch = "x86_64")]
mod amx_int8;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512_bw;
#[cfg(target_arch = "x86_64")]
mod avx512_vnni;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
mod bounds;
mod layout;
#[cfg(target_arch = "aarch64")]
mod neon;
mod norms;
mod pack;
mod portable;
mod refine;
mod select;

use crate::Isa;

pub use activations::{Precision, ScreenRow, ScreenRows, planes_len, split};
pub use bounds::{ScreenInput, bounds};
pub use layout::{COLS_MAX, GROUP_ROWS, ScreenMatrix, group_bytes, packed_bytes};
pub use pack::pack;
pub use select::{SelectScratch, Sought, likeliest, score, select, select_raced};

/// How many activation rows of `cols` columns each that look for the best row only are looked at soonest: [`Precision::Raced`]
/// where tiles multiply, whose second plane costs little, [`Precision::Refined`] where `isa` has products of its own for it. It
/// is exact either way.
#[must_use]
pub fn racing(isa: Isa, cols: usize) -> Option<Precision> {
    match isa {
        Isa::AmxInt8(_) if bounds::in_tiles(cols) => Some(Precision::Raced),
        Isa::Avx512Vnni(_) | Isa::AmxInt8(_) => Some(Precision::Refined),
        _ => None,
    }
}
