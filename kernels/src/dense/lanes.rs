//! Sixteen float lanes and what the dense kernels ask of them; an ISA is one implementation.

/// Lanes of a sum: element `k` goes to lane `k % 16`.
pub(super) const LANES: usize = 16;

/// Operations on 16 f32 lanes, given by a proof that their instructions exist. Bodies are `#[inline(always)]`: they
/// get their instructions from the `#[target_feature]` function that runs the [`Kernel`].
pub(super) trait Lanes: Copy {
    type V: Copy;
    /// Activation rows of a register tile of [`TILE_ROWS`] weight rows; 6 at most.
    const TILE_TOKENS: usize;

    fn splat(self, x: f32) -> Self::V;
    fn load(self, x: &[f32; LANES]) -> Self::V;
    fn store(self, v: Self::V, out: &mut [f32; LANES]);
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Little-endian f32.
    fn widen_f32(self, x: &[u8; 64]) -> Self::V;
    /// Little-endian halves.
    fn widen_f16(self, x: &[u8; 32]) -> Self::V;
    /// Little-endian bfloat16.
    fn widen_bf16(self, x: &[u8; 32]) -> Self::V;
    fn widen_i8(self, x: &[i8; LANES]) -> Self::V;
    /// One half.
    fn half(self, bits: u16) -> f32;
    /// Runs `kernel` in a function of its own: an inner loop then has all registers to itself.
    fn outline<K: Kernel>(self, kernel: K);
    /// Asks for the cache line `ahead` bytes behind the start of `bytes`; no effect on results.
    fn prefetch(self, bytes: &[u8], ahead: usize);
}

/// A computation over [`Lanes`]; `run` is `#[inline(always)]`.
pub(super) trait Kernel {
    fn run<S: Lanes>(self, lanes: S);
}

/// Weight rows of a register tile.
pub(super) const TILE_ROWS: usize = 4;

/// Sum of the lanes by the one fixed tree: lanes l and l + 8, then + 4, + 2, + 1. Written out: a loop over the steps
/// stays a loop of scalar additions through memory.
#[inline(always)]
pub(super) fn tree(lanes: &[f32; LANES]) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|l| lanes[l] + lanes[l + 8]);
    let four: [f32; 4] = std::array::from_fn(|l| eight[l] + eight[l + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}
