//! Inputs and comparisons shared by the tests of the float kernels.

/// A repeatable source of test values.
pub(crate) struct Draw(u64);

impl Draw {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Uniform in `0..bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }

    /// Uniform in `-span..span`.
    pub(crate) fn float(&mut self, span: f32) -> f32 {
        (self.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0) * span
    }

    pub(crate) fn floats(&mut self, n: usize, span: f32) -> Vec<f32> {
        (0..n).map(|_| self.float(span)).collect()
    }
}

/// Lengths around every vector border, and some of real models.
pub(crate) fn lengths() -> impl Iterator<Item = usize> {
    (0..=70).chain([100, 127, 128, 1023, 2560, 6912, 6913])
}

/// Panics at the first difference.
pub(crate) fn same_bits(got: &[f32], expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!(a.to_bits() == b.to_bits(), "{what} at {i}: {a} is not {b}");
    }
}
